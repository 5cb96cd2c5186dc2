//! Whose pods have which claim, as far as claims were read anyway: nothing is asked of the API server for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::resource::v1::ResourceClaim;

use crate::claim::ClaimUid;

/// Names of the pods for which claims are reserved. Clones share what is known.
#[derive(Debug, Clone, Default)]
pub struct Pods(Option<Arc<Mutex<BTreeMap<ClaimUid, String>>>>);

impl Pods {
    /// Remembers pods if they are to be shown, and nothing else.
    #[must_use]
    pub fn new(are_shown: bool) -> Self {
        Self(are_shown.then(Arc::default))
    }

    /// True where pods are to be shown.
    #[must_use]
    pub fn are_shown(&self) -> bool {
        self.0.is_some()
    }

    /// A claim was read.
    pub fn note(&self, uid: &ClaimUid, claim: &ResourceClaim) {
        let Some(known) = &self.0 else { return };
        let consumers = claim.status.iter().flat_map(|it| it.reserved_for.iter().flatten());
        let pods: BTreeSet<&str> =
            consumers.filter(|it| it.resource == "pods").map(|it| it.name.as_str()).collect();
        let names = pods.into_iter().collect::<Vec<_>>().join(",");
        known.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.clone(), names);
    }

    /// Pods of a claim, sorted and joined by commas; empty where nobody has told.
    pub(super) fn of(&self, uid: &ClaimUid) -> String {
        let Some(known) = &self.0 else { return String::new() };
        known.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned().unwrap_or_default()
    }

    /// Forgets what is of no claim with a file; one has its file before it is read.
    pub(super) fn keep(&self, has_file: impl Fn(&ClaimUid) -> bool) {
        let Some(known) = &self.0 else { return };
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|uid, _| has_file(uid));
    }
}
