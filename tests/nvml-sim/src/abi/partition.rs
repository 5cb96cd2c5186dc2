//! MIG mode, GPU instances, and the MIG devices that they make.

use super::call::nvml;
use super::types::{
    GiInfo, GiProfileV1, GiProfileV2, GiProfileV3, Handle, Kind, Out, Placement, list, name, version,
};
use super::{event, gpm};
use crate::code::{Answer, Code};
use crate::machine::{EVENT_MIG_CONFIG_CHANGE, Gpu};
use crate::mig;
use crate::store::Session;
use mig_models::Profile;

/// What only root may do.
pub(super) fn root_only(session: &Session<'_>) -> Answer<()> {
    if session.config().unprivileged { Err(Code::NO_PERMISSION) } else { Ok(()) }
}

/// Whether a listener to the GPU's events counts as a user of the GPU on this node, and there is one.
pub(super) fn is_held_by_events(session: &Session<'_>, gpu: usize) -> bool {
    session.config().events_hold_gpus && event::is_listened_to(gpu)
}

/// `NVML_GPU_INSTANCE_PROFILE_CAPS_P2P`; no listing of a real GPU has it.
const CAPABILITY_P2P: u32 = 1;

fn v1(profile: &Profile) -> GiProfileV1 {
    GiProfileV1 {
        id: profile.id,
        p2p: profile.capabilities & CAPABILITY_P2P,
        slices: profile.slices,
        instances: profile.max,
        sm: profile.sm,
        ce: profile.ce,
        dec: profile.dec,
        enc: profile.enc,
        jpeg: profile.jpeg,
        ofa: profile.ofa,
        memory_mb: profile.memory_mib,
    }
}

/// Fills the version of the structure that its version word names.
fn versioned(profile: Profile, result: Out<GiProfileV2>) -> Answer<()> {
    let word = result.cast::<u32>().get()?;
    let GiProfileV1 { id, p2p, slices, instances, sm, ce, dec, enc, jpeg, ofa, memory_mb } = v1(&profile);
    let title = name(&format!("MIG {}", profile.name));
    if word == version::<GiProfileV2>(2) {
        let (version, name) = (word, title);
        result.set(GiProfileV2 {
            version,
            id,
            p2p,
            slices,
            instances,
            sm,
            ce,
            dec,
            enc,
            jpeg,
            ofa,
            memory_mb,
            name,
        })
    } else if word == version::<GiProfileV3>(3) {
        let (version, name, capabilities) = (word, title, profile.capabilities);
        let filled = GiProfileV3 {
            version,
            id,
            slices,
            instances,
            sm,
            ce,
            dec,
            enc,
            jpeg,
            ofa,
            memory_mb,
            name,
            capabilities,
        };
        result.cast().set(filled)
    } else {
        Err(Code::ARGUMENT_VERSION_MISMATCH)
    }
}

/// The profile with that id, for questions. NOT_SUPPORTED where this GPU lacks it; creating says
/// INVALID_ARGUMENT.
fn offered(gpu: &Gpu, id: u32) -> Answer<Profile> {
    mig::profile_by_id(gpu, id).map_err(|_| Code::NOT_SUPPORTED)
}

fn placements(
    session: &Session<'_>,
    device: Handle,
    profile: u32,
    array: Out<Placement>,
    count: Out<u32>,
) -> Answer<()> {
    root_only(session)?;
    let gpu = session.machine().gpu(device.physical(session.machine())?)?;
    let profile = offered(gpu, profile)?;
    let all: Vec<Placement> =
        profile.starts.iter().map(|&start| Placement { start, size: profile.size }).collect();
    if array.is_null() {
        return count.set(u32::try_from(all.len()).unwrap_or(u32::MAX));
    }
    // The count is only an answer: the caller has asked for it before, or knows it.
    list(array, count, None, &all)
}

fn create(
    session: &mut Session<'_>,
    device: Handle,
    profile: u32,
    placement: Option<(u32, u32)>,
    result: Out<Handle>,
) -> Answer<()> {
    result.present()?;
    root_only(session)?;
    let index = device.physical(session.machine())?;
    let permuted = session.config().permuted_gi_ids;
    let machine = session.machine_mut();
    let id = mig::create_gpu_instance(machine, index, profile, placement, permuted)?;
    machine.post(index, EVENT_MIG_CONFIG_CHANGE, 0, Some(id), None);
    let serial = machine.gpu(index)?.instance(id).map(|made| made.serial).ok_or(Code::UNKNOWN)?;
    result.set(Handle::new(Kind::GpuInstance, index, serial))
}

nvml! {
    fn nvmlDeviceGetMigMode(device: Handle, current: Out<u32>, pending: Out<u32>) on device, |s| {
        let gpu = s.machine().gpu(device.physical(s.machine())?)?;
        if gpu.memory_units() == 0 {
            return Err(Code::NOT_SUPPORTED);
        }
        current.set(u32::from(gpu.mig_current))?;
        pending.set(u32::from(gpu.mig_pending))
    }

    fn nvmlDeviceSetMigMode(device: Handle, mode: u32, activation: Out<Code>) on device, |s| {
        activation.present()?;
        let index = device.physical(s.machine())?;
        if mode > 1 {
            return Err(Code::INVALID_ARGUMENT);
        }
        root_only(s)?;
        if is_held_by_events(s, index) {
            return activation.set(Code::IN_USE);
        }
        activation.set(mig::set_mode(s.machine_mut().gpu_mut(index)?, mode == 1)?)
    }

    fn nvmlDeviceGetGpuInstanceProfileInfo(
        device: Handle,
        profile: u32,
        info: Out<GiProfileV1>,
    ) on device, |s| {
        let gpu = s.machine().gpu(device.physical(s.machine())?)?;
        info.set(v1(&mig::profile_by_index(gpu, profile)?))
    }

    fn nvmlDeviceGetGpuInstanceProfileInfoV(
        device: Handle,
        profile: u32,
        info: Out<GiProfileV2>,
    ) on device, |s| {
        let gpu = s.machine().gpu(device.physical(s.machine())?)?;
        versioned(mig::profile_by_index(gpu, profile)?, info)
    }

    fn nvmlDeviceGetGpuInstanceProfileInfoByIdV(
        device: Handle,
        id: u32,
        info: Out<GiProfileV2>,
    ) on device, |s| {
        let gpu = s.machine().gpu(device.physical(s.machine())?)?;
        versioned(offered(gpu, id)?, info)
    }

    fn nvmlDeviceGetGpuInstancePossiblePlacements(
        device: Handle, profile: u32, array: Out<Placement>, count: Out<u32>,
    ) on device, |s| {
        placements(s, device, profile, array, count)
    }

    fn nvmlDeviceGetGpuInstancePossiblePlacements_v2(
        device: Handle, profile: u32, array: Out<Placement>, count: Out<u32>,
    ) on device, |s| {
        placements(s, device, profile, array, count)
    }

    fn nvmlDeviceGetGpuInstanceRemainingCapacity(
        device: Handle,
        profile: u32,
        count: Out<u32>,
    ) on device, |s| {
        root_only(s)?;
        let gpu = s.machine().gpu(device.physical(s.machine())?)?;
        mig::enabled(gpu)?;
        count.set(mig::remaining(gpu, &offered(gpu, profile)?))
    }

    fn nvmlDeviceCreateGpuInstance(device: Handle, profile: u32, result: Out<Handle>) on device, |s| {
        create(s, device, profile, None, result)
    }

    fn nvmlDeviceCreateGpuInstanceWithPlacement(
        device: Handle, profile: u32, placement: Out<Placement>, result: Out<Handle>,
    ) on device, |s| {
        let Placement { start, size } = placement.get()?;
        create(s, device, profile, Some((start, size)), result)
    }

    fn nvmlGpuInstanceDestroy(instance: Handle) on instance, |s| {
        root_only(s)?;
        let (index, found) = instance.gpu_instance(s.machine())?;
        let id = found.id;
        if is_held_by_events(s, index) || gpm::holds(index, found.serial) {
            return Err(Code::IN_USE);
        }
        let machine = s.machine_mut();
        mig::destroy_gpu_instance(machine.gpu_mut(index)?, id)?;
        machine.post(index, EVENT_MIG_CONFIG_CHANGE, 0, Some(id), None);
        Ok(())
    }

    fn nvmlDeviceGetGpuInstances(
        device: Handle,
        profile: u32,
        array: Out<Handle>,
        count: Out<u32>,
    ) on device, |s| {
        root_only(s)?;
        let index = device.physical(s.machine())?;
        let gpu = s.machine().gpu(index)?;
        mig::enabled(gpu)?;
        mig::profile_by_id(gpu, profile)?;
        let same = gpu.instances.iter().filter(|instance| instance.profile_id == profile);
        let handles: Vec<Handle> = same.map(|it| Handle::new(Kind::GpuInstance, index, it.serial)).collect();
        // The count is only an answer: the caller's array must hold as many as the profile allows.
        array.present()?;
        list(array, count, None, &handles)
    }

    fn nvmlDeviceGetGpuInstanceById(device: Handle, id: u32, result: Out<Handle>) on device, |s| {
        root_only(s)?;
        let index = device.physical(s.machine())?;
        let gpu = s.machine().gpu(index)?;
        mig::enabled(gpu)?;
        let found = gpu.instance(id).ok_or(Code::NOT_FOUND)?;
        result.set(Handle::new(Kind::GpuInstance, index, found.serial))
    }

    fn nvmlGpuInstanceGetInfo(instance: Handle, info: Out<GiInfo>) on instance, |s| {
        let (index, found) = instance.gpu_instance(s.machine())?;
        info.set(GiInfo {
            device: Handle::new(Kind::Gpu, index, 0),
            id: found.id,
            profile_id: found.profile_id,
            placement: Placement { start: found.start, size: found.size },
        })
    }

    fn nvmlDeviceIsMigDeviceHandle(device: Handle, answer: Out<u32>) on device, |s| {
        answer.set(u32::from(device.device(s.machine())?.mig.is_some()))
    }

    fn nvmlDeviceGetGpuInstanceId(device: Handle, id: Out<u32>) on device, |s| {
        id.set(device.device(s.machine())?.mig.ok_or(Code::INVALID_ARGUMENT)?.0.id)
    }

    fn nvmlDeviceGetComputeInstanceId(device: Handle, id: Out<u32>) on device, |s| {
        id.set(device.device(s.machine())?.mig.ok_or(Code::INVALID_ARGUMENT)?.1.id)
    }

    fn nvmlDeviceGetMaxMigDeviceCount(device: Handle, count: Out<u32>) on device, |s| {
        count.set(mig::max_devices(s.machine().gpu(device.physical(s.machine())?)?))
    }

    fn nvmlDeviceGetMigDeviceHandleByIndex(device: Handle, at: u32, result: Out<Handle>) on device, |s| {
        let index = device.physical(s.machine())?;
        let gpu = s.machine().gpu(index)?;
        mig::enabled(gpu)?;
        if at >= mig::max_devices(gpu) {
            return Err(Code::INVALID_ARGUMENT);
        }
        let (gi, ci) = gpu.mig_slots.get(at as usize).copied().flatten().ok_or(Code::NOT_FOUND)?;
        let computes = gpu.instance(gi).map(|instance| &instance.compute_instances).ok_or(Code::NOT_FOUND)?;
        let compute = computes.iter().find(|compute| compute.id == ci).ok_or(Code::NOT_FOUND)?;
        result.set(Handle::new(Kind::MigDevice, index, compute.serial))
    }

    fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device: Handle, result: Out<Handle>) on device, |s| {
        let found = device.device(s.machine())?;
        found.mig.ok_or(Code::INVALID_ARGUMENT)?;
        result.set(Handle::new(Kind::Gpu, found.index, 0))
    }
}
