//! Ranks devices for the next allocation. The scheduler takes the first one that fits, in the order of the slice, so this
//! order is the only placement policy there is.
//!
//! Pure, and without knowledge of any GPU model: what a device blocks follows from the counters. Hides
//! nothing: a ranking has every device of the inventory, those that are unavailable now last.
//!
//! The order, from the first criterion to the last:
//!
//! 1. Profiles: plain ones, the smallest first; then variants (`-me`, `+gfx`), then those with more memory than others
//!    of their compute slices, then those with media engines, and the whole GPU last. A request by memory or SM count
//!    takes the first that is enough.
//! 2. GPUs, for one profile: with `pack` the one on which the least is still possible, so that GPUs fill up one after
//!    the other and empty ones stay whole; with `spread` the other way round.
//! 3. Placements, on one GPU: what blocks the least on an empty GPU, because neighbours come and go; then what blocks
//!    the least now. Blocked devices count with their memory slices.
//!
//! The order of a profile is that in which a run of requests for it should be served, so it needs no change while they
//! come.

mod ledger;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use clap::ValueEnum;

use crate::inventory::{Amounts, Inventory};
use ledger::{Entry, Ledger, ProfileRank};

/// Which GPU comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    /// Partly used GPUs first, the fullest at the front, so that others stay whole for large requests.
    Pack,
    /// Empty GPUs first, so that instances share as few GPUs as possible.
    Spread,
    /// GPUs by PCI address, whatever is in use; the slices are never rewritten.
    Static,
}

/// Every device of an inventory, those to be taken first at the front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranking {
    names: Vec<String>,
    places: BTreeMap<String, Place>,
}

/// Where a device stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    place: usize,
    /// Devices of one profile have the same number.
    profile: usize,
    is_available: bool,
}

impl Ranking {
    /// Ranks what a node offers. `held` names the devices that claims hold.
    #[must_use]
    pub fn of(inventory: &Inventory, held: &BTreeSet<String>, policy: Policy) -> Self {
        let ledgers: Vec<Ledger<'_>> = inventory.gpus.iter().map(|it| Ledger::of(it, held)).collect();
        let mut profiles: BTreeMap<ProfileRank<'_>, Vec<Candidate<'_, '_>>> = BTreeMap::new();
        for (gpu, ledger) in ledgers.iter().enumerate() {
            for entry in &ledger.entries {
                profiles.entry(entry.profile).or_default().push(Candidate { gpu, entry });
            }
        }
        let mut ranking = Self { names: Vec::new(), places: BTreeMap::new() };
        for (profile, devices) in profiles.into_values().enumerate() {
            for it in in_order(devices, &ledgers, policy) {
                let name = it.entry.device.name.to_string();
                let is_available = ledgers[it.gpu].has_room(it.entry, &ledgers[it.gpu].left);
                let place = Place { place: ranking.names.len(), profile, is_available };
                ranking.places.insert(name.clone(), place);
                ranking.names.push(name);
            }
        }
        ranking
    }

    /// Names of all devices, those to be taken first at the front.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Where a device stands; the lower, the better. Unknown devices stand behind all others.
    #[must_use]
    pub fn place(&self, device: &str) -> usize {
        self.places.get(device).map_or(usize::MAX, |it| it.place)
    }

    /// True where a list, ranked some time ago, still leads to the same choice for each profile: the first of those that
    /// is available now is the one that this ranking prefers. Such lists need no rewrite.
    pub fn agrees_with<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> bool {
        // By profile the first in the list and the best.
        let mut choices: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
        let places = names.into_iter().filter_map(|it| self.places.get(it));
        for it in places.filter(|it| it.is_available) {
            let (_, best) = choices.entry(it.profile).or_insert((it.place, it.place));
            *best = it.place.min(*best);
        }
        choices.into_values().all(|(first, best)| first == best)
    }
}

/// A device and the index of its GPU.
#[derive(Clone, Copy)]
struct Candidate<'a, 'i> {
    gpu: usize,
    entry: &'a Entry<'i>,
}

/// Devices of one profile in the order in which a run of requests should take them.
fn in_order<'a, 'i>(
    mut open: Vec<Candidate<'a, 'i>>,
    ledgers: &[Ledger<'i>],
    policy: Policy,
) -> Vec<Candidate<'a, 'i>> {
    // What is left over in the end, and everything where the state does not count.
    let on_empty = |it: &Candidate<'_, '_>| (it.gpu, it.entry.blocked_when_empty, Reverse(it.entry.start));
    open.sort_by_key(on_empty);
    if policy == Policy::Static {
        return open;
    }
    let mut ordered = Vec::with_capacity(open.len());
    loop {
        let served = run(&open, ledgers, policy);
        if served.is_empty() {
            ordered.append(&mut open);
            return ordered;
        }
        // A second choice for what the run has blocked itself: it counts if the first choice is gone otherwise.
        let mut is_served = vec![false; open.len()];
        for index in served {
            is_served[index] = true;
            ordered.push(open[index]);
        }
        let mut is_served = is_served.into_iter();
        open.retain(|_| is_served.next() == Some(false));
    }
}

/// Takes one device after the other, as far as there is room for all of them together. Answers with indices.
fn run(open: &[Candidate<'_, '_>], ledgers: &[Ledger<'_>], policy: Policy) -> Vec<usize> {
    let mut left: Vec<Amounts> = ledgers.iter().map(|it| it.left.clone()).collect();
    let mut possible: Vec<u32> = ledgers.iter().map(|it| it.possible(&it.left)).collect();
    let mut served = Vec::new();
    let mut waiting: BTreeSet<usize> = (0..open.len()).collect();
    loop {
        waiting.retain(|it| ledgers[open[*it].gpu].has_room(open[*it].entry, &left[open[*it].gpu]));
        let by_gpu = |it: &usize| {
            let gpu = open[*it].gpu;
            (if policy == Policy::Spread { u32::MAX - possible[gpu] } else { possible[gpu] }, gpu)
        };
        let Some(gpu) = waiting.iter().map(by_gpu).min().map(|it| it.1) else { return served };
        let cost = |it: &usize| {
            let entry = open[*it].entry;
            let blocked = possible[gpu] - ledgers[gpu].possible(&ledgers[gpu].without(entry, &left[gpu]));
            (entry.blocked_when_empty, blocked, Reverse(entry.start))
        };
        let best = waiting.iter().copied().filter(|it| open[*it].gpu == gpu).min_by_key(cost);
        let Some(best) = best else { return served };
        waiting.remove(&best);
        left[gpu] = ledgers[gpu].without(open[best].entry, &left[gpu]);
        possible[gpu] = ledgers[gpu].possible(&left[gpu]);
        served.push(best);
    }
}
