//! Occupancy of a GPU: what is allocated, what still fits, and how fragmented the rest is. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::facts::GpuFacts;
use crate::inventory::{AllocatableDevice, GpuInventory, fits_into, take};

/// What a whole GPU is called among profiles, as in the attribute `profile`.
const WHOLE: &str = "full";

/// How a GPU stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// Devices that claims hold, by profile.
    pub live: BTreeMap<String, usize>,
    /// Placements of each profile that could be made at this moment; any of them may exclude others.
    pub free: BTreeMap<String, usize>,
    /// Memory slices.
    pub slices: u32,
    /// Those that some claim could still be given, alone or with others.
    pub free_slices: u32,
    /// The largest MIG profile that could be made, and its memory slices.
    pub largest: Option<(String, u32)>,
}

/// The occupancy of one GPU. `held` names the allocated devices.
pub fn occupancy(offered: &GpuInventory, facts: Option<&GpuFacts>, held: &BTreeSet<String>) -> Occupancy {
    let slices = facts.and_then(|it| it.mig.as_ref()).map_or(0, |it| it.memory_slices());
    let (taken, rest): (Vec<_>, Vec<_>) =
        offered.devices.iter().partition(|it| held.contains(it.name.as_str()));
    let mut found = Occupancy { slices, ..Occupancy::default() };
    let mut left = offered.counters.clone();
    for device in taken {
        *found.live.entry(profile(device).to_owned()).or_default() += 1;
        take(&mut left, &device.consumes);
    }
    let mut largest = None;
    let mut obtainable = BTreeSet::new();
    for device in rest {
        let free = found.free.entry(profile(device).to_owned()).or_default();
        if fits_into(&device.consumes, &left) {
            *free += 1;
            // Of two that take as much memory the one with more compute slices is the larger.
            largest = largest.max(device.mig().map(|it| (it.placement.size, it.slices, &it.profile)));
            obtainable.extend(device.mig().map_or(0..slices, |it| it.placement.slices()));
        }
    }
    found.largest = largest.map(|(size, _, profile)| (profile.clone(), size));
    found.free_slices = u32::try_from(obtainable.len()).unwrap_or(u32::MAX);
    found
}

fn profile(device: &AllocatableDevice) -> &str {
    device.mig().map_or(WHOLE, |it| &it.profile)
}
