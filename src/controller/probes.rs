//! `/livez` and `/readyz`: whether the loop turns, and whether everything that decisions need is known.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::election::Leadership;
use crate::world::Kind;

/// A loop that has not turned for so long hangs.
const HANGS_AFTER: Duration = Duration::from_secs(300);

/// What the loop knows of itself.
#[derive(Debug, Clone)]
pub struct Status {
    /// When it turned last.
    pub turned: Instant,
    /// Kinds of which no complete list was read yet.
    pub unread: Vec<Kind>,
    /// Watches that fail, and why.
    pub failing: BTreeMap<Kind, String>,
}

impl Status {
    /// Of a loop that has just started.
    #[must_use]
    pub fn new() -> Self {
        Self { turned: Instant::now(), unread: Kind::ALL.to_vec(), failing: BTreeMap::new() }
    }

    fn is_ready(&self) -> bool {
        self.unread.is_empty() && self.failing.is_empty()
    }

    fn is_alive(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.turned) < HANGS_AFTER
    }

    /// A line for each kind.
    fn report(&self, leads: bool) -> String {
        let mut text = String::new();
        for kind in Kind::ALL {
            let (mark, what) = match self.failing.get(kind) {
                Some(why) => ('-', format!("cannot be watched: {why}")),
                None if self.unread.contains(kind) => ('-', "not read yet".to_owned()),
                None => ('+', "watched".to_owned()),
            };
            // Writing to a String does not fail.
            let _ = writeln!(text, "[{mark}] {}: {what}", kind.as_str());
        }
        let role = if leads { "leads" } else { "stands by" };
        let _ = writeln!(text, "this replica {role}");
        text
    }
}

impl Default for Status {
    fn default() -> Self {
        Self::new()
    }
}

/// Serves until `stop`. A replica that stands by is as ready as the one that leads.
///
/// # Errors
/// When the socket fails.
pub async fn serve_health(
    listener: TcpListener,
    status: watch::Receiver<Status>,
    leadership: Leadership,
    stop: CancellationToken,
) -> io::Result<()> {
    let routes = Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .with_state((status, leadership));
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

type Known = (watch::Receiver<Status>, Leadership);

async fn live(State((status, _)): State<Known>) -> (StatusCode, &'static str) {
    if status.borrow().is_alive(Instant::now()) {
        (StatusCode::OK, "alive\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the loop has not turned for 5 minutes\n")
    }
}

async fn ready(State((status, leadership)): State<Known>) -> (StatusCode, String) {
    let status = status.borrow();
    let code = if status.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, status.report(leadership.holds()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_ready_once_everything_is_read_and_no_watch_fails() {
        let mut status = Status::new();
        assert!(!status.is_ready());
        status.unread.clear();
        assert!(status.is_ready());
        status.failing.insert(Kind::Quotas, "forbidden".to_owned());
        assert!(!status.is_ready());
        let report = status.report(false);
        assert!(report.contains("[-] resourcequotas: cannot be watched: forbidden\n"), "{report}");
        assert!(
            report.contains("[+] pods: watched\n") && report.ends_with("this replica stands by\n"),
            "{report}"
        );
    }

    #[test]
    fn a_loop_that_hangs_is_not_alive() {
        let status = Status::new();
        assert!(status.is_alive(status.turned + HANGS_AFTER - Duration::from_secs(1)));
        assert!(!status.is_alive(status.turned + HANGS_AFTER));
    }
}
