//! `status.devices` of ResourceClaims: there with the claim's devices, gone with them, and never in the way of other writers.

use std::sync::Arc;

use crate::common;
use common::{ControlPlane, DRIVER, Lab, each_control_plane, eventually, prepare, unprepare};
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube_sim::kubelet::{Claim, Plugin};
use kube_sim::{ApiServer, Fault, Options, RequestInfo, kinds};
use serde_json::{Value, json};

const FIRST_1G: &str = "gpu-0000-1a-00-mig-1g-10gb-6";
const SECOND_1G: &str = "gpu-0000-1a-00-mig-1g-10gb-5";

/// A running driver against a simulated API server, and the kubelet's connection to it.
async fn started(options: Options) -> (Lab, Plugin, Arc<ApiServer>) {
    let server =
        Arc::new(ApiServer::start(Options { partitionable_devices: true, ..options }).await.unwrap());
    let mut lab = Lab::new(ControlPlane::Simulated(Arc::clone(&server)), "1xH100-80GB").await;
    lab.start();
    let kubelet = lab.kubelet().await;
    (lab, kubelet, server)
}

fn claims(lab: &Lab) -> Api<ResourceClaim> {
    Api::namespaced(lab.client.clone(), "default")
}

/// `status.devices` of a claim as it is now.
async fn devices(lab: &Lab, claim: &Claim) -> Vec<Value> {
    let object = claims(lab).get(&claim.name).await.unwrap();
    let devices = object.status.and_then(|it| it.devices).unwrap_or_default();
    devices.iter().map(|it| serde_json::to_value(it).unwrap()).collect()
}

/// `status.devices` once the driver has written this many entries.
async fn devices_when(lab: &Lab, claim: &Claim, count: usize) -> Vec<Value> {
    eventually(&format!("the claim has {count} device statuses"), async || {
        let devices = devices(lab, claim).await;
        (devices.len() == count).then_some(devices)
    })
    .await
}

fn is_status_write(request: &RequestInfo) -> bool {
    request.method == "PATCH" && request.path.ends_with("/status") && request.path.contains("resourceclaims")
        // What the tests themselves patch is no apply.
        && request.query.contains("fieldManager=mig.dra-driver.dev")
}

/// Writes of device statuses so far.
fn writes(server: &ApiServer) -> usize {
    server.requests().iter().filter(|it| is_status_write(it)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_appears_and_vanishes_with_the_claims_devices() {
    each_control_plane(true, async |plane| {
        let mut lab = Lab::new(plane, "1xH100-80GB").await;
        lab.start();
        let kubelet = lab.kubelet().await;
        let requests = [("gpu", DRIVER, FIRST_1G), ("gpu", DRIVER, SECOND_1G), ("net", "nic.example.com", "eth1")];
        let claim = lab.claim("one", &requests).await;
        // Another writer says something of a device of theirs.
        let pool = format!("{}/nic.example.com", lab.node_name);
        let theirs = json!({"driver": "nic.example.com", "pool": pool, "device": "eth1", "data": {"link": "up"}});
        let object = json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": claim.name},
            "status": {"devices": [theirs]},
        });
        let params = PatchParams::apply("nic.example.com");
        claims(&lab).patch_status(&claim.name, &params, &Patch::Apply(&object)).await.unwrap();

        prepare(&kubelet, &claim).await.unwrap();
        let found = devices_when(&lab, &claim, 3).await;
        let gpu = &lab.sim.snapshot().unwrap().gpus[0];
        for (device, start) in [(FIRST_1G, 6), (SECOND_1G, 5)] {
            let entry = found.iter().find(|it| it["device"] == device).unwrap();
            let instance = gpu.gpu_instances.iter().find(|it| it.start == start).unwrap();
            let expected = json!({
                "apiVersion": "status.mig.dra-driver.dev/v1", "kind": "MigDevice", "parentUUID": gpu.uuid,
                "profile": "1g.10gb", "placement": {"start": start, "size": 1}, "gpuInstance": instance.id,
                "computeInstance": instance.compute_instances[0].id, "migUUID": instance.compute_instances[0].uuid,
            });
            assert_eq!(entry["data"], expected);
            assert_eq!(entry["pool"], json!(format!("{}/{DRIVER}", lab.node_name)));
            let condition = &entry["conditions"][0];
            assert_eq!((&condition["type"], &condition["status"]), (&json!("Ready"), &json!("True")));
        }

        unprepare(&kubelet, &claim).await.unwrap();
        let left = devices_when(&lab, &claim, 1).await;
        assert_eq!((&left[0]["driver"], &left[0]["data"]), (&json!("nic.example.com"), &json!({"link": "up"})));

        // And once more: what was taken back can be written again.
        prepare(&kubelet, &claim).await.unwrap();
        devices_when(&lab, &claim, 3).await;
        unprepare(&kubelet, &claim).await.unwrap();
        devices_when(&lab, &claim, 1).await;
        lab.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_is_one_write_and_no_change_is_none() {
    let (mut lab, kubelet, server) = started(Options::default()).await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    prepare(&kubelet, &claim).await.unwrap();
    let first = devices_when(&lab, &claim, 1).await;
    // What nothing comes of cannot be waited for; the next claim's write is looked for instead.
    prepare(&kubelet, &claim).await.unwrap();
    let other = lab.claim_of("other", SECOND_1G).await;
    prepare(&kubelet, &other).await.unwrap();
    devices_when(&lab, &other, 1).await;
    assert_eq!(writes(&server), 2);

    // The instance is another one: that is said, and ready it was before.
    // Under another id, because the UUID of an instance follows from its id and its place.
    lab.sim.on_gpu(0, |gpu| gpu.instances.clear()).unwrap();
    lab.sim.configure(|it| it.permuted_gi_ids = true).unwrap();
    prepare(&kubelet, &claim).await.unwrap();
    let second = eventually("the new instance is reported", async || {
        let now = devices(&lab, &claim).await;
        (now[0]["data"]["migUUID"] != first[0]["data"]["migUUID"]).then_some(now)
    })
    .await;
    assert_eq!(second[0]["conditions"], first[0]["conditions"]);
    unprepare(&kubelet, &claim).await.unwrap();
    devices_when(&lab, &claim, 0).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepare_and_an_unprepare_are_three_requests() {
    let (mut lab, kubelet, server) = started(Options::default()).await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    // Looked at in the server, so that all requests are the driver's.
    let has = async |count: usize| {
        eventually("the status is there", async || {
            let object = server.get(&kinds::RESOURCE_CLAIM, "default", &claim.name).unwrap();
            (object["status"]["devices"].as_array().map_or(0, Vec::len) == count).then_some(())
        })
        .await;
    };
    let before = server.requests().len();
    prepare(&kubelet, &claim).await.unwrap();
    has(1).await;
    unprepare(&kubelet, &claim).await.unwrap();
    has(0).await;
    let of_claims = |it: &RequestInfo| it.path.contains("resourceclaims");
    let requests = server.requests().split_off(before).into_iter().filter(of_claims);
    let methods: Vec<String> = requests.map(|it| it.method).collect();
    assert_eq!(methods, ["GET", "PATCH", "PATCH"]);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_writes_what_is_missing_and_nothing_else() {
    each_control_plane(true, async |plane| {
        let mut lab = Lab::new(plane, "1xH100-80GB").await;
        lab.start();
        let kubelet = lab.kubelet().await;
        let (kept, lost) = (lab.claim_of("kept", FIRST_1G).await, lab.claim_of("lost", SECOND_1G).await);
        for claim in [&kept, &lost] {
            prepare(&kubelet, claim).await.unwrap();
            devices_when(&lab, claim, 1).await;
        }
        lab.stop().await;
        let version = async || claims(&lab).get(&kept.name).await.unwrap().metadata.resource_version;
        let before = version().await;
        let nothing = Patch::Merge(json!({"status": {"devices": null}}));
        claims(&lab).patch_status(&lost.name, &PatchParams::default(), &nothing).await.unwrap();

        lab.start();
        let kubelet = lab.kubelet().await;
        devices_when(&lab, &lost, 1).await;
        // What was there before is taken back, too, by the process that did not write it.
        unprepare(&kubelet, &lost).await.unwrap();
        devices_when(&lab, &lost, 0).await;
        assert_eq!(claims(&lab).get(&kept.name).await.unwrap().metadata.resource_version, before);
        unprepare(&kubelet, &kept).await.unwrap();
        devices_when(&lab, &kept, 0).await;
        lab.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_reads_and_does_not_write_what_is_there() {
    let (mut lab, kubelet, server) = started(Options::default()).await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    prepare(&kubelet, &claim).await.unwrap();
    devices_when(&lab, &claim, 1).await;
    lab.stop().await;
    lab.start();
    let kubelet = lab.kubelet().await;
    let other = lab.claim_of("other", SECOND_1G).await;
    prepare(&kubelet, &other).await.unwrap();
    devices_when(&lab, &other, 1).await;
    assert_eq!(writes(&server), 2, "one for each claim");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_gate_off_the_driver_notices_once_and_stops() {
    let (mut lab, kubelet, server) =
        started(Options { without_device_status: true, ..Options::default() }).await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    prepare(&kubelet, &claim).await.unwrap();
    eventually("it was tried", async || (writes(&server) == 1).then_some(())).await;
    unprepare(&kubelet, &claim).await.unwrap();
    prepare(&kubelet, &claim).await.unwrap();
    unprepare(&kubelet, &claim).await.unwrap();
    lab.stop().await;
    assert_eq!((writes(&server), devices(&lab, &claim).await), (1, Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_fails_does_not_fail_a_prepare_and_is_asked_again() {
    let (mut lab, kubelet, server) = started(Options::default()).await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    server.inject(1, is_status_write, Fault::Status(500));
    server.inject(1, is_status_write, Fault::AfterEffect(504));
    prepare(&kubelet, &claim).await.unwrap();
    devices_when(&lab, &claim, 1).await;
    // What was written although the answer said otherwise is known, and goes.
    unprepare(&kubelet, &claim).await.unwrap();
    devices_when(&lab, &claim, 0).await;

    // One that never answers is not waited for.
    server.inject(1, is_status_write, Fault::Hang);
    prepare(&kubelet, &claim).await.unwrap();
    unprepare(&kubelet, &claim).await.unwrap();
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_write_the_driver_works_and_does_not_insist() {
    let (mut lab, kubelet, server) = started(Options::default()).await;
    server.inject(usize::MAX, is_status_write, Fault::Status(403));
    let (one, other) = (lab.claim_of("one", FIRST_1G).await, lab.claim_of("other", SECOND_1G).await);
    prepare(&kubelet, &one).await.unwrap();
    eventually("it was tried", async || (0 < writes(&server)).then_some(())).await;
    prepare(&kubelet, &other).await.unwrap();
    for claim in [&one, &other] {
        unprepare(&kubelet, claim).await.unwrap();
    }
    lab.stop().await;
    assert_eq!(writes(&server), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_writer_wrote_of_our_devices_is_taken_over() {
    each_control_plane(true, async |plane| {
        let mut lab = Lab::new(plane, "1xH100-80GB").await;
        lab.start();
        let kubelet = lab.kubelet().await;
        let claim = lab.claim_of("one", FIRST_1G).await;
        let pool = format!("{}/{DRIVER}", lab.node_name);
        let object = json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": claim.name},
            "status": {"devices": [{"driver": DRIVER, "pool": pool, "device": FIRST_1G, "data": {"kind": "rubbish"}}]},
        });
        claims(&lab).patch_status(&claim.name, &PatchParams::apply("another-writer"), &Patch::Apply(&object)).await.unwrap();
        prepare(&kubelet, &claim).await.unwrap();
        eventually("the status is ours", async || {
            (devices(&lab, &claim).await[0]["data"]["kind"] == "MigDevice").then_some(())
        })
        .await;
        unprepare(&kubelet, &claim).await.unwrap();
        lab.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_claim_of_the_same_name_is_left_alone() {
    each_control_plane(true, async |plane| {
        let mut lab = Lab::new(plane, "1xH100-80GB").await;
        lab.start();
        let kubelet = lab.kubelet().await;
        let old = lab.claim_of("one", FIRST_1G).await;
        prepare(&kubelet, &old).await.unwrap();
        devices_when(&lab, &old, 1).await;
        claims(&lab).delete(&old.name, &DeleteParams::default()).await.unwrap();
        // The new claim has what the old one still holds here: its device.
        let new = lab.claim_of("one", FIRST_1G).await;
        let pool = format!("{}/{DRIVER}", lab.node_name);
        let object = json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": new.name},
            "status": {"devices": [{"driver": DRIVER, "pool": pool, "device": FIRST_1G, "data": {"kind": "new"}}]},
        });
        claims(&lab).patch_status(&new.name, &PatchParams::apply("another-writer"), &Patch::Apply(&object)).await.unwrap();
        unprepare(&kubelet, &old).await.unwrap();
        // The write for the next claim comes after whatever was done for the old one.
        let next = lab.claim_of("next", SECOND_1G).await;
        prepare(&kubelet, &next).await.unwrap();
        devices_when(&lab, &next, 1).await;
        assert_eq!(devices(&lab, &new).await[0]["data"]["kind"], "new");
        unprepare(&kubelet, &next).await.unwrap();
        lab.stop().await;
    })
    .await;
}
