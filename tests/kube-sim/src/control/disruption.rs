//! What PodDisruptionBudgets allow (`pkg/controller/disruption`).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::objects::{all, finished, text};
use super::owned::{is_leaving, status};
use crate::api::eviction::{is_ready, selected};
use crate::api::kinds::{KindRef, POD_DISRUPTION_BUDGET, REPLICA_SET, STATEFUL_SET};
use crate::api::store::Store;

pub(super) fn reconcile(store: &Store) {
    for budget in all(store, &POD_DISRUPTION_BUDGET) {
        let pods: Vec<Arc<Value>> = selected(store, &budget).into_iter().filter(|it| !finished(it)).collect();
        let disrupted = budget["status"]["disruptedPods"].as_object().cloned().unwrap_or_default();
        // An eviction counts until its pod is being deleted.
        let disrupted: serde_json::Map<String, Value> = disrupted
            .into_iter()
            .filter(|(name, _)| {
                pods.iter().any(|it| text(&it["metadata"], "name") == name && !is_leaving(it))
            })
            .collect();
        let is_healthy = |it: &&Arc<Value>| {
            is_ready(it) && !is_leaving(it) && !disrupted.contains_key(text(&it["metadata"], "name"))
        };
        let current = count(pods.iter().filter(is_healthy).count());
        let spec = &budget["spec"];
        let (expected, desired) = match (&spec["maxUnavailable"], &spec["minAvailable"]) {
            (Value::Null, Value::Number(least)) => (count(pods.len()), least.as_i64().unwrap_or(0)),
            (Value::Null, least) => {
                let expected = replicas(store, &pods);
                (expected, part(least, expected))
            }
            (most, _) => {
                let expected = replicas(store, &pods);
                (expected, (expected - part(most, expected)).max(0))
            }
        };
        let allowed = if expected == 0 { 0 } else { (current - desired).max(0) };
        let mut report = json!({"currentHealthy": current, "desiredHealthy": desired, "expectedPods": expected,
            "disruptionsAllowed": allowed, "observedGeneration": budget["metadata"]["generation"]});
        // A merge patch removes what is null.
        let gone = budget["status"]["disruptedPods"].as_object().into_iter().flatten().map(|it| it.0.clone());
        let mut names: serde_json::Map<String, Value> = gone.map(|it| (it, Value::Null)).collect();
        names.extend(disrupted);
        if !names.is_empty() {
            report["disruptedPods"] = names.into();
        }
        status(store, &POD_DISRUPTION_BUDGET, &budget, report);
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A number, or a part of the pods, rounded up.
fn part(value: &Value, of: i64) -> i64 {
    let percent = value.as_str().and_then(|it| it.strip_suffix('%')).and_then(|it| it.parse::<i64>().ok());
    percent.map_or_else(|| value.as_i64().unwrap_or(0), |it| (of * it + 99) / 100)
}

/// How many pods the controllers of these want.
fn replicas(store: &Store, pods: &[Arc<Value>]) -> i64 {
    let mut wanted: BTreeMap<String, i64> = BTreeMap::new();
    for pod in pods {
        let owners = pod["metadata"]["ownerReferences"].as_array();
        let owner = owners.and_then(|it| it.iter().find(|it| it["controller"] == true));
        let Some(owner) = owner else { continue };
        let kind: KindRef = match text(owner, "kind") {
            "ReplicaSet" => &REPLICA_SET,
            "StatefulSet" => &STATEFUL_SET,
            _ => continue,
        };
        let namespace = text(&pod["metadata"], "namespace");
        if let Ok(set) = store.get(kind, namespace, text(owner, "name")) {
            wanted.insert(text(owner, "uid").to_owned(), set["spec"]["replicas"].as_i64().unwrap_or(0));
        }
    }
    wanted.values().sum()
}
