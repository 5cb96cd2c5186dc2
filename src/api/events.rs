//! Events of the Node: what no pod's event tells.
//!
//! Telling is best effort. Nobody waits for it, and what cannot be told is in the log.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::time::timeout;
use tracing::{Instrument, warn};

use super::{CALL_TIMEOUT, with_causes};
use crate::claim::ClaimRef;

/// Why there is an event. A closed set, so that alerts can name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventReason {
    /// The state file of a claim cannot be read.
    UnreadableState,
    /// The layout that the node's label asks for cannot be had.
    LayoutRefused,
    /// The layout is in force as far as claims and GPUs allow.
    LayoutPending,
    /// The layout is in force.
    LayoutApplied,
    /// The API server no longer keeps counters, so layouts decide what is published.
    CountersDropped,
    /// The API server keeps counters again, so everything is published.
    CountersKept,
    /// A GPU has had an error that no application causes.
    GpuUnhealthy,
    /// A GPU does not answer.
    GpuLost,
    /// What happens to a GPU is not noticed.
    GpuUnmonitored,
    /// None of these any more.
    GpuRecovered,
    /// What a claim has, has had an error that no application causes.
    DeviceUnhealthy,
    /// A program on what a claim has, has made an error.
    DeviceError,
}

impl EventReason {
    /// The event's `reason`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnreadableState => "UnreadableState",
            Self::LayoutRefused => "LayoutRefused",
            Self::LayoutPending => "LayoutPending",
            Self::LayoutApplied => "LayoutApplied",
            Self::CountersDropped => "CountersDropped",
            Self::CountersKept => "CountersKept",
            Self::GpuUnhealthy => "GpuUnhealthy",
            Self::GpuLost => "GpuLost",
            Self::GpuUnmonitored => "GpuUnmonitored",
            Self::GpuRecovered => "GpuRecovered",
            Self::DeviceUnhealthy => "DeviceUnhealthy",
            Self::DeviceError => "DeviceError",
        }
    }
}

/// Writes events about one Node. Needs the verbs `create` and `patch` for `events.k8s.io`.
#[derive(Clone)]
pub struct Events {
    client: Client,
    reporter: Reporter,
    recorder: Recorder,
    node: ObjectReference,
}

impl Events {
    /// Events about this node, by this driver.
    #[must_use]
    pub fn new(client: Client, node: &str, driver: &str) -> Self {
        let reporter = Reporter { controller: driver.to_owned(), instance: Some(node.to_owned()) };
        let node = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            // kubectl describe node looks for events by the node's name in place of its UID, as the kubelet writes them.
            uid: Some(node.to_owned()),
            ..ObjectReference::default()
        };
        Self { recorder: Recorder::new(client.clone(), reporter.clone()), client, reporter, node }
    }

    /// Sends a warning and does not wait for it. `note` is for people; the API server takes 1024 bytes of it.
    pub fn warn(&self, reason: EventReason, note: String) {
        let events = self.clone();
        let tell = async move {
            publish(&events.recorder, &events.node, EventType::Warning, reason, "Recover", note).await;
        };
        tokio::spawn(tell.in_current_span());
    }

    /// Tells something of the node's health, without waiting. Each call is an event of its own.
    pub fn tell(&self, reason: EventReason, note: String) {
        self.send(reason, self.node.clone(), note);
    }

    /// Tells something of a claim, without waiting.
    pub fn tell_claim(&self, reason: EventReason, claim: &ClaimRef, note: String) {
        let about = ObjectReference {
            api_version: Some("resource.k8s.io/v1".to_owned()),
            kind: Some("ResourceClaim".to_owned()),
            namespace: Some(claim.namespace.clone()),
            name: Some(claim.name.clone()),
            uid: Some(claim.uid.to_string()),
            ..ObjectReference::default()
        };
        self.send(reason, about, note);
    }

    fn send(&self, reason: EventReason, about: ObjectReference, note: String) {
        let kind = match reason {
            EventReason::GpuRecovered | EventReason::DeviceError => EventType::Normal,
            _ => EventType::Warning,
        };
        let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
        let tell = async move { publish(&recorder, &about, kind, reason, "Watch", note).await };
        tokio::spawn(tell.in_current_span());
    }

    /// Sends what there is to say of a layout, and waits for it so that the order is kept. Each call is an event of its own:
    /// a recorder joins those of one reason and keeps the first one's note.
    pub async fn tell_layout(&self, kind: EventType, reason: EventReason, note: String) {
        let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
        publish(&recorder, &self.node, kind, reason, "Layout", note).await;
    }
}

async fn publish(
    recorder: &Recorder,
    node: &ObjectReference,
    kind: EventType,
    reason: EventReason,
    action: &str,
    note: String,
) {
    let event = Event {
        type_: kind,
        reason: reason.as_str().to_owned(),
        note: Some(shortened(note)),
        action: action.to_owned(),
        secondary: None,
    };
    let error = match timeout(CALL_TIMEOUT, recorder.publish(&event, node)).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => with_causes(&error),
        Err(_) => format!("no answer within {} s", CALL_TIMEOUT.as_secs()),
    };
    warn!(reason = reason.as_str(), error, "cannot write an event of the node");
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").field("node", &self.node.name).finish_non_exhaustive()
    }
}

/// At most as long as the API server takes it (validation of events.k8s.io/v1: 1 kB).
fn shortened(mut note: String) -> String {
    const LONGEST: usize = 1024;
    if LONGEST < note.len() {
        let end = (0..=LONGEST).rev().find(|it| note.is_char_boundary(*it)).unwrap_or_default();
        note.truncate(end);
    }
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_note_is_cut_between_characters() {
        assert_eq!(shortened("short".to_owned()), "short");
        assert_eq!(shortened(format!("a{}", "é".repeat(600))).len(), 1023);
    }
}
