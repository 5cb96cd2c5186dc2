//! Keeps the state of the node up to date: opens NVML, scans the GPUs periodically, and follows the devices of claims
//! and the health of GPUs.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::Context;
use mig_model::health::Report;
use mig_model::inventory::{ExistingInstances, Gpu};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::attempt::{Attempt, Attempts, LookReason, Outcome};
use super::kernel_view::{KernelView, NodesChanged};
use crate::api::EventReason;
use crate::cdi::ClaimFiles;
use crate::checkpoint::Record;
use crate::context::NodeContext;
use crate::hardware::{Hardware, HardwareError, NodeState, Opener};
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
    /// The end of a late attempt.
    pub(super) late_result: Arc<Notify>,
    /// Opening NVML.
    pub(super) opens: Attempts<Result<Hardware, HardwareError>>,
    /// Reads of the host.
    pub(super) host_reads: Attempts<Vec<HostCondition>>,
    /// Whether the hardware was open before.
    pub(super) was_open: bool,
    /// While NVML is opened, or asked for GPUs.
    pub(super) opening: CallTimer,
    /// Looks for GPUs that were skipped, since there were any.
    pub(super) looking: Option<Looking>,
}

/// Looks for GPUs that were skipped.
pub(super) struct Looking {
    /// What was known when they began. It is not kept open for them.
    known: Weak<Hardware>,
    looks: Attempts<Result<Option<Hardware>, HardwareError>>,
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
        let (rescan, late_result) = (Arc::clone(&self.context.rescan), Arc::clone(&self.late_result));
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let reason = tokio::select! {
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
                () = rescan.notified() => LookReason::Due,
                _ = clock.tick() => LookReason::Due,
                () = late_result.notified() => LookReason::LateResult,
            };
            // What was known stays; the next look may succeed.
            match self.look(reason).await {
                Err(error) if error.is::<NodesChanged>() => return Err(error),
                Err(error) => warn!(%error, "cannot scan the hardware now"),
                Ok(()) => {}
            }
        }
    }

    /// The first look. An error that may pass, such as too many open files, is waited for: until then nothing is published, and
    /// nothing withdrawn. Where it lasts, the driver goes on without GPUs and looks again later. Only [`NodesChanged`] ends it.
    pub(super) async fn look_first(&mut self) -> anyhow::Result<()> {
        const ATTEMPTS: u32 = 10;
        const PAUSE: Duration = Duration::from_secs(2);
        let mut left = ATTEMPTS;
        loop {
            let error = match self.look(LookReason::Due).await {
                Err(error) if !error.is::<NodesChanged>() => error,
                looked => return looked,
            };
            warn!(%error, "cannot scan the hardware now");
            // What was opened is closed again, which is no reload of the NVIDIA driver.
            self.was_open = false;
            left -= 1;
            if left == 0 {
                let reason = format!("the hardware was not scanned yet: {error}");
                self.state.send_modify(|it| it.hardware = Err(reason));
                return Ok(());
            }
            sleep(PAUSE).await;
        }
    }

    /// Opens the hardware if it is not open, reads what may have changed, and notifies the other parts.
    ///
    /// Fails with [`NodesChanged`] where nothing can be seen before the container is created again.
    pub(super) async fn look(&mut self, reason: LookReason) -> anyhow::Result<()> {
        self.kernel.read(reason).await;
        let known = self.state.borrow().hardware.clone();
        let hardware = match known {
            Ok(open) if open.is_stale() => {
                let stale = "the NVIDIA driver was unloaded or replaced";
                if !self.opens.is_running() {
                    warn!("{stale}: opening it again");
                }
                match self.opened(stale, reason).await? {
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
            Ok(open) => Ok(self.completed(open, reason).await?),
            Err(before) => match self.opened(&before, reason).await? {
                Some(opened) => opened,
                None if self.opens.is_running() => Err(HardwareError::Hung.to_string()),
                None => Err(before),
            },
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
            Ok(hardware) => self.look_at_host(hardware, reason).await?,
            Err(_) => self.host.clear(),
        }
        self.publish(hardware)
    }

    /// Reads what claims of this hardware need of the host; nothing where there are no GPUs. What was known stays where the
    /// kernel, whose module may be busy with a GPU that hangs, does not answer.
    async fn look_at_host(&mut self, hardware: &Hardware, reason: LookReason) -> anyhow::Result<()> {
        const PATIENCE: Duration = Duration::from_secs(5);
        if self.gpus.is_empty() {
            self.host.clear();
            return Ok(());
        }
        let (readiness, version) = (Arc::clone(&self.readiness), hardware.facts.driver_version.clone());
        let has_mig = self.gpus.iter().any(|it| it.facts.cuttable().is_some());
        let look = move || readiness.look(version.as_deref(), has_mig);
        let begin = || Attempt::start("host", &self.late_result, look);
        let mut found = match self.host_reads.result(PATIENCE, reason, begin).await? {
            Outcome::Ended(found) => found,
            Outcome::Died => anyhow::bail!("the thread that looks at the host has died"),
            Outcome::Running | Outcome::Paused => return Ok(()),
        };
        let with_mig = self.gpus.iter().filter(|it| it.facts.cuttable().is_some());
        found.extend(self.readiness.refusals(with_mig.map(|it| it.facts.uuid.as_str())));
        found.extend(self.kernel.access.report(Some(&hardware.facts)).mig_denied);
        found.sort_by_key(|it| it.effect);
        self.host = found;
        Ok(())
    }

    /// The worst that the host does to claims, if it does anything.
    pub(super) fn host_effect(&self) -> Option<Effect> {
        self.host.iter().map(|it| it.effect).min()
    }

    /// The GPUs as they are offered: none of them where the host lets no claim be prepared.
    pub(super) fn withhold(&self, health: &Report) -> Vec<Gpu> {
        let mut gpus = health.withhold(&self.gpus);
        if let Some(condition) = self.host.iter().find(|it| it.effect == Effect::NoClaims) {
            for gpu in &mut gpus {
                gpu.state.problem.get_or_insert_with(|| format!("the host is not ready: {}", condition.text));
            }
        }
        gpus
    }

    /// Reports what is new on the host, and what has passed.
    pub(super) fn report_host(&self, before: &[HostCondition]) {
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
    /// NVML does not come back: then there is no second attempt, and its end is a reason to look again. So it is where none is begun
    /// for this reason, see [`Attempts::result`].
    async fn opened(
        &mut self,
        before: &str,
        reason: LookReason,
    ) -> anyhow::Result<Option<Result<Arc<Hardware>, String>>> {
        let is_first = !self.opens.is_running();
        let (opener, timer) = (Arc::clone(&self.opener), &self.opening);
        let begin = || {
            let busy = timer.begin();
            let open = move || {
                let _busy = busy;
                opener.open()
            };
            Attempt::start("open", &self.late_result, open)
        };
        let opened = match self.opens.result(self.patience, reason, begin).await? {
            Outcome::Ended(opened) => opened,
            Outcome::Died => anyhow::bail!("the thread that opens NVML has died"),
            Outcome::Running => {
                if is_first {
                    warn!("{}", HardwareError::Hung);
                }
                return Ok(None);
            }
            Outcome::Paused => return Ok(None),
        };
        if opened.is_ok() {
            // A look of the earlier session would keep it open.
            self.looking = None;
        }
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
    async fn completed(&mut self, open: Arc<Hardware>, reason: LookReason) -> anyhow::Result<Arc<Hardware>> {
        const PATIENCE: Duration = Duration::from_secs(5);
        let is_of_this = |it: &Looking| std::ptr::eq(it.known.as_ptr(), Arc::as_ptr(&open));
        let of_this = self.looking.take().filter(is_of_this);
        let looking = self.looking.insert(
            of_this.unwrap_or_else(|| Looking { known: Arc::downgrade(&open), looks: Attempts::default() }),
        );
        let (known, timer) = (Arc::clone(&open), &self.opening);
        let begin = || {
            let busy = timer.begin();
            let look = move || {
                let _busy = busy;
                known.again()
            };
            Attempt::start("look", &self.late_result, look)
        };
        match looking.looks.result(PATIENCE, reason, begin).await? {
            Outcome::Running | Outcome::Paused => Ok(open),
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
        let missing = match self.kernel.access.shows_all(&hardware.facts) {
            true => missing(hardware, &records, &self.health.report()),
            // One of those that the kernel lists and NVML does not show is not lost.
            false => Vec::new(),
        };
        let scans = gpus.iter().map(|it| found(hardware, it)).chain(missing);
        self.health.change(|health, at, now| {
            health.scanned(scans, at, now);
            health.live(&records, &gpus);
        });
        Ok(gpus)
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
