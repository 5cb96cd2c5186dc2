//! The answer.

use k8s_openapi::api::resource::v1::ResourceClaim;
use serde::Serialize;

use super::reason::{Holder, Reason};

/// Version of the JSON form.
pub const SCHEMA_VERSION: u32 = 1;

/// Whether the devices come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// It has its devices.
    Served,
    /// It will get them: they are free.
    Fits,
    /// Not as long as others have them, or something passes.
    NotNow,
    /// Not unless the pod, the claim or the cluster is changed.
    Never,
    /// What is known is not enough.
    Unknown,
}

impl Verdict {
    /// The exit status of the program: 0, 1, 2 or 3.
    #[must_use]
    pub fn exit_status(self) -> u8 {
        match self {
            Self::Served | Self::Fits => 0,
            Self::NotNow => 1,
            Self::Never => 2,
            Self::Unknown => 3,
        }
    }
}

/// Why a pod or claim has, gets, or does not get its devices.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// `pod/NAME`, `claim/NAME`, or of a manifest `deployment/NAME`.
    pub subject: String,
    /// Its namespace.
    pub namespace: String,
    /// Whether the devices come.
    pub verdict: Verdict,
    /// The verdict in one sentence.
    pub sentence: String,
    /// Reasons that concern all of it, the most important first.
    pub reasons: Vec<Reason>,
    /// The requests of the claims that are not allocated yet, alternatives one by one.
    pub requests: Vec<RequestExplanation>,
    /// How many nodes there are.
    pub nodes: NodeCounts,
    /// Where it fits, if it does: one node of possibly many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// What to do, the most promising first.
    pub advice: Vec<String>,
    /// What was taken for granted because the API does not say it.
    pub assumptions: Vec<String>,
    /// The claims with the allocation that they would get, to place one pod after the other.
    #[serde(skip)]
    pub allocated: Vec<ResourceClaim>,
}

/// Nodes, by what they can do for the pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeCounts {
    /// All.
    pub total: usize,
    /// Those that selectors, affinity, taints and sizes leave to the pod.
    pub usable: usize,
}

/// Devices on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// The node.
    pub node: String,
    /// The devices.
    pub devices: Vec<PlacedDevice>,
}

/// A device for a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlacedDevice {
    /// `namespace/name` of the claim.
    pub claim: String,
    /// The request, or `request/alternative`.
    pub request: String,
    /// The device.
    pub device: String,
}

/// What there is for one request.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestExplanation {
    /// `namespace/name` of the claim.
    pub claim: String,
    /// The request, or `request/alternative`.
    pub request: String,
    /// Its class.
    pub class: String,
    /// How many devices: a number, or `all`.
    pub amount: String,
    /// Whether some node could serve it if the pod asked for nothing else.
    pub fits_alone: bool,
    /// Devices on nodes that the pod can use.
    pub devices: DeviceCounts,
    /// What is in the way.
    pub reasons: Vec<Reason>,
    /// GPUs that have such devices.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuMap>,
}

/// Devices, by what stands between them and a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceCounts {
    /// All that the nodes have.
    pub total: usize,
    /// Those that class and selectors choose.
    pub selected: usize,
    /// Of these: free.
    pub free: usize,
    /// Allocated to claims.
    pub allocated: usize,
    /// Overlapping what is allocated.
    pub blocked: usize,
    /// Unavailable for another reason, such as a taint.
    pub other: usize,
}

/// What a GPU's memory slices are used for.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuMap {
    /// The node.
    pub node: String,
    /// PCI address, UUID or counter set.
    pub gpu: String,
    /// Product name.
    pub product: String,
    /// A character for each memory slice: a letter for a holder, `.` for a free one.
    pub cells: String,
    /// The letters.
    pub legend: Vec<MapEntry>,
}

/// A letter of a map.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MapEntry {
    /// The letter.
    pub mark: char,
    /// Who has it.
    pub holder: Holder,
}
