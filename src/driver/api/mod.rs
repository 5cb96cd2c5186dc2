//! Use of the API server: reads single claims, writes the status of claims' devices, the ResourceSlices and labels of this
//! node, its MigNode, and events. [`RIGHTS`] lists all permissions that it needs.
//!
//! Every call ends: kube's defaults (no read timeout, fifteen retries) could outlast the kubelet's patience.

mod allocations;
mod claim_status;
mod claims;
mod counted;
mod device_status;
mod event_reason;
mod events;
mod mig_nodes;
mod node;
mod pod_groups;
mod rights;
mod slices;
mod status_writer;

use std::path::Path;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

pub use allocations::Allocations;
pub use claim_status::ClaimStatuses;
pub use claims::{ClaimReader, ReadError};
pub use counted::counted;
pub use device_status::{Ailment, Ailments, DATA_VERSION, ailments, device_statuses};
pub use event_reason::{EventReason, Subject};
pub use events::Events;
pub use mig_nodes::{MigNodeError, MigNodeErrorKind, MigNodes, OwnMigNode};
pub use node::{CONFIG_LABEL, FORBIDDEN_PAUSE, LabelError, LayoutLabels, OwnNode, STATE_LABEL};
pub use pod_groups::PodGroups;
pub use rights::{RIGHTS, Right, is_allowed};
pub use slices::{NodeSlices, SliceError, SliceErrorKind};

/// Longest wait for one answer. A Prepare has 45 s in all.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig file does not do.
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
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, ClientError> {
    let mut config = match kubeconfig {
        None => Config::incluster()?,
        Some(path) => {
            let wrap = |source| ClientError::Kubeconfig { path: path.display().to_string(), source };
            let file = Kubeconfig::read_from(path).map_err(wrap)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(wrap)?
        }
    };
    // Retries belong to the caller, who knows how much time is left.
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}
