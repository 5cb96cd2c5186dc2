//! What is on disk about one claim. Pure: only the format.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::claim::ClaimRef;
use crate::inventory::MigSpec;

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
    /// True once the claim was answered.
    pub prepared: bool,
    /// Fields of a newer driver, kept as they are.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// One device of a claim.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedDevice {
    /// Name in the ResourceSlice.
    pub name: String,
    /// Pool it was allocated from.
    pub pool: String,
    /// Requests of the claim that it satisfies.
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
    /// A MIG device.
    Mig {
        /// What it should be.
        spec: MigSpec,
        /// What exists of it.
        progress: Progress,
    },
}

/// How far a MIG device got. Written before the next step is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Progress {
    /// The GPU instance is about to be created; it may exist.
    Intended,
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
            Self::Intended => None,
            Self::GpuInstance { gpu_instance } | Self::Complete { gpu_instance, .. } => Some(*gpu_instance),
        }
    }
}
