//! Health of GPUs and instances at one moment, for every consumer. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Cause;
use crate::claim::ClaimRef;
use crate::inventory::Gpu;

/// The health of a node's GPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// By UUID, every GPU that something is known of.
    pub gpus: BTreeMap<String, Condition>,
    /// Instances that suffer by themselves.
    pub instances: Vec<UnhealthyInstance>,
}

/// How a GPU is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// NVML reports no problem.
    Healthy,
    /// What happens to it would not be noticed.
    Unmonitored {
        /// Why.
        reason: String,
        /// True where it is not to be expected otherwise with this driver or GPU.
        is_for_good: bool,
    },
    /// It has had an error that no application causes.
    Unhealthy(UnhealthyReason),
    /// It does not answer.
    Lost {
        /// What NVML says.
        reason: String,
        /// Since when, seconds since the epoch.
        since: u64,
    },
}

/// An error that lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnhealthyReason {
    /// The first error.
    pub cause: Cause,
    /// When it came, seconds since the epoch.
    pub since: u64,
}

/// An instance that suffers by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnhealthyInstance {
    /// UUID of the GPU.
    pub parent: String,
    /// GPU instance id.
    pub gpu_instance: u32,
    /// UUID of the MIG device.
    pub uuid: String,
    /// The claim that has it; an unmanaged instance may have none.
    #[serde(default)]
    pub claim: Option<ClaimRef>,
    /// The device.
    pub device: String,
    /// Whether it is unmanaged: it outlives the claim, and stays unhealthy.
    #[serde(default)]
    pub is_adopted: bool,
    /// What it suffers from.
    pub unhealthy_reason: UnhealthyReason,
}

/// Something that is otherwise than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// UUID of the GPU.
    pub gpu: String,
    /// How it was.
    pub before: Condition,
    /// How it is.
    pub now: Condition,
}

impl Condition {
    /// One line for people.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Healthy => "healthy".to_owned(),
            Self::Unmonitored { reason, .. } => format!("unmonitored: {reason}"),
            Self::Unhealthy(unhealthy_reason) => format!("unhealthy: {}", unhealthy_reason.cause),
            Self::Lost { reason, .. } => format!("lost: {reason}"),
        }
    }

    /// True if no further claim should get a part of the GPU.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        matches!(self, Self::Unhealthy(_) | Self::Lost { .. })
    }
}

impl Report {
    /// How a GPU is; one that nothing is known of is healthy.
    #[must_use]
    pub fn gpu(&self, uuid: &str) -> &Condition {
        self.gpus.get(uuid).unwrap_or(&Condition::Healthy)
    }

    /// How a device of a GPU is: as its GPU, or worse if its own instance suffers.
    #[must_use]
    pub fn device(&self, gpu: &str, name: &str) -> Condition {
        let own = self.instances.iter().find(|it| it.parent == gpu && it.device == name);
        match (self.gpu(gpu), own) {
            (bad, _) if bad.is_bad() => bad.clone(),
            (_, Some(instance)) => Condition::Unhealthy(instance.unhealthy_reason),
            (other, None) => other.clone(),
        }
    }

    /// Names of the devices that are unhealthy unmanaged instances: no further claim gets one of them.
    #[must_use]
    pub fn unhealthy_adopted(&self) -> BTreeSet<String> {
        self.instances.iter().filter(|it| it.is_adopted).map(|it| it.device.clone()).collect()
    }

    /// The same GPUs, with a problem for those that no further claim should get a part of. Allocated devices stay
    /// offered, as of every GPU with a problem.
    #[must_use]
    pub fn withhold(&self, gpus: &[Gpu]) -> Vec<Gpu> {
        let withhold = |gpu: &Gpu| {
            let mut gpu = gpu.clone();
            let condition = self.gpu(&gpu.facts.uuid);
            if condition.is_bad() && gpu.state.problem.is_none() {
                gpu.state.problem = Some(condition.text());
            }
            gpu
        };
        gpus.iter().map(withhold).collect()
    }
}

/// What is otherwise between two reports, GPU by GPU.
#[must_use]
pub fn changes(before: &Report, now: &Report) -> Vec<Change> {
    let gpus: BTreeSet<&String> = before.gpus.keys().chain(now.gpus.keys()).collect();
    let change = |uuid: &String| {
        let (before, now) = (before.gpu(uuid).clone(), now.gpu(uuid).clone());
        (before != now).then(|| Change { gpu: uuid.clone(), before, now })
    };
    gpus.into_iter().filter_map(change).collect()
}
