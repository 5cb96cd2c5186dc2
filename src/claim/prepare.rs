//! Preparing a claim: intent on disk, MIG devices, CDI file, record complete, answer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use tokio::time::{Instant, sleep};
use tracing::{Instrument, debug, info, warn};

use super::work::{WorkError, blocking, on_gpu, retried};
use super::{
    AllocatedDevice, Busy, ClaimRef, Claims, CommonError, Ground, PlanError, PrepareError, PreparedDevice,
    allocated_devices, plan,
};
use crate::cdi::{ClaimDevice, DeviceNodes, MigCaps, claim_spec};
use crate::checkpoint::{Journal, Progress, Record, RecordedDevice, RecordedKind, Stage, StoreError, Stored};
use crate::hardware::{Hardware, LiveGpu};
use crate::inventory::MigSpec;
use crate::mig::{self, MigError};

/// A claim that is worked on. Several GPU threads write their steps to it; one that hangs keeps it, and with it the claim,
/// from later calls.
type SharedDraft = Arc<Mutex<Draft>>;

/// The journal of a claim and what it says.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) journal: Journal,
    pub(super) record: Record,
}

impl Draft {
    pub(super) fn shared(journal: Journal, record: Record) -> SharedDraft {
        Arc::new(Mutex::new(Self { journal, record }))
    }

    /// Notes that the claim enters this stage.
    fn enter(&mut self, stage: Stage) -> Result<(), StoreError> {
        if self.record.stage != stage {
            self.record.stage = stage;
            self.journal.append(&self.record)?;
        }
        Ok(())
    }

    /// Notes how far a device got.
    fn note(&mut self, index: usize, now: Progress) -> Result<(), StoreError> {
        if let Some(RecordedDevice { kind: RecordedKind::Mig { progress, .. }, .. }) =
            self.record.devices.get_mut(index)
        {
            *progress = now;
        }
        self.journal.append(&self.record)
    }
}

impl Claims {
    /// Prepares a claim and answers with its devices. Repeating it gives the same answer: what exists is checked, what
    /// is missing made again, the CDI file rewritten. The work goes on if the caller stops waiting.
    pub async fn prepare(self: &Arc<Self>, claim: &ClaimRef) -> Result<Vec<PreparedDevice>, PrepareError> {
        let (this, owned) = (Arc::clone(self), claim.clone());
        let work = async move { this.prepare_now(&owned).await };
        let interrupted = |_| Err(PrepareError::Interrupted(claim.clone()));
        let result = tokio::spawn(work.in_current_span()).await.unwrap_or_else(interrupted);
        if let Err(PrepareError::Device { source, .. }) = &result
            && source.is_surprise()
        {
            self.surprised.notify_one();
        }
        result
    }

    async fn prepare_now(&self, claim: &ClaimRef) -> Result<Vec<PreparedDevice>, PrepareError> {
        let deadline = Instant::now() + self.budget;
        let hardware = self.hardware()?;
        let Some(mut journal) = self.journal::<PrepareError>(claim, true, deadline).await? else {
            return Err(Busy(claim.clone()).into());
        };
        let record = match journal.stored().clone() {
            Stored::Record(record) if record.boot_id == self.boot_id => Record::clone(&record),
            // Instances do not survive a reboot; what was promised does, and needs no API server to be known.
            Stored::Record(before) => {
                self.new_record(claim, &promised(&before), &mut journal, &hardware, deadline).await?
            }
            Stored::Nothing => {
                let allocated = self.allocated(claim, deadline).await?;
                self.new_record(claim, &allocated, &mut journal, &hardware, deadline).await?
            }
            Stored::Unreadable(reason) => {
                let allocated = self.allocated(claim, deadline).await?;
                self.rebuild::<PrepareError>(claim, &allocated, &mut journal, &reason)?
            }
        };
        let before = record.clone();
        let draft = Draft::shared(journal, record);
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
    /// claim that is in the way, because the scheduler may give away what is just being unprepared.
    async fn new_record(
        &self,
        claim: &ClaimRef,
        allocated: &[AllocatedDevice],
        journal: &mut Journal,
        hardware: &Hardware,
        deadline: Instant,
    ) -> Result<Record, PrepareError> {
        const PAUSE: Duration = Duration::from_millis(500);
        loop {
            let inventory = self.inventory();
            let ground = Ground { pool: &self.pool, inventory: &inventory, boot_id: &self.boot_id };
            // Planned once to know where to look, and once more under the lock, where a claim in the way counts first.
            let planned = plan(claim, allocated, ground, &[])?;
            let looked = self.refuse_occupied(&planned, hardware, deadline).await;
            let reserved = blocking(|| {
                self.checkpoint.reserve(journal, |others| {
                    let record = plan(claim, allocated, ground, others)?;
                    looked.map(|()| record)
                })
            });
            match reserved {
                Err(PrepareError::Plan(PlanError::Held(conflict))) if Instant::now() + PAUSE < deadline => {
                    debug!(%conflict, "waiting for the other claim");
                    sleep(PAUSE).await;
                }
                result => return result.map(|(record, _)| record),
            }
        }
    }

    /// Replaces an unreadable state file by what the allocation says: what the claim was promised is there, and what was
    /// made for it sits there. It counts as prepared, because its pod may be running.
    pub(super) fn rebuild<E: From<PlanError> + From<StoreError>>(
        &self,
        claim: &ClaimRef,
        allocated: &[AllocatedDevice],
        journal: &mut Journal,
        reason: &str,
    ) -> Result<Record, E> {
        let inventory = self.inventory();
        let ground = Ground { pool: &self.pool, inventory: &inventory, boot_id: &self.boot_id };
        let (record, aside) = blocking(|| {
            self.checkpoint.reserve(journal, |others| {
                Ok::<_, E>(Record { stage: Stage::Prepared, ..plan(claim, allocated, ground, others)? })
            })
        })?;
        let aside = aside.unwrap_or_default();
        warn!(reason, aside = %aside.display(), "state file set aside and rebuilt from the allocation");
        self.report_unreadable(&claim.uid, reason);
        Ok(record)
    }

    async fn allocated(
        &self,
        claim: &ClaimRef,
        deadline: Instant,
    ) -> Result<Vec<AllocatedDevice>, PrepareError> {
        let object = self.reader.read(claim, deadline).await?;
        Ok(allocated_devices(claim, &object, &self.driver)?)
    }

    /// Fails where an instance of somebody else sits exactly where one of ours is to be made: once our intent is on
    /// disk, it would count as ours. It is ours already where the claim's CDI file names it: then only the state file
    /// was lost.
    async fn refuse_occupied(
        &self,
        record: &Record,
        hardware: &Hardware,
        deadline: Instant,
    ) -> Result<(), PrepareError> {
        let named = blocking(|| self.cdi.devices(record.claim.uid.as_str()))?;
        let unnamed = mig_devices(record).filter(|(_, device, ..)| !named.contains(&device.name));
        let checks = unnamed.map(|(_, device, spec, _)| async move {
            let wanted = spec.clone();
            let gpu = gpu_of(hardware, device)?;
            let asked = on_gpu(gpu, deadline, move |handle| mig::is_free(handle, &wanted)).await;
            match asked.map_err(|error| failed(device, error))? {
                true => Ok(()),
                false => {
                    let (profile, start) = (spec.profile.clone(), spec.placement.start);
                    Err(failed(device, WorkError::Mig(MigError::Occupied { profile, start })))
                }
            }
        });
        try_join_all(checks).await.map(|_| ())
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
            self.write_cdi(before, nodes, &hardware.facts.driver_version)?;
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
                RecordedKind::Gpu => whole_gpu(gpu, deadline).await,
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
        on_gpu(gpu, deadline, move |handle| {
            let Some(mig) = &facts.mig else { return Err(mig::no_mig()) };
            let Some(progress) = progress_of(&held(&draft).record, index) else { return Err(mig::no_mig()) };
            let mut note = |progress| held(&draft).note(index, progress);
            let made = mig::ensure(handle, mig, &spec, &progress, &mut note)?;
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
        let record = held(draft).record.clone();
        let undone = self.take_down(&record, deadline, || held(draft).journal.forget()).await;
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

/// The MIG devices of a record: index, device, what it should be, how far it got.
pub(super) fn mig_devices(
    record: &Record,
) -> impl Iterator<Item = (usize, &RecordedDevice, &MigSpec, &Progress)> {
    record.devices.iter().enumerate().filter_map(|(index, device)| match &device.kind {
        RecordedKind::Gpu => None,
        RecordedKind::Mig { spec, progress } => Some((index, device, spec, progress)),
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

fn held(draft: &SharedDraft) -> MutexGuard<'_, Draft> {
    draft.lock().unwrap_or_else(PoisonError::into_inner)
}

fn gpu_of<'a>(hardware: &'a Hardware, device: &RecordedDevice) -> Result<&'a LiveGpu, PrepareError> {
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
