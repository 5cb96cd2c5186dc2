//! The record of one claim on disk: the state machine of its life cycle, as data. Pure: only the format.
//!
//! | on disk | so there may be | is finished by | is undone by |
//! |---|---|---|---|
//! | no file, or no complete line | nothing | | |
//! | `preparing`, a device `reserved` | nothing of that device; an instance in its place is unmanaged | [`crate::claim`]'s prepare | nothing to undo |
//! | `preparing`, a device `creating` | nothing, or its GPU instance without a compute instance; one that has any was created by another program | prepare, which finds by profile and placement what exists | its undo, which destroys what it finds so |
//! | any stage, a device `presumed` | the record was lost: nothing, its GPU instance, or all | prepare, by profile and placement | undo and unprepare, by profile and placement |
//! | `prepared`, a device `reserved` | another program destroyed its instance, which was noticed | prepare, which creates it again where the place is free | nothing to undo |
//! | `preparing`, a device `gpuInstance` | that GPU instance, perhaps its compute instance | prepare, which finds it by its id; `creating` again if it is gone | undo, by id, profile and placement |
//! | `preparing`, a device `complete` | both, perhaps the CDI file | prepare | undo |
//! | `prepared` | all of it, and a pod that uses it | prepare recreates what another program removed | only unprepare, or the end of the ResourceClaim |
//! | `unpreparing` | all of it, or any part: CDI file and instances go before this file | unprepare | prepare, which recreates what is gone |
//! | any stage but `prepared`, a device `reserved` again | nothing of that device: it was destroyed, or something else is in its place | prepare, where the place is free | nothing to undo |
//! | any of these with the boot id of another boot | the file only, perhaps the CDI file | prepare reserves the same devices again | the end of the ResourceClaim, or an unprepare that had begun |
//!
//! A GPU, a share of one and an adopted instance have no progress: nothing is made for them, so prepare only looks for them
//! and undo and unprepare have nothing to destroy. A driver that does not know `adopted`, `share` or `adminAccess` can't read such a record,
//! and so cannot mistake an unmanaged instance for a managed one.
//!
//! The first half of each step is on disk before its effect: a stage before the hardware changes, an id before the next
//! object is made inside it. [`Record::rest`] says what a claim needs that is not in progress.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use mig_model::claim::{ClaimRef, ClaimUid};
use mig_model::inventory::{Adopted, MigSpec};

/// Format version that this driver writes.
pub const VERSION: u32 = 1;

/// What was promised to a claim, and how far it got.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Format version.
    pub version: u32,
    /// Boot during which the steps were taken; MIG instances do not survive another one.
    pub boot_id: String,
    /// The claim.
    pub claim: ClaimRef,
    /// Its devices, in the order of the allocation.
    pub devices: Vec<RecordedDevice>,
    /// Where in its life the claim is.
    pub stage: Stage,
    /// The claim's name in the pod that it was made for from a template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_claim_name: Option<String>,
    /// Fields of a newer driver, kept as they are.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// What is on disk about a claim.
#[derive(Debug, Clone, PartialEq)]
pub enum Stored {
    /// Nothing: no file, or one in which nothing was intended yet.
    Nothing,
    /// A record.
    Record(Arc<Record>),
    /// A file that cannot be understood, and why.
    Unreadable(String),
    /// A file that cannot be opened or read now, and why. It may say anything, and the next attempt may succeed. Only a listing
    /// has this: a request for the journal of the claim returns the error.
    Inaccessible(String),
}

impl Stored {
    /// The record, if there is one that can be read.
    #[must_use]
    pub fn record(&self) -> Option<Arc<Record>> {
        match self {
            Self::Record(record) => Some(Arc::clone(record)),
            Self::Nothing | Self::Unreadable(_) | Self::Inaccessible(_) => None,
        }
    }
}

/// Where in its life a claim is. Written before the first effect of the stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// Its devices are being made; no pod has them yet.
    Preparing,
    /// It was answered; a pod may be running with its devices.
    Prepared,
    /// Its devices are being destroyed; no pod has them any more.
    Unpreparing,
}

/// What a claim needs whose prepare or unprepare is no longer in progress, because the process ended or gave up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Nothing, as long as its ResourceClaim exists.
    Nothing,
    /// Unprepare it: undo it if it was never prepared, or finish the unprepare that has begun.
    TakeDown,
}

impl Record {
    /// What the claim needs if no call works on it. Of another boot nothing is left to undo, and the file keeps the promise
    /// for the next prepare; after a power failure it may have lost that the claim was prepared.
    #[must_use]
    pub fn rest(&self, boot_id: &str) -> Rest {
        match self.stage {
            Stage::Unpreparing => Rest::TakeDown,
            Stage::Preparing if self.boot_id == boot_id => Rest::TakeDown,
            Stage::Preparing | Stage::Prepared => Rest::Nothing,
        }
    }

    /// The devices of which it holds a part of a GPU.
    pub fn held(&self) -> impl Iterator<Item = &RecordedDevice> {
        self.devices.iter().filter(|it| it.kind.holds())
    }

    /// The same claim, assumed to be prepared: any instance at the placement of one of its devices counts as its own.
    #[must_use]
    pub fn assume_created(mut self, stage: Stage) -> Self {
        self.stage = stage;
        for device in &mut self.devices {
            if let RecordedKind::Mig { progress, .. } = &mut device.kind {
                *progress = Progress::Presumed;
            }
        }
        self
    }

    /// The same claim, with what another record of it says of how far each device got.
    #[must_use]
    pub fn with_progress_of(mut self, known: &Self) -> Self {
        for device in &mut self.devices {
            let same = known.devices.iter().find(|it| it.name == device.name && it.pool == device.pool);
            if let Some(same) = same {
                device.kind.clone_from(&same.kind);
            }
        }
        self.named_in_pod_as(known)
    }

    /// The same claim, with the name in its pod that another record of it has, where this one does not know it.
    #[must_use]
    pub fn named_in_pod_as(mut self, known: &Self) -> Self {
        self.pod_claim_name = self.pod_claim_name.or_else(|| known.pod_claim_name.clone());
        self
    }

    /// Reads one line, which must be about this claim. The error says what is wrong with it.
    pub(super) fn parse(line: &[u8], uid: &ClaimUid) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let wrong = |error: serde_json::Error| error.to_string();
        let Versioned { version } = serde_json::from_slice(line).map_err(wrong)?;
        if version != VERSION {
            return Err(format!("it has format version {version}, this driver reads {VERSION}"));
        }
        let record: Self = serde_json::from_slice(line).map_err(wrong)?;
        let ClaimRef { namespace, name, uid: claimed } = record.claim.clone();
        if claimed != *uid {
            return Err(format!("it is about another claim, {claimed}"));
        }
        // Both become part of a URL.
        ClaimRef::new(namespace, name, uid.to_string()).map_err(|error| error.to_string())?;
        Ok(record)
    }
}

/// One device of a claim.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedDevice {
    /// Name in the ResourceSlice.
    pub name: String,
    /// Pool it was allocated from.
    pub pool: String,
    /// Requests of the claim that it satisfies; `<request>/<alternative>` where one of several was taken.
    pub requests: Vec<String>,
    /// UUID of the GPU.
    pub parent_uuid: String,
    /// What it is.
    pub kind: RecordedKind,
    /// Fields of a newer driver, kept as they are.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// What a recorded device is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RecordedKind {
    /// A whole GPU: nothing was made for it.
    Gpu,
    /// A whole GPU with adminAccess: nothing was made for it, and it keeps nothing from other claims.
    AdminAccess,
    /// A time-shared GPU: nothing was made for it.
    Share {
        /// Which of its shares.
        index: u32,
    },
    /// An unmanaged MIG instance: it is prepared as it is, and never destroyed.
    Adopted(Adopted),
    /// A MIG device.
    Mig {
        /// What it should be.
        spec: MigSpec,
        /// What exists of it.
        progress: Progress,
    },
}

impl RecordedKind {
    /// Whether it holds a part of a GPU, which no other claim gets meanwhile.
    #[must_use]
    pub fn holds(&self) -> bool {
        match self {
            Self::AdminAccess => false,
            Self::Gpu | Self::Share { .. } | Self::Adopted(_) | Self::Mig { .. } => true,
        }
    }

    /// Ids of GPU instance and compute instance, and what it is, managed or not; nothing where it has no instance, or not yet.
    #[must_use]
    pub fn instance(&self) -> Option<((u32, u32), &MigSpec)> {
        match self {
            Self::Mig { spec, progress: Progress::Complete { gpu_instance, compute_instance, .. } } => {
                Some(((*gpu_instance, *compute_instance), spec))
            }
            Self::Adopted(it) => Some(((it.gpu_instance, it.compute_instance), &it.spec)),
            Self::Gpu | Self::AdminAccess | Self::Share { .. } | Self::Mig { .. } => None,
        }
    }
}

/// How far a MIG device got. Written before the next step is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Progress {
    /// Nothing was done for it yet.
    Reserved,
    /// The GPU instance is about to be created; it may exist, without a compute instance: that is created after the next line.
    Creating,
    /// The record was lost, and the claim's CDI file or allocation names the device: what sits in its place was created for it.
    Presumed,
    /// The GPU instance exists; the compute instance may.
    GpuInstance {
        /// GPU instance id.
        gpu_instance: u32,
    },
    /// Both exist.
    Complete {
        /// GPU instance id.
        gpu_instance: u32,
        /// Compute instance id.
        compute_instance: u32,
        /// UUID of the MIG device.
        uuid: String,
    },
}

impl Progress {
    /// GPU instance id, once it is known.
    #[must_use]
    pub fn gpu_instance(&self) -> Option<u32> {
        match self {
            Self::Reserved | Self::Creating | Self::Presumed => None,
            Self::GpuInstance { gpu_instance } | Self::Complete { gpu_instance, .. } => Some(*gpu_instance),
        }
    }
}
