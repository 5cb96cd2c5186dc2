//! MIG mode. NVML returns SUCCESS even if nothing changed, so the mode is read back.

use mig_model::facts::{MigFacts, Profile};
use tracing::info;

use super::MigError;
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

/// What becomes of MIG mode when the last instance of a GPU goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ModePolicy {
    /// It stays on: the next claim need not wait for the switch.
    #[default]
    Keep,
    /// It is switched off where no reset is needed: programs on the host have the whole GPU again.
    Release,
}

/// Switches MIG mode off if no instance lives, managed or not, and no reset is needed. That nothing was switched is
/// success.
pub fn release_mode(device: &DeviceHandle<'_>, mig: &MigFacts) -> Result<(), MigError> {
    if !mig.resetless || !device.mig_mode()?.current || !live_instances(device, &mig.profiles)?.is_empty() {
        return Ok(());
    }
    switch_mode(device, mig, false)
}

fn refuse_if_cut(device: &DeviceHandle<'_>, profiles: &[Profile]) -> Result<(), MigError> {
    match live_instances(device, profiles)?.len() {
        0 => Ok(()),
        count => Err(MigError::StillCut { count }),
    }
}
