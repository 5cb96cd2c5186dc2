//! Preparing a claim: intent on disk, MIG devices, CDI file, record complete, answer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use tokio::time::{Instant, sleep};
use tracing::{Instrument, debug, info, warn};

use super::work::{WorkError, blocking, on_gpu, retried};
use super::{
    AllocatedDevice, CALL_BUDGET, ClaimRef, Claims, CommonError, Ground, PlanError, PrepareError,
    PreparedDevice, UnprepareError, allocated_devices, plan,
};
use crate::cdi::{ClaimDevice, DeviceNodes, MigCaps, claim_spec};
use crate::checkpoint::{Durability, Progress, Record, RecordedDevice, RecordedKind, StoreError, Stored};
use crate::hardware::{Hardware, LiveGpu};
use crate::inventory::MigSpec;
use crate::mig::{self, MigError};

/// A record that several GPU threads write their steps to.
type SharedRecord = Arc<Mutex<Record>>;

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
        let deadline = Instant::now() + CALL_BUDGET;
        let _one_at_a_time = self.locks.lock(&claim.uid).await;
        let hardware = self.hardware()?;
        let record = match self.checkpoint.load(&claim.uid) {
            Stored::Record(record) if record.boot_id == hardware.boot_id => *record,
            // Instances do not survive a reboot, so the record of another boot says nothing that the allocation does not.
            Stored::Record(_) | Stored::Nothing => self.new_record(claim, &hardware, deadline).await?,
            Stored::Unreadable(reason) => self.rebuilt_record(claim, &hardware, &reason, deadline).await?,
        };
        let before = record.clone();
        let record: SharedRecord = Arc::new(Mutex::new(record));
        match self.carry_out(&record, &before, &hardware, deadline).await {
            Ok(devices) => {
                if !before.prepared {
                    info!(devices = devices.len(), "claim prepared");
                }
                Ok(devices)
            }
            Err(error) => {
                // The pod of a claim that was prepared before may be running: leave it what it has. And behind a GPU
                // that does not answer there is no point in waiting; the next call for the claim finds the record.
                if !before.prepared && !matches!(error, PrepareError::Silent(_)) {
                    self.undo(&snapshot(&record), &hardware, deadline).await;
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
        hardware: &Hardware,
        deadline: Instant,
    ) -> Result<Record, PrepareError> {
        const PAUSE: Duration = Duration::from_millis(500);
        let allocated = self.allocated(claim, deadline).await?;
        loop {
            let inventory = self.inventory();
            let ground = Ground { pool: &self.pool, inventory: &inventory, boot_id: &hardware.boot_id };
            // Planned once to know where to look, and once more under the lock, where a claim in the way counts first.
            let planned = plan(claim, &allocated, ground, &[])?;
            let looked = self.refuse_occupied(&planned, hardware, deadline).await;
            let reserved = blocking(|| {
                self.checkpoint.reserve(|others| {
                    let record = plan(claim, &allocated, ground, others)?;
                    looked.map(|()| record)
                })
            });
            match reserved {
                Err(PrepareError::Plan(PlanError::Held(conflict))) if Instant::now() + PAUSE < deadline => {
                    debug!(%conflict, "waiting for the other claim");
                    sleep(PAUSE).await;
                }
                result => return result,
            }
        }
    }

    /// The record of a claim whose state file cannot be read: what it was promised is still in its allocation, and what
    /// was made for it sits there. It counts as prepared, because its pod may be running.
    async fn rebuilt_record(
        &self,
        claim: &ClaimRef,
        hardware: &Hardware,
        reason: &str,
        deadline: Instant,
    ) -> Result<Record, PrepareError> {
        let allocated = self.allocated(claim, deadline).await?;
        self.rebuild(claim, &allocated, hardware, reason)
    }

    /// Replaces an unreadable state file by what the allocation says.
    pub(super) fn rebuild<E: From<PlanError> + From<StoreError>>(
        &self,
        claim: &ClaimRef,
        allocated: &[AllocatedDevice],
        hardware: &Hardware,
        reason: &str,
    ) -> Result<Record, E> {
        let inventory = self.inventory();
        let ground = Ground { pool: &self.pool, inventory: &inventory, boot_id: &hardware.boot_id };
        let aside = self.checkpoint.set_aside(&claim.uid)?;
        warn!(reason, aside = %aside.display(), "state file set aside; rebuilding it from the allocation");
        blocking(|| {
            self.checkpoint
                .reserve(|others| Ok(Record { prepared: true, ..plan(claim, allocated, ground, others)? }))
        })
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
    /// disk, it would count as ours.
    async fn refuse_occupied(
        &self,
        record: &Record,
        hardware: &Hardware,
        deadline: Instant,
    ) -> Result<(), PrepareError> {
        let checks = mig_devices(record).map(|(_, device, spec, _)| async move {
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

    async fn carry_out(
        &self,
        record: &SharedRecord,
        before: &Record,
        hardware: &Hardware,
        deadline: Instant,
    ) -> Result<Vec<PreparedDevice>, PrepareError> {
        let makes = before
            .devices
            .iter()
            .enumerate()
            .map(|(index, device)| self.ensure_device(record, index, device, hardware, deadline));
        // All are waited for, also after one has failed: no step of this call may be taken after its end.
        let nodes = join_all(makes).await.into_iter().collect::<Result<_, _>>()?;
        let mut done = snapshot(record);
        done.prepared = true;
        blocking(|| {
            self.write_cdi(before, nodes, &hardware.facts.driver_version)?;
            if done != *before {
                self.checkpoint.save(&done, Durability::ProcessEnd)?;
                self.changed.send_replace(());
            }
            Ok::<_, PrepareError>(())
        })?;
        done.devices.iter().map(|it| self.answer(&done.claim, it)).collect()
    }

    async fn ensure_device(
        &self,
        record: &SharedRecord,
        index: usize,
        device: &RecordedDevice,
        hardware: &Hardware,
        deadline: Instant,
    ) -> Result<DeviceNodes, PrepareError> {
        let gpu = gpu_of(hardware, device)?;
        let made = retried(deadline, || async {
            match &device.kind {
                RecordedKind::Gpu => whole_gpu(gpu, deadline).await,
                RecordedKind::Mig { spec, .. } => self.mig_device(record, index, spec, gpu, deadline).await,
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
        record: &SharedRecord,
        index: usize,
        spec: &MigSpec,
        gpu: &LiveGpu,
        deadline: Instant,
    ) -> Result<NodeNumbers, WorkError> {
        let (record, spec, facts) = (Arc::clone(record), spec.clone(), Arc::clone(&gpu.facts));
        let checkpoint = self.checkpoint.clone();
        on_gpu(gpu, deadline, move |handle| {
            let Some(mig) = &facts.mig else { return Err(mig::no_mig()) };
            let Some(progress) = progress_of(&record, index) else { return Err(mig::no_mig()) };
            let mut write_down = |progress| {
                let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(RecordedDevice { kind: RecordedKind::Mig { progress: current, .. }, .. }) =
                    record.devices.get_mut(index)
                {
                    *current = progress;
                }
                checkpoint.save(&record, Durability::ProcessEnd)
            };
            let made = mig::ensure(handle, mig, &spec, &progress, &mut write_down)?;
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

    /// Takes back what a failed first attempt made. What cannot be taken back stays recorded, for the next call.
    async fn undo(&self, record: &Record, hardware: &Hardware, deadline: Instant) {
        let undone = async {
            self.destroy_devices(record, hardware, deadline).await?;
            self.cdi.remove(record.claim.uid.as_str())?;
            Ok::<_, UnprepareError>(self.checkpoint.remove(&record.claim.uid)?)
        };
        if let Err(error) = undone.await {
            warn!(%error, "cannot take back what a failed prepare made; it stays recorded");
        }
        self.changed.send_replace(());
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

fn progress_of(record: &SharedRecord, index: usize) -> Option<Progress> {
    let record = record.lock().unwrap_or_else(PoisonError::into_inner);
    mig_devices(&record).find(|(it, ..)| *it == index).map(|(_, _, _, progress)| progress.clone())
}

fn snapshot(record: &SharedRecord) -> Record {
    record.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
