//! Driver and controller together: nodes follow pods that wait, and no label changes.

use std::net::SocketAddr;
use std::process::Child;
use std::sync::Arc;

use clap::Parser;
use k8s_openapi::jiff::Timestamp;
use kube_sim::{ApiServer, Kubelet, KubeletOptions, Part, kinds, manifest};
use mig_controller::args::Args;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::common::{ControlPlane, Lab, eventually, free_address, get, repository, scrape};

const LABEL: &str = "nvidia.com/mig.config";
/// Seconds after which the controller looks at a pod.
const PATIENCE: i64 = 1;

/// A node with the label `auto`, its driver as a process, and its kubelet.
struct GpuNode {
    lab: Lab,
    driver: Child,
    _kubelet: Kubelet,
}

impl GpuNode {
    async fn start(plane: &ControlPlane, server: &ApiServer) -> Self {
        let lab = Lab::new(plane.clone(), "2xH100-80GB").await;
        let lab = lab.with_args(&["--settle-time", "1", "--rescan-interval", "1"]);
        let amount = json!({"cpu": "64", "memory": "64Gi", "pods": "110"});
        let status = json!({"status": {
            "allocatable": amount, "capacity": amount, "conditions": [{"type": "Ready", "status": "True"}],
        }});
        server.patch(&kinds::NODE, "", &lab.node_name, Part::Status, status).unwrap();
        let label = json!({"metadata": {"labels": {LABEL: "auto"}}});
        server.patch(&kinds::NODE, "", &lab.node_name, Part::Main, label).unwrap();
        let options = KubeletOptions::new(&lab.node_name, lab.path("registry"));
        let kubelet = Kubelet::start(server, options).unwrap();
        let driver = lab.spawn();
        Self { lab, driver, _kubelet: kubelet }
    }
}

impl Drop for GpuNode {
    fn drop(&mut self) {
        drop(self.driver.kill());
        drop(self.driver.wait());
    }
}

/// A controller as it is composed in production.
struct Controller {
    metrics: SocketAddr,
    stop: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Controller {
    /// Started, and once it serves metrics.
    async fn start(lab: &Lab) -> Self {
        Self::start_with(lab, &[]).await
    }

    async fn start_with(lab: &Lab, extra: &[&str]) -> Self {
        let metrics = free_address();
        let mut line = vec![
            "mig-controller".to_owned(),
            format!("--kubeconfig={}", lab.path("kubeconfig").display()),
            format!("--http-address={}", free_address()),
            format!("--metrics-address={metrics}"),
            format!("--patience={PATIENCE}"),
            "--lease-duration=5".to_owned(),
            "--demand".to_owned(),
        ];
        line.extend(extra.iter().map(|it| (*it).to_owned()));
        let stop = CancellationToken::new();
        let args = Args::try_parse_from(line).unwrap();
        let running = tokio::spawn(mig_controller::run(args, stop.clone()));
        eventually("the controller serves metrics", async || get(metrics, "/metrics").await).await;
        Self { metrics, stop, running }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }

    /// How many specs it has written for this reason.
    async fn writes(&self, reason: &str) -> f64 {
        let labels = [("reason", reason), ("outcome", "success")];
        let found = scrape(self.metrics).await;
        found.value("dra_mig_controller_spec_writes_total", &labels).unwrap_or_default()
    }
}

/// A pod whose claim asks for a device of each of these classes.
fn create_pod(server: &ApiServer, name: &str, classes: &[&str]) {
    let request = |(index, class): (usize, &&str)| json!({"name": format!("device-{index}"), "exactly": {"deviceClassName": class}});
    let requests: Vec<Value> = classes.iter().enumerate().map(request).collect();
    let template = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate",
        "metadata": {"name": name, "namespace": "default"}, "spec": {"spec": {"devices": {"requests": requests}}},
    });
    let container = json!({"name": "c", "image": "c", "resources": {"claims": [{"name": "gpu"}]}});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "containers": [container], "terminationGracePeriodSeconds": 0,
            "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": name}],
        },
    });
    for object in [template, pod] {
        server.create(object).unwrap();
    }
}

fn pod(server: &ApiServer, name: &str) -> Option<Arc<Value>> {
    server.get(&kinds::POD, "default", name).ok()
}

async fn running(server: &ApiServer, name: &str) {
    eventually(&format!("{name} runs"), async || {
        (pod(server, name)?["status"]["phase"] == "Running").then_some(())
    })
    .await;
}

/// Waits until a pod has waited for so long that it counts in the first round of a controller.
async fn unschedulable(server: &ApiServer, name: &str) {
    eventually(&format!("{name} waits"), async || {
        let pod = pod(server, name)?;
        let conditions = pod["status"]["conditions"].as_array()?;
        let condition = conditions.iter().find(|it| it["reason"] == "Unschedulable")?;
        let since: Timestamp = condition["lastTransitionTime"].as_str()?.parse().unwrap();
        (since.as_second() + PATIENCE <= Timestamp::now().as_second()).then_some(())
    })
    .await;
}

async fn delete(server: &ApiServer, name: &str) {
    server.delete(&kinds::POD, "default", name).unwrap();
    eventually(&format!("{name} is gone"), async || pod(server, name).is_none().then_some(())).await;
}

/// How many devices are allocated, as the nodes say.
fn held(server: &ApiServer, nodes: &[GpuNode]) -> usize {
    let of_node = |node: &GpuNode| {
        let object = server.get(&kinds::MIG_NODE, "", &node.lab.node_name).ok()?;
        let gpus = object["status"]["gpus"].as_array()?.clone();
        Some(gpus.iter().filter_map(|it| Some(it["held"].as_array()?.len())).sum::<usize>())
    };
    nodes.iter().filter_map(of_node).sum()
}

/// What is demanded of each node: profile and count; `None` where nothing is.
fn demands(server: &ApiServer, nodes: &[GpuNode]) -> Vec<Option<Vec<(String, u64)>>> {
    let demand = |node: &GpuNode| {
        let object = server.get(&kinds::MIG_NODE, "", &node.lab.node_name).unwrap();
        let profiles = object["spec"]["demand"]["profiles"].as_array()?.clone();
        let entry = |it: &Value| Some((it["profile"].as_str()?.to_owned(), it["count"].as_u64()?));
        Some(profiles.iter().filter_map(entry).collect())
    };
    nodes.iter().map(demand).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mixed_queue_gets_its_devices_from_nodes_that_follow_it() {
    let plane = ControlPlane::simulated(false).await;
    let ControlPlane::Simulated(server) = &plane else { unreachable!() };
    let mut objects = manifest::load(&repository().join("deploy/manifests/deviceclasses.yaml")).unwrap();
    objects.push(manifest::load(&repository().join("deploy/manifests/crd.yaml")).unwrap().remove(0));
    objects.push(json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": "nic"},
        "spec": {"selectors": [{"cel": {"expression": "device.driver == \"nic.example.com\""}}]},
    }));
    for object in objects {
        server.create(object).unwrap();
    }
    let nodes = [GpuNode::start(&plane, server).await, GpuNode::start(&plane, server).await];
    let _control = kube_sim::ControlPlane::start(server);

    // What the default layout serves: each node publishes a whole GPU, and one as 3g + 2g + 1g + 1g.
    let served = [
        ("whole", "gpu.dra-driver.dev"),
        ("three-0", "mig-3g.40gb"),
        ("three-1", "mig-3g.40gb"),
        ("one-0", "mig-1g.10gb"),
        ("one-1", "mig-1g.10gb"),
        ("one-2", "mig-1g.10gb"),
        ("one-3", "mig-1g.10gb"),
    ];
    for (name, class) in served {
        create_pod(server, name, &[class]);
    }
    for (name, _) in served {
        running(server, name).await;
    }
    eventually("the nodes say what is allocated", async || {
        (held(server, &nodes) == served.len()).then_some(())
    })
    .await;
    // What it does not serve. The first one goes on waiting, for a device of another driver.
    create_pod(server, "needs-nic", &["mig-1g.20gb", "nic"]);
    let waiting = [("seven", "mig-7g.80gb"), ("one-4", "mig-1g.10gb"), ("one-5", "mig-1g.10gb")];
    for (name, class) in waiting {
        create_pod(server, name, &[class]);
    }
    for name in ["needs-nic", "seven", "one-4", "one-5"] {
        unschedulable(server, name).await;
    }

    let first = Controller::start(&nodes[0].lab).await;
    for (name, _) in waiting {
        running(server, name).await;
    }
    // What was allocated is demanded no longer.
    let needed = vec![("1g.20gb".to_owned(), 1)];
    eventually("only what the last pod needs is demanded", async || {
        let found = demands(server, &nodes);
        let is_needed = |it: &&Option<Vec<_>>| it.as_ref() == Some(&needed);
        let is_empty = |it: &&Option<Vec<_>>| it.as_ref().is_none_or(Vec::is_empty);
        (found.iter().filter(is_needed).count() == 1 && found.iter().filter(is_empty).count() == 1)
            .then_some(())
    })
    .await;
    first.stop().await;

    // Another one goes on: it renews what is still needed, and removes it with the pod.
    let second = Controller::start(&nodes[0].lab).await;
    eventually("the demand is renewed", async || (second.writes("renew").await == 1.0).then_some(())).await;
    assert_eq!(second.writes("change").await, 0.0, "{:?}", demands(server, &nodes));
    delete(server, "needs-nic").await;
    eventually("nothing is demanded", async || {
        demands(server, &nodes).iter().all(Option::is_none).then_some(())
    })
    .await;

    // The next pod changes a node again.
    delete(server, "seven").await;
    create_pod(server, "three-2", &["mig-3g.40gb"]);
    running(server, "three-2").await;
    assert_eq!(second.writes("change").await, 1.0);
    second.stop().await;
    for node in &nodes {
        let object = server.get(&kinds::NODE, "", &node.lab.node_name).unwrap();
        assert_eq!(object["metadata"]["labels"][LABEL], "auto");
    }
}

/// The GPU of which a pod has a device.
fn gpu_of(server: &ApiServer, pod: &Value) -> String {
    let claim = pod["status"]["resourceClaimStatuses"][0]["resourceClaimName"].as_str().unwrap();
    let claim = server.get(&kinds::RESOURCE_CLAIM, "default", claim).unwrap();
    let device = claim["status"]["allocation"]["devices"]["results"][0]["device"].as_str().unwrap();
    device.split("-mig-").next().unwrap().to_owned()
}

/// The pods of a ReplicaSet that are not being deleted.
fn replicas(server: &ApiServer, name: &str) -> Vec<Arc<Value>> {
    let is_active = |it: &Arc<Value>| {
        it["metadata"]["ownerReferences"][0]["name"] == name && it["metadata"]["deletionTimestamp"].is_null()
    };
    server.list(&kinds::POD).into_iter().filter(is_active).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_may_be_moved_makes_room_for_one_that_needs_a_whole_gpu() {
    let plane = ControlPlane::simulated(true).await;
    let ControlPlane::Simulated(server) = &plane else { unreachable!() };
    let mut objects = manifest::load(&repository().join("deploy/manifests/deviceclasses.yaml")).unwrap();
    objects.push(manifest::load(&repository().join("deploy/manifests/crd.yaml")).unwrap().remove(0));
    for object in objects {
        server.create(object).unwrap();
    }
    let node = GpuNode::start(&plane, server).await;
    let _control = kube_sim::ControlPlane::start(server);

    // One GPU is full; a pod of a ReplicaSet has a part of the other one.
    for (name, class) in [
        ("four", "mig-4g.40gb"),
        ("one-0", "mig-1g.10gb"),
        ("one-1", "mig-1g.10gb"),
        ("one-2", "mig-1g.10gb"),
    ] {
        create_pod(server, name, &[class]);
        running(server, name).await;
    }
    let one = pod(server, "one-0").unwrap();
    let template = json!({
        "metadata": {"labels": {"app": "small", "mig.dra-driver.dev/movable": "true"}},
        "spec": {"containers": one["spec"]["containers"], "resourceClaims": one["spec"]["resourceClaims"],
            "terminationGracePeriodSeconds": 0},
    });
    let set = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "small", "namespace": "default"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "small"}}, "template": template}});
    server.create(set).unwrap();
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "small", "namespace": "default"},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "small"}}}});
    server.create(budget).unwrap();
    let runs = |it: &Arc<Value>| it["status"]["phase"] == "Running";
    let small =
        eventually("the replica runs", async || replicas(server, "small").into_iter().find(runs)).await;
    let full = gpu_of(server, &pod(server, "four").unwrap());
    assert_ne!(gpu_of(server, &small), full);
    let name = small["metadata"]["name"].as_str().unwrap();
    // It runs since long ago.
    let since = json!({"status": {"startTime": "2026-01-01T00:00:00Z"}});
    server.patch(&kinds::POD, "default", name, Part::Status, since).unwrap();
    delete(server, "one-0").await;
    create_pod(server, "seven", &["mig-7g.80gb"]);
    unschedulable(server, "seven").await;

    let options = ["--hold-after=1", "--consolidate", "--evictions-per-hour=3600"];
    let controller = Controller::start_with(&node.lab, &options).await;
    running(server, "seven").await;
    let moved =
        eventually("the replacement runs", async || replicas(server, "small").into_iter().find(runs)).await;
    assert_ne!(moved["metadata"]["uid"], small["metadata"]["uid"]);
    assert_eq!(gpu_of(server, &moved), full);
    let found = scrape(controller.metrics).await;
    let evictions =
        |outcome: &str| found.value("dra_mig_controller_evictions_total", &[("outcome", outcome)]);
    assert_eq!((evictions("success"), evictions("failure")), (Some(1.0), Some(0.0)));
    controller.stop().await;
}
