//! `kubectl mig get` on what the driver really publishes, with and without counters.

use crate::common;
use common::{ControlPlane, DRIVER, Lab};
use k8s_openapi::api::core::v1::Node;
use kubectl_mig::cluster::{Connection, Kinds, Snapshot, read};
use kubectl_mig::get::{Fleet, Free, GpuRow, Reason, State, fleet};
use serde_json::json;

async fn seen(lab: &Lab) -> Fleet {
    let connection = Connection::new(lab.client.clone(), "default");
    let mut snapshot: Snapshot = read(&connection, Kinds { nodes: true, ..Kinds::default() }).await.unwrap();
    snapshot.nodes.retain(|it: &Node| it.metadata.name.as_deref() == Some(&lab.node_name));
    let mut fleet = fleet(&snapshot).unwrap();
    fleet.gpus.retain(|it| it.node == lab.node_name);
    fleet.nodes.retain(|it| it.name == lab.node_name);
    fleet
}

fn states(gpu: &GpuRow) -> String {
    let mark = |state: State| match state {
        State::Held => 'H',
        State::Free => '.',
        State::Blocked => '-',
        State::NotOffered => 'x',
    };
    gpu.parts.iter().map(|it| mark(it.state)).collect()
}

fn free(free: &[Free]) -> Vec<String> {
    free.iter().map(|it| format!("{}x{}", it.count, it.profile)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn get_shows_what_the_driver_publishes_with_counters() {
    let mut lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB,1xL4").await;
    lab.start();
    lab.slices_when(common::is_complete).await;
    let gpu = lab.gpu_name(0);
    lab.claim_of("train", &format!("{gpu}-mig-4g-40gb-0")).await;
    let fleet = seen(&lab).await;
    lab.stop().await;
    let [h100, l4] = fleet.gpus.as_slice() else { panic!("{:#?}", fleet.gpus) };
    assert_eq!((states(h100).as_str(), h100.has_counters, h100.driver.as_str()), ("HHHH....", true, DRIVER));
    assert_eq!(free(&h100.free), ["3x1g.10gb", "2x1g.20gb", "1x2g.20gb", "1x3g.40gb", "1x1g.10gb+me"]);
    assert_eq!(h100.largest.as_deref(), Some("3g.40gb"));
    assert!(
        h100.uuid.as_ref().is_some_and(|it| it.starts_with("GPU-")) && h100.name.contains(':'),
        "{h100:#?}"
    );
    assert_eq!(h100.product.as_deref(), Some("NVIDIA H100 80GB HBM3"));
    assert!(
        h100.holders[0].claim.name.starts_with("train-") && h100.holders[0].profile == "4g.40gb",
        "{h100:#?}"
    );
    assert_eq!((l4.memory_slices, states(l4).as_str(), free(&l4.free)), (0, ".", vec!["1xgpu".to_owned()]));
    assert!(fleet.nodes[0].problems.is_empty(), "{:?}", fleet.nodes[0].problems);
}

#[tokio::test(flavor = "multi_thread")]
async fn get_shows_the_devices_of_a_layout() {
    let mut lab = Lab::new(ControlPlane::simulated(false).await, "1xH100-80GB").await;
    lab = lab.with_args(&["--mode", "layout"]);
    let label = json!({"metadata": {"labels": {"nvidia.com/mig.config": "all-3g.40gb"}}});
    let nodes: kube::Api<Node> = kube::Api::all(lab.client.clone());
    nodes
        .patch(&lab.node_name, &kube::api::PatchParams::default(), &kube::api::Patch::Merge(label))
        .await
        .unwrap();
    lab.start();
    lab.slices_when(|it| common::device_names(it).iter().any(|it| it.contains("3g-40gb"))).await;
    let gpu = lab.gpu_name(0);
    lab.claim_of("train", &format!("{gpu}-mig-3g-40gb-4")).await;
    let fleet = seen(&lab).await;
    lab.stop().await;
    let gpu = &fleet.gpus[0];
    assert_eq!((states(gpu).as_str(), gpu.has_counters), ("....HHHH", false));
    assert_eq!(free(&gpu.free), ["1x3g.40gb"]);
    assert_eq!(fleet.nodes[0].layout.as_ref().unwrap().config.as_deref(), Some("all-3g.40gb"));
    assert!(gpu.problems.is_empty(), "{:?}", gpu.problems);
}

#[tokio::test(flavor = "multi_thread")]
async fn get_shows_time_shares() {
    let mut lab = Lab::new(ControlPlane::simulated(false).await, "1xL4").await;
    lab = lab.with_args(&["--time-slices", "4"]);
    lab.start();
    lab.slices_when(|it| common::device_names(it).len() == 4).await;
    let gpu = lab.gpu_name(0);
    lab.claim_of("one", &format!("{gpu}-share-2")).await;
    let fleet = seen(&lab).await;
    lab.stop().await;
    let gpu = &fleet.gpus[0];
    assert_eq!((states(gpu).as_str(), free(&gpu.free)), ("..H.", vec!["3xshare".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn get_shows_an_a100_with_mig_mode_off_as_a_whole_gpu() {
    let mut lab = Lab::new(ControlPlane::simulated(true).await, "1xA100-40GB").await;
    lab.start();
    lab.slices_when(common::is_complete).await;
    let fleet = seen(&lab).await;
    lab.stop().await;
    let gpu = &fleet.gpus[0];
    assert_eq!((gpu.memory_slices, states(gpu).as_str()), (8, "........"));
    assert_eq!(free(&gpu.free), ["1xgpu"]);
    assert!(gpu.problems.is_empty(), "{:?}", gpu.problems);
}

#[tokio::test(flavor = "multi_thread")]
async fn get_shows_where_an_unmanaged_instance_is_in_the_way() {
    let mut lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await;
    lab.sim.plant_instance(0, "2g.20gb", 4).unwrap();
    lab.start();
    lab.slices_when(common::is_complete).await;
    let fleet = seen(&lab).await;
    lab.stop().await;
    let gpu = &fleet.gpus[0];
    assert_eq!(states(gpu), "....xx..");
    assert_eq!(gpu.problems[0].reason, Reason::SlicesNotOffered);
    assert_eq!(gpu.problems[0].message, "memory slices 4-5 are in no device that is offered");
    assert_eq!(gpu.largest.as_deref(), Some("4g.40gb"));
}
