//! What schedulers may still allocate although it is not published any more. Pure.
//!
//! A scheduler may still allocate what it saw a moment ago. So a device that goes counts as withdrawn until it has been gone for
//! the settle time, and a read of the claims, begun after that, shows whether it was allocated.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// When schedulers could no longer see something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    /// As soon as what was decided is written.
    NotYet,
    Since(Instant),
}

impl Gone {
    /// Takes note that what was decided is written.
    pub(super) fn written(&mut self, now: Instant) {
        if *self == Self::NotYet {
            *self = Self::Since(now);
        }
    }

    /// True where no scheduler acts on it any more at this moment.
    pub(super) fn has_settled(self, settle: Duration, now: Instant) -> bool {
        self.since().is_some_and(|it| it + settle <= now)
    }

    pub(super) fn since(self) -> Option<Instant> {
        match self {
            Self::NotYet => None,
            Self::Since(since) => Some(since),
        }
    }
}

/// Names of withdrawn devices.
#[derive(Debug, Clone, Default)]
pub(super) struct Withdrawn(BTreeMap<String, Gone>);

impl Withdrawn {
    /// Adds what was published `before` and is not among those that remain.
    pub(super) fn add_missing(&mut self, before: &BTreeSet<String>, remaining: &BTreeSet<String>) {
        self.add(before.difference(remaining));
    }

    pub(super) fn add<'a>(&mut self, names: impl IntoIterator<Item = &'a String>) {
        for name in names {
            self.0.entry(name.clone()).or_insert(Gone::NotYet);
        }
    }

    /// Those that no scheduler acts on any more, by a read of the claims that began at `read_at`, are done with.
    pub(super) fn settle(&mut self, settle: Duration, read_at: Instant) {
        self.0.retain(|_, it| !it.has_settled(settle, read_at));
    }

    pub(super) fn retain(&mut self, stays: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| stays(name));
    }

    /// Takes note that what was decided is written.
    pub(super) fn written(&mut self, now: Instant) {
        self.0.values_mut().for_each(|it| it.written(now));
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Since when the first of them is gone.
    pub(super) fn since(&self) -> Option<Instant> {
        self.0.values().filter_map(|it| it.since()).min()
    }
}
