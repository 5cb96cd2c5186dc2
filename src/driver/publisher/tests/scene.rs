//! A node with GPUs, claims and a publisher, of which a test says step by step what happens.

use std::sync::Arc;

use mig_model::facts::{ComputeInstance, GpuInstance, Placement};
use mig_model::inventory::inventory_on;
use mig_model::layout::{choose, default_layouts};

use super::*;
use crate::layout::tests::{facts, gpus};

/// A node, what claims have of it, and its publisher.
pub(super) struct Scene {
    pub(super) rounds: Rounds,
    pub(super) gpus: Vec<Gpu>,
    pub(super) policy: OfferPolicy,
    /// Its inventory is computed of the GPUs.
    pub(super) node: Node,
    pub(super) keeps_counters: bool,
    /// What the API server has as allocated.
    pub(super) allocated: BTreeSet<String>,
    start: Instant,
    pub(super) now: u64,
}

impl Scene {
    /// These GPUs in MIG mode, an API server that keeps counters, and no claim.
    pub(super) fn new(models: &str) -> Self {
        let facts = facts(models);
        Self {
            rounds: Rounds::with_layouts(default_layouts(&facts)),
            gpus: gpus(&facts, true, &[]),
            policy: OfferPolicy::default(),
            node: Node::default(),
            keeps_counters: true,
            allocated: BTreeSet::new(),
            start: Instant::now(),
            now: 0,
        }
    }

    /// The same, published, with a claim that has this device.
    pub(super) fn with_prepared(models: &str, device: &str) -> Self {
        let mut scene = Self::new(models);
        scene.look();
        scene.prepare(device);
        scene.look();
        scene
    }

    /// GPUs as in [`Scene::new`] with a layout, and without counters.
    pub(super) fn with_layout(models: &str, name: &str) -> Self {
        let mut scene = Self { keeps_counters: false, ..Self::new(models) };
        scene.choose(name);
        scene
    }

    pub(super) fn choose(&mut self, name: &str) {
        let facts: Vec<_> = self.gpus.iter().map(|it| (*it.facts).clone()).collect();
        self.rounds.layout.layouts = choose(Some(name), None, &facts).unwrap();
        self.rounds.layout.revision += 1;
    }

    pub(super) fn at(&self, seconds: u64) -> Instant {
        self.start + Duration::from_secs(seconds)
    }

    fn node(&self) -> (Node, OfferPolicy) {
        let policy = OfferPolicy { held: self.node.held.clone(), ..self.policy.clone() };
        let gpus = if self.node.problem.is_some() { &[][..] } else { &self.gpus };
        let inventory = Arc::new(inventory_on(&NodeFacts::default(), gpus, &policy));
        (Node { inventory, ..self.node.clone() }, policy)
    }

    /// The first half of a round.
    pub(super) fn decide(&mut self) {
        let (node, policy) = self.node();
        let now = self.at(self.now);
        let source = Source { gpus: &self.gpus, policy };
        self.rounds.decide(node, &source, self.keeps_counters, &self.allocated, now);
    }

    /// One round.
    pub(super) fn look(&mut self) {
        self.decide();
        self.rounds.write(usize::MAX, self.at(self.now));
    }

    fn gates(&self) -> Gates {
        let support = if self.keeps_counters { CounterSupport::Pool } else { CounterSupport::Dropped };
        Gates { counters: Gate { answer: Some(support), asked: None }, ..Gates::default() }
    }

    /// Whether what the node knows by itself makes a round necessary.
    pub(super) fn is_news(&self) -> bool {
        let (node, policy) = self.node();
        self.rounds.is_news(&node, &Source { gpus: &self.gpus, policy }, &self.gates(), self.at(self.now))
    }

    /// The same for what it looks at without a pause.
    pub(super) fn is_changed(&self) -> bool {
        let (node, policy) = self.node();
        self.rounds.is_changed(&node, &Source { gpus: &self.gpus, policy }, &self.gates())
    }

    /// A round where what the node knows by itself makes one necessary. True where it does.
    pub(super) fn notice(&mut self) -> bool {
        let is_news = self.is_news();
        if is_news {
            self.look();
        }
        is_news
    }

    /// Seconds until it looks again.
    pub(super) fn pause(&self) -> u64 {
        self.rounds.wake.map_or(0, |it| it.duration_since(self.at(self.now)).as_secs())
    }

    /// Goes on by what wakes it.
    pub(super) fn elapse(&mut self, seconds: u64) {
        let end = self.now + seconds;
        while self.now + self.pause() <= end {
            self.now += self.pause();
            self.look();
        }
        self.now = end;
    }

    pub(super) fn published(&self) -> BTreeSet<String> {
        self.rounds.pool().map_or_else(BTreeSet::new, |it| it.devices)
    }

    /// A scheduler allocates a device.
    pub(super) fn allocate(&mut self, device: &str) {
        self.allocated.insert(device.to_owned());
    }

    /// The kubelet asks for it.
    pub(super) fn prepare(&mut self, device: &str) {
        self.allocate(device);
        self.node.held.insert(device.to_owned());
    }

    /// The claim ends.
    pub(super) fn end(&mut self, device: &str) {
        self.allocated.remove(device);
        self.node.held.remove(device);
    }

    /// An instance of the smallest profile on the first GPU, created past the driver.
    pub(super) fn add_unmanaged(&mut self, id: u32, start: u32, compute_instances: Vec<ComputeInstance>) {
        let profile_id = self.gpus[0].facts.mig.as_ref().unwrap().profiles[0].id;
        let placement = Placement { start, size: 1 };
        self.gpus[0].state.instances.push(GpuInstance { id, profile_id, placement, compute_instances });
    }

    pub(super) fn make_unhealthy(&mut self, gpu: usize) {
        self.gpus[gpu].state.problem = Some("XID 48".to_owned());
    }

    pub(super) fn recover(&mut self, gpu: usize) {
        self.gpus[gpu].state.problem = None;
    }

    pub(super) fn status(&self) -> &Publication {
        self.rounds.status.as_ref().unwrap()
    }
}

/// A device of the first GPU.
pub(super) fn mig(name: &str) -> String {
    format!("gpu-0000-1a-00-mig-{name}")
}
