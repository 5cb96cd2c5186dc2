//! Compute instances.

use super::call::nvml;
use super::gpm;
use super::partition::{is_held_by_events, root_only};
use super::types::{
    CiInfo, CiInfoV1, CiProfileV1, CiProfileV2, CiProfileV3, Handle, Kind, Out, Placement, list, name,
    version,
};
use crate::code::{Answer, Code};
use crate::machine::{EVENT_MIG_CONFIG_CHANGE, GpuInstance};
use crate::mig::{self, ComputeProfile};
use crate::store::Session;
use mig_models::Profile;

/// All engines of a GPU instance are shared by its compute instances: the only engine profile there is.
const ENGINE_PROFILE_SHARED: u32 = 0;

/// A GPU instance, its profile, and the compute profile asked for.
fn profiles<'a>(
    session: &'a Session<'_>,
    instance: Handle,
    profile: u32,
) -> Answer<(usize, &'a GpuInstance, Profile, ComputeProfile)> {
    let (index, found) = instance.gpu_instance(session.machine())?;
    let gpu = session.machine().gpu(index)?;
    let parent = mig::profile_by_id(gpu, found.profile_id)?;
    let compute = mig::compute_profile(gpu, &parent, profile)?;
    Ok((index, found, parent, compute))
}

fn v1(parent: &Profile, own: &ComputeProfile) -> CiProfileV1 {
    CiProfileV1 {
        id: own.index,
        slices: own.slices,
        instances: own.max,
        sm: own.sm,
        ce: parent.ce,
        dec: parent.dec,
        enc: parent.enc,
        jpeg: parent.jpeg,
        ofa: parent.ofa,
    }
}

fn create(
    session: &mut Session<'_>,
    instance: Handle,
    profile: u32,
    placement: Option<(u32, u32)>,
    result: Out<Handle>,
) -> Answer<()> {
    result.present()?;
    root_only(session)?;
    let (index, found) = instance.gpu_instance(session.machine())?;
    let gi = found.id;
    let machine = session.machine_mut();
    let ci = mig::create_compute_instance(machine, index, gi, profile, placement)?;
    machine.post(index, EVENT_MIG_CONFIG_CHANGE, 0, Some(gi), Some(ci));
    let computes =
        machine.gpu(index)?.instance(gi).map(|instance| &instance.compute_instances).ok_or(Code::UNKNOWN)?;
    let serial = computes.iter().find(|made| made.id == ci).map(|made| made.serial).ok_or(Code::UNKNOWN)?;
    result.set(Handle::new(Kind::ComputeInstance, index, serial))
}

nvml! {
    fn nvmlGpuInstanceGetComputeInstanceProfileInfo(
        instance: Handle, profile: u32, engines: u32, info: Out<CiProfileV1>,
    ) on instance, |s| {
        if engines != ENGINE_PROFILE_SHARED {
            return Err(Code::INVALID_ARGUMENT);
        }
        let (_, _, parent, own) = profiles(s, instance, profile)?;
        info.set(v1(&parent, &own))
    }

    fn nvmlGpuInstanceGetComputeInstanceProfileInfoV(
        instance: Handle, profile: u32, engines: u32, info: Out<CiProfileV2>,
    ) on instance, |s| {
        if engines != ENGINE_PROFILE_SHARED {
            return Err(Code::INVALID_ARGUMENT);
        }
        let word = info.cast::<u32>().get()?;
        let (_, _, parent, own) = profiles(s, instance, profile)?;
        let CiProfileV1 { id, slices, instances, sm, ce, dec, enc, jpeg, ofa } = v1(&parent, &own);
        let title = name(&format!("MIG {}", own.name));
        if word == version::<CiProfileV2>(2) {
            let (version, name) = (word, title);
            info.set(CiProfileV2 { version, id, slices, instances, sm, ce, dec, enc, jpeg, ofa, name })
        } else if word == version::<CiProfileV3>(3) {
            let (version, name, capabilities) = (word, title, parent.capabilities);
            info.cast().set(CiProfileV3 {
                version, id, slices, instances, sm, ce, dec, enc, jpeg, ofa, name, capabilities,
            })
        } else {
            Err(Code::ARGUMENT_VERSION_MISMATCH)
        }
    }

    fn nvmlGpuInstanceGetComputeInstanceRemainingCapacity(
        instance: Handle, profile: u32, count: Out<u32>,
    ) on instance, |s| {
        root_only(s)?;
        let (_, found, _, own) = profiles(s, instance, profile)?;
        count.set(u32::try_from(mig::compute_free(found, &own).len()).unwrap_or(0))
    }

    fn nvmlGpuInstanceGetComputeInstancePossiblePlacements(
        instance: Handle, profile: u32, array: Out<Placement>, count: Out<u32>,
    ) on instance, |s| {
        root_only(s)?;
        let (_, _, _, own) = profiles(s, instance, profile)?;
        let all = own.starts.iter().map(|&start| Placement { start, size: own.slices });
        let all: Vec<Placement> = all.collect();
        if array.is_null() {
            return count.set(u32::try_from(all.len()).unwrap_or(u32::MAX));
        }
        list(array, count, None, &all)
    }

    fn nvmlGpuInstanceCreateComputeInstance(
        instance: Handle,
        profile: u32,
        result: Out<Handle>,
    ) on instance, |s| {
        create(s, instance, profile, None, result)
    }

    fn nvmlGpuInstanceCreateComputeInstanceWithPlacement(
        instance: Handle, profile: u32, placement: Out<Placement>, result: Out<Handle>,
    ) on instance, |s| {
        let Placement { start, size } = placement.get()?;
        create(s, instance, profile, Some((start, size)), result)
    }

    fn nvmlComputeInstanceDestroy(instance: Handle) on instance, |s| {
        root_only(s)?;
        let (index, gi, ci) = instance.compute_instance(s.machine())?;
        if gpm::holds(index, gi.serial) || is_held_by_events(s, index) {
            return Err(Code::IN_USE);
        }
        let (gi, ci) = (gi.id, ci.id);
        let machine = s.machine_mut();
        mig::destroy_compute_instance(machine.gpu_mut(index)?, gi, ci)?;
        machine.post(index, EVENT_MIG_CONFIG_CHANGE, 0, Some(gi), Some(ci));
        Ok(())
    }

    fn nvmlGpuInstanceGetComputeInstances(
        instance: Handle, profile: u32, array: Out<Handle>, count: Out<u32>,
    ) on instance, |s| {
        root_only(s)?;
        let (index, found, _, _) = profiles(s, instance, profile)?;
        let same = found.compute_instances.iter().filter(|compute| compute.profile_id == profile);
        let handles = same.map(|it| Handle::new(Kind::ComputeInstance, index, it.serial));
        let handles: Vec<Handle> = handles.collect();
        array.present()?;
        list(array, count, None, &handles)
    }

    fn nvmlGpuInstanceGetComputeInstanceById(
        instance: Handle,
        id: u32,
        result: Out<Handle>,
    ) on instance, |s| {
        root_only(s)?;
        let (index, found) = instance.gpu_instance(s.machine())?;
        let compute = found.compute_instances.iter().find(|compute| compute.id == id).ok_or(Code::NOT_FOUND)?;
        result.set(Handle::new(Kind::ComputeInstance, index, compute.serial))
    }

    fn nvmlComputeInstanceGetInfo(instance: Handle, info: Out<CiInfoV1>) on instance, |s| {
        let (index, gi, ci) = instance.compute_instance(s.machine())?;
        info.set(CiInfoV1 {
            device: Handle::new(Kind::MigDevice, index, ci.serial),
            gpu_instance: Handle::new(Kind::GpuInstance, index, gi.serial),
            id: ci.id,
            profile_id: ci.profile_id,
        })
    }

    fn nvmlComputeInstanceGetInfo_v2(instance: Handle, info: Out<CiInfo>) on instance, |s| {
        let (index, gi, ci) = instance.compute_instance(s.machine())?;
        // The header calls it the parent device; drivers give the MIG device (reference 2.2).
        info.set(CiInfo {
            device: Handle::new(Kind::MigDevice, index, ci.serial),
            gpu_instance: Handle::new(Kind::GpuInstance, index, gi.serial),
            id: ci.id,
            profile_id: ci.profile_id,
            placement: Placement { start: ci.start, size: ci.size },
        })
    }
}
