//! The four kinds of patch: JSON patch, merge patch, strategic merge patch and apply.
//!
//! The last two need to know which lists are keyed; that table covers the kinds served here, and every other list is
//! replaced as a whole.

use serde_json::{Map, Value};

use super::error::ApiError;
use super::kinds::Kind;

/// A patch as it arrives.
#[derive(Debug, Clone)]
pub enum Patch {
    /// RFC 6902.
    Json(Value),
    /// RFC 7386.
    Merge(Value),
    /// Kubernetes' own merge patch with keyed lists.
    Strategic(Value),
    /// Server-side apply: the fields that the manager wants, and only those.
    Apply {
        /// The partial object.
        object: Value,
        /// Take fields over from other appliers.
        force: bool,
    },
}

/// Keys that identify an entry of the list under this field name; `None` where the list is replaced as a whole.
fn list_keys(kind: &Kind, parent: &str, field: &str) -> Option<&'static [&'static str]> {
    match (kind.kind, parent, field) {
        (_, _, "ownerReferences") => Some(&["uid"]),
        (_, "status", "conditions" | "addresses") => Some(&["type"]),
        ("MigNode", "demand", "profiles") | ("MigNode", "spec", "floor") => Some(&["profile"]),
        ("MigNode", "spec", "holds") => Some(&["gpu"]),
        ("ResourceClaim", "status", "reservedFor") => Some(&["uid"]),
        ("ResourceClaim", "status", "devices") => Some(&["driver", "pool", "device", "shareID"]),
        (
            "Pod" | "Deployment" | "ReplicaSet",
            "spec",
            "containers" | "initContainers" | "volumes" | "resourceClaims",
        )
        | ("Pod" | "Deployment" | "ReplicaSet", _, "env")
        | ("Pod", "status", "resourceClaimStatuses") => Some(&["name"]),
        ("Pod" | "Deployment" | "ReplicaSet", _, "ports") => Some(&["containerPort"]),
        ("Pod" | "Deployment" | "ReplicaSet", _, "volumeMounts") => Some(&["mountPath"]),
        _ => None,
    }
}

/// Whether an object is replaced as a whole (`x-kubernetes-map-type: atomic`).
fn is_atomic(kind: &Kind, parent: &str, field: &str) -> bool {
    (kind.kind, parent, field) == ("MigNode", "spec", "demand")
}

fn same_entry(keys: &[&str], a: &Value, b: &Value) -> bool {
    keys.iter().all(|key| a.get(key) == b.get(key))
}

/// RFC 7386: objects are merged, `null` removes, everything else replaces.
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, change) in changes {
        if change.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), change);
        }
    }
}

/// Strategic merge: as [`merge`], but keyed lists are merged by entry and the `$` directives are obeyed.
pub fn strategic(kind: &Kind, target: &mut Value, patch: &Value, parent: &str) {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() || changes.get("$patch").is_some_and(|p| p == "replace") {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    if let Some(Value::Array(retained)) = changes.get("$retainKeys") {
        target.retain(|key, _| retained.iter().any(|r| r == key));
    }
    for (key, change) in changes {
        if let Some(list) = key.strip_prefix("$deleteFromPrimitiveList/") {
            if let (Some(Value::Array(items)), Value::Array(gone)) = (target.get_mut(list), change) {
                items.retain(|item| !gone.contains(item));
            }
        } else if key.starts_with('$') {
            // $setElementOrder only fixes the order, $patch and $retainKeys are done.
        } else if change.is_null() {
            target.remove(key);
        } else {
            let value = target.entry(key.clone()).or_insert(Value::Null);
            match (list_keys(kind, parent, key), change) {
                (Some(keys), Value::Array(entries)) => merge_entries(kind, keys, key, value, entries),
                (None, Value::Array(items)) if key == "finalizers" => merge_set(value, items),
                _ => strategic(kind, value, change, key),
            }
        }
    }
}

fn merge_set(target: &mut Value, items: &[Value]) {
    if !target.is_array() {
        *target = Value::Array(Vec::new());
    }
    let Value::Array(list) = target else { return };
    for item in items {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

fn merge_entries(kind: &Kind, keys: &[&str], field: &str, target: &mut Value, entries: &[Value]) {
    if !target.is_array() || entries.iter().any(|e| e.get("$patch").is_some_and(|p| p == "replace")) {
        *target = Value::Array(Vec::new());
    }
    let Value::Array(list) = target else { return };
    for entry in entries {
        let directive = entry.get("$patch").and_then(Value::as_str);
        match directive {
            Some("replace") => {}
            Some("delete") => list.retain(|item| !same_entry(keys, item, entry)),
            _ => match list.iter_mut().find(|item| same_entry(keys, item, entry)) {
                Some(item) => strategic(kind, item, entry, field),
                None => {
                    let mut item = Value::Null;
                    strategic(kind, &mut item, entry, field);
                    list.push(item);
                }
            },
        }
    }
}

/// Apply: sets what `wanted` has, removes what the same manager applied before (`previous`) and no longer wants.
pub fn apply(kind: &Kind, current: &mut Value, previous: &Value, wanted: &Value, parent: &str) {
    let Value::Object(wanted) = wanted else {
        *current = wanted.clone();
        return;
    };
    if !current.is_object() {
        *current = Value::Object(Map::new());
    }
    let Value::Object(current) = current else { return };
    if let Value::Object(previous) = previous {
        for key in previous.keys().filter(|key| !wanted.contains_key(*key)) {
            let emptied = match (current.get_mut(key), &previous[key]) {
                // Of a keyed list only the own entries go.
                (Some(value @ Value::Array(_)), before @ Value::Array(_))
                    if list_keys(kind, parent, key).is_some() =>
                {
                    let keys = list_keys(kind, parent, key).unwrap_or_default();
                    apply_entries(kind, keys, key, value, before, &[]);
                    value.as_array().is_some_and(Vec::is_empty)
                }
                (Some(value @ Value::Object(_)), before @ Value::Object(_))
                    if !is_atomic(kind, parent, key) =>
                {
                    apply(kind, value, before, &Value::Object(Map::new()), key);
                    value.as_object().is_some_and(Map::is_empty)
                }
                _ => true,
            };
            if emptied {
                current.remove(key);
            }
        }
    }
    for (key, want) in wanted {
        let value = current.entry(key.clone()).or_insert(Value::Null);
        match (list_keys(kind, parent, key), want) {
            (Some(keys), Value::Array(entries)) => {
                apply_entries(kind, keys, key, value, &previous[key], entries)
            }
            _ if is_atomic(kind, parent, key) => value.clone_from(want),
            _ => {
                apply(kind, value, &previous[key], want, key);
                let is_empty = |it: &Value| it.as_object().is_some_and(Map::is_empty);
                // An object that has lost all that it had is null; one that had nothing stays empty.
                if is_empty(want) && is_empty(value) && previous[key].is_object() && !is_empty(&previous[key])
                {
                    *value = Value::Null;
                }
            }
        }
    }
}

fn apply_entries(
    kind: &Kind,
    keys: &[&str],
    field: &str,
    current: &mut Value,
    previous: &Value,
    entries: &[Value],
) {
    if !current.is_array() {
        *current = Value::Array(Vec::new());
    }
    let Value::Array(list) = current else { return };
    let no_entries = Vec::new();
    let before = previous.as_array().unwrap_or(&no_entries);
    list.retain(|item| {
        let was_mine = before.iter().any(|b| same_entry(keys, b, item));
        !was_mine || entries.iter().any(|e| same_entry(keys, e, item))
    });
    for entry in entries {
        let old = before.iter().find(|b| same_entry(keys, b, entry)).unwrap_or(&Value::Null);
        match list.iter_mut().find(|item| same_entry(keys, item, entry)) {
            Some(item) => apply(kind, item, old, entry, field),
            None => list.push(entry.clone()),
        }
    }
}

/// Paths at which another manager applied a value that `wanted` would change.
#[must_use]
pub fn apply_conflicts(other: &Value, current: &Value, wanted: &Value, path: &str) -> Vec<String> {
    match (other, wanted) {
        (Value::Object(other), Value::Object(wanted)) => wanted
            .iter()
            .filter_map(|(key, want)| Some((key, want, other.get(key)?)))
            .flat_map(|(key, want, other)| {
                apply_conflicts(other, &current[key], want, &format!("{path}.{key}"))
            })
            .collect(),
        _ if wanted == current => Vec::new(),
        _ => vec![path.to_owned()],
    }
}

/// RFC 6902.
///
/// # Errors
/// 400 for a document that is not a JSON patch, 422 when an operation cannot be carried out or a test fails.
pub fn json(target: &mut Value, patch: &Value) -> Result<(), ApiError> {
    let Value::Array(operations) = patch else {
        return Err(ApiError::bad_request("a JSON patch is a list of operations"));
    };
    for operation in operations {
        let failed = |why: &str| ApiError {
            code: 422,
            reason: "Invalid",
            message: format!(
                "the server rejected our request due to an error in our request: {why}: {operation}"
            ),
            causes: Vec::new(),
            object: None,
            field: None,
        };
        let text = |key: &str| operation.get(key).and_then(Value::as_str);
        let path = text("path").ok_or_else(|| failed("the operation has no path"))?;
        let value = || operation.get("value").cloned().ok_or_else(|| failed("the operation has no value"));
        let read = |target: &Value, path: &str| {
            target.pointer(path).cloned().ok_or_else(|| failed("there is nothing at the path"))
        };
        match text("op") {
            Some("test") if read(target, path)? != value()? => return Err(failed("the test failed")),
            Some("test") => {}
            Some("add") => add(target, path, value()?).ok_or_else(|| failed("the parent is missing"))?,
            Some("replace") => {
                let place = target.pointer_mut(path).ok_or_else(|| failed("there is nothing at the path"))?;
                *place = value()?;
            }
            Some("remove") => {
                drop(remove(target, path).ok_or_else(|| failed("there is nothing at the path"))?)
            }
            Some(op @ ("copy" | "move")) => {
                let from = text("from").ok_or_else(|| failed("the operation has no from"))?;
                let moved = read(target, from)?;
                if op == "move" {
                    remove(target, from);
                }
                add(target, path, moved).ok_or_else(|| failed("the parent is missing"))?;
            }
            _ => return Err(failed("unknown operation")),
        }
    }
    Ok(())
}

fn split_pointer(path: &str) -> Option<(&str, String)> {
    let (parent, key) = path.rsplit_once('/')?;
    Some((parent, key.replace("~1", "/").replace("~0", "~")))
}

fn add(target: &mut Value, path: &str, value: Value) -> Option<()> {
    if path.is_empty() {
        *target = value;
        return Some(());
    }
    let (parent, key) = split_pointer(path)?;
    match target.pointer_mut(parent)? {
        Value::Object(map) => drop(map.insert(key, value)),
        Value::Array(list) => {
            let index = if key == "-" { list.len() } else { key.parse().ok()? };
            if index > list.len() {
                return None;
            }
            list.insert(index, value);
        }
        _ => return None,
    }
    Some(())
}

fn remove(target: &mut Value, path: &str) -> Option<Value> {
    let (parent, key) = split_pointer(path)?;
    match target.pointer_mut(parent)? {
        Value::Object(map) => map.remove(&key),
        Value::Array(list) => {
            let index: usize = key.parse().ok()?;
            (index < list.len()).then(|| list.remove(index))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::kinds::{MIG_NODE, POD, RESOURCE_CLAIM};
    use super::*;

    #[test]
    fn a_merge_patch_sets_and_removes() {
        let mut object = json!({"a": 1, "b": {"c": 2, "d": [1]}});
        merge(&mut object, &json!({"a": null, "b": {"d": [2]}}));
        assert_eq!(object, json!({"b": {"c": 2, "d": [2]}}));
    }

    #[test]
    fn a_json_patch_adds_removes_moves_and_tests() {
        let mut object = json!({"l": [1, 3], "a/b": 1});
        let patch = json!([{"op": "test", "path": "/l/0", "value": 1}, {"op": "add", "path": "/l/1", "value": 2},
            {"op": "move", "from": "/a~1b", "path": "/c"}, {"op": "remove", "path": "/l/0"}]);
        json(&mut object, &patch).unwrap();
        assert_eq!(object, json!({"l": [2, 3], "c": 1}));
        let failing = json!([{"op": "test", "path": "/c", "value": 2}]);
        assert_eq!(json(&mut object, &failing).unwrap_err().code, 422);
    }

    #[test]
    fn a_strategic_patch_merges_keyed_lists_and_deletes_entries() {
        let mut pod = json!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b"}]}});
        let patch = json!({"spec": {"$setElementOrder/containers": [{"name": "a"}], "containers": [
            {"name": "a", "image": "2"}, {"name": "b", "$patch": "delete"}]}});
        strategic(&POD, &mut pod, &patch, "");
        assert_eq!(pod, json!({"spec": {"containers": [{"name": "a", "image": "2"}]}}));
    }

    #[test]
    fn apply_removes_only_what_the_manager_applied_before() {
        let mut object = json!({"metadata": {"labels": {"mine": "1", "other": "2"}}, "spec": {"x": 1}});
        let before = json!({"metadata": {"labels": {"mine": "1"}}, "spec": {"x": 1}});
        apply(&POD, &mut object, &before, &json!({"metadata": {"labels": {"new": "3"}}}), "");
        assert_eq!(object, json!({"metadata": {"labels": {"other": "2", "new": "3"}}}));
    }

    #[test]
    fn an_object_that_loses_all_its_fields_by_an_empty_one_is_null() {
        let applied = json!({"spec": {"holds": [{"gpu": "g"}]}});
        let mut object = applied.clone();
        apply(&MIG_NODE, &mut object, &applied, &json!({"spec": {}}), "");
        assert_eq!(object, json!({"spec": null}));
        let mut object = applied.clone();
        apply(&MIG_NODE, &mut object, &applied, &json!({}), "");
        assert_eq!(object, json!({}));
        let mut object = json!({"spec": {"holds": [{"gpu": "g"}], "floor": []}});
        apply(&MIG_NODE, &mut object, &applied, &json!({"spec": {}}), "");
        assert_eq!(object, json!({"spec": {"floor": []}}), "what is of others stays");
    }

    #[test]
    fn apply_merges_device_status_by_driver_pool_and_device() {
        let mut claim = json!({"status": {"devices": [{"driver": "o", "pool": "p", "device": "d"}]}});
        let mine = json!({"status": {"devices": [{"driver": "m", "pool": "p", "device": "d", "data": {}}]}});
        apply(&RESOURCE_CLAIM, &mut claim, &Value::Null, &mine, "");
        assert_eq!(claim["status"]["devices"].as_array().unwrap().len(), 2);
        apply(&RESOURCE_CLAIM, &mut claim, &mine, &json!({"status": {"devices": []}}), "");
        let others = json!([{"driver": "o", "pool": "p", "device": "d"}]);
        assert_eq!(claim["status"]["devices"], others);
        apply(&RESOURCE_CLAIM, &mut claim, &Value::Null, &mine, "");
        apply(&RESOURCE_CLAIM, &mut claim, &mine, &json!({}), "");
        assert_eq!(claim["status"]["devices"], others);
    }
}
