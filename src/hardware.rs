//! The GPUs of this node while the driver runs: what they are, their threads, and what changed on them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::access::AccessReport;
use crate::args::HardwareArgs;
use crate::checkpoint::{Record, RecordedDevice, RecordedKind};
use crate::health::Report;
use crate::host;
use crate::inventory::{Attachment, Gpu, GpuState, Inventory, Terms, Withheld};
use crate::mig;
use crate::nvml::facts::{GpuFacts, GpuInstance, MigMode, NodeFacts, RecoveryAction, SkippedGpu};
use crate::nvml::{self, CallError, Code, GpuQueue, Heard, Monitor, OpenError, QueueClosed};
use crate::readiness::HostCondition;
use crate::telemetry::metrics::{EventGap, Metrics};

/// What is known of the node at this moment.
#[derive(Debug, Clone)]
pub struct NodeState {
    /// The GPUs, or why there are none.
    pub hardware: Result<Arc<Hardware>, String>,
    /// What they offer.
    pub inventory: Arc<Inventory>,
    /// What that was made from.
    pub basis: Arc<Basis>,
    /// Names of the devices that claims hold.
    pub held: BTreeSet<String>,
    /// GPUs that are not offered, and why.
    pub problems: Vec<Problem>,
    /// Instances that somebody else made and that are not offered either, and why.
    pub left_alone: Vec<String>,
    /// GPUs that this process does not see, and whether it may cut the others.
    pub access: AccessReport,
    /// What GPUs and instances suffer from.
    pub health: Arc<Report>,
    /// How many devices of a GPU cannot be had, and why, by the name of its counter set.
    pub withheld: BTreeMap<(String, Withheld), usize>,
    /// What on the host keeps claims from being prepared or containers from working, the worst first.
    pub host: Vec<HostCondition>,
}

/// Why a GPU is not offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// UUID of the GPU; the NVML index of one that has not told its UUID, the PCI address of one that NVML does not show.
    pub gpu: String,
    /// Why.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GPU {}: {}", self.gpu, self.reason)
    }
}

/// What an inventory is made from, besides what NVML says once and for all.
#[derive(Debug, Default)]
pub struct Basis {
    /// The GPUs, with a problem for those of which nobody else should be given a part.
    pub gpus: Vec<Gpu>,
    /// On which terms they are offered.
    pub terms: Terms,
}

impl NodeState {
    /// Which GPUs cannot be read or used now, and why; empty where all of them can.
    #[must_use]
    pub fn unread(&self) -> String {
        let may_come_back = self.hardware.as_ref().is_ok_and(|it| !it.is_complete());
        match self.problems.as_slice() {
            [] if may_come_back => "some were skipped".to_owned(),
            problems => problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        }
    }

    /// A node of which no more is known than why there is nothing.
    #[must_use]
    pub fn without(reason: &str) -> Self {
        Self {
            hardware: Err(reason.to_owned()),
            inventory: Arc::default(),
            basis: Arc::default(),
            held: BTreeSet::new(),
            problems: Vec::new(),
            left_alone: Vec::new(),
            withheld: BTreeMap::new(),
            access: AccessReport::default(),
            health: Arc::default(),
            host: Vec::new(),
        }
    }
}

/// The GPUs of the node.
#[derive(Debug)]
pub struct Hardware {
    /// The boot that instances belong to.
    pub boot_id: String,
    /// What NVML says.
    pub facts: NodeFacts,
    gpus: BTreeMap<String, Arc<LiveGpu>>,
    /// Ends after the GPUs.
    session: Arc<Session>,
}

/// NVML while it is open.
#[derive(Debug)]
struct Session {
    nvml: Arc<Nvml>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    events: Arc<Monitor>,
    sys_root: PathBuf,
    /// Whether the library does not fit the driver any more.
    is_stale: Arc<AtomicBool>,
    metrics: Metrics,
}

/// One GPU and its thread.
#[derive(Debug)]
pub struct LiveGpu {
    /// What NVML says of it.
    pub facts: Arc<GpuFacts>,
    /// The way to it.
    pub queue: GpuQueue,
    /// Where its errors and times are counted.
    pub metrics: Metrics,
    attachment: Attachment,
    events: Arc<Monitor>,
    is_stale: Arc<AtomicBool>,
    /// Whether the last scan found that the GPU has fallen off the bus, or must be reset before it answers again.
    is_lost: AtomicBool,
    /// What NVML recommended at the last scan; nothing where the driver or the GPU does not know.
    recovery: Arc<Mutex<Option<RecoveryAction>>>,
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
    pub fn open(args: &HardwareArgs, metrics: &Metrics) -> Result<Self, HardwareError> {
        let boot_id = host::boot_id(&args.proc_root)?;
        let library = args.nvml_library()?;
        let nvml = nvml::open(&library)?;
        let sys_root = args.sys_root.clone();
        let (threads, events, is_stale) = (Mutex::default(), Arc::default(), Arc::default());
        let session = Session { nvml, threads, events, sys_root, is_stale, metrics: metrics.clone() };
        let opened = Self::discover(Arc::new(session), boot_id, None)?;
        opened.log_missing(None);
        let (facts, gpus) = (&opened.facts, opened.gpus.len());
        let driver = facts.driver_version.as_deref().unwrap_or("unknown");
        info!(library = %library.display(), driver, gpus, skipped = facts.skipped.len(), "NVML opened");
        Ok(opened)
    }

    /// The same node looked at once more, for GPUs that were skipped and facts that were unknown; nothing where all is as it
    /// was. GPUs that are known keep their threads. Blocks for as long as NVML takes.
    pub fn again(&self) -> Result<Option<Self>, HardwareError> {
        let found = Self::discover(Arc::clone(&self.session), self.boot_id.clone(), Some(self))?;
        found.log_missing(Some(&self.facts));
        Ok((found.facts != self.facts).then_some(found))
    }

    /// Logs what `before` did not lack.
    fn log_missing(&self, before: Option<&NodeFacts>) {
        let was_skipped = |it: &SkippedGpu| before.is_some_and(|before| before.skipped.contains(it));
        for skipped in self.facts.skipped.iter().filter(|it| !was_skipped(it)) {
            let SkippedGpu { index, uuid, reason, .. } = skipped;
            warn!(index, uuid, reason, "GPU skipped");
        }
        let was_unknown = |error: &CallError| before.is_some_and(|it| it.unknown.contains(error));
        for error in self.facts.unknown.iter().filter(|it| !was_unknown(it)) {
            warn!(%error, "fact unknown");
        }
        for gpu in &self.facts.gpus {
            let known = before.and_then(|it| it.gpus.iter().find(|it| it.uuid == gpu.uuid));
            let was_unknown = |error: &CallError| known.is_some_and(|it| it.unknown.contains(error));
            for error in gpu.unknown.iter().filter(|it| !was_unknown(it)) {
                warn!(uuid = gpu.uuid, %error, "fact of the GPU unknown: it is offered as far as that allows");
            }
        }
    }

    /// Listens to the events of these GPUs, on one thread for as long as NVML is open. What is heard goes to `heard`.
    pub fn listen(&self, heard: &mpsc::Sender<Heard>) -> io::Result<()> {
        let session = &self.session;
        session.events.listen_to(self.gpus.keys().cloned());
        let mut threads = session.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if !session.events.is_started() {
            threads.push(session.events.start(Arc::clone(&session.nvml), heard.clone())?);
        }
        Ok(())
    }

    /// False where the thread that listens does not answer.
    #[must_use]
    pub fn can_hear(&self) -> bool {
        self.session.events.is_alive()
    }

    fn discover(
        session: Arc<Session>,
        boot_id: String,
        before: Option<&Self>,
    ) -> Result<Self, HardwareError> {
        let mut facts = nvml::discover(&session.nvml)?;
        if let Some(NodeFacts { driver_version, cuda_version, unknown, .. }) = before.map(|it| &it.facts) {
            facts.driver_version = facts.driver_version.or_else(|| driver_version.clone());
            facts.cuda_version = facts.cuda_version.or(*cuda_version);
            facts.unknown = nvml::still_unknown(unknown, &facts.unknown);
        }
        let known = before.map_or_else(BTreeMap::new, |it| it.gpus.clone());
        let mut gpus = BTreeMap::new();
        for gpu in &mut facts.gpus {
            let live = match known.get(&gpu.uuid) {
                // What is known is kept, so that only what is new makes a difference.
                Some(known) => match known.facts.completed_by(gpu) {
                    Some(facts) => Arc::new(known.with_facts(facts)),
                    None => Arc::clone(known),
                },
                None => Arc::new(session.start(gpu)?),
            };
            *gpu = GpuFacts::clone(&live.facts);
            gpus.insert(gpu.uuid.clone(), live);
        }
        // What was known and cannot be described now stays: the next scan says what it suffers from.
        for (uuid, live) in &known {
            if gpus.contains_key(uuid) {
                continue;
            }
            let is_it =
                |it: &SkippedGpu| it.uuid.as_ref().map_or(it.index == live.facts.index, |it| it == uuid);
            facts.skipped.retain(|it| !is_it(it));
            facts.gpus.push(GpuFacts::clone(&live.facts));
            gpus.insert(uuid.clone(), Arc::clone(live));
        }
        facts.gpus.sort_by_key(|it| it.index);
        Ok(Self { boot_id, facts, gpus, session })
    }

    /// The GPU with this UUID.
    #[must_use]
    pub fn gpu(&self, uuid: &str) -> Option<&Arc<LiveGpu>> {
        self.gpus.get(uuid)
    }

    /// True where a GPU was left out that may be there again, also one that was lost, after a reset; and where a fact is
    /// unknown that may be known the next time.
    #[must_use]
    pub fn is_worth_another_look(&self) -> bool {
        let NodeFacts { gpus, skipped, unknown, .. } = &self.facts;
        let mut unknown = unknown.iter().chain(gpus.iter().flat_map(|it| &it.unknown));
        skipped.iter().any(|it| !it.is_for_good) || unknown.any(|it| !it.is_lasting())
    }

    /// True where no GPU was left out that may come back with what was on it, and no MIG profile that one has.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.facts.skipped.iter().all(|it| it.is_gone)
            && self.facts.gpus.iter().all(GpuFacts::has_all_profiles)
    }

    /// True where this GPU is not there any more, and what was on it neither; false also where it may be one that could
    /// not be read.
    #[must_use]
    pub fn is_gone(&self, uuid: &str) -> bool {
        let may_be = |it: &SkippedGpu| !it.is_gone && it.uuid.as_deref().is_none_or(|it| it == uuid);
        !self.gpus.contains_key(uuid) && !self.facts.skipped.iter().any(may_be)
    }

    /// True once NVML has said that the driver was unloaded or replaced: then everything has to be opened anew.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.session.is_stale.load(Ordering::Relaxed)
    }

    /// How long the thread that listens is in its present call already; nothing where it is in none.
    #[must_use]
    pub fn listening_for(&self) -> Option<Duration> {
        self.session.events.busy_for()
    }

    /// The GPUs whose threads are in a call now, and for how long.
    pub fn busy(&self) -> impl Iterator<Item = (&str, Duration)> {
        self.gpus.iter().filter_map(|(uuid, gpu)| Some((uuid.as_str(), gpu.queue.busy_for()?)))
    }

    /// Reads what may have changed: MIG mode, and every live instance, whoever made it.
    pub async fn scan(&self) -> Result<Vec<Gpu>, QueueClosed> {
        let scans = self.gpus.values().map(|it| it.scan());
        futures::future::try_join_all(scans).await
    }

    /// True where a record of this boot means this instance, which was made for it. One that somebody else made stays
    /// somebody else's, also while a claim has it.
    #[must_use]
    pub fn is_recorded(&self, parent: &str, instance: &GpuInstance, record: &Record) -> bool {
        let is_it = |device: &RecordedDevice| match &device.kind {
            RecordedKind::Gpu | RecordedKind::Share { .. } | RecordedKind::Adopted(_) => false,
            RecordedKind::Mig { spec, progress } => {
                device.parent_uuid == parent && mig::is_recorded(spec, progress, instance)
            }
        };
        record.boot_id == self.boot_id && record.devices.iter().any(is_it)
    }
}

impl Session {
    fn start(&self, gpu: &GpuFacts) -> io::Result<LiveGpu> {
        let name = format!("gpu-{}", gpu.index);
        let (queue, thread) = GpuQueue::start(Arc::clone(&self.nvml), gpu.uuid.clone(), &name)?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(LiveGpu {
            facts: Arc::new(gpu.clone()),
            queue,
            metrics: self.metrics.clone(),
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

/// Sets a flag back, whatever becomes of the work that carries it.
struct Asked(Arc<AtomicBool>);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl LiveGpu {
    /// Stops listening to the GPU's events for a moment, where that may be why it is in use. What happens to it meanwhile is
    /// missed, which is counted.
    pub fn step_aside(&self) {
        if self.events.step_aside(&self.facts.uuid) {
            self.metrics.event_gap(EventGap::Aside);
        }
    }

    /// Counts a call that failed. One that says that the driver was unloaded or replaced makes the session stale.
    pub fn nvml_failed(&self, error: &CallError) {
        self.metrics.nvml_failed(error);
        if error.means_another_driver() {
            self.is_stale.store(true, Ordering::Relaxed);
        }
    }

    /// True where the last scan found that the GPU has fallen off the bus, or must be reset before it answers again.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }

    /// What NVML recommended at the last scan to do with the GPU; nothing where the driver or the GPU does not know.
    #[must_use]
    pub fn recovery_action(&self) -> Option<RecoveryAction> {
        *self.recovery.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same GPU, of which more is known.
    fn with_facts(&self, facts: GpuFacts) -> Self {
        Self {
            facts: Arc::new(facts),
            queue: self.queue.clone(),
            metrics: self.metrics.clone(),
            attachment: self.attachment.clone(),
            events: Arc::clone(&self.events),
            is_stale: Arc::clone(&self.is_stale),
            is_lost: AtomicBool::new(self.is_lost()),
            recovery: Arc::clone(&self.recovery),
            is_asked: Arc::clone(&self.is_asked),
        }
    }

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
        let (facts, asked) = (Arc::clone(&self.facts), Asked(Arc::clone(&self.is_asked)));
        let recovery = Arc::clone(&self.recovery);
        let read = self.queue.run(move |device| {
            let _asked = asked;
            // An answer that is not to be had is none: what the scan is about does not depend on it.
            *recovery.lock().unwrap_or_else(PoisonError::into_inner) = device.recovery_action().ok();
            let Some(mig) = &facts.mig else { return nvml::answers(device).map(|()| (None, Vec::new())) };
            let mode = device.mig_mode()?;
            Ok((Some(mode), nvml::live_instances(device, &mig.profiles)?))
        });
        match timeout(PATIENCE, read).await {
            Ok(read) => {
                let read = read?;
                let code = read.as_ref().err().map(|it: &CallError| it.code);
                let is_lost = code.is_some_and(|it| [Code::GPU_IS_LOST, Code::RESET_REQUIRED].contains(&it));
                self.is_lost.store(is_lost, Ordering::Relaxed);
                Ok(read.map_err(|error| {
                    self.nvml_failed(&error);
                    error.to_string()
                }))
            }
            Err(_) => Ok(silent()),
        }
    }
}
