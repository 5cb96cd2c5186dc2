//! Custom resources, by the schema in their CustomResourceDefinition: unknown fields are dropped or refused, and what is left is
//! judged. As much of structural schemas as this project uses, with validation rules in CEL, whose cost is not limited here.

use std::collections::HashMap;
use std::sync::Arc;

use cel::Value as CelValue;
use cel::objects::Key;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::error::{ApiError, FieldError};
use super::kinds::Kind;
use super::schema::{of_kind, refusal, unknown_fields};
use crate::expression;

/// The schema of the one version that a definition has.
fn schema_of(definition: &Value) -> &Value {
    &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
}

/// Reads an object as a request body.
pub(super) fn decode(
    kind: &'static Kind,
    definition: &Value,
    mut value: Value,
    strict: bool,
) -> Result<Value, ApiError> {
    of_kind(kind, &mut value)?;
    let metadata = value.get("metadata").cloned().unwrap_or_else(|| json!({}));
    let metadata = ObjectMeta::deserialize(&metadata).and_then(serde_json::to_value);
    let metadata =
        metadata.map_err(|error| refusal(kind, &format!("metadata: {error}")).at("metadata".into()))?;
    let mut unknown = Vec::new();
    prune(&mut value, schema_of(definition), "", &mut unknown);
    if strict && !unknown.is_empty() {
        return Err(unknown_fields(kind, unknown));
    }
    set_defaults(&mut value, schema_of(definition));
    value["metadata"] = metadata;
    Ok(value)
}

/// Drops what the schema does not have, and nulls, which stand for no value.
fn prune(value: &mut Value, schema: &Value, path: &str, unknown: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            map.retain(|_, it| !it.is_null());
            let is_whole = path == "metadata" || schema["x-kubernetes-preserve-unknown-fields"] == true;
            let known = schema["properties"].as_object();
            let mut gone = Vec::new();
            for (key, it) in map.iter_mut() {
                let path = below(path, key);
                match known.and_then(|known| known.get(key)).or(schema.get("additionalProperties")) {
                    Some(schema) => prune(it, schema, &path, unknown),
                    None if is_whole => {}
                    None => gone.push((key.clone(), path)),
                }
            }
            for (key, path) in gone {
                map.remove(&key);
                unknown.push(path);
            }
        }
        Value::Array(list) => {
            for (index, it) in list.iter_mut().enumerate() {
                prune(it, &schema["items"], &format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}

/// Sets what is missing and has a default.
fn set_defaults(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(map) => {
            for (key, schema) in schema["properties"].as_object().into_iter().flatten() {
                if !schema["default"].is_null() && map.get(key).is_none_or(Value::is_null) {
                    map.insert(key.clone(), schema["default"].clone());
                }
                if let Some(it) = map.get_mut(key) {
                    set_defaults(it, schema);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|it| set_defaults(it, &schema["items"])),
        _ => {}
    }
}

/// Takes what came of an apply: unlike in a request, null is a value there, which no schema of this project permits.
pub(super) fn applied(kind: &Kind, definition: &Value, value: &mut Value) -> Result<(), ApiError> {
    set_defaults(value, schema_of(definition));
    let name = value["metadata"]["name"].as_str().unwrap_or_default();
    let nulls = value.as_object().into_iter().flatten().filter(|(_, it)| it.is_null());
    let errors: Vec<FieldError> =
        nulls.map(|(key, it)| FieldError::invalid(key, it, "must not be null")).collect();
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid(kind, name, errors)) }
}

fn below(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Everything wrong with an object, as 422.
pub(super) fn validate(kind: &Kind, definition: &Value, object: &Value) -> Result<(), ApiError> {
    let mut errors = Vec::new();
    judge(object, schema_of(definition), "", &mut errors);
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid(kind, name, errors)) }
}

fn judge(value: &Value, schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let invalid = |why: &str| FieldError::invalid(path, value, why);
    if let Some(wanted) = schema["type"].as_str().filter(|it| !is_type(value, it)) {
        return errors.push(invalid(&format!("{path} in body must be of type {wanted}")));
    }
    if let Some(allowed) = schema["enum"].as_array().filter(|it| !it.contains(value)) {
        let allowed: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
        errors.push(FieldError::not_supported(path, value.as_str().unwrap_or_default(), &allowed));
    }
    match value {
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or(f64::MAX);
            if schema["minimum"].as_f64().is_some_and(|it| number < it)
                || schema["maximum"].as_f64().is_some_and(|it| it < number)
            {
                errors.push(invalid("is out of range"));
            }
        }
        Value::String(text) => judge_text(text, schema, path, errors),
        Value::Array(list) => judge_list(list, schema, path, errors),
        Value::Object(map) => judge_object(map, schema, path, errors),
        Value::Null | Value::Bool(_) => {}
    }
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        if let Err(why) = holds(rule, value) {
            errors.push(FieldError::invalid(path, &json!(value_type(value)), &why));
        }
    }
}

fn is_type(value: &Value, wanted: &str) -> bool {
    match wanted {
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        wanted => value_type(value) == wanted,
    }
}

fn value_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// A bound of a schema; `None` where there is none.
fn bound(schema: &Value, name: &str) -> Option<usize> {
    schema[name].as_u64().and_then(|it| usize::try_from(it).ok())
}

fn judge_text(text: &str, schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let invalid = |why: &str| FieldError::invalid(path, &json!(text), why);
    let length = text.chars().count();
    if let Some(most) = bound(schema, "maxLength").filter(|it| *it < length) {
        errors.push(FieldError::too_long(path, most));
    }
    if bound(schema, "minLength").is_some_and(|it| length < it) {
        errors.push(invalid("is too short"));
    }
    if let Some(pattern) = schema["pattern"].as_str() {
        let variables = [("self", CelValue::from(text)), ("pattern", CelValue::from(pattern))];
        if evaluate("self.matches(pattern)", variables) != Ok(CelValue::Bool(true)) {
            errors.push(invalid(&format!("{path} in body should match '{pattern}'")));
        }
    }
    if schema["format"] == "date-time" && text.parse::<Timestamp>().is_err() {
        errors.push(invalid(&format!("{path} in body must be of type date-time")));
    }
}

fn judge_list(list: &[Value], schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if let Some(most) = bound(schema, "maxItems").filter(|it| *it < list.len()) {
        return errors.push(FieldError::too_many(path, list.len(), most));
    }
    let keys: Vec<&str> = schema["x-kubernetes-list-map-keys"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for (index, it) in list.iter().enumerate() {
        let path = format!("{path}[{index}]");
        judge(it, &schema["items"], &path, errors);
        let is_same = |other: &Value| !keys.is_empty() && keys.iter().all(|key| other[key] == it[key]);
        if list[..index].iter().any(is_same) {
            let key: Map<String, Value> =
                keys.iter().map(|key| ((*key).to_owned(), it[key].clone())).collect();
            errors.push(FieldError::duplicate(path, &Value::from(key).to_string()));
        }
    }
}

fn judge_object(map: &Map<String, Value>, schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !map.contains_key(name) {
            errors.push(FieldError::required(below(path, name), ""));
        }
    }
    if let Some(most) = bound(schema, "maxProperties").filter(|it| *it < map.len()) {
        errors.push(FieldError::too_many(path, map.len(), most));
    }
    if bound(schema, "minProperties").is_some_and(|it| map.len() < it) {
        errors.push(FieldError::invalid(path, &json!(map), "has too few properties"));
    }
    for (key, it) in map {
        let known = schema["properties"].get(key).or(schema.get("additionalProperties"));
        if let Some(schema) = known {
            judge(it, schema, &below(path, key), errors);
        }
    }
}

/// Whether a validation rule holds; else its message, or why it cannot be evaluated.
fn holds(rule: &Value, value: &Value) -> Result<(), String> {
    let text = rule["rule"].as_str().unwrap_or_default();
    match evaluate(text, [("self", to_cel(value))])? {
        CelValue::Bool(true) => Ok(()),
        _ => Err(rule["message"].as_str().map_or_else(|| format!("failed rule: {text}"), str::to_owned)),
    }
}

fn evaluate<const N: usize>(text: &str, variables: [(&str, CelValue); N]) -> Result<CelValue, String> {
    let mut context = expression::context();
    for (name, value) in variables {
        context.add_variable_from_value(name, value);
    }
    expression::evaluate(&context, text)
}

/// The value as CEL has it by the schema: whole numbers are signed.
fn to_cel(value: &Value) -> CelValue {
    match value {
        Value::Null => CelValue::Null,
        Value::Bool(it) => CelValue::Bool(*it),
        Value::Number(it) => {
            it.as_i64().map_or_else(|| CelValue::Float(it.as_f64().unwrap_or_default()), CelValue::Int)
        }
        Value::String(it) => CelValue::from(it.as_str()),
        Value::Array(it) => CelValue::List(Arc::new(it.iter().map(to_cel).collect())),
        Value::Object(it) => {
            let map: HashMap<Key, CelValue> =
                it.iter().map(|(key, it)| (key.clone().into(), to_cel(it))).collect();
            CelValue::from(map)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::kinds::{CUSTOM_RESOURCE_DEFINITION, MIG_NODE};
    use super::*;

    /// The definition as the server stores it.
    fn definition() -> Value {
        let text = include_str!("../../../../deploy/manifests/crd.yaml");
        let definition = crate::manifest::parse(text).unwrap().remove(0);
        super::super::schema::decode(&CUSTOM_RESOURCE_DEFINITION, definition, true).unwrap()
    }

    fn fields(object: &Value) -> Vec<String> {
        match validate(&MIG_NODE, &definition(), object) {
            Ok(()) => Vec::new(),
            Err(error) => error.causes.into_iter().map(|it| it.field).collect(),
        }
    }

    #[test]
    fn an_unknown_field_is_dropped_or_with_strict_refused() {
        let object = json!({"metadata": {"name": "n"}, "spec": {"floor": [], "colour": "red"}});
        let kept = decode(&MIG_NODE, &definition(), object.clone(), false).unwrap();
        assert_eq!(kept["spec"], json!({"floor": []}));
        let error = decode(&MIG_NODE, &definition(), object, true).unwrap_err();
        assert_eq!((error.code, error.field.as_deref()), (400, Some("spec.colour")));
    }

    #[test]
    fn what_is_missing_gets_its_default_and_null_is_no_value() {
        let mut definition = definition();
        let bare = json!({"metadata": {"name": "n"}});
        assert_eq!(decode(&MIG_NODE, &definition, bare.clone(), true).unwrap()["spec"], json!({}));
        let emptied = json!({"metadata": {"name": "n"}, "spec": null});
        let mut object = emptied.clone();
        applied(&MIG_NODE, &definition, &mut object).unwrap();
        assert_eq!(object["spec"], json!({}));
        let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";
        definition.pointer_mut(spec).unwrap().as_object_mut().unwrap().remove("default").unwrap();
        assert_eq!(decode(&MIG_NODE, &definition, bare, true).unwrap().get("spec"), None);
        let error = applied(&MIG_NODE, &definition, &mut emptied.clone()).unwrap_err();
        assert_eq!((error.code, error.causes[0].field.as_str()), (422, "spec"));
    }

    #[test]
    fn every_kind_of_rule_is_judged() {
        let count = |count: Value| json!({"profile": "1g.10gb", "count": count});
        let spec = |spec: Value| fields(&json!({"metadata": {"name": "n"}, "spec": spec}));
        assert_eq!(spec(json!({"floor": [count(json!(1))]})), [""; 0]);
        assert_eq!(spec(json!({"floor": [count(json!(0))]})), ["spec.floor[0].count"]);
        assert_eq!(spec(json!({"floor": [count(json!(513))]})), ["spec.floor[0].count"]);
        assert_eq!(spec(json!({"floor": [count(json!("1"))]})), ["spec.floor[0].count"]);
        assert_eq!(spec(json!({"floor": [count(json!(1)), count(json!(2))]})), ["spec.floor[1]"]);
        assert_eq!(
            spec(json!({"floor": [{"profile": "a b"}]})),
            ["spec.floor[0].count", "spec.floor[0].profile"]
        );
        assert_eq!(spec(json!({"demand": {"renewTime": "now", "profiles": []}})), ["spec.demand.renewTime"]);
        let status = |gpu: Value| fields(&json!({"metadata": {"name": "n"}, "status": {"gpus": [gpu]}}));
        let held = |device: &str| json!({"device": device, "profile": "full", "start": 0, "size": 0});
        let gpu = |device: &str| json!({"name": "gpu-0000-1a-00", "held": [held(device)]});
        assert_eq!(status(gpu("gpu-0000-1a-00-mig-1g-10gb-0")), [""; 0]);
        assert_eq!(status(gpu("gpu-0000-1b-00")), ["status.gpus[0]"]);
        let placed = |start: u32| {
            let profile = json!({"profile": "p", "placements": [{"start": start, "size": 4}]});
            json!({"name": "gpu-0000-1a-00", "profiles": [profile]})
        };
        assert_eq!(status(placed(23)), [""; 0]);
        assert_eq!(status(placed(24)), ["status.gpus[0].profiles[0].placements[0]"]);
    }
}
