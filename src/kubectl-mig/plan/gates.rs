//! The feature gates that decide what is published and allocated.

use std::str::FromStr;

use dra_allocator::Features;

use crate::cluster::Snapshot;

/// Gates as a plan needs them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gates {
    /// Those of the allocator.
    pub(super) features: Features,
    /// `DRAExtendedResource`.
    pub(super) extended_resource: bool,
}

/// What `--gates` sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GateFlags(Vec<(Gate, bool)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    AdminAccess,
    DeviceTaints,
    ExtendedResource,
    PartitionableDevices,
    PrioritizedList,
}

const NAMES: [(&str, Gate); 5] = [
    ("DRAAdminAccess", Gate::AdminAccess),
    ("DRADeviceTaints", Gate::DeviceTaints),
    ("DRAExtendedResource", Gate::ExtendedResource),
    ("DRAPartitionableDevices", Gate::PartitionableDevices),
    ("DRAPrioritizedList", Gate::PrioritizedList),
];

impl Gates {
    /// The defaults of Kubernetes 1.36.
    pub(super) const ALL: Self = Self { features: Features::ALL, extended_resource: true };
    /// The defaults of Kubernetes 1.34 and 1.35.
    pub(super) const STOCK: Self = Self { features: Features::DEFAULTS, extended_resource: false };

    /// What a cluster shows: from 1.36 on the gates are on by default; before that, a field that a gate guards is stored only
    /// where the gate is on.
    pub(super) fn of(snapshot: &Snapshot, has_counters: bool, has_taints: bool) -> Self {
        if snapshot.version.is_some_and(|version| version >= (1, 36)) {
            return Self::ALL;
        }
        let mut gates = Self::STOCK;
        gates.features.partitionable_devices = has_counters;
        gates.features.device_taints = has_taints;
        gates.extended_resource = snapshot.classes.iter().any(|it| it.spec.extended_resource_name.is_some());
        gates
    }

    /// These with what the user sets.
    pub(super) fn with(mut self, flags: &GateFlags) -> Self {
        for (gate, is_on) in &flags.0 {
            let field = match gate {
                Gate::AdminAccess => &mut self.features.admin_access,
                Gate::DeviceTaints => &mut self.features.device_taints,
                Gate::ExtendedResource => &mut self.extended_resource,
                Gate::PartitionableDevices => &mut self.features.partitionable_devices,
                Gate::PrioritizedList => &mut self.features.prioritized_list,
            };
            *field = *is_on;
        }
        self
    }
}

impl FromStr for GateFlags {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let one = |part: &str| {
            let (name, value) =
                part.split_once('=').ok_or_else(|| format!("`{part}` is not NAME=true or NAME=false"))?;
            let gate =
                NAMES.iter().find(|(known, _)| *known == name).map(|(_, gate)| *gate).ok_or_else(|| {
                    let known: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
                    format!("`{name}` is no gate that matters here; these do: {}", known.join(", "))
                })?;
            let is_on = value.parse().map_err(|_| format!("`{part}`: the value must be true or false"))?;
            Ok((gate, is_on))
        };
        text.split(',')
            .map(str::trim)
            .filter(|it| !it.is_empty())
            .map(one)
            .collect::<Result<_, String>>()
            .map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_set_by_name_and_other_names_are_refused() {
        let flags: GateFlags =
            "DRAPartitionableDevices=false, DRAExtendedResource=true".parse().unwrap_or_default();
        let gates = Gates::ALL.with(&flags);
        assert!(
            !gates.features.partitionable_devices && gates.extended_resource && gates.features.device_taints
        );
        for text in ["DRAPartitionableDevices", "DRAPartitionableDevices=on", "PartitionableDevices=true"] {
            assert!(text.parse::<GateFlags>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_old_cluster_shows_its_gates_by_what_it_stores() {
        let mut snapshot = Snapshot { version: Some((1, 35)), ..Snapshot::default() };
        assert_eq!(Gates::of(&snapshot, false, false), Gates::STOCK);
        assert!(Gates::of(&snapshot, true, false).features.partitionable_devices);
        snapshot.version = Some((1, 36));
        assert_eq!(Gates::of(&snapshot, false, false), Gates::ALL);
    }
}
