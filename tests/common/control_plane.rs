//! The API server of a test: the simulated one always, and a real one where `KUBEBUILDER_ASSETS` has its binaries.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use k8s_openapi::api::core::v1::Node;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use kube_sim::real::RealApiServer;
use kube_sim::{ApiServer, Options, Version};
use tempfile::TempDir;

/// An API server; it ends with its last clone.
#[derive(Clone)]
pub(crate) enum ControlPlane {
    Simulated(Arc<ApiServer>),
    Real(Arc<(RealApiServer, TempDir)>),
}

/// Runs a test against the simulated API server and, where there is one, against a real one.
pub(crate) async fn each_control_plane<F: Future<Output = ()>>(
    keeps_counters: bool,
    test: impl Fn(ControlPlane) -> F,
) {
    test(ControlPlane::simulated(keeps_counters).await).await;
    if let Some(real) = ControlPlane::real(keeps_counters).await {
        test(real).await;
    }
}

impl ControlPlane {
    pub(crate) async fn simulated(keeps_counters: bool) -> Self {
        Self::simulated_with(keeps_counters, false).await
    }

    /// One that keeps device taints, or not.
    pub(crate) async fn simulated_with(keeps_counters: bool, keeps_taints: bool) -> Self {
        let options = Options {
            partitionable_devices: keeps_counters,
            device_taints: keeps_taints,
            ..Options::default()
        };
        Self::Simulated(Arc::new(ApiServer::start(options).await.unwrap()))
    }

    /// One of Kubernetes 1.34 with the gate on, where counters belong to a slice and not to a pool.
    pub(crate) async fn simulated_1_34() -> Self {
        let options = Options { version: Version::V1_34, partitionable_devices: true, ..Options::default() };
        Self::Simulated(Arc::new(ApiServer::start(options).await.unwrap()))
    }

    /// A real one, where there are binaries for it.
    pub(crate) async fn real(keeps_counters: bool) -> Option<Self> {
        Self::real_with(keeps_counters, false).await
    }

    /// A real one that keeps device taints, or not.
    pub(crate) async fn real_with(keeps_counters: bool, keeps_taints: bool) -> Option<Self> {
        let start = move || {
            let directory = tempfile::tempdir().unwrap();
            let gates = format!("DRAPartitionableDevices={keeps_counters},DRADeviceTaints={keeps_taints}");
            let server = RealApiServer::start(directory.path(), &gates).unwrap();
            server.map(|it| Self::Real(Arc::new((it, directory))))
        };
        tokio::task::spawn_blocking(start).await.unwrap()
    }

    /// What a kubeconfig file for it says.
    pub(crate) fn kubeconfig(&self) -> String {
        match self {
            Self::Simulated(server) => {
                let file = tempfile::NamedTempFile::new().unwrap();
                server.write_kubeconfig(file.path()).unwrap();
                std::fs::read_to_string(file.path()).unwrap()
            }
            Self::Real(server) => std::fs::read_to_string(server.0.kubeconfig()).unwrap(),
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
        // As the kubelet labels it. An object that is created without any field of a manager has no managers later, either.
        node.metadata.labels = Some([("kubernetes.io/hostname".to_owned(), name.clone())].into());
        Api::<Node>::all(client.clone()).create(&PostParams::default(), &node).await.unwrap();
        name
    }
}
