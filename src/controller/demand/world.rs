//! What a decision is made from, in a form that a thousand nodes fit into.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, PodSpec};
use k8s_openapi::api::resource::v1::{DeviceAttribute, DeviceClass, ResourceClaim};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::kind::Kind;

/// A cluster as it was seen.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Nodes that have a `MigNode`.
    pub nodes: Vec<NodeState>,
    /// Pods without a node that have claims.
    pub pods: Vec<PendingPod>,
    /// Pods with devices that may be evicted, because their owners have agreed; none where consolidation is off.
    pub movable: Vec<MovablePod>,
    /// UIDs of claims that have no devices, or do not exist any more, of those for which pods were evicted last
    /// ([`Memory::awaited`](super::Memory::awaited)).
    pub unserved: BTreeSet<String>,
    /// All device classes.
    pub classes: Vec<DeviceClass>,
}

/// A node: its Node, and spec and status of its `MigNode`.
#[derive(Debug, Clone)]
pub struct NodeState {
    /// Labels, taints, cordon and conditions; all else may be left out.
    pub node: Arc<Node>,
    /// Of the `MigNode`, so that a write can depend on it.
    pub resource_version: Option<String>,
    /// Whether the controller may decide on this node: its label is `auto`, or absent where that means the same.
    pub takes_part: bool,
    /// Whether demand may change what the node publishes.
    pub follows: bool,
    /// Whether the node publishes devices that overlap, kept apart by counters.
    pub counts: bool,
    /// GPUs.
    pub gpus: Vec<GpuState>,
    /// `spec.demand`.
    pub demand: Option<Demand>,
    /// `spec.floor`.
    pub floor: Profiles,
    /// `spec.holds`.
    pub holds: Vec<Hold>,
    /// How far the node is with `spec.demand`.
    pub progress: Progress,
    /// Whether the driver reports that it could not follow the demand.
    pub is_refused: bool,
}

/// Profiles and counts.
pub type Profiles = BTreeMap<String, u32>;

/// `spec.demand`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// `None` where a person wrote it.
    pub renewed: Option<Timestamp>,
    /// What should be published and free.
    pub profiles: Profiles,
}

/// An entry of `spec.holds`: free devices of a GPU that stand in the way of a profile are not offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// The GPU.
    pub gpu: String,
    /// The profile that the claim needs.
    pub profile: String,
    /// The claim.
    pub claim: ClaimKey,
    /// When it ends, if it is not renewed.
    pub until: Timestamp,
    /// Since when the claim has it; `None` where it is not renewed.
    pub since: Option<Timestamp>,
    /// False where another manager of fields wrote it: the controller can neither change nor remove it.
    pub is_ours: bool,
}

/// A claim.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimKey {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

/// How far a node is with the demand of its spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The driver has not seen this spec yet, or is about to follow it.
    Pending,
    /// What is published is what came of it.
    Done,
}

/// A GPU.
#[derive(Debug, Clone)]
pub struct GpuState {
    /// Name of the whole GPU as a device.
    pub name: String,
    /// What it can be partitioned into.
    pub kind: Arc<Kind>,
    /// Its values of the attributes in [`IDENTITY`](super::kind::IDENTITY).
    pub identity: BTreeMap<String, DeviceAttribute>,
    /// Devices that are allocated or prepared, and unmanaged instances.
    pub held: Vec<Placed>,
    /// Free devices that are offered.
    pub published: Vec<Placed>,
    /// Whether something is wrong with it, so that nothing can be expected of it.
    pub has_problem: bool,
}

/// A device of a GPU.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Placed {
    /// Profile.
    pub profile: String,
    /// First memory slice.
    pub start: u32,
    /// Memory slices.
    pub size: u32,
}

/// A pod that waits for a node.
#[derive(Debug, Clone)]
pub struct PendingPod {
    /// UID.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Priority.
    pub priority: i32,
    /// When it was created.
    pub created: Timestamp,
    /// Since when the scheduler finds it unschedulable, if it does.
    pub unschedulable: Option<Timestamp>,
    /// Whether it lacks nothing but devices, as far as the scheduler says: not CPU, volumes or other pods near it.
    pub lacks_only_devices: bool,
    /// Node selectors, affinity and tolerations; all else may be left out.
    pub spec: Arc<PodSpec>,
    /// All claims of the pod, allocated ones included; pods of one kind may share them only where they share the object.
    pub claims: Vec<Arc<ResourceClaim>>,
}

/// A pod with devices that may be evicted: it has the label, and a controller that replaces it.
#[derive(Debug, Clone)]
pub struct MovablePod {
    /// Its replacement: the pod as if its claims had no devices.
    pub pod: PendingPod,
    /// The node that it is on.
    pub node: String,
    /// Its devices: GPU and place.
    pub devices: Vec<(String, Placed)>,
    /// UIDs of the pods that use its claims, its own included.
    pub users: BTreeSet<String>,
    /// Since when it runs; `None` where it does not run yet.
    pub started: Option<Timestamp>,
    /// How long it may take to end.
    pub grace: Duration,
    /// Whether it is being deleted.
    pub is_leaving: bool,
    /// Whether only its own node is known to take it, as volumes, ports or other pods decide where it can be placed.
    pub stays_on_node: bool,
}

/// How decisions are made.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the driver.
    pub driver: String,
    /// A pod counts once it has been unschedulable for so long.
    pub patience: Duration,
    /// Between two changes of one node.
    pub change_interval: Duration,
    /// A demand that is still needed is written again after so long.
    pub renew_after: Duration,
    /// A node that has not followed a demand for so long is not counted on.
    pub follow_within: Duration,
    /// A pod that has been offered a device for so long waits for something else.
    pub offer_for: Duration,
    /// A claim that has waited for so long gets a GPU held back; `None` turns holds off.
    pub hold_after: Option<Duration>,
    /// A hold is renewed until it has lasted for so long. The claim gets another one `hold_after` later.
    pub hold_for: Duration,
    /// Memory slices of a request in parts of its GPU from which on it can get a hold, if its profile has one placement.
    pub hold_from: f64,
    /// GPUs held back for one namespace, in parts of all GPUs; one at least.
    pub hold_namespace: f64,
    /// GPUs held back in one pool of nodes, in parts of its GPUs; one at least.
    pub hold_pool: f64,
    /// The label whose values are the pools of nodes; nodes without it are one pool.
    pub pool_label: String,
    /// Pods that are evicted in an hour at most, so that claims with a GPU held back are served; `None` turns consolidation off.
    pub evictions_per_hour: Option<u32>,
    /// A claim that has waited for so long for each pod that has to move gets a GPU held back, though `hold_after` is not over.
    pub consolidate_after: Duration,
    /// Evictions in an hour for the pods of one namespace, in parts of all; one at least.
    pub evictions_namespace: f64,
    /// A pod is evicted only once it has run for so long, so that what was moved stays for a while.
    pub move_after: Duration,
    /// After evictions that did not serve the claim, none for so long.
    pub evictions_pause: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            driver: "mig.dra-driver.dev".to_owned(),
            patience: seconds(5),
            change_interval: seconds(30),
            renew_after: seconds(30),
            follow_within: seconds(60),
            offer_for: seconds(60),
            hold_after: None,
            hold_for: seconds(3600),
            hold_from: 0.5,
            hold_namespace: 0.25,
            hold_pool: 0.25,
            pool_label: "node.kubernetes.io/instance-type".to_owned(),
            evictions_per_hour: None,
            consolidate_after: seconds(60),
            evictions_namespace: 0.5,
            move_after: seconds(600),
            evictions_pause: seconds(600),
        }
    }
}

impl NodeState {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.node.metadata.name.as_deref().unwrap_or_default()
    }

    /// Whether a person demands something of it.
    pub(super) fn is_a_persons(&self) -> bool {
        self.demand.as_ref().is_some_and(|it| it.renewed.is_none())
    }
}

/// A time as much later.
pub(super) fn after(time: Timestamp, pause: Duration) -> Timestamp {
    let pause = SignedDuration::try_from(pause).unwrap_or(SignedDuration::MAX);
    time.checked_add(pause).unwrap_or(Timestamp::MAX)
}

impl ClaimKey {
    /// The key of a claim.
    #[must_use]
    pub fn of(claim: &ResourceClaim) -> Self {
        let text = |it: &Option<String>| it.clone().unwrap_or_default();
        let meta = &claim.metadata;
        Self { namespace: text(&meta.namespace), name: text(&meta.name), uid: text(&meta.uid) }
    }
}
