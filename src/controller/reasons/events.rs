//! Reads and writes the events.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, Error};
use mig_model::hash::fnv1a;
use tokio::time::timeout;
use tracing::warn;

use super::waiting::Waiting;
use crate::client::CALL_TIMEOUT;
use mig_telemetry::with_causes;

/// Reason of the events.
pub const REASON: &str = "MigDevicesUnavailable";

/// Reason of the events about evictions.
pub const EVICTION: &str = "MigConsolidation";

/// The pod that an event is about.
#[derive(Debug, Clone, Copy)]
pub struct Regarding<'a> {
    /// Namespace.
    pub namespace: &'a str,
    /// Name.
    pub name: &'a str,
    /// UID.
    pub uid: &'a str,
}

/// Who reports.
const CONTROLLER: &str = "mig.dra-driver.dev/mig-controller";

/// Events in one answer.
const PAGE: u32 = 500;

/// Answers that a new leader reads.
const MAX_PAGES: u32 = 40;

/// Longest name of an instance that reports.
const LONGEST_INSTANCE: usize = 128;

/// What has become of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// It is written.
    Done,
    /// The API server refuses it, and would refuse it again.
    Refused(String),
    /// The API server answers with an error about this event, which may end.
    Failed(String),
    /// The API server cannot be reached, or is too busy.
    Unavailable(String),
}

/// An event that exists about a pod that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// UID of the pod.
    pub uid: String,
    /// When it was written.
    pub time: Timestamp,
    /// A hash of its note.
    pub note: u64,
}

impl Seen {
    /// What is kept of an event, if this controller reports it in the namespace of one of these pods (namespaces by UID).
    fn of(event: &Event, pods: &HashMap<&str, &str>) -> Option<Self> {
        let uid = event.regarding.as_ref()?.uid.as_deref()?;
        let namespace = *pods.get(uid)?;
        let is_ours = event.reporting_controller.as_deref() == Some(CONTROLLER)
            && event.metadata.namespace.as_deref() == Some(namespace);
        let created = || event.metadata.creation_timestamp.as_ref().map(|it| it.0);
        let time = event.event_time.as_ref().map(|it| it.0).or_else(created)?;
        let note = fnv1a(event.note.as_deref().unwrap_or_default().as_bytes());
        is_ours.then(|| Self { uid: uid.to_owned(), time, note })
    }
}

/// Reads and writes events of pods. Needs the verbs `create` and `list` for `events.k8s.io`.
#[derive(Debug, Clone)]
pub struct Events {
    /// Of all namespaces.
    api: Api<Event>,
    instance: String,
}

impl Events {
    /// Events that this replica reports.
    #[must_use]
    pub fn new(client: Client, identity: &str) -> Self {
        Self {
            api: Api::all(client),
            instance: identity.chars().filter(char::is_ascii).take(LONGEST_INSTANCE).collect(),
        }
    }

    /// The events about these pods that this controller, in whichever replica, has written and that are still there, and why the others
    /// could not be read, if so. Users who may create events can write them, too: they are not trusted beyond the namespace of the pod,
    /// and a bounded number is read.
    pub async fn read(&self, pods: &[Waiting<'_>]) -> (Vec<Seen>, Option<String>) {
        let pods: HashMap<&str, &str> = pods.iter().map(|it| (it.uid(), it.namespace())).collect();
        let mut params = ListParams::default().fields(&format!("reason={REASON}")).limit(PAGE);
        let mut all = Vec::new();
        for _ in 0..MAX_PAGES {
            let page = match timeout(CALL_TIMEOUT, self.api.list(&params)).await {
                Ok(Ok(page)) => page,
                Ok(Err(error)) => return (all, Some(with_causes(&error))),
                Err(_) => return (all, Some(format!("no answer within {} s", CALL_TIMEOUT.as_secs()))),
            };
            all.extend(page.items.iter().filter_map(|it| Seen::of(it, &pods)));
            match page.metadata.continue_ {
                Some(next) if !next.is_empty() => params.continue_token = Some(next),
                _ => return (all, None),
            }
        }
        warn!(
            events = MAX_PAGES * PAGE,
            "there are more events than are read; some pods may get a second event"
        );
        (all, None)
    }

    /// Writes an event of a pod, whose last event was written at `last`. Tried again after an answer that was lost, it has the same name,
    /// and so is not written twice.
    pub async fn write(
        &self,
        pod: &Waiting<'_>,
        note: &str,
        last: Option<Timestamp>,
        now: Timestamp,
    ) -> Written {
        let occasion = format!("{} {}", pod.uid(), last.map_or(0, Timestamp::as_microsecond));
        let regarding = Regarding { namespace: pod.namespace(), name: pod.name(), uid: pod.uid() };
        self.create(self.event(&regarding, REASON, "Warning", "Scheduling", note, &occasion, now)).await
    }

    /// Writes an event of a pod that is evicted, or that others are evicted for.
    pub async fn write_eviction(&self, pod: &Regarding<'_>, note: &str, now: Timestamp) -> Written {
        let occasion = format!("{} {} {note}", pod.uid, now.as_microsecond());
        self.create(self.event(pod, EVICTION, "Normal", "Evicting", note, &occasion, now)).await
    }

    async fn create(&self, event: Event) -> Written {
        let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
        let api = self.api.clone().constrain(namespace);
        match timeout(CALL_TIMEOUT, api.create(&PostParams::default(), &event)).await {
            Ok(Ok(_)) => Written::Done,
            // An earlier attempt was stored although its answer was lost.
            Ok(Err(Error::Api(status))) if status.is_already_exists() => Written::Done,
            Ok(Err(Error::Api(status))) if !matches!(status.code, 408 | 429 | 504) => match status.code {
                400..500 => Written::Refused(status.message.clone()),
                // An admission webhook of one namespace that fails is a 500, too.
                _ => Written::Failed(status.message.clone()),
            },
            Ok(Err(error)) => Written::Unavailable(with_causes(&error)),
            Err(_) => Written::Unavailable(format!("no answer within {} s", CALL_TIMEOUT.as_secs())),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "each is a field of the event")]
    fn event(
        &self,
        pod: &Regarding<'_>,
        reason: &str,
        type_: &str,
        action: &str,
        note: &str,
        occasion: &str,
        now: Timestamp,
    ) -> Event {
        /// Room for a dot and the hash within the 253 bytes of a name.
        const LONGEST_NAME: usize = 230;
        let own = |text: &str| Some(text.to_owned());
        let name: String = pod.name.chars().take(LONGEST_NAME).collect();
        Event {
            action: own(action),
            event_time: Some(MicroTime(now)),
            metadata: ObjectMeta {
                namespace: own(pod.namespace),
                name: Some(format!(
                    "{}.{:016x}",
                    name.trim_end_matches(['.', '-']),
                    fnv1a(occasion.as_bytes())
                )),
                ..ObjectMeta::default()
            },
            note: own(note),
            reason: own(reason),
            regarding: Some(ObjectReference {
                api_version: own("v1"),
                kind: own("Pod"),
                namespace: own(pod.namespace),
                name: own(pod.name),
                uid: own(pod.uid),
                ..ObjectReference::default()
            }),
            reporting_controller: own(CONTROLLER),
            reporting_instance: own(&self.instance),
            type_: own(type_),
            ..Event::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_of_other_namespaces_pods_and_reporters_are_not_kept() {
        let pods = HashMap::from([("u", "team")]);
        let event = |namespace: &str, uid: &str, controller: &str| -> Event {
            serde_json::from_value(json!({
                "metadata": {"namespace": namespace, "name": "e"}, "reportingController": controller, "note": "n",
                "regarding": {"uid": uid}, "eventTime": "2026-11-29T12:00:00.000000Z",
            }))
            .unwrap()
        };
        let seen = Seen::of(&event("team", "u", CONTROLLER), &pods).unwrap();
        assert_eq!((seen.uid.as_str(), seen.note), ("u", fnv1a(b"n")));
        assert_eq!(Seen::of(&event("other", "u", CONTROLLER), &pods), None);
        assert_eq!(Seen::of(&event("team", "v", CONTROLLER), &pods), None);
        assert_eq!(Seen::of(&event("team", "u", "else"), &pods), None);
    }
}
