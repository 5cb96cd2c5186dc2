//! Creates a MIG device from parent, profile and placement, and destroys it.
//!
//! Runs on the GPU's own thread and takes one step at a time; each step is reported before the next is taken, so that
//! the caller can record it. Every step can be repeated: existing objects are found, missing ones are skipped. An
//! instance is changed only if its id, profile and placement are those of the record.

mod create;
mod destroy;
mod existing;
mod mode;

pub use create::{ensure, is_free};
pub use destroy::destroy;
pub use existing::{Found, find_existing};
pub use mode::{ModePolicy, release_mode, switch_mode};

use std::fmt;

use mig_model::facts::{ComputeInstance, GpuInstance};
use mig_model::inventory::MigSpec;

use crate::checkpoint::{Progress, StoreError};
use crate::nvml::{CallError, Code, DeviceHandle, GpuInstanceHandle, RESET_ADVICE};

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

/// Why a MIG device could not be made or destroyed.
#[derive(Debug, thiserror::Error)]
pub enum MigError {
    /// MIG mode did not change.
    #[error(
        "MIG mode of the GPU could not be switched {wanted} (activation status {activation}{}); stop what uses the GPU \
         (`nvidia-smi` lists processes); where that does not help: {RESET_ADVICE}",
        if *pending { ", the change is pending" } else { "" }
    )]
    ModeNotSwitched {
        /// `on` or `off`.
        wanted: &'static str,
        /// What NVML says of the attempt.
        activation: Code,
        /// True where the change waits for a reset.
        pending: bool,
    },
    /// Another process switches MIG mode.
    #[error(
        "another process of this driver is switching MIG mode of the GPU off behind its last instance; it is tried again"
    )]
    ModeChanges,
    /// Switching needs a reset.
    #[error(
        "MIG mode is {} and this GPU needs a reset to change that; run `nvidia-smi -i GPU -mig {}` on the node, then {RESET_ADVICE}",
        if *is_on { "on" } else { "off" }, u8::from(!*is_on)
    )]
    NeedsReset {
        /// MIG mode now.
        is_on: bool,
    },
    /// A GPU that a claim gets as a whole still has instances.
    #[error(
        "the GPU still has {count} MIG instance(s), so it cannot be prepared as a whole yet; `dra-driver-mig inspect` on the \
         node shows whose they are; destroy those that nothing uses, or delete the pod and its claim to have another device \
         allocated"
    )]
    StillCut {
        /// GPU instances found.
        count: usize,
    },
    /// The placement is taken.
    #[error(
        "placement {start} for profile {profile} is occupied on the GPU by a MIG instance that was not created for this claim; \
         `dra-driver-mig inspect` on the node shows it; destroy it if nothing uses it, or delete the pod and its claim to \
         have another device allocated"
    )]
    Occupied {
        /// Profile name.
        profile: String,
        /// First memory slice.
        start: u32,
    },
    /// An unmanaged instance changed after a claim was given it.
    #[error(
        "MIG instance {uuid} ({profile} at {start}), which is unmanaged, is not as it was when the claim was \
         given it: {found}; delete the pod and its claim to have another device allocated"
    )]
    NotAsGiven {
        /// UUID of the MIG device.
        uuid: String,
        /// Profile name.
        profile: String,
        /// First memory slice.
        start: u32,
        /// What is there now.
        found: Found,
    },
    /// Something still uses the instance.
    #[error(
        "GPU instance {gpu_instance} is still in use ({call} was refused{}): {holders}; it is tried again when the kubelet \
         asks again", if *is_bare { ", its compute instance is gone already" } else { "" }
    )]
    InUse {
        /// GPU instance id.
        gpu_instance: u32,
        /// The call that was refused.
        call: &'static str,
        /// True where the compute instances are gone and only the GPU instance is left.
        is_bare: bool,
        /// Who holds it, as far as NVML reports it, and what to do.
        holders: Holders,
    },
    /// A step could not be written down, so the next was not taken.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// NVML failed otherwise.
    #[error("{0}; {advice}", advice = .0.advice())]
    Nvml(#[from] CallError),
}

/// Processes that hold an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holders(pub Vec<u32>);

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str(
                "NVML names no process, so a monitoring agent may hold a handle; stop DCGM (nv-hostengine, dcgm-exporter) \
                 on the node",
            );
        }
        let pids: Vec<String> = self.0.iter().map(u32::to_string).collect();
        write!(f, "held by process {} of the node; end it", pids.join(", "))
    }
}

impl MigError {
    /// True if the hardware changed since the last scan.
    #[must_use]
    pub fn is_stale_view(&self) -> bool {
        matches!(self, Self::Occupied { .. } | Self::StillCut { .. } | Self::NotAsGiven { .. })
    }

    /// True where an instance that was not made for the claim is in the way.
    #[must_use]
    pub fn is_occupied(&self) -> bool {
        matches!(self, Self::Occupied { .. } | Self::StillCut { .. })
    }

    /// The call into NVML that failed, if that was it.
    #[must_use]
    pub fn call_error(&self) -> Option<CallError> {
        match self {
            Self::Nvml(error) => Some(error.clone()),
            Self::InUse { call, .. } => Some(CallError { call, code: Code::IN_USE }),
            Self::ModeNotSwitched { activation, .. } => {
                Some(CallError { call: "nvmlDeviceSetMigMode", code: *activation })
            }
            _ => None,
        }
    }

    /// True where the same call may succeed in a moment.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::InUse { .. } | Self::StillCut { .. } | Self::ModeChanges => true,
            Self::ModeNotSwitched { activation, .. } => *activation == Code::IN_USE,
            Self::Nvml(error) => error.is_transient(),
            Self::NeedsReset { .. } | Self::Occupied { .. } | Self::NotAsGiven { .. } | Self::Store(_) => {
                false
            }
        }
    }
}

/// The error for a MIG device on a GPU that has no MIG, which only a stale record can ask for.
#[must_use]
pub fn no_mig() -> MigError {
    MigError::Nvml(CallError { call: "nvmlDeviceGetMigMode", code: Code::NOT_SUPPORTED })
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
fn recorded(
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
fn instance_at(device: &DeviceHandle<'_>, spec: &MigSpec) -> Result<Option<GpuInstanceHandle>, CallError> {
    match device.gpu_instances(spec.profile_id) {
        Ok(found) => Ok(found.into_iter().find(|it| it.placement == spec.placement)),
        Err(error) if error.code == Code::NOT_SUPPORTED && !device.mig_mode()?.current => Ok(None),
        Err(error) => Err(error),
    }
}
