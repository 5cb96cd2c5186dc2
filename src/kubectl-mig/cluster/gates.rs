//! The feature gates that decide what is published and allocated.

use dra_allocator::Features;

use super::Snapshot;

/// Feature gates of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gates {
    /// Those of the allocator.
    pub features: Features,
    /// `DRAExtendedResource`.
    pub extended_resource: bool,
}

impl Gates {
    /// The defaults of Kubernetes 1.36.
    pub const ALL: Self = Self { features: Features::ALL, extended_resource: true };
    /// The defaults of Kubernetes 1.34 and 1.35.
    pub const STOCK: Self = Self { features: Features::DEFAULTS, extended_resource: false };

    /// Those that the snapshot names, or else what a cluster shows: from 1.36 on the gates are on by default; before that, a field that a gate guards is stored only
    /// where the gate is on.
    #[must_use]
    pub fn of(snapshot: &Snapshot, has_counters: bool, has_taints: bool) -> Self {
        if let Some(gates) = snapshot.gates {
            return gates;
        }
        if snapshot.version.is_some_and(|version| version >= (1, 36)) {
            return Self::ALL;
        }
        let mut gates = Self::STOCK;
        gates.features.partitionable_devices = has_counters;
        gates.features.device_taints = has_taints;
        gates.extended_resource = snapshot.classes.iter().any(|it| it.spec.extended_resource_name.is_some());
        gates
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_cluster_shows_its_gates_by_what_it_stores() {
        let mut snapshot = Snapshot { version: Some((1, 35)), ..Snapshot::default() };
        assert_eq!(Gates::of(&snapshot, false, false), Gates::STOCK);
        assert!(Gates::of(&snapshot, true, false).features.partitionable_devices);
        snapshot.version = Some((1, 36));
        assert_eq!(Gates::of(&snapshot, false, false), Gates::ALL);
        snapshot.gates = Some(Gates::STOCK);
        assert_eq!(Gates::of(&snapshot, true, true), Gates::STOCK, "those that are known count");
    }
}
