//! One round of reports.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kubectl_mig::cluster::Demanded;
use kubectl_mig::explain::{Subject, explain};
use mig_model::hash::fnv1a;
use tokio::task::block_in_place;
use tracing::{debug, warn};

use super::events::{Events, Written};
use super::memory::{Limits, Memory};
use super::note::Finding;
use super::waiting::{Waiting, waited, waiting};
use crate::election::Term;
use crate::metrics::{Metrics, VerdictLabel};
use crate::world::World;

/// Pause before what is left over goes on.
const PAUSE: Duration = Duration::from_secs(1);

/// Failures to read the events that exist, after which those that were read are enough.
const MAX_FAILURES: u32 = 3;

/// What a round has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Round {
    /// Pods that wait for devices of our classes.
    pub waiting: usize,
    /// How long the oldest of them has waited.
    pub oldest: Duration,
    /// When the next round is due if nothing changes; `None`: when something changes.
    pub next: Option<Duration>,
}

/// Reports why pods wait.
#[derive(Debug)]
pub struct Reporter {
    events: Events,
    driver: String,
    limits: Limits,
    metrics: Metrics,
    /// `None` until the events that exist were read, or could not be read several times.
    memory: Option<Memory>,
    /// How often they could not be read.
    failures: u32,
}

/// What has become of one pod.
enum Progress {
    /// Nothing is left to do for it now.
    Done,
    /// The rest has to wait for the next round.
    Later,
}

impl Reporter {
    /// A reporter for pods that wait for devices of this driver.
    #[must_use]
    pub fn new(events: Events, driver: &str, limits: Limits, metrics: Metrics) -> Self {
        Self { events, driver: driver.to_owned(), limits, metrics, memory: None, failures: 0 }
    }

    /// Another replica leads: what is remembered is out of date when this one leads again.
    pub fn forget(&mut self) {
        self.memory = None;
        self.failures = 0;
    }

    /// Looks at each pod that is due, those without an event first.
    pub async fn round(&mut self, world: &World, term: &Term) -> Round {
        let pods = waiting(world, &self.driver);
        let now = Timestamp::now();
        let oldest = pods.iter().map(|it| waited(it.since, now)).max().unwrap_or_default();
        let round = |next| Round { waiting: pods.len(), oldest, next };
        let mut memory = match self.memory.take() {
            Some(memory) => memory,
            None if pods.is_empty() => return round(None),
            None => {
                let (events, error) = self.events.read(&pods).await;
                if let Some(error) = error {
                    self.failures += 1;
                    if self.failures < MAX_FAILURES {
                        warn!(error, "cannot read the events that exist; no reasons are reported until then");
                        return round(Some(PAUSE * 10));
                    }
                    warn!(error, "cannot read all events that exist; some pods may get a second event");
                }
                self.failures = 0;
                Memory::of(self.limits, events, now)
            }
        };
        memory.keep_only(&pods, now);
        let mut due: Vec<&Waiting<'_>> = pods.iter().filter(|it| memory.due_in(it, now).is_zero()).collect();
        due.sort_by_key(|it| (memory.last_event(it).is_some(), it.since));
        let started = Instant::now();
        let mut is_left = false;
        // All pods of a shape one after the other, while its explanation holds.
        'shapes: for (shape, pods) in by_shape(due, &world.snapshot().demanded) {
            let finding = match memory.finding(shape) {
                Some(finding) => finding,
                None if memory.explaining() < started.elapsed() => {
                    is_left = true;
                    continue;
                }
                None => {
                    let finding = block_in_place(|| self.explain(world, pods[0]));
                    memory.found(shape, finding.clone(), Timestamp::now());
                    finding
                }
            };
            for pod in pods {
                if !term.holds() {
                    break 'shapes;
                }
                if let Progress::Later = self.report(pod, finding.as_ref(), &mut memory).await {
                    is_left = true;
                    break 'shapes;
                }
            }
        }
        let now = Timestamp::now();
        let next = pods.iter().map(|it| memory.due_in(it, now)).min();
        // As long again as the explanations took: they are for people, and leave half a processor to the rest.
        let next = if is_left { Some(PAUSE.max(started.elapsed())) } else { next };
        self.memory = Some(memory);
        round(next)
    }

    /// Writes the event of a pod, unless it has the same one.
    async fn report(&self, pod: &Waiting<'_>, finding: Option<&Finding>, memory: &mut Memory) -> Progress {
        let now = Timestamp::now();
        let Some(note) = finding.map(|it| it.note(pod)) else {
            memory.checked(pod, now);
            return Progress::Done;
        };
        if memory.is_known(pod, &note, now) {
            memory.checked(pod, now);
            return Progress::Done;
        }
        if !memory.may_write(now) {
            return Progress::Later;
        }
        let written = self.events.write(pod, &note, memory.last_event(pod), now).await;
        self.metrics.event_written(written == Written::Done);
        let (namespace, name) = (pod.namespace(), pod.name());
        match written {
            Written::Done => {
                debug!(namespace, name, note, "reported");
                memory.wrote(pod, &note, now);
                Progress::Done
            }
            Written::Refused(error) => {
                warn!(namespace, name, error, "the API server refuses an event");
                memory.checked(pod, now);
                Progress::Done
            }
            Written::Failed(error) => {
                warn!(namespace, name, error, "cannot write an event; trying again later");
                memory.failed(pod, now);
                Progress::Done
            }
            Written::Unavailable(error) => {
                warn!(namespace, name, error, "cannot write an event; trying again");
                memory.failed(pod, now);
                Progress::Later
            }
        }
    }

    fn explain(&self, world: &World, pod: &Waiting<'_>) -> Option<Finding> {
        let started = Instant::now();
        let subject = Subject::Pod { namespace: pod.namespace().to_owned(), name: pod.name().to_owned() };
        let explanation = explain(world.snapshot(), &subject);
        self.metrics.explained(VerdictLabel::of(explanation.verdict), started.elapsed());
        let claims = &world.snapshot().claims;
        let namespaces = claims.iter().filter_map(|it| it.metadata.namespace.as_deref()).collect();
        Finding::of(&explanation, pod, &namespaces)
    }
}

/// Pods of each shape, in the order of the first of each. One that a GPU is held back for has a shape of its own: the others wait for
/// something else.
fn by_shape<'p, 'w>(
    pods: Vec<&'p Waiting<'w>>,
    demanded: &BTreeMap<String, Demanded>,
) -> Vec<(u64, Vec<&'p Waiting<'w>>)> {
    let claims = demanded.values().flat_map(|it| &it.holds).map(|it| &it.claim);
    let held: BTreeSet<&str> = claims.map(|it| it.uid.as_str()).collect();
    let mut places: HashMap<u64, usize> = HashMap::new();
    let mut groups: Vec<(u64, Vec<&Waiting<'_>>)> = Vec::new();
    for pod in pods {
        let has_hold = pod.claim_uids().any(|it| held.contains(it));
        let shape = if has_hold { pod.shape() ^ fnv1a(pod.uid().as_bytes()) } else { pod.shape() };
        let place = *places.entry(shape).or_insert(groups.len());
        match groups.get_mut(place) {
            Some((_, group)) => group.push(pod),
            None => groups.push((shape, vec![pod])),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use kube::runtime::watcher::Event;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;
    use crate::world::Change;

    const DRIVER: &str = "mig.dra-driver.dev";

    fn of<T: DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_pod_that_a_gpu_is_held_back_for_shares_its_explanation_with_no_other() {
        let mut world = World::default();
        let selector = json!([{"cel": {"expression": format!("device.driver == '{DRIVER}'")}}]);
        let class = json!({"metadata": {"name": "mig"}, "spec": {"selectors": selector}});
        world.apply(Change::Classes(Event::Apply(of(class))));
        let uid = |it: u32| format!("00000000-0000-4000-8000-00000000000{it}");
        for it in 0..3 {
            let requests = json!([{"name": "gpu", "exactly": {"deviceClassName": "mig"}}]);
            let claim = json!({"metadata": {"namespace": "team", "name": format!("c{it}"), "uid": uid(it)},
                "spec": {"devices": {"requests": requests}}});
            world.apply(Change::Claims(Event::Apply(of(claim))));
            let pod = json!({"metadata": {"namespace": "team", "name": format!("p{it}"), "uid": format!("pod-{it}")},
                "spec": {"containers": [{"name": "c"}],
                    "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "t"}]},
                "status": {"phase": "Pending",
                    "resourceClaimStatuses": [{"name": "gpu", "resourceClaimName": format!("c{it}")}],
                    "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                        "lastTransitionTime": "2026-11-30T12:00:00Z"}]}});
            world.apply(Change::Pods(Event::Apply(of(pod))));
        }
        let hold = json!({"gpu": "gpu-0000-1a-00", "profile": "full", "until": "2026-11-30T12:10:00Z",
            "claim": {"namespace": "team", "name": "c1", "uid": uid(1)}});
        let mig_node = json!({"metadata": {"name": "n"}, "spec": {"holds": [hold]}});
        world.apply(Change::MigNodes(Event::Apply(of(mig_node))));
        let mut groups = |now: &str| {
            world.note_demand(true, now.parse().unwrap());
            let pods = waiting(&world, DRIVER);
            let groups = by_shape(pods.iter().collect(), &world.snapshot().demanded);
            groups
                .iter()
                .map(|it| it.1.iter().map(|it| it.name().to_owned()).collect::<Vec<_>>())
                .collect::<Vec<_>>()
        };
        assert_eq!(groups("2026-11-30T12:09:59Z"), [vec!["p0", "p2"], vec!["p1"]]);
        assert_eq!(groups("2026-11-30T12:10:00Z"), [vec!["p0", "p1", "p2"]], "the hold is over");
    }
}
