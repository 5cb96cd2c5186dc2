//! How the driver's own pod gets the GPUs: one way, chosen by values, and none that cannot work.

use std::collections::BTreeSet;

use clap::CommandFactory;
use dra_driver_mig::args::Cli;
use serde_json::{Value, json};

use super::chart::{objects, refusal};

/// The pod template of the DaemonSet, where Helm's engine is at hand to render it.
fn pod(change: &Value) -> Option<Value> {
    let daemon = objects(change)?.into_iter().find(|it| it["kind"] == "DaemonSet").unwrap();
    Some(daemon["spec"]["template"].clone())
}

fn env(container: &Value, name: &str) -> Option<String> {
    let variables = container["env"].as_array().unwrap();
    let found = variables.iter().find(|it| it["name"] == name)?;
    Some(found["value"].as_str().unwrap().to_owned())
}

#[test]
fn the_driver_names_the_device_of_the_spec_that_the_init_container_writes() {
    let change = json!({"driverName": "gpu.example.com", "cdiDirectory": "/etc/cdi"});
    let Some(pod) = pod(&change) else { return };
    let spec = &pod["spec"];
    let (init, driver) = (&spec["initContainers"][0], &spec["containers"][0]);
    assert_eq!(spec["runtimeClassName"], "nvidia");
    assert_eq!(init["args"], json!(["management-spec"]));
    assert_eq!(init["image"], driver["image"]);
    for name in ["DRIVER_NAME", "CDI_ROOT", "PROC_ROOT"] {
        assert_eq!(env(init, name), env(driver, name), "{name}");
        assert!(env(init, name).is_some(), "{name}");
    }
    assert_eq!(env(driver, "NVIDIA_VISIBLE_DEVICES").unwrap(), "gpu.example.com/management=all");
    // The runtime class holds for the init container, too, whose device does not exist yet.
    assert_eq!(env(init, "NVIDIA_VISIBLE_DEVICES").unwrap(), "void");
    assert_eq!(env(driver, "NVIDIA_MIG_CONFIG_DEVICES"), None, "the spec has the node already");
}

#[test]
fn the_init_container_has_no_gpu_no_capability_and_writes_cdi_specs_only() {
    let Some(pod) = pod(&json!({})) else { return };
    let init = &pod["spec"]["initContainers"][0];
    let expected = json!({
        "privileged": false, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"}, "runAsUser": 0, "runAsGroup": 0, "readOnlyRootFilesystem": true,
    });
    assert_eq!(init["securityContext"], expected);
    let mounts = init["volumeMounts"].as_array().unwrap();
    let written: Vec<&Value> =
        mounts.iter().filter(|it| it["readOnly"] != true).map(|it| &it["mountPath"]).collect();
    assert_eq!(written, ["/var/run/cdi"]);
    let volumes: BTreeSet<&str> =
        pod["spec"]["volumes"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert!(mounts.iter().all(|it| volumes.contains(it["name"].as_str().unwrap())), "{mounts:?}");
    let command = Cli::command();
    let subcommand = command.find_subcommand("management-spec").unwrap();
    let known: BTreeSet<&str> = subcommand.get_arguments().filter_map(|it| it.get_env()?.to_str()).collect();
    for variable in init["env"].as_array().unwrap() {
        let name = variable["name"].as_str().unwrap();
        assert!(known.contains(name) || name == "NVIDIA_VISIBLE_DEVICES", "{name}");
    }
}

#[test]
fn nvidias_nri_plugin_takes_the_device_from_the_annotation() {
    let change = json!({"nriPlugin": true, "runtimeClassName": "", "podAnnotations": {"a": "b"}});
    let Some(pod) = pod(&change) else { return };
    let annotations = &pod["metadata"]["annotations"];
    assert_eq!(annotations["nvidia.cdi.k8s.io/container.driver"], "mig.dra-driver.dev/management=all");
    assert_eq!(annotations["a"], "b");
    assert_eq!(pod["spec"]["containers"][0]["name"], "driver", "the annotation names the container");
    assert_eq!(pod["spec"]["initContainers"][0]["args"], json!(["management-spec"]));
    assert_eq!(pod["spec"]["runtimeClassName"], Value::Null);
    assert_eq!(pod["spec"]["containers"][0]["securityContext"]["privileged"], false);
}

#[test]
fn a_privileged_pod_needs_no_spec_and_no_runtime_class() {
    let Some(pod) = pod(&json!({"privileged": true, "runtimeClassName": ""})) else { return };
    assert_eq!(pod["spec"]["initContainers"], Value::Null);
    assert_eq!(pod["spec"]["runtimeClassName"], Value::Null);
    assert_eq!(env(&pod["spec"]["containers"][0], "NVIDIA_VISIBLE_DEVICES"), None);
    let mounts = pod["spec"]["containers"][0]["volumeMounts"].as_array().unwrap();
    assert!(mounts.iter().any(|it| it["mountPath"] == "/dev"), "{mounts:?}");
}

#[test]
fn values_that_give_the_pod_no_gpus_or_two_ways_to_them_are_refused() {
    for (change, text) in [
        (json!({"runtimeClassName": ""}), "the pod would get no GPU"),
        (json!({"privileged": true}), "set runtimeClassName to the empty string"),
        (json!({"nriPlugin": true}), "set runtimeClassName to the empty string"),
        (json!({"privileged": true, "nriPlugin": true, "runtimeClassName": ""}), "leave nriPlugin false"),
    ] {
        let Some(refused) = refusal(&change) else { return };
        assert!(refused.contains(text), "{change}: {refused}");
    }
    assert_eq!(refusal(&json!({})).unwrap_or_default(), "");
}
