//! Arrivals and departures through the scheduler's first fit: slices in random order, devices as published, counters
//! consumed. A request that finds nothing is lost.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use mig_model::placement::{Policy, Ranking};

use crate::chance::Chance;
use crate::node::{Lists, Node, give, has_room, take};
use crate::oracle::Oracle;

/// A number of requests, the same for each node that serves them.
pub(crate) struct Workload {
    pub(crate) requests: Vec<Request>,
}

/// One request: when, for what, and for how long.
pub(crate) struct Request {
    at: f64,
    pub(crate) profile: usize,
    lasts: f64,
}

/// Who decides where a request goes.
pub(crate) enum Server {
    /// Lists that stay as they are.
    Fixed(Lists),
    /// Any device that fits, all being equal.
    Random,
    /// The driver. Its slices follow after so many arrivals: 1 is at once. Between two changes of the order of a slice passes at least
    /// this part of a mean run time, as with `--reorder-interval`.
    Driver(Policy, usize, f64),
    /// May move what runs.
    Repacking(Oracle),
}

/// What came of a workload.
#[derive(Clone)]
pub(crate) struct Outcome {
    pub(crate) asked: Vec<u32>,
    pub(crate) given: Vec<u32>,
    /// Slices written by the driver.
    pub(crate) writes: usize,
}

impl Workload {
    /// Requests at random times, `load` times what the GPUs could serve if nothing were lost.
    pub(crate) fn new(node: &Node, mix: &[(usize, f64)], load: f64, count: usize, seed: u64) -> Self {
        let total: f64 = mix.iter().map(|it| it.1).sum();
        let slices = f64::from(node.profiles.iter().map(|it| it.size).max().unwrap_or(1));
        let mean: f64 =
            mix.iter().map(|(it, share)| f64::from(node.profiles[*it].size) * share / total).sum();
        #[expect(clippy::cast_precision_loss, reason = "a node has few GPUs")]
        let rate = load * slices * node.gpus as f64 / mean;
        let (mut chance, mut at) = (Chance::new(seed), 0.0);
        let requests = (0..count).map(|_| {
            at += chance.exponential() / rate;
            let mut left = chance.fraction() * total;
            let chosen = mix.iter().find(|(_, share)| {
                left -= share;
                left < 0.0
            });
            Request { at, profile: chosen.unwrap_or(&mix[0]).0, lasts: chance.exponential() }
        });
        Self { requests: requests.collect() }
    }

    /// Serves all requests; what happens before the node is filled as usual is not counted.
    pub(crate) fn replay(&self, node: &Node, mut server: Server) -> anyhow::Result<Outcome> {
        let mut state = State::new(node);
        let mut lists = match &server {
            Server::Fixed(lists) => lists.clone(),
            Server::Driver(policy, ..) => {
                node.published(&Ranking::of(&node.inventory, &state.held, *policy))?
            }
            Server::Random | Server::Repacking(_) => vec![(0..node.devices.len()).collect()],
        };
        let mut outcome =
            Outcome { asked: vec![0; node.profiles.len()], given: vec![0; node.profiles.len()], writes: 0 };
        // Where requests go must not depend on how many numbers another client has drawn.
        let mut chance = Chance::new(4711);
        // By the least device of a slice.
        let mut next_order: BTreeMap<usize, f64> = BTreeMap::new();
        for (number, request) in self.requests.iter().enumerate() {
            state.release(node, request.at);
            if let Server::Driver(policy, lag, interval) = &server
                && number % lag == 0
            {
                for list in state.rewrite(node, *policy, &mut lists, |it| {
                    next_order.get(&it).is_none_or(|it| *it <= request.at)
                }) {
                    next_order.insert(list, request.at + interval);
                    outcome.writes += 1;
                }
            }
            let is_given = match &mut server {
                Server::Repacking(oracle) => state.repack(node, oracle, request),
                Server::Random => {
                    let mut all: Vec<usize> = (0..node.devices.len()).collect();
                    shuffle(&mut chance, &mut all);
                    state.first_fit(node, &[all], request)
                }
                Server::Fixed(_) | Server::Driver(..) => {
                    shuffle(&mut chance, &mut lists);
                    state.first_fit(node, &lists, request)
                }
            };
            if self.requests.len() / 20 < number {
                outcome.asked[request.profile] += 1;
                outcome.given[request.profile] += u32::from(is_given);
            }
        }
        Ok(outcome)
    }
}

impl Outcome {
    /// Share of the requests for a profile that got a device.
    pub(crate) fn share(&self, profile: usize) -> f64 {
        f64::from(self.given[profile]) / f64::from(self.asked[profile].max(1))
    }

    /// The same for all profiles, each request counted with its memory slices.
    pub(crate) fn total(&self, node: &Node) -> f64 {
        let sum = |counts: &[u32]| -> f64 {
            counts.iter().zip(&node.profiles).map(|(it, profile)| f64::from(it * profile.size)).sum()
        };
        sum(&self.given) / sum(&self.asked)
    }
}

struct State {
    left: Vec<Vec<u32>>,
    held: BTreeSet<String>,
    counts: Vec<u8>,
    /// When, and which device; without one where things may be moved, only the profile counts.
    ends: BinaryHeap<Reverse<(u64, usize, Option<usize>)>>,
}

impl State {
    fn new(node: &Node) -> Self {
        Self {
            left: vec![node.full.clone(); node.gpus],
            held: BTreeSet::new(),
            counts: vec![0; node.profiles.len()],
            ends: BinaryHeap::new(),
        }
    }

    fn first_fit(&mut self, node: &Node, lists: &[Vec<usize>], request: &Request) -> bool {
        let fits = |it: &&usize| {
            let device = &node.devices[**it];
            device.profile == request.profile && has_room(&self.left[device.gpu], &device.cost)
        };
        let Some(index) = lists.iter().flatten().find(fits).copied() else { return false };
        let device = &node.devices[index];
        take(&mut self.left[device.gpu], &device.cost);
        self.held.insert(device.name.clone());
        self.ends.push(Reverse((order(request.at + request.lasts), request.profile, Some(index))));
        true
    }

    fn repack(&mut self, node: &Node, oracle: &mut Oracle, request: &Request) -> bool {
        self.counts[request.profile] += 1;
        let fits = oracle.fits(&self.counts, node.gpus);
        if fits {
            self.ends.push(Reverse((order(request.at + request.lasts), request.profile, None)));
        } else {
            self.counts[request.profile] -= 1;
        }
        fits
    }

    fn release(&mut self, node: &Node, until: f64) {
        while let Some(Reverse((at, profile, device))) = self.ends.peek().copied() {
            if order(until) < at {
                return;
            }
            self.ends.pop();
            match device.map(|it| &node.devices[it]) {
                None => self.counts[profile] -= 1,
                Some(device) => {
                    give(&mut self.left[device.gpu], &device.cost);
                    self.held.remove(&device.name);
                }
            }
        }
    }

    /// Writes those lists whose order would lead to a worse choice and may change, as the publisher does; answers which, by their
    /// least device, which no order changes.
    fn rewrite(
        &self,
        node: &Node,
        policy: Policy,
        lists: &mut Lists,
        may_change: impl Fn(usize) -> bool,
    ) -> Vec<usize> {
        let ranking = Ranking::of(&node.inventory, &self.held, policy);
        let name = |it: &usize| node.devices[*it].name.as_str();
        let mut written = Vec::new();
        for list in lists.iter_mut() {
            let Some(least) = list.iter().min().copied() else { continue };
            if may_change(least) && !ranking.agrees_with(list.iter().map(name)) {
                list.sort_by_key(|it| ranking.place(name(it)));
                written.push(least);
            }
        }
        written
    }
}

/// A time as something that can be ordered.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "times are small and positive")]
fn order(time: f64) -> u64 {
    (time * 1e9) as u64
}

fn shuffle<T>(chance: &mut Chance, items: &mut [T]) {
    for index in (1..items.len()).rev() {
        items.swap(index, chance.below(index + 1));
    }
}
