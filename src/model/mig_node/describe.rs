//! What a node's GPUs are reported as. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::resource::v1::{DeviceAttribute, DeviceCapacity};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::bounds::{MAX_GPUS, MAX_HELD, MAX_PUBLISHED, MAX_TEXT, shortened};
use super::status::{
    GpuStatus, HeldDevice, MigModeStatus, ProfileStatus, PublishedDevice, Summary, UNKNOWN, WHOLE,
};
use crate::claim::ClaimRef;
use crate::facts::{GpuInstance, Placement};
use crate::inventory::{
    AllocatableDevice, DeviceKind, DeviceName, Gpu, GpuInventory, Inventory, MigSpec, OfferPolicy, adoptable,
    fits_into, is_permitted, take,
};
use crate::slices::{attributes, capacities};

/// Attributes in which the devices of a GPU differ; all others are the GPU's.
const OF_DEVICE: [&str; 7] =
    ["type", "uuid", "profile", "computeSlices", "memorySlices", "placementStart", "mediaExtensions"];

/// What is known of a node's GPUs.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// The GPUs, with the instances that the driver did not create.
    pub gpus: &'a [Gpu],
    /// On which terms they are offered.
    pub policy: &'a OfferPolicy,
    /// What they offer.
    pub inventory: &'a Inventory,
    /// Names of the devices in the slices.
    pub published: &'a BTreeSet<String>,
    /// Names of the devices that are allocated or prepared, with their claims where these are known.
    pub held: &'a BTreeMap<String, Option<ClaimRef>>,
    /// By UUID, why a GPU offers nothing, or less.
    pub problems: &'a BTreeMap<String, String>,
    /// Whether counters keep the published devices apart.
    pub is_counted: bool,
}

/// The GPUs as they are reported, in PCI order.
#[must_use]
pub fn describe(seen: &Observed<'_>) -> Vec<GpuStatus> {
    let described = seen.inventory.gpus.iter().filter_map(|offered| {
        let gpu =
            seen.gpus.iter().find(|it| DeviceName::gpu(it.facts.pci).as_str() == offered.counter_set)?;
        Some(describe_gpu(gpu, offered, seen))
    });
    described.take(MAX_GPUS).collect()
}

/// What the columns of `kubectl get mignodes` show of these GPUs.
#[must_use]
pub fn summary(gpus: &[GpuStatus], is_counted: bool) -> Summary {
    let products: BTreeSet<&str> =
        gpus.iter().map(|it| it.product_name.as_str()).filter(|it| !it.is_empty()).collect();
    let mut unused: BTreeMap<&str, u32> = BTreeMap::new();
    let mut held: BTreeMap<&str, u32> = BTreeMap::new();
    for gpu in gpus {
        let published = gpu.published.iter();
        // Shares of a GPU without MIG do not overlap.
        let shown: Vec<&str> = if is_counted && published.clone().any(|it| 0 < it.size) {
            let size =
                |it: &&PublishedDevice| (it.size, it.profile == WHOLE, compute_slices(gpu, &it.profile));
            published.max_by_key(size).map(|it| it.profile.as_str()).into_iter().collect()
        } else {
            published.map(|it| it.profile.as_str()).collect()
        };
        shown.into_iter().for_each(|it| *unused.entry(it).or_default() += 1);
        gpu.held.iter().for_each(|it| *held.entry(it.profile.as_str()).or_default() += 1);
    }
    Summary {
        gpus: u32::try_from(gpus.len()).unwrap_or(u32::MAX),
        product: products.into_iter().collect::<Vec<_>>().join(",").chars().take(MAX_TEXT).collect(),
        unused: counts(&unused),
        held: counts(&held),
    }
}

/// `2x1g.10gb,1xfull`, or `-`.
fn counts(profiles: &BTreeMap<&str, u32>) -> String {
    let counts: Vec<String> = profiles.iter().map(|(profile, count)| format!("{count}x{profile}")).collect();
    if counts.is_empty() { "-".to_owned() } else { counts.join(",").chars().take(MAX_TEXT).collect() }
}

fn compute_slices(gpu: &GpuStatus, profile: &str) -> i64 {
    let profile = gpu.profiles.iter().find(|it| it.profile == profile);
    profile.and_then(|it| it.attributes.get("computeSlices")?.int).unwrap_or(0)
}

fn describe_gpu(gpu: &Gpu, offered: &GpuInventory, seen: &Observed<'_>) -> GpuStatus {
    let all = || offered.devices.iter().chain(&offered.withheld);
    let whole = all().find(|it| it.kind == DeviceKind::Gpu);
    let mut attributes = whole.map(attributes).unwrap_or_default();
    attributes.retain(|key, _| !OF_DEVICE.contains(&key.as_str()));
    let problem = seen.problems.get(&gpu.facts.uuid).or(offered.problem.as_ref());
    GpuStatus {
        name: offered.counter_set.clone(),
        uuid: gpu.facts.uuid.clone(),
        product_name: gpu.facts.product_name.clone().unwrap_or_default(),
        index: gpu.facts.index,
        mig_mode: match gpu.state.mode {
            Some(mode) if mode.current => MigModeStatus::Enabled,
            Some(_) => MigModeStatus::Disabled,
            None => MigModeStatus::Unavailable,
        },
        attributes,
        profiles: profiles(gpu, offered, seen.policy),
        held: held(gpu, offered, seen),
        published: published(gpu, offered, seen),
        problem: problem.map(|it| shortened(it)),
    }
}

/// What the GPU can be allocated as in its MIG mode, and with what the host permits.
fn profiles(gpu: &Gpu, offered: &GpuInventory, policy: &OfferPolicy) -> Vec<ProfileStatus> {
    let is_shared = gpu.facts.mig.is_none() && 1 < policy.time_slices;
    let mut profiles: Vec<ProfileStatus> = Vec::new();
    let devices = offered.devices.iter().chain(&offered.withheld);
    let of_kind = |is_whole: bool| {
        let devices = devices.clone().filter(move |it| match it.kind {
            DeviceKind::Gpu => is_whole && !is_shared,
            DeviceKind::Mig(_) => !is_whole,
            DeviceKind::Share { .. } | DeviceKind::Adopted(_) => false,
        });
        devices.filter(|it| is_permitted(gpu, &it.kind, policy))
    };
    // In NVML's order: what is withheld is in another list than what is offered.
    let places = |device: &&AllocatableDevice| {
        let index = |it: &MigSpec| {
            gpu.facts.mig.as_ref()?.profiles.iter().position(|profile| profile.id == it.profile_id)
        };
        device.mig().map(|it| (index(it), it.placement.start))
    };
    let mut parts: Vec<&AllocatableDevice> = of_kind(false).collect();
    parts.sort_by_key(places);
    for device in parts.into_iter().chain(of_kind(true)) {
        let (profile, placement) = place(gpu, device);
        match profiles.iter_mut().find(|it| it.profile == profile) {
            Some(known) => known.placements.extend(placement),
            None => profiles.push(ProfileStatus {
                profile: profile.to_owned(),
                attributes: profile_attributes(device),
                capacity: capacity_of(device),
                placements: placement.into_iter().collect(),
            }),
        }
    }
    profiles
}

fn profile_attributes(of: &AllocatableDevice) -> BTreeMap<String, DeviceAttribute> {
    let mut attributes = attributes(of);
    attributes.retain(|key, _| OF_DEVICE.contains(&key.as_str()) && key != "placementStart");
    if of.mig().is_some() {
        attributes.remove("uuid");
    }
    attributes
}

fn capacity_of(of: &AllocatableDevice) -> BTreeMap<String, Quantity> {
    capacities(of).into_iter().map(|(name, DeviceCapacity { value, .. })| (name, value)).collect()
}

/// Profile and memory slices of a device; nothing of a GPU without MIG.
fn place<'a>(gpu: &Gpu, device: &'a AllocatableDevice) -> (&'a str, Option<Placement>) {
    match device.mig() {
        Some(spec) => (&spec.profile, Some(spec.placement)),
        None => {
            let size = gpu.facts.mig.as_ref().map_or(0, |it| it.memory_slices());
            (WHOLE, (0 < size).then_some(Placement { start: 0, size }))
        }
    }
}

const NOWHERE: Placement = Placement { start: 0, size: 0 };

/// What is allocated or prepared, and unmanaged instances.
fn held(gpu: &Gpu, offered: &GpuInventory, seen: &Observed<'_>) -> Vec<HeldDevice> {
    let part_of = format!("{}-", offered.counter_set);
    let is_ours = |name: &str| name == offered.counter_set || name.starts_with(&part_of);
    let names = seen.held.iter().filter(|(name, _)| is_ours(name));
    let by_claims = names.map(|(name, claim)| {
        let known = seen.inventory.find(name);
        let (profile, placement) = known.as_deref().map_or((UNKNOWN, None), |device| place(gpu, device));
        let Placement { start, size } = placement.unwrap_or(NOWHERE);
        HeldDevice {
            device: Some(name.clone()),
            profile: profile.to_owned(),
            start,
            size,
            claim: claim.clone(),
        }
    });
    let free = gpu.state.instances.iter().filter_map(|it| unmanaged(gpu, offered, it, seen));
    by_claims.chain(free).take(MAX_HELD).collect()
}

/// An unmanaged instance that no claim has.
fn unmanaged(
    gpu: &Gpu,
    offered: &GpuInventory,
    instance: &GpuInstance,
    seen: &Observed<'_>,
) -> Option<HeldDevice> {
    let name = adoptable(&gpu.facts, instance)
        .ok()
        .map(|it| DeviceName::adopted(gpu.facts.pci, &it.uuid).to_string());
    if name.as_ref().is_some_and(|it| seen.held.contains_key(it)) {
        return None;
    }
    let is_device = |it: &String| offered.devices.iter().any(|device| device.name.as_str() == it);
    let profile = gpu.facts.profile(instance.profile_id).map_or(UNKNOWN, |it| &it.name);
    let Placement { start, size } = instance.placement;
    Some(HeldDevice { device: name.filter(is_device), profile: profile.to_owned(), start, size, claim: None })
}

/// Free devices that are published and, where counters keep devices apart, still fit.
fn published(gpu: &Gpu, offered: &GpuInventory, seen: &Observed<'_>) -> Vec<PublishedDevice> {
    let is_held = |it: &&AllocatableDevice| seen.held.contains_key(it.name.as_str());
    let mut left = offered.counters.clone();
    offered.devices.iter().filter(is_held).for_each(|it| take(&mut left, &it.consumes));
    let fits = |it: &&AllocatableDevice| !seen.is_counted || fits_into(&it.consumes, &left);
    let is_free = |it: &&AllocatableDevice| !is_held(it) && seen.published.contains(it.name.as_str());
    let free = offered.devices.iter().filter(is_free).filter(fits);
    let published = free.map(|device| {
        let (profile, placement) = place(gpu, device);
        let Placement { start, size } = placement.unwrap_or(NOWHERE);
        PublishedDevice { device: device.name.to_string(), profile: profile.to_owned(), start, size }
    });
    published.take(MAX_PUBLISHED).collect()
}
