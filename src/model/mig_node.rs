//! `MigNode`: what the GPUs of a node can be partitioned into, what is allocated, and what is demanded of them.
//!
//! One object for each node, cluster-scoped, named as the node. The driver of the node writes the status; a controller or a
//! person writes the spec. Each reads what another program wrote, so reading has bounds: a part that breaks one is left out,
//! and [`Invalid`] says why. Deserialization of an object never fails for what is in spec or status: a watch would stop at it.

mod bounds;
mod conditions;
mod describe;
mod possible;
mod spec;
mod status;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{ClusterResourceScope, Metadata, Resource};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use bounds::{
    Bounded, MAX_ATTRIBUTES, MAX_COUNT, MAX_DEMANDED, MAX_GPUS, MAX_HELD, MAX_HOLDS, MAX_NAME,
    MAX_PLACEMENTS, MAX_PROFILE_NAME, MAX_PROFILES, MAX_PUBLISHED, MAX_TEXT, OutOfBounds,
};
pub use conditions::{Followed, Readiness, conditions};
pub use describe::{Observed, describe, summary};
pub use possible::{PossibleDevice, PossibleGpu, possible};
pub use spec::{Demand, Hold, MigNodeSpec, ProfileCount, STALE_AFTER};
pub use status::{
    GpuStatus, HeldDevice, MigModeStatus, MigNodeStatus, ProfileStatus, PublishedDevice, PublishingMode,
    Summary, UNKNOWN, WHOLE, condition, reason,
};

/// What the GPUs of a node can be partitioned into, what is allocated, and what is demanded of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Wire<Value, Value>", into = "Wire<MigNodeSpec, MigNodeStatus>")]
pub struct MigNode {
    /// Named as the node, with the Node as owner.
    pub metadata: ObjectMeta,
    /// What is demanded. Empty where the spec breaks a bound; then [`Invalid::spec`] says why.
    pub spec: MigNodeSpec,
    /// What the driver reports; `None` before its first report, and where the status breaks a bound.
    pub status: Option<MigNodeStatus>,
    /// Why parts of the object are left out.
    pub invalid: Invalid,
}

/// Why parts of an object are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Invalid {
    /// Of the spec.
    pub spec: Option<String>,
    /// Of the status.
    pub status: Option<String>,
}

impl MigNode {
    /// Name of the node.
    #[must_use]
    pub fn node(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// The devices that the driver could publish for the GPUs of the node where counters keep devices apart, from the status
    /// alone: every placement of every profile beside what unmanaged instances occupy. Empty without a status.
    #[must_use]
    pub fn possible_devices(&self) -> Vec<PossibleGpu> {
        self.status.iter().flat_map(|it| &it.gpus).filter_map(possible).collect()
    }
}

impl Resource for MigNode {
    const API_VERSION: &'static str = "mig.dra-driver.dev/v1alpha1";
    const GROUP: &'static str = "mig.dra-driver.dev";
    const KIND: &'static str = "MigNode";
    const VERSION: &'static str = "v1alpha1";
    const URL_PATH_SEGMENT: &'static str = "mignodes";
    type Scope = ClusterResourceScope;
}

impl Metadata for MigNode {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// An object as it is sent. Kind and version are not checked when it is read: the items of a list lack them.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire<Spec, Status> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    api_version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    spec: Option<Spec>,
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
}

fn none<T>() -> Option<T> {
    None
}

impl From<Wire<Value, Value>> for MigNode {
    fn from(wire: Wire<Value, Value>) -> Self {
        let (spec, invalid_spec) = bounded("spec", wire.spec);
        let (status, invalid_status) = bounded("status", wire.status);
        Self {
            metadata: wire.metadata,
            spec: spec.unwrap_or_default(),
            status,
            invalid: Invalid { spec: invalid_spec, status: invalid_status },
        }
    }
}

impl From<MigNode> for Wire<MigNodeSpec, MigNodeStatus> {
    fn from(object: MigNode) -> Self {
        Self {
            api_version: Some(MigNode::API_VERSION.to_owned()),
            kind: Some(MigNode::KIND.to_owned()),
            metadata: object.metadata,
            spec: Some(object.spec).filter(|it| *it != MigNodeSpec::default()),
            status: object.status,
        }
    }
}

/// Part of an object if it has the right form and breaks no bound, and else why not.
fn bounded<T: DeserializeOwned + Bounded>(field: &str, value: Option<Value>) -> (Option<T>, Option<String>) {
    let Some(value) = value else { return (None, None) };
    match serde_json::from_value::<T>(value) {
        Err(error) => (None, Some(bounds::shortened(&format!("{field}: {error}")))),
        Ok(part) => match part.check() {
            Err(error) => (None, Some(error.to_string())),
            Ok(()) => (Some(part), None),
        },
    }
}

#[cfg(test)]
mod tests;
