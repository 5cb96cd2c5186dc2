//! Times calls that may hang.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Shows other threads whether calls of one kind run, and for how long the oldest does. Clones share the state.
#[derive(Debug, Clone, Default)]
pub struct CallTimer {
    /// When the calls that run began, by a number that grows with each.
    running: Arc<Mutex<BTreeMap<u64, Instant>>>,
}

/// The time until it is dropped is one call.
#[derive(Debug)]
pub struct InFlight {
    timer: CallTimer,
    number: u64,
}

impl CallTimer {
    /// A call begins.
    #[must_use]
    pub fn begin(&self) -> InFlight {
        let mut running = self.running();
        let number = running.last_key_value().map_or(0, |(last, _)| last + 1);
        running.insert(number, Instant::now());
        drop(running);
        InFlight { timer: self.clone(), number }
    }

    /// How long the oldest call that runs takes already; nothing where there is none.
    #[must_use]
    pub fn busy_for(&self) -> Option<Duration> {
        self.running().first_key_value().map(|(_, since)| since.elapsed())
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<u64, Instant>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.timer.running().remove(&self.number);
    }
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

    #[test]
    fn of_several_calls_the_oldest_that_runs_counts_however_the_others_end() {
        let timer = CallTimer::default();
        let first = timer.begin();
        let begun = Instant::now();
        let second = timer.begin();
        assert!(begun.elapsed() <= timer.busy_for().unwrap());
        drop(second);
        drop(timer.begin());
        assert!(begun.elapsed() <= timer.busy_for().unwrap(), "the first one has not ended");
        let third = timer.begin();
        drop(first);
        assert!(timer.busy_for().is_some(), "the third one has not ended");
        drop(third);
        assert_eq!(timer.busy_for(), None);
    }
}
