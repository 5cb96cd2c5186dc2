//! Writes `status.devices` of the ResourceClaims that are prepared on this node: the instance behind each allocated device.
//!
//! Follows the state files, not the calls: every change of a state file sends a notification, and the loop compares what
//! it wrote to the API server with what is on disk. No call of the kubelet waits for it or fails by it, nothing is queued
//! beyond the existing claims, and the next comparison repeats a failed write.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use kube::Client;
use mig_model::claim::{ClaimRef, ClaimUid};
use mig_model::health::Report;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::device_status::{Ailments, ailments, device_statuses, now};
use super::node::refusal_pauses;
use super::status_writer::{Outcome, StatusWriter};
use crate::backoff::Backoff;
use crate::checkpoint::{Checkpoint, Record, Stage, Stored};

/// Claims that are written at once.
const AT_ONCE: usize = 4;
/// How long changes are collected: a claim that is prepared and unprepared within it is not written at all.
const BURST: Duration = Duration::from_millis(50);
/// First and longest pause after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Number of failures after which removal stops: the entries vanish with the allocation in any case.
const MOST_ATTEMPTS: u32 = 8;

/// Keeps `status.devices` of this node's claims as the state files say. Needs the verb `patch` on `resourceclaims/status`.
#[derive(Debug)]
pub struct ClaimStatuses {
    writer: StatusWriter,
    checkpoint: Checkpoint,
    health: watch::Receiver<Arc<Report>>,
    known: BTreeMap<ClaimUid, Entry>,
    /// Nothing is written before then.
    not_before: Option<Instant>,
    /// Pauses while the account may not write.
    refusals: Backoff,
    /// Whether the missing right was logged, and not that it is there since.
    is_refusal_logged: bool,
}

/// What is known of a claim at the API server.
#[derive(Debug)]
struct Entry {
    claim: ClaimRef,
    reported: Reported,
    retry: Backoff,
    not_before: Option<Instant>,
}

#[derive(Debug, Clone, PartialEq)]
enum Reported {
    /// It was prepared before this process began: what the API server has is not known.
    Unseen,
    /// Nothing yet.
    Nothing,
    /// What this record says, and what its devices suffer from.
    Record { record: Arc<Record>, ailments: Ailments, since: String },
    /// The API server does not take what this record says.
    Refused(Arc<Record>),
}

/// A call to the API server that brings it nearer to what is on disk.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    /// Compare, and write if it differs.
    Compare(Arc<Record>, Ailments),
    /// Write what the record says, ready since the given time unless the device is unhealthy.
    Write(Arc<Record>, Ailments, String),
    /// Take back what was written.
    Withdraw(ClaimRef),
}

impl ClaimStatuses {
    /// Statuses of the claims in this directory, by this driver on this node.
    #[must_use]
    pub fn new(
        client: Client,
        checkpoint: Checkpoint,
        health: watch::Receiver<Arc<Report>>,
        node: &str,
        driver: &str,
    ) -> Self {
        Self {
            writer: StatusWriter::new(client, node, driver),
            checkpoint,
            health,
            known: BTreeMap::new(),
            not_before: None,
            refusals: refusal_pauses(node),
            is_refusal_logged: false,
        }
    }

    /// Runs until `stop`. `changes` fires on every change of the claims' devices.
    pub async fn run(mut self, mut changes: watch::Receiver<()>, stop: CancellationToken) {
        for (uid, stored) in self.listed().unwrap_or_default() {
            if let Stored::Record(record) = &*stored
                && has_status(record)
            {
                self.known.insert(uid, Entry::new(record.claim.clone(), Reported::Unseen));
            }
        }
        let end = tokio::select! {
            () = stop.cancelled() => return,
            end = self.update(&mut changes) => end,
        };
        if end == End::FieldDropped {
            info!(
                "kube-apiserver drops the device status of claims (feature gate DRAResourceClaimDeviceStatus is off): it \
                 is not written until the driver starts again"
            );
        }
        stop.cancelled().await;
    }

    /// Brings the API server up to date again and again. Ends where it keeps no device status, or nothing can change.
    async fn update(&mut self, changes: &mut watch::Receiver<()>) -> End {
        let mut health = self.health.clone();
        loop {
            changes.borrow_and_update();
            health.borrow_and_update();
            let now = Instant::now();
            let is_paused = self.not_before.is_some_and(|it| now < it);
            let listed = self.listed();
            if listed.is_none() {
                self.not_before = Some(now + PAUSES.0);
            }
            let steps = match &listed {
                Some(listed) if !is_paused => self.steps(listed, now),
                _ => Vec::new(),
            };
            let this = &*self;
            let taken = steps.into_iter().map(|(uid, step)| async move {
                let outcome = this.take(&step).await;
                (uid, step, outcome)
            });
            let outcomes: Vec<_> = stream::iter(taken).buffer_unordered(AT_ONCE).collect().await;
            for (uid, step, outcome) in outcomes {
                if matches!(outcome, Outcome::Dropped) {
                    return End::FieldDropped;
                }
                self.note(&uid, step, outcome);
            }
            let again = self.next_attempt();
            tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        return End::NothingChanges;
                    }
                    sleep(BURST).await;
                }
                Ok(()) = health.changed() => {}
                () = at(again) => {}
            }
        }
    }

    /// What is on disk; `None` if it cannot be read, which does not mean that there are no claims.
    fn listed(&self) -> Option<Vec<(ClaimUid, Arc<Stored>)>> {
        let listed = tokio::task::block_in_place(|| self.checkpoint.list());
        listed.inspect_err(|error| debug!(%error, "cannot list the claims that have a device status")).ok()
    }

    /// What has to be done now, by comparing what is on disk with what was written.
    fn steps(&mut self, listed: &[(ClaimUid, Arc<Stored>)], now: Instant) -> Vec<(ClaimUid, Step)> {
        for entry in self.known.values_mut() {
            entry.not_before = entry.not_before.filter(|it| now < *it);
        }
        let health = Arc::clone(&self.health.borrow());
        let mut steps = Vec::new();
        for (uid, stored) in listed {
            if let Stored::Record(record) = &**stored
                && has_status(record)
            {
                let new = || Entry::new(record.claim.clone(), Reported::Nothing);
                let entry = self.known.entry(uid.clone()).or_insert_with(new);
                if entry.not_before.is_none()
                    && let Some(step) =
                        entry.reported.step_to(record, &self.writer.driver, ailments(record, &health))
                {
                    steps.push((uid.clone(), step));
                }
            }
        }
        // A file that cannot be read does not invalidate what was written.
        let stays = |stored: &Stored| match stored {
            Stored::Record(record) => has_status(record),
            Stored::Unreadable(_) | Stored::Inaccessible(_) => true,
            Stored::Nothing => false,
        };
        let is_over = |uid: &ClaimUid| !listed.iter().any(|(listed, stored)| listed == uid && stays(stored));
        self.known.retain(|uid, entry| entry.reported.is_something() || !is_over(uid));
        let over = self.known.iter().filter(|(uid, entry)| is_over(uid) && entry.not_before.is_none());
        steps.extend(over.map(|(uid, entry)| (uid.clone(), Step::Withdraw(entry.claim.clone()))));
        steps
    }

    async fn take(&self, step: &Step) -> Outcome {
        match step {
            Step::Compare(record, ailments) => self.writer.compare(record, ailments).await,
            Step::Write(record, ailments, since) => self.writer.write(record, ailments, since.clone()).await,
            Step::Withdraw(claim) => match self.writer.apply(claim, None).await {
                Ok(_) | Err(Outcome::Refused(_)) => Outcome::Gone,
                Err(outcome) => outcome,
            },
        }
    }

    fn note(&mut self, uid: &ClaimUid, step: Step, outcome: Outcome) {
        let Some(entry) = self.known.get_mut(uid) else { return };
        let claim = &entry.claim;
        match (outcome, step) {
            (
                Outcome::Reported(since),
                Step::Compare(record, ailments) | Step::Write(record, ailments, _),
            ) => {
                debug!(%claim, "device status written");
                self.refusals.succeeded();
                if std::mem::take(&mut self.is_refusal_logged) {
                    info!("the account may write the device status of claims now");
                }
                *entry = Entry::new(record.claim.clone(), Reported::Record { record, ailments, since });
            }
            (Outcome::Refused(message), Step::Compare(record, _) | Step::Write(record, ..)) => {
                debug!(%claim, message, "the API server rejects the device status of the claim");
                entry.reported = Reported::Refused(record);
            }
            (Outcome::Gone, Step::Compare(record, _) | Step::Write(record, ..)) => {
                debug!(%claim, "the claim has no device status: it is gone");
                entry.reported = Reported::Refused(record);
            }
            (Outcome::Forbidden(message), _) => {
                if !std::mem::replace(&mut self.is_refusal_logged, true) {
                    warn!(
                        message,
                        "the account may not write the device status of claims (resourceclaims/status), trying again; a \
                         kube-apiserver that has just started answers so for some seconds, otherwise apply the ClusterRole \
                         of this version"
                    );
                }
                self.not_before = Some(Instant::now() + self.refusals.failed());
            }
            (Outcome::Failed(message), step) => {
                if entry.retry.failures() == 0 {
                    warn!(%claim, message, "cannot write the device status of a claim, retrying");
                }
                // It may be there all the same.
                if entry.reported == Reported::Nothing {
                    entry.reported = Reported::Unseen;
                }
                entry.failed();
                if matches!(step, Step::Withdraw(_)) && MOST_ATTEMPTS <= entry.retry.failures() {
                    self.known.remove(uid);
                }
            }
            (_, Step::Withdraw(_)) => drop(self.known.remove(uid)),
            // The end of it all; see `update`.
            (Outcome::Dropped, _) => {}
        }
    }

    /// Time of the next retry.
    fn next_attempt(&self) -> Option<Instant> {
        self.not_before
            .filter(|it| Instant::now() < *it)
            .or_else(|| self.known.values().filter_map(|it| it.not_before).min())
    }
}

/// Why the API server is not updated any more.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It keeps no device status.
    FieldDropped,
    /// The driver ends.
    NothingChanges,
}

impl Entry {
    fn new(claim: ClaimRef, reported: Reported) -> Self {
        let retry = Backoff::new(PAUSES.0, PAUSES.1, claim.uid.as_str());
        Self { claim, reported, retry, not_before: None }
    }

    fn failed(&mut self) {
        self.not_before = Some(Instant::now() + self.retry.failed());
    }
}

impl Reported {
    /// True where there may be something to take back.
    fn is_something(&self) -> bool {
        matches!(self, Self::Unseen | Self::Record { .. })
    }

    /// What brings the API server from here to this record, whose devices suffer from `ailing`; nothing where it is there.
    fn step_to(&self, record: &Arc<Record>, driver: &str, ailing: Ailments) -> Option<Step> {
        let statuses = |of: &Record| device_statuses(of, driver, "", &Ailments::new());
        let says_the_same =
            |reported: &Arc<Record>| Arc::ptr_eq(reported, record) || statuses(reported) == statuses(record);
        let record = Arc::clone(record);
        match self {
            Self::Unseen => Some(Step::Compare(record, ailing)),
            Self::Nothing => Some(Step::Write(record, ailing, now())),
            Self::Refused(reported) if says_the_same(reported) => None,
            Self::Record { record: reported, ailments, .. }
                if *ailments == ailing && says_the_same(reported) =>
            {
                None
            }
            // A recovered device is ready as of now; as there is one time per claim, so are its other devices.
            Self::Record { ailments, .. } if ailments.keys().any(|it| !ailing.contains_key(it)) => {
                Some(Step::Write(record, ailing, now()))
            }
            Self::Record { since, .. } => Some(Step::Write(record, ailing, since.clone())),
            Self::Refused(_) => Some(Step::Write(record, ailing, now())),
        }
    }
}

/// True where the claim has a device status: it is prepared, with devices.
fn has_status(record: &Record) -> bool {
    record.stage == Stage::Prepared && !record.devices.is_empty()
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::super::device_status::Ailment;
    use super::super::device_status::fixture::{SINCE, mig, record};
    use super::*;

    #[test]
    fn only_what_says_something_else_is_written_and_ready_it_was_before() {
        let reported = |uuid: &str, ailments: &Ailments| Reported::Record {
            record: record(mig(uuid), Stage::Prepared),
            ailments: ailments.clone(),
            since: SINCE.to_owned(),
        };
        let now = record(mig("MIG-7"), Stage::Prepared);
        let well = Ailments::new();
        let step = |reported: Reported, ailments: &Ailments| reported.step_to(&now, "d", ailments.clone());
        let written =
            |ailments: &Ailments| Some(Step::Write(Arc::clone(&now), ailments.clone(), SINCE.to_owned()));
        assert_eq!(step(reported("MIG-7", &well), &well), None);
        assert_eq!(step(reported("MIG-6", &well), &well), written(&well));
        assert_eq!(step(Reported::Refused(Arc::clone(&now)), &well), None);
        assert_eq!(step(Reported::Unseen, &well), Some(Step::Compare(Arc::clone(&now), well.clone())));
        assert!(matches!(step(Reported::Nothing, &well), Some(Step::Write(..))));

        let ailment = Ailment { reason: "Unhealthy", message: "XID 48".to_owned(), since: 7 };
        let unhealthy = Ailments::from([("d-1".to_owned(), ailment)]);
        assert_eq!(step(reported("MIG-7", &well), &unhealthy), written(&unhealthy));
        assert_eq!(step(reported("MIG-7", &unhealthy), &unhealthy), None);
        let recovered = step(reported("MIG-7", &unhealthy), &well);
        assert!(matches!(&recovered, Some(Step::Write(_, it, since)) if *it == well && *since != SINCE));
    }
}
