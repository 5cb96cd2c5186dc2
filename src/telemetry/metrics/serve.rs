//! The port. Answering takes what is in memory and nothing else, so that it works while NVML, the disk or the API server
//! hangs.

use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::Exporter;
use super::plain::{OPEN_METRICS, PLAIN, plain, takes_open_metrics};

/// Where metrics are served, if at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricsAddress {
    /// Nowhere.
    Off,
    /// There.
    At(SocketAddr),
}

impl FromStr for MetricsAddress {
    type Err = <SocketAddr as FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" | "off" => Ok(Self::Off),
            address => address.parse().map(Self::At),
        }
    }
}

/// The address cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics on {address}: {source}; choose another --metrics-address, or `off`")]
pub struct MetricsError {
    address: SocketAddr,
    source: io::Error,
}

/// Takes the address, if there is to be one.
pub async fn bind_metrics(address: MetricsAddress) -> Result<Option<TcpListener>, MetricsError> {
    let MetricsAddress::At(address) = address else { return Ok(None) };
    let failed = |source| MetricsError { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    info!(address = %listener.local_addr().map_err(failed)?, "serving /metrics");
    Ok(Some(listener))
}

/// Serves until `stop`; waits for it where nothing is to be served.
pub async fn serve_metrics(
    listener: Option<TcpListener>,
    exporter: Exporter,
    stop: CancellationToken,
) -> Result<(), io::Error> {
    let Some(listener) = listener else {
        stop.cancelled().await;
        return Ok(());
    };
    let routes = Router::new().route("/metrics", get(metrics)).with_state(Arc::new(exporter));
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn metrics(State(exporter): State<Arc<Exporter>>, headers: HeaderMap) -> impl IntoResponse {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|it| it.to_str().ok());
    let text = exporter.text();
    match accepted.into_iter().any(takes_open_metrics) {
        true => ([(CONTENT_TYPE, OPEN_METRICS)], text),
        false => ([(CONTENT_TYPE, PLAIN)], plain(&text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_address_and_off_turn_metrics_off() {
        assert_eq!("".parse(), Ok(MetricsAddress::Off));
        assert_eq!("off".parse(), Ok(MetricsAddress::Off));
        assert_eq!("[::]:9".parse(), Ok(MetricsAddress::At("[::]:9".parse().unwrap())));
        assert!("8082".parse::<MetricsAddress>().is_err());
    }
}
