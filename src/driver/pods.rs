//! The pods of each claim, as far as claims were read anyway. Only those of a PodGroup need further requests to the API server, which
//! [`crate::api`] makes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::resource::v1::ResourceClaim;

use mig_model::claim::ClaimUid;
use tokio::sync::watch;

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

/// The annotation of a claim that was made from a template: its name in the pod.
const CLAIM_NAME: &str = "resource.kubernetes.io/pod-claim-name";

/// The pods for which claims are reserved. Clones share what is known.
#[derive(Debug, Clone, Default)]
pub struct Pods {
    known: Arc<Mutex<BTreeMap<ClaimUid, Consumers>>>,
    /// Notified when more, or something else, is known.
    changed: watch::Sender<()>,
}

/// Who has a claim.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Consumers {
    namespace: String,
    /// Those for which it is reserved.
    pods: Vec<PodRef>,
    claim_name: Option<String>,
    /// PodGroups for which it is reserved.
    groups: Vec<String>,
    /// Pods of this node in these groups, as far as they are known.
    members: Vec<PodRef>,
}

impl Consumers {
    /// The pods of a claim, in the order of their names.
    fn all(&self) -> Vec<PodRef> {
        let mut all: Vec<PodRef> = self.pods.iter().chain(&self.members).cloned().collect();
        all.sort();
        all.dedup();
        all
    }
}

impl Pods {
    /// A claim was read.
    pub fn note(&self, uid: &ClaimUid, claim: &ResourceClaim) {
        let consumers = || claim.status.iter().flat_map(|it| it.reserved_for.iter().flatten());
        let pods = consumers().filter(|it| it.resource == "pods");
        let mut pods: Vec<PodRef> =
            pods.map(|it| PodRef { name: it.name.clone(), uid: it.uid.clone() }).collect();
        pods.sort();
        let is_group = |api_group: Option<&str>, resource: &str| {
            api_group == Some("scheduling.k8s.io") && resource == "podgroups"
        };
        let groups = consumers().filter(|it| is_group(it.api_group.as_deref(), &it.resource));
        let groups: Vec<String> = groups.map(|it| it.name.clone()).collect();
        let mut known = self.known();
        if MOST <= known.len() && !known.contains_key(uid) {
            // Any of them: that of a living claim is noted again when the claim is next read.
            known.pop_first();
        }
        let name = claim.metadata.annotations.as_ref().and_then(|it| it.get(CLAIM_NAME));
        let claim_name = name.filter(|it| is_label(it)).cloned();
        let before = known.get(uid).filter(|it| it.groups == groups);
        let members = before.map(|it| it.members.clone()).unwrap_or_default();
        let namespace = claim.metadata.namespace.clone().unwrap_or_default();
        let now = Consumers { namespace, pods, claim_name, groups, members };
        if known.get(uid) != Some(&now) {
            known.insert(uid.clone(), now);
            self.changed.send_replace(());
        }
    }

    /// Namespaces of the claims that are reserved for a PodGroup.
    #[must_use]
    pub fn namespaces_with_groups(&self) -> BTreeSet<String> {
        let known = self.known();
        known.values().filter(|it| !it.groups.is_empty()).map(|it| it.namespace.clone()).collect()
    }

    /// The pods of this node in a namespace, by their PodGroup.
    pub fn note_members(&self, namespace: &str, by_group: &BTreeMap<String, Vec<PodRef>>) {
        let mut is_news = false;
        for consumers in self.known().values_mut() {
            if consumers.namespace == namespace && !consumers.groups.is_empty() {
                let members = consumers.groups.iter().filter_map(|it| by_group.get(it)).flatten();
                let members: Vec<PodRef> = members.cloned().collect();
                is_news |= consumers.members != members;
                consumers.members = members;
            }
        }
        if is_news {
            self.changed.send_replace(());
        }
    }

    /// Fires when the pods of a claim become known, or are others.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// A claim has ended.
    pub fn forget(&self, uid: &ClaimUid) {
        self.known().remove(uid);
    }

    /// Names of a claim's pods; empty if they are unknown.
    #[must_use]
    pub fn of(&self, uid: &ClaimUid) -> Vec<PodRef> {
        self.known().get(uid).map(Consumers::all).unwrap_or_default()
    }

    /// The name of a claim in the pod that it was made for from a template; nothing where it was not, or is unknown.
    #[must_use]
    pub fn claim_name(&self, uid: &ClaimUid) -> Option<String> {
        self.known().get(uid)?.claim_name.clone()
    }

    /// Names of the pods of a claim, joined by commas.
    #[must_use]
    pub fn names(&self, uid: &ClaimUid) -> String {
        let pods = self.of(uid);
        pods.iter().map(|it| it.name.as_str()).collect::<Vec<_>>().join(",")
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<ClaimUid, Consumers>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name that can be part of a path: the API server does not check the annotation.
fn is_label(text: &str) -> bool {
    let chars = text.chars().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '-');
    chars && (1..=63).contains(&text.len()) && !text.starts_with('-') && !text.ends_with('-')
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
        let mut changes = pods.changes();
        pods.note(&uid, &claim(&["a", "b"]));
        assert!(!changes.has_changed().unwrap(), "nothing new");
        pods.note(&uid, &claim(&["a", "b", "c"]));
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        pods.forget(&uid);
        assert_eq!((pods.names(&uid), pods.of(&uid)), (String::new(), Vec::new()));
    }

    #[test]
    fn the_name_of_a_claim_in_its_pod_is_that_of_the_annotation_if_it_can_be_one() {
        let (pods, uid): (_, ClaimUid) = (Pods::default(), "u-1".parse().unwrap());
        let name = |text: &str| {
            let mut claim = claim(&["a"]);
            claim.metadata.annotations = Some([(CLAIM_NAME.to_owned(), text.to_owned())].into());
            pods.note(&uid, &claim);
            pods.claim_name(&uid)
        };
        assert_eq!(name("gpu").as_deref(), Some("gpu"));
        for wrong in ["", "..", "../x", "a/b", "A", "-a", &"a".repeat(64)] {
            assert_eq!(name(wrong), None, "{wrong}");
        }
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
