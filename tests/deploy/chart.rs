//! The chart, as Helm's own engine lints and renders it: its values are checked, and the manifests are what it renders.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::repository;
use clap::CommandFactory;
use dra_driver_mig::args::Cli;
use dra_driver_mig::cdi::DisabledHooks;
use kube_sim::manifest;
use serde_json::{Value, json};

use super::helm;

/// Manifests that do not come from the chart: Helm makes the namespace itself.
const BY_HAND: [&str; 2] = ["kustomization.yaml", "namespace.yaml"];
/// Of APIs that not every cluster has, or rights that not every administrator gives, so they are not in the kustomization; each with the
/// value that renders it.
const OPTIONAL: [(&str, &str); 4] = [
    ("controller.yaml", "controller.enabled"),
    ("podmonitor.yaml", "podMonitor.enabled"),
    ("readerrole.yaml", "readerRole.create"),
    ("securitycontextconstraints.yaml", "openshift.securityContextConstraints.enabled"),
];

/// The values that render all of them.
fn with_optional() -> Value {
    json!({
        "podMonitor": {"enabled": true}, "openshift": {"securityContextConstraints": {"enabled": true}},
        "readerRole": {"create": true}, "controller": {"enabled": true},
    })
}

/// A manifest in place of `controller.yaml`: the same template with more of it turned on.
const WITH_DEMAND: &str = "controller-demand.yaml";

fn root() -> PathBuf {
    repository().join("deploy")
}

fn chart() -> PathBuf {
    root().join("helm/dra-driver-mig")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml(path: &Path) -> Value {
    serde_saphyr::from_str(&read(path)).unwrap()
}

/// The chart's own values, with some of them changed, as Helm does it: an object is merged, null removes, all else replaces.
pub(crate) fn values(change: &Value) -> Value {
    let mut values = yaml(&chart().join("values.yaml"));
    merge(&mut values, change);
    values
}

fn merge(values: &mut Value, change: &Value) {
    match (values, change) {
        (Value::Object(values), Value::Object(change)) => {
            for (key, it) in change {
                if it.is_null() {
                    values.remove(key);
                    continue;
                }
                merge(values.entry(key.clone()).or_insert(Value::Null), it);
            }
        }
        (values, change) => *values = change.clone(),
    }
}

fn files(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).unwrap().map(|it| it.unwrap());
    let files = entries.filter(|it| it.file_type().unwrap().is_file());
    files.map(|it| it.file_name().into_string().unwrap()).collect()
}

/// Every object that the chart has with these values, where Helm's engine is at hand to render it.
pub(crate) fn objects(change: &Value) -> Option<Vec<Value>> {
    let texts = helm::render(&chart(), change)?.unwrap_or_else(|error| panic!("{change}: {error}"));
    Some(texts.values().flat_map(|it| manifest::parse(it).unwrap()).collect())
}

/// The objects that are shipped, which are those of the chart with its own values.
pub(crate) fn shipped() -> Vec<Value> {
    let mut files = files(&root().join("manifests"));
    files.retain(|it| !BY_HAND.contains(&it.as_str()));
    let load = |file: &String| manifest::load(&root().join("manifests").join(file)).unwrap();
    files.iter().flat_map(load).collect()
}

/// Why Helm does not render the chart with these values; an empty text where it does.
pub(crate) fn refusal(change: &Value) -> Option<String> {
    Some(helm::render(&chart(), change)?.err().unwrap_or_default())
}

/// The objects of a kind that are shipped.
pub(crate) fn objects_of(kind: &str) -> Vec<Value> {
    shipped().into_iter().filter(|it| it["kind"] == kind).collect()
}

#[test]
fn the_manifests_are_what_helm_renders() {
    let Some(rendered) = helm::render(&chart(), &with_optional()) else { return };
    let directory = root().join("manifests");
    let mut expected: BTreeSet<String> = BY_HAND.map(str::to_owned).into();
    let demand =
        helm::render(&chart(), &json!({"controller": {"enabled": true, "demand": {"enabled": true}}}));
    let demand = demand.unwrap().unwrap().remove("controller.yaml").unwrap();
    let all = rendered.unwrap().into_iter().chain([(WITH_DEMAND.to_owned(), demand)]);
    for (template, rendered) in all {
        let (path, note) = match OPTIONAL.iter().find(|(it, _)| *it == template) {
            Some((_, value)) => (directory.join("optional").join(&template), format!(" with {value}")),
            None if template == WITH_DEMAND => {
                let values = " with controller.enabled and controller.demand.enabled";
                (directory.join("optional").join(WITH_DEMAND), values.to_owned())
            }
            None => {
                expected.insert(template.clone());
                (directory.join(&template), String::new())
            }
        };
        let template = if template == WITH_DEMAND { "controller.yaml" } else { &template };
        let text = format!(
            "# Rendered from deploy/helm/dra-driver-mig/templates/{template}{note}; change it there, then run\n# \
             UPDATE_MANIFESTS=1 cargo test --test integration deploy::\n{rendered}"
        );
        if std::env::var_os("UPDATE_MANIFESTS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        assert!(read(&path) == text, "{} is not what Helm renders", path.display());
    }
    assert_eq!(files(&directory), expected);
    let optional = OPTIONAL.iter().map(|(it, _)| (*it).to_owned()).chain([WITH_DEMAND.to_owned()]);
    assert_eq!(files(&directory.join("optional")), optional.collect());
}

#[test]
fn helm_lints_the_chart_with_every_documented_variant() {
    for values in variations() {
        let Some((passed, messages)) = helm::lint(&chart(), &values) else { return };
        // There is no icon, because there is no site that has one.
        let others: Vec<&String> = messages.iter().filter(|it| !it.contains("icon is recommended")).collect();
        assert!(passed && others.is_empty(), "{values}: {messages:?}");
    }
}

#[test]
fn helm_refuses_mistakes() {
    for values in mistakes() {
        let Some(answer) = helm::render(&chart(), &values) else { return };
        let error = answer.expect_err(&values.to_string());
        assert!(error.contains("values don't meet the specifications of the schema"), "{values}: {error}");
    }
}

#[test]
fn the_kustomization_has_every_manifest() {
    let directory = root().join("manifests");
    let kustomization = yaml(&directory.join("kustomization.yaml"));
    let listed: BTreeSet<String> = kustomization["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it.as_str().unwrap().to_owned())
        .collect();
    let mut there = files(&directory);
    there.remove("kustomization.yaml");
    assert_eq!(listed, there);
}

/// Sorted, because tools order objects by kind.
fn sorted(objects: Vec<Value>) -> Vec<String> {
    let mut texts: Vec<String> = objects.iter().map(Value::to_string).collect();
    texts.sort();
    texts
}

#[test]
fn kubectl_where_it_is_installed_builds_the_kustomization() {
    let mut kubectl = Command::new("kubectl");
    kubectl.arg("kustomize").arg(root().join("manifests"));
    let Ok(output) = kubectl.output() else { return eprintln!("skipped: no kubectl on PATH") };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let theirs = manifest::parse(&String::from_utf8(output.stdout).unwrap()).unwrap();
    let mut ours = shipped();
    ours.extend(manifest::load(&root().join("manifests/namespace.yaml")).unwrap());
    assert_eq!(sorted(theirs), sorted(ours));
}

/// Paths of the values; a list is one value, as is an object that a template takes as a whole.
fn leaves(value: &Value, path: &str, whole: &BTreeSet<String>, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) if !whole.contains(path) => {
            for (key, it) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                leaves(it, &path, whole, found);
            }
        }
        _ => drop(found.insert(path.to_owned())),
    }
}

/// Paths of the values that templates name.
fn named() -> BTreeSet<String> {
    let directory = chart().join("templates");
    let mut found = BTreeSet::new();
    for template in files(&directory) {
        for after in read(&directory.join(template)).split(".Values.").skip(1) {
            let end = after.find(|it: char| !it.is_ascii_alphanumeric() && it != '.').unwrap_or(after.len());
            found.insert(after[..end].trim_end_matches('.').to_owned());
        }
    }
    found
}

#[test]
fn templates_name_every_value_and_no_other() {
    let named = named();
    let mut values_there = BTreeSet::new();
    leaves(&values(&json!({})), "", &named, &mut values_there);
    assert_eq!(named, values_there);
}

#[test]
fn the_schema_takes_the_values_and_refuses_mistakes() {
    let schema: Value = serde_json::from_str(&read(&chart().join("values.schema.json"))).unwrap();
    let schema = jsonschema::validator_for(&schema).unwrap();
    let errors =
        |change: &Value| schema.iter_errors(&values(change)).map(|it| it.to_string()).collect::<Vec<_>>();
    for right in variations() {
        assert_eq!(errors(&right), Vec::<String>::new(), "{right}");
    }
    for wrong in mistakes() {
        assert!(!errors(&wrong).is_empty(), "taken: {wrong}");
    }
}

/// Values that are refused.
fn mistakes() -> Vec<Value> {
    vec![
        json!({"privilged": true}),
        json!({"image": {"Tag": "1"}}),
        json!({"privileged": "yes"}),
        json!({"driverName": "Has.Capitals"}),
        json!({"kueue": {"create": true, "quota": "bytes"}}),
        json!({"kueue": {"create": true, "classes": ["mig-1g.10gb", "mig-1g.10gb"]}}),
        json!({"driverName": "a-name-that-is-longer-than-forty.characters.example"}),
        json!({"driverRoot": "run/nvidia"}),
        json!({"hostDirectories": ["/"]}),
        json!({"disabledHooks": ["chmod"]}),
        json!({"hostDirectories": ["/run"]}),
        json!({"hostDirectories": ["/var/run/containerd"]}),
        json!({"migMode": "never"}),
        json!({"mode": "static"}),
        json!({"placement": "random"}),
        json!({"layouts": {"configMap": "Has.Capitals"}}),
        json!({"layouts": {"key": "../x"}}),
        json!({"existingInstances": "take"}),
        json!({"timeSlices": 0}),
        json!({"timeSlices": "4"}),
        json!({"deviceMetadata": "yes"}),
        json!({"dcgmExporter": {"jobMappingDirectory": "/run/../etc"}}),
        json!({"dcgmExporter": {"jobMappingDirectory": "run/jobs"}}),
        json!({"httpPort": 0}),
        json!({"networkPolicy": {"apiServerPorts": []}}),
        json!({"deviceClasses": {"profiles": ["1g"]}}),
        json!({"priorityClass": {"value": 2_000_000_000}}),
        json!({"priorityClass": {"name": ""}}),
        json!({"podMonitor": {"interval": "often"}}),
        json!({"resources": {"limit": {}}}),
        json!({"extraArgs": "--x"}),
        json!({"openshift": {"enabled": true}}),
        json!({"deviceClasses": {"extraProfiles": ["1g.40gb", "1g.40gb"]}}),
        json!({"stateLabel": "off"}),
        json!({"readerRole": {"create": "yes"}}),
        json!({"readerRole": {"enabled": true}}),
        json!({"gpuOperator": {"clientLabel": "true"}}),
        json!({"controller": {"replicas": 0}}),
        json!({"controller": {"patience": "5s"}}),
        json!({"controller": {"runAsUser": 0}}),
        json!({"controller": {"enable": true}}),
        json!({"controller": {"demand": {"holdAfter": "5m"}}}),
        json!({"controller": {"consolidation": {"evictionsPerHour": 0}}}),
        json!({"updateStrategy": {"type": "Recreate"}}),
        // The API server refuses both, and neither.
        json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": 1}}}),
        json!({"updateStrategy": {"rollingUpdate": {"maxSurge": 0}}}),
        json!({"updateStrategy": {"rollingUpdate": {"maxSurge": "a few"}}}),
    ]
}

/// Values that people set.
pub(crate) fn variations() -> Vec<Value> {
    vec![
        json!({}),
        json!({"privileged": true, "runtimeClassName": ""}),
        json!({"nriPlugin": true, "runtimeClassName": "", "podAnnotations": {"a/b": "c"}}),
        json!({"openshift": {"securityContextConstraints": {"enabled": true}}}),
        json!({"privileged": true, "runtimeClassName": "", "openshift": {"securityContextConstraints": {"enabled": true}}}),
        json!({"driverRoot": "/run/nvidia/driver", "devRoot": "/run/nvidia/driver", "migMode": "release"}),
        json!({"existingInstances": "adopt", "timeSlices": 4}),
        json!({"disabledHooks": ["enable-cuda-compat", "disable-device-node-modification"]}),
        json!({"rbac": {"layoutLabels": false, "deviceStatus": false, "podGroups": true}, "podMonitor": {"enabled": true, "labels": {"release": "x"}}}),
        json!({"mode": "layout", "placement": "spread", "profiles": "!*+me*", "layouts": {"configMap": "default-mig-parted-config"}}),
        json!({"deviceClasses": {"create": false}, "admissionPolicy": {"enabled": false}}),
        json!({"deviceClasses": {"extendedResources": false, "profiles": ["1g.10gb"]}}),
        json!({"deviceClasses": {"gpuExtendedResource": true, "extraProfiles": ["1g.40gb", "1g.10gb"]}}),
        json!({"gpuOperator": {"clientLabel": true}, "stateLabel": false, "driverRoot": "/run/nvidia/driver"}),
        json!({"driverName": "gpu.nvidia.com", "controller": {"enabled": true}}),
        json!({"kueue": {"create": true}}),
        json!({"kueue": {"create": true, "quota": "devices", "classes": ["mig-1g.10gb", "mig-1g.10gb.me"]}}),
        json!({"driverName": "gpu.nvidia.com", "deviceClasses": {"nvidiaClasses": false, "gpuExtendedResource": true}}),
        json!({"updateStrategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "5%"}}}),
        json!({"updateStrategy": {"type": "OnDelete"}}),
        json!({"readerRole": {"create": true, "aggregateToView": true}}),
        json!({"affinity": null}),
        json!({"deviceMetadata": true}),
        json!({"dcgmExporter": {"jobMappingDirectory": "/run/dra-driver-mig/dcgm-jobs"}}),
        json!({"controller": {"enabled": true, "demand": {"enabled": true, "defaultAuto": true, "holdAfter": 300}}}),
        json!({"controller": {"enabled": true, "replicas": 1, "events": false, "runAsUser": null, "tolerations": [{"operator": "Exists"}],
            "priorityClassName": "system-cluster-critical", "nodeSelector": {"node-role.kubernetes.io/control-plane": ""},
            "extraArgs": ["--lease-duration=30"]},
            "podMonitor": {"enabled": true}, "metrics": {"enabled": false}, "networkPolicy": {"enabled": false}}),
        json!({"networkPolicy": {"from": [{"namespaceSelector": {}}], "apiServerPorts": [16443]}}),
        json!({"priorityClass": {"create": false, "name": ""}, "networkPolicy": {"enabled": false}}),
        json!({"image": {"repository": "registry.example.com/dra-driver-mig", "tag": "1.2.3"},
               "imagePullSecrets": [{"name": "pull"}], "podAnnotations": {"a/b": "true"}, "nodeSelector": {"x": "y"},
               "affinity": {}, "tolerations": [], "resources": {},
               "extraArgs": ["--proc-root", "/sim/proc"], "extraVolumeMounts": [{"name": "sim", "mountPath": "/sim"}],
               "extraVolumes": [{"name": "sim", "hostPath": {"path": "/tmp/sim"}}]}),
    ]
}

/// The DaemonSet with these values.
fn daemon(change: &Value) -> Option<Value> {
    objects(change)?.into_iter().find(|it| it["kind"] == "DaemonSet")
}

fn driver_container(change: &Value) -> Option<Value> {
    Some(daemon(change)?["spec"]["template"]["spec"]["containers"][0].clone())
}

#[test]
fn disabled_hooks_reach_the_driver() {
    let disabled = |change: &Value| {
        let env = driver_container(change)?["env"].as_array().unwrap().clone();
        let found = env.iter().find(|it| it["name"] == "DISABLE_HOOKS");
        Some(found.map(|it| it["value"].as_str().unwrap().to_owned()))
    };
    let Some(by_default) = disabled(&json!({})) else { return };
    assert_eq!(by_default, None);
    let hooks = json!(["enable-cuda-compat", "disable-device-node-modification"]);
    let list: DisabledHooks = disabled(&json!({"disabledHooks": hooks})).unwrap().unwrap().parse().unwrap();
    assert_eq!(list.to_string(), "enable-cuda-compat,disable-device-node-modification");
}

#[test]
fn what_the_daemonset_sets_is_what_the_driver_reads() {
    let command = Cli::command();
    let node = command.find_subcommand("node").unwrap();
    let known: BTreeSet<&str> = node.get_arguments().filter_map(|it| it.get_env()?.to_str()).collect();
    let change = json!({
        "profiles": "1g.*", "layouts": {"configMap": "x"}, "disabledHooks": ["update-ldcache"],
        "dcgmExporter": {"jobMappingDirectory": "/run/jobs"},
    });
    let Some(container) = driver_container(&change) else { return };
    for variable in container["env"].as_array().unwrap() {
        let name = variable["name"].as_str().unwrap();
        assert!(known.contains(name) || name.starts_with("NVIDIA_"), "{name}");
    }
}

#[test]
fn the_container_has_the_least_privilege() {
    let daemon = &objects_of("DaemonSet")[0];
    let pod = &daemon["spec"]["template"]["spec"];
    assert_eq!((&pod["hostNetwork"], &pod["hostPID"]), (&json!(false), &json!(false)));
    let container = &pod["containers"][0];
    let context = &container["securityContext"];
    assert_eq!(context["privileged"], false);
    assert_eq!(context["allowPrivilegeEscalation"], false);
    assert_eq!(context["readOnlyRootFilesystem"], true);
    assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(context["capabilities"], json!({"drop": ["ALL"], "add": ["SYS_ADMIN"]}));
    let written: Vec<&str> = container["volumeMounts"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|it| it["readOnly"] != true)
        .map(|it| it["mountPath"].as_str().unwrap())
        .collect();
    assert_eq!(
        written,
        ["/var/lib/kubelet/plugins/mig.dra-driver.dev", "/var/lib/kubelet/plugins_registry", "/var/run/cdi"]
    );
    for volume in pod["volumes"].as_array().unwrap() {
        let path = volume["hostPath"]["path"].as_str().unwrap();
        assert!(!["/", "/run", "/var/run", "/proc", "/dev", "/etc"].contains(&path), "{path}");
    }
}

#[test]
fn every_mount_has_its_volume() {
    for change in variations() {
        let Some(daemon) = daemon(&change) else { return };
        let pod = &daemon["spec"]["template"]["spec"];
        let names = |list: &Value| {
            let mut names: Vec<String> =
                list.as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&pod["containers"][0]["volumeMounts"]), names(&pod["volumes"]), "{change}");
    }
}

#[test]
fn privileged_is_a_value_and_only_that() {
    let Some(container) = driver_container(&json!({"privileged": true, "runtimeClassName": ""})) else {
        return;
    };
    let context = container["securityContext"].clone();
    // The API server refuses `privileged` together with a forbidden escalation.
    assert_eq!(
        context,
        json!({"privileged": true, "runAsUser": 0, "runAsGroup": 0, "readOnlyRootFilesystem": true})
    );
}

#[test]
fn an_upgrade_surges_on_a_tenth_of_the_nodes_at_once() {
    let strategy = &objects_of("DaemonSet")[0]["spec"]["updateStrategy"];
    assert_eq!(
        *strategy,
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "10%", "maxUnavailable": 0}})
    );
    let Some(daemon) = daemon(&json!({"updateStrategy": {"type": "OnDelete"}})) else { return };
    assert_eq!(daemon["spec"]["updateStrategy"], json!({"type": "OnDelete"}));
}

/// The terms by which nodes are required.
fn terms(daemon: &Value) -> Vec<Value> {
    let path = "/spec/template/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    daemon.pointer(path).unwrap().as_array().unwrap().clone()
}

#[test]
fn a_node_on_which_the_driver_is_switched_off_has_no_pod_whatever_the_affinity_is() {
    let off = json!({"key": "mig.dra-driver.dev/deploy", "operator": "NotIn",
                      "values": ["false", "paused-for-driver-upgrade"]});
    let own = json!({"key": "pool", "operator": "In", "values": ["gpu"]});
    let with = |required: Value| json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}});
    let preferred = json!([{"weight": 1, "preference": {"matchExpressions": [own]}}]);
    for (change, count) in [
        (json!({}), 4),
        (json!({"affinity": null}), 1),
        (
            json!({"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}}),
            4,
        ),
        (with(json!({"nodeSelectorTerms": [{"matchExpressions": [own]}, {"matchFields": [own]}]})), 2),
        (with(Value::Null), 1),
        (
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": null,
                                              "preferredDuringSchedulingIgnoredDuringExecution": preferred}}}),
            1,
        ),
    ] {
        let Some(daemon) = daemon(&change) else { return };
        let terms = terms(&daemon);
        assert_eq!(terms.len(), count, "{change}");
        for term in &terms {
            assert_eq!(term["matchExpressions"].as_array().unwrap().last(), Some(&off), "{change}: {term}");
        }
    }
    let Some(daemon) = daemon(&with(json!({"nodeSelectorTerms": [{"matchExpressions": [own]}]}))) else {
        return;
    };
    assert_eq!(terms(&daemon), [json!({"matchExpressions": [own, off]})]);
}

#[test]
fn the_gpu_operators_label_is_a_value_and_other_selectors_stay() {
    let change = json!({"gpuOperator": {"clientLabel": true}, "nodeSelector": {"pool": "gpu"}});
    let Some(daemon) = daemon(&change) else { return };
    let expected = json!({"nvidia.com/gpu.deploy.client": "true", "pool": "gpu"});
    assert_eq!(daemon["spec"]["template"]["spec"]["nodeSelector"], expected);
    assert!(objects_of("DaemonSet")[0]["spec"]["template"]["spec"].get("nodeSelector").is_none());
}

#[test]
fn the_state_label_is_written_or_left_alone_as_the_value_says() {
    let variable = |container: &Value| {
        let env = container["env"].as_array().unwrap();
        env.iter().find(|it| it["name"] == "STATE_LABEL").unwrap()["value"].clone()
    };
    assert_eq!(variable(&objects_of("DaemonSet")[0]["spec"]["template"]["spec"]["containers"][0]), "on");
    let Some(container) = driver_container(&json!({"stateLabel": false})) else { return };
    assert_eq!(variable(&container), "off");
}

/// What `helm install` prints at its end with these values: Helm's engine renders it here as the text of a ConfigMap.
fn notes(change: &Value) -> Option<String> {
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path();
    for file in ["Chart.yaml", "values.yaml", "values.schema.json"] {
        std::fs::copy(chart().join(file), copy.join(file)).unwrap();
    }
    std::fs::create_dir(copy.join("templates")).unwrap();
    std::fs::copy(chart().join("templates/NOTES.txt"), copy.join("notes.txt")).unwrap();
    let template = "kind: ConfigMap\ndata:\n  notes: {{ tpl (.Files.Get \"notes.txt\") . | quote }}\n";
    std::fs::write(copy.join("templates/notes.yaml"), template).unwrap();
    let texts = helm::render(copy, change)?.unwrap();
    let object = manifest::parse(&texts["notes.yaml"]).unwrap().swap_remove(0);
    Some(object["data"]["notes"].as_str().unwrap().to_owned())
}

#[test]
fn the_notes_name_the_next_commands_and_their_manifest_is_one() {
    let Some(text) = notes(&json!({})) else { return };
    for command in [
        "kubectl -n dra-driver-mig rollout status daemonset dra-driver-mig",
        "kubectl label namespace dra-driver-mig pod-security.kubernetes.io/enforce=privileged",
        "kubectl -n dra-driver-mig exec daemonset/dra-driver-mig -- dra-driver-mig check",
        "kubectl get resourceslices",
    ] {
        assert!(text.contains(command), "{command}:\n{text}");
    }
    let (_, after) = text.split_once("<<'EOF'\n").unwrap();
    let (example, _) = after.split_once("EOF\n").unwrap();
    let example: String =
        example.lines().map(|it| format!("{}\n", it.strip_prefix("     ").unwrap_or(it))).collect();
    let kinds: Vec<Value> =
        manifest::parse(&example).unwrap().into_iter().map(|it| it["kind"].clone()).collect();
    assert_eq!(kinds, ["ResourceClaimTemplate", "Pod"]);
    assert!(!text.contains("rbac.layoutLabels"));
    let without = notes(&json!({"rbac": {"layoutLabels": false}})).unwrap();
    assert!(without.contains("the node label nvidia.com/mig.config is ignored"));
}
