//! The state machine: events, scans and the clock in, conditions out. Pure; the table is in the module above.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mig_model::claim::ClaimRef;
use mig_model::facts::{GpuInstance, RecoveryAction};
use mig_model::health::{Cause, Condition, IgnoredXids, Report, UnhealthyInstance, UnhealthyReason};
use mig_model::inventory;

use super::{Instance, Owner};
use crate::checkpoint::{Progress, Record, RecordedDevice, RecordedKind};
use crate::nvml::{EventKind, GpuEvent, Listening, Monitoring, is_unsupported};

/// How long events or scans of a GPU may be missing before that is a condition: longer than monitoring takes to restart.
pub const GRACE: Duration = Duration::from_secs(15);

/// The XID with which the driver reports that it recommends another recovery action.
const RECOVERY_ACTION_CHANGED: u64 = 154;

/// Most unhealthy instances that are remembered: more than a node has.
const MOST_INSTANCES: usize = 512;

/// What is known of all GPUs.
#[derive(Debug, Default)]
pub struct Machine {
    ignored: IgnoredXids,
    gpus: BTreeMap<String, Gpu>,
    instances: Vec<UnhealthyInstance>,
    /// Why no GPU is monitored at the moment.
    listener_gap: Option<Gap>,
}

#[derive(Debug, Default)]
struct Gpu {
    unhealthy: Option<UnhealthyReason>,
    /// What NVML said, and since when.
    lost: Option<(String, u64)>,
    /// Why its events are not monitored.
    unmonitored: Option<Gap>,
    /// Why it cannot be read.
    unread: Option<Gap>,
    /// Whether NVML says what to do with it; then that decides whether the GPU is unhealthy, and not the number of an XID.
    has_advice: bool,
}

#[derive(Debug)]
struct Gap {
    reason: String,
    since: Instant,
    is_for_good: bool,
}

/// What a scan found of a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scan {
    /// It answers. What NVML recommends to do with it; nothing where the driver or the GPU does not know.
    Well(Option<RecoveryAction>),
    /// It is lost, in NVML's words.
    Lost(String),
    /// It could not be read for another reason.
    Unread(String),
}

/// What an event turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A program's own doing, or an error that was corrected.
    Harmless,
    /// The instance of a claim suffers, or one that could be a claim's.
    Instance,
    /// The whole GPU suffers.
    Gpu,
    /// The next scan decides by what NVML recommends whether the whole GPU suffers.
    Examine,
    /// The error is about an unmanaged instance, whose health the driver does not judge.
    Unmanaged,
}

impl Machine {
    /// Starts with the state that the previous process saved: GPUs and instances that were unhealthy.
    #[must_use]
    pub fn new(
        ignored: IgnoredXids,
        gpus: BTreeMap<String, UnhealthyReason>,
        instances: Vec<UnhealthyInstance>,
    ) -> Self {
        let unhealthy = |(uuid, it)| (uuid, Gpu { unhealthy: Some(it), ..Gpu::default() });
        Self { ignored, gpus: gpus.into_iter().map(unhealthy).collect(), instances, listener_gap: None }
    }

    /// Something happened. `now` is in seconds since the epoch.
    pub fn event(&mut self, event: &GpuEvent, owner: &Owner, now: u64) -> Verdict {
        let has_advice = self.gpus.get(&event.gpu).is_some_and(|it| it.has_advice);
        let cause = match event.kind {
            EventKind::SingleBitEcc => return Verdict::Harmless,
            // It says nothing but that NVML's recommendation has changed.
            EventKind::Xid(RECOVERY_ACTION_CHANGED) if has_advice => return Verdict::Examine,
            EventKind::Xid(number) if self.ignored.has(number) => return Verdict::Harmless,
            EventKind::Xid(number) => Cause::Xid(number),
            EventKind::DoubleBitEcc => Cause::DoubleBitEcc,
        };
        let unhealthy_reason = UnhealthyReason { cause, since: now };
        let (instance, claim) = match owner {
            Owner::Claim(holder) => (holder.instance.as_ref(), Some(&holder.claim)),
            Owner::Unclaimed(instance) => (Some(instance), None),
            Owner::Unmanaged if !cause.concerns_the_gpu() => return Verdict::Unmanaged,
            Owner::Unmanaged | Owner::Gpu => (None, None),
        };
        if let Some(instance) = instance
            && !cause.concerns_the_gpu()
        {
            self.suffers(&event.gpu, instance, claim, unhealthy_reason);
            return Verdict::Instance;
        }
        if cause.is_contained() {
            return Verdict::Harmless;
        }
        if has_advice {
            return Verdict::Examine;
        }
        self.gpus.entry(event.gpu.clone()).or_default().unhealthy.get_or_insert(unhealthy_reason);
        Verdict::Gpu
    }

    fn suffers(
        &mut self,
        gpu: &str,
        instance: &Instance,
        claim: Option<&ClaimRef>,
        unhealthy_reason: UnhealthyReason,
    ) {
        let Instance { device, gpu_instance, uuid, is_adopted } = instance.clone();
        let is_it = |it: &UnhealthyInstance| {
            it.parent == gpu && it.uuid == uuid && (is_adopted || it.claim.as_ref() == claim)
        };
        if self.instances.iter().any(is_it) || MOST_INSTANCES <= self.instances.len() {
            return;
        }
        let (parent, claim) = (gpu.to_owned(), claim.cloned());
        self.instances.push(UnhealthyInstance {
            parent,
            gpu_instance,
            uuid,
            claim,
            device,
            is_adopted,
            unhealthy_reason,
        });
    }

    /// Sets which GPUs are monitored; a GPU that is not listed is not. Neither is one whose monitoring is paused, so that an instance
    /// can be destroyed; that takes a moment, and longer only if another process uses the instance.
    pub fn listening(&mut self, listening: &Listening, at: Instant) {
        for uuid in listening.keys() {
            self.gpus.entry(uuid.clone()).or_default();
        }
        for (uuid, gpu) in &mut self.gpus {
            match listening.get(uuid) {
                Some(Monitoring::Active) => gpu.unmonitored = None,
                Some(Monitoring::Paused) => {
                    let reason =
                        "the driver does not listen to its events while an instance is destroyed".to_owned();
                    gap(&mut gpu.unmonitored, reason, false, at);
                }
                Some(Monitoring::Failed(error)) => {
                    let reason = format!("its events cannot be received: {error}");
                    gap(&mut gpu.unmonitored, reason, is_unsupported(error), at);
                }
                None => gap(&mut gpu.unmonitored, "its events are not monitored".to_owned(), false, at),
            }
        }
    }

    /// Sets whether the monitoring thread responds. While it does not, no GPU is monitored.
    pub fn listener_answers(&mut self, does: bool, at: Instant) {
        if does {
            self.listener_gap = None;
        } else {
            gap(
                &mut self.listener_gap,
                "the thread that listens to GPUs does not answer".to_owned(),
                false,
                at,
            );
        }
    }

    /// Applies a scan of GPUs. `now` is in seconds since the epoch.
    pub fn scanned(&mut self, scans: impl IntoIterator<Item = (String, Scan)>, at: Instant, now: u64) {
        for (uuid, scan) in scans {
            let gpu = self.gpus.entry(uuid.clone()).or_default();
            match scan {
                Scan::Well(advice) => {
                    gpu.unread = None;
                    // What has been lost answers only after it was reset.
                    if gpu.lost.take().is_some() {
                        gpu.unhealthy = None;
                        self.instances.retain(|it| it.parent != uuid);
                    }
                    gpu.advise(advice, now);
                }
                Scan::Lost(reason) => {
                    gpu.lost.get_or_insert((reason, now));
                }
                Scan::Unread(reason) => gap(&mut gpu.unread, reason, false, at),
            }
        }
    }

    /// Clears the unhealthy instances that no longer belong to these claims: they are gone, or recreated. Unmanaged ones
    /// are gone only if they are no longer on these GPUs; for a GPU that cannot be read, this is unknown.
    pub fn live(&mut self, records: &[Arc<Record>], gpus: &[inventory::Gpu]) {
        let exists = |unhealthy: &UnhealthyInstance| {
            let gpu = gpus.iter().find(|it| it.facts.uuid == unhealthy.parent);
            let is_it = |it: &GpuInstance| {
                it.id == unhealthy.gpu_instance
                    && it.compute_instances.iter().any(|it| it.uuid == unhealthy.uuid)
            };
            gpu.is_none_or(|it| it.state.problem.is_some() || it.state.instances.iter().any(is_it))
        };
        let is_it = |unhealthy: &UnhealthyInstance, device: &RecordedDevice| match &device.kind {
            RecordedKind::Mig { progress: Progress::Complete { gpu_instance, uuid, .. }, .. } => {
                device.name == unhealthy.device
                    && *gpu_instance == unhealthy.gpu_instance
                    && *uuid == unhealthy.uuid
            }
            RecordedKind::Adopted(it) => {
                device.name == unhealthy.device
                    && it.gpu_instance == unhealthy.gpu_instance
                    && it.uuid == unhealthy.uuid
            }
            _ => false,
        };
        self.instances.retain_mut(|unhealthy| {
            let has_it = |it: &&Arc<Record>| it.devices.iter().any(|device| is_it(unhealthy, device));
            let holder = if unhealthy.is_adopted {
                records.iter().find(has_it)
            } else {
                records.iter().filter(|it| Some(&it.claim) == unhealthy.claim.as_ref()).find(has_it)
            };
            let claim = holder.map(|it| it.claim.clone());
            let stays = if unhealthy.is_adopted { exists(unhealthy) } else { claim.is_some() };
            unhealthy.claim = claim;
            stays
        });
    }

    /// The NVIDIA driver was reloaded, which resets GPUs, or an operator cleared the state. A lost GPU stays lost until
    /// it answers.
    pub fn forget(&mut self) {
        self.gpus.values_mut().for_each(|it| it.unhealthy = None);
        self.instances.clear();
    }

    /// The unhealthy GPUs and the unhealthy instances.
    #[must_use]
    pub fn unhealthy(&self) -> (BTreeMap<String, UnhealthyReason>, &[UnhealthyInstance]) {
        let gpus = self.gpus.iter().filter_map(|(uuid, it)| Some((uuid.clone(), it.unhealthy?)));
        (gpus.collect(), &self.instances)
    }

    /// How everything is at this time.
    #[must_use]
    pub fn report(&self, at: Instant) -> Report {
        let condition =
            |(uuid, gpu): (&String, &Gpu)| (uuid.clone(), gpu.condition(self.listener_gap.as_ref(), at));
        Report { gpus: self.gpus.iter().map(condition).collect(), instances: self.instances.clone() }
    }
}

impl Gpu {
    /// What NVML recommends decides, where it does: nothing means that the GPU is healthy, whatever it suffered from.
    fn advise(&mut self, advice: Option<RecoveryAction>, now: u64) {
        self.has_advice = advice.is_some();
        match advice {
            Some(RecoveryAction::None) => self.unhealthy = None,
            Some(action) => {
                self.unhealthy.get_or_insert(UnhealthyReason { cause: Cause::Recovery(action), since: now });
            }
            None => {}
        }
    }

    /// `listener_gap` is the reason why no GPU is monitored; a GPU without event support never was.
    fn condition(&self, listener_gap: Option<&Gap>, at: Instant) -> Condition {
        if let Some((reason, since)) = &self.lost {
            return Condition::Lost { reason: reason.clone(), since: *since };
        }
        if let Some(unhealthy_reason) = self.unhealthy {
            return Condition::Unhealthy(unhealthy_reason);
        }
        let lasts = |it: &&Gap| it.is_for_good || GRACE <= at.saturating_duration_since(it.since);
        match self.unread.iter().chain(&self.unmonitored).chain(listener_gap).find(lasts) {
            Some(gap) => Condition::Unmonitored { reason: gap.reason.clone(), is_for_good: gap.is_for_good },
            None => Condition::Healthy,
        }
    }
}

/// Notes a gap, or another reason for one that has begun.
fn gap(gap: &mut Option<Gap>, reason: String, is_for_good: bool, at: Instant) {
    let since = gap.as_ref().map_or(at, |it| it.since);
    *gap = Some(Gap { reason, since, is_for_good });
}

#[cfg(test)]
mod tests;
