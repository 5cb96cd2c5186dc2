//! A pod or claim with everything that belongs to it, and what was found about it.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::explanation::Verdict;
use super::reason::Reason;

/// The subject with everything that belongs to it.
#[derive(Debug)]
pub(super) struct Case<'a> {
    /// `pod/NAME` and the like.
    pub(super) label: String,
    pub(super) namespace: String,
    pub(super) pod: Option<Cow<'a, Pod>>,
    /// Claims to allocate.
    pub(super) open: Vec<ResourceClaim>,
    /// Claims that are allocated.
    pub(super) held: Vec<ResourceClaim>,
    /// Extended resources that a class stands behind.
    pub(super) extended: Vec<String>,
    /// What decides without a look at nodes.
    pub(super) decided: Option<Verdict>,
    /// What keeps the pod back although nodes may fit.
    pub(super) held_back: Option<Verdict>,
    pub(super) reasons: Vec<Reason>,
    /// What is odd, and decides nothing.
    pub(super) remarks: Vec<Reason>,
    pub(super) assumptions: Vec<String>,
}

impl<'a> Case<'a> {
    pub(super) fn new(label: String, namespace: &str) -> Self {
        Self {
            label,
            namespace: namespace.to_owned(),
            pod: None,
            open: Vec::new(),
            held: Vec::new(),
            extended: Vec::new(),
            decided: None,
            held_back: None,
            reasons: Vec::new(),
            remarks: Vec::new(),
            assumptions: Vec::new(),
        }
    }

    /// Ends the matter.
    pub(super) fn decide(&mut self, verdict: Verdict, reason: Reason) {
        self.decided = Some(self.decided.unwrap_or(verdict));
        self.reasons.push(reason);
    }

    /// Something that passes by itself, or that others have to do, whatever nodes offer.
    pub(super) fn hold_back(&mut self, verdict: Verdict, reason: Reason) {
        self.held_back = Some(self.held_back.unwrap_or(verdict));
        self.reasons.push(reason);
    }
}

/// Whether an object has this namespace and name.
pub(super) fn is(metadata: &ObjectMeta, namespace: &str, name: &str) -> bool {
    metadata.name.as_deref() == Some(name) && metadata.namespace.as_deref().unwrap_or("default") == namespace
}
