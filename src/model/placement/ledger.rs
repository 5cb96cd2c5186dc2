//! The counters of one GPU as plain numbers: what is left, and what allocating a device would block.

use std::collections::BTreeSet;

use crate::inventory::{AllocatableDevice, Amounts, Attribute, Capacity, CounterNames, GpuInventory};

/// What is left of a GPU, and what it can be taken for.
pub(super) struct Ledger<'i> {
    /// Its devices.
    pub(super) entries: Vec<Entry<'i>>,
    /// What of each counter claims and unmanaged instances leave.
    pub(super) left: Amounts,
}

/// A device with its cost.
pub(super) struct Entry<'i> {
    pub(super) device: &'i AllocatableDevice,
    pub(super) profile: ProfileRank<'i>,
    /// First memory slice.
    pub(super) start: u32,
    /// Worth of all that it excludes on an empty GPU.
    pub(super) blocked_when_empty: u32,
    is_held: bool,
    /// By counter, as in [`Ledger::left`].
    cost: Amounts,
    /// Memory slices.
    worth: u32,
}

/// Orders profiles: a request by size should take the first that is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ProfileRank<'i> {
    class: Class,
    memory_mib: u64,
    multiprocessors: u64,
    /// GPUs of different products are not compared.
    product: &'i str,
    name: &'i str,
}

/// How scarce what a profile takes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    /// `2g.20gb`.
    Plain,
    /// `1g.24gb-me`, `1g.24gb+gfx`.
    Variant,
    /// `1g.20gb`: more memory than another profile of as many compute slices.
    MoreMemory,
    /// `1g.10gb+me`, `1g.24gb+me.all`.
    Media,
    /// All of it.
    WholeGpu,
}

impl<'i> Ledger<'i> {
    /// The ledger of a GPU on which claims hold the devices in `held`.
    pub(super) fn of(gpu: &'i GpuInventory, held: &BTreeSet<String>) -> Self {
        let all = || gpu.devices.iter().chain(&gpu.withheld);
        let names = CounterNames::of(all().flat_map(|it| it.consumes.keys()));
        // The whole GPU, offered or not, takes all there is.
        let full = all().fold(names.nothing(), |most, it| most.max(&names.amounts(&it.consumes)));
        let whole = all().filter_map(|it| it.mig()).map(|it| it.placement.size).max().unwrap_or(1);
        let entry = |device: &'i AllocatableDevice| Entry {
            device,
            profile: rank(gpu, device),
            start: device.mig().map_or(0, |it| it.placement.start),
            blocked_when_empty: 0,
            is_held: held.contains(device.name.as_str()),
            cost: names.amounts(&device.consumes),
            worth: device.mig().map_or(whole, |it| it.placement.size),
        };
        let mut entries: Vec<Entry<'i>> = gpu.devices.iter().map(entry).collect();
        let blocked: Vec<u32> = entries
            .iter()
            .map(|it| {
                let rest = full.without(&it.cost);
                entries.iter().filter(|other| !rest.covers(&other.cost)).map(|other| other.worth).sum()
            })
            .collect();
        for (entry, blocked) in entries.iter_mut().zip(blocked) {
            entry.blocked_when_empty = blocked;
        }
        let taken = entries.iter().filter(|it| it.is_held);
        let left = taken.fold(names.amounts(&gpu.counters), |left, it| left.without(&it.cost));
        Self { entries, left }
    }

    /// True where the device is free and the remaining capacity is enough for it.
    pub(super) fn has_room(&self, entry: &Entry<'_>, left: &Amounts) -> bool {
        !entry.is_held && left.covers(&entry.cost)
    }

    /// Worth of everything that could be taken next.
    pub(super) fn possible(&self, left: &Amounts) -> u32 {
        self.entries.iter().filter(|it| self.has_room(it, left)).map(|it| it.worth).sum()
    }

    /// What the device would leave.
    pub(super) fn without(&self, entry: &Entry<'_>, left: &Amounts) -> Amounts {
        left.without(&entry.cost)
    }
}

fn rank<'i>(gpu: &'i GpuInventory, device: &'i AllocatableDevice) -> ProfileRank<'i> {
    let product = match device.attributes.get("productName") {
        Some(Attribute::String(name)) => name.as_str(),
        _ => "",
    };
    let capacity = |name: &str| match device.capacities.get(name) {
        Some(Capacity::Count(count)) => u64::from(*count),
        Some(Capacity::Mebibytes(mebibytes)) => *mebibytes,
        None => 0,
    };
    let name = device.mig().map_or("full", |it| &it.profile);
    ProfileRank {
        class: class(gpu, device),
        memory_mib: capacity("memory"),
        multiprocessors: capacity("multiprocessors"),
        product,
        name,
    }
}

fn class(gpu: &GpuInventory, device: &AllocatableDevice) -> Class {
    let Some(spec) = device.mig() else { return Class::WholeGpu };
    let mut others = gpu.devices.iter().chain(&gpu.withheld).filter_map(|it| it.mig());
    if device.attributes.get("mediaExtensions") == Some(&Attribute::Bool(true)) {
        Class::Media
    } else if others.any(|it| it.slices == spec.slices && it.placement.size < spec.placement.size) {
        Class::MoreMemory
    } else if spec.profile.contains(['+', '-']) {
        Class::Variant
    } else {
        Class::Plain
    }
}
