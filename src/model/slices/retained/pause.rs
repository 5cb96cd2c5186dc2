//! GPUs that are held back for a claim, where counters keep devices apart: what goes from the slices, and what waits until it is known
//! what was allocated at the last moment. Pure.

use std::collections::BTreeSet;

use super::RetainedDevices;
use crate::inventory::{AllocatableDevice, GpuInventory, Inventory};
use crate::layout::HeldBack;

impl RetainedDevices {
    /// What is not published of a GPU that is held back for a claim: a scheduler may give it away a moment longer.
    pub(super) fn hide(
        &mut self,
        gpu: &GpuInventory,
        before: &BTreeSet<String>,
        prepared: &BTreeSet<String>,
    ) {
        let names: BTreeSet<String> = gpu.withheld.iter().map(|it| it.name.to_string()).collect();
        self.withdrawn.add(names.intersection(before));
        self.reserved.extend(names.into_iter().filter(|it| prepared.contains(it) || self.taken.contains(it)));
    }

    /// Of a GPU that is held back for a claim, nothing free is offered before it is known what schedulers have given away at the last
    /// moment: it may overlap what the claim waits for.
    pub(super) fn pause(
        &self,
        gpu: &GpuInventory,
        prepared: &BTreeSet<String>,
        devices: &mut Vec<AllocatableDevice>,
    ) {
        if self.is_unsettled(gpu) {
            devices.retain(|it| self.stays_in_pause(it, prepared));
        }
    }

    fn is_unsettled(&self, gpu: &GpuInventory) -> bool {
        gpu.devices.iter().chain(&gpu.withheld).any(|it| self.withdrawn.has(it.name.as_str()))
    }

    fn stays_in_pause(&self, device: &AllocatableDevice, prepared: &BTreeSet<String>) -> bool {
        let name = device.name.as_str();
        prepared.contains(name) || self.allocated.contains(name) || device.consumes.is_empty()
    }

    /// Whether published devices of GPUs that are held back would be hidden for a while that may be allocated since the last read of the
    /// claims: they have to be read again, and passed to [`RetainedDevices::confirm`], before [`RetainedDevices::show`].
    #[must_use]
    pub(in crate::slices) fn hides_unread(
        &self,
        offered: &Inventory,
        before: &BTreeSet<String>,
        prepared: &BTreeSet<String>,
        held_back: &HeldBack,
    ) -> bool {
        let goes =
            |it: &AllocatableDevice| before.contains(it.name.as_str()) && !self.stays_in_pause(it, prepared);
        let mut held_back = offered.gpus.iter().filter(|it| held_back.contains_key(&it.counter_set));
        held_back.any(|it| self.is_unsettled(it) && it.devices.iter().any(goes))
    }
}
