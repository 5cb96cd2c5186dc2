//! Bringing a claim's record, instances and CDI file together again, for recovery.

use std::sync::Arc;
use std::time::Duration;

use mig_model::claim::ClaimUid;
use mig_model::inventory::{Adopted, DeviceKind};
use tokio::time::Instant;
use tracing::{info, warn};

use super::prepare::mig_devices;
use super::session::{ClaimSession, Opened, lock};
use super::work::{Ongoing, WorkError, blocking, look, unreported, within};
use super::{Claims, UnprepareError};
use crate::checkpoint::{Journal, Progress, Record, RecordedKind, Stage};
use crate::hardware::{Hardware, LiveGpu};
use crate::mig::{self, MigError};
use crate::telemetry::metrics::Recovery;

impl Claims {
    /// Notes which devices of a prepared claim another program destroyed, and writes its CDI file again if that is gone.
    pub(super) async fn repair(
        self: &Arc<Self>,
        journal: Journal,
        record: &Arc<Record>,
        deadline: Instant,
    ) -> Result<(), UnprepareError> {
        /// What takes longer on a GPU than this is taken to hang.
        const LONG: Duration = Duration::from_secs(2);
        let mut gone = Vec::new();
        if let (Ok(hardware), true) = (self.hardware(), record.boot_id == self.context.boot_id) {
            for (index, device, spec, progress) in mig_devices(record) {
                let Some(gpu) = hardware.gpu(&device.parent_uuid) else { continue };
                // Looks do not pile up behind a GPU that hangs, and wait for one that is only busy.
                if gpu.queue.busy_for().is_some_and(|it| LONG < it) {
                    continue;
                }
                let (spec, progress) = (spec.clone(), progress.clone());
                let found = look(gpu, deadline, move |handle| mig::is_gone(handle, &spec, &progress)).await;
                if matches!(found, Some(Ok(true))) {
                    warn!(
                        device = device.name,
                        "the MIG instance of a prepared claim is gone: another program destroyed it"
                    );
                    gone.push(index);
                }
            }
        }
        if gone.is_empty() {
            return self.rewrite_cdi(journal, record, deadline).await;
        }
        let session = ClaimSession::shared(Opened { journal, _ticket: None }, Record::clone(record), None);
        blocking(|| gone.iter().try_for_each(|index| lock(&session).note(*index, Progress::Reserved)))?;
        self.changed.send_replace(());
        Ok(())
    }

    /// Writes the CDI file of a prepared claim again if it is gone, for example after the directory was cleared. Makes no
    /// instance: the kubelet's next Prepare does.
    pub(super) async fn rewrite_cdi(
        self: &Arc<Self>,
        journal: Journal,
        record: &Record,
        deadline: Instant,
    ) -> Result<(), UnprepareError> {
        if record.devices.is_empty()
            || record.boot_id != self.context.boot_id
            || self.cdi.is_complete(record.claim.uid.as_str(), self.device_metadata)?
        {
            return Ok(());
        }
        let Ok(hardware) = self.hardware() else { return Ok(()) };
        if !self.all_alive(record, &hardware, deadline).await {
            return Ok(());
        }
        warn!(claim.name = record.claim.name, "the CDI file of a prepared claim was gone: writing it again");
        let session = ClaimSession::shared(Opened { journal, _ticket: None }, record.clone(), None);
        let ongoing = Ongoing::default();
        let (this, seen, before) = (Arc::clone(self), ongoing.clone(), record.clone());
        let work = async move { this.carry_out(&session, &before, &hardware, deadline, &seen).await };
        let repaired = within(&record.claim, deadline, &ongoing, work, unreported).await;
        self.context.metrics.recovered(Recovery::RewriteCdi, matches!(repaired, Ok(Ok(_))));
        match repaired {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => warn!(%error, "cannot write it"),
            Err(lacking) => warn!(?lacking, "cannot write it now"),
        }
        Ok(())
    }

    /// A CDI file without a record. Where what it names is alive and no other claim's, the state directory was lost while
    /// a pod ran: then its unprepare needs the file.
    pub(super) async fn remove_stray_cdi(
        &self,
        uid: &ClaimUid,
        deadline: Instant,
    ) -> Result<(), UnprepareError> {
        let named = || Ok::<_, UnprepareError>(self.not_recorded(self.cdi.named(uid.as_str())?)?);
        let names = blocking(named)?;
        match self.hardware() {
            Err(_) if !names.is_empty() => return Ok(()),
            Ok(hardware) if self.any_alive(&names, &hardware, deadline).await => {
                warn!("a CDI file and its devices, but no state file: left for the claim's unprepare");
                return Ok(());
            }
            _ => {}
        }
        blocking(|| self.cdi.remove(uid.as_str()))?;
        self.context.metrics.recovered(Recovery::RemoveCdi, true);
        info!("CDI file of no claim removed");
        Ok(())
    }

    /// True where a device of one of these names is in use, or may be.
    pub(super) async fn any_alive(&self, names: &[String], hardware: &Hardware, deadline: Instant) -> bool {
        let inventory = self.inventory();
        for name in names {
            let Some(device) = inventory.find(name) else {
                if hardware.is_complete() && self.context.node.borrow().sees_all_gpus() {
                    continue;
                }
                return true;
            };
            let Some(gpu) = hardware.gpu(&device.parent_uuid) else { return true };
            let is_free = match device.kind.clone() {
                DeviceKind::Mig(spec) => {
                    let free = look(gpu, deadline, move |it| mig::is_free(it, &spec)).await;
                    matches!(free, Some(Ok(true)))
                }
                DeviceKind::Adopted(adopted) => is_gone(gpu, adopted, deadline).await,
                // NVML does not report whether a whole GPU is in use.
                DeviceKind::Gpu | DeviceKind::Share { .. } => false,
            };
            if !is_free {
                return true;
            }
        }
        false
    }

    pub(super) async fn all_alive(&self, record: &Record, hardware: &Hardware, deadline: Instant) -> bool {
        for (_, device, spec, progress) in mig_devices(record) {
            let Some(gpu) = hardware.gpu(&device.parent_uuid) else { return false };
            let (spec, progress) = (spec.clone(), progress.clone());
            let alive = look(gpu, deadline, move |handle| mig::is_alive(handle, &spec, &progress)).await;
            if !matches!(alive, Some(Ok(true))) {
                return false;
            }
        }
        for device in &record.devices {
            let RecordedKind::Adopted(adopted) = &device.kind else { continue };
            let Some(gpu) = hardware.gpu(&device.parent_uuid) else { return false };
            if is_gone(gpu, adopted.clone(), deadline).await {
                return false;
            }
        }
        record.stage == Stage::Prepared
    }
}

/// True if an unmanaged instance is certainly not the recorded one any more.
async fn is_gone(gpu: &LiveGpu, adopted: Adopted, deadline: Instant) -> bool {
    let found = look(gpu, deadline, move |it| mig::find_existing(it, &adopted)).await;
    matches!(found, Some(Err(WorkError::Mig(MigError::NotAsGiven { .. }))))
}
