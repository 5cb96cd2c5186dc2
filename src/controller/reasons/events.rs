//! Reads and writes the events.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, Error};
use mig_model::hash::fnv1a;
use tokio::time::timeout;

use super::waiting::Waiting;
use crate::client::{CALL_TIMEOUT, with_causes};

/// Reason of the events.
pub const REASON: &str = "MigDevicesUnavailable";

/// Who reports.
const CONTROLLER: &str = "mig.dra-driver.dev/mig-controller";

/// Events in one answer.
const PAGE: u32 = 500;

/// Longest name of an instance that reports.
const LONGEST_INSTANCE: usize = 128;

/// What has become of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// It is written.
    Done,
    /// The API server refuses it, and would refuse it again.
    Refused(String),
    /// The API server cannot be reached, or is too busy.
    Unavailable(String),
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

    /// The events that this controller, in whichever replica, has written and that are still there: UID of the pod, time, note.
    ///
    /// # Errors
    /// Why they cannot be read.
    pub async fn read(&self) -> Result<Vec<(String, Timestamp, String)>, String> {
        let mut params = ListParams::default().fields(&format!("reason={REASON}")).limit(PAGE);
        let mut all = Vec::new();
        loop {
            let page = match timeout(CALL_TIMEOUT, self.api.list(&params)).await {
                Ok(page) => page.map_err(|error| with_causes(&error))?,
                Err(_) => return Err(format!("no answer within {} s", CALL_TIMEOUT.as_secs())),
            };
            let ours =
                page.items.into_iter().filter(|it| it.reporting_controller.as_deref() == Some(CONTROLLER));
            all.extend(ours.filter_map(|it| {
                let time = it.event_time.map(|it| it.0).or(it.metadata.creation_timestamp.map(|it| it.0))?;
                Some((it.regarding?.uid?, time, it.note.unwrap_or_default()))
            }));
            match page.metadata.continue_ {
                Some(next) if !next.is_empty() => params.continue_token = Some(next),
                _ => return Ok(all),
            }
        }
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
        let api = self.api.clone().constrain(pod.namespace());
        let event = self.event(pod, note, last, now);
        match timeout(CALL_TIMEOUT, api.create(&PostParams::default(), &event)).await {
            Ok(Ok(_)) => Written::Done,
            // An earlier attempt was stored although its answer was lost.
            Ok(Err(Error::Api(status))) if status.is_already_exists() => Written::Done,
            Ok(Err(Error::Api(status))) if (400..500).contains(&status.code) && status.code != 429 => {
                Written::Refused(status.message.clone())
            }
            Ok(Err(error)) => Written::Unavailable(with_causes(&error)),
            Err(_) => Written::Unavailable(format!("no answer within {} s", CALL_TIMEOUT.as_secs())),
        }
    }

    fn event(&self, pod: &Waiting<'_>, note: &str, last: Option<Timestamp>, now: Timestamp) -> Event {
        /// Room for a dot and the hash within the 253 bytes of a name.
        const LONGEST_NAME: usize = 230;
        let occasion = format!("{} {}", pod.uid(), last.map_or(0, Timestamp::as_microsecond));
        let own = |text: &str| Some(text.to_owned());
        let name: String = pod.name().chars().take(LONGEST_NAME).collect();
        Event {
            action: own("Scheduling"),
            event_time: Some(MicroTime(now)),
            metadata: ObjectMeta {
                namespace: own(pod.namespace()),
                name: Some(format!(
                    "{}.{:016x}",
                    name.trim_end_matches(['.', '-']),
                    fnv1a(occasion.as_bytes())
                )),
                ..ObjectMeta::default()
            },
            note: own(note),
            reason: own(REASON),
            regarding: Some(ObjectReference {
                api_version: own("v1"),
                kind: own("Pod"),
                namespace: own(pod.namespace()),
                name: own(pod.name()),
                uid: own(pod.uid()),
                ..ObjectReference::default()
            }),
            reporting_controller: own(CONTROLLER),
            reporting_instance: own(&self.instance),
            type_: own("Warning"),
            ..Event::default()
        }
    }
}
