//! Pauses between attempts that fail.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use mig_model::hash::fnv1a;

/// Pauses that double with each failure, up to a longest one. Each is shortened by up to a half, by a different amount for each
/// `seed`, so that the nodes of a cluster do not all try again at one moment.
#[derive(Debug)]
pub struct Backoff {
    builder: ExponentialBuilder,
    pauses: ExponentialBackoff,
    failures: u32,
}

impl Backoff {
    /// No failure yet. `seed` names who tries: a node or a claim.
    #[must_use]
    pub fn new(first: Duration, longest: Duration, seed: &str) -> Self {
        // Jitter adds up to the pause itself.
        let builder = ExponentialBuilder::new()
            .with_min_delay(first / 2)
            .with_max_delay(longest / 2)
            .without_max_times()
            .with_jitter()
            .with_jitter_seed(fnv1a(seed.as_bytes()));
        Self { builder, pauses: builder.build(), failures: 0 }
    }

    /// Counts a failure, and says how long to wait before the next attempt.
    pub fn failed(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.pauses.next().unwrap_or_default()
    }

    /// Begins again with the first pause.
    pub fn succeeded(&mut self) {
        self.failures = 0;
        self.pauses = self.builder.build();
    }

    /// Failures since the last success.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(60);

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_again_after_a_success() {
        let mut backoff = Backoff::new(FIRST, LONGEST, "node-1");
        let mut full = FIRST;
        for _ in 0..100 {
            let pause = backoff.failed();
            assert!(full / 2 <= pause && pause <= full, "{pause:?} of {full:?}");
            full = LONGEST.min(full * 2);
        }
        assert_eq!((full, backoff.failures()), (LONGEST, 100));
        backoff.succeeded();
        assert!(backoff.failed() <= FIRST);
    }

    #[test]
    fn nodes_of_one_cluster_try_again_at_different_moments() {
        for attempt in 1..10 {
            let pause = |node: usize| {
                let mut backoff = Backoff::new(FIRST, LONGEST, &format!("gpu-node-{node}"));
                (0..attempt).map(|_| backoff.failed()).last()
            };
            let pauses: BTreeSet<Option<Duration>> = (0..100).map(pause).collect();
            assert!(80 < pauses.len(), "{attempt}: {} different ones", pauses.len());
        }
    }
}
