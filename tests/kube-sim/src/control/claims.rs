//! Pods that name a claim template get a claim of their own, as the resource claim controller makes it.

use serde_json::{Value, json};

use super::events;
use super::objects::{claim_name, finished, place};
use crate::api::kinds::{POD, RESOURCE_CLAIM, RESOURCE_CLAIM_TEMPLATE};
use crate::api::patch::Patch;
use crate::api::store::{Part, Store, WriteOptions};

pub(super) fn reconcile(store: &Store) {
    for pod in store.list_by_age(&POD) {
        if pod["metadata"]["deletionTimestamp"].is_null() && !finished(&pod) {
            generate(store, &pod);
        }
    }
}

fn generate(store: &Store, pod: &Value) {
    let mut statuses = pod["status"]["resourceClaimStatuses"].as_array().cloned().unwrap_or_default();
    let before = statuses.len();
    for entry in pod["spec"]["resourceClaims"].as_array().into_iter().flatten() {
        let Some(template) = entry["resourceClaimTemplateName"].as_str() else { continue };
        if claim_name(pod, entry).is_some() {
            continue;
        }
        match generate_one(store, pod, entry, template) {
            Ok(name) => statuses.push(json!({"name": entry["name"], "resourceClaimName": name})),
            Err(why) => {
                let message = format!("PodResourceClaim {}: {why}", entry["name"].as_str().unwrap_or(""));
                events::record_once(
                    store,
                    pod,
                    "Warning",
                    "FailedResourceClaimCreation",
                    &message,
                    "resource_claim",
                );
            }
        }
    }
    if statuses.len() > before {
        let (namespace, name) = place(pod);
        let patch = Patch::Merge(json!({"status": {"resourceClaimStatuses": statuses}}));
        drop(store.patch(&POD, namespace, name, &patch, Part::Status, &WriteOptions::default()));
    }
}

fn generate_one(store: &Store, pod: &Value, entry: &Value, template: &str) -> Result<String, String> {
    let (namespace, pod_name) = place(pod);
    let template = store.get(&RESOURCE_CLAIM_TEMPLATE, namespace, template).map_err(|e| e.to_string())?;
    let entry_name = entry["name"].as_str().unwrap_or("");
    let mut annotations = template["spec"]["metadata"]["annotations"].clone();
    annotations["resource.kubernetes.io/pod-claim-name"] = entry_name.into();
    let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": pod_name, "uid": pod["metadata"]["uid"],
        "controller": true, "blockOwnerDeletion": true}]);
    let claim = json!({
        "metadata": {"generateName": format!("{pod_name}-{entry_name}-"), "namespace": namespace,
            "annotations": annotations, "labels": template["spec"]["metadata"]["labels"], "ownerReferences": owner},
        "spec": template["spec"]["spec"],
    });
    let made = store
        .create(&RESOURCE_CLAIM, namespace, claim, &WriteOptions::default())
        .map_err(|e| e.to_string())?;
    Ok(place(&made).1.to_owned())
}
