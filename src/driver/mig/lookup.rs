//! Finds the instances of records on the GPU.

use mig_model::facts::{ComputeInstance, GpuInstance};
use mig_model::inventory::MigSpec;

use super::error::MigError;
use crate::checkpoint::Progress;
use crate::nvml::{CallError, Code, DeviceHandle, GpuInstanceHandle};

/// A MIG device that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigDevice {
    /// GPU instance id.
    pub gpu_instance: u32,
    /// Its compute instance.
    pub compute_instance: ComputeInstance,
    /// Minor number of the parent's device node now; it may change with MIG mode.
    pub parent_minor: u32,
}

/// True where the instance that was recorded lives, with a compute instance.
pub fn is_alive(device: &DeviceHandle<'_>, spec: &MigSpec, progress: &Progress) -> Result<bool, MigError> {
    match recorded(device, spec, progress)? {
        Some(instance) => Ok(!device.compute_instances(instance)?.is_empty()),
        None => Ok(false),
    }
}

/// True where nothing exists any more of a device that was created: another program destroyed it.
pub fn is_gone(device: &DeviceHandle<'_>, spec: &MigSpec, progress: &Progress) -> Result<bool, MigError> {
    Ok(*progress != Progress::Reserved && recorded(device, spec, progress)?.is_none())
}

/// True where a recorded device is this instance, as far as that is known: ids and UUIDs are used again.
#[must_use]
pub fn is_recorded(spec: &MigSpec, progress: &Progress, instance: &GpuInstance) -> bool {
    let is_there = spec.profile_id == instance.profile_id && spec.placement == instance.placement;
    is_there
        && match progress {
            Progress::Reserved => false,
            Progress::Presumed => true,
            Progress::Creating => instance.compute_instances.is_empty(),
            Progress::GpuInstance { gpu_instance } | Progress::Complete { gpu_instance, .. } => {
                *gpu_instance == instance.id
            }
        }
}

/// What exists of a recorded device: found by its id, or by profile and placement where that could not be written down.
pub(super) fn recorded(
    device: &DeviceHandle<'_>,
    spec: &MigSpec,
    progress: &Progress,
) -> Result<Option<GpuInstanceHandle>, CallError> {
    match progress {
        Progress::Reserved => Ok(None),
        Progress::Presumed => instance_at(device, spec),
        // Its compute instance would have been created after its id was recorded.
        Progress::Creating => match instance_at(device, spec)? {
            Some(found) if device.compute_instances(found)?.is_empty() => Ok(Some(found)),
            _ => Ok(None),
        },
        Progress::GpuInstance { gpu_instance } | Progress::Complete { gpu_instance, .. } => {
            recorded_instance(device, spec, *gpu_instance)
        }
    }
}

/// The live instance with this id, if it is the one the record means. That there is none is believed only if a list says
/// so, too: what is thought to be gone is forgotten.
fn recorded_instance(
    device: &DeviceHandle<'_>,
    spec: &MigSpec,
    id: u32,
) -> Result<Option<GpuInstanceHandle>, CallError> {
    let found = match device.gpu_instance(id)? {
        Some(found) => Some(found),
        None => instance_at(device, spec)?.filter(|it| it.id == id),
    };
    Ok(found.filter(|it| it.profile_id == spec.profile_id && it.placement == spec.placement))
}

/// The live instance with this profile at this placement.
pub(super) fn instance_at(
    device: &DeviceHandle<'_>,
    spec: &MigSpec,
) -> Result<Option<GpuInstanceHandle>, CallError> {
    match device.gpu_instances(spec.profile_id) {
        Ok(found) => Ok(found.into_iter().find(|it| it.placement == spec.placement)),
        Err(error) if error.code == Code::NOT_SUPPORTED && !device.mig_mode()?.current => Ok(None),
        Err(error) => Err(error),
    }
}
