//! Evicts pods that make room for a claim, and reports it on them and on the pod that waits.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::Eviction as Request;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, ObjectMeta, Preconditions, Status};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::PostParams;
use kube::{Api, Client, Error};
use mig_telemetry::with_causes;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::client::CALL_TIMEOUT;
use crate::demand::{Evicted, Eviction, PodKey};
use crate::election::Term;
use crate::metrics::{EvictionOutcome, Metrics};
use crate::reasons::{Events, Regarding, Written};

/// A pod that could not be evicted is left alone for so long.
const AGAIN: Duration = Duration::from_secs(60);
/// And no longer than this, whatever the API server asks for.
const LONGEST: u64 = 600;

/// What the API server names where a PodDisruptionBudget is the reason.
const BUDGET: &str = "DisruptionBudget";

/// Evicts pods. Needs the verb `create` for `pods/eviction`.
pub struct Evictor {
    api: Api<Pod>,
    /// `None` where events are off.
    events: Option<Events>,
    metrics: Metrics,
}

impl std::fmt::Debug for Evictor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Evictor").finish_non_exhaustive()
    }
}

/// A pod that was not evicted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its UID.
    pub pod: String,
    /// Until when it is to be left alone.
    pub until: Timestamp,
    /// False where the answer of the API server was lost.
    pub is_certain: bool,
}

/// What the API server answers.
enum Answer {
    Done,
    /// A budget keeps the pod; it may be asked again after so many seconds.
    Refused(String, u64),
    Gone,
    Failed(String),
}

impl Evictor {
    /// With a client for all namespaces.
    #[must_use]
    pub fn new(client: Client, events: Option<Events>, metrics: Metrics) -> Self {
        Self { api: Api::all(client), events, metrics }
    }

    /// Evicts a set of pods, if the API server would evict each of them. Answers those that stay. After the first that stays no
    /// other is evicted.
    pub async fn evict(&self, eviction: &Eviction, term: &Term, now: Timestamp) -> Vec<Kept> {
        let (node, gpu, waiting) = (&eviction.node, &eviction.gpu, &eviction.waiting);
        // A trial first: what one budget forbids must not cost the others their place.
        for is_trial in [true, false] {
            for (done, it) in eviction.pods.iter().enumerate() {
                let (namespace, name) = (&it.pod.namespace, &it.pod.name);
                let answer = match term.holds() {
                    true => self.ask(&it.pod, is_trial).await,
                    false => Answer::Failed("this replica leads no longer".to_owned()),
                };
                let outcome = match &answer {
                    Answer::Done => EvictionOutcome::Success,
                    Answer::Refused(..) => EvictionOutcome::Refused,
                    Answer::Gone => EvictionOutcome::Gone,
                    Answer::Failed(_) => EvictionOutcome::Failure,
                };
                if !(is_trial && outcome == EvictionOutcome::Success) {
                    self.metrics.evicted(outcome);
                }
                let (mut seconds, mut is_certain) = (AGAIN.as_secs(), true);
                match answer {
                    Answer::Done if is_trial => continue,
                    Answer::Done => {
                        info!(
                            namespace,
                            name,
                            node,
                            gpu,
                            profile = eviction.profile,
                            waiting.namespace,
                            waiting.name,
                            "pod evicted: it stands in the way of a pod that waits"
                        );
                        self.report(&it.pod, &note_of_evicted(eviction, it, now), now).await;
                        continue;
                    }
                    Answer::Refused(why, after) => {
                        seconds = after.clamp(seconds, LONGEST);
                        info!(namespace, name, why, "pod not evicted: a PodDisruptionBudget keeps it");
                    }
                    Answer::Gone => info!(namespace, name, "pod not evicted: it is gone"),
                    Answer::Failed(error) => {
                        is_certain = is_trial;
                        warn!(namespace, name, error, "cannot evict a pod");
                    }
                }
                if !is_trial && 0 < done {
                    self.report_for(eviction, done, now).await;
                }
                let pause = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
                let until = now.checked_add(pause).unwrap_or(Timestamp::MAX);
                let first = if is_trial { 0 } else { done };
                let kept = eviction.pods.iter().enumerate().skip(first);
                let of = |(index, it): (usize, &Evicted)| Kept {
                    pod: it.pod.uid.clone(),
                    until,
                    is_certain: is_certain || index != done,
                };
                return kept.map(of).collect();
            }
        }
        self.report_for(eviction, eviction.pods.len(), now).await;
        Vec::new()
    }

    async fn ask(&self, pod: &PodKey, is_trial: bool) -> Answer {
        let options = DeleteOptions {
            // Another pod of this name, such as the next one of a StatefulSet, stays.
            preconditions: Some(Preconditions { uid: Some(pod.uid.clone()), resource_version: None }),
            ..DeleteOptions::default()
        };
        let request = Request {
            metadata: ObjectMeta {
                namespace: Some(pod.namespace.clone()),
                name: Some(pod.name.clone()),
                ..ObjectMeta::default()
            },
            delete_options: Some(options),
        };
        let api = self.api.clone().constrain(&pod.namespace);
        let params = PostParams { dry_run: is_trial, ..PostParams::default() };
        let call = api.create_subresource::<_, Status>("eviction", &pod.name, &params, &request);
        match timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(_)) => Answer::Done,
            Ok(Err(Error::Api(status))) if status.code == 429 => match &status.details {
                Some(details) if details.causes.iter().any(|it| it.reason == BUDGET) => {
                    let causes: Vec<&str> = details.causes.iter().map(|it| it.message.as_str()).collect();
                    Answer::Refused(causes.join("; "), u64::from(details.retry_after_seconds))
                }
                // The API server is busy.
                _ => Answer::Failed(status.message.clone()),
            },
            Ok(Err(Error::Api(status))) if status.code == 404 || status.code == 409 => Answer::Gone,
            Ok(Err(error)) => Answer::Failed(with_causes(&error)),
            Err(_) => Answer::Failed(format!("no answer within {} s", CALL_TIMEOUT.as_secs())),
        }
    }

    /// The event of the pod that waits, after so many were evicted.
    async fn report_for(&self, eviction: &Eviction, count: usize, now: Timestamp) {
        self.report(&eviction.waiting, &note_of_waiting(eviction, count), now).await;
    }

    async fn report(&self, pod: &PodKey, note: &str, now: Timestamp) {
        let Some(events) = &self.events else { return };
        let regarding = Regarding { namespace: &pod.namespace, name: &pod.name, uid: &pod.uid };
        let written = events.write_eviction(&regarding, note, now).await;
        self.metrics.event_written(written == Written::Done);
        if let Written::Refused(error) | Written::Failed(error) | Written::Unavailable(error) = written {
            warn!(
                namespace = pod.namespace,
                name = pod.name,
                error,
                "an event about an eviction is not written"
            );
        }
    }
}

/// Events do not name pods of other namespaces.
fn note_of_evicted(eviction: &Eviction, evicted: &Evicted, now: Timestamp) -> String {
    let waiting = &eviction.waiting;
    let who = match waiting.namespace == evicted.pod.namespace {
        true => format!("pod {}", waiting.name),
        false => "a pod of another namespace".to_owned(),
    };
    let minutes = now.duration_since(eviction.since).as_mins().max(0);
    format!(
        "Evicted because {who} has waited {minutes} min for a {} and GPU {} of node {} can serve it without this pod. Node {} had room for \
         a replacement. The label mig.dra-driver.dev/movable=true of the pod allows it.",
        eviction.profile, eviction.gpu, eviction.node, evicted.place
    )
}

fn note_of_waiting(eviction: &Eviction, count: usize) -> String {
    /// Names that a note has at most.
    const MOST: usize = 7;
    let evicted = &eviction.pods[..count.min(eviction.pods.len())];
    let own = evicted.iter().filter(|it| it.pod.namespace == eviction.waiting.namespace);
    let names: Vec<&str> = own.map(|it| it.pod.name.as_str()).take(MOST).collect();
    let others = evicted.len() - names.len();
    let mut who: Vec<String> = names.iter().map(|it| format!("pod {it}")).collect();
    if 0 < others {
        who.push(format!("{others} of other namespaces"));
    }
    format!(
        "{} of {} pods evicted from GPU {} of node {}, which is held back for this pod until {}: {}. The pod gets its {} once they have \
         ended.",
        evicted.len(),
        eviction.pods.len(),
        eviction.gpu,
        eviction.node,
        eviction.until.strftime("%Y-%m-%dT%H:%M:%SZ"),
        who.join(", "),
        eviction.profile
    )
}
