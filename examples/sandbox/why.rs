//! Why a pod is pending. Everything that the sandbox says about it goes through [`why_pending`].

use std::collections::BTreeMap;
use std::fmt::Write;

use dra_allocator::{Allocated, Cluster, Features, Finding, PoolProblem, Refusal, RequestReport};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use kube_sim::ApiServer;
use kube_sim::control::unallocated_claims;
use kube_sim::kinds::{DEVICE_CLASS, EVENT, KindRef, NODE, RESOURCE_CLAIM, RESOURCE_SLICE};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The reasons, a line each.
pub(crate) fn why_pending(server: &ApiServer, pod: &Value) -> String {
    let mut out = String::new();
    for (reason, message) in warnings(server, &pod["metadata"]["uid"]) {
        let _ = writeln!(out, "{reason}: {message}");
    }
    let slices: Vec<ResourceSlice> = typed(server, &RESOURCE_SLICE);
    let classes: Vec<DeviceClass> = typed(server, &DEVICE_CLASS);
    let claims: Vec<ResourceClaim> = typed(server, &RESOURCE_CLAIM);
    let allocated = Allocated::of(&claims);
    let cluster = Cluster::new(&slices, &classes, Features::ALL);
    for node in typed::<Node>(server, &NODE) {
        let name = node.metadata.name.clone().unwrap_or_default();
        match unallocated_claims(&server.store(), pod, &node) {
            Ok(wanted) if wanted.is_empty() => {}
            Ok(wanted) => {
                let explanation = cluster.explain(&node, &wanted, &allocated);
                let verdict = match &explanation.outcome {
                    Ok(_) => "the claims fit now".to_owned(),
                    Err(refusal) => refusal.to_string(),
                };
                let _ = writeln!(out, "node {name}: {verdict}");
                let is_abort = matches!(explanation.outcome, Err(Refusal::Aborted(_)));
                for report in explanation.requests.iter().filter(|_| !is_abort) {
                    let _ = writeln!(out, "  {}", request(report));
                }
                for pool in &explanation.pools {
                    let _ =
                        writeln!(out, "  pool {} of {}: {}", pool.pool, pool.driver, problem(&pool.problem));
                }
                if explanation.fits_without_leak == Some(true) {
                    let _ =
                        writeln!(out, "  it would fit but for a defect of the scheduler, kubernetes #140436");
                }
            }
            Err(why) => {
                let _ = writeln!(out, "node {name}: {why}{}", advice(server, &why));
            }
        }
    }
    out
}

/// The last warning of each reason about an object.
pub(crate) fn warnings(server: &ApiServer, uid: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let mut events = server.list(&EVENT);
    events.retain(|event| event["involvedObject"]["uid"] == *uid && event["type"] == "Warning");
    events.sort_by_key(|event| {
        event["metadata"]["resourceVersion"].as_str().and_then(|it| it.parse::<u64>().ok())
    });
    events.iter().map(|event| (text(&event["reason"]), text(&event["message"]))).collect()
}

fn typed<T: DeserializeOwned>(server: &ApiServer, kind: KindRef) -> Vec<T> {
    // Everything in the store went through these types, so nothing is lost here.
    server.list(kind).iter().filter_map(|object| T::deserialize(&**object).ok()).collect()
}

/// What to do about a resource that the node does not have.
fn advice(server: &ApiServer, why: &str) -> &'static str {
    if !why.contains("does not have the resource") {
        ""
    } else if server.store().gates().extended_resource {
        "; no device class has this extendedResourceName"
    } else {
        "; switch the gate on with --gate DRAExtendedResource=true, or turn the manifest into one with claims: kubectl mig convert"
    }
}

/// What stands between a request and the devices, most frequent first.
fn request(report: &RequestReport) -> String {
    let title = format!("claim {}, request {} of class {}", report.claim.name, report.request, report.class);
    let usable = report.usable().count();
    let mut obstacles: BTreeMap<String, usize> = BTreeMap::new();
    for device in report.devices.iter().filter(|it| it.finding != Finding::Usable) {
        *obstacles.entry(obstacle(&device.finding)).or_default() += 1;
    }
    let mut obstacles: Vec<(String, usize)> = obstacles.into_iter().collect();
    obstacles.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let list: Vec<String> = obstacles.iter().map(|(what, count)| format!("{count} {what}")).collect();
    let rest = if list.is_empty() { String::new() } else { format!("; {}", list.join(", ")) };
    format!("{title}: {usable} of {} devices usable{rest}", report.devices.len())
}

fn obstacle(finding: &Finding) -> String {
    match finding {
        Finding::Usable => "usable".to_owned(),
        Finding::BindingConditions => "with binding conditions".to_owned(),
        Finding::OtherNode => "of other nodes".to_owned(),
        Finding::ClassSelectorFalse { .. } => "not selected by the class".to_owned(),
        Finding::RequestSelectorFalse { .. } => "not selected by the request".to_owned(),
        Finding::SelectorError { error } => format!("with a selector that fails: {}", error.error),
        Finding::Allocated { .. } => "allocated".to_owned(),
        Finding::CountersDisabled => "with counters, whose gate is off".to_owned(),
        Finding::Counters { .. } => "overlap with allocated ones".to_owned(),
        Finding::Taint { key, .. } => format!("with the taint {key}"),
        Finding::AttributeMissing { attribute } => format!("without the attribute {attribute}"),
        Finding::Constraint { attribute, found, needed, .. } => {
            format!("whose {attribute} only {found} of {needed} usable devices have")
        }
    }
}

fn problem(problem: &PoolProblem) -> String {
    match problem {
        PoolProblem::Incomplete { found, expected } => format!("{found} of {expected} slices are there"),
        PoolProblem::Invalid { why } => why.clone(),
        PoolProblem::Overdrawn { .. } => "more is consumed than there is".to_owned(),
        PoolProblem::NameShared { driver } => format!("{driver} has a pool of this name, too"),
    }
}
