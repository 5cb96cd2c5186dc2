//! The GPUs of this node while the driver runs: their facts, their threads, and their changes.

mod args;
mod metrics;
mod state;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mig_model::facts::{GpuFacts, GpuInstance, MigMode, NodeFacts, RecoveryAction, SkippedGpu};
use mig_model::inventory::{Attachment, Gpu, GpuState};
use nvml_wrapper::Nvml;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::checkpoint::{Record, RecordedDevice, RecordedKind};
use crate::nvml::{
    self, CallError, Code, Discovery, GpuQueue, Monitor, NvmlEvent, OpenError, QueueClosed, Sessions,
};
use crate::telemetry::metrics::{EventGap, Metrics};
use crate::{host, mig};

pub use args::{HardwareArgs, HostArgs};
pub use metrics::HardwareMetrics;
pub use state::{InventoryInputs, NodeState};

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

/// Opens NVML.
#[derive(Debug)]
pub struct Opener {
    args: HardwareArgs,
    metrics: Metrics,
    hung_after: Duration,
    sessions: Sessions,
}

/// NVML while it is open.
#[derive(Debug)]
struct Session {
    nvml: Arc<Nvml>,
    discovery: Discovery,
    hung_after: Duration,
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
    hung_after: Duration,
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
    /// NVML has not come back.
    #[error(
        "NVML does not answer: a call to open it, nvmlInit or one that counts the GPUs, has not come back; `nvidia-smi` and the \
         kernel log of the node show more; a restart of the driver's pod does not help"
    )]
    Silent,
    /// The kernel did not report the boot id, or no thread could be started.
    #[error(transparent)]
    Host(#[from] io::Error),
}

impl Opener {
    /// Opens it as the arguments say. A GPU whose thread is in one piece of work for longer than `hung_after` hangs.
    #[must_use]
    pub fn new(args: HardwareArgs, metrics: Metrics, hung_after: Duration) -> Self {
        Self { args, metrics, hung_after, sessions: Sessions::default() }
    }

    /// Opens NVML and reads the node. Blocks for as long as NVML itself takes; a GPU that does not answer is skipped.
    pub fn open(&self) -> Result<Hardware, HardwareError> {
        let args = &self.args;
        let boot_id = host::boot_id(&args.proc_root)?;
        let library = args.nvml_library()?;
        let nvml = self.sessions.open(&library)?;
        let session = Session {
            discovery: Discovery::new(Arc::clone(&nvml), args.nvml_step_time),
            nvml,
            hung_after: self.hung_after,
            threads: Mutex::default(),
            events: Arc::default(),
            sys_root: args.sys_root.clone(),
            is_stale: Arc::default(),
            metrics: self.metrics.clone(),
        };
        let opened = Hardware::discover(Arc::new(session), boot_id, None)?;
        opened.log_missing(None);
        let (facts, gpus) = (&opened.facts, opened.gpus.len());
        let driver = facts.driver_version.as_deref().unwrap_or("unknown");
        info!(library = %library.display(), driver, gpus, skipped = facts.skipped.len(), "NVML opened");
        Ok(opened)
    }
}

impl Hardware {
    /// Opens NVML once and reads the node, for a program that looks at it and ends. [`HardwareError::Silent`] where NVML does not
    /// answer in time.
    pub async fn open(args: HardwareArgs) -> Result<Self, HardwareError> {
        /// Nothing changes a GPU here.
        const NEVER: Duration = Duration::MAX;
        /// The driver goes on without it far earlier; here nothing else is to do.
        const STEPS: u32 = 6;
        let patience = args.nvml_step_time * STEPS;
        let (send, opened) = oneshot::channel();
        thread::Builder::new().name("open".to_owned()).spawn(move || {
            // The receiver may be gone.
            let _ = send.send(Opener::new(args, Metrics::default(), NEVER).open());
        })?;
        match timeout(patience, opened).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(_)) => Err(io::Error::other("the thread that opens NVML has died").into()),
            Err(_) => Err(HardwareError::Silent),
        }
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
                warn!(uuid = gpu.uuid, %error, "a fact of the GPU is unknown: it is published as far as possible");
            }
        }
    }

    /// Monitors the events of these GPUs, on one thread for as long as NVML is open. Sends the events to `heard`.
    pub fn listen(&self, nvml_events: &mpsc::Sender<NvmlEvent>) -> io::Result<()> {
        let session = &self.session;
        session.events.listen_to(self.gpus.iter().map(|(uuid, gpu)| (uuid.clone(), gpu.facts.index)));
        let mut threads = session.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if !session.events.is_started() {
            threads.push(session.events.start(Arc::clone(&session.nvml), nvml_events.clone())?);
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
        let mut facts = session.discovery.discover()?;
        if let Some(NodeFacts { driver_version, cuda_version, unknown, .. }) = before.map(|it| &it.facts) {
            facts.driver_version = facts.driver_version.or_else(|| driver_version.clone());
            facts.cuda_version = facts.cuda_version.or(*cuda_version);
            facts.unknown = mig_model::call::still_unknown(unknown, &facts.unknown);
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

    /// True once NVML has said that the driver was unloaded or replaced: then everything has to be reopened.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.session.is_stale.load(Ordering::Relaxed)
    }

    /// How long the thread that listens is in its present call already; nothing where it is in none.
    #[must_use]
    pub fn listening_for(&self) -> Option<Duration> {
        self.session.events.busy_for()
    }

    /// The GPUs whose threads are in a call now, or are being discovered, by UUID or index, and for how long.
    #[must_use]
    pub fn busy(&self) -> Vec<(String, Duration)> {
        let working = self.gpus.iter().filter_map(|(uuid, gpu)| Some((uuid.clone(), gpu.queue.busy_for()?)));
        self.session.discovery.busy().into_iter().chain(working).collect()
    }

    /// Reads what may have changed: MIG mode, and every live instance, managed or not.
    pub async fn scan(&self) -> Result<Vec<Gpu>, QueueClosed> {
        Ok(self.scan_beside(|| ()).await?.into_iter().map(|(gpu, _)| gpu).collect())
    }

    /// The same with what `note` answers right before and right after the instances of each GPU are listed, on the GPU's own
    /// thread: no other work of this process on that GPU comes between. Another GPU may keep the whole scan waiting for
    /// seconds. Nothing is noted for a GPU that cannot be read, or has no MIG.
    pub async fn scan_beside<T: Send + 'static>(
        &self,
        note: impl Fn() -> T + Clone + Send + 'static,
    ) -> Result<Vec<(Gpu, Vec<T>)>, QueueClosed> {
        let scans = self.gpus.values().map(|it| it.scan(note.clone()));
        futures::future::try_join_all(scans).await
    }

    /// True where a record of this boot means this instance, which was created for it. An unmanaged instance stays
    /// unmanaged, also while a claim has it.
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
            self.metrics.event_gap(EventGap::Paused);
        }
    }

    /// Counts a call that failed. One that says that the driver was unloaded or replaced makes the session stale.
    pub fn nvml_failed(&self, error: &CallError) {
        self.metrics.nvml_failed(error);
        if error.means_another_driver() {
            self.is_stale.store(true, Ordering::Relaxed);
        }
    }

    /// True where the GPU's thread does not come back from a piece of work: what waits for it may be withdrawn.
    #[must_use]
    pub fn hangs(&self) -> bool {
        self.queue.busy_for().is_some_and(|it| self.hung_after <= it)
    }

    /// The earliest time from now at which [`Self::hangs`] can become true.
    #[must_use]
    pub fn hangs_not_before(&self) -> Duration {
        self.hung_after.saturating_sub(self.queue.busy_for().unwrap_or_default())
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
            hung_after: self.hung_after,
            attachment: self.attachment.clone(),
            events: Arc::clone(&self.events),
            is_stale: Arc::clone(&self.is_stale),
            is_lost: AtomicBool::new(self.is_lost()),
            recovery: Arc::clone(&self.recovery),
            is_asked: Arc::clone(&self.is_asked),
        }
    }

    async fn scan<T: Send + 'static>(
        &self,
        note: impl Fn() -> T + Send + 'static,
    ) -> Result<(Gpu, Vec<T>), QueueClosed> {
        let (state, notes) = match self.read(note).await? {
            Ok((mode, instances, notes)) => (GpuState { mode, instances, problem: None }, notes),
            Err(problem) => {
                let mode = self.facts.mig.as_ref().map(|it| it.mode);
                (GpuState { mode, instances: Vec::new(), problem: Some(problem) }, Vec::new())
            }
        };
        Ok((Gpu { facts: Arc::clone(&self.facts), attachment: self.attachment.clone(), state }, notes))
    }

    /// MIG mode and instances, or why they cannot be read now. A GPU that does not answer is asked once, and not waited
    /// for long: it must not delay the scans of the others.
    async fn read<T: Send + 'static>(
        &self,
        note: impl Fn() -> T + Send + 'static,
    ) -> Result<Result<(Option<MigMode>, Vec<GpuInstance>, Vec<T>), String>, QueueClosed> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let silent = || Err("NVML does not answer for this GPU".to_owned());
        let is_stuck = self.queue.busy_for().is_some_and(|it| PATIENCE <= it);
        if is_stuck || self.is_asked.swap(true, Ordering::Relaxed) {
            return Ok(silent());
        }
        let (facts, asked) = (Arc::clone(&self.facts), Asked(Arc::clone(&self.is_asked)));
        let recovery = Arc::clone(&self.recovery);
        let read = self.queue.run(move |device| {
            let _asked = asked;
            // A failed read counts as no answer: what the scan is about does not depend on it.
            *recovery.lock().unwrap_or_else(PoisonError::into_inner) = device.recovery_action().ok();
            let Some(mig) = &facts.mig else {
                return nvml::answers(device).map(|()| (None, Vec::new(), Vec::new()));
            };
            let mode = device.mig_mode()?;
            let before = note();
            let instances = nvml::live_instances(device, &mig.profiles)?;
            Ok((Some(mode), instances, vec![before, note()]))
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::pin::pin;

    use nvml_sim::{SimNode, parse_gpus};

    use super::*;
    use crate::checkpoint::fixture::{record, taken};
    use crate::checkpoint::{Checkpoint, Progress};
    use mig_model::inventory::MigSpec;

    fn open(node: &SimNode, directory: &Path) -> Hardware {
        let args = HardwareArgs {
            driver_root: directory.to_owned(),
            driver_library: Some(node.library()),
            proc_root: directory.join("proc"),
            sys_root: directory.join("sys"),
            nvml_step_time: Duration::from_secs(60),
        };
        Opener::new(args, Metrics::default(), Duration::from_secs(60)).open().unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_records_of_a_claim_that_ends_while_another_gpu_is_waited_for_come_with_its_instances() {
        let directory = tempfile::tempdir().unwrap();
        let node = SimNode::create(directory.path(), &parse_gpus("2xH100-80GB").unwrap()).unwrap();
        let planted = node.plant_instance(0, "1g.10gb", 3).unwrap();
        let hardware = open(&node, directory.path());
        let (first, second) = (&hardware.facts.gpus[0], &hardware.facts.gpus[1]);
        let profile = first.mig.as_ref().unwrap().profiles.iter().find(|it| it.name == "1g.10gb").unwrap();
        let placement = *profile.placements.iter().find(|it| it.start == 3).unwrap();
        let progress = Progress::Complete {
            gpu_instance: planted.gpu_instance,
            compute_instance: planted.compute_instance,
            uuid: planted.uuid,
        };
        let device = RecordedDevice {
            name: "gpu-mig".to_owned(),
            pool: "pool".to_owned(),
            requests: Vec::new(),
            parent_uuid: first.uuid.clone(),
            kind: RecordedKind::Mig { spec: MigSpec::of(profile, placement), progress },
            unknown: serde_json::Map::new(),
        };
        let record = Record { boot_id: hardware.boot_id.clone(), devices: vec![device], ..record("uid-1") };
        let checkpoint = Checkpoint::open(&directory.path().join("claims")).unwrap();

        // Another call keeps the second GPU busy from before the claim is prepared until after it is unprepared.
        let (release, released) = std::sync::mpsc::channel::<()>();
        let queue = hardware.gpu(&second.uuid).unwrap().queue.clone();
        let busy = tokio::spawn(async move {
            let wait = move |_: &nvml::DeviceHandle<'_>| {
                let _ = released.recv();
                Ok::<_, CallError>(())
            };
            queue.run(wait).await
        });
        let queue = &hardware.gpu(&first.uuid).unwrap().queue;
        let mut journal = taken(&checkpoint, "uid-1");
        let begun = journal.begin(&record, &checkpoint.try_reserve().unwrap().unwrap()).unwrap();
        journal.force(begun).unwrap();
        let read = checkpoint.clone();
        let mut scan = pin!(hardware.scan_beside(move || read.records().unwrap()));
        assert!(futures::poll!(&mut scan).is_pending());
        // What a claim does on a GPU comes after the scan that was asked for before.
        queue.run(|_| Ok::<_, CallError>(())).await.unwrap().unwrap();
        journal.forget().unwrap();
        release.send(()).unwrap();
        let scanned = scan.await.unwrap();
        busy.await.unwrap().unwrap().unwrap();

        let (gpu, noted) = scanned.iter().find(|(gpu, _)| gpu.facts.uuid == first.uuid).unwrap();
        let instance = &gpu.state.instances[0];
        assert!(checkpoint.records().unwrap().is_empty());
        let mut records = noted.iter().flatten();
        assert!(records.any(|it| hardware.is_recorded(&first.uuid, instance, it)), "{noted:?}");
    }
}
