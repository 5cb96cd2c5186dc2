//! The status of ResourceQuotas: what is used of what they limit.

use serde_json::{Map, Value, json};

use super::objects::{all, place};
use crate::api::kinds::RESOURCE_QUOTA;
use crate::api::patch::Patch;
use crate::api::quota::is_enforced;
use crate::api::store::{Part, Store, WriteOptions};

pub(super) fn reconcile(store: &Store) {
    for quota in all(store, &RESOURCE_QUOTA) {
        let (namespace, name) = place(&quota);
        let usage = store.quota_usage(namespace);
        let hard = quota["spec"]["hard"].as_object().cloned().unwrap_or_default();
        let hard: Map<String, Value> = hard.into_iter().filter(|(name, _)| is_enforced(name)).collect();
        let used: Map<String, Value> = hard
            .keys()
            .map(|name| (name.clone(), usage.get(name).copied().unwrap_or(0).to_string().into()))
            .collect();
        let patch = Patch::Merge(json!({"status": {"hard": hard, "used": used}}));
        // A quota that was deleted in between needs no status; one that does not change is not written.
        drop(store.patch(&RESOURCE_QUOTA, namespace, name, &patch, Part::Status, &WriteOptions::default()));
    }
}
