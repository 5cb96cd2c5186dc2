//! NVML while it is open; it is closed after its last call.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mig_model::facts::GpuFacts;
use nvml_wrapper::Nvml;

use super::LiveGpu;
use crate::host;
use crate::nvml::{CallError, Discovery, GpuQueue, Monitor, OpenError};
use crate::telemetry::metrics::Metrics;

/// NVML while it is open.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) nvml: Arc<Nvml>,
    pub(super) discovery: Discovery,
    pub(super) hung_after: Duration,
    pub(super) threads: Mutex<Vec<JoinHandle<()>>>,
    pub(super) events: Arc<Monitor>,
    pub(super) sys_root: PathBuf,
    /// Whether the library does not fit the driver any more.
    pub(super) is_stale: Arc<AtomicBool>,
    pub(super) metrics: Metrics,
}

/// Why there is no hardware to work with.
#[derive(Debug, thiserror::Error)]
pub enum HardwareError {
    /// No library.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// NVML does not answer.
    #[error("{0}; `nvidia-smi` on the host shows whether the driver works")]
    Nvml(#[from] CallError),
    /// NVML has not come back.
    #[error(
        "NVML does not answer: a call to open it, nvmlInit or one that counts the GPUs, has not come back; `nvidia-smi` and the \
         kernel log of the node show more; a restart of the driver's pod does not help"
    )]
    Hung,
    /// The kernel did not report the boot id, or no thread could be started.
    #[error(transparent)]
    Host(#[from] io::Error),
}

impl Session {
    pub(super) fn start(&self, gpu: &GpuFacts) -> io::Result<LiveGpu> {
        let (queue, thread) = GpuQueue::start(Arc::clone(&self.nvml), gpu.uuid.clone(), gpu.index)?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(LiveGpu {
            facts: Arc::new(gpu.clone()),
            queue,
            metrics: self.metrics.clone(),
            hung_after: self.hung_after,
            attachment: host::attachment(&self.sys_root, gpu.pci),
            events: Arc::clone(&self.events),
            is_lost: AtomicBool::new(false),
            recovery: Arc::default(),
            is_stale: Arc::clone(&self.is_stale),
            is_asked: Arc::default(),
        })
    }
}

impl Drop for Session {
    /// Waits for the threads, which end when the last user of their GPU is gone, so that NVML is closed after its last
    /// call. One that hangs in a call is left behind.
    fn drop(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(1);
        const PAUSE: Duration = Duration::from_millis(1);
        self.events.close();
        let threads = std::mem::take(self.threads.get_mut().unwrap_or_else(PoisonError::into_inner));
        let deadline = Instant::now() + PATIENCE;
        while threads.iter().any(|it| !it.is_finished()) && Instant::now() < deadline {
            thread::sleep(PAUSE);
        }
    }
}
