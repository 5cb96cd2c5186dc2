//! ResourceClaim, ResourceClaimTemplate and DeviceClass.

use std::collections::BTreeSet;

use dra_allocator::cel_env;
use serde_json::{Value, json};

use super::{Errors, items, names, text, unique};
use crate::api::error::FieldError;

const MAX_REQUESTS: usize = 32;
const MAX_ALTERNATIVES: usize = 8;
const MAX_SELECTORS: usize = 32;
const MAX_CONFIGS: usize = 32;
const MAX_CONSUMERS: usize = 256;
const MAX_EXPRESSION_BYTES: usize = 10 * 1024;
const MAX_PARAMETER_BYTES: usize = 10 * 1024;

/// Everything wrong with a claim; its spec never changes.
#[must_use]
pub fn claim(claim: &Value, old: Option<&Value>) -> Errors {
    let mut errors = Vec::new();
    claim_spec(&claim["spec"], "spec", &mut errors);
    immutable_spec(claim, old, &mut errors);
    errors
}

/// Everything wrong with a template.
#[must_use]
pub fn claim_template(template: &Value, old: Option<&Value>) -> Errors {
    let mut errors = Vec::new();
    claim_spec(&template["spec"]["spec"], "spec.spec", &mut errors);
    immutable_spec(template, old, &mut errors);
    errors
}

fn immutable_spec(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    if let Some(old) = old
        && old["spec"] != object["spec"]
    {
        errors.push(FieldError::invalid("spec", &object["spec"], "field is immutable"));
    }
}

/// Everything wrong with a device class.
#[must_use]
pub fn device_class(class: &Value, _old: Option<&Value>) -> Errors {
    let mut errors = Vec::new();
    let spec = &class["spec"];
    selectors(items(spec, "selectors"), "spec.selectors", &mut errors);
    configs(items(spec, "config"), "spec.config", None, &mut errors);
    if let Some(name) = spec["extendedResourceName"].as_str() {
        let (domain, resource) = name.split_once('/').unwrap_or(("", name));
        let valid = names::is_dns_subdomain(domain)
            && !domain.ends_with("kubernetes.io")
            && (1..=63).contains(&resource.len())
            && resource.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        if !valid {
            let why = "must be a valid extended resource name";
            errors.push(FieldError::invalid("spec.extendedResourceName", &json!(name), why));
        }
    }
    errors
}

fn claim_spec(spec: &Value, field: &str, errors: &mut Errors) {
    let devices = &spec["devices"];
    let field = format!("{field}.devices");
    let requests = items(devices, "requests");
    if requests.len() > MAX_REQUESTS {
        errors.push(FieldError::too_many(format!("{field}.requests"), requests.len(), MAX_REQUESTS));
    }
    let mut known = BTreeSet::new();
    for (index, one) in requests.iter().enumerate() {
        request(one, &format!("{field}.requests[{index}]"), errors);
        known.insert(text(one, "name").to_owned());
        for alternative in items(one, "firstAvailable") {
            known.insert(format!("{}/{}", text(one, "name"), text(alternative, "name")));
        }
    }
    let name_field = |i: usize| format!("{field}.requests[{i}]");
    unique(requests.iter().map(|r| text(r, "name")), name_field, errors);
    let constraints = items(devices, "constraints");
    if constraints.len() > MAX_REQUESTS {
        errors.push(FieldError::too_many(format!("{field}.constraints"), constraints.len(), MAX_REQUESTS));
    }
    for (index, constraint) in constraints.iter().enumerate() {
        let field = format!("{field}.constraints[{index}]");
        request_references(constraint, &field, &known, errors);
        match constraint["matchAttribute"].as_str() {
            Some(name) => names::fully_qualified(name, &format!("{field}.matchAttribute"), errors),
            None => errors.push(FieldError::required(format!("{field}.matchAttribute"), "")),
        }
    }
    configs(items(devices, "config"), &format!("{field}.config"), Some(&known), errors);
}

fn request(request: &Value, field: &str, errors: &mut Errors) {
    names::dns_label(text(request, "name"), format!("{field}.name"), errors);
    let alternatives = items(request, "firstAvailable");
    let exactly = &request["exactly"];
    match (exactly.is_null(), alternatives.is_empty()) {
        (true, true) => {
            errors.push(FieldError::required(
                field,
                "exactly one of `exactly` or `firstAvailable` is required",
            ));
        }
        (false, false) => {
            let why = "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set";
            errors.push(FieldError::invalid(field, &Value::Null, why));
        }
        (false, true) => device_request(exactly, &format!("{field}.exactly"), errors),
        (true, false) => {
            if alternatives.len() > MAX_ALTERNATIVES {
                let field = format!("{field}.firstAvailable");
                errors.push(FieldError::too_many(field, alternatives.len(), MAX_ALTERNATIVES));
            }
            for (index, one) in alternatives.iter().enumerate() {
                let field = format!("{field}.firstAvailable[{index}]");
                names::dns_label(text(one, "name"), format!("{field}.name"), errors);
                device_request(one, &field, errors);
            }
            let name_field = |i: usize| format!("{field}.firstAvailable[{i}]");
            unique(alternatives.iter().map(|r| text(r, "name")), name_field, errors);
        }
    }
}

fn device_request(request: &Value, field: &str, errors: &mut Errors) {
    names::dns_subdomain(text(request, "deviceClassName"), format!("{field}.deviceClassName"), errors);
    selectors(items(request, "selectors"), &format!("{field}.selectors"), errors);
    let count = request["count"].as_i64().unwrap_or(0);
    match text(request, "allocationMode") {
        "ExactCount" if count <= 0 => {
            let field = format!("{field}.count");
            errors.push(FieldError::invalid(field, &json!(count), "must be greater than zero"));
        }
        "ExactCount" => {}
        "All" if count != 0 => {
            let why = "must not be specified when allocationMode is 'All'";
            errors.push(FieldError::invalid(format!("{field}.count"), &json!(count), why));
        }
        "All" => {}
        other => {
            let field = format!("{field}.allocationMode");
            errors.push(FieldError::not_supported(field, other, &["All", "ExactCount"]));
        }
    }
}

fn selectors(selectors: &[Value], field: &str, errors: &mut Errors) {
    if selectors.len() > MAX_SELECTORS {
        errors.push(FieldError::too_many(field, selectors.len(), MAX_SELECTORS));
    }
    for (index, selector) in selectors.iter().enumerate() {
        let field = format!("{field}[{index}].cel");
        if selector["cel"].is_null() {
            errors.push(FieldError::required(field, ""));
            continue;
        }
        let expression = text(&selector["cel"], "expression");
        let field = format!("{field}.expression");
        if expression.is_empty() {
            errors.push(FieldError::required(field, ""));
        } else if expression.len() > MAX_EXPRESSION_BYTES {
            errors.push(FieldError::too_long(field, MAX_EXPRESSION_BYTES));
        } else if let Err(error) = cel_env::compile(expression) {
            errors.push(FieldError::invalid(field, &json!(expression), &error.to_string()));
        }
    }
}

fn request_references(value: &Value, field: &str, known: &BTreeSet<String>, errors: &mut Errors) {
    for (index, name) in items(value, "requests").iter().enumerate() {
        if !name.as_str().is_some_and(|n| known.contains(n)) {
            let field = format!("{field}.requests[{index}]");
            errors.push(FieldError::invalid(field, name, "must be the name of a request in the claim"));
        }
    }
}

fn configs(configs: &[Value], field: &str, requests: Option<&BTreeSet<String>>, errors: &mut Errors) {
    if configs.len() > MAX_CONFIGS {
        errors.push(FieldError::too_many(field, configs.len(), MAX_CONFIGS));
    }
    for (index, config) in configs.iter().enumerate() {
        let field = format!("{field}[{index}]");
        if let Some(known) = requests {
            request_references(config, &field, known, errors);
        }
        let opaque = &config["opaque"];
        if opaque.is_null() {
            errors.push(FieldError::required(format!("{field}.opaque"), ""));
            continue;
        }
        names::driver(text(opaque, "driver"), format!("{field}.opaque.driver"), errors);
        let parameters = &opaque["parameters"];
        let field = format!("{field}.opaque.parameters");
        if parameters.is_null() {
            errors.push(FieldError::required(field, ""));
        } else if !parameters.is_object() {
            errors.push(FieldError::invalid(field, parameters, "must be a valid JSON object"));
        } else if parameters.to_string().len() > MAX_PARAMETER_BYTES {
            errors.push(FieldError::too_long(field, MAX_PARAMETER_BYTES));
        }
    }
}

/// Everything wrong with a change of a claim's status.
#[must_use]
pub fn claim_status(claim: &Value, old: Option<&Value>) -> Errors {
    let mut errors = Vec::new();
    let status = &claim["status"];
    let allocation = &status["allocation"];
    let reserved = items(status, "reservedFor");
    if reserved.len() > MAX_CONSUMERS {
        errors.push(FieldError::too_many("status.reservedFor", reserved.len(), MAX_CONSUMERS));
    }
    unique(reserved.iter().map(|r| text(r, "uid")), |i| format!("status.reservedFor[{i}].uid"), &mut errors);
    if !reserved.is_empty() && allocation.is_null() {
        errors.push(FieldError::forbidden(
            "status.reservedFor",
            "may not be specified when `allocated` is not set",
        ));
    }
    if let Some(old) = old {
        let before = &old["status"]["allocation"];
        if !before.is_null() && !allocation.is_null() && before != allocation {
            errors.push(FieldError::invalid("status.allocation", allocation, "field is immutable"));
        }
    }
    let results = items(&allocation["devices"], "results");
    if results.len() > MAX_REQUESTS {
        errors.push(FieldError::too_many("status.allocation.devices.results", results.len(), MAX_REQUESTS));
    }
    for (index, device) in items(status, "devices").iter().enumerate() {
        let same = |result: &&Value| ["driver", "pool", "device"].iter().all(|k| result[*k] == device[*k]);
        let field = format!("status.devices[{index}]");
        if !results.iter().any(|r| same(&r)) {
            let why = "must be an allocated device in the claim";
            errors.push(FieldError::invalid(field.clone(), device, why));
        }
        if items(device, "conditions").len() > 8 {
            errors.push(FieldError::too_many(
                format!("{field}.conditions"),
                items(device, "conditions").len(),
                8,
            ));
        }
        if !device["data"].is_null() && !device["data"].is_object() {
            let why = "must be a valid JSON object";
            errors.push(FieldError::invalid(format!("{field}.data"), &device["data"], why));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Value {
        json!({"spec": {"devices": {"requests": [{"name": "mig", "exactly": {"deviceClassName": "mig.dra-driver.dev",
            "allocationMode": "ExactCount", "count": 1}}]}}})
    }

    fn fields(errors: Errors) -> Vec<String> {
        errors.into_iter().map(|e| e.field).collect()
    }

    fn refused(pointer: &str, value: Value, field: &str) {
        let mut object = good();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[key] = value;
        assert_eq!(fields(claim(&object, None)), [field]);
    }

    #[test]
    fn a_good_claim_passes() {
        assert_eq!(fields(claim(&good(), None)), Vec::<String>::new());
    }

    #[test]
    fn each_fault_of_a_claim_is_reported_at_its_field() {
        let request = "/spec/devices/requests/0";
        refused(&format!("{request}/name"), json!("a.b"), "spec.devices.requests[0].name");
        refused(&format!("{request}/exactly"), Value::Null, "spec.devices.requests[0]");
        let exactly = format!("{request}/exactly");
        let field = "spec.devices.requests[0].exactly";
        refused(&format!("{exactly}/deviceClassName"), json!(""), &format!("{field}.deviceClassName"));
        refused(&format!("{exactly}/count"), json!(0), &format!("{field}.count"));
        refused(&format!("{exactly}/allocationMode"), json!("Most"), &format!("{field}.allocationMode"));
        let selector = json!([{"cel": {"expression": "device.driver =="}}]);
        refused(&format!("{exactly}/selectors"), selector, &format!("{field}.selectors[0].cel.expression"));
        let constraint = json!([{"requests": ["other"], "matchAttribute": "a.b/c"}]);
        refused("/spec/devices/constraints", constraint, "spec.devices.constraints[0].requests[0]");
        let constraint = json!([{"matchAttribute": "parentUUID"}]);
        refused("/spec/devices/constraints", constraint, "spec.devices.constraints[0].matchAttribute");
        let config = json!([{"opaque": {"driver": "d", "parameters": [1]}}]);
        refused("/spec/devices/config", config, "spec.devices.config[0].opaque.parameters");
    }

    #[test]
    fn the_spec_of_a_claim_never_changes() {
        let mut changed = good();
        changed["spec"]["devices"]["requests"][0]["name"] = json!("other");
        assert_eq!(fields(claim(&changed, Some(&good()))), ["spec"]);
    }

    #[test]
    fn device_status_must_name_an_allocated_device() {
        let device = json!({"driver": "d", "pool": "p", "device": "x"});
        let mut object =
            json!({"status": {"allocation": {"devices": {"results": [device]}}, "devices": [device]}});
        assert_eq!(fields(claim_status(&object, None)), Vec::<String>::new());
        object["status"]["devices"][0]["device"] = json!("y");
        assert_eq!(fields(claim_status(&object, None)), ["status.devices[0]"]);
    }

    #[test]
    fn a_claim_is_reserved_only_while_allocated() {
        let object = json!({"status": {"reservedFor": [{"uid": "1"}]}});
        assert_eq!(fields(claim_status(&object, None)), ["status.reservedFor"]);
    }
}
