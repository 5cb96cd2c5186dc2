//! A claim in progress: its lock, its journal, and its record.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mig_model::claim::ClaimUid;
use tokio::sync::OwnedMutexGuard;

use crate::checkpoint::{Journal, Progress, Record, RecordedDevice, RecordedKind, Stage, StoreError};

/// Several GPU threads read it and write their steps to it. One that hangs keeps it, and with it the claim, from later calls.
pub(super) type SharedSession = Arc<Mutex<ClaimSession>>;

/// The journal of a claim and its present record.
#[derive(Debug)]
pub(super) struct ClaimSession {
    pub(super) record: Record,
    opened: Opened,
    /// The record of an earlier boot that this one takes the place of. It stays the promise until the claim is prepared.
    promise: Option<Record>,
}

/// Exclusive access to a claim: the queue ticket within this process, and the journal among processes.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) journal: Journal,
    /// Recovery takes what is free and waits for no turn.
    pub(super) _ticket: Option<QueueTicket>,
}

/// A place at the front of the queue for a claim.
pub(super) type QueueTicket = OwnedMutexGuard<()>;

/// Queues of the calls for each claim: they come in the order in which they were made.
#[derive(Debug, Default)]
pub(super) struct ClaimQueues(Mutex<HashMap<ClaimUid, Arc<tokio::sync::Mutex<()>>>>);

impl ClaimQueues {
    pub(super) async fn wait(&self, uid: &ClaimUid) -> QueueTicket {
        let queue = {
            let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Empty queues are dropped here, so that the map does not grow.
            queues.retain(|_, it| 1 < Arc::strong_count(it));
            Arc::clone(queues.entry(uid.clone()).or_default())
        };
        queue.lock_owned().await
    }
}

impl ClaimSession {
    pub(super) fn shared(opened: Opened, record: Record, promise: Option<Record>) -> SharedSession {
        Arc::new(Mutex::new(Self { record, opened, promise }))
    }

    /// Gives the claim back where no work for it runs any more.
    pub(super) fn into_opened(session: SharedSession) -> Option<Opened> {
        let session = Arc::into_inner(session)?;
        Some(session.into_inner().unwrap_or_else(PoisonError::into_inner).opened)
    }

    /// Notes that the claim enters this stage.
    pub(super) fn enter(&mut self, stage: Stage) -> Result<(), StoreError> {
        if self.record.stage == stage {
            return Ok(());
        }
        self.record.stage = stage;
        self.opened.journal.append(&self.record)
    }

    /// Notes how far a device got.
    pub(super) fn note(&mut self, index: usize, now: Progress) -> Result<(), StoreError> {
        if let Some(RecordedDevice { kind: RecordedKind::Mig { progress, .. }, .. }) =
            self.record.devices.get_mut(index)
        {
            *progress = now;
        }
        self.opened.journal.append(&self.record)
    }

    /// How far a device got; nothing for one that is not made.
    pub(super) fn progress(&self, index: usize) -> Option<Progress> {
        match &self.record.devices.get(index)?.kind {
            RecordedKind::Mig { progress, .. } => Some(progress.clone()),
            RecordedKind::Gpu
            | RecordedKind::AdminAccess
            | RecordedKind::Share { .. }
            | RecordedKind::Adopted(_) => None,
        }
    }

    /// Nothing is left of the claim: the file goes, or says again what was promised in an earlier boot.
    pub(super) fn forget(&mut self) -> Result<(), StoreError> {
        match &self.promise {
            Some(promise) => self.opened.journal.append(promise),
            None => self.opened.journal.forget(),
        }
    }
}

/// The session, for one step.
pub(super) fn lock(session: &SharedSession) -> MutexGuard<'_, ClaimSession> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}
