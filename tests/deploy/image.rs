//! The image that `deploy/image.sh` makes of this build, where its tools are at hand.

use crate::common::repository;
use std::process::{Command, Output};

fn image(arguments: &[&str]) -> Output {
    let mut command = Command::new("bash");
    command.arg("deploy/image.sh").current_dir(repository());
    command.args(["--binary", env!("CARGO_BIN_EXE_dra-driver-mig")]).args(arguments);
    command.env("SOURCE_DATE_EPOCH", "1700000000").output().unwrap()
}

fn has_tools() -> bool {
    let found = ["bash", "ldd", "sha256sum", "install"]
        .iter()
        .all(|it| Command::new(it).arg("--version").output().is_ok_and(|output| output.status.success()));
    let is_gnu = |output: Output| String::from_utf8_lossy(&output.stdout).contains("GNU tar");
    found && Command::new("tar").arg("--version").output().is_ok_and(is_gnu)
}

fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_image_is_the_same_every_time_and_has_no_shell() {
    if !has_tools() {
        return eprintln!("skipped: bash, ldd, GNU tar and coreutils are needed");
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    for name in ["one.tar", "two.tar"] {
        let printed = succeeded(&image(&["--tag", "example/x:1", "--out", path(name).to_str().unwrap()]));
        assert!(printed.contains("example/x:1, 8 files"), "{printed}");
    }
    assert!(std::fs::read(path("one.tar")).unwrap() == std::fs::read(path("two.tar")).unwrap());

    let rootfs = path("rootfs");
    succeeded(&image(&["--rootfs", rootfs.to_str().unwrap()]));
    let programs: Vec<_> = std::fs::read_dir(rootfs.join("usr/bin")).unwrap().collect();
    assert_eq!(programs.len(), 1);
    assert!(!rootfs.join("bin").exists() && !rootfs.join("etc").exists());
}

#[test]
fn the_controller_is_in_the_image_beside_the_driver() {
    if !has_tools() {
        return eprintln!("skipped: bash, ldd, GNU tar and coreutils are needed");
    }
    let directory = tempfile::tempdir().unwrap();
    let rootfs = directory.path().join("rootfs");
    // Any program: what it does is not asked here.
    let program = env!("CARGO_BIN_EXE_dra-driver-mig");
    succeeded(&image(&["--rootfs", rootfs.to_str().unwrap(), "--controller", program]));
    assert_eq!(std::fs::read_dir(rootfs.join("usr/bin")).unwrap().count(), 2);
    let mode = std::fs::metadata(rootfs.join("usr/bin/mig-controller")).unwrap().permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o755, "any user may run it");
}

#[test]
fn the_driver_runs_with_nothing_but_the_images_files() {
    let is_root = rustix::process::geteuid().is_root();
    if !has_tools() || !is_root {
        return eprintln!("skipped: root is needed for a chroot");
    }
    let printed = succeeded(&image(&["--check"]));
    assert!(printed.contains("runs; 8 files"), "{printed}");
}
