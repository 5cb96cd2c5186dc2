//! The chart: it renders, its values are checked, and the manifests are what it renders.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory;
use dra_driver_mig::args::Cli;
use dra_driver_mig::cdi::DisabledHooks;
use kube_sim::manifest;
use serde_json::{Value, json};

use crate::template::Renderer;

/// The namespace of the rendered manifests.
const NAMESPACE: &str = "dra-driver-mig";
/// Manifests that do not come from the chart: Helm makes the namespace itself.
const BY_HAND: [&str; 2] = ["kustomization.yaml", "namespace.yaml"];
/// Of an API that not every cluster has, so it is not in the kustomization.
const OPTIONAL: &str = "podmonitor.yaml";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
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

/// The chart's own values, with some of them changed (an object is merged, all else replaced).
pub(crate) fn values(change: &Value) -> Value {
    let mut values = yaml(&chart().join("values.yaml"));
    merge(&mut values, change);
    values
}

fn merge(values: &mut Value, change: &Value) {
    match (values, change) {
        (Value::Object(values), Value::Object(change)) => {
            for (key, it) in change {
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

fn renderer(values: Value) -> Renderer {
    let version = yaml(&chart().join("Chart.yaml"))["appVersion"].as_str().unwrap().to_owned();
    Renderer::new(values, NAMESPACE, &version)
}

fn render(renderer: &Renderer, template: &str) -> String {
    let text = read(&chart().join("templates").join(template));
    renderer.render(&text).unwrap_or_else(|error| panic!("{template}: {error}"))
}

/// Every object that the chart has with these values.
pub(crate) fn objects(change: &Value) -> Vec<Value> {
    let renderer = renderer(values(change));
    let templates = files(&chart().join("templates"));
    templates.iter().flat_map(|it| manifest::parse(&render(&renderer, it)).unwrap()).collect()
}

/// The objects of a kind, with the chart's own values.
pub(crate) fn objects_of(kind: &str) -> Vec<Value> {
    objects(&json!({})).into_iter().filter(|it| it["kind"] == kind).collect()
}

#[test]
fn the_manifests_are_what_the_chart_renders() {
    let with_monitor = renderer(values(&json!({"podMonitor": {"enabled": true}})));
    let directory = root().join("manifests");
    let mut expected: BTreeSet<String> = BY_HAND.map(str::to_owned).into();
    for template in files(&chart().join("templates")) {
        let (path, note) = if template == OPTIONAL {
            (directory.join("optional").join(&template), " with podMonitor.enabled")
        } else {
            expected.insert(template.clone());
            (directory.join(&template), "")
        };
        let text = format!(
            "# Rendered from deploy/helm/dra-driver-mig/templates/{template}{note}; change it there, then run\n# \
             UPDATE_MANIFESTS=1 cargo test --test deploy\n{}",
            render(&with_monitor, &template).trim_start()
        );
        if std::env::var_os("UPDATE_MANIFESTS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        assert!(read(&path) == text, "{} is not what the chart renders", path.display());
    }
    assert_eq!(files(&directory), expected);
    assert_eq!(files(&directory.join("optional")), BTreeSet::from([OPTIONAL.to_owned()]));
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
fn helm_where_it_is_installed_renders_the_same() {
    let mut helm = Command::new("helm");
    helm.args(["template", "x", "--namespace", NAMESPACE, "--set", "podMonitor.enabled=true"]).arg(chart());
    let Ok(output) = helm.output() else { return eprintln!("skipped: no helm on PATH") };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let theirs = manifest::parse(&String::from_utf8(output.stdout).unwrap()).unwrap();
    assert_eq!(sorted(theirs), sorted(objects(&json!({"podMonitor": {"enabled": true}}))));
}

#[test]
fn kubectl_where_it_is_installed_builds_the_kustomization() {
    let mut kubectl = Command::new("kubectl");
    kubectl.arg("kustomize").arg(root().join("manifests"));
    let Ok(output) = kubectl.output() else { return eprintln!("skipped: no kubectl on PATH") };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let theirs = manifest::parse(&String::from_utf8(output.stdout).unwrap()).unwrap();
    let mut ours = objects(&json!({}));
    ours.extend(manifest::load(&root().join("manifests/namespace.yaml")).unwrap());
    assert_eq!(sorted(theirs), sorted(ours));
}

/// Paths of the values; a list is one value, as is an object that the chart takes as a whole.
fn leaves(value: &Value, path: &str, whole: &BTreeSet<String>, found: &mut Vec<String>) {
    match value {
        Value::Object(map) if !map.is_empty() && !whole.contains(path) => {
            for (key, it) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                leaves(it, &path, whole, found);
            }
        }
        _ => found.push(path.to_owned()),
    }
}

#[test]
fn every_value_is_used() {
    let mut used = BTreeSet::new();
    let everything = json!({"podMonitor": {"enabled": true}, "driverRoot": "/run/nvidia/driver", "privileged": true,
                            "profiles": "1g.*", "layouts": {"configMap": "x"}});
    for change in [json!({}), everything] {
        let renderer = renderer(values(&change));
        files(&chart().join("templates")).iter().for_each(|it| drop(render(&renderer, it)));
        used.extend(renderer.used());
    }
    let mut all = Vec::new();
    leaves(&values(&json!({})), "", &used, &mut all);
    let unused: Vec<&String> = all.iter().filter(|it| !used.contains(*it)).collect();
    assert!(unused.is_empty(), "{unused:?}");
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
    for wrong in [
        json!({"privilged": true}),
        json!({"image": {"Tag": "1"}}),
        json!({"privileged": "yes"}),
        json!({"driverName": "Has.Capitals"}),
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
        json!({"httpPort": 0}),
        json!({"networkPolicy": {"apiServerPorts": []}}),
        json!({"deviceClasses": {"profiles": ["1g"]}}),
        json!({"priorityClass": {"value": 2_000_000_000}}),
        json!({"priorityClass": {"name": ""}}),
        json!({"podMonitor": {"interval": "often"}}),
        json!({"resources": {"limit": {}}}),
        json!({"extraArgs": "--x"}),
    ] {
        assert!(!errors(&wrong).is_empty(), "taken: {wrong}");
    }
}

/// Values that people set.
pub(crate) fn variations() -> Vec<Value> {
    vec![
        json!({}),
        json!({"privileged": true, "runtimeClassName": ""}),
        json!({"driverRoot": "/run/nvidia/driver", "devRoot": "/run/nvidia/driver", "migMode": "release"}),
        json!({"existingInstances": "adopt", "timeSlices": 4}),
        json!({"disabledHooks": ["enable-cuda-compat", "disable-device-node-modification"]}),
        json!({"rbac": {"layoutLabels": true}, "podMonitor": {"enabled": true, "labels": {"release": "x"}}}),
        json!({"mode": "layout", "placement": "spread", "profiles": "!*+me*", "layouts": {"configMap": "default-mig-parted-config"}}),
        json!({"deviceClasses": {"create": false}, "admissionPolicy": {"enabled": false}}),
        json!({"deviceClasses": {"extendedResources": false, "profiles": ["1g.10gb"]}}),
        json!({"networkPolicy": {"from": [{"namespaceSelector": {}}], "apiServerPorts": [16443]}}),
        json!({"priorityClass": {"create": false, "name": ""}, "networkPolicy": {"enabled": false}}),
        json!({"image": {"repository": "registry.example.com/dra-driver-mig", "tag": "1.2.3"},
               "imagePullSecrets": [{"name": "pull"}], "podAnnotations": {"a/b": "true"}, "nodeSelector": {"x": "y"},
               "affinity": {}, "tolerations": [], "resources": {},
               "extraArgs": ["--proc-root", "/sim/proc"], "extraVolumeMounts": [{"name": "sim", "mountPath": "/sim"}],
               "extraVolumes": [{"name": "sim", "hostPath": {"path": "/tmp/sim"}}]}),
    ]
}

fn driver_container(change: &Value) -> Value {
    let all = objects(change);
    let daemon = all.iter().find(|it| it["kind"] == "DaemonSet").unwrap();
    daemon["spec"]["template"]["spec"]["containers"][0].clone()
}

#[test]
fn disabled_hooks_reach_the_driver() {
    let disabled = |change: &Value| {
        let env = driver_container(change)["env"].as_array().unwrap().clone();
        env.iter().find(|it| it["name"] == "DISABLE_HOOKS").map(|it| it["value"].as_str().unwrap().to_owned())
    };
    assert_eq!(disabled(&json!({})), None);
    let hooks = json!(["enable-cuda-compat", "disable-device-node-modification"]);
    let list: DisabledHooks = disabled(&json!({"disabledHooks": hooks})).unwrap().parse().unwrap();
    assert_eq!(list.to_string(), "enable-cuda-compat,disable-device-node-modification");
}

#[test]
fn what_the_daemonset_sets_is_what_the_driver_reads() {
    let command = Cli::command();
    let node = command.find_subcommand("node").unwrap();
    let known: BTreeSet<&str> = node.get_arguments().filter_map(|it| it.get_env()?.to_str()).collect();
    let container = driver_container(
        &json!({"profiles": "1g.*", "layouts": {"configMap": "x"}, "disabledHooks": ["update-ldcache"]}),
    );
    for variable in container["env"].as_array().unwrap() {
        let name = variable["name"].as_str().unwrap();
        assert!(known.contains(name) || name.starts_with("NVIDIA_"), "{name}");
    }
}

#[test]
fn the_container_has_the_least_privilege() {
    let all = objects(&json!({}));
    let daemon = all.iter().find(|it| it["kind"] == "DaemonSet").unwrap();
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
        let all = objects(&change);
        let pod = &all.iter().find(|it| it["kind"] == "DaemonSet").unwrap()["spec"]["template"]["spec"];
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
    let context = driver_container(&json!({"privileged": true}))["securityContext"].clone();
    // The API server refuses `privileged` together with a forbidden escalation.
    assert_eq!(
        context,
        json!({"privileged": true, "runAsUser": 0, "runAsGroup": 0, "readOnlyRootFilesystem": true})
    );
}
