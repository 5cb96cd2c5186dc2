//! How long `kubectl mig explain` and `kubectl mig get` take on a large cluster, and how much memory: 1000 nodes with 8 H100 each and
//! 20,000 claims. The slices are those that the driver publishes, of full size. They are made beforehand and are in the memory, not in
//! the time, which is from the moment when the lists have arrived to the printed text. Nothing fails because a machine is slow.
//!
//! `cargo bench -p kubectl-mig --bench fleet [-- NODES]`

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

#[allow(dead_code, reason = "the other benchmarks use the rest")]
mod spread;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::jiff::Timestamp;
use kubectl_mig::cluster::Snapshot;
use kubectl_mig::explain::{self, Subject, explain};
use kubectl_mig::get::{Style, What, document, fleet, table};
use kubectl_mig::gpu;
use kubectl_mig::template::{NodeTemplate, TemplateArgs};
use serde_json::{Value, json};

use spread::{Samples, Table};

const NODES: usize = 1000;
/// GPUs of a node.
const GPUS: usize = 8;
/// Measurements of each kind.
const ROUNDS: usize = 5;
const DRIVER: &str = "mig.dra-driver.dev";
/// What is held of each GPU in turn: 20 devices of 8 GPUs. Of the first is slice 1 free, of the second are 6 and 7.
const HELD: [&[&str]; 2] = [&["3g-40gb-4", "2g-20gb-2", "1g-10gb-0"], &["4g-40gb-0", "2g-20gb-4"]];
/// What is asked for: name, profiles of its requests, and whether they are to be of one GPU.
const ASKED: [(&str, &[&str], bool); 6] = [
    ("fits", &["1g.10gb"], false),
    ("all taken", &["7g.80gb"], false),
    ("no such profile", &["1g.5gb"], false),
    ("fragmented", &["2g.20gb"], false),
    ("more than a node has", &["1g.10gb"; 12], false),
    ("not on one GPU", &["1g.10gb", "1g.10gb"], true),
];

fn main() -> anyhow::Result<()> {
    // `cargo test --all-targets` runs benchmarks, too, without this argument.
    if !std::env::args().any(|it| it == "--bench") {
        println!("nothing was measured: run it with `cargo bench`");
        return Ok(());
    }
    let nodes: usize = std::env::args().find_map(|it| it.parse().ok()).unwrap_or(NODES);
    let mut shown = Table::default();
    get(nodes, &mut shown)?;
    explanations(nodes, &mut shown)?;
    print!("{}", shown.render());
    Ok(())
}

fn get(nodes: usize, shown: &mut Table) -> anyhow::Result<()> {
    // As the command reads them.
    let snapshot = cluster(nodes, gpu::trim)?;
    let style = Style { is_wide: false, is_colored: false, now: Timestamp::now() };
    for (name, what) in [("gpus", What::Gpus), ("nodes", What::Nodes), ("claims", What::Claims)] {
        for is_json in [false, true] {
            let figure = format!("get {name}{}", if is_json { " -o json" } else { "" });
            measure(shown, &figure, 2.0, || {
                let fleet = fleet(&snapshot)?;
                ensure!(fleet.gpus.len() == GPUS * nodes, "all GPUs");
                ensure!(fleet.claims.len() == snapshot.claims.len(), "all claims");
                Ok(if is_json { document(&fleet, what, false) } else { table(&fleet, what, &style) })
            })?;
        }
    }
    Ok(())
}

fn explanations(nodes: usize, shown: &mut Table) -> anyhow::Result<()> {
    let mut snapshot = cluster(nodes, |_| ())?;
    for (name, profiles, is_one_gpu) in ASKED {
        snapshot.claims.push(asked(profiles, is_one_gpu)?);
        let subject = Subject::Claim { namespace: "team".into(), name: "asked".into() };
        let mut sentence = String::new();
        measure(shown, &format!("explain, {name}"), 5.0, || {
            let answer = explain(&snapshot, &subject);
            let text = explain::text::text(&answer, Some(Timestamp::now()));
            sentence = answer.sentence;
            Ok(text)
        })?;
        println!("{name}: {sentence}");
        snapshot.claims.pop();
    }
    Ok(())
}

/// Three rows: time on the clock, time of all threads on cores, and the largest amount of memory.
fn measure(
    shown: &mut Table,
    figure: &str,
    most_seconds: f64,
    mut run: impl FnMut() -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    let (mut clock, mut on_cores, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        fs::write("/proc/self/clear_refs", "5").context("cannot reset the peak of the memory")?;
        let (start, before) = (Instant::now(), time_on_cores()?);
        let text = run()?;
        clock.push(start.elapsed());
        on_cores.push(time_on_cores()?.saturating_sub(before));
        ensure!(!text.is_empty(), "{figure} prints something");
        drop(text);
        memory.push(peak_memory()?);
    }
    let clock = Samples::milliseconds(clock);
    // Other programs have the cores, too: the best measurement is the nearest to this program's own time.
    let is_met = clock.min() <= 1000.0 * most_seconds;
    shown.judged(figure, clock.cells("ms"), &format!("at best {most_seconds} s"), is_met);
    shown.shown("on cores", Samples::milliseconds(on_cores).cells("ms"));
    let memory = Samples::new(memory);
    let is_met = memory.max() < 500.0;
    shown.judged("  memory", memory.cells("MB"), "below 500 MB", is_met);
    Ok(())
}

/// What all threads of this process have had of cores, those that have ended, too: proc(5), fields utime and stime of stat.
fn time_on_cores() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name of the program, in brackets, may have spaces.
    let (_, fields) = stat.rsplit_once(')').context("/proc/self/stat has no name")?;
    let ticks: Vec<u64> =
        fields.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    // A tick is 10 ms on every architecture that Linux has GPUs on.
    Ok(Duration::from_millis(10 * ticks.iter().sum::<u64>()))
}

/// What the process had in memory at most since the peak was reset, in MB.
fn peak_memory() -> anyhow::Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|it| it.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: f64 = line.split_whitespace().next().context("no size")?.parse()?;
    Ok(kib * 1024.0 / 1e6)
}

/// The cluster. `keep` removes what the command doesn't keep of slices.
fn cluster(nodes: usize, keep: fn(&mut ResourceSlice)) -> anyhow::Result<Snapshot> {
    let models = mig_models::parse_gpus(&format!("{GPUS}xH100-80GB")).map_err(anyhow::Error::msg)?;
    let template = NodeTemplate::new(&models, &TemplateArgs::default(), true)?;
    let placeholder = "gpu-node-0000.cluster.example.internal";
    let slices = template.slices(DRIVER, placeholder, Some("1e9a3f0c-6d5b-4f0e-9c1d-2b7a8f000000"));
    let texts: Vec<String> = slices.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    let mut snapshot = Snapshot { version: Some((1, 36)), classes: classes()?, ..Snapshot::default() };
    let mut bytes = 0;
    for number in 0..nodes {
        let name = format!("gpu-node-{number:04}.cluster.example.internal");
        for text in &texts {
            // No two GPUs have the same UUID.
            let text = text.replace(placeholder, &name).replace("GPU-00000000", &format!("GPU-{number:08x}"));
            bytes += text.len();
            let mut slice: ResourceSlice = serde_json::from_str(&text)?;
            keep(&mut slice);
            snapshot.slices.push(&slice);
        }
        for gpu in 0..GPUS {
            for device in HELD[gpu % HELD.len()] {
                let set = slices.iter().flat_map(|it| it.spec.shared_counters.iter().flatten()).nth(gpu);
                let device = format!("{}-mig-{device}", set.context("a counter set for each GPU")?.name);
                snapshot.claims.push(held(&name, &device, snapshot.claims.len())?);
            }
        }
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "nvidia.com/gpu.present": "true"}},
            "status": {"allocatable": {"cpu": "96"}, "conditions": [{"type": "Ready", "status": "True"}]},
        }))?;
        snapshot.nodes.push(node);
    }
    println!(
        "{nodes} nodes, {} slices of {} MB, {} claims; {:.0} MB of memory with these lists alone",
        snapshot.slices.len(),
        bytes / 1_000_000,
        snapshot.claims.len(),
        peak_memory()?
    );
    Ok(snapshot)
}

fn classes() -> anyhow::Result<Vec<DeviceClass>> {
    let class = |profile: &str| {
        let expression = format!(
            "device.driver == \"{DRIVER}\" && device.attributes[\"{DRIVER}\"].profile == \"{profile}\""
        );
        let class = json!({"metadata": {"name": format!("mig-{profile}")},
            "spec": {"selectors": [{"cel": {"expression": expression}}]}});
        Ok(serde_json::from_value(class)?)
    };
    ["1g.5gb", "1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"]
        .map(class)
        .into_iter()
        .collect()
}

/// A claim that holds a device, as Kubernetes makes it for a pod.
fn held(node: &str, device: &str, number: usize) -> anyhow::Result<ResourceClaim> {
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
            "allocation": {
                "devices": {"results": [
                    {"request": "gpu", "driver": DRIVER, "pool": format!("{node}/{DRIVER}"), "device": device}]},
                "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [
                    {"key": "metadata.name", "operator": "In", "values": [node]}]}]},
            },
            "reservedFor": [{"resource": "pods", "name": pod, "uid": format!("{number:08x}-pod")}],
        },
    }))?)
}

fn asked(profiles: &[&str], is_one_gpu: bool) -> anyhow::Result<ResourceClaim> {
    let requests: Vec<Value> = profiles
        .iter()
        .enumerate()
        .map(|(index, it)| json!({"name": format!("r{index}"), "exactly": {"deviceClassName": format!("mig-{it}")}}))
        .collect();
    let mut claim = json!({"metadata": {"name": "asked", "namespace": "team"}, "spec": {"devices": {"requests": requests}}});
    if is_one_gpu {
        claim["spec"]["devices"]["constraints"] = json!([{"matchAttribute": format!("{DRIVER}/parentUUID")}]);
    }
    Ok(serde_json::from_value(claim)?)
}
