//! The test's side of `tests/fault-shim`: starts the driver under it, arms it, and reads what was met.

// The file is shared and not the crate: the hooks in it would be linked into the test itself.
#[allow(unreachable_pub, dead_code, reason = "in its own crate it is public")]
#[path = "../fault-shim/src/plan.rs"]
mod plan;

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use plan::{Action, CRASH_STATUS, Op, Plan};

use super::{DRIVER, Lab};

/// The shim of one lab.
#[derive(Debug)]
pub(crate) struct Shim {
    directory: PathBuf,
    watched: Vec<PathBuf>,
    hardware: PathBuf,
    plans: AtomicU64,
}

/// A point that the driver met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Met {
    /// When, microseconds since the epoch.
    pub(crate) at_us: u64,
    pub(crate) op: Op,
    /// What happened: `pass`, `crash_before`, `crash_after`, `errno:<n>` or `half`.
    pub(crate) verdict: String,
    pub(crate) path: String,
}

impl Shim {
    /// Watches the driver's state directory with its socket, and the CDI directory.
    pub(crate) fn new(lab: &Lab) -> Self {
        // Not the rest of the driver's directory: when it notes the layouts in force has nothing to do with claims.
        let own = lab.path(&format!("plugins/{DRIVER}"));
        Self::watching(
            lab,
            vec![own.join("claims"), own.join("dra.sock"), own.join("dra-device-metadata"), lab.path("cdi")],
        )
    }

    /// Watches what is in these directories.
    pub(crate) fn watching(lab: &Lab, watched: Vec<PathBuf>) -> Self {
        let directory = lab.path("fault-shim");
        fs::create_dir_all(&directory).unwrap();
        Self { directory, watched, hardware: lab.path("host/nvml-sim/lock"), plans: AtomicU64::new(0) }
    }

    /// The command that starts the lab's driver under the shim.
    pub(crate) fn command(&self, lab: &Lab) -> Command {
        let mut command = lab.command();
        let watched: Vec<String> = self.watched.iter().map(|it| it.display().to_string()).collect();
        command.env("LD_PRELOAD", built_library()).env(plan::WATCH, watched.join(":"));
        command.env(plan::DIRECTORY, &self.directory).env(plan::LOCK, &self.hardware);
        command
    }

    /// From now on, after `skip` points of these kinds, the action; `times` times or for ever. What was met before is
    /// forgotten.
    pub(crate) fn arm(&self, action: Action, skip: u32, times: Option<u32>, ops: &[Op]) {
        self.forget();
        let id = self.plans.fetch_add(1, Ordering::Relaxed) + 1;
        let next = self.directory.join("plan.next");
        fs::write(&next, Plan { id, action, skip, times, ops: ops.to_vec() }.to_string()).unwrap();
        fs::rename(&next, self.directory.join(plan::PLAN)).unwrap();
    }

    /// From now on nothing happens.
    pub(crate) fn disarm(&self) {
        remove(&self.directory.join(plan::PLAN));
    }

    /// Forgets what was met.
    pub(crate) fn forget(&self) {
        remove(&self.directory.join(plan::LOG));
    }

    /// What was met since the shim was armed or forgot.
    pub(crate) fn met(&self) -> Vec<Met> {
        let text = match fs::read_to_string(self.directory.join(plan::LOG)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Vec::new(),
            text => text.unwrap(),
        };
        let parse = |line: &str| {
            let mut fields = line.splitn(4, ' ');
            let mut field = || fields.next().unwrap().to_owned();
            let (at_us, op) = (field().parse().unwrap(), field().parse().unwrap());
            Met { at_us, op, verdict: field(), path: field() }
        };
        text.lines().map(parse).collect()
    }

    /// True where a plan has ended the process, or is about to.
    pub(crate) fn has_crashed(&self) -> bool {
        self.met().iter().any(|it| it.verdict.starts_with("crash"))
    }
}

fn remove(path: &std::path::Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => panic!("{}: {error}", path.display()),
        _ => {}
    }
}

/// The library that cargo built beside this test: `target/<profile>/deps/libfault_shim.so`.
fn built_library() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let directory = program.parent().unwrap();
    let places = ["libfault_shim.so", "deps/libfault_shim.so", "../deps/libfault_shim.so"];
    let found = places.iter().map(|it| directory.join(it)).find(|it| it.is_file());
    found.unwrap_or_else(|| panic!("libfault_shim.so is not beside {}", program.display()))
}
