//! The MigNode of a node: its status shows what the GPUs can be partitioned into, what is allocated and what is published; and a
//! cluster without the kind is as before.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::resource::v1::{Device, ResourceSlice};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube_sim::{ApiServer, Fault, RequestInfo, kinds};
use mig_model::mig_node::{MigNode, MigNodeStatus, PublishingMode, WHOLE, condition, reason};
use serde_json::{Value, json};

use crate::common::{
    ControlPlane, Lab, each_control_plane, eventually, is_complete, prepare, repository, unprepare,
};
use crate::deploy::apply;

const ONE_G: &str = "gpu-0000-1a-00-mig-1g-10gb-6";

/// Installs the kind, and waits until it is served.
pub(crate) async fn install(lab: &Lab) {
    let manifest = repository().join("deploy/manifests/crd.yaml");
    let definition = kube_sim::manifest::load(&manifest).unwrap().remove(0);
    apply(&lab.client, &definition, false).await.unwrap();
    let objects: Api<MigNode> = Api::all(lab.client.clone());
    eventually("the kind is served", async || objects.list(&Default::default()).await.ok()).await;
}

fn objects(lab: &Lab) -> Api<MigNode> {
    Api::all(lab.client.clone())
}

/// The status of the node's MigNode once it is as expected.
async fn status_when(lab: &Lab, what: &str, accept: impl Fn(&MigNodeStatus) -> bool) -> MigNodeStatus {
    eventually(what, async || {
        let object = objects(lab).get_opt(&lab.node_name).await.unwrap()?;
        assert_eq!(object.invalid, Default::default());
        object.status.filter(|it| accept(it))
    })
    .await
}

fn is_ready(status: &MigNodeStatus) -> bool {
    status.conditions.iter().any(|it| it.type_ == condition::READY && it.status == "True")
}

fn devices(slices: &[ResourceSlice]) -> Vec<Device> {
    let mut devices: Vec<Device> =
        slices.iter().flat_map(|it| it.spec.devices.iter().flatten()).cloned().collect();
    devices.sort_by(|left, right| left.name.cmp(&right.name));
    devices
}

fn published(status: &MigNodeStatus) -> BTreeSet<&str> {
    status.gpus.iter().flat_map(|it| &it.published).map(|it| it.device.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_shows_what_is_published_and_what_claims_hold() {
    each_control_plane(false, async |plane| {
        let mut lab = Lab::new(plane, "2xH100-80GB").await.with_args(&["--settle-time", "1"]);
        install(&lab).await;
        lab.start();
        let kubelet = lab.kubelet().await;
        let slices = lab.slices_when(is_complete).await;
        let status = status_when(&lab, "the status is there", is_ready).await;
        assert_eq!(status.mode, Some(PublishingMode::Layout));
        let all = devices(&slices);
        assert_eq!(published(&status), all.iter().map(|it| it.name.as_str()).collect());
        assert_eq!((status.summary.gpus, status.summary.held.as_str()), (2, "-"));
        // The slices are a part of what is possible, device by device.
        let object = objects(&lab).get(&lab.node_name).await.unwrap();
        let possible = object.possible_devices();
        let find = |name: &str| possible.iter().flat_map(|it| &it.devices).find(|it| it.device.name == name);
        for device in &all {
            let found = &find(&device.name).unwrap().device;
            assert_eq!(
                (&found.attributes, &found.capacity),
                (&device.attributes, &device.capacity),
                "{}",
                device.name
            );
        }

        let free = all.iter().find(|it| it.name.contains("mig-1g-10gb")).unwrap();
        let claim = lab.claim_of("one", &free.name).await;
        prepare(&kubelet, &claim).await.unwrap();
        let held = status_when(&lab, "the claim holds its device", |it| it.summary.held != "-").await;
        let device = held.gpus.iter().flat_map(|it| &it.held).next().unwrap();
        assert_eq!(device.device.as_deref(), Some(free.name.as_str()));
        let holder = device.claim.clone().unwrap();
        assert_eq!((holder.name, holder.uid.to_string()), (claim.name.clone(), claim.uid.clone()));
        assert!(!published(&held).contains(free.name.as_str()), "it is not free");
        unprepare(&kubelet, &claim).await.unwrap();
        let free_again =
            |it: &MigNodeStatus| published(it) == published(&status) && it.summary == status.summary;
        status_when(&lab, "the device is free again", free_again).await;
        lab.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_possible_is_what_counters_publish() {
    each_control_plane(true, async |plane| {
        let mut lab = Lab::new(plane, "1xH100-80GB,1xL4").await;
        install(&lab).await;
        lab.start();
        let slices = lab.slices_when(is_complete).await;
        let partitionable = |it: &MigNodeStatus| it.mode == Some(PublishingMode::Partitionable);
        let status = status_when(&lab, "the status is there", partitionable).await;
        assert_eq!(status.summary.unused, "2xfull", "the largest that fits on each GPU");
        let object = objects(&lab).get(&lab.node_name).await.unwrap();
        let possible = object.possible_devices();
        let mut found: Vec<Device> =
            possible.iter().flat_map(|it| &it.devices).map(|it| it.device.clone()).collect();
        found.sort_by(|left, right| left.name.cmp(&right.name));
        assert_eq!(found, devices(&slices));
        let counters: Vec<_> =
            slices.iter().flat_map(|it| it.spec.shared_counters.iter().flatten()).collect();
        assert_eq!(possible.iter().filter_map(|it| it.counters.as_ref()).collect::<Vec<_>>(), counters);
        let owner = object.metadata.owner_references.as_ref().unwrap();
        assert_eq!((owner[0].kind.as_str(), owner[0].name.as_str()), ("Node", lab.node_name.as_str()));
        lab.stop().await;
    })
    .await;
}

fn simulated(lab: &Lab) -> Arc<ApiServer> {
    let ControlPlane::Simulated(server) = &lab.plane else { unreachable!("a simulated one was asked for") };
    Arc::clone(server)
}

async fn lab(gpus: &str) -> Lab {
    Lab::new(ControlPlane::simulated(true).await, gpus).await
}

/// Requests for MigNodes: how often each of these was made.
fn requests(server: &ApiServer, is_it: impl Fn(&RequestInfo) -> bool) -> usize {
    let requests = server.requests();
    requests.iter().filter(|it| it.path.contains("/mignodes")).filter(|it| is_it(it)).count()
}

fn writes(server: &ApiServer) -> usize {
    requests(server, |it| it.method != "GET")
}

/// One claim from prepare to unprepare, and the slices.
async fn work(lab: &Lab) {
    let kubelet = lab.kubelet().await;
    lab.slices_when(|it| is_complete(it) && 1 < it.len()).await;
    let claim = lab.claim_of("work", ONE_G).await;
    prepare(&kubelet, &claim).await.unwrap();
    unprepare(&kubelet, &claim).await.unwrap();
    lab.delete_claim(&claim).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_kind_it_is_looked_for_once_and_the_driver_works_as_before() {
    let mut lab = lab("1xH100-80GB").await;
    let server = simulated(&lab);
    lab.start();
    work(&lab).await;
    eventually("it was looked for", async || (0 < requests(&server, |_| true)).then_some(())).await;
    work(&lab).await;
    let made = requests(&server, |_| true);
    assert!(made <= 2, "not again for some time: {:?}", server.requests());
    lab.stop().await;

    lab.set_args(&["--mig-node", "off"]);
    lab.start();
    work(&lab).await;
    assert_eq!(requests(&server, |_| true), made, "turned off, it is not looked for");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_without_the_rights_asks_once_and_the_driver_works_as_before() {
    let mut lab = lab("1xH100-80GB").await;
    install(&lab).await;
    let server = simulated(&lab);
    let before = requests(&server, |_| true);
    server.inject(usize::MAX, |it| it.path.contains("/mignodes"), Fault::Status(403));
    lab.start();
    work(&lab).await;
    eventually("it was asked for", async || (before < requests(&server, |_| true)).then_some(())).await;
    work(&lab).await;
    assert!(requests(&server, |_| true) <= before + 2, "not again for some time");
    assert_eq!(server.list(&kinds::MIG_NODE).len(), 0);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_that_changes_nothing_writes_nothing() {
    let mut lab = lab("1xH100-80GB").await;
    install(&lab).await;
    let server = simulated(&lab);
    lab.start();
    status_when(&lab, "the status is there", is_ready).await;
    lab.stop().await;
    let before = writes(&server);
    let watches = || requests(&server, RequestInfo::is_watch);
    let watched = watches();
    lab.start();
    lab.slices_when(is_complete).await;
    eventually("the MigNode is watched again", async || (watched < watches()).then_some(())).await;
    // Another status shows that the writer has looked meanwhile.
    lab.sim.plant_instance(0, "1g.10gb", 0).unwrap();
    lab.stop().await;
    lab.set_args(&["--rescan-interval", "1"]);
    lab.start();
    let status =
        status_when(&lab, "the unmanaged instance is held", |it| it.summary.held == "1x1g.10gb").await;
    assert_eq!(writes(&server), before + 1);
    let held = &status.gpus[0].held[0];
    assert_eq!((held.device.as_deref(), held.start, held.claim.is_none()), (None, 0, true));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_did_to_the_status_is_corrected_and_a_spec_stays() {
    each_control_plane(true, async |plane| {
        let mut lab = Lab::new(plane, "1xH100-80GB").await;
        install(&lab).await;
        lab.start();
        let status = status_when(&lab, "the status is there", is_ready).await;
        let floor = json!({"apiVersion": "mig.dra-driver.dev/v1alpha1", "kind": "MigNode",
                           "spec": {"floor": [{"profile": "1g.10gb", "count": 1}]}});
        let person = PatchParams::apply("person");
        objects(&lab).patch(&lab.node_name, &person, &Patch::Apply(&floor)).await.unwrap();
        let forged = Patch::Merge(json!({"status": {"mode": "layout", "gpus": []}}));
        objects(&lab).patch_status(&lab.node_name, &PatchParams::default(), &forged).await.unwrap();
        status_when(&lab, "the status is corrected", |it| it.gpus == status.gpus && it.mode == status.mode)
            .await;
        let object = objects(&lab).get(&lab.node_name).await.unwrap();
        assert_eq!(object.spec.floor[0].profile, "1g.10gb");

        objects(&lab).delete(&lab.node_name, &DeleteParams::default()).await.unwrap();
        status_when(&lab, "the object is there again", |it| it.gpus == status.gpus).await;
        lab.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_with_a_problem_says_so_and_offers_nothing() {
    let mut lab = lab("2xH100-80GB").await.with_args(&["--rescan-interval", "1"]);
    install(&lab).await;
    lab.start();
    status_when(&lab, "the status is there", is_ready).await;
    lab.sim.post_xid(1, 48, None, None).unwrap();
    let status = status_when(&lab, "the problem is reported", |it| it.gpus[1].problem.is_some()).await;
    assert!(is_ready(&status), "the other GPU can be allocated");
    let ready = status.conditions.iter().find(|it| it.type_ == condition::READY).unwrap();
    assert_eq!(ready.reason, reason::PARTLY_AVAILABLE);
    assert!(
        ready.message.contains(&status.gpus[1].name) && ready.message.contains("48"),
        "{}",
        ready.message
    );
    let object = objects(&lab).get(&lab.node_name).await.unwrap();
    assert_eq!(object.possible_devices()[1].devices, []);
    assert_eq!(status.summary.unused, "1xfull");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_prints_the_columns_that_the_definition_names() {
    let mut lab = lab("1xH100-80GB").await;
    install(&lab).await;
    lab.start();
    status_when(&lab, "the status is there", is_ready).await;
    let server = simulated(&lab);
    let object = server.list(&kinds::MIG_NODE).remove(0);
    let table = kube_sim::api::table::render(&kinds::MIG_NODE, &[&*object], &json!("1"));
    let definition = server.list(&kinds::CUSTOM_RESOURCE_DEFINITION).remove(0);
    let columns = definition["spec"]["versions"][0]["additionalPrinterColumns"].as_array().unwrap().clone();
    let shown: Vec<&Value> =
        columns.iter().filter(|it| it["priority"].is_null()).map(|it| &it["name"]).collect();
    let headings: Vec<&Value> =
        table["columnDefinitions"].as_array().unwrap().iter().map(|it| &it["name"]).skip(1).collect();
    assert_eq!(headings, shown);
    let cells = table["rows"][0]["cells"].as_array().unwrap();
    assert_eq!(
        cells[1..6],
        [json!("partitionable"), json!(1), json!(format!("1x{WHOLE}")), json!("-"), json!("True")]
    );
    lab.stop().await;
}
