//! Arrivals through a cluster: nodes that publish, a scheduler that takes the first device that fits, and the controller.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use mig_controller::demand::{Eviction, Memory, MovablePod, Options, PendingPod, Placed, World, decide};

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
/// A pod that is evicted takes so long to end. Its replacement is there at once, and runs for what is left.
const GRACE: f64 = 10.0;

/// What happens at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The end of a pod, unless it was evicted since: its number, and how often it was.
    End(usize, usize),
    /// An evicted pod has ended.
    Release {
        pod: usize,
        node: usize,
        gpu: usize,
        device: usize,
    },
    Arrival(usize),
    Node(usize),
    Controller,
}

/// Where a pod runs.
#[derive(Debug, Clone, Copy)]
struct Running {
    node: usize,
    gpu: usize,
    device: usize,
    since: f64,
    until: f64,
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
    /// What runs, by pod; and pods that are evicted and have not ended.
    running: Vec<Option<Running>>,
    leaving: Vec<(usize, Running)>,
    /// How long a pod has to run yet, how often it was evicted, and since when its replacement waits.
    left: Vec<f64>,
    moves: Vec<usize>,
    moved: Vec<Option<f64>>,
    /// The longest wait of a replacement.
    longest_move: f64,
    /// Memory slices that stood idle on GPUs that were held back, times seconds; and until when that was counted.
    idle: (f64, f64),
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
            running: vec![None; arrivals.len()],
            leaving: Vec::new(),
            left: arrivals.iter().map(|it| it.lasts).collect(),
            moves: vec![0; arrivals.len()],
            moved: vec![None; arrivals.len()],
            longest_move: 0.0,
            idle: (0.0, 0.0),
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
            self.count_idle(time(now));
            match event {
                Event::Arrival(pod) => self.arrive(pod),
                Event::End(pod, moves) => {
                    let Some(ended) = self.running[pod].take_if(|_| self.moves[pod] == moves) else {
                        continue;
                    };
                    self.release(ended.node, ended.gpu, ended.device, now);
                }
                Event::Release { pod, node, gpu, device } => {
                    self.leaving.retain(|it| it.0 != pod);
                    self.release(node, gpu, device, now);
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
        outcome.evictions = self.moves.iter().sum();
        outcome.longest_move = self.longest_move / crate::arrivals::RUN;
        outcome.slice_writes = self.nodes.iter().map(|it| it.slice_writes).sum();
        #[expect(clippy::cast_precision_loss, reason = "there are few GPUs")]
        let gpus = self.nodes.iter().map(|it| it.held.len()).sum::<usize>() as f64;
        let whole = f64::from(self.sizes.iter().copied().max().unwrap_or(1));
        outcome.idle = self.idle.0 / (self.idle.1 * gpus * whole).max(1.0);
        outcome
    }

    /// Counts what stood idle on GPUs that were held back since the last event.
    fn count_idle(&mut self, now: f64) {
        let since = std::mem::replace(&mut self.idle.1, now);
        for node in self.nodes.iter().filter(|it| !it.holds.is_empty()) {
            let held_back = node.held_back(at(since));
            let model = &node.model;
            let gpus = model.names.iter().zip(&node.held);
            for (_, held) in gpus.filter(|it| held_back.contains_key(it.0)) {
                let used: u32 = members(*held).map(|it| model.devices[it].size).sum();
                let whole = model.devices.iter().map(|it| it.size).max().unwrap_or(used);
                self.idle.0 += f64::from(whole.saturating_sub(used)) * (now - since);
            }
        }
    }

    fn arrive(&mut self, pod: usize) {
        let arrival = self.arrivals[pod];
        self.queue.push(pod);
        self.pods[pod] = Some(for_profile(&format!("{pod:06}"), at(arrival.at), self.names[arrival.profile]));
        let patience = self.options.as_ref().map_or(0.0, |it| it.patience.as_secs_f64());
        self.react(order(arrival.at + patience) + 1);
    }

    fn release(&mut self, node: usize, gpu: usize, device: usize, now: u64) {
        self.nodes[node].release(gpu, device, at(time(now)));
        self.schedule(now);
        self.step(node, now);
        self.react(now + order(REACTION));
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
        let since = time(now).max(arrival.at);
        self.starts[pod].get_or_insert(since);
        if let Some(waits) = self.moved[pod].take() {
            self.longest_move = self.longest_move.max(since - waits);
        }
        let until = since + self.left[pod];
        self.running[pod] = Some(Running { node, gpu, device, since, until });
        self.events.push(Reverse((order(until), Event::End(pod, self.moves[pod]))));
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
            movable: self.movable(),
            ..World::default()
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
        if let Some(eviction) = &outcome.decisions.eviction {
            self.evict(eviction, now);
        }
        if let Some(wake) = outcome.wake {
            let after = wake.duration_since(at(0.0)).as_secs_f64();
            self.react(order(after).max(now + 1));
        }
    }

    /// All pods may be moved, where pods are moved at all.
    fn movable(&self) -> Vec<MovablePod> {
        if self.options.as_ref().is_none_or(|it| it.evictions_per_hour.is_none()) {
            return Vec::new();
        }
        let running = self.running.iter().enumerate().filter_map(|(pod, it)| Some((pod, (*it)?, false)));
        let leaving = self.leaving.iter().map(|(pod, it)| (*pod, *it, true));
        let of = |(pod, it, is_leaving): (usize, Running, bool)| {
            let node = &self.nodes[it.node];
            let device = &node.model.devices[it.device];
            let placed = Placed { profile: device.profile.clone(), start: device.start, size: device.size };
            let mut known = self.pods[pod].clone()?;
            known.uid = format!("{}-{}-{is_leaving}", known.uid, self.moves[pod]);
            Some(MovablePod {
                node: node.node.metadata.name.clone()?,
                devices: vec![(node.model.names[it.gpu].clone(), placed)],
                users: BTreeSet::from([known.uid.clone()]),
                started: Some(at(it.since)),
                grace: Duration::from_secs_f64(GRACE),
                is_leaving,
                stays_on_node: false,
                pod: known,
            })
        };
        running.chain(leaving).filter_map(of).collect()
    }

    /// Each pod ends after a while; its replacement waits at once.
    fn evict(&mut self, eviction: &Eviction, now: u64) {
        for it in &eviction.pods {
            let Ok(pod) = it.pod.name.parse::<usize>() else { continue };
            let Some(running) = self.running[pod].take() else { continue };
            let Running { node, gpu, device, until, .. } = running;
            self.left[pod] = (until - time(now)).max(0.0);
            self.moves[pod] += 1;
            self.moved[pod] = Some(time(now));
            self.leaving.push((pod, running));
            self.events.push(Reverse((now + order(GRACE), Event::Release { pod, node, gpu, device })));
            // As a new pod it is the last in the queue, and unschedulable from now on.
            if let Some(waits) = &mut self.pods[pod] {
                (waits.created, waits.unschedulable) = (at(time(now)), Some(at(time(now))));
            }
            self.queue.push(pod);
        }
    }
}
