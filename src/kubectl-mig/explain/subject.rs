//! What is asked about: a pod with its claims, and what the objects themselves say before any node is looked at.

use std::borrow::Cow;

use dra_allocator::is_allocated;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;

use super::case::{Case, is};
use super::claims::{consumers, devices, uses};
use super::explanation::Verdict;
use super::quota;
use super::reason::{Reason, ReasonId, some_of};
use crate::cluster::Snapshot;
use crate::manifest::Catalog;

/// What to explain.
#[derive(Debug, Clone)]
pub enum Subject {
    /// A pod of the snapshot.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A claim of the snapshot.
    Claim {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A pod that does not exist yet.
    Planned {
        /// What asks for it: `deployment/web`.
        owner: String,
        /// The pod, with name and namespace.
        pod: Box<Pod>,
    },
}

impl<'a> Case<'a> {
    /// Reads the objects.
    pub(super) fn of(snapshot: &'a Snapshot, catalog: &Catalog<'a>, subject: &'a Subject) -> Self {
        match subject {
            Subject::Pod { namespace, name } => {
                let mut case = Self::new(format!("pod/{name}"), namespace);
                match snapshot.pods.iter().find(|it| is(&it.metadata, namespace, name)) {
                    Some(pod) => case.of_pod(snapshot, catalog, Cow::Borrowed(pod), true),
                    None => case.not_found("pod", name, snapshot.unread("pods").map(|it| it.why.as_str())),
                }
                case
            }
            Subject::Planned { owner, pod } => {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
                let mut case = Self::new(owner.clone(), namespace);
                case.of_pod(snapshot, catalog, Cow::Borrowed(pod), false);
                case
            }
            Subject::Claim { namespace, name } => {
                let mut case = Self::new(format!("claim/{name}"), namespace);
                match snapshot.claims.iter().find(|it| is(&it.metadata, namespace, name)) {
                    Some(claim) => case.of_claim(snapshot, catalog, claim),
                    None => case.not_found("resourceclaim", name, None),
                }
                case
            }
        }
    }

    fn not_found(&mut self, kind: &str, name: &str, unread: Option<&str>) {
        let namespace = &self.namespace;
        let reason = match unread {
            Some(why) => Reason::new(ReasonId::NotFound, format!("it could not be read: {why}")),
            None => {
                Reason::new(ReasonId::NotFound, format!("there is no {kind} {name} in namespace {namespace}"))
                    .advise(format!("look for it with kubectl get {kind} -A, and name its namespace with -n"))
            }
        };
        self.decide(Verdict::Unknown, reason);
    }

    fn of_claim(&mut self, snapshot: &'a Snapshot, catalog: &Catalog<'a>, claim: &'a ResourceClaim) {
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        if is_allocated(claim) {
            let users = consumers(claim);
            let used = if users.is_empty() { "no pod".to_owned() } else { some_of(&users, 5) };
            let sentence =
                format!("it is allocated: {}; {used} uses it", devices(std::slice::from_ref(claim)));
            let mut reason = Reason::new(ReasonId::ClaimAllocated, sentence);
            if claim.metadata.deletion_timestamp.is_some() {
                reason.details.push("it is being deleted, and gone once no pod uses it".to_owned());
            }
            self.held.push(claim.clone());
            return self.decide(Verdict::Served, reason);
        }
        // A claim is allocated when a pod that uses it is scheduled.
        if let Some(pod) = snapshot.pods.iter().find(|it| uses(it, name, &self.namespace)) {
            return self.of_pod(snapshot, catalog, Cow::Borrowed(pod), true);
        }
        if self.is_going(claim) {
            return;
        }
        self.open.push(claim.clone());
        let sentence =
            format!("no pod that uses claim {name} is known, and a claim is allocated with its pod");
        let reason = Reason::new(ReasonId::ClaimWithoutPod, sentence)
            .advise(format!("create a pod that names claim {name} in spec.resourceClaims"));
        self.remarks.push(reason);
    }

    fn of_pod(&mut self, snapshot: &'a Snapshot, catalog: &Catalog<'a>, pod: Cow<'a, Pod>, exists: bool) {
        self.life(&pod, exists);
        if self.decided.is_some() {
            self.pod = Some(pod);
            return;
        }
        let (claims, problems) = if exists {
            catalog.existing_claims(&pod)
        } else {
            match catalog.planned_claims(&pod) {
                Ok(claims) => (claims, Vec::new()),
                Err(problem) => (Vec::new(), vec![problem]),
            }
        };
        for problem in problems {
            self.problem(snapshot, &pod, problem);
        }
        if !exists {
            for claim in claims
                .iter()
                .filter(|it| it.metadata.uid.is_none() && it.metadata.creation_timestamp.is_none())
            {
                if let Some((reason, verdict)) = quota::refuses(&snapshot.quotas, claim) {
                    self.decide(verdict, reason);
                }
            }
        }
        self.extended_resources(snapshot, catalog, &pod);
        for claim in claims {
            if is_allocated(&claim) {
                self.full(&claim, &pod);
                self.is_going(&claim);
                self.held.push(claim);
            } else if !self.is_going(&claim) {
                self.open.push(claim);
            }
        }
        self.placed(&pod);
        self.unused(&pod);
        self.pod = Some(pod);
    }

    /// Phase, deletion, gates, scheduler.
    fn life(&mut self, pod: &Pod, exists: bool) {
        let spec = pod.spec.as_ref();
        let phase = pod.status.as_ref().and_then(|it| it.phase.as_deref()).unwrap_or_default();
        if exists && (phase == "Succeeded" || phase == "Failed") {
            let reason = Reason::new(ReasonId::PodEnded, format!("the pod has ended ({phase})"))
                .advise("create the pod again if it should run again");
            return self.decide(Verdict::Never, reason);
        }
        if pod.metadata.deletion_timestamp.is_some() && spec.is_none_or(|it| it.node_name.is_none()) {
            let reason = Reason::new(ReasonId::PodBeingDeleted, "the pod is being deleted");
            return self.decide(Verdict::Never, reason);
        }
        let gates: Vec<String> = spec
            .iter()
            .flat_map(|it| it.scheduling_gates.iter().flatten())
            .map(|it| it.name.clone())
            .collect();
        if !gates.is_empty() {
            let sentence = format!(
                "the scheduler does not look at the pod while it has the scheduling gate {}",
                some_of(&gates, 5)
            );
            let reason = Reason::new(ReasonId::SchedulingGates, sentence)
                .advise("the controller that set the gate removes it, such as a queue; ask it, or remove the gate from spec.schedulingGates");
            self.hold_back(Verdict::NotNow, reason);
        }
        let scheduler = spec.and_then(|it| it.scheduler_name.as_deref()).unwrap_or("default-scheduler");
        if scheduler != "default-scheduler" {
            let sentence =
                format!("scheduler {scheduler} is responsible for the pod, and its rules are not known here");
            let reason = Reason::new(ReasonId::OtherScheduler, sentence).advise(format!(
                "see whether {scheduler} runs and supports DRA; or remove spec.schedulerName from the pod"
            ));
            self.hold_back(Verdict::Unknown, reason);
        }
    }

    /// A pod that has its node.
    fn placed(&mut self, pod: &Pod) {
        let Some(node) = pod.spec.as_ref().and_then(|it| it.node_name.clone()).filter(|it| !it.is_empty())
        else {
            return;
        };
        if let Some(claim) = self.open.first() {
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            let sentence = format!(
                "the pod names node {node} in spec.nodeName, so no scheduler allocates claim {name}, and the kubelet waits for it"
            );
            let reason = Reason::new(ReasonId::NodeNameSet, sentence)
                .advise(format!("delete the pod, and use nodeSelector {{kubernetes.io/hostname: {node}}} in place of spec.nodeName"));
            return self.decide(Verdict::Never, reason);
        }
        let has = if self.held.is_empty() { "it has no claim".to_owned() } else { devices(&self.held) };
        let running = pod.status.as_ref().and_then(|it| it.phase.as_deref()) == Some("Running");
        let mut reason = Reason::new(ReasonId::PodHasNode, format!("the pod is on node {node}: {has}"));
        if !running {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            reason = reason.advise(format!(
                "if it does not start, its events say why: kubectl -n {} describe pod {name}; see docs/troubleshooting.md, step 4",
                self.namespace
            ));
        }
        self.decide(Verdict::Served, reason);
    }

    /// Claims that no container names give the pod devices that nothing can see.
    fn unused(&mut self, pod: &Pod) {
        let Some(spec) = &pod.spec else { return };
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let used: Vec<&str> = containers
            .flat_map(|it| it.resources.iter().flat_map(|it| it.claims.iter().flatten()))
            .map(|it| it.name.as_str())
            .collect();
        for entry in spec.resource_claims.iter().flatten().filter(|it| !used.contains(&it.name.as_str())) {
            let sentence = format!(
                "no container uses {} of spec.resourceClaims, so no container sees its devices",
                entry.name
            );
            let reason = Reason::new(ReasonId::ClaimNotUsed, sentence)
                .advise(format!("add to the container: resources: {{claims: [{{name: {}}}]}}", entry.name));
            self.remarks.push(reason);
        }
    }
}

/// What the scheduler last said about a pod.
/// What the scheduler's message has when something else than devices is missing.
const OTHER_REASONS: &[&str] = &[
    "Insufficient ",
    "olume",
    "pod affinity",
    "anti-affinity",
    "topology spread",
    "Too many pods",
    "free ports",
];

/// What it has when a node lacks devices, and nothing that is looked at before them.
pub(super) const NO_DEVICES: &str = "cannot allocate all claims";

/// Whether a message of the scheduler names something else than devices that nodes lack.
pub(super) fn names_something_else(message: &str) -> bool {
    OTHER_REASONS.iter().any(|it| message.contains(it))
}

/// Whether the scheduler says of a pod that nodes lack devices for it, and nothing else. Nodes that its selectors and tolerations leave
/// out do not count.
#[must_use]
pub fn lacks_only_devices(pod: &Pod) -> bool {
    scheduler_message(pod).is_some_and(|it| it.contains(NO_DEVICES) && !names_something_else(it))
}

pub(super) fn scheduler_message(pod: &Pod) -> Option<&str> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions.iter().find(|it| it.type_ == "PodScheduled" && it.status == "False")?;
    condition.message.as_deref()
}
