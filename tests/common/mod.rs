//! What the integration tests share: a simulated node, a control plane, and the driver between them.
//!
//! Everything is real but the hardware: the driver's own `node::run` on real sockets, over a copy of the simulated
//! library, against an API server over HTTP.
#![allow(dead_code, unused_imports, reason = "each test file uses its part")]

mod control_plane;
mod kubelet;
pub(crate) mod points;
mod random;
mod scrape;
pub(crate) mod shim;
pub(crate) mod victim;

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use clap::Parser;
use dra_driver_mig::args::{Cli, Command};
use dra_driver_mig::node;
use dra_driver_mig::node::NodeArgs;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceSlice};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use kube_sim::kubelet::{Claim, KubeletClient, Plugin};
use nvml_sim::SimNode;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

pub(crate) use control_plane::{ControlPlane, each_control_plane};
pub(crate) use kubelet::{is_soak, prepare, promised, try_prepare, try_unprepare, unprepare};
pub(crate) use random::Random;
pub(crate) use scrape::{Sample, Scrape, get, samples, scrape, scrape_as};

pub(crate) const DRIVER: &str = "mig.dra-driver.dev";

/// Longest wait for something that must happen; far above what it takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// The root of this repository.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Notes of the node's events with this reason, oldest first.
pub(crate) async fn node_events(lab: &Lab, reason: &str) -> Vec<String> {
    let events: Api<Event> = Api::namespaced(lab.client.clone(), "default");
    let mut found: Vec<Event> = events.list(&ListParams::default()).await.unwrap().items;
    found.retain(|it| {
        it.regarding.as_ref().and_then(|it| it.name.as_ref()) == Some(&lab.node_name)
            && it.reason.as_deref() == Some(reason)
    });
    found.sort_by_key(|it| it.event_time.as_ref().map(|it| it.0));
    found.into_iter().filter_map(|it| it.note).collect()
}

/// A node with simulated GPUs and, while it runs, the driver.
pub(crate) struct Lab {
    pub(crate) directory: TempDir,
    pub(crate) sim: SimNode,
    pub(crate) plane: ControlPlane,
    pub(crate) client: Client,
    pub(crate) node_name: String,
    extra: Vec<String>,
    metrics: String,
    running: Option<(CancellationToken, JoinHandle<anyhow::Result<()>>)>,
}

impl Lab {
    /// A node with these GPUs, known to the API server. The driver does not run yet.
    pub(crate) async fn new(plane: ControlPlane, gpus: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let models = nvml_sim::parse_gpus(gpus).unwrap();
        let sim = SimNode::create(&directory.path().join("host"), &models).unwrap();
        let kubeconfig = directory.path().join("kubeconfig");
        std::fs::write(&kubeconfig, plane.kubeconfig()).unwrap();
        let client = plane.client().await;
        let node_name = plane.create_node(&client).await;
        Self {
            directory,
            sim,
            plane,
            client,
            node_name,
            extra: Vec::new(),
            metrics: "127.0.0.1:0".to_owned(),
            running: None,
        }
    }

    /// The same with further arguments for the driver.
    pub(crate) fn with_args(mut self, extra: &[&str]) -> Self {
        self.extra = extra.iter().map(|it| (*it).to_owned()).collect();
        self
    }

    /// Further arguments from the next start on.
    pub(crate) fn set_args(&mut self, extra: &[&str]) {
        self.extra = extra.iter().map(|it| (*it).to_owned()).collect();
    }

    /// The same with metrics at an address that is known, and further arguments for the driver.
    pub(crate) fn with_metrics(mut self, extra: &[&str]) -> (Self, SocketAddr) {
        let address = free_address();
        self.metrics = address.to_string();
        (self.with_args(extra), address)
    }

    /// The same with metrics at this address.
    pub(crate) fn with_metrics_at(mut self, address: SocketAddr) -> Self {
        self.metrics = address.to_string();
        self
    }

    /// Starts the driver.
    pub(crate) fn start(&mut self) {
        let stop = CancellationToken::new();
        let running = tokio::spawn(node::run(self.args(), stop.clone()));
        self.running = Some((stop, running));
    }

    /// Starts the driver as a process of its own, for tests in which it crashes.
    pub(crate) fn spawn(&self) -> Child {
        self.command().stderr(Stdio::null()).spawn().unwrap()
    }

    /// The command that starts the driver.
    pub(crate) fn command(&self) -> std::process::Command {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_dra-driver-mig"));
        command.args(&self.command_line()[1..]);
        command
    }

    /// Starts the driver as a pod of a DaemonSet: with a UID, and an address of its own, which is returned.
    pub(crate) fn spawn_pod(&self, uid: &str) -> (Child, SocketAddr) {
        self.spawn_pod_with(uid, &[])
    }

    /// The same with further arguments for this pod.
    pub(crate) fn spawn_pod_with(&self, uid: &str, extra: &[&str]) -> (Child, SocketAddr) {
        let address = free_address();
        let mut line = self.command_line().split_off(1);
        let http = line.iter().position(|it| it == "--http-address").unwrap();
        line[http + 1] = address.to_string();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_dra-driver-mig"));
        command.args(line).args(["--pod-uid", uid]).args(extra);
        (command.stderr(Stdio::null()).spawn().unwrap(), address)
    }

    /// What `dra-driver-mig inspect -o json` says of this node.
    pub(crate) fn inspect(&self) -> Value {
        let host = self.directory.path().join("host");
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_dra-driver-mig"));
        command.args(["inspect", "-o", "json", "--plugins-dir"]).arg(self.path("plugins"));
        command.arg("--driver-root").arg(&host).arg("--proc-root").arg(host.join("proc"));
        command.arg("--sys-root").arg(host.join("sys"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Stops the driver as SIGTERM would.
    pub(crate) async fn stop(&mut self) {
        let (stop, running) = self.running.take().expect("the driver runs");
        stop.cancel();
        timeout(PATIENCE, running).await.expect("the driver stops").unwrap().unwrap();
    }

    pub(crate) fn args(&self) -> NodeArgs {
        match Cli::parse_from(self.command_line()).command {
            Command::Node(args) => *args,
            _ => unreachable!("the command line says node"),
        }
    }

    fn command_line(&self) -> Vec<String> {
        let host = self.directory.path().join("host");
        let path = |it: &str| self.directory.path().join(it).display().to_string();
        let in_host = |it: &str| host.join(it).display().to_string();
        let mut line: Vec<String> = ["dra-driver-mig", "node"].map(str::to_owned).into();
        if !self.extra.iter().any(|it| it == "--http-address") {
            line.extend(["--http-address", "127.0.0.1:0"].map(str::to_owned));
        }
        let paths = [
            ("--node-name", self.node_name.clone()),
            ("--kubeconfig", path("kubeconfig")),
            ("--driver-root", in_host("")),
            ("--dev-root", in_host("")),
            ("--host-root", in_host("")),
            ("--proc-root", in_host("proc")),
            ("--sys-root", in_host("sys")),
            ("--cdi-root", path("cdi")),
            ("--plugins-dir", path("plugins")),
            ("--registry-dir", path("registry")),
            ("--metrics-address", self.metrics.clone()),
        ];
        line.extend(paths.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
        line.extend(self.extra.iter().cloned());
        line
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn slices_api(&self) -> Api<ResourceSlice> {
        Api::all(self.client.clone())
    }

    /// This node's slices, by name.
    pub(crate) async fn slices(&self) -> Vec<ResourceSlice> {
        let selector = format!("spec.nodeName={}", self.node_name);
        let mut found = self.slices_api().list(&ListParams::default().fields(&selector)).await.unwrap().items;
        found.sort_by(|left, right| left.metadata.name.cmp(&right.metadata.name));
        found
    }

    /// This node's slices once they are what `accept` wants.
    pub(crate) async fn slices_when(&self, accept: impl Fn(&[ResourceSlice]) -> bool) -> Vec<ResourceSlice> {
        eventually("the slices are as expected", async || {
            let slices = self.slices().await;
            accept(&slices).then_some(slices)
        })
        .await
    }

    /// The kubelet's connection to the driver, made as the kubelet makes it.
    pub(crate) async fn kubelet(&self) -> Plugin {
        // A crashed predecessor leaves its socket, which is refused until the driver has put its own there.
        eventually("the kubelet reaches the driver", async || {
            KubeletClient::register(&self.path("registry")).await.ok()
        })
        .await
    }

    /// A claim to which these devices are allocated, as (request, driver, device).
    pub(crate) async fn claim(&self, name: &str, results: &[(&str, &str, &str)]) -> Claim {
        let results: Vec<Value> = results
            .iter()
            .map(|(request, driver, device)| {
                let pool = format!("{}/{driver}", self.node_name);
                json!({"request": request, "driver": driver, "pool": pool, "device": device})
            })
            .collect();
        self.claim_with(name, json!({"results": results})).await
    }

    /// A claim with this `status.allocation.devices`.
    pub(crate) async fn claim_with(&self, name: &str, devices: Value) -> Claim {
        let name = format!("{name}-{}", self.node_name);
        let results = devices["results"].as_array().cloned().unwrap_or_default();
        let mut names: Vec<&str> =
            results.iter().filter_map(|it| it["request"].as_str()?.split('/').next()).collect();
        names.dedup();
        let requests: Vec<Value> = names
            .into_iter()
            .map(|it| json!({"name": it, "exactly": {"deviceClassName": "any.example.com", "count": results.len()}}))
            .collect();
        let object = json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": {"name": name}, "spec": {"devices": {"requests": requests}},
        });
        let api: Api<ResourceClaim> = Api::namespaced(self.client.clone(), "default");
        let created =
            api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
        let status = Patch::Merge(json!({"status": {"allocation": {"devices": devices}}}));
        api.patch_status(&name, &PatchParams::default(), &status).await.unwrap();
        Claim { namespace: "default".to_owned(), name, uid: created.metadata.uid.unwrap() }
    }

    /// Gives a claim other devices, as the scheduler does once it was deallocated.
    pub(crate) async fn reallocate(&self, claim: &Claim, devices: &[&str]) {
        let pool = format!("{}/{DRIVER}", self.node_name);
        let result = |it: &&str| json!({"request": "gpu", "driver": DRIVER, "pool": pool, "device": it});
        let results: Vec<Value> = devices.iter().map(result).collect();
        let api: Api<ResourceClaim> = Api::namespaced(self.client.clone(), &claim.namespace);
        for allocation in [Value::Null, json!({"devices": {"results": results}})] {
            let status = Patch::Merge(json!({"status": {"allocation": allocation}}));
            api.patch_status(&claim.name, &PatchParams::default(), &status).await.unwrap();
        }
    }

    /// The claim that has one of this node's devices.
    pub(crate) async fn claim_of(&self, name: &str, device: &str) -> Claim {
        self.claim(name, &[("gpu", DRIVER, device)]).await
    }

    /// Reserves a claim for these consumers, as the scheduler and the controller of claims do: resource and name.
    pub(crate) async fn reserve(&self, claim: &Claim, consumers: &[(&str, &str)]) {
        let consumer = |(resource, name): &(&str, &str)| {
            let group = if *resource == "pods" { "" } else { "scheduling.k8s.io" };
            json!({"apiGroup": group, "resource": resource, "name": name, "uid": format!("uid-{name}")})
        };
        let consumers: Vec<Value> = consumers.iter().map(consumer).collect();
        let status = Patch::Merge(json!({"status": {"reservedFor": consumers}}));
        let api: Api<ResourceClaim> = Api::namespaced(self.client.clone(), &claim.namespace);
        api.patch_status(&claim.name, &PatchParams::default(), &status).await.unwrap();
    }

    /// Deletes a claim, as Kubernetes does with one that was made for a pod that has ended.
    pub(crate) async fn delete_claim(&self, claim: &Claim) {
        let api: Api<ResourceClaim> = Api::namespaced(self.client.clone(), &claim.namespace);
        api.delete(&claim.name, &DeleteParams::default()).await.unwrap();
    }

    /// Live GPU instances as the hardware has them: GPU, profile, start.
    pub(crate) fn instances(&self) -> Vec<(usize, String, u32)> {
        let gpus = self.sim.snapshot().unwrap().gpus;
        let instances = gpus.into_iter().enumerate().flat_map(|(index, gpu)| {
            gpu.gpu_instances.into_iter().map(move |it| (index, it.profile, it.start)).collect::<Vec<_>>()
        });
        instances.collect()
    }

    /// The beginning of the names of a GPU's devices, `gpu-0000-1a-00`.
    pub(crate) fn gpu_name(&self, gpu: usize) -> String {
        let pci = self.sim.snapshot().unwrap().gpus[gpu].pci.replace([':', '.'], "-");
        format!("gpu-{}", pci.strip_suffix("-0").unwrap())
    }

    /// UIDs of the claims with a state file.
    pub(crate) fn recorded(&self) -> Vec<String> {
        let files = self.files("plugins/mig.dra-driver.dev/claims");
        files.iter().filter_map(|it| it.strip_suffix(".jsonl").map(str::to_owned)).collect()
    }

    /// UIDs of the claims with a CDI file; what is being written has no such name yet.
    pub(crate) fn in_cdi(&self) -> Vec<String> {
        let prefix = format!("{DRIVER}-claim_");
        let uid = |it: &String| Some(it.strip_prefix(&prefix)?.strip_suffix(".json")?.to_owned());
        self.files("cdi").iter().filter_map(uid).collect()
    }

    /// What there is of claims on the node: instances, CDI files, state files.
    pub(crate) fn left(&self) -> Vec<String> {
        let instances = self.instances();
        let instances =
            instances.iter().map(|(gpu, profile, start)| format!("{profile} at {start} of GPU {gpu}"));
        let mut left: Vec<String> = instances.chain(self.files("cdi")).chain(self.state_files()).collect();
        left.sort();
        left
    }

    /// Names of the state files of claims, whatever they are; the lock that all share is not one.
    pub(crate) fn state_files(&self) -> Vec<String> {
        let mut files = self.files(&format!("plugins/{DRIVER}/claims"));
        files.retain(|it| !it.ends_with(".lock"));
        files
    }

    /// Names of the files in a directory of this lab.
    pub(crate) fn files(&self, directory: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(directory)) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.map(|it| it.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

/// An address that was free a moment ago: the driver cannot be handed a listener. It is below those that the kernel gives to
/// a process that asks for any, so that no other process gets it before the driver takes it; processes begin at different ones.
pub(crate) fn free_address() -> SocketAddr {
    const PORTS: std::ops::Range<u32> = 12_000..32_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut candidates = std::iter::repeat_with(|| {
        let next = std::process::id().wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        u16::try_from(PORTS.start + next % (PORTS.end - PORTS.start)).unwrap()
    });
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    SocketAddr::from(([127, 0, 0, 1], candidates.find(is_free).unwrap()))
}

/// Names of all devices in slices.
pub(crate) fn device_names(slices: &[ResourceSlice]) -> Vec<&str> {
    slices.iter().flat_map(|it| it.spec.devices.iter().flatten()).map(|it| it.name.as_str()).collect()
}

/// True where the slices are one complete pool.
pub(crate) fn is_complete(slices: &[ResourceSlice]) -> bool {
    let Some(first) = slices.first() else { return false };
    let count = i64::try_from(slices.len()).unwrap();
    slices.iter().all(|it| it.spec.pool == first.spec.pool && it.spec.pool.resource_slice_count == count)
}

/// Polls until there is a value, and fails the test if there is none in time.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut probe: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(Instant::now() < deadline, "in {} s it did not happen that {what}", PATIENCE.as_secs());
        sleep(Duration::from_millis(20)).await;
    }
}

/// A file as JSON.
pub(crate) fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}
