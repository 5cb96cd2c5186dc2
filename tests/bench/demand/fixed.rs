//! The best that a layout can do that is chosen once, knowing all arrivals: each profile has its own devices, so its
//! pods wait in a queue of their own.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use crate::arrivals::{Arrival, profiles};
use crate::model::{Model, Set, members};
use crate::outcome::Outcome;

/// How many devices of each profile.
pub(crate) type Counts = Vec<usize>;

/// What one GPU can be partitioned into: only what no other partition has more of everything than.
pub(crate) fn fillings(model: &Model) -> Vec<Counts> {
    let profiles = profiles(model);
    let mut all = BTreeSet::new();
    let of = |it: usize| profiles.iter().position(|profile| profile.0 == model.devices[it].profile);
    let wanted: Vec<(usize, usize)> = (0..model.devices.len()).filter_map(|it| Some((it, of(it)?))).collect();
    fill(model, &wanted, 0, &mut vec![0; profiles.len()], &mut all);
    let is_within = |small: &Counts, large: &Counts| small.iter().zip(large).all(|(it, most)| it <= most);
    let list: Vec<Counts> = all.iter().cloned().collect();
    list.iter().filter(|it| !list.iter().any(|other| other != *it && is_within(it, other))).cloned().collect()
}

fn fill(
    model: &Model,
    wanted: &[(usize, usize)],
    held: Set,
    counts: &mut Counts,
    all: &mut BTreeSet<Counts>,
) {
    all.insert(counts.clone());
    let open = model.open(held);
    for (index, (device, profile)) in wanted.iter().enumerate() {
        if open >> device & 1 == 1 {
            counts[*profile] += 1;
            fill(model, &wanted[index + 1..], held | 1 << device, counts, all);
            counts[*profile] -= 1;
        }
    }
    debug_assert!(members(held).count() <= 8);
}

/// Starts of the pods of one profile with so many devices, first come first served.
fn starts(arrivals: &[Arrival], profile: usize, devices: usize, into: &mut [Option<f64>]) {
    let mut free: BinaryHeap<Reverse<u64>> = (0..devices).map(|_| Reverse(0)).collect();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "times are small and positive"
    )]
    let order = |time: f64| (time * 1e6) as u64;
    #[expect(clippy::cast_precision_loss, reason = "times are small")]
    let time = |order: u64| order as f64 / 1e6;
    for (arrival, start) in arrivals.iter().zip(into).filter(|it| it.0.profile == profile) {
        *start = free.pop().map(|it| time(it.0).max(arrival.at));
        if let Some(start) = start {
            free.push(Reverse(order(*start + arrival.lasts)));
        }
    }
}

/// What comes of fixed counts.
pub(crate) fn with(arrivals: &[Arrival], counts: &Counts, sizes: &[u32]) -> Outcome {
    let mut all = vec![None; arrivals.len()];
    for (profile, devices) in counts.iter().enumerate() {
        starts(arrivals, profile, *devices, &mut all);
    }
    Outcome::of(arrivals, &all, sizes)
}

/// The counts that serve the most memory: GPU by GPU the filling that adds the most, and then exchanged as long as that helps.
pub(crate) fn best(arrivals: &[Arrival], model: &Model, gpus: usize, sizes: &[u32]) -> (Counts, Outcome) {
    let fillings = fillings(model);
    let end = arrivals.last().map_or(0.0, |it| it.at);
    let mut known: Vec<Vec<Option<f64>>> = vec![Vec::new(); sizes.len()];
    let mut served = |profile: usize, devices: usize| {
        if known[profile].len() <= devices {
            known[profile].resize(devices + 1, None);
        }
        *known[profile][devices].get_or_insert_with(|| {
            let mut all = vec![None; arrivals.len()];
            starts(arrivals, profile, devices, &mut all);
            let count = all.iter().flatten().filter(|it| **it <= end).count();
            #[expect(clippy::cast_precision_loss, reason = "there are few pods")]
            let count = count as f64;
            count * f64::from(sizes[profile])
        })
    };
    let mut total = |counts: &Counts| -> f64 {
        counts.iter().enumerate().map(|(profile, devices)| served(profile, *devices)).sum()
    };
    let sum = |chosen: &[usize]| -> Counts {
        (0..sizes.len()).map(|it| chosen.iter().map(|filling| fillings[*filling][it]).sum()).collect()
    };
    let mut chosen: Vec<usize> = Vec::new();
    for _ in 0..gpus {
        let mut with = |filling: usize| total(&sum(&[&chosen[..], &[filling]].concat()));
        let values: Vec<f64> = (0..fillings.len()).map(&mut with).collect();
        let best = (0..fillings.len()).max_by(|a, b| values[*a].total_cmp(&values[*b])).unwrap_or(0);
        chosen.push(best);
    }
    let mut best = total(&sum(&chosen));
    loop {
        let before = best;
        for gpu in 0..chosen.len() {
            for filling in 0..fillings.len() {
                let old = std::mem::replace(&mut chosen[gpu], filling);
                let value = total(&sum(&chosen));
                if best < value {
                    best = value;
                } else {
                    chosen[gpu] = old;
                }
            }
        }
        if best <= before {
            break;
        }
    }
    let counts = sum(&chosen);
    let outcome = with(arrivals, &counts, sizes);
    (counts, outcome)
}
