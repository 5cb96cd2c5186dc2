//! Unpreparing a claim: MIG devices, CDI file, record, in this order, so that whatever is left is still on record.

use std::sync::Arc;

use futures::future::join_all;
use tokio::time::Instant;
use tracing::{Instrument, info, warn};

use super::plan::is_held_by_another;
use super::prepare::mig_devices;
use super::work::{WorkError, blocking, on_gpu, retried};
use super::{AllocatedDevice, ClaimRef, Claims, Ground, PlanError, UnprepareError, allocated_devices, plan};
use crate::api::ReadError;
use crate::checkpoint::{Journal, Progress, Record, RecordedDevice, Stage, StoreError, Stored};
use crate::hardware::{Hardware, LiveGpu};
use crate::inventory::MigSpec;
use crate::mig::{self, MigError, ModePolicy};
use crate::nvml::Code;

impl Claims {
    /// Destroys what was made for a claim. An unknown claim is success: it was never prepared here, or is unprepared
    /// already. The work goes on if the caller stops waiting.
    pub async fn unprepare(self: &Arc<Self>, claim: &ClaimRef) -> Result<(), UnprepareError> {
        let (this, owned) = (Arc::clone(self), claim.clone());
        let work = async move { this.unprepare_now(&owned).await };
        let interrupted = |_| Err(UnprepareError::Interrupted(claim.clone()));
        tokio::spawn(work.in_current_span()).await.unwrap_or_else(interrupted)
    }

    async fn unprepare_now(&self, claim: &ClaimRef) -> Result<(), UnprepareError> {
        let deadline = Instant::now() + self.budget;
        let journal = match self.journal::<UnprepareError>(claim, false, deadline).await? {
            Some(journal) => Some(journal),
            // Without a record a CDI file still tells what was made.
            None if self.cdi.exists(claim.uid.as_str())? => {
                self.journal::<UnprepareError>(claim, true, deadline).await?
            }
            None => None,
        };
        let Some(mut journal) = journal else { return Ok(()) };
        let record = match journal.stored().clone() {
            Stored::Record(record) => Some(Record::clone(&record)),
            Stored::Nothing => self.named_by_cdi(claim, &mut journal)?,
            Stored::Unreadable(reason) => self.rebuilt(claim, &mut journal, &reason, deadline).await?,
        };
        match record {
            Some(record) => self.leave(&mut journal, record, deadline).await?,
            None => blocking(|| {
                self.cdi.remove(claim.uid.as_str())?;
                Ok::<_, UnprepareError>(journal.forget()?)
            })?,
        }
        info!("claim unprepared");
        Ok(())
    }

    /// Takes a claim down for good: notes that this has begun, then does it.
    pub(super) async fn leave(
        &self,
        journal: &mut Journal,
        mut record: Record,
        deadline: Instant,
    ) -> Result<(), UnprepareError> {
        if record.stage != Stage::Unpreparing {
            record.stage = Stage::Unpreparing;
            blocking(|| journal.append(&record))?;
        }
        self.take_down(&record, deadline, || journal.forget()).await
    }

    /// Destroys the devices of a record, removes its CDI file, and forgets it if all that succeeded.
    pub(super) async fn take_down(
        &self,
        record: &Record,
        deadline: Instant,
        forget: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<(), UnprepareError> {
        if record.boot_id != self.boot_id {
            info!("the node was rebooted since: the devices of the claim are gone already");
        } else if mig_devices(record).next().is_some() {
            let no_hardware = |reason| UnprepareError::NoHardware { claim: record.claim.clone(), reason };
            let hardware = self.node.borrow().hardware.clone().map_err(no_hardware)?;
            self.destroy_devices(record, &hardware, deadline).await?;
        }
        blocking(|| {
            self.cdi.remove(record.claim.uid.as_str())?;
            Ok::<_, UnprepareError>(forget()?)
        })?;
        self.changed.send_replace(());
        Ok(())
    }

    /// Destroys the MIG devices of a record, GPUs in parallel. Those of a GPU that NVML does not know any more are gone; one
    /// that belongs to another claim by now is left alone.
    async fn destroy_devices(
        &self,
        record: &Record,
        hardware: &Hardware,
        deadline: Instant,
    ) -> Result<(), UnprepareError> {
        let others = self.checkpoint.records()?;
        let destroyed = mig_devices(record).map(|(_, device, spec, progress)| {
            let is_others = is_held_by_another(&record.claim, device, &others, &self.boot_id);
            let gpu = hardware.gpu(&device.parent_uuid);
            async move {
                match gpu {
                    _ if is_others => {
                        warn!(
                            device = device.name,
                            "the device belongs to another claim now and is left alone"
                        );
                        Ok(())
                    }
                    None => {
                        warn!(device = device.name, "the GPU is gone, and its instances with it");
                        Ok(())
                    }
                    Some(gpu) => {
                        destroy_device(gpu, device, spec, progress, deadline).await?;
                        self.release(gpu, deadline).await;
                        Ok(())
                    }
                }
            }
        });
        // All are tried, also after one has failed.
        join_all(destroyed).await.into_iter().collect()
    }

    /// Switches MIG mode off behind the last instance, where that is wanted.
    async fn release(&self, gpu: &LiveGpu, deadline: Instant) {
        if self.mode_policy == ModePolicy::Keep {
            return;
        }
        let facts = Arc::clone(&gpu.facts);
        let released = on_gpu(gpu, deadline, move |handle| match &facts.mig {
            Some(mig) => mig::release_mode(handle, mig),
            None => Ok(()),
        });
        if let Err(WorkError::Mig(error)) = released.await {
            warn!(gpu = gpu.facts.uuid, %error, "MIG mode stays on");
        }
    }

    /// The record that a claim without one must have had, as its CDI file tells; the state directory was lost.
    fn named_by_cdi(
        &self,
        claim: &ClaimRef,
        journal: &mut Journal,
    ) -> Result<Option<Record>, UnprepareError> {
        let names = blocking(|| self.cdi.devices(claim.uid.as_str()))?;
        let device =
            |device: String| AllocatedDevice { device, pool: self.pool.clone(), requests: Vec::new() };
        let allocated: Vec<AllocatedDevice> = names.into_iter().map(device).collect();
        if allocated.is_empty() {
            return Ok(None);
        }
        warn!(devices = allocated.len(), "no state file, but a CDI file: taking down what it names");
        let inventory = self.inventory();
        let ground = Ground { pool: &self.pool, inventory: &inventory, boot_id: &self.boot_id };
        let reserved = blocking(|| {
            self.checkpoint.reserve(journal, |others| {
                Ok::<_, UnprepareError>(Record {
                    stage: Stage::Unpreparing,
                    ..plan(claim, &allocated, ground, others)?
                })
            })
        });
        known(reserved.map(|(record, _)| record))
    }

    /// What an unreadable state file probably said, from the claim's allocation, stored in its place. Only where the
    /// claim itself is gone, or was never ours, nothing can be known: then its instances, if any, count as somebody
    /// else's. Any other failure leaves the file for the next call.
    async fn rebuilt(
        &self,
        claim: &ClaimRef,
        journal: &mut Journal,
        reason: &str,
        deadline: Instant,
    ) -> Result<Option<Record>, UnprepareError> {
        let hardware = self.node.borrow().hardware.clone();
        hardware.map_err(|reason| UnprepareError::NoHardware { claim: claim.clone(), reason })?;
        let allocated = match self.reader.read(claim, deadline).await {
            Ok(object) => allocated_devices(claim, &object, &self.driver).unwrap_or_default(),
            Err(ReadError::Gone(_)) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let rebuilt = known(self.rebuild(claim, &allocated, journal, reason))?;
        if rebuilt.as_ref().is_some_and(|it| it.devices.is_empty()) {
            warn!("nothing is known of the claim; `dra-driver-mig inspect` shows instances that are left");
        }
        Ok(rebuilt)
    }
}

/// Nothing where what the claim had is another claim's by now, or is not this node's any more.
fn known(rebuilt: Result<Record, UnprepareError>) -> Result<Option<Record>, UnprepareError> {
    match rebuilt {
        Ok(record) => Ok(Some(record)),
        Err(UnprepareError::Plan(PlanError::Held(conflict))) => {
            warn!(%conflict, "what the claim had is another claim's now");
            Ok(None)
        }
        Err(UnprepareError::Plan(error)) => {
            warn!(%error, "what the claim had is not this node's any more");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn destroy_device(
    gpu: &LiveGpu,
    device: &RecordedDevice,
    spec: &MigSpec,
    progress: &Progress,
    deadline: Instant,
) -> Result<(), UnprepareError> {
    let destroyed = retried(deadline, || {
        let (spec, progress) = (spec.clone(), progress.clone());
        on_gpu(gpu, deadline, move |handle| mig::destroy(handle, &spec, &progress))
    });
    match destroyed.await {
        Ok(()) => Ok(()),
        Err(WorkError::Mig(MigError::Nvml(error))) if error.code == Code::GPU_IS_LOST => {
            warn!(device = device.name, %error, "the GPU is lost, and its instances with it");
            Ok(())
        }
        Err(WorkError::Mig(source)) => Err(UnprepareError::Device { device: device.name.clone(), source }),
        Err(WorkError::Silent) => Err(UnprepareError::Silent(device.name.clone())),
        Err(WorkError::Closed(closed)) => Err(closed.into()),
    }
}
