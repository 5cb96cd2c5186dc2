//! `kubectl mig plan`: whether the pods of manifests get their devices, where, and what is missing.
//!
//! ```text
//! manifests -> workload \
//! cluster, file or template -> stock -> place -> map, needed, cost -> report, json
//! ```
//!
//! Knows devices and what keeps pods off nodes. What the scheduler knows besides, such as CPU, memory, volumes and spreading, is
//! left out.

mod args;
mod cost;
mod engine;
mod error;
mod gates;
mod invalid;
mod json;
mod map;
mod needed;
mod place;
mod report;
mod stock;
mod suggest;
mod summary;
#[cfg(test)]
mod tests;
mod why;
mod workload;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;

use dra_allocator::Cluster;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceClaimTemplate};
use mig_model::drivers;
use mig_models::Model;

pub use self::args::{PlanArgs, PlanFormat, Scoring, Suggest};
use self::cost::Cost;
use self::engine::{Engine, Outcome};
pub use self::error::PlanError;
pub use self::gates::GateFlags;
use self::map::MappedGpu;
use self::needed::{Needed, NotNeeded};
use self::place::Unplaced;
pub(crate) use self::stock::shipped_classes;
use self::stock::{Kind, Stock, named};
use self::summary::Plan;
use self::workload::{Workload, Workloads};
use crate::cluster::{self, ClusterError, Connection, Gates, Kinds, Snapshot};
use crate::manifest::{self, Catalog, Object};
use crate::template::{self, Gpus, NodeTemplate, TemplateError};
use crate::text::{count, printable_lines};

/// Name of the node in the slices of nodes that do not exist.
const NODE: &str = "node";

/// Prints the plan. Exit status: 0 all fits, 1 something does not, 2 for what cannot be used.
#[must_use]
pub fn run(args: &PlanArgs) -> ExitCode {
    let mut models: Vec<Model> = Vec::new();
    for model in args.gpus.iter().flat_map(|it| &it.models) {
        if !models.contains(model) {
            models.push(*model);
        }
    }
    let models = if args.gpus.is_empty() { None } else { Some(models) };
    for warning in models.iter().flat_map(|it| template::warnings(it, &args.template)) {
        // A closed standard error cannot be reported.
        let _ = writeln!(io::stderr(), "kubectl mig plan: warning: {warning}");
    }
    match plan(args) {
        Ok((text, fits)) => {
            let mut out = io::stdout().lock();
            match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
                // A reader that has closed the pipe has what it wanted.
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    refuse(&format!("cannot write to standard output: {error}"))
                }
                _ => ExitCode::from(u8::from(!fits)),
            }
        }
        Err(error) => refuse(&error.to_string()),
    }
}

fn refuse(message: &str) -> ExitCode {
    // A closed standard error cannot be reported.
    let _ = writeln!(io::stderr(), "kubectl mig plan: {}", printable_lines(message));
    ExitCode::from(2)
}

/// What is printed, and whether all pods fit.
///
/// # Errors
/// [`PlanError`].
pub fn plan(args: &PlanArgs) -> Result<(String, bool), PlanError> {
    if args.filenames.iter().chain(&args.from).filter(|it| *it == "-").count() > 1 {
        return Err(PlanError::StandardInput);
    }
    let objects = manifest::read(&args.filenames, args.recursive)?;
    let source = Source::of(args)?;
    let namespace = source.namespace.clone();
    let classes = classes(&source.classes, &objects);
    let (claims, templates) = requests(&source, &objects);
    let catalog = Catalog::new(&claims, &templates, &classes, &namespace);
    let workloads = Workloads::of(&objects, &catalog, &namespace)?;
    let mut notes = workloads.notes.clone();
    if !workloads.need_devices() {
        let suggestion = if args.suggest.is_some() { ", so there is nothing to suggest" } else { "" };
        let left_out: Vec<String> = notes.iter().map(|it| format!("; {it}")).collect();
        return Err(PlanError::NoDemand(format!("{suggestion}{}", left_out.concat())));
    }
    let request =
        Request { args, source: &source, catalog: &catalog, classes: &classes, workloads: &workloads.all };
    if args.suggest.is_some() {
        return suggest::layout(&request);
    }
    let with_any = with_any(&classes);
    let engine = request.engine(&source.stock.kinds, &with_any);
    let outcome = engine.place(&source.stock, &workloads.all, Unplaced::Explain);
    let gpus = map::map(&engine, &outcome, &workloads.all);
    let needed = needed(&request, &engine, &outcome, &gpus, &with_any)?;
    let cost = args.price.map(|price| Cost::of(price, &gpus, &outcome, workloads.all.len()));
    let fits = outcome.fits();
    notes.extend(source.notes.iter().cloned());
    if 0 < workloads.without_devices {
        let pods = count(workloads.without_devices, "pod");
        let need =
            if workloads.without_devices == 1 { "needs no device and is" } else { "need no device and are" };
        notes.push(format!("{pods} of the manifests {need} left out"));
    }
    notes.push("CPU, memory, volumes, quotas and spreading are not looked at".to_owned());
    let plan = Plan { workloads: &workloads.all, outcome, gpus, needed, cost, notes };
    let text = match args.output {
        PlanFormat::Text => report::text(&plan),
        PlanFormat::Json => json::text(&plan).map_err(|error| PlanError::Text(error.to_string()))?,
    };
    Ok((text, fits))
}

/// What a plan is made of.
#[derive(Clone, Copy)]
struct Request<'a> {
    args: &'a PlanArgs,
    source: &'a Source,
    catalog: &'a Catalog<'a>,
    classes: &'a [DeviceClass],
    workloads: &'a [Workload],
}

impl<'a> Request<'a> {
    /// An engine for these kinds of nodes.
    fn engine<'e>(&'e self, kinds: &'e [Kind], classes: &'e [DeviceClass]) -> Engine<'e> {
        let gates = self.source.gates;
        let cluster = |kind: &'e Kind| Cluster::new(&kind.slices, classes, gates.features);
        let clusters = kinds.iter().map(cluster).collect();
        Engine::new(kinds, clusters, self.catalog, gates, self.args.scoring)
    }
}

/// Classes with one that selects every device.
fn with_any(classes: &[DeviceClass]) -> Vec<DeviceClass> {
    classes.iter().cloned().chain([map::any_class()]).collect()
}

/// What a plan starts from.
#[derive(Debug)]
struct Source {
    stock: Stock,
    snapshot: Snapshot,
    classes: Vec<DeviceClass>,
    gates: Gates,
    namespace: String,
    notes: Vec<String>,
    /// GPUs of each kind of node that does not exist.
    shapes: Vec<Gpus>,
}

impl Source {
    fn of(args: &PlanArgs) -> Result<Self, PlanError> {
        let flags = args.gates.clone().unwrap_or_default();
        let namespace = args.cluster.namespace.clone().unwrap_or_else(|| "default".to_owned());
        if !args.gpus.is_empty() {
            let is_stock = args.template.layout.is_some();
            let gates = flags.change(if is_stock { Gates::STOCK } else { Gates::ALL });
            let slices = |gpus: &Gpus| {
                let keeps_counters = gates.features.partitionable_devices;
                let template = NodeTemplate::new(&gpus.models, &args.template, keeps_counters)?;
                Ok((NODE.to_owned(), template.slices(drivers::DEFAULT, NODE, None)))
            };
            let kinds = args.gpus.iter().map(slices).collect::<Result<Vec<_>, TemplateError>>()?;
            return Ok(Self {
                stock: Stock::empty(kinds, args.nodes),
                snapshot: Snapshot::default(),
                classes: stock::shipped_classes(false),
                gates,
                namespace,
                notes: template_notes(&args.gpus),
                shapes: args.gpus.clone(),
            });
        }
        if args.from.is_empty() {
            return Self::of_cluster(args, &flags);
        }
        let snapshot: Snapshot = manifest::read(&args.from, args.recursive)?.into_iter().collect();
        let stock = Stock::of(&snapshot)?;
        if stock.sites.is_empty() {
            return Err(no_devices("the file of --from", &snapshot));
        }
        let has_nvidia = snapshot.slices.drivers().contains(&drivers::NVIDIA);
        let mut classes = stock::shipped_classes(has_nvidia);
        classes.extend(snapshot.classes.iter().cloned());
        let mut notes = stock.notes();
        if snapshot.nodes.is_empty() {
            notes.push(
                "the file of --from has no Nodes, so node selectors, taints and cordons are not looked at"
                    .to_owned(),
            );
        }
        let gates = flags.change(Gates::ALL);
        Ok(Self { stock, classes, gates, namespace, notes, shapes: Vec::new(), snapshot })
    }

    fn of_cluster(args: &PlanArgs, flags: &GateFlags) -> Result<Self, PlanError> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(PlanError::Runtime)?;
        let (snapshot, namespace) = runtime.block_on(async {
            let connection = Connection::open(&args.cluster).await?;
            let kinds =
                Kinds { nodes: true, pods: true, templates: true, attributes: true, ..Kinds::default() };
            Ok::<_, ClusterError>((cluster::read(&connection, kinds).await?, connection.namespace))
        })?;
        let stock = Stock::of(&snapshot)?;
        if stock.sites.is_empty() {
            return Err(no_devices("the cluster", &snapshot));
        }
        let gates = flags.change(snapshot.gates(stock.has_counters, stock.has_taints));
        let unread = snapshot
            .unread
            .iter()
            .map(|it| format!("{} cannot be read, so they are not looked at: {}", it.resource, it.why));
        let mut notes: Vec<String> = stock.notes().into_iter().chain(unread).collect();
        let is_waiting = |pod: &&k8s_openapi::api::core::v1::Pod| {
            let spec = pod.spec.as_ref();
            spec.is_some_and(|it| {
                it.node_name.is_none() && it.resource_claims.as_ref().is_some_and(|it| !it.is_empty())
            })
        };
        let waiting = snapshot.pods.iter().filter(is_waiting).count();
        if 0 < waiting {
            let wait = if waiting == 1 { "waits" } else { "wait" };
            notes.push(format!(
                "{} with claims {wait} in the cluster already and {} not part of the plan",
                count(waiting, "pod"),
                if waiting == 1 { "is" } else { "are" }
            ));
        }
        let classes = snapshot.classes.clone();
        Ok(Self { stock, classes, gates, namespace, notes, shapes: Vec::new(), snapshot })
    }
}

/// Says that there are no slices, or none with devices.
fn no_devices(what: &'static str, snapshot: &Snapshot) -> PlanError {
    let is_empty = snapshot.slices.is_empty();
    PlanError::NoDevices(what, if is_empty { "no ResourceSlices" } else { "no ResourceSlices with devices" })
}

fn template_notes(gpus: &[Gpus]) -> Vec<String> {
    let mut notes =
        vec!["the nodes do not exist, so node selectors, taints and affinity are not looked at".to_owned()];
    let mut models: Vec<_> = gpus.iter().flat_map(|it| &it.models).collect();
    models.dedup();
    let inferred = models.into_iter().filter(|it| it.data().has_inferred()).map(|it| it.name());
    let inferred: std::collections::BTreeSet<&str> = inferred.collect();
    for name in inferred {
        notes.push(format!("some values of {name} were concluded, not read from a GPU"));
    }
    notes
}

/// Classes of the source and of the manifests; of one name that of the manifests.
fn classes(source: &[DeviceClass], objects: &[Object]) -> Vec<DeviceClass> {
    let mut by_name: BTreeMap<String, DeviceClass> = BTreeMap::new();
    let written = objects.iter().filter_map(|object| match object {
        Object::DeviceClass(class) => Some(&**class),
        _ => None,
    });
    for class in source.iter().chain(written) {
        by_name.insert(class.metadata.name.clone().unwrap_or_default(), class.clone());
    }
    by_name.into_values().collect()
}

/// Claims and templates of the manifests and of the source; of one name the claim that exists, and the template of the manifests.
fn requests(source: &Source, objects: &[Object]) -> (Vec<ResourceClaim>, Vec<ResourceClaimTemplate>) {
    let (mut claims, mut templates) = (Vec::new(), source.snapshot.templates.clone());
    for object in objects {
        match object {
            Object::ResourceClaim(it) => claims.push((**it).clone()),
            Object::ResourceClaimTemplate(it) => templates.push((**it).clone()),
            _ => {}
        }
    }
    claims.extend(source.snapshot.claims.iter().cloned());
    (claims, templates)
}

/// How many GPUs all pods need; `None` where that is not asked.
fn needed(
    request: &Request<'_>,
    engine: &Engine<'_>,
    outcome: &Outcome,
    gpus: &[MappedGpu],
    classes: &[DeviceClass],
) -> Result<Option<Result<Needed, NotNeeded>>, PlanError> {
    let Request { args, source, workloads, .. } = *request;
    if workloads.is_empty() {
        return Ok(None);
    }
    let gpus_of = |name: &str| gpus.iter().filter(|it| it.node == name).count();
    if source.shapes.is_empty() {
        if outcome.fits() {
            return Ok(None);
        }
        // The node with the most GPUs; of incomplete pools there are none.
        let largest = (0..source.stock.sites.len())
            .filter(|it| 0 < gpus_of(&source.stock.sites[*it].name))
            .max_by_key(|it| (gpus_of(&source.stock.sites[*it].name), usize::MAX - it));
        return Ok(largest.map(|site| {
            let gpus = gpus_of(&source.stock.sites[site].name);
            needed::additional(engine, &source.stock, workloads, outcome, site, gpus)
        }));
    }
    if let [shape] = source.shapes.as_slice()
        && let Some(model) = shape.models.first().filter(|model| shape.models.iter().all(|it| it == *model))
    {
        let keeps_counters = source.gates.features.partitionable_devices;
        let kind = |gpus: usize| {
            let template = NodeTemplate::new(&shape.models[..gpus], &args.template, keeps_counters)?;
            Ok(Kind { slices: template.slices(drivers::DEFAULT, NODE, None), node: named(NODE) })
        };
        // A layout file may be about GPUs that smaller nodes do not have.
        if let Ok(kinds) = (1..=shape.models.len()).map(kind).collect::<Result<Vec<_>, TemplateError>>() {
            let engine = request.engine(&kinds, classes);
            let low = lowest(outcome, gpus, workloads, shape.models.len());
            return Ok(Some(needed::gpus(&engine, workloads, shape.models.len(), model.name(), low)));
        }
    }
    let kinds: Vec<(usize, usize)> =
        source.shapes.iter().enumerate().map(|(kind, shape)| (kind, shape.models.len())).collect();
    let like: Vec<&str> = source.shapes.iter().map(|it| it.text.as_str()).collect();
    Ok(Some(needed::multiples(engine, workloads, &kinds, &like.join(" and "))))
}

/// Nodes that are needed at least: what the placed pods take on average, for all pods, by memory slices.
fn lowest(outcome: &Outcome, gpus: &[MappedGpu], workloads: &[Workload], per_node: usize) -> usize {
    let cells_of = |index: usize| {
        let instances = gpus.iter().flat_map(|it| &it.instances).filter(|it| it.workload == Some(index));
        instances.map(|it| it.cells).sum::<usize>()
    };
    let mut all = 0;
    for (index, workload) in workloads.iter().enumerate() {
        let placed = outcome.pods.iter().filter(|it| it.workload == index && it.place.is_some()).count();
        all += cells_of(index) * workload.demand.replicas / placed.max(1);
    }
    let per_gpu = gpus.iter().map(|it| it.gpu.memory_slices).max().unwrap_or(0).max(1);
    (all / (per_gpu * per_node)).max(1)
}
