//! A large cluster. Not run by default: it takes minutes and gigabytes.
//!
//! ```text
//! CONTROLLER=target/release/mig-controller cargo test --release -p mig-controller --test controller scale:: -- --ignored --nocapture
//! ```
//! `NODES`, `PODS`, `SHAPES` and `LAYOUT` (empty: with counters) change the cluster.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use kube_sim::{ApiServer, Options, Part, kinds, manifest};
use serde_json::json;

use crate::cluster::{free_address, metric, slices_with};

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|it| it.parse().ok()).unwrap_or(default)
}

/// Ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn fill(server: &ApiServer, nodes: usize, pods: usize, shapes: usize) {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for class in manifest::load(&root.join("deploy/manifests/deviceclasses.yaml")).unwrap() {
        server.create(class).unwrap();
    }
    let layout = std::env::var("LAYOUT").unwrap_or_else(|_| "all-balanced".to_owned());
    let layout = format!("--layout={layout}");
    let flags = if layout == "--layout=" { vec![] } else { vec![layout.as_str()] };
    for index in 0..nodes {
        let name = format!("node-{index:04}");
        server.create(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})).unwrap();
        for slice in slices_with(&[&["--gpus", "8xH100-80GB", "--node", &name], flags.as_slice()].concat()) {
            server.create(slice).unwrap();
        }
    }
    for index in 0..pods {
        let name = format!("pod-{index:05}");
        let devices = json!({"requests": [{"name": "gpu", "exactly": {"deviceClassName": "mig-7g.80gb"}}]});
        let claim = json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": name, "namespace": "default"},
            "spec": {"devices": devices},
        });
        server.create(claim).unwrap();
        // Pods of one shape differ in their claims only.
        let memory = format!("{}Mi", 1 + index % shapes);
        let resources = json!({"claims": [{"name": "gpu"}], "requests": {"memory": memory}});
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "containers": [{"name": "main", "image": "i", "resources": resources}],
                "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "t"}],
            },
        });
        server.create(pod).unwrap();
        let status = json!({"status": {
            "resourceClaimStatuses": [{"name": "gpu", "resourceClaimName": name}],
            "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": "0/1000 nodes are available", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        }});
        server.patch(&kinds::POD, "default", &name, Part::Status, status).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn a_thousand_nodes_and_five_thousand_pods() {
    let partitionable = std::env::var("LAYOUT").is_ok_and(|it| it.is_empty());
    let options =
        Options { partitionable_devices: partitionable, without_request_log: true, ..Options::default() };
    let server = ApiServer::start(options).await.unwrap();
    let (nodes, pods, shapes) = (number("NODES", 1_000), number("PODS", 5_000), number("SHAPES", 10));
    fill(&server, nodes, pods, shapes);
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    server.write_kubeconfig(&kubeconfig).unwrap();
    let metrics = free_address();
    let program =
        std::env::var("CONTROLLER").unwrap_or_else(|_| env!("CARGO_BIN_EXE_mig-controller").to_owned());
    let mut command = Command::new(program);
    command.arg(format!("--kubeconfig={}", kubeconfig.display()));
    command.args([format!("--http-address={}", free_address()), format!("--metrics-address={metrics}")]);
    let started = Instant::now();
    let running = Running(command.spawn().unwrap());
    let status = || std::fs::read_to_string(format!("/proc/{}/status", running.0.id())).unwrap();
    let mut last = 0.0;
    while last < 200_f64.min(f64::from(u32::try_from(pods).unwrap()))
        && started.elapsed() < Duration::from_secs(400)
    {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let value = |sample: &str| metric(metrics, sample).unwrap_or_default();
        last = value(r#"dra_mig_controller_events_total{outcome="success"}"#);
        let memory: Vec<String> = status()
            .lines()
            .filter(|it| it.starts_with("VmHWM") || it.starts_with("VmRSS"))
            .map(str::to_owned)
            .collect();
        eprintln!(
            "{:?}: {last} events, {} explanations in {:.1} s, {} rounds in {:.1} s, {} waiting, {memory:?}",
            started.elapsed(),
            value(r#"dra_mig_controller_explanation_duration_seconds_count"#),
            value("dra_mig_controller_explanation_duration_seconds_sum"),
            value("dra_mig_controller_round_duration_seconds_count"),
            value("dra_mig_controller_round_duration_seconds_sum"),
            value("dra_mig_controller_waiting_pods"),
        );
    }
    assert!(0.0 < last);
}
