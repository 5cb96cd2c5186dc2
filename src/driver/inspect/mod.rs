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
mod usage;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::{Api, Client};
use mig_model::claim::{ClaimRef, ClaimUid};
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
use crate::telemetry::OutputFormat;
use report::Seen;
use usage::usage;

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
    // Before the scan: an instance that is made meanwhile is better shown as unmanaged for a moment than one that is gone as held.
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
