//! What the server does to an object of each kind before it stores it: defaults, fields that disabled features drop, which
//! half of the object a request may change, and validation.

use serde_json::{Map, Value, json};

use super::error::{ApiError, FieldError};
use super::kinds::Kind;
use super::version::Version;
use super::{clock, store::Gates};
use crate::validate;

/// Which half of an object a request writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Everything but the status.
    Main,
    /// The `status` subresource.
    Status,
}

/// Prepares a new object.
pub(super) fn before_create(kind: &Kind, object: &mut Value, gates: Gates) {
    defaults(kind, object);
    match kind.kind {
        "ResourceSlice" => drop_disabled(object, None, gates),
        "DeviceClass" if !gates.extended_resource => remove(&mut object["spec"], "extendedResourceName"),
        "ResourceClaim"
        | "Deployment"
        | "ReplicaSet"
        | "StatefulSet"
        | "DaemonSet"
        | "Job"
        | "CronJob"
        | "ResourceQuota"
        | "Service"
        | "PodDisruptionBudget"
        | "PersistentVolumeClaim" => object["status"] = json!({}),
        "MigNode" => remove(object, "status"),
        "CustomResourceDefinition" => {
            let condition = |it: &str| json!({"type": it, "status": "True", "reason": "", "message": ""});
            object["status"] = json!({"conditions": [condition("NamesAccepted"), condition("Established")]});
        }
        "Pod" => object["status"] = json!({"phase": "Pending", "qosClass": "BestEffort"}),
        "Namespace" => object["status"] = json!({"phase": "Active"}),
        _ => {}
    }
}

/// Prepares a changed object: takes over from the stored one what this request must not change.
pub(super) fn before_update(kind: &Kind, old: &Value, new: &mut Value, part: Part, gates: Gates) {
    defaults(kind, new);
    if kind.subresources.contains(&"status") {
        match part {
            Part::Main => copy(old, new, "status"),
            Part::Status => {
                let status = new.get("status").cloned();
                *new = old.clone();
                match (status, &mut *new) {
                    (Some(status), Value::Object(new)) => drop(new.insert("status".into(), status)),
                    _ => remove(new, "status"),
                }
            }
        }
    }
    match kind.kind {
        "ResourceSlice" => drop_disabled(new, Some(old), gates),
        "DeviceClass" if !gates.extended_resource && old["spec"]["extendedResourceName"].is_null() => {
            remove(&mut new["spec"], "extendedResourceName");
        }
        "ResourceClaim" if part == Part::Status => claim_status(old, &mut new["status"], gates),
        _ => {}
    }
}

/// The devices' status belongs to the allocation and goes with it; with its gate off it is kept only where it is in use.
fn claim_status(old: &Value, status: &mut Value, gates: Gates) {
    let old = &old["status"];
    if status["allocation"].is_null() {
        remove(status, "allocation");
        if !old["allocation"].is_null() {
            remove(status, "devices");
        }
    }
    if gates.without_device_status && old["devices"].is_null() {
        remove(status, "devices");
    }
}

fn copy(old: &Value, new: &mut Value, key: &str) {
    remove(new, key);
    if let (Some(value), Value::Object(new)) = (old.get(key), new) {
        new.insert(key.into(), value.clone());
    }
}

fn remove(object: &mut Value, key: &str) {
    if let Value::Object(object) = object {
        object.remove(key);
    }
}

/// Everything wrong with an object, as 422.
pub(super) fn validated(
    kind: &Kind,
    new: &Value,
    old: Option<&Value>,
    part: Part,
    version: Version,
) -> Result<(), ApiError> {
    let mut errors: Vec<FieldError> = Vec::new();
    let name = new["metadata"]["name"].as_str().unwrap_or("");
    validate::object_name(name, &mut errors);
    errors.extend(match (kind.kind, part) {
        ("ResourceSlice", _) => validate::slice(new, old, version),
        ("ResourceClaim", Part::Main) => validate::claim(new, old),
        ("ResourceClaim", Part::Status) => validate::claim_status(new, old),
        ("ResourceClaimTemplate", _) => validate::claim_template(new, old),
        ("DeviceClass", _) => validate::device_class(new, old),
        ("Pod", Part::Main) => pod_spec(&new["spec"], "spec"),
        ("Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet", Part::Main) => {
            template(&new["spec"], "spec", &["Always"])
        }
        ("Job", Part::Main) => template(&new["spec"], "spec", &RUNS_TO_COMPLETION),
        ("CronJob", Part::Main) => {
            template(&new["spec"]["jobTemplate"]["spec"], "spec.jobTemplate.spec", &RUNS_TO_COMPLETION)
        }
        _ => Vec::new(),
    });
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid(kind, name, errors)) }
}

/// Drops what the server does not write: lists that are empty. Only after validation, which tells them from absent ones.
pub(super) fn finish(kind: &Kind, object: &mut Value) {
    if kind.group == "resource.k8s.io" {
        drop_empty_lists(&mut object["spec"]);
    }
}

fn drop_empty_lists(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.as_array().is_some_and(Vec::is_empty));
            map.values_mut().for_each(drop_empty_lists);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_empty_lists),
        _ => {}
    }
}

/// Requests for admin access, which only namespaces with the label may make.
pub(super) fn admin_access(kind: &Kind, object: &Value, namespace: &Value) -> Result<(), ApiError> {
    let (spec, field) = match kind.kind {
        "ResourceClaim" => (&object["spec"], "spec"),
        "ResourceClaimTemplate" => (&object["spec"]["spec"], "spec.spec"),
        _ => return Ok(()),
    };
    if namespace["metadata"]["labels"]["resource.kubernetes.io/admin-access"] == "true" {
        return Ok(());
    }
    let requests = spec["devices"]["requests"].as_array();
    let asked = requests.and_then(|list| list.iter().position(|r| r["exactly"]["adminAccess"] == true));
    asked.map_or(Ok(()), |index| {
        let why = "admin access to devices requires the `resource.kubernetes.io/admin-access: true` label on the \
            containing namespace";
        let error = FieldError::forbidden(format!("{field}.devices.requests[{index}].adminAccess"), why);
        Err(ApiError::invalid(kind, object["metadata"]["name"].as_str().unwrap_or(""), vec![error]))
    })
}

/// Restart policies of pods that end.
const RUNS_TO_COMPLETION: [&str; 2] = ["OnFailure", "Never"];

/// The pod template of a workload.
fn template(spec: &Value, field: &str, restart_policies: &[&str]) -> Vec<FieldError> {
    let field = format!("{field}.template.spec");
    let pod = &spec["template"]["spec"];
    let mut errors = pod_spec(pod, &field);
    let policy = pod["restartPolicy"].as_str().unwrap_or("");
    if !restart_policies.contains(&policy) {
        errors.push(FieldError::not_supported(format!("{field}.restartPolicy"), policy, restart_policies));
    }
    errors
}

fn pod_spec(spec: &Value, field: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    if list(&spec["containers"]).is_empty() {
        errors.push(FieldError::required(format!("{field}.containers"), ""));
    }
    let claims = list(&spec["resourceClaims"]);
    for (index, claim) in claims.iter().enumerate() {
        if claim["resourceClaimName"].is_null() == claim["resourceClaimTemplateName"].is_null() {
            let why = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
            errors.push(FieldError::required(format!("{field}.resourceClaims[{index}]"), why));
        }
    }
    for (index, container) in list(&spec["containers"]).iter().enumerate() {
        for (at, used) in list(&container["resources"]["claims"]).iter().enumerate() {
            if !claims.iter().any(|claim| claim["name"] == used["name"]) {
                let field = format!("{field}.containers[{index}].resources.claims[{at}]");
                let why = "must be one of the names in pod.spec.resourceClaims";
                errors.push(FieldError::invalid(field, &used["name"], why));
            }
        }
    }
    errors
}

fn set_default(object: &mut Value, key: &str, value: Value) {
    if let Value::Object(map) = object
        && map.get(key).is_none_or(|v| v.is_null() || v == "" || v == 0)
    {
        map.insert(key.into(), value);
    }
}

fn each(value: &mut Value, change: impl FnMut(&mut Value)) {
    if let Value::Array(list) = value {
        list.iter_mut().for_each(change);
    }
}

/// Looks into an object without creating what is not there.
fn at<'a>(value: &'a mut Value, pointer: &str, change: impl FnOnce(&'a mut Value)) {
    if let Some(place) = value.pointer_mut(pointer) {
        change(place);
    }
}

fn defaults(kind: &Kind, object: &mut Value) {
    match kind.kind {
        "ResourceSlice" => at(object, "/spec/devices", |devices| {
            each(devices, |device| {
                at(device, "/taints", |taints| {
                    each(taints, |taint| set_default(taint, "timeAdded", clock::now().into()));
                });
            });
        }),
        "ResourceClaim" => at(object, "/spec/devices/requests", |list| each(list, request_defaults)),
        "ResourceClaimTemplate" => {
            at(object, "/spec/spec/devices/requests", |list| each(list, request_defaults))
        }
        "Pod" => at(object, "/spec", |spec| {
            pod_defaults(spec);
            for containers in ["/initContainers", "/containers"] {
                at(spec, containers, |list| each(list, requests_from_limits));
            }
        }),
        "Deployment" | "ReplicaSet" | "StatefulSet" => {
            at(object, "/spec", |spec| set_default_number(spec, "replicas", 1));
            at(object, "/spec/template/spec", pod_defaults);
        }
        "DaemonSet" => at(object, "/spec/template/spec", pod_defaults),
        "Job" => at(object, "/spec", job_defaults),
        "CronJob" => at(object, "/spec/jobTemplate/spec", job_defaults),
        _ => {}
    }
}

fn set_default_number(object: &mut Value, key: &str, number: i64) {
    if object[key].is_null() {
        object[key] = json!(number);
    }
}

fn job_defaults(spec: &mut Value) {
    // Without both it is one pod; with only `parallelism` it is a queue of unknown length.
    if spec["parallelism"].is_null() && spec["completions"].is_null() {
        spec["completions"] = json!(1);
    }
    set_default_number(spec, "parallelism", 1);
    set_default_number(spec, "backoffLimit", 6);
    at(spec, "/template/spec", pod_defaults);
}

/// What a container limits it also requests, unless it says otherwise.
fn requests_from_limits(container: &mut Value) {
    let limits = container["resources"]["limits"].as_object().cloned().unwrap_or_default();
    for (resource, limit) in limits {
        let requests = &mut container["resources"]["requests"];
        if requests[&resource].is_null() {
            requests[&resource] = limit;
        }
    }
}

fn request_defaults(request: &mut Value) {
    let one = |request: &mut Value| {
        set_default(request, "allocationMode", "ExactCount".into());
        if request["allocationMode"] == "ExactCount" {
            set_default(request, "count", json!(1));
        }
    };
    at(request, "/exactly", one);
    at(request, "/firstAvailable", |list| each(list, one));
}

fn pod_defaults(spec: &mut Value) {
    set_default(spec, "restartPolicy", "Always".into());
    set_default(spec, "schedulerName", "default-scheduler".into());
    set_default(spec, "dnsPolicy", "ClusterFirst".into());
    if spec["terminationGracePeriodSeconds"].is_null() {
        spec["terminationGracePeriodSeconds"] = json!(30);
    }
}

/// Drops what a disabled feature gate drops, silently, unless the stored object already uses the feature: the behaviour
/// (`resourceslice/strategy.go`) that makes overlapping devices look independent to a scheduler.
fn drop_disabled(slice: &mut Value, old: Option<&Value>, gates: Gates) {
    const PARTITIONABLE: [&str; 4] = ["consumesCounters", "nodeName", "nodeSelector", "allNodes"];
    const OTHERS: [&str; 4] =
        ["bindsToNode", "bindingConditions", "bindingFailureConditions", "allowMultipleAllocations"];
    let Some(spec) = slice.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let in_use = |keys: &[&str]| {
        let devices = old.and_then(|o| o["spec"]["devices"].as_array());
        devices.is_some_and(|list| list.iter().any(|d| keys.iter().any(|k| !d[*k].is_null())))
    };
    let counters_in_use = old.is_some_and(|old| {
        !old["spec"]["sharedCounters"].is_null() || !old["spec"]["perDeviceNodeSelection"].is_null()
    });
    let drop_partitionable = !gates.partitionable_devices && !counters_in_use && !in_use(&PARTITIONABLE);
    let drop_taints = !gates.device_taints && !in_use(&["taints"]);
    if drop_partitionable {
        spec.remove("sharedCounters");
        spec.remove("perDeviceNodeSelection");
    }
    let Some(Value::Array(devices)) = spec.get_mut("devices") else { return };
    for device in devices.iter_mut().filter_map(Value::as_object_mut) {
        let drop = |device: &mut Map<String, Value>, keys: &[&str]| {
            keys.iter().for_each(|k| drop(device.remove(*k)))
        };
        if drop_partitionable {
            drop(device, &PARTITIONABLE);
        }
        if drop_taints {
            drop(device, &["taints"]);
        }
        // Binding conditions and consumable capacity are alpha and never on here.
        drop(device, &OTHERS);
        if let Some(Value::Object(capacities)) = device.get_mut("capacity") {
            capacities.values_mut().for_each(|capacity| remove(capacity, "requestPolicy"));
        }
    }
}
