//! A claim in progress: its lock, its journal, and its record.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mig_model::claim::ClaimUid;
use tokio::sync::OwnedMutexGuard;

use crate::checkpoint::{Journal, Progress, Record, RecordedDevice, RecordedKind, Stage, StoreError};

/// Several GPU threads read it and write their steps to it. One that hangs keeps it, and with it the claim, from later calls.
pub(super) type SharedDraft = Arc<Mutex<Draft>>;

/// The journal of a claim and its present record.
#[derive(Debug)]
pub(super) struct Draft {
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
    pub(super) _turn: Option<Turn>,
}

/// A place at the front of the queue for a claim.
pub(super) type Turn = OwnedMutexGuard<()>;

/// Queues of the calls for each claim: they come in the order in which they were made.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<ClaimUid, Arc<tokio::sync::Mutex<()>>>>);

impl Turns {
    pub(super) async fn wait(&self, uid: &ClaimUid) -> Turn {
        let queue = {
            let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Empty queues are dropped here, so that the map does not grow.
            queues.retain(|_, it| 1 < Arc::strong_count(it));
            Arc::clone(queues.entry(uid.clone()).or_default())
        };
        queue.lock_owned().await
    }
}

impl Draft {
    pub(super) fn shared(opened: Opened, record: Record, promise: Option<Record>) -> SharedDraft {
        Arc::new(Mutex::new(Self { record, opened, promise }))
    }

    /// Gives the claim back where no work for it runs any more.
    pub(super) fn into_opened(draft: SharedDraft) -> Option<Opened> {
        let draft = Arc::into_inner(draft)?;
        Some(draft.into_inner().unwrap_or_else(PoisonError::into_inner).opened)
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
            RecordedKind::Gpu | RecordedKind::Share { .. } | RecordedKind::Adopted(_) => None,
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

/// The draft, for one step.
pub(super) fn held(draft: &SharedDraft) -> MutexGuard<'_, Draft> {
    draft.lock().unwrap_or_else(PoisonError::into_inner)
}
