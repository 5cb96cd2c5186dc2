//! The job from beginning to end.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use kube_sim::api::store::Store;
use kube_sim::kinds::{self, EVENT, POD, RESOURCE_CLAIM, RESOURCE_SLICE};
use kube_sim::manifest::{self, Mistake};
use nvml_sim::Model;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::args::Args;
use crate::cluster::{Cluster, NODE};
use crate::manifests::{self, Plan};
use crate::report;
use crate::serve::serve;
use crate::why::why_pending;

/// The classes that every cluster with this driver has.
const CLASSES: &str = include_str!("../../deploy/manifests/deviceclasses.yaml");

/// Reads and checks the manifests.
///
/// # Errors
/// When a file cannot be read.
pub(crate) fn plan(args: &Args) -> anyhow::Result<Result<Plan, Vec<Mistake>>> {
    let options = args.options();
    let scratch = Store::new(options.gates());
    for object in prepared()? {
        add(&scratch, &object)?;
    }
    manifests::read(&sources(args), &scratch)
}

/// Runs it and answers whether all of it held.
pub(crate) async fn run(args: Args, plan: Plan) -> anyhow::Result<(bool, TempDir)> {
    let limit = Duration::from_secs(args.timeout);
    let mut cluster = Cluster::start(&args).await?;
    let names: Vec<&str> = args.gpus.0.iter().map(Model::name).collect();
    println!("node {NODE} with {}; API server {}\n", names.join(", "), cluster.server.url());
    wait(&cluster, limit, "the driver publishes its devices", published).await?;
    println!("published\n{}", report::slices(&cluster));
    for object in prepared()? {
        add(&cluster.server.store(), &object)?;
    }
    let mut held = create(&cluster, &plan)?;
    cluster.start_control();
    if !plan.documents.is_empty() {
        held &= settle(&cluster, limit).await?;
        println!("allocated\n{}", report::claims(&cluster));
        let (containers, without) = report::containers(&cluster);
        held &= without == 0;
        println!("what each container gets\n{containers}");
        println!("memory slices\n{}", report::picture(&cluster)?);
    }
    if args.serve {
        serve(&cluster).await?;
    }
    held &= clear(&cluster, limit).await?;
    end(cluster, held).await
}

/// The examples that fit on the default GPUs together. The one that needs most of a GPU comes first: behind others that are partly used
/// it may not find it (kubernetes #140436).
const STORY: [&str; 5] =
    ["profiles-on-one-gpu", "deployment", "first-available", "shared-claim", "single-instance"];

/// Where the manifests come from.
fn sources(args: &Args) -> Vec<PathBuf> {
    match (args.manifests.is_empty(), args.serve) {
        (false, _) => args.manifests.clone(),
        (true, true) => Vec::new(),
        (true, false) => {
            let examples = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
            STORY.iter().map(|it| examples.join(it)).collect()
        }
    }
}

/// What is there before the manifests: the driver's namespace and its classes, as the chart installs them with
/// `deviceClasses.gpuExtendedResource=true`.
fn prepared() -> anyhow::Result<Vec<Value>> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "dra-driver-mig"}});
    let mut objects = vec![namespace];
    for mut class in manifest::parse(CLASSES)? {
        if class["metadata"]["name"] == "gpu.dra-driver.dev" {
            class["spec"]["extendedResourceName"] = "nvidia.com/gpu".into();
        }
        objects.push(class);
    }
    Ok(objects)
}

/// Creates an object of a kind that is served.
fn add(store: &Store, object: &Value) -> anyhow::Result<()> {
    let text = |field: &str| object[field].as_str().unwrap_or("");
    let kind = kinds::by_type(text("apiVersion"), text("kind")).context("a kind that is not served")?;
    Ok(manifests::create(store, kind, object)?)
}

/// Creates the objects of the manifests. Answers whether no quota refused one.
fn create(cluster: &Cluster, plan: &Plan) -> anyhow::Result<bool> {
    let mut held = true;
    for document in &plan.documents {
        let title = manifests::title(&document.object);
        match add(&cluster.server.store(), &document.object) {
            Ok(()) => println!("created {title}"),
            Err(error) if error.downcast_ref().is_some_and(manifests::is_beyond_quota) => {
                println!("refused {title}: {error}");
                held = false;
            }
            Err(error) => return Err(error.context(format!("{title} of {}", document.file.display()))),
        }
    }
    plan.notes.iter().for_each(|note| println!("{note}"));
    if !plan.documents.is_empty() || !plan.notes.is_empty() {
        println!();
    }
    Ok(held)
}

/// Waits until something holds. The driver must keep running meanwhile.
async fn wait(
    cluster: &Cluster,
    limit: Duration,
    what: &str,
    holds: impl Fn(&Cluster) -> bool,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    while !holds(cluster) {
        cluster.driver_runs()?;
        if Instant::now() > deadline {
            return Err(anyhow!("waited {} s in vain: {what}", limit.as_secs()));
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Whether the driver is registered and its pool complete.
fn published(cluster: &Cluster) -> bool {
    let slices = cluster.server.list(&RESOURCE_SLICE);
    let generation = |s: &Value| s["spec"]["pool"]["generation"].as_i64().unwrap_or(0);
    let newest = slices.iter().map(|s| generation(s)).max().unwrap_or(0);
    let current: Vec<_> = slices.iter().filter(|s| generation(s) == newest).collect();
    let expected = current.first().and_then(|s| s["spec"]["pool"]["resourceSliceCount"].as_u64());
    let complete = expected.is_some_and(|n| usize::try_from(n).is_ok_and(|n| n == current.len()));
    complete && !cluster.kubelet.plugins().is_empty()
}

/// How long nothing may have changed before pods without a node are reported as pending: the driver may be about to publish.
const QUIET: Duration = Duration::from_secs(1);

/// Waits until every pod runs, or is pending with nothing under way that could change it. Returns whether all run.
async fn settle(cluster: &Cluster, limit: Duration) -> anyhow::Result<bool> {
    let runs = |pod: &Value| pod["status"]["phase"] == "Running";
    let quiet_since = Cell::new((0, Instant::now()));
    let settled = |c: &Cluster| {
        let revision = c.server.store().revision();
        if quiet_since.get().0 != revision {
            quiet_since.set((revision, Instant::now()));
        }
        let pods = c.server.list(&POD);
        let waits = |pod: &Value| pod["spec"]["nodeName"].is_null();
        let is_quiet = quiet_since.get().1.elapsed() > QUIET && published(c);
        c.is_settled() && pods.iter().all(|pod| runs(pod) || (waits(pod) && is_quiet))
    };
    if let Err(error) = wait(cluster, limit, "every pod runs", settled).await {
        cluster.driver_runs()?;
        println!("{error}");
    }
    let pods = cluster.server.list(&POD);
    let stuck: Vec<_> = pods.iter().filter(|pod| !runs(pod)).collect();
    for pod in &stuck {
        println!("pod {} does not run", pod["metadata"]["name"].as_str().unwrap_or(""));
        print!("{}", report::indented(&why_pending(&cluster.server, pod)));
    }
    let without_pods = report::refused_workloads(cluster);
    print!("{without_pods}");
    let held = stuck.is_empty() && without_pods.is_empty();
    if !held {
        println!();
    }
    Ok(held)
}

/// Deletes everything that uses devices and waits until it is gone. Answers whether it went.
async fn clear(cluster: &Cluster, limit: Duration) -> anyhow::Result<bool> {
    println!("deleting pods and claims\n");
    for kind in report::WORKLOADS.into_iter().chain([&POD, &RESOURCE_CLAIM]) {
        for object in cluster.server.list(kind) {
            let text = |field: &str| object["metadata"][field].as_str().unwrap_or("").to_owned();
            // What an owner took along is gone already.
            drop(cluster.server.delete(kind, &text("namespace"), &text("name")));
        }
    }
    let gone = |c: &Cluster| {
        c.server.list(&POD).is_empty()
            && c.server.list(&RESOURCE_CLAIM).is_empty()
            && c.kubelet.prepared().is_empty()
    };
    match wait(cluster, limit, "pods and claims are gone", gone).await {
        Ok(()) => Ok(true),
        Err(error) => {
            println!("{error}");
            for event in cluster.server.list(&EVENT).iter().filter(|e| e["type"] == "Warning") {
                println!(
                    "  {}: {}",
                    event["reason"].as_str().unwrap_or(""),
                    event["message"].as_str().unwrap_or("")
                );
            }
            Ok(false)
        }
    }
}

/// Looks at what is left, stops the driver and says the last line.
async fn end(cluster: Cluster, mut held: bool) -> anyhow::Result<(bool, TempDir)> {
    println!("what is left\n{}", report::picture(&cluster)?);
    let files = |directory: &Path| std::fs::read_dir(directory).into_iter().flatten().flatten().count();
    let specs = files(&cluster.cdi_dir);
    println!("  {specs} CDI files, {} claims\n", cluster.server.list(&RESOURCE_CLAIM).len());
    let counts = cluster.kubelet.counts();
    let instances = report::instances(&cluster)?;
    held &= specs == 0 && instances == 0 && counts.prepared == counts.unprepared;
    let (ended, directory) = cluster.stop().await;
    if let Err(error) = ended {
        println!("{error:#}");
        held = false;
    }
    println!(
        "sandbox: {} claims prepared, {} unprepared, {instances} MIG instances left",
        counts.prepared, counts.unprepared
    );
    Ok((held, directory))
}
