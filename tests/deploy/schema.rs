//! Every object of the chart against the types of the Kubernetes API, field by field.

use std::fmt::Debug;

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::api::resource::v1::DeviceClass;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::chart::{objects, shipped, variations};

/// What the type keeps of an object.
fn kept<T: DeserializeOwned + Serialize + Debug>(object: &Value) -> Value {
    let typed = T::deserialize(object).unwrap_or_else(|error| panic!("{error}: {object:#}"));
    serde_json::to_value(typed).unwrap()
}

/// Holds if all that was given was kept: a field that the type does not have is lost.
fn assert_kept(given: &Value, kept: &Value, path: &str) {
    match given {
        Value::Object(map) => {
            for (key, it) in map {
                assert_kept(it, &kept[key], &format!("{path}.{key}"));
            }
        }
        Value::Array(items) => {
            assert_eq!(items.len(), kept.as_array().map_or(0, Vec::len), "{path}");
            for (index, it) in items.iter().enumerate() {
                assert_kept(it, &kept[index], &format!("{path}[{index}]"));
            }
        }
        // Bounds in the schema of a CustomResourceDefinition are floating point there.
        Value::Number(_) if given.as_f64() == kept.as_f64() => {}
        _ => assert_eq!(given, kept, "{path}: no such field, or of another type"),
    }
}

/// The Prometheus operator's type is not in the Kubernetes API; this is as much of it as is used.
fn pod_monitor(object: &Value) -> Value {
    let mut known = json!({"apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor"});
    for field in ["/metadata/name", "/metadata/namespace", "/metadata/labels", "/spec/selector/matchLabels"] {
        let mut place = &mut known;
        for name in field.split('/').skip(1) {
            place = &mut place[name];
        }
        *place = object.pointer(field).cloned().unwrap_or_default();
    }
    let endpoint = &object["spec"]["podMetricsEndpoints"][0];
    let relabeling = &endpoint["relabelings"][0];
    let relabeling =
        json!({"sourceLabels": relabeling["sourceLabels"], "targetLabel": relabeling["targetLabel"]});
    known["spec"]["podMetricsEndpoints"] = json!([{
        "port": endpoint["port"], "path": endpoint["path"], "interval": endpoint["interval"],
        "relabelings": [relabeling],
    }]);
    known
}

/// OpenShift's type is not in the Kubernetes API either: the fields of its CRD (openshift/api, security/v1), and those of them that
/// it requires.
fn security_context_constraints(object: &Value) -> Value {
    const REQUIRED: [&str; 12] = [
        "allowHostDirVolumePlugin",
        "allowHostIPC",
        "allowHostNetwork",
        "allowHostPID",
        "allowHostPorts",
        "allowPrivilegedContainer",
        "allowedCapabilities",
        "defaultAddCapabilities",
        "priority",
        "readOnlyRootFilesystem",
        "requiredDropCapabilities",
        "volumes",
    ];
    const OPTIONAL: [&str; 14] = [
        "allowPrivilegeEscalation",
        "allowedFlexVolumes",
        "allowedUnsafeSysctls",
        "defaultAllowPrivilegeEscalation",
        "forbiddenSysctls",
        "fsGroup",
        "groups",
        "metadata",
        "runAsUser",
        "seLinuxContext",
        "seccompProfiles",
        "supplementalGroups",
        "userNamespaceLevel",
        "users",
    ];
    assert_eq!(object["apiVersion"], "security.openshift.io/v1");
    let mut known = object.clone();
    for required in REQUIRED {
        assert!(known.as_object_mut().unwrap().contains_key(required), "{required} is missing");
    }
    let is_known = |it: &str| [&REQUIRED[..], &OPTIONAL, &["apiVersion", "kind"]].concat().contains(&it);
    known.as_object_mut().unwrap().retain(|field, _| is_known(field));
    known
}

#[test]
fn every_object_of_the_chart_is_one_of_the_kubernetes_api() {
    // Where Helm's engine is not at hand, at least those that are shipped.
    let rendered: Option<Vec<Vec<Value>>> = variations().iter().map(objects).collect();
    for objects in rendered.unwrap_or_else(|| vec![shipped()]) {
        for object in objects {
            let kept = match object["kind"].as_str().unwrap() {
                "ClusterRole" => kept::<ClusterRole>(&object),
                "ClusterRoleBinding" => kept::<ClusterRoleBinding>(&object),
                "ConfigMap" => kept::<ConfigMap>(&object),
                "CustomResourceDefinition" => kept::<CustomResourceDefinition>(&object),
                "DaemonSet" => kept::<DaemonSet>(&object),
                "Deployment" => kept::<Deployment>(&object),
                "DeviceClass" => kept::<DeviceClass>(&object),
                "Namespace" => kept::<Namespace>(&object),
                "NetworkPolicy" => kept::<NetworkPolicy>(&object),
                "PodDisruptionBudget" => kept::<PodDisruptionBudget>(&object),
                "PodMonitor" => pod_monitor(&object),
                "PriorityClass" => kept::<PriorityClass>(&object),
                "Role" => kept::<Role>(&object),
                "RoleBinding" => kept::<RoleBinding>(&object),
                "SecurityContextConstraints" => security_context_constraints(&object),
                "ServiceAccount" => kept::<ServiceAccount>(&object),
                "ValidatingAdmissionPolicy" => kept::<ValidatingAdmissionPolicy>(&object),
                "ValidatingAdmissionPolicyBinding" => kept::<ValidatingAdmissionPolicyBinding>(&object),
                other => panic!("{other} is not judged here"),
            };
            assert_kept(&object, &kept, &format!("{} {}", object["kind"], object["metadata"]["name"]));
        }
    }
}

#[test]
fn a_field_that_the_api_does_not_have_is_found() {
    let given =
        json!({"kind": "ServiceAccount", "metadata": {"name": "x"}, "imagePullSecret": [{"name": "y"}]});
    let kept = kept::<ServiceAccount>(&given);
    assert!(std::panic::catch_unwind(|| assert_kept(&given, &kept, "")).is_err());
}
