//! Which counters make the published devices exclude each other exactly as the hardware does.
//!
//! Memory slices always count. Of the media engines only those are counted that can really run out: the scheduler
//! compares every counter of a pool at every step of its search, so each one that says nothing costs time.

use std::collections::BTreeMap;

use crate::nvml::facts::{MediaEngines, Placement, Profile};

/// A media engine as a counter: its name, and how many of it a profile takes.
type Engine = (&'static str, fn(&MediaEngines) -> u32);

const ENGINES: [Engine; 4] = [
    ("decoders", |it| it.decoders),
    ("encoders", |it| it.encoders),
    ("jpegs", |it| it.jpegs),
    ("ofas", |it| it.ofas),
];

/// The counters of one GPU.
#[derive(Debug, Clone)]
pub struct CounterPlan {
    memory_slices: u32,
    engines: Vec<(Engine, u32)>,
}

impl CounterPlan {
    /// Finds the counters for a GPU with these profiles; none for a GPU without any.
    ///
    /// The GPU has as many of an engine as its richest profile. An engine is counted if some set of placements that
    /// do not overlap needs more of it than there are, and no engine counted already says so in every such case.
    #[must_use]
    pub fn of(profiles: &[Profile]) -> Self {
        let memory_slices = placements(profiles).map(|(_, it)| it.start + it.size).max().unwrap_or(0);
        let mut engines: Vec<(Engine, u32)> = Vec::new();
        for engine in ENGINES {
            let total = profiles.iter().map(|it| (engine.1)(&it.media)).max().unwrap_or(0);
            let can_run_out = u64::from(total) < most_needed(profiles, memory_slices, engine);
            let is_covered = engines.iter().any(|counted| covers(profiles, *counted, (engine, total)));
            if can_run_out && !is_covered {
                engines.retain(|counted| !covers(profiles, (engine, total), *counted));
                engines.push((engine, total));
            }
        }
        Self { memory_slices, engines }
    }

    /// Everything the empty GPU has; also what the whole GPU takes.
    #[must_use]
    pub fn totals(&self) -> BTreeMap<String, u32> {
        let slices = (0..self.memory_slices).map(|slice| (memory_slice(slice), 1));
        let engines = self.engines.iter().map(|((name, _), total)| ((*name).to_owned(), *total));
        slices.chain(engines).collect()
    }

    /// What one instance takes.
    #[must_use]
    pub fn cost(&self, profile: &Profile, placement: Placement) -> BTreeMap<String, u32> {
        let slices =
            (placement.start..placement.start + placement.size).map(|slice| (memory_slice(slice), 1));
        let engines = self
            .engines
            .iter()
            .map(|((name, count), _)| ((*name).to_owned(), count(&profile.media)))
            .filter(|(_, amount)| 0 < *amount);
        slices.chain(engines).collect()
    }
}

fn memory_slice(slice: u32) -> String {
    format!("memory-slice-{slice}")
}

fn placements(profiles: &[Profile]) -> impl Iterator<Item = (&Profile, Placement)> {
    profiles.iter().flat_map(|profile| profile.placements.iter().map(move |it| (profile, *it)))
}

/// The most of an engine that placements which do not overlap can need: the heaviest set of disjoint intervals.
fn most_needed(profiles: &[Profile], memory_slices: u32, engine: Engine) -> u64 {
    // best[end] is the most that placements within the first `end` slices can need.
    let mut best = vec![0_u64];
    for end in 1..=memory_slices {
        let ending_here = placements(profiles)
            .filter(|(_, it)| it.start + it.size == end)
            .map(|(profile, it)| best[it.start as usize] + u64::from((engine.1)(&profile.media)));
        let most = ending_here.fold(best[end as usize - 1], u64::max);
        best.push(most);
    }
    best[memory_slices as usize]
}

/// True where the first counter refuses whatever the second would refuse: every profile takes at least as large a
/// share of the first as of the second.
fn covers(profiles: &[Profile], first: (Engine, u32), second: (Engine, u32)) -> bool {
    let ((_, first_of), first_total) = first;
    let ((_, second_of), second_total) = second;
    // Shares compared without dividing: a/A <= b/B is a*B <= b*A.
    profiles.iter().all(|it| {
        u64::from(second_of(&it.media)) * u64::from(first_total)
            <= u64::from(first_of(&it.media)) * u64::from(second_total)
    })
}
