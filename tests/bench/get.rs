//! `kubectl mig get` on a large cluster: 1,000 nodes with 8 H100s each and 20,000 claims. Measures the time from the moment when the
//! lists have arrived to the printed text, and the memory of the process. Nothing fails because a machine is slow.
//!
//! `cargo bench -p kubectl-mig --bench get`

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

#[allow(dead_code, reason = "the other benchmarks use the rest")]
mod spread;

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{Device, ResourceClaim, ResourceSlice};
use k8s_openapi::jiff::Timestamp;
use kubectl_mig::cluster::Snapshot;
use kubectl_mig::get::{Fleet, Style, What, document, fleet, table};
use serde_json::{Value, json};

use spread::{Samples, Table};

const NODES: usize = 1000;
const CLAIMS: usize = 20_000;
/// Measurements of each kind.
const ROUNDS: usize = 5;
const DRIVER: &str = "mig.dra-driver.dev";
/// What two H100s publish, without the attributes and capacities that the allocator does not need.
const SHAPES: &str = include_str!("../../src/allocator/examples/agreement/shapes.json");
/// What is held of each GPU in turn: 20 devices of 8 GPUs.
const HELD: [&[&str]; 2] = [&["3g-40gb-4", "2g-20gb-2", "1g-10gb-0"], &["4g-40gb-0", "2g-20gb-4"]];

type Print = fn(&Fleet, What, &Style) -> String;

fn main() -> anyhow::Result<()> {
    // `cargo test --all-targets` runs benchmarks, too, without this argument.
    if !std::env::args().any(|it| it == "--bench") {
        println!("nothing was measured: run it with `cargo bench`");
        return Ok(());
    }
    let (snapshot, bytes) = snapshot()?;
    println!(
        "{} slices of {} MB, {} claims",
        snapshot.slices.len(),
        bytes / 1_000_000,
        snapshot.claims.len()
    );
    let before = peak_memory();
    let mut shown = Table::default();
    let style = Style { is_wide: false, is_coloured: false, now: Timestamp::now() };
    for (name, what) in [("gpus", What::Gpus), ("nodes", What::Nodes), ("claims", What::Claims)] {
        let (mut tables, mut documents) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            for (times, print) in
                [(&mut tables, table as Print), (&mut documents, |it, what, _| document(it, what, false))]
            {
                let start = Instant::now();
                let fleet = fleet(&snapshot)?;
                let text: String = print(&fleet, what, &style);
                times.push(start.elapsed());
                ensure!(fleet.gpus.len() == 8 * NODES && fleet.claims.len() == CLAIMS, "the whole cluster");
                ensure!(NODES <= text.lines().count(), "all of it");
            }
        }
        judge(&mut shown, &format!("get {name}"), tables);
        judge(&mut shown, &format!("get {name} -o json"), documents);
    }
    if let (Some(before), Some(after)) = (before, peak_memory()) {
        let cells = (format!("{after:.0} MiB"), format!("{before:.0} MiB with the lists alone"));
        shown.judged("memory", cells, "below 500 MiB", after < 500.0);
    }
    print!("{}", shown.render());
    Ok(())
}

fn judge(shown: &mut Table, figure: &str, times: Vec<Duration>) {
    let samples = Samples::milliseconds(times);
    shown.judged(figure, samples.cells("ms"), "below 2 s", samples.max() < 2000.0);
}

/// What the process had in memory at most, in MiB; nothing where the kernel does not tell.
fn peak_memory() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|it| it.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}

/// The cluster, and the bytes of its slices as JSON.
fn snapshot() -> anyhow::Result<(Snapshot, usize)> {
    let shapes: Value = serde_json::from_str(SHAPES)?;
    let two: Vec<ResourceSlice> = serde_json::from_value(shapes["2xH100-80GB"].clone())?;
    let mut snapshot = Snapshot { version: Some((1, 36)), ..Snapshot::default() };
    let mut bytes = 0;
    for number in 0..NODES {
        let name = format!("gpu-node-{number:04}.cluster.example.internal");
        for slice in eight(&two, &name, number)? {
            bytes += serde_json::to_vec(&slice)?.len();
            snapshot.slices.push(&slice);
        }
        for gpu in 0..8 {
            for device in HELD[gpu % HELD.len()] {
                let device = format!("{}-mig-{device}", gpu_name(gpu));
                snapshot.claims.push(claim(&name, &device, snapshot.claims.len())?);
            }
        }
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "nvidia.com/gpu.present": "true"}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        }))?;
        snapshot.nodes.push(node);
    }
    Ok((snapshot, bytes))
}

fn gpu_name(gpu: usize) -> String {
    format!("gpu-0000-{:02x}-00", 0x1a + gpu)
}

/// The slices of a node with eight GPUs: those of two, four times.
fn eight(two: &[ResourceSlice], node: &str, number: usize) -> anyhow::Result<Vec<ResourceSlice>> {
    let mut sets = Vec::new();
    let mut contents = Vec::new();
    for pair in 0..4 {
        let rename = |name: &str| {
            let own = name.strip_prefix("gpu-0000-1a-00").map(|rest| (2 * pair, rest));
            let (gpu, rest) = own.or_else(|| Some((2 * pair + 1, name.strip_prefix("gpu-0000-1b-00")?)))?;
            Some((gpu, format!("{}{rest}", gpu_name(gpu))))
        };
        for slice in two {
            for set in slice.spec.shared_counters.iter().flatten() {
                let mut set = set.clone();
                set.name = rename(&set.name).context("a counter set")?.1;
                sets.push(set);
            }
            let mut devices = slice.spec.devices.clone().unwrap_or_default();
            for device in &mut devices {
                let (gpu, name) = rename(&device.name).context("a device")?;
                device.name = name;
                for consumed in device.consumes_counters.iter_mut().flatten() {
                    consumed.counter_set = gpu_name(gpu);
                }
                complete(device, gpu, number)?;
            }
            contents.extend(Some(devices).filter(|it| !it.is_empty()));
        }
    }
    let mut slices = vec![json!({"spec": {"sharedCounters": sets}})];
    slices.extend(contents.into_iter().map(|it| json!({"spec": {"devices": it}})));
    let count = slices.len();
    for (index, slice) in slices.iter_mut().enumerate() {
        slice["metadata"] = json!({"name": format!("{index:05x}-{DRIVER}-{node}")});
        slice["spec"]["driver"] = DRIVER.into();
        slice["spec"]["nodeName"] = node.into();
        let pool = json!({"name": format!("{node}/{DRIVER}"), "generation": 1, "resourceSliceCount": count});
        slice["spec"]["pool"] = pool;
    }
    Ok(serde_json::from_value(slices.into())?)
}

/// Adds what the driver publishes besides.
fn complete(device: &mut Device, gpu: usize, number: usize) -> anyhow::Result<()> {
    let attributes = device.attributes.get_or_insert_default();
    let own = json!({
        "parentUUID": {"string": format!("GPU-bfe05d38-c146-5f7c-{gpu:04x}-{number:012x}")},
        "uuid": {"string": device.name}, "brand": {"string": "Nvidia"}, "architecture": {"string": "Hopper"},
        "sharing": {"string": "exclusive"}, "cudaComputeCapability": {"version": "9.0.0"},
        "cudaDriverVersion": {"version": "13.0.0"}, "memorySlices": {"int": 1}, "placementStart": {"int": 0},
        "mediaExtensions": {"bool": false}, "resource.kubernetes.io/pcieRoot": {"string": "pci0000:19"},
        "resource.kubernetes.io/pciBusID": {"string": format!("0000:{:02x}:00.0", 0x1a + gpu)},
        "resource.kubernetes.io/numaNode": {"int": gpu / 4},
    });
    for (key, value) in own.as_object().into_iter().flatten() {
        attributes.insert(key.clone(), serde_json::from_value(value.clone())?);
    }
    let capacity = device.capacity.get_or_insert_default();
    for key in ["copyEngines", "decoders", "encoders", "jpegEngines", "ofaEngines"] {
        capacity.insert(key.to_owned(), serde_json::from_value(json!({"value": "1"}))?);
    }
    Ok(())
}

/// A claim that holds a device, as Kubernetes makes it for a pod.
fn claim(node: &str, device: &str, number: usize) -> anyhow::Result<ResourceClaim> {
    let pod = format!("worker-{number:05}");
    Ok(serde_json::from_value(json!({
        "metadata": {
            "namespace": format!("team-{}", number % 50), "name": format!("{pod}-gpu-x2x9q"), "uid": format!("{number:08x}-claim"),
            "creationTimestamp": "2026-11-29T08:00:00Z",
            "annotations": {"resource.kubernetes.io/pod-claim-name": "gpu"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": format!("{number:08x}-pod")}],
        },
        "spec": {"devices": {"requests": [{"name": "gpu", "exactly": {
            "deviceClassName": "mig-1g.10gb", "allocationMode": "ExactCount", "count": 1}}]}},
        "status": {
            "allocation": {"devices": {"results": [
                {"request": "gpu", "driver": DRIVER, "pool": format!("{node}/{DRIVER}"), "device": device}]}},
            "reservedFor": [{"resource": "pods", "name": pod, "uid": format!("{number:08x}-pod")}],
        },
    }))?)
}
