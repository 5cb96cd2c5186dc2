//! Passes the events of GPUs to the health state, and reports what changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mig_model::health::{Cause, Change, Condition, Report, UnhealthyReason, changes};
use mig_model::inventory::ExistingInstances;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::{HealthStore, Holder, Instance, Owner, Verdict, owner};
use crate::api::EventReason;
use crate::context::NodeContext;
use crate::nvml::{EventKind, GpuEvent, Monitoring, NvmlEvent, RESET_ADVICE, is_unsupported};
use crate::telemetry::metrics::{EventGap, GpuEventKind};

/// How often the clock is read: a gap is reported with this delay.
const PERIOD: Duration = Duration::from_secs(5);
/// The same event of the same instance is reported once in this time; all of them count.
const RECENT: Duration = Duration::from_secs(60);
/// Most reported events that are remembered.
const MOST_RECENT: usize = 64;

/// The part of the driver that follows the health of GPUs.
#[derive(Debug)]
pub struct Follower {
    /// The node.
    pub context: NodeContext,
    /// Events from the monitoring thread.
    pub nvml_events: mpsc::Receiver<NvmlEvent>,
    /// The state.
    pub store: HealthStore,
}

type RecentEvents = BTreeMap<(String, Option<u32>, EventKind), Instant>;

impl Follower {
    /// Runs until the sender of the node's state is gone.
    pub async fn run(mut self) {
        let mut reports = self.store.reports();
        let mut seen = Arc::new(Report::default());
        let mut recent = RecentEvents::new();
        // GPUs that could not be monitored at the thread's last report.
        let mut failed = BTreeSet::new();
        let mut clock = interval(PERIOD);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = Arc::clone(&reports.borrow_and_update());
            for change in changes(&seen, &now) {
                self.emit(&change);
            }
            seen = now;
            tokio::select! {
                Some(nvml_event) = self.nvml_events.recv() => self.receive(nvml_event, &mut recent, &mut failed),
                changed = reports.changed() => if changed.is_err() { return },
                changed = self.context.node.changed() => if changed.is_err() { return },
                _ = clock.tick() => self.tick(),
            }
        }
    }

    fn tick(&self) {
        let is_listening = self.context.node.borrow().hardware.as_ref().map_or(true, |it| it.is_listening());
        self.store.change(|machine, at, _| machine.listener_answers(is_listening, at));
    }

    fn receive(&self, nvml_event: NvmlEvent, recent: &mut RecentEvents, failed: &mut BTreeSet<String>) {
        match nvml_event {
            NvmlEvent::Event(event) => self.happened(&event, recent),
            NvmlEvent::Listening(listening) => {
                let is_failed =
                    |it: &Monitoring| matches!(it, Monitoring::Failed(error) if !is_unsupported(error));
                let now: BTreeSet<String> =
                    listening.iter().filter(|(_, it)| is_failed(it)).map(|(gpu, _)| gpu.clone()).collect();
                // Where it cannot be listened to any more, it may have gone.
                if !now.is_subset(failed) {
                    self.context.metrics.event_gap(EventGap::Failed);
                    self.context.rescan.notify_one();
                }
                *failed = now;
                self.store.change(|machine, at, _| machine.listening(&listening, at));
            }
        }
    }

    fn happened(&self, event: &GpuEvent, recent: &mut RecentEvents) {
        let records = self.context.checkpoint.records().unwrap_or_else(|error| {
            warn!(%error, "cannot determine the claim of an event");
            Vec::new()
        });
        let (kind, xid) = match event.kind {
            EventKind::Xid(number) => (GpuEventKind::Xid, Some(number)),
            EventKind::SingleBitEcc => (GpuEventKind::SingleBitEcc, None),
            EventKind::DoubleBitEcc => (GpuEventKind::DoubleBitEcc, None),
        };
        self.context.metrics.gpu_event(&event.gpu, kind, xid);
        let adopted = {
            let node = self.context.node.borrow();
            let is_adopted = node.inputs.policy.existing == ExistingInstances::Adopt;
            if is_adopted { Arc::clone(&node.inventory) } else { Arc::default() }
        };
        let owner = owner(event, &records, &self.context.boot_id, &adopted);
        let verdict = self.store.change(|machine, _, now| machine.event(event, &owner, now));
        // A GPU that has fallen off the bus is noticed by looking, and what NVML recommends is known by asking.
        if matches!(verdict, Verdict::Gpu | Verdict::Examine) {
            self.context.rescan.notify_one();
        }
        if is_recent(recent, event, Instant::now()) {
            return;
        }
        let (uuid, gi, kind) = (&event.gpu, event.gpu_instance, describe(event.kind));
        match (&owner, verdict) {
            (Owner::Claim(holder), verdict) => {
                let claim = &holder.claim;
                if verdict == Verdict::Harmless {
                    info!(uuid, gi, %claim, kind, "GPU event caused by the pod of a claim");
                } else {
                    warn!(uuid, gi, %claim, kind, ?verdict, "GPU event on a device of a claim");
                }
                self.emit_for_claim(holder, event, verdict);
            }
            (_, Verdict::Harmless) => info!(uuid, gi, kind, "harmless GPU event"),
            (Owner::Unclaimed(instance), Verdict::Instance) => {
                warn!(uuid, gi, device = instance.device, kind, "GPU event on an unmanaged MIG instance");
                self.emit_unclaimed(instance, event);
            }
            _ => warn!(uuid, gi, kind, ?verdict, "GPU event"),
        }
    }

    /// Reports an event of the claim, and of the pods that it is known to be reserved for.
    fn emit_for_claim(&self, holder: &Holder, event: &GpuEvent, verdict: Verdict) {
        /// A claim may have many pods, and one event is enough.
        const MOST_PODS: usize = 4;
        if event.kind == EventKind::SingleBitEcc {
            return;
        }
        let Holder { claim, device, .. } = holder;
        let (kind, uuid) = (describe(event.kind), &event.gpu);
        let pods = self.context.pods.of(&claim.uid);
        let named = &pods[..pods.len().min(MOST_PODS)];
        let names = named.iter().map(|it| it.name.as_str()).collect::<Vec<_>>().join(", ");
        let of_pods = match pods.len() {
            0 => String::new(),
            1 => format!(" of the pod {names}"),
            all if all == named.len() => format!(" of the pods {names}"),
            all => format!(" of the pods {names} and {} more", all - named.len()),
        };
        let (reason, follows) = match verdict {
            Verdict::Harmless => (
                EventReason::DeviceError,
                "an error of the program that runs there, as a rule. The device goes on as it was.",
            ),
            Verdict::Examine => (
                EventReason::DeviceError,
                "an error of the GPU. Restart what runs there if it failed. If NVML recommends a reset, the event GpuUnhealthy of the \
                 node says so.",
            ),
            _ => (
                EventReason::DeviceUnhealthy,
                "the device is unhealthy. Delete the pod, so that it is recreated with another device.",
            ),
        };
        let note = format!("{kind} on device {device}{of_pods}, GPU {uuid}: {follows}");
        self.context.events.emit_for_claim(reason, claim, note.clone());
        for pod in named {
            self.context.events.emit_for_pod(reason, &claim.namespace, pod, note.clone());
        }
    }

    fn emit_unclaimed(&self, Instance { device, gpu_instance, .. }: &Instance, event: &GpuEvent) {
        let (kind, uuid) = (describe(event.kind), &event.gpu);
        let note = format!(
            "{kind} on unmanaged MIG instance {gpu_instance} of GPU {uuid}: {device} is unhealthy and not offered until the \
             instance is recreated."
        );
        self.context.events.emit(EventReason::UnmanagedInstance, note);
    }

    fn emit(&self, change: &Change) {
        let Change { gpu, before, now } = change;
        let (reason, note) = match now {
            Condition::Unhealthy(UnhealthyReason { cause: Cause::Recovery(action), .. }) => (
                EventReason::GpuUnhealthy,
                format!(
                    "GPU {gpu} is unhealthy: NVML recommends {action}. Its free devices are withdrawn; allocated devices stay \
                     published. To follow the recommendation: {RESET_ADVICE}. The GPU is healthy again when NVML recommends nothing."
                ),
            ),
            Condition::Unhealthy(unhealthy_reason) => (
                EventReason::GpuUnhealthy,
                format!(
                    "GPU {gpu} is unhealthy: {}. Its free devices are withdrawn; allocated devices stay published. To repair it: \
                     {RESET_ADVICE}. It counts as healthy again after a reboot, or when {} is removed.",
                    unhealthy_reason.cause,
                    self.store.path().display()
                ),
            ),
            Condition::Lost { reason, .. } => (
                EventReason::GpuLost,
                format!(
                    "GPU {gpu} does not answer: {reason}. Nothing more of it is offered until it answers again. To end this: \
                     {RESET_ADVICE}."
                ),
            ),
            Condition::Unmonitored { is_for_good: true, .. } => return,
            Condition::Unmonitored { reason, .. } => (
                EventReason::GpuUnmonitored,
                format!("What happens to GPU {gpu} is not noticed at the moment: {reason}."),
            ),
            Condition::Healthy if matches!(before, Condition::Unmonitored { is_for_good: true, .. }) => {
                return;
            }
            Condition::Healthy => (
                EventReason::GpuRecovered,
                format!("GPU {gpu} is healthy again; before it was {}.", before.text()),
            ),
        };
        if now.is_bad() {
            warn!(uuid = gpu, condition = now.text(), "GPU health changed");
        } else {
            info!(uuid = gpu, condition = now.text(), before = before.text(), "GPU health changed");
        }
        self.context.events.emit(reason, note);
    }
}

/// Notes an event, and returns whether it was reported a moment ago. Beyond the limit, events count as reported.
fn is_recent(recent: &mut RecentEvents, event: &GpuEvent, now: Instant) -> bool {
    recent.retain(|_, at| now.saturating_duration_since(*at) < RECENT);
    let key = (event.gpu.clone(), event.gpu_instance, event.kind);
    if recent.contains_key(&key) || MOST_RECENT <= recent.len() {
        return true;
    }
    recent.insert(key, now);
    false
}

fn describe(kind: EventKind) -> String {
    match kind {
        EventKind::Xid(number) => Cause::Xid(number).to_string(),
        EventKind::DoubleBitEcc => Cause::DoubleBitEcc.to_string(),
        EventKind::SingleBitEcc => "an ECC error that was corrected".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::owner::fixture::xid;
    use super::*;

    #[test]
    fn a_storm_is_reported_once_in_a_while_and_is_forgotten() {
        let (mut recent, start) = (RecentEvents::new(), Instant::now());
        assert!(!is_recent(&mut recent, &xid("GPU-0", 48, None), start));
        assert!(is_recent(&mut recent, &xid("GPU-0", 48, None), start));
        assert!(!is_recent(&mut recent, &xid("GPU-0", 48, Some(1)), start));
        assert!(!is_recent(&mut recent, &xid("GPU-0", 48, None), start + RECENT));
        for number in 100..400 {
            is_recent(&mut recent, &xid("GPU-0", number, None), start + RECENT);
        }
        assert!(recent.len() <= MOST_RECENT);
    }
}
