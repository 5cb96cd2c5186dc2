//! Holds: GPUs of which free devices are not offered for a while, so that a claim gets its turn. Pure.
//!
//! As long as a hold is in force, a free device of its GPU is offered only if it has the profile of the hold or is not in the way
//! of it ([`beside`]). What claims hold that is in the way stays theirs, but it is not published: a scheduler gives a published
//! device away at the moment of its release, before the driver can withdraw it, so that the GPU would never become free among
//! pods that wait. A hold ends when its writer removes it, and at its time in any case.
//!
//! # Where counters keep devices apart
//!
//! kube-scheduler subtracts from a counter set what the allocated devices consume that it finds in the slices, and ignores
//! allocated devices that are not there (dynamic-resource-allocation, structured allocator, `checkAvailableCounters`). A device
//! that vanishes while a claim has it therefore looks free (kubernetes#140802). So what it takes leaves the counter set at the
//! same time, [`GpuInventory::reserve`], and what is left for others is the same with it and without it:
//!
//! - Device and counters are in different slices, so both are written with a new generation of the pool. A scheduler that has
//!   only some of the new slices sees a pool that is not complete, and allocates nothing from it.
//! - A scheduler that has the old slices counts the device as before. It may still give it away after its release, or what
//!   else was free; so nothing free is offered before that is known, a settle time later (`retained`).
//! - When the device is released, its share stays out of the counters until a read of the claims shows the release. It does
//!   not matter whether a scheduler sees the release before the slices or after: neither the device nor its share is there.
//! - The share comes back with one write of one slice. A scheduler that still takes the device for allocated ignores it.
//! - When the hold ends, a device that is still allocated comes back together with its share, at once: no slices in between
//!   have offered what it takes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::apply::{Offer, apply, apply_beside, candidate};
use super::beside::beside;
use super::choice::{GpuLayout, Layouts};
use super::mix;
use crate::facts::GpuFacts;
use crate::inventory::{AllocatableDevice, DeviceKind, DeviceName, GpuInventory, Inventory};
use crate::mig_node::{Hold, WHOLE};

/// How long a hold lasts at most after it was seen first.
pub const LONGEST_HOLD: Duration = Duration::from_secs(900);

/// The profiles for which GPUs are held back, by the names of the GPUs (`gpu-<pci>`).
pub type HeldBack = BTreeMap<String, String>;

/// What is remembered of holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HoldMemory {
    /// Those that are there, and when each was seen first.
    seen: Vec<(Hold, Timestamp)>,
    /// Those in force.
    in_force: HeldBack,
}

/// Which holds are in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HoldStep {
    /// The GPUs and profiles.
    pub in_force: HeldBack,
    /// Whether one has begun.
    pub has_begun: bool,
    /// When those begin that cannot begin yet.
    pub begins_at: Option<Timestamp>,
    /// What a person should know of some of them.
    pub notes: Vec<String>,
    /// When to look again at the latest.
    pub wake: Option<Timestamp>,
}

impl HoldMemory {
    /// Which of these holds are in force. One that is not yet begins at `not_before` at the earliest.
    pub fn follow(
        &mut self,
        holds: &[Hold],
        inventory: &Inventory,
        not_before: Option<Timestamp>,
        now: Timestamp,
    ) -> HoldStep {
        let first = |hold: &Hold| {
            let known = self.seen.iter().find(|it| it.0 == *hold);
            known.map_or(now, |it| it.1.min(now))
        };
        let seen: Vec<(Hold, Timestamp)> = holds.iter().map(|it| (it.clone(), first(it))).collect();
        let mut step = HoldStep::default();
        for (hold, first) in &seen {
            let latest = after(*first, LONGEST_HOLD);
            let until = hold.until.0.min(latest);
            let gpu = inventory.gpus.iter().find(|it| it.counter_set == hold.gpu);
            if until <= now || step.in_force.contains_key(&hold.gpu) {
                continue;
            }
            if !gpu.is_some_and(|it| offers(it, &hold.profile)) {
                step.notes.push(format!("{} offers no {}, so it is not held back", hold.gpu, hold.profile));
                continue;
            }
            if latest < hold.until.0 {
                step.notes.push(format!(
                    "{} is held back for 15 minutes at most, until {}",
                    hold.gpu,
                    latest.strftime("%Y-%m-%dT%H:%M:%SZ")
                ));
            }
            let is_in_force = self.in_force.get(&hold.gpu) == Some(&hold.profile);
            let begins_at = not_before.filter(|it| !is_in_force && now < *it);
            step.wake = step.wake.into_iter().chain([begins_at.unwrap_or(until).min(until)]).min();
            if begins_at.is_some() {
                step.begins_at = begins_at;
            } else {
                step.has_begun |= !is_in_force;
                step.in_force.insert(hold.gpu.clone(), hold.profile.clone());
            }
        }
        self.seen = seen;
        self.in_force.clone_from(&step.in_force);
        step
    }
}

/// The layouts in which GPUs that are held back have the profile they are held back for, as often as it fits, and beside it what the
/// layouts of before have that fits, the largest first.
#[must_use]
pub fn with_holds(layouts: &Layouts, held_back: &HeldBack, gpus: &[GpuFacts]) -> Layouts {
    let mut layouts = layouts.clone();
    for (name, profile) in held_back {
        let gpu = gpus.iter().find(|it| DeviceName::gpu(it.pci).as_str() == name);
        let profiles = gpu.and_then(GpuFacts::cuttable).map_or(&[][..], |it| &it.profiles);
        let layout = match profiles.iter().find(|it| it.name == *profile) {
            Some(found) => {
                let most = u32::try_from(found.placements.len()).unwrap_or(u32::MAX);
                let first = mix::possible(profiles, &[(profile.clone(), most)].into());
                let others = match layouts.get(name) {
                    Some(GpuLayout::Cut(counts) | GpuLayout::Free { counts, .. }) => counts.clone(),
                    Some(GpuLayout::Whole) | None => BTreeMap::new(),
                };
                GpuLayout::Cut(mix::filled(profiles, first, &others))
            }
            None if profile == WHOLE => GpuLayout::Whole,
            None => continue,
        };
        layouts.insert(name.clone(), layout);
    }
    layouts
}

/// What a GPU that is held back offers.
struct Turn<'a> {
    profile: &'a str,
    /// Names of the devices that are not in the way.
    beside: BTreeSet<String>,
}

impl<'a> Turn<'a> {
    fn of(gpu: &GpuInventory, profile: &'a str) -> Self {
        let all: Vec<&AllocatableDevice> = gpu.devices.iter().chain(&gpu.withheld).collect();
        let (devices, candidates): (Vec<_>, Vec<_>) =
            all.iter().filter_map(|it| Some((&it.name, candidate(it)?))).unzip();
        let beside = beside(&candidates, &gpu.counters, profile);
        Self { profile, beside: beside.into_iter().map(|it| devices[it].to_string()).collect() }
    }

    /// Whether a device is offered. Unmanaged instances are in the way of nothing that is offered.
    fn offers(&self, device: &AllocatableDevice) -> bool {
        is_for(self.profile, device)
            || matches!(device.kind, DeviceKind::Adopted(_))
            || self.beside.contains(device.name.as_str())
    }
}

/// Whether a hold for this profile is for a device.
fn is_for(profile: &str, device: &AllocatableDevice) -> bool {
    device.mig().map_or(WHOLE, |it| &it.profile) == profile
}

fn offers(gpu: &GpuInventory, profile: &str) -> bool {
    gpu.devices.iter().any(|it| is_for(profile, it))
}

/// What the GPUs are to publish of layouts that are in force [`with_holds`]: of those that are held back nothing free that is in
/// the way.
#[must_use]
pub fn apply_held_back(
    inventory: &Inventory,
    layouts: &Layouts,
    held_back: &HeldBack,
    held: &BTreeSet<String>,
) -> Offer {
    if held_back.is_empty() {
        return apply(inventory, layouts, held);
    }
    let mut reduced = inventory.clone();
    for (gpu, turn) in turns(&mut reduced, held_back) {
        withhold(gpu, &turn, held);
    }
    apply_beside(&reduced, layouts, held, &hidden(inventory, held_back, held))
}

/// The inventory without the devices that are not published because of holds, where counters keep devices apart; `held` names
/// devices that claims hold, and what they take is not in the counters either.
#[must_use]
pub(crate) fn hold_back(inventory: &Inventory, held_back: &HeldBack, held: &BTreeSet<String>) -> Inventory {
    let mut reduced = inventory.clone();
    for (gpu, turn) in turns(&mut reduced, held_back) {
        if gpu.problem.is_none() {
            gpu.reserve(held, |it| is_hidden(&turn, it, held));
        }
        withhold(gpu, &turn, held);
    }
    reduced
}

/// The GPUs that are held back, with what they offer.
fn turns<'a>(
    inventory: &'a mut Inventory,
    held_back: &'a HeldBack,
) -> impl Iterator<Item = (&'a mut GpuInventory, Turn<'a>)> {
    inventory.gpus.iter_mut().filter_map(|gpu| {
        let turn = Turn::of(gpu, held_back.get(&gpu.counter_set)?);
        Some((gpu, turn))
    })
}

/// Takes what is free and in the way out of the offer.
fn withhold(gpu: &mut GpuInventory, turn: &Turn<'_>, held: &BTreeSet<String>) {
    let stays = |it: &AllocatableDevice| turn.offers(it) || held.contains(it.name.as_str());
    let (stay, go): (Vec<_>, Vec<_>) = std::mem::take(&mut gpu.devices).into_iter().partition(stays);
    gpu.devices = stay;
    gpu.withheld.extend(go);
}

/// What claims hold of GPUs that are held back and is in the way. Of a GPU with a problem it stays published: nothing
/// free is offered beside it, and a taint has to be on a device that is in the slices.
pub(crate) fn hidden(
    inventory: &Inventory,
    held_back: &HeldBack,
    held: &BTreeSet<String>,
) -> BTreeSet<String> {
    let gpus = inventory.gpus.iter().filter(|it| it.problem.is_none());
    let gpus = gpus.filter_map(|it| Some((it, Turn::of(it, held_back.get(&it.counter_set)?))));
    let hidden = gpus.flat_map(|(gpu, turn)| {
        let all = gpu.devices.iter().chain(&gpu.withheld);
        let hidden = all.filter(|it| is_hidden(&turn, it, held));
        hidden.map(|it| it.name.to_string()).collect::<Vec<_>>()
    });
    hidden.collect()
}

/// Whether claims hold a device that is in the way.
fn is_hidden(turn: &Turn<'_>, device: &AllocatableDevice, held: &BTreeSet<String>) -> bool {
    held.contains(device.name.as_str()) && !turn.offers(device)
}

fn after(time: Timestamp, wait: Duration) -> Timestamp {
    let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
    time.checked_add(wait).unwrap_or(Timestamp::MAX)
}
