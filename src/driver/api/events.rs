//! Events of the Node, of ResourceClaims and of their pods, in addition to the kubelet's own events.
//!
//! Events are best effort: no caller waits for them, a repeated event is counted in its series, and events beyond the limit
//! are dropped and counted in the log. The kubelet creates an event of the pod from every error that Prepare returns
//! (FailedPrepareDynamicResources), so those are not repeated here. Reported are final results that no further call will
//! change, and what happens between calls.

use std::collections::VecDeque;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Error};
use mig_model::claim::ClaimRef;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::CALL_TIMEOUT;
use super::event_reason::EventReason;
use crate::pods::PodRef;
use crate::telemetry::with_causes;

/// Events that wait to be written; more are left out.
const MOST_WAITING: usize = 64;
/// Number of events that are remembered, to count repetitions.
const MOST_REMEMBERED: usize = 64;
/// A repetition within this time counts in the series of the event, as kubectl shows it: `x4 over 6m`.
const SAME_WITHIN: Duration = Duration::from_secs(600);
/// Events that may come at once, and the time after which one more may.
const BUDGET: (u32, Duration) = (25, Duration::from_secs(6));
/// Longest note: validation of events.k8s.io/v1 takes 1 kB.
const LONGEST_NOTE: usize = 1024;

/// Writes events in the order in which they were reported. Needs the verbs `create` and `patch` for `events.k8s.io`.
#[derive(Debug, Clone)]
pub struct Events {
    node: ObjectReference,
    waiting: mpsc::Sender<QueuedEvent>,
}

/// An event to be written.
#[derive(Debug, Clone, PartialEq)]
struct QueuedEvent {
    reason: EventReason,
    about: ObjectReference,
    note: String,
}

impl Events {
    /// Events of this node and its claims, by this driver. Starts the task that writes them; it ends with the last clone.
    #[must_use]
    pub fn new(client: Client, node: &str, driver: &str) -> Self {
        let (waiting, queued) = mpsc::channel(MOST_WAITING);
        let writer = Writer {
            client,
            driver: driver.to_owned(),
            node: node.to_owned(),
            written: VecDeque::new(),
            budget: Budget { left: BUDGET.0, since: Instant::now() },
            left_out: 0,
        };
        tokio::spawn(writer.run(queued));
        let node = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            // kubectl describe node looks for events by the node's name in place of its UID, as the kubelet writes them.
            uid: Some(node.to_owned()),
            ..ObjectReference::default()
        };
        Self { node, waiting }
    }

    /// Reports an event of the node, without waiting. `note` is for people; the API server takes 1024 bytes of it.
    pub fn emit(&self, reason: EventReason, note: String) {
        self.queue(reason, self.node.clone(), note);
    }

    /// Reports an event of a claim, without waiting.
    pub fn emit_for_claim(&self, reason: EventReason, claim: &ClaimRef, note: String) {
        let about = ObjectReference {
            api_version: Some("resource.k8s.io/v1".to_owned()),
            kind: Some("ResourceClaim".to_owned()),
            namespace: Some(claim.namespace.clone()),
            name: Some(claim.name.clone()),
            uid: Some(claim.uid.to_string()),
            ..ObjectReference::default()
        };
        self.queue(reason, about, note);
    }

    /// Reports an event of a claim for one of its pods, without waiting: `kubectl describe pod` shows it.
    pub fn emit_for_pod(&self, reason: EventReason, namespace: &str, pod: &PodRef, note: String) {
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(namespace.to_owned()),
            name: Some(pod.name.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectReference::default()
        };
        self.queue(reason, about, note);
    }

    fn queue(&self, reason: EventReason, about: ObjectReference, note: String) {
        let queued = QueuedEvent { reason, about, note: shortened(note, LONGEST_NOTE) };
        if let Err(left_out) = self.waiting.try_send(queued) {
            let queued = left_out.into_inner();
            warn!(reason = queued.reason.as_str(), note = queued.note, "event queue is full: one is dropped");
        }
    }
}

/// The task that writes.
struct Writer {
    client: Client,
    driver: String,
    node: String,
    /// What was written lately, oldest first.
    written: VecDeque<Written>,
    budget: Budget,
    left_out: u32,
}

struct Written {
    queued: QueuedEvent,
    name: String,
    count: i32,
    last: Instant,
}

/// How many more events may be written now.
#[derive(Debug)]
struct Budget {
    left: u32,
    since: Instant,
}

impl Budget {
    /// Takes one, if there is one.
    fn take(&mut self, now: Instant) -> bool {
        let (most, each) = BUDGET;
        while self.left < most && each <= now.saturating_duration_since(self.since) {
            self.left += 1;
            self.since += each;
        }
        if self.left == most {
            self.since = now;
        }
        let is_left = 0 < self.left;
        self.left = self.left.saturating_sub(1);
        is_left
    }
}

impl Writer {
    async fn run(mut self, mut queued: mpsc::Receiver<QueuedEvent>) {
        while let Some(queued) = queued.recv().await {
            if !self.budget.take(Instant::now()) {
                self.left_out += 1;
                warn!(
                    reason = queued.reason.as_str(),
                    note = queued.note,
                    left_out = self.left_out,
                    "too many events: one is dropped"
                );
                continue;
            }
            let reason = queued.reason.as_str();
            let error = match timeout(CALL_TIMEOUT, self.write(queued)).await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => with_causes(&error),
                Err(_) => format!("no answer within {} s", CALL_TIMEOUT.as_secs()),
            };
            warn!(reason, error, "cannot write an event");
        }
    }

    /// Counts an event that was written lately, and else writes a new one.
    async fn write(&mut self, queued: QueuedEvent) -> Result<(), Error> {
        let now = Instant::now();
        self.written.retain(|it| now.saturating_duration_since(it.last) < SAME_WITHIN);
        // Events of what has no namespace are kept in `default`.
        let namespace = queued.about.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        if let Some(before) = self.written.iter_mut().find(|it| it.queued == queued) {
            (before.count, before.last) = (before.count.saturating_add(1), now);
            let series = json!({"count": before.count, "lastObservedTime": MicroTime(Timestamp::now())});
            let patch = Patch::Merge(json!({"series": series}));
            match events.patch(&before.name, &PatchParams::default(), &patch).await {
                Err(Error::Api(status)) if status.is_not_found() => {}
                patched => return patched.map(drop),
            }
            self.written.retain(|it| it.queued != queued);
        }
        let event = self.event(&queued, &namespace);
        let name = event.metadata.name.clone().unwrap_or_default();
        events.create(&PostParams::default(), &event).await?;
        if self.written.len() == MOST_REMEMBERED {
            self.written.pop_front();
        }
        self.written.push_back(Written { queued, name, count: 1, last: now });
        Ok(())
    }

    fn event(&self, queued: &QueuedEvent, namespace: &str) -> Event {
        /// Room for a dot and the time within the 253 bytes of a name.
        const LONGEST_NAME: usize = 230;
        let now = Timestamp::now();
        let about = shortened(queued.about.name.clone().unwrap_or_default(), LONGEST_NAME);
        let name = format!("{}.{:x}", about.trim_end_matches(['.', '-']), now.as_nanosecond());
        Event {
            action: Some(queued.reason.action().to_owned()),
            event_time: Some(MicroTime(now)),
            metadata: ObjectMeta {
                namespace: Some(namespace.to_owned()),
                name: Some(name),
                ..ObjectMeta::default()
            },
            note: Some(queued.note.clone()),
            reason: Some(queued.reason.as_str().to_owned()),
            regarding: Some(queued.about.clone()),
            reporting_controller: Some(self.driver.clone()),
            reporting_instance: Some(shortened(self.node.clone(), 128)),
            type_: Some(if queued.reason.is_warning() { "Warning" } else { "Normal" }.to_owned()),
            ..Event::default()
        }
    }
}

/// At most so many bytes, cut between characters.
fn shortened(mut text: String, longest: usize) -> String {
    if longest < text.len() {
        let end = (0..=longest).rev().find(|it| text.is_char_boundary(*it)).unwrap_or_default();
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_note_is_cut_between_characters() {
        assert_eq!(shortened("short".to_owned(), LONGEST_NOTE), "short");
        assert_eq!(shortened(format!("a{}", "é".repeat(600)), LONGEST_NOTE).len(), 1023);
    }

    #[test]
    fn a_burst_is_written_and_then_one_at_a_time() {
        let start = Instant::now();
        let mut budget = Budget { left: BUDGET.0, since: start };
        let taken = |budget: &mut Budget, now| (0..100).filter(|_| budget.take(now)).count();
        assert_eq!(taken(&mut budget, start), 25);
        assert_eq!(taken(&mut budget, start + BUDGET.1), 1);
        assert_eq!(taken(&mut budget, start + BUDGET.1 * 3), 2);
        assert_eq!(taken(&mut budget, start + BUDGET.1 * 1000), 25);
    }

    #[test]
    fn every_reason_is_listed_once() {
        let names: std::collections::BTreeSet<&str> = EventReason::ALL.iter().map(|it| it.as_str()).collect();
        assert_eq!(names.len(), EventReason::ALL.len());
        for reason in EventReason::ALL {
            assert_eq!(reason.as_str(), format!("{reason:?}"));
        }
    }
}
