//! What controllers of workloads share: their pods, and the status of the workload.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use serde_json::{Value, json};

use super::events;
use super::objects::{all, finished, place, text};
use crate::api::kinds::{KindRef, POD};
use crate::api::patch::Patch;
use crate::api::store::{DeleteOptions, Part, Store, WriteOptions};

/// The owner references of an object that this one controls.
pub(super) fn owner(object: &Value) -> Value {
    json!([{"apiVersion": object["apiVersion"], "kind": object["kind"], "name": object["metadata"]["name"],
        "uid": object["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true}])
}

/// The objects of a kind that this one owns.
pub(super) fn owned(store: &Store, kind: KindRef, owner: &Value) -> Vec<Arc<Value>> {
    let uid = &owner["metadata"]["uid"];
    let mine = |object: &Arc<Value>| {
        object["metadata"]["ownerReferences"]
            .as_array()
            .is_some_and(|list| list.iter().any(|o| o["uid"] == *uid))
    };
    all(store, kind).into_iter().filter(mine).collect()
}

/// Writes the status of a workload.
pub(super) fn status(store: &Store, kind: KindRef, object: &Value, status: Value) {
    let (namespace, name) = place(object);
    let patch = Patch::Merge(json!({ "status": status }));
    // An object that was deleted in between needs no status.
    drop(store.patch(kind, namespace, name, &patch, Part::Status, &WriteOptions::default()));
}

/// A short name for a pod template, the same for the same template.
pub(super) fn template_hash(template: &Value) -> String {
    let mut hasher = DefaultHasher::new();
    template.to_string().hash(&mut hasher);
    format!("{:010x}", hasher.finish() >> 24)
}

/// Creates a pod of a workload from its template, with these fields of the metadata besides. Answers whether it exists now; where it is
/// refused, an event of the workload says why.
pub(super) fn create_pod(store: &Store, workload: &Value, template: &Value, metadata: &Value) -> bool {
    let namespace = place(workload).0;
    let mut pod = json!({"metadata": template["metadata"], "spec": template["spec"]});
    let meta = &mut pod["metadata"];
    meta["namespace"] = namespace.into();
    meta["ownerReferences"] = owner(workload);
    for (key, value) in metadata.as_object().into_iter().flatten() {
        match value.as_object() {
            Some(map) => map.iter().for_each(|(inner, value)| meta[key][inner] = value.clone()),
            None => meta[key] = value.clone(),
        }
    }
    if let Err(error) = store.create(&POD, namespace, pod, &WriteOptions::default()) {
        let component = format!("{}-controller", text(workload, "kind").to_lowercase());
        let message = format!("Error creating: {error}");
        events::record_once(store, workload, "Warning", "FailedCreate", &message, &component);
        return false;
    }
    true
}

/// Deletes a pod.
pub(super) fn delete_pod(store: &Store, pod: &Value) {
    let (namespace, name) = place(pod);
    // One that is gone already needs no deletion.
    drop(store.delete(&POD, namespace, name, &DeleteOptions::default()));
}

/// Whether an object is being deleted.
pub(super) fn is_leaving(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

/// Whether a pod counts for its workload: it is neither being deleted nor ended.
pub(super) fn is_active(pod: &Value) -> bool {
    !is_leaving(pod) && !finished(pod)
}

/// Whether a pod runs.
pub(super) fn runs(pod: &Value) -> bool {
    text(&pod["status"], "phase") == "Running"
}
