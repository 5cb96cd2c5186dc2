//! Decides whether prepare uses the record of a claim or its current allocation.
//!
//! A claim can be given other devices while its record exists: its pod was deleted by force, the claim deallocated and
//! allocated again. What was answered in this boot may still be in use, so it stays until the kubelet unprepares it. Where
//! the API server cannot be asked, the record counts.

use std::collections::BTreeSet;
use std::convert::identity;
use std::sync::Arc;
use std::time::Duration;

use mig_model::claim::ClaimRef;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::session::{ClaimSession, Opened};
use super::work::{Ongoing, blocking};
use super::{AllocatedDevice, Claims, OtherDevices, PrepareError, allocated_devices};
use crate::checkpoint::{Record, RecordedDevice, Stage, Stored};
use crate::telemetry::metrics::Step;

/// What a prepare carries out.
#[derive(Debug)]
pub(super) struct Agreed {
    pub(super) opened: Opened,
    pub(super) record: Record,
    /// The record of an earlier boot that this one takes the place of.
    pub(super) promise: Option<Record>,
}

impl Claims {
    /// The record that a prepare has to carry out, written down as the intent where it is new.
    pub(super) async fn agreed(
        &self,
        claim: &ClaimRef,
        mut opened: Opened,
        deadline: Instant,
        ongoing: &Ongoing,
    ) -> Result<Agreed, PrepareError> {
        let journal = &mut opened.journal;
        let mut promise = None;
        let record = match journal.stored().clone() {
            Stored::Record(known) if known.boot_id == self.context.boot_id => {
                let now = self.allocated_now(claim, &known, deadline).await?;
                if names(&now) != names(&promised(&known)) {
                    return self.replaced(claim, opened, &known, &now, (deadline, ongoing)).await;
                }
                match known.stage {
                    // What is gone of it may have been given to others since.
                    Stage::Unpreparing => {
                        let as_known = |record: Record| record.with_progress_of(&known);
                        self.new_record(claim, &now, journal, as_known, deadline).await?
                    }
                    Stage::Preparing | Stage::Prepared => Record::clone(&known),
                }
            }
            // Instances do not survive a reboot; what was promised does, and needs no API server to be known.
            Stored::Record(before) => {
                let now = self.allocated_now(claim, &before, deadline).await?;
                promise = (names(&now) == names(&promised(&before))).then(|| Record::clone(&before));
                let named = |record: Record| record.named_in_pod_as(&before);
                self.new_record(claim, &now, journal, named, deadline).await?
            }
            Stored::Nothing => {
                let allocated = self.allocated(claim, deadline).await?;
                // Only the state file was lost. A pod may be running, so the claim counts as prepared.
                let finish: fn(Record) -> Record = match self.is_in_cdi(claim, &allocated)? {
                    true => |record: Record| record.assume_created(Stage::Prepared),
                    false => identity,
                };
                self.new_record(claim, &allocated, journal, finish, deadline).await?
            }
            Stored::Unreadable(reason) | Stored::Inaccessible(reason) => {
                let allocated = self.allocated(claim, deadline).await?;
                self.report_unreadable(&claim.uid, &reason);
                self.is_in_cdi(claim, &allocated)?;
                // It counts as prepared, because its pod may be running.
                self.reserve(claim, journal, deadline, |others| {
                    Ok::<_, PrepareError>(
                        self.planned(claim, &allocated, others)?.assume_created(Stage::Prepared),
                    )
                })
                .await?
            }
        };
        Ok(Agreed { opened, record, promise })
    }

    /// What the claim is allocated now. Where the API server does not say, what is on record counts, unless that was taken down
    /// after the loss of an earlier record and does not know the requests.
    async fn allocated_now(
        &self,
        claim: &ClaimRef,
        known: &Record,
        deadline: Instant,
    ) -> Result<Vec<AllocatedDevice>, PrepareError> {
        /// The record is enough, so the API server is not waited for long.
        const PATIENCE: Duration = Duration::from_secs(3);
        if !knows_its_requests(known) {
            return self.allocated(claim, deadline).await;
        }
        let now = Instant::now();
        let patience = PATIENCE.min(deadline.saturating_duration_since(now) / 4);
        let read = self.context.metrics.awaited(Step::ApiGet, self.reader.read(claim, now + patience)).await;
        let object = match read {
            Ok(object) => object,
            Err(error) => {
                debug!(%error, "the recorded devices count");
                return Ok(promised(known));
            }
        };
        self.context.pods.note(&claim.uid, &object);
        Ok(allocated_devices(claim, &object, &self.context.driver)?)
    }

    /// True where the CDI file of a claim without a record shows that it was prepared with what it is allocated now. Fails where it
    /// shows other devices: a container may use them, and the kubelet's unprepare finds them by that file. A device that
    /// another claim has on record was given back before.
    fn is_in_cdi(&self, claim: &ClaimRef, allocated: &[AllocatedDevice]) -> Result<bool, PrepareError> {
        let allocated: Vec<String> = allocated.iter().map(|it| it.device.clone()).collect();
        let named = || {
            let named = self.cdi.named(claim.uid.as_str())?;
            let all = named.all.clone();
            Ok::<_, PrepareError>((all, self.not_recorded(named)?))
        };
        let (named, prepared) = blocking(named)?;
        // Where all of it is allocated still, the other claim only has to end.
        let is_same = is_same_set(&named, &allocated) || is_same_set(&prepared, &allocated);
        if !prepared.is_empty() && !is_same {
            return Err(Box::new(OtherDevices { claim: claim.clone(), prepared, allocated }).into());
        }
        Ok(!prepared.is_empty())
    }

    /// Gives a claim the devices that it is allocated now in place of those on record, which are taken down first. Not where
    /// those were answered: then a container may use them.
    async fn replaced(
        &self,
        claim: &ClaimRef,
        opened: Opened,
        known: &Arc<Record>,
        now: &[AllocatedDevice],
        (deadline, ongoing): (Instant, &Ongoing),
    ) -> Result<Agreed, PrepareError> {
        if known.stage == Stage::Prepared && !known.devices.is_empty() {
            let prepared = known.devices.iter().map(|it| it.name.clone()).collect();
            let allocated = now.iter().map(|it| it.device.clone()).collect();
            return Err(Box::new(OtherDevices { claim: claim.clone(), prepared, allocated }).into());
        }
        warn!("the claim's allocation changed: unpreparing the earlier devices first");
        let session = ClaimSession::shared(opened, Record::clone(known), None);
        let apart = self.take_apart(&session, deadline, ongoing).await;
        apart.map_err(|error| PrepareError::Before(Box::new(error)))?;
        let lost = || PrepareError::Interrupted(claim.clone());
        let mut opened = ClaimSession::into_opened(session).ok_or_else(lost)?;
        match self.new_record(claim, now, &mut opened.journal, identity, deadline).await {
            Ok(record) => Ok(Agreed { opened, record, promise: None }),
            Err(error) => {
                // Nothing is left of what the file describes.
                if let Err(error) = blocking(|| opened.journal.forget()) {
                    warn!(%error, "cannot remove the state file of a claim without devices");
                }
                Err(error)
            }
        }
    }
}

fn is_same_set(left: &[String], right: &[String]) -> bool {
    left.iter().collect::<BTreeSet<_>>() == right.iter().collect()
}

/// Devices, wherever they are in the order, and whether they are held.
fn names(devices: &[AllocatedDevice]) -> BTreeSet<(&str, &str, bool)> {
    devices.iter().map(|it| (it.pool.as_str(), it.device.as_str(), it.admin_access)).collect()
}

/// What a record promises, as an allocation.
fn promised(record: &Record) -> Vec<AllocatedDevice> {
    let device = |it: &RecordedDevice| AllocatedDevice {
        device: it.name.clone(),
        pool: it.pool.clone(),
        requests: it.requests.clone(),
        admin_access: !it.kind.holds(),
    };
    record.devices.iter().map(device).collect()
}

/// False for a record that was made from names alone.
fn knows_its_requests(record: &Record) -> bool {
    record.devices.iter().all(|it| !it.requests.is_empty())
}
