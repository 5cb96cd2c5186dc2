//! What a GPU could be partitioned into, from its status alone. Pure.
//!
//! The inventory decides, as in the driver: facts are made of the status, and attributes and capacities are taken from it. So a
//! program without NVML gets the devices, and the counters, that the driver would publish where counters keep devices apart.

use std::sync::Arc;

use k8s_openapi::api::resource::v1::{CounterSet, Device, DeviceAttribute, DeviceCapacity};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::status::{GpuStatus, HeldDevice, ProfileStatus, WHOLE};
use crate::facts::{GpuFacts, GpuInstance, MediaEngines, MigFacts, MigMode, NodeFacts, Placement, Profile};
use crate::inventory::{
    AllocatableDevice, Attachment, DeviceName, Gpu, GpuInventory, GpuState, OfferPolicy, inventory_on,
};
use crate::slices::{MEMORY, counter_set, device, whole_mebibytes, whole_number};

/// What a GPU could be partitioned into.
#[derive(Debug, Clone, PartialEq)]
pub struct PossibleGpu {
    /// Name of the whole GPU.
    pub name: String,
    /// What the devices consume; `None` where no two of them overlap.
    pub counters: Option<CounterSet>,
    /// Every placement of every profile that can be created beside the unmanaged instances.
    pub devices: Vec<PossibleDevice>,
}

/// A device that could be published.
#[derive(Debug, Clone, PartialEq)]
pub struct PossibleDevice {
    /// Its profile; `full` for the whole GPU.
    pub profile: String,
    /// The memory slices that it occupies; all of them for the whole GPU, none where the GPU has no MIG.
    pub placement: Placement,
    /// The device as it is published.
    pub device: Device,
}

impl PossibleDevice {
    /// True where both, on the same GPU, need a memory slice. Two that do not may still exclude each other by media engines;
    /// what they consume of [`PossibleGpu::counters`] says that, too.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.placement.overlaps(other.placement)
    }
}

/// What one GPU could be partitioned into; `None` where its name is not that of a GPU.
#[must_use]
pub fn possible(status: &GpuStatus) -> Option<PossibleGpu> {
    let gpu = gpu(status)?;
    let held = status.held.iter().filter(|it| !is_unmanaged(it)).filter_map(|it| it.device.clone());
    let policy = OfferPolicy { held: held.collect(), ..OfferPolicy::default() };
    let found = inventory_on(&NodeFacts::default(), &[gpu], &policy).gpus.pop()?;
    let devices = found.devices.iter().filter_map(|it| possible_device(status, it, &found)).collect();
    let counters = (!found.counters.is_empty()).then(|| counter_set(&found));
    Some(PossibleGpu { name: found.counter_set, counters, devices })
}

/// True for an instance that the driver did not create: it is neither moved nor destroyed for anything else.
fn is_unmanaged(held: &HeldDevice) -> bool {
    held.device.as_deref().is_none_or(DeviceName::is_adopted)
}

fn possible_device(
    status: &GpuStatus,
    allocatable: &AllocatableDevice,
    of: &GpuInventory,
) -> Option<PossibleDevice> {
    let profile = allocatable.mig().map_or(WHOLE, |it| &it.profile);
    let known = status.profiles.iter().find(|it| it.profile == profile)?;
    let mut device = device(allocatable, of);
    let mut attributes = status.attributes.clone();
    attributes.extend(known.attributes.clone());
    let number = |it: u32| DeviceAttribute { int: Some(it.into()), ..DeviceAttribute::default() };
    if let Some(spec) = allocatable.mig() {
        let name = DeviceAttribute { string: Some(device.name.clone()), ..DeviceAttribute::default() };
        attributes.insert("uuid".to_owned(), name);
        attributes.insert("memorySlices".to_owned(), number(spec.placement.size));
    }
    let whole = || known.placements.first().copied().unwrap_or(Placement { start: 0, size: 0 });
    let placement = allocatable.mig().map_or_else(whole, |it| it.placement);
    attributes.insert("placementStart".to_owned(), number(placement.start));
    device.attributes = Some(attributes);
    let capacity = |it: &Quantity| DeviceCapacity { value: it.clone(), ..DeviceCapacity::default() };
    device.capacity = Some(known.capacity.iter().map(|(key, it)| (key.clone(), capacity(it))).collect());
    Some(PossibleDevice { profile: profile.to_owned(), placement, device })
}

/// The GPU as far as the inventory needs it to decide which devices there are and what they consume.
fn gpu(status: &GpuStatus) -> Option<Gpu> {
    let pci =
        DeviceName::address_in(&status.name).filter(|it| DeviceName::gpu(*it).as_str() == status.name)?;
    let is_whole = |it: &&ProfileStatus| it.profile == WHOLE;
    let (whole, parts): (Vec<_>, Vec<_>) = status.profiles.iter().partition(is_whole);
    let profiles: Vec<Profile> = (0..).zip(parts).map(|(id, it)| profile(id, it)).collect();
    // What the mode does not allow is not among the profiles. Of a GPU that needs a reset for another mode one kind is left.
    let mode = MigMode { current: whole.is_empty(), pending: whole.is_empty() };
    let unmanaged = status.held.iter().filter(|it| is_unmanaged(it));
    let instances = (0..).zip(unmanaged).map(|(id, it)| instance(id, it, &profiles)).collect();
    let mig = (!profiles.is_empty()).then_some(MigFacts { resetless: !whole.is_empty(), profiles, mode });
    let facts = GpuFacts {
        index: status.index,
        uuid: status.uuid.clone(),
        pci,
        pci_device_id: 0,
        product_name: None,
        brand: None,
        architecture: None,
        compute_capability: None,
        memory_bytes: None,
        unknown: Vec::new(),
        mig,
    };
    let problem = status.problem.clone().or_else(|| nothing_permitted(status));
    let state = GpuState { mode: facts.mig.as_ref().map(|it| it.mode), instances, problem };
    Some(Gpu { facts: Arc::new(facts), attachment: Attachment::default(), state })
}

/// A GPU without profiles is time-shared, or the host does not permit to allocate anything of it.
fn nothing_permitted(status: &GpuStatus) -> Option<String> {
    status.profiles.is_empty().then(|| "no profile can be allocated".to_owned())
}

fn profile(id: u32, status: &ProfileStatus) -> Profile {
    let amount = |name: &str| status.capacity.get(name).map_or(0, whole_number);
    Profile {
        index: id,
        id,
        name: status.profile.clone(),
        slices: 0,
        max_instances: 0,
        multiprocessors: 0,
        copy_engines: 0,
        media: MediaEngines {
            decoders: amount("decoders"),
            encoders: amount("encoders"),
            jpegs: amount("jpegEngines"),
            ofas: amount("ofaEngines"),
        },
        memory_mib: status.capacity.get(MEMORY).map_or(0, whole_mebibytes),
        placements: status.placements.iter().copied().filter(|it| it.is_plausible()).collect(),
    }
}

fn instance(id: u32, held: &HeldDevice, profiles: &[Profile]) -> GpuInstance {
    let profile_id = profiles.iter().find(|it| it.name == held.profile).map_or(u32::MAX, |it| it.id);
    let placement = Placement { start: held.start, size: held.size };
    GpuInstance { id, profile_id, placement, compute_instances: Vec::new() }
}
