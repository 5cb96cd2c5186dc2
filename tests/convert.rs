//! `dra-driver-mig convert` as people call it, and its result on a simulated cluster: the pods run with what they asked for.
#![allow(clippy::unwrap_used, reason = "what fails in a test is the test")]

mod common;

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{ControlPlane, Lab, eventually};
use kube_sim::kinds::{self, POD};
use kube_sim::{Kubelet, KubeletOptions, manifest};
use serde_json::{Value, json};

fn convert(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dra-driver-mig"));
    command
        .arg("convert")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn data() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/device-plugin.yaml"))
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_exit_status_tells_what_became_of_the_file() {
    let done = convert(&["-f", "-"], &data());
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    assert!(text(&done.stdout).contains("resourceClaimTemplateName: mig-2g.20gb"));
    assert!(
        text(&done.stderr).contains("standard input:58: note: document 3, Job pair"),
        "{}",
        text(&done.stderr)
    );

    let left = convert(&["-f", "-"], &data().replace("nvidia.com/gpu: 1", "nvidia.com/gpu.shared: 1"));
    assert_eq!(left.status.code(), Some(1));
    assert!(
        text(&left.stdout).contains("nvidia.com/gpu.shared: 1"),
        "what is left is in the output as it was"
    );
    assert!(
        text(&left.stderr).contains("left as it is: document 4, StatefulSet whole"),
        "{}",
        text(&left.stderr)
    );

    for input in ["a: [", "{{ .Values.gpus }}: 1\n", "kind: Pod\n---\nno object\n"] {
        let unusable = convert(&["-f", "-"], input);
        assert_eq!(unusable.status.code(), Some(2), "{input}");
        assert!(unusable.stdout.is_empty() && !unusable.stderr.is_empty());
    }
    assert_eq!(convert(&["-f", "/does/not/exist"], "").status.code(), Some(2));
}

#[test]
fn a_file_can_be_converted_in_place_and_only_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("it.yaml");
    std::fs::write(&path, data()).unwrap();
    let name = path.to_str().unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(convert(&["-f", name, "-o", name], "").status.code(), Some(0));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    let once = std::fs::read_to_string(&path).unwrap();
    assert_eq!(convert(&["-f", name, "-o", name], "").status.code(), Some(0));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), once);

    std::fs::write(&path, "a: [").unwrap();
    assert_eq!(convert(&["-f", name, "-o", name], "").status.code(), Some(2));
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        "a: [",
        "nothing is written over a file that cannot be used"
    );
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "no other file is left");
}

/// Creates the objects; of kinds whose controllers are not simulated, the pod that they would make.
fn create(server: &kube_sim::ApiServer, objects: Vec<Value>) {
    for mut object in objects {
        let kind = object["kind"].as_str().unwrap().to_owned();
        if ["Job", "StatefulSet"].contains(&kind.as_str()) {
            let spec = object["spec"]["template"]["spec"].take();
            object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": object["metadata"], "spec": spec});
        }
        if kinds::by_type(object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap()).is_some()
        {
            server.create(object.clone()).unwrap_or_else(|error| panic!("{error}\n{object:#}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn converted_manifests_run_and_every_container_has_devices_of_its_own() {
    let plane = ControlPlane::simulated(true).await;
    let ControlPlane::Simulated(server) = plane.clone() else { panic!("it is the simulated one") };
    let mut lab = Lab::new(plane, "3xH100-80GB").await;
    std::fs::create_dir_all(lab.path("registry")).unwrap();
    let options = KubeletOptions::new(&lab.node_name, lab.path("registry"));
    let kubelet = Kubelet::start(&server, options).unwrap();
    lab.start();
    lab.slices_when(common::is_complete).await;
    let _control = kube_sim::ControlPlane::start(&server);
    create(&server, manifest::parse(include_str!("../deploy/manifests/deviceclasses.yaml")).unwrap());

    let converted = convert(&["-f", "-"], &data());
    create(&server, manifest::parse(&text(&converted.stdout)).unwrap());
    eventually("all five pods run", async || {
        let pods = server.list(&POD);
        let running = pods.iter().filter(|it| it["status"]["phase"] == "Running").count();
        (pods.len() == 5 && running == 5).then_some(())
    })
    .await;

    let mut given: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pod in server.list(&POD) {
        let owner = pod["metadata"]["labels"]["app"]
            .as_str()
            .or(pod["metadata"]["name"].as_str())
            .unwrap()
            .to_owned();
        for it in kubelet.containers(&server.store(), &pod) {
            given.entry(format!("{owner}/{}", it.container)).or_default().push(it.device.cdi_ids[0].clone());
        }
    }
    let counts: Vec<(&str, usize)> = given.iter().map(|(name, ids)| (name.as_str(), ids.len())).collect();
    let wanted = [
        ("pair/cuda", 2),
        ("replicas/cuda", 2),
        ("two-containers/medium", 1),
        ("two-containers/small", 1),
        ("two-containers/warm-up", 1),
        ("whole/cuda", 1),
    ];
    assert_eq!(counts, wanted);
    assert_eq!(
        given["two-containers/warm-up"], given["two-containers/small"],
        "devices go on from init containers"
    );
    let mut profiles: Vec<String> = lab.instances().into_iter().map(|(_, profile, _)| profile).collect();
    profiles.sort();
    assert_eq!(profiles, ["1g.10gb", "1g.10gb", "1g.10gb", "1g.20gb", "1g.20gb", "2g.20gb"]);

    for kind in [&kinds::DEPLOYMENT, &kinds::REPLICA_SET, &POD] {
        for object in server.list(kind) {
            drop(server.delete(kind, "default", object["metadata"]["name"].as_str().unwrap()));
        }
    }
    eventually("everything is given back", async || {
        (lab.instances().is_empty() && lab.files("cdi").is_empty() && kubelet.prepared().is_empty())
            .then_some(())
    })
    .await;
    lab.stop().await;
}
