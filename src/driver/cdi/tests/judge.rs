//! Specs are judged by code that this project did not write: the CDI library of the CNCF, which reads the written
//! file, checks it against its schema and applies it to an OCI spec as a container runtime does.

use std::fs;
use std::path::{Path, PathBuf};

use container_device_interface as judge;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec as OciSpec};
use proptest::prelude::*;

use crate::cdi::fixture::{CONTAINER_ROOT, Fixture, VERSION};
use crate::cdi::{
    CapNode, ClaimDevice, ClaimFiles, CommonEdits, ContainerEdits, DeviceNodes, Kind, MigCaps, Root, Spec,
    claim_spec,
};

const UID: &str = "6f5b3c1e-0000-4000-8000-000000000001";
const DRIVER: &str = "mig.dra-driver.dev";

fn mig_device(name: &str, parent_minor: u32, gi_minor: u32) -> ClaimDevice {
    let cap = |minor| CapNode { major: 237, minor, mode: 0o444 };
    let mig = MigCaps { gpu_instance: cap(gi_minor), compute_instance: cap(gi_minor + 1) };
    let nodes = DeviceNodes { parent_minor, parent_group: None, mig: Some(mig), monitor: None };
    ClaimDevice { name: name.into(), nodes, admin_access: false, mounts: Vec::new() }
}

/// The judge reads the file as a runtime at start would: parse, schema, rules, lowest version.
pub(super) fn accept(path: &Path) -> judge::spec::Spec {
    let spec = judge::spec::read_spec(&path.to_path_buf(), 0).unwrap();
    let raw = judge::spec::parse_spec(&path.to_path_buf()).unwrap();
    let lowest = judge::version::minimum_required_version(&raw).unwrap().to_string();
    let ours: Spec = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_eq!(ours.cdi_version, lowest, "our idea of the lowest version is the judge's");
    spec
}

/// The judge scans the directory and puts devices into an empty OCI spec.
pub(super) fn inject(dir: &Path, ids: &[String]) -> OciSpec {
    let cache = judge::cache::new_cache(vec![
        judge::spec_dirs::with_spec_dirs(&[dir.to_str().unwrap()]),
        judge::cache::with_auto_refresh(false),
    ]);
    let mut cache = cache.lock().unwrap();
    cache.refresh().unwrap();
    let mut oci = OciSpec::default();
    // Not `None`: for that the judge adds its own mount.
    oci.set_mounts(Some(Vec::new()));
    cache.inject_devices(Some(&mut oci), ids.to_vec()).unwrap();
    oci
}

pub(super) fn nodes(oci: &OciSpec) -> Vec<&LinuxDevice> {
    oci.linux().as_ref().unwrap().devices().iter().flatten().collect()
}

pub(super) fn paths(oci: &OciSpec) -> Vec<&str> {
    nodes(oci).iter().map(|device| device.path().to_str().unwrap()).collect()
}

#[test]
fn a_mig_claim_is_accepted_and_gives_the_container_its_instance() {
    let fixture = Fixture::in_container_root();
    fixture.libraries("/usr/lib64").program("/usr/bin/nvidia-smi");
    let root = fixture.root();
    let common = CommonEdits::discover(&root);
    let kind = Kind::of_driver(DRIVER).unwrap();
    let name = "gpu-0000-3b-00-mig-1g-10gb-6";
    let spec = claim_spec(&kind, UID, &[mig_device(name, 3, 300)], &root.devices, common.edits()).unwrap();
    let files =
        ClaimFiles::open(fixture.path("/var/run/cdi"), "/nonexistent/metadata", kind.clone()).unwrap();
    accept(&files.write(UID, &spec).unwrap());
    let oci = inject(&fixture.path("/var/run/cdi"), &[kind.device_id(UID, name).unwrap()]);

    let expected = [
        "/dev/nvidiactl",
        "/dev/nvidia-uvm",
        "/dev/nvidia-uvm-tools",
        "/dev/nvidia3",
        "/dev/nvidia-caps/nvidia-cap300",
        "/dev/nvidia-caps/nvidia-cap301",
    ];
    assert_eq!(paths(&oci), expected);
    // The parent's numbers are read from the host node, which is /dev/null here; the capabilities' are ours.
    assert_eq!((nodes(&oci)[3].major(), nodes(&oci)[3].minor()), (1, 3));
    let cap = nodes(&oci)[5];
    assert_eq!((cap.typ(), cap.major(), cap.minor()), (LinuxDeviceType::C, 237, 301));
    assert_eq!(cap.file_mode(), Some(0o444));
    let rules = oci.linux().as_ref().unwrap().resources().as_ref().unwrap().devices().clone().unwrap();
    let cap_rule = rules.iter().find(|rule| rule.major() == Some(237) && rule.minor() == Some(301)).unwrap();
    assert!(cap_rule.allow() && cap_rule.access().as_deref() == Some("rw"));

    let env = oci.process().as_ref().unwrap().env().clone().unwrap();
    assert!(env.contains(&"NVIDIA_VISIBLE_DEVICES=void".to_owned()), "{env:?}");
    let mounts = oci.mounts().as_ref().unwrap();
    assert_eq!(mounts.len(), 4);
    for mount in mounts {
        assert!(mount.source().as_ref().unwrap().is_file(), "a runtime could mount it: {mount:?}");
        assert!(mount.options().as_ref().unwrap().contains(&"ro".to_owned()));
    }
    let library = PathBuf::from(format!("/usr/lib64/libcuda.so.{VERSION}"));
    assert!(mounts.iter().any(|mount| *mount.destination() == library));
    let hooks = oci.hooks().as_ref().unwrap().create_container().as_ref().unwrap();
    let names: Vec<_> = hooks.iter().map(|hook| hook.args().as_ref().unwrap()[1].as_str()).collect();
    assert_eq!(
        names,
        ["create-symlinks", "enable-cuda-compat", "update-ldcache", "disable-device-node-modification"]
    );
}

#[test]
fn a_container_gets_only_the_devices_of_the_claim_that_it_asks_for() {
    let fixture = Fixture::on_host();
    fixture.libraries("/usr/lib64");
    let root = fixture.root();
    let common = CommonEdits::discover(&root);
    let kind = Kind::of_driver(DRIVER).unwrap();
    let whole = ClaimDevice {
        name: "gpu-b".into(),
        nodes: DeviceNodes { parent_minor: 3, parent_group: None, mig: None, monitor: None },
        admin_access: false,
        mounts: Vec::new(),
    };
    let devices = [mig_device("gpu-a-mig-0", 0, 3), mig_device("gpu-a-mig-1", 0, 12), whole];
    let files = ClaimFiles::open(fixture.path("/cdi"), "/nonexistent/metadata", kind.clone()).unwrap();
    let spec = claim_spec(&kind, UID, &devices, &root.devices, common.edits()).unwrap();
    accept(&files.write(UID, &spec).unwrap());
    // A second claim's file in the same directory disturbs nothing.
    let other = claim_spec(&kind, "0ther", &devices[2..], &root.devices, common.edits()).unwrap();
    accept(&files.write("0ther", &other).unwrap());

    let id = |name: &str| kind.device_id(UID, name).unwrap();
    let common_nodes = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"];
    let one = inject(&fixture.path("/cdi"), &[id("gpu-a-mig-1")]);
    let own = ["/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap12", "/dev/nvidia-caps/nvidia-cap13"];
    assert_eq!(paths(&one), [common_nodes, own].concat());
    let all = inject(&fixture.path("/cdi"), &[id("gpu-a-mig-0"), id("gpu-a-mig-1"), id("gpu-b")]);
    assert_eq!(
        paths(&all).iter().filter(|path| **path == "/dev/nvidia0").count(),
        1,
        "one node for both instances"
    );
    assert_eq!(paths(&all).len(), 3 + 1 + 4 + 1);
    assert_eq!(all.mounts().as_ref().unwrap().len(), 3, "common mounts come once");
}

#[test]
fn nodes_that_only_a_group_may_use_give_the_process_that_group_and_others_ask_for_no_newer_runtime() {
    let claimed = |mode: &str| {
        let fixture = Fixture::on_host();
        fixture.libraries("/usr/lib64");
        let params = format!("ModifyDeviceFiles: 1\nDeviceFileGID: 44\nDeviceFileMode: {mode}\n");
        fixture.kernel_file("proc/driver/nvidia/params", &params);
        let root = fixture.root();
        let common = CommonEdits::discover(&root);
        let kind = Kind::of_driver(DRIVER).unwrap();
        let mut device = mig_device("gpu-a", 0, 3);
        device.nodes.parent_group = root.gpu_node_group(0).unwrap();
        let spec = claim_spec(&kind, UID, &[device], &root.devices, common.edits()).unwrap();
        let files = ClaimFiles::open(fixture.path("/cdi"), "/nonexistent/metadata", kind.clone()).unwrap();
        accept(&files.write(UID, &spec).unwrap());
        let oci = inject(&fixture.path("/cdi"), &[kind.device_id(UID, "gpu-a").unwrap()]);
        let process = oci.process().as_ref().unwrap();
        let groups = process.user().additional_gids().clone().unwrap_or_default();
        let of_node = |path: &str| nodes(&oci).iter().find(|it| it.path() == Path::new(path)).unwrap().gid();
        let of_nodes = ["/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-caps/nvidia-cap3"];
        (spec.cdi_version, groups, of_nodes.map(of_node))
    };
    // 0660. The tools of the NVIDIA driver make the nodes of nvidia-uvm and of capabilities for everyone.
    assert_eq!(claimed("432"), ("0.7.0".to_owned(), vec![44], [Some(44), Some(44), None, None]));
    assert_eq!(claimed("438"), ("0.5.0".to_owned(), Vec::new(), [None; 4]));
}

#[test]
fn without_hooks_the_spec_is_still_accepted() {
    let fixture = Fixture::on_host();
    fixture.libraries("/usr/lib64");
    fs::remove_file(fixture.path("/usr/bin/nvidia-cdi-hook")).unwrap();
    let root = fixture.root();
    let common = CommonEdits::discover(&root);
    let kind = Kind::of_driver(DRIVER).unwrap();
    let spec =
        claim_spec(&kind, UID, &[mig_device("gpu-a-mig-0", 0, 3)], &root.devices, common.edits()).unwrap();
    let files = ClaimFiles::open(fixture.path("/cdi"), "/nonexistent/metadata", kind.clone()).unwrap();
    accept(&files.write(UID, &spec).unwrap());
    let oci = inject(&fixture.path("/cdi"), &[kind.device_id(UID, "gpu-a-mig-0").unwrap()]);
    assert!(oci.hooks().as_ref().is_none_or(|hooks| hooks.create_container().is_none()));
    let destinations: Vec<_> = oci.mounts().iter().flatten().map(|m| m.destination().clone()).collect();
    assert!(destinations.contains(&PathBuf::from("/usr/lib64/libcuda.so.1")), "{destinations:?}");
}

#[test]
fn an_operators_edits_are_accepted_in_a_claim_spec() {
    let fixture = Fixture::on_host();
    let text = r#"{"cdiVersion": "1.1.0", "kind": "nvidia.com/gpu", "annotations": {"a": "b"}, "devices": [],
        "containerEdits": {"additionalGids": [44], "mounts": [{"hostPath": "/a", "containerPath": "/a", "type": "bind"}],
        "deviceNodes": [{"path": "/dev/nvidiactl", "type": "c", "major": 195, "minor": 255, "gid": 44}]}}"#;
    fs::write(fixture.path("common.json"), text).unwrap();
    let root = fixture.root();
    let common = CommonEdits::from_file(&fixture.path("common.json"), &root.hooks).unwrap();
    let kind = Kind::of_driver("gpu.nvidia.com").unwrap();
    let spec = claim_spec(&kind, UID, &[mig_device("gpu-a", 0, 3)], &root.devices, common.edits()).unwrap();
    assert_eq!(spec.cdi_version, "0.7.0");
    let files = ClaimFiles::open(fixture.path("/cdi"), "/nonexistent/metadata", kind.clone()).unwrap();
    accept(&files.write(UID, &spec).unwrap());
    let oci = inject(&fixture.path("/cdi"), &[kind.device_id(UID, "gpu-a").unwrap()]);
    assert_eq!(paths(&oci)[0], "/dev/nvidiactl");
    assert_eq!(nodes(&oci)[0].gid(), Some(44));
}

#[test]
fn the_spec_of_a_mig_claim_is_this_text() {
    let fixture = Fixture::in_container_root();
    fixture
        .file(&format!("/usr/lib64/libcuda.so.{VERSION}"))
        .file(&format!("/usr/lib64/libnvidia-ml.so.{VERSION}"));
    fixture.program("/usr/bin/nvidia-smi");
    let root = fixture.root_on_host_as(CONTAINER_ROOT);
    let common = CommonEdits::discover(&root);
    let kind = Kind::of_driver(DRIVER).unwrap();
    let device = mig_device("gpu-0000-3b-00-mig-1g-10gb-6", 3, 300);
    let spec = claim_spec(&kind, UID, &[device], &root.devices, common.edits()).unwrap();
    let files = ClaimFiles::open(fixture.path("/cdi"), "/nonexistent/metadata", kind).unwrap();
    let written = fs::read_to_string(files.write(UID, &spec).unwrap()).unwrap();
    assert_eq!(written, include_str!("mig_claim.json"));
}

#[test]
fn a_claim_without_devices_or_with_one_twice_is_refused() {
    let kind = Kind::of_driver(DRIVER).unwrap();
    let spec = |devices: &[ClaimDevice]| {
        claim_spec(&kind, UID, devices, &Root::same("/"), &ContainerEdits::default()).unwrap_err().to_string()
    };
    assert!(spec(&[]).contains("no device"));
    assert!(spec(&[mig_device("a", 0, 3), mig_device("a", 0, 12)]).contains("two devices"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_names_pass_here_pass_the_judge(
        driver in "[a-zA-Z0-9._-]{1,12}",
        uid in "[a-zA-Z0-9-]{1,12}",
        device in "[a-z0-9-]{1,12}",
        minor in 0u32..1_000,
        gi_minor in 0u32..0xf_fff0,
        container_root in any::<bool>(),
    ) {
        let Ok(kind) = Kind::of_driver(&driver) else { return Ok(()) };
        let root = if container_root { Root::same("/run/nvidia/driver") } else { Root::same("/") };
        let devices = [mig_device(&device, minor, gi_minor)];
        let Ok(spec) = claim_spec(&kind, &uid, &devices, &root, &ContainerEdits::default()) else { return Ok(()) };
        let dir = tempfile::tempdir().unwrap();
        let path = ClaimFiles::open(dir.path(), "/nonexistent/metadata", kind.clone()).unwrap().write(&uid, &spec).unwrap();
        let accepted = accept(&path);
        let id = kind.device_id(&uid, &device).unwrap();
        prop_assert_eq!(id, format!("{}/{}={}", accepted.get_vendor(), accepted.get_class(), spec.devices[0].name));
    }
}
