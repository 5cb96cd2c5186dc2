//! Layouts to what is published: devices that do not overlap, so that no counters are needed to keep them apart.

use std::collections::{BTreeMap, BTreeSet};

use crate::inventory::{AllocatableDevice, DeviceKind, GpuInventory, Inventory, MigSpec, take};

use super::choice::{GpuLayout, Layouts, show_counts};
use super::fit::{Candidate, dropped, fit};

/// What can be published of the layouts now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Devices that do not overlap, without counters.
    pub inventory: Inventory,
    /// For each GPU that is not yet as its layout says: why.
    pub waiting: Vec<String>,
}

/// The devices to publish.
///
/// `held` names devices that claims hold, prepared or allocated. They stay, whatever the layout says, and count as part of
/// it where they do fit it; the rest of the layout goes around them. The answer depends on nothing else, so it is the same
/// after a restart, and giving a published device away never changes it.
#[must_use]
pub fn apply(inventory: &Inventory, layouts: &Layouts, held: &BTreeSet<String>) -> Offer {
    apply_beside(inventory, layouts, held, &BTreeSet::new())
}

/// The same where some of what claims hold is `hidden` by a hold and counts for nothing that the layouts want.
pub(super) fn apply_beside(
    inventory: &Inventory,
    layouts: &Layouts,
    held: &BTreeSet<String>,
    hidden: &BTreeSet<String>,
) -> Offer {
    let mut waiting = Vec::new();
    let mut one = |gpu: &GpuInventory| {
        let (devices, reason) = offer(gpu, layouts.get(&gpu.counter_set), held, hidden);
        waiting.extend(reason.map(|it| format!("{}: {it}", gpu.counter_set)));
        let (counter_set, problem) = (gpu.counter_set.clone(), gpu.problem.clone());
        GpuInventory {
            counter_set,
            counters: BTreeMap::new(),
            devices,
            withheld: Vec::new(),
            problem,
            ..gpu.clone()
        }
    };
    let gpus = inventory.gpus.iter().map(&mut one).collect();
    Offer { inventory: Inventory { gpus }, waiting }
}

fn offer(
    gpu: &GpuInventory,
    layout: Option<&GpuLayout>,
    held: &BTreeSet<String>,
    hidden: &BTreeSet<String>,
) -> (Vec<AllocatableDevice>, Option<String>) {
    // Layouts are about cutting.
    if !gpu.can_be_cut() {
        return (gpu.with_held(held).devices, None);
    }
    let is_held = |it: &&AllocatableDevice| held.contains(it.name.as_str());
    // Unmanaged instances are no part of a layout; they are offered beside it.
    let is_adopted = |it: &AllocatableDevice| matches!(it.kind, DeviceKind::Adopted(_));
    let kept = gpu.devices.iter().chain(&gpu.withheld).filter(is_held).filter(|it| !is_adopted(it));
    let kept: Vec<&AllocatableDevice> = kept.collect();
    let (chosen, reason) = match layout {
        None => (Vec::new(), Some("no layout for it is known yet".to_owned())),
        Some(GpuLayout::Whole) => whole(gpu, &kept),
        Some(GpuLayout::Cut(counts)) => cut(gpu, &kept, hidden, counts),
        Some(GpuLayout::Free { cut: prefers_cut, counts }) => {
            let can_be_cut = gpu.devices.iter().any(|it| mig(it).is_some());
            let can_be_whole = gpu.devices.iter().any(|it| it.kind == DeviceKind::Gpu);
            if can_be_cut && (*prefers_cut || !can_be_whole) {
                cut(gpu, &kept, hidden, counts)
            } else {
                whole(gpu, &kept)
            }
        }
    };
    // In the inventory's order, which is the order of preference.
    let is_in =
        |list: &[&AllocatableDevice], it: &AllocatableDevice| list.iter().any(|other| other.name == it.name);
    let all = gpu.devices.iter().chain(&gpu.withheld);
    let is_offered = |it: &AllocatableDevice| gpu.devices.iter().any(|other| other.name == it.name);
    let is_beside = |it: &AllocatableDevice| is_adopted(it) && (is_offered(it) || is_held(&it));
    let published = all.filter(|it| is_in(&kept, it) || is_in(&chosen, it) || is_beside(it));
    let without_cost = |it: &AllocatableDevice| AllocatableDevice { consumes: BTreeMap::new(), ..it.clone() };
    (published.map(without_cost).collect(), reason)
}

type Chosen<'a> = (Vec<&'a AllocatableDevice>, Option<String>);

fn whole<'a>(gpu: &'a GpuInventory, kept: &[&AllocatableDevice]) -> Chosen<'a> {
    if kept.iter().any(|it| it.kind == DeviceKind::Gpu) {
        return (Vec::new(), None);
    }
    if !kept.is_empty() && gpu.problem.is_none() {
        return (Vec::new(), Some(format!("the whole GPU waits for {}", names(kept))));
    }
    match gpu.devices.iter().find(|it| it.kind == DeviceKind::Gpu) {
        Some(device) => (vec![device], None),
        None => (Vec::new(), Some(unavailable(gpu, "the whole GPU"))),
    }
}

fn cut<'a>(
    gpu: &'a GpuInventory,
    kept: &[&AllocatableDevice],
    hidden: &BTreeSet<String>,
    counts: &BTreeMap<String, u32>,
) -> Chosen<'a> {
    if kept.iter().any(|it| it.kind == DeviceKind::Gpu) {
        return (Vec::new(), Some(format!("its instances wait for {}", names(kept))));
    }
    let mut room = gpu.counters.clone();
    let mut wanted = counts.clone();
    let mut surplus = Vec::new();
    for device in kept {
        take(&mut room, &device.consumes);
        if hidden.contains(device.name.as_str()) {
            continue;
        }
        match mig(device).and_then(|it| wanted.get_mut(&it.profile)).filter(|it| 0 < **it) {
            Some(count) => *count -= 1,
            None => surplus.push(*device),
        }
    }
    let is_kept = |it: &&AllocatableDevice| kept.iter().any(|kept| kept.name == it.name);
    let free: Vec<&AllocatableDevice> =
        gpu.devices.iter().filter(|it| mig(it).is_some() && !is_kept(it)).collect();
    let candidates: Vec<Candidate> = free.iter().filter_map(|it| candidate(it)).collect();
    let chosen = fit(&candidates, &room, &wanted);
    let missing = dropped(&candidates, &chosen, &wanted);
    let reason = match (missing.is_empty(), surplus.is_empty(), kept.is_empty()) {
        (true, true, _) => None,
        (true, false, _) => Some(format!("{} stays until it is released", names(&surplus))),
        (false, _, false) if gpu.problem.is_none() => {
            Some(format!("{} waits for {}", show_counts(&missing), names(kept)))
        }
        (false, ..) => Some(unavailable(gpu, &show_counts(&missing))),
    };
    (chosen.into_iter().map(|it| free[it]).collect(), reason)
}

/// A MIG device as something that could be made.
pub(super) fn candidate(device: &AllocatableDevice) -> Option<Candidate> {
    let MigSpec { profile, placement, .. } = mig(device)?;
    Some(Candidate { profile: profile.clone(), placement: *placement, cost: device.consumes.clone() })
}

fn mig(device: &AllocatableDevice) -> Option<&MigSpec> {
    match &device.kind {
        DeviceKind::Mig(spec) => Some(spec),
        DeviceKind::Gpu | DeviceKind::Share { .. } | DeviceKind::Adopted(_) => None,
    }
}

/// Nothing of ours is in the way, so it is something that only a person can change.
fn unavailable(gpu: &GpuInventory, what: &str) -> String {
    match &gpu.problem {
        Some(problem) => format!("{what} is not available now: the GPU is not offered: {problem}"),
        None => format!(
            "{what} is not available now: its MIG mode needs a GPU reset to change, or an unmanaged MIG instance is in the \
             way; `dra-driver-mig inspect` shows which"
        ),
    }
}

fn names(devices: &[&AllocatableDevice]) -> String {
    devices.iter().map(|it| it.name.as_str()).collect::<Vec<_>>().join(", ")
}
