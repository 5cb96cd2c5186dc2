//! Claims that no pod uses any more: the reservation goes with the pod, the allocation with the last reservation, and a generated
//! claim with its pod.

use serde_json::{Value, json};

use super::objects::{all, finished, place, text};
use super::scheduler::PROTECTION;
use crate::api::kinds::{POD, RESOURCE_CLAIM};
use crate::api::patch::Patch;
use crate::api::store::{DeleteOptions, Part, Store, WriteOptions};

pub(super) fn reconcile(store: &Store) {
    let pods = all(store, &POD);
    let alive = |uid: &Value| pods.iter().any(|pod| pod["metadata"]["uid"] == *uid && !finished(pod));
    for claim in all(store, &RESOURCE_CLAIM) {
        let (namespace, name) = place(&claim);
        let reserved = claim["status"]["reservedFor"].as_array().cloned().unwrap_or_default();
        // Consumers that are no pods are not ours to judge.
        let keep = |consumer: &&Value| text(consumer, "resource") != "pods" || alive(&consumer["uid"]);
        let kept: Vec<Value> = reserved.iter().filter(keep).cloned().collect();
        if kept.len() < reserved.len() || (kept.is_empty() && !claim["status"]["allocation"].is_null()) {
            let status = if kept.is_empty() {
                json!({"reservedFor": null, "allocation": null, "devices": null})
            } else {
                json!({ "reservedFor": kept })
            };
            let patch = Patch::Merge(json!({ "status": status }));
            drop(store.patch(
                &RESOURCE_CLAIM,
                namespace,
                name,
                &patch,
                Part::Status,
                &WriteOptions::default(),
            ));
        }
        if kept.is_empty() {
            unprotect(store, &claim);
        }
        let owners = claim["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
        let of_pod = owners.iter().find(|o| o["kind"] == "Pod" && o["controller"] == true);
        if of_pod.is_some_and(|owner| !alive(&owner["uid"]))
            && claim["metadata"]["deletionTimestamp"].is_null()
        {
            drop(store.delete(&RESOURCE_CLAIM, namespace, name, &DeleteOptions::default()));
        }
    }
}

/// Lets go of a claim that holds nothing, so that a deletion can go through.
fn unprotect(store: &Store, claim: &Value) {
    let finalizers = claim["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    let others: Vec<&Value> = finalizers.iter().filter(|f| **f != PROTECTION).collect();
    if others.len() < finalizers.len() {
        let (namespace, name) = place(claim);
        let patch = Patch::Merge(json!({"metadata": {"finalizers": others}}));
        drop(store.patch(&RESOURCE_CLAIM, namespace, name, &patch, Part::Main, &WriteOptions::default()));
    }
}
