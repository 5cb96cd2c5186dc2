//! Errors of prepare and unprepare. The texts become events of the pod.

use std::fmt;

use mig_model::claim::ClaimRef;

use super::{AllocationError, HungGpu, PlanError, Unfinished};
use crate::api::ReadError;
use crate::cdi::{CapsError, CommonError, FilesError, SpecError};
use crate::checkpoint::{Progress, RecordedDevice, RecordedKind, Stage, StoreError, Stored};
use crate::mig::MigError;
use crate::nvml::QueueClosed;

/// Another call has not come to its end with the claim.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "another call for ResourceClaim {0} has not ended within the time of this one; the kubelet asks again; if that goes \
     on, a GPU does not answer: see `nvidia-smi` and the kernel log of the node"
)]
pub struct Busy(pub ClaimRef);

/// A claim that is allocated other devices than those that it has on this node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "ResourceClaim {claim} is allocated {} now, but it was prepared on this node with {} and has not been unprepared since, \
     so a container may still use that; delete the pods that use the claim: the kubelet then unprepares it, and the next pod \
     gets what is allocated",
    Names(allocated),
    Names(prepared)
)]
pub struct OtherDevices {
    /// The claim.
    pub claim: ClaimRef,
    /// Devices that it has.
    pub prepared: Vec<String>,
    /// Devices that it is allocated.
    pub allocated: Vec<String>,
}

struct Names<'a>(&'a [String]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("no device of this driver"),
            names => write!(f, "`{}`", names.join("`, `")),
        }
    }
}

/// Why a claim could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// No GPUs to prepare it on.
    #[error("the NVIDIA driver of this node does not work: {0}")]
    NoHardware(String),
    /// The claim could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It cannot be served.
    #[error(transparent)]
    Allocation(#[from] AllocationError),
    /// It does not fit this node.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// It has other devices than it is allocated.
    #[error(transparent)]
    OtherDevices(#[from] Box<OtherDevices>),
    /// The devices of an earlier allocation of the claim cannot be unprepared.
    #[error("the devices of an earlier allocation cannot be unprepared yet: {0}")]
    Before(Box<UnprepareError>),
    /// Another call or process works on it.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The record could not be written or read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The hardware refused.
    #[error("device `{device}`: {source}")]
    Device {
        /// Device name.
        device: String,
        /// Why.
        source: MigError,
    },
    /// The work takes longer than the call, and goes on.
    #[error("{0}; `nvidia-smi` and the kernel log of the node show what a GPU is busy with")]
    Unfinished(Box<Unfinished>),
    /// The GPU hangs, and nothing was begun.
    #[error("device `{device}`: {source}")]
    Hung {
        /// Device name.
        device: String,
        /// Why.
        source: HungGpu,
    },
    /// The capability files of an instance are missing.
    #[error("device `{device}`: {source}")]
    Caps {
        /// Device name.
        device: String,
        /// Why.
        source: CapsError,
    },
    /// The part of the CDI spec that all claims share is missing.
    #[error(transparent)]
    Common(#[from] CommonError),
    /// The CDI spec cannot be built.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The CDI file cannot be written.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Shutting down.
    #[error(transparent)]
    Closed(#[from] QueueClosed),
    /// A bug or the end of the process: the work was lost.
    #[error("preparing ResourceClaim {0} was interrupted; the kubelet tries again")]
    Interrupted(ClaimRef),
}

impl PrepareError {
    /// True if the hardware or the host changed since the last scan.
    #[must_use]
    pub fn asks_for_a_look(&self) -> bool {
        match self {
            Self::Device { source, .. } => source.is_stale_view(),
            Self::Caps { .. } | Self::Common(_) | Self::Files(_) | Self::Store(_) => true,
            _ => false,
        }
    }

    /// True where asking again does not help: the claim itself, or where it was sent, is wrong.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Allocation(error) => !matches!(error, AllocationError::NotAllocated(_)),
            Self::Plan(error) => !matches!(error, PlanError::Held(_) | PlanError::Unread { .. }),
            _ => false,
        }
    }
}

/// Why a claim could not be unprepared.
#[derive(Debug, thiserror::Error)]
pub enum UnprepareError {
    /// The instances of the claim cannot be reached.
    #[error(
        "the NVIDIA driver of this node does not work, so the MIG devices of ResourceClaim {claim} stay: {reason}"
    )]
    NoHardware {
        /// The claim.
        claim: ClaimRef,
        /// What is wrong.
        reason: String,
    },
    /// Another call or process works on it.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The record could not be read or removed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The claim of an unreadable record could not be read either.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The contents of an unreadable record are unknown.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The work takes longer than the call, and goes on.
    #[error("{0}; `nvidia-smi` and the kernel log of the node show what a GPU is busy with")]
    Unfinished(Box<Unfinished>),
    /// The GPU hangs, and its instance was not touched.
    #[error("device `{device}`: {source}")]
    Hung {
        /// Device name.
        device: String,
        /// Why.
        source: HungGpu,
    },
    /// The hardware refused.
    #[error("device `{device}`: {source}")]
    Device {
        /// Device name.
        device: String,
        /// Why.
        source: MigError,
    },
    /// The CDI file cannot be removed.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Shutting down.
    #[error(transparent)]
    Closed(#[from] QueueClosed),
    /// A bug or the end of the process: the work was lost.
    #[error("unpreparing ResourceClaim {0} was interrupted; the kubelet tries again")]
    Interrupted(ClaimRef),
}

/// A prepare that failed.
#[derive(Debug)]
pub(super) struct Failed {
    /// Why.
    pub(super) error: PrepareError,
    /// What there is of the claim.
    pub(super) left: Left,
}

/// What there is of a claim after a prepare that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing was created for it.
    Nothing,
    /// Everything that was created for it is destroyed.
    Undone,
    /// Something that was created for it cannot be destroyed yet.
    Remains,
    /// It was prepared before, and keeps what it has.
    Prepared,
}

impl Left {
    /// By what is on disk about a claim whose prepare failed before it had a new record. `is_in_cdi`: it has a CDI file. Of an
    /// earlier boot nothing is left.
    pub(super) fn of(stored: &Stored, is_in_cdi: bool, boot_id: &str) -> Self {
        match stored {
            Stored::Record(record) if record.boot_id != boot_id => Self::Nothing,
            Stored::Record(record) if record.stage == Stage::Prepared => Self::Prepared,
            Stored::Record(record) if record.devices.iter().any(is_created) => Self::Remains,
            Stored::Record(_) => Self::Nothing,
            // Its pod may be running.
            Stored::Unreadable(_) | Stored::Inaccessible(_) => Self::Prepared,
            Stored::Nothing if is_in_cdi => Self::Prepared,
            Stored::Nothing => Self::Nothing,
        }
    }
}

/// True where a MIG instance may have been created for the device.
fn is_created(device: &RecordedDevice) -> bool {
    match &device.kind {
        RecordedKind::Mig { progress, .. } => *progress != Progress::Reserved,
        RecordedKind::Gpu
        | RecordedKind::AdminAccess
        | RecordedKind::Share { .. }
        | RecordedKind::Adopted(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mig_model::facts::Placement;
    use mig_model::inventory::MigSpec;

    use super::*;
    use crate::checkpoint::{Record, fixture};

    fn stored(stage: Stage, progress: Progress) -> Stored {
        let placement = Placement { start: 0, size: 1 };
        let spec = MigSpec { profile: "1g.10gb".to_owned(), profile_id: 19, slices: 1, placement };
        let device = RecordedDevice {
            name: "gpu-0-mig-1g-10gb-0".to_owned(),
            pool: "node".to_owned(),
            requests: vec!["gpu".to_owned()],
            parent_uuid: "GPU-0".to_owned(),
            kind: RecordedKind::Mig { spec, progress },
            unknown: serde_json::Map::new(),
        };
        Stored::Record(Arc::new(Record { stage, devices: vec![device], ..fixture::record("uid-1") }))
    }

    #[test]
    fn what_is_left_of_a_claim_whose_prepare_failed_is_what_is_on_disk() {
        let left = |stored: &Stored, is_in_cdi| Left::of(stored, is_in_cdi, "boot");
        let prepared = stored(Stage::Prepared, Progress::Presumed);
        assert_eq!(left(&prepared, true), Left::Prepared);
        assert_eq!(Left::of(&prepared, true, "later"), Left::Nothing, "instances do not survive a reboot");
        for stage in [Stage::Preparing, Stage::Unpreparing] {
            assert_eq!(left(&stored(stage, Progress::Presumed), false), Left::Remains, "{stage:?}");
            assert_eq!(left(&stored(stage, Progress::Reserved), false), Left::Nothing, "{stage:?}");
        }
        assert_eq!(left(&Stored::Nothing, false), Left::Nothing);
        assert_eq!(left(&Stored::Nothing, true), Left::Prepared, "only the state file was lost");
        assert_eq!(left(&Stored::Unreadable("no JSON".to_owned()), false), Left::Prepared);
    }
}
