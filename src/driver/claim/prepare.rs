//! Preparing a claim: intent on disk, MIG devices, CDI file, record complete, answer.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use mig_model::claim::ClaimRef;
use mig_model::inventory::MigSpec;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::agreement::Agreed;
use super::allocation::base_of;
use super::device::{Made, as_it_is, existing, failed, gpu_of, whole_gpu};
use super::error::{Failed, Left};
use super::host_files::{HostError, HostFiles, OnHost};
use super::metadata;
use super::session::{ClaimSession, Opened, SharedSession, lock};
use super::work::{BEYOND, NoResult, Ongoing, Unfinished, WorkError, blocking, retried, to_its_end, within};
use super::{AllocatedDevice, Busy, Claims, PlanError, PrepareError, PreparedDevice, allocated_devices};
use crate::api::EventReason;
use crate::cdi::{ClaimDevice, ClaimName, claim_spec};
use crate::checkpoint::{Journal, Progress, Record, RecordedDevice, RecordedKind, Stage, Stored};
use crate::hardware::{Hardware, LiveGpu};
use crate::mig::{self, MigError};
use crate::pods::PodRef;
use crate::telemetry::metrics::{Recovery, Step};

impl Claims {
    /// Prepares a claim and answers with its devices. Repeating it gives the same answer: what exists is checked, what
    /// is missing made again, the CDI file rewritten. A caller that stops waiting before its turn has asked for nothing;
    /// once the work has begun, it goes on to its end, also beyond the answer: the next call finds the result.
    pub async fn prepare(self: &Arc<Self>, claim: &ClaimRef) -> Result<Vec<PreparedDevice>, PrepareError> {
        let deadline = Instant::now() + self.budget;
        let Some(opened) = self.open::<PrepareError>(claim, true, deadline).await? else {
            return Err(Busy(claim.clone()).into());
        };
        let ongoing = Ongoing::default();
        let (this, owned, seen) = (Arc::clone(self), claim.clone(), ongoing.clone());
        let work = async move {
            let result = this.prepare_now(&owned, opened, deadline, &seen).await;
            if let Some(pods) = seen.end() {
                this.emit_late(&owned, &pods, &result);
            }
            result.map_err(|it| it.error)
        };
        let report = |unfinished: &Unfinished| {
            let pods = self.context.pods.of(&claim.uid);
            self.emit(EventReason::PrepareContinues, claim, &pods, format!("{unfinished}."));
            pods
        };
        let result = match within(claim, deadline, &ongoing, work, report).await {
            Ok(result) => result,
            Err(NoResult::Interrupted) => Err(PrepareError::Interrupted(claim.clone())),
            Err(NoResult::Unfinished(unfinished)) => Err(PrepareError::Unfinished(Box::new(unfinished))),
        };
        if let Err(error) = &result
            && error.asks_for_a_look()
        {
            self.context.rescan.notify_one();
        }
        self.look_again_if_stale();
        if let Err(error @ PrepareError::Device { source, .. }) = &result
            && source.is_occupied()
        {
            self.context.events.emit_for_claim(EventReason::DeviceOccupied, claim, error.to_string());
        }
        if let Err(error) = &result
            && error.is_final()
        {
            self.context.events.emit_for_claim(EventReason::PrepareImpossible, claim, error.to_string());
        }
        result
    }

    async fn prepare_now(
        &self,
        claim: &ClaimRef,
        opened: Opened,
        deadline: Instant,
        ongoing: &Ongoing,
    ) -> Result<Vec<PreparedDevice>, Failed> {
        let as_on_disk = |error| Failed { error, left: self.left_of(claim) };
        let hardware = self.hardware().map_err(as_on_disk)?;
        let Agreed { opened, record, promise } =
            self.agreed(claim, opened, deadline, ongoing).await.map_err(as_on_disk)?;
        self.note_begun(&claim.uid);
        let before = record.clone();
        let session = ClaimSession::shared(opened, record, promise);
        match self.carry_out(&session, &before, &hardware, deadline, ongoing).await {
            Ok(devices) => {
                if before.stage != Stage::Prepared {
                    info!(devices = devices.len(), "claim prepared");
                }
                Ok(devices)
            }
            // The pod of a claim that was prepared before may be running: leave it what it has.
            Err(error) if before.stage == Stage::Prepared => Err(Failed { error, left: Left::Prepared }),
            Err(error) => {
                ongoing.undoes(&error);
                let left = self.undo(&session, deadline, ongoing).await;
                Err(Failed { error, left })
            }
        }
    }

    /// What is on disk of a claim whose prepare failed before it had a new record.
    fn left_of(&self, claim: &ClaimRef) -> Left {
        blocking(|| {
            let stored = match self.context.checkpoint.list() {
                Ok(listed) => listed.into_iter().find(|(uid, _)| *uid == claim.uid).map(|(_, it)| it),
                Err(error) => Some(Arc::new(Stored::Inaccessible(error.to_string()))),
            };
            let is_in_cdi = self.cdi.exists(claim.uid.as_str()).unwrap_or(true);
            Left::of(stored.as_deref().unwrap_or(&Stored::Nothing), is_in_cdi, &self.context.boot_id)
        })
    }

    /// Reports how a prepare ended whose call had been answered before: the kubelet learns it only when it asks again.
    fn emit_late(&self, claim: &ClaimRef, pods: &[PodRef], result: &Result<Vec<PreparedDevice>, Failed>) {
        let (reason, note) = match result {
            Ok(_) => (
                EventReason::PrepareFinished,
                "The devices of the claim are ready; the kubelet's next call is answered at once.".to_owned(),
            ),
            Err(Failed { error, left }) => {
                warn!(%error, "claim not prepared, long after its call");
                let (reason, what) = match left {
                    Left::Nothing => (EventReason::PrepareFailed, "nothing was created for it"),
                    Left::Undone => {
                        (EventReason::PrepareUndone, "what was created for it is destroyed again")
                    }
                    Left::Remains => (
                        EventReason::PrepareFailed,
                        "what was created for it cannot be destroyed yet, and the driver tries that again",
                    ),
                    Left::Prepared => {
                        (EventReason::PrepareFailed, "it was prepared before and keeps its devices")
                    }
                };
                (
                    reason,
                    format!(
                        "Preparing the claim failed ({what}): {error}; the kubelet's next call tries again."
                    ),
                )
            }
        };
        self.emit(reason, claim, pods, note);
    }

    /// Emits an event for the claim and for these pods.
    fn emit(&self, reason: EventReason, claim: &ClaimRef, pods: &[PodRef], note: String) {
        for pod in pods {
            self.context.events.emit_for_pod(reason, &claim.namespace, pod, note.clone());
        }
        self.context.events.emit_for_claim(reason, claim, note);
    }

    /// Plans the claim and stores the record, which is the intent to make its devices. Waits within the deadline for a
    /// claim that is in the way, because the scheduler may give away what is just being unprepared. `finish` adds what is known
    /// of the devices already.
    pub(super) async fn new_record(
        &self,
        claim: &ClaimRef,
        allocated: &[AllocatedDevice],
        journal: &mut Journal,
        finish: impl Fn(Record) -> Record,
        deadline: Instant,
    ) -> Result<Record, PrepareError> {
        const PAUSE: Duration = Duration::from_millis(500);
        /// The claim of a terminating pod is unprepared within a moment; a shorter wait is not reported.
        const WORTH_REPORTING: Duration = Duration::from_secs(2);
        let begun = Instant::now();
        let mut is_reported = false;
        let mut waiting = None;
        loop {
            let reserved = self.reserve(claim, journal, deadline, |others| {
                Ok::<_, PrepareError>(finish(self.planned(claim, allocated, others)?))
            });
            match reserved.await {
                Err(PrepareError::Plan(PlanError::Held(conflict))) if Instant::now() + PAUSE < deadline => {
                    debug!(%conflict, holder = %conflict.holder, "waiting for the other claim");
                    if !is_reported && WORTH_REPORTING <= begun.elapsed() {
                        is_reported = true;
                        info!(%conflict, holder = %conflict.holder, "waiting for the other claim");
                        let note = format!("Waits: {conflict}.");
                        self.context.events.emit_for_claim(EventReason::PrepareWaits, claim, note);
                    }
                    waiting.get_or_insert_with(|| self.context.metrics.step(Step::DeviceBusyWait));
                    sleep(PAUSE).await;
                }
                result => {
                    if let Some(waiting) = waiting {
                        waiting.end(result.is_ok());
                    }
                    return result;
                }
            }
        }
    }

    pub(super) async fn allocated(
        &self,
        claim: &ClaimRef,
        deadline: Instant,
    ) -> Result<Vec<AllocatedDevice>, PrepareError> {
        let object = self.context.metrics.awaited(Step::ApiGet, self.reader.read(claim, deadline)).await?;
        self.context.pods.note(&claim.uid, &object);
        Ok(allocated_devices(claim, &object, &self.context.driver)?)
    }

    pub(super) async fn carry_out(
        &self,
        session: &SharedSession,
        before: &Record,
        hardware: &Hardware,
        deadline: Instant,
        ongoing: &Ongoing,
    ) -> Result<Vec<PreparedDevice>, PrepareError> {
        let makes =
            before.devices.iter().enumerate().map(|(index, device)| {
                self.ensure_device(session, index, device, hardware, (deadline, ongoing))
            });
        // All are waited for, also after one has failed: no step of this call may be taken after its end.
        let found = join_all(makes).await.into_iter().collect::<Result<_, _>>()?;
        blocking(|| {
            let now = lock(session).record.clone();
            self.context.metrics.timed(Step::CdiWrite, || self.write_cdi(&now, found))?;
            let mut session = lock(session);
            session.enter(Stage::Prepared)?;
            if session.record != *before {
                self.changed.send_replace(());
            }
            Ok::<_, PrepareError>(())
        })?;
        before.devices.iter().map(|it| self.answer(&before.claim, it)).collect()
    }

    async fn ensure_device(
        &self,
        session: &SharedSession,
        index: usize,
        device: &RecordedDevice,
        hardware: &Hardware,
        (deadline, ongoing): (Instant, &Ongoing),
    ) -> Result<OnHost, PrepareError> {
        let gpu = gpu_of(hardware, device)?;
        let waiting = ongoing.begin(&device.name);
        let host = HostFiles {
            readiness: Arc::clone(&self.readiness),
            proc_root: self.proc_root.clone(),
            driver_version: hardware.facts.driver_version.clone(),
        };
        let made = retried(deadline, &waiting, || async {
            match &device.kind {
                RecordedKind::Gpu | RecordedKind::Share { .. } => whole_gpu(session, gpu, host.clone()).await,
                RecordedKind::AdminAccess => as_it_is(gpu, host.clone()).await,
                RecordedKind::Adopted(adopted) => existing(gpu, adopted, host.clone()).await,
                RecordedKind::Mig { spec, .. } => {
                    self.mig_device(session, index, spec, gpu, host.clone()).await
                }
            }
        });
        let made = made.await;
        self.note_permission(device, &made);
        drop(waiting);
        made.map_err(|error| failed(device, error))?.map_err(|error| match error {
            HostError::Caps(source) => PrepareError::Caps { device: device.name.clone(), source },
            HostError::Common(source) => source.into(),
        })
    }

    /// How far the device got is read when the work begins: work before it on the same GPU may have changed it.
    async fn mig_device(
        &self,
        session: &SharedSession,
        index: usize,
        spec: &MigSpec,
        gpu: &LiveGpu,
        host: HostFiles,
    ) -> Made {
        let checkpoint = self.context.checkpoint.clone();
        let (session, spec, facts) = (Arc::clone(session), spec.clone(), Arc::clone(&gpu.facts));
        let metrics = gpu.metrics.clone();
        to_its_end(gpu, move |handle| {
            let Some(mig) = &facts.mig else { return Err(mig::no_mig()) };
            let Some(progress) = lock(&session).progress(index) else { return Err(mig::no_mig()) };
            let Some(_mode_stays) = checkpoint.rely_on_mode(facts.pci)? else {
                return Err(MigError::ModeChanges);
            };
            let mut note = |progress| lock(&session).note(index, progress);
            let made = mig::ensure(handle, mig, &spec, &progress, &mut note, &metrics)?;
            Ok(host.read(made.parent_minor, Some(&made)))
        })
        .await
    }

    /// Records whether NVML permits work on MIG of the GPU, and has the node looked at again where that is news. That an instance
    /// was found which exists already says nothing.
    fn note_permission(&self, device: &RecordedDevice, made: &Made) {
        let gpu = &device.parent_uuid;
        let is_news = match (made, &device.kind) {
            (Err(WorkError::Mig(error)), _) => self.readiness.refused(gpu, error),
            (Ok(_), RecordedKind::Mig { progress: Progress::Reserved, .. }) => self.readiness.permitted(gpu),
            _ => false,
        };
        if is_news {
            self.context.rescan.notify_one();
        }
    }

    fn write_cdi(&self, record: &Record, found: Vec<OnHost>) -> Result<(), PrepareError> {
        let Some(common) = found.last().map(|it| Arc::clone(&it.common)) else { return Ok(()) };
        let named = record.devices.iter().zip(found);
        let device = |(it, found): (&RecordedDevice, OnHost)| ClaimDevice {
            name: it.name.clone(),
            nodes: found.nodes,
            admin_access: !it.kind.holds(),
            mounts: Vec::new(),
        };
        let mut devices: Vec<ClaimDevice> = named.map(device).collect();
        let uid = record.claim.uid.as_str();
        if self.device_metadata {
            self.write_metadata(record, &mut devices)?;
        }
        let root = &self.readiness.common().root().devices;
        let spec = claim_spec(&self.kind, uid, &devices, root, common.edits())?;
        self.cdi.write(uid, &spec)?;
        Ok(())
    }

    /// Writes the metadata of each request; the request's first device brings it into the container.
    fn write_metadata(&self, record: &Record, devices: &mut [ClaimDevice]) -> Result<(), PrepareError> {
        let claim = match &record.pod_claim_name {
            Some(name) => ClaimName::InPod(name),
            None => ClaimName::Claim(&record.claim.name),
        };
        let all = metadata::by_request(record, &self.inventory(), self.kind.driver());
        for (request, metadata) in all {
            let json = metadata.json.as_bytes();
            let mount = self.cdi.write_metadata(record.claim.uid.as_str(), claim, &request, json)?;
            if let Some(device) = devices.get_mut(metadata.first) {
                device.mounts.push(mount);
            }
        }
        Ok(())
    }

    fn answer(&self, claim: &ClaimRef, device: &RecordedDevice) -> Result<PreparedDevice, PrepareError> {
        let mut requests: Vec<String> = device.requests.iter().map(|it| base_of(it).to_owned()).collect();
        requests.dedup();
        Ok(PreparedDevice {
            requests,
            pool: device.pool.clone(),
            device: device.name.clone(),
            cdi_device_id: self.kind.device_id(claim.uid.as_str(), &device.name)?,
        })
    }

    /// Takes back what a failed first attempt made. No piece of that attempt's work runs any more. What cannot be taken back
    /// stays recorded, for the next call and for recovery.
    async fn undo(&self, session: &SharedSession, deadline: Instant, ongoing: &Ongoing) -> Left {
        let deadline = deadline.max(Instant::now() + BEYOND);
        let undone = self.take_down(session, deadline, ongoing).await;
        self.context.metrics.recovered(Recovery::Undo, undone.is_ok());
        match undone {
            Ok(()) => Left::Undone,
            Err(error) => {
                warn!(%error, "cannot undo a failed prepare; its devices stay recorded");
                Left::Remains
            }
        }
    }
}

/// The MIG devices that were made for a record: index, device, what it should be, how far it got.
pub(super) fn mig_devices(
    record: &Record,
) -> impl Iterator<Item = (usize, &RecordedDevice, &MigSpec, &Progress)> {
    record.devices.iter().enumerate().filter_map(|(index, device)| match &device.kind {
        RecordedKind::Mig { spec, progress } => Some((index, device, spec, progress)),
        RecordedKind::Gpu
        | RecordedKind::AdminAccess
        | RecordedKind::Share { .. }
        | RecordedKind::Adopted(_) => None,
    })
}
