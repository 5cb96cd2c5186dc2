//! Samples the stages of claims, and the usage of their instances.
//!
//! Samples only while `/metrics` is scraped, every few seconds, and never within a scrape: a scrape returns what was
//! seen last. Claims come first. A GPU is asked between two calls for it, an instance at a time and only while no call
//! waits for its thread; one that hangs is not asked again before it has answered.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use futures::future::join_all;
use mig_model::claim::ClaimRef;
use mig_model::facts::{Engine, GpuFacts, Memory};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::checkpoint::{ClaimState, Record};
use crate::context::NodeContext;
use crate::hardware::LiveGpu;
use crate::nvml::{CallError, DeviceHandle};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(5);
/// For so long after a reading it is looked on: twice the longest interval that is usual.
const INTEREST: Duration = Duration::from_secs(120);
/// What is older is not shown.
const OLDEST: Duration = Duration::from_secs(60);
/// Longest wait for a GPU.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is measured of instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum UsagePolicy {
    /// Memory, and how busy they are where the GPU measures that (GPM, Hopper and later).
    All,
    /// Memory.
    Memory,
    /// Nothing: no call into NVML is made for metrics.
    Off,
}

/// The instance of a claim, and its usage at the last sample.
#[derive(Debug, Clone)]
pub(super) struct InstanceUse {
    /// Not the GPU itself: what is shown must not keep NVML open.
    pub(super) gpu: Arc<GpuFacts>,
    pub(super) gpu_instance: u32,
    pub(super) profile: String,
    pub(super) claim: ClaimRef,
    pub(super) pods: String,
    pub(super) memory: Memory,
    pub(super) engines: Vec<(Engine, f64)>,
    seen: Instant,
}

/// The last samples, for scrapes, and the time of the last scrape, for the sampler.
#[derive(Debug, Default)]
pub struct Seen {
    last: Mutex<Look>,
    read: Notify,
}

/// One look.
#[derive(Debug, Default)]
struct Look {
    read_at: Option<Instant>,
    claims: BTreeMap<ClaimState, usize>,
    instances: Vec<InstanceUse>,
}

/// Does the looking.
#[derive(Debug)]
pub struct Sampler {
    /// The node.
    pub context: NodeContext,
    /// What to measure.
    pub policy: UsagePolicy,
    /// Where it is put.
    pub seen: Arc<Seen>,
}

impl Seen {
    /// What was seen last; makes it be looked on.
    pub(super) fn read<T>(&self, take: impl FnOnce(&BTreeMap<ClaimState, usize>, &[InstanceUse]) -> T) -> T {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.read_at = Some(Instant::now());
        self.read.notify_one();
        last.instances.retain(|it| it.seen.elapsed() < OLDEST);
        take(&last.claims, &last.instances)
    }

    fn is_read(&self) -> bool {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.read_at.is_some_and(|it| it.elapsed() < INTEREST)
    }

    fn put(&self, claims: BTreeMap<ClaimState, usize>, instances: Option<Vec<InstanceUse>>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.claims = claims;
        if let Some(instances) = instances {
            last.instances = instances;
        }
    }

    fn instances(&self) -> Vec<InstanceUse> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).instances.clone()
    }
}

impl Sampler {
    /// Samples while `/metrics` is scraped, until `stop`.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let look = async {
            loop {
                self.seen.read.notified().await;
                while self.seen.is_read() {
                    self.look().await;
                    sleep(PAUSE).await;
                }
                self.let_go(&self.seen.instances(), |_| false).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            () = look => Ok(()),
        }
    }

    async fn look(&self) {
        let listed = match tokio::task::block_in_place(|| self.context.checkpoint.list()) {
            Ok(listed) => listed,
            Err(error) => {
                debug!(%error, "cannot list the claims for metrics");
                return;
            }
        };
        let mut claims: BTreeMap<ClaimState, usize> = BTreeMap::new();
        let mut records = Vec::new();
        for (_, stored) in &listed {
            let Some(state) = ClaimState::of(stored, &self.context.boot_id) else { continue };
            records.extend(stored.record());
            *claims.entry(state).or_default() += 1;
        }
        // Claims are shown at once; a GPU may take its time.
        self.seen.put(claims.clone(), None);
        if self.policy != UsagePolicy::Off {
            let instances = self.use_of(&records).await;
            self.seen.put(claims, Some(instances));
        }
    }

    /// What the instances of prepared claims use, GPUs in parallel.
    async fn use_of(&self, records: &[Arc<Record>]) -> Vec<InstanceUse> {
        let hardware = self.context.node.borrow().hardware.clone();
        let Ok(hardware) = hardware else { return Vec::new() };
        let mut wanted: BTreeMap<&str, Vec<Wanted<'_>>> = BTreeMap::new();
        let boot_id = &self.context.boot_id;
        let is_prepared = |it: &&Arc<Record>| ClaimState::of_record(it, boot_id) == ClaimState::Prepared;
        for record in records.iter().filter(is_prepared) {
            for device in &record.devices {
                let Some((ids, spec)) = device.kind.instance() else { continue };
                let instance = Wanted { ids, profile: &spec.profile, claim: &record.claim };
                wanted.entry(&device.parent_uuid).or_default().push(instance);
            }
        }
        let before = self.seen.instances();
        let is_wanted = |known: &InstanceUse| {
            wanted.get(known.gpu.uuid.as_str()).is_some_and(|it| it.iter().any(|it| it.is(known)))
        };
        self.let_go(&before, is_wanted).await;
        let looks = wanted.into_iter().filter_map(|(uuid, wanted)| {
            let gpu = hardware.gpu(uuid)?;
            Some(self.use_on(gpu, wanted, &before))
        });
        join_all(looks).await.into_iter().flatten().collect()
    }

    /// Gives back what NVML holds for instances that are not wanted any more. One that the driver destroys is let go of in any
    /// case, but an unmanaged one, which others may destroy, outlives its claim.
    async fn let_go(&self, known: &[InstanceUse], is_wanted: impl Fn(&InstanceUse) -> bool) {
        let hardware = self.context.node.borrow().hardware.clone();
        let Ok(hardware) = hardware else { return };
        let unwanted = known.iter().filter(|it| !is_wanted(it));
        let forgotten = unwanted.filter_map(|known| {
            let (gpu, gpu_instance) = (hardware.gpu(&known.gpu.uuid)?, known.gpu_instance);
            // The queue runs it, although no caller waits for it.
            Some(timeout(
                PATIENCE,
                gpu.queue.run(move |handle| {
                    handle.forget_utilization_of(gpu_instance);
                    Ok::<_, CallError>(())
                }),
            ))
        });
        join_all(forgotten).await;
    }

    /// What instances of one GPU use. Of those for which there was no time it is what was known before.
    async fn use_on(
        &self,
        gpu: &LiveGpu,
        wanted: Vec<Wanted<'_>>,
        before: &[InstanceUse],
    ) -> Vec<InstanceUse> {
        let mut found = Vec::new();
        let mut is_unanswered = false;
        for it in wanted {
            let known = || before.iter().find(|known| it.is(known)).cloned();
            if is_unanswered || 0 < gpu.queue.pending() {
                found.extend(known());
                continue;
            }
            let (ids, owner, policy) = (it.ids, it.claim.uid.to_string(), self.policy);
            let read = gpu.queue.run(move |handle| measure(handle, ids, &owner, policy));
            match timeout(PATIENCE, read).await {
                Ok(Ok(Ok(Some((memory, engines))))) => found.push(InstanceUse {
                    gpu: Arc::clone(&gpu.facts),
                    gpu_instance: it.ids.0,
                    profile: it.profile.to_owned(),
                    claim: it.claim.clone(),
                    pods: self.context.pods.names(&it.claim.uid),
                    memory,
                    engines,
                    seen: Instant::now(),
                }),
                // The claim is being unprepared, or another program destroyed its instance.
                Ok(Ok(Ok(None))) => {}
                Ok(Ok(Err(error))) => {
                    gpu.metrics.nvml_failed(&error);
                    debug!(%error, gpu = gpu.facts.uuid, "cannot read the usage of an instance");
                    found.extend(known());
                }
                Ok(Err(_)) | Err(_) => {
                    is_unanswered = true;
                    found.extend(known());
                }
            }
        }
        found
    }
}

/// An instance to sample.
struct Wanted<'r> {
    /// GPU instance and compute instance.
    ids: (u32, u32),
    profile: &'r str,
    claim: &'r ClaimRef,
}

impl Wanted<'_> {
    /// Whether it is this one, on the same GPU.
    fn is(&self, known: &InstanceUse) -> bool {
        known.gpu_instance == self.ids.0 && known.claim.uid == self.claim.uid
    }
}

/// Memory, and how busy which part is.
type Measured = (Memory, Vec<(Engine, f64)>);

/// On the GPU's thread: what one instance uses, if it is there.
fn measure(
    handle: &DeviceHandle<'_>,
    (gpu_instance, compute_instance): (u32, u32),
    owner: &str,
    policy: UsagePolicy,
) -> Result<Option<Measured>, CallError> {
    let Some(memory) = handle.memory_of(gpu_instance, compute_instance)? else { return Ok(None) };
    let engines = match policy {
        // That the engines cannot be measured says nothing against the memory.
        UsagePolicy::All => handle.utilization_of(gpu_instance, owner).unwrap_or_else(|error| {
            debug!(%error, gpu_instance, "cannot read the utilization of an instance");
            Vec::new()
        }),
        UsagePolicy::Memory | UsagePolicy::Off => Vec::new(),
    };
    Ok(Some((memory, engines)))
}
