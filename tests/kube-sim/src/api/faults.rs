//! Faults for tests: answers that a real API server gives on a bad day.

use std::fmt;
use std::sync::{Mutex, PoisonError};

/// A request, as far as a fault can choose by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestInfo {
    /// HTTP method.
    pub method: String,
    /// Path without the query.
    pub path: String,
    /// The query string.
    pub query: String,
}

impl RequestInfo {
    /// Whether this is a write.
    #[must_use]
    pub fn is_write(&self) -> bool {
        self.method != "GET"
    }

    /// Whether this opens a watch.
    #[must_use]
    pub fn is_watch(&self) -> bool {
        self.query.split('&').any(|p| p == "watch=true" || p == "watch=1" || p == "watch")
    }
}

/// What happens to a chosen request instead of its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A `Status` with this HTTP code.
    Status(u16),
    /// No answer until the client gives up.
    Hang,
    /// 200 with a body that is not JSON.
    Garbage,
    /// The work is done, but the answer is this code: a write that the client believes lost.
    AfterEffect(u16),
}

type Chooser = Box<dyn Fn(&RequestInfo) -> bool + Send>;

struct Armed {
    choose: Chooser,
    left: usize,
    fault: Fault,
}

/// The faults still to come, and the requests seen so far.
pub(super) struct Faults {
    armed: Mutex<Vec<Armed>>,
    seen: Mutex<Vec<RequestInfo>>,
    records: bool,
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faults")
    }
}

impl Faults {
    /// No faults; `records` says whether requests are kept.
    pub(super) fn new(records: bool) -> Self {
        Self { armed: Mutex::default(), seen: Mutex::default(), records }
    }

    pub(super) fn arm(&self, left: usize, choose: Chooser, fault: Fault) {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner).push(Armed { choose, left, fault });
    }

    pub(super) fn clear(&self) {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(super) fn seen(&self) -> Vec<RequestInfo> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes a request and takes the fault that it meets, if any.
    pub(super) fn meet(&self, request: &RequestInfo) -> Option<Fault> {
        if self.records {
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
        }
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        let hit = armed.iter_mut().find(|a| a.left > 0 && (a.choose)(request))?;
        hit.left -= 1;
        Some(hit.fault)
    }
}
