//! Reads the kernel's list of GPUs at each scan, and restarts a container that was created too early to see them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tracing::{info, warn};

use super::attempt::{Attempt, Attempts, LookReason, Outcome};
use crate::access::DeviceAccess;
use crate::cdi::{FilesError, ManagementFile};

/// How long a look waits for the kernel, whose module may be busy with a GPU that hangs.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the kernel lists.
pub(super) struct KernelView {
    /// What it was when it was last read.
    pub(super) access: DeviceAccess,
    proc_root: PathBuf,
    dev_root: PathBuf,
    spec: ManagementFile,
    reads: Attempts<DeviceAccess>,
    look_again: Arc<Notify>,
}

/// The kernel lists GPUs, none of which can be used before this container is created again.
#[derive(Debug, thiserror::Error)]
#[error(
    "the NVIDIA kernel module was loaded after this container was created, so it has no device nodes of the GPUs: its CDI spec \
     {path} names them now, and the container ends, so that the kubelet starts one that gets them"
)]
pub(super) struct NodesChanged {
    path: String,
}

impl KernelView {
    pub(super) fn new(
        proc_root: PathBuf,
        dev_root: PathBuf,
        spec: ManagementFile,
        look_again: Arc<Notify>,
    ) -> Self {
        Self {
            access: DeviceAccess::default(),
            proc_root,
            dev_root,
            spec,
            reads: Attempts::default(),
            look_again,
        }
    }

    /// Reads it again, on its own thread: a read that hangs is abandoned, and the last result stays.
    pub(super) async fn read(&mut self, reason: LookReason) {
        let (proc_root, dev_root) = (self.proc_root.clone(), self.dev_root.clone());
        let look = move || DeviceAccess::look(&proc_root, &dev_root);
        let begin = || Attempt::start("kernel", &self.look_again, look);
        match self.reads.result(PATIENCE, reason, begin).await {
            Ok(Outcome::Ended(access)) => {
                for reason in
                    access.kernel.unreadable.iter().filter(|it| !self.access.kernel.unreadable.contains(it))
                {
                    warn!(reason, "the kernel lists a GPU that cannot be described");
                }
                self.access = access;
            }
            Ok(Outcome::Died) => warn!("the thread that lists the kernel's GPUs has ended"),
            Ok(Outcome::Running | Outcome::Paused) => {}
            Err(error) => warn!(%error, "cannot start the thread that lists the kernel's GPUs"),
        }
    }

    /// Where NVML cannot be opened, this container lacks GPUs' nodes, and the CDI spec that it was created by is not what it
    /// would be now: writes the spec, and fails with [`NodesChanged`]. A container that was created by the present spec
    /// and lacks nodes all the same would gain nothing from another start.
    pub(super) fn renew_spec(&self) -> anyhow::Result<()> {
        if !self.access.lacks_nodes() || !self.spec.exists() {
            return Ok(());
        }
        let updated: Result<bool, FilesError> = self.spec.update(&self.access.kernel);
        match updated {
            Ok(false) => Ok(()),
            Ok(true) => {
                let error = NodesChanged { path: self.spec.path().display().to_string() };
                info!("{error}");
                Err(error.into())
            }
            Err(error) => {
                warn!(%error, "cannot write the CDI spec of this container");
                Ok(())
            }
        }
    }
}
