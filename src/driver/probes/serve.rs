//! Serves `/healthz`, `/readyz` and the gRPC health service on one port, so that every kind of probe works.

use std::io;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::{Health, health_service};

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
