//! Worlds in which schedulers are late, two controllers act, views are stale, writes are lost and nodes do not answer. Whatever
//! happens: nothing overlaps, no node is changed twice within its interval, holds end, each change serves a pod that nothing
//! published serves, and in the end every pod that fits runs.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use mig_controller::demand::{Memory, NodeState, Options, PendingPod, Reason, World, Write, decide};
use mig_model::layout::{Wanted, arrange};
use proptest::prelude::*;

use crate::model::{Model, Set, members};
use crate::node::{Keeps, SimNode};
use crate::pods::{at, classes, for_profile};

const CASES: u32 = 16;
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
        8 => decide.prop_map(|(controller, stale, lost)| Step::Decide { controller, stale, lost }),
        1 => (0..2_usize).prop_map(Step::Restart),
        1 => any::<usize>().prop_map(Step::Silence),
        1 => any::<usize>().prop_map(Step::Revive),
    ]
}

struct Running {
    node: usize,
    gpu: usize,
    device: usize,
}

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
    /// When the hold of a claim on a GPU of a node ends.
    holds: BTreeMap<(usize, String, String), Timestamp>,
    count: usize,
    /// When a write for each node was lost.
    lost: Vec<Option<f64>>,
}

impl Cluster {
    fn new(gpus: &[usize], floor: bool, counts: bool) -> Self {
        let node = |(position, gpus): (usize, &usize)| {
            let model = MODELS[gpus - 1].clone();
            let base = model.base.clone();
            let keeps = if counts { Keeps::Counters } else { Keeps::Demand };
            let mut node = SimNode::new(&format!("n{position}"), model, keeps, base);
            if floor && position == 0 {
                node.floor.insert("1g.10gb".to_owned(), 2);
            }
            node
        };
        let nodes: Vec<SimNode> = gpus.iter().enumerate().map(node).collect();
        let options = Options {
            hold_after: Some(Duration::from_secs(60)),
            hold_for: Duration::from_secs(300),
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
            holds: BTreeMap::new(),
            count: 0,
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
        self.nodes.iter_mut().for_each(|it| it.step(now));
    }

    fn look(&mut self) {
        self.looked = self.nodes.iter().map(|it| it.published.clone()).collect();
    }

    fn view(&self) -> World {
        let nodes: Vec<NodeState> = self.nodes.iter().map(SimNode::state).collect();
        World { nodes, pods: self.pending.values().map(|it| it.0.clone()).collect(), classes: classes() }
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
                self.pending.remove(&uid);
                self.running.push(Running { node, gpu, device });
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
            if !self.nodes[node].write(&write) {
                self.memories[controller].failed(&write.node);
            } else {
                if write.reason == Reason::Change {
                    self.changes[node].push(now);
                }
                self.check_holds(node, &write, now);
            }
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
            let inputs = sim.model.inputs(&held);
            let free = write.demand.clone().unwrap().profiles;
            let wanted = Wanted { free, floor: sim.floor.clone() };
            let missing = arrange(inputs, &sim.layouts, &wanted).missing;
            assert!(missing.is_empty(), "{write:?} cannot be followed: {missing:?}; held {held:?}");
        }
    }

    /// The end of a hold never moves.
    fn check_holds(&mut self, node: usize, write: &Write, now: Timestamp) {
        self.holds.retain(|(n, gpu, uid), until| {
            *n != node || now < *until && write.holds.iter().any(|it| it.gpu == *gpu && it.claim.uid == *uid)
        });
        for hold in write.holds.iter().filter(|it| now < it.until) {
            let key = (node, hold.gpu.clone(), hold.claim.uid.clone());
            let until = *self.holds.entry(key).or_insert(hold.until);
            assert_eq!(until, hold.until, "a hold was extended");
            assert!(hold.until <= at(self.now + 300.0));
        }
    }

    fn act(&mut self, step: &Step) {
        match step {
            Step::Arrive { profile, priority } => {
                self.count += 1;
                let uid = format!("pod-{:04}", self.count);
                let mut pod = for_profile(&uid, self.time(), PROFILES[*profile]);
                pod.priority = *priority;
                self.pending.insert(uid, (pod, *profile));
            }
            Step::Finish(which) if !self.running.is_empty() => {
                let ended = self.running.swap_remove(which % self.running.len());
                self.nodes[ended.node].release(ended.gpu, ended.device);
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
        for times in &self.changes {
            for pair in times.windows(2) {
                let pause = pair[1].duration_since(pair[0]).as_secs();
                assert!(30 <= pause, "changed again after {pause} s");
            }
        }
    }

    /// Everything works again, and nothing new happens.
    fn settle(&mut self) {
        self.nodes.iter_mut().for_each(|it| it.answers = true);
        // Longer than holds, and what is remembered of pods and nodes, last.
        for _ in 0..120 {
            self.now += 8.0;
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
        cluster.act(step);
        cluster.check();
    }
    cluster.settle();
    cluster.check_end();
    // Without pods nothing is demanded and nothing is held back.
    cluster.pending.clear();
    for _ in 0..20 {
        cluster.now += 5.0;
        cluster.drive();
        cluster.decide(0, false, false);
    }
    assert!(cluster.nodes.iter().all(|it| it.demand.is_none() && it.holds.is_empty()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_decisions_are_safe_and_pods_are_served(
        gpus in prop::collection::vec(1..3_usize, 1..4),
        floor in any::<bool>(),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        run(Cluster::new(&gpus, floor, false), &steps);
    }

    #[test]
    fn holds_are_safe_where_counters_are_kept(
        gpus in prop::collection::vec(1..3_usize, 1..3),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        run(Cluster::new(&gpus, false, true), &steps);
    }
}
