//! Why a call ended as it did, as one of a few words: the closed set behind the label `reason`. Pure.

use super::labels::Outcome;
use crate::api::ReadError;
use crate::claim::{PlanError, PrepareError, UnprepareError};
use crate::mig::MigError;

label_values! {
    /// Why a call of the kubelet ended as it did.
    Reason {
        /// It succeeded.
        Ok = "ok",
        /// The kubelet has stopped waiting.
        Abandoned = "abandoned",
        /// What the kubelet sent does not name a claim.
        InvalidClaim = "invalid_claim",
        /// NVML, or the GPU of the claim, is not there.
        NoHardware = "no_hardware",
        /// The claim no longer exists.
        ClaimGone = "claim_gone",
        /// The API server refuses to show the claim.
        ApiRefused = "api_refused",
        /// The API server did not show the claim in time.
        ApiUnavailable = "api_unavailable",
        /// The allocation asks for what this driver does not serve.
        Allocation = "allocation",
        /// The device is not one of this node.
        UnknownDevice = "unknown_device",
        /// Another claim still holds the same part of the GPU.
        Held = "held",
        /// Another call for the claim did not end in time.
        Busy = "busy",
        /// State could not be written or read.
        State = "state",
        /// MIG mode could not be switched.
        MigMode = "mig_mode",
        /// The placement, or the whole GPU, has instances of somebody else.
        Occupied = "occupied",
        /// Somebody still uses the instance.
        InUse = "in_use",
        /// NVML failed otherwise.
        Nvml = "nvml",
        /// The GPU did not answer in time.
        GpuSilent = "gpu_silent",
        /// Files or device nodes of the NVIDIA driver are missing.
        DriverFiles = "driver_files",
        /// The CDI file could not be made, written or removed.
        Cdi = "cdi",
        /// The driver ends.
        Closing = "closing",
    }
}

impl Reason {
    /// How a call with this reason ended.
    #[must_use]
    pub fn outcome(self) -> Outcome {
        match self {
            Self::Ok => Outcome::Success,
            Self::Abandoned => Outcome::Abandoned,
            _ => Outcome::Failure,
        }
    }
}

impl From<&PrepareError> for Reason {
    fn from(error: &PrepareError) -> Self {
        match error {
            PrepareError::NoHardware(_) => Self::NoHardware,
            PrepareError::Read(error) => error.into(),
            PrepareError::Allocation(_) => Self::Allocation,
            PrepareError::Plan(error) => error.into(),
            PrepareError::OtherDevices(_) => Self::Allocation,
            PrepareError::Before(error) => (&**error).into(),
            PrepareError::Busy(_) => Self::Busy,
            PrepareError::Store(_) => Self::State,
            PrepareError::Device { source, .. } => source.into(),
            PrepareError::Silent(_) | PrepareError::Hung { .. } => Self::GpuSilent,
            PrepareError::Caps { .. } | PrepareError::Common(_) => Self::DriverFiles,
            PrepareError::Spec(_) | PrepareError::Files(_) => Self::Cdi,
            PrepareError::Closed(_) | PrepareError::Interrupted(_) => Self::Closing,
        }
    }
}

impl From<&UnprepareError> for Reason {
    fn from(error: &UnprepareError) -> Self {
        match error {
            UnprepareError::NoHardware { .. } => Self::NoHardware,
            UnprepareError::Busy(_) => Self::Busy,
            UnprepareError::Store(_) => Self::State,
            UnprepareError::Read(error) => error.into(),
            UnprepareError::Plan(error) => error.into(),
            UnprepareError::Silent(_) | UnprepareError::Hung { .. } => Self::GpuSilent,
            UnprepareError::Device { source, .. } => source.into(),
            UnprepareError::Files(_) => Self::Cdi,
            UnprepareError::Closed(_) | UnprepareError::Interrupted(_) => Self::Closing,
        }
    }
}

impl From<&ReadError> for Reason {
    fn from(error: &ReadError) -> Self {
        match error {
            ReadError::Gone(_) => Self::ClaimGone,
            ReadError::Refused { .. } => Self::ApiRefused,
            ReadError::Unavailable { .. } => Self::ApiUnavailable,
        }
    }
}

impl From<&PlanError> for Reason {
    fn from(error: &PlanError) -> Self {
        match error {
            PlanError::UnknownDevice { .. }
            | PlanError::UnknownInstance { .. }
            | PlanError::OtherPool { .. } => Self::UnknownDevice,
            PlanError::Unread { .. } => Self::NoHardware,
            PlanError::Held(_) => Self::Held,
        }
    }
}

impl From<&MigError> for Reason {
    fn from(error: &MigError) -> Self {
        match error {
            MigError::ModeNotSwitched { .. } | MigError::NeedsReset { .. } => Self::MigMode,
            MigError::StillCut { .. } | MigError::Occupied { .. } | MigError::NotAsGiven { .. } => {
                Self::Occupied
            }
            MigError::InUse { .. } => Self::InUse,
            MigError::Store(_) => Self::State,
            MigError::Nvml(_) => Self::Nvml,
        }
    }
}
