//! Spec files on disk.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use crate::cdi::{
    ClaimDevice, ClaimFiles, ContainerEdits, DeviceNodes, FilesError, Kind, Root, Spec, claim_spec,
};

const UID: &str = "6f5b3c1e-0000-4000-8000-000000000001";

fn kind() -> Kind {
    Kind::of_driver("mig.dra-driver.dev").unwrap()
}

fn spec(uid: &str, minor: u32) -> Spec {
    let nodes = DeviceNodes { parent_minor: minor, mig: None };
    let devices = [ClaimDevice { name: "gpu-0".into(), nodes }];
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
    let files = ClaimFiles::open(dir.path(), kind()).unwrap();
    let path = files.write(UID, &spec(UID, 0)).unwrap();
    assert_eq!(names(&dir), [format!("mig.dra-driver.dev-claim_{UID}.json")]);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    let read: Spec = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(read, spec(UID, 0));
}

#[test]
fn writing_again_replaces_and_removing_again_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let files = ClaimFiles::open(dir.path(), kind()).unwrap();
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
    let files = ClaimFiles::open(&cdi, kind()).unwrap();
    fs::remove_dir(&cdi).unwrap();
    assert_eq!(files.list().unwrap(), [""; 0]);
    files.remove(UID).unwrap();
    files.write(UID, &spec(UID, 0)).unwrap();
    assert_eq!(files.list().unwrap(), [UID]);
}

#[test]
fn only_files_of_this_driver_are_listed_and_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let old = SystemTime::now() - Duration::from_secs(3600);
    let prefix = "mig.dra-driver.dev-claim_";
    for (name, modified) in [
        ("k8s.gpu.nvidia.com-claim_a.yaml", old),
        (".k8s.gpu.nvidia.com-claim_a.json.1-0.tmp", old),
        (&format!("{prefix}b.json"), old),
        (&format!("{prefix}a.json"), old),
        (&format!(".{prefix}a.json.1-0.tmp"), old),
        (&format!(".{prefix}b.json.1-0.tmp"), SystemTime::now()),
    ] {
        let file = fs::File::create(dir.path().join(name)).unwrap();
        file.set_modified(modified).unwrap();
    }
    let files = ClaimFiles::open(dir.path(), kind()).unwrap();
    assert_eq!(files.list().unwrap(), ["a", "b"]);
    let expected = [
        ".k8s.gpu.nvidia.com-claim_a.json.1-0.tmp",
        &format!(".{prefix}b.json.1-0.tmp"),
        "k8s.gpu.nvidia.com-claim_a.yaml",
        &format!("{prefix}a.json"),
        &format!("{prefix}b.json"),
    ];
    assert_eq!(names(&dir), expected, "a young unfinished file may have a living writer");
}

#[test]
fn an_unfinished_file_of_another_process_is_not_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let files = ClaimFiles::open(dir.path(), kind()).unwrap();
    let other = format!(".mig.dra-driver.dev-claim_{UID}.json.{}-0.tmp", std::process::id());
    fs::write(dir.path().join(&other), "other").unwrap();
    files.write(UID, &spec(UID, 0)).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join(&other)).unwrap(), "other");
    assert_eq!(names(&dir).len(), 2);
}

#[test]
fn a_uid_that_is_a_path_touches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let victim = dir.path().join("victim.json");
    fs::write(&victim, "").unwrap();
    let files = ClaimFiles::open(dir.path().join("cdi"), kind()).unwrap();
    for uid in ["../victim", "x/../../victim", ""] {
        assert!(matches!(files.remove(uid), Err(FilesError::Spec(_))));
        assert!(matches!(files.write(uid, &spec(UID, 0)), Err(FilesError::Spec(_))));
    }
    assert!(victim.exists());
}

#[test]
fn an_invalid_spec_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let files = ClaimFiles::open(dir.path(), kind()).unwrap();
    assert!(matches!(files.write(UID, &Spec::default()), Err(FilesError::Spec(_))));
    assert_eq!(names(&dir), [""; 0]);
}

#[test]
fn a_directory_that_cannot_be_made_is_named_with_the_next_step() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "").unwrap();
    let error = ClaimFiles::open(path.join("cdi"), kind()).unwrap_err().to_string();
    assert!(error.contains("create the directory") && error.contains("mounted and writable"), "{error}");
}

#[test]
fn a_failed_rename_leaves_no_unfinished_file() {
    let dir = tempfile::tempdir().unwrap();
    let files = ClaimFiles::open(dir.path(), kind()).unwrap();
    fs::create_dir(files.path(UID).unwrap()).unwrap();
    let error = files.write(UID, &spec(UID, 0)).unwrap_err().to_string();
    assert!(error.contains("rename"), "{error}");
    assert_eq!(names(&dir).len(), 1);
}
