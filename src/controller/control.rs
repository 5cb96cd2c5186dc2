//! The loop: takes over what watches report, and decides and writes in rounds.

use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::client::CALL_TIMEOUT;
use crate::election::Leadership;
use crate::layouts::Layouts;
use crate::metrics::Metrics;
use crate::probes::Status;
use crate::reasons::Reporter;
use crate::watches::{Changes, WatchError, changes};
use crate::world::{Change, Kind, World};

/// Shortest pause between two rounds.
const PAUSE: Duration = Duration::from_secs(1);

/// Longest time between two turns of the loop, which `/livez` goes by.
const TURN: Duration = Duration::from_secs(60);

/// The loop of a replica. It watches whether it leads or not, so that it can act at once.
pub struct Control {
    client: Client,
    world: World,
    changes: Changes,
    leadership: Leadership,
    /// `None` where events are off.
    reporter: Option<Reporter>,
    /// `None` where layouts do not follow demand.
    layouts: Option<Layouts>,
    metrics: Metrics,
    status: watch::Sender<Status>,
    /// When the next round is due; `None`: when something changes.
    due: Option<Instant>,
    /// When the last one ended.
    ended: Instant,
    /// The term that is known; what is remembered is of it.
    term: Option<u64>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("due", &self.due).field("term", &self.term).finish_non_exhaustive()
    }
}

impl Control {
    /// The loop, and what it knows of itself. Opens the watches.
    #[must_use]
    pub fn new(
        client: Client,
        leadership: Leadership,
        reporter: Option<Reporter>,
        layouts: Option<Layouts>,
        metrics: Metrics,
    ) -> (Self, watch::Receiver<Status>) {
        let (status, receiver) = watch::channel(Status::new());
        let with_movable_pods = layouts.as_ref().is_some_and(Layouts::consolidates);
        let changes = changes(&client, layouts.is_some(), with_movable_pods);
        let control = Self {
            client,
            world: World::default(),
            changes,
            leadership,
            reporter,
            layouts,
            metrics,
            status,
            due: None,
            ended: Instant::now(),
            term: None,
        };
        (control, receiver)
    }

    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            self.status.send_modify(|it| it.turned = Instant::now());
            let due = self.due;
            let round = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // A round that is due comes before further changes, so that no flood of them holds it up.
                biased;
                () = stop.cancelled() => return,
                () = round => self.round().await,
                () = self.leadership.changed() => self.lead().await,
                change = self.changes.next() => match change {
                    Some(change) => self.take(change),
                    // No watch ends.
                    None => return,
                },
                () = sleep_until(Instant::now() + TURN) => {}
            }
        }
    }

    /// Leadership was gained, renewed or lost.
    async fn lead(&mut self) {
        let term = self.leadership.term().map(|it| it.number());
        if std::mem::replace(&mut self.term, term) == term {
            return;
        }
        if let Some(reporter) = &mut self.reporter {
            reporter.forget();
        }
        if let Some(layouts) = &mut self.layouts {
            layouts.forget();
        }
        if term.is_some() {
            self.world.set_version(version(&self.client).await);
            self.due = Some(Instant::now());
        } else {
            self.due = None;
            self.metrics.follows();
        }
    }

    fn take(&mut self, change: Result<Change, WatchError>) {
        match change {
            Ok(change) => {
                let kind = change.kind();
                let is_changed = self.world.apply(change);
                let unread = self.world.unread();
                self.status.send_if_modified(|it| {
                    let was_failing = it.failing.remove(&kind).is_some();
                    if it.unread != unread {
                        it.unread.clone_from(&unread);
                        if unread.is_empty() {
                            info!("everything is read");
                        }
                    }
                    was_failing
                });
                if is_changed && self.term.is_some() {
                    let soon = self.ended + PAUSE;
                    self.due = Some(self.due.map_or(soon, |it| it.min(soon)));
                }
            }
            Err(WatchError { kind, why }) => {
                self.metrics.watch_failed(kind);
                let resource = kind.as_str();
                self.status.send_modify(|it| {
                    // The first failure is logged; the watch is tried again with growing pauses.
                    if it.failing.insert(kind, why.clone()).is_none() {
                        warn!(resource, error = why, "a watch failed; it is opened again");
                    }
                });
            }
        }
    }

    async fn round(&mut self) {
        self.due = None;
        // Another term than the one that is known is about to be reported.
        let term = self.leadership.term().filter(|it| Some(it.number()) == self.term);
        let Some(term) = term.filter(|_| self.world.unread().is_empty()) else { return };
        let started = Instant::now();
        self.metrics.holds(&self.world);
        let mut next = None;
        // What cannot be watched may have changed: nodes keep what they publish. Before the reasons, which take longer.
        let is_current = self.status.borrow().failing.is_empty();
        if let Some(layouts) = self.layouts.as_mut().filter(|_| is_current) {
            next = layouts.round(&self.world, &term).await;
        }
        if let Some(reporter) = &mut self.reporter {
            if let Some(layouts) = self.layouts.as_ref().filter(|_| 0 < self.world.count(Kind::Pods)) {
                self.world.note_demand(layouts.default_auto(), Timestamp::now());
            }
            let round = reporter.round(&self.world, &term).await;
            self.metrics.waits(round.waiting, round.oldest);
            next = [next, round.next].into_iter().flatten().min();
        }
        self.ended = Instant::now();
        self.metrics.round(self.ended - started);
        self.due = next.map(|it| self.ended + it.max(PAUSE));
        debug!(took = ?(self.ended - started), next = ?next, "round");
    }
}

/// The version of the API server, where it says it.
async fn version(client: &Client) -> Option<(u32, u32)> {
    let info = timeout(CALL_TIMEOUT, client.apiserver_version()).await.ok()?.ok()?;
    let number = |text: &str| text.trim_end_matches(|it: char| !it.is_ascii_digit()).parse().ok();
    Some((number(&info.major)?, number(&info.minor)?))
}
