//! Follows a demand over time: when layouts change for it, when they stay, and when they go back. Pure.
//!
//! ```text
//! demand (renewed, free, floor) + inputs + memory + now -> layouts, what came of the demand, memory, when to look again
//! ```
//!
//! - Layouts change at most once in [`PAUSE`].
//! - A demand that is renewed, and was not for [`STALE_AFTER`], changes nothing: its writer is gone, and its view of the cluster
//!   is old. One without a time is a person's and does not age.
//! - After [`PATIENCE`] without a demand the layouts are what they are without one, with the floor.

use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::arrange::{Arrangement, Missing, arrange};
use super::choice::{GpuLayout, Layouts};
use super::mix;
use super::wanted::{LayoutInputs, Wanted};
use crate::facts::GpuFacts;
use crate::inventory::DeviceName;
use crate::mig_node::STALE_AFTER;

/// The least time between two changes for a demand.
pub const PAUSE: Duration = Duration::from_secs(30);
/// How long layouts stay without a demand.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// What is demanded of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demand {
    /// When it was renewed; `None` for a person's.
    pub renewed: Option<Timestamp>,
    /// What is wanted.
    pub wanted: Wanted,
}

/// What is remembered of earlier demands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DemandMemory {
    /// When layouts changed for a demand the last time.
    #[serde(default)]
    pub changed: Option<Timestamp>,
    /// When there was a demand the last time; `None` where the layouts are those without one.
    #[serde(default)]
    pub demanded: Option<Timestamp>,
    /// The time in the demand that was renewed last, and when that was seen first: the clock of its writer may be ahead.
    #[serde(skip)]
    seen: Option<(Timestamp, Timestamp)>,
}

/// What came of a demand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// There is none.
    NoDemand {
        /// Until when the layouts of the last one stay.
        until: Option<Timestamp>,
    },
    /// The layouts serve it.
    Followed,
    /// The layouts serve it as far as possible.
    Missing(Vec<Missing>),
    /// The layouts have just changed, and change for it then.
    Waiting(Timestamp),
    /// It was not renewed.
    Stale,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    /// The layouts to put into force.
    pub layouts: Layouts,
    /// What came of the demand.
    pub outcome: Outcome,
    /// What to remember.
    pub memory: DemandMemory,
    /// When to look again at the latest.
    pub wake: Option<Timestamp>,
}

/// Follows a demand, or that there is none. `layouts` are in force.
#[must_use]
pub fn follow(
    inputs: LayoutInputs<'_>,
    layouts: &Layouts,
    demand: Option<&Demand>,
    memory: &DemandMemory,
    now: Timestamp,
) -> Followed {
    let mut memory = memory.up_to(now);
    let stale_at = memory.renewed(demand, now).map(|it| after(it, STALE_AFTER));
    if stale_at.is_some_and(|it| it < now) {
        return Followed { layouts: layouts.clone(), outcome: Outcome::Stale, memory, wake: None };
    }
    let nothing = Wanted::default();
    let wanted = demand.map_or(&nothing, |it| &it.wanted);
    if !wanted.free.is_empty() {
        memory.demanded = Some(now);
    }
    let is_over = memory.stays_until().is_none_or(|it| it <= now);
    // A floor alone changes what is in force no more than once.
    let goes_back = is_over && (memory.demanded.is_some() || wanted.floor.is_empty());
    let Arrangement { layouts: next, missing } =
        arrange(inputs, if goes_back { inputs.base } else { layouts }, wanted);

    let waits_until = memory.not_before(now).filter(|_| next != *layouts);
    let (layouts, outcome) = if let Some(time) = waits_until {
        (layouts.clone(), Outcome::Waiting(time))
    } else {
        memory.arranged(next != *layouts, is_over, *wanted == nothing, now);
        let outcome = match (missing.is_empty(), *wanted == nothing) {
            (false, _) => Outcome::Missing(missing),
            (true, false) => Outcome::Followed,
            (true, true) => Outcome::NoDemand { until: memory.stays_until() },
        };
        (next, outcome)
    };
    // It is over where the layouts cannot change back yet.
    let ends_at = memory.stays_until().filter(|it| wanted.free.is_empty() && now < *it);
    // Stale is what is older.
    let stale_at = stale_at.map(|it| after(it, Duration::from_secs(1)));
    let wake = [waits_until, ends_at, stale_at].into_iter().flatten().min();
    Followed { layouts, outcome, memory, wake }
}

impl DemandMemory {
    /// A clock that was put back must not make anything wait longer.
    fn up_to(&self, now: Timestamp) -> Self {
        let earlier = |time: Option<Timestamp>| time.map(|it| it.min(now));
        Self { changed: earlier(self.changed), demanded: earlier(self.demanded), seen: self.seen }
    }

    /// When layouts may change again; `None` where they may now.
    #[must_use]
    pub fn not_before(&self, now: Timestamp) -> Option<Timestamp> {
        self.changed.map(|it| after(it.min(now), PAUSE)).filter(|it| now < *it)
    }

    /// Until when the layouts of the last demand stay.
    fn stays_until(&self) -> Option<Timestamp> {
        self.demanded.map(|it| after(it, PATIENCE))
    }

    /// Takes note of layouts that are put into force.
    fn arranged(&mut self, is_change: bool, is_over: bool, is_nothing: bool, now: Timestamp) {
        // Before the first demand the layouts follow the GPUs of the node, at any time.
        if is_change && !(is_nothing && self.changed.is_none()) {
            self.changed = Some(now);
        }
        if is_over {
            self.demanded = None;
        }
    }

    /// When the demand was renewed, by the node's clock where that of the writer is ahead.
    fn renewed(&mut self, demand: Option<&Demand>, now: Timestamp) -> Option<Timestamp> {
        let renewed = demand?.renewed?;
        let first = match self.seen {
            Some((known, first)) if known == renewed => first.min(now),
            _ => now,
        };
        self.seen = Some((renewed, first));
        Some(renewed.min(first))
    }
}

/// The layouts in force, for these GPUs: a GPU that has none, or one that it has no room for, gets that of the base.
#[must_use]
pub fn usable(layouts: &Layouts, base: &Layouts, gpus: &[GpuFacts]) -> Layouts {
    let profiles = |name: &str| {
        let gpu = gpus.iter().find(|it| DeviceName::gpu(it.pci).as_str() == name);
        gpu.and_then(GpuFacts::cuttable).map_or(&[][..], |it| &it.profiles)
    };
    let fits = |name: &str, layout: &GpuLayout| match layout {
        GpuLayout::Whole => true,
        GpuLayout::Cut(counts) | GpuLayout::Free { counts, .. } => {
            mix::possible(profiles(name), counts) == *counts
        }
    };
    let one = |(name, of_base): (&String, &GpuLayout)| {
        let layout = layouts.get(name).filter(|it| fits(name, it)).unwrap_or(of_base);
        (name.clone(), layout.clone())
    };
    base.iter().map(one).collect()
}

fn after(time: Timestamp, wait: Duration) -> Timestamp {
    let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
    time.checked_add(wait).unwrap_or(Timestamp::MAX)
}
