//! Names the pods of GPUs and MIG instances for NVIDIA's DCGM exporter, in the files of its HPC job mapping.
//!
//! The exporter (`--hpc-job-mapping-dir`) reads files named `<gpu>` and `<gpu>.<gpu instance>`, and gives the metrics of that GPU or
//! instance the label `hpc_job` for each line. A line of this driver is `<namespace>/<pod>/<claim>`.
//!
//! Follows the state files, not the calls, as the device status of claims does: no call of the kubelet waits for it or fails by it.
//! Each pass compares the directory with the records, so that after a crash, a reboot or a failure the next one corrects it. What
//! tells a file of this driver is its content; any other file stays as it is. Two processes of a rolling update want the
//! same content.

mod directory;
mod jobs;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::checkpoint::{Record, Stored};
use crate::context::NodeContext;

use directory::{Directory, DirectoryError};
use jobs::{FileName, Known, wanted};

/// How long changes are collected.
const BURST: Duration = Duration::from_millis(50);
/// First and longest pause after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Keeps the directory as the records say.
#[derive(Debug)]
pub struct JobMapping {
    context: NodeContext,
    directory: Directory,
    /// Files of other programs that were logged.
    reported: BTreeSet<FileName>,
}

impl JobMapping {
    /// The mapping files in this directory.
    #[must_use]
    pub fn new(context: NodeContext, directory: PathBuf) -> Self {
        Self { context, directory: Directory::new(directory), reported: BTreeSet::new() }
    }

    /// Runs until `stop`. `changes` fires on every change of the claims' devices that this process makes; in addition there is a pass
    /// every `pause`, because another process and other programs change things, too.
    pub async fn run(mut self, mut changes: watch::Receiver<()>, pause: Duration, stop: CancellationToken) {
        let (mut node, mut pods) = (self.context.node.clone(), self.context.pods.changes());
        let mut retry = Backoff::new(PAUSES.0, PAUSES.1, &self.context.name);
        loop {
            changes.borrow_and_update();
            node.borrow_and_update();
            pods.borrow_and_update();
            let next = match tokio::task::block_in_place(|| self.pass()) {
                Ok(()) => {
                    if 0 < retry.failures() {
                        info!("the job mapping files of the DCGM exporter are written again");
                    }
                    retry.succeeded();
                    pause
                }
                Err(error) => {
                    if retry.failures() == 0 {
                        warn!(%error, "the DCGM exporter does not learn all pods, retrying");
                    }
                    retry.failed().min(pause)
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                Ok(()) = changes.changed() => sleep(BURST).await,
                Ok(()) = node.changed() => sleep(BURST).await,
                Ok(()) = pods.changed() => sleep(BURST).await,
                () = sleep(next) => {}
            }
        }
    }

    /// Compares and corrects once.
    fn pass(&mut self) -> Result<(), PassError> {
        let listed = self.context.checkpoint.list()?;
        let records: Vec<Arc<Record>> = listed.iter().filter_map(|(_, it)| it.record()).collect();
        let is_unread = |it: &Stored| matches!(it, Stored::Unreadable(_) | Stored::Inaccessible(_));
        let hardware = self.context.node.borrow().hardware.clone().ok();
        let known = Known {
            records: &records,
            lacks_records: listed.iter().any(|(_, it)| is_unread(it)),
            boot_id: &self.context.boot_id,
            index: &|uuid| Some(hardware.as_ref()?.gpu(uuid)?.facts.index),
            pods: &|uid| self.context.pods.of(uid),
        };
        let present = self.directory.read()?;
        let wanted = wanted(&known, &present.own);
        for (name, reason) in present.others.iter().filter(|(name, _)| wanted.contains_key(name)) {
            if self.reported.insert(*name) {
                warn!(file = %name, reason, "a job mapping file is not this driver's: it stays, and the pod is not named there");
            }
        }
        self.reported.retain(|it| present.others.contains_key(it));
        Ok(self.directory.apply(&present, &wanted)?)
    }
}

/// Why a pass is not complete.
#[derive(Debug, thiserror::Error)]
enum PassError {
    #[error(transparent)]
    Store(#[from] crate::checkpoint::StoreError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}
