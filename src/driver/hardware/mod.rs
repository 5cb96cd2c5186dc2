//! The GPUs of this node while the driver runs: their facts, their threads, and their changes.

mod args;
mod gpu;
mod metrics;
mod open;
mod session;
mod state;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use mig_model::facts::{GpuFacts, GpuInstance, NodeFacts, SkippedGpu};
use mig_model::inventory::Gpu;
use tokio::sync::mpsc;
use tracing::warn;

use crate::checkpoint::{Record, RecordedDevice, RecordedKind};
use crate::mig;
use crate::nvml::{CallError, NvmlEvent, QueueClosed};

pub use args::{HardwareArgs, HostArgs};
pub use gpu::LiveGpu;
pub use metrics::HardwareMetrics;
pub use open::Opener;
pub use session::HardwareError;
pub use state::{InventoryInputs, NodeState};

use session::Session;

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

impl Hardware {
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

    /// Monitors the events of these GPUs, on one thread for as long as NVML is open. Sends the events to `nvml_events`.
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
    pub fn is_listening(&self) -> bool {
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
            RecordedKind::Gpu
            | RecordedKind::AdminAccess
            | RecordedKind::Share { .. }
            | RecordedKind::Adopted(_) => false,
            RecordedKind::Mig { spec, progress } => {
                device.parent_uuid == parent && mig::is_recorded(spec, progress, instance)
            }
        };
        record.boot_id == self.boot_id && record.devices.iter().any(is_it)
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
    use crate::nvml;
    use crate::telemetry::metrics::Metrics;
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
