//! Reasons why devices are withheld, for status reports. Pure.

use std::collections::BTreeMap;

use super::policy::{access_allows, mode_allows};
use super::{AllocatableDevice, DeviceKind, Gpu, Inventory, OfferPolicy};
use crate::health::Report;

/// Why a device exists and is unavailable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Withheld {
    /// The GPU cannot be read.
    Unreadable,
    /// The GPU is unhealthy or lost, or the device is an unmanaged instance that is unhealthy.
    Unhealthy,
    /// The host lacks what claims need, or the right to partition GPUs.
    HostNotReady,
    /// The GPU is offered as time-shared devices instead.
    Shared,
    /// It needs another MIG mode, and this GPU changes that with a reset only.
    MigMode,
    /// An unmanaged instance occupies the placement.
    Occupied,
}

/// What the host permits.
#[derive(Debug, Clone, Copy)]
pub struct HostAccess<'a> {
    /// Whether claims can be prepared at all.
    pub can_prepare: bool,
    /// What can be done with MIG.
    pub policy: &'a OfferPolicy,
}

/// How many devices of each GPU are withheld, and why, by the name of its counter set.
#[must_use]
pub fn withheld(
    inventory: &Inventory,
    gpus: &[Gpu],
    health: &Report,
    host: &HostAccess<'_>,
) -> BTreeMap<(String, Withheld), usize> {
    let mut counts = BTreeMap::new();
    for offered in &inventory.gpus {
        for device in &offered.withheld {
            let Some(gpu) = gpus.iter().find(|it| it.facts.uuid == device.parent_uuid) else { continue };
            *counts.entry((offered.counter_set.clone(), why(gpu, device, health, host))).or_default() += 1;
        }
    }
    counts
}

fn why(gpu: &Gpu, device: &AllocatableDevice, health: &Report, host: &HostAccess<'_>) -> Withheld {
    if health.device(&gpu.facts.uuid, device.name.as_str()).is_bad() {
        Withheld::Unhealthy
    } else if gpu.state.problem.is_some() {
        Withheld::Unreadable
    } else if !host.can_prepare || !access_allows(gpu, &device.kind, host.policy.mig_access_of(gpu)) {
        Withheld::HostNotReady
    } else if gpu.facts.mig.is_none() {
        Withheld::Shared
    } else if matches!(device.kind, DeviceKind::Adopted(_)) || mode_allows(gpu, &device.kind) {
        Withheld::Occupied
    } else {
        Withheld::MigMode
    }
}
