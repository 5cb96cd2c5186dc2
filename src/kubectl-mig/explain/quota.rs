//! ResourceQuotas that refuse a claim.

use std::collections::BTreeMap;

use dra_allocator::MAX_DEVICES;
use dra_allocator::quantity::Quantity;
use k8s_openapi::api::core::v1::ResourceQuota;
use k8s_openapi::api::resource::v1::ResourceClaim;

use super::explanation::Verdict;
use super::reason::{Reason, ReasonId};

/// The first quota of the namespace that leaves too little for another claim, and whether that can change by itself.
pub(super) fn refuses(quotas: &[ResourceQuota], claim: &ResourceClaim) -> Option<(Reason, Verdict)> {
    let namespace = claim.metadata.namespace.as_deref().unwrap_or("default");
    let needed = usage(claim);
    for quota in quotas.iter().filter(|it| it.metadata.namespace.as_deref() == Some(namespace)) {
        let Some(spec) = &quota.spec else { continue };
        // Quotas with scopes count pods.
        if spec.scopes.as_ref().is_some_and(|it| !it.is_empty()) || spec.scope_selector.is_some() {
            continue;
        }
        for (resource, needed) in &needed {
            if let Some(found) = refused(quota, resource, *needed) {
                return Some(found);
            }
        }
    }
    None
}

fn refused(quota: &ResourceQuota, resource: &str, needed: i64) -> Option<(Reason, Verdict)> {
    let amount = |all: Option<&BTreeMap<String, _>>| -> Option<i64> {
        let text: &k8s_openapi::apimachinery::pkg::api::resource::Quantity = all?.get(resource)?;
        Quantity::parse(&text.0).ok()?.as_integer()
    };
    let spec = quota.spec.as_ref();
    let hard = amount(spec.and_then(|it| it.hard.as_ref()))?;
    let used = amount(quota.status.as_ref().and_then(|it| it.used.as_ref())).unwrap_or(0);
    if used.saturating_add(needed) <= hard {
        return None;
    }
    let name = quota.metadata.name.as_deref().unwrap_or_default();
    let namespace = quota.metadata.namespace.as_deref().unwrap_or_default();
    let sentence = format!(
        "quota {name} of namespace {namespace} allows {hard} of {resource}; {used} are used, and the claim needs {needed}"
    );
    let raise = format!(
        "ask an administrator to raise {resource} in quota {name}: kubectl -n {namespace} edit quota {name}"
    );
    let reason = Reason::new(ReasonId::QuotaExceeded, sentence);
    if needed > hard {
        let less = "ask for fewer devices in the claim or its template".to_owned();
        return Some((reason.advise(less).advise(raise), Verdict::Never));
    }
    let end = format!("end a pod that uses devices of this quota: kubectl -n {namespace} get resourceclaims");
    Some((reason.advise(end).advise(raise), Verdict::NotNow))
}

/// What a claim counts in a quota.
fn usage(claim: &ResourceClaim) -> BTreeMap<String, i64> {
    let mut usage: BTreeMap<String, i64> =
        BTreeMap::from([("count/resourceclaims.resource.k8s.io".to_owned(), 1)]);
    let of = |mode: Option<&str>, count: Option<i64>| match mode {
        Some("All") => i64::try_from(MAX_DEVICES).unwrap_or(i64::MAX),
        _ => count.unwrap_or(1),
    };
    for request in claim.spec.devices.iter().flat_map(|it| it.requests.iter().flatten()) {
        let mut most: BTreeMap<&str, i64> = BTreeMap::new();
        if let Some(it) = &request.exactly {
            most.insert(&it.device_class_name, of(it.allocation_mode.as_deref(), it.count));
        }
        // Of alternatives the largest of each class counts.
        for it in request.first_available.iter().flatten() {
            let number = of(it.allocation_mode.as_deref(), it.count);
            let largest = most.entry(&it.device_class_name).or_insert(0);
            *largest = number.max(*largest);
        }
        for (class, number) in most {
            let total = usage.entry(format!("{class}.deviceclass.resource.k8s.io/devices")).or_insert(0);
            *total = total.saturating_add(number);
        }
    }
    usage
}
