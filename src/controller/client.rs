//! The client of the API server.

use std::path::Path;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// How long the API server may send nothing; a watch sends something, or ends, within 295 s.
const READ_TIMEOUT: Duration = Duration::from_secs(330);

/// Field manager of what the controller writes.
pub const MANAGER: &str = "mig-controller";

/// Longest wait for one answer: what is left of a Lease when its holder stops acting.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig file cannot be used.
    #[error("cannot use the kubeconfig `{path}`: {source}")]
    Kubeconfig {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: kube::config::KubeconfigError,
    },
    /// No kubeconfig was given and this is not a pod.
    #[error("not in a pod ({0}); give --kubeconfig to run outside of Kubernetes")]
    InCluster(#[from] kube::config::InClusterError),
    /// The client could not be set up.
    #[error("cannot set up the Kubernetes client: {0}")]
    Client(#[from] kube::Error),
}

/// A client from a kubeconfig file, or from the pod's service account where none is given.
///
/// # Errors
/// [`ClientError`].
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, ClientError> {
    let mut config = match kubeconfig {
        None => Config::incluster()?,
        Some(path) => {
            let wrap = |source| ClientError::Kubeconfig { path: path.display().to_string(), source };
            let file = Kubeconfig::read_from(path).map_err(wrap)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(wrap)?
        }
    };
    // Every caller tries again itself.
    config.default_retry = false;
    config.read_timeout = Some(READ_TIMEOUT);
    config.reset_reader_on_write = true;
    Ok(Client::try_from(config)?)
}
