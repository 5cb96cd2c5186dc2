//! What a GPU that is held back for a profile offers all the same: the devices that are in the way of no instance of it. Pure.
//!
//! A device is in the way of a profile if it shares a memory slice with one of its placements. That alone does not say that it
//! takes nothing from it: instances share more than memory slices, such as multiprocessors and decoders. So devices are offered
//! beside a hold only if the GPU has enough of everything for an instance of the profile and for the most of them that fit beside
//! each other.

use std::collections::BTreeMap;

use super::fit::Candidate;

/// The positions of the candidates that are in the way of no instance of a profile, whichever of them exist beside it; ascending.
/// `candidates` are all that an empty GPU could have, `totals` what it has of each counter.
#[must_use]
pub fn beside(candidates: &[Candidate], totals: &BTreeMap<String, u32>, profile: &str) -> Vec<usize> {
    let (wanted, others): (Vec<usize>, Vec<usize>) =
        (0..candidates.len()).partition(|it| candidates[*it].profile == profile);
    let is_clear = |it: &usize| {
        let placement = candidates[*it].placement;
        !wanted.iter().any(|it| candidates[*it].placement.overlaps(placement))
    };
    let mut clear: Vec<usize> = others.into_iter().filter(is_clear).collect();
    let has_enough = |(counter, total): (&String, &u32)| {
        let amount = |it: &usize| candidates[*it].cost.get(counter).copied().unwrap_or(0);
        let own = wanted.iter().map(amount).max().unwrap_or(0);
        own == 0 || own.saturating_add(most(candidates, &clear, &amount)) <= *total
    };
    if wanted.is_empty() || !totals.iter().all(has_enough) {
        clear.clear();
    }
    clear
}

/// The most that candidates take together of which no two share a memory slice.
fn most(candidates: &[Candidate], of: &[usize], amount: &impl Fn(&usize) -> u32) -> u32 {
    let mut ends: Vec<(u32, &usize)> = of.iter().map(|it| (candidates[*it].placement.end(), it)).collect();
    ends.sort_unstable();
    // By end: the most of those that end there or before.
    let mut best = BTreeMap::from([(0, 0_u32)]);
    let until = |best: &BTreeMap<u32, u32>, end: u32| best.range(..=end).next_back().map_or(0, |it| *it.1);
    for (end, it) in ends {
        let with = until(&best, candidates[*it].placement.start).saturating_add(amount(it));
        best.insert(end, with.max(until(&best, end)));
    }
    best.into_values().max().unwrap_or(0)
}
