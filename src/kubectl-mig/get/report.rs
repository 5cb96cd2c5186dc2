//! What `get` shows, as data; `-o json` prints it as it is here, and docs/kubectl-mig-get.md describes it. Pure.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use dra_allocator::ClaimRef;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::profile;
use crate::cluster::Unread;

/// Version of the form of `get -o json`. A field that is renamed, removed or changes its meaning raises it; a new field does not.
pub const SCHEMA_VERSION: u32 = 1;

/// The nodes, GPUs and claims of a cluster.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fleet {
    /// Nodes that a GPU driver publishes devices for, by name.
    pub nodes: Vec<NodeRow>,
    /// GPUs by node, driver and name.
    pub gpus: Vec<GpuRow>,
    /// Claims by namespace and name: those that hold a device of a GPU, and those that hold nothing yet.
    pub claims: Vec<ClaimRow>,
    /// Drivers that have published slices, GPUs or not.
    pub drivers: Vec<String>,
    /// What could not be read.
    pub unread: Vec<UnreadRow>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRow {
    /// Name.
    pub name: String,
    /// Whether the kubelet is ready; `null` where the Node could not be read.
    pub ready: Option<bool>,
    /// Whether the node is cordoned; `null` where the Node could not be read.
    pub unschedulable: Option<bool>,
    /// The layout that the Node's labels name.
    pub layout: Option<Layout>,
    /// Names of the products, sorted.
    pub products: Vec<String>,
    /// Names of the drivers, sorted.
    pub drivers: Vec<String>,
    /// GPUs.
    pub gpus: usize,
    /// GPUs of which no claim holds anything.
    pub idle_gpus: usize,
    /// How much of all its GPUs claims hold, from 0 to 1, by memory slices; of GPUs without them, by devices.
    pub used: f64,
    /// Devices that claims hold.
    pub held_devices: usize,
    /// Devices that could be allocated now, by profile.
    pub free: Vec<Free>,
    /// The largest profile that could be allocated now.
    pub largest: Option<String>,
    /// What is wrong, GPU by GPU.
    pub problems: Vec<Problem>,
}

/// The labels `nvidia.com/mig.config` and `nvidia.com/mig.config.state` of a Node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Layout {
    /// Name of the layout.
    pub config: Option<String>,
    /// `success`, `pending`, `failed` and the like.
    pub state: Option<String>,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuRow {
    /// Node.
    pub node: String,
    /// PCI address; where none is published, what its devices have in common: a UUID, or the name of a counter set.
    pub name: String,
    /// UUID where it is published.
    pub uuid: Option<String>,
    /// Product where it is published.
    pub product: Option<String>,
    /// Driver name.
    pub driver: String,
    /// Pool name.
    pub pool: String,
    /// Memory slices; 0 where nothing says how many, as of a GPU without MIG.
    pub memory_slices: usize,
    /// Whether counters keep its devices apart. If not, what is published does not overlap.
    pub has_counters: bool,
    /// Its memory slices in order; without memory slices, its devices.
    pub parts: Vec<Part>,
    /// Devices that could be allocated now, by profile.
    pub free: Vec<Free>,
    /// The largest profile that could be allocated now.
    pub largest: Option<String>,
    /// Devices that claims hold, by place and name.
    pub holders: Vec<Holder>,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// A memory slice or, on a GPU without them, a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    /// Its state.
    pub state: State,
    /// Position in `holders` of what holds it.
    pub holder: Option<usize>,
}

/// State of a part of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// A claim holds it.
    Held,
    /// A device that takes it could be allocated now.
    Free,
    /// No claim holds it, and no device that takes it could be allocated now.
    Blocked,
    /// No published device takes it.
    NotOffered,
}

/// How many devices of a profile could be allocated now, if nothing else were allocated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Free {
    /// MIG profile, `gpu` for a whole GPU, or `share` for a time-shared one.
    pub profile: String,
    /// How many.
    pub count: usize,
}

impl Free {
    /// Plain profiles from the smallest to the largest, then those with or without media extensions.
    pub(super) fn order(&self) -> impl Ord + use<> {
        (profile::is_variant(&self.profile), profile::size(&self.profile), self.profile.clone())
    }
}

/// The largest profile of a list.
pub(super) fn largest(free: &[Free]) -> Option<String> {
    let largest = free.iter().max_by_key(|it| (profile::size(&it.profile), Reverse(&it.profile)));
    largest.map(|it| it.profile.clone())
}

/// Counts of the same profiles added up.
pub(super) fn total<'f>(free: impl IntoIterator<Item = &'f Free>) -> Vec<Free> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for it in free {
        *counts.entry(&it.profile).or_default() += it.count;
    }
    let named = counts.into_iter().map(|(profile, count)| Free { profile: profile.to_owned(), count });
    let mut total: Vec<Free> = named.collect();
    total.sort_by_key(Free::order);
    total
}

/// A device that a claim holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// Device name.
    pub device: String,
    /// As in [`Free::profile`].
    pub profile: String,
    /// First memory slice; `null` where the device's place is not published.
    pub first_slice: Option<usize>,
    /// Memory slices; `null` where the device's place is not published.
    pub memory_slices: Option<usize>,
    /// The claim.
    pub claim: ClaimRef,
    /// The pods that the claim is reserved for, in the claim's namespace; another consumer is `<resource>/<name>`.
    pub pods: Vec<String>,
    /// When the claim was created.
    pub since: Option<Timestamp>,
}

/// Something that is wrong with a GPU or a pool.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// The GPU; `null` for the whole pool or node.
    pub gpu: Option<String>,
    /// What kind of problem.
    pub reason: Reason,
    /// For people.
    pub message: String,
}

/// Kinds of problems. Programs may compare them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Reason {
    /// Devices have a taint that keeps pods away, as the devices of an unhealthy GPU.
    Tainted,
    /// The GPU is described, and none of its devices is offered.
    NothingOffered,
    /// No published device takes some memory slices.
    SlicesNotOffered,
    /// Devices that overlap have no counters, because the API server dropped them.
    CountersDropped,
    /// Slices of the pool are missing.
    PoolIncomplete,
    /// The slices of the pool contradict each other.
    PoolInvalid,
    /// Claims consume more of a counter than the pool has.
    PoolOverdrawn,
    /// Two drivers have a pool of this name.
    PoolNameShared,
    /// Several claims hold one device.
    AllocatedTwice,
    /// A claim holds a device that its pool does not publish.
    DeviceNotPublished,
    /// The driver publishes an empty pool.
    NoGpus,
    /// The layout could not be applied.
    LayoutFailed,
}

/// A claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimRow {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// As kubectl prints it: `pending`, or `deleted`, `allocated`, `reserved` separated by commas.
    pub state: String,
    /// What it asks for.
    pub requests: Vec<RequestRow>,
    /// What it holds.
    pub devices: Vec<DeviceRow>,
    /// As in [`Holder::pods`].
    pub pods: Vec<String>,
    /// When it was created.
    pub since: Option<Timestamp>,
}

/// A request of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestRow {
    /// Name of the request.
    pub name: String,
    /// Device class; with `firstAvailable` one for each alternative.
    pub classes: Vec<String>,
    /// Number of devices; `null` for all, and with `firstAvailable`.
    pub count: Option<i64>,
}

/// A device that a claim holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceRow {
    /// Driver name.
    pub driver: String,
    /// Pool name.
    pub pool: String,
    /// Device name.
    pub device: String,
    /// As in [`Free::profile`]; `null` where the device is not published (any more).
    pub profile: Option<String>,
    /// Name of the GPU; `null` where the device is not published.
    pub gpu: Option<String>,
    /// Node; `null` where the device is not published.
    pub node: Option<String>,
}

/// A kind of objects that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UnreadRow {
    /// Plural of the kind.
    pub resource: String,
    /// What the API server said.
    pub message: String,
}

impl From<&Unread> for UnreadRow {
    fn from(unread: &Unread) -> Self {
        Self { resource: unread.resource.to_owned(), message: unread.why.clone() }
    }
}

/// The document of `-o json`: one of the lists.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Document<'f> {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// With `nodes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<&'f [NodeRow]>,
    /// With `gpus`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpus: Option<&'f [GpuRow]>,
    /// With `claims`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claims: Option<&'f [ClaimRow]>,
    /// What could not be read.
    pub unread: &'f [UnreadRow],
}
