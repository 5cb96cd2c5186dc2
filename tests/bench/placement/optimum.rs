//! What is reachable at all on one GPU without moving anything: the best choice in every state, found by value iteration
//! over all sets of instances, for a mix and load that it knows in advance, as no driver can.

use std::collections::BTreeMap;

use crate::node::{Node, has_room, take};

/// Share of the requests that are served, by profile, where `worth` of what is served is as high as it can be.
pub(crate) fn best_possible(
    node: &Node,
    mix: &[(usize, f64)],
    load: f64,
    worth: impl Fn(usize) -> f64,
) -> Vec<f64> {
    let chain = Chain::new(node, mix, load);
    let choice = chain.best_choice(&worth);
    chain.served(&choice)
}

/// The same where always the placement of the lowest start is taken.
pub(crate) fn lowest_start(node: &Node, mix: &[(usize, f64)], load: f64) -> Vec<f64> {
    let chain = Chain::new(node, mix, load);
    // NVML lists placements by start.
    let first = |it: &Vec<Vec<usize>>| it.iter().map(|it| it.first().copied()).collect();
    let choice: Vec<Vec<Option<usize>>> = chain.taken.iter().map(first).collect();
    chain.served(&choice)
}

struct Chain {
    /// Arrivals by entry of the mix, per mean time of an instance.
    rates: Vec<f64>,
    profiles: Vec<usize>,
    profile_count: usize,
    /// By state and entry of the mix the states that a request may lead to.
    taken: Vec<Vec<Vec<usize>>>,
    /// By state the states that departures lead to.
    freed: Vec<Vec<usize>>,
    /// Above the rate at which anything happens in any state.
    clock: f64,
}

impl Chain {
    fn new(node: &Node, mix: &[(usize, f64)], load: f64) -> Self {
        let total: f64 = mix.iter().map(|it| it.1).sum();
        let slices = f64::from(node.profiles.iter().map(|it| it.size).max().unwrap_or(1));
        let mean: f64 =
            mix.iter().map(|(it, share)| f64::from(node.profiles[*it].size) * share / total).sum();
        let rates: Vec<f64> = mix.iter().map(|(_, share)| load * slices / mean * share / total).collect();
        let profiles: Vec<usize> = mix.iter().map(|it| it.0).collect();
        let devices: Vec<usize> = (0..node.devices.len())
            .filter(|it| node.devices[*it].gpu == 0 && profiles.contains(&node.devices[*it].profile))
            .collect();
        let mut states = BTreeMap::new();
        enumerate(node, &devices, &node.full, &mut Vec::new(), &mut states);
        let index: BTreeMap<&Vec<usize>, usize> = states.keys().zip(0..).collect();
        let with = |set: &Vec<usize>, device: usize| {
            let mut set = set.clone();
            set.push(device);
            set.sort_unstable();
            index[&set]
        };
        let taken = states.iter().map(|(set, left)| {
            let of_profile = |profile: &usize| {
                let open = devices.iter().map(|it| (it, &node.devices[*it]));
                let open = open.filter(|(_, it)| it.profile == *profile && has_room(left, &it.cost));
                open.map(|(device, _)| with(set, *device)).collect()
            };
            profiles.iter().map(of_profile).collect()
        });
        let freed = states.keys().map(|set| {
            (0..set.len())
                .map(|gone| {
                    let mut set = set.clone();
                    set.remove(gone);
                    index[&set]
                })
                .collect()
        });
        Self {
            clock: rates.iter().sum::<f64>() + slices,
            taken: taken.collect(),
            freed: freed.collect(),
            rates,
            profiles,
            profile_count: node.profiles.len(),
        }
    }

    fn best_choice(&self, worth: impl Fn(usize) -> f64) -> Vec<Vec<Option<usize>>> {
        let best = |values: &[f64], open: &[usize]| {
            open.iter().copied().max_by(|left, right| values[*left].total_cmp(&values[*right]))
        };
        let mut values = vec![0.0; self.taken.len()];
        for _ in 0..20_000 {
            let next: Vec<f64> = (0..values.len())
                .map(|state| {
                    let mut gain = 0.0;
                    for (entry, rate) in self.rates.iter().enumerate() {
                        if let Some(to) = best(&values, &self.taken[state][entry]) {
                            gain += rate * (worth(self.profiles[entry]) + values[to] - values[state]);
                        }
                    }
                    gain += self.freed[state].iter().map(|to| values[*to] - values[state]).sum::<f64>();
                    values[state] + gain / self.clock
                })
                .collect();
            let changes = || next.iter().zip(&values).map(|(new, old)| new - old);
            let (least, most) = (changes().fold(f64::MAX, f64::min), changes().fold(f64::MIN, f64::max));
            let zero = next[0];
            values = next.iter().map(|it| it - zero).collect();
            if most - least < 1e-7 * most.abs() {
                break;
            }
        }
        self.taken.iter().map(|it| it.iter().map(|it| best(&values, it)).collect()).collect()
    }

    /// How often each profile finds room in the long run.
    fn served(&self, choice: &[Vec<Option<usize>>]) -> Vec<f64> {
        let mut share = vec![0.0; self.taken.len()];
        share[0] = 1.0;
        for _ in 0..4000 {
            let mut next = vec![0.0; share.len()];
            for (state, now) in share.iter().enumerate() {
                let mut stays = self.clock;
                for (rate, to) in self.rates.iter().zip(&choice[state]) {
                    if let Some(to) = to {
                        next[*to] += now * rate / self.clock;
                        stays -= rate;
                    }
                }
                for to in &self.freed[state] {
                    next[*to] += now / self.clock;
                    stays -= 1.0;
                }
                next[state] += now * stays / self.clock;
            }
            share = next;
        }
        let mut served = vec![0.0; self.profile_count];
        for (entry, profile) in self.profiles.iter().enumerate() {
            served[*profile] =
                share.iter().zip(choice).filter(|(_, it)| it[entry].is_some()).map(|it| it.0).sum();
        }
        served
    }
}

fn enumerate(
    node: &Node,
    devices: &[usize],
    left: &[u32],
    set: &mut Vec<usize>,
    states: &mut BTreeMap<Vec<usize>, Vec<u32>>,
) {
    states.insert(set.clone(), left.to_vec());
    for (index, device) in devices.iter().enumerate() {
        let cost = &node.devices[*device].cost;
        if has_room(left, cost) {
            let mut rest = left.to_vec();
            take(&mut rest, cost);
            set.push(*device);
            enumerate(node, &devices[index + 1..], &rest, set, states);
            set.pop();
        }
    }
}
