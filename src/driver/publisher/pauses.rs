//! How long the publisher waits: for a burst of changes to end, after rounds that failed, and for other writers.

use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use crate::api::{EventReason, Events};
use crate::backoff::Backoff;

/// How long changes made by others are collected before they are looked at.
pub(super) const DEBOUNCE: Duration = Duration::from_millis(500);
/// Longest pause after failures; the first is that of changes by others.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Longest pause before what another writer does is corrected again.
const LONGEST_CORRECTION: Duration = Duration::from_secs(10);
/// After this time without a correction, the next one is the first.
const CALM: Duration = Duration::from_secs(60);
/// Corrections in a row that are made at once: the kubelet deletes a node's slices at its start, and people delete things.
const MOST_AT_ONCE: u32 = 4;

/// What other writers did to the slices, corrected less and less often where they do it again and again.
#[derive(Debug)]
pub(super) struct Overwritten {
    backoff: Backoff,
    last: Option<Instant>,
    not_before: Instant,
}

impl Overwritten {
    pub(super) fn new(node: &str) -> Self {
        Self {
            backoff: Backoff::new(DEBOUNCE, LONGEST_CORRECTION, node),
            last: None,
            not_before: Instant::now(),
        }
    }

    /// When they may be looked at again.
    pub(super) fn not_before(&self) -> Instant {
        self.not_before
    }

    /// Counts a correction that was made, and reports once that they are many.
    pub(super) fn corrected(&mut self, events: &Events) {
        const NOTE: &str = "another writer keeps changing or deleting this node's ResourceSlices: kubectl get resourceslices -o yaml \
                            --show-managed-fields names it; only one program may use this driver's name on a node";
        let now = Instant::now();
        if self.last.is_none_or(|it| it + CALM < now) {
            self.backoff.succeeded();
        }
        self.last = Some(now);
        let pause = self.backoff.failed();
        if MOST_AT_ONCE < self.backoff.failures() {
            self.not_before = now + pause;
        }
        if self.backoff.failures() == MOST_AT_ONCE + 1 {
            warn!("{NOTE}");
            events.emit(EventReason::SlicesOverwritten, NOTE.to_owned());
        }
    }
}

/// Pauses after rounds that failed, on this node.
pub(super) fn retry(node: &str) -> Backoff {
    Backoff::new(DEBOUNCE, LONGEST_PAUSE, node)
}
