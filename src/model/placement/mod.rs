//! Ranks devices for the next allocation. The scheduler takes the first one that fits, in the order of the slice, so this
//! order is the only placement policy there is.
//!
//! Pure, and without knowledge of any GPU model: what a device blocks follows from the counters. Hides
//! nothing: a ranking has every device of the inventory, those that are unavailable now after those of the same GPU that are
//! available, and those of GPUs with nothing available last.
//!
//! The order, from the first criterion to the last:
//!
//! 1. Profiles: plain ones, the smallest first; then variants (`-me`, `+gfx`), then those with more memory than others
//!    of their compute slices, then those with media engines, and the whole GPU last. A request by memory or SM count
//!    takes the first that is enough.
//! 2. GPUs, for one profile: with `pack` the one on which the least is still possible, so that GPUs fill up one after
//!    the other and empty ones stay whole; with `spread` the other way round.
//! 3. Placements, on one GPU and on GPUs that are equal in this: what blocks the least on an empty GPU, because neighbours come and go; then what blocks
//!    the least now. Blocked devices count with their memory slices.
//!
//! The order of a profile is that in which a run of requests for it should be served, so it needs no change while they
//! come. With `pack` all devices of a GPU stand together, also those that such a run would block: they are the next choice where
//! something else has taken the place of the first.

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
    /// What taking it next would cost, the less the better; nothing where it is unavailable.
    cost: Option<Cost>,
}

/// What taking a device next would cost, by the criteria of the order; the less, the better. Which of two devices of equal cost comes first
/// does not matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost {
    /// How much is still possible on the GPU, or the opposite, as the policy asks.
    gpu: u32,
    /// What the device excludes on an empty GPU.
    blocked_when_empty: u32,
    /// What it would exclude now.
    blocked: u32,
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
                let place = ranking.names.len();
                let place = Place { place, profile, cost: cost(&it, place, &ledgers, policy) };
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

    /// What taking the device next would cost; `None` where it is unavailable or unknown.
    #[must_use]
    pub fn cost(&self, device: &str) -> Option<Cost> {
        self.places.get(device)?.cost
    }

    /// True where a list, ranked some time ago, still leads to a choice for each profile that is as good as this ranking's: the first of
    /// those that is available now costs no more than any other. Such lists need no rewrite.
    pub fn agrees_with<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> bool {
        // By profile the cost of the first in the list, and the least.
        let mut choices: BTreeMap<usize, (Cost, Cost)> = BTreeMap::new();
        let places = names.into_iter().filter_map(|it| self.places.get(it));
        for (profile, cost) in places.filter_map(|it| Some((it.profile, it.cost?))) {
            let (_, best) = choices.entry(profile).or_insert((cost, cost));
            *best = cost.min(*best);
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

/// What taking the device next would cost; `None` where it is unavailable. Where the state does not count, its place is all that does.
fn cost(of: &Candidate<'_, '_>, place: usize, ledgers: &[Ledger<'_>], policy: Policy) -> Option<Cost> {
    let ledger = &ledgers[of.gpu];
    if !ledger.has_room(of.entry, &ledger.left) {
        return None;
    }
    if policy == Policy::Static {
        return Some(Cost {
            gpu: u32::try_from(place).unwrap_or(u32::MAX),
            blocked_when_empty: 0,
            blocked: 0,
        });
    }
    let possible = ledger.possible(&ledger.left);
    Some(Cost {
        gpu: preference(possible, policy),
        blocked_when_empty: of.entry.blocked_when_empty,
        blocked: possible - ledger.possible(&ledger.without(of.entry, &ledger.left)),
    })
}

/// The less, the sooner a GPU is used on which so much is still possible.
fn preference(possible: u32, policy: Policy) -> u32 {
    if policy == Policy::Spread { u32::MAX - possible } else { possible }
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
            if policy == Policy::Pack {
                by_gpu(&mut ordered, ledgers.len());
            }
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

/// Puts the devices of a GPU together, GPUs in the order in which a run uses them; those with nothing available come last. On a GPU what blocks
/// the least when it is empty comes first, held or not: so the release of a device rarely needs a rewrite.
fn by_gpu(ordered: &mut [Candidate<'_, '_>], gpus: usize) {
    let mut ranks = vec![usize::MAX; gpus];
    for (rank, it) in ordered.iter().enumerate() {
        ranks[it.gpu] = ranks[it.gpu].min(rank);
    }
    ordered.sort_by_key(|it| (ranks[it.gpu], it.entry.blocked_when_empty));
}

/// Takes one device after the other, as far as there is room for all of them together. Answers with indices.
fn run(open: &[Candidate<'_, '_>], ledgers: &[Ledger<'_>], policy: Policy) -> Vec<usize> {
    let mut left: Vec<Amounts> = ledgers.iter().map(|it| it.left.clone()).collect();
    let mut possible: Vec<u32> = ledgers.iter().map(|it| it.possible(&it.left)).collect();
    let mut served = Vec::new();
    let mut waiting: BTreeSet<usize> = (0..open.len()).collect();
    loop {
        waiting.retain(|it| ledgers[open[*it].gpu].has_room(open[*it].entry, &left[open[*it].gpu]));
        let preferred = |it: &usize| preference(possible[open[*it].gpu], policy);
        let Some(least) = waiting.iter().map(preferred).min() else { return served };
        let first: Vec<usize> = waiting.iter().copied().filter(|it| preferred(it) == least).collect();
        let when_empty = |it: &usize| open[*it].entry.blocked_when_empty;
        let least = first.iter().map(when_empty).min();
        let cost = |it: &usize| {
            let Candidate { gpu, entry } = open[*it];
            let blocked = possible[gpu] - ledgers[gpu].possible(&ledgers[gpu].without(entry, &left[gpu]));
            (blocked, gpu, Reverse(entry.start))
        };
        let best = first.into_iter().filter(|it| Some(when_empty(it)) == least).min_by_key(cost);
        let Some(best) = best else { return served };
        let gpu = open[best].gpu;
        waiting.remove(&best);
        left[gpu] = ledgers[gpu].without(open[best].entry, &left[gpu]);
        possible[gpu] = ledgers[gpu].possible(&left[gpu]);
        served.push(best);
    }
}

#[cfg(test)]
mod tests;
