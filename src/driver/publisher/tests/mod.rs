//! The publishing step in a loop as the driver runs it, with an API server that is a list of slices. What is around it, GPUs,
//! claims and schedulers, is in the worlds that use it: `shares` here, and that of layouts and counters.

mod allocated;
mod claim_lists;
mod cluster;
mod gates;
mod holds;
mod order;
mod restarts;
mod resumption;
mod scene;
mod shares;
mod step;
mod triggers;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use k8s_openapi::api::resource::v1::ResourceSlice;
use mig_model::facts::NodeFacts;
use mig_model::health::Report;
use mig_model::inventory::{Gpu, Inventory, OfferPolicy, ProfileFilter};
use mig_model::layout::{Decision, Layouts};
use mig_model::placement::Policy;

use mig_model::slices::*;
use proptest::test_runner::{Config, RngSeed};

/// How the worlds are played: always the same cases, so many unless the variable `PROPTEST_CASES` asks for more.
pub(crate) fn config(cases: u32) -> Config {
    let default = Config::default();
    let cases = cases.max(std::env::var("PROPTEST_CASES").map_or(0, |_| default.cases));
    Config { cases, rng_seed: RngSeed::Fixed(4), failure_persistence: None, ..default }
}

/// Seconds.
pub(crate) const SETTLE: u64 = 10;
/// Also seconds.
pub(crate) const REORDER: u64 = 10;

/// What is known of the node, owned.
#[derive(Debug, Clone, Default)]
pub(crate) struct Node {
    pub(crate) inventory: std::sync::Arc<Inventory>,
    pub(crate) held: BTreeSet<String>,
    pub(crate) health: Report,
    /// Why NVML cannot describe the GPUs.
    pub(crate) problem: Option<String>,
}

/// What an inventory is computed from.
pub(crate) struct Source<'a> {
    pub(crate) gpus: &'a [Gpu],
    pub(crate) policy: OfferPolicy,
}

/// The driver's side of a world.
pub(crate) struct Rounds {
    pub(crate) settings: Settings,
    pub(crate) layout: Decision,
    pub(crate) memory: Memory,
    /// What the API server has.
    pub(crate) slices: Vec<ResourceSlice>,
    /// What is decided and not written yet.
    decided: Option<Vec<ResourceSlice>>,
    /// When that was.
    decided_at: Option<Instant>,
    /// What the node was when that was decided.
    seen: Option<Node>,
    /// When to look again.
    pub(crate) wake: Option<Instant>,
    /// Slices written so far.
    pub(crate) writes: usize,
    /// Lists of claims so far.
    pub(crate) lists: usize,
    /// Reads of the claims that the last list has found, so far.
    pub(crate) looks: usize,
    /// Whether claims are listed where reads of some would do.
    pub(crate) lists_only: bool,
    /// What a process that starts may rely on.
    pub(crate) on_disk: Option<Pool>,
    /// What was read for what is decided.
    pub(crate) asked: Vec<Question>,
    /// How the slices stand once it is written.
    pub(crate) status: Option<Publication>,
    /// What the publisher knows of the gates when a round begins.
    pub(crate) gates: Gates,
    /// Whether others have changed the slices since.
    is_foreign: bool,
    facts: NodeFacts,
}

impl Rounds {
    pub(crate) fn new() -> Self {
        let settings = Settings {
            mode: Mode::Auto,
            placement: Policy::Static,
            profiles: ProfileFilter::default(),
            reorder_interval: Duration::from_secs(REORDER),
            settle_time: Duration::from_secs(SETTLE),
            taint_effect: TaintEffect::NoSchedule,
        };
        Self {
            memory: Memory::new(settings.settle_time, false),
            settings,
            layout: Decision { revision: 1, ..Decision::default() },
            slices: Vec::new(),
            decided: None,
            decided_at: None,
            seen: None,
            wake: None,
            writes: 0,
            lists: 0,
            looks: 0,
            lists_only: false,
            on_disk: None,
            asked: Vec::new(),
            status: None,
            gates: Gates::default(),
            is_foreign: false,
            facts: NodeFacts::default(),
        }
    }

    pub(crate) fn with_layouts(layouts: Layouts) -> Self {
        let mut rounds = Self::new();
        rounds.layout.layouts = layouts;
        rounds
    }

    /// Another process goes on; what this one remembered and had not written yet is lost, and so is the file.
    pub(crate) fn restart(&mut self) {
        self.on_disk = None;
        self.resume();
    }

    /// The same, with the file where there is one.
    pub(crate) fn resume(&mut self) {
        self.memory = match &self.on_disk {
            Some(pool) => Memory::resume(self.settings.settle_time, pool.clone()),
            None => Memory::new(self.settings.settle_time, true),
        };
        (self.decided, self.seen, self.wake) = (None, None, None);
    }

    /// Others delete the slices.
    pub(crate) fn wipe(&mut self) {
        self.slices.clear();
        self.is_foreign = true;
    }

    pub(crate) fn pool(&self) -> Option<Pool> {
        Pool::of(&self.slices)
    }

    /// Whether the claims were read for what is decided.
    pub(crate) fn has_read(&self) -> bool {
        self.asked.contains(&Question::Claims)
    }

    /// Whether the driver would look at what is otherwise now than when it looked last, without being asked to.
    pub(crate) fn is_news(&self, node: &Node, source: &Source<'_>, gates: &Gates, now: Instant) -> bool {
        self.is_changed(node, source, gates) || !self.world(node, source, gates).is_served(&self.memory, now)
    }

    /// The same without the order of devices, which it looks at only after a pause in which more may change.
    pub(crate) fn is_changed(&self, node: &Node, source: &Source<'_>, gates: &Gates) -> bool {
        let Some(seen) = self.seen.as_ref().filter(|_| !self.is_foreign) else { return true };
        self.world(node, source, gates).is_news(&self.memory, &self.view(seen, source))
    }

    fn view<'a>(&'a self, node: &'a Node, source: &'a Source<'_>) -> NodeView<'a> {
        let inputs = match &node.problem {
            Some(problem) => Err(problem.as_str()),
            None => Ok(Inputs { facts: &self.facts, gpus: source.gpus, policy: &source.policy }),
        };
        NodeView { inventory: &node.inventory, inputs, held: &node.held, health: &node.health }
    }

    fn world<'a>(&'a self, node: &'a Node, source: &'a Source<'_>, gates: &'a Gates) -> World<'a> {
        let node = self.view(node, source);
        World {
            settings: &self.settings,
            node,
            layout: &self.layout,
            gates,
            published: None,
            claims: None,
            still_allocated: None,
        }
    }

    /// The first half of a round: it reads and decides.
    pub(crate) fn decide(
        &mut self,
        node: Node,
        source: &Source<'_>,
        keeps_counters: bool,
        allocated: &BTreeSet<String>,
        now: Instant,
    ) {
        let owner = Owner { driver: "d".into(), node: "n".into(), node_uid: "u".into() };
        let published = Published { owner, slices: self.slices.clone() };
        let claims = Claims { read_at: now, allocated: allocated.clone() };
        let support = if keeps_counters { CounterSupport::Pool } else { CounterSupport::Dropped };
        let mut gates = self.gates;
        let nothing = BTreeSet::new();
        let still = if self.lists_only { &nothing } else { allocated };
        let mut asked = Vec::new();
        let plan = loop {
            let world = World {
                published: asked.contains(&Question::Slices).then_some(&published),
                claims: asked.contains(&Question::Claims).then_some(&claims),
                still_allocated: asked.contains(&Question::Releases).then_some(still),
                ..self.world(&node, source, &gates)
            };
            match next(&world, &self.memory, now) {
                Ok(plan) => break plan,
                Err(question) => {
                    assert!(!asked.contains(&question), "{question:?} was answered");
                    asked.push(question);
                }
            }
            if asked.contains(&Question::Counters) {
                gates.counters = Gate { answer: Some(support), asked: Some(now) };
            }
            if asked.contains(&Question::Taints) {
                gates.taints = Gate { answer: Some(true), asked: Some(now) };
            }
        };
        let asked_releases = asked.contains(&Question::Releases);
        self.asked = asked;
        self.lists += usize::from(self.has_read());
        self.looks += usize::from(asked_releases && !self.lists_only);
        self.status = Some(plan.status);
        self.is_foreign = false;
        self.memory = plan.memory;
        self.wake = Some(plan.wake);
        self.decided = plan.slices;
        self.decided_at = Some(now);
        self.seen = Some(node);
    }

    /// The second half: it writes, if it has decided anything; at most so many slices, and then it fails. True where something
    /// was decided.
    pub(crate) fn write(&mut self, most: usize, now: Instant) -> bool {
        let Some(wanted) = self.decided.take() else { return false };
        // Before anything is written that a process after this one must not miss.
        let pool = Pool::of(&wanted);
        self.on_disk = self.on_disk.take().filter(|it| Some(it) == pool.as_ref());
        let changes = diff(wanted, &self.slices);
        let is_whole = changes.len() <= most;
        for change in changes.into_iter().take(most) {
            self.writes += 1;
            let (Change::Delete(new) | Change::Update(new) | Change::Create(new)) = &change;
            self.slices.retain(|it| it.metadata.name != new.metadata.name);
            if let Change::Update(new) | Change::Create(new) = change {
                self.slices.push(new);
            }
        }
        if is_whole {
            let due = self.memory.written(now);
            self.on_disk = pool
                .zip(self.seen.as_ref())
                .and_then(|(pool, seen)| self.memory.to_resume(pool, &seen.inventory, now));
            self.wake = due.into_iter().chain(self.wake).min();
            let is_slow = self.decided_at != Some(now);
            assert!(
                is_slow || self.wake.is_some_and(|it| now < it),
                "it would read and write without a pause"
            );
        } else {
            self.wake = Some(now + Duration::from_secs(1));
        }
        true
    }
}
