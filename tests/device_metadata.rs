//! What containers are told of their devices (KEP-5304): the files exist for as long as the claim is prepared, and the CDI file mounts them.

use std::fs;
use std::path::PathBuf;

use crate::common;
use common::{ControlPlane, DRIVER, Lab, eventually, prepare, read_json, unprepare};
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube_sim::kubelet::Claim;
use serde_json::{Value, json};

const MIG: &str = "gpu-0000-1a-00-mig-1g-10gb-6";
const OTHER: &str = "gpu-0000-1a-00-mig-2g-20gb-0";
const WHOLE: &str = "gpu-0000-1b-00";
const CONTAINER: &str = "/var/run/kubernetes.io/dra-device-attributes";

async fn lab() -> Lab {
    Lab::new(ControlPlane::simulated(true).await, "2xH100-80GB").await.with_args(&["--device-metadata"])
}

fn directory(lab: &Lab) -> PathBuf {
    lab.path(&format!("plugins/{DRIVER}/dra-device-metadata"))
}

/// The mounts of metadata in a claim's CDI file: device, path in the container, what the file on the host says.
fn mounted(lab: &Lab, claim: &Claim) -> Vec<(String, String, Value)> {
    let spec = read_json(&lab.path("cdi").join(format!("{DRIVER}-claim_{}.json", claim.uid)));
    let mut found = Vec::new();
    for device in spec["devices"].as_array().unwrap() {
        for mount in device["containerEdits"]["mounts"].as_array().into_iter().flatten() {
            assert_eq!(mount["options"], json!(["ro", "bind"]));
            let text = |it: &Value| it.as_str().unwrap().to_owned();
            let host = PathBuf::from(text(&mount["hostPath"]));
            found.push((text(&device["name"]), text(&mount["containerPath"]), read_json(&host)));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_has_a_file_that_says_what_its_devices_have_become() {
    let mut lab = lab().await;
    lab.start();
    let kubelet = lab.kubelet().await;
    let requests = [("gpu/small", DRIVER, MIG), ("gpu/small", DRIVER, OTHER), ("all", DRIVER, WHOLE)];
    let claim = lab.claim("one", &requests).await;
    let answer = prepare(&kubelet, &claim).await.unwrap();
    assert_eq!(answer.iter().map(|it| it.requests.join(",")).collect::<Vec<_>>(), ["gpu", "gpu", "all"]);

    let mounts = mounted(&lab, &claim);
    let path =
        |request: &str| format!("{CONTAINER}/resourceclaims/{}/{request}/{DRIVER}-metadata.json", claim.name);
    let device = |it: &str| format!("{}-{it}", claim.uid);
    let places: Vec<_> = mounts.iter().map(|(device, path, _)| (device.clone(), path.clone())).collect();
    assert_eq!(places, [(device(MIG), path("gpu")), (device(WHOLE), path("all"))]);

    let gpus = lab.sim.snapshot().unwrap().gpus;
    let metadata = &mounts[0].2;
    let expected = json!({"name": claim.name, "namespace": "default", "uid": claim.uid, "generation": 1});
    assert_eq!(
        (&metadata["kind"], &metadata["apiVersion"], &metadata["metadata"]),
        (&json!("DeviceMetadata"), &json!("metadata.resource.k8s.io/v1alpha1"), &expected)
    );
    let of = &metadata["requests"][0];
    assert_eq!((&of["name"], of["devices"].as_array().unwrap().len()), (&json!("gpu/small"), 2));
    let device = &of["devices"][0];
    let pool = format!("{}/{DRIVER}", lab.node_name);
    assert_eq!(
        (&device["driver"], &device["pool"], &device["name"]),
        (&json!(DRIVER), &json!(pool), &json!(MIG))
    );
    let instance = gpus[0].gpu_instances.iter().find(|it| it.start == 6).unwrap();
    let attributes = &device["attributes"];
    assert_eq!(attributes["uuid"], json!({"string": instance.compute_instances[0].uuid}));
    assert_eq!(attributes["parentUUID"], json!({"string": gpus[0].uuid}));
    assert_eq!(attributes["profile"], json!({"string": "1g.10gb"}));
    assert!(9 << 30 < attributes["memory"]["int"].as_u64().unwrap(), "{attributes}");
    let whole = &mounts[1].2["requests"][0]["devices"][0]["attributes"];
    assert_eq!(
        (&whole["uuid"], &whole["type"]),
        (&json!({"string": gpus[1].uuid}), &json!({"string": "gpu"}))
    );

    unprepare(&kubelet, &claim).await.unwrap();
    assert_eq!(lab.files(&format!("plugins/{DRIVER}/dra-device-metadata")), Vec::<String>::new());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_of_a_template_is_found_by_its_name_in_the_pod_also_after_a_reboot_without_an_api_server() {
    let mut lab = lab().await;
    lab.start();
    let claim = lab.claim_of("one", MIG).await;
    let named = json!({"metadata": {"annotations": {"resource.kubernetes.io/pod-claim-name": "mine"}}});
    let claims: Api<ResourceClaim> = Api::namespaced(lab.client.clone(), "default");
    claims.patch(&claim.name, &PatchParams::default(), &Patch::Merge(named)).await.unwrap();
    prepare(&lab.kubelet().await, &claim).await.unwrap();
    let path = format!("{CONTAINER}/resourceclaimtemplates/mine/gpu/{DRIVER}-metadata.json");
    let check = |lab: &Lab| {
        let mounts = mounted(lab, &claim);
        assert_eq!((mounts.len(), &mounts[0].1, &mounts[0].2["podClaimName"]), (1, &path, &json!("mine")));
    };
    check(&lab);
    lab.stop().await;

    lab.sim.reboot().unwrap();
    fs::remove_dir_all(lab.path("cdi")).unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    // What the annotation said is on record.
    let without = json!({"metadata": {"annotations": {"resource.kubernetes.io/pod-claim-name": null}}});
    claims.patch(&claim.name, &PatchParams::default(), &Patch::Merge(without)).await.unwrap();
    prepare(&kubelet, &claim).await.unwrap();
    check(&lab);
    unprepare(&kubelet, &claim).await.unwrap();
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_is_written_again_and_what_belongs_to_no_claim_is_removed() {
    let mut lab = lab().await;
    lab.start();
    let claim = lab.claim_of("one", MIG).await;
    prepare(&lab.kubelet().await, &claim).await.unwrap();
    lab.stop().await;
    fs::remove_dir_all(directory(&lab)).unwrap();
    // What a claim left whose state is lost.
    fs::create_dir_all(directory(&lab).join("no-claim/gpu")).unwrap();
    lab.start();
    let name = format!("plugins/{DRIVER}/dra-device-metadata");
    let is_repaired = async || (lab.files(&name) == [claim.uid.as_str()]).then_some(());
    eventually("the directory agrees with the claims", is_repaired).await;
    eventually("the file is there", async || {
        directory(&lab).join(&claim.uid).join("gpu/metadata.json").is_file().then_some(())
    })
    .await;
    assert_eq!(mounted(&lab, &claim).len(), 1);
    lab.stop().await;

    // Without the flag nothing is written, and what was is removed with the claim.
    lab.set_args(&[]);
    lab.start();
    let kubelet = lab.kubelet().await;
    prepare(&kubelet, &claim).await.unwrap();
    assert_eq!(mounted(&lab, &claim), []);
    unprepare(&kubelet, &claim).await.unwrap();
    assert_eq!(lab.files(&name), Vec::<String>::new());
    lab.stop().await;
}
