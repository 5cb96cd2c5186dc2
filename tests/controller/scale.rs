//! A large cluster: a thousand nodes with eight GPUs, and 5,000 pods that wait. Not run by default: it takes minutes and gigabytes.
//!
//! The controller is the program of production in a process of its own; this process is the API server. The pods are of all kinds of
//! shapes and namespaces, and half of the devices that nodes offer are allocated.
//!
//! ```text
//! cargo build --release -p mig-controller
//! CONTROLLER=target/release/mig-controller cargo test --release -p mig-controller --test controller scale:: -- --ignored --nocapture
//! ```
//! `NODES`, `PODS`, `SHAPES`, `SECONDS` and `LAYOUT` (empty: with counters) change the cluster, `FLAGS` the controller
//! (`--demand --default-auto`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use kube_sim::{ApiServer, Options, Part, kinds, manifest};
use kubectl_mig::template::{NodeTemplate, TemplateArgs};
use mig_model::facts::NodeFacts;
use mig_model::inventory::{OfferPolicy, inventory_on};
use mig_model::mig_node::{Observed, PublishingMode, describe, summary};
use serde_json::{Value, json};

use crate::cluster::{free_address, metric};

const DRIVER: &str = "mig.dra-driver.dev";
/// Longest decision about nodes.
const LONGEST_DECISION: f64 = 2.0;
/// Most memory of the controller.
const MOST_MEMORY: u64 = 256 << 10;

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

impl Running {
    /// A line of the status of the process, in kB.
    fn memory(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let text = status.lines().find_map(|it| it.strip_prefix(line)).unwrap();
        text.trim_matches(|it: char| !it.is_ascii_digit()).parse().unwrap()
    }

    /// CPU time so far, in seconds.
    fn cpu(&self) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        let (_, fields) = text.rsplit_once(')').unwrap();
        let ticks: u32 =
            fields.split_whitespace().skip(11).take(2).map(|it| it.parse::<u32>().unwrap()).sum();
        f64::from(ticks) / 100.0
    }
}

/// What a node publishes and reports.
struct Template {
    slices: Vec<Value>,
    status: Value,
    /// Devices that claims have.
    held: Vec<String>,
}

impl Template {
    /// A node of which some of the devices are allocated.
    fn new(layout: Option<String>, chance: &mut Chance) -> Self {
        let models = kubectl_mig::template::gpus("8xH100-80GB").unwrap().models;
        let is_counted = layout.is_none();
        let args = TemplateArgs { layout, ..TemplateArgs::default() };
        let node = NodeTemplate::new(&models, &args, is_counted).unwrap();
        let slices = node.slices(DRIVER, "node", None);
        let names: Vec<String> =
            slices.iter().flat_map(|it| it.spec.devices.iter().flatten()).map(|it| it.name.clone()).collect();
        // What the GPUs could be partitioned into, whatever is published.
        let inventory = inventory_on(&NodeFacts::default(), &node.gpus, &OfferPolicy::default());
        let mut held = BTreeMap::new();
        for gpu in &inventory.gpus {
            let mut left = gpu.counters.clone();
            for device in &gpu.devices {
                let fits =
                    device.consumes.iter().all(|(name, it)| *it <= left.get(name).copied().unwrap_or(0));
                if fits && names.contains(&device.name.to_string()) && chance.below(2) == 0 {
                    for (name, it) in &device.consumes {
                        *left.get_mut(name).unwrap() -= it;
                    }
                    held.insert(device.name.to_string(), None);
                }
            }
        }
        let gpus = describe(&Observed {
            gpus: &node.gpus,
            policy: &OfferPolicy::default(),
            inventory: &inventory,
            published: &names.iter().cloned().collect(),
            held: &held,
            problems: &BTreeMap::new(),
            is_counted,
        });
        let mode = if is_counted { PublishingMode::Partitionable } else { PublishingMode::Layout };
        let status = json!({
            "mode": mode, "observedGeneration": 1, "summary": summary(&gpus, is_counted), "gpus": gpus, "conditions": [],
        });
        let slices = slices.iter().map(|it| serde_json::to_value(it).unwrap()).collect();
        Self { slices, status, held: held.into_keys().collect() }
    }
}

/// Numbers that are the same each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % most
    }
}

/// The same object of another node: its name, and UUIDs that no other has.
fn of_node(value: &Value, node: usize) -> Value {
    let text = value.to_string();
    let uuid = format!("GPU-{node:08x}-");
    let text = text.replace("GPU-00000000-", &uuid).replace("\"node\"", &format!("\"{}\"", name(node)));
    let text = text.replace("node/mig.dra", &format!("{}/mig.dra", name(node)));
    serde_json::from_str(&text.replace("-node\"", &format!("-{}\"", name(node)))).unwrap()
}

fn name(node: usize) -> String {
    format!("node-{node:04}")
}

fn add_node(server: &ApiServer, index: usize, template: &Template) {
    let name = name(index);
    // As many labels as feature discovery sets on a node with GPUs.
    let mut labels: BTreeMap<String, String> = (0..40)
        .map(|it| (format!("feature.node.kubernetes.io/cpu-cpuid.FEATURE{it}"), "true".to_owned()))
        .collect();
    labels.insert("zone".to_owned(), format!("z{}", index % 3));
    labels.insert("kubernetes.io/hostname".to_owned(), name.clone());
    server
        .create(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}))
        .unwrap();
    for slice in &template.slices {
        server.create(of_node(slice, index)).unwrap();
    }
    let mig = json!({"apiVersion": "mig.dra-driver.dev/v1alpha1", "kind": "MigNode", "metadata": {"name": name}, "spec": {}});
    server.create(mig).unwrap();
    let status = json!({"status": of_node(&template.status, index)});
    server.patch(&kinds::MIG_NODE, "", &name, Part::Status, status).unwrap();
    for (number, device) in template.held.iter().enumerate() {
        let claim = format!("running-{index}-{number}");
        let requests = json!([{"name": "gpu", "exactly": {"deviceClassName": "mig.dra-driver.dev"}}]);
        let object = json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": {"name": claim, "namespace": format!("team-{}", number % 20)},
            "spec": {"devices": {"requests": requests}},
        });
        server.create(object).unwrap();
        let results = json!([{"request": "gpu", "driver": DRIVER, "pool": format!("{name}/{DRIVER}"), "device": device}]);
        let term = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]});
        let allocation =
            json!({"devices": {"results": results}, "nodeSelector": {"nodeSelectorTerms": [term]}});
        let pod = json!({"resource": "pods", "name": claim, "uid": format!("uid-{claim}")});
        let status = json!({"status": {"allocation": allocation, "reservedFor": [pod]}});
        let namespace = format!("team-{}", number % 20);
        server.patch(&kinds::RESOURCE_CLAIM, &namespace, &claim, Part::Status, status).unwrap();
    }
}

fn add_pod(server: &ApiServer, index: usize, shapes: usize, chance: &mut Chance) {
    let classes = [
        "mig-1g.10gb",
        "mig-1g.10gb",
        "mig-2g.20gb",
        "mig-3g.40gb",
        "mig-4g.40gb",
        "mig-7g.80gb",
        "gpu.dra-driver.dev",
    ];
    let class = classes[chance.below(classes.len())];
    let (name, namespace) = (format!("pod-{index:05}"), format!("team-{}", chance.below(20)));
    let count = if chance.below(20) == 0 { 2 } else { 1 };
    let devices =
        json!({"requests": [{"name": "gpu", "exactly": {"deviceClassName": class, "count": count}}]});
    let claim = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": name, "namespace": namespace},
        "spec": {"devices": devices},
    });
    server.create(claim).unwrap();
    // Pods of one shape differ in their claims only.
    let memory = format!("{}Mi", 1 + index % shapes);
    let resources = json!({"claims": [{"name": "gpu"}], "requests": {"memory": memory}});
    let env: Vec<Value> =
        (0..20).map(|it| json!({"name": format!("VARIABLE_{it}"), "value": "x".repeat(30)})).collect();
    let mut spec = json!({
        "containers": [{"name": "main", "image": "i", "resources": resources, "env": env}],
        "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": class}],
    });
    if chance.below(5) == 0 {
        spec["nodeSelector"] = json!({"zone": format!("z{}", chance.below(3))});
    }
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": spec});
    server.create(pod).unwrap();
    let status = json!({"status": {
        "resourceClaimStatuses": [{"name": "gpu", "resourceClaimName": name}],
        "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/1000 nodes are available: 1000 cannot allocate all claims.", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    }});
    server.patch(&kinds::POD, &namespace, &name, Part::Status, status).unwrap();
}

fn fill(server: &ApiServer, nodes: usize, pods: usize, shapes: usize) {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for file in ["deploy/manifests/deviceclasses.yaml", "deploy/manifests/crd.yaml"] {
        for object in manifest::load(&root.join(file)).unwrap() {
            server.create(object).unwrap();
        }
    }
    for team in 0..20 {
        let name = format!("team-{team}");
        server.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})).unwrap();
    }
    let layout = std::env::var("LAYOUT").unwrap_or_else(|_| "all-balanced".to_owned());
    let layout = (!layout.is_empty()).then_some(layout);
    let mut chance = Chance(7);
    // Each is in use differently.
    let templates: Vec<Template> = (0..25).map(|_| Template::new(layout.clone(), &mut chance)).collect();
    for index in 0..nodes {
        add_node(server, index, &templates[index % templates.len()]);
    }
    for index in 0..pods {
        add_pod(server, index, shapes, &mut chance);
    }
}

/// What was written, by verb and resource.
fn writes(server: &ApiServer) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for request in server.requests().iter().filter(|it| it.method != "GET") {
        let resource = request
            .path
            .trim_matches('/')
            .split('/')
            .rfind(|it| ["mignodes", "events", "leases", "pods", "resourceclaims"].contains(it));
        *counts.entry(format!("{} {}", request.method, resource.unwrap_or(&request.path))).or_default() += 1;
    }
    counts
}

/// Nodes whose MigNode was written, and how often the most written one was.
fn written(server: &ApiServer) -> (BTreeSet<String>, usize) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for request in server.requests().iter().filter(|it| it.method == "PATCH") {
        if let Some((_, name)) = request.path.split_once("/mignodes/") {
            *counts.entry(name.to_owned()).or_default() += 1;
        }
    }
    let most = counts.values().copied().max().unwrap_or(0);
    (counts.into_keys().collect(), most)
}

/// What has come of it so far.
fn report(server: &ApiServer, running: &Running, metrics: SocketAddr, since: Instant) -> String {
    let value = |sample: &str| metric(metrics, sample).unwrap_or_default();
    let timed = |what: &str| {
        let of = |part: &str| value(&format!("dra_mig_controller_{what}_duration_seconds_{part}"));
        format!("{} {what}s in {:.2} s", of("count"), of("sum"))
    };
    format!(
        "{:.0?}: {}, {}, {}; CPU {:.2} s; VmHWM {} MiB, VmRSS {} MiB; {} waiting; {:?}",
        since.elapsed(),
        timed("decision"),
        timed("explanation"),
        timed("round"),
        running.cpu(),
        running.memory("VmHWM:") >> 10,
        running.memory("VmRSS:") >> 10,
        value("dra_mig_controller_waiting_pods"),
        writes(server),
    )
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn a_thousand_nodes_and_five_thousand_pods() {
    let partitionable = std::env::var("LAYOUT").is_ok_and(|it| it.is_empty());
    let options = Options { partitionable_devices: partitionable, ..Options::default() };
    let server = ApiServer::start(options).await.unwrap();
    let (nodes, pods, shapes) = (number("NODES", 1_000), number("PODS", 5_000), number("SHAPES", 10));
    fill(&server, nodes, pods, shapes);
    eprintln!("{nodes} nodes, {} claims, {pods} pods", server.list(&kinds::RESOURCE_CLAIM).len());
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    server.write_kubeconfig(&kubeconfig).unwrap();
    let metrics = free_address();
    let program =
        std::env::var("CONTROLLER").unwrap_or_else(|_| env!("CARGO_BIN_EXE_mig-controller").to_owned());
    let mut command = Command::new(program);
    command.arg(format!("--kubeconfig={}", kubeconfig.display()));
    command.args([format!("--http-address={}", free_address()), format!("--metrics-address={metrics}")]);
    let flags = std::env::var("FLAGS").unwrap_or_else(|_| "--demand --default-auto".to_owned());
    command.args(flags.split_whitespace());
    let started = Instant::now();
    let running = Running(command.spawn().unwrap());
    let last = Duration::from_secs(u64::try_from(number("SECONDS", 60)).unwrap());
    while started.elapsed() < last {
        tokio::time::sleep(Duration::from_secs(2)).await;
        eprintln!("{}", report(&server, &running, metrics, started));
    }
    let value = |sample: &str| metric(metrics, sample).unwrap_or_default();
    let changes = value(r#"dra_mig_controller_spec_writes_total{reason="change",outcome="success"}"#);
    let (written, most) = written(&server);
    let changed: BTreeSet<String> = server
        .list(&kinds::MIG_NODE)
        .iter()
        .filter(|it| !it["spec"]["demand"].is_null())
        .map(|it| it["metadata"]["name"].as_str().unwrap().to_owned())
        .collect();
    eprintln!("{changes} changes; {} nodes written, one of them {most} times", written.len());
    if flags.contains("--demand") && !partitionable {
        assert!(0.0 < changes);
        assert_eq!(written, changed, "only nodes that change are written");
    }
    let decisions = value("dra_mig_controller_decision_duration_seconds_count");
    let decided = value("dra_mig_controller_decision_duration_seconds_sum");
    assert!(decided <= LONGEST_DECISION * decisions, "{decisions} decisions in {decided} s");
    assert!(running.memory("VmHWM:") <= MOST_MEMORY, "{} kB", running.memory("VmHWM:"));
}
