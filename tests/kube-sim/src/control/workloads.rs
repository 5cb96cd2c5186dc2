//! Deployments make ReplicaSets, ReplicaSets make pods. A changed template makes a new ReplicaSet and empties the old ones at
//! once; there is no rolling update.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use serde_json::{Value, json};

use super::{all, finished, place, text};
use crate::api::kinds::{DEPLOYMENT, KindRef, POD, REPLICA_SET};
use crate::api::patch::Patch;
use crate::api::store::{DeleteOptions, Part, Store, WriteOptions};

pub(super) fn reconcile(store: &Store) {
    for deployment in all(store, &DEPLOYMENT) {
        deploy(store, &deployment);
    }
    for set in all(store, &REPLICA_SET) {
        replicate(store, &set);
    }
}

fn owner(object: &Value) -> Value {
    json!([{"apiVersion": object["apiVersion"], "kind": object["kind"], "name": object["metadata"]["name"],
        "uid": object["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true}])
}

fn owned(store: &Store, kind: KindRef, owner: &Value) -> Vec<Arc<Value>> {
    let uid = &owner["metadata"]["uid"];
    let mine = |object: &Arc<Value>| {
        object["metadata"]["ownerReferences"]
            .as_array()
            .is_some_and(|list| list.iter().any(|o| o["uid"] == *uid))
    };
    all(store, kind).into_iter().filter(mine).collect()
}

fn status(store: &Store, kind: KindRef, object: &Value, status: Value) {
    let (namespace, name) = place(object);
    let patch = Patch::Merge(json!({ "status": status }));
    // Who was deleted in between needs no status.
    drop(store.patch(kind, namespace, name, &patch, Part::Status, &WriteOptions::default()));
}

/// A short name for a pod template, the same for the same template.
fn template_hash(template: &Value) -> String {
    let mut hasher = DefaultHasher::new();
    template.to_string().hash(&mut hasher);
    format!("{:010x}", hasher.finish() >> 24)
}

fn deploy(store: &Store, deployment: &Value) {
    if !deployment["metadata"]["deletionTimestamp"].is_null() {
        return;
    }
    let (namespace, name) = place(deployment);
    let hash = template_hash(&deployment["spec"]["template"]);
    let wanted = format!("{name}-{hash}");
    let sets = owned(store, &REPLICA_SET, deployment);
    for set in &sets {
        let replicas = if place(set).1 == wanted { deployment["spec"]["replicas"].clone() } else { json!(0) };
        if set["spec"]["replicas"] != replicas {
            let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
            drop(store.patch(
                &REPLICA_SET,
                namespace,
                place(set).1,
                &patch,
                Part::Main,
                &WriteOptions::default(),
            ));
        }
    }
    if !sets.iter().any(|set| place(set).1 == wanted) {
        let mut template = deployment["spec"]["template"].clone();
        template["metadata"]["labels"]["pod-template-hash"] = hash.clone().into();
        let mut selector = deployment["spec"]["selector"].clone();
        selector["matchLabels"]["pod-template-hash"] = hash.into();
        let set = json!({
            "metadata": {"name": wanted, "namespace": namespace, "ownerReferences": owner(deployment),
                "labels": template["metadata"]["labels"]},
            "spec": {"replicas": deployment["spec"]["replicas"], "selector": selector, "template": template},
        });
        if let Err(error) = store.create(&REPLICA_SET, namespace, set, &WriteOptions::default()) {
            tracing::warn!(%error, deployment = name, "no ReplicaSet");
        }
    }
    let ready = sum(&sets, "readyReplicas");
    status(
        store,
        &DEPLOYMENT,
        deployment,
        json!({"replicas": sum(&sets, "replicas"), "readyReplicas": ready,
        "availableReplicas": ready, "updatedReplicas": sum(&sets, "replicas"),
        "observedGeneration": deployment["metadata"]["generation"]}),
    );
}

fn sum(sets: &[Arc<Value>], field: &str) -> i64 {
    sets.iter().filter_map(|set| set["status"][field].as_i64()).sum()
}

fn replicate(store: &Store, set: &Value) {
    if !set["metadata"]["deletionTimestamp"].is_null() {
        return;
    }
    let (namespace, name) = place(set);
    let mut pods = owned(store, &POD, set);
    pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null() && !finished(pod));
    let wanted = set["spec"]["replicas"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    for _ in pods.len()..wanted {
        let mut meta = set["spec"]["template"]["metadata"].clone();
        meta["generateName"] = format!("{name}-").into();
        meta["namespace"] = namespace.into();
        meta["ownerReferences"] = owner(set);
        let pod = json!({"metadata": meta, "spec": set["spec"]["template"]["spec"]});
        if let Err(error) = store.create(&POD, namespace, pod, &WriteOptions::default()) {
            tracing::warn!(%error, replica_set = name, "no pod");
            break;
        }
    }
    // Pods that do not run yet go first.
    pods.sort_by_key(|pod| text(&pod["status"], "phase") == "Running");
    let excess = pods.len().saturating_sub(wanted);
    for pod in pods.iter().take(excess) {
        drop(store.delete(&POD, namespace, place(pod).1, &DeleteOptions::default()));
    }
    let ready = pods.iter().skip(excess).filter(|p| text(&p["status"], "phase") == "Running").count();
    status(
        store,
        &REPLICA_SET,
        set,
        json!({"replicas": wanted, "readyReplicas": ready, "availableReplicas": ready,
        "observedGeneration": set["metadata"]["generation"]}),
    );
}
