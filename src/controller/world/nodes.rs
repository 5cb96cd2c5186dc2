//! Nodes and their MigNodes. A MigNode is read once for each version: a thousand of them have 34 MB as JSON, of which nearly all is the
//! same for equal GPUs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kubectl_mig::cluster::Demanded;
use mig_model::mig_node::MigNode;

use super::change::{Key, Names};
use super::sorted::{find, put, remove};
use crate::demand::{Described, Kinds, NodeState, Placed};

/// A device that a claim holds.
#[derive(Debug)]
pub struct HeldDevice {
    /// UID of the claim.
    pub claim: String,
    /// Name of the whole GPU as a device.
    pub gpu: String,
    /// The device.
    pub placed: Placed,
}

/// MigNodes by name, with their Nodes.
#[derive(Debug, Default)]
pub(super) struct MigNodes {
    all: BTreeMap<String, Entry>,
    kinds: Kinds,
}

#[derive(Debug)]
struct Entry {
    described: Described,
    /// What it says of demand, whatever the label of the node is.
    demanded: Demanded,
    held: Vec<HeldDevice>,
    /// `None` where there is no Node of this name.
    node: Option<Arc<Node>>,
}

impl MigNodes {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Removes all. True where there were any.
    pub(super) fn clear(&mut self) -> bool {
        !std::mem::take(&mut self.all).is_empty()
    }

    /// Those with a Node, as decisions take them.
    pub(super) fn states(&self, default_auto: bool) -> Vec<NodeState> {
        let state = |it: &Entry| Some(it.described.on(it.node.clone()?, default_auto));
        self.all.values().filter_map(state).collect()
    }

    /// What they say of demand, by name, without holds that are over. Without the label for layouts a node follows it where
    /// `default_auto` says so.
    pub(super) fn demanded(&self, default_auto: bool, now: Timestamp) -> BTreeMap<String, Demanded> {
        let of = |(name, it): (&String, &Entry)| {
            let mut demanded = it.demanded.clone();
            demanded.with_label_of(it.node.as_deref(), default_auto);
            demanded.end_holds(now);
            (name.clone(), demanded)
        };
        self.all.iter().map(of).collect()
    }

    /// The devices that claims hold, with the name of their node.
    pub(super) fn held(&self) -> impl Iterator<Item = (&str, &HeldDevice)> {
        self.all.iter().flat_map(|(name, it)| it.held.iter().map(move |held| (name.as_str(), held)))
    }

    fn put(&mut self, mig: &MigNode, nodes: &[Node]) -> bool {
        let name = mig.node();
        let known = self.all.get(name);
        let version = mig.metadata.resource_version.as_deref();
        if version.is_some() && known.is_some_and(|it| it.described.version() == version) {
            return false;
        }
        let node = known.and_then(|it| it.node.clone());
        let node = node.or_else(|| find(nodes, "", name).cloned().map(Arc::new));
        let described = Described::of(mig, &mut self.kinds);
        let demanded = Demanded::whatever_the_label(mig);
        self.all.insert(name.to_owned(), Entry { described, demanded, held: held(mig), node });
        true
    }

    fn set_node(&mut self, name: Option<&str>, node: impl FnOnce() -> Option<Arc<Node>>) {
        if let Some(entry) = name.and_then(|it| self.all.get_mut(it)) {
            entry.node = node();
        }
    }
}

fn held(mig: &MigNode) -> Vec<HeldDevice> {
    let gpus = mig.status.iter().flat_map(|it| &it.gpus);
    let all =
        gpus.flat_map(|gpu| gpu.held.iter().filter_map(move |held| Some((gpu, held, held.claim.as_ref()?))));
    all.map(|(gpu, held, claim)| HeldDevice {
        claim: claim.uid.as_str().to_owned(),
        gpu: gpu.name.clone(),
        placed: Placed { profile: held.profile.clone(), start: held.start, size: held.size },
    })
    .collect()
}

/// What the watch of MigNodes changes.
pub(super) struct MigNodesOn<'w>(pub(super) &'w mut MigNodes, pub(super) &'w [Node]);

impl MigNodesOn<'_> {
    /// Adds a MigNode, or replaces the one of its name. True where that is a change.
    pub(super) fn put(&mut self, mig: &MigNode) -> bool {
        self.0.put(mig, self.1)
    }

    /// Removes a MigNode. True where there was one.
    pub(super) fn remove(&mut self, metadata: &ObjectMeta) -> bool {
        metadata.name.as_ref().is_some_and(|it| self.0.all.remove(it).is_some())
    }
}

impl Names for MigNodesOn<'_> {
    fn names(&self) -> BTreeSet<Key> {
        self.0.all.keys().map(|it| (String::new(), it.clone())).collect()
    }
}

/// What the watch of Nodes changes.
pub(super) struct NodesOf<'w>(pub(super) &'w mut Vec<Node>, pub(super) &'w mut MigNodes);

impl NodesOf<'_> {
    /// Adds a Node, or replaces the one of its name. True where that is a change.
    pub(super) fn put(&mut self, node: Node) -> bool {
        let name = node.metadata.name.clone();
        let is_changed = put(self.0, node);
        if is_changed {
            let found = || find(self.0, "", name.as_deref()?).cloned().map(Arc::new);
            self.1.set_node(name.as_deref(), found);
        }
        is_changed
    }

    /// Removes a Node. True where there was one.
    pub(super) fn remove(&mut self, metadata: &ObjectMeta) -> bool {
        self.1.set_node(metadata.name.as_deref(), || None);
        remove(self.0, metadata)
    }
}

impl Names for NodesOf<'_> {
    fn names(&self) -> BTreeSet<Key> {
        self.0.names()
    }
}
