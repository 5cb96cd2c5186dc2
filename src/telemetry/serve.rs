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
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::Exporter;
use crate::bind;
use crate::plain::{OPEN_METRICS, PLAIN, plain, takes_open_metrics};

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

/// Binds the address, if one is configured.
pub async fn bind_metrics(address: MetricsAddress) -> Result<Option<TcpListener>, MetricsError> {
    let MetricsAddress::At(address) = address else { return Ok(None) };
    let failed = |source| MetricsError { address, source };
    let listener = bind(address).await.map_err(failed)?;
    info!(address = %listener.local_addr().map_err(failed)?, "serving /metrics");
    Ok(Some(listener))
}

/// Serves until `stop`; only waits for it if no address is configured.
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

async fn metrics(State(page): State<Arc<Page>>, headers: HeaderMap) -> impl IntoResponse {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|it| it.to_str().ok());
    match accepted.into_iter().any(takes_open_metrics) {
        true => ([(CONTENT_TYPE, OPEN_METRICS)], page.at(Instant::now(), Format::OpenMetrics)),
        false => ([(CONTENT_TYPE, PLAIN)], page.at(Instant::now(), Format::Plain)),
    }
}

/// What is answered.
struct Page {
    exporter: Exporter,
    last: Mutex<Texts>,
}

/// The text of a moment, and since when it is that.
#[derive(Default)]
struct Texts {
    since: Option<Instant>,
    open_metrics: Bytes,
    /// Created on the first request.
    plain: Option<Bytes>,
}

#[derive(Clone, Copy)]
enum Format {
    OpenMetrics,
    Plain,
}

impl Page {
    fn new(exporter: Exporter) -> Self {
        Self { exporter, last: Mutex::default() }
    }

    fn at(&self, now: Instant, format: Format) -> Bytes {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.since.is_none_or(|it| it + MOMENT <= now) {
            let open_metrics = self.exporter.text(last.open_metrics.len()).into();
            *last = Texts { since: Some(now), open_metrics, plain: None };
        }
        let Texts { open_metrics, plain: plain_text, .. } = &mut *last;
        match format {
            Format::OpenMetrics => open_metrics.clone(),
            Format::Plain => {
                let make = || plain(str::from_utf8(open_metrics).unwrap_or_default()).into();
                plain_text.get_or_insert_with(make).clone()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn readers_of_one_moment_get_one_text_and_later_ones_another() {
        let counter: Counter = Counter::default();
        let exporter = Exporter::new("build", "It", "1", |it| it.register("calls", "Calls", counter.clone()));
        let (page, now) = (Page::new(exporter), Instant::now());
        for format in [Format::OpenMetrics, Format::Plain] {
            let now = now + if matches!(format, Format::Plain) { MOMENT * 2 } else { Duration::ZERO };
            let first = page.at(now, format);
            counter.inc();
            assert_eq!(page.at(now + MOMENT / 2, format), first);
            assert_ne!(page.at(now + MOMENT, format), first);
        }
    }

    #[test]
    fn an_empty_address_and_off_turn_metrics_off() {
        assert_eq!("".parse(), Ok(MetricsAddress::Off));
        assert_eq!("off".parse(), Ok(MetricsAddress::Off));
        assert_eq!("[::]:9".parse(), Ok(MetricsAddress::At("[::]:9".parse().unwrap())));
        assert!("8082".parse::<MetricsAddress>().is_err());
    }
}
