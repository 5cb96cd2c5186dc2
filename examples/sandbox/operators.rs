//! Workloads of operators: the pods that their templates stand for. Their controllers do not run here, so that the pods have nothing of
//! what these add (names of hosts, volumes, init containers): it is the templates and the claims that are tried.

use kube_sim::manifest::Document;
use serde_json::{Value, json};

/// Pods of one object at most.
const MOST_PODS: u64 = 1_000;

/// Pods of one template.
struct Group {
    name: String,
    count: u64,
    spec: Value,
}

/// Kinds whose pods are played, with their API groups.
pub(crate) const KINDS: [(&str, &str); 4] = [
    ("ray.io", "RayCluster"),
    ("jobset.x-k8s.io", "JobSet"),
    ("batch.volcano.sh", "Job"),
    ("serving.kserve.io", "InferenceService"),
];

/// The pods of a workload; `None` where its kind is not known.
pub(crate) fn pods(document: &Document) -> Option<Vec<Document>> {
    let object = &document.object;
    let group = object["apiVersion"].as_str()?.split('/').next()?;
    let (_, kind) = KINDS.into_iter().find(|it| *it == (group, object["kind"].as_str().unwrap_or("")))?;
    let spec = &object["spec"];
    let groups = match kind {
        "RayCluster" => ray(spec),
        "JobSet" => items(&spec["replicatedJobs"]).map(job_set).collect(),
        "Job" => items(&spec["tasks"]).map(volcano).collect(),
        _ => vec![predictor(&spec["predictor"])],
    };
    let pod = |group: &Group, index: u64| {
        let name = format!("{}-{}-{index}", object["metadata"]["name"].as_str().unwrap_or(""), group.name);
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": group.spec.clone(),
        });
        if let Some(namespace) = object["metadata"].get("namespace") {
            pod["metadata"]["namespace"] = namespace.clone();
        }
        let mut document = document.clone();
        document.object = pod;
        document
    };
    Some(groups.iter().flat_map(|it| (0..it.count.min(MOST_PODS)).map(|index| pod(it, index))).collect())
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A name in an object, as part of the name of a pod.
fn name(value: &Value, default: &str) -> String {
    value.as_str().unwrap_or(default).to_owned()
}

fn ray(spec: &Value) -> Vec<Group> {
    let of = |group: &Value, default: &str, count| Group {
        name: name(&group["groupName"], default),
        count,
        spec: group["template"]["spec"].clone(),
    };
    let count = |group: &Value| group["replicas"].as_u64().or(group["minReplicas"].as_u64()).unwrap_or(1);
    let mut groups = vec![of(&spec["headGroupSpec"], "head", 1)];
    groups.extend(items(&spec["workerGroupSpecs"]).map(|it| of(it, "worker", count(it))));
    groups
}

fn job_set(jobs: &Value) -> Group {
    let job = &jobs["template"]["spec"];
    let count =
        jobs["replicas"].as_u64().unwrap_or(1).saturating_mul(job["parallelism"].as_u64().unwrap_or(1));
    Group { name: name(&jobs["name"], "job"), count, spec: job["template"]["spec"].clone() }
}

fn volcano(task: &Value) -> Group {
    let count = task["replicas"].as_u64().unwrap_or(1);
    Group { name: name(&task["name"], "task"), count, spec: task["template"]["spec"].clone() }
}

/// KServe's predictor is a pod spec with fields of its own, and with `model` instead of a container.
fn predictor(predictor: &Value) -> Group {
    const OF_KSERVE: [&str; 15] = [
        "minReplicas",
        "maxReplicas",
        "scaleTarget",
        "scaleMetric",
        "scaleMetricType",
        "autoScaling",
        "containerConcurrency",
        "timeout",
        "canaryTrafficPercent",
        "logger",
        "batcher",
        "labels",
        "annotations",
        "deploymentStrategy",
        "model",
    ];
    const OF_MODEL: [&str; 6] =
        ["modelFormat", "storageUri", "storage", "storageUris", "runtime", "protocolVersion"];
    let mut spec = predictor.clone();
    let model = predictor.get("model").cloned();
    if let Some(fields) = spec.as_object_mut() {
        fields.retain(|name, _| !OF_KSERVE.contains(&name.as_str()));
    }
    if let Some(mut container) = model {
        if let Some(fields) = container.as_object_mut() {
            fields.retain(|name, _| !OF_MODEL.contains(&name.as_str()));
            fields.entry("name").or_insert("kserve-container".into());
            // The image comes from the ServingRuntime.
            fields.entry("image").or_insert("kserve.example/runtime".into());
        }
        match spec["containers"].as_array_mut() {
            Some(containers) => containers.insert(0, container),
            None => spec["containers"] = json!([container]),
        }
    }
    Group { name: "predictor".to_owned(), count: predictor["minReplicas"].as_u64().unwrap_or(1), spec }
}
