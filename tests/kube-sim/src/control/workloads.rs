//! Deployments make ReplicaSets, ReplicaSets make pods. A changed template makes a new ReplicaSet and empties the old ones at
//! once; there is no rolling update.

use std::sync::Arc;

use serde_json::{Value, json};

use super::objects::place;
use super::owned::{create_pod, delete_pod, is_active, owned, owner, runs, status, template_hash};
use crate::api::kinds::{DEPLOYMENT, POD, REPLICA_SET};
use crate::api::patch::Patch;
use crate::api::store::{Part, Store, WriteOptions};

pub(super) fn reconcile(store: &Store) {
    for deployment in store.list_by_age(&DEPLOYMENT) {
        deploy(store, &deployment);
    }
    for set in store.list_by_age(&REPLICA_SET) {
        replicate(store, &set);
    }
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
    let mut pods = owned(store, &POD, set);
    pods.retain(|pod| is_active(pod));
    let wanted = set["spec"]["replicas"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    let metadata = json!({"generateName": format!("{}-", place(set).1)});
    for _ in pods.len()..wanted {
        if !create_pod(store, set, &set["spec"]["template"], &metadata) {
            break;
        }
    }
    // Pods that do not run yet go first.
    pods.sort_by_key(|pod| runs(pod));
    let excess = pods.len().saturating_sub(wanted);
    pods.iter().take(excess).for_each(|pod| delete_pod(store, pod));
    let ready = pods.iter().skip(excess).filter(|pod| runs(pod)).count();
    status(
        store,
        &REPLICA_SET,
        set,
        json!({"replicas": wanted, "readyReplicas": ready, "availableReplicas": ready,
        "observedGeneration": set["metadata"]["generation"]}),
    );
}
