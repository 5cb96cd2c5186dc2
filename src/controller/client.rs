//! The client of the API server.

use std::path::Path;
use std::time::Duration;

use kube::Client;
use mig_client::{ClientError, client_config};

/// How long the API server may send nothing; a watch sends something, or ends, within 295 s.
const READ_TIMEOUT: Duration = Duration::from_secs(330);

/// Field manager of what the controller writes.
pub const MANAGER: &str = "mig-controller";

/// Longest wait for one answer: what is left of a Lease when its holder stops acting.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// A client from a kubeconfig file, or from the pod's service account where none is given.
///
/// # Errors
/// [`ClientError`].
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, ClientError> {
    let mut config = client_config(kubeconfig).await?;
    config.read_timeout = Some(READ_TIMEOUT);
    config.reset_reader_on_write = true;
    Ok(Client::try_from(config)?)
}
