//! What the allocator has answered, so that rounds do not ask again: which devices of a kind of GPU serve a request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::kind::{Choice, Kind};

/// Devices that serve a request, the best first; `None` where a selector fails on a device, so that nothing is allocated at all.
pub(super) type Answer = Option<Arc<[Choice]>>;

/// The answers for kinds of GPUs.
type ByKind = Vec<(Arc<Kind>, Answer)>;

/// Answers by request and its classes. Copies share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Answers(Arc<Mutex<HashMap<String, ByKind>>>);

impl Answers {
    /// The answer for a kind, asked for at first use. `request` names everything that it depends on beside the kind.
    pub(super) fn of(&self, request: &str, kind: &Arc<Kind>, ask: impl FnOnce() -> Answer) -> Answer {
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = |it: &&(Arc<Kind>, Answer)| Arc::ptr_eq(&it.0, kind);
        if let Some(found) = known().get(request).and_then(|all| all.iter().find(is_same)) {
            return found.1.clone();
        }
        let answer = ask();
        known().entry(request.to_owned()).or_default().push((kind.clone(), answer.clone()));
        answer
    }
}
