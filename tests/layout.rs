//! Layouts: what is published where the API server drops counters, simulated and, where there is one, real.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::common;
use common::{ControlPlane, Lab, device_names, each_control_plane, eventually, is_complete, node_events};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube_sim::kubelet::{Claim, Plugin};
use kube_sim::{Fault, RequestInfo, Version};
use serde_json::json;

const CONFIG: &str = "nvidia.com/mig.config";
const STATE: &str = "nvidia.com/mig.config.state";

/// Layouts as people have them for mig-parted.
const FILE: &str = r#"
version: v1
mig-configs:
  mixed:
    - devices: all
      device-filter: ["0x233010DE", "0x20B210DE"]
      mig-enabled: true
      mig-devices:
        "1g.10gb": 2
        "2g.20gb": 1
        "3g.40gb": 1
    - devices: all
      device-filter: "0x290110DE"
      mig-enabled: true
      mig-devices:
        "2g.45gb": 3
  split:
    - devices: [0, 1]
      mig-enabled: false
    - devices: [2]
      mig-enabled: true
      mig-devices:
        "7g.80gb": 1
    - devices: [3]
      mig-enabled: true
      mig-devices:
        "1g.10gb": 7
  small:
    - devices: all
      mig-enabled: true
      mig-devices:
        "1g.10gb": 7
  whole:
    - devices: all
      mig-enabled: false
  too-much:
    - devices: all
      mig-enabled: true
      mig-devices:
        "3g.40gb": 2
        "1g.10gb": 1
"#;

/// A node with these GPUs, `FILE`, and a short settle time. The driver does not run yet.
async fn lab(plane: ControlPlane, gpus: &str) -> Lab {
    let lab = Lab::new(plane, gpus).await;
    let file = lab.path("layouts.yaml").display().to_string();
    std::fs::write(&file, FILE).unwrap();
    lab.with_args(&["--layouts", &file, "--settle-time", "1", "--rescan-interval", "1"])
}

/// The same without a file.
async fn lab_without_file(plane: ControlPlane, gpus: &str) -> Lab {
    Lab::new(plane, gpus).await.with_args(&["--settle-time", "1", "--rescan-interval", "1"])
}

pub(crate) async fn label(lab: &Lab, layout: Option<&str>) {
    let patch = Patch::Merge(json!({"metadata": {"labels": {CONFIG: layout}}}));
    Api::<Node>::all(lab.client.clone())
        .patch(&lab.node_name, &PatchParams::default(), &patch)
        .await
        .unwrap();
}

async fn state(lab: &Lab) -> Option<String> {
    let node = Api::<Node>::all(lab.client.clone()).get(&lab.node_name).await.unwrap();
    node.metadata.labels.unwrap_or_default().remove(STATE)
}

pub(crate) async fn state_when(lab: &Lab, wanted: &str) {
    eventually(&format!("the state is {wanted}"), async || {
        (state(lab).await.as_deref() == Some(wanted)).then_some(())
    })
    .await;
}

async fn event_when(lab: &Lab, reason: &str, text: &str) {
    eventually(&format!("an event {reason} says {text:?}"), async || {
        node_events(lab, reason).await.iter().any(|it| it.contains(text)).then_some(())
    })
    .await;
}

/// Short names of the published devices: those of MIG devices without the GPU where there is only one.
async fn published(lab: &Lab) -> BTreeSet<String> {
    device_names(&lab.slices().await).into_iter().map(short).collect()
}

fn short(name: &str) -> String {
    name.trim_start_matches("gpu-0000-").replace("-00-mig-", ":")
}

pub(crate) async fn published_when(lab: &Lab, wanted: &[&str]) {
    let wanted: BTreeSet<String> = wanted.iter().map(|it| (*it).to_owned()).collect();
    eventually(&format!("{wanted:?} are published"), async || {
        let slices = lab.slices().await;
        let names: BTreeSet<String> = device_names(&slices).into_iter().map(short).collect();
        (is_complete(&slices) && names == wanted).then_some(())
    })
    .await;
    let slices = lab.slices().await;
    assert!(slices.iter().all(|it| it.spec.shared_counters.is_none()));
}

pub(crate) async fn delete_claim(lab: &Lab, claim: &Claim) {
    let api: Api<ResourceClaim> = Api::namespaced(lab.client.clone(), "default");
    api.delete(&claim.name, &DeleteParams::default()).await.unwrap();
}

const MIXED: [&str; 4] = ["1a:1g-10gb-2", "1a:1g-10gb-3", "1a:2g-20gb-0", "1a:3g-40gb-4"];

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_label_serves_every_size_and_says_nothing() {
    each_control_plane(false, async |plane| {
        let mut lab = lab_without_file(plane, "2xH100-80GB,1xL4").await;
        lab.start();
        let expected: Vec<&str> = MIXED.into_iter().chain(["1b-00", "3b-00"]).collect();
        published_when(&lab, &expected).await;
        assert_eq!(state(&lab).await, None);
        lab.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_label_commands_that_people_know_work_without_a_file() {
    each_control_plane(false, async |plane| {
        let mut lab = lab_without_file(plane, "1xH100-80GB,1xB200-180GB").await;
        lab.start();
        label(&lab, Some("all-1g.10gb")).await;
        let small: Vec<String> = (0..7).map(|it| format!("1a:1g-10gb-{it}")).collect();
        // The other GPU has no such profile; it is offered as if no layout were chosen.
        let rest = ["1b:1g-23gb-2", "1b:1g-23gb-3", "1b:2g-45gb-0", "1b:3g-90gb-4"];
        let expected: Vec<&str> = small.iter().map(String::as_str).chain(rest).collect();
        published_when(&lab, &expected).await;
        state_when(&lab, "success").await;
        event_when(&lab, "LayoutApplied", "all-1g.10gb").await;

        label(&lab, Some("all-disabled")).await;
        published_when(&lab, &["1a-00", "1b-00"]).await;
        state_when(&lab, "success").await;

        label(&lab, Some("all-balanced")).await;
        let expected: Vec<&str> = MIXED.into_iter().chain(rest).collect();
        published_when(&lab, &expected).await;
        label(&lab, None).await;
        eventually("the state goes with the label", async || state(&lab).await.is_none().then_some(())).await;
        lab.stop().await;
    })
    .await;
}

async fn prepare(kubelet: &Plugin, claim: &Claim) -> Result<(), String> {
    kubelet.prepare(std::slice::from_ref(claim)).await.unwrap().remove(&claim.uid).unwrap().map(drop)
}

async fn unprepare(kubelet: &Plugin, claim: &Claim) {
    kubelet.unprepare(std::slice::from_ref(claim)).await.unwrap().remove(&claim.uid).unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_layout_takes_free_space_at_once_and_allocated_space_when_it_is_released() {
    each_control_plane(false, async |plane| {
        let mut lab = lab(plane, "1xH100-80GB").await;
        label(&lab, Some("small")).await;
        lab.start();
        state_when(&lab, "success").await;
        assert_eq!(published(&lab).await.len(), 7);
        let kubelet = lab.kubelet().await;
        let prepared = lab.claim_of("prepared", "gpu-0000-1a-00-mig-1g-10gb-6").await;
        prepare(&kubelet, &prepared).await.unwrap();
        // Given away, but the kubelet has not asked for it yet.
        let allocated = lab.claim_of("allocated", "gpu-0000-1a-00-mig-1g-10gb-5").await;

        label(&lab, Some("mixed")).await;
        published_when(&lab, &["1a:1g-10gb-5", "1a:1g-10gb-6", "1a:3g-40gb-0"]).await;
        state_when(&lab, "pending").await;
        event_when(&lab, "LayoutPending", "1 x 2g.20gb waits for").await;
        prepare(&kubelet, &allocated).await.unwrap();
        let new = lab.claim_of("new", "gpu-0000-1a-00-mig-3g-40gb-0").await;
        prepare(&kubelet, &new).await.unwrap();

        unprepare(&kubelet, &allocated).await;
        delete_claim(&lab, &allocated).await;
        published_when(&lab, &["1a:1g-10gb-6", "1a:2g-20gb-4", "1a:3g-40gb-0"]).await;
        unprepare(&kubelet, &new).await;
        delete_claim(&lab, &new).await;
        unprepare(&kubelet, &prepared).await;
        delete_claim(&lab, &prepared).await;
        published_when(&lab, &MIXED).await;
        state_when(&lab, "success").await;
        lab.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_unprepared_but_still_allocated_is_not_withdrawn() {
    let mut lab = lab(ControlPlane::simulated(false).await, "1xH100-80GB").await;
    label(&lab, Some("small")).await;
    lab.start();
    state_when(&lab, "success").await;
    let kubelet = lab.kubelet().await;
    let shared = lab.claim_of("shared", "gpu-0000-1a-00-mig-1g-10gb-0").await;
    prepare(&kubelet, &shared).await.unwrap();
    label(&lab, Some("whole")).await;
    published_when(&lab, &["1a:1g-10gb-0"]).await;
    unprepare(&kubelet, &shared).await;
    // The next pod that uses the claim.
    eventually("the claims are read after the device is not held any more", async || {
        node_events(&lab, "LayoutPending").await.first().map(drop)
    })
    .await;
    prepare(&kubelet, &shared).await.unwrap();
    published_when(&lab, &["1a:1g-10gb-0"]).await;
    unprepare(&kubelet, &shared).await;
    delete_claim(&lab, &shared).await;
    published_when(&lab, &["1a-00"]).await;
    state_when(&lab, "success").await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layout_that_does_not_fit_is_refused_and_the_one_before_stays_also_after_a_restart() {
    each_control_plane(false, async |plane| {
        let mut lab = lab(plane, "1xH100-80GB").await;
        label(&lab, Some("small")).await;
        lab.start();
        state_when(&lab, "success").await;
        let small: Vec<String> = (0..7).map(|it| format!("1a:1g-10gb-{it}")).collect();
        let small: Vec<&str> = small.iter().map(String::as_str).collect();

        label(&lab, Some("too-much")).await;
        state_when(&lab, "failed").await;
        event_when(&lab, "LayoutRefused", "layouts.yaml`: mig-configs.too-much[0]: GPU 0").await;
        event_when(&lab, "LayoutRefused", "closest is 2 x 3g.40gb").await;
        published_when(&lab, &small).await;
        lab.stop().await;
        lab.start();
        event_when(&lab, "LayoutRefused", "closest").await;
        published_when(&lab, &small).await;

        // Its author corrects it.
        let corrected = FILE.replace("\"3g.40gb\": 2\n        \"1g.10gb\": 1", "\"3g.40gb\": 2");
        std::fs::write(lab.path("layouts.yaml"), corrected).unwrap();
        published_when(&lab, &["1a:3g-40gb-0", "1a:3g-40gb-4"]).await;
        state_when(&lab, "success").await;

        std::fs::write(lab.path("layouts.yaml"), FILE.replace("devices: [2]", "devices: two")).unwrap();
        state_when(&lab, "failed").await;
        event_when(&lab, "LayoutRefused", "mig-configs.split[1].devices: it must be `all` or a list").await;
        published_when(&lab, &["1a:3g-40gb-0", "1a:3g-40gb-4"]).await;
        lab.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gpus_are_split_by_index_and_by_kind() {
    each_control_plane(false, async |plane| {
        let mut lab = lab(plane.clone(), "4xH100-80GB").await;
        label(&lab, Some("split")).await;
        lab.start();
        let small: Vec<String> = (0..7).map(|it| format!("3c:1g-10gb-{it}")).collect();
        let whole = ["1a-00", "1b-00", "3b:7g-80gb-0"];
        let split: Vec<&str> = whole.into_iter().chain(small.iter().map(String::as_str)).collect();
        published_when(&lab, &split).await;
        lab.stop().await;

        let mut lab = self::lab(plane, "1xH100-80GB,1xB200-180GB").await;
        label(&lab, Some("mixed")).await;
        lab.start();
        let medium = ["1b:2g-45gb-0", "1b:2g-45gb-2", "1b:2g-45gb-4"];
        published_when(&lab, &MIXED.into_iter().chain(medium).collect::<Vec<_>>()).await;
        state_when(&lab, "success").await;
        lab.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_needs_a_reset_waits_for_it() {
    let mut lab = lab_without_file(ControlPlane::simulated(false).await, "1xA100-40GB").await;
    label(&lab, Some("all-3g.20gb")).await;
    lab.start();
    state_when(&lab, "pending").await;
    event_when(&lab, "LayoutPending", "needs a GPU reset").await;
    published_when(&lab, &[]).await;
    lab.sim.on_gpu(0, |gpu| gpu.mig_pending = true).unwrap();
    lab.sim.reset_gpu(0).unwrap();
    published_when(&lab, &["1a:3g-20gb-0", "1a:3g-20gb-4"]).await;
    state_when(&lab, "success").await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_is_turned_off_and_on_moves_between_the_modes_and_keeps_what_is_allocated() {
    let plane = ControlPlane::simulated(true).await;
    let ControlPlane::Simulated(server) = plane.clone() else { unreachable!("it is the simulated one") };
    let restart = |is_on: bool| {
        server.set_partitionable_devices(is_on);
        server.compact();
        server.cut_watches();
    };
    let mut lab = lab(plane, "1xH100-80GB").await;
    label(&lab, Some("mixed")).await;
    lab.start();
    lab.slices_when(|it| is_complete(it) && device_names(it).len() == 26).await;
    state_when(&lab, "failed").await;
    event_when(&lab, "LayoutHasNoEffect", "layout `mixed` has no effect on this node: kube-apiserver keeps")
        .await;
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("one", "gpu-0000-1a-00-mig-1g-10gb-6").await;
    prepare(&kubelet, &claim).await.unwrap();
    let waiting = lab.claim_of("two", "gpu-0000-1a-00-mig-2g-20gb-4").await;

    restart(false);
    published_when(&lab, &["1a:1g-10gb-6", "1a:2g-20gb-4", "1a:3g-40gb-0"]).await;
    state_when(&lab, "pending").await;
    event_when(&lab, "CountersDropped", "by layout").await;
    prepare(&kubelet, &waiting).await.unwrap();

    restart(true);
    let slices = lab.slices_when(|it| is_complete(it) && device_names(it).len() == 26).await;
    let counted = slices.iter().flat_map(|it| it.spec.devices.iter().flatten());
    assert!(counted.into_iter().all(|it| it.consumes_counters.is_some()));
    event_when(&lab, "CountersKept", "every placement").await;
    state_when(&lab, "failed").await;
    assert_eq!(lab.instances().len(), 2);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_counters_belong_to_one_slice_a_layout_decides_until_the_api_server_is_newer() {
    let plane = ControlPlane::simulated_1_34().await;
    let ControlPlane::Simulated(server) = plane.clone() else { unreachable!("it is the simulated one") };
    let mut lab = lab(plane, "1xH100-80GB").await;
    label(&lab, Some("mixed")).await;
    lab.start();
    published_when(&lab, &MIXED).await;
    state_when(&lab, "success").await;
    // Nothing was sent that this version refuses, except the question.
    let writes =
        server.requests().into_iter().filter(|it| it.is_write() && it.path.contains("resourceslices"));
    let (questions, writes): (Vec<_>, Vec<_>) = writes.partition(|it| it.query.contains("dryRun=All"));
    assert!(!questions.is_empty());
    assert_eq!(writes.len(), lab.slices().await.len(), "{writes:?}");

    server.set_version(Version::V1_35);
    server.compact();
    server.cut_watches();
    lab.slices_when(|it| is_complete(it) && device_names(it).len() == 26).await;
    event_when(&lab, "CountersKept", "every placement").await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_layout_mode_can_be_chosen_where_the_gate_is_on() {
    let lab = lab(ControlPlane::simulated(true).await, "1xH100-80GB").await;
    let file = lab.path("layouts.yaml").display().to_string();
    let mut lab = lab.with_args(&["--mode", "layout", "--layouts", &file, "--settle-time", "1"]);
    label(&lab, Some("mixed")).await;
    lab.start();
    published_when(&lab, &MIXED).await;
    state_when(&lab, "success").await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layout_that_asks_nothing_of_the_nodes_gpus_fails_and_says_why() {
    each_control_plane(false, async |plane| {
        let mut lab = lab(plane.clone(), "1xL4").await;
        lab.start();
        for (name, why) in [
            ("mixed", "no entry matches a GPU of this node; it has GPU 0 (NVIDIA L4, 0000:1a:00.0), PCI id 0x27B810DE"),
            ("small", "ask for MIG instances, which none of these GPUs can have"),
        ] {
            label(&lab, Some(name)).await;
            event_when(&lab, "LayoutHasNoEffect", &format!("layout `{name}` has no effect on this node")).await;
            event_when(&lab, "LayoutHasNoEffect", why).await;
            state_when(&lab, "failed").await;
            published_when(&lab, &["1a-00"]).await;
        }
        // This one has what it asks for, although it was so before.
        label(&lab, Some("whole")).await;
        state_when(&lab, "success").await;
        lab.stop().await;

        let mut lab = lab_without_file(plane, "1xL4").await;
        label(&lab, Some("all-balanced")).await;
        lab.start();
        event_when(&lab, "LayoutHasNoEffect", "no GPU of this node can have MIG instances").await;
        state_when(&lab, "failed").await;
        lab.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_that_was_left_on_the_node_does_not_stay_where_layouts_have_no_effect() {
    let mut lab = lab_without_file(ControlPlane::simulated(true).await, "1xH100-80GB").await;
    label(&lab, Some("all-1g.10gb")).await;
    let left = Patch::Merge(json!({"metadata": {"labels": {STATE: "success"}}}));
    let nodes = Api::<Node>::all(lab.client.clone());
    nodes.patch(&lab.node_name, &PatchParams::default(), &left).await.unwrap();
    lab.start();
    state_when(&lab, "failed").await;
    event_when(&lab, "LayoutHasNoEffect", "--mode=layout").await;
    assert_eq!(node_events(&lab, "LayoutApplied").await, [""; 0]);
    label(&lab, None).await;
    eventually("the state goes with the label", async || state(&lab).await.is_none().then_some(())).await;
    lab.stop().await;

    let lab = Lab::new(ControlPlane::simulated(false).await, "1xH100-80GB").await;
    let mut lab = lab.with_args(&["--mode", "partitionable", "--settle-time", "1"]);
    label(&lab, Some("all-disabled")).await;
    lab.start();
    event_when(&lab, "LayoutHasNoEffect", "--mode=partitionable publishes whole GPUs").await;
    state_when(&lab, "failed").await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layout_is_pending_while_no_gpu_can_be_offered() {
    let mut lab = lab_without_file(ControlPlane::simulated(false).await, "1xH100-80GB").await;
    lab.sim.break_handle(0, Some(nvml_sim::Code::UNKNOWN)).unwrap();
    label(&lab, Some("all-1g.10gb")).await;
    lab.start();
    state_when(&lab, "pending").await;
    event_when(&lab, "LayoutPending", "nvmlDeviceGetHandleByIndex_v2 failed with UNKNOWN").await;
    lab.sim.break_handle(0, None).unwrap();
    state_when(&lab, "success").await;
    assert_eq!(published(&lab).await.len(), 7);
    lab.stop().await;
}

/// Another program sets the state label, as nvidia-mig-manager does it. The simulated API server keeps no field managers, so
/// there they are written as the real one writes them.
async fn set_state_as(lab: &Lab, manager: &str, value: &str) {
    let mut metadata = json!({"labels": {STATE: value}});
    if matches!(lab.plane, ControlPlane::Simulated(_)) {
        let fields = json!({"f:metadata": {"f:labels": {format!("f:{STATE}"): {}}}});
        metadata["managedFields"] = json!([{
            "manager": manager, "operation": "Update", "apiVersion": "v1", "time": "2026-11-29T00:00:00Z",
            "fieldsType": "FieldsV1", "fieldsV1": fields,
        }]);
    }
    let params = PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() };
    let nodes = Api::<Node>::all(lab.client.clone());
    nodes.patch(&lab.node_name, &params, &Patch::Merge(json!({"metadata": metadata}))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_writer_of_the_state_label_is_an_event_of_the_node() {
    each_control_plane(false, async |plane| {
        let mut lab = lab_without_file(plane, "1xH100-80GB").await;
        label(&lab, Some("all-1g.10gb")).await;
        lab.start();
        state_when(&lab, "success").await;
        assert!(node_events(&lab, "MigManagerDetected").await.is_empty(), "its own label is not another's");

        set_state_as(&lab, "nvidia-mig-manager", "failed").await;
        event_when(&lab, "MigManagerDetected", "set to `failed` by `nvidia-mig-manager`").await;
        let remedy = format!("kubectl label node {} nvidia.com/gpu.deploy.mig-manager=false", lab.node_name);
        event_when(&lab, "MigManagerDetected", &remedy).await;
        state_when(&lab, "success").await;
        lab.stop().await;
        assert_eq!(node_events(&lab, "MigManagerDetected").await.len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_state_label_off_it_is_left_to_others() {
    let mut lab = lab_without_file(ControlPlane::simulated(false).await, "1xH100-80GB").await;
    lab.set_args(&["--settle-time", "1", "--rescan-interval", "1", "--state-label", "off"]);
    label(&lab, Some("all-7g.80gb")).await;
    set_state_as(&lab, "nvidia-mig-manager", "rebooting").await;
    lab.start();
    published_when(&lab, &["1a:7g-80gb-0"]).await;
    // The event comes after the label would have been written.
    event_when(&lab, "LayoutApplied", "all-7g.80gb").await;
    lab.stop().await;
    assert_eq!(state(&lab).await.as_deref(), Some("rebooting"));
    assert!(node_events(&lab, "MigManagerDetected").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_rights_on_nodes_the_label_is_ignored_and_that_is_logged_once() {
    let ControlPlane::Simulated(server) = ControlPlane::simulated(false).await else { unreachable!() };
    let lab = lab_without_file(ControlPlane::Simulated(Arc::clone(&server)), "1xH100-80GB").await;
    label(&lab, Some("all-7g.80gb")).await;
    // As with rbac.layoutLabels: false, which leaves `get` alone.
    let is_refused = |it: &RequestInfo| {
        it.path == "/api/v1/nodes" || it.path.starts_with("/api/v1/nodes/") && it.is_write()
    };
    server.inject(usize::MAX, is_refused, Fault::Status(403));
    let before = server.requests().len();
    let log = lab.path("log");
    let mut driver = lab.command().stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
    published_when(&lab, &MIXED).await;
    let scans = || std::fs::read_to_string(&log).unwrap();
    eventually("the log has it", async || scans().contains("may not watch its Node").then_some(())).await;

    driver.kill().unwrap();
    driver.wait().unwrap();
    let said = scans();
    let lines: Vec<&str> = said.lines().filter(|it| it.contains("nodes") || it.contains("label")).collect();
    let warnings: Vec<&&str> =
        lines.iter().filter(|it| it.contains(" WARN ") || it.contains("ERROR")).collect();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(said.matches("may not watch its Node").count(), 1, "{said}");
    let asked = server.requests().split_off(before).into_iter().filter(is_refused).count();
    assert_eq!(asked, 1, "it does not ask again and again");
    assert_eq!(state(&lab).await, None);
}
