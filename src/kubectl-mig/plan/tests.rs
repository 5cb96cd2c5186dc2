#![allow(clippy::unwrap_used, reason = "what fails in a test is the test")]

use std::fs;

use clap::Parser;
use mig_model::layout::LayoutFile;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::plan;
use crate::args::{Cli, Command};
use crate::slices;

/// Runs `kubectl mig plan` on manifests, given as JSON, and answers with what it prints and whether all fits.
fn text(manifests: &Value, arguments: &[&str]) -> (String, bool) {
    try_text(manifests, arguments).unwrap()
}

fn try_text(manifests: &Value, arguments: &[&str]) -> Result<(String, bool), super::PlanError> {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("manifests.json");
    fs::write(&file, json!({"apiVersion": "v1", "kind": "List", "items": manifests}).to_string()).unwrap();
    let file = file.display().to_string();
    let line = ["kubectl-mig", "plan", "-f", &file];
    let Command::Plan(args) = Cli::parse_from(line.iter().chain(arguments)).command else {
        unreachable!("the command line says plan")
    };
    plan(&args)
}

fn json_of(manifests: &Value, arguments: &[&str]) -> Value {
    let arguments: Vec<&str> = arguments.iter().copied().chain(["-o", "json"]).collect();
    serde_json::from_str(&text(manifests, &arguments).0).unwrap()
}

fn template(name: &str, class: &str) -> Value {
    let request = json!({"name": "gpu", "exactly": {"deviceClassName": class}});
    json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate", "metadata": {"name": name},
        "spec": {"spec": {"devices": {"requests": [request]}}},
    })
}

fn pod_spec(template: &str) -> Value {
    json!({
        "containers": [{"name": "c", "image": "c", "resources": {"claims": [{"name": "gpu"}]}}],
        "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": template}],
    })
}

fn deployment(name: &str, replicas: usize, template: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod_spec(template)},
        },
    })
}

/// Small pods and large ones.
fn mix(large: usize, small: usize) -> Value {
    json!([
        template("large", "mig-3g.40gb"),
        template("small", "mig-1g.10gb"),
        deployment("large", large, "large"),
        deployment("small", small, "small"),
    ])
}

fn placed(plan: &Value) -> Vec<u64> {
    plan["workloads"].as_array().unwrap().iter().map(|it| it["placed"].as_u64().unwrap()).collect()
}

fn maps(plan: &Value) -> Vec<&str> {
    plan["gpus"].as_array().unwrap().iter().map(|it| it["map"].as_str().unwrap()).collect()
}

fn reason(plan: &Value, workload: usize) -> &str {
    plan["workloads"][workload]["reason"].as_str().unwrap_or("")
}

#[test]
fn a_plan_says_what_fits_where_and_what_all_of_it_needs() {
    let plan = json_of(&mix(2, 20), &["--gpus", "2xH100-80GB"]);
    assert_eq!(
        (&plan["schemaVersion"], &plan["fits"], &plan["pods"]),
        (&json!(1), &json!(false), &json!(22))
    );
    assert_eq!(placed(&plan), [2, 7]);
    assert_eq!(maps(&plan), ["AAAA|AAAA", "B|B|B|B|B|B|B|-"]);
    assert_eq!(plan["gpus"][1]["stranded"], json!([7]), "nothing that is free includes it");
    assert!(
        reason(&plan, 1).starts_with("none of the 14 devices that match request gpu"),
        "{}",
        reason(&plan, 1)
    );
    assert_eq!(plan["needed"], json!({"gpus": 4, "nodes": 2, "like": "H100-80GB", "inAddition": false}));

    let (text, fits) = text(&mix(2, 20), &["--gpus", "4xH100-80GB"]);
    assert!(fits && text.starts_with("All 22 pods fit on 4 GPUs (1 node).\n"), "{text}");
}

#[test]
fn the_order_of_the_manifests_decides_and_a_priority_comes_before_it() {
    let mut manifests = mix(2, 20);
    manifests.as_array_mut().unwrap().swap(2, 3);
    assert_eq!(placed(&json_of(&manifests, &["--gpus", "2xH100-80GB"])), [14, 0]);
    let class = json!({
        "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "first"}, "value": 1000,
    });
    manifests.as_array_mut().unwrap().push(class);
    manifests[3]["spec"]["template"]["spec"]["priorityClassName"] = json!("first");
    let plan = json_of(&manifests, &["--gpus", "2xH100-80GB"]);
    assert_eq!(plan["workloads"][0]["name"], "deployment/large");
    assert_eq!(placed(&plan), [2, 7]);
}

#[test]
fn pods_are_spread_over_nodes_or_fill_one_after_the_other() {
    let manifests = mix(0, 4);
    let spread = json_of(&manifests, &["--gpus", "1xH100-80GB", "--nodes", "4"]);
    assert!(maps(&spread).iter().all(|it| it.matches('B').count() == 1), "{:?}", maps(&spread));
    let packed =
        json_of(&manifests, &["--gpus", "1xH100-80GB", "--nodes", "4", "--scoring", "most-allocated"]);
    assert_eq!(maps(&packed).iter().filter(|it| it.contains('B')).count(), 1, "{:?}", maps(&packed));
}

#[test]
fn several_kinds_of_nodes_are_counted_in_whole_sets() {
    let manifests = json!([
        template("h", "mig-3g.40gb"),
        template("a", "mig-3g.20gb"),
        deployment("h", 3, "h"),
        deployment("a", 3, "a"),
    ]);
    let plan = json_of(&manifests, &["--gpus", "1xH100-80GB", "--gpus", "1xA100-40GB"]);
    assert_eq!(placed(&plan), [2, 2]);
    assert_eq!(
        plan["needed"],
        json!({"gpus": 4, "nodes": 4, "like": "1xH100-80GB and 1xA100-40GB", "inAddition": false})
    );
    let one_node = json_of(&manifests, &["--gpus", "1xH100-80GB,1xA100-40GB"]);
    assert_eq!((placed(&one_node), one_node["gpus"][1]["node"].as_str()), (vec![2, 2], Some("node-1")));
}

#[test]
fn what_no_number_of_gpus_serves_is_named() {
    let manifests = json!([
        template("small", "mig-1g.10gb"),
        template("other", "mig-1g.5gb"),
        template("none", "no-such-class"),
        deployment("small", 2, "small"),
        deployment("other", 1, "other"),
        deployment("none", 1, "none"),
    ]);
    let plan = json_of(&manifests, &["--gpus", "1xH100-80GB"]);
    assert_eq!(placed(&plan), [2, 0, 0]);
    assert_eq!(
        reason(&plan, 1),
        "no device matches request gpu (class mig-1g.5gb); the node publishes 1g.10gb, 1g.10gb+me, 1g.20gb, 2g.20gb, 3g.40gb, 4g.40gb, 7g.80gb, whole GPUs"
    );
    assert!(reason(&plan, 2).contains("device class no-such-class does not exist"), "{}", reason(&plan, 2));
    assert_eq!(plan["needed"], json!({"impossibleFor": ["deployment/other", "deployment/none"]}));
}

#[test]
fn the_price_of_a_gpu_is_divided_among_its_users() {
    let plan = json_of(&mix(1, 4), &["--gpus", "2xH100-80GB", "--price", "2.00"]);
    assert_eq!(placed(&plan), [1, 4]);
    // One GPU, of which the large pod has four of eight slices.
    assert_eq!(
        plan["cost"],
        json!({"gpuHour": 2.0, "perHour": 2.0, "perHourWithWholeGpus": 10.0, "saving": 0.8})
    );
    assert_eq!(
        (&plan["workloads"][0]["costPerPodHour"], &plan["workloads"][1]["costPerPodHour"]),
        (&json!(1.0), &json!(0.25))
    );
}

#[test]
fn without_counters_a_layout_decides_and_one_for_the_mix_is_suggested() {
    let (manifests, gpus) = (mix(2, 20), ["--gpus", "2xH100-80GB", "--nodes", "2"]);
    let plan = json_of(&manifests, &[&gpus[..], &["--layout", "all-balanced"]].concat());
    assert_eq!(placed(&plan), [2, 8], "3g + 2g + 1g + 1g on each GPU");

    let (file, fits) = text(&manifests, &[&gpus[..], &["--suggest", "layout"]].concat());
    assert!(fits && file.starts_with("# 22 of 22 pods have a place"), "{file}");
    let parsed = LayoutFile::parse("suggested", file.as_bytes()).unwrap();
    assert_eq!(parsed.configs.keys().collect::<Vec<_>>(), ["plan-1"]);
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("layouts.yaml");
    fs::write(&path, file).unwrap();
    let path = path.display().to_string();
    let (_, fits) = text(&manifests, &[&gpus[..], &["--layouts", &path, "--layout", "plan-1"]].concat());
    assert!(fits, "the suggestion serves all pods");

    // Where not all fit, no workload starves for another one; a large instance with four small ones on each GPU serves the most.
    let (file, fits) = text(&manifests, &["--gpus", "2xH100-80GB", "--suggest", "layout"]);
    assert!(!fits && file.starts_with("# 10 of 22 pods"), "{file}");
    let parsed = LayoutFile::parse("suggested", file.as_bytes()).unwrap();
    let cut = parsed.configs["plan-1"][0].cut.as_ref().unwrap();
    assert_eq!(serde_json::to_value(cut).unwrap(), json!({"1g.10gb": 4, "3g.40gb": 1}), "{file}");
}

#[test]
fn whole_gpus_stay_whole_in_a_suggested_layout() {
    let manifests = json!([
        template("whole", "gpu.dra-driver.dev"),
        template("small", "mig-1g.10gb"),
        deployment("whole", 1, "whole"),
        deployment("small", 7, "small"),
    ]);
    let (file, fits) = text(&manifests, &["--gpus", "2xH100-80GB", "--suggest", "layout"]);
    let parsed = LayoutFile::parse("suggested", file.as_bytes()).unwrap();
    let cuts: Vec<bool> = parsed.configs["plan-1"].iter().map(|it| it.cut.is_some()).collect();
    assert!(fits && cuts.contains(&true) && cuts.contains(&false), "{file}");
}

#[test]
fn a_shared_claim_is_allocated_once_and_keeps_its_pods_on_one_node() {
    let claim = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": "shared"},
        "spec": {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "mig-3g.40gb"}}]}},
    });
    let mut pods = deployment("users", 5, "");
    pods["spec"]["template"]["spec"]["resourceClaims"] =
        json!([{"name": "gpu", "resourceClaimName": "shared"}]);
    let plan = json_of(&json!([claim, pods]), &["--gpus", "1xH100-80GB", "--nodes", "3"]);
    assert_eq!(placed(&plan), [5]);
    let nodes: Vec<&Value> = plan["placements"].as_array().unwrap().iter().map(|it| &it["node"]).collect();
    assert!(nodes.iter().all(|it| *it == nodes[0]), "{nodes:?}");
    let instances =
        plan["gpus"].as_array().unwrap().iter().map(|it| it["instances"].as_array().unwrap().len());
    assert_eq!(instances.sum::<usize>(), 1);
}

#[test]
fn a_daemon_set_has_a_pod_on_each_node() {
    let mut set = deployment("agent", 1, "small");
    set["kind"] = json!("DaemonSet");
    set["spec"].as_object_mut().unwrap().remove("replicas");
    let plan =
        json_of(&json!([template("small", "mig-1g.10gb"), set]), &["--gpus", "1xH100-80GB", "--nodes", "3"]);
    assert_eq!((&plan["pods"], placed(&plan)), (&json!(3), vec![3]));
    assert!(maps(&plan).iter().all(|it| it.matches('A').count() == 1), "{:?}", maps(&plan));
}

#[test]
fn extended_resources_are_served_where_the_gate_is_on_and_a_class_has_the_name() {
    let pod = |name: &str, resource: &str| {
        let container = json!({"name": "c", "image": "c", "resources": {"limits": {resource: 2}}});
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [container]}})
    };
    let manifests = json!([pod("mig", "nvidia.com/mig-1g.10gb"), pod("gpu", "nvidia.com/gpu")]);
    let plan = json_of(&manifests, &["--gpus", "1xH100-80GB"]);
    assert_eq!(placed(&plan), [1, 0]);
    assert_eq!(plan["gpus"][0]["instances"].as_array().unwrap().len(), 2);
    assert!(
        reason(&plan, 1).contains("no DeviceClass has that extendedResourceName"),
        "{}",
        reason(&plan, 1)
    );
    let off = json_of(&manifests, &["--gpus", "1xH100-80GB", "--gates", "DRAExtendedResource=false"]);
    assert_eq!(placed(&off), [0, 0], "never reported as served when it got nothing");
    assert!(
        reason(&off, 0).contains("only with the feature gate DRAExtendedResource"),
        "{}",
        reason(&off, 0)
    );
}

/// Slices of a node, as the driver publishes them.
fn slices_of(gpus: &str, node: &str) -> Vec<Value> {
    let Command::Slices(args) =
        Cli::parse_from(["kubectl-mig", "slices", "--gpus", gpus, "--node", node]).command
    else {
        unreachable!("the command line says slices")
    };
    slices::slices(&args).unwrap().iter().map(|it| serde_json::to_value(it).unwrap()).collect()
}

/// A file with these objects.
fn file_of(objects: &[Value]) -> (TempDir, String) {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("cluster.json");
    fs::write(&file, json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()).unwrap();
    let path = file.display().to_string();
    (directory, path)
}

#[test]
fn slices_from_a_file_are_planned_on_with_what_is_allocated_and_where_pods_may_run() {
    let mut objects = Vec::new();
    for node in ["cordoned", "labelled", "other", "tainted"] {
        objects.extend(slices_of("1xH100-80GB", node));
    }
    let node = |name: &str, labels: Value, spec: Value| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": spec});
    objects.push(node("cordoned", json!({"pool": "mig"}), json!({"unschedulable": true})));
    objects.push(node("labelled", json!({"pool": "mig"}), json!({})));
    objects.push(node("other", json!({}), json!({})));
    objects.push(node(
        "tainted",
        json!({"pool": "mig"}),
        json!({"taints": [{"key": "team", "effect": "NoSchedule"}]}),
    ));
    let device = "gpu-0000-1a-00-mig-3g-40gb-0";
    let result = json!({"request": "gpu", "driver": "mig.dra-driver.dev", "pool": "labelled/mig.dra-driver.dev", "device": device});
    objects.push(json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": "old", "namespace": "team"},
        "spec": {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "mig-3g.40gb"}}]}},
        "status": {"allocation": {"devices": {"results": [result]}}},
    }));
    let (_directory, path) = file_of(&objects);
    let mut pods = deployment("large", 3, "large");
    pods["spec"]["template"]["spec"]["nodeSelector"] = json!({"pool": "mig"});
    let plan = json_of(&json!([template("large", "mig-3g.40gb"), pods]), &["--from", &path]);
    assert_eq!(placed(&plan), [1]);
    let map: Vec<(&str, &str)> = plan["gpus"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (it["node"].as_str().unwrap(), it["map"].as_str().unwrap()))
        .collect();
    assert_eq!(
        map,
        [("cordoned", "........"), ("labelled", "####|AAAA"), ("other", "........"), ("tainted", "........")]
    );
    let why = reason(&plan, 0);
    for part in ["cordoned", "pool=mig", "taint team:NoSchedule", "none of the 2 devices"] {
        assert!(why.contains(part), "{part}: {why}");
    }
}

#[test]
fn gpus_of_an_incomplete_pool_are_left_out_and_the_pool_is_named() {
    let manifests = mix(1, 0);
    let note = "pool n1/mig.dra-driver.dev is incomplete (1 of 2 ResourceSlices): its GPUs are left out";
    let broken = slices_of("2xH100-80GB", "n1");
    assert_eq!(broken.len(), 2, "one with counters, one with devices");
    for rest in &broken {
        let mut objects = vec![rest.clone()];
        let (_directory, path) = file_of(&objects);
        let alone = json_of(&manifests, &["--from", &path]);
        assert_eq!((placed(&alone)[0], maps(&alone).len()), (0, 0), "{alone:#}");
        assert!(alone["notes"].as_array().unwrap().contains(&json!(note)), "{alone:#}");
        assert!(reason(&alone, 0).contains("n1/mig.dra-driver.dev"), "{alone:#}");
        assert_eq!(alone["needed"], Value::Null, "of n1 no GPU is known");

        objects.extend(slices_of("1xH100-80GB", "n2"));
        let (_directory, path) = file_of(&objects);
        let both = json_of(&manifests, &["--from", &path]);
        assert_eq!(placed(&both)[0], 1, "{both:#}");
        let nodes: Vec<&Value> = both["gpus"].as_array().unwrap().iter().map(|it| &it["node"]).collect();
        assert_eq!(nodes, ["n2"]);
        assert_eq!(
            (&both["memorySlices"]["total"], &both["placements"][0]["node"]),
            (&json!(8), &json!("n2"))
        );
        assert!(both["notes"].as_array().unwrap().contains(&json!(note)), "{both:#}");
        let (printed, _) = text(&manifests, &["--from", &path]);
        assert!(printed.starts_with("1 pod fits on 1 GPU (1 node).\n"), "{printed}");
    }
}

#[test]
fn an_incomplete_pool_changes_nothing_about_what_is_allocated_on_other_nodes() {
    let mut objects: Vec<Value> = slices_of("1xH100-80GB", "n1").into_iter().take(1).collect();
    objects.extend(slices_of("1xH100-80GB", "n2"));
    for node in ["n1", "n2"] {
        let pool = format!("{node}/mig.dra-driver.dev");
        let result = json!({"request": "gpu", "driver": "mig.dra-driver.dev", "pool": pool, "device": "gpu-0000-1a-00-mig-3g-40gb-0"});
        objects.push(json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": node, "namespace": "team"},
            "spec": {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "mig-3g.40gb"}}]}},
            "status": {"allocation": {"devices": {"results": [result]}}},
        }));
    }
    let (_directory, path) = file_of(&objects);
    let plan = json_of(&mix(2, 0), &["--from", &path]);
    assert_eq!((placed(&plan)[0], maps(&plan)), (1, vec!["####|AAAA"]), "{plan:#}");
}

#[test]
fn a_daemon_set_has_a_pod_on_a_cordoned_node_too() {
    let mut objects = slices_of("1xH100-80GB", "cordoned");
    objects.push(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "cordoned"}, "spec": {"unschedulable": true}}));
    let (_directory, path) = file_of(&objects);
    let mut set = deployment("agent", 1, "small");
    set["kind"] = json!("DaemonSet");
    let plan = json_of(&json!([template("small", "mig-1g.10gb"), set]), &["--from", &path]);
    assert_eq!(placed(&plan), [1]);
}

/// The same GPUs as NVIDIA's driver publishes them: a pool with the node's name, names by the minor number, attributes of its own,
/// counters for each capacity, all counter sets in one slice, and a slice for each GPU with devices in the order of their names.
fn as_nvidia(slices: &[Value]) -> Vec<Value> {
    const BUSES: [&str; 8] = ["1a", "1b", "3b", "3c", "9a", "9b", "ba", "bb"];
    const IDS: [(&str, u32); 7] = [
        ("1g.10gb", 19),
        ("1g.10gb+me", 20),
        ("1g.20gb", 15),
        ("2g.20gb", 14),
        ("3g.40gb", 9),
        ("4g.40gb", 5),
        ("7g.80gb", 0),
    ];
    let gpu_of =
        |name: &str| BUSES.iter().position(|bus| name.starts_with(&format!("gpu-0000-{bus}-"))).unwrap();
    let counters = |slices: &Value, memory: &Value, multiprocessors: &Value| {
        let mut counters = slices.clone();
        let all = counters.as_object_mut().unwrap();
        all.retain(|name, _| name.starts_with("memory-slice-"));
        all.insert("memory".to_owned(), json!({"value": memory}));
        all.insert("multiprocessors".to_owned(), json!({"value": multiprocessors}));
        counters
    };
    let (mut sets, mut devices) = (Vec::new(), vec![Vec::new(); BUSES.len()]);
    for slice in slices {
        for set in slice["spec"]["sharedCounters"].as_array().into_iter().flatten() {
            let name = format!("gpu-{}-counter-set", gpu_of(set["name"].as_str().unwrap()));
            sets.push(json!({"name": name, "counters": counters(&set["counters"], &json!("81152Mi"), &json!("132"))}));
        }
        for device in slice["spec"]["devices"].as_array().into_iter().flatten() {
            let gpu = gpu_of(device["name"].as_str().unwrap());
            let old = &device["attributes"];
            let mut attributes = json!({"brand": {"string": "Nvidia"}, "architecture": {"string": "Hopper"}});
            let is_mig = old["type"]["string"] == "mig";
            let own = if is_mig { ["parentUUID", "profile"] } else { ["uuid", "type"] };
            for key in ["type", "productName", "cudaComputeCapability"].iter().chain(&own) {
                attributes[key] = old[key].clone();
            }
            let mut name = format!("gpu-{gpu}");
            let mut capacity = json!({"memory": {"value": "81152Mi"}, "multiprocessors": {"value": "132"}});
            if is_mig {
                let profile = old["profile"]["string"].as_str().unwrap();
                let id = IDS.iter().find(|(known, _)| *known == profile).unwrap().1;
                let label = profile.replace('.', "").replace('+', "-");
                name = format!("{name}-mig-{label}-{id}-{}", old["placementStart"]["int"]);
                let of = |name: &str| json!({"value": device["capacity"][name]["value"]});
                capacity = json!({"memory": of("memory"), "multiprocessors": of("multiprocessors")});
            }
            let (memory, multiprocessors) =
                (&capacity["memory"]["value"], &capacity["multiprocessors"]["value"]);
            let consumed = counters(&device["consumesCounters"][0]["counters"], memory, multiprocessors);
            devices[gpu].push(json!({
                "name": name, "attributes": attributes, "capacity": capacity,
                "consumesCounters": [{"counterSet": format!("gpu-{gpu}-counter-set"), "counters": consumed}],
            }));
        }
    }
    let mut contents = vec![json!({"sharedCounters": sets})];
    for mut of_gpu in devices {
        of_gpu.sort_by_key(|it| it["name"].as_str().unwrap().to_owned());
        contents.push(json!({"devices": of_gpu}));
    }
    let count = contents.len();
    let slice = |(index, mut spec): (usize, Value)| {
        spec["driver"] = json!("gpu.nvidia.com");
        spec["nodeName"] = json!("node");
        spec["pool"] = json!({"name": "node", "generation": 1, "resourceSliceCount": count});
        let name = format!("{index:05x}-gpu.nvidia.com-node-x");
        json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": name}, "spec": spec})
    };
    contents.into_iter().enumerate().map(slice).collect()
}

#[test]
fn slices_of_nvidias_driver_for_eight_h100_are_planned_too() {
    let (_directory, path) = file_of(&as_nvidia(&slices_of("8xH100-80GB", "node")));
    let claim = |name: &str, profile: &str| {
        let mut template = template(name, "mig.nvidia.com");
        let selector = format!("device.attributes['gpu.nvidia.com'].profile == '{profile}'");
        template["spec"]["spec"]["devices"]["requests"][0]["exactly"]["selectors"] =
            json!([{"cel": {"expression": selector}}]);
        template
    };
    let manifests = json!([
        claim("large", "3g.40gb"),
        claim("small", "1g.10gb"),
        template("whole", "gpu.nvidia.com"),
        deployment("whole", 2, "whole"),
        deployment("large", 4, "large"),
        deployment("small", 40, "small"),
    ]);
    let plan = json_of(&manifests, &["--from", &path]);
    assert_eq!(
        placed(&plan),
        [2, 4, 28],
        "two whole, two with two large, four with seven small: {:#}",
        plan["gpus"]
    );
    let whole: Vec<bool> = maps(&plan).iter().map(|it| *it == "AAAAAAAA").collect();
    assert_eq!(whole, [true, true, false, false, false, false, false, false], "{:?}", maps(&plan));
    assert_eq!(plan["memorySlices"]["total"], 64);
    assert_eq!(plan["needed"], json!({"gpus": 8, "nodes": 1, "like": "node", "inAddition": true}));
}

#[test]
fn a_hundred_nodes_with_five_thousand_pods_are_planned() {
    let plan = json_of(&mix(300, 4700), &["--gpus", "8xH100-80GB", "--nodes", "100"]);
    assert_eq!(placed(&plan), [300, 4600]);
    assert_eq!(plan["needed"]["gpus"], 815);
}

#[test]
fn what_cannot_be_planned_on_is_refused() {
    let (_directory, path) = file_of(&[]);
    let error = try_text(&mix(1, 1), &["--from", &path]).unwrap_err();
    assert!(error.to_string().contains("--gpus 8xH100-80GB"), "{error}");
    let error = try_text(&json!([deployment("a", 1, "missing")]), &["--gpus", "1xH100-80GB"]).unwrap_err();
    assert!(error.to_string().contains("ResourceClaimTemplate `missing` does not exist"), "{error}");
    let error = try_text(&mix(1, 1), &["--gpus", "1xH100-80GB", "--layout", "no-such"]).unwrap_err();
    assert!(error.to_string().contains("there is no built-in layout `no-such`"), "{error}");
    let error = try_text(&mix(1, 1), &["--gpus", "1xH100-80GB", "--layouts", "/does/not/exist"]).unwrap_err();
    assert!(error.to_string().contains("/does/not/exist"), "{error}");
    let error = try_text(&mix(1, 1), &["-f", "-", "--from", "-"]).unwrap_err();
    assert!(error.to_string().contains("`-` (standard input) can be given once"), "{error}");
    for arguments in [
        &["--gpus", "1xH1000"][..],
        &["--gpus", "1xL4", "--nodes", "0"],
        &["--gpus", "1xL4", "--price", "-1"],
        &["--gpus", "1xL4", "--price", "inf"],
        &["--gpus", "1xL4", "--gates", "Nonsense=true"],
        &["--suggest", "layout"],
        &["--gpus", "1xL4", "--from", "x"],
        &["--gpus", "1xL4", "--context", "x"],
        &["--gpus", "1xL4", "--kubeconfig", "x"],
        &["--from", "x", "--context", "x"],
        &["--gpus", "1xL4", "--layout", "all-balanced", "--mig-mode", "off"],
    ] {
        let line = ["kubectl-mig", "plan", "-f", "x"].iter().chain(arguments);
        assert!(Cli::try_parse_from(line).is_err(), "{arguments:?}");
    }
}

/// A pod whose container has this limit of an extended resource.
fn limited(name: &str, amount: &Value) -> Value {
    let container =
        json!({"name": "c", "image": "c", "resources": {"limits": {"nvidia.com/mig-1g.10gb": amount}}});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [container]}})
}

const ONE: [&str; 2] = ["--gpus", "1xH100-80GB"];

#[test]
fn input_that_needs_no_device_is_refused_and_kinds_that_plan_does_not_know_are_named() {
    let other = |api: &str, kind: &str| json!({"apiVersion": api, "kind": kind, "metadata": {"name": "x"}});
    let idle = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "c"}]}});
    for manifests in [
        json!([]),
        json!([idle]),
        json!([limited("p", &json!("0"))]),
        mix(0, 0),
        json!([other("v1", "Service")]),
    ] {
        let error = try_text(&manifests, &ONE).unwrap_err().to_string();
        assert_eq!(error, "no pod of the manifests needs a device");
        let suggest = [&ONE[..], &["--suggest", "layout"]].concat();
        let error = try_text(&manifests, &suggest).unwrap_err().to_string();
        assert_eq!(error, "no pod of the manifests needs a device, so there is nothing to suggest");
    }
    let unknown = [
        other("ray.io/v1", "RayCluster"),
        other("example.com/v1", "Trainer"),
        other("example.com/v1", "Trainer"),
    ];
    let error = try_text(&json!(unknown), &ONE).unwrap_err().to_string();
    let notes = [
        "2 objects of kind Trainer (example.com/v1) are left out: plan does not know which pods they ask for",
        "1 object of kind RayCluster (ray.io/v1) is left out: plan does not know which pods it asks for",
    ];
    assert_eq!(error, format!("no pod of the manifests needs a device; {}; {}", notes[1], notes[0]));
    let mut manifests = mix(1, 1);
    manifests.as_array_mut().unwrap().extend(unknown);
    manifests.as_array_mut().unwrap().push(other("networking.k8s.io/v1", "Ingress"));
    let plan = json_of(&manifests, &ONE);
    let said = plan["notes"].as_array().unwrap();
    assert!(notes.iter().all(|note| said.contains(&json!(note))), "{said:?}");
    assert!(!said.iter().any(|it| it.as_str().unwrap().contains("Ingress")), "{said:?}");
}

#[test]
fn amounts_that_the_api_server_refuses_are_refused() {
    for amount in ["-1", "1.5", "abc", "500m", ""] {
        let error = try_text(&json!([limited("p", &json!(amount))]), &ONE).unwrap_err().to_string();
        let place = "pod/p: containers[c].resources.limits[nvidia.com/mig-1g.10gb]: ";
        assert_eq!(error, format!("{place}`{amount}` is not a whole number of devices, such as 1"));
    }
    assert!(text(&json!([limited("p", &json!("2"))]), &ONE).1);
    let mut manifests = mix(1, 1);
    manifests[2]["spec"]["replicas"] = json!(-1);
    let error = try_text(&manifests, &ONE).unwrap_err().to_string();
    assert_eq!(error, "deployment/large: spec.replicas: -1 is negative; write 0 or more");
}

#[test]
fn names_from_objects_do_not_reach_the_terminal_raw() {
    let mut manifests = mix(1, 20);
    manifests[0]["spec"]["spec"]["devices"]["requests"][0]["exactly"]["deviceClassName"] =
        json!("a\u{1b}[31m\nb");
    let (printed, _) = text(&manifests, &ONE);
    assert!(!printed.contains('\u{1b}') && printed.contains("a\u{fffd}[31m\u{fffd}b"), "{printed}");
    let (file, _) = text(&manifests, &[&ONE[..], &["--suggest", "layout"]].concat());
    assert!(!file.contains('\u{1b}') && LayoutFile::parse("suggested", file.as_bytes()).is_ok(), "{file}");
}

#[test]
fn one_of_a_thing_is_singular_and_nothing_placed_costs_nothing() {
    let first = |manifests: &Value| text(manifests, &ONE).0.lines().next().unwrap().to_owned();
    assert_eq!(first(&mix(1, 0)), "1 pod fits on 1 GPU (1 node).");
    assert_eq!(first(&mix(3, 0)), "2 of 3 pods fit on 1 GPU (1 node), 1 does not.");
    let none = json!([template("large", "mig-1g.5gb"), deployment("large", 1, "large")]);
    assert_eq!(first(&none), "0 of 1 pods fit on 1 GPU (1 node), 1 does not.");
    let priced = [&ONE[..], &["--price", "2"]].concat();
    assert!(text(&mix(1, 0), &priced).0.contains("Cost per hour"));
    assert!(!text(&none, &priced).0.contains("Cost per hour"));
}
