//! What is remembered between decisions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dra_allocator::cel_env::Programs;
use k8s_openapi::jiff::Timestamp;

use super::answers::Answers;
use super::evictions::Consolidation;
use super::world::{ClaimKey, Demand, Hold, NodeState, Options, Profiles, Progress, World, after};

/// What is remembered between decisions. An empty one is safe, only slower.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Memory {
    pub(super) nodes: BTreeMap<String, NodeMemory>,
    /// Since when a pod has been offered a device, by UID.
    pub(super) offered: BTreeMap<String, Timestamp>,
    pub(super) compiled: Compiled,
    pub(super) consolidation: Consolidation,
}

/// Expressions that are compiled already, and what they chose. Forgotten from time to time, so that they do not become more and more.
#[derive(Debug, Clone, Default)]
pub(super) struct Compiled {
    pub(super) programs: Programs,
    pub(super) answers: Answers,
    /// How many kinds of pods have used them.
    pub(super) used: usize,
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
pub(super) struct NodeMemory {
    /// When its last change was decided, or the latest that it can have been.
    pub(super) changed: Timestamp,
    /// What was written last.
    pub(super) written: Option<Profiles>,
    /// When that was written or renewed. What was renewed later is of another controller, though it may be the same.
    pub(super) renewed: Timestamp,
    /// Until when it is not changed, because it did not follow.
    pub(super) avoided: Option<Timestamp>,
    /// A write that the world does not show yet.
    pub(super) unseen: Option<Unseen>,
}

/// A write that the world does not show yet, because watches are late or because it was lost.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Unseen {
    /// When it was decided.
    pub(super) at: Timestamp,
    /// What was there before: the last change, demand and holds.
    pub(super) before: (Option<Timestamp>, Option<Demand>, Vec<Hold>),
    /// What was written.
    pub(super) demand: Option<Demand>,
    pub(super) holds: Vec<Hold>,
}

/// For so long a write that the world does not show counts as if it did.
pub(super) const UNSEEN: Duration = Duration::from_secs(10);

impl Memory {
    /// Learns from what is written when nodes were changed, and forgets what is over.
    pub(super) fn read(&mut self, world: &World, options: &Options, now: Timestamp) {
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
                (Some(known), Some((profiles, renewed)))
                    if known.written.as_ref() == Some(profiles) && renewed <= known.renewed =>
                {
                    known
                }
                // Of another controller, or of this one before it started.
                (known, Some((profiles, renewed))) => {
                    let at = renewed.min(now);
                    let changed = known.as_ref().map_or(at, |it| it.changed.max(at));
                    let (avoided, unseen) = known.map_or((None, None), |it| (it.avoided, it.unseen));
                    NodeMemory { changed, written: Some(profiles.clone()), renewed, avoided, unseen }
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
        let pods: BTreeSet<&str> = world.pods.iter().map(|it| it.uid.as_str()).collect();
        self.offered.retain(|uid, _| pods.contains(uid.as_str()));
    }

    /// To be called where a write was not made, so that it is not counted on.
    pub fn failed(&mut self, node: &str) {
        let Some(known) = self.nodes.get_mut(node) else { return };
        let Some(Unseen { before: (changed, demand, _), .. }) = known.unseen.take() else { return };
        match changed {
            Some(changed) => {
                known.changed = changed;
                known.renewed = demand.as_ref().and_then(|it| it.renewed).unwrap_or(known.renewed);
                known.written = demand.map(|it| it.profiles);
            }
            None => drop(self.nodes.remove(node)),
        }
    }

    /// To be called where a pod was not evicted: it is left alone until then. One of which that is not certain counts as if it was.
    pub fn not_evicted(&mut self, pod: &str, until: Timestamp, is_certain: bool) {
        self.consolidation.not_evicted(pod, until, is_certain);
    }

    /// The claim for which pods were evicted last, as long as it is not known what came of it.
    #[must_use]
    pub fn awaited(&self) -> Option<&ClaimKey> {
        self.consolidation.attempt.as_ref().map(|it| &it.claim)
    }

    /// The node as it will be once the world shows what was written; `None` where it does.
    pub(super) fn as_written(&self, state: &NodeState) -> Option<NodeState> {
        let unseen = self.nodes.get(state.name())?.unseen.as_ref()?;
        let (demand, holds) = (unseen.demand.clone(), unseen.holds.clone());
        Some(NodeState { demand, holds, progress: Progress::Pending, ..state.clone() })
    }

    /// Until when a node may not be changed.
    pub(super) fn changeable_from(&self, node: &str, options: &Options) -> Option<Timestamp> {
        let node = self.nodes.get(node)?;
        let changed = after(node.changed, options.change_interval);
        Some(node.avoided.map_or(changed, |it| it.max(changed)))
    }

    /// Whether a pod was offered a device for so long that it must wait for something else. It gets another chance later.
    pub(super) fn is_elsewhere(&self, uid: &str, options: &Options, now: Timestamp) -> bool {
        let since = self.offered.get(uid);
        since
            .is_some_and(|it| after(*it, options.offer_for) <= now && now < after(*it, options.offer_for * 5))
    }
}
