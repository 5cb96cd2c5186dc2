//! A small cluster, built object by object.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::ResourceSlice;
use mig_model::mig_node::MigNode;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::cluster::{Demanded, Snapshot};
use crate::explain::{Explanation, ReasonId, Subject, explain, text};

/// Slices as the driver publishes them, by machine.
const SHAPES: &str = include_str!("../../../allocator/examples/agreement/shapes.json");
pub(super) const DRIVER: &str = "mig.dra-driver.dev";
const NVIDIA: &str = "gpu.nvidia.com";

fn typed<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// A cluster of Kubernetes 1.36.
#[derive(Default)]
pub(super) struct Lab {
    pub(super) snapshot: Snapshot,
}

impl Lab {
    /// A cluster with a node `gpu-1` that has these GPUs, and classes for the profiles of an H100 and A100.
    pub(super) fn with(machine: &str) -> Self {
        let mut lab = Self::default();
        lab.snapshot.version = Some((1, 36));
        for profile in ["1g.5gb", "1g.10gb", "2g.20gb", "3g.40gb", "7g.80gb"] {
            lab.class(profile);
        }
        lab.node("gpu-1", json!({}));
        lab.slices("gpu-1", machine);
        lab
    }

    /// A node with changes to what is usual.
    pub(super) fn node(&mut self, name: &str, changes: Value) {
        let mut node = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {"allocatable": {"cpu": "8", "memory": "64Gi", "pods": "110"}},
        });
        merge(&mut node, changes);
        self.snapshot.nodes.retain(|it| it.metadata.name.as_deref() != Some(name));
        self.snapshot.nodes.push(typed(node));
    }

    /// The slices of a machine of the recorded shapes, for a node.
    pub(super) fn shape(node: &str, machine: &str) -> Vec<Value> {
        let shapes: Value = serde_json::from_str(SHAPES).unwrap();
        let text = shapes[machine].to_string();
        assert!(text.len() > 10, "no shape {machine}");
        let text = text.replace(r#""nodeName":"node""#, &format!(r#""nodeName":"{node}""#));
        let text = text.replace(r#""name":"node/"#, &format!(r#""name":"{node}/"#));
        let text = text.replace("-dev-node\"", &format!("-dev-{node}\""));
        serde_json::from_str(&text).unwrap()
    }

    pub(super) fn slices(&mut self, node: &str, machine: &str) {
        self.publish(Self::shape(node, machine));
    }

    pub(super) fn publish(&mut self, slices: Vec<Value>) {
        self.snapshot.slices.extend(slices.into_iter().map(typed::<ResourceSlice>));
    }

    /// Devices that do not overlap and consume no counters, as a layout has them: all of one GPU.
    pub(super) fn layout(&mut self, node: &str, profiles: &[(&str, usize)]) {
        let devices: Vec<Value> = profiles
            .iter()
            .map(|(profile, start)| {
                let (size, kind) = match *profile {
                    "full" => (8, "gpu"),
                    "3g.40gb" => (4, "mig"),
                    "2g.20gb" => (2, "mig"),
                    _ => (1, "mig"),
                };
                json!({"name": format!("gpu-0-{}-{start}", profile.replace('.', "-")), "attributes": {
                    "type": {"string": kind}, "profile": {"string": profile}, "parentUUID": {"string": format!("GPU-{node}")},
                    "productName": {"string": "NVIDIA H100 80GB HBM3"}, "placementStart": {"int": start}, "memorySlices": {"int": size}},
                    "capacity": {"memory": {"value": format!("{}Mi", 9984 * size)}}})
            })
            .collect();
        self.publish(vec![json!({"metadata": {"name": format!("s-{node}")}, "spec": {
            "driver": DRIVER, "nodeName": node, "devices": devices,
            "pool": {"name": format!("{node}/{DRIVER}"), "generation": 1, "resourceSliceCount": 1}}})]);
    }

    /// What NVIDIA's driver publishes for one H100: names, counters and attributes as its version 0.5 has them.
    pub(super) fn nvidia(&mut self, node: &str, counters: bool) {
        let mut devices = vec![("gpu-0".to_owned(), "gpu", String::new(), 0..8, 81_559)];
        let profiles: [(&str, u32, &[usize], usize, u64); 4] = [
            ("1g.10gb", 19, &[0, 1, 2, 3, 4, 5, 6], 1, 9_984),
            ("1g.20gb", 15, &[0, 2, 4, 6], 2, 20_096),
            ("2g.20gb", 14, &[0, 2, 4], 2, 20_096),
            ("3g.40gb", 9, &[0, 4], 4, 40_448),
        ];
        for (profile, id, starts, size, memory) in profiles {
            for start in starts {
                let name = format!("gpu-0-mig-{}-{id}-{start}", profile.replace('.', ""));
                devices.push((name, "mig", profile.to_owned(), *start..start + size, memory));
            }
        }
        let device =
            |(name, kind, profile, cells, memory): &(String, &str, String, std::ops::Range<usize>, u64)| {
                let mut device = json!({"name": name, "attributes": {
                "type": {"string": kind}, "productName": {"string": "NVIDIA H100 80GB HBM3"},
                "resource.kubernetes.io/pciBusID": {"string": "0000:3b:00.0"}},
                "capacity": {"memory": {"value": format!("{memory}Mi")}}});
                let identity = if *kind == "gpu" { "uuid" } else { "parentUUID" };
                device["attributes"][identity] = json!({"string": "GPU-8e84962a"});
                if *kind == "mig" {
                    device["attributes"]["profile"] = json!({"string": profile});
                }
                if counters {
                    let used: serde_json::Map<String, Value> = cells
                        .clone()
                        .map(|it| (format!("memory-slice-{it}"), json!({"value": "1"})))
                        .collect();
                    device["consumesCounters"] =
                        json!([{"counterSet": "gpu-0-counter-set", "counters": used}]);
                }
                device
            };
        let all: Vec<Value> = devices.iter().map(device).collect();
        let pool = json!({"name": node, "generation": 1, "resourceSliceCount": 2});
        let sets: serde_json::Map<String, Value> =
            (0..8).map(|it| (format!("memory-slice-{it}"), json!({"value": "1"}))).collect();
        let mut first = json!({"metadata": {"name": format!("{node}-0")}, "spec": {"driver": NVIDIA, "nodeName": node, "pool": pool}});
        if counters {
            first["spec"]["sharedCounters"] = json!([{"name": "gpu-0-counter-set", "counters": sets}]);
        }
        let second = json!({"metadata": {"name": format!("{node}-1")}, "spec": {
            "driver": NVIDIA, "nodeName": node, "pool": pool, "devices": all}});
        self.publish(vec![first, second]);
        self.snapshot.classes.push(typed(json!({"metadata": {"name": "mig.nvidia.com"}, "spec": {"selectors": [{"cel": {
            "expression": "device.driver == 'gpu.nvidia.com' && device.attributes['gpu.nvidia.com'].type == 'mig'"}}]}})));
    }

    /// The driver's class for a profile.
    pub(super) fn class(&mut self, profile: &str) {
        let expression = format!(
            "device.driver == \"{DRIVER}\" && device.attributes[\"{DRIVER}\"].profile == \"{profile}\""
        );
        self.snapshot.classes.push(typed(json!({
            "metadata": {"name": format!("mig-{}", profile.replace('+', "."))},
            "spec": {"extendedResourceName": format!("nvidia.com/mig-{}", profile.replace('+', ".")),
                     "selectors": [{"cel": {"expression": expression}}]},
        })));
    }

    /// A claim of the namespace `default` with these requests and constraints, which the pod of this name uses.
    pub(super) fn claim(&mut self, name: &str, requests: Value, constraints: Value) {
        self.snapshot.claims.push(typed(json!({
            "metadata": {"name": name, "namespace": "default", "uid": format!("claim-{name}"), "creationTimestamp": "2026-11-29T06:00:00Z"},
            "spec": {"devices": {"requests": requests, "constraints": constraints}},
        })));
    }

    /// A pending pod that uses the claim of its name, with changes.
    pub(super) fn pod(&mut self, name: &str, changes: Value) {
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "default", "uid": format!("pod-{name}")},
            "spec": {
                "containers": [{"name": "c", "resources": {"claims": [{"name": "gpu"}]}}],
                "resourceClaims": [{"name": "gpu", "resourceClaimName": name}],
            },
            "status": {"phase": "Pending"},
        });
        merge(&mut pod, changes);
        self.snapshot.pods.push(typed(pod));
    }

    /// A pending pod with a claim for one device of a profile.
    pub(super) fn wants(&mut self, name: &str, profile: &str) {
        self.claim(name, json!([exactly("mig", &format!("mig-{profile}"))]), Value::Null);
        self.pod(name, json!({}));
    }

    /// A pod that runs with a device.
    pub(super) fn runs(&mut self, name: &str, node: &str, device: &str) {
        self.runs_with(name, DRIVER, &format!("{node}/{DRIVER}"), node, device);
    }

    pub(super) fn runs_with(&mut self, name: &str, driver: &str, pool: &str, node: &str, device: &str) {
        self.claim(name, json!([exactly("mig", "mig-1g.10gb")]), Value::Null);
        let claim = self.snapshot.claims.last_mut().unwrap();
        claim.status = Some(typed(json!({
            "allocation": {
                "devices": {"results": [{"request": "mig", "driver": driver, "pool": pool, "device": device}]},
                "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]},
            },
            "reservedFor": [{"resource": "pods", "name": name, "uid": format!("pod-{name}")}],
        })));
        self.pod(name, json!({"spec": {"nodeName": node}, "status": {"phase": "Running", "startTime": "2026-11-29T07:00:00Z"}}));
    }

    /// The device of an H100 or A100 of the recorded shapes.
    pub(super) fn device(gpu: usize, profile: &str, start: usize) -> String {
        let bus = ["1a", "1b"][gpu];
        format!("gpu-0000-{bus}-00-mig-{}-{start}", profile.replace(['.', '+'], "-"))
    }

    /// An event about a node.
    pub(super) fn event(&mut self, node: &str, reason: &str, message: &str, time: &str) {
        self.snapshot.events.push(typed(json!({
            "metadata": {"name": format!("{node}.{reason}"), "namespace": "default"}, "reason": reason, "message": message,
            "involvedObject": {"kind": "Node", "name": node}, "lastTimestamp": time,
            "reportingComponent": "mig.dra-driver.dev",
        })));
    }

    /// What the command says about a pod.
    #[track_caller]
    /// The MigNode of a node that publishes by a layout and has the label `auto`, with this spec.
    pub(super) fn demands(&mut self, node: &str, spec: Value) {
        let profiles: Value =
            ["1g.10gb", "2g.20gb", "3g.40gb", "7g.80gb"].iter().map(|it| json!({"profile": it})).collect();
        let mig_node: MigNode = typed(json!({
            "apiVersion": "mig.dra-driver.dev/v1alpha1", "kind": "MigNode", "metadata": {"name": node}, "spec": spec,
            "status": {"mode": "layout", "gpus": [{"name": "gpu-0000-1a-00", "profiles": profiles}]},
        }));
        assert_eq!(mig_node.invalid, Default::default());
        let labelled: Node = typed(json!({"metadata": {"labels": {"nvidia.com/mig.config": "auto"}}}));
        self.snapshot.demanded.insert(node.to_owned(), Demanded::of(&mig_node, Some(&labelled), false));
    }

    pub(super) fn explain(&self, pod: &str) -> Explanation {
        let subject = Subject::Pod { namespace: "default".into(), name: pod.into() };
        let explanation = explain(&self.snapshot, &subject);
        let text = text::text(&explanation, None);
        let wide = text.lines().find(|it| it.chars().count() > 100 && !it.contains("claim"));
        assert_eq!(wide, None, "{text}");
        assert!(text.lines().next().is_some_and(|it| !it.is_empty()), "{text}");
        explanation
    }
}

/// A request for one device of a class.
pub(super) fn exactly(name: &str, class: &str) -> Value {
    json!({"name": name, "exactly": {"deviceClassName": class, "allocationMode": "ExactCount", "count": 1}})
}

/// All reasons of an answer.
pub(super) fn reasons(explanation: &Explanation) -> BTreeSet<ReasonId> {
    let own = explanation.reasons.iter();
    own.chain(explanation.requests.iter().flat_map(|it| &it.reasons)).map(|it| it.reason).collect()
}

/// Puts fields of one object into another.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}
