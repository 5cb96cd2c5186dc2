//! The scheduler's choice of devices: first fit with backtracking, as the structured allocator of Kubernetes 1.35 does it.
//!
//! Pure: slices, classes, claims and what is in use go in, an allocation or a reason comes out. Where 1.35 goes through pools and
//! slices in random order, this goes by name, as 1.36 does, so that a test gives the same answer twice.

pub mod cel_env;
mod constraint;
mod counters;
mod node;
mod pool;
pub mod quantity;
mod request;
mod result;
mod search;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceClass, ResourceClaim, ResourceSlice};

use cel_env::EvaluationError;

/// Candidates tried before an attempt is given up; stands for the scheduler's 10 s per node.
pub const MAX_STEPS: usize = 200_000;

/// A device's identity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceId {
    /// Driver name.
    pub driver: String,
    /// Pool name.
    pub pool: String,
    /// Device name.
    pub device: String,
}

/// What an allocation is made from.
#[derive(Debug)]
pub struct Cluster<'a> {
    /// The node that the pod would run on.
    pub node: &'a Node,
    /// All slices of the cluster.
    pub slices: &'a [ResourceSlice],
    /// All device classes, by name.
    pub classes: &'a BTreeMap<String, DeviceClass>,
    /// Devices of other claims' allocations (those with admin access do not count).
    pub in_use: &'a BTreeSet<DeviceId>,
}

/// Why a pod's claims were not allocated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// This node does not have the devices (free); another may.
    #[error("cannot allocate all claims")]
    DoesNotFit,
    /// As above, and some pool could not be used.
    #[error("cannot allocate all claims, invalid resource pools were encountered: {0}")]
    InvalidPools(String),
    /// The search took too long.
    #[error("timed out trying to allocate devices")]
    TimedOut,
    /// The pod cannot be scheduled anywhere as it is.
    #[error("{0}")]
    Aborted(String),
}

impl Refusal {
    fn in_claim(claim: &ResourceClaim, why: impl std::fmt::Display) -> Self {
        Self::Aborted(format!("claim {}: {why}", claim.metadata.name.as_deref().unwrap_or("")))
    }
}

/// Devices that the allocations of claims hold; those with admin access hold nothing.
#[must_use]
pub fn devices_in_use<'c>(claims: impl Iterator<Item = &'c ResourceClaim>) -> BTreeSet<DeviceId> {
    search::held(claims)
}

/// A selector that failed on a device.
fn selector_failed(claim: &ResourceClaim, device: &str, error: &EvaluationError) -> Refusal {
    Refusal::in_claim(claim, format!("selector on device {device}: {error}"))
}

/// Allocates all the claims, or none. The results are in the order of the claims.
///
/// # Errors
/// [`Refusal`].
pub fn allocate(cluster: &Cluster<'_>, claims: &[ResourceClaim]) -> Result<Vec<AllocationResult>, Refusal> {
    let pools = pool::gather(cluster);
    let mut search = search::Search::new(cluster, &pools, claims)?;
    if search.run()? {
        return Ok(result::allocations(cluster, claims, &search.requests, &search.chosen));
    }
    let invalid: Vec<String> = pools.iter().filter_map(|p| p.invalid.clone()).collect();
    Err(if invalid.is_empty() { Refusal::DoesNotFit } else { Refusal::InvalidPools(invalid.join("; ")) })
}
