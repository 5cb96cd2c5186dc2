//! Worlds in which schedulers are late, two controllers act, views are stale, writes are lost, people write demands, too, and nodes
//! do not answer. Whatever happens: nothing overlaps, no node is changed twice within its interval or for a demand that is stale,
//! what a person demands stays, holds end, each change serves a pod that nothing published serves, pods are evicted only where all of them may be and no fewer would do, and in the end every pod that fits runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use mig_controller::demand::{
    Demand, Eviction, Memory, MovablePod, NodeState, Options, PendingPod, Placed, Reason, World, Write,
    decide,
};
use mig_model::layout::{Wanted, arrange};
use proptest::prelude::*;

use crate::model::{Model, Set, members};
use crate::node::{Keeps, SimNode};
use crate::pods::{at, classes, for_profile};

const CASES: u32 = 16;
/// How long a hold lasts that is not renewed, and how long one is renewed.
const HOLD: f64 = 300.0;
const HOLD_FOR: Duration = Duration::from_secs(500);
const PROFILES: [&str; 6] = ["1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb", "full"];

static MODELS: LazyLock<[Arc<Model>; 2]> =
    LazyLock::new(|| [1, 2].map(|it| Arc::new(Model::new("H100-80GB", it))));

/// Something that happens.
#[derive(Debug, Clone)]
enum Step {
    Arrive {
        profile: usize,
        priority: i32,
    },
    Finish(usize),
    Schedule,
    /// A scheduler that knows what was published at the last look.
    ScheduleLate(usize),
    Look,
    Drive,
    Advance(u32),
    Decide {
        controller: usize,
        stale: bool,
        lost: bool,
    },
    Restart(usize),
    Silence(usize),
    Revive(usize),
    /// A person demands something of a node, or no longer.
    Person {
        node: usize,
        profile: Option<usize>,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let decide = (0..2_usize, prop::bool::weighted(0.2), prop::bool::weighted(0.15));
    prop_oneof![
        4 => (0..PROFILES.len(), 0..2_i32).prop_map(|(profile, priority)| Step::Arrive { profile, priority }),
        3 => any::<usize>().prop_map(Step::Finish),
        3 => Just(Step::Schedule),
        1 => any::<usize>().prop_map(Step::ScheduleLate),
        1 => Just(Step::Look),
        5 => Just(Step::Drive),
        5 => (1..25_u32).prop_map(Step::Advance),
        1 => (25..200_u32).prop_map(Step::Advance),
        8 => decide.prop_map(|(controller, stale, lost)| Step::Decide { controller, stale, lost }),
        1 => (0..2_usize).prop_map(Step::Restart),
        1 => any::<usize>().prop_map(Step::Silence),
        1 => any::<usize>().prop_map(Step::Revive),
        1 => (any::<usize>(), prop::option::weighted(0.3, 0..PROFILES.len()))
            .prop_map(|(node, profile)| Step::Person { node, profile }),
    ]
}

#[derive(Debug, Clone)]
struct Running {
    node: usize,
    gpu: usize,
    device: usize,
    pod: PendingPod,
    profile: usize,
    since: f64,
    /// When it ends, where it was evicted.
    leaves: Option<f64>,
}

impl Running {
    /// Most pods may be moved.
    fn is_movable(&self) -> bool {
        !self.pod.uid.ends_with('3')
    }

    /// A budget keeps some of them.
    fn is_protected(&self) -> bool {
        self.pod.uid.ends_with('7')
    }
}

/// A pod that is evicted takes so long to end.
const GRACE: f64 = 20.0;

struct Cluster {
    options: Options,
    now: f64,
    nodes: Vec<SimNode>,
    /// Pods that wait, by UID, with their profile.
    pending: BTreeMap<String, (PendingPod, usize)>,
    running: Vec<Running>,
    memories: [Memory; 2],
    views: [World; 2],
    /// What a late scheduler knows.
    looked: Vec<Vec<Set>>,
    /// When each node was changed.
    changes: Vec<Vec<Timestamp>>,
    /// Since when a claim has a hold on a GPU of a node, and until when.
    holds: BTreeMap<(usize, String, String), (Option<Timestamp>, Timestamp)>,
    /// Since when a claim has its last hold, and until when.
    begun: BTreeMap<String, (Option<Timestamp>, Timestamp)>,
    count: usize,
    /// When the layouts of each node changed.
    layouts: Vec<Vec<Timestamp>>,
    /// When a write for each node was lost.
    lost: Vec<Option<f64>>,
    /// Pods that were evicted.
    evictions: usize,
}

impl Cluster {
    fn new(gpus: &[usize], floor: bool, counts: bool, moves: bool) -> Self {
        let node = |(position, gpus): (usize, &usize)| {
            let model = MODELS[gpus - 1].clone();
            let base = model.base.clone();
            let keeps = if counts { Keeps::Counters } else { Keeps::Demand };
            let mut node = SimNode::new(&format!("n{position}"), model, keeps, base);
            if floor && position == 0 {
                // More than the base layout has.
                node.floor.insert("1g.10gb".to_owned(), u32::try_from(2 * gpus + 1).unwrap());
            }
            node
        };
        let nodes: Vec<SimNode> = gpus.iter().enumerate().map(node).collect();
        let options = Options {
            hold_after: Some(Duration::from_secs(60)),
            hold_for: HOLD_FOR,
            evictions_per_hour: moves.then_some(3600),
            move_after: Duration::from_secs(60),
            evictions_pause: Duration::from_secs(120),
            ..Options::default()
        };
        let mut cluster = Self {
            options,
            now: 0.0,
            pending: BTreeMap::new(),
            running: Vec::new(),
            memories: Default::default(),
            views: Default::default(),
            looked: Vec::new(),
            changes: nodes.iter().map(|_| Vec::new()).collect(),
            layouts: nodes.iter().map(|_| Vec::new()).collect(),
            holds: BTreeMap::new(),
            begun: BTreeMap::new(),
            count: 0,
            evictions: 0,
            lost: vec![None; nodes.len()],
            nodes,
        };
        cluster.drive();
        cluster.look();
        cluster
    }

    fn time(&self) -> Timestamp {
        at(self.now)
    }

    fn drive(&mut self) {
        let now = self.time();
        for (node, times) in self.nodes.iter_mut().zip(&mut self.layouts) {
            let before = node.layouts.clone();
            node.step(now);
            if node.layouts != before {
                times.push(now);
                let renewed = node.demand.as_ref().and_then(|it| it.renewed);
                let age = renewed.map_or(0, |it| now.duration_since(it).as_secs());
                assert!(age <= 120, "a node follows a demand that is {age} s old");
            }
        }
    }

    fn look(&mut self) {
        self.looked = self.nodes.iter().map(|it| it.published.clone()).collect();
    }

    fn view(&self) -> World {
        let nodes: Vec<NodeState> = self.nodes.iter().map(SimNode::state).collect();
        let pods = self.pending.values().map(|it| it.0.clone()).collect();
        let movable = self.running.iter().filter_map(|it| self.movable(it)).collect();
        World { nodes, pods, classes: classes(), movable, ..World::default() }
    }

    fn movable(&self, running: &Running) -> Option<MovablePod> {
        let node = &self.nodes[running.node];
        let device = &node.model.devices[running.device];
        let placed = Placed { profile: device.profile.clone(), start: device.start, size: device.size };
        running.is_movable().then(|| MovablePod {
            pod: running.pod.clone(),
            node: node.node.metadata.name.clone().unwrap(),
            devices: vec![(node.model.names[running.gpu].clone(), placed)],
            users: BTreeSet::from([running.pod.uid.clone()]),
            started: Some(at(running.since)),
            grace: Duration::from_secs_f64(GRACE),
            is_leaving: running.leaves.is_some(),
            stays_on_node: false,
        })
    }

    /// The Eviction API: a pod that is there and that no budget keeps ends after a while, and another one waits in its place.
    fn evict(&mut self, controller: usize, eviction: &Eviction, fresh: bool) {
        if fresh {
            self.check_eviction(eviction);
        }
        for it in &eviction.pods {
            let found = self.running.iter_mut().find(|one| one.pod.uid == it.pod.uid && one.leaves.is_none());
            match found {
                Some(one) if !one.is_protected() => {
                    one.leaves = Some(self.now + GRACE);
                    let (profile, priority) = (one.profile, one.pod.priority);
                    self.evictions += 1;
                    self.arrive(profile, priority);
                }
                // What stays keeps the rest.
                _ => {
                    let rest = eviction.pods.iter().skip_while(|one| one.pod != it.pod);
                    let until = at(self.now + 60.0);
                    rest.for_each(|it| self.memories[controller].not_evicted(&it.pod.uid, until, true));
                    return;
                }
            }
        }
    }

    fn check_eviction(&self, eviction: &Eviction) {
        let (waiting, profile) = &self.pending[&eviction.waiting.uid];
        let named = |it: &SimNode| it.node.metadata.name.as_deref() == Some(&eviction.node);
        let node = self.nodes.iter().position(named).unwrap();
        let sim = &self.nodes[node];
        let gpu = sim.model.names.iter().position(|it| *it == eviction.gpu).unwrap();
        let is_own = |uid: &str| uid == format!("claim-{}", waiting.uid);
        let mut holds = sim.holds.iter().filter(|it| it.gpu == eviction.gpu && self.time() < it.until);
        assert!(holds.any(|it| is_own(&it.claim.uid)), "there is no hold: {eviction:?}");
        let held_back = sim.held_back(self.time());
        assert_eq!(
            held_back.get(&eviction.gpu).map(String::as_str),
            Some(PROFILES[*profile]),
            "the hold is not in force: {eviction:?}"
        );
        let running = |uid: &str| self.running.iter().find(|it| it.pod.uid == uid).unwrap();
        let pods: Vec<&Running> = eviction.pods.iter().map(|it| running(&it.pod.uid)).collect();
        for it in &pods {
            assert!(it.is_movable() && it.leaves.is_none(), "{it:?}");
            assert!(it.pod.priority <= waiting.priority, "{it:?}");
            assert!(60.0 <= self.now - it.since, "moved again too soon: {it:?}");
            assert_eq!((it.node, it.gpu), (node, gpu));
        }
        let leaving =
            self.running.iter().filter(|it| (it.node, it.gpu) == (node, gpu) && it.leaves.is_some());
        let stays = leaving.fold(sim.held[gpu], |set, it| set & !(1 << it.device));
        let fits = |without: &[&Running]| {
            let held = without.iter().fold(stays, |set, it| set & !(1 << it.device));
            sim.model.open(held) & sim.model.of_profile(PROFILES[*profile]) != 0
        };
        assert!(fits(&pods), "the claim is not served: {eviction:?}");
        for index in 0..pods.len() {
            let mut fewer = pods.clone();
            fewer.remove(index);
            assert!(!fits(&fewer), "fewer would do: {eviction:?}");
        }
    }

    /// Pods that were evicted end.
    fn end_evicted(&mut self) {
        let now = self.now;
        let (ended, stay) = std::mem::take(&mut self.running)
            .into_iter()
            .partition::<Vec<_>, _>(|it| it.leaves.is_some_and(|it| it <= now));
        self.running = stay;
        for it in ended {
            self.nodes[it.node].release(it.gpu, it.device, at(now));
        }
    }

    fn arrive(&mut self, profile: usize, priority: i32) {
        self.count += 1;
        let uid = format!("pod-{:04}", self.count);
        let mut pod = for_profile(&uid, self.time(), PROFILES[profile]);
        pod.priority = priority;
        self.pending.insert(uid, (pod, profile));
    }

    /// The scheduler: by priority, then age, the first device that is offered.
    fn schedule(&mut self, offered: &[Vec<Set>], skip: usize) {
        let mut order: Vec<(i32, Timestamp, String)> =
            self.pending.values().map(|(pod, _)| (-pod.priority, pod.created, pod.uid.clone())).collect();
        order.sort();
        for (_, _, uid) in order.into_iter().skip(skip) {
            let profile = PROFILES[self.pending[&uid].1];
            let now = self.time();
            let place = self.nodes.iter().enumerate().find_map(|(node, sim)| {
                let wanted = sim.model.of_profile(profile);
                let fit = |(gpu, set): (usize, &Set)| {
                    let mut all =
                        members(set & wanted).filter(|it| sim.model.open(sim.held[gpu]) >> it & 1 == 1);
                    Some((node, gpu, all.next()?))
                };
                offered[node].iter().enumerate().find_map(fit)
            });
            let Some((node, gpu, device)) = place else { continue };
            if self.nodes[node].allocate(gpu, device, now) {
                let (pod, profile) = self.pending.remove(&uid).unwrap();
                let since = self.now;
                self.running.push(Running { node, gpu, device, pod, profile, since, leaves: None });
            }
        }
    }

    fn schedule_now(&mut self) {
        let offered: Vec<_> = self.nodes.iter().map(|it| it.published.clone()).collect();
        self.schedule(&offered, 0);
    }

    fn decide(&mut self, controller: usize, stale: bool, lost: bool) {
        if !stale {
            self.views[controller] = self.view();
        }
        let now = self.time();
        let view = self.views[controller].clone();
        let outcome = decide(&view, &self.options, &self.memories[controller], now);
        let eviction = outcome.decisions.eviction;
        assert!(outcome.wake.is_none_or(|it| now < it), "{:?}", outcome.wake);
        self.memories[controller] = outcome.memory;
        for write in outcome.decisions.writes {
            let node = self
                .nodes
                .iter()
                .position(|it| it.node.metadata.name.as_deref() == Some(&write.node))
                .unwrap();
            if write.reason == Reason::Change {
                self.check_change(&view, node, &write, !stale);
            }
            if lost {
                self.lost[node] = Some(self.now);
                continue;
            }
            let before = self.nodes[node].demand.clone();
            if !self.nodes[node].write(&write) {
                self.memories[controller].failed(&write.node);
            } else {
                if write.reason == Reason::Change {
                    self.changes[node].push(now);
                }
                let is_a_persons = before.as_ref().is_some_and(|it| it.renewed.is_none());
                assert!(!is_a_persons || self.nodes[node].demand == before, "a person's demand was changed");
                self.check_holds(node, &write, now);
            }
        }
        if let Some(eviction) = eviction {
            self.evict(controller, &eviction, !stale);
        }
    }

    /// A change serves a pod that nothing published serves, and the driver can follow it.
    fn check_change(&self, view: &World, node: usize, write: &Write, fresh: bool) {
        assert!(!write.serves.is_empty(), "{write:?}");
        for uid in &write.serves {
            let Some((_, profile)) = self.pending.get(uid).filter(|_| fresh) else { continue };
            let wanted = PROFILES[*profile];
            // Nodes that are about to withdraw devices, or hold them back, do not count.
            let is_stable = |it: &(usize, &NodeState)| {
                it.1.demand.is_none()
                    && it.1.holds.is_empty()
                    && self.lost[it.0].is_none_or(|at| at + 10.0 < self.now)
            };
            let nodes = view.nodes.iter().enumerate().filter(is_stable);
            let published: usize = nodes
                .flat_map(|it| &it.1.gpus)
                .flat_map(|it| &it.published)
                .filter(|it| it.profile == wanted)
                .count();
            let asking = self.pending.values().filter(|it| it.1 == *profile).count();
            assert!(published < asking, "{uid} is served by what is published: {write:?}");
        }
        if fresh {
            let sim = &self.nodes[node];
            let held = sim.model.held_names(&sim.held);
            let held_back = sim.held_back(self.time());
            let inputs = sim.model.inputs(&held, &held_back);
            let free = write.demand.clone().unwrap().profiles;
            let wanted = Wanted { free, floor: sim.floor.clone() };
            let missing = arrange(inputs, &sim.layouts, &wanted).missing;
            assert!(missing.is_empty(), "{write:?} cannot be followed: {missing:?}; held {held:?}");
        }
    }

    /// A hold is short, and renewed only when half of that is over, for no longer than its claim may have it.
    fn check_holds(&mut self, node: usize, write: &Write, now: Timestamp) {
        self.holds.retain(|(n, gpu, uid), (_, until)| {
            *n != node || now < *until && write.holds.iter().any(|it| it.gpu == *gpu && it.claim.uid == *uid)
        });
        for hold in write.holds.iter().filter(|it| now < it.until) {
            let key = (node, hold.gpu.clone(), hold.claim.uid.clone());
            // One that moves to another GPU ends as it would have.
            let moved = self.begun.insert(hold.claim.uid.clone(), (hold.since, hold.until));
            let moved = moved.filter(|it| now < it.1 && it.0 == hold.since).map(|it| it.0);
            let new = (moved.unwrap_or(Some(now)), hold.until);
            let (since, until) = self.holds.insert(key, (hold.since, hold.until)).unwrap_or(new);
            assert_eq!(since, hold.since, "a hold began again");
            assert!(hold.until <= at(self.now + HOLD), "a hold is too long");
            assert!(until == hold.until || until <= at(self.now + HOLD / 2.0), "a hold was renewed too soon");
            let begun = since.unwrap().duration_since(at(0.0)).as_secs_f64();
            assert!(hold.until <= at(begun + HOLD_FOR.as_secs_f64()), "a hold was renewed for too long");
        }
    }

    fn act(&mut self, step: &Step) {
        match step {
            Step::Arrive { profile, priority } => {
                self.arrive(*profile, *priority);
            }
            Step::Finish(which) if !self.running.is_empty() => {
                let ended = self.running.swap_remove(which % self.running.len());
                self.nodes[ended.node].release(ended.gpu, ended.device, at(self.now));
            }
            Step::Schedule => self.schedule_now(),
            Step::ScheduleLate(skip) => {
                let looked = self.looked.clone();
                self.schedule(&looked, skip % self.pending.len().max(1));
            }
            Step::Look => self.look(),
            Step::Drive => self.drive(),
            Step::Advance(seconds) => self.now += f64::from(*seconds),
            Step::Decide { controller, stale, lost } => self.decide(*controller, *stale, *lost),
            Step::Restart(controller) => self.memories[*controller] = Memory::default(),
            Step::Silence(node) => {
                let node = node % self.nodes.len();
                self.nodes[node].answers = false;
            }
            Step::Revive(node) => {
                let node = node % self.nodes.len();
                self.nodes[node].answers = true;
            }
            Step::Person { node, profile } => {
                let node = node % self.nodes.len();
                self.person(node, *profile);
            }
            Step::Finish(_) => {}
        }
    }

    fn check(&self) {
        for (position, node) in self.nodes.iter().enumerate() {
            for (gpu, held) in node.held.iter().enumerate() {
                let running = self.running.iter().filter(|it| it.node == position && it.gpu == gpu);
                assert_eq!(running.fold(0, |set: Set, it| set | 1 << it.device), *held, "a device was lost");
                let overlaps =
                    |one: usize, set: Set| node.model.devices[one].conflicts & set & !(1 << one) != 0;
                assert!(!members(*held).any(|it| overlaps(it, *held)), "allocated devices overlap");
                let published = if node.keeps == Keeps::Counters { 0 } else { node.published[gpu] };
                assert!(
                    !members(published).any(|it| overlaps(it, held | published)),
                    "published devices overlap"
                );
                // A device that a late scheduler may allocate has no other in its place.
                let late =
                    node.late.iter().filter(|it| it.1 == gpu && self.time() < it.2 && held >> it.1 & 1 == 0);
                assert!(
                    late.clone().all(|it| it.0 != gpu || !overlaps(it.1, published)),
                    "published too early"
                );
            }
        }
        for times in self.changes.iter().chain(&self.layouts) {
            for pair in times.windows(2) {
                let pause = pair[1].duration_since(pair[0]).as_secs();
                assert!(30 <= pause, "changed again after {pause} s");
            }
        }
    }

    /// A person writes a demand, or removes one of a person.
    fn person(&mut self, node: usize, profile: Option<usize>) {
        let sim = &mut self.nodes[node];
        let is_a_persons = sim.demand.as_ref().is_some_and(|it| it.renewed.is_none());
        let profiles = |it: usize| [(PROFILES[it].to_owned(), 1)].into();
        match profile {
            Some(it) => {
                // Nothing says any more when a controller has changed the node; its driver knows.
                if !is_a_persons {
                    self.changes[node].clear();
                }
                sim.demand = Some(Demand { renewed: None, profiles: profiles(it) });
            }
            None if is_a_persons => sim.demand = None,
            None => return,
        }
        sim.version += 1;
    }

    /// Everything works again, and nothing new happens.
    fn settle(&mut self) {
        self.nodes.iter_mut().for_each(|it| it.answers = true);
        (0..self.nodes.len()).for_each(|it| self.person(it, None));
        // Longer than holds, and what is remembered of pods and nodes, last.
        for round in 0..120 {
            if round == 60 {
                // Those that were evicted last find their places, too.
                self.options.evictions_per_hour = None;
            }
            self.now += 8.0;
            self.end_evicted();
            self.drive();
            self.schedule_now();
            self.decide(0, false, false);
            self.drive();
            self.check();
        }
    }

    fn check_end(&self) {
        for (uid, (_, profile)) in &self.pending {
            for node in &self.nodes {
                let wanted = node.model.of_profile(PROFILES[*profile]);
                let held_back = node
                    .holds
                    .iter()
                    .any(|it| self.time() < it.until && it.claim.uid != format!("claim-{uid}"));
                let fits = node.held.iter().any(|it| node.model.open(*it) & wanted != 0);
                assert!(
                    !fits || held_back || !node.floor.is_empty(),
                    "{uid} ({}) fits and waits: held {:?}, published {:?}, demand {:?}, holds {:?}",
                    PROFILES[*profile],
                    node.model.held_names(&node.held),
                    node.offered(),
                    node.demand,
                    node.holds
                );
            }
        }
    }
}

fn run(mut cluster: Cluster, steps: &[Step]) {
    for step in steps {
        cluster.end_evicted();
        cluster.act(step);
        cluster.check();
    }
    cluster.settle();
    cluster.check_end();
    // Without a controller all holds end.
    cluster.now += HOLD;
    cluster.drive();
    assert!(cluster.nodes.iter().all(|it| it.held_back(cluster.time()).is_empty()));
    // Without pods nothing is demanded and nothing is held back.
    cluster.pending.clear();
    for _ in 0..20 {
        cluster.now += 5.0;
        cluster.drive();
        cluster.decide(0, false, false);
    }
    assert!(cluster.nodes.iter().all(|it| it.demand.is_none() && it.holds.is_empty()));
    cluster.running.clear();
    for node in &mut cluster.nodes {
        node.held.iter_mut().for_each(|it| *it = 0);
    }
    for _ in 0..8 {
        cluster.now += 100.0;
        cluster.drive();
    }
    cluster.check();
    for node in &cluster.nodes {
        let offered = node.offered();
        let is_kept = |(profile, count): (&String, &u32)| offered.get(profile.as_str()) >= Some(count);
        assert!(node.floor.iter().all(is_kept), "the floor is not kept: {offered:?}");
        assert!(!node.floor.is_empty() || node.layouts == node.model.base, "{:?}", node.layouts);
    }
}

#[test]
fn a_node_that_comes_back_follows_no_demand_that_is_stale() {
    let mut cluster = Cluster::new(&[1], false, false, false);
    let before = cluster.nodes[0].layouts.clone();
    cluster.arrive(4, 0);
    cluster.now += 10.0;
    cluster.decide(0, false, false);
    assert!(cluster.nodes[0].demand.is_some());
    // Neither the node nor a controller does anything for longer than two minutes.
    cluster.now += 150.0;
    cluster.drive();
    assert_eq!(cluster.nodes[0].layouts, before);
    cluster.settle();
    assert!(cluster.pending.is_empty(), "{:?}", cluster.nodes[0].demand);
}

#[test]
fn a_large_claim_that_two_small_ones_keep_waiting_is_served_by_one_eviction() {
    for counts in [true, false] {
        let mut cluster = Cluster::new(&[2], false, counts, true);
        for gpu in 0..2 {
            let device = members(cluster.nodes[0].model.of_profile(PROFILES[0])).next().unwrap();
            cluster.arrive(0, 0);
            let (uid, (pod, profile)) = cluster.pending.pop_first().unwrap();
            assert!(!uid.ends_with(['3', '7']));
            cluster.nodes[0].held[gpu] |= 1 << device;
            cluster.running.push(Running { node: 0, gpu, device, pod, profile, since: 0.0, leaves: None });
        }
        cluster.drive();
        cluster.arrive(4, 0);
        cluster.settle();
        assert!(cluster.pending.is_empty(), "counters {counts}: {:?}", cluster.pending);
        assert_eq!((cluster.evictions, cluster.running.len()), (1, 3), "counters {counts}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_decisions_are_safe_and_pods_are_served(
        gpus in prop::collection::vec(1..3_usize, 1..4),
        floor in any::<bool>(),
        moves in any::<bool>(),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        run(Cluster::new(&gpus, floor, false, moves), &steps);
    }

    #[test]
    fn holds_are_safe_where_counters_are_kept(
        gpus in prop::collection::vec(1..3_usize, 1..3),
        moves in any::<bool>(),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        run(Cluster::new(&gpus, false, true, moves), &steps);
    }
}
