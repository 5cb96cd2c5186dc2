//! `dra-driver-mig inspect`: this node's GPUs and claims as they are now. Reads only.
//!
//! Reads NVML and the driver's state files, so it needs no running driver and only read access. The pods of a claim,
//! which only the API server knows, are requested from it if it is available; without an answer they are
//! unknown, and the rest is the same.
//!
//! Uses an instance only as long as a measurement takes: the driver may have to destroy it.

mod args;
pub mod map;
mod report;
mod table;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::{Api, Client};
use mig_model::claim::{ClaimRef, ClaimUid};
use mig_model::facts::{Engine, GpuInstance, Memory};
use mig_model::inventory::Gpu;
use tokio::time::{sleep, timeout};
use tracing::warn;

pub use args::InspectArgs;
pub use report::{
    ClaimReport, DeviceReport, GpuReport, InstanceReport, MigReport, NodeReport, ProfileReport,
    SCHEMA_VERSION, UnhealthyReport,
};

use crate::api;
use crate::checkpoint::{Checkpoint, Stored};
use crate::hardware::Hardware;
use crate::health::Remembered;
use crate::nvml::{CallError, GpuQueue};
use crate::telemetry::OutputFormat;
use report::Seen;

/// The time over which it is measured how busy instances are. NVML wants a tenth of a second at least.
const MEASURED: Duration = Duration::from_millis(250);

/// The API server is asked for pods again after so many pictures, and at once for a claim that is new.
const PICTURES_PER_QUESTION: u32 = 15;

/// Prints the report; with `--watch` again and again, until the process is interrupted.
pub async fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let mut hardware = Hardware::open(args.hardware.clone()).await?;
    let files = Files {
        claims: args.driver.claims_directory(),
        health: args.driver.plugin_directory().join("health.json"),
    };
    let mut pods = Pods::new(args.kubeconfig.as_deref()).await;
    loop {
        let report = look(&hardware, &files, &mut pods).await?;
        let text = match (args.output, args.watch) {
            (OutputFormat::Table, _) => table::table(&report),
            (OutputFormat::Json, false) => format!("{}\n", serde_json::to_string_pretty(&report)?),
            // One line for each report, so that a program can detect where one ends.
            (OutputFormat::Json, true) => format!("{}\n", serde_json::to_string(&report)?),
        };
        let mut out = io::stdout().lock();
        if args.watch && args.output == OutputFormat::Table && out.is_terminal() {
            out.write_all(b"\x1b[H\x1b[2J")?;
        }
        out.write_all(text.as_bytes())?;
        out.flush()?;
        drop(out);
        if !args.watch {
            return Ok(());
        }
        sleep(args.interval).await;
        if hardware.is_stale() {
            hardware = Hardware::open(args.hardware.clone()).await?;
        }
    }
}

/// Where the driver keeps what it knows.
struct Files {
    claims: PathBuf,
    health: PathBuf,
}

async fn look(hardware: &Hardware, files: &Files, pods: &mut Pods) -> anyhow::Result<NodeReport> {
    // Before the scan: an instance that is made meanwhile is better foreign for a moment than one that is gone held.
    let claims = state_files(&files.claims)?;
    let gpus = hardware.scan().await?;
    let used = usage(hardware, &gpus).await;
    pods.look(&claims).await;
    let unhealthy = &Remembered::read(&files.health, &hardware.boot_id);
    let seen = Seen { hardware, gpus: &gpus, claims: &claims, pods: &pods.known, used: &used, unhealthy };
    Ok(seen.report())
}

type StateFile = (ClaimUid, Arc<Stored>, Option<Duration>);

/// The state files of the claims; none on a node where the driver never ran. No directory is made.
fn state_files(directory: &Path) -> anyhow::Result<Vec<StateFile>> {
    if !directory.is_dir() {
        return Ok(Vec::new());
    }
    let checkpoint = Checkpoint::reading(directory);
    let files = checkpoint.list()?.into_iter();
    Ok(files.map(|(uid, stored)| (uid.clone(), stored, checkpoint.age(&uid))).collect())
}

/// What a GPU or an instance uses, as far as NVML reports it.
#[derive(Debug, Default)]
struct Use {
    memory: Option<Memory>,
    /// How busy its parts were, from 0 to 1; nothing where that is not measured.
    engines: Vec<(Engine, f64)>,
}

/// What is used, by GPU and GPU instance; `None` is the whole GPU.
type Usage = BTreeMap<(String, Option<u32>), Use>;

/// What each GPU and each instance uses, all GPUs at once.
async fn usage(hardware: &Hardware, gpus: &[Gpu]) -> Usage {
    /// A GPU that does not answer must not keep the others from being shown.
    const PATIENCE: Duration = Duration::from_secs(5);
    let reads = gpus.iter().filter(|it| it.state.problem.is_none()).filter_map(|it| {
        let uuid = it.facts.uuid.clone();
        let first = |it: &GpuInstance| Some((it.id, it.compute_instances.first()?.id));
        let ids: Vec<(u32, u32)> = it.state.instances.iter().filter_map(first).collect();
        let queue = hardware.gpu(&uuid)?.queue.clone();
        Some(async move {
            let (memory, whole) = timeout(PATIENCE, memory(&queue, ids.clone())).await.ok()??;
            let busy = timeout(PATIENCE, utilization(&queue, ids)).await.ok().flatten().unwrap_or_default();
            let mut found: Usage = Usage::new();
            for (id, memory) in memory {
                found.entry((uuid.clone(), id)).or_default().memory = Some(memory);
            }
            if let Some(share) = whole {
                found.entry((uuid.clone(), None)).or_default().engines = vec![(Engine::Graphics, share)];
            }
            for (id, engines) in busy {
                found.entry((uuid.clone(), Some(id))).or_default().engines = engines;
            }
            Some(found)
        })
    });
    join_all(reads).await.into_iter().flatten().flatten().collect()
}

/// Memory of a GPU and of these instances, and how busy the GPU as a whole was lately, if NVML reports it.
async fn memory(queue: &GpuQueue, ids: Vec<(u32, u32)>) -> Option<(Vec<(Option<u32>, Memory)>, Option<f64>)> {
    let read = queue.run(move |device| {
        let whole = device.memory().ok().map(|it| (None, it));
        let of = |(gi, ci)| Some((Some(gi), device.memory_of(gi, ci).ok()??));
        let memory = whole.into_iter().chain(ids.into_iter().filter_map(of)).collect();
        Ok::<_, CallError>((memory, device.utilization().ok()))
    });
    read.await.ok()?.ok()
}

/// How busy these instances are over [`MEASURED`], on a GPU that measures it.
async fn utilization(queue: &GpuQueue, ids: Vec<(u32, u32)>) -> Option<Vec<(u32, Vec<(Engine, f64)>)>> {
    /// The samples of different processes are not distinguished here.
    const NO_OWNER: &str = "";
    let ids: Vec<u32> = ids.into_iter().map(|it| it.0).collect();
    let begun = ids.clone();
    let begin = queue.run(move |device| {
        let measures = device.measures();
        for id in begun.into_iter().filter(|_| measures) {
            // One that cannot be sampled is not measured.
            let _ = device.utilization_of(id, NO_OWNER);
        }
        Ok::<_, CallError>(measures)
    });
    if !begin.await.ok()?.ok()? {
        return None;
    }
    sleep(MEASURED).await;
    let end = queue.run(move |device| {
        let end = |id| {
            let found = device.utilization_of(id, NO_OWNER).unwrap_or_default();
            device.forget_utilization_of(id);
            (id, found)
        };
        Ok::<_, CallError>(ids.into_iter().map(end).collect())
    });
    end.await.ok()?.ok()
}

/// Which pods claims are reserved for, as the API server last said.
struct Pods {
    client: Option<Client>,
    known: BTreeMap<ClaimUid, Vec<String>>,
    pictures: u32,
}

impl Pods {
    /// Asks through this kubeconfig, or as the pod that this runs in; no pods are read without either.
    async fn new(kubeconfig: Option<&Path>) -> Self {
        let is_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        let client = match kubeconfig.is_some() || is_pod {
            true => api::client(kubeconfig).await.map_err(|error| warn!(%error, "cannot read pods")).ok(),
            false => None,
        };
        Self { client, known: BTreeMap::new(), pictures: 0 }
    }

    async fn look(&mut self, claims: &[StateFile]) {
        /// For all together: the picture must not wait for an API server that is away.
        const PATIENCE: Duration = Duration::from_secs(2);
        let Some(client) = &self.client else { return };
        let is_due = self.pictures.is_multiple_of(PICTURES_PER_QUESTION);
        self.pictures = self.pictures.wrapping_add(1);
        self.known.retain(|uid, _| claims.iter().any(|(it, ..)| it == uid));
        let asked = claims.iter().filter_map(|(uid, stored, _)| match &**stored {
            Stored::Record(record) if is_due || !self.known.contains_key(uid) => Some(&record.claim),
            _ => None,
        });
        let answers = asked.map(async |claim| Some((claim.uid.clone(), reserved_for(client, claim).await?)));
        if let Ok(answers) = timeout(PATIENCE, join_all(answers)).await {
            self.known.extend(answers.into_iter().flatten());
        }
    }
}

/// Names of the pods in a claim's reservations; the namespace is the claim's.
async fn reserved_for(client: &Client, claim: &ClaimRef) -> Option<Vec<String>> {
    let api: Api<ResourceClaim> = Api::namespaced(client.clone(), &claim.namespace);
    let object = api.get(&claim.name).await.ok()?;
    if object.metadata.uid.as_deref() != Some(claim.uid.as_str()) {
        return Some(Vec::new());
    }
    let consumers = object.status.and_then(|it| it.reserved_for).unwrap_or_default();
    // Others than pods may reserve a claim, too (KEP-5729: groups of pods).
    Some(consumers.into_iter().filter(|it| it.resource == "pods").map(|it| it.name).collect())
}
