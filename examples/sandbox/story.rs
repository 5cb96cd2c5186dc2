//! The job from beginning to end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use kube_sim::kinds::{self, EVENT, POD, RESOURCE_CLAIM, RESOURCE_SLICE};
use kube_sim::manifest;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::args::Args;
use crate::cluster::{Cluster, NODE};
use crate::report;

/// The classes that every cluster with this driver has.
const CLASSES: &str = include_str!("../../deploy/manifests/deviceclasses.yaml");

/// Runs it and answers whether all of it held.
pub(crate) async fn run(args: Args) -> anyhow::Result<(bool, TempDir)> {
    let limit = Duration::from_secs(args.timeout);
    let cluster = Cluster::start(&args).await?;
    let names: Vec<&str> = args.gpus.0.iter().map(nvml_sim::Model::name).collect();
    println!("node {NODE} with {}; API server {}\n", names.join(", "), cluster.server.url());
    wait(&cluster, limit, "the driver publishes its devices", published).await?;
    println!("published\n{}", report::slices(&cluster));
    for class in manifest::parse(CLASSES)? {
        cluster.server.create(class)?;
    }
    let objects = create(&cluster, &sources(&args))?;
    let mut held = true;
    if !objects.is_empty() {
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

/// The examples that fit on the default GPUs together.
const STORY: [&str; 5] =
    ["deployment", "first-available", "profiles-on-one-gpu", "shared-claim", "single-instance"];

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

/// Creates the objects of the manifests.
fn create(cluster: &Cluster, sources: &[PathBuf]) -> anyhow::Result<Vec<Value>> {
    let mut objects = Vec::new();
    for source in sources {
        for object in manifest::load(source)? {
            let name = object["metadata"]["name"].as_str().unwrap_or("").to_owned();
            let kind = object["kind"].as_str().unwrap_or("").to_owned();
            cluster
                .server
                .create(object.clone())
                .with_context(|| format!("{kind} {name} of {}", source.display()))?;
            println!("created {kind} {name}");
            objects.push(object);
        }
    }
    if !objects.is_empty() {
        println!();
    }
    Ok(objects)
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

/// Waits until every pod runs, or is known not to fit. Answers whether all run.
async fn settle(cluster: &Cluster, limit: Duration) -> anyhow::Result<bool> {
    let phase = |pod: &Value| pod["status"]["phase"].as_str().unwrap_or("").to_owned();
    let refused = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["reason"] == "Unschedulable")
    };
    let settled = |c: &Cluster| {
        let pods = c.server.list(&POD);
        // A Deployment's pods come a moment later than the Deployment.
        let replicas: u64 =
            c.server.list(&kinds::DEPLOYMENT).iter().filter_map(|d| d["spec"]["replicas"].as_u64()).sum();
        let owned = pods.iter().filter(|p| !p["metadata"]["ownerReferences"].is_null()).count();
        u64::try_from(owned).is_ok_and(|n| n >= replicas)
            && pods.iter().all(|p| phase(p) == "Running" || refused(p))
    };
    if let Err(error) = wait(cluster, limit, "every pod runs", settled).await {
        cluster.driver_runs()?;
        println!("{error}");
    }
    let pods = cluster.server.list(&POD);
    let stuck: Vec<_> = pods.iter().filter(|p| phase(p) != "Running").collect();
    for pod in &stuck {
        println!("pod {} does not run", pod["metadata"]["name"].as_str().unwrap_or(""));
        for event in cluster.server.list(&EVENT) {
            if event["involvedObject"]["uid"] == pod["metadata"]["uid"] && event["type"] == "Warning" {
                println!(
                    "  {}: {}",
                    event["reason"].as_str().unwrap_or(""),
                    event["message"].as_str().unwrap_or("")
                );
            }
        }
    }
    if !stuck.is_empty() {
        println!();
    }
    Ok(stuck.is_empty())
}

/// Keeps the cluster up until Ctrl-C and draws the map whenever it has changed.
async fn serve(cluster: &Cluster) -> anyhow::Result<()> {
    println!("serving on {}", cluster.server.url());
    println!("  kubectl --server {} get resourceslices", cluster.server.url());
    println!("  kubectl --server {} apply -f examples/single-instance", cluster.server.url());
    println!("  kubeconfig: {}; Ctrl-C ends it\n", cluster.kubeconfig.display());
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut last = report::picture(cluster)?;
    loop {
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
            _ = terminate.recv() => return Ok(()),
            () = sleep(Duration::from_millis(500)) => {}
        }
        cluster.driver_runs()?;
        let picture = report::picture(cluster)?;
        if picture != last {
            println!("{picture}");
            last = picture;
        }
    }
}

/// Deletes everything that uses devices and waits until it is gone. Answers whether it went.
async fn clear(cluster: &Cluster, limit: Duration) -> anyhow::Result<bool> {
    println!("deleting pods and claims\n");
    for kind in [&kinds::DEPLOYMENT, &kinds::REPLICA_SET, &POD, &RESOURCE_CLAIM] {
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
