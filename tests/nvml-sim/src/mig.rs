//! The rules of partitioning, as a state machine over [`Gpu`]: what may be created where, and what may be
//! destroyed.
//!
//! Pure: no files, no time, no ABI. The rules are those of `reference/mig-nvml-cdi.md` 1.3, 1.7, 1.8, 2.2,
//! 3.1 and 3.3.

use crate::code::{Answer, Code};
use crate::machine::{ComputeInstance, Gpu, GpuInstance, Machine, uuid_of};
use mig_models::Profile;

/// A vGPU inside a virtual machine cannot be partitioned.
const VIRTUALIZATION_VGPU_GUEST: u32 = 2;
/// Passthrough: the guest cannot reset the GPU.
const VIRTUALIZATION_PASSTHROUGH: u32 = 1;
/// `KMIGMGR_MAX_GPU_SWIZZID`: GPU instance ids are below this.
pub(crate) const GI_IDS: u32 = 15;
/// Device files leave room for this many compute instances per GPU instance.
pub(crate) const CI_IDS: u32 = 8;

/// Sets MIG mode. The answer is the activation status: the call itself succeeds even when the mode did not
/// change.
pub fn set_mode(gpu: &mut Gpu, enable: bool) -> Answer<Code> {
    let model = gpu.model().filter(|model| model.has_mig()).ok_or(Code::NOT_SUPPORTED)?;
    if gpu.virtualization == VIRTUALIZATION_VGPU_GUEST {
        return Err(Code::NOT_SUPPORTED);
    }
    if gpu.mig_current == enable {
        gpu.mig_pending = enable;
        return Ok(Code::SUCCESS);
    }
    let busy = !gpu.processes.is_empty() || !gpu.holders.is_empty() || !gpu.instances.is_empty();
    if model.resetless_mig() {
        if busy {
            return Ok(Code::IN_USE);
        }
    } else {
        // Ampere resets the GPU to activate the mode. What it cannot do now stays pending.
        gpu.mig_pending = enable;
        if gpu.virtualization == VIRTUALIZATION_PASSTHROUGH {
            return Ok(Code::RESET_REQUIRED);
        }
        if busy {
            return Ok(Code::IN_USE);
        }
    }
    gpu.mig_pending = enable;
    gpu.reset();
    Ok(Code::SUCCESS)
}

/// The profile with that enum index. INVALID_ARGUMENT beyond the range, NOT_SUPPORTED where this GPU lacks
/// it.
pub fn profile_by_index(gpu: &Gpu, index: u32) -> Answer<Profile> {
    let profiles = gpu.profiles();
    let range = profiles.iter().map(|profile| profile.index + 1).fold(PROFILE_COUNT, u32::max);
    if index >= range {
        return Err(Code::INVALID_ARGUMENT);
    }
    capable(gpu)?;
    profiles.into_iter().find(|profile| profile.index == index).ok_or(Code::NOT_SUPPORTED)
}

/// `NVML_GPU_INSTANCE_PROFILE_COUNT` of the newest header.
const PROFILE_COUNT: u32 = 18;

/// The profile with that id. INVALID_ARGUMENT where this GPU lacks it.
pub fn profile_by_id(gpu: &Gpu, id: u32) -> Answer<Profile> {
    capable(gpu)?;
    gpu.profiles().into_iter().find(|profile| profile.id == id).ok_or(Code::INVALID_ARGUMENT)
}

fn capable(gpu: &Gpu) -> Answer<()> {
    let has_mig = gpu.model().is_some_and(|model| model.has_mig());
    if has_mig && gpu.virtualization != VIRTUALIZATION_VGPU_GUEST { Ok(()) } else { Err(Code::NOT_SUPPORTED) }
}

/// MIG mode is on, and this is no vGPU guest.
pub fn enabled(gpu: &Gpu) -> Answer<()> {
    capable(gpu)?;
    if gpu.mig_current { Ok(()) } else { Err(Code::NOT_SUPPORTED) }
}

/// How many more instances of a profile fit.
pub fn remaining(gpu: &Gpu, profile: &Profile) -> u32 {
    let mut trial = gpu.clone();
    let mut count = 0;
    // First fit is optimal here: the placements of one profile either coincide or do not touch.
    for &start in &profile.starts {
        if fits(&trial, profile, start) {
            let (id, serial) = (u32::MAX, 0);
            let size = profile.size;
            trial.instances.push(GpuInstance {
                id,
                serial,
                profile_id: profile.id,
                start,
                size,
                compute_instances: vec![],
            });
            count += 1;
        }
    }
    count
}

/// Whether an instance can be created at that placement now: memory units free, media engines left, count not
/// reached. Media engines are additive, against those of the largest profile (reference 1.8).
pub fn fits(gpu: &Gpu, profile: &Profile, start: u32) -> bool {
    let end = start + profile.size;
    if gpu.instances.iter().any(|other| start < other.start + other.size && other.start < end) {
        return false;
    }
    let same = gpu.instances.iter().filter(|other| other.profile_id == profile.id).count();
    if same >= usize::try_from(profile.max).unwrap_or(usize::MAX) {
        return false;
    }
    let profiles = gpu.profiles();
    let taken =
        gpu.instances.iter().filter_map(|other| profiles.iter().find(|known| known.id == other.profile_id));
    let taken =
        taken.map(engines).fold(engines(profile), |sum, add| std::array::from_fn(|i| sum[i] + add[i]));
    let whole =
        profiles.iter().map(engines).fold([0; 6], |max, next| std::array::from_fn(|i| max[i].max(next[i])));
    taken.iter().zip(whole).all(|(taken, whole)| *taken <= whole)
}

fn engines(profile: &Profile) -> [u32; 6] {
    [profile.sm, profile.ce, profile.dec, profile.enc, profile.jpeg, profile.ofa]
}

/// Creates a GPU instance, at `start` or where NVML would put it. Answers its id.
///
/// The hardware does not say whether the placement is taken or something else is missing: both are
/// INSUFFICIENT_RESOURCES. A placement that the profile does not have is INVALID_ARGUMENT.
pub fn create_gpu_instance(
    machine: &mut Machine,
    index: usize,
    profile_id: u32,
    placement: Option<(u32, u32)>,
    permuted: bool,
) -> Answer<u32> {
    let gpu = machine.gpu(index)?;
    enabled(gpu)?;
    let profile = profile_by_id(gpu, profile_id)?;
    if let Some((start, size)) = placement
        && (size != profile.size || !profile.starts.contains(&start))
    {
        return Err(Code::INVALID_ARGUMENT);
    }
    if gpu.holders.iter().any(|holder| holder.gpu_instance.is_none()) {
        return Err(Code::IN_USE);
    }
    let wanted = placement.map(|(start, _)| vec![start]).unwrap_or(profile.default_order.clone());
    let start =
        wanted.into_iter().find(|start| fits(gpu, &profile, *start)).ok_or(Code::INSUFFICIENT_RESOURCES)?;
    let id = gpu_instance_id(gpu, profile.size, start, permuted).ok_or(Code::INSUFFICIENT_RESOURCES)?;
    let serial = machine.take_serial();
    let size = profile.size;
    let instance = GpuInstance { id, serial, profile_id, start, size, compute_instances: Vec::new() };
    machine.gpu_mut(index)?.instances.push(instance);
    Ok(id)
}

/// The id depends on the placement alone: the node of a binary tree over the memory (reference 1.7). In the
/// permuted mode the nodes of one level are numbered from the right, as one listing in NVIDIA's guide shows.
fn gpu_instance_id(gpu: &Gpu, size: u32, start: u32, permuted: bool) -> Option<u32> {
    let nodes = gpu.memory_units() / size.max(1);
    let place = start / size.max(1);
    let regular = nodes.is_power_of_two() && place < nodes && start.is_multiple_of(size);
    let id = nodes.wrapping_sub(1) + if permuted { nodes.wrapping_sub(1 + place) } else { place };
    if regular && id < GI_IDS && gpu.instance(id).is_none() {
        return Some(id);
    }
    // Invented profiles may have any shape; they get what is left, from the top.
    (0..GI_IDS).rev().find(|id| gpu.instance(*id).is_none())
}

/// Destroys a GPU instance. IN_USE while it has compute instances, processes, or another client.
pub fn destroy_gpu_instance(gpu: &mut Gpu, id: u32) -> Answer<()> {
    let instance = gpu.instance(id).ok_or(Code::INVALID_ARGUMENT)?;
    if !instance.compute_instances.is_empty() || held(gpu, id, None) {
        return Err(Code::IN_USE);
    }
    gpu.instances.retain(|instance| instance.id != id);
    Ok(())
}

/// Whether a process runs on the instance, or another client holds it or the whole GPU.
fn held(gpu: &Gpu, gi: u32, ci: Option<u32>) -> bool {
    let process = gpu.processes.iter().any(|process| {
        process.gpu_instance == Some(gi)
            && ci.is_none_or(|ci| process.compute_instance.is_none_or(|its| its == ci))
    });
    process || gpu.holders.iter().any(|holder| holder.gpu_instance.is_none_or(|held| held == gi))
}

/// A compute instance profile of one GPU instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComputeProfile {
    /// `NVML_COMPUTE_INSTANCE_PROFILE_*`; the id is the same number in every listing seen (reference 1.1).
    pub index: u32,
    /// `1c.3g.40gb`, or the GPU instance profile's own name where it takes all slices.
    pub name: String,
    /// Compute slices.
    pub slices: u32,
    /// How many fit an empty GPU instance.
    pub max: u32,
    /// Streaming multiprocessors.
    pub sm: u32,
    /// First slices, ascending.
    pub starts: Vec<u32>,
}

/// `NVML_COMPUTE_INSTANCE_PROFILE_COUNT`.
const COMPUTE_PROFILE_COUNT: u32 = 9;
/// Slices by compute profile index; 0 where the constant stands for something this simulator has not.
const COMPUTE_SLICES: [u32; 9] = [1, 2, 3, 4, 7, 8, 6, 0, 0];

/// The compute profile of that index within a GPU instance profile.
pub fn compute_profile(gpu: &Gpu, parent: &Profile, index: u32) -> Answer<ComputeProfile> {
    if index >= COMPUTE_PROFILE_COUNT {
        return Err(Code::INVALID_ARGUMENT);
    }
    let slices = COMPUTE_SLICES.get(index as usize).copied().unwrap_or(0);
    // Half a GPU instance and less, or all of it: 7g has 1c 2c 3c 4c 7c, 4g has 1c 2c 4c (lcip of an A100),
    // and a 3g has 1c 2c 3c.
    let exists = slices == parent.slices
        || (slices > 0 && slices < parent.slices && slices != 3)
        || (slices == 3 && parent.slices == 7);
    if !exists {
        return Err(Code::NOT_SUPPORTED);
    }
    let whole = slices == parent.slices;
    // The first profile of the table is the plain 1g: its multiprocessors are one slice's.
    let unit = gpu.profiles().iter().filter(|profile| profile.slices == 1).map(|profile| profile.sm).min();
    let sm = if whole { parent.sm } else { slices * unit.unwrap_or(0) };
    let name = if whole { parent.name.clone() } else { format!("{slices}c.{}", parent.name) };
    let max = parent.slices / slices;
    Ok(ComputeProfile { index, name, slices, max, sm, starts: (0..max).map(|i| i * slices).collect() })
}

/// First slices at which the compute profile fits now.
pub fn compute_free(instance: &GpuInstance, profile: &ComputeProfile) -> Vec<u32> {
    let free = |start: &u32| {
        let end = start + profile.slices;
        !instance.compute_instances.iter().any(|other| *start < other.start + other.size && other.start < end)
    };
    profile.starts.iter().copied().filter(free).collect()
}

/// Creates a compute instance, at a first slice or anywhere. Answers its id.
pub fn create_compute_instance(
    machine: &mut Machine,
    index: usize,
    gi: u32,
    profile_id: u32,
    placement: Option<(u32, u32)>,
) -> Answer<u32> {
    let gpu = machine.gpu(index)?;
    enabled(gpu)?;
    let instance = gpu.instance(gi).ok_or(Code::INVALID_ARGUMENT)?;
    let parent = profile_by_id(gpu, instance.profile_id)?;
    let profile = compute_profile(gpu, &parent, profile_id)?;
    if let Some((start, size)) = placement
        && (size != profile.slices || !profile.starts.contains(&start))
    {
        return Err(Code::INVALID_ARGUMENT);
    }
    let free = compute_free(instance, &profile);
    let fits = |start: &u32| placement.is_none_or(|(wanted, _)| wanted == *start);
    let start = free.into_iter().find(fits).ok_or(Code::INSUFFICIENT_RESOURCES)?;
    let taken = |id: &u32| instance.compute_instances.iter().any(|other| other.id == *id);
    let id = (0..CI_IDS).find(|id| !taken(id)).ok_or(Code::INSUFFICIENT_RESOURCES)?;
    // Same partition, same UUID: it is derived from the chip and the place (reference 3.5).
    let uuid = format!("MIG-{}", uuid_of(&format!("{}/{gi}/{start}", gpu.uuid)));
    let serial = machine.take_serial();
    let made = ComputeInstance { id, serial, profile_id, start, size: profile.slices, uuid };
    let gpu = machine.gpu_mut(index)?;
    if let Some(instance) = gpu.instances.iter_mut().find(|instance| instance.id == gi) {
        instance.compute_instances.push(made);
        instance.compute_instances.sort_by_key(|instance| instance.id);
    }
    renumber(gpu);
    Ok(id)
}

/// Gives MIG device indices again, larger instances first. Only a create closes the holes that destroys left.
fn renumber(gpu: &mut Gpu) {
    let mut all: Vec<(u32, u32, u32)> = Vec::new();
    for instance in &gpu.instances {
        all.extend(
            instance
                .compute_instances
                .iter()
                .map(|compute| (u32::MAX - instance.size, instance.id, compute.id)),
        );
    }
    all.sort_unstable();
    gpu.mig_slots = all.into_iter().map(|(_, gi, ci)| Some((gi, ci))).collect();
}

/// Destroys a compute instance. IN_USE while processes run on it or another client holds it.
pub fn destroy_compute_instance(gpu: &mut Gpu, gi: u32, ci: u32) -> Answer<()> {
    let known = gpu
        .instance(gi)
        .is_some_and(|instance| instance.compute_instances.iter().any(|known| known.id == ci));
    if !known {
        return Err(Code::INVALID_ARGUMENT);
    }
    if held(gpu, gi, Some(ci)) {
        return Err(Code::IN_USE);
    }
    if let Some(instance) = gpu.instances.iter_mut().find(|instance| instance.id == gi) {
        instance.compute_instances.retain(|known| known.id != ci);
    }
    for slot in gpu.mig_slots.iter_mut().filter(|slot| **slot == Some((gi, ci))) {
        *slot = None;
    }
    Ok(())
}

/// How many MIG devices the GPU can have; 0 while MIG mode is off.
pub fn max_devices(gpu: &Gpu) -> u32 {
    let most = gpu.profiles().iter().map(|profile| profile.max).max().unwrap_or(0);
    if enabled(gpu).is_ok() { most } else { 0 }
}
