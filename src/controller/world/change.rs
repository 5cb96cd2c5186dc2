//! What a watch has reported, and the list that it begins with.

use std::collections::BTreeSet;

use k8s_openapi::Metadata;
use k8s_openapi::api::core::v1::{Node, Pod, ResourceQuota};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::Event;
use mig_model::mig_node::MigNode;
use mig_telemetry::label_values;

label_values! {
    /// Kinds that are watched, as RBAC names them; pods in two parts.
    Kind {
        /// Pods.
        Pods = "pods",
        /// Nodes.
        Nodes = "nodes",
        /// ResourceClaims.
        Claims = "resourceclaims",
        /// ResourceClaimTemplates.
        Templates = "resourceclaimtemplates",
        /// DeviceClasses.
        Classes = "deviceclasses",
        /// ResourceSlices.
        Slices = "resourceslices",
        /// ResourceQuotas.
        Quotas = "resourcequotas",
        /// MigNodes.
        MigNodes = "mignodes",
        /// Pods with a node that may be evicted.
        MovablePods = "movablepods",
    }
}

/// What the watch of a kind has reported.
#[derive(Debug)]
pub enum Change {
    /// Of pods.
    Pods(Event<Pod>),
    /// Of nodes.
    Nodes(Event<Node>),
    /// Of claims.
    Claims(Event<ResourceClaim>),
    /// Of templates.
    Templates(Event<ResourceClaimTemplate>),
    /// Of classes.
    Classes(Event<DeviceClass>),
    /// Of slices.
    Slices(Event<ResourceSlice>),
    /// Of quotas.
    Quotas(Event<ResourceQuota>),
    /// Of MigNodes.
    MigNodes(Event<MigNode>),
    /// The definition of MigNodes is not installed, or they are not asked for.
    NoMigNodes,
    /// Of pods with a node that may be evicted.
    MovablePods(Event<Pod>),
    /// They are not asked for.
    NoMovablePods,
}

impl Change {
    /// Which kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Pods(_) => Kind::Pods,
            Self::Nodes(_) => Kind::Nodes,
            Self::Claims(_) => Kind::Claims,
            Self::Templates(_) => Kind::Templates,
            Self::Classes(_) => Kind::Classes,
            Self::Slices(_) => Kind::Slices,
            Self::Quotas(_) => Kind::Quotas,
            Self::MigNodes(_) | Self::NoMigNodes => Kind::MigNodes,
            Self::MovablePods(_) | Self::NoMovablePods => Kind::MovablePods,
        }
    }
}

/// Namespace and name.
type Key = (String, String);

fn key(metadata: &ObjectMeta) -> Key {
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

/// How far the list of a kind has been read. After a gap the watch lists again, in pages; what exists stays until the list is complete,
/// and what the list does not have is removed then.
#[derive(Debug, Default)]
pub(super) struct Listing {
    is_complete: bool,
    /// Names of the list that is being read, and of what was there before.
    unlisted: BTreeSet<Key>,
}

impl Listing {
    /// Whether a whole list was read once.
    pub(super) fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// There is nothing to read. True where that was not known.
    pub(super) fn complete(&mut self) -> bool {
        self.unlisted.clear();
        !std::mem::replace(&mut self.is_complete, true)
    }

    /// Takes over an event; `put` and `remove` answer whether they have changed something.
    pub(super) fn take<K, A>(
        &mut self,
        event: Event<K>,
        all: &mut A,
        put: impl Fn(&mut A, K) -> bool,
        remove: impl Fn(&mut A, &ObjectMeta) -> bool,
    ) -> bool
    where
        K: Metadata<Ty = ObjectMeta>,
        A: Names,
    {
        match event {
            Event::Init => {
                self.unlisted = all.names();
                false
            }
            Event::InitApply(object) => {
                self.unlisted.remove(&key(object.metadata()));
                put(all, object)
            }
            Event::InitDone => {
                let gone = std::mem::take(&mut self.unlisted);
                let metadata = |(namespace, name)| ObjectMeta {
                    namespace: Some(namespace),
                    name: Some(name),
                    ..ObjectMeta::default()
                };
                let mut is_changed = !std::mem::replace(&mut self.is_complete, true);
                for it in gone {
                    is_changed |= remove(all, &metadata(it));
                }
                is_changed
            }
            Event::Apply(object) => put(all, object),
            Event::Delete(object) => remove(all, object.metadata()),
        }
    }
}

/// The names of all objects of a kind.
pub(super) trait Names {
    /// Namespace and name of each.
    fn names(&self) -> BTreeSet<Key>;
}

impl<K: Metadata<Ty = ObjectMeta>> Names for Vec<K> {
    fn names(&self) -> BTreeSet<Key> {
        self.iter().map(|it| key(it.metadata())).collect()
    }
}

impl Names for kubectl_mig::cluster::Slices {
    fn names(&self) -> BTreeSet<Key> {
        Self::names(self).map(|it| (String::new(), it.to_owned())).collect()
    }
}
