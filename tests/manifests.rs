//! Every manifest in `examples/` and `deploy/manifests/` is one that a strict API server takes, and refers to what there is.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::common::repository;
use k8s_openapi::api::{
    admissionregistration::v1 as admission, apps::v1 as apps, batch::v1 as batch, core::v1 as core,
    networking::v1 as networking, policy::v1 as policy, rbac::v1 as rbac, resource::v1 as resource,
    scheduling::v1 as scheduling,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as extensions;
use kube_sim::{ApiServer, Options, kinds, manifest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Kinds of others, of which only the group is looked at: there are no types of theirs here.
const OTHER_GROUPS: [&str; 10] = [
    "monitoring.coreos.com/",
    "kustomize.config.k8s.io/",
    "security.openshift.io/",
    // Operators, of which the sandbox judges the pod templates.
    "batch.volcano.sh/",
    "config.kueue.x-k8s.io/",
    "jobset.x-k8s.io/",
    "kueue.x-k8s.io/",
    "ray.io/",
    "scheduling.volcano.sh/",
    "serving.kserve.io/",
];

/// The claim of an example that its quota refuses.
const BEYOND_QUOTA: &str = "too-large";

/// Folders that are applied as one.
fn folders() -> Vec<PathBuf> {
    let examples = std::fs::read_dir(repository().join("examples")).unwrap().map(|it| it.unwrap().path());
    let mut folders: Vec<PathBuf> = examples.filter(|it| it.is_dir() && !it.ends_with("sandbox")).collect();
    folders.push(repository().join("deploy/manifests"));
    folders.sort();
    folders
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

/// Numbers where the API takes quantities too; the types here take text only.
fn with_quantities(value: &mut Value) {
    const MAPS: [&str; 5] = ["limits", "requests", "hard", "capacity", "allocatable"];
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if let (true, Value::Object(amounts)) = (MAPS.contains(&key.as_str()), &mut *value) {
                    for amount in amounts.values_mut().filter(|it| it.is_number()) {
                        *amount = Value::String(amount.to_string());
                    }
                }
                with_quantities(value);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(with_quantities),
        _ => {}
    }
}

/// What is left of a value when it has gone through the type: known fields only.
fn kept<T: DeserializeOwned + Serialize>(value: &Value) -> Result<Value, serde_json::Error> {
    serde_json::to_value(T::deserialize(value)?)
}

fn typed(value: &Value) -> Result<Value, serde_json::Error> {
    match (text(value, "/apiVersion"), text(value, "/kind")) {
        ("v1", "ConfigMap") => kept::<core::ConfigMap>(value),
        ("v1", "Namespace") => kept::<core::Namespace>(value),
        ("v1", "Pod") => kept::<core::Pod>(value),
        ("v1", "ResourceQuota") => kept::<core::ResourceQuota>(value),
        ("v1", "Service") => kept::<core::Service>(value),
        ("v1", "ServiceAccount") => kept::<core::ServiceAccount>(value),
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition") => {
            kept::<extensions::CustomResourceDefinition>(value)
        }
        ("apps/v1", "DaemonSet") => kept::<apps::DaemonSet>(value),
        ("apps/v1", "Deployment") => kept::<apps::Deployment>(value),
        ("apps/v1", "StatefulSet") => kept::<apps::StatefulSet>(value),
        ("batch/v1", "Job") => kept::<batch::Job>(value),
        ("batch/v1", "CronJob") => kept::<batch::CronJob>(value),
        ("networking.k8s.io/v1", "NetworkPolicy") => kept::<networking::NetworkPolicy>(value),
        ("policy/v1", "PodDisruptionBudget") => kept::<policy::PodDisruptionBudget>(value),
        ("scheduling.k8s.io/v1", "PriorityClass") => kept::<scheduling::PriorityClass>(value),
        ("rbac.authorization.k8s.io/v1", "Role") => kept::<rbac::Role>(value),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => kept::<rbac::RoleBinding>(value),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => kept::<rbac::ClusterRole>(value),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => kept::<rbac::ClusterRoleBinding>(value),
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy") => {
            kept::<admission::ValidatingAdmissionPolicy>(value)
        }
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding") => {
            kept::<admission::ValidatingAdmissionPolicyBinding>(value)
        }
        ("resource.k8s.io/v1", "DeviceClass") => kept::<resource::DeviceClass>(value),
        ("resource.k8s.io/v1", "ResourceClaim") => kept::<resource::ResourceClaim>(value),
        ("resource.k8s.io/v1", "ResourceClaimTemplate") => kept::<resource::ResourceClaimTemplate>(value),
        (version, kind) => panic!("add {version} {kind} to this table"),
    }
}

/// Paths that `given` has and `kept` has not.
fn unknown(given: &Value, kept: &Value, path: &str, found: &mut Vec<String>) {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            for (key, value) in given {
                match kept.get(key) {
                    Some(kept) => unknown(value, kept, &format!("{path}.{key}"), found),
                    None => found.push(format!("{path}.{key}")),
                }
            }
        }
        (Value::Array(given), Value::Array(kept)) if given.len() == kept.len() => {
            for (index, (given, kept)) in given.iter().zip(kept).enumerate() {
                unknown(given, kept, &format!("{path}[{index}]"), found);
            }
        }
        // Bounds in the schema of a CustomResourceDefinition are floating point there.
        (Value::Number(given), Value::Number(kept)) if given.as_f64() == kept.as_f64() => {}
        (given, kept) if given == kept => {}
        (given, kept) => found.push(format!("{path}: {given} became {kept}")),
    }
}

fn strictly(object: &Value) -> Vec<String> {
    let mut object = object.clone();
    // Of a definition the names of a map are names of properties.
    if text(&object, "/kind") != "CustomResourceDefinition" {
        with_quantities(&mut object);
    }
    let mut found = Vec::new();
    match typed(&object) {
        Ok(kept) => unknown(&object, &kept, "", &mut found),
        Err(error) => found.push(error.to_string()),
    }
    found
}

fn is_of_other_groups(object: &Value) -> bool {
    OTHER_GROUPS.iter().any(|it| text(object, "/apiVersion").starts_with(it))
}

/// The pod specs of an object.
fn pod_spec(object: &Value) -> Option<&Value> {
    match text(object, "/kind") {
        "Pod" => object.pointer("/spec"),
        "CronJob" => object.pointer("/spec/jobTemplate/spec/template/spec"),
        _ => object.pointer("/spec/template/spec"),
    }
}

#[test]
fn every_manifest_has_only_fields_that_its_kind_has() {
    let mut count = 0;
    for folder in folders() {
        for object in manifest::load(&folder).unwrap().iter().filter(|it| !is_of_other_groups(it)) {
            let found = strictly(object);
            assert!(found.is_empty(), "{}: {}: {found:?}", folder.display(), text(object, "/metadata/name"));
            count += 1;
        }
    }
    assert!(count > 100, "{count}");
}

#[test]
fn a_misspelt_field_is_found() {
    let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"},
        "spec": {"containers": [{"name": "c", "resources": {"claim": []}}]}});
    assert_eq!(strictly(&object), [".spec.containers[0].resources.claim"]);
}

#[tokio::test]
async fn every_manifest_and_every_pod_of_a_workload_is_accepted_by_the_api_server() {
    for folder in folders() {
        let server = ApiServer::start(Options::default()).await.unwrap();
        let mut objects = manifest::load(&folder).unwrap();
        // Controllers make the pods of workloads when all else is there.
        objects.sort_by_key(|it| pod_spec(it).is_some());
        let spaces: BTreeSet<&str> = objects.iter().map(|it| text(it, "/metadata/namespace")).collect();
        for name in spaces.into_iter().filter(|it| !matches!(*it, "" | "default" | "kube-system")) {
            // Some are in the folder itself, others are there before it is applied.
            let _ =
                server.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
        }
        for mut object in objects {
            if let (Some(spec), true) = (pod_spec(&object), text(&object, "/kind") != "Pod") {
                let metadata = json!({"name": text(&object, "/metadata/name"), "namespace": object["metadata"]["namespace"]});
                object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
            }
            let served = kinds::by_type(text(&object, "/apiVersion"), text(&object, "/kind"));
            if served.is_none_or(|it| *it == kinds::NAMESPACE) {
                continue;
            }
            let mut created = server.create(object.clone());
            if created.as_ref().is_err_and(|it| it.code == 409) {
                // Of the optional manifests one is applied in place of another.
                object["metadata"]["name"] = format!("{}-instead", text(&object, "/metadata/name")).into();
                created = server.create(object.clone());
            }
            match created {
                Ok(_) => assert_ne!(text(&object, "/metadata/name"), BEYOND_QUOTA),
                Err(error) if error.code == 403 && text(&object, "/metadata/name") == BEYOND_QUOTA => {}
                Err(error) => panic!("{}: {error}\n{object:#}", folder.display()),
            }
        }
    }
}

#[test]
fn templates_claims_and_classes_that_are_named_are_there() {
    let shipped = manifest::load(&repository().join("deploy/manifests/deviceclasses.yaml")).unwrap();
    for folder in folders() {
        let objects = manifest::load(&folder).unwrap();
        let has = |kind: &str, namespace: &Value, name: &str| {
            objects.iter().any(|it| {
                text(it, "/kind") == kind
                    && it["metadata"]["namespace"] == *namespace
                    && text(it, "/metadata/name") == name
            })
        };
        for object in &objects {
            let place = format!("{}: {}", folder.display(), text(object, "/metadata/name"));
            let namespace = &object["metadata"]["namespace"];
            let claims =
                pod_spec(object).and_then(|it| it["resourceClaims"].as_array()).cloned().unwrap_or_default();
            for claim in claims {
                let template = text(&claim, "/resourceClaimTemplateName");
                assert!(
                    template.is_empty() || has("ResourceClaimTemplate", namespace, template),
                    "{place}: {template}"
                );
                let name = text(&claim, "/resourceClaimName");
                assert!(name.is_empty() || has("ResourceClaim", namespace, name), "{place}: {name}");
            }
            let spec = if text(object, "/kind") == "ResourceClaimTemplate" { "/spec/spec" } else { "/spec" };
            let requests = object.pointer(&format!("{spec}/devices/requests")).and_then(Value::as_array);
            for request in requests.into_iter().flatten() {
                let alternatives = request["firstAvailable"].as_array().into_iter().flatten();
                for asked in alternatives.chain(request.get("exactly")) {
                    let class = text(asked, "/deviceClassName");
                    let known = shipped.iter().any(|it| text(it, "/metadata/name") == class);
                    assert!(known || has("DeviceClass", &Value::Null, class), "{place}: {class}");
                }
            }
        }
    }
}

#[test]
fn every_example_tells_what_it_shows_and_what_it_needs() {
    for folder in folders().iter().filter(|it| it.starts_with(repository().join("examples"))) {
        let readme = std::fs::read_to_string(folder.join("README.md")).unwrap();
        for word in ["kubectl apply -f", "\nNeeds: "] {
            let table = readme.contains("| needs |");
            assert!(
                readme.contains(word) || (word.contains("Needs") && table),
                "{}: {word}",
                folder.display()
            );
        }
        let listed = std::fs::read_to_string(repository().join("examples/README.md")).unwrap();
        let name = folder.file_name().unwrap().to_string_lossy();
        assert!(listed.contains(&format!("]({name})")), "{name} is not in examples/README.md");
    }
}
