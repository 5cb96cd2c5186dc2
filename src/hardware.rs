//! The GPUs of this node while the driver runs: what they are, their threads, and what changed on them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use tokio::time::timeout;
use tracing::info;

use crate::args::HardwareArgs;
use crate::checkpoint::{Record, RecordedDevice, RecordedKind};
use crate::host;
use crate::inventory::{Attachment, Gpu, GpuState, Inventory};
use crate::nvml::facts::{GpuFacts, GpuInstance, MigMode, NodeFacts};
use crate::nvml::{self, CallError, GpuQueue, OpenError, QueueClosed};

/// What is known of the node at this moment.
#[derive(Debug, Clone)]
pub struct NodeState {
    /// The GPUs, or why there are none.
    pub hardware: Result<Arc<Hardware>, String>,
    /// What they offer.
    pub inventory: Arc<Inventory>,
    /// Names of the devices that claims hold.
    pub held: BTreeSet<String>,
    /// GPUs that are not offered, and why.
    pub problems: Vec<String>,
}

/// The GPUs of the node.
#[derive(Debug)]
pub struct Hardware {
    /// The boot that instances belong to.
    pub boot_id: String,
    /// What NVML says.
    pub facts: NodeFacts,
    gpus: BTreeMap<String, LiveGpu>,
    threads: Vec<JoinHandle<()>>,
    /// Whether the library does not fit the driver any more.
    is_stale: Arc<AtomicBool>,
    /// Closed last, after the threads.
    _nvml: Arc<Nvml>,
}

/// One GPU and its thread.
#[derive(Debug)]
pub struct LiveGpu {
    /// What NVML says of it.
    pub facts: Arc<GpuFacts>,
    /// The way to it.
    pub queue: GpuQueue,
    attachment: Attachment,
    is_stale: Arc<AtomicBool>,
    /// Whether a scan has not been answered yet.
    is_asked: Arc<AtomicBool>,
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
    /// The kernel did not tell the boot id, or there is no thread to be had.
    #[error(transparent)]
    Host(#[from] io::Error),
}

impl Hardware {
    /// Opens NVML and reads the node. Blocks for as long as NVML takes.
    pub fn open(args: &HardwareArgs) -> Result<Self, HardwareError> {
        let boot_id = host::boot_id(&args.proc_root)?;
        let library = match &args.driver_library {
            Some(path) => path.clone(),
            None => nvml::find_library(&args.driver_root)?,
        };
        let nvml = nvml::open(&library)?;
        let facts = nvml::discover(&nvml)?;
        let (mut gpus, mut threads, is_stale) = (BTreeMap::new(), Vec::new(), Arc::<AtomicBool>::default());
        for gpu in &facts.gpus {
            let (queue, thread) =
                GpuQueue::start(Arc::clone(&nvml), gpu.uuid.clone(), &format!("gpu-{}", gpu.index))?;
            let attachment = host::attachment(&args.sys_root, gpu.pci);
            threads.push(thread);
            let (facts, is_stale) = (Arc::new(gpu.clone()), Arc::clone(&is_stale));
            let live = LiveGpu { facts, queue, attachment, is_stale, is_asked: Arc::default() };
            gpus.insert(gpu.uuid.clone(), live);
        }
        info!(
            library = %library.display(),
            driver = facts.driver_version,
            gpus = gpus.len(),
            skipped = facts.skipped.len(),
            "NVML opened"
        );
        Ok(Self { boot_id, facts, gpus, threads, is_stale, _nvml: nvml })
    }

    /// The GPU with this UUID.
    #[must_use]
    pub fn gpu(&self, uuid: &str) -> Option<&LiveGpu> {
        self.gpus.get(uuid)
    }

    /// True once NVML has said that the driver was unloaded or replaced: then everything has to be opened anew.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.is_stale.load(Ordering::Relaxed)
    }

    /// Reads what may have changed: MIG mode, and every live instance, whoever made it.
    pub async fn scan(&self) -> Result<Vec<Gpu>, QueueClosed> {
        let scans = self.gpus.values().map(LiveGpu::scan);
        futures::future::try_join_all(scans).await
    }

    /// True where a record of this boot means this instance.
    #[must_use]
    pub fn is_recorded(&self, parent: &str, instance: &GpuInstance, record: &Record) -> bool {
        let is_it = |device: &RecordedDevice| match &device.kind {
            RecordedKind::Gpu => false,
            RecordedKind::Mig { spec, progress } => {
                device.parent_uuid == parent
                    && spec.profile_id == instance.profile_id
                    && spec.placement == instance.placement
                    && progress.gpu_instance().is_none_or(|id| id == instance.id)
            }
        };
        record.boot_id == self.boot_id && record.devices.iter().any(is_it)
    }
}

impl Drop for Hardware {
    /// Ends the threads, so that NVML is closed after its last call. One that hangs in a call is left behind.
    fn drop(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(1);
        const PAUSE: Duration = Duration::from_millis(1);
        self.gpus.clear();
        let deadline = Instant::now() + PATIENCE;
        while self.threads.iter().any(|it| !it.is_finished()) && Instant::now() < deadline {
            thread::sleep(PAUSE);
        }
    }
}

impl LiveGpu {
    async fn scan(&self) -> Result<Gpu, QueueClosed> {
        let state = match self.read().await? {
            Ok((mode, instances)) => GpuState { mode, instances, problem: None },
            Err(problem) => GpuState {
                mode: self.facts.mig.as_ref().map(|it| it.mode),
                instances: Vec::new(),
                problem: Some(problem),
            },
        };
        Ok(Gpu { facts: Arc::clone(&self.facts), attachment: self.attachment.clone(), state })
    }

    /// MIG mode and instances, or why they cannot be told now. A GPU that does not answer is asked once, and not waited
    /// for long: it must not keep the others from being looked at.
    async fn read(&self) -> Result<Result<(Option<MigMode>, Vec<GpuInstance>), String>, QueueClosed> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let silent = || Err("NVML does not answer for this GPU".to_owned());
        if self.is_asked.swap(true, Ordering::Relaxed) {
            return Ok(silent());
        }
        let (facts, is_asked) = (Arc::clone(&self.facts), Arc::clone(&self.is_asked));
        let read = self.queue.run(move |device| {
            is_asked.store(false, Ordering::Relaxed);
            let Some(mig) = &facts.mig else { return Ok((None, Vec::new())) };
            let mode = device.mig_mode()?;
            Ok((Some(mode), nvml::live_instances(device, &mig.profiles)?))
        });
        match timeout(PATIENCE, read).await {
            Ok(read) => Ok(read?.map_err(|error: CallError| {
                self.is_asked.store(false, Ordering::Relaxed);
                if error.means_another_driver() {
                    self.is_stale.store(true, Ordering::Relaxed);
                }
                error.to_string()
            })),
            Err(_) => Ok(silent()),
        }
    }
}
