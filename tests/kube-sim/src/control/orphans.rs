//! Deletes what a controller created for a workload that was deleted in that very moment, as the garbage collector does.

use std::collections::BTreeSet;

use serde_json::Value;

use super::objects::{all, place, text};
use crate::api::kinds::{CRON_JOB, DAEMON_SET, DEPLOYMENT, JOB, POD, REPLICA_SET, STATEFUL_SET};
use crate::api::store::{DeleteOptions, Store};

pub(super) fn reconcile(store: &Store) {
    // The owners are listed last: an owner that is missing then has been deleted.
    let created = [&REPLICA_SET, &JOB, &POD].map(|kind| (kind, all(store, kind)));
    let kinds = [&DEPLOYMENT, &REPLICA_SET, &STATEFUL_SET, &DAEMON_SET, &JOB, &CRON_JOB];
    let owners = kinds.iter().flat_map(|kind| all(store, kind));
    let owners: BTreeSet<String> = owners.map(|it| text(&it["metadata"], "uid").to_owned()).collect();
    let is_orphan = |object: &Value| {
        let references = object["metadata"]["ownerReferences"].as_array();
        references.into_iter().flatten().any(|it| {
            it["controller"] == true
                && kinds.iter().any(|kind| kind.kind == text(it, "kind"))
                && !owners.contains(text(it, "uid"))
        })
    };
    for (kind, objects) in created {
        for object in objects.iter().filter(|it| is_orphan(it)) {
            let (namespace, name) = place(object);
            // One that is gone already needs no deletion.
            drop(store.delete(kind, namespace, name, &DeleteOptions::default()));
        }
    }
}
