//! Timers that always count: a timer that is dropped counts as well, so that no failure is missed.

use std::sync::Arc;
use std::time::Instant;

use super::families::Families;
use super::labels::{Method, Outcome, Step};
use super::reason::Reason;

/// A call of the kubelet for one claim that runs. Dropped without an end it counts as abandoned.
#[derive(Debug)]
#[must_use]
pub struct CallClock {
    families: Arc<Families>,
    method: Method,
    start: Instant,
    reason: Reason,
}

/// A step that runs. Dropped without an end it counts as failed.
#[derive(Debug)]
#[must_use]
pub struct StepClock {
    families: Arc<Families>,
    step: Step,
    start: Instant,
    outcome: Outcome,
}

impl CallClock {
    pub(super) fn start(families: Arc<Families>, method: Method) -> Self {
        Self { families, method, start: Instant::now(), reason: Reason::Abandoned }
    }

    /// Counts the call, which was answered.
    pub fn end(mut self, reason: Reason) {
        self.reason = reason;
    }
}

impl Drop for CallClock {
    fn drop(&mut self) {
        self.families.note_call(self.method, self.reason, self.start.elapsed());
    }
}

impl StepClock {
    pub(super) fn start(families: Arc<Families>, step: Step) -> Self {
        Self { families, step, start: Instant::now(), outcome: Outcome::Failure }
    }

    /// Counts the step, which has come to its end.
    pub fn end(mut self, is_success: bool) {
        if is_success {
            self.outcome = Outcome::Success;
        }
    }
}

impl Drop for StepClock {
    fn drop(&mut self) {
        self.families.note_step(self.step, self.outcome, self.start.elapsed());
    }
}
