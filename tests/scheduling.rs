//! Layouts and counters under a scheduler that allocates by itself: the simulated one and, where there is one, a real
//! kube-scheduler on a real API server.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};

use crate::common;
use common::{
    ControlPlane, DRIVER, Lab, device_names, each_control_plane, eventually, is_complete, prepare, unprepare,
};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube_sim::kubelet::Claim;
use kubectl_mig::cluster::{self, Connection, Kinds};
use kubectl_mig::explain::{ReasonId, Subject, Verdict, explain};
use serde_json::{Value, json};

/// A scheduler for the plane, which ends when it is dropped, and a node that it may use.
async fn scheduler(lab: &Lab, gates: &str) -> Box<dyn Any> {
    let nodes: Api<Node> = Api::all(lab.client.clone());
    // No other component takes away what the API server taints a new node with, and says how much there is of it.
    let spec = Patch::Merge(json!({"spec": {"taints": null}}));
    nodes.patch(&lab.node_name, &PatchParams::default(), &spec).await.unwrap();
    let amount = json!({"cpu": "64", "memory": "64Gi", "pods": "110"});
    let ready = json!([{"type": "Ready", "status": "True"}]);
    let status = json!({"status": {"allocatable": amount, "capacity": amount, "conditions": ready}});
    nodes.patch_status(&lab.node_name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    let class = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": "mig"},
        "spec": {"selectors": [{"cel": {"expression": format!("device.driver == '{DRIVER}'")}}]},
    });
    let classes: Api<DeviceClass> = Api::all(lab.client.clone());
    classes.create(&PostParams::default(), &serde_json::from_value(class).unwrap()).await.unwrap();
    match &lab.plane {
        ControlPlane::Simulated(server) => Box::new(kube_sim::ControlPlane::start(server)),
        ControlPlane::Real(real) => Box::new(real.0.start_scheduler(gates).unwrap()),
    }
}

/// A pod with a claim for one device of this profile, both of this name.
async fn pod(lab: &Lab, name: &str, profile: &str) {
    let selector = format!("device.attributes['{DRIVER}'].profile == '{profile}'");
    let request = json!({"deviceClassName": "mig", "selectors": [{"cel": {"expression": selector}}]});
    let claim = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": name},
        "spec": {"devices": {"requests": [{"name": "gpu", "exactly": request}]}},
    });
    claims(lab).create(&PostParams::default(), &serde_json::from_value(claim).unwrap()).await.unwrap();
    let container = json!({"name": "c", "image": "c", "resources": {"claims": [{"name": "gpu"}]}});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [container], "resourceClaims": [{"name": "gpu", "resourceClaimName": name}]},
    });
    pods(lab).create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
}

/// Ends a pod and its claim, as a kubelet and the controller of claims do.
async fn end(lab: &Lab, name: &str) {
    pods(lab).delete(name, &DeleteParams::default().grace_period(0)).await.unwrap();
    let free = Patch::Merge(json!({"status": {"allocation": null, "reservedFor": null}}));
    claims(lab).patch_status(name, &PatchParams::default(), &free).await.unwrap();
    let gone = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    claims(lab).patch(name, &PatchParams::default(), &gone).await.unwrap();
    claims(lab).delete(name, &DeleteParams::default()).await.unwrap();
}

fn claims(lab: &Lab) -> Api<ResourceClaim> {
    Api::namespaced(lab.client.clone(), "default")
}

fn pods(lab: &Lab) -> Api<Pod> {
    Api::namespaced(lab.client.clone(), "default")
}

/// The device of each claim that has one. No two of them may overlap, at any time.
async fn allocated(lab: &Lab) -> BTreeMap<String, String> {
    let mut devices = BTreeMap::new();
    for claim in claims(lab).list(&ListParams::default()).await.unwrap() {
        let status = serde_json::to_value(&claim.status).unwrap();
        if let Some(device) = status["allocation"]["devices"]["results"][0]["device"].as_str() {
            devices.insert(claim.metadata.name.unwrap(), device.to_owned());
        }
    }
    let places: Vec<(&str, u32, u32)> = devices.values().map(|it| place(it)).collect();
    for (index, (gpu, start, end)) in places.iter().enumerate() {
        let overlaps = |it: &&(&str, u32, u32)| it.0 == *gpu && it.1 < *end && *start < it.2;
        assert_eq!(places[..index].iter().find(overlaps), None, "two overlap: {devices:?}");
    }
    devices
}

/// GPU, first memory slice and the one behind the last, from the name of a device of an H100.
fn place(device: &str) -> (&str, u32, u32) {
    let (gpu, mig) = device.split_once("-mig-").unwrap();
    let (profile, start) = mig.rsplit_once('-').unwrap();
    let start: u32 = start.parse().unwrap();
    let size = match profile {
        "1g-10gb" => 1,
        "2g-20gb" => 2,
        "3g-40gb" | "4g-40gb" => 4,
        _ => 8,
    };
    (gpu, start, start + size)
}

/// Waits until as many claims have a device.
async fn allocated_when(lab: &Lab, count: usize) -> BTreeMap<String, String> {
    eventually(&format!("{count} claims are allocated"), async || {
        Some(allocated(lab).await).filter(|it| it.len() == count)
    })
    .await
}

async fn label(lab: &Lab, layout: &str) {
    let patch = Patch::Merge(json!({"metadata": {"labels": {"nvidia.com/mig.config": layout}}}));
    let nodes: Api<Node> = Api::all(lab.client.clone());
    nodes.patch(&lab.node_name, &PatchParams::default(), &patch).await.unwrap();
}

async fn state_when(lab: &Lab, wanted: &str) {
    let nodes: Api<Node> = Api::all(lab.client.clone());
    eventually(&format!("the state is {wanted}"), async || {
        let labels = nodes.get(&lab.node_name).await.unwrap().metadata.labels.unwrap_or_default();
        (labels.get("nvidia.com/mig.config.state").map(String::as_str) == Some(wanted)).then_some(())
    })
    .await;
}

async fn published_when(lab: &Lab, wanted: &[&str]) {
    let wanted: BTreeSet<&str> = wanted.iter().copied().collect();
    eventually(&format!("{wanted:?} are published"), async || {
        let slices = lab.slices().await;
        let short = |it: &str| it.trim_start_matches("gpu-0000-1a-00-mig-").to_owned();
        let names: BTreeSet<String> = device_names(&slices).into_iter().map(short).collect();
        (is_complete(&slices) && names.iter().map(String::as_str).eq(wanted.iter().copied())).then_some(())
    })
    .await;
}

/// Waits until the scheduler says that there is nothing for a pod.
async fn refused_when(lab: &Lab, name: &str) {
    eventually(&format!("{name} is unschedulable"), async || {
        let pod = serde_json::to_value(pods(lab).get(name).await.unwrap()).unwrap();
        let is_refusal = |it: &Value| it["type"] == "PodScheduled" && it["reason"] == "Unschedulable";
        pod["status"]["conditions"].as_array()?.iter().any(is_refusal).then_some(())
    })
    .await;
}

fn as_claim(claim: ResourceClaim) -> Claim {
    let metadata = claim.metadata;
    Claim { namespace: "default".to_owned(), name: metadata.name.unwrap(), uid: metadata.uid.unwrap() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_cluster_serves_seven_small_ones_and_then_a_mix_around_those_that_stay() {
    each_control_plane(false, async |plane| {
        let lab = Lab::new(plane, "1xH100-80GB").await;
        let mut lab = lab.with_args(&["--settle-time", "2", "--rescan-interval", "1"]);
        let _scheduler = scheduler(&lab, "").await;
        label(&lab, "all-1g.10gb").await;
        lab.start();
        state_when(&lab, "success").await;
        for index in 0..8 {
            pod(&lab, &format!("small-{index}"), "1g.10gb").await;
        }
        let before = allocated_when(&lab, 7).await;
        let left_over = (0..8).map(|it| format!("small-{it}")).find(|it| !before.contains_key(it)).unwrap();
        refused_when(&lab, &left_over).await;
        end(&lab, &left_over).await;

        // Two stay, of which one is prepared.
        let holder = |start: u32| before.iter().find(|(_, it)| place(it).1 == start).unwrap().0.clone();
        let (prepared, unprepared) = (holder(6), holder(5));
        let kubelet = lab.kubelet().await;
        let claim = as_claim(claims(&lab).get(&prepared).await.unwrap());
        prepare(&kubelet, &claim).await.unwrap();
        label(&lab, "all-balanced").await;
        state_when(&lab, "pending").await;
        assert_eq!(allocated(&lab).await, before, "they stay");
        for name in before.keys().filter(|it| **it != prepared && **it != unprepared) {
            end(&lab, name).await;
        }
        pod(&lab, "large", "3g.40gb").await;
        pod(&lab, "medium", "2g.20gb").await;
        let now = allocated_when(&lab, 3).await;
        assert_eq!(now["large"], "gpu-0000-1a-00-mig-3g-40gb-0");
        published_when(&lab, &["1g-10gb-5", "1g-10gb-6", "3g-40gb-0"]).await;
        refused_when(&lab, "medium").await;
        state_when(&lab, "pending").await;

        end(&lab, &unprepared).await;
        assert_eq!(allocated_when(&lab, 3).await["medium"], "gpu-0000-1a-00-mig-2g-20gb-4");
        unprepare(&kubelet, &claim).await.unwrap();
        end(&lab, &prepared).await;
        // Only one small one fits beside a large one in the first half.
        published_when(&lab, &["1g-10gb-6", "2g-20gb-4", "3g-40gb-0"]).await;
        state_when(&lab, "pending").await;
        end(&lab, "medium").await;
        end(&lab, "large").await;
        state_when(&lab, "success").await;
        published_when(&lab, &["1g-10gb-2", "1g-10gb-3", "2g-20gb-0", "3g-40gb-4"]).await;
        lab.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_counters_a_mix_that_fills_eight_gpus_is_allocated_fully() {
    each_control_plane(true, async |plane| {
        // Without the media profiles one slice holds the small ones of all eight, see docs/placement.md.
        let lab = Lab::new(plane, "8xH100-80GB").await;
        let mut lab = lab.with_args(&["--profiles", "!*+me*"]);
        let _scheduler = scheduler(&lab, "DRAPartitionableDevices=true").await;
        lab.start();
        lab.slices_when(|it| is_complete(it) && device_names(it).len() == 8 * 19).await;
        let mix = ["3g.40gb", "2g.20gb", "1g.10gb", "1g.10gb"].repeat(8);
        for (index, profile) in mix.iter().enumerate() {
            pod(&lab, &format!("p-{index}"), profile).await;
        }
        allocated_when(&lab, mix.len()).await;
        lab.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unmanaged_instance_in_the_place_of_a_claim_stops_nothing_else_of_the_node() {
    each_control_plane(true, async |plane| {
        let lab = Lab::new(plane, "2xH100-80GB").await;
        let mut lab = lab.with_args(&["--rescan-interval", "1", "--settle-time", "1"]);
        let _scheduler = scheduler(&lab, "DRAPartitionableDevices=true").await;
        lab.start();
        lab.slices_when(|it| is_complete(it) && device_names(it).len() == 2 * 26).await;
        pod(&lab, "first", "1g.10gb").await;
        let first = allocated_when(&lab, 1).await["first"].clone();
        let (name, start, _) = place(&first);
        let gpu = (0..2).find(|it| lab.gpu_name(*it) == name).unwrap();
        let planted = lab.sim.plant_instance(gpu, "1g.10gb", start).unwrap();
        lab.slices_when(|it| is_complete(it) && !device_names(it).contains(&name)).await;

        pod(&lab, "large", "7g.80gb").await;
        let large = allocated_when(&lab, 2).await["large"].clone();
        assert_ne!(place(&large).0, name, "the other GPU serves it");
        for index in 0..6 {
            pod(&lab, &format!("small-{index}"), "1g.10gb").await;
        }
        allocated_when(&lab, 8).await;
        pod(&lab, "surplus", "1g.10gb").await;
        refused_when(&lab, "surplus").await;

        // The claim itself waits, and its event says what to do.
        let kubelet = lab.kubelet().await;
        let claim = as_claim(claims(&lab).get("first").await.unwrap());
        let refused = prepare(&kubelet, &claim).await.unwrap_err();
        assert!(refused.contains("is occupied") && refused.contains("delete the pod"), "{refused}");
        lab.sim.on_gpu(gpu, |gpu| gpu.instances.retain(|it| it.id != planted.gpu_instance)).unwrap();
        prepare(&kubelet, &claim).await.unwrap();
        lab.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_pod_gets_its_device_after_what_kubectl_mig_explain_advises() {
    each_control_plane(true, async |plane| {
        let mut lab = Lab::new(plane, "1xH100-80GB").await;
        let _scheduler = scheduler(&lab, "DRAPartitionableDevices=true").await;
        lab.start();
        lab.slices_when(|it| is_complete(it) && device_names(it).len() == 26).await;
        for name in ["first", "second"] {
            pod(&lab, name, "3g.40gb").await;
        }
        allocated_when(&lab, 2).await;
        pod(&lab, "third", "3g.40gb").await;
        refused_when(&lab, "third").await;

        let connection = Connection::new(lab.client.clone(), "default");
        let kinds = Kinds {
            nodes: true,
            pods: true,
            templates: true,
            quotas: true,
            attributes: true,
            mig_nodes: true,
        };
        let subject = Subject::Pod { namespace: "default".to_owned(), name: "third".to_owned() };
        let snapshot = Box::pin(cluster::read(&connection, kinds)).await.unwrap();
        let answer = explain(&snapshot, &subject);
        assert_eq!(
            (answer.verdict, answer.reasons[0].reason),
            (Verdict::NotNow, ReasonId::AllAllocated),
            "{answer:#?}"
        );
        let ends = answer.advice.iter().find_map(|it| it.strip_prefix("kubectl -n default delete pod "));
        let ends = ends.unwrap();
        end(&lab, ends.split_whitespace().next().unwrap()).await;
        let now = allocated_when(&lab, 2).await;
        assert!(now.contains_key("third"), "{now:?}");
        lab.stop().await;
    })
    .await;
}
