//! Keeps the state of the node up to date: opens NVML, scans the GPUs periodically, and follows the devices of claims
//! and the health of GPUs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use mig_model::facts::GpuInstance;
use mig_model::health::Report;
use mig_model::inventory::{
    ExistingInstances, Gpu, HostAccess, Inventory, MigAccess, OfferPolicy, Problem, inventory_on,
    not_adopted, withheld,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::attempt::{Attempt, Outcome};
use super::kernel_view::{KernelView, NodesChanged};
use super::problems::{left_alone, otherwise, problems};
use crate::api::EventReason;
use crate::cdi::ClaimFiles;
use crate::checkpoint::{Record, RecordedKind, Stored};
use crate::context::NodeContext;
use crate::hardware::{Hardware, HardwareError, InventoryInputs, NodeState, Opener};
use crate::health::{HealthStore, Scan};
use crate::nvml::{CallTimer, NvmlEvent};
use crate::readiness::{Effect, HostCondition, HostReadiness};
use crate::telemetry::metrics::Recovery;

/// How long changes of the claims' devices are collected before they are processed.
const BURST: Duration = Duration::from_millis(50);

/// Keeps the node's state up to date.
pub(super) struct HardwareWatch {
    pub(super) context: NodeContext,
    pub(super) opener: Arc<Opener>,
    /// How long opening NVML is waited for.
    pub(super) patience: Duration,
    pub(super) existing: ExistingInstances,
    pub(super) time_slices: u32,
    pub(super) cdi: ClaimFiles,
    pub(super) kernel: KernelView,
    pub(super) state: watch::Sender<NodeState>,
    pub(super) gpus: Vec<Gpu>,
    pub(super) readiness: Arc<HostReadiness>,
    /// Result of the last read of the host.
    pub(super) host: Vec<HostCondition>,
    pub(super) health: HealthStore,
    /// Channel for the events of the monitoring thread.
    pub(super) nvml_events: mpsc::Sender<NvmlEvent>,
    /// Opening NVML, if that is under way.
    pub(super) attempt: Option<Attempt<Result<Hardware, HardwareError>>>,
    /// The read of the host that is in progress, if any.
    pub(super) at_host: Option<Attempt<Vec<HostCondition>>>,
    /// Whether the hardware was open before.
    pub(super) was_open: bool,
    /// While NVML is opened, or asked for GPUs.
    pub(super) opening: CallTimer,
    /// A look for GPUs that were skipped, if one is under way.
    pub(super) looking: Option<Looking>,
}

/// A look for GPUs that were skipped.
pub(super) struct Looking {
    /// What was known when it began.
    known: Arc<Hardware>,
    found: Attempt<Result<Option<Hardware>, HardwareError>>,
}

impl HardwareWatch {
    /// Looks again whenever there is a reason to, and every `interval`, until `stop`.
    pub(super) async fn run(
        mut self,
        mut changes: watch::Receiver<()>,
        interval: Duration,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        // A separate timer: events on a busy node must not postpone the next scan forever.
        let mut clock = interval_at(Instant::now() + interval, interval);
        let mut reports = self.health.reports();
        let rescan = Arc::clone(&self.context.rescan);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                change = changes.changed() => {
                    change.context("the claims are gone")?;
                    // A pod's claims, and pods themselves, come and go in bursts.
                    sleep(BURST).await;
                    changes.borrow_and_update();
                    if let Err(error) = self.note_held() {
                        warn!(%error, "cannot read which devices the claims have");
                    }
                    continue;
                }
                _ = reports.changed() => {
                    let hardware = self.state.borrow().hardware.clone();
                    if let Err(error) = self.publish(hardware) {
                        warn!(%error, "cannot monitor the health of GPUs now");
                    }
                    continue;
                }
                () = rescan.notified() => {}
                _ = clock.tick() => {}
            }
            // What was known stays; the next look may succeed.
            match self.look().await {
                Err(error) if error.is::<NodesChanged>() => return Err(error),
                Err(error) => warn!(%error, "cannot scan the hardware now"),
                Ok(()) => {}
            }
        }
    }

    /// Opens the hardware if it is not open, reads what may have changed, and notifies the other parts.
    ///
    /// Fails with [`NodesChanged`] where nothing can be seen before the container is created again.
    pub(super) async fn look(&mut self) -> anyhow::Result<()> {
        self.kernel.read().await;
        let known = self.state.borrow().hardware.clone();
        let hardware = match known {
            Ok(open) if open.is_stale() => {
                let reason = "the NVIDIA driver was unloaded or replaced";
                if self.attempt.is_none() {
                    warn!("{reason}: opening it again");
                }
                match self.opened(reason).await? {
                    Some(opened) => {
                        self.context.metrics.recovered(Recovery::ReopenNvml, opened.is_ok());
                        opened
                    }
                    // What was open may still serve some GPUs.
                    None => Ok(open),
                }
            }
            Ok(open) if !open.is_worth_another_look() && !self.kernel.access.may_find_more(&open.facts) => {
                Ok(open)
            }
            Ok(open) => Ok(self.completed(open).await?),
            Err(before) => {
                self.opened(&before).await?.unwrap_or_else(|| Err(HardwareError::Silent.to_string()))
            }
        };
        self.gpus = match &hardware {
            Ok(hardware) => {
                self.was_open = true;
                hardware.listen(&self.nvml_events)?;
                self.scan(hardware).await?
            }
            Err(_) => {
                self.kernel.renew_spec()?;
                Vec::new()
            }
        };
        match &hardware {
            Ok(hardware) => self.look_at_host(hardware).await?,
            Err(_) => self.host.clear(),
        }
        self.publish(hardware)
    }

    /// Reads what claims of this hardware need of the host; nothing where there are no GPUs. What was known stays where the
    /// kernel, whose module may be busy with a GPU that hangs, does not answer.
    async fn look_at_host(&mut self, hardware: &Hardware) -> anyhow::Result<()> {
        const PATIENCE: Duration = Duration::from_secs(5);
        if self.gpus.is_empty() {
            self.host.clear();
            return Ok(());
        }
        let attempt = match self.at_host.take() {
            Some(begun) => begun,
            None => {
                let (readiness, version) =
                    (Arc::clone(&self.readiness), hardware.facts.driver_version.clone());
                let has_mig = self.gpus.iter().any(|it| it.facts.cuttable().is_some());
                let look = move || readiness.look(version.as_deref(), has_mig);
                Attempt::start("host", &self.context.rescan, look)?
            }
        };
        let mut found = match attempt.within(PATIENCE).await {
            Outcome::Ended(found) => found,
            Outcome::Died => anyhow::bail!("the thread that looks at the host has died"),
            Outcome::Running(attempt) => {
                self.at_host = Some(attempt);
                return Ok(());
            }
        };
        let with_mig = self.gpus.iter().filter(|it| it.facts.cuttable().is_some());
        found.extend(self.readiness.refusals(with_mig.map(|it| it.facts.uuid.as_str())));
        found.extend(self.kernel.access.report(Some(&hardware.facts)).mig_denied);
        found.sort_by_key(|it| it.effect);
        self.host = found;
        Ok(())
    }

    /// The worst that the host does to claims, if it does anything.
    fn host_effect(&self) -> Option<Effect> {
        self.host.iter().map(|it| it.effect).min()
    }

    /// The GPUs as they are offered: none of them where the host lets no claim be prepared.
    fn withhold(&self, health: &Report) -> Vec<Gpu> {
        let mut gpus = health.withhold(&self.gpus);
        if let Some(condition) = self.host.iter().find(|it| it.effect == Effect::NoClaims) {
            for gpu in &mut gpus {
                gpu.state.problem.get_or_insert_with(|| format!("the host is not ready: {}", condition.text));
            }
        }
        gpus
    }

    /// Reports what is new on the host, and what has passed.
    fn report_host(&self, before: &[HostCondition]) {
        for condition in self.host.iter().filter(|it| !before.contains(it)) {
            let HostCondition { effect, text, remedy, .. } = condition;
            warn!(effect = effect.as_str(), remedy, "host: {text}");
            let reason = match effect.is_blocking() {
                true => EventReason::HostNotReady,
                false => EventReason::HostDegraded,
            };
            self.context.events.emit(reason, condition.to_string());
        }
        for HostCondition { effect, text, .. } in before.iter().filter(|it| !self.host.contains(it)) {
            info!(effect = effect.as_str(), "host: no longer: {text}");
            self.context.events.emit(EventReason::HostRecovered, format!("No longer: {text}"));
        }
    }

    /// Opens the hardware; a reason why it cannot be is logged where it is another one than before. `None` while a call into
    /// NVML does not come back: then there is no second attempt, and its end is a reason to look again.
    async fn opened(&mut self, before: &str) -> anyhow::Result<Option<Result<Arc<Hardware>, String>>> {
        let is_first = self.attempt.is_none();
        let attempt = match self.attempt.take() {
            Some(begun) => begun,
            None => {
                let (opener, busy) = (Arc::clone(&self.opener), self.opening.begin());
                let open = move || {
                    let _busy = busy;
                    opener.open()
                };
                Attempt::start("open", &self.context.rescan, open)?
            }
        };
        let opened = match attempt.within(self.patience).await {
            Outcome::Ended(opened) => opened,
            Outcome::Died => anyhow::bail!("the thread that opens NVML has died"),
            Outcome::Running(attempt) => {
                self.attempt = Some(attempt);
                if is_first {
                    warn!("{}", HardwareError::Silent);
                }
                return Ok(None);
            }
        };
        if opened.is_ok() && self.was_open {
            // The driver was reloaded, which resets the GPUs.
            self.health.change(|it, _, _| it.forget());
        }
        Ok(Some(opened.map(Arc::new).map_err(|error| {
            let reason = error.to_string();
            if reason != before {
                warn!(reason, "no GPUs to publish; scanning again periodically");
            }
            reason
        })))
    }

    /// The same hardware with those of the GPUs that were skipped and have come back. One that is lost may keep NVML busy, and
    /// must not delay the scans of others: a later scan picks up its result.
    async fn completed(&mut self, open: Arc<Hardware>) -> anyhow::Result<Arc<Hardware>> {
        const PATIENCE: Duration = Duration::from_secs(5);
        let is_of_this = |it: &Looking| Arc::ptr_eq(&it.known, &open);
        let Looking { known, found } = match self.looking.take().filter(is_of_this) {
            Some(begun) => begun,
            None => {
                let (known, busy) = (Arc::clone(&open), self.opening.begin());
                let look = move || {
                    let _busy = busy;
                    known.again()
                };
                let found = Attempt::start("look", &self.context.rescan, look)?;
                Looking { known: Arc::clone(&open), found }
            }
        };
        match found.within(PATIENCE).await {
            Outcome::Running(found) => {
                self.looking = Some(Looking { known, found });
                Ok(open)
            }
            Outcome::Died => anyhow::bail!("the thread that looks for GPUs has died"),
            Outcome::Ended(Ok(Some(more))) => {
                let (gpus, skipped) = (more.facts.gpus.len(), more.facts.skipped.len());
                info!(gpus, skipped, "NVML reports GPUs, or facts of them, that it did not report before");
                Ok(Arc::new(more))
            }
            Outcome::Ended(Ok(None)) => Ok(open),
            Outcome::Ended(Err(error)) => {
                warn!(%error, "cannot scan for GPUs that were skipped");
                Ok(open)
            }
        }
    }

    /// Reads every GPU and leaves only those instances that no record means. Records are also read on the GPU's thread beside its
    /// instances, because a claim may come and go while another GPU is waited for.
    async fn scan(&self, hardware: &Hardware) -> anyhow::Result<Vec<Gpu>> {
        let mut records: Vec<Arc<Record>> = self.context.checkpoint.records()?;
        let checkpoint = self.context.checkpoint.clone();
        // What cannot be read is read again below, and fails there.
        let scanned = hardware.scan_beside(move || checkpoint.records().unwrap_or_default()).await?;
        records.extend(self.context.checkpoint.records()?);
        let mut gpus = Vec::new();
        for (mut gpu, noted) in scanned {
            let known = || records.iter().chain(noted.iter().flatten());
            let parent = &gpu.facts.uuid;
            // What cannot be read now is taken to be as it was.
            let before = self.gpus.iter().find(|it| it.facts.uuid == *parent);
            if let (Some(_), Some(before)) = (&gpu.state.problem, before) {
                gpu.state.instances.clone_from(&before.state.instances);
            }
            gpu.state.instances.retain(|it| !known().any(|record| hardware.is_recorded(parent, it, record)));
            self.report(&gpu);
            gpus.push(gpu);
        }
        self.health.clear_if_file_removed();
        let missing = missing(hardware, &records, &self.health.report());
        let scans = gpus.iter().map(|it| found(hardware, it)).chain(missing);
        self.health.change(|health, at, now| {
            health.scanned(scans, at, now);
            health.live(&records, &gpus);
        });
        Ok(gpus)
    }

    /// Reports unmanaged instances that are not published; an adopted instance is no event.
    fn emit_foreign(&self, gpu: &Gpu, instances: &[GpuInstance]) {
        let (uuid, policy) = (&gpu.facts.uuid, self.policy());
        let is_offered =
            |it: &GpuInstance| policy.as_ref().is_ok_and(|policy| not_adopted(gpu, it, policy).is_none());
        for instance in instances.iter().filter(|it| !is_offered(it)) {
            let (gi, placement) = (instance.id, instance.placement);
            let note = format!(
                "Unmanaged MIG instance {gi} at {placement} of GPU {uuid}: what it occupies is not offered. \
                 `dra-driver-mig inspect` shows it; once it is destroyed, its place is offered."
            );
            self.context.events.emit(EventReason::ForeignInstance, note);
        }
    }

    /// Logs what is new about a GPU.
    fn report(&self, gpu: &Gpu) {
        let before = self.gpus.iter().find(|it| it.facts.uuid == gpu.facts.uuid).map(|it| &it.state);
        let uuid = &gpu.facts.uuid;
        let mut new = gpu.state.instances.clone();
        new.retain(|it| !before.is_some_and(|before| before.instances.contains(it)));
        for GpuInstance { id: gi, placement, .. } in &new {
            warn!(uuid, gi, %placement, "unmanaged MIG instance: no device is published for its placement");
        }
        if !new.is_empty() {
            self.emit_foreign(gpu, &new);
        }
        if let Some(problem) = &gpu.state.problem
            && before.is_none_or(|it| it.problem.as_ref() != Some(problem))
        {
            warn!(uuid, problem, "GPU cannot be read: only allocated devices of it stay published");
        }
        if let Some(mode) = gpu.state.mode
            && mode.current != mode.pending
            && before.is_none_or(|it| it.mode != gpu.state.mode)
        {
            warn!(
                uuid,
                current = mode.current,
                pending = mode.pending,
                "MIG mode changes when the node is rebooted or the GPU is reset"
            );
        }
    }

    /// Follows what claims hold. The inventory depends on it only where something is withheld, and is not rebuilt
    /// elsewhere; the order in which devices are offered always does.
    fn note_held(&self) -> anyhow::Result<()> {
        if !self.health.report().instances.is_empty() {
            let records = self.context.checkpoint.records()?;
            self.health.change(|it, _, _| it.live(&records, &self.gpus));
        }
        let OfferPolicy { held, unhealthy, .. } = self.policy()?;
        let (hardware, is_independent) = {
            let state = self.state.borrow();
            let offers_all =
                held.iter().all(|name| state.inventory.devices().any(|it| it.name.as_str() == name));
            let withholds_nothing = state.inventory.gpus.iter().all(|it| it.withheld.is_empty());
            let is_independent = offers_all && withholds_nothing && unhealthy.is_empty();
            (state.hardware.clone(), is_independent)
        };
        if !is_independent {
            return self.publish(hardware);
        }
        self.state.send_if_modified(|state| {
            let is_same = state.held == held;
            state.held = held;
            !is_same
        });
        Ok(())
    }

    /// What is wanted, and what claims hold. The CDI file stands in for a record that cannot be read.
    fn policy(&self) -> anyhow::Result<OfferPolicy> {
        let (existing, time_slices) = (self.existing, self.time_slices);
        let unhealthy = self.health.report().unhealthy_adopted();
        let mig_access = mig_access(self.host_effect());
        let with_refusal =
            self.gpus.iter().map(|it| &it.facts.uuid).filter(|it| self.readiness.is_refused(it));
        let refused = with_refusal.cloned().collect();
        let mut policy =
            OfferPolicy { existing, time_slices, unhealthy, mig_access, refused, ..OfferPolicy::default() };
        let mut unrecorded = BTreeSet::new();
        // Only an unmanaged instance may belong to a claim whose record is lost.
        if existing == ExistingInstances::Adopt && self.gpus.iter().any(|it| !it.state.instances.is_empty()) {
            unrecorded.extend(self.cdi.list()?);
        }
        for (uid, stored) in self.context.checkpoint.list()? {
            match &*stored {
                Stored::Nothing => continue,
                Stored::Record(record) => {
                    for device in &record.devices {
                        policy.held.insert(device.name.clone());
                        if let RecordedKind::Adopted(adopted) = &device.kind {
                            policy.adopted.push((device.parent_uuid.clone(), adopted.clone()));
                        }
                    }
                }
                Stored::Unreadable(_) => policy.held.extend(self.cdi.devices(uid.as_str())?),
            }
            unrecorded.remove(uid.as_str());
        }
        for uid in unrecorded {
            policy.named.extend(self.cdi.devices(&uid)?);
        }
        Ok(policy)
    }

    /// Reports which GPUs are no longer published, and which are again. A GPU whose problem is now its health is reported elsewhere,
    /// and does not count as published again.
    fn emit_problems(&self, before: &[Problem], now: &[Problem], health: &Report) {
        for problem in otherwise(now, health).filter(|it| !before.contains(it)) {
            let note = format!("Unavailable; allocated devices stay published: {problem}");
            self.context.events.emit(EventReason::GpuNotOffered, note);
        }
        for Problem { gpu, .. } in before.iter().filter(|it| !now.iter().any(|now| now.gpu == it.gpu)) {
            self.context.events.emit(EventReason::GpuOffered, format!("GPU {gpu}: is offered again."));
        }
    }

    fn publish(&self, hardware: Result<Arc<Hardware>, String>) -> anyhow::Result<()> {
        let (policy, health) = (self.policy()?, self.health.report());
        let gpus = self.withhold(&health);
        let inventory = match &hardware {
            Ok(hardware) => inventory_on(&hardware.facts, &gpus, &policy),
            Err(_) => Inventory::default(),
        };
        let skipped = hardware.as_ref().map_or(&[][..], |it| &it.facts.skipped);
        let access = self.kernel.access.report(hardware.as_ref().ok().map(|it| &it.facts));
        let problems = problems(&self.gpus, skipped, &access.missing, &health);
        let left_alone = left_alone(&self.gpus, &policy);
        if hardware.is_ok() {
            let before = self.state.borrow();
            let reported: Vec<Problem> = otherwise(&before.problems, &before.health).cloned().collect();
            self.emit_problems(&reported, &problems, &health);
            self.report_host(&before.host);
        }
        let can_prepare = self.host_effect() != Some(Effect::NoClaims);
        let offered = HostAccess { can_prepare, policy: &policy };
        let withheld = withheld(&inventory, &self.gpus, &health, &offered);
        let host = self.host.clone();
        let held = policy.held.clone();
        let inputs = InventoryInputs { gpus, policy };
        // Dropped after the lock: closing NVML takes its time.
        let mut before = None;
        self.state.send_if_modified(|state| {
            let is_same = *state.inventory == inventory
                && state.held == held
                && state.problems == problems
                && state.left_alone == left_alone
                && state.withheld == withheld
                && state.access == access
                && state.host == host
                && state.health == health
                && state.hardware.is_ok() == hardware.is_ok()
                && state.hardware.as_ref().err() == hardware.as_ref().err();
            let (inventory, inputs) = (Arc::new(inventory), Arc::new(inputs));
            let now = NodeState {
                hardware,
                inventory,
                inputs,
                held,
                problems,
                left_alone,
                withheld,
                access,
                health,
                host,
            };
            before = Some(std::mem::replace(state, now));
            !is_same
        });
        Ok(())
    }
}

/// What the worst condition of the host leaves of MIG.
fn mig_access(worst: Option<Effect>) -> MigAccess {
    match worst {
        Some(Effect::NoClaims | Effect::NoMig) => MigAccess::None,
        Some(Effect::NoPartitioning) => MigAccess::ExistingOnly,
        Some(Effect::MayRefuse | Effect::Impaired | Effect::Degraded) | None => MigAccess::Full,
    }
}

/// What a scan found of a GPU, for its health.
fn found(hardware: &Hardware, gpu: &Gpu) -> (String, Scan) {
    let uuid = &gpu.facts.uuid;
    let live = hardware.gpu(uuid);
    let is_lost = live.is_some_and(|it| it.is_lost());
    let scan = match &gpu.state.problem {
        None => Scan::Well(live.and_then(|it| it.recovery_action())),
        Some(problem) if is_lost => Scan::Lost(problem.clone()),
        Some(problem) => Scan::Unread(problem.clone()),
    };
    (uuid.clone(), scan)
}

/// GPUs that are lost since before this process began, so that NVML does not show them: those of which claims of this boot
/// have devices, and those that were unhealthy.
fn missing(hardware: &Hardware, records: &[Arc<Record>], health: &Report) -> Vec<(String, Scan)> {
    let of_this_boot = records.iter().filter(|it| it.boot_id == hardware.boot_id);
    let held = of_this_boot.flat_map(|it| it.devices.iter().map(|it| it.parent_uuid.as_str()));
    let known: BTreeSet<&str> = held.chain(health.gpus.keys().map(String::as_str)).collect();
    let gone = known.into_iter().filter(|it| hardware.is_gone(it));
    let lost = gone.map(|uuid| {
        let skipped = hardware.facts.skipped.iter().find(|it| it.uuid.as_deref() == Some(uuid));
        let reason = skipped.map_or("NVML does not show it any more", |it| &it.reason);
        (uuid.to_owned(), Scan::Lost(reason.to_owned()))
    });
    lost.collect()
}
