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

/// How good a choice is; the larger, the better. Every part is a sum over the chosen candidates.
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
    let mut search = Search::new(candidates, room, wanted);
    let (mut left, mut missing) = (search.room.clone(), search.wanted.clone());
    let mut chosen = Vec::new();
    for step in 0..search.options.len() {
        if search.best(step, &left, &missing).1 {
            let option = search.options[step].clone();
            left = left.without(&option.cost);
            missing[option.profile] -= 1;
            chosen.push(option.candidate);
        }
    }
    chosen.sort_unstable();
    chosen
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
    /// Which counters options from a step on still take.
    counters: Vec<Vec<usize>>,
    /// Which profiles options from a step on still have.
    profiles: Vec<Vec<usize>>,
    known: HashMap<(usize, Vec<u32>), (Score, bool)>,
}

impl Search {
    fn new(candidates: &[Candidate], room: &BTreeMap<String, u32>, wanted: &BTreeMap<String, u32>) -> Self {
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
            let score = (1, placement.size, Reverse(blocked), placement.start);
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
            known: HashMap::new(),
        }
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
            missing[option.profile] -= 1;
            let with = sum(option.score, self.best(step + 1, &left, &missing).0);
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
