//! Claims that are missing, full, or being deleted.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;

use super::case::{Case, is};
use super::explanation::Verdict;
use super::quota;
use super::reason::{Reason, ReasonId, some_of};
use crate::cluster::Snapshot;
use crate::manifest::DemandError;
use crate::text::count;

/// Most users of a claim.
const MAX_CONSUMERS: usize = 256;

impl Case<'_> {
    /// A claim that is missing.
    pub(super) fn problem(&mut self, snapshot: &Snapshot, pod: &Pod, problem: DemandError) {
        match problem {
            DemandError::Missing { kind, name, namespace, .. } => {
                let id =
                    if kind == "ResourceClaim" { ReasonId::ClaimMissing } else { ReasonId::TemplateMissing };
                let plural = format!("{}s", kind.to_lowercase());
                let sentence = format!("{kind} {name} does not exist in namespace {namespace}");
                let reason = Reason::new(id, sentence).advise(format!(
                    "create {kind} {name} in namespace {namespace}, or name an existing one in spec.resourceClaims of the pod: kubectl -n {namespace} get {plural}"
                ));
                self.decide(Verdict::Never, reason);
            }
            DemandError::NotCreated { claim, .. } => {
                if let Some((reason, verdict)) =
                    would_be(snapshot, pod, &claim).and_then(|it| quota::refuses(&snapshot.quotas, &it))
                {
                    return self.decide(verdict, reason);
                }
                let message = super::events::failed_claim_creation(snapshot, pod);
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                let sentence = match &message {
                    Some(it) => format!("Kubernetes could not create claim {claim}: {it}"),
                    None => format!("Kubernetes has not created claim {claim} of the pod yet"),
                };
                let reason = Reason::new(ReasonId::ClaimNotCreated, sentence).advise(format!(
                    "the event FailedResourceClaimCreation has the reason: kubectl -n {} describe pod {name}",
                    self.namespace
                ));
                self.decide(Verdict::NotNow, reason);
            }
            other => self.decide(Verdict::Unknown, Reason::new(ReasonId::NotFound, other.to_string())),
        }
    }

    /// True for a claim that is being deleted.
    pub(super) fn is_going(&mut self, claim: &ResourceClaim) -> bool {
        if claim.metadata.deletion_timestamp.is_none() {
            return false;
        }
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        let users = consumers(claim);
        let end = if users.is_empty() {
            format!(
                "wait; if it stays, its finalizers say who keeps it: kubectl -n {} get resourceclaim {name} -o yaml",
                self.namespace
            )
        } else {
            format!("end the pods that use it: {}", some_of(&users, 5))
        };
        let sentence = format!("claim {name} is being deleted, and gone once no pod uses it");
        self.decide(Verdict::NotNow, Reason::new(ReasonId::ClaimBeingDeleted, sentence).advise(end));
        true
    }

    /// A claim that can have no more users.
    pub(super) fn full(&mut self, claim: &ResourceClaim, pod: &Pod) {
        let reserved = claim.status.as_ref().and_then(|it| it.reserved_for.as_deref()).unwrap_or_default();
        let is_mine = reserved.iter().any(|it| Some(&it.uid) == pod.metadata.uid.as_ref());
        if reserved.len() >= MAX_CONSUMERS && !is_mine {
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            let sentence =
                format!("claim {name} is used by {MAX_CONSUMERS} pods, the most that a claim can have");
            let reason = Reason::new(ReasonId::ReservedForFull, sentence)
                .advise("end one of them, or create another claim for further pods");
            self.decide(Verdict::NotNow, reason);
        }
    }
}

/// The claim that Kubernetes would create for an entry of `spec.resourceClaims`.
fn would_be(snapshot: &Snapshot, pod: &Pod, entry: &str) -> Option<ResourceClaim> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let entries = pod.spec.as_ref()?.resource_claims.as_ref()?;
    let template = entries.iter().find(|it| it.name == entry)?.resource_claim_template_name.as_deref()?;
    let template = snapshot.templates.iter().find(|it| is(&it.metadata, namespace, template))?;
    let mut claim = ResourceClaim { spec: template.spec.spec.clone(), ..ResourceClaim::default() };
    claim.metadata.namespace = Some(namespace.to_owned());
    Some(claim)
}

/// Whether a pod that has not ended names a claim, or has it from a template.
pub(super) fn uses(pod: &Pod, claim: &str, namespace: &str) -> bool {
    let phase = pod.status.as_ref().and_then(|it| it.phase.as_deref());
    if pod.metadata.namespace.as_deref().unwrap_or("default") != namespace
        || matches!(phase, Some("Succeeded" | "Failed"))
    {
        return false;
    }
    let named = pod
        .spec
        .iter()
        .flat_map(|it| it.resource_claims.iter().flatten())
        .filter_map(|it| it.resource_claim_name.as_deref());
    let made = pod
        .status
        .iter()
        .flat_map(|it| it.resource_claim_statuses.iter().flatten())
        .filter_map(|it| it.resource_claim_name.as_deref());
    named.chain(made).any(|it| it == claim)
}

/// `namespace/name` of the pods that use a claim.
pub(super) fn consumers(claim: &ResourceClaim) -> Vec<String> {
    let namespace = claim.metadata.namespace.as_deref().unwrap_or("default");
    let reserved = claim.status.iter().flat_map(|it| it.reserved_for.iter().flatten());
    reserved.filter(|it| it.resource == "pods").map(|it| format!("{namespace}/{}", it.name)).collect()
}

/// `a (device d), b (device e)` of allocated claims.
pub(super) fn devices(claims: &[ResourceClaim]) -> String {
    let of = |claim: &ResourceClaim| {
        let results =
            claim.status.as_ref().and_then(|it| it.allocation.as_ref()?.devices.as_ref()?.results.clone());
        let names: Vec<String> = results
            .unwrap_or_default()
            .iter()
            .map(|it| format!("{} of pool {}", it.device, it.pool))
            .collect();
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        format!("claim {name} has {}", if names.is_empty() { count(0, "device") } else { some_of(&names, 4) })
    };
    claims.iter().map(of).collect::<Vec<_>>().join("; ")
}
