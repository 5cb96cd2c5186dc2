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
//! Layers, each knows those before it: `quantity`, `features`; `cel_env`; `refusal`, `shortage`; `node`, `pool`; `cluster`;
//! `counters`, `constraint`; `request`; `choice`, `select`; `result`; `dead_ends`, `search`; `explain`, `room`; `attempt`. [`extended`]
//! makes claims of extended resources and knows `quantity` only.

#![allow(
    clippy::result_large_err,
    reason = "an abort is made once and ends everything; callers get it boxed"
)]

mod allocated;
mod attempt;
pub mod cel_env;
mod choice;
mod cluster;
mod constraint;
mod counters;
mod dead_ends;
mod explain;
pub mod extended;
mod features;
mod node;
mod pool;
mod position;
pub mod quantity;
mod refusal;
mod request;
mod result;
mod room;
mod search;
mod select;
mod shortage;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim};

pub use allocated::{Allocated, ClaimRef, DeviceId, is_allocated};
pub use attempt::Attempt;
pub use cel_env::EvaluationError;
pub use cluster::{Cluster, MAX_DEVICES, MAX_STEPS};
pub use explain::{DeviceReport, Explanation, Finding, RequestReport};
pub use features::Features;
pub use node::{holds as requirement_holds, selects as selects_node, tolerates};
pub use pool::{PoolProblem, PoolReport};
pub use refusal::{Abort, Refusal, SelectorError, SelectorPlace};
pub use request::Amount;
pub use room::Room;
pub use shortage::{Consumer, Shortage, in_the_way};

impl Cluster<'_> {
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
        self.attempt(node, claims, allocated).into_outcome()
    }

    /// Says of every request and every device of the node whether it would do, and if not, why not.
    #[must_use]
    pub fn explain(&self, node: &Node, claims: &[ResourceClaim], allocated: &Allocated) -> Explanation {
        self.attempt(node, claims, allocated).explain()
    }
}
