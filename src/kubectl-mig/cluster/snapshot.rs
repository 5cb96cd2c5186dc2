//! The objects of a cluster at one time.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Event, Node, Pod, ResourceQuota};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceClaimTemplate};

use super::demanded::Demanded;
use super::gates::Gates;
use super::slices::Slices;

/// The objects of a cluster at one time.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// All nodes.
    pub nodes: Vec<Node>,
    /// All DeviceClasses.
    pub classes: Vec<DeviceClass>,
    /// The ResourceSlices of all drivers.
    pub slices: Slices,
    /// The ResourceClaims of all namespaces.
    pub claims: Vec<ResourceClaim>,
    /// The ResourceClaimTemplates of all namespaces.
    pub templates: Vec<ResourceClaimTemplate>,
    /// The pods of all namespaces.
    pub pods: Vec<Pod>,
    /// The ResourceQuotas of all namespaces.
    pub quotas: Vec<ResourceQuota>,
    /// What MigNodes say of demand, by the name of the node.
    pub demanded: BTreeMap<String, Demanded>,
    /// Events, as far as they were asked for.
    pub events: Vec<Event>,
    /// Version of the API server, for example `(1, 35)`; `None` where the objects come from files.
    pub version: Option<(u32, u32)>,
    /// Feature gates, where they are known. An API server does not say them; the engine then goes by what it stores.
    pub gates: Option<Gates>,
    /// What could not be read.
    pub unread: Vec<Unread>,
}

/// A kind of objects that could not be read, for example because the user may not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// Plural of the kind, as RBAC has it: `resourcequotas`.
    pub resource: &'static str,
    /// What the API server said.
    pub why: String,
}

impl Snapshot {
    /// Why a kind could not be read; `None` where it was, or was not asked for.
    #[must_use]
    pub fn unread(&self, resource: &str) -> Option<&Unread> {
        self.unread.iter().find(|it| it.resource == resource)
    }

    /// The feature gates: those that are known, or else what a cluster shows. From 1.36 on the gates are on by default; before
    /// that, a field that a gate guards is stored only where the gate is on.
    #[must_use]
    pub fn gates(&self, has_counters: bool, has_taints: bool) -> Gates {
        if let Some(gates) = self.gates {
            return gates;
        }
        if self.version.is_some_and(|version| version >= (1, 36)) {
            return Gates::ALL;
        }
        let mut gates = Gates::STOCK;
        gates.features.partitionable_devices = has_counters;
        gates.features.device_taints = has_taints;
        gates.extended_resource = self.classes.iter().any(|it| it.spec.extended_resource_name.is_some());
        gates
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_cluster_shows_its_gates_by_what_it_stores() {
        let mut snapshot = Snapshot { version: Some((1, 35)), ..Snapshot::default() };
        assert_eq!(snapshot.gates(false, false), Gates::STOCK);
        assert!(snapshot.gates(true, false).features.partitionable_devices);
        snapshot.version = Some((1, 36));
        assert_eq!(snapshot.gates(false, false), Gates::ALL);
        snapshot.gates = Some(Gates::STOCK);
        assert_eq!(snapshot.gates(true, true), Gates::STOCK, "those that are known count");
    }
}
