//! The port. Answering takes what is in memory and nothing else, so that it works while NVML, the disk or the API server
//! hangs. However many readers there are, and however often they read, the text is written a few times a second at most.

use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::Exporter;

/// What prometheus-client writes (OpenMetrics 1.0, text format).
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How long a text is the numbers of this moment.
const MOMENT: Duration = Duration::from_millis(250);

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
    let routes = Router::new().route("/metrics", get(metrics)).with_state(Arc::new(Page::new(exporter)));
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn metrics(State(page): State<Arc<Page>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, OPEN_METRICS)], page.at(Instant::now()))
}

/// What is answered, and since when.
struct Page {
    exporter: Exporter,
    last: Mutex<(Option<Instant>, Bytes)>,
}

impl Page {
    fn new(exporter: Exporter) -> Self {
        Self { exporter, last: Mutex::default() }
    }

    fn at(&self, now: Instant) -> Bytes {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, text) = &mut *last;
        if since.is_none_or(|it| it + MOMENT <= now) {
            *text = self.exporter.text(text.len()).into();
            *since = Some(now);
        }
        text.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::{Metrics, SliceWrite};

    #[test]
    fn readers_of_one_moment_get_one_text_and_later_ones_another() {
        let metrics = Metrics::default();
        let (page, now) = (Page::new(Exporter::new(&metrics)), Instant::now());
        let first = page.at(now);
        metrics.slice_written(SliceWrite::Create);
        assert_eq!(page.at(now + MOMENT / 2), first);
        assert_ne!(page.at(now + MOMENT), first);
    }

    #[test]
    fn an_empty_address_and_off_turn_metrics_off() {
        assert_eq!("".parse(), Ok(MetricsAddress::Off));
        assert_eq!("off".parse(), Ok(MetricsAddress::Off));
        assert_eq!("[::]:9".parse(), Ok(MetricsAddress::At("[::]:9".parse().unwrap())));
        assert!("8082".parse::<MetricsAddress>().is_err());
    }
}
