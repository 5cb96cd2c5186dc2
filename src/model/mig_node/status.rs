//! What the driver of a node reports of its GPUs.

use std::collections::BTreeMap;

use k8s_openapi::api::resource::v1::DeviceAttribute;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::{Deserialize, Serialize};

use super::bounds::{
    Bounded, MAX_ATTRIBUTES, MAX_GPUS, MAX_HELD, MAX_NAME, MAX_PLACEMENTS, MAX_PROFILE_NAME, MAX_PROFILES,
    MAX_PUBLISHED, MAX_TEXT, OutOfBounds, list, most_of, name, text,
};
use crate::claim::ClaimRef;
use crate::facts::Placement;

/// What a whole GPU is called among profiles, as in the attribute `profile`.
pub const WHOLE: &str = "full";
/// The profile of an instance that NVML does not describe.
pub const UNKNOWN: &str = "unknown";

/// Types of conditions.
pub mod condition {
    /// The driver offers what its GPUs can provide.
    pub const READY: &str = "Ready";
    /// What is published is what the spec demands, as far as the GPUs can provide it.
    pub const DEMAND_FOLLOWED: &str = "DemandFollowed";
}

/// Reasons of conditions.
pub mod reason {
    /// Of `Ready`: all GPUs offer what they can.
    pub const AVAILABLE: &str = "Available";
    /// Of `Ready`, which is true all the same: some GPUs offer nothing, or less.
    pub const PARTLY_AVAILABLE: &str = "PartlyAvailable";
    /// Of `Ready`: no GPU offers anything.
    pub const NO_GPU: &str = "NoGpuAvailable";
    /// Of `Ready`: claims cannot be prepared on this host.
    pub const HOST_NOT_READY: &str = "HostNotReady";
    /// Of `Ready`: the slices are not published as they should be.
    pub const NOT_PUBLISHED: &str = "NotPublished";
    /// Of `DemandFollowed`: it is.
    pub const FOLLOWED: &str = "Followed";
    /// Of `DemandFollowed`: the spec demands nothing; the default layout is in force.
    pub const NO_DEMAND: &str = "NoDemand";
    /// Of `DemandFollowed`: allocated devices stand in its way.
    pub const HELD_DEVICES: &str = "HeldDevices";
    /// Of `DemandFollowed`: the GPUs have no room for all of it.
    pub const DOES_NOT_FIT: &str = "DoesNotFit";
    /// Of `DemandFollowed`: the demand was not renewed for two minutes; what is published stays.
    pub const STALE: &str = "Stale";
    /// Of `DemandFollowed`: the node's label chooses the layout.
    pub const LABEL_SET: &str = "LabelSet";
    /// Of `DemandFollowed`: counters keep devices apart, so every placement is published anyway.
    pub const PARTITIONABLE: &str = "Partitionable";
    /// Of `DemandFollowed`: layouts changed a moment ago; they change at most once in 30 s.
    pub const CHANGED_RECENTLY: &str = "ChangedRecently";
    /// Of `DemandFollowed`: withdrawn devices settle before others take their place.
    pub const SETTLING: &str = "Settling";
    /// Of `DemandFollowed`: the spec breaks a bound.
    pub const INVALID_SPEC: &str = "InvalidSpec";
}

/// What the driver of a node reports of its GPUs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MigNodeStatus {
    /// `metadata.generation` of the spec that the driver saw last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How devices are published; `None` before it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<PublishingMode>,
    /// Value of the node's label `nvidia.com/mig.config`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<String>,
    /// For the columns of `kubectl get mignodes`.
    #[serde(default)]
    pub summary: Summary,
    /// The GPUs, in PCI order.
    #[serde(default)]
    pub gpus: Vec<GpuStatus>,
    /// `Ready` and `DemandFollowed`.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// How devices are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PublishingMode {
    /// Devices that do not overlap, chosen by a layout.
    Layout,
    /// Every placement of every profile, kept apart by counters.
    Partitionable,
}

/// For the columns of `kubectl get mignodes`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// How many GPUs the node has.
    #[serde(default)]
    pub gpus: u32,
    /// Product of the GPUs; several, separated by commas.
    #[serde(default)]
    pub product: String,
    /// What is offered and no claim is known to have, as profiles with counts: in layout mode all of it, in partitionable mode of
    /// each GPU the largest that fits. A device that was allocated a moment ago is in it until it is prepared, as the driver does
    /// not watch claims. `-` for nothing.
    #[serde(default)]
    pub unused: String,
    /// What is prepared, or known to be allocated, as profiles with counts. `-` for nothing.
    #[serde(default)]
    pub held: String,
}

/// One GPU.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuStatus {
    /// Name of the device that is the whole GPU, and of its counter set, for example `gpu-0000-3b-00`.
    pub name: String,
    /// `GPU-…`.
    #[serde(default)]
    pub uuid: String,
    /// Product name.
    #[serde(default)]
    pub product_name: String,
    /// NVML index; moves when another GPU is lost.
    #[serde(default)]
    pub index: u32,
    /// MIG mode.
    #[serde(default)]
    pub mig_mode: MigModeStatus,
    /// Attributes that every device of this GPU has, in the form that a ResourceSlice has them.
    #[serde(default)]
    pub attributes: BTreeMap<String, DeviceAttribute>,
    /// What it can be allocated as in its MIG mode and with what the host permits, in NVML's order; the whole GPU is `full`,
    /// and the last one. Empty for a GPU that is time-shared.
    #[serde(default)]
    pub profiles: Vec<ProfileStatus>,
    /// What is allocated or prepared, and unmanaged MIG instances.
    #[serde(default)]
    pub held: Vec<HeldDevice>,
    /// Free devices that are offered now.
    #[serde(default)]
    pub published: Vec<PublishedDevice>,
    /// Why nothing, or less, is offered, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// MIG mode of a GPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MigModeStatus {
    /// MIG mode is on.
    Enabled,
    /// MIG mode is off.
    Disabled,
    /// The GPU has no MIG, or its mode is unknown.
    #[default]
    Unavailable,
}

/// A profile of a GPU.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProfileStatus {
    /// Name of the profile as NVML has it; `full` for the whole GPU.
    pub profile: String,
    /// Attributes of its devices beside the GPU's, without `placementStart`, and without the `uuid` of a MIG device.
    #[serde(default)]
    pub attributes: BTreeMap<String, DeviceAttribute>,
    /// Capacity of its devices.
    #[serde(default)]
    pub capacity: BTreeMap<String, Quantity>,
    /// Where it can be placed on an empty GPU. Of the whole GPU: all memory slices, or nothing on a GPU without MIG.
    #[serde(default)]
    pub placements: Vec<Placement>,
}

/// A device that is allocated or prepared, or an unmanaged MIG instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldDevice {
    /// Name of the device; `None` for an unmanaged MIG instance that no device stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Its profile; `unknown` where NVML does not describe it.
    pub profile: String,
    /// First memory slice.
    pub start: u32,
    /// Number of memory slices; 0 on a GPU without MIG.
    pub size: u32,
    /// The claim that has it; `None` where the driver does not know it yet, and for unmanaged instances that are free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<ClaimRef>,
}

/// A free device that is offered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublishedDevice {
    /// Name of the device.
    pub device: String,
    /// Its profile.
    pub profile: String,
    /// First memory slice.
    pub start: u32,
    /// Number of memory slices; 0 on a GPU without MIG.
    pub size: u32,
}

impl Bounded for MigNodeStatus {
    fn check(&self) -> Result<(), OutOfBounds> {
        list("status.gpus", &self.gpus, MAX_GPUS)?;
        list("status.conditions", &self.conditions, MAX_CONDITIONS)?;
        self.gpus.iter().enumerate().try_for_each(|(index, it)| gpu(&format!("status.gpus[{index}]"), it))
    }
}

/// Conditions that are read.
const MAX_CONDITIONS: usize = 16;

fn gpu(field: &str, gpu: &GpuStatus) -> Result<(), OutOfBounds> {
    let at = |part: &str| format!("{field}.{part}");
    name(&at("name"), &gpu.name, MAX_NAME)?;
    text(&at("uuid"), &gpu.uuid, MAX_NAME)?;
    text(&at("productName"), &gpu.product_name, MAX_NAME)?;
    text(&at("problem"), gpu.problem.as_deref().unwrap_or_default(), MAX_TEXT)?;
    most_of(&at("attributes"), gpu.attributes.len(), MAX_ATTRIBUTES)?;
    list(&at("profiles"), &gpu.profiles, MAX_PROFILES)?;
    list(&at("held"), &gpu.held, MAX_HELD)?;
    list(&at("published"), &gpu.published, MAX_PUBLISHED)?;
    for (index, it) in gpu.profiles.iter().enumerate() {
        let at = |part: &str| format!("{field}.profiles[{index}].{part}");
        name(&at("profile"), &it.profile, MAX_PROFILE_NAME)?;
        most_of(&at("attributes"), it.attributes.len(), MAX_ATTRIBUTES)?;
        most_of(&at("capacity"), it.capacity.len(), MAX_ATTRIBUTES)?;
        list(&at("placements"), &it.placements, MAX_PLACEMENTS)?;
    }
    for (index, it) in gpu.held.iter().enumerate() {
        let at = |part: &str| format!("{field}.held[{index}].{part}");
        text(&at("device"), it.device.as_deref().unwrap_or_default(), MAX_NAME)?;
        name(&at("profile"), &it.profile, MAX_PROFILE_NAME)?;
        if let Some(claim) = &it.claim {
            name(&at("claim.namespace"), &claim.namespace, MAX_NAME)?;
            name(&at("claim.name"), &claim.name, MAX_NAME)?;
        }
    }
    for (index, it) in gpu.published.iter().enumerate() {
        let at = |part: &str| format!("{field}.published[{index}].{part}");
        name(&at("device"), &it.device, MAX_NAME)?;
        name(&at("profile"), &it.profile, MAX_PROFILE_NAME)?;
    }
    Ok(())
}
