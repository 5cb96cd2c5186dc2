//! Looking after claims that nobody asks for: state files, instances and CDI files are brought together again.
//!
//! Runs at the start and from time to time. Claims that a process left half prepared are undone and half unprepared ones
//! finished; a claim whose ResourceClaim is gone is taken down; a CDI file without a claim is removed, a missing one
//! written again. Never touches what somebody works on (it takes the journal as calls do) nor an instance without a
//! record: that is somebody else's, and what it occupies is withheld from the offers.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use super::prepare::{Draft, mig_devices};
use super::work::{blocking, on_gpu};
use super::{ClaimUid, Claims, PrepareError, UnprepareError};
use crate::api::{EventReason, ReadError};
use crate::checkpoint::{Journal, Record, Rest, Stage, Stored, Taken};
use crate::hardware::Hardware;
use crate::inventory::DeviceKind;
use crate::mig;

/// Time for one claim. A call of the kubelet for the claim waits so long at most before its own work begins.
const PATIENCE: Duration = Duration::from_secs(10);
/// Claims that are looked after at once: GPUs work in parallel.
const AT_ONCE: usize = 16;
/// The API server is asked whether the claims still exist at the first sweep and at each of this number.
const SWEEPS_PER_CHECK: u64 = 10;

impl Claims {
    /// Sweeps now and then every `pause`, until `stop`.
    pub async fn look_after(self: Arc<Self>, pause: Duration, stop: CancellationToken) -> anyhow::Result<()> {
        let mut clock = interval(pause);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for sweep in 0_u64.. {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = clock.tick() => {}
            }
            // A sweep that fails is no reason to end: the calls of the kubelet report the same.
            if let Err(error) = self.sweep().await {
                warn!(%error, "cannot look after the claims");
            }
            if sweep % SWEEPS_PER_CHECK == 0
                && let Err(error) = self.take_down_orphans().await
            {
                warn!(%error, "cannot tell which claims still exist");
            }
        }
        Ok(())
    }

    /// Brings state files, instances and CDI files together, without the API server.
    async fn sweep(&self) -> Result<(), UnprepareError> {
        let mut uids: BTreeSet<ClaimUid> = self.checkpoint.list()?.into_iter().map(|(uid, _)| uid).collect();
        uids.extend(self.cdi.list()?.iter().filter_map(|it| it.parse().ok()));
        let sweeps = uids.into_iter().map(|uid| async move {
            let span = info_span!("recover", claim.uid = uid.as_str());
            if let Err(error) = self.recover(&uid).instrument(span.clone()).await {
                span.in_scope(|| warn!(%error, "cannot recover the claim now"));
            }
        });
        stream::iter(sweeps).buffer_unordered(AT_ONCE).collect::<()>().await;
        Ok(())
    }

    async fn recover(&self, uid: &ClaimUid) -> Result<(), UnprepareError> {
        let deadline = Instant::now() + PATIENCE;
        let Taken::Journal(mut journal) = self.checkpoint.take(uid, true)? else { return Ok(()) };
        let stored = journal.stored().clone();
        match stored {
            Stored::Nothing if self.cdi.list()?.iter().any(|it| it == uid.as_str()) => {
                self.remove_stray_cdi(uid, deadline).await
            }
            Stored::Nothing => Ok(()),
            Stored::Unreadable(reason) => {
                self.report_unreadable(uid, &reason);
                Ok(())
            }
            Stored::Record(record) => match record.rest() {
                Rest::TakeDown => {
                    info!(claim.namespace = record.claim.namespace, claim.name = record.claim.name,
                        stage = ?record.stage, "nobody works on the claim any more: taking it down");
                    let taken = self.take_down(&record, deadline, || journal.forget()).await;
                    taken.inspect(|()| info!("claim taken down"))
                }
                Rest::Nothing => self.mend_cdi(journal, &record, deadline).await,
            },
        }
    }

    /// Takes down prepared claims whose ResourceClaim does not exist any more, or is another one of that name: nobody
    /// will ask for them. A claim whose state cannot be told stays.
    async fn take_down_orphans(&self) -> Result<(), UnprepareError> {
        for record in self.checkpoint.records()? {
            // Asked without holding the journal: a slow API server must not keep the kubelet from unpreparing.
            match self.reader.read(&record.claim, Instant::now()).await {
                Ok(_) => continue,
                Err(ReadError::Gone(_)) => {}
                // It would not answer for the others either.
                Err(error) => return Err(error.into()),
            }
            let Taken::Journal(mut journal) = self.checkpoint.take(&record.claim.uid, false)? else {
                continue;
            };
            let Stored::Record(now) = journal.stored().clone() else { continue };
            let span = info_span!(
                "recover",
                claim.namespace = now.claim.namespace,
                claim.name = now.claim.name,
                claim.uid = now.claim.uid.as_str()
            );
            let left = self
                .leave(&mut journal, Record::clone(&now), Instant::now() + PATIENCE)
                .instrument(span.clone())
                .await;
            span.in_scope(|| match left {
                Ok(()) => info!("the ResourceClaim is gone: claim taken down"),
                Err(error) => warn!(%error, "the ResourceClaim is gone, but it cannot be taken down now"),
            });
        }
        Ok(())
    }

    /// Writes the CDI file of a prepared claim again if it is gone, as after somebody cleared the directory. Makes no
    /// instance: the kubelet's next Prepare does.
    async fn mend_cdi(
        &self,
        journal: Journal,
        record: &Record,
        deadline: Instant,
    ) -> Result<(), UnprepareError> {
        if record.devices.is_empty()
            || record.boot_id != self.boot_id
            || self.cdi.exists(record.claim.uid.as_str())?
        {
            return Ok(());
        }
        let Ok(hardware) = self.hardware() else { return Ok(()) };
        if !self.all_alive(record, &hardware, deadline).await {
            return Ok(());
        }
        warn!(claim.name = record.claim.name, "the CDI file of a prepared claim was gone: writing it again");
        let draft = Draft::shared(journal, record.clone());
        let mended = self.carry_out(&draft, record, &hardware, deadline).await;
        mended.map(|_| ()).or_else(|error: PrepareError| {
            warn!(%error, "cannot write it");
            Ok(())
        })
    }

    /// A CDI file without a record. Where what it names is alive and no other claim's, the state directory was lost while
    /// a pod ran: then its unprepare needs the file.
    async fn remove_stray_cdi(&self, uid: &ClaimUid, deadline: Instant) -> Result<(), UnprepareError> {
        let mut names = blocking(|| self.cdi.devices(uid.as_str()))?;
        let records = self.checkpoint.records()?;
        names.retain(|name| !records.iter().flat_map(|it| &it.devices).any(|it| it.name == *name));
        match self.hardware() {
            Err(_) if !names.is_empty() => return Ok(()),
            Ok(hardware) if self.any_alive(&names, &hardware, deadline).await => {
                warn!("a CDI file and an instance, but no state file: left for the claim's unprepare");
                return Ok(());
            }
            _ => {}
        }
        blocking(|| self.cdi.remove(uid.as_str()))?;
        info!("CDI file of no claim removed");
        Ok(())
    }

    /// True where a MIG device of one of these names exists, or may exist.
    async fn any_alive(&self, names: &[String], hardware: &Hardware, deadline: Instant) -> bool {
        let inventory = self.inventory();
        for device in names.iter().filter_map(|it| inventory.device(it)) {
            let DeviceKind::Mig(spec) = &device.kind else { continue };
            let Some(gpu) = hardware.gpu(&device.parent_uuid) else { continue };
            let spec = spec.clone();
            if !matches!(on_gpu(gpu, deadline, move |it| mig::is_free(it, &spec)).await, Ok(true)) {
                return true;
            }
        }
        false
    }

    async fn all_alive(&self, record: &Record, hardware: &Hardware, deadline: Instant) -> bool {
        for (_, device, spec, progress) in mig_devices(record) {
            let Some(gpu) = hardware.gpu(&device.parent_uuid) else { return false };
            let (spec, progress) = (spec.clone(), progress.clone());
            let alive = on_gpu(gpu, deadline, move |handle| mig::is_alive(handle, &spec, &progress)).await;
            if !matches!(alive, Ok(true)) {
                return false;
            }
        }
        record.stage == Stage::Prepared
    }

    /// Tells once, in the log and as an event of the node, that a claim's state file cannot be read.
    pub(super) fn report_unreadable(&self, uid: &ClaimUid, reason: &str) {
        let is_new = self.reported.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.clone());
        if is_new {
            warn!(reason, "the state file of a claim cannot be read");
            self.events.warn(
                EventReason::UnreadableState,
                format!(
                    "The state file of the ResourceClaim with UID {uid} cannot be read ({reason}). It is rebuilt from the \
                     claim's allocation when the kubelet next asks for the claim; until then its MIG instances stay."
                ),
            );
        }
    }
}
