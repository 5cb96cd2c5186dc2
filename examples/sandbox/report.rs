//! What there is to tell about devices, claims and containers, as text.

use std::fmt::Write;

use kube_sim::api::quota::is_extended_resource;
use kube_sim::control::{claim_name, extended_claim_name};
use kube_sim::kinds::{self, KindRef, POD, RESOURCE_CLAIM, RESOURCE_SLICE};
use kube_sim::kubelet::find_cdi_device;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::map::{self, Owner};
use crate::why::warnings;

/// Kinds that make pods, each before those that it makes.
pub(crate) const WORKLOADS: [KindRef; 6] = [
    &kinds::CRON_JOB,
    &kinds::JOB,
    &kinds::DEPLOYMENT,
    &kinds::REPLICA_SET,
    &kinds::STATEFUL_SET,
    &kinds::DAEMON_SET,
];

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or("")
}

fn items<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

/// The published slices, one line each.
pub(crate) fn slices(cluster: &Cluster) -> String {
    let mut out = String::new();
    for slice in cluster.server.list(&RESOURCE_SLICE) {
        let spec = &slice["spec"];
        let (devices, counters) = (items(spec, "devices").len(), items(spec, "sharedCounters").len());
        let what =
            if counters > 0 { format!("{counters} counter sets") } else { format!("{devices} devices") };
        let name = text(&slice["metadata"], "name");
        let _ = writeln!(out, "  {name}  pool {}  {what}", text(&spec["pool"], "name"));
    }
    out
}

/// Every allocated claim with its devices.
pub(crate) fn claims(cluster: &Cluster) -> String {
    let mut out = String::new();
    for claim in cluster.server.list(&RESOURCE_CLAIM) {
        let name = text(&claim["metadata"], "name");
        let results = items(&claim["status"]["allocation"]["devices"], "results");
        if results.is_empty() {
            let _ = writeln!(out, "  {name}  not allocated");
        }
        for result in results {
            let _ = writeln!(out, "  {name}  {} -> {}", text(result, "request"), text(result, "device"));
        }
    }
    out
}

/// What each container gets: the CDI device, the file that defines it, and the edits that a runtime would make.
/// Also how many containers name a claim but would get nothing: none, if all is well.
pub(crate) fn containers(cluster: &Cluster) -> (String, usize) {
    let store = cluster.server.store();
    let (mut out, mut without) = (String::new(), 0);
    for pod in cluster.server.list(&POD) {
        let devices = cluster.kubelet.containers(&store, &pod);
        for container in items(&pod["spec"], "containers") {
            let name = text(container, "name");
            let _ = writeln!(out, "  pod {}, container {name}", text(&pod["metadata"], "name"));
            let mine: Vec<_> = devices.iter().filter(|d| d.container == name).collect();
            let mut given = 0;
            for id in mine.iter().flat_map(|d| &d.device.cdi_ids) {
                let Some(device) = find_cdi_device(&cluster.cdi_dir, id) else {
                    let _ = writeln!(out, "    {id}  NOT FOUND in {}", cluster.cdi_dir.display());
                    continue;
                };
                given += 1;
                let file = device.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let _ = writeln!(out, "    {id}\n      in {file}");
                for line in edits(&[&device.edits, &device.common_edits]) {
                    let _ = writeln!(out, "      {line}");
                }
            }
            if given == 0 && asks_for_devices(container) {
                without += 1;
                let _ = writeln!(out, "    NOTHING");
            }
        }
    }
    (out, without)
}

/// Whether a container names a claim or an extended resource.
fn asks_for_devices(container: &Value) -> bool {
    let resources = container["resources"]["requests"].as_object();
    !items(&container["resources"], "claims").is_empty()
        || resources.is_some_and(|it| it.keys().any(|name| is_extended_resource(name)))
}

/// Whether the scheduler has said of a pod that it does not fit.
pub(crate) fn is_refused(pod: &Value) -> bool {
    items(&pod["status"], "conditions").iter().any(|it| it["reason"] == "Unschedulable")
}

/// The warnings of workloads whose pods could not be created.
pub(crate) fn refused_workloads(cluster: &Cluster) -> String {
    let mut out = String::new();
    for object in WORKLOADS.iter().flat_map(|kind| cluster.server.list(kind)) {
        for (reason, message) in warnings(&cluster.server, &object["metadata"]["uid"]) {
            let name = text(&object["metadata"], "name");
            let _ = writeln!(out, "{} {name}: {reason}: {message}", text(&object, "kind"));
        }
    }
    out
}

/// A text with two spaces before each line that is not empty.
pub(crate) fn indented(text: &str) -> String {
    let indented = |line: &str| if line.is_empty() { "\n".to_owned() } else { format!("  {line}\n") };
    text.lines().map(indented).collect()
}

/// Device nodes and environment in full, the rest counted.
fn edits(all: &[&Value]) -> Vec<String> {
    let mut lines = Vec::new();
    let nodes: Vec<&str> =
        all.iter().flat_map(|e| items(e, "deviceNodes")).map(|n| text(n, "path")).collect();
    if !nodes.is_empty() {
        lines.push(nodes.join(" "));
    }
    let mut rest: Vec<String> =
        all.iter().flat_map(|e| items(e, "env")).filter_map(Value::as_str).map(str::to_owned).collect();
    for noun in ["mounts", "hooks"] {
        let count: usize = all.iter().map(|e| items(e, noun).len()).sum();
        if count > 0 {
            rest.push(format!("{count} {noun}"));
        }
    }
    if !rest.is_empty() {
        lines.push(rest.join(", "));
    }
    lines
}

/// Who holds what, from the allocations and the published attributes.
fn owners(cluster: &Cluster) -> Vec<Owner> {
    let slices = cluster.server.list(&RESOURCE_SLICE);
    let pods = cluster.server.list(&POD);
    let device = |result: &Value| {
        let of_pool = |s: &&std::sync::Arc<Value>| s["spec"]["pool"]["name"] == result["pool"];
        let devices = slices.iter().filter(of_pool).flat_map(|s| items(&s["spec"], "devices"));
        devices.into_iter().find(|d| d["name"] == result["device"])
    };
    let mut owners = Vec::new();
    for claim in cluster.server.list(&RESOURCE_CLAIM) {
        let name = text(&claim["metadata"], "name");
        for result in items(&claim["status"]["allocation"]["devices"], "results") {
            let Some(device) = device(result) else { continue };
            let request = text(result, "request").split('/').next().unwrap_or("");
            let users: Vec<String> = pods.iter().flat_map(|pod| users(pod, name, request)).collect();
            let attributes = &device["attributes"];
            owners.push(Owner {
                gpu: text(&attributes["parentUUID"], "string").to_owned(),
                profile: text(&attributes["profile"], "string").to_owned(),
                start: attributes["placementStart"]["int"]
                    .as_u64()
                    .and_then(|n| n.try_into().ok())
                    .unwrap_or(0),
                text: format!("{}  (claim {name}, request {})", users.join(" + "), text(result, "request")),
            });
        }
    }
    owners
}

/// `pod/container` of every container that uses a request of a claim.
fn users(pod: &Value, claim: &str, request: &str) -> Vec<String> {
    let of_request = |mapping: &&Value| text(mapping, "requestName") == request;
    if extended_claim_name(pod) == Some(claim) {
        let mappings = items(&pod["status"]["extendedResourceClaimStatus"], "requestMappings").iter();
        let user = |it: &Value| format!("{}/{}", text(&pod["metadata"], "name"), text(it, "containerName"));
        return mappings.filter(of_request).map(user).collect();
    }
    let entries = items(&pod["spec"], "resourceClaims");
    let entry = entries.iter().find(|entry| claim_name(pod, entry).as_deref() == Some(claim));
    let Some(entry) = entry else { return Vec::new() };
    let uses = |container: &&Value| {
        items(&container["resources"], "claims").iter().any(|c| {
            c["name"] == entry["name"] && (text(c, "request").is_empty() || text(c, "request") == request)
        })
    };
    let containers = items(&pod["spec"], "containers").iter().filter(uses);
    containers.map(|c| format!("{}/{}", text(&pod["metadata"], "name"), text(c, "name"))).collect()
}

/// The picture of all GPUs.
pub(crate) fn picture(cluster: &Cluster) -> anyhow::Result<String> {
    let owners = owners(cluster);
    let gpus = cluster.hardware.snapshot()?.gpus;
    Ok(gpus.iter().map(|gpu| map::draw(gpu, &owners)).collect::<Vec<_>>().join("\n"))
}

/// MIG instances on the hardware now.
pub(crate) fn instances(cluster: &Cluster) -> anyhow::Result<usize> {
    Ok(cluster.hardware.snapshot()?.gpus.iter().map(|gpu| gpu.gpu_instances.len()).sum())
}
