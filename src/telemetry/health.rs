//! The address of the probes.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpListener;
use tracing::info;

use crate::bind;

/// The address cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve health on {address}: {source}; choose another --http-address")]
pub struct HealthError {
    address: SocketAddr,
    source: io::Error,
}

/// Takes the address, to serve `paths` there. Done before anything else is touched, so that a process that was started twice by
/// mistake ends without taking what the one that runs has.
///
/// # Errors
/// [`HealthError`].
pub async fn bind_health(address: SocketAddr, paths: &str) -> Result<TcpListener, HealthError> {
    let failed = |source| HealthError { address, source };
    let listener = bind(address).await.map_err(failed)?;
    info!(address = %listener.local_addr().map_err(failed)?, "serving {paths}");
    Ok(listener)
}
