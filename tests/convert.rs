//! What `kubectl mig convert` makes of manifests for the device plugin, on a simulated cluster: the pods run with what they
//! asked for.

use std::collections::BTreeMap;

use kube_sim::kinds::{self, POD};
use kube_sim::{Kubelet, KubeletOptions, manifest};
use kubectl_mig::convert::convert;
use serde_json::{Value, json};

use crate::common::{self, ControlPlane, Lab, eventually};

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

    let converted = convert(include_str!("data/device-plugin.yaml")).unwrap();
    create(&server, manifest::parse(&converted.text).unwrap());
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
