//! What is to be done.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;

use super::memory::Memory;
use super::world::{Demand, Hold};

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Decisions {
    /// Objects to write.
    pub writes: Vec<Write>,
    /// Pods to evict, after the objects are written.
    pub eviction: Option<Eviction>,
    /// What becomes of each pod that needs devices of the driver, by UID.
    pub pods: BTreeMap<String, Prospect>,
}

/// Pods to evict, all of them or none, so that a claim is served on the GPU that is held back for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eviction {
    /// The node.
    pub node: String,
    /// The GPU.
    pub gpu: String,
    /// The profile that the claim gets there.
    pub profile: String,
    /// When the hold ends.
    pub until: Timestamp,
    /// The pod that waits.
    pub waiting: PodKey,
    /// Since when it is unschedulable.
    pub since: Timestamp,
    /// The pods.
    pub pods: Vec<Evicted>,
}

/// A pod to evict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evicted {
    /// The pod.
    pub pod: PodKey,
    /// The node that has a place for its replacement.
    pub place: String,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodKey {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

/// The controller's part of the spec of one `MigNode`.
#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    /// The node.
    pub node: String,
    /// The version that this was decided on. A write must fail where the object has another one.
    pub resource_version: Option<String>,
    /// `spec.demand`; as it was where a person wrote it.
    pub demand: Option<Demand>,
    /// `spec.holds`.
    pub holds: Vec<Hold>,
    /// Why.
    pub reason: Reason,
    /// UIDs of the pods that the change serves.
    pub serves: Vec<String>,
}

/// Why something is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The node is to publish other devices.
    Change,
    /// Less is needed.
    Reduce,
    /// It is still needed.
    Renew,
    /// Nothing is needed any more.
    Remove,
    /// Only holds differ.
    Holds,
}

/// What becomes of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prospect {
    /// A node publishes what it needs.
    Published {
        /// The node.
        node: String,
    },
    /// A node will publish what it needs.
    Coming {
        /// The node.
        node: String,
    },
    /// A GPU is held back for it.
    Held {
        /// The node.
        node: String,
        /// The GPU.
        gpu: String,
    },
    /// It was offered a device for long and did not use it.
    WaitsForSomethingElse,
    /// Nothing serves it now.
    Waits,
    /// No GPU can be partitioned into what it asks for.
    Impossible,
    /// Too many different pods wait before it.
    NotLookedAt,
}

/// What came of [`decide`](super::decide).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// What is to be done.
    pub decisions: Decisions,
    /// What to remember.
    pub memory: Memory,
    /// When to decide again although nothing happens.
    pub wake: Option<Timestamp>,
}
