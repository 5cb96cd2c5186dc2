//! Counts to placements, by search.
//!
//! Exact: among all ways to place as many of the wanted instances as there is room for, it finds the one that drops the
//! fewest, of these the one with the most memory, and of these the one that blocks the fewest other placements. The
//! order in which a user writes profiles does not matter. Knows no GPU model; everything comes from placements and costs.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use crate::facts::Placement;
use crate::inventory::{Amounts, CounterNames, fits_into};

/// An instance that could be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Name of the profile.
    pub profile: String,
    /// Where it goes.
    pub placement: Placement,
    /// What it takes of the GPU's counters.
    pub cost: BTreeMap<String, u32>,
}

/// How good a choice is; the larger, the better: instances that are needed, memory that counts, and placements that stay free.
/// Every part is a sum over the chosen candidates.
type Score = (u32, u32, Reverse<usize>, u32);

/// Chooses placements for `wanted` (profile and count) so that they fit into `room` together, and returns their
/// positions in `candidates`, ascending. The same question always has the same answer.
///
/// `candidates` are all placements of the GPU, also those of profiles that are not wanted: they show which placements are
/// worth keeping free.
#[must_use]
pub fn fit(
    candidates: &[Candidate],
    room: &BTreeMap<String, u32>,
    wanted: &BTreeMap<String, u32>,
) -> Vec<usize> {
    let memory = |it: usize| candidates[it].placement.size;
    Search::new(candidates, room, wanted, &BTreeMap::new(), &memory).chosen()
}

/// Chooses placements for as many of `needed` as there is room for, and, of the ways to do that, one beside which the most memory
/// of the candidates at the positions `kept` stays as it is. Returns the positions of both, ascending. Kept candidates must fit
/// into `room` together; one of a needed profile serves the need.
#[must_use]
pub fn fit_keeping(
    candidates: &[Candidate],
    room: &BTreeMap<String, u32>,
    needed: &BTreeMap<String, u32>,
    kept: &[usize],
) -> Vec<usize> {
    let (mut wanted, mut optional) = (needed.clone(), BTreeMap::new());
    for candidate in kept.iter().map(|it| &candidates[*it]) {
        for counts in [&mut wanted, &mut optional] {
            let count = counts.entry(candidate.profile.clone()).or_insert(0_u32);
            *count = count.saturating_add(1);
        }
    }
    let memory = |it: usize| if kept.contains(&it) { candidates[it].placement.size } else { 0 };
    Search::new(candidates, room, &wanted, &optional, &memory).chosen()
}

/// What of `wanted` a choice leaves out: profile and count.
#[must_use]
pub fn dropped(
    candidates: &[Candidate],
    chosen: &[usize],
    wanted: &BTreeMap<String, u32>,
) -> BTreeMap<String, u32> {
    let count = |profile: &str| chosen.iter().filter(|it| candidates[**it].profile == profile).count();
    let left = |(profile, wanted): (&String, &u32)| {
        let left = wanted.saturating_sub(u32::try_from(count(profile)).unwrap_or(u32::MAX));
        (0 < left).then(|| (profile.clone(), left))
    };
    wanted.iter().filter_map(left).collect()
}

/// A candidate of a wanted profile, with everything as positions.
#[derive(Debug, Clone)]
struct Choice {
    candidate: usize,
    profile: usize,
    cost: Amounts,
    score: Score,
}

struct Search {
    /// Sorted by start, so that what lies behind a step no longer matters and many ways lead to the same question.
    options: Vec<Choice>,
    room: Amounts,
    wanted: Vec<u32>,
    /// How many of the wanted ones are not needed.
    optional: Vec<u32>,
    /// Which counters options from a step on still take.
    counters: Vec<Vec<usize>>,
    /// Which profiles options from a step on still have.
    profiles: Vec<Vec<usize>>,
    known: HashMap<(usize, Vec<u32>), (Score, bool)>,
}

impl Search {
    /// `optional` says how many of `wanted` are not needed, `memory` how much memory counts for a candidate.
    fn new(
        candidates: &[Candidate],
        room: &BTreeMap<String, u32>,
        wanted: &BTreeMap<String, u32>,
        optional: &BTreeMap<String, u32>,
        memory: &dyn Fn(usize) -> u32,
    ) -> Self {
        let names = CounterNames::of(room.keys());
        let profiles: Vec<&String> = wanted.keys().collect();
        let mut options: Vec<Choice> = Vec::new();
        for (index, candidate) in candidates.iter().enumerate() {
            let Ok(profile) = profiles.binary_search(&&candidate.profile) else { continue };
            if !fits_into(&candidate.cost, room) {
                continue;
            }
            let cost = names.amounts(&candidate.cost);
            let placement = candidate.placement;
            let blocked = candidates.iter().filter(|it| it.placement.overlaps(placement)).count();
            let score = (1, memory(index), Reverse(blocked), placement.start);
            options.push(Choice { candidate: index, profile, cost, score });
        }
        options.sort_by_key(|it| (candidates[it.candidate].placement, it.candidate));
        let after = |step: usize, of: &dyn Fn(&Choice) -> Vec<usize>| {
            let mut positions: Vec<usize> = options[step..].iter().flat_map(of).collect();
            positions.sort_unstable();
            positions.dedup();
            positions
        };
        let steps = 0..options.len();
        let counters =
            steps.clone().map(|it| after(it, &|option| option.cost.positions().collect())).collect();
        let profiles = steps.map(|it| after(it, &|option| vec![option.profile])).collect();
        Self {
            counters,
            profiles,
            options,
            room: names.amounts(room),
            wanted: wanted.values().copied().collect(),
            optional: wanted.keys().map(|it| optional.get(it).copied().unwrap_or(0)).collect(),
            known: HashMap::new(),
        }
    }

    /// The positions of the best choice, ascending.
    fn chosen(mut self) -> Vec<usize> {
        let (mut left, mut missing) = (self.room.clone(), self.wanted.clone());
        let mut chosen = Vec::new();
        for step in 0..self.options.len() {
            if self.best(step, &left, &missing).1 {
                let option = self.options[step].clone();
                left = left.without(&option.cost);
                missing[option.profile] -= 1;
                chosen.push(option.candidate);
            }
        }
        chosen.sort_unstable();
        chosen
    }

    /// The best score that options from `step` on can add, and whether the option at `step` is part of it.
    fn best(&mut self, step: usize, left: &Amounts, missing: &[u32]) -> (Score, bool) {
        if step == self.options.len() {
            return (Score::default(), false);
        }
        let of_counters = self.counters[step].iter().map(|it| left.at(*it));
        let key = (step, of_counters.chain(self.profiles[step].iter().map(|it| missing[*it])).collect());
        if let Some(known) = self.known.get(&key) {
            return *known;
        }
        let without = self.best(step + 1, left, missing).0;
        let option = self.options[step].clone();
        let fits = 0 < missing[option.profile] && left.covers(&option.cost);
        let mut found = (without, false);
        if fits {
            let (left, mut missing) = (left.without(&option.cost), missing.to_vec());
            // As long as more is missing than is optional, one that is needed is missing.
            let is_needed = self.optional[option.profile] < missing[option.profile];
            missing[option.profile] -= 1;
            let score = (u32::from(is_needed), option.score.1, option.score.2, option.score.3);
            let with = sum(score, self.best(step + 1, &left, &missing).0);
            if without < with {
                found = (with, true);
            }
        }
        self.known.insert(key, found);
        found
    }
}

fn sum(one: Score, other: Score) -> Score {
    (one.0 + other.0, one.1 + other.1, Reverse(one.2.0 + other.2.0), one.3 + other.3)
}
