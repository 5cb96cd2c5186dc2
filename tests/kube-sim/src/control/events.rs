//! Events about objects.

use serde_json::{Value, json};

use crate::api::clock;
use crate::api::kinds::EVENT;
use crate::api::patch::Patch;
use crate::api::selector::Selectors;
use crate::api::store::{Part, Store, WriteOptions};

/// Records an event about an object, or raises the count of the one that says the same.
pub fn record(store: &Store, about: &Value, kind: &str, reason: &str, message: &str, component: &str) {
    write(store, about, kind, reason, message, component, true);
}

/// Records an event about an object unless one says the same already. For loops that every change wakes: raising a count would
/// wake them again. Generated names in quotes do not count, because they differ each time.
pub(super) fn record_once(
    store: &Store,
    about: &Value,
    kind: &str,
    reason: &str,
    message: &str,
    component: &str,
) {
    write(store, about, kind, reason, message, component, false);
}

/// A message without the first name in quotes.
fn without_name(message: &str) -> (&str, &str) {
    match message.splitn(3, '"').collect::<Vec<_>>()[..] {
        [before, _, after] => (before, after),
        _ => (message, ""),
    }
}

fn write(
    store: &Store,
    about: &Value,
    kind: &str,
    reason: &str,
    message: &str,
    component: &str,
    count_up: bool,
) {
    let meta = &about["metadata"];
    let namespace = meta["namespace"].as_str().unwrap_or("default");
    let (events, _) = store.list(&EVENT, Some(namespace), &Selectors::default());
    let same = |event: &&std::sync::Arc<Value>| {
        event["involvedObject"]["uid"] == meta["uid"]
            && event["reason"] == reason
            && event["message"].as_str().is_some_and(|known| {
                known == message || (!count_up && without_name(known) == without_name(message))
            })
    };
    if let Some(event) = events.iter().find(same) {
        if !count_up {
            return;
        }
        let count = event["count"].as_i64().unwrap_or(1) + 1;
        let change = json!({"count": count, "lastTimestamp": clock::now()});
        let name = event["metadata"]["name"].as_str().unwrap_or("");
        // An event that vanished in between is not worth an error.
        drop(store.patch(
            &EVENT,
            namespace,
            name,
            &Patch::Merge(change),
            Part::Main,
            &WriteOptions::default(),
        ));
        return;
    }
    let name = meta["name"].as_str().unwrap_or("");
    let event = json!({
        "metadata": {"generateName": format!("{name}."), "namespace": namespace},
        "involvedObject": {"apiVersion": about["apiVersion"], "kind": about["kind"], "name": name,
            "namespace": meta["namespace"], "uid": meta["uid"], "resourceVersion": meta["resourceVersion"]},
        "type": kind, "reason": reason, "message": message, "count": 1, "source": {"component": component},
        "reportingComponent": component, "reportingInstance": "",
        "firstTimestamp": clock::now(), "lastTimestamp": clock::now(),
    });
    drop(store.create(&EVENT, namespace, event, &WriteOptions::default()));
}
