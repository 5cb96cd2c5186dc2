//! What a GPU can be partitioned into, as sets of bits; shared by all GPUs that are equal in it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use dra_allocator::quantity::Quantity;
use k8s_openapi::api::resource::v1::{Counter, Device};
use mig_model::facts::Placement;
use mig_model::layout::{Candidate, beside};
use mig_model::slices::MEMORY;

/// Possible devices of one GPU that are looked at; no known GPU has half as many.
pub const MAX_POSSIBLE: usize = 128;

/// Attributes in which GPUs of one kind differ. A selector that names one of them is evaluated for each GPU.
pub const IDENTITY: [&str; 6] = [
    "parentUUID",
    "uuid",
    "resource.kubernetes.io/pciBusID",
    "resource.kubernetes.io/pcieRoot",
    "resource.kubernetes.io/numaNode",
    "index",
];

/// A set of possible devices of one GPU, by position.
pub(super) type Set = u128;

/// A device that a GPU could be partitioned into.
#[derive(Debug, Clone, PartialEq)]
pub struct Possible {
    /// Profile; `full` for the whole GPU.
    pub profile: String,
    /// First memory slice.
    pub start: u32,
    /// Memory slices.
    pub size: u32,
    /// As it would be published where counters are kept.
    pub device: Device,
}

/// A device that serves a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Choice {
    /// Alternative of `firstAvailable`.
    pub(super) alternative: u8,
    /// Position among the possible devices of the GPU.
    pub(super) device: u8,
}

/// What a GPU can be partitioned into.
#[derive(Debug)]
pub struct Kind {
    pub(super) devices: Vec<Possible>,
    /// Devices that cannot exist beside one, by position; itself included.
    pub(super) conflicts: Vec<Set>,
    /// What is not offered of a GPU that is held back for the profile of a device.
    pub(super) held_back: Vec<Set>,
    /// Devices of profiles with one placement.
    pub(super) alone: Set,
    /// Memory slices of all that a device excludes on an empty GPU.
    pub(super) blocks: Vec<u32>,
    /// Names of the counters, and where they are in `totals`; those of which a GPU has one are nowhere.
    pub(super) counters: Vec<(String, Option<usize>)>,
    /// Counters of which a GPU has more than one: what an empty GPU has.
    pub(super) totals: Vec<i64>,
    /// What of them a device takes.
    pub(super) costs: Vec<Vec<i64>>,
    /// Memory slices of the smallest device.
    pub(super) smallest: u32,
    /// Memory slices of the largest device.
    pub(super) largest: u32,
}

impl Kind {
    /// A kind of GPU with these devices and counters. Devices beyond [`MAX_POSSIBLE`] are left out.
    #[must_use]
    pub fn new(mut devices: Vec<Possible>, counters: &BTreeMap<String, Counter>) -> Self {
        devices.truncate(MAX_POSSIBLE);
        // A GPU without MIG has no memory slices.
        devices.iter_mut().for_each(|it| it.size = it.size.max(1));
        // It excludes nothing, and a search compares every counter very often.
        let mut counters = counters.clone();
        counters.remove(MEMORY);
        let sets = devices.iter_mut().flat_map(|it| it.device.consumes_counters.iter_mut().flatten());
        sets.for_each(|it| drop(it.counters.remove(MEMORY)));
        let total = |name: &str| counters.get(name).map_or(0, |it| Quantity::whole(&it.value.0));
        let costs: Vec<BTreeMap<&str, i64>> = devices.iter().map(|it| consumption(&it.device)).collect();
        let is_single = |name: &str| total(name) == 1;
        let conflicts: Vec<Set> = costs
            .iter()
            .enumerate()
            .map(|(one, cost)| {
                let shares = |other: &BTreeMap<&str, i64>| {
                    cost.iter().any(|(name, amount)| {
                        0 < *amount && is_single(name) && other.get(name).is_some_and(|it| 0 < *it)
                    })
                };
                let all = costs.iter().enumerate().filter(|(_, other)| shares(other));
                all.fold(1 << one, |set, (position, _)| set | 1 << position)
            })
            .collect();
        let blocked = |set: &Set| members(*set).map(|it| devices[it].size).sum();
        let blocks = conflicts.iter().map(blocked).collect();
        let amounts: Vec<&str> = counters.keys().map(String::as_str).filter(|it| !is_single(it)).collect();
        let amount = |cost: &BTreeMap<&str, i64>| {
            amounts.iter().map(|name| cost.get(name).copied().unwrap_or(0)).collect::<Vec<i64>>()
        };
        let sizes = || devices.iter().map(|it| it.size);
        let held_back = held_back(&devices, &costs, &counters);
        let is_alone =
            |it: &usize| devices.iter().filter(|other| other.profile == devices[*it].profile).count() == 1;
        let alone = (0..devices.len()).filter(is_alone).fold(0, |set: Set, it| set | 1 << it);
        Self {
            conflicts,
            held_back,
            alone,
            blocks,
            counters: counters
                .keys()
                .map(|name| (name.clone(), amounts.iter().position(|it| it == name)))
                .collect(),
            totals: amounts.iter().map(|it| total(it)).collect(),
            costs: costs.iter().map(amount).collect(),
            smallest: sizes().min().unwrap_or(1),
            largest: sizes().max().unwrap_or(1),
            devices,
        }
    }

    /// A device, by the part of its name that follows the name of its GPU.
    #[must_use]
    pub fn device_called(&self, part: &str) -> Option<&Possible> {
        let is_this = |it: &&Possible| {
            let name = &it.device.name;
            name.find("-mig-").map_or("", |start| &name[start..]) == part
        };
        self.devices.iter().find(is_this)
    }

    /// Whether GPUs are held back for a device: one that is large, is alone of its profile, and that something smaller can keep waiting.
    pub(super) fn gets_turns(&self, device: usize, hold_from: f64) -> bool {
        let is_alone = self.alone >> device & 1 == 1;
        self.is_large(device, hold_from) && is_alone && self.smallest < self.devices[device].size
    }

    /// Whether a device takes this part of the GPU's memory slices, or more.
    pub(super) fn is_large(&self, device: usize, hold_from: f64) -> bool {
        hold_from * f64::from(self.largest) <= f64::from(self.devices[device].size)
    }

    /// The position of a device.
    pub(super) fn position(&self, profile: &str, start: u32) -> Option<usize> {
        self.devices.iter().position(|it| it.profile == profile && it.start == start)
    }

    /// Memory slices that these devices lie on.
    pub(super) fn memory(&self, devices: Set) -> u32 {
        let slices =
            |it: &Possible| (it.start..it.start.saturating_add(it.size)).take_while(|it| *it < Set::BITS);
        let all = members(devices).flat_map(|it| slices(&self.devices[it]));
        all.fold(0, |set: Set, it| set | 1 << it).count_ones()
    }

    /// The devices that lie in part on these memory slices.
    pub(super) fn overlapping(&self, start: u32, size: u32) -> Set {
        let end = |start: u32, size: u32| start.saturating_add(size);
        let overlaps = |it: &Possible| it.start < end(start, size) && start < end(it.start, it.size);
        let all = self.devices.iter().enumerate().filter(|(_, it)| overlaps(it));
        all.fold(0, |set, (position, _)| set | 1 << position)
    }
}

/// For each device what a GPU that is held back for its profile does not offer, by position.
fn held_back(
    devices: &[Possible],
    costs: &[BTreeMap<&str, i64>],
    counters: &BTreeMap<String, Counter>,
) -> Vec<Set> {
    let amount = |it: i64| u32::try_from(it.max(0)).unwrap_or(u32::MAX);
    let candidate = |(it, cost): (&Possible, &BTreeMap<&str, i64>)| Candidate {
        profile: it.profile.clone(),
        placement: Placement { start: it.start, size: it.size },
        cost: cost.iter().map(|(name, it)| ((*name).to_owned(), amount(*it))).collect(),
    };
    let candidates: Vec<Candidate> = devices.iter().zip(costs).map(candidate).collect();
    let total = |it: &Counter| amount(Quantity::whole(&it.value.0));
    let totals = counters.iter().map(|(name, it)| (name.clone(), total(it))).collect();
    let mut known: BTreeMap<&str, Set> = BTreeMap::new();
    let of = |it: &Possible| {
        let offered = beside(&candidates, &totals, &it.profile);
        !offered.into_iter().fold(0, |set: Set, it| set | 1 << it)
    };
    devices.iter().map(|it| *known.entry(&it.profile).or_insert_with(|| of(it))).collect()
}

/// What a device takes from the counters of its GPU.
fn consumption(device: &Device) -> BTreeMap<&str, i64> {
    let sets = device.consumes_counters.iter().flatten();
    let counters = sets.flat_map(|set| &set.counters);
    counters.map(|(name, counter)| (name.as_str(), Quantity::whole(&counter.value.0))).collect()
}

/// The positions in a set, ascending.
pub(super) fn members(mut set: Set) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let position = (set != 0).then_some(set.trailing_zeros() as usize)?;
        set &= set - 1;
        Some(position)
    })
}

/// Kinds of GPUs that are known, so that a thousand equal nodes have one.
#[derive(Debug, Default)]
pub struct Kinds(HashMap<String, Arc<Kind>>);

impl Kinds {
    /// The kind of this key, made at first use. Kinds that no node has any more are forgotten when there are too many.
    pub fn of(&mut self, key: String, make: impl FnOnce() -> Kind) -> Arc<Kind> {
        const MOST: usize = 256;
        if MOST <= self.0.len() && !self.0.contains_key(&key) {
            self.0.retain(|_, kind| 1 < Arc::strong_count(kind));
        }
        self.0.entry(key).or_insert_with(|| Arc::new(make())).clone()
    }
}
