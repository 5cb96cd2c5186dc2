//! What the Kubernetes scheduler does with ResourceSlices: which devices it allocates to ResourceClaims on a node, and why not.
//!
//! Pure: slices, classes, claims, a node and what is allocated go in; allocations or reasons come out. Behaves as the structured
//! allocator of Kubernetes 1.35.6 in the variant that its default feature gates select ("incubating"), the quirks included:
//!
//! - A counter of any set of a pool that is below what is consumed refuses every device of the pool that consumes counters.
//! - A candidate that a taint or a constraint refuses keeps its counters for the rest of the attempt (kubernetes #140436).
//! - Counters are kept by the name of the pool, whatever its driver is (kubernetes #140434).
//! - What a device consumes is read from the current slices, so a withdrawn device frees its counters (kubernetes #140802).
//! - A selector that fails on one device aborts the pod on all nodes.
//! - In `firstAvailable`, the second subrequest with `allocationMode: All` may get the devices of the first, and a subrequest with
//!   `allocationMode: All` continues as the first subrequest after its first device.
//!
//! Different from upstream, on purpose: pools go by driver and name and slices by name, as in 1.36, where 1.35 has a random
//! order, so that one input has one answer; and a search ends after a number of steps instead of 10 seconds of time. A claim
//! that has no `allocationMode` or `count` yet (a manifest) gets the API server's defaults.
//!
//! Not covered, as its feature gates are off in 1.35: `distinctAttribute` and everything else of `DRAConsumableCapacity`
//! (shares of devices, `allowMultipleAllocations` in selectors, requests for capacity), and the preference and conditions of
//! `DRADeviceBindingConditions` (a device with binding conditions is never selected, as upstream with the gate off). See
//! [`cel_env`] for what selectors lack.
//!
//! ```
//! # use k8s_openapi::api::{core::v1::Node, resource::v1::{DeviceClass, ResourceClaim, ResourceSlice}};
//! # let (slices, classes, claims, all_claims): (Vec<ResourceSlice>, Vec<DeviceClass>, Vec<ResourceClaim>, Vec<ResourceClaim>) =
//! #     (vec![], vec![], vec![], vec![]);
//! # let node = Node::default();
//! use dra_allocator::{Allocated, Cluster, Features};
//! let cluster = Cluster::new(&slices, &classes, Features::ALL);
//! let allocated = Allocated::of(&all_claims);
//! match cluster.allocate(&node, &claims, &allocated) {
//!     Ok(allocations) => assert_eq!(allocations.len(), claims.len()),
//!     Err(refusal) => println!("{refusal}: {:?}", cluster.explain(&node, &claims, &allocated)),
//! }
//! ```
//!
//! Layers, each knows those before it: `quantity`; `cel_env`; `refusal`; `node`, `pool`; `counters`, `constraint`; `request`;
//! `search`; `result`; `explain`. [`extended`] makes claims of extended resources and knows `quantity` only.

#![allow(
    clippy::result_large_err,
    reason = "an abort is made once and ends everything; callers get it boxed"
)]

mod allocated;
pub mod cel_env;
mod constraint;
mod counters;
mod explain;
pub mod extended;
mod node;
mod pool;
pub mod quantity;
mod refusal;
mod request;
mod result;
mod search;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceClass, ResourceClaim, ResourceSlice};

pub use allocated::{Allocated, ClaimRef, DeviceId};
pub use cel_env::EvaluationError;
pub use counters::{Consumer, Shortage};
pub use explain::{DeviceReport, Explanation, Finding, RequestReport};
pub use node::{holds as requirement_holds, selects as selects_node};
pub use pool::{PoolProblem, PoolReport};
pub use refusal::{Abort, Refusal, SelectorError, SelectorPlace};
pub use request::Amount;

/// Devices that one allocation can have.
pub const MAX_DEVICES: usize = 32;

/// Candidates tried before an attempt is given up. Stands for the scheduler's 10 s per node, in which it tries about so many.
pub const MAX_STEPS: usize = 4_000_000;

/// The feature gates of the scheduler that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// `DRAAdminAccess`.
    pub admin_access: bool,
    /// `DRADeviceTaints`.
    pub device_taints: bool,
    /// `DRAPartitionableDevices`.
    pub partitionable_devices: bool,
    /// `DRAPrioritizedList`.
    pub prioritized_list: bool,
}

impl Features {
    /// The defaults of 1.34 and 1.35.
    pub const DEFAULTS: Self = Self {
        admin_access: true,
        device_taints: false,
        partitionable_devices: false,
        prioritized_list: true,
    };
    /// All that this crate knows; the defaults of 1.36 have them all.
    pub const ALL: Self =
        Self { admin_access: true, device_taints: true, partitionable_devices: true, prioritized_list: true };
}

/// The slices and classes of a cluster, indexed once for any number of questions.
#[derive(Debug)]
pub struct Cluster<'a> {
    features: Features,
    max_steps: usize,
    leaks: bool,
    classes: BTreeMap<&'a str, &'a DeviceClass>,
    pools: pool::Index<'a>,
    selectors: cel_env::Selectors,
}

impl<'a> Cluster<'a> {
    /// Indexes slices and classes.
    #[must_use]
    pub fn new(
        slices: impl IntoIterator<Item = &'a ResourceSlice>,
        classes: impl IntoIterator<Item = &'a DeviceClass>,
        features: Features,
    ) -> Self {
        let named = |class: &'a DeviceClass| Some((class.metadata.name.as_deref()?, class));
        Self {
            features,
            max_steps: MAX_STEPS,
            leaks: true,
            classes: classes.into_iter().filter_map(named).collect(),
            pools: pool::Index::new(slices, features),
            selectors: cel_env::Selectors::default(),
        }
    }

    /// The same with expressions that other clusters have compiled.
    #[must_use]
    pub fn with_programs(self, programs: &cel_env::Programs) -> Self {
        Self { selectors: cel_env::Selectors::with(programs.clone()), ..self }
    }

    /// The same with another limit than [`MAX_STEPS`].
    #[must_use]
    pub fn with_max_steps(self, max_steps: usize) -> Self {
        Self { max_steps, ..self }
    }

    /// The same as a scheduler in which a refused candidate gives its counters back: 1.37, and later releases of 1.36.
    #[must_use]
    pub fn with_leak_fixed(self) -> Self {
        Self { leaks: false, ..self }
    }

    /// Allocates all the claims on the node, or none. The results are in the order of the claims.
    ///
    /// # Errors
    /// [`Refusal`]. [`Refusal::Aborted`] concerns the pod on every node, the others this node.
    pub fn allocate(
        &self,
        node: &Node,
        claims: &[ResourceClaim],
        allocated: &Allocated,
    ) -> Result<Vec<AllocationResult>, Refusal> {
        let view = self.pools.view(node);
        search::Search::new(self, &view, claims, allocated).solve(self.leaks)
    }

    /// Says of every request and every device of the node whether it would do, and if not, why not.
    #[must_use]
    pub fn explain(&self, node: &Node, claims: &[ResourceClaim], allocated: &Allocated) -> Explanation {
        explain::explain(self, node, claims, allocated)
    }
}
