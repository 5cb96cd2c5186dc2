//! Arrivals through a cluster: nodes that publish, a scheduler that takes the first device that fits, and the controller.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use mig_controller::demand::{Memory, Options, PendingPod, World, decide};

use crate::arrivals::{Arrival, profiles};
use crate::chance::Chance;
use crate::model::{Model, Set, members};
use crate::node::{Keeps, SimNode};
use crate::outcome::Outcome;
use crate::pods::{at, classes, for_profile};

/// GPUs of a node.
const PER_NODE: usize = 8;
/// The controller acts so long after something happened.
const REACTION: f64 = 1.0;

/// What happens at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    End { node: usize, gpu: usize, device: usize },
    Arrival(usize),
    Node(usize),
    Controller,
}

/// A cluster.
pub(crate) struct Cluster<'a> {
    arrivals: &'a [Arrival],
    sizes: Vec<u32>,
    names: Vec<&'static str>,
    nodes: Vec<SimNode>,
    /// Nothing is decided where there are none.
    options: Option<Options>,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    queue: Vec<usize>,
    pods: Vec<Option<PendingPod>>,
    starts: Vec<Option<f64>>,
    memory: Memory,
    /// When the controller acts next.
    due: Option<u64>,
    chance: Chance,
    /// Decisions, and what they took together.
    pub(crate) rounds: usize,
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "times are small and positive")]
fn order(time: f64) -> u64 {
    (time * 1000.0).ceil() as u64
}

#[expect(clippy::cast_precision_loss, reason = "times are small")]
fn time(order: u64) -> f64 {
    order as f64 / 1000.0
}

impl<'a> Cluster<'a> {
    pub(crate) fn new(arrivals: &'a [Arrival], gpus: usize, keeps: Keeps, options: Option<Options>) -> Self {
        let nodes = gpus.div_ceil(PER_NODE);
        let model = Arc::new(Model::new("H100-80GB", gpus.min(PER_NODE)));
        let known = profiles(&model);
        let node = |it: usize| SimNode::new(&format!("node-{it}"), model.clone(), keeps, model.base.clone());
        let mut cluster = Self {
            arrivals,
            sizes: known.iter().map(|it| it.1).collect(),
            names: known.iter().map(|it| it.0).collect(),
            nodes: (0..nodes).map(node).collect(),
            options,
            events: BinaryHeap::new(),
            queue: Vec::new(),
            pods: vec![None; arrivals.len()],
            starts: vec![None; arrivals.len()],
            memory: Memory::default(),
            due: None,
            chance: Chance::new(4711),
            rounds: 0,
        };
        for (number, arrival) in arrivals.iter().enumerate() {
            cluster.events.push(Reverse((order(arrival.at), Event::Arrival(number))));
        }
        for node in 0..nodes {
            cluster.nodes[node].step(at(0.0));
        }
        cluster
    }

    /// Until the last pod arrives.
    pub(crate) fn run(mut self) -> Outcome {
        let end = order(self.arrivals.last().map_or(0.0, |it| it.at));
        while let Some(Reverse((now, event))) = self.events.pop() {
            if end < now {
                break;
            }
            match event {
                Event::Arrival(pod) => self.arrive(pod),
                Event::End { node, gpu, device } => {
                    self.nodes[node].release(gpu, device);
                    self.step(node, now);
                    self.react(now + order(REACTION));
                }
                Event::Node(node) => self.step(node, now),
                Event::Controller if self.due == Some(now) => {
                    self.due = None;
                    self.decide(now);
                }
                Event::Controller => continue,
            }
            self.schedule(now);
        }
        let mut outcome = Outcome::of(self.arrivals, &self.starts, &self.sizes);
        outcome.layout_changes = self.nodes.iter().map(|it| it.layout_changes).sum();
        outcome.slice_writes = self.nodes.iter().map(|it| it.slice_writes).sum();
        outcome
    }

    fn arrive(&mut self, pod: usize) {
        let arrival = self.arrivals[pod];
        self.queue.push(pod);
        self.pods[pod] = Some(for_profile(&format!("{pod:06}"), at(arrival.at), self.names[arrival.profile]));
        let patience = self.options.as_ref().map_or(0.0, |it| it.patience.as_secs_f64());
        self.react(order(arrival.at + patience) + 1);
    }

    /// Lets the controller act at a time, if it does not before.
    fn react(&mut self, at: u64) {
        if self.options.is_some() && self.due.is_none_or(|it| at < it) {
            self.due = Some(at);
            self.events.push(Reverse((at, Event::Controller)));
        }
    }

    fn step(&mut self, node: usize, now: u64) {
        self.nodes[node].step(at(time(now)));
        if let Some(wake) = self.nodes[node].wake {
            let after = wake.duration_since(at(0.0)).as_secs_f64();
            self.events.push(Reverse((order(after).max(now + 1), Event::Node(node))));
        }
    }

    /// Pods by age; a profile of which one pod finds nothing is not tried again.
    fn schedule(&mut self, now: u64) {
        let mut full = vec![false; self.names.len()];
        for pod in std::mem::take(&mut self.queue) {
            let profile = self.arrivals[pod].profile;
            if !full[profile] && self.place(pod, now) {
                continue;
            }
            full[profile] = true;
            self.queue.push(pod);
        }
    }

    /// The scheduler chooses among nodes by what is not about GPUs: at random.
    fn place(&mut self, pod: usize, now: u64) -> bool {
        let arrival = self.arrivals[pod];
        let wanted = self.nodes[0].model.of_profile(self.names[arrival.profile]);
        let offers = |it: &usize| self.nodes[*it].published.iter().any(|set| set & wanted != 0);
        let able: Vec<usize> = (0..self.nodes.len()).filter(offers).collect();
        if able.is_empty() {
            return false;
        }
        let node = able[self.chance.below(able.len())];
        let sim = &mut self.nodes[node];
        let model = sim.model.clone();
        // The order of `--placement pack`.
        let possible = |set: Set| -> u32 { members(set).map(|it| model.devices[it].size).sum() };
        let offered = sim
            .published
            .iter()
            .enumerate()
            .flat_map(|(gpu, set)| members(set & wanted).map(move |it| (gpu, it)));
        let best = offered.min_by_key(|(gpu, device)| {
            let open = model.open(sim.held[*gpu]);
            let of = &model.devices[*device];
            (possible(open), *gpu, of.blocks, possible(open & of.conflicts), Reverse(of.start))
        });
        let Some((gpu, device)) = best else { return false };
        if !sim.allocate(gpu, device, at(time(now))) {
            return false;
        }
        self.starts[pod] = Some(time(now).max(arrival.at));
        self.pods[pod] = None;
        self.events.push(Reverse((order(time(now) + arrival.lasts), Event::End { node, gpu, device })));
        self.step(node, now);
        // The demand is less now.
        self.react(now + order(REACTION));
        true
    }

    fn decide(&mut self, now: u64) {
        let Some(options) = &self.options else { return };
        let is_quiet =
            self.queue.is_empty() && self.nodes.iter().all(|it| it.demand.is_none() && it.holds.is_empty());
        if is_quiet {
            return;
        }
        let world = World {
            nodes: self.nodes.iter().map(SimNode::state).collect(),
            pods: self.queue.iter().filter_map(|it| self.pods[*it].clone()).collect(),
            classes: classes(),
        };
        let outcome = decide(&world, options, &self.memory, at(time(now)));
        self.rounds += 1;
        self.memory = outcome.memory;
        for write in &outcome.decisions.writes {
            let node = world.nodes.iter().position(|it| it.name() == write.node).unwrap_or(0);
            if self.nodes[node].write(write) {
                self.step(node, now);
            }
        }
        if let Some(wake) = outcome.wake {
            let after = wake.duration_since(at(0.0)).as_secs_f64();
            self.react(order(after).max(now + 1));
        }
    }
}
