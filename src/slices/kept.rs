//! What stays published for no other reason than that it is allocated: an allocated device is never withdrawn.
//!
//! A device that vanishes from its slice while a claim has it looks free to the scheduler (kubernetes#140802). What is
//! prepared is known on the node. That something is allocated and not prepared yet only the API server knows, so it is asked
//! where something is about to go: the GPU became sick, a filter leaves the profile out, an instance or a GPU is not there
//! any more. A scheduler may still give away what it saw a moment before. So the claims are read once more when that has
//! been gone for the settle time, and what somebody was given all the same comes back.
//!
//! Pure. Refuses to ask where nothing could come of the answer: it is a list of all claims of the cluster.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Remembers what stays, and until when something may have to come back.
#[derive(Debug)]
pub struct Kept {
    settle: Duration,
    /// Devices that stay.
    taken: BTreeSet<String>,
    /// When the read that told them began.
    read_at: Option<Instant>,
    gone: Option<Gone>,
    has_past: bool,
}

/// When schedulers could no longer see what was withdrawn last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gone {
    /// As soon as what was decided is written.
    NotYet,
    Since(Instant),
}

/// Names of devices.
#[derive(Debug, Clone, Copy)]
pub struct Devices<'a> {
    /// What is offered whatever the API server says.
    pub offered: &'a BTreeSet<String>,
    /// What else the node has and could offer.
    pub withheld: &'a BTreeSet<String>,
    /// What is published.
    pub published: &'a BTreeSet<String>,
}

impl Kept {
    /// Starts without knowledge of what was before. `settle` is how long a scheduler may act on what it saw, `has_past` whether
    /// a driver was on this node before this process: it may have withdrawn something a moment ago.
    #[must_use]
    pub fn new(settle: Duration, has_past: bool) -> Self {
        Self { settle, taken: BTreeSet::new(), read_at: None, gone: None, has_past }
    }

    /// Whether the claims have to be read, and [`Kept::found`] to be told, before anything is published: where something goes
    /// of which that is not known, and when it is time to look again.
    pub fn asks(&mut self, devices: Devices<'_>, now: Instant) -> bool {
        // Before NVML works there is nothing that could come back.
        let has_any = !devices.offered.is_empty() || !devices.withheld.is_empty();
        let is_first = has_any && std::mem::take(&mut self.has_past);
        if is_first {
            self.gone = Some(Gone::Since(now));
        }
        // Where all is offered, nothing can come back.
        if devices.withheld.is_empty() && self.gone.is_some_and(|it| it.has_settled(self.settle, now)) {
            self.gone = None;
        }
        let goes = devices.published.difference(devices.offered).any(|it| !self.taken.contains(it));
        goes || is_first && !devices.withheld.is_empty() || self.next().is_some_and(|it| it <= now)
    }

    /// Takes note of what claims have, by a read that began at `read_at`.
    pub fn found(&mut self, allocated: &BTreeSet<String>, devices: Devices<'_>, read_at: Instant) {
        let is_possible = |it: &&String| devices.published.contains(*it) || devices.withheld.contains(*it);
        self.taken = allocated.difference(devices.offered).filter(is_possible).cloned().collect();
        self.read_at = Some(read_at);
        self.gone = self.gone.filter(|it| !it.has_settled(self.settle, read_at));
        if devices.published.difference(devices.offered).any(|it| !self.taken.contains(it)) {
            self.gone = Some(Gone::NotYet);
        }
    }

    /// Takes note that what was published by other rules, and may just have gone, may have to come back.
    pub fn expect_more(&mut self) {
        self.gone = Some(Gone::NotYet);
    }

    /// Takes note that what was decided last is written.
    pub fn written(&mut self, now: Instant) {
        if self.gone == Some(Gone::NotYet) {
            self.gone = Some(Gone::Since(now));
        }
    }

    /// What stays.
    #[must_use]
    pub fn taken(&self) -> &BTreeSet<String> {
        &self.taken
    }

    /// When to look again. Of a claim that was never prepared nobody tells when it is released.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        let gone = match self.gone {
            Some(Gone::Since(since)) => Some(since),
            Some(Gone::NotYet) | None => None,
        };
        let taken = self.read_at.filter(|_| !self.taken.is_empty());
        gone.into_iter().chain(taken).min().map(|it| it + self.settle)
    }
}

impl Gone {
    fn has_settled(self, settle: Duration, now: Instant) -> bool {
        match self {
            Self::NotYet => false,
            Self::Since(since) => since + settle <= now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLE: Duration = Duration::from_secs(10);

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|it| (*it).to_owned()).collect()
    }

    /// One round: whether it asked, and what stays.
    fn round(
        kept: &mut Kept,
        at: Instant,
        [offered, withheld, published, allocated]: [&[&str]; 4],
    ) -> (bool, BTreeSet<String>) {
        let (offered, withheld, published) = (set(offered), set(withheld), set(published));
        let devices = Devices { offered: &offered, withheld: &withheld, published: &published };
        let asks = kept.asks(devices, at);
        if asks {
            kept.found(&set(allocated), devices, at);
        }
        kept.written(at);
        (asks, kept.taken().clone())
    }

    #[test]
    fn what_is_allocated_stays_and_is_looked_after_until_it_is_released() {
        let (mut kept, start) = (Kept::new(SETTLE, false), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(round(&mut kept, at(0), [&["a", "b"], &[], &["a", "b"], &["b"]]), (false, set(&[])));
        assert_eq!(kept.next(), None);
        assert_eq!(round(&mut kept, at(5), [&["a"], &["b", "c"], &["a", "b"], &["b"]]), (true, set(&["b"])));
        assert_eq!(kept.next(), Some(at(15)));
        assert_eq!(round(&mut kept, at(15), [&["a"], &["b", "c"], &["a", "b"], &[]]), (true, set(&[])));
        assert_eq!(kept.next(), Some(at(25)), "somebody may be given it just before it goes");
        assert_eq!(round(&mut kept, at(25), [&["a"], &["b", "c"], &["a"], &[]]), (true, set(&[])));
        assert_eq!(kept.next(), None);
        assert_eq!(round(&mut kept, at(99), [&["a"], &["b", "c"], &["a"], &["c"]]), (false, set(&[])));
    }

    #[test]
    fn what_was_given_away_at_the_last_moment_comes_back() {
        let (mut kept, start) = (Kept::new(SETTLE, false), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(round(&mut kept, at(0), [&[], &["a", "b"], &["a", "b"], &[]]), (true, set(&[])));
        assert_eq!(round(&mut kept, at(9), [&[], &["a", "b"], &[], &["b"]]), (false, set(&[])));
        assert_eq!(kept.next(), Some(at(10)), "before that it would be too early");
        assert_eq!(round(&mut kept, at(10), [&[], &["a", "b"], &[], &["b"]]), (true, set(&["b"])));
    }

    #[test]
    fn a_driver_that_starts_asks_for_what_the_one_before_may_have_withdrawn() {
        let start = Instant::now();
        for (has_past, withheld) in [(true, &["a"][..]), (true, &[]), (false, &["a"])] {
            let mut kept = Kept::new(SETTLE, has_past);
            let asks = has_past && !withheld.is_empty();
            assert_eq!(round(&mut kept, start, [&["b"], withheld, &["b"], &[]]).0, asks);
            assert_eq!(round(&mut kept, start + SETTLE, [&["b"], withheld, &["b"], &[]]).0, asks);
            assert!(!round(&mut kept, start + 2 * SETTLE, [&["b"], withheld, &["b"], &[]]).0);
            assert_eq!(kept.next(), None);
        }
    }
}
