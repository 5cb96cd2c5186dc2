//! ResourceSlice.

use serde_json::{Map, Value, json};

use super::{Errors, items, names, text, unique};
use crate::api::error::FieldError;
use crate::api::version::Version;

const NODE_CHOICE: &str =
    "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
const MAX_DEVICES: usize = 128;
const MAX_DEVICES_WITH_COUNTERS_OR_TAINTS: usize = 64;
const MAX_COUNTER_SETS: usize = 8;
const MAX_COUNTERS: usize = 32;
const MAX_COUNTER_SETS_PER_DEVICE: usize = 2;
const MAX_ATTRIBUTES_AND_CAPACITIES: usize = 32;
const MAX_VALUE_BYTES: usize = 64;
const MAX_TAINTS: usize = 16;

/// In 1.34: counters of all sets of a slice.
const MAX_SHARED_COUNTERS_1_34: usize = 32;
/// In 1.34: counters that all devices of a slice consume.
const MAX_DEVICE_COUNTERS_1_34: usize = 1024;

/// Everything wrong with a slice; `old` is the stored object where this is an update.
#[must_use]
pub fn slice(slice: &Value, old: Option<&Value>, version: Version) -> Errors {
    let mut errors = Vec::new();
    let spec = &slice["spec"];
    names::driver(text(spec, "driver"), "spec.driver".into(), &mut errors);
    pool(&spec["pool"], &mut errors);
    if let Some(old) = old {
        for path in ["/pool/name", "/driver", "/nodeName"] {
            let (new, old) = (spec.pointer(path), old["spec"].pointer(path));
            if new != old {
                let field = format!("spec{}", path.replace('/', "."));
                errors.push(FieldError::invalid(field, &json!(new), "field is immutable"));
            }
        }
    }
    node_choice(spec, &mut errors);
    let devices = items(spec, "devices");
    let is_per_slice = version == Version::V1_34;
    if !is_per_slice && !spec["sharedCounters"].is_null() && !spec["devices"].is_null() {
        errors.push(FieldError::invalid(
            "spec",
            &json!(""),
            "only one of `sharedCounters` or `devices` is allowed",
        ));
    }
    let advanced =
        devices.iter().any(|d| !items(d, "taints").is_empty() || !items(d, "consumesCounters").is_empty());
    let max = if advanced && !is_per_slice { MAX_DEVICES_WITH_COUNTERS_OR_TAINTS } else { MAX_DEVICES };
    if devices.len() > max {
        errors.push(FieldError::too_many("spec.devices", devices.len(), max));
    }
    let per_device = spec["perDeviceNodeSelection"] == true;
    for (index, one) in devices.iter().enumerate() {
        device(one, &format!("spec.devices[{index}]"), per_device, &mut errors);
    }
    unique(devices.iter().map(|d| text(d, "name")), |i| format!("spec.devices[{i}]"), &mut errors);
    shared_counters(items(spec, "sharedCounters"), &mut errors);
    if is_per_slice {
        counters_within(spec, devices, &mut errors);
    } else {
        counters_of_the_pool(spec, devices, &mut errors);
    }
    errors
}

/// 1.35: counters may be in any slice of the pool, so that no reference is checked.
fn counters_of_the_pool(spec: &Value, devices: &[Value], errors: &mut Errors) {
    let sets = items(spec, "sharedCounters");
    if sets.len() > MAX_COUNTER_SETS {
        errors.push(FieldError::too_many("spec.sharedCounters", sets.len(), MAX_COUNTER_SETS));
    }
    for (index, set) in sets.iter().enumerate() {
        at_most(&set["counters"], &format!("spec.sharedCounters[{index}].counters"), errors);
    }
    for (index, device) in devices.iter().enumerate() {
        let field = format!("spec.devices[{index}].consumesCounters");
        let consumed = items(device, "consumesCounters");
        if consumed.len() > MAX_COUNTER_SETS_PER_DEVICE {
            errors.push(FieldError::too_many(field.clone(), consumed.len(), MAX_COUNTER_SETS_PER_DEVICE));
        }
        for (at, set) in consumed.iter().enumerate() {
            at_most(&set["counters"], &format!("{field}[{at}].counters"), errors);
        }
    }
}

fn at_most(counters: &Value, field: &str, errors: &mut Errors) {
    let count = counters.as_object().map_or(0, Map::len);
    if count > MAX_COUNTERS {
        errors.push(FieldError::too_many(field, count, MAX_COUNTERS));
    }
}

/// 1.34 (`validateResourceSliceSpec`, `validateDevice` of v1.34.9): what a device consumes must be in the same slice; the numbers
/// are limited over all sets.
fn counters_within(spec: &Value, devices: &[Value], errors: &mut Errors) {
    let sets = items(spec, "sharedCounters");
    let count = |sets: &[Value]| -> usize {
        sets.iter().map(|it| it["counters"].as_object().map_or(0, Map::len)).sum()
    };
    for (index, device) in devices.iter().enumerate() {
        let field = format!("spec.devices[{index}]");
        let consumed = items(device, "consumesCounters");
        if count(consumed) > MAX_COUNTERS {
            let why = "the total number of counters must not exceed 32";
            errors.push(FieldError::invalid(field.as_str(), &json!(count(consumed)), why));
        }
        for (at, one) in consumed.iter().enumerate() {
            let field = format!("{field}.consumesCounters[{at}]");
            let Some(set) = sets.iter().find(|it| it["name"] == one["counterSet"]) else {
                let why = "must reference a counterSet defined in the ResourceSlice sharedCounters";
                errors.push(FieldError::invalid(format!("{field}.counterSet"), &one["counterSet"], why));
                continue;
            };
            for name in one["counters"].as_object().into_iter().flat_map(Map::keys) {
                if set["counters"].get(name).is_none() {
                    let why = "must reference a counter defined in the ResourceSlice sharedCounters";
                    errors.push(FieldError::invalid(format!("{field}.counters"), &json!(name), why));
                }
            }
        }
    }
    let consumed: usize = devices.iter().map(|it| count(items(it, "consumesCounters"))).sum();
    if consumed > MAX_DEVICE_COUNTERS_1_34 {
        let why = "the total number of counters in devices must not exceed 1024";
        errors.push(FieldError::invalid("spec.devices", &json!(consumed), why));
    }
    if count(sets) > MAX_SHARED_COUNTERS_1_34 {
        let why = "the total number of shared counters must not exceed 32";
        errors.push(FieldError::invalid("spec.sharedCounters", &json!(count(sets)), why));
    }
}

fn pool(pool: &Value, errors: &mut Errors) {
    names::pool(text(pool, "name"), "spec.pool.name".into(), errors);
    if pool["resourceSliceCount"].as_i64().unwrap_or(0) <= 0 {
        let count = &pool["resourceSliceCount"];
        errors.push(FieldError::invalid("spec.pool.resourceSliceCount", count, "must be greater than zero"));
    }
    if pool["generation"].as_i64().unwrap_or(0) < 0 {
        let generation = &pool["generation"];
        errors.push(FieldError::invalid(
            "spec.pool.generation",
            generation,
            "must be greater than or equal to zero",
        ));
    }
}

fn node_choice(spec: &Value, errors: &mut Errors) {
    let mut set = Vec::new();
    match spec["nodeName"].as_str() {
        Some("") => {
            let why = "must be either unset or set to a non-empty string";
            errors.push(FieldError::invalid("spec.nodeName", &json!(""), why));
        }
        Some(name) => {
            set.push("`nodeName`");
            names::dns_subdomain(name, "spec.nodeName".into(), errors);
        }
        None => {}
    }
    if !spec["nodeSelector"].is_null() {
        set.push("`nodeSelector`");
        one_term(&spec["nodeSelector"], "spec.nodeSelector", errors);
    }
    for flag in ["allNodes", "perDeviceNodeSelection"] {
        match spec[flag].as_bool() {
            Some(true) if flag == "allNodes" => set.push("`allNodes`"),
            Some(true) => set.push("`perDeviceNodeSelection`"),
            Some(false) => {
                let why = "must be either unset or set to true";
                errors.push(FieldError::invalid(format!("spec.{flag}"), &json!(false), why));
            }
            None => {}
        }
    }
    match set.len() {
        0 => errors.push(FieldError::required("spec", NODE_CHOICE)),
        1 => {}
        _ => {
            let why = format!("{NODE_CHOICE}, but multiple fields are set");
            errors.push(FieldError::invalid("spec", &json!(format!("{{{}}}", set.join(", "))), &why));
        }
    }
}

fn one_term(selector: &Value, field: &str, errors: &mut Errors) {
    if items(selector, "nodeSelectorTerms").is_empty() {
        let why = "must have at least one node selector term";
        errors.push(FieldError::required(format!("{field}.nodeSelectorTerms"), why));
    }
    if items(selector, "nodeSelectorTerms").len() != 1 {
        let terms = &selector["nodeSelectorTerms"];
        let field = format!("{field}.nodeSelectorTerms");
        errors.push(FieldError::invalid(field, terms, "must have exactly one node selector term"));
    }
}

fn shared_counters(sets: &[Value], errors: &mut Errors) {
    for (index, set) in sets.iter().enumerate() {
        let field = format!("spec.sharedCounters[{index}]");
        names::dns_label(text(set, "name"), format!("{field}.name"), errors);
        counters(&set["counters"], &format!("{field}.counters"), errors);
    }
    unique(sets.iter().map(|s| text(s, "name")), |i| format!("spec.sharedCounters[{i}]"), errors);
}

fn counters(counters: &Value, field: &str, errors: &mut Errors) {
    let none = Map::new();
    let counters = counters.as_object().unwrap_or(&none);
    if counters.is_empty() {
        errors.push(FieldError::required(field, ""));
    }
    for name in counters.keys() {
        names::dns_label(name, format!("{field}[{name}]"), errors);
    }
}

fn device(device: &Value, field: &str, per_device_nodes: bool, errors: &mut Errors) {
    names::dns_label(text(device, "name"), format!("{field}.name"), errors);
    let none = Map::new();
    let attributes = device["attributes"].as_object().unwrap_or(&none);
    let capacities = device["capacity"].as_object().unwrap_or(&none);
    let total = attributes.len() + capacities.len();
    if total > MAX_ATTRIBUTES_AND_CAPACITIES {
        let why = "the total number of attributes and capacities must not exceed 32";
        errors.push(FieldError::invalid(field, &json!(total), why));
    }
    for (name, value) in attributes {
        let field = format!("{field}.attributes[{name}]");
        names::qualified(name, &field, errors);
        attribute(value, &field, errors);
    }
    for name in capacities.keys() {
        names::qualified(name, &format!("{field}.capacity[{name}]"), errors);
    }
    taints(items(device, "taints"), field, errors);
    consumption(items(device, "consumesCounters"), field, errors);
    device_nodes(device, field, per_device_nodes, errors);
}

fn attribute(value: &Value, field: &str, errors: &mut Errors) {
    let set = ["int", "bool", "string", "version"].iter().filter(|k| !value[**k].is_null()).count();
    if set == 0 {
        errors.push(FieldError::required(field, "exactly one value must be specified"));
    } else if set > 1 {
        errors.push(FieldError::invalid(field, value, "exactly one value must be specified"));
    }
    for kind in ["string", "version"] {
        if text(value, kind).len() > MAX_VALUE_BYTES {
            errors.push(FieldError::too_long(format!("{field}.{kind}"), MAX_VALUE_BYTES));
        }
    }
    if let Some(version) = value["version"].as_str()
        && !names::is_semver(version)
    {
        let why = "must be a string compatible with semver.org spec 2.0.0";
        errors.push(FieldError::invalid(format!("{field}.version"), &json!(version), why));
    }
}

fn taints(taints: &[Value], field: &str, errors: &mut Errors) {
    if taints.len() > MAX_TAINTS {
        errors.push(FieldError::too_many(format!("{field}.taints"), taints.len(), MAX_TAINTS));
    }
    for (index, taint) in taints.iter().enumerate() {
        let field = format!("{field}.taints[{index}]");
        if text(taint, "key").is_empty() {
            errors.push(FieldError::invalid(
                format!("{field}.key"),
                &json!(""),
                "name part must be non-empty",
            ));
        }
        match text(taint, "effect") {
            "" => errors.push(FieldError::required(format!("{field}.effect"), "")),
            "None" | "NoSchedule" | "NoExecute" => {}
            other => {
                let supported = ["NoExecute", "NoSchedule", "None"];
                errors.push(FieldError::not_supported(format!("{field}.effect"), other, &supported));
            }
        }
    }
}

fn consumption(sets: &[Value], field: &str, errors: &mut Errors) {
    let field = format!("{field}.consumesCounters");
    for (index, set) in sets.iter().enumerate() {
        names::dns_label(text(set, "counterSet"), format!("{field}[{index}].counterSet"), errors);
        counters(&set["counters"], &format!("{field}[{index}].counters"), errors);
    }
    unique(sets.iter().map(|s| text(s, "counterSet")), |i| format!("{field}[{i}]"), errors);
}

fn device_nodes(device: &Value, field: &str, per_device_nodes: bool, errors: &mut Errors) {
    let keys = ["nodeName", "nodeSelector", "allNodes"];
    let set: Vec<&str> = keys.into_iter().filter(|k| !device[*k].is_null()).collect();
    if per_device_nodes {
        if set.len() != 1 {
            let why = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when \
                `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
            errors.push(if set.is_empty() {
                FieldError::required(field, why)
            } else {
                FieldError::invalid(field, &json!(set), why)
            });
        }
        if !device["nodeSelector"].is_null() {
            one_term(&device["nodeSelector"], &format!("{field}.nodeSelector"), errors);
        }
        if device["nodeName"] == "" || device["allNodes"] == false {
            errors.push(FieldError::invalid(
                field,
                &json!(set),
                "must be either unset or set to a meaningful value",
            ));
        }
    } else if !set.is_empty() {
        let why = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the \
            ResourceSlice spec";
        errors.push(FieldError::invalid(field, &Value::Null, why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Value {
        json!({"spec": {"driver": "mig.dra-driver.dev", "nodeName": "n",
            "pool": {"name": "n/mig.dra-driver.dev", "generation": 1, "resourceSliceCount": 1},
            "devices": [{"name": "gpu-0", "attributes": {"type": {"string": "gpu"}},
                "consumesCounters": [{"counterSet": "gpu-0", "counters": {"memory-slice-0": {"value": "1"}}}]}]}})
    }

    fn fields(slice_object: &Value) -> Vec<String> {
        slice(slice_object, None, Version::V1_35).into_iter().map(|e| e.field).collect()
    }

    /// Changes the good slice at a JSON pointer and expects an error at exactly this field.
    fn refused(pointer: &str, value: Value, field: &str) {
        let mut object = good();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[key] = value;
        assert_eq!(fields(&object), [field]);
    }

    #[test]
    fn a_good_slice_passes() {
        assert_eq!(fields(&good()), Vec::<String>::new());
    }

    #[test]
    fn each_fault_is_reported_at_its_field() {
        refused("/spec/driver", json!(""), "spec.driver");
        refused("/spec/pool/name", json!("a//b"), "spec.pool.name");
        refused("/spec/pool/resourceSliceCount", json!(0), "spec.pool.resourceSliceCount");
        refused("/spec/pool/generation", json!(-1), "spec.pool.generation");
        refused("/spec/nodeName", Value::Null, "spec");
        refused("/spec/allNodes", json!(true), "spec");
        refused("/spec/allNodes", json!(false), "spec.allNodes");
        refused("/spec/sharedCounters", json!([]), "spec");
    }

    #[test]
    fn each_fault_of_a_device_is_reported_at_its_field() {
        let device = "/spec/devices/0";
        refused(&format!("{device}/name"), json!("mig-1g.10gb"), "spec.devices[0].name");
        refused(&format!("{device}/nodeName"), json!("n"), "spec.devices[0]");
        let attribute = format!("{device}/attributes/type");
        let field = "spec.devices[0].attributes[type]";
        refused(&attribute, json!({}), field);
        refused(&attribute, json!({"int": 1, "bool": true}), field);
        refused(&attribute, json!({"string": "x".repeat(65)}), &format!("{field}.string"));
        refused(&attribute, json!({"version": "570.124.06"}), &format!("{field}.version"));
        refused(&attribute, json!({"version": "12.8"}), &format!("{field}.version"));
        let set = json!({"counterSet": "gpu-0", "counters": {}});
        let counters = "spec.devices[0].consumesCounters";
        refused(&format!("{device}/consumesCounters"), json!([set]), &format!("{counters}[0].counters"));
        let set = json!({"counterSet": "a", "counters": {"c": {"value": "1"}}});
        refused(&format!("{device}/consumesCounters"), json!([set, set]), &format!("{counters}[1]"));
        let taint = json!([{"key": "k", "effect": "Evict"}]);
        refused(&format!("{device}/taints"), taint, "spec.devices[0].taints[0].effect");
    }

    #[test]
    fn a_slice_holds_128_plain_devices_or_64_with_counters() {
        let plain = |n: usize| (0..n).map(|i| json!({"name": format!("d-{i}")})).collect::<Vec<_>>();
        let mut object = good();
        object["spec"]["devices"] = json!(plain(128));
        assert_eq!(fields(&object), Vec::<String>::new());
        object["spec"]["devices"] = json!(plain(129));
        assert_eq!(fields(&object), ["spec.devices"]);
        let mut devices = plain(65);
        devices[3]["consumesCounters"] = json!([{"counterSet": "a", "counters": {"c": {"value": "1"}}}]);
        object["spec"]["devices"] = json!(devices);
        assert_eq!(fields(&object), ["spec.devices"]);
    }

    #[test]
    fn counter_sets_and_counters_are_limited() {
        let counters: Map<String, Value> =
            (0..33).map(|i| (format!("c{i}"), json!({"value": "1"}))).collect();
        let sets: Vec<Value> =
            (0..9).map(|i| json!({"name": format!("s{i}"), "counters": {"c": {"value": "1"}}})).collect();
        let mut object = good();
        object["spec"].as_object_mut().unwrap().remove("devices");
        object["spec"]["sharedCounters"] = json!(sets);
        assert_eq!(fields(&object), ["spec.sharedCounters"]);
        object["spec"]["sharedCounters"] = json!([{"name": "s", "counters": counters}]);
        assert_eq!(fields(&object), ["spec.sharedCounters[0].counters"]);
    }

    #[test]
    fn driver_pool_and_node_of_a_slice_never_change() {
        let mut changed = good();
        changed["spec"]["nodeName"] = json!("m");
        changed["spec"]["pool"]["name"] = json!("m");
        let found: Vec<String> =
            slice(&changed, Some(&good()), Version::V1_35).into_iter().map(|e| e.field).collect();
        assert_eq!(found, ["spec.pool.name", "spec.nodeName"]);
    }

    fn messages_of_1_34(object: &Value) -> Vec<String> {
        let found = slice(object, None, Version::V1_34);
        found.into_iter().map(|it| format!("{}: {}", it.field, it.message)).collect()
    }

    #[test]
    fn in_1_34_a_device_draws_on_the_counters_of_its_own_slice_only() {
        let mut object = good();
        let elsewhere = messages_of_1_34(&object);
        assert_eq!(elsewhere.len(), 1, "{elsewhere:?}");
        assert!(
            elsewhere[0].starts_with("spec.devices[0].consumesCounters[0].counterSet: ")
                && elsewhere[0]
                    .contains("must reference a counterSet defined in the ResourceSlice sharedCounters"),
            "{elsewhere:?}"
        );
        let set = |counter: &str| json!([{"name": "gpu-0", "counters": {counter: {"value": "1"}}}]);
        object["spec"]["sharedCounters"] = set("memory-slice-1");
        let other = messages_of_1_34(&object);
        assert!(other.len() == 1 && other[0].contains("must reference a counter defined"), "{other:?}");
        object["spec"]["sharedCounters"] = set("memory-slice-0");
        assert_eq!(messages_of_1_34(&object), Vec::<String>::new());
        assert_eq!(fields(&object), ["spec"], "1.35 has counters and devices in different slices");
    }

    #[test]
    fn in_1_34_counters_are_limited_over_all_sets_of_a_slice() {
        let counters = |n: usize| -> Map<String, Value> {
            (0..n).map(|it| (format!("c{it}"), json!({"value": "1"}))).collect()
        };
        let mut object = good();
        object["spec"]["devices"] = json!([]);
        let sets = |n: usize| json!([{"name": "a", "counters": counters(16)}, {"name": "b", "counters": counters(n)}]);
        object["spec"]["sharedCounters"] = sets(16);
        assert_eq!(messages_of_1_34(&object), Vec::<String>::new());
        object["spec"]["sharedCounters"] = sets(17);
        assert_eq!(messages_of_1_34(&object).len(), 1);
        object["spec"]["sharedCounters"] = sets(8);
        let device = |index: usize| {
            let consumed = json!([{"counterSet": "a", "counters": counters(16)}]);
            json!({"name": format!("d-{index}"), "consumesCounters": consumed})
        };
        object["spec"]["devices"] = (0..64).map(device).collect();
        assert_eq!(messages_of_1_34(&object), Vec::<String>::new());
        object["spec"]["devices"] = (0..65).map(device).collect();
        let found = messages_of_1_34(&object);
        assert!(found.len() == 1 && found[0].contains("must not exceed 1024"), "{found:?}");
    }
}
