//! Recovery of claims that are no longer requested: reconciles state files, instances and CDI files.
//!
//! Runs at the start and periodically. Undoes claims that a process left half prepared, and finishes half unprepared
//! ones; unprepares a claim whose ResourceClaim is gone; removes a CDI file without a claim, and writes a missing one
//! again. Never touches a claim in progress (it takes the journal as calls do) or an instance without a
//! record: that one is unmanaged, and its placement is not published.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::api::resource::v1::ResourceClaim;
use mig_model::claim::{ClaimRef, ClaimUid};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};

use super::session::{ClaimSession, Opened};
use super::unprepare::in_time;
use super::work::{Ongoing, unreported, within};
use super::{AllocationError, Claims, UnprepareError, allocated_devices};
use crate::api::{EventReason, ReadError};
use crate::checkpoint::{Record, RecordedDevice, Rest, Stage, Stored, Taken};
use crate::telemetry::metrics::Recovery;

/// Time for one claim. A call of the kubelet for the claim waits so long at most before its own work begins.
const PATIENCE: Duration = Duration::from_secs(10);
/// Claims that are looked after at once: GPUs work in parallel.
const AT_ONCE: usize = 16;
/// The API server is asked whether the claims still exist at the start and after this number of pauses.
const PAUSES_PER_CHECK: u32 = 10;
/// A claim that was worked on more lately is left to the kubelet, which asks again after 60 to 90 s: behind a slow GPU the
/// work of a cancelled call may have just ended.
const KUBELETS_TURN: Duration = Duration::from_secs(180);

impl Claims {
    /// Sweeps now and then every `pause`, until `stop`.
    pub async fn look_after(self: Arc<Self>, pause: Duration, stop: CancellationToken) -> anyhow::Result<()> {
        let mut clock = every(pause);
        let mut youngest = Duration::ZERO;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = clock.tick() => {}
            }
            // A sweep that fails is no reason to end: the calls of the kubelet report the same.
            if let Err(error) = self.sweep(youngest).await {
                warn!(%error, "cannot recover the claims");
            }
            // Only at the start it is certain that no call is in progress.
            youngest = KUBELETS_TURN;
        }
    }

    /// Asks the API server now and then, less often, whether the prepared claims still exist, until `stop`.
    pub async fn follow_objects(
        self: Arc<Self>,
        pause: Duration,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut clock = every(pause);
        let mut suspects = BTreeSet::new();
        let mut to_wait = 0;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = clock.tick() => {}
            }
            if 0 < to_wait {
                to_wait -= 1;
                continue;
            }
            let checked = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                checked = self.take_down_orphans(&suspects) => checked,
            };
            match checked {
                Ok(found) => (suspects, to_wait) = (found, PAUSES_PER_CHECK - 1),
                // Asked again at the next tick.
                Err(error) => warn!(%error, "cannot determine which claims still exist"),
            }
        }
    }

    /// Brings state files, instances and CDI files together, without the API server.
    async fn sweep(self: &Arc<Self>, youngest: Duration) -> Result<(), UnprepareError> {
        let mut uids: BTreeSet<ClaimUid> =
            self.context.checkpoint.list()?.into_iter().map(|(uid, _)| uid).collect();
        uids.extend(self.cdi.list()?.iter().filter_map(|it| it.parse().ok()));
        let sweeps = uids.into_iter().map(|uid| async move {
            let span = info_span!("recover", claim.uid = uid.as_str());
            if let Err(error) = self.recover(&uid, youngest).instrument(span.clone()).await {
                span.in_scope(|| warn!(%error, "cannot recover the claim now"));
            }
        });
        stream::iter(sweeps).buffer_unordered(AT_ONCE).collect::<()>().await;
        Ok(())
    }

    async fn recover(self: &Arc<Self>, uid: &ClaimUid, youngest: Duration) -> Result<(), UnprepareError> {
        let deadline = Instant::now() + PATIENCE;
        let Taken::Journal(journal) = self.context.checkpoint.take(uid, true)? else { return Ok(()) };
        match journal.stored().clone() {
            Stored::Nothing if self.cdi.list()?.iter().any(|it| it == uid.as_str()) => {
                self.remove_stray_cdi(uid, deadline).await
            }
            Stored::Nothing => Ok(()),
            Stored::Unreadable(reason) | Stored::Inaccessible(reason) => {
                self.report_unreadable(uid, &reason);
                Ok(())
            }
            Stored::Record(record) => match record.rest(&self.context.boot_id) {
                Rest::TakeDown if journal.age().is_some_and(|age| age < youngest) => Ok(()),
                Rest::TakeDown => {
                    let ClaimRef { namespace, name, .. } = &record.claim;
                    info!(namespace, name, stage = ?record.stage, "no call works on the claim any more: unpreparing it");
                    let session =
                        ClaimSession::shared(Opened { journal, _ticket: None }, Record::clone(&record), None);
                    let ongoing = Ongoing::default();
                    let (this, seen) = (Arc::clone(self), ongoing.clone());
                    let is_own = self.is_begun(uid);
                    let work = async move { this.take_down(&session, deadline, &seen).await };
                    let done = within(&record.claim, deadline, &ongoing, work, unreported).await;
                    let done = in_time(&record.claim, done);
                    self.context.metrics.recovered(Recovery::TakeDown, done.is_ok());
                    done?;
                    info!("claim unprepared without a call");
                    self.emit_recovered(&record, is_own);
                    Ok(())
                }
                Rest::Nothing => self.repair(journal, &record, deadline).await,
            },
        }
    }

    /// Unprepares claims whose ResourceClaim does not exist any more, or is another one of that name: no call
    /// will ask for them. So it is with one that is not allocated any more, or was given other devices and not answered in
    /// this boot, if that is seen twice; those that are seen the first time are the answer. A claim whose state cannot be
    /// read stays. One that cannot be unprepared does not delay the others.
    async fn take_down_orphans(
        self: &Arc<Self>,
        suspects: &BTreeSet<ClaimUid>,
    ) -> Result<BTreeSet<ClaimUid>, UnprepareError> {
        /// After so many failures in a row the API server is taken to be down.
        const MOST_FAILURES: u32 = 3;
        let mut suspected = BTreeSet::new();
        let mut orphans = Vec::new();
        let mut failures = 0;
        let mut given_up = None;
        for record in self.context.checkpoint.records()? {
            // Asked without holding the journal: a slow API server must not keep the kubelet from unpreparing.
            let read = self.reader.read(&record.claim, Instant::now() + PATIENCE).await;
            if let Ok(object) = &read {
                self.context.pods.note(&record.claim.uid, object);
            }
            let claim = &record.claim;
            match read {
                Ok(object) if self.is_still_for(&record, &object) => {}
                Ok(_) if suspects.contains(&claim.uid) => {
                    orphans
                        .push((claim.clone(), "the ResourceClaim is not allocated these devices any more"));
                }
                Ok(_) => {
                    suspected.insert(claim.uid.clone());
                }
                Err(ReadError::Gone(_)) => orphans.push((claim.clone(), "the ResourceClaim is gone")),
                Err(error) if failures + 1 == MOST_FAILURES => {
                    given_up = Some(error);
                    break;
                }
                Err(error) => {
                    failures += 1;
                    debug!(%error, "cannot determine whether the claim exists");
                    continue;
                }
            }
            failures = 0;
        }
        let mut taken = Vec::new();
        for (claim, why) in orphans {
            taken.push(self.take_down_orphan(claim, why));
        }
        stream::iter(taken).buffer_unordered(AT_ONCE).collect::<()>().await;
        given_up.map_or(Ok(suspected), |error| Err(error.into()))
    }

    async fn take_down_orphan(self: &Arc<Self>, claim: ClaimRef, why: &'static str) {
        if let Err(error) = self.leave_orphan(&claim, why).await {
            warn!(%error, %claim, "{why}, but it cannot be taken down now");
        }
    }

    async fn leave_orphan(
        self: &Arc<Self>,
        claim: &ClaimRef,
        why: &'static str,
    ) -> Result<(), UnprepareError> {
        // A sweep, or a call of the kubelet, may have it; afterwards it may be gone.
        let deadline = Instant::now() + PATIENCE;
        let Some(opened) = self.open::<UnprepareError>(claim, false, deadline).await? else { return Ok(()) };
        let Stored::Record(now) = opened.journal.stored().clone() else { return Ok(()) };
        // What was seen is some time ago: meanwhile a new pod may have been given the same devices. While this holds the journal, no
        // call of the kubelet can begin.
        match self.reader.read(claim, deadline).await {
            Ok(object) if self.is_still_for(&now, &object) => return Ok(()),
            Ok(_) | Err(ReadError::Gone(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let span = info_span!("recover", %claim, claim.uid = claim.uid.as_str());
        let (deadline, ongoing) = (Instant::now() + PATIENCE, Ongoing::default());
        let (this, seen, record) = (Arc::clone(self), ongoing.clone(), Record::clone(&now));
        let work = async move { this.unprepare_record(opened, record, deadline, &seen).await };
        let left = within(claim, deadline, &ongoing, work, unreported).instrument(span.clone()).await;
        let left = in_time(claim, left);
        self.context.metrics.recovered(Recovery::Orphan, left.is_ok());
        left?;
        span.in_scope(|| info!("{why}: claim taken down"));
        Ok(())
    }

    /// True where any device of the record is still the claim's, or its state is unknown. A claim has all its devices or none.
    fn is_still_for(&self, record: &Record, object: &ResourceClaim) -> bool {
        let allocated = match allocated_devices(&record.claim, object, &self.context.driver) {
            // What was answered in this boot may be in use, whatever is allocated now; the kubelet unprepares it.
            Ok(_) if record.stage == Stage::Prepared && record.boot_id == self.context.boot_id => {
                return true;
            }
            Ok(allocated) => allocated,
            Err(AllocationError::NotAllocated(_)) => Vec::new(),
            Err(_) => return true,
        };
        let has = |device: &RecordedDevice| {
            allocated.iter().any(|it| it.device == device.name && it.pool == device.pool)
        };
        record.devices.is_empty() || record.devices.iter().any(has)
    }

    /// Reports, as an event of the claim, what was unprepared without a call for it. `is_own` is what this process has begun.
    fn emit_recovered(&self, record: &Record, is_own: bool) {
        let (reason, note) = match (record.stage, is_own) {
            (Stage::Unpreparing, true) => (
                EventReason::UnprepareFinished,
                "Unpreparing the claim failed, and the kubelet has not asked again; its devices are gone now.",
            ),
            (Stage::Unpreparing, false) => (
                EventReason::UnprepareFinished,
                "The driver ended while the claim was being unprepared; its devices are gone now.",
            ),
            (Stage::Preparing | Stage::Prepared, true) => (
                EventReason::PrepareUndone,
                "Preparing the claim failed, and the kubelet has not asked again; what was created for it is gone, and the \
                 kubelet's next call creates it again.",
            ),
            (Stage::Preparing | Stage::Prepared, false) => (
                EventReason::PrepareUndone,
                "The driver ended while the claim was being prepared; what was created for it is gone, and the kubelet's next \
                 call creates it again.",
            ),
        };
        self.context.events.emit_for_claim(reason, &record.claim, note.to_owned());
    }

    /// Reports once, in the log and as an event of the node, that a claim's state file cannot be read.
    pub(super) fn report_unreadable(&self, uid: &ClaimUid, reason: &str) {
        let is_new = self.reported.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.clone());
        if is_new {
            warn!(reason, "the state file of a claim cannot be read");
            self.context.metrics.recovered(Recovery::UnreadableState, true);
            self.context.events.emit(
                EventReason::UnreadableState,
                format!(
                    "The state file of the ResourceClaim with UID {uid} cannot be read ({reason}). It is rebuilt from the \
                     claim's allocation when the kubelet next asks for the claim; until then its MIG instances stay."
                ),
            );
        }
    }
}

fn every(pause: Duration) -> Interval {
    let mut clock = interval(pause);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    clock
}
