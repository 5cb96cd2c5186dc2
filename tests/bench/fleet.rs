//! How long `kubectl mig` takes on a large cluster, and how much memory: 1000 nodes with 8 H100 each, 20,000 claims.
//!
//! `cargo bench -p kubectl-mig --bench fleet [-- NODES CLAIMS]`. The lists are made beforehand and are not in the time; they are in the
//! memory.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program for developers")]

use std::time::Instant;

use k8s_openapi::api::resource::v1::ResourceSlice;
use kubectl_mig::cluster::Snapshot;
use kubectl_mig::explain::{Subject, explain};
use serde_json::{Map, Value, json};

const DRIVER: &str = "mig.dra-driver.dev";
/// Profiles of an H100: name, starts, memory slices, compute slices, memory in MiB.
const PROFILES: [(&str, &[usize], usize, usize, u64); 8] = [
    ("1g.10gb", &[6, 4, 5, 2, 3, 0, 1], 1, 1, 9_984),
    ("1g.10gb+me", &[6, 4, 5, 2, 3, 0, 1], 1, 1, 9_984),
    ("1g.20gb", &[6, 4, 2, 0], 2, 1, 20_096),
    ("2g.20gb", &[4, 2, 0], 2, 2, 20_096),
    ("3g.40gb", &[4, 0], 4, 3, 40_448),
    ("4g.40gb", &[0], 4, 4, 40_448),
    ("7g.80gb", &[0], 8, 7, 81_152),
    ("full", &[0], 8, 7, 81_559),
];

/// All that a driver says about a device.
fn device(
    node: &str,
    gpu: usize,
    profile: &str,
    start: usize,
    (size, compute, memory): (usize, usize, u64),
) -> Value {
    let kind = if profile == "full" { "gpu" } else { "mig" };
    let name = name(gpu, profile, start);
    let used: Map<String, Value> =
        (start..start + size).map(|it| (format!("memory-slice-{it}"), json!({"value": "1"}))).collect();
    let text = |it: &str| json!({"string": it});
    json!({"name": name, "attributes": {
        "type": text(kind), "profile": text(profile), "uuid": text(&name),
        "parentUUID": text(&format!("GPU-{node}-{gpu}-8e84962a-1180-5bb8")), "productName": text("NVIDIA H100 80GB HBM3"),
        "brand": text("Nvidia"), "architecture": text("Hopper"), "sharing": text("exclusive"),
        "cudaComputeCapability": {"version": "9.0.0"}, "driverVersion": {"version": "580.82.7"},
        "cudaDriverVersion": {"version": "13.0.0"}, "computeSlices": {"int": compute}, "memorySlices": {"int": size},
        "placementStart": {"int": start}, "mediaExtensions": {"bool": profile.contains('+')},
        "resource.kubernetes.io/pciBusID": text(&format!("0000:{:02x}:00.0", 0x1a + gpu)),
        "resource.kubernetes.io/pcieRoot": text("pci0000:19"), "resource.kubernetes.io/numaNode": {"int": gpu / 4}},
        "capacity": {"memory": {"value": format!("{memory}Mi")}, "multiprocessors": {"value": "16"},
            "copyEngines": {"value": "1"}, "decoders": {"value": "1"}, "encoders": {"value": "0"},
            "jpegEngines": {"value": "1"}, "ofaEngines": {"value": "0"}},
        "consumesCounters": [{"counterSet": set(gpu), "counters": used}]})
}

fn set(gpu: usize) -> String {
    format!("gpu-0000-{:02x}-00", 0x1a + gpu)
}

fn name(gpu: usize, profile: &str, start: usize) -> String {
    match profile {
        "full" => set(gpu),
        _ => format!("{}-mig-{}-{start}", set(gpu), profile.replace(['.', '+'], "-")),
    }
}

/// The counters, and a slice for every two GPUs.
fn slices(node: &str) -> Vec<Value> {
    let pool = json!({"name": format!("{node}/{DRIVER}"), "generation": 1, "resourceSliceCount": 5});
    let counters: Map<String, Value> =
        (0..8).map(|it| (format!("memory-slice-{it}"), json!({"value": "1"}))).collect();
    let sets: Vec<Value> = (0..8).map(|gpu| json!({"name": set(gpu), "counters": counters})).collect();
    let slice = |index: usize, field: &str, value: Vec<Value>| {
        let mut slice = json!({"metadata": {"name": format!("{index:05x}-{DRIVER}-{node}")},
            "spec": {"driver": DRIVER, "nodeName": node, "pool": pool}});
        slice["spec"][field] = value.into();
        slice
    };
    let devices = |gpu: usize| {
        PROFILES.iter().flat_map(move |(profile, starts, size, compute, memory)| {
            starts.iter().map(move |start| device(node, gpu, profile, *start, (*size, *compute, *memory)))
        })
    };
    let pairs =
        (0..4).map(|it| slice(it + 1, "devices", devices(2 * it).chain(devices(2 * it + 1)).collect()));
    std::iter::once(slice(0, "sharedCounters", sets)).chain(pairs).collect()
}

/// Claim and pod of a number: the claims go round the nodes, then round the GPUs, then to the next place.
fn taken(number: usize, nodes: usize) -> Value {
    let (node, gpu) = (number % nodes, number / nodes % 8);
    let start = [6, 3, 0, 5, 1, 4, 2][(number / nodes / 8).min(6)];
    let result = json!({"request": "mig", "driver": DRIVER, "pool": format!("node-{node}/{DRIVER}"),
        "device": name(gpu, "1g.10gb", start)});
    json!({"metadata": {"name": format!("claim-{number}"), "namespace": "team", "uid": format!("u-{number}"),
            "creationTimestamp": "2026-11-29T06:00:00Z"},
        "spec": {"devices": {"requests": [{"name": "mig", "exactly": {"deviceClassName": "mig-1g.10gb"}}]}},
        "status": {"allocation": {"devices": {"results": [result]}, "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [
                {"key": "metadata.name", "operator": "In", "values": [format!("node-{node}")]}]}]}},
            "reservedFor": [{"resource": "pods", "name": format!("pod-{number}"), "uid": format!("p-{number}")}]}})
}

fn cluster(nodes: usize, claims: usize) -> Snapshot {
    let mut snapshot = Snapshot { version: Some((1, 36)), ..Snapshot::default() };
    for node in 0..nodes {
        let name = format!("node-{node}");
        snapshot.nodes.push(
            serde_json::from_value(
                json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": "96"}}}),
            )
            .unwrap(),
        );
        for slice in slices(&name) {
            let slice: ResourceSlice = serde_json::from_value(slice).unwrap();
            snapshot.slices.push(&slice);
        }
    }
    snapshot.claims = (0..claims).map(|it| serde_json::from_value(taken(it, nodes)).unwrap()).collect();
    for profile in ["1g.5gb", "1g.10gb", "7g.80gb"] {
        let expression = format!(
            "device.driver == \"{DRIVER}\" && device.attributes[\"{DRIVER}\"].profile == \"{profile}\""
        );
        snapshot.classes.push(
            serde_json::from_value(json!({"metadata": {"name": format!("mig-{profile}")},
                "spec": {"selectors": [{"cel": {"expression": expression}}]}}))
            .unwrap(),
        );
    }
    snapshot
}

/// The largest amount of memory that this process has had, in MB.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|it| it.strip_prefix("VmHWM:"));
    line.and_then(|it| it.trim().trim_end_matches(" kB").parse::<usize>().ok()).unwrap_or(0) / 1000
}

/// Seconds that this process has used of all processors: on a busy machine the better measure.
fn processor() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    // User and system time, in ticks of 10 ms.
    fields.skip(11).take(2).filter_map(|it| it.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn main() {
    let mut numbers = std::env::args().filter_map(|it| it.parse().ok());
    let (nodes, claims) = (numbers.next().unwrap_or(1000), numbers.next().unwrap_or(20_000));
    let mut snapshot = cluster(nodes, claims);
    println!("{nodes} nodes, {} slices, {claims} claims: {} MB", snapshot.slices.len(), peak());
    for profile in ["1g.10gb", "7g.80gb", "1g.5gb"] {
        let claim = json!({"metadata": {"name": profile, "namespace": "team"},
            "spec": {"devices": {"requests": [{"name": "mig", "exactly": {"deviceClassName": format!("mig-{profile}")}}]}}});
        snapshot.claims.push(serde_json::from_value(claim).unwrap());
        let subject = Subject::Claim { namespace: "team".into(), name: profile.into() };
        let (begin, used) = (Instant::now(), processor());
        let answer = explain(&snapshot, &subject);
        let (time, used) = (begin.elapsed(), processor() - used);
        println!("explain, {profile}: {time:.2?}, {used:.2} s of processors, peak {} MB", peak());
        println!("    {}", answer.sentence);
        snapshot.claims.pop();
    }
}
