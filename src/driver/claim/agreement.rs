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
            // What was taken down after the loss of its record does not know its requests.
            Stored::Record(known) if known.boot_id == self.context.boot_id && knows_its_requests(&known) => {
                return match self.allocated_instead(claim, &known, deadline).await? {
                    Some(now) => self.replaced(claim, opened, &known, &now, (deadline, ongoing)).await,
                    // What is gone of it may have been given to others since.
                    None if known.stage == Stage::Unpreparing => {
                        let as_known = |record: Record| record.with_progress_of(&known);
                        let record =
                            self.new_record(claim, &promised(&known), journal, as_known, deadline).await?;
                        Ok(Agreed { opened, record, promise })
                    }
                    None => Ok(Agreed { opened, record: Record::clone(&known), promise }),
                };
            }
            // Instances do not survive a reboot; what was promised does, and needs no API server to be known.
            Stored::Record(before) if before.boot_id != self.context.boot_id => {
                match self.allocated_instead(claim, &before, deadline).await? {
                    Some(now) => self.new_record(claim, &now, journal, identity, deadline).await?,
                    None => {
                        promise = Some(Record::clone(&before));
                        self.new_record(claim, &promised(&before), journal, identity, deadline).await?
                    }
                }
            }
            Stored::Record(_) | Stored::Nothing => {
                let allocated = self.allocated(claim, deadline).await?;
                // Made by this claim already: only the state file was lost.
                let made = blocking(|| self.cdi.devices(claim.uid.as_str()))?;
                // With any of them, a pod may be running, so the claim counts as prepared.
                let finish = |record: Record| match record.devices.iter().any(|it| made.contains(&it.name)) {
                    true => record.assume_created(Stage::Prepared),
                    false => record,
                };
                self.new_record(claim, &allocated, journal, finish, deadline).await?
            }
            Stored::Unreadable(reason) => {
                let allocated = self.allocated(claim, deadline).await?;
                self.report_unreadable(&claim.uid, &reason);
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

    /// What the claim is allocated now, where that is certain and not what the record says.
    async fn allocated_instead(
        &self,
        claim: &ClaimRef,
        known: &Record,
        deadline: Instant,
    ) -> Result<Option<Vec<AllocatedDevice>>, PrepareError> {
        /// The record is enough, so the API server is not waited for long.
        const PATIENCE: Duration = Duration::from_secs(3);
        let now = Instant::now();
        let patience = PATIENCE.min(deadline.saturating_duration_since(now) / 4);
        let read = self.context.metrics.awaited(Step::ApiGet, self.reader.read(claim, now + patience)).await;
        let object = match read {
            Ok(object) => object,
            Err(error) => {
                debug!(%error, "the recorded devices count");
                return Ok(None);
            }
        };
        self.context.pods.note(&claim.uid, &object);
        let allocated = allocated_devices(claim, &object, &self.context.driver)?;
        Ok((names(&allocated) != names(&promised(known))).then_some(allocated))
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

/// Devices, wherever they are in the order.
fn names(devices: &[AllocatedDevice]) -> BTreeSet<(&str, &str)> {
    devices.iter().map(|it| (it.pool.as_str(), it.device.as_str())).collect()
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

/// False for a record that was made from names alone.
fn knows_its_requests(record: &Record) -> bool {
    record.devices.iter().all(|it| !it.requests.is_empty())
}
