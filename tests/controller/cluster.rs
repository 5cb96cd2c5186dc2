//! A cluster without a driver: nodes and what they publish are objects.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use kube_sim::{ApiServer, ControlPlane, Options, kinds, manifest};
use kubectl_mig::slices::{SlicesArgs, slices};
use mig_controller::args::Args;
use mig_controller::reasons::REASON;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// The cluster.
pub(crate) struct Cluster {
    pub(crate) server: ApiServer,
    directory: TempDir,
    _control: ControlPlane,
}

impl Cluster {
    /// With these nodes, each with GPUs as `kubectl mig slices --gpus` takes them, and the device classes that are shipped.
    pub(crate) async fn new(nodes: &[(&str, &str)]) -> Self {
        // As in `main`; in a build of the whole workspace rustls has two providers to choose from.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let options = Options { partitionable_devices: true, ..Options::default() };
        let server = ApiServer::start(options).await.unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        for class in manifest::load(&root.join("deploy/manifests/deviceclasses.yaml")).unwrap() {
            server.create(class).unwrap();
        }
        server
            .create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}))
            .unwrap();
        let directory = tempfile::tempdir().unwrap();
        server.write_kubeconfig(&directory.path().join("kubeconfig")).unwrap();
        let control = ControlPlane::start(&server);
        let cluster = Self { server, directory, _control: control };
        for (name, gpus) in nodes {
            cluster.add_node(name, gpus);
        }
        cluster
    }

    pub(crate) fn add_node(&self, name: &str, gpus: &str) {
        self.server.create(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})).unwrap();
        for slice in slices_of(name, gpus) {
            self.server.create(slice).unwrap();
        }
    }

    /// A pod with one claim of a class, from a template of that name, which is created where it is missing.
    pub(crate) fn add_pod(&self, name: &str, class: &str) {
        self.add_pod_in("team", name, class);
    }

    /// The same in another namespace.
    pub(crate) fn add_pod_in(&self, namespace: &str, name: &str, class: &str) {
        let devices = json!({"requests": [{"name": "gpu", "exactly": {"deviceClassName": class}}]});
        let template = json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate",
            "metadata": {"name": class, "namespace": namespace}, "spec": {"spec": {"devices": devices}},
        });
        // The first pod creates it.
        drop(self.server.create(template));
        let container = json!({"name": "main", "image": "i", "resources": {"claims": [{"name": "gpu"}]}});
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "containers": [container], "terminationGracePeriodSeconds": 0,
                "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": class}],
            },
        });
        self.server.create(pod).unwrap();
    }

    /// Waits until a pod has a node.
    pub(crate) async fn scheduled(&self, name: &str) {
        eventually(&format!("{name} has a node"), || {
            self.server.get(&kinds::POD, "team", name).unwrap()["spec"]["nodeName"].as_str().map(drop)
        })
        .await;
    }

    /// The events of the controller about a pod.
    pub(crate) fn reported(&self, pod: &str) -> Vec<Arc<Value>> {
        let mut events = self.server.list(&kinds::NEW_EVENT);
        events.retain(|it| it["reason"] == REASON && it["regarding"]["name"] == pod);
        events
    }

    /// The note of the event of a pod, once there is one.
    pub(crate) async fn note(&self, pod: &str) -> String {
        let note = || Some(self.reported(pod).first()?["note"].as_str().unwrap().to_owned());
        eventually(&format!("an event of {pod}"), note).await
    }

    /// Who holds the Lease.
    pub(crate) fn holder(&self) -> Option<String> {
        let lease = self.server.get(&kinds::LEASE, "default", "mig-controller").ok()?;
        let holder = lease["spec"]["holderIdentity"].as_str()?;
        (!holder.is_empty()).then(|| holder.to_owned())
    }

    /// Starts a controller.
    pub(crate) fn controller(&self, name: &str, extra: &[&str]) -> Controller {
        let (http, metrics) = (free_address(), free_address());
        let mut line = vec![
            "mig-controller".to_owned(),
            format!("--kubeconfig={}", self.directory.path().join("kubeconfig").display()),
            format!("--pod-name={name}"),
            format!("--http-address={http}"),
            format!("--metrics-address={metrics}"),
            "--patience=1".to_owned(),
            "--lease-duration=3".to_owned(),
        ];
        line.extend(extra.iter().map(|it| (*it).to_owned()));
        let stop = CancellationToken::new();
        let args = Args::try_parse_from(line).unwrap();
        let task = tokio::spawn(mig_controller::run(args, stop.clone()));
        Controller { http, metrics, stop, task }
    }
}

/// A running controller.
pub(crate) struct Controller {
    pub(crate) http: SocketAddr,
    pub(crate) metrics: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Controller {
    /// As SIGTERM does it.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// A metric's value, if it is shown.
    pub(crate) fn metric(&self, sample: &str) -> Option<f64> {
        metric(self.metrics, sample)
    }

    /// How many rounds there were.
    pub(crate) fn rounds(&self) -> f64 {
        self.metric("dra_mig_controller_round_duration_seconds_count").unwrap_or_default()
    }
}

/// The value of a metric that is served at an address.
pub(crate) fn metric(address: SocketAddr, sample: &str) -> Option<f64> {
    let text = get(address, "/metrics")?;
    let line = text.lines().find(|it| it.strip_prefix(sample).is_some_and(|it| it.starts_with(' ')))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// What a server answers to a GET: status line, headers and body.
pub(crate) fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Asks until there is an answer.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "not in {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[derive(Parser)]
struct Slices {
    #[command(flatten)]
    args: SlicesArgs,
}

/// What a node with these GPUs publishes, with counters.
fn slices_of(node: &str, gpus: &str) -> Vec<Value> {
    slices_with(&["--gpus", gpus, "--node", node])
}

/// What `kubectl mig slices` prints.
pub(crate) fn slices_with(flags: &[&str]) -> Vec<Value> {
    let line = ["slices"].iter().chain(flags);
    let args = Slices::try_parse_from(line).unwrap().args;
    slices(&args).unwrap().iter().map(|it| serde_json::to_value(it).unwrap()).collect()
}
