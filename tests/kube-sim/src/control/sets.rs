//! StatefulSets and DaemonSets. A changed template replaces all pods at once; there is no rolling update, and no volumes.

use std::sync::Arc;

use serde_json::{Value, json};

use super::objects::{all, finished, place, text};
use super::owned::{create_pod, delete_pod, is_active, is_leaving, owned, runs, status, template_hash};
use crate::api::kinds::{DAEMON_SET, NODE, POD, STATEFUL_SET};
use crate::api::store::Store;

/// The label that tells pods of one template from those of another.
const REVISION: &str = "controller-revision-hash";

pub(super) fn reconcile(store: &Store) {
    for set in store.list_by_age(&STATEFUL_SET) {
        if !is_leaving(&set) {
            number(store, &set);
        }
    }
    for set in store.list_by_age(&DAEMON_SET) {
        if !is_leaving(&set) {
            cover(store, &set);
        }
    }
}

/// Deletes pods that have ended or are of another template.
fn delete_outdated(store: &Store, pods: &[Arc<Value>], revision: &str) {
    let outdated = |pod: &&Arc<Value>| finished(pod) || pod["metadata"]["labels"][REVISION] != revision;
    pods.iter().filter(outdated).for_each(|pod| delete_pod(store, pod));
}

/// Keeps the pods `name-0`, `name-1` and so on: each when the one before it runs, or with the policy `Parallel` all at once.
fn number(store: &Store, set: &Value) {
    let name = place(set).1;
    let template = &set["spec"]["template"];
    let revision = template_hash(template);
    let pods = owned(store, &POD, set);
    let parallel = set["spec"]["podManagementPolicy"] == "Parallel";
    let wanted = set["spec"]["replicas"].as_u64().unwrap_or(0);
    delete_outdated(store, &pods, &revision);
    for index in 0..wanted {
        let pod_name = format!("{name}-{index}");
        let proceeds = match pods.iter().find(|pod| place(pod).1 == pod_name) {
            Some(pod) => is_active(pod) && runs(pod),
            None => {
                let labels = json!({REVISION: revision, "statefulset.kubernetes.io/pod-name": pod_name,
                    "apps.kubernetes.io/pod-index": index.to_string()});
                create_pod(store, set, template, &json!({"name": pod_name, "labels": labels}));
                false
            }
        };
        if !proceeds && !parallel {
            break;
        }
    }
    let index = |pod: &Value| place(pod).1.rsplit('-').next().and_then(|n| n.parse::<u64>().ok());
    let excess = pods.iter().filter(|pod| index(pod).is_none_or(|index| index >= wanted));
    excess.for_each(|pod| delete_pod(store, pod));
    let current = pods.iter().filter(|pod| is_active(pod)).count();
    let ready = pods.iter().filter(|pod| is_active(pod) && runs(pod)).count();
    let report = json!({"replicas": current, "currentReplicas": current, "updatedReplicas": current, "readyReplicas": ready,
        "availableReplicas": ready, "observedGeneration": set["metadata"]["generation"]});
    status(store, &STATEFUL_SET, set, report);
}

/// Keeps one pod on each node.
fn cover(store: &Store, set: &Value) {
    let template = &set["spec"]["template"];
    let revision = template_hash(template);
    let pods = owned(store, &POD, set);
    let nodes = all(store, &NODE);
    delete_outdated(store, &pods, &revision);
    for node in &nodes {
        let node = place(node).1;
        if !pods.iter().any(|pod| pinned_node(pod) == Some(node)) {
            let field = json!({"key": "metadata.name", "operator": "In", "values": [node]});
            let terms = json!({"nodeSelectorTerms": [{"matchFields": [field]}]});
            let mut pinned = template.clone();
            pinned["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
                terms;
            let metadata =
                json!({"generateName": format!("{}-", place(set).1), "labels": {REVISION: revision}});
            create_pod(store, set, &pinned, &metadata);
        }
    }
    let current = pods.iter().filter(|pod| is_active(pod)).count();
    let ready = pods.iter().filter(|pod| is_active(pod) && runs(pod)).count();
    let report = json!({"desiredNumberScheduled": nodes.len(), "currentNumberScheduled": current, "numberMisscheduled": 0,
        "numberReady": ready, "numberAvailable": ready, "updatedNumberScheduled": current,
        "observedGeneration": set["metadata"]["generation"]});
    status(store, &DAEMON_SET, set, report);
}

/// The node that a pod of a DaemonSet is for.
pub(super) fn pinned_node(pod: &Value) -> Option<&str> {
    let required = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let field = &required["nodeSelectorTerms"][0]["matchFields"][0];
    (text(field, "key") == "metadata.name").then(|| field["values"][0].as_str()).flatten()
}
