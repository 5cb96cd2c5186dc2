//! Unpreparing a claim: MIG devices, CDI file, record, in this order, so that whatever is left is still on record.

use std::sync::Arc;

use futures::future::join_all;
use tokio::time::Instant;
use tracing::{Instrument, info, warn};

use super::plan::is_held_by_another;
use super::prepare::mig_devices;
use super::work::{WorkError, blocking, on_gpu, retried};
use super::{CALL_BUDGET, ClaimRef, Claims, PlanError, UnprepareError, allocated_devices};
use crate::api::ReadError;
use crate::checkpoint::{Progress, Record, RecordedDevice, Stored};
use crate::hardware::{Hardware, LiveGpu};
use crate::inventory::MigSpec;
use crate::mig::{self, MigError};
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
        let deadline = Instant::now() + CALL_BUDGET;
        let _one_at_a_time = self.locks.lock(&claim.uid).await;
        let record = match self.checkpoint.load(&claim.uid) {
            Stored::Record(record) => Some(*record),
            Stored::Nothing => None,
            Stored::Unreadable(reason) => self.rebuilt(claim, &reason, deadline).await?,
        };
        if let Some(record) = record.as_ref().filter(|it| mig_devices(it).next().is_some()) {
            let no_hardware = |reason| UnprepareError::NoHardware { claim: claim.clone(), reason };
            let hardware = self.node.borrow().hardware.clone().map_err(no_hardware)?;
            self.destroy_devices(record, &hardware, deadline).await?;
        }
        blocking(|| {
            self.cdi.remove(claim.uid.as_str())?;
            Ok::<_, UnprepareError>(self.checkpoint.remove(&claim.uid)?)
        })?;
        if record.is_some() {
            self.changed.send_replace(());
            info!("claim unprepared");
        }
        Ok(())
    }

    /// Destroys the MIG devices of a record, GPUs in parallel. Those of another boot are gone, and so are those of a GPU
    /// that NVML does not know any more; one that belongs to another claim by now is left alone.
    pub(super) async fn destroy_devices(
        &self,
        record: &Record,
        hardware: &Hardware,
        deadline: Instant,
    ) -> Result<(), UnprepareError> {
        if record.boot_id != hardware.boot_id {
            info!("the node was rebooted since: the devices of the claim are gone already");
            return Ok(());
        }
        let others = self.checkpoint.records()?;
        let destroyed = mig_devices(record).map(|(_, device, spec, progress)| {
            let is_others = is_held_by_another(&record.claim, device, &others, &hardware.boot_id);
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
                    Some(gpu) => destroy_device(gpu, device, spec, progress, deadline).await,
                }
            }
        });
        // All are tried, also after one has failed.
        join_all(destroyed).await.into_iter().collect()
    }

    /// What an unreadable state file probably said, from the claim's allocation, stored in its place. Only where the
    /// claim itself is gone, or was never ours, nothing can be known: then its instances, if any, count as somebody
    /// else's. Any other failure leaves the file for the next call.
    async fn rebuilt(
        &self,
        claim: &ClaimRef,
        reason: &str,
        deadline: Instant,
    ) -> Result<Option<Record>, UnprepareError> {
        let hardware = self.node.borrow().hardware.clone();
        let no_hardware = |reason| UnprepareError::NoHardware { claim: claim.clone(), reason };
        let hardware = hardware.map_err(no_hardware)?;
        let allocated = match self.reader.read(claim, deadline).await {
            Ok(object) => allocated_devices(claim, &object, &self.driver).unwrap_or_default(),
            Err(ReadError::Gone(_)) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        match self.rebuild(claim, &allocated, &hardware, reason) {
            Ok(record) if record.devices.is_empty() => {
                warn!(
                    "nothing is known of the claim; `dra-driver-mig inspect` shows instances that are left"
                );
                Ok(Some(record))
            }
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
