//! Which counters make the published devices exclude each other exactly as the hardware does.
//!
//! Memory slices always count. Of the media engines only those are counted that can really run out: the scheduler
//! compares every counter of a pool at every step of its search, so each one that says nothing costs time. One more, the
//! memory, excludes nothing: quotas add it up (Kueue), and so do reports of what a pool has left (KEP-5677).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::facts::{MediaEngines, Placement, Profile};

/// Names of the media engine counters, in the order of [`counts`].
const ENGINES: [&str; 4] = ["decoders", "encoders", "jpegs", "ofas"];

/// How many of each engine something has or needs.
type Counts = [u32; ENGINES.len()];

/// The counters of one GPU.
#[derive(Debug, Clone)]
pub struct CounterPlan {
    memory_slices: u32,
    memory_mib: u64,
    /// What the GPU has, taken from its largest profile.
    totals: Counts,
    /// Which engines are counted.
    counted: Vec<usize>,
}

impl CounterPlan {
    /// Finds the fewest counters that are exact for a GPU with these profiles; none for a GPU without any.
    ///
    /// Exact means: whatever set of placements that do not overlap needs more of some engine than there is also needs
    /// more of a counted engine. There are some thousand such sets, with far fewer different needs, and sixteen
    /// choices of engines. For a GPU with very many different needs all engines are counted: exact, only not the fewest.
    #[must_use]
    pub fn of(profiles: &[Profile]) -> Self {
        let memory_slices = placements(profiles).map(|(_, it)| it.end()).max().unwrap_or(0);
        let totals = profiles.iter().map(counts).fold(Counts::default(), |most, it| zip(most, it, u32::max));
        let memory_mib = most_needed(placements(profiles).map(|(profile, it)| (it, profile.memory_mib)));
        let exceeds = |needs: &Counts, engine: usize| totals[engine] < needs[engine];
        let Some(possible) = possible_needs(profiles, memory_slices) else {
            return Self { memory_slices, memory_mib, totals, counted: (0..ENGINES.len()).collect() };
        };
        let impossible: Vec<Counts> =
            possible.into_iter().filter(|needs| (0..ENGINES.len()).any(|it| exceeds(needs, it))).collect();
        let mut choices: Vec<Vec<usize>> = (0..1_u32 << ENGINES.len())
            .map(|bits| (0..ENGINES.len()).filter(|it| bits >> it & 1 == 1).collect())
            .collect();
        choices.sort_by_key(Vec::len);
        let is_exact =
            |choice: &Vec<usize>| impossible.iter().all(|needs| choice.iter().any(|it| exceeds(needs, *it)));
        // The choice of all engines is exact, so there is one.
        let counted = choices.into_iter().find(is_exact).unwrap_or_default();
        Self { memory_slices, memory_mib, totals, counted }
    }

    /// Everything the empty GPU has; also what the whole GPU takes.
    #[must_use]
    pub fn totals(&self) -> BTreeMap<String, u32> {
        self.counters(0..self.memory_slices, self.totals)
    }

    /// The most memory that instances beside each other have, MiB: the total of the counter that quotas add up. No set of
    /// placements that do not overlap needs more, so this counter never refuses what the others admit. It is a little less
    /// than the memory of the GPU, or more where NVML rounds up what each profile has.
    #[must_use]
    pub fn memory_mib(&self) -> u64 {
        self.memory_mib
    }

    /// What one instance takes.
    #[must_use]
    pub fn cost(&self, profile: &Profile, placement: Placement) -> BTreeMap<String, u32> {
        self.counters(placement.slices(), counts(profile))
    }

    /// What an instance of an unknown profile takes for certain.
    #[must_use]
    pub fn cost_of_memory(&self, placement: Placement) -> BTreeMap<String, u32> {
        self.counters(placement.slices(), Counts::default())
    }

    fn counters(&self, slices: Range<u32>, engines: Counts) -> BTreeMap<String, u32> {
        let slices = slices.map(|slice| (format!("memory-slice-{slice}"), 1));
        let engines = self.counted.iter().map(|it| (ENGINES[*it].to_owned(), engines[*it]));
        slices.chain(engines.filter(|(_, amount)| 0 < *amount)).collect()
    }
}

/// Which devices have to be left out where unmanaged instances leave only `left` of `totals`, so that whatever the totals
/// admit of the rest is really there. `offered` are devices that each fit into `left`.
///
/// Memory slices need nothing: a device that needs one that is taken is not among them. Of an engine each may find enough and
/// all together not; then those that need the most of it are left out. The totals themselves are never lowered: a device that
/// was allocated a moment ago counts against them.
pub(super) fn crowded(
    offered: &[(Placement, &BTreeMap<String, u32>)],
    totals: &BTreeMap<String, u32>,
    left: &BTreeMap<String, u32>,
) -> Vec<bool> {
    let mut is_out = vec![false; offered.len()];
    for (engine, total) in totals {
        let left = left.get(engine).copied().unwrap_or(0);
        let need = |index: usize| offered[index].1.get(engine).copied().unwrap_or(0);
        loop {
            let rest: Vec<usize> = (0..offered.len()).filter(|it| !is_out[*it]).collect();
            let parts = rest.iter().map(|it| (offered[*it].0, need(*it).into()));
            let most = rest.iter().map(|it| need(*it)).max().unwrap_or(0);
            if left == *total || most == 0 || most_needed(parts) <= left.into() {
                break;
            }
            rest.into_iter().filter(|it| need(*it) == most).for_each(|it| is_out[it] = true);
        }
    }
    is_out
}

/// The most that placements of which no two overlap need together.
fn most_needed(parts: impl Iterator<Item = (Placement, u64)>) -> u64 {
    let mut parts: Vec<(u32, u32, u64)> = parts.map(|(it, need)| (it.end(), it.start, need)).collect();
    parts.sort_unstable();
    // By the end of the last one, what those up to there need.
    let mut best: BTreeMap<u32, u64> = BTreeMap::new();
    let up_to = |best: &BTreeMap<u32, u64>, end: u32| best.range(..=end).next_back().map_or(0, |it| *it.1);
    for (end, start, need) in parts {
        let most = up_to(&best, end).max(up_to(&best, start).saturating_add(need));
        best.insert(end, most);
    }
    best.into_values().next_back().unwrap_or(0)
}

fn counts(profile: &Profile) -> Counts {
    let MediaEngines { decoders, encoders, jpegs, ofas } = profile.media;
    [decoders, encoders, jpegs, ofas]
}

fn placements(profiles: &[Profile]) -> impl Iterator<Item = (&Profile, Placement)> {
    let all = profiles.iter().flat_map(|profile| profile.placements.iter().map(move |it| (profile, *it)));
    all.filter(|(_, it)| it.is_plausible())
}

/// What the sets of placements that do not overlap can need together; nothing where that is too much to look through.
fn possible_needs(profiles: &[Profile], memory_slices: u32) -> Option<BTreeSet<Counts>> {
    /// A hundred times what an H100 has.
    const MOST: usize = 10_000;
    // within[end] is what placements within the first `end` slices can need.
    let mut within = vec![BTreeSet::from([Counts::default()])];
    for end in 1..=memory_slices {
        let mut needs = within[end as usize - 1].clone();
        for (profile, placement) in placements(profiles).filter(|(_, it)| it.end() == end) {
            needs.extend(
                within[placement.start as usize]
                    .iter()
                    .map(|it| zip(*it, counts(profile), u32::saturating_add)),
            );
            if MOST < needs.len() {
                return None;
            }
        }
        within.push(needs);
    }
    within.pop()
}

fn zip(left: Counts, right: Counts, join: impl Fn(u32, u32) -> u32) -> Counts {
    std::array::from_fn(|it| join(left[it], right[it]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(engines: u32) -> BTreeMap<String, u32> {
        [("decoders".to_owned(), engines)].into()
    }

    /// Which of devices with these first slices, sizes and decoders are left out, where so many of 4 decoders are left.
    fn left_out(devices: &[(u32, u32, u32)], left: u32) -> Vec<bool> {
        let costs: Vec<_> = devices.iter().map(|(_, _, engines)| cost(*engines)).collect();
        let place = |(start, size, _): &(u32, u32, u32)| Placement { start: *start, size: *size };
        let parts: Vec<_> = devices.iter().map(place).zip(&costs).collect();
        crowded(&parts, &cost(4), &cost(left))
    }

    #[test]
    fn devices_that_an_engine_suffices_for_one_by_one_and_not_together_are_left_out() {
        let (left, right, across) = ((0, 2, 2), (2, 2, 2), (1, 2, 1));
        assert_eq!(left_out(&[left, right, across], 3), [true, true, false]);
        assert_eq!(left_out(&[left, right, across], 4), [false; 3]);
        assert_eq!(left_out(&[(0, 2, 2), (1, 2, 2)], 3), [false; 2], "they overlap");
        assert_eq!(left_out(&[(0, 1, 1), (1, 1, 1), (2, 1, 1), (3, 1, 0)], 3), [false; 4]);
        assert_eq!(left_out(&[(0, 1, 1), (1, 1, 1)], 1), [true, true]);
    }
}
