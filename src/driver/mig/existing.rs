//! Lookup of an unmanaged MIG device.

use mig_model::facts::ComputeInstance;
use mig_model::inventory::Adopted;

use super::error::{Found, MigError};
use super::lookup::{MigDevice, instance_at};
use crate::nvml::DeviceHandle;

/// The instance that a claim was given, if profile, placement and UUID are still the same. Changes nothing: it is not ours.
pub fn find_existing(device: &DeviceHandle<'_>, adopted: &Adopted) -> Result<MigDevice, MigError> {
    let Adopted { spec, uuid, .. } = adopted;
    let not_as_given = |found| MigError::NotAsGiven {
        uuid: uuid.clone(),
        profile: spec.profile.clone(),
        start: spec.placement.start,
        found,
    };
    let Some(instance) = instance_at(device, spec)? else { return Err(not_as_given(Found::Nothing)) };
    let compute_instances = device.compute_instances(instance)?;
    let compute_instance = match <[ComputeInstance; 1]>::try_from(compute_instances) {
        Ok([one]) if one.uuid != *uuid => return Err(not_as_given(Found::Another(one.uuid))),
        Ok([one]) if one.slices != spec.slices => return Err(not_as_given(Found::Partial)),
        Ok([one]) => one,
        Err(other) => return Err(not_as_given(Found::Divided(other.len()))),
    };
    Ok(MigDevice { gpu_instance: instance.id, compute_instance, parent_minor: device.minor()? })
}
