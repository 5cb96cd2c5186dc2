//! Unpreparing a claim: MIG devices, CDI file, record, in this order, so that whatever is left is still on record.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::{Instrument, info, warn};

use super::plan::is_held_by_another;
use super::prepare::{mig_devices, retried};
use super::{CALL_BUDGET, ClaimRef, Claims, UnprepareError, allocated_devices, plan};
use crate::checkpoint::{Record, Stored};
use crate::mig;

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
        let record = match self.checkpoint.load(&claim.uid)? {
            Stored::Record(record) => Some(*record),
            Stored::Nothing => None,
            Stored::Unreadable(reason) => self.rebuilt(claim, &reason, deadline).await?,
        };
        if let Some(record) = &record {
            self.destroy_devices(record, deadline).await?;
        }
        self.cdi.remove(claim.uid.as_str())?;
        self.checkpoint.remove(&claim.uid)?;
        if record.is_some() {
            self.changed.send_replace(());
            info!("claim unprepared");
        }
        Ok(())
    }

    async fn destroy_devices(&self, record: &Record, deadline: Instant) -> Result<(), UnprepareError> {
        if mig_devices(record).next().is_none() {
            return Ok(());
        }
        let no_hardware = |reason: String| UnprepareError::NoHardware { claim: record.claim.clone(), reason };
        let hardware = self.hardware().map_err(|it| no_hardware(it.to_string()))?;
        if record.boot_id != hardware.boot_id {
            info!("the node was rebooted since: the devices of the claim are gone already");
            return Ok(());
        }
        let others = self.checkpoint.records()?;
        for (_, device, spec, progress) in mig_devices(record) {
            if is_held_by_another(&record.claim, device, &others, &hardware.boot_id) {
                warn!(device = device.name, "the device belongs to another claim now and is left alone");
                continue;
            }
            let gpu = hardware
                .gpu(&device.parent_uuid)
                .ok_or_else(|| no_hardware(format!("GPU {} is not there", device.parent_uuid)))?;
            let destroyed = retried(deadline, || {
                let (spec, progress) = (spec.clone(), progress.clone());
                gpu.queue.run(move |handle| mig::destroy(handle, &spec, &progress))
            });
            let failed = |source| UnprepareError::Device { device: device.name.clone(), source };
            destroyed.await?.map_err(failed)?;
        }
        Ok(())
    }

    /// What an unreadable state file probably said, from the claim's allocation. Without a claim nothing is known: its
    /// instances, if any, are then treated as somebody else's.
    async fn rebuilt(
        &self,
        claim: &ClaimRef,
        reason: &str,
        deadline: Instant,
    ) -> Result<Option<Record>, UnprepareError> {
        let allocated = match self.reader.read(claim, deadline).await {
            Ok(object) => allocated_devices(claim, &object, &self.driver).unwrap_or_default(),
            Err(error) => {
                warn!(%error, "the claim of an unreadable state file cannot be read");
                Vec::new()
            }
        };
        let boot_id = self.hardware().map(|it| it.boot_id.clone()).unwrap_or_default();
        let record = plan(claim, &allocated, &self.inventory(), &self.checkpoint.records()?, &boot_id).ok();
        let aside = self.checkpoint.set_aside(&claim.uid)?;
        warn!(
            reason,
            aside = %aside.display(),
            is_rebuilt = record.is_some(),
            "state file set aside; `dra-driver-mig inspect` shows instances that are left"
        );
        Ok(record)
    }
}
