//! Times calls that may hang.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Shows other threads whether a thread is in a call, and for how long. Clones share the state.
#[derive(Debug, Clone, Default)]
pub struct CallTimer {
    /// Milliseconds on the clock of this process at which the call began; 0 where there is none.
    since: Arc<AtomicU64>,
}

/// The time until it is dropped is one call.
#[derive(Debug)]
pub struct InFlight {
    since: Arc<AtomicU64>,
    begun: u64,
}

impl CallTimer {
    /// A call begins. Of several at a time the last one counts.
    #[must_use]
    pub fn begin(&self) -> InFlight {
        let begun = clock();
        self.since.store(begun, Ordering::Relaxed);
        InFlight { since: Arc::clone(&self.since), begun }
    }

    /// How long the present call takes already; nothing where there is none.
    #[must_use]
    pub fn busy_for(&self) -> Option<Duration> {
        match self.since.load(Ordering::Relaxed) {
            0 => None,
            since => Some(Duration::from_millis(clock().saturating_sub(since))),
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // Another call may have begun since.
        let _ = self.since.compare_exchange(self.begun, 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Milliseconds since the first call of this function, and one more: never 0.
fn clock() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = START.get_or_init(Instant::now);
    u64::try_from(start.elapsed().as_millis()).map_or(u64::MAX, |it| it.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_seen_from_outside_until_it_ends() {
        let timer = CallTimer::default();
        assert_eq!(timer.busy_for(), None);
        let call = timer.begin();
        assert!(timer.clone().busy_for().is_some());
        drop(call);
        assert_eq!(timer.busy_for(), None);
    }
}
