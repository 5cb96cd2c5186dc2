//! The library as it is used: preloaded into a process. The process is this test itself, started again.
#![allow(clippy::unwrap_used, reason = "what fails in a test is the test")]

// The file and not the crate: the hooks in it would be linked into this test.
#[allow(unreachable_pub, dead_code, reason = "in its own crate it is public")]
#[path = "../src/plan.rs"]
mod plan;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use tempfile::TempDir;

/// Says to the second process what it shall do.
const ROLE: &str = "FAULT_SHIM_TEST_ROLE";

/// One directory that is watched and one that is not.
struct Bench {
    directory: TempDir,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["watched", "elsewhere", "shim"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs [`the_other_process`] with this plan. Its exit status, and the points without their times.
    fn run(&self, role: &str, plan: &str) -> (ExitStatus, Vec<String>) {
        fs::write(self.path("shim").join(plan::PLAN), plan).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "the_other_process", "--nocapture"]);
        command.env(ROLE, role).env("LD_PRELOAD", built_library()).env("DIRECTORY", self.directory.path());
        command.env(plan::WATCH, self.path("watched")).env(plan::DIRECTORY, self.path("shim"));
        let status = command.output().unwrap().status;
        let log = fs::read_to_string(self.path("shim").join(plan::LOG)).unwrap_or_default();
        let prefix = format!("{}/", self.directory.path().display());
        let shorten = |line: &str| line.split_once(' ').unwrap().1.replace(&prefix, "");
        (status, log.lines().map(shorten).collect())
    }
}

fn built_library() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let directory = program.parent().unwrap();
    let places = [directory.join("libfault_shim.so"), directory.join("../libfault_shim.so")];
    places.into_iter().find(|it| it.is_file()).unwrap()
}

/// What the second process does; in the first one this test has nothing to do.
#[test]
fn the_other_process() {
    let Some(role) = std::env::var_os(ROLE) else { return };
    let directory = PathBuf::from(std::env::var_os("DIRECTORY").unwrap());
    let watched = directory.join("watched");
    match role.to_str().unwrap() {
        "files" => change_files(&directory, &watched),
        "write" => {
            let mut file = File::create(watched.join("a")).unwrap();
            let error = file.write_all(b"0123456789").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(28));
        }
        "reply" => {
            let listener = UnixListener::bind(watched.join("s")).unwrap();
            let mut client = UnixStream::connect(watched.join("s")).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            client.write_all(b"question").unwrap();
            server.write_all(b"answer").unwrap();
        }
        other => panic!("{other}"),
    }
}

fn change_files(directory: &Path, watched: &Path) {
    let mut file = File::create(watched.join("a")).unwrap();
    file.write_all(b"1").unwrap();
    file.sync_data().unwrap();
    file.set_len(0).unwrap();
    fs::rename(watched.join("a"), watched.join("b")).unwrap();
    fs::hard_link(watched.join("b"), watched.join("c")).unwrap();
    fs::create_dir(watched.join("d")).unwrap();
    OpenOptions::new().read(true).open(watched.join("b")).unwrap();
    fs::remove_file(watched.join("b")).unwrap();
    File::open(watched).unwrap().sync_all().unwrap();
    fs::write(directory.join("elsewhere/x"), "not watched").unwrap();
}

#[test]
fn each_change_below_a_watched_directory_is_a_point_and_nothing_else() {
    let (status, points) = Bench::new().run("files", "id=1 action=crash_before skip=1000");
    assert!(status.success(), "{status}");
    let expected = [
        "open pass watched/a",
        "write pass watched/a",
        "sync pass watched/a",
        "truncate pass watched/a",
        "rename pass watched/b",
        "link pass watched/c",
        "mkdir pass watched/d",
        "unlink pass watched/b",
        "sync pass watched",
    ];
    assert_eq!(points, expected);
}

#[test]
fn a_crash_comes_before_or_after_the_operation() {
    for (action, is_renamed) in [("crash_before", false), ("crash_after", true)] {
        let bench = Bench::new();
        let (status, points) = bench.run("files", &format!("id=1 action={action} ops=rename"));
        assert_eq!(status.code(), Some(plan::CRASH_STATUS));
        assert_eq!(points.last().unwrap(), &format!("rename {action} watched/b"));
        assert_eq!(bench.path("watched/b").exists(), is_renamed);
        assert_eq!(bench.path("watched/a").exists(), !is_renamed);
    }
}

#[test]
fn half_a_write_stays_and_the_rest_fails() {
    let bench = Bench::new();
    let (status, points) = bench.run("write", "id=1 action=short:28 ops=write");
    assert!(status.success(), "{status}");
    assert_eq!(points, ["open pass watched/a", "write half watched/a", "write errno:28 watched/a"]);
    assert_eq!(fs::read(bench.path("watched/a")).unwrap(), b"01234");
}

#[test]
fn only_the_side_that_listened_replies() {
    let (status, points) = Bench::new().run("reply", "id=1 action=crash_before skip=1000");
    assert!(status.success(), "{status}");
    assert_eq!(points, ["reply pass watched/s"]);
}

#[test]
fn a_plan_that_makes_no_sense_ends_the_process() {
    let (status, _) = Bench::new().run("files", "id=1 action=explode");
    assert_eq!(status.code(), Some(97));
}
