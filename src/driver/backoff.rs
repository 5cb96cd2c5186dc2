//! Pauses between attempts that fail. Pure.

use std::time::Duration;

use mig_model::hash::fnv1a;

/// Pauses that double with each failure, up to a longest one. Each is shortened by up to a half, by a different amount for each
/// `seed`, so that the nodes of a cluster do not all try again at one moment.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    seed: u64,
    failures: u32,
}

impl Backoff {
    /// No failure yet. `seed` tells who tries: a node or a claim.
    #[must_use]
    pub fn new(first: Duration, longest: Duration, seed: &str) -> Self {
        Self { first, longest, seed: fnv1a(seed.as_bytes()), failures: 0 }
    }

    /// Counts a failure, and says how long to wait before the next attempt.
    pub fn failed(&mut self) -> Duration {
        const PARTS: u32 = 1024;
        let full = self.longest.min(self.first.saturating_mul(2_u32.saturating_pow(self.failures)));
        self.failures = self.failures.saturating_add(1);
        let mixed = [self.seed.to_le_bytes(), u64::from(self.failures).to_le_bytes()].concat();
        let part = u32::try_from(fnv1a(&mixed) % u64::from(PARTS)).unwrap_or_default();
        full - full / (2 * PARTS) * part
    }

    /// Begins again with the first pause.
    pub fn succeeded(&mut self) {
        self.failures = 0;
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

    #[test]
    fn no_number_of_failures_overflows() {
        let mut backoff = Backoff::new(Duration::MAX / 2, Duration::MAX, "");
        backoff.failures = u32::MAX;
        assert!(Duration::MAX / 4 < backoff.failed());
    }
}
