//! The pods of each claim, as far as claims were read anyway: this needs no further requests to the API server.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::resource::v1::ResourceClaim;

use mig_model::claim::ClaimUid;

/// Most claims that are remembered: several times what a node has. A claim that could never be prepared is not
/// unprepared, and would be remembered for ever.
const MOST: usize = 1024;

/// A pod, in the namespace of its claim.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodRef {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// The pods for which claims are reserved. Clones share what is known.
#[derive(Debug, Clone, Default)]
pub struct Pods(Arc<Mutex<BTreeMap<ClaimUid, Vec<PodRef>>>>);

impl Pods {
    /// A claim was read.
    pub fn note(&self, uid: &ClaimUid, claim: &ResourceClaim) {
        let consumers = claim.status.iter().flat_map(|it| it.reserved_for.iter().flatten());
        let pods = consumers.filter(|it| it.resource == "pods");
        let mut pods: Vec<PodRef> =
            pods.map(|it| PodRef { name: it.name.clone(), uid: it.uid.clone() }).collect();
        pods.sort();
        let mut known = self.known();
        if MOST <= known.len() && !known.contains_key(uid) {
            // Any of them: that of a living claim is noted again when the claim is next read.
            known.pop_first();
        }
        known.insert(uid.clone(), pods);
    }

    /// A claim has ended.
    pub fn forget(&self, uid: &ClaimUid) {
        self.known().remove(uid);
    }

    /// Names of a claim's pods; empty if they are unknown.
    #[must_use]
    pub fn of(&self, uid: &ClaimUid) -> Vec<PodRef> {
        self.known().get(uid).cloned().unwrap_or_default()
    }

    /// Names of the pods of a claim, joined by commas.
    #[must_use]
    pub fn names(&self, uid: &ClaimUid) -> String {
        let known = self.known();
        let names = known.get(uid).into_iter().flatten().map(|it| it.name.as_str());
        names.collect::<Vec<_>>().join(",")
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<ClaimUid, Vec<PodRef>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::resource::v1::{ResourceClaimConsumerReference, ResourceClaimStatus};

    use super::*;

    fn claim(pods: &[&str]) -> ResourceClaim {
        let consumer = |it: &&str| ResourceClaimConsumerReference {
            resource: "pods".to_owned(),
            name: (*it).to_owned(),
            uid: format!("uid-{it}"),
            ..Default::default()
        };
        let reserved_for = Some(pods.iter().map(consumer).collect());
        ResourceClaim {
            status: Some(ResourceClaimStatus { reserved_for, ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn pods_are_remembered_until_the_claim_ends() {
        let (pods, uid): (_, ClaimUid) = (Pods::default(), "u-1".parse().unwrap());
        pods.note(&uid, &claim(&["b", "a"]));
        assert_eq!(pods.clone().names(&uid), "a,b");
        assert_eq!(pods.of(&uid)[1], PodRef { name: "b".to_owned(), uid: "uid-b".to_owned() });
        pods.forget(&uid);
        assert_eq!((pods.names(&uid), pods.of(&uid)), (String::new(), Vec::new()));
    }

    #[test]
    fn what_is_remembered_is_bounded_although_the_end_of_claims_is_not_reported() {
        let pods = Pods::default();
        for number in 0..MOST + 7 {
            pods.note(&format!("u-{number}").parse().unwrap(), &claim(&["a"]));
        }
        assert_eq!(pods.known().len(), MOST);
        assert_eq!(pods.names(&format!("u-{}", MOST + 6).parse().unwrap()), "a", "the newest is known");
    }
}
