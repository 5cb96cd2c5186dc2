//! How the programs that run in a cluster, the driver of a node and the controller, reach the API server.

use std::path::Path;

use kube::Config;
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig file cannot be used.
    #[error("cannot use the kubeconfig `{path}`: {source}")]
    Kubeconfig {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: KubeconfigError,
    },
    /// No kubeconfig was given and this is not a pod.
    #[error("not in a pod ({0}); give --kubeconfig to run outside of Kubernetes")]
    InCluster(#[from] InClusterError),
    /// The client could not be set up.
    #[error("cannot set up the Kubernetes client: {0}")]
    Client(#[from] kube::Error),
}

/// How to reach the API server: from a kubeconfig file, or from the pod's service account where none is given. The client tries nothing
/// again: retries belong to the caller, who knows how much time is left.
///
/// # Errors
/// [`ClientError`].
pub async fn client_config(kubeconfig: Option<&Path>) -> Result<Config, ClientError> {
    let mut config = match kubeconfig {
        None => Config::incluster()?,
        Some(path) => {
            let wrap = |source| ClientError::Kubeconfig { path: path.display().to_string(), source };
            let file = Kubeconfig::read_from(path).map_err(wrap)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(wrap)?
        }
    };
    config.default_retry = false;
    Ok(config)
}
