//! Typed reading of incoming objects: unknown fields are dropped or refused, wrong types are refused, quantities take their
//! canonical form. The types are k8s-openapi's, so that the field lists are not this project's own opinion.

use dra_allocator::quantity::Quantity;
use k8s_openapi::api::{
    apps::v1 as apps, batch::v1 as batch, coordination::v1 as coordination, core::v1 as core,
    events::v1 as events, policy::v1 as policy, resource::v1 as resource, scheduling::v1 as scheduling,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as extensions;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::error::ApiError;
use super::kinds::{self, Kind};

/// Where quantities stand in each kind; `*` is any key of a map, `[]` any item of a list.
fn quantity_paths(kind: &Kind) -> &'static [&'static str] {
    match kind.kind {
        "ResourceSlice" => &[
            "spec.devices.[].capacity.*.value",
            "spec.devices.[].capacity.*.requestPolicy.default",
            "spec.devices.[].capacity.*.requestPolicy.validValues.[]",
            "spec.devices.[].capacity.*.requestPolicy.validRange.*",
            "spec.devices.[].consumesCounters.[].counters.*.value",
            "spec.sharedCounters.[].counters.*.value",
        ],
        "ResourceClaim" => &["spec.devices.requests.[].exactly.capacity.requests.*"],
        "ResourceClaimTemplate" => &["spec.spec.devices.requests.[].exactly.capacity.requests.*"],
        "Node" => &["status.capacity.*", "status.allocatable.*"],
        "ResourceQuota" => &["spec.hard.*", "status.hard.*", "status.used.*"],
        "PersistentVolumeClaim" => &["spec.resources.limits.*", "spec.resources.requests.*"],
        "Pod" => &[
            "spec.containers.[].resources.limits.*",
            "spec.containers.[].resources.requests.*",
            "spec.initContainers.[].resources.limits.*",
            "spec.initContainers.[].resources.requests.*",
        ],
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "Job" => &[
            "spec.template.spec.containers.[].resources.limits.*",
            "spec.template.spec.containers.[].resources.requests.*",
            "spec.template.spec.initContainers.[].resources.limits.*",
            "spec.template.spec.initContainers.[].resources.requests.*",
            "spec.volumeClaimTemplates.[].spec.resources.limits.*",
            "spec.volumeClaimTemplates.[].spec.resources.requests.*",
        ],
        "CronJob" => &[
            "spec.jobTemplate.spec.template.spec.containers.[].resources.limits.*",
            "spec.jobTemplate.spec.template.spec.containers.[].resources.requests.*",
            "spec.jobTemplate.spec.template.spec.initContainers.[].resources.limits.*",
            "spec.jobTemplate.spec.template.spec.initContainers.[].resources.requests.*",
        ],
        _ => &[],
    }
}

/// Where a quantity cannot be read, its path and why.
type BadQuantity = (String, String);

fn canonicalise(value: &mut Value, path: &[&str], empty_is_zero: bool, at: &str) -> Result<(), BadQuantity> {
    let Some((step, rest)) = path.split_first() else {
        return canonical_leaf(value, empty_is_zero).map_err(|why| (at.to_owned(), why));
    };
    let below = |key: &str| if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") };
    match (*step, value) {
        ("*", Value::Object(map)) => {
            map.iter_mut().try_for_each(|(key, v)| canonicalise(v, rest, empty_is_zero, &below(key)))
        }
        ("[]", Value::Array(list)) => {
            let mut list = list.iter_mut().enumerate();
            list.try_for_each(|(index, v)| canonicalise(v, rest, empty_is_zero, &format!("{at}[{index}]")))
        }
        (key, Value::Object(map)) => {
            map.get_mut(key).map_or(Ok(()), |v| canonicalise(v, rest, empty_is_zero, &below(key)))
        }
        // Another shape is for the typed reading to refuse.
        _ => Ok(()),
    }
}

fn canonical_leaf(value: &mut Value, empty_is_zero: bool) -> Result<(), String> {
    let text = match value {
        Value::String(text) if text.is_empty() && empty_is_zero => "0".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return Ok(()),
    };
    *value = Value::String(Quantity::parse(&text).map_err(|e| e.to_string())?.to_string());
    Ok(())
}

fn round_trip<T: DeserializeOwned + Serialize>(value: &Value) -> Result<Value, serde_json::Error> {
    serde_json::to_value(T::deserialize(value)?)
}

fn typed(kind: &Kind, value: &Value) -> Result<Value, serde_json::Error> {
    match (kind.group, kind.kind) {
        ("", "Namespace") => round_trip::<core::Namespace>(value),
        ("", "Node") => round_trip::<core::Node>(value),
        ("", "Pod") => round_trip::<core::Pod>(value),
        ("", "ConfigMap") => round_trip::<core::ConfigMap>(value),
        ("", "Event") => round_trip::<core::Event>(value),
        ("", "ServiceAccount") => round_trip::<core::ServiceAccount>(value),
        ("", "Service") => round_trip::<core::Service>(value),
        ("", "Secret") => round_trip::<core::Secret>(value),
        ("", "PersistentVolumeClaim") => round_trip::<core::PersistentVolumeClaim>(value),
        ("", "ResourceQuota") => round_trip::<core::ResourceQuota>(value),
        ("coordination.k8s.io", _) => round_trip::<coordination::Lease>(value),
        ("events.k8s.io", _) => round_trip::<events::Event>(value),
        ("apiextensions.k8s.io", _) => round_trip::<extensions::CustomResourceDefinition>(value),
        ("scheduling.k8s.io", _) => round_trip::<scheduling::PriorityClass>(value),
        ("apps", "Deployment") => round_trip::<apps::Deployment>(value),
        ("apps", "StatefulSet") => round_trip::<apps::StatefulSet>(value),
        ("policy", "PodDisruptionBudget") => round_trip::<policy::PodDisruptionBudget>(value),
        ("apps", "DaemonSet") => round_trip::<apps::DaemonSet>(value),
        ("apps", _) => round_trip::<apps::ReplicaSet>(value),
        ("batch", "Job") => round_trip::<batch::Job>(value),
        ("batch", _) => round_trip::<batch::CronJob>(value),
        (_, "ResourceSlice") => round_trip::<resource::ResourceSlice>(value),
        (_, "ResourceClaim") => round_trip::<resource::ResourceClaim>(value),
        (_, "ResourceClaimTemplate") => round_trip::<resource::ResourceClaimTemplate>(value),
        _ => round_trip::<resource::DeviceClass>(value),
    }
}

/// The path of the value that keeps an object from being read: the deepest one without which it can be.
fn culprit(kind: &Kind, value: &Value) -> Option<String> {
    let mut path: Option<String> = None;
    let mut place = String::new();
    loop {
        let children: Vec<(String, String)> = match value.pointer(&place)? {
            Value::Object(map) => map
                .keys()
                .map(|key| {
                    let shown = path.as_ref().map_or_else(|| key.clone(), |path| format!("{path}.{key}"));
                    (format!("{place}/{}", key.replace('~', "~0").replace('/', "~1")), shown)
                })
                .collect(),
            Value::Array(list) => (0..list.len())
                .map(|at| (format!("{place}/{at}"), format!("{}[{at}]", path.as_deref().unwrap_or_default())))
                .collect(),
            _ => return path,
        };
        let reads_without = |index: usize| {
            let mut rest = value.clone();
            match rest.pointer_mut(&place) {
                Some(Value::Object(map)) => drop(map.keys().nth(index).cloned().map(|key| map.remove(&key))),
                Some(Value::Array(list)) => drop(list.remove(index)),
                _ => {}
            }
            typed(kind, &rest).is_ok()
        };
        let Some(index) = (0..children.len()).find(|index| reads_without(*index)) else { return path };
        let (pointer, shown) = children[index].clone();
        (place, path) = (pointer, Some(shown));
    }
}

/// Paths that `given` has and `kept` has not: what the typed reading did not know.
fn unknown(given: &Value, kept: &Value, path: &str, found: &mut Vec<String>) {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            for (key, value) in given {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match kept.get(key) {
                    Some(kept) => unknown(value, kept, &path, found),
                    None if value.is_null() => {}
                    None => found.push(path),
                }
            }
        }
        (Value::Array(given), Value::Array(kept)) => {
            for (index, (given, kept)) in given.iter().zip(kept).enumerate() {
                unknown(given, kept, &format!("{path}[{index}]"), found);
            }
        }
        _ => {}
    }
}

/// 400: the body cannot be read as an object of the kind.
pub(super) fn refusal(kind: &Kind, why: &str) -> ApiError {
    let (name, version) = (kind.kind, kind.version);
    ApiError::bad_request(format!("{name} in version \"{version}\" cannot be handled as a {name}: {why}"))
}

/// Completes kind and version of a body, which must be of this kind.
pub(super) fn of_kind(kind: &'static Kind, value: &mut Value) -> Result<(), ApiError> {
    let refuse = |why: String| refusal(kind, &why);
    let Value::Object(object) = value else {
        return Err(refuse("the body is not a JSON object".into()));
    };
    let stated =
        |object: &Map<String, Value>, key: &str| object.get(key).and_then(Value::as_str).map(str::to_owned);
    let api_version = stated(object, "apiVersion").unwrap_or_else(|| kind.api_version());
    let name = stated(object, "kind").unwrap_or_else(|| kind.kind.to_owned());
    if kinds::by_type(&api_version, &name) != Some(kind) {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({api_version}, {name}) does not match the expected API version ({}, {})",
            kind.api_version(),
            kind.kind
        )));
    }
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), name.into());
    Ok(())
}

/// 400 for fields that the kind does not have.
pub(super) fn unknown_fields(kind: &Kind, mut found: Vec<String>) -> ApiError {
    let list: Vec<String> = found.iter().map(|path| format!("unknown field \"{path}\"")).collect();
    refusal(kind, &format!("strict decoding error: {}", list.join(", "))).at(found.swap_remove(0))
}

/// Reads an object of a kind the way the API server decodes a request body.
///
/// # Errors
/// 400 when the body is of another kind, has a field of the wrong type or a bad quantity, or, with `strict`, a field that
/// the kind does not have.
pub fn decode(kind: &'static Kind, mut value: Value, strict: bool) -> Result<Value, ApiError> {
    let refuse = |why: String| refusal(kind, &why);
    of_kind(kind, &mut value)?;
    let paths: Vec<Vec<&str>> = quantity_paths(kind).iter().map(|p| p.split('.').collect()).collect();
    let bad_quantity = |(path, why): BadQuantity| refuse(format!("{path}: {why}")).at(path);
    for path in &paths {
        canonicalise(&mut value, path, false, "").map_err(bad_quantity)?;
    }
    let mut kept = typed(kind, &value).map_err(|error| match culprit(kind, &value) {
        Some(path) => refuse(format!("{path}: {error}")).at(path),
        None => refuse(error.to_string()),
    })?;
    for path in &paths {
        canonicalise(&mut kept, path, true, "").map_err(bad_quantity)?;
    }
    if strict {
        let mut found = Vec::new();
        unknown(&value, &kept, "", &mut found);
        if !found.is_empty() {
            return Err(unknown_fields(kind, found));
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::kinds::RESOURCE_SLICE;
    use super::*;

    #[test]
    fn quantities_are_stored_in_canonical_form() {
        let slice = json!({"spec": {"driver": "d", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
            "sharedCounters": [{"name": "s", "counters": {"memory": {"value": "1024Mi"}, "n": {"value": 1}}}]}});
        let kept = decode(&RESOURCE_SLICE, slice, true).unwrap();
        assert_eq!(kept["spec"]["sharedCounters"][0]["counters"]["memory"]["value"], "1Gi");
        assert_eq!(kept["spec"]["sharedCounters"][0]["counters"]["n"]["value"], "1");
    }

    #[test]
    fn an_unknown_field_is_dropped_or_with_strict_refused() {
        let slice = json!({"spec": {"driver": "d", "colour": "red"}});
        assert_eq!(decode(&RESOURCE_SLICE, slice.clone(), false).unwrap()["spec"].get("colour"), None);
        let error = decode(&RESOURCE_SLICE, slice, true).unwrap_err();
        assert_eq!(error.code, 400);
        assert!(error.message.contains("unknown field \"spec.colour\""), "{error}");
    }

    #[test]
    fn a_field_of_the_wrong_type_is_refused() {
        let error = decode(&RESOURCE_SLICE, json!({"spec": {"driver": 5}}), false).unwrap_err();
        assert_eq!((error.code, error.field.as_deref()), (400, Some("spec.driver")));
    }

    #[test]
    fn the_field_that_cannot_be_read_is_named() {
        let container = json!({"name": "c", "image": "i", "ports": [{"containerPort": "http"}]});
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, container]}});
        let error = decode(&super::kinds::POD, pod, true).unwrap_err();
        assert_eq!(error.field.as_deref(), Some("spec.containers[1].ports[0].containerPort"));
        assert!(error.message.contains("containerPort: invalid type"), "{error}");
    }

    #[test]
    fn a_body_of_another_kind_is_refused() {
        let body = json!({"apiVersion": "v1", "kind": "Pod"});
        assert_eq!(decode(&RESOURCE_SLICE, body, false).unwrap_err().code, 400);
    }
}
