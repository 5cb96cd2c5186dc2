//! Why a MIG device could not be created, found or destroyed. The texts become events of the pod.

use std::fmt;

use crate::checkpoint::StoreError;
use crate::nvml::{CallError, Code, RESET_ADVICE};

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

/// Result of the lookup of an unmanaged instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// No instance of its profile is there.
    Nothing,
    /// Another one is there.
    Another(String),
    /// It has so many compute instances.
    Divided(usize),
    /// Its compute instance does not span it any more.
    Partial,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("it is gone"),
            Self::Another(uuid) => write!(f, "{uuid} is there instead"),
            Self::Divided(count) => write!(f, "it has {count} compute instances"),
            Self::Partial => f.write_str("its compute instance does not span it"),
        }
    }
}
