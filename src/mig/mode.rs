//! MIG mode. NVML says SUCCESS even where nothing changed, so the mode is read back.

use tracing::info;

use super::MigError;
use crate::nvml::facts::{MigFacts, Profile};
use crate::nvml::{DeviceHandle, live_instances};

/// Brings MIG mode to `on`. Switches only where no reset is needed, and never off while instances live.
pub fn switch_mode(device: &DeviceHandle<'_>, mig: &MigFacts, on: bool) -> Result<(), MigError> {
    let mode = device.mig_mode()?;
    // What is pending beyond that is the administrator's.
    if mode.current == on {
        return Ok(());
    }
    if !mig.resetless {
        return Err(MigError::NeedsReset { is_on: mode.current });
    }
    if !on {
        refuse_if_cut(device, &mig.profiles)?;
    }
    let wanted = if on { "on" } else { "off" };
    let activation = device.set_mig_mode(on)?;
    let mode = device.mig_mode()?;
    if mode.current != on {
        return Err(MigError::ModeNotSwitched { wanted, activation, pending: mode.pending == on });
    }
    info!(gpu = device.uuid()?, mode = wanted, %activation, "MIG mode switched");
    Ok(())
}

fn refuse_if_cut(device: &DeviceHandle<'_>, profiles: &[Profile]) -> Result<(), MigError> {
    match live_instances(device, profiles)?.len() {
        0 => Ok(()),
        count => Err(MigError::StillCut { count }),
    }
}
