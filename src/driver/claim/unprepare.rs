//! Unpreparing a claim: MIG devices, CDI file, record, in this order, so that whatever is left is still on record.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use mig_model::claim::ClaimRef;
use mig_model::inventory::MigSpec;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::plan::{is_held_by_another, needs_mig_mode};
use super::prepare::mig_devices;
use super::session::{ClaimSession, Opened, SharedSession, lock};
use super::work::{NoResult, Ongoing, Waiting, WorkError, blocking, retried, to_its_end, unreported, within};
use super::{Claims, PlanError, UnprepareError, allocated_devices};
use crate::api::ReadError;
use crate::checkpoint::{Journal, Progress, Record, RecordedDevice, Stage, Stored};
use crate::hardware::{Hardware, LiveGpu};
use crate::mig::{self, MigError, ModePolicy};
use crate::nvml::Code;
use crate::telemetry::metrics::Step;

impl Claims {
    /// Destroys what was made for a claim. An unknown claim is success: it was never prepared here, or is unprepared
    /// already. A caller that stops waiting before its turn has asked for nothing; once the work has begun, it goes on to its
    /// end, also beyond the answer.
    pub async fn unprepare(self: &Arc<Self>, claim: &ClaimRef) -> Result<(), UnprepareError> {
        let deadline = Instant::now() + self.budget;
        // Without a record, the CDI file still shows what was created.
        let is_named = blocking(|| self.cdi.exists(claim.uid.as_str()))?;
        let Some(opened) = self.open::<UnprepareError>(claim, is_named, deadline).await? else {
            return Ok(());
        };
        let ongoing = Ongoing::default();
        let (this, owned, seen) = (Arc::clone(self), claim.clone(), ongoing.clone());
        let work = async move {
            let result = this.unprepare_now(&owned, opened, deadline, &seen).await;
            seen.end();
            result
        };
        let result = in_time(claim, within(claim, deadline, &ongoing, work, unreported).await);
        self.look_again_if_stale();
        result
    }

    async fn unprepare_now(
        &self,
        claim: &ClaimRef,
        mut opened: Opened,
        deadline: Instant,
        ongoing: &Ongoing,
    ) -> Result<(), UnprepareError> {
        let record = match opened.journal.stored().clone() {
            Stored::Record(record) => Some(Record::clone(&record)),
            Stored::Nothing => self.salvaged(claim, &mut opened.journal, deadline).await?,
            Stored::Unreadable(reason) | Stored::Inaccessible(reason) => {
                self.report_unreadable(&claim.uid, &reason);
                self.salvaged(claim, &mut opened.journal, deadline).await?
            }
        };
        match record {
            Some(record) => self.unprepare_record(opened, record, deadline, ongoing).await?,
            None => blocking(|| {
                self.cdi.remove(claim.uid.as_str())?;
                if let Some(aside) = opened.journal.forget_unread()? {
                    warn!(aside = %aside.display(), "state file set aside: what the claim had is unknown");
                }
                Ok::<_, UnprepareError>(())
            })?,
        }
        self.context.pods.forget(&claim.uid);
        info!("claim unprepared");
        Ok(())
    }

    /// Takes a claim down for good: notes that this has begun, then does it.
    pub(super) async fn unprepare_record(
        &self,
        opened: Opened,
        record: Record,
        deadline: Instant,
        ongoing: &Ongoing,
    ) -> Result<(), UnprepareError> {
        self.note_begun(&record.claim.uid);
        let session = ClaimSession::shared(opened, record, None);
        // A full disk must not block unprepare: an instance that is destroyed without a record is noticed as missing later.
        if let Err(error) = blocking(|| lock(&session).enter(Stage::Unpreparing)) {
            warn!(%error, "cannot record that the claim is being unprepared; unpreparing it anyway");
        }
        self.take_down(&session, deadline, ongoing).await
    }

    /// Destroys the devices of a claim, removes its CDI file, and forgets it if all that succeeded. Tries again until the
    /// deadline; what it has begun it waits for to the end.
    pub(super) async fn take_down(
        &self,
        session: &SharedSession,
        deadline: Instant,
        ongoing: &Ongoing,
    ) -> Result<(), UnprepareError> {
        self.take_apart(session, deadline, ongoing).await?;
        blocking(|| lock(session).forget())?;
        let uid = lock(session).record.claim.uid.clone();
        self.context.pods.forget(&uid);
        self.note_ended(&uid);
        self.changed.send_replace(());
        Ok(())
    }

    /// Destroys the devices of a claim and removes its CDI file; the record stays. No work for the claim runs now, so that a device
    /// for which nothing was done needs no GPU.
    pub(super) async fn take_apart(
        &self,
        session: &SharedSession,
        deadline: Instant,
        ongoing: &Ongoing,
    ) -> Result<(), UnprepareError> {
        // As far as it is known, which may be farther than what could be noted.
        let record = &lock(session).record.clone();
        if record.boot_id != self.context.boot_id {
            info!("the node was rebooted since: the devices of the claim are gone already");
        } else if created(record).next().is_some() {
            let no_hardware = |reason| UnprepareError::NoHardware { claim: record.claim.clone(), reason };
            let hardware = self.context.node.borrow().hardware.clone().map_err(no_hardware)?;
            self.destroy_devices(session, record, &hardware, (deadline, ongoing)).await?;
        }
        self.release_untouched(session, record).await;
        Ok(blocking(|| self.cdi.remove(record.claim.uid.as_str()))?)
    }

    /// Destroys the MIG devices of a record, GPUs in parallel. A device whose GPU is gone for good is gone with it; one that
    /// belongs to another claim by now is left alone. Each instance that is destroyed is recorded as gone at once. Where one
    /// cannot be destroyed, or takes longer than the call, the devices that needed no work are recorded as gone, too, so that
    /// all of them are free for others while this claim stays.
    async fn destroy_devices(
        &self,
        session: &SharedSession,
        record: &Record,
        hardware: &Hardware,
        (deadline, ongoing): (Instant, &Ongoing),
    ) -> Result<(), UnprepareError> {
        let others = self.context.checkpoint.records()?;
        let destroyed = created(record).map(|(index, device, spec, _)| {
            let is_others = is_held_by_another(&record.claim, device, &others, &self.context.boot_id);
            async move {
                if is_others {
                    warn!(device = device.name, "the device belongs to another claim now: skipping it");
                    return (index, Ok(()));
                }
                let numbered = (index, device, spec);
                (index, self.destroyed(session, &record.claim, numbered, hardware, (deadline, ongoing)).await)
            }
        });
        let mut running: FuturesUnordered<_> = destroyed.collect();
        let (mut gone, mut failed, mut is_late) = (Vec::new(), None, false);
        loop {
            tokio::select! {
                ended = running.next() => match ended {
                    None => break,
                    Some((index, Ok(()))) if is_late => self.note_gone(session, &[index]),
                    Some((index, Ok(()))) => gone.push(index),
                    // All are tried, also after one has failed.
                    Some((_, Err(error))) => failed = failed.or(Some(error)),
                },
                () = sleep_until(deadline), if !is_late => {
                    is_late = true;
                    self.note_gone(session, &std::mem::take(&mut gone));
                }
            }
        }
        match failed {
            None => Ok(()),
            Some(error) => {
                self.note_gone(session, &gone);
                Err(error)
            }
        }
    }

    /// Destroys one MIG device of a claim.
    async fn destroyed(
        &self,
        session: &SharedSession,
        claim: &ClaimRef,
        (index, device, spec): (usize, &RecordedDevice, &MigSpec),
        hardware: &Hardware,
        (deadline, ongoing): (Instant, &Ongoing),
    ) -> Result<(), UnprepareError> {
        match hardware.gpu(&device.parent_uuid) {
            Some(gpu) => {
                let waiting = ongoing.begin(&device.name);
                destroy_device(session, gpu, (index, device, spec), deadline, &waiting).await?;
                self.release(session, gpu).await;
                Ok(())
            }
            None if hardware.is_gone(&device.parent_uuid) && self.context.node.borrow().sees_all_gpus() => {
                warn!(device = device.name, "the GPU is gone, and its instances with it");
                Ok(())
            }
            None => Err(UnprepareError::NoHardware {
                claim: claim.clone(),
                reason: format!("GPU {} cannot be read now", device.parent_uuid),
            }),
        }
    }

    /// Records that nothing is left of some devices of a claim that keeps others for now.
    fn note_gone(&self, session: &SharedSession, gone: &[usize]) {
        for index in gone {
            if let Err(error) = blocking(|| lock(session).note(*index, Progress::Reserved)) {
                warn!(%error, "cannot record that an instance of the claim is gone; its placement stays reserved");
            }
        }
        self.changed.send_replace(());
    }

    /// What a claim without a readable record must have had: what its CDI file names or, without one, its allocation.
    /// Nothing if neither names any: then its instances, if any, count as unmanaged. Of several devices
    /// only those are left out that are another claim's by now, or no device of this node.
    async fn salvaged(
        &self,
        claim: &ClaimRef,
        journal: &mut Journal,
        deadline: Instant,
    ) -> Result<Option<Record>, UnprepareError> {
        let named = self.named(blocking(|| self.cdi.named(claim.uid.as_str()))?.held);
        let allocated = match journal.stored() {
            Stored::Unreadable(_) if named.is_empty() => match self.reader.read(claim, deadline).await {
                Ok(object) => allocated_devices(claim, &object, &self.context.driver).unwrap_or_default(),
                Err(ReadError::Gone(_)) => Vec::new(),
                Err(error) => return Err(error.into()),
            },
            _ => named,
        };
        if allocated.is_empty() {
            warn!("the claim is unknown; `dra-driver-mig inspect` shows instances that are left");
            return Ok(None);
        }
        let no_hardware = |reason| UnprepareError::NoHardware { claim: claim.clone(), reason };
        self.context.node.borrow().hardware.clone().map_err(no_hardware)?;
        warn!(devices = allocated.len(), "no state file: unpreparing what its CDI file or allocation names");
        let reserved = self.reserve(claim, journal, deadline, |others| {
            let mut record = self.planned(claim, &[], others)?;
            for device in allocated {
                match self.planned(claim, &[device], others) {
                    Ok(one) => record.devices.extend(one.devices),
                    Err(error @ PlanError::Unread { .. }) => return Err(error.into()),
                    Err(error) => warn!(%error, "a device of the claim no longer belongs to it"),
                }
            }
            Ok(record.assume_created(Stage::Unpreparing))
        });
        reserved.await.map(Some)
    }

    /// Calls [`Self::release`] for the GPUs of devices for which nothing was created: MIG mode may have been switched on for them. A GPU that is
    /// at work is left for the next claim.
    async fn release_untouched(&self, session: &SharedSession, record: &Record) {
        let hardware = self.context.node.borrow().hardware.clone();
        let (Ok(hardware), true) = (hardware, record.boot_id == self.context.boot_id) else { return };
        for (_, device, ..) in mig_devices(record).filter(|(.., it)| **it == Progress::Reserved) {
            if let Some(gpu) = hardware.gpu(&device.parent_uuid).filter(|it| it.queue.pending() == 0) {
                self.release(session, gpu).await;
            }
        }
    }

    /// Switches MIG mode off behind the last instance, where that is wanted. Not where another claim is to have an instance, in
    /// this process or another one: the end of that claim switches it off.
    async fn release(&self, session: &SharedSession, gpu: &LiveGpu) {
        if self.mode_policy == ModePolicy::Keep {
            return;
        }
        let (session, facts) = (Arc::clone(session), Arc::clone(&gpu.facts));
        let (checkpoint, boot_id) = (self.context.checkpoint.clone(), self.context.boot_id.clone());
        let released = to_its_end(gpu, move |handle| {
            let Some(mig) = &facts.mig else { return Ok(()) };
            let Some(_no_claim_relies_on_it) = checkpoint.change_mode(facts.pci)? else { return Ok(()) };
            let claim = lock(&session).record.claim.clone();
            match needs_mig_mode(&facts.uuid, &claim, &checkpoint.records()?, &boot_id) {
                true => Ok(()),
                false => mig::release_mode(handle, mig),
            }
        });
        match released.await {
            Ok(()) => {}
            Err(WorkError::Mig(error)) => warn!(gpu = gpu.facts.uuid, %error, "MIG mode stays on"),
            Err(WorkError::Hung(error)) => warn!(%error, "MIG mode stays on"),
            Err(WorkError::Closed(error)) => warn!(gpu = gpu.facts.uuid, %error, "MIG mode stays on"),
        }
    }
}

/// The result of work within the time of a call.
pub(super) fn in_time(
    claim: &ClaimRef,
    result: Result<Result<(), UnprepareError>, NoResult>,
) -> Result<(), UnprepareError> {
    result.unwrap_or_else(|lacking| {
        Err(match lacking {
            NoResult::Unfinished(unfinished) => UnprepareError::Unfinished(Box::new(unfinished)),
            NoResult::Interrupted => UnprepareError::Interrupted(claim.clone()),
        })
    })
}

/// How far the device got is read when the work begins: work before it on the same GPU may have changed it.
async fn destroy_device(
    session: &SharedSession,
    gpu: &LiveGpu,
    (index, device, spec): (usize, &RecordedDevice, &MigSpec),
    deadline: Instant,
    waiting: &Waiting,
) -> Result<(), UnprepareError> {
    let destroyed = retried(deadline, waiting, || {
        let (session, spec, metrics) = (Arc::clone(session), spec.clone(), gpu.metrics.clone());
        to_its_end(gpu, move |handle| {
            let Some(progress) = lock(&session).progress(index) else { return Ok(()) };
            metrics.timed(Step::Destroy, || mig::destroy(handle, &spec, &progress))?;
            // Ids are used again: what appears there while the rest of the claim is left is not ours.
            if let Err(error) = lock(&session).note(index, Progress::Reserved) {
                warn!(%error, "cannot record that an instance of the claim is destroyed");
            }
            Ok(())
        })
    });
    match destroyed.await {
        Ok(()) => Ok(()),
        Err(WorkError::Mig(MigError::Nvml(error)))
            if error.code == Code::GPU_IS_LOST && is_lost(session, gpu).await =>
        {
            warn!(device = device.name, %error, "the GPU is lost, and its instances with it");
            Ok(())
        }
        Err(WorkError::Mig(source)) => Err(UnprepareError::Device { device: device.name.clone(), source }),
        Err(WorkError::Closed(closed)) => Err(closed.into()),
        Err(WorkError::Hung(source)) => Err(UnprepareError::Hung { device: device.name.clone(), source }),
    }
}

/// The MIG devices of a record of which anything may exist.
fn created(record: &Record) -> impl Iterator<Item = (usize, &RecordedDevice, &MigSpec, &Progress)> {
    mig_devices(record).filter(|(.., progress)| **progress != Progress::Reserved)
}

/// True where the GPU says of itself, too, that it is lost: one call that says so is not enough to forget an instance.
async fn is_lost(session: &SharedSession, gpu: &LiveGpu) -> bool {
    let session = Arc::clone(session);
    let asked = to_its_end(gpu, move |handle| {
        let _claim_is_ours = session;
        Ok(handle.mig_mode()?)
    });
    matches!(asked.await, Err(WorkError::Mig(MigError::Nvml(error))) if error.code == Code::GPU_IS_LOST)
}
