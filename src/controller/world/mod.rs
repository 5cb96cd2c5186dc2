//! What the cluster holds, as far as decisions need it, in memory. Pure: watches feed it.
//!
//! ```text
//! trim    what of an object is kept
//! sorted  objects of a kind, in the order in which the API server lists them
//! change  what a watch has reported
//! nodes   nodes, and what their MigNodes say
//! ```

mod change;
mod nodes;
mod sorted;
#[cfg(test)]
mod tests;
mod trim;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::jiff::Timestamp;
use kubectl_mig::cluster::Snapshot;
use mig_model::mig_node::MigNode;

use crate::demand::NodeState;
use change::Listing;
pub use change::{Change, Kind};
pub use nodes::HeldDevice;
use nodes::{MigNodes, MigNodesOn, NodesOf};
use sorted::{find, put, remove};
pub(crate) use trim::extended_resources;
pub use trim::{asks_for_devices, unschedulable};

/// The objects of the cluster.
#[derive(Debug, Default)]
pub struct World {
    snapshot: Snapshot,
    mig_nodes: MigNodes,
    movable: Vec<Pod>,
    listings: [Listing; Kind::ALL.len()],
}

impl World {
    /// All objects.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The nodes that have a MigNode, sorted by name; none where its definition is not installed. `default_auto` as in
    /// [`NodeState::of`].
    #[must_use]
    pub fn node_states(&self, default_auto: bool) -> Vec<NodeState> {
        self.mig_nodes.states(default_auto)
    }

    /// The devices that claims hold, with the name of their node, as MigNodes say.
    pub fn held_devices(&self) -> impl Iterator<Item = (&str, &HeldDevice)> {
        self.mig_nodes.held()
    }

    /// The pods with a node that may be evicted, sorted by namespace and name; none where they are not asked for.
    #[must_use]
    pub fn movable_pods(&self) -> &[Pod] {
        &self.movable
    }

    /// Takes note of what MigNodes say of demand, for the reasons of pods. `default_auto`: nodes without the label follow it, too.
    pub fn note_demand(&mut self, default_auto: bool, now: Timestamp) {
        self.snapshot.demanded = self.mig_nodes.demanded(default_auto, now);
    }

    /// The version of the API server is known.
    pub fn set_version(&mut self, version: Option<(u32, u32)>) {
        self.snapshot.version = version.or(self.snapshot.version);
    }

    /// The kinds of which no complete list was read yet.
    #[must_use]
    pub fn unread(&self) -> Vec<Kind> {
        let is_unread = |it: &Kind| !self.listings[*it as usize].is_complete();
        Kind::ALL.iter().copied().filter(is_unread).collect()
    }

    /// Number of objects of a kind.
    #[must_use]
    pub fn count(&self, kind: Kind) -> usize {
        let it = &self.snapshot;
        match kind {
            Kind::Pods => it.pods.len(),
            Kind::Nodes => it.nodes.len(),
            Kind::Claims => it.claims.len(),
            Kind::Templates => it.templates.len(),
            Kind::Classes => it.classes.len(),
            Kind::Slices => it.slices.len(),
            Kind::Quotas => it.quotas.len(),
            Kind::MigNodes => self.mig_nodes.len(),
            Kind::MovablePods => self.movable.len(),
        }
    }

    /// A claim.
    #[must_use]
    pub fn claim(&self, namespace: &str, name: &str) -> Option<&ResourceClaim> {
        find(&self.snapshot.claims, namespace, name)
    }

    /// A claim, if it is the one with this UID and not a later one of its name.
    #[must_use]
    pub fn claim_with_uid(&self, namespace: &str, name: &str, uid: &str) -> Option<&ResourceClaim> {
        self.claim(namespace, name).filter(|it| it.metadata.uid.as_deref() == Some(uid))
    }

    /// A pod that waits for a node.
    #[must_use]
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Pod> {
        find(&self.snapshot.pods, namespace, name)
    }

    /// Takes over what a watch has reported. True where that changes something that decisions go by.
    pub fn apply(&mut self, change: Change) -> bool {
        let World { snapshot, mig_nodes, movable, listings } = self;
        let listing = &mut listings[change.kind() as usize];
        match change {
            Change::Pods(event) => {
                listing.take(
                    event,
                    &mut snapshot.pods,
                    |all, it| match trim::pod(it) {
                        Ok(pod) => put(all, pod),
                        // One that asks for no device any more does not exist: requests do not change.
                        Err(metadata) => remove(all, &metadata),
                    },
                    remove,
                )
            }
            Change::Nodes(event) => listing.take(
                event,
                &mut NodesOf(&mut snapshot.nodes, mig_nodes),
                |all, it| all.put(trim::node(it)),
                NodesOf::remove,
            ),
            Change::Claims(event) => {
                listing.take(event, &mut snapshot.claims, |all, it| put(all, trim::claim(it)), remove)
            }
            Change::Templates(event) => {
                listing.take(event, &mut snapshot.templates, |all, it| put(all, trim::template(it)), remove)
            }
            Change::Classes(event) => {
                listing.take(event, &mut snapshot.classes, |all, it| put(all, trim::class(it)), remove)
            }
            Change::Quotas(event) => {
                listing.take(event, &mut snapshot.quotas, |all, it| put(all, trim::quota(it)), remove)
            }
            Change::MigNodes(event) => listing.take(
                event,
                &mut MigNodesOn(mig_nodes, &snapshot.nodes),
                |all, it: MigNode| all.put(&it),
                MigNodesOn::remove,
            ),
            Change::NoMigNodes => {
                let is_changed = mig_nodes.clear();
                listing.complete() || is_changed
            }
            Change::MovablePods(event) => listing.take(
                event,
                movable,
                |all, it| match trim::movable_pod(it) {
                    Ok(pod) => put(all, pod),
                    Err(metadata) => remove(all, &metadata),
                },
                remove,
            ),
            Change::NoMovablePods => listing.complete(),
            Change::Slices(event) => listing.take(
                event,
                &mut snapshot.slices,
                |all, it| {
                    all.remove(it.metadata.name.as_deref().unwrap_or_default());
                    all.push(&it);
                    true
                },
                |all, metadata| {
                    let before = all.len();
                    all.remove(metadata.name.as_deref().unwrap_or_default());
                    all.len() != before
                },
            ),
        }
    }
}
