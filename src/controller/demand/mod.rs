//! What nodes should publish, and which GPUs are held back, for the pods that wait. Pure.
//!
//! ```text
//! world (MigNodes, Nodes, pending pods, classes), memory, time -> decide -> what to write, memory, when to look again
//! ```
//!
//! Pods are served in thought, in the order of the scheduler (priority, then age), so that two do not count on one device:
//!
//! 1. by what nodes publish, or are about to publish because of a demand that is written already;
//! 2. by changes of nodes, of those whose last change is long enough ago: where no GPU that is whole or empty has to be cut, then
//!    where the fewest free devices are withdrawn. Each change serves at least one pod that nothing published serves. What the
//!    floor needs and what pods of step 1 count on stays;
//! 3. those that have waited for long get a GPU held back: free devices that stand in the way are not offered until the claim has
//!    its device, or the hold ends.
//!
//! Which devices serve a claim is what the allocator says ([`dra_allocator`]), of all possible devices of a GPU and not only of
//! those that are published. Equal GPUs and equal pods are asked about once.
//!
//! Nothing has to be kept: [`Memory`] makes decisions better, and [`decide`] is safe without it. A demand is not removed within
//! the interval after a change, so a node without one may change at once; one with a demand was changed at its renewal at the
//! latest.

mod compose;
mod convert;
mod eligible;
pub mod kind;
mod ledger;
mod round;
mod shape;
mod turns;
pub mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use dra_allocator::cel_env::Programs;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

pub use kind::{Kind, Kinds, Possible};
pub use world::{
    ClaimKey, Demand, GpuState, Hold, NodeState, Options, PendingPod, Placed, Profiles, Progress, World,
};

/// What is remembered between decisions. An empty one is safe, only slower.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Memory {
    nodes: BTreeMap<String, NodeMemory>,
    /// Since when a pod has been offered a device, by UID.
    offered: BTreeMap<String, Timestamp>,
    compiled: Compiled,
}

/// Expressions that are compiled already. Forgotten from time to time, so that they do not become more and more.
#[derive(Debug, Clone, Default)]
struct Compiled {
    programs: Programs,
    /// How many kinds of pods have used them.
    used: usize,
}

impl PartialEq for Compiled {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// Kinds of pods after which compiled expressions are forgotten.
const MAX_USED: usize = 4096;

/// What is remembered of a node.
#[derive(Debug, Clone, PartialEq)]
struct NodeMemory {
    /// When its last change was decided, or the latest that it can have been.
    changed: Timestamp,
    /// What was written last.
    written: Option<Profiles>,
    /// Until when it is not changed, because it did not follow.
    avoided: Option<Timestamp>,
    /// A write that the world does not show yet.
    unseen: Option<Unseen>,
}

/// A write that the world does not show yet, because watches are late or because it was lost.
#[derive(Debug, Clone, PartialEq)]
struct Unseen {
    /// When it was decided.
    at: Timestamp,
    /// What was there before: the last change, demand and holds.
    before: (Option<Timestamp>, Option<Demand>, Vec<Hold>),
    /// What was written.
    demand: Option<Demand>,
    holds: Vec<Hold>,
}

/// For so long a write that the world does not show counts as if it did.
const UNSEEN: Duration = Duration::from_secs(10);

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Decisions {
    /// Objects to write.
    pub writes: Vec<Write>,
    /// What becomes of each pod that needs devices of the driver, by UID.
    pub pods: BTreeMap<String, Prospect>,
}

/// The controller's part of the spec of one `MigNode`.
#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    /// The node.
    pub node: String,
    /// The version that this was decided on. A write must fail where the object has another one.
    pub resource_version: Option<String>,
    /// `spec.demand`; as it was where a person wrote it.
    pub demand: Option<Demand>,
    /// `spec.holds`.
    pub holds: Vec<Hold>,
    /// Why.
    pub reason: Reason,
    /// UIDs of the pods that the change serves.
    pub serves: Vec<String>,
}

/// Why something is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The node is to publish other devices.
    Change,
    /// Less is needed.
    Reduce,
    /// It is still needed.
    Renew,
    /// Nothing is needed any more.
    Remove,
    /// Only holds differ.
    Holds,
}

/// What becomes of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prospect {
    /// A node publishes what it needs.
    Published {
        /// The node.
        node: String,
    },
    /// A node will publish what it needs.
    Coming {
        /// The node.
        node: String,
    },
    /// A GPU is held back for it.
    Held {
        /// The node.
        node: String,
        /// The GPU.
        gpu: String,
    },
    /// It was offered a device for long and did not use it.
    WaitsForSomethingElse,
    /// Nothing serves it now.
    Waits,
    /// No GPU can be partitioned into what it asks for.
    Impossible,
    /// Too many different pods wait before it.
    NotLookedAt,
}

/// What came of [`decide`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// What is to be done.
    pub decisions: Decisions,
    /// What to remember.
    pub memory: Memory,
    /// When to decide again although nothing happens.
    pub wake: Option<Timestamp>,
}

/// Decides what nodes should publish and which GPUs are held back.
#[must_use]
pub fn decide(world: &World, options: &Options, memory: &Memory, now: Timestamp) -> Outcome {
    let mut memory = memory.clone();
    memory.read(world, options, now);
    let written: Vec<Option<NodeState>> = world.nodes.iter().map(|it| memory.as_written(it)).collect();
    let mut round = round::Round::new(world, &written, options, &memory, now);
    round.serve();
    let holds = turns::holds(&mut round);
    memory.compiled.used += round.kinds_of_pods();
    compose::outcome(&round, holds, memory)
}

/// A time as much later.
fn after(time: Timestamp, pause: Duration) -> Timestamp {
    let pause = SignedDuration::try_from(pause).unwrap_or(SignedDuration::MAX);
    time.checked_add(pause).unwrap_or(Timestamp::MAX)
}

impl Memory {
    /// Learns from what is written when nodes were changed, and forgets what is over.
    fn read(&mut self, world: &World, options: &Options, now: Timestamp) {
        if MAX_USED <= self.compiled.used {
            self.compiled = Compiled::default();
        }
        let mut nodes = std::mem::take(&mut self.nodes);
        for state in &world.nodes {
            let name = state.name();
            let known = nodes.remove(name);
            let ours = state.demand.as_ref().and_then(|it| Some((&it.profiles, it.renewed?)));
            let mut node = match (known, ours) {
                // As written, or not there yet.
                (Some(known), Some((profiles, _))) if known.written.as_ref() == Some(profiles) => known,
                // Of another controller, or of this one before it started.
                (known, Some((profiles, renewed))) => {
                    let renewed = renewed.min(now);
                    let changed = known.as_ref().map_or(renewed, |it| it.changed.max(renewed));
                    let (avoided, unseen) = known.map_or((None, None), |it| (it.avoided, it.unseen));
                    NodeMemory { changed, written: Some(profiles.clone()), avoided, unseen }
                }
                (Some(known), None) => known,
                (None, None) => continue,
            };
            let is_unseen = |it: &Unseen| {
                now < after(it.at, UNSEEN) && state.demand == it.before.1 && state.holds == it.before.2
            };
            node.unseen = node.unseen.filter(is_unseen);
            if ours.is_some()
                && state.is_refused
                && state.progress == Progress::Done
                && node.avoided.is_none()
            {
                node.avoided = Some(after(now, options.follow_within));
            }
            node.avoided = node.avoided.filter(|it| now < *it);
            let is_over = ours.is_none() && after(node.changed, options.follow_within) <= now;
            if !is_over || node.avoided.is_some() || node.unseen.is_some() {
                self.nodes.insert(name.to_owned(), node);
            }
        }
        let pods: std::collections::BTreeSet<&str> = world.pods.iter().map(|it| it.uid.as_str()).collect();
        self.offered.retain(|uid, _| pods.contains(uid.as_str()));
    }

    /// To be called where a write failed, so that it is not counted on.
    pub fn failed(&mut self, node: &str) {
        let Some(known) = self.nodes.get_mut(node) else { return };
        let Some(Unseen { before: (changed, demand, _), .. }) = known.unseen.take() else { return };
        match changed {
            Some(changed) => {
                known.changed = changed;
                known.written = demand.map(|it| it.profiles);
            }
            None => drop(self.nodes.remove(node)),
        }
    }

    /// The node as it will be once the world shows what was written; `None` where it does.
    fn as_written(&self, state: &NodeState) -> Option<NodeState> {
        let unseen = self.nodes.get(state.name())?.unseen.as_ref()?;
        let (demand, holds) = (unseen.demand.clone(), unseen.holds.clone());
        Some(NodeState { demand, holds, progress: Progress::Pending, ..state.clone() })
    }

    /// Until when a node may not be changed.
    fn changeable_from(&self, node: &str, options: &Options) -> Option<Timestamp> {
        let node = self.nodes.get(node)?;
        let changed = after(node.changed, options.change_interval);
        Some(node.avoided.map_or(changed, |it| it.max(changed)))
    }
}

impl NodeState {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.node.metadata.name.as_deref().unwrap_or_default()
    }

    /// Whether a person demands something of it.
    fn is_a_persons(&self) -> bool {
        self.demand.as_ref().is_some_and(|it| it.renewed.is_none())
    }
}
