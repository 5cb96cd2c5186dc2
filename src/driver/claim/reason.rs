//! Maps errors to the reasons in `/metrics`. Pure.

use super::{PlanError, PrepareError, UnprepareError};
use crate::api::ReadError;
use crate::mig::MigError;
use crate::telemetry::metrics::Reason;

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
            PrepareError::Unfinished(_) | PrepareError::Hung { .. } => Self::GpuTimeout,
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
            UnprepareError::Unfinished(_) | UnprepareError::Hung { .. } => Self::GpuTimeout,
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
            PlanError::Impossible(_) | PlanError::AdminAccess { .. } => Self::Allocation,
        }
    }
}

impl From<&MigError> for Reason {
    fn from(error: &MigError) -> Self {
        match error {
            MigError::ModeNotSwitched { .. } | MigError::NeedsReset { .. } | MigError::ModeChanges => {
                Self::MigMode
            }
            MigError::StillCut { .. } | MigError::Occupied { .. } | MigError::NotAsGiven { .. } => {
                Self::Occupied
            }
            MigError::InUse { .. } => Self::InUse,
            MigError::Store(_) => Self::State,
            MigError::Nvml(_) => Self::Nvml,
        }
    }
}
