//! Preparing a claim: intent on disk, MIG devices, CDI file, record complete, answer.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::try_join_all;
use tokio::time::{Instant, sleep};
use tracing::{Instrument, info, warn};

use super::{
    CALL_BUDGET, ClaimRef, Claims, CommonError, PrepareError, PreparedDevice, allocated_devices, plan,
};
use crate::cdi::{ClaimDevice, DeviceNodes, MigCaps, claim_spec};
use crate::checkpoint::{Durability, Progress, Record, RecordedDevice, RecordedKind, Stored};
use crate::hardware::{Hardware, LiveGpu};
use crate::inventory::MigSpec;
use crate::mig::{self, MigError};
use crate::nvml::QueueClosed;

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
        let (record, is_intent_on_disk) = self.record_of(claim, &hardware, deadline).await?;
        let (was_prepared, before) = (record.prepared, record.clone());
        if !is_intent_on_disk {
            self.refuse_occupied(&record, &hardware).await?;
            self.checkpoint.save(&record, Durability::PowerFailure)?;
        }
        let record: SharedRecord = Arc::new(Mutex::new(record));
        match self.carry_out(&record, &before, &hardware, deadline).await {
            Ok(devices) => {
                if !was_prepared {
                    info!(devices = devices.len(), "claim prepared");
                }
                Ok(devices)
            }
            Err(error) => {
                // The pod of a claim that was prepared before may be running: leave it what it has.
                if !was_prepared {
                    self.undo(&snapshot(&record), &hardware).await;
                }
                Err(error)
            }
        }
    }

    /// The claim's record: the one on disk, or a new one from its allocation. The flag tells whether the intent to make
    /// its devices during this boot is on disk already.
    async fn record_of(
        &self,
        claim: &ClaimRef,
        hardware: &Hardware,
        deadline: Instant,
    ) -> Result<(Record, bool), PrepareError> {
        match self.checkpoint.load(&claim.uid)? {
            Stored::Record(record) if record.boot_id == hardware.boot_id => Ok((*record, true)),
            Stored::Record(mut record) => {
                info!("the node was rebooted since the claim was prepared: its devices are made again");
                record.start_over(&hardware.boot_id);
                Ok((*record, false))
            }
            Stored::Nothing => Ok((self.new_record(claim, hardware, deadline).await?, false)),
            Stored::Unreadable(reason) => {
                // What the claim was promised is still in its allocation, and what was made for it sits there.
                let record = self.new_record(claim, hardware, deadline).await?;
                let aside = self.checkpoint.set_aside(&claim.uid)?;
                warn!(reason, aside = %aside.display(), "state file set aside; rebuilding it from the allocation");
                self.checkpoint.save(&record, Durability::PowerFailure)?;
                Ok((record, true))
            }
        }
    }

    async fn new_record(
        &self,
        claim: &ClaimRef,
        hardware: &Hardware,
        deadline: Instant,
    ) -> Result<Record, PrepareError> {
        let object = self.reader.read(claim, deadline).await?;
        let allocated = allocated_devices(claim, &object, &self.driver)?;
        let others = self.checkpoint.records()?;
        let inventory = self.inventory();
        Ok(plan(claim, &allocated, &inventory, &others, &hardware.boot_id)?)
    }

    /// Fails where an instance of somebody else sits exactly where one of ours is to be made: once our intent is on
    /// disk, it would count as ours.
    async fn refuse_occupied(&self, record: &Record, hardware: &Hardware) -> Result<(), PrepareError> {
        let checks = mig_devices(record).map(|(_, device, spec, _)| async move {
            let wanted = spec.clone();
            let is_free =
                gpu_of(hardware, device)?.queue.run(move |handle| mig::is_free(handle, &wanted)).await?;
            match is_free.map_err(|source| failed(device, source))? {
                true => Ok(()),
                false => {
                    let (profile, start) = (spec.profile.clone(), spec.placement.start);
                    Err(failed(device, MigError::Occupied { profile, start }))
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
        let nodes = try_join_all(makes).await?;
        self.write_cdi(before, nodes, &hardware.facts.driver_version)?;

        let mut done = snapshot(record);
        done.prepared = true;
        if done != *before {
            self.checkpoint.save(&done, Durability::PowerFailure)?;
            self.changed.send_replace(());
        }
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
        let nodes = retried(deadline, || async {
            match &device.kind {
                RecordedKind::Gpu => whole_gpu(gpu).await,
                RecordedKind::Mig { spec, .. } => self.mig_device(record, index, spec, gpu).await,
            }
        });
        let (parent_minor, instance) = nodes.await?.map_err(|source| failed(device, source))?;
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
    ) -> Result<Result<NodeNumbers, MigError>, QueueClosed> {
        let (record, spec, facts) = (Arc::clone(record), spec.clone(), Arc::clone(&gpu.facts));
        let checkpoint = self.checkpoint.clone();
        gpu.queue
            .run(move |handle| {
                let Some(mig) = &facts.mig else { return Err(mig::no_mig()) };
                let Some(progress) = progress_of(&record, index) else { return Err(mig::no_mig()) };
                let mut write_down = |progress| {
                    let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(RecordedDevice {
                        kind: RecordedKind::Mig { progress: current, .. }, ..
                    }) = record.devices.get_mut(index)
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
    async fn undo(&self, record: &Record, hardware: &Hardware) {
        for (_, device, spec, progress) in mig_devices(record) {
            let Ok(gpu) = gpu_of(hardware, device) else { return };
            let (spec, progress) = (spec.clone(), progress.clone());
            let destroyed = gpu.queue.run(move |handle| mig::destroy(handle, &spec, &progress)).await;
            if let Ok(Err(error)) = destroyed {
                warn!(device = device.name, %error, "cannot take back a MIG device; it stays recorded");
                return;
            }
        }
        let uid = &record.claim.uid;
        if let Err(error) = self.cdi.remove(uid.as_str()) {
            warn!(%error, "cannot remove the CDI file of a claim that failed");
        }
        if let Err(error) = self.checkpoint.remove(uid) {
            warn!(%error, "cannot remove the record of a claim that failed");
        }
    }
}

/// Minor number of the GPU, and the ids of GPU instance and compute instance for a MIG device.
type NodeNumbers = (u32, Option<(u32, u32)>);

async fn whole_gpu(gpu: &LiveGpu) -> Result<Result<NodeNumbers, MigError>, QueueClosed> {
    let facts = Arc::clone(&gpu.facts);
    gpu.queue
        .run(move |handle| {
            if let Some(mig) = &facts.mig {
                mig::switch_mode(handle, mig, false)?;
            }
            Ok((handle.minor()?, None))
        })
        .await
}

/// Repeats what fails only for the moment, until the deadline: the kubelet itself would wait for more than a minute.
pub(super) async fn retried<T, F>(
    deadline: Instant,
    work: impl Fn() -> F,
) -> Result<Result<T, MigError>, QueueClosed>
where
    F: Future<Output = Result<Result<T, MigError>, QueueClosed>>,
{
    const LONGEST_PAUSE: Duration = Duration::from_secs(2);
    let mut pause = Duration::from_millis(100);
    loop {
        match work().await? {
            Err(error) if error.is_transient() && Instant::now() + pause < deadline => {
                warn!(%error, "trying again");
                sleep(pause).await;
                pause = LONGEST_PAUSE.min(pause * 2);
            }
            result => return Ok(result),
        }
    }
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

fn failed(device: &RecordedDevice, source: MigError) -> PrepareError {
    PrepareError::Device { device: device.name.clone(), source }
}
