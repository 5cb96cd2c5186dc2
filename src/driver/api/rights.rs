//! The permissions that the driver's account needs, and whether it has them.

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::timeout;

use super::CALL_TIMEOUT;
use crate::telemetry::with_causes;

/// A verb on a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Resource, plural, with its subresource if it is one: `resourceclaims/status`.
    pub resource: &'static str,
    /// Verb.
    pub verb: &'static str,
}

impl Right {
    /// What is lost without it, where the driver works without it.
    #[must_use]
    pub fn lost_without(&self) -> Option<&'static str> {
        match (self.resource, self.verb) {
            ("nodes", "list" | "watch") => Some("the node label nvidia.com/mig.config is ignored"),
            ("nodes", "patch") => Some("the node label nvidia.com/mig.config.state is not written"),
            ("mignodes" | "mignodes/status", _) => {
                Some("the status of the node's MigNode is not written, and no demand is followed")
            }
            ("resourceclaims/status", _) => Some("status.devices of ResourceClaims is not written"),
            _ => None,
        }
    }
}

const fn right(group: &'static str, resource: &'static str, verb: &'static str) -> Right {
    Right { group, resource, verb }
}

/// Every right that the driver makes use of. A test holds it against the requests that the driver makes and against the
/// rules that are shipped.
pub const RIGHTS: [Right; 18] = [
    right("resource.k8s.io", "resourceclaims", "get"),
    // Before devices go: which ones are allocated, prepared or not.
    right("resource.k8s.io", "resourceclaims", "list"),
    // What became of a claim's devices.
    right("resource.k8s.io", "resourceclaims/status", "patch"),
    right("resource.k8s.io", "resourceslices", "list"),
    right("resource.k8s.io", "resourceslices", "watch"),
    right("resource.k8s.io", "resourceslices", "create"),
    right("resource.k8s.io", "resourceslices", "update"),
    right("resource.k8s.io", "resourceslices", "delete"),
    right("", "nodes", "get"),
    // One label of the Node selects the layout, another reports its state.
    right("", "nodes", "list"),
    right("", "nodes", "watch"),
    right("", "nodes", "patch"),
    // Events of a claim are kept in its namespace; those of a Node, which has none, in `default`.
    right("events.k8s.io", "events", "create"),
    right("events.k8s.io", "events", "patch"),
    // What the GPUs can be partitioned into and what is allocated, for controllers and people, and what they demand.
    right("mig.dra-driver.dev", "mignodes", "list"),
    right("mig.dra-driver.dev", "mignodes", "watch"),
    right("mig.dra-driver.dev", "mignodes", "create"),
    right("mig.dra-driver.dev", "mignodes/status", "patch"),
];

/// Asks the API server whether this account has a right. Every account may ask that about itself. An error is the reason why
/// the answer is unknown.
pub async fn is_allowed(client: &Client, right: &Right) -> Result<bool, String> {
    let (resource, subresource) = match right.resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (right.resource, None),
    };
    let attributes = ResourceAttributes {
        group: Some(right.group.to_owned()),
        resource: Some(resource.to_owned()),
        subresource,
        verb: Some(right.verb.to_owned()),
        ..ResourceAttributes::default()
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() },
        ..SelfSubjectAccessReview::default()
    };
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    match timeout(CALL_TIMEOUT, api.create(&PostParams::default(), &review)).await {
        Ok(Ok(answer)) => Ok(answer.status.is_some_and(|it| it.allowed)),
        Ok(Err(error)) => Err(with_causes(&error)),
        Err(_) => Err(format!("no answer within {} s", CALL_TIMEOUT.as_secs())),
    }
}
