//! Spec files on disk.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::cdi::{
    ClaimDevice, ClaimFiles, ContainerEdits, DeviceNodes, FilesError, Kind, Root, Spec, claim_spec,
};

const UID: &str = "6f5b3c1e-0000-4000-8000-000000000001";

fn kind() -> Kind {
    Kind::of_driver("mig.dra-driver.dev").unwrap()
}

fn spec(uid: &str, minor: u32) -> Spec {
    let nodes = DeviceNodes { parent_minor: minor, parent_group: None, mig: None, monitor: None };
    let devices = [ClaimDevice { name: "gpu-0".into(), nodes, admin_access: false, mounts: Vec::new() }];
    claim_spec(&kind(), uid, &devices, &Root::same("/"), &ContainerEdits::default()).unwrap()
}

fn names(dir: &tempfile::TempDir) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_file_is_written_whole_readable_and_alone() {
    let dir = tempfile::tempdir().unwrap();
    let files = ClaimFiles::open(dir.path(), "/nonexistent/metadata", kind()).unwrap();
    let path = files.write(UID, &spec(UID, 0)).unwrap();
    assert_eq!(names(&dir), [format!("mig.dra-driver.dev-claim_{UID}.json")]);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    let read: Spec = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(read, spec(UID, 0));
}

#[test]
fn writing_again_replaces_and_removing_again_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let files = ClaimFiles::open(dir.path(), "/nonexistent/metadata", kind()).unwrap();
    files.write(UID, &spec(UID, 0)).unwrap();
    let path = files.write(UID, &spec(UID, 7)).unwrap();
    assert!(fs::read_to_string(path).unwrap().contains("/dev/nvidia7"));
    assert_eq!(names(&dir).len(), 1);
    files.remove(UID).unwrap();
    files.remove(UID).unwrap();
    assert_eq!(names(&dir), [""; 0]);
}

#[test]
fn a_directory_that_vanishes_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let cdi = dir.path().join("var/run/cdi");
    let files = ClaimFiles::open(&cdi, "/nonexistent/metadata", kind()).unwrap();
    fs::remove_dir(&cdi).unwrap();
    assert_eq!(files.list().unwrap(), [""; 0]);
    files.remove(UID).unwrap();
    files.write(UID, &spec(UID, 0)).unwrap();
    assert_eq!(files.list().unwrap(), [UID]);
}

#[test]
fn only_files_of_this_driver_are_listed_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = "mig.dra-driver.dev-claim_";
    let others = [".k8s.gpu.nvidia.com-claim_a.json.tmp", "k8s.gpu.nvidia.com-claim_a.yaml", "nvidia.json"];
    let ours = [format!(".{prefix}a.json.tmp"), format!("{prefix}a.json"), format!("{prefix}b.json")];
    for name in others.into_iter().chain(ours.iter().map(String::as_str)) {
        fs::write(dir.path().join(name), "").unwrap();
    }
    fs::write(dir.path().join(format!(".{prefix}c.json.tmp")), "an interrupted write").unwrap();
    let files = ClaimFiles::open(dir.path(), "/nonexistent/metadata", kind()).unwrap();
    assert_eq!(files.list().unwrap(), ["a", "b", "c"]);
    for uid in ["a", "b", "c"] {
        files.remove(uid).unwrap();
    }
    assert_eq!(names(&dir), others);
}

#[test]
fn a_claims_file_names_its_devices_and_a_strange_one_names_none() {
    let dir = tempfile::tempdir().unwrap();
    let files = ClaimFiles::open(dir.path(), "/nonexistent/metadata", kind()).unwrap();
    assert_eq!((files.exists(UID).unwrap(), files.devices(UID).unwrap()), (false, Vec::new()));
    let path = files.write(UID, &spec(UID, 0)).unwrap();
    assert_eq!((files.exists(UID).unwrap(), files.devices(UID).unwrap()), (true, vec!["gpu-0".to_owned()]));
    for strange in ["", "[]", "{\"cdiVersion\": 1}"] {
        fs::write(&path, strange).unwrap();
        assert_eq!(files.devices(UID).unwrap(), [""; 0], "{strange}");
    }
}

#[test]
fn what_is_no_file_of_this_driver_names_no_devices_and_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let files = ClaimFiles::open(dir.path(), "/nonexistent/metadata", kind()).unwrap();
    let (path, elsewhere) = (files.path(UID).unwrap(), dir.path().join("elsewhere"));
    fs::rename(files.write(UID, &spec(UID, 0)).unwrap(), &elsewhere).unwrap();
    symlink(&elsewhere, &path).unwrap();
    assert_eq!(files.devices(UID).unwrap(), [""; 0], "a link");
    files.remove(UID).unwrap();
    assert!(elsewhere.exists());
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap();
    assert_eq!(files.devices(UID).unwrap(), [""; 0], "a pipe");
    files.remove(UID).unwrap();
    drop(UnixListener::bind(&path).unwrap());
    assert_eq!(files.devices(UID).unwrap(), [""; 0], "a socket");
    files.remove(UID).unwrap();
    fs::File::create(&path).unwrap().set_len(5 * 1024 * 1024).unwrap();
    assert_eq!(files.devices(UID).unwrap(), [""; 0], "a large file");
    files.remove(UID).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(files.devices(UID).unwrap(), [""; 0], "a directory");
}

#[test]
fn a_uid_that_is_a_path_touches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let victim = dir.path().join("victim.json");
    fs::write(&victim, "").unwrap();
    let files = ClaimFiles::open(dir.path().join("cdi"), "/nonexistent/metadata", kind()).unwrap();
    for uid in ["../victim", "x/../../victim", ""] {
        assert!(matches!(files.remove(uid), Err(FilesError::Spec(_))));
        assert!(matches!(files.write(uid, &spec(UID, 0)), Err(FilesError::Spec(_))));
    }
    assert!(victim.exists());
}

#[test]
fn an_invalid_spec_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let files = ClaimFiles::open(dir.path(), "/nonexistent/metadata", kind()).unwrap();
    assert!(matches!(files.write(UID, &Spec::default()), Err(FilesError::Spec(_))));
    assert_eq!(names(&dir), [""; 0]);
}

#[test]
fn a_directory_that_cannot_be_made_is_named_with_the_next_step() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "").unwrap();
    let error = ClaimFiles::open(path.join("cdi"), "/nonexistent/metadata", kind()).unwrap_err().to_string();
    assert!(error.contains("create the directory") && error.contains("mounted and writable"), "{error}");
}

#[test]
fn a_failed_rename_leaves_no_unfinished_file() {
    let dir = tempfile::tempdir().unwrap();
    let files = ClaimFiles::open(dir.path(), "/nonexistent/metadata", kind()).unwrap();
    fs::create_dir(files.path(UID).unwrap()).unwrap();
    let error = files.write(UID, &spec(UID, 0)).unwrap_err().to_string();
    assert!(error.contains("rename"), "{error}");
    assert_eq!(names(&dir).len(), 1);
}
