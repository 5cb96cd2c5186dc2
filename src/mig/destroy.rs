//! Making a MIG device vanish.

use tracing::info;

use super::{MigError, instance_at, recorded_instance};
use crate::checkpoint::Progress;
use crate::inventory::MigSpec;
use crate::nvml::{CallError, Code, DeviceHandle};

/// Destroys what exists of a recorded device: compute instances, then the GPU instance. What is gone already, or has
/// become somebody else's, is left alone, and that is success.
pub fn destroy(device: &DeviceHandle<'_>, spec: &MigSpec, progress: &Progress) -> Result<(), MigError> {
    let found = match progress.gpu_instance() {
        Some(id) => recorded_instance(device, spec, id)?,
        None => instance_at(device, spec)?,
    };
    let Some(instance) = found else { return Ok(()) };
    let explain = |error: CallError| {
        if error.code == Code::IN_USE {
            MigError::InUse { gpu_instance: instance.id, call: error.call }
        } else {
            error.into()
        }
    };
    device.destroy_compute_instances(instance).map_err(explain)?;
    device.destroy_gpu_instance(instance).map_err(explain)?;
    info!(profile = spec.profile, placement = %spec.placement, gi = instance.id, "GPU instance destroyed");
    Ok(())
}
