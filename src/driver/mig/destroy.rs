//! Destroys MIG devices.

use mig_model::inventory::MigSpec;
use tracing::info;

use super::error::{Holders, MigError};
use super::lookup::recorded;
use crate::checkpoint::Progress;
use crate::nvml::{CallError, Code, DeviceHandle};

/// Destroys what exists of a recorded device: compute instances, then the GPU instance. What is gone already, or has
/// been replaced by an unmanaged instance, is left unchanged, and that is success.
pub fn destroy(device: &DeviceHandle<'_>, spec: &MigSpec, progress: &Progress) -> Result<(), MigError> {
    let Some(instance) = recorded(device, spec, progress)? else { return Ok(()) };
    let explain = |is_bare| {
        move |error: CallError| match error.code {
            Code::IN_USE => {
                let (gpu_instance, call) = (instance.id, error.call);
                // The processes improve the error; if they are unknown, the error stays as it is.
                let holders = Holders(device.processes_on(instance).unwrap_or_default());
                MigError::InUse { gpu_instance, call, is_bare, holders }
            }
            _ => error.into(),
        }
    };
    let compute_instances = device.destroy_compute_instances(instance).map_err(explain(false));
    match compute_instances.and_then(|()| device.destroy_gpu_instance(instance).map_err(explain(true))) {
        Ok(()) => {}
        // How NVML answers for an instance that another program has destroyed since it was found.
        Err(MigError::Nvml(CallError { code: Code::INVALID_ARGUMENT | Code::NOT_FOUND, .. }))
            if recorded(device, spec, progress)?.is_none() =>
        {
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    info!(profile = spec.profile, placement = %spec.placement, gi = instance.id, "GPU instance destroyed");
    Ok(())
}
