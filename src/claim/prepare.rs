//! Preparing a claim: intent on disk, MIG devices, CDI file, record complete, answer.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, sleep};
use tracing::{Instrument, debug, info, warn};

use super::draft::{Draft, Opened, SharedDraft, held};
use super::work::{WorkError, blocking, on_gpu, retried};
use super::{
    AllocatedDevice, Busy, ClaimRef, Claims, CommonError, PlanError, PrepareError, PreparedDevice,
    allocated_devices,
};
use crate::api::EventReason;
use crate::cdi::{ClaimDevice, DeviceNodes, MigCaps, claim_spec};
use crate::checkpoint::{Journal, Progress, Record, RecordedDevice, RecordedKind, Stage, Stored};
use crate::hardware::{Hardware, LiveGpu};
use crate::inventory::{Adopted, MigSpec};
use crate::mig;
use crate::telemetry::metrics::{Recovery, Step};

impl Claims {
    /// Prepares a claim and answers with its devices. Repeating it gives the same answer: what exists is checked, what
    /// is missing made again, the CDI file rewritten. A caller that stops waiting before its turn has asked for nothing;
    /// once the work has begun, it goes on.
    pub async fn prepare(self: &Arc<Self>, claim: &ClaimRef) -> Result<Vec<PreparedDevice>, PrepareError> {
        let deadline = Instant::now() + self.budget;
        let Some(opened) = self.open::<PrepareError>(claim, true, deadline).await? else {
            return Err(Busy(claim.clone()).into());
        };
        let (this, owned) = (Arc::clone(self), claim.clone());
        let work = async move { this.prepare_now(&owned, opened, deadline).await };
        let interrupted = |_| Err(PrepareError::Interrupted(claim.clone()));
        let result = tokio::spawn(work.in_current_span()).await.unwrap_or_else(interrupted);
        if let Err(PrepareError::Device { source, .. }) = &result
            && source.is_surprise()
        {
            self.surprised.notify_one();
        }
        if let Err(error @ PrepareError::Device { source, .. }) = &result
            && source.is_occupied()
        {
            self.events.tell_claim(EventReason::DeviceOccupied, claim, error.to_string());
        }
        if let Err(error) = &result
            && error.is_final()
        {
            self.events.tell_claim(EventReason::PrepareImpossible, claim, error.to_string());
        }
        result
    }

    async fn prepare_now(
        &self,
        claim: &ClaimRef,
        mut opened: Opened,
        deadline: Instant,
    ) -> Result<Vec<PreparedDevice>, PrepareError> {
        let hardware = self.hardware()?;
        let journal = &mut opened.journal;
        let mut promise = None;
        let record = match journal.stored().clone() {
            // What was taken down after the loss of its record does not know its requests.
            Stored::Record(record) if record.boot_id == self.boot_id && knows_its_requests(&record) => {
                Record::clone(&record)
            }
            // Instances do not survive a reboot; what was promised does, and needs no API server to be known.
            Stored::Record(before) if before.boot_id != self.boot_id => {
                promise = Some(Record::clone(&before));
                self.new_record(claim, &promised(&before), journal, &[], deadline).await?
            }
            Stored::Record(_) | Stored::Nothing => {
                let allocated = self.allocated(claim, deadline).await?;
                // Made by this claim already: only the state file was lost.
                let made = blocking(|| self.cdi.devices(claim.uid.as_str()))?;
                self.new_record(claim, &allocated, journal, &made, deadline).await?
            }
            Stored::Unreadable(reason) => {
                let allocated = self.allocated(claim, deadline).await?;
                self.report_unreadable(&claim.uid, &reason);
                // It counts as prepared, because its pod may be running.
                self.reserve(claim, journal, deadline, |others| {
                    Ok::<_, PrepareError>(self.planned(claim, &allocated, others)?.made(Stage::Prepared))
                })
                .await?
            }
        };
        let before = record.clone();
        let draft = Draft::shared(opened, record, promise);
        match self.carry_out(&draft, &before, &hardware, deadline).await {
            Ok(devices) => {
                if before.stage != Stage::Prepared {
                    info!(devices = devices.len(), "claim prepared");
                }
                Ok(devices)
            }
            Err(error) => {
                // The pod of a claim that was prepared before may be running: leave it what it has. And behind a GPU
                // that does not answer there is no point in waiting; the next call for the claim finds the record.
                if before.stage != Stage::Prepared && !matches!(error, PrepareError::Silent(_)) {
                    self.undo(&draft, deadline).await;
                }
                Err(error)
            }
        }
    }

    /// Plans the claim and stores the record, which is the intent to make its devices. Waits within the deadline for a
    /// claim that is in the way, because the scheduler may give away what is just being unprepared. With any of the
    /// devices made already, a pod may be running with them, so the claim counts as prepared.
    async fn new_record(
        &self,
        claim: &ClaimRef,
        allocated: &[AllocatedDevice],
        journal: &mut Journal,
        made: &[String],
        deadline: Instant,
    ) -> Result<Record, PrepareError> {
        const PAUSE: Duration = Duration::from_millis(500);
        /// A pod that ends has its claim unprepared within a moment, and nobody needs to know of that.
        const WORTH_TELLING: Duration = Duration::from_secs(2);
        let begun = Instant::now();
        let mut is_told = false;
        let mut waiting = None;
        loop {
            let reserved = self.reserve(claim, journal, deadline, |others| {
                let record = self.planned(claim, allocated, others)?;
                Ok::<_, PrepareError>(match record.devices.iter().any(|it| made.contains(&it.name)) {
                    true => record.made(Stage::Prepared),
                    false => record,
                })
            });
            match reserved.await {
                Err(PrepareError::Plan(PlanError::Held(conflict))) if Instant::now() + PAUSE < deadline => {
                    debug!(%conflict, "waiting for the other claim");
                    if !is_told && WORTH_TELLING <= begun.elapsed() {
                        is_told = true;
                        let note = format!("Waits: {conflict}.");
                        self.events.tell_claim(EventReason::PrepareWaits, claim, note);
                    }
                    waiting.get_or_insert_with(|| self.metrics.step(Step::HeldWait));
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

    async fn allocated(
        &self,
        claim: &ClaimRef,
        deadline: Instant,
    ) -> Result<Vec<AllocatedDevice>, PrepareError> {
        let object = self.metrics.awaited(Step::ApiGet, self.reader.read(claim, deadline)).await?;
        self.pods.note(&claim.uid, &object);
        Ok(allocated_devices(claim, &object, &self.driver)?)
    }

    pub(super) async fn carry_out(
        &self,
        draft: &SharedDraft,
        before: &Record,
        hardware: &Hardware,
        deadline: Instant,
    ) -> Result<Vec<PreparedDevice>, PrepareError> {
        if before.stage == Stage::Unpreparing {
            blocking(|| held(draft).enter(Stage::Preparing))?;
        }
        let makes = before
            .devices
            .iter()
            .enumerate()
            .map(|(index, device)| self.ensure_device(draft, index, device, hardware, deadline));
        // All are waited for, also after one has failed: no step of this call may be taken after its end.
        let nodes = join_all(makes).await.into_iter().collect::<Result<_, _>>()?;
        blocking(|| {
            let driver_version = &hardware.facts.driver_version;
            self.metrics.timed(Step::CdiWrite, || self.write_cdi(before, nodes, driver_version))?;
            let mut draft = held(draft);
            draft.enter(Stage::Prepared)?;
            if draft.record != *before {
                self.changed.send_replace(());
            }
            Ok::<_, PrepareError>(())
        })?;
        before.devices.iter().map(|it| self.answer(&before.claim, it)).collect()
    }

    async fn ensure_device(
        &self,
        draft: &SharedDraft,
        index: usize,
        device: &RecordedDevice,
        hardware: &Hardware,
        deadline: Instant,
    ) -> Result<DeviceNodes, PrepareError> {
        let gpu = gpu_of(hardware, device)?;
        let made = retried(deadline, || async {
            match &device.kind {
                RecordedKind::Gpu | RecordedKind::Share { .. } => whole_gpu(gpu, deadline).await,
                RecordedKind::Adopted(adopted) => existing(gpu, adopted, deadline).await,
                RecordedKind::Mig { spec, .. } => self.mig_device(draft, index, spec, gpu, deadline).await,
            }
        });
        let (parent_minor, instance) = made.await.map_err(|error| failed(device, error))?;
        if let Some(missing) = self.common.root().missing_gpu_node(parent_minor) {
            return Err(CommonError::Incomplete(missing.to_string()).into());
        }
        let caps = |source| PrepareError::Caps { device: device.name.clone(), source };
        let mig = match instance {
            None => None,
            Some((gi, ci)) => Some(MigCaps::read(&self.proc_root, parent_minor, gi, ci).map_err(caps)?),
        };
        Ok(DeviceNodes { parent_minor, mig })
    }

    async fn mig_device(
        &self,
        draft: &SharedDraft,
        index: usize,
        spec: &MigSpec,
        gpu: &LiveGpu,
        deadline: Instant,
    ) -> Result<NodeNumbers, WorkError> {
        let (draft, spec, facts) = (Arc::clone(draft), spec.clone(), Arc::clone(&gpu.facts));
        let metrics = gpu.metrics.clone();
        on_gpu(gpu, deadline, move |handle| {
            let Some(mig) = &facts.mig else { return Err(mig::no_mig()) };
            let Some(progress) = progress_of(&held(&draft).record, index) else { return Err(mig::no_mig()) };
            let mut note = |progress| held(&draft).note(index, progress);
            let made = mig::ensure(handle, mig, &spec, &progress, &mut note, &metrics)?;
            Ok((made.parent_minor, Some((made.gpu_instance, made.compute_instance.id))))
        })
        .await
    }

    fn write_cdi(
        &self,
        record: &Record,
        nodes: Vec<DeviceNodes>,
        driver_version: &str,
    ) -> Result<(), PrepareError> {
        if record.devices.is_empty() {
            return Ok(());
        }
        let common = self.common.get(driver_version)?;
        let named = record.devices.iter().zip(nodes);
        let devices: Vec<ClaimDevice> =
            named.map(|(it, nodes)| ClaimDevice { name: it.name.clone(), nodes }).collect();
        let uid = record.claim.uid.as_str();
        let spec = claim_spec(&self.kind, uid, &devices, &self.common.root().devices, common.edits())?;
        self.cdi.write(uid, &spec)?;
        Ok(())
    }

    fn answer(&self, claim: &ClaimRef, device: &RecordedDevice) -> Result<PreparedDevice, PrepareError> {
        Ok(PreparedDevice {
            requests: device.requests.clone(),
            pool: device.pool.clone(),
            device: device.name.clone(),
            cdi_device_id: self.kind.device_id(claim.uid.as_str(), &device.name)?,
        })
    }

    /// Takes back what a failed first attempt made. What cannot be taken back stays recorded, for the next call and for
    /// recovery.
    async fn undo(&self, draft: &SharedDraft, deadline: Instant) {
        /// What a call that has used up its time may take beyond it: the kubelet waits five seconds longer.
        const LEAST: Duration = Duration::from_secs(4);
        let deadline = deadline.max(Instant::now() + LEAST);
        let undone = self.take_down(draft, deadline).await;
        self.metrics.recovered(Recovery::Undo, undone.is_ok());
        if let Err(error) = undone {
            warn!(%error, "cannot take back what a failed prepare made; it stays recorded");
        }
    }
}

/// Minor number of the GPU, and the ids of GPU instance and compute instance for a MIG device.
type NodeNumbers = (u32, Option<(u32, u32)>);

async fn whole_gpu(gpu: &LiveGpu, deadline: Instant) -> Result<NodeNumbers, WorkError> {
    let facts = Arc::clone(&gpu.facts);
    on_gpu(gpu, deadline, move |handle| {
        if let Some(mig) = &facts.mig {
            mig::switch_mode(handle, mig, false)?;
        }
        Ok((handle.minor()?, None))
    })
    .await
}

/// An instance that somebody else made is looked for, and nothing else.
async fn existing(gpu: &LiveGpu, adopted: &Adopted, deadline: Instant) -> Result<NodeNumbers, WorkError> {
    let adopted = adopted.clone();
    on_gpu(gpu, deadline, move |handle| {
        let found = mig::find_existing(handle, &adopted)?;
        Ok((found.parent_minor, Some((found.gpu_instance, found.compute_instance.id))))
    })
    .await
}

/// The MIG devices that were made for a record: index, device, what it should be, how far it got.
pub(super) fn mig_devices(
    record: &Record,
) -> impl Iterator<Item = (usize, &RecordedDevice, &MigSpec, &Progress)> {
    record.devices.iter().enumerate().filter_map(|(index, device)| match &device.kind {
        RecordedKind::Mig { spec, progress } => Some((index, device, spec, progress)),
        RecordedKind::Gpu | RecordedKind::Share { .. } | RecordedKind::Adopted(_) => None,
    })
}

fn progress_of(record: &Record, index: usize) -> Option<Progress> {
    mig_devices(record).find(|(it, ..)| *it == index).map(|(_, _, _, progress)| progress.clone())
}

/// What a record promises, as an allocation.
fn promised(record: &Record) -> Vec<AllocatedDevice> {
    let device = |it: &RecordedDevice| AllocatedDevice {
        device: it.name.clone(),
        pool: it.pool.clone(),
        requests: it.requests.clone(),
    };
    record.devices.iter().map(device).collect()
}

/// False for a record that was made from names alone.
fn knows_its_requests(record: &Record) -> bool {
    record.devices.iter().all(|it| !it.requests.is_empty())
}

fn gpu_of<'a>(hardware: &'a Hardware, device: &RecordedDevice) -> Result<&'a Arc<LiveGpu>, PrepareError> {
    let missing = || {
        let uuid = &device.parent_uuid;
        PrepareError::NoHardware(format!("GPU {uuid} of device `{}` is not there", device.name))
    };
    hardware.gpu(&device.parent_uuid).ok_or_else(missing)
}

fn failed(device: &RecordedDevice, error: WorkError) -> PrepareError {
    match error {
        WorkError::Mig(source) => PrepareError::Device { device: device.name.clone(), source },
        WorkError::Silent => PrepareError::Silent(device.name.clone()),
        WorkError::Closed(closed) => closed.into(),
    }
}
