//! The changes that watches read: as many of the newest as fit into a limit.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::Value;

use super::error::ApiError;
use super::kinds::KindRef;

/// About how many bytes of changes are kept for watches; older resource versions answer 410. The real server keeps five minutes.
pub const HISTORY_BYTES: usize = 16 << 20;

/// What happened to an object.
#[derive(Debug, Clone)]
pub struct Change {
    /// The resource version that the change made.
    pub revision: u64,
    /// The kind of the object.
    pub kind: KindRef,
    /// Before; `None` for a creation.
    pub old: Option<Arc<Value>>,
    /// After; for a deletion the last state, with the revision of the deletion.
    pub new: Arc<Value>,
    /// Whether the object is gone.
    pub deleted: bool,
}

impl Change {
    /// About how many bytes it keeps in memory. What was there before is what an earlier change made.
    fn bytes(&self) -> usize {
        size_of::<Self>() + bytes(&self.new)
    }
}

/// About how many bytes a value takes.
fn bytes(value: &Value) -> usize {
    /// A node of the tree that a JSON object is has room for eleven entries and has at least five of them.
    const PER_ENTRIES: usize = 5;
    const NODE: usize = 11 * (size_of::<String>() + size_of::<Value>()) + 16;
    match value {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(|item| size_of::<Value>() + bytes(item)).sum(),
        Value::Object(map) => {
            let entries: usize = map.iter().map(|(key, value)| key.len() + bytes(value)).sum();
            NODE * map.len().div_ceil(PER_ENTRIES) + entries
        }
        _ => 0,
    }
}

/// The newest changes.
#[derive(Debug, Default)]
pub(super) struct History {
    changes: VecDeque<Change>,
    bytes: usize,
    compacted: u64,
}

impl History {
    /// About how many bytes are kept.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a change and forgets the oldest beyond the limit.
    pub(super) fn push(&mut self, change: Change) {
        self.bytes += change.bytes();
        self.changes.push_back(change);
        while self.bytes > HISTORY_BYTES
            && let Some(oldest) = self.changes.pop_front()
        {
            self.bytes -= oldest.bytes();
            self.compacted = oldest.revision;
        }
    }

    /// Forgets all changes up to a resource version.
    pub(super) fn compact(&mut self, revision: u64) {
        *self = Self { compacted: revision, ..Self::default() };
    }

    /// The changes of a kind after a resource version.
    ///
    /// # Errors
    /// 410 when the version is older than what is kept.
    pub(super) fn since(&self, kind: KindRef, revision: u64) -> Result<Vec<Change>, ApiError> {
        if revision < self.compacted {
            return Err(ApiError::expired(revision, self.compacted));
        }
        let newer = self.changes.iter().rev().take_while(|it| it.revision > revision);
        let mut changes: Vec<Change> = newer.filter(|it| it.kind == kind).cloned().collect();
        changes.reverse();
        Ok(changes)
    }
}
