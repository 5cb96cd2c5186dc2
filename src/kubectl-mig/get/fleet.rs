//! From the objects of a cluster to rows. Pure.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZero;
use std::thread;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::ResourceSlice;
use mig_model::drivers;

use super::claims;
use super::gpus::{Claims, of_node};
use super::report::{Fleet, GpuRow, Layout, NodeRow, Problem, Reason, State, largest, total};
use crate::cluster::{SliceError, Slices, Snapshot};

/// The labels with which a layout is chosen and reported.
const CONFIG_LABEL: &str = "nvidia.com/mig.config";
const STATE_LABEL: &str = "nvidia.com/mig.config.state";

/// A node with what its slices say.
struct Seen {
    row: NodeRow,
    gpus: Vec<GpuRow>,
}

/// Nodes, GPUs and claims. GPUs in slices that name no node are left out.
///
/// # Errors
/// [`SliceError`].
pub fn fleet(snapshot: &Snapshot) -> Result<Fleet, SliceError> {
    let claims = Claims::new(&snapshot.claims);
    let objects: HashMap<&str, &Node> =
        snapshot.nodes.iter().filter_map(|it| Some((it.metadata.name.as_deref()?, it))).collect();
    let names = snapshot.slices.nodes();
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let see = |name: &&str| seen(name, &snapshot.slices, objects.get(name).copied(), &claims);
    // Slices are text until they are needed, and parsing them is most of the work.
    let parts: Vec<Result<Vec<Option<Seen>>, SliceError>> = thread::scope(|scope| {
        let chunks = names.chunks(names.len().div_ceil(threads).max(1));
        let running: Vec<_> = chunks.map(|it| scope.spawn(|| it.iter().map(see).collect())).collect();
        // A panic of a thread goes on here.
        running.into_iter().map(|it| it.join().unwrap_or_else(|it| std::panic::resume_unwind(it))).collect()
    });
    let mut fleet = Fleet {
        drivers: snapshot.slices.drivers().into_iter().map(str::to_owned).collect(),
        unread: snapshot.unread.iter().map(Into::into).collect(),
        ..Fleet::default()
    };
    for part in parts {
        for Seen { row, gpus } in part?.into_iter().flatten() {
            fleet.nodes.push(row);
            fleet.gpus.extend(gpus);
        }
    }
    let drivers: BTreeSet<&str> =
        fleet.gpus.iter().map(|it| it.driver.as_str()).chain(drivers::KNOWN).collect();
    fleet.claims = claims::rows(&snapshot.claims, &fleet.gpus, &drivers);
    Ok(fleet)
}

/// `None` for a node without a GPU driver.
fn seen(
    name: &str,
    slices: &Slices,
    object: Option<&Node>,
    claims: &Claims<'_>,
) -> Result<Option<Seen>, SliceError> {
    let slices = slices.naming(name)?;
    let found = of_node(name, &slices, claims);
    let known = slices.iter().map(|it: &ResourceSlice| it.spec.driver.as_str());
    let mut drivers: BTreeSet<&str> = known.filter(|it| drivers::KNOWN.contains(it)).collect();
    drivers.extend(found.rows.iter().map(|it| it.driver.as_str()));
    if drivers.is_empty() {
        return Ok(None);
    }
    let layout = object.and_then(layout);
    let mut problems = found.problems;
    if found.rows.is_empty() {
        let message = "its driver publishes no GPU".to_owned();
        problems.push(Problem { gpu: None, reason: Reason::NoGpus, message });
    }
    if let Some(Layout { config, state: Some(state) }) = &layout
        && state == "failed"
    {
        let config = config.as_deref().unwrap_or_default();
        let message = format!("layout {config} failed; `kubectl describe node {name}` shows why");
        problems.push(Problem { gpu: None, reason: Reason::LayoutFailed, message });
    }
    let of_gpus = found.rows.iter().flat_map(|it| &it.problems).filter(|it| it.gpu.is_some());
    problems.extend(of_gpus.cloned());
    let free = total(found.rows.iter().flat_map(|it| &it.free));
    let row = NodeRow {
        name: name.to_owned(),
        ready: object.and_then(is_ready),
        unschedulable: object.map(is_cordoned),
        layout,
        products: unique(found.rows.iter().filter_map(|it| it.product.as_deref())),
        drivers: drivers.into_iter().map(str::to_owned).collect(),
        gpus: found.rows.len(),
        idle_gpus: found.rows.iter().filter(|it| is_idle(it)).count(),
        used: used(&found.rows),
        held_devices: found.rows.iter().map(|it| it.holders.len()).sum(),
        largest: largest(&free),
        free,
        problems,
    };
    Ok(Some(Seen { row, gpus: found.rows }))
}

fn unique<'t>(texts: impl Iterator<Item = &'t str>) -> Vec<String> {
    texts.collect::<BTreeSet<_>>().into_iter().map(str::to_owned).collect()
}

fn layout(node: &Node) -> Option<Layout> {
    let labels = node.metadata.labels.as_ref()?;
    let (config, state) = (labels.get(CONFIG_LABEL), labels.get(STATE_LABEL));
    (config.is_some() || state.is_some()).then(|| Layout { config: config.cloned(), state: state.cloned() })
}

fn is_ready(node: &Node) -> Option<bool> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    Some(conditions.iter().find(|it| it.type_ == "Ready")?.status == "True")
}

fn is_cordoned(node: &Node) -> bool {
    node.spec.as_ref().and_then(|it| it.unschedulable) == Some(true)
}

/// Whether no claim holds anything of it, as far as it is known of which GPU a device was.
fn is_idle(gpu: &GpuRow) -> bool {
    let is_held = |it: &Problem| it.reason == Reason::DeviceNotPublished && it.gpu.is_some();
    gpu.holders.is_empty() && !gpu.problems.iter().any(is_held)
}

#[expect(clippy::cast_precision_loss, reason = "a share of some hundred parts")]
fn used(gpus: &[GpuRow]) -> f64 {
    let of = |gpu: &GpuRow| {
        let held = gpu.parts.iter().filter(|it| it.state == State::Held).count();
        held as f64 / gpu.parts.len().max(1) as f64
    };
    gpus.iter().map(of).sum::<f64>() / gpus.len().max(1) as f64
}
