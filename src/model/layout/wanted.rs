//! What is wanted of the GPUs of a node: devices that have to be published and free, beside those that claims hold.

use std::collections::{BTreeMap, BTreeSet};

use crate::inventory::{AllocatableDevice, DeviceKind, Inventory};
use crate::mig_node::WHOLE;

use super::choice::Layouts;
use super::holds::HeldBack;

/// Profile and count.
pub(super) type Counts = BTreeMap<String, u32>;

/// Which devices are wanted: profile and count; whole GPUs are [`WHOLE`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Published and free, beside what claims hold.
    pub free: BTreeMap<String, u32>,
    /// Published, held by claims or free. Comes before `free`.
    pub floor: BTreeMap<String, u32>,
}

/// What layouts are arranged on.
#[derive(Debug, Clone, Copy)]
pub struct LayoutInputs<'a> {
    /// What the GPUs of the node offer.
    pub inventory: &'a Inventory,
    /// Names of the devices that claims hold, prepared or allocated.
    pub held: &'a BTreeSet<String>,
    /// The layouts that GPUs have without a demand.
    pub base: &'a Layouts,
    /// GPUs that are held back for a claim: they serve no demand.
    pub held_back: &'a HeldBack,
}

/// Free devices that have to be published.
pub(super) struct Demand {
    /// For the floor.
    pub(super) floor: Counts,
    /// In all.
    pub(super) total: Counts,
    /// The profiles, the largest first.
    order: Vec<String>,
    /// Counts above this cannot be served.
    most: Counts,
}

impl Demand {
    pub(super) fn of(inputs: LayoutInputs<'_>, wanted: &Wanted) -> Self {
        let (mut held, mut beside, mut most) = (Counts::new(), Counts::new(), Counts::new());
        for device in all_devices(inputs.inventory) {
            let Some(profile) = profile(device) else { continue };
            let is_held = inputs.held.contains(device.name.as_str());
            if is_held {
                add(&mut held, profile, 1);
            }
            add(&mut most, profile, 1);
        }
        // Unmanaged instances are published beside any layout.
        let is_beside = |it: &&AllocatableDevice| is_adopted(it) && !inputs.held.contains(it.name.as_str());
        for profile in inputs.inventory.devices().filter(is_beside).filter_map(profile) {
            add(&mut beside, profile, 1);
        }
        let less = |counts: &Counts, by: &[&Counts]| -> Counts {
            let left = |(profile, count): (&String, &u32)| {
                let by: u32 = by.iter().filter_map(|it| it.get(profile)).sum();
                Some((profile.clone(), count.checked_sub(by).filter(|it| 0 < *it)?))
            };
            counts.iter().filter_map(left).collect()
        };
        let floor = less(&wanted.floor, &[&held, &beside]);
        let mut total = less(&wanted.free, &[&beside]);
        for (profile, count) in &floor {
            let known = total.entry(profile.clone()).or_insert(0);
            *known = (*known).max(*count);
        }
        let size = |name: &str| {
            let known = all_devices(inputs.inventory).find(|it| profile(it) == Some(name));
            let spec = known.and_then(AllocatableDevice::mig);
            (name == WHOLE, spec.map(|it| (it.placement.size, it.slices)))
        };
        let mut order: Vec<String> = total.keys().cloned().collect();
        order.sort_by_key(|it| std::cmp::Reverse(size(it)));
        Self { floor, total, order, most }
    }

    /// The profiles of so many devices, the largest first, one for each device.
    pub(super) fn units(&self, counts: &Counts, before: &Counts) -> Vec<&str> {
        let mut units = Vec::new();
        for profile in &self.order {
            let most = self.most.get(profile).copied().unwrap_or(0);
            let count = |of: &Counts| of.get(profile).copied().unwrap_or(0).min(most);
            let count = count(counts).saturating_sub(count(before));
            units.extend((0..count).map(|_| profile.as_str()));
        }
        units
    }

    /// What has no place.
    pub(super) fn missing(&self, needs: &[Needs]) -> Counts {
        let placed = |profile: &str| -> u32 {
            let of = |it: &Needs| match profile {
                WHOLE => u32::from(it.is_whole),
                _ => it.parts.get(profile).copied().unwrap_or(0),
            };
            needs.iter().map(of).sum()
        };
        let left = |(profile, count): (&String, &u32)| {
            let left = count.saturating_sub(placed(profile));
            (0 < left).then(|| (profile.clone(), left))
        };
        self.total.iter().filter_map(left).collect()
    }
}

/// What has to be free on one GPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Needs {
    pub(super) is_whole: bool,
    pub(super) parts: Counts,
}

impl Needs {
    pub(super) fn with(&self, profile: &str) -> Self {
        let mut needs = self.clone();
        match profile {
            WHOLE => needs.is_whole = true,
            _ => add(&mut needs.parts, profile, 1),
        }
        needs
    }
}

pub(super) fn all_devices(inventory: &Inventory) -> impl Iterator<Item = &AllocatableDevice> {
    inventory.gpus.iter().flat_map(|it| it.devices.iter().chain(&it.withheld))
}

/// The profile of a device; nothing for a share of a GPU.
pub(super) fn profile(device: &AllocatableDevice) -> Option<&str> {
    match &device.kind {
        DeviceKind::Gpu => Some(WHOLE),
        DeviceKind::Share { .. } => None,
        DeviceKind::Mig(spec) => Some(&spec.profile),
        DeviceKind::Adopted(adopted) => Some(&adopted.spec.profile),
    }
}

pub(super) fn is_adopted(device: &AllocatableDevice) -> bool {
    matches!(device.kind, DeviceKind::Adopted(_))
}

pub(super) fn add(counts: &mut Counts, profile: &str, count: u32) {
    if let Some(known) = counts.get_mut(profile) {
        *known = known.saturating_add(count);
    } else {
        counts.insert(profile.to_owned(), count);
    }
}
