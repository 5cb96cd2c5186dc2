//! The scheduler: pods in the order of their creation, nodes in the order of their names, the first node that fits.
//!
//! Only devices count; CPU, memory, affinity and taints of nodes do not, but for the node that a pod of a DaemonSet is for. Pods of higher
//! priority come first; no pod is preempted.

use std::collections::BTreeMap;
use std::sync::Arc;

use dra_allocator::{Allocated, Cluster, Features, Refusal};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceClass, ResourceClaim, ResourceSlice};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::events;
use super::extended::{special_claim, store_claim};
use super::objects::{all, claim_name, finished, place, text};
use super::sets::pinned_node;
use crate::api::clock;
use crate::api::kinds::{DEVICE_CLASS, KindRef, NODE, POD, RESOURCE_CLAIM, RESOURCE_SLICE};
use crate::api::patch::Patch;
use crate::api::store::{Part, Store, WriteOptions};

/// Keeps a claim from being deleted while it is allocated.
pub(super) const PROTECTION: &str = "resource.kubernetes.io/delete-protection";

const SCHEDULER: &str = "default-scheduler";

/// Candidates tried per node: fewer than in 10 s of a real scheduler, so that tests do not wait.
const MAX_STEPS: usize = 200_000;

pub(super) fn reconcile(store: &Store) {
    let mut pending = store.list_by_age(&POD);
    pending.retain(|pod| {
        pod["spec"]["nodeName"].as_str().unwrap_or("").is_empty()
            && pod["metadata"]["deletionTimestamp"].is_null()
            && !finished(pod)
            && text(&pod["spec"], "schedulerName") == SCHEDULER
    });
    pending.sort_by_key(|pod| std::cmp::Reverse(pod["spec"]["priority"].as_i64().unwrap_or(0)));
    for pod in pending {
        if let Err(why) = schedule(store, &pod) {
            unschedulable(store, &pod, &why);
        }
    }
}

fn typed<T: DeserializeOwned>(objects: &[Arc<Value>]) -> Vec<T> {
    // Everything in the store went through these types, so nothing is lost here.
    objects.iter().filter_map(|object| T::deserialize(&**object).ok()).collect()
}

fn typed_all<T: DeserializeOwned>(store: &Store, kind: KindRef) -> Vec<T> {
    typed(&all(store, kind))
}

/// The pod's claims as stored, or why they are not all there. `None` while one has still to be made from its template: such a
/// pod does not enter the queue, which is not worth an event.
fn claims_of(store: &Store, pod: &Value) -> Result<Option<Vec<Arc<Value>>>, String> {
    let namespace = place(pod).0;
    let mut claims: Vec<Arc<Value>> = Vec::new();
    for entry in pod["spec"]["resourceClaims"].as_array().into_iter().flatten() {
        let Some(name) = claim_name(pod, entry) else { return Ok(None) };
        let claim = store.get(&RESOURCE_CLAIM, namespace, &name).map_err(|e| e.to_string())?;
        if !claim["metadata"]["deletionTimestamp"].is_null() {
            return Err(format!("resourceclaim \"{name}\" is being deleted"));
        }
        if !claims.iter().any(|c| c["metadata"]["uid"] == claim["metadata"]["uid"]) {
            claims.push(claim);
        }
    }
    Ok(Some(claims))
}

fn schedule(store: &Store, pod: &Value) -> Result<(), String> {
    let Some(claims) = claims_of(store, pod)? else { return Ok(()) };
    let (allocated, open): (Vec<_>, Vec<_>) =
        claims.into_iter().partition(|claim| !claim["status"]["allocation"].is_null());
    let slices: Vec<ResourceSlice> = typed_all(store, &RESOURCE_SLICE);
    let classes: Vec<DeviceClass> = typed_all(store, &DEVICE_CLASS);
    let all_claims: Vec<ResourceClaim> = typed_all(store, &RESOURCE_CLAIM);
    let allocated_devices = Allocated::of(&all_claims);
    let cluster = Cluster::new(&slices, &classes, Features::ALL).with_max_steps(MAX_STEPS);
    let wanted: Vec<ResourceClaim> = typed(&open);
    let gate = store.gates().extended_resource;
    let nodes: Vec<Node> = typed_all(store, &NODE);
    if nodes.is_empty() {
        return Err("no nodes available to schedule pods".into());
    }
    let mut refusals: BTreeMap<String, usize> = BTreeMap::new();
    for node in &nodes {
        let name = node.metadata.name.clone().unwrap_or_default();
        if !allocated.iter().all(|claim| usable_on(claim, &name)) {
            *refusals.entry("resourceclaim not available on the node".into()).or_default() += 1;
            continue;
        }
        if pinned_node(pod).is_some_and(|pinned| pinned != name) {
            *refusals.entry("node(s) didn't match Pod's node affinity/selector".into()).or_default() += 1;
            continue;
        }
        let special = match special_claim(pod, node, &classes, gate) {
            Ok(special) => special,
            Err(resource) => {
                *refusals.entry(format!("Insufficient {resource}")).or_default() += 1;
                continue;
            }
        };
        let mut wanted = wanted.clone();
        wanted.extend(special.as_ref().map(|(claim, _)| claim.clone()));
        match cluster.allocate(node, &wanted, &allocated_devices) {
            Ok(allocations) => {
                let mut open = open;
                if let Some(special) = special {
                    open.push(store_claim(store, pod, &special).map_err(|e| e.to_string())?.into());
                }
                let fresh = open.iter().zip(allocations).map(|(claim, a)| (claim, Some(a)));
                let reused = allocated.iter().map(|claim| (claim, None));
                return bind(store, pod, &name, reused.chain(fresh));
            }
            // Such an error stops the pod everywhere.
            Err(Refusal::Aborted(why)) => return Err(why.to_string()),
            Err(refusal) => *refusals.entry(refusal.to_string()).or_default() += 1,
        }
    }
    let reasons: Vec<String> = refusals.iter().map(|(why, count)| format!("{count} {why}")).collect();
    Err(format!("0/{} nodes are available: {}.", nodes.len(), reasons.join(", ")))
}

/// Whether an allocated claim can be used on a node; only selectors by node name are understood.
fn usable_on(claim: &Value, node: &str) -> bool {
    let terms = claim["status"]["allocation"]["nodeSelector"]["nodeSelectorTerms"].as_array();
    terms.is_none_or(|terms| {
        terms.iter().any(|term| {
            let fields = term["matchFields"].as_array().cloned().unwrap_or_default();
            fields.iter().all(|f| f["values"].as_array().is_some_and(|v| v.iter().any(|n| n == node)))
        })
    })
}

fn bind<'c>(
    store: &Store,
    pod: &Value,
    node: &str,
    claims: impl Iterator<Item = (&'c Arc<Value>, Option<AllocationResult>)>,
) -> Result<(), String> {
    for (claim, allocation) in claims {
        reserve(store, pod, claim, allocation).map_err(|e| e.to_string())?;
    }
    let (namespace, name) = place(pod);
    let options = WriteOptions::default();
    let binding = Patch::Merge(json!({"spec": {"nodeName": node}}));
    store.patch(&POD, namespace, name, &binding, Part::Main, &options).map_err(|e| e.to_string())?;
    condition(
        store,
        pod,
        json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": clock::now()}),
    );
    let message = format!("Successfully assigned {namespace}/{name} to {node}");
    events::record_once(store, pod, "Normal", "Scheduled", &message, SCHEDULER);
    Ok(())
}

fn reserve(
    store: &Store,
    pod: &Value,
    claim: &Value,
    allocation: Option<AllocationResult>,
) -> Result<(), crate::api::error::ApiError> {
    let (namespace, name) = place(claim);
    let options = WriteOptions::default();
    let mut finalizers = claim["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    if !finalizers.iter().any(|f| f == PROTECTION) {
        finalizers.push(PROTECTION.into());
        let protect = Patch::Merge(json!({"metadata": {"finalizers": finalizers}}));
        store.patch(&RESOURCE_CLAIM, namespace, name, &protect, Part::Main, &options)?;
    }
    let mut reserved = claim["status"]["reservedFor"].as_array().cloned().unwrap_or_default();
    let uid = &pod["metadata"]["uid"];
    if !reserved.iter().any(|r| r["uid"] == *uid) {
        reserved.push(json!({"resource": "pods", "name": place(pod).1, "uid": uid}));
    }
    let mut status = json!({ "reservedFor": reserved });
    if let Some(allocation) = allocation {
        status["allocation"] = json!(allocation);
    }
    let patch = Patch::Merge(json!({ "status": status }));
    store.patch(&RESOURCE_CLAIM, namespace, name, &patch, Part::Status, &options).map(drop)
}

fn unschedulable(store: &Store, pod: &Value, why: &str) {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    // Said once; saying it again would be a change, which would wake this loop again.
    if conditions.iter().any(|c| c["type"] == "PodScheduled" && c["message"] == why) {
        return;
    }
    condition(
        store,
        pod,
        json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why,
            "lastTransitionTime": clock::now()}),
    );
    events::record_once(store, pod, "Warning", "FailedScheduling", why, SCHEDULER);
}

/// Sets one condition of a pod.
fn condition(store: &Store, pod: &Value, condition: Value) {
    let (namespace, name) = place(pod);
    let patch = Patch::Strategic(json!({"status": {"conditions": [
        {"type": condition["type"], "$patch": "delete"}, condition]}}));
    // A pod that was deleted in between needs no condition.
    drop(store.patch(&POD, namespace, name, &patch, Part::Status, &WriteOptions::default()));
}
