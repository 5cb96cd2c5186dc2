//! Serves `/healthz`, `/readyz` and the gRPC health service on one port, so that every kind of probe works.

use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tracing::info;

use super::{Health, health_service};
use crate::telemetry::bind;

/// The address cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve health on {address}: {source}; choose another --http-address")]
pub struct HealthError {
    address: SocketAddr,
    source: io::Error,
}

/// Takes the address. Done before anything else is touched, so that a driver that was started twice by mistake ends
/// without taking the sockets of the one that runs.
pub async fn bind_health(address: SocketAddr) -> Result<TcpListener, HealthError> {
    let failed = |source| HealthError { address, source };
    let listener = bind(address).await.map_err(failed)?;
    info!(address = %listener.local_addr().map_err(failed)?, "serving /healthz and /readyz");
    Ok(listener)
}

/// Serves `/healthz`, `/readyz`, and the same over gRPC, until `stop`.
///
/// Alive is a process that answers. That a GPU hangs is not a matter of life: a restart does not end it, and the other
/// GPUs are served; readiness reports it.
pub async fn serve_health(
    listener: TcpListener,
    health: Health,
    stop: CancellationToken,
) -> Result<(), io::Error> {
    let routes = Router::new()
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .with_state(health.clone())
        .merge(Routes::new(health_service(health)).into_axum_router());
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn ready(State(health): State<Health>) -> (StatusCode, String) {
    let (is_ready, text) = health.report();
    (if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
}
