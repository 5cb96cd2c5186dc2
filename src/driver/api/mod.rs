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

use kube::Client;
use mig_client::{ClientError, client_config};

pub use allocations::Allocations;
pub use claim_status::ClaimStatuses;
pub use claims::{ClaimReader, ReadError};
pub use counted::counted;
pub use device_status::{Ailment, Ailments, DATA_VERSION, ailments, device_statuses};
pub use event_reason::{EventReason, Subject};
pub use events::Events;
pub use mig_nodes::{MigNodeError, MigNodeErrorKind, MigNodes, OwnMigNode};
pub use node::{CONFIG_LABEL, LabelError, LayoutLabels, OwnNode, STATE_LABEL, refusal_pauses};
pub use pod_groups::PodGroups;
pub use rights::{RIGHTS, Right, is_allowed};
pub use slices::{NodeSlices, SliceError, SliceErrorKind};

/// Longest wait for one answer. A Prepare has 45 s in all.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A client from a kubeconfig file, or from the pod's service account where none is given.
///
/// # Errors
/// [`ClientError`].
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, ClientError> {
    Ok(Client::try_from(client_config(kubeconfig).await?)?)
}
