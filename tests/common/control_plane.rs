//! The API server of a test: the simulated one always, and a real one where `KUBEBUILDER_ASSETS` has its binaries.
//!
//! A real kube-apiserver takes seconds to start, so the tests of one binary share one for each setting of the feature
//! gate, and use node names of their own. It ends with the test process: each server is the child of a shell that waits
//! for the end of its standard input.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use kube_sim::{ApiServer, Options};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep};

/// An API server.
#[derive(Clone)]
pub(crate) enum ControlPlane {
    Simulated(Arc<ApiServer>),
    Real(&'static RealServer),
}

/// Runs a test against the simulated API server and, where there is one, against a real one.
pub(crate) async fn each_control_plane<F: Future<Output = ()>>(
    keeps_counters: bool,
    test: impl Fn(ControlPlane) -> F,
) {
    test(ControlPlane::simulated(keeps_counters).await).await;
    if let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS") {
        static WITH_GATE: OnceCell<RealServer> = OnceCell::const_new();
        static WITHOUT_GATE: OnceCell<RealServer> = OnceCell::const_new();
        let cell = if keeps_counters { &WITH_GATE } else { &WITHOUT_GATE };
        let server = cell.get_or_init(|| RealServer::start(PathBuf::from(assets), keeps_counters)).await;
        test(ControlPlane::Real(server)).await;
    }
}

impl ControlPlane {
    pub(crate) async fn simulated(keeps_counters: bool) -> Self {
        let options = Options { partitionable_devices: keeps_counters, ..Options::default() };
        Self::Simulated(Arc::new(ApiServer::start(options).await.unwrap()))
    }

    pub(crate) fn kubeconfig(&self) -> String {
        match self {
            Self::Simulated(server) => kubeconfig(&server.url(), ""),
            Self::Real(server) => kubeconfig(&server.url, TOKEN),
        }
    }

    pub(crate) async fn client(&self) -> Client {
        // Several providers are in the graph of the tests; the one of the driver is chosen.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let file = Kubeconfig::from_yaml(&self.kubeconfig()).unwrap();
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
        Client::try_from(config).unwrap()
    }

    /// Creates a Node with a name that no other test has, and returns the name.
    pub(crate) async fn create_node(&self, client: &Client) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("node-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut node = Node::default();
        node.metadata.name = Some(name.clone());
        Api::<Node>::all(client.clone()).create(&PostParams::default(), &node).await.unwrap();
        name
    }
}

/// A real kube-apiserver with its etcd.
pub(crate) struct RealServer {
    url: String,
    _directory: TempDir,
}

const TOKEN: &str = "test-token";

impl RealServer {
    async fn start(assets: PathBuf, keeps_counters: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let in_directory = |name: &str| directory.path().join(name).display().to_string();
        let [etcd, peers, port] = free_ports();
        std::fs::write(in_directory("tokens.csv"), format!("{TOKEN},admin,admin,system:masters\n")).unwrap();
        let key = in_directory("service-account.key");
        let made =
            Command::new("openssl").args(["genrsa", "-out", &key, "2048"]).stderr(Stdio::null()).status();
        assert!(made.unwrap().success(), "openssl makes a key for service accounts");

        let (etcd_url, peer_url) = (format!("http://127.0.0.1:{etcd}"), format!("http://127.0.0.1:{peers}"));
        run_until_exit(
            &assets.join("etcd"),
            &[
                format!("--data-dir={}", in_directory("etcd")),
                format!("--listen-client-urls={etcd_url}"),
                format!("--advertise-client-urls={etcd_url}"),
                format!("--listen-peer-urls={peer_url}"),
                format!("--initial-advertise-peer-urls={peer_url}"),
                format!("--initial-cluster=default={peer_url}"),
                "--unsafe-no-fsync".to_owned(),
            ],
            &directory.path().join("etcd.log"),
        );
        run_until_exit(
            &assets.join("kube-apiserver"),
            &[
                format!("--etcd-servers={etcd_url}"),
                format!("--secure-port={port}"),
                "--bind-address=127.0.0.1".to_owned(),
                "--advertise-address=127.0.0.1".to_owned(),
                format!("--cert-dir={}", in_directory("certificates")),
                format!("--token-auth-file={}", in_directory("tokens.csv")),
                format!("--service-account-key-file={key}"),
                format!("--service-account-signing-key-file={key}"),
                "--service-account-issuer=https://test".to_owned(),
                "--authorization-mode=RBAC".to_owned(),
                format!("--feature-gates=DRAPartitionableDevices={keeps_counters}"),
            ],
            &directory.path().join("kube-apiserver.log"),
        );
        let server = Self { url: format!("https://127.0.0.1:{port}"), _directory: directory };
        server.wait_until_ready().await;
        server
    }

    async fn wait_until_ready(&'_ self) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let file = Kubeconfig::from_yaml(&kubeconfig(&self.url, TOKEN)).unwrap();
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
        let client = Client::try_from(config).unwrap();
        let deadline = Instant::now() + Duration::from_secs(120);
        let ready = || http::Request::get("/readyz").body(Vec::new()).unwrap();
        while client.request_text(ready()).await.is_err() {
            assert!(Instant::now() < deadline, "kube-apiserver is not ready after two minutes");
            sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Starts a program that ends when this process does.
fn run_until_exit(program: &Path, arguments: &[String], log: &Path) {
    let log = std::fs::File::create(log).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec 3<&0; \"$@\" <&- & server=$!; cat <&3 >/dev/null; kill $server", "sh"]);
    shell.arg(program).args(arguments).stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log);
    // Dropping the child would close its standard input and so end the server.
    std::mem::forget(shell.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display())));
}

fn free_ports<const N: usize>() -> [u16; N] {
    let listeners: [_; N] = std::array::from_fn(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|it| it.local_addr().unwrap().port())
}

fn kubeconfig(url: &str, token: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         clusters: [{{name: test, cluster: {{server: \"{url}\", insecure-skip-tls-verify: true}}}}]\n\
         users: [{{name: test, user: {{token: \"{token}\"}}}}]\n\
         contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n"
    )
}
