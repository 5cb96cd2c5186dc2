//! Devices that claims have and that are not published, with what they take of the counters. Pure.

use std::collections::BTreeSet;

use super::attributes::Capacity;
use super::device::{AllocatableDevice, GpuInventory};

impl GpuInventory {
    /// The memory that a device takes of what the instances of the GPU can have together, MiB.
    pub(crate) fn memory_of(&self, device: &AllocatableDevice) -> u64 {
        match (device.mig(), device.capacities.get("memory")) {
            (None, _) => self.memory_mib,
            (Some(_), Some(Capacity::Mebibytes(it))) => *it,
            (Some(_), _) => 0,
        }
    }

    /// Takes devices out of what is offered, and what they take out of the counters, so that nothing of it looks free. No counter
    /// falls below what the other `held` devices take: kube-scheduler would refuse every device of the node.
    pub(crate) fn reserve(
        &mut self,
        held: &BTreeSet<String>,
        is_reserved: impl FnMut(&AllocatableDevice) -> bool,
    ) {
        let (reserved, devices): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.devices).into_iter().partition(is_reserved);
        let stays: Vec<&AllocatableDevice> =
            devices.iter().filter(|it| held.contains(it.name.as_str())).collect();
        for (name, left) in &mut self.counters {
            let amount = |it: &AllocatableDevice| it.consumes.get(name).copied().unwrap_or(0);
            let needed: u32 = stays.iter().map(|it| amount(it)).sum();
            let taken: u32 = reserved.iter().map(amount).sum();
            *left -= taken.min(left.saturating_sub(needed));
        }
        let needed: u64 = stays.iter().map(|it| self.memory_of(it)).sum();
        let taken: u64 = reserved.iter().map(|it| self.memory_of(it)).sum();
        self.reserved_mib = taken.min(self.memory_mib.saturating_sub(needed));
        self.devices = devices;
        self.withheld.extend(reserved);
    }
}
