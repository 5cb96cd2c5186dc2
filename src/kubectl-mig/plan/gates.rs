//! `--gates`: feature gates as the user sets them.

use std::str::FromStr;

use crate::cluster::Gates;

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

impl GateFlags {
    /// Gates with what the user sets.
    pub(super) fn change(&self, mut gates: Gates) -> Gates {
        for (gate, is_on) in &self.0 {
            let field = match gate {
                Gate::AdminAccess => &mut gates.features.admin_access,
                Gate::DeviceTaints => &mut gates.features.device_taints,
                Gate::ExtendedResource => &mut gates.extended_resource,
                Gate::PartitionableDevices => &mut gates.features.partitionable_devices,
                Gate::PrioritizedList => &mut gates.features.prioritized_list,
            };
            *field = *is_on;
        }
        gates
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
        let gates = flags.change(Gates::ALL);
        assert!(
            !gates.features.partitionable_devices && gates.extended_resource && gates.features.device_taints
        );
        for text in ["DRAPartitionableDevices", "DRAPartitionableDevices=on", "PartitionableDevices=true"] {
            assert!(text.parse::<GateFlags>().is_err(), "{text}");
        }
    }
}
