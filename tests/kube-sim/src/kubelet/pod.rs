//! What the kubelet writes into a pod's status, and which claims a pod has.

use serde_json::{Value, json};

use super::client::Claim;
use crate::api::clock;
use crate::api::kinds::{POD, RESOURCE_CLAIM};
use crate::api::patch::Patch;
use crate::api::store::{Part, Store, WriteOptions};
use crate::control::{claim_name, extended_claim_name};

/// A claim of a pod, with what its allocation says about drivers.
#[derive(Debug, Clone)]
pub(super) struct PodClaim {
    pub(super) claim: Claim,
    /// Name of the entry in the pod's `spec.resourceClaims`; none for the claim of its extended resources.
    pub(super) entry: Option<String>,
    /// Drivers of the allocated devices.
    pub(super) drivers: Vec<String>,
}

pub(super) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or("")
}

/// The claims of a pod.
///
/// # Errors
/// When one is missing, not allocated, or not reserved for the pod: a pod that the scheduler has not finished with.
pub(super) fn claims(store: &Store, pod: &Value) -> Result<Vec<PodClaim>, String> {
    let namespace = text(&pod["metadata"], "namespace");
    let mut claims = Vec::new();
    let mut names = Vec::new();
    for entry in pod["spec"]["resourceClaims"].as_array().into_iter().flatten() {
        let entry_name = text(entry, "name");
        let name =
            claim_name(pod, entry).ok_or_else(|| format!("claim {entry_name} has not been created yet"))?;
        names.push((Some(entry_name.to_owned()), name));
    }
    names.extend(extended_claim_name(pod).map(|name| (None, name.to_owned())));
    for (entry, name) in names {
        let object = store.get(&RESOURCE_CLAIM, namespace, &name).map_err(|e| e.to_string())?;
        let reserved = object["status"]["reservedFor"].as_array();
        if !reserved.is_some_and(|list| list.iter().any(|r| r["uid"] == pod["metadata"]["uid"])) {
            return Err(format!("pod is not allowed to use resource claim {name}"));
        }
        let results =
            object["status"]["allocation"]["devices"]["results"].as_array().cloned().unwrap_or_default();
        let mut drivers: Vec<String> = results.iter().map(|r| text(r, "driver").to_owned()).collect();
        drivers.sort();
        drivers.dedup();
        let uid = text(&object["metadata"], "uid").to_owned();
        let claim = Claim { namespace: namespace.to_owned(), name, uid };
        claims.push(PodClaim { claim, entry, drivers });
    }
    Ok(claims)
}

fn write(store: &Store, pod: &Value, status: Value) {
    let (namespace, name) = (text(&pod["metadata"], "namespace"), text(&pod["metadata"], "name"));
    let patch = Patch::Merge(json!({ "status": status }));
    // A pod that is gone needs no status.
    drop(store.patch(&POD, namespace, name, &patch, Part::Status, &WriteOptions::default()));
}

fn container_statuses(pod: &Value, state: &Value, ready: bool) -> Vec<Value> {
    let containers = pod["spec"]["containers"].as_array().cloned().unwrap_or_default();
    let status = |container: Value| {
        json!({"name": container["name"], "image": container["image"], "imageID": "", "ready": ready, "started": ready,
            "restartCount": 0, "state": state})
    };
    containers.into_iter().map(status).collect()
}

/// The pod waits for its devices.
pub(super) fn creating(store: &Store, pod: &Value) {
    if pod["status"]["containerStatuses"].is_null() {
        let state = json!({"waiting": {"reason": "ContainerCreating"}});
        write(
            store,
            pod,
            json!({"phase": "Pending", "containerStatuses": container_statuses(pod, &state, false)}),
        );
    }
}

/// The pod's containers run, as far as is known.
pub(super) fn running(store: &Store, pod: &Value) {
    let now = clock::now();
    let state = json!({"running": {"startedAt": now}});
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now});
    let conditions: Vec<Value> =
        ["PodScheduled", "Initialized", "ContainersReady", "Ready"].into_iter().map(condition).collect();
    write(
        store,
        pod,
        json!({"phase": "Running", "startTime": now, "conditions": conditions,
        "containerStatuses": container_statuses(pod, &state, true)}),
    );
}
