//! Creates MIG devices.

use mig_model::facts::{ComputeInstance, MigFacts};
use mig_model::inventory::MigSpec;
use tracing::info;

use super::error::MigError;
use super::lookup::{MigDevice, instance_at, recorded};
use super::mode::switch_mode;
use crate::checkpoint::{Progress, StoreError};
use crate::nvml::{CallError, Code, DeviceHandle, GpuInstanceHandle};
use crate::telemetry::metrics::{Metrics, Step};

/// True where no instance of this very profile and placement exists.
pub fn is_free(device: &DeviceHandle<'_>, spec: &MigSpec) -> Result<bool, MigError> {
    Ok(instance_at(device, spec)?.is_none())
}

/// Finds the device that `progress` describes or makes what is missing of it. `record` is called after each step, and
/// the next step is taken only if it succeeds.
///
/// A failure leaves behind what was recorded; undoing it is for the caller, who knows whether the claim was in use.
pub fn ensure(
    device: &DeviceHandle<'_>,
    mig: &MigFacts,
    spec: &MigSpec,
    progress: &Progress,
    record: &mut dyn FnMut(Progress) -> Result<(), StoreError>,
    metrics: &Metrics,
) -> Result<MigDevice, MigError> {
    switch_mode(device, mig, true)?;
    let mut noted = progress.clone();
    // Ids and UUIDs are used again, so what is new may look as what is on record by now.
    let mut note = |now: Progress| {
        if now != noted {
            record(now.clone())?;
            noted = now;
        }
        Ok::<_, StoreError>(())
    };
    let existing = recorded(device, spec, progress)?;
    let is_new = existing.is_none();
    let instance = match existing {
        Some(instance) => instance,
        None => {
            if instance_at(device, spec)?.is_some() {
                // Created by another program. What is done here later must not take it for ours.
                note(Progress::Reserved)?;
                return Err(occupied(spec));
            }
            note(Progress::Creating)?;
            let created = metrics.timed(Step::CreateGpuInstance, || create_gpu_instance(device, spec));
            // A call that fails may have had its effect. Where it had none, what appears there later is not ours. What another
            // program created meanwhile is recognized by its compute instance only: docs/limits.md.
            if created.is_err() && matches!(recorded(device, spec, &Progress::Creating), Ok(None)) {
                note(Progress::Reserved)?;
            }
            created?
        }
    };
    note(match progress {
        Progress::Complete { gpu_instance, .. } if *gpu_instance == instance.id && !is_new => {
            progress.clone()
        }
        _ => Progress::GpuInstance { gpu_instance: instance.id },
    })?;
    let compute_instance = ensure_compute_instance(device, instance, spec, is_new, metrics)?;
    note(Progress::Complete {
        gpu_instance: instance.id,
        compute_instance: compute_instance.id,
        uuid: compute_instance.uuid.clone(),
    })?;
    Ok(MigDevice { gpu_instance: instance.id, compute_instance, parent_minor: device.minor()? })
}

fn occupied(spec: &MigSpec) -> MigError {
    MigError::Occupied { profile: spec.profile.clone(), start: spec.placement.start }
}

fn create_gpu_instance(device: &DeviceHandle<'_>, spec: &MigSpec) -> Result<GpuInstanceHandle, MigError> {
    let created = device.create_gpu_instance(spec.profile_id, spec.placement).map_err(|error| {
        if error.code == Code::INSUFFICIENT_RESOURCES { occupied(spec) } else { error.into() }
    })?;
    info!(profile = spec.profile, placement = %spec.placement, gi = created.id, "GPU instance created");
    Ok(created)
}

fn ensure_compute_instance(
    device: &DeviceHandle<'_>,
    instance: GpuInstanceHandle,
    spec: &MigSpec,
    is_new: bool,
    metrics: &Metrics,
) -> Result<ComputeInstance, CallError> {
    // A new GPU instance has none; asking takes two dozen calls.
    let existing = if is_new { None } else { device.compute_instances(instance)?.into_iter().next() };
    match existing {
        Some(existing) => Ok(existing),
        None => metrics
            .timed(Step::CreateComputeInstance, || device.create_compute_instance(instance, spec.slices)),
    }
}
