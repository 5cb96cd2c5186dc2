//! Why claims are not allocated.

use serde::Serialize;

use crate::allocated::{ClaimRef, DeviceId};
use crate::cel_env::EvaluationError;

/// Why a pod's claims are not allocated on a node. The texts are those of the scheduler.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize)]
#[serde(rename_all = "camelCase", tag = "reason", content = "detail")]
pub enum Refusal {
    /// This node does not have the devices free; another may.
    #[error("cannot allocate all claims")]
    DoesNotFit,
    /// As above, and some pool is invalid.
    #[error("cannot allocate all claims, invalid resource pools were encountered: {0}")]
    InvalidPools(String),
    /// The search took too long.
    #[error("timed out trying to allocate devices")]
    TimedOut,
    /// The pod cannot be scheduled on any node as it is.
    #[error("{0}")]
    Aborted(Box<Abort>),
}

impl From<Abort> for Refusal {
    fn from(abort: Abort) -> Self {
        Self::Aborted(Box::new(abort))
    }
}

/// What stops the scheduling of a pod on all nodes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "reason")]
pub enum Abort {
    /// A request names a class that does not exist.
    #[error("claim {claim}: device class {class} does not exist")]
    ClassMissing {
        /// The claim.
        claim: ClaimRef,
        /// The request.
        request: String,
        /// The class.
        class: String,
    },
    /// A request has a form that the scheduler does not know, or that needs a feature gate.
    #[error("claim {claim}, request {request}: {why}")]
    Unsupported {
        /// The claim.
        claim: ClaimRef,
        /// The request.
        request: String,
        /// What is not supported.
        why: String,
    },
    /// A constraint is neither `matchAttribute` nor anything else that the scheduler knows.
    #[error("claim {claim}, constraint #{constraint}: empty constraint (unsupported constraint type?)")]
    ConstraintUnsupported {
        /// The claim.
        claim: ClaimRef,
        /// Index of the constraint.
        constraint: usize,
    },
    /// A claim asks for more devices than an allocation can have.
    #[error("claim {claim}: number of requested devices {requested} exceeds the claim limit of {limit}")]
    TooManyDevices {
        /// The claim.
        claim: ClaimRef,
        /// Devices asked for at least.
        requested: usize,
        /// [`MAX_DEVICES`](crate::MAX_DEVICES).
        limit: usize,
    },
    /// A request for all devices meets a pool that is incomplete or invalid.
    #[error(
        "claim {claim}, request {request}: asks for all devices, but resource pool {driver}/{pool} is currently {state}"
    )]
    AllFromBrokenPool {
        /// The claim.
        claim: ClaimRef,
        /// The request.
        request: String,
        /// The pool's driver.
        driver: String,
        /// The pool.
        pool: String,
        /// `being updated` or `invalid`.
        state: &'static str,
    },
    /// A request for all devices cannot have all of them under a constraint.
    #[error(
        "claim {claim}, request {request}: cannot add device {device} because a claim constraint would not be satisfied"
    )]
    AllAgainstConstraint {
        /// The claim.
        claim: ClaimRef,
        /// The request.
        request: String,
        /// The device that the constraint refuses.
        device: DeviceId,
    },
    /// A selector failed.
    #[error("{0}")]
    Selector(SelectorError),
    /// A node selector of a slice cannot be used.
    #[error(
        "create NodeSelector for claim {claim}: unsupported ResourceSlice.NodeSelector with {terms} terms"
    )]
    NodeSelector {
        /// The claim.
        claim: ClaimRef,
        /// Terms of the selector; 1 is supported.
        terms: usize,
    },
}

/// Where a selector stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "in")]
pub enum SelectorPlace {
    /// In a device class.
    Class {
        /// The class.
        class: String,
    },
    /// In a request of a claim.
    Request {
        /// The claim.
        claim: ClaimRef,
        /// The request.
        request: String,
    },
}

impl std::fmt::Display for SelectorPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Class { class } => write!(f, "class {class}"),
            Self::Request { claim, request } => write!(f, "claim {claim}, request {request}"),
        }
    }
}

/// A selector that gives no answer for a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize)]
#[error("{place}: selector #{selector} on device {device}: {error}")]
pub struct SelectorError {
    /// Where it stands.
    #[serde(flatten)]
    pub place: SelectorPlace,
    /// Its index there.
    pub selector: usize,
    /// The device that it was evaluated on.
    pub device: DeviceId,
    /// What went wrong.
    pub error: EvaluationError,
}
