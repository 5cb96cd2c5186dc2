//! What is asked about: a pod with its claims, and what the objects themselves say before any node is looked at.

use std::borrow::Cow;

use dra_allocator::extended::CLAIM_ANNOTATION;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;

use super::explanation::Verdict;
use super::quota;
use super::reason::{Reason, ReasonId, count, some_of};
use super::size::requested;
use crate::cluster::Snapshot;
use crate::manifest::{Catalog, DemandError};

/// Most users of a claim.
const MAX_CONSUMERS: usize = 256;

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

/// The subject with everything that belongs to it.
#[derive(Debug)]
pub(super) struct Case<'a> {
    /// `pod/NAME` and the like.
    pub(super) label: String,
    pub(super) namespace: String,
    pub(super) pod: Option<Cow<'a, Pod>>,
    /// Claims to allocate.
    pub(super) open: Vec<ResourceClaim>,
    /// Claims that are allocated.
    pub(super) held: Vec<ResourceClaim>,
    /// Extended resources that a class stands behind.
    pub(super) extended: Vec<String>,
    /// What decides without a look at nodes.
    pub(super) decided: Option<Verdict>,
    /// What keeps the pod back although nodes may fit.
    pub(super) held_back: Option<Verdict>,
    pub(super) reasons: Vec<Reason>,
    /// What is odd, and decides nothing.
    pub(super) remarks: Vec<Reason>,
    pub(super) assumptions: Vec<String>,
}

impl<'a> Case<'a> {
    fn new(label: String, namespace: &str) -> Self {
        Self {
            label,
            namespace: namespace.to_owned(),
            pod: None,
            open: Vec::new(),
            held: Vec::new(),
            extended: Vec::new(),
            decided: None,
            held_back: None,
            reasons: Vec::new(),
            remarks: Vec::new(),
            assumptions: Vec::new(),
        }
    }

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

    /// Ends the matter.
    fn decide(&mut self, verdict: Verdict, reason: Reason) {
        self.decided = Some(self.decided.unwrap_or(verdict));
        self.reasons.push(reason);
    }

    /// Something that passes by itself, or that others have to do, whatever nodes offer.
    fn hold_back(&mut self, verdict: Verdict, reason: Reason) {
        self.held_back = Some(self.held_back.unwrap_or(verdict));
        self.reasons.push(reason);
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
        if claim.status.as_ref().is_some_and(|it| it.allocation.is_some()) {
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
            if claim.status.as_ref().is_some_and(|it| it.allocation.is_some()) {
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

    /// A claim that is missing.
    fn problem(&mut self, snapshot: &Snapshot, pod: &Pod, problem: DemandError) {
        match problem {
            DemandError::Missing { kind, name, namespace, .. } => {
                let id =
                    if kind == "ResourceClaim" { ReasonId::ClaimMissing } else { ReasonId::TemplateMissing };
                let plural = format!("{}s", kind.to_lowercase());
                let sentence = format!("{kind} {name} does not exist in namespace {namespace}");
                let reason = Reason::new(id, sentence).advise(format!(
                    "create {kind} {name} in namespace {namespace}, or name an existing one in spec.resourceClaims of the pod: kubectl -n {namespace} get {plural}"
                ));
                self.decide(Verdict::Never, reason);
            }
            DemandError::NotCreated { claim, .. } => {
                if let Some((reason, verdict)) =
                    would_be(snapshot, pod, &claim).and_then(|it| quota::refuses(&snapshot.quotas, &it))
                {
                    return self.decide(verdict, reason);
                }
                let message = super::events::failed_claim_creation(snapshot, pod);
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                let sentence = match &message {
                    Some(it) => format!("Kubernetes could not create claim {claim}: {it}"),
                    None => format!("Kubernetes has not created claim {claim} of the pod yet"),
                };
                let reason = Reason::new(ReasonId::ClaimNotCreated, sentence).advise(format!(
                    "the event FailedResourceClaimCreation has the reason: kubectl -n {} describe pod {name}",
                    self.namespace
                ));
                self.decide(Verdict::NotNow, reason);
            }
            other => self.decide(Verdict::Unknown, Reason::new(ReasonId::NotFound, other.to_string())),
        }
    }

    /// True for a claim that is being deleted.
    fn is_going(&mut self, claim: &ResourceClaim) -> bool {
        if claim.metadata.deletion_timestamp.is_none() {
            return false;
        }
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        let users = consumers(claim);
        let end = if users.is_empty() {
            format!(
                "wait; if it stays, its finalizers say who keeps it: kubectl -n {} get resourceclaim {name} -o yaml",
                self.namespace
            )
        } else {
            format!("end the pods that use it: {}", some_of(&users, 5))
        };
        let sentence = format!("claim {name} is being deleted, and gone once no pod uses it");
        self.decide(Verdict::NotNow, Reason::new(ReasonId::ClaimBeingDeleted, sentence).advise(end));
        true
    }

    /// A claim that can have no more users.
    fn full(&mut self, claim: &ResourceClaim, pod: &Pod) {
        let reserved = claim.status.as_ref().and_then(|it| it.reserved_for.as_deref()).unwrap_or_default();
        let is_mine = reserved.iter().any(|it| Some(&it.uid) == pod.metadata.uid.as_ref());
        if reserved.len() >= MAX_CONSUMERS && !is_mine {
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            let sentence =
                format!("claim {name} is used by {MAX_CONSUMERS} pods, the most that a claim can have");
            let reason = Reason::new(ReasonId::ReservedForFull, sentence)
                .advise("end one of them, or create another claim for further pods");
            self.decide(Verdict::NotNow, reason);
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

    /// Extended resources: those that a class stands behind become a claim of the pod.
    fn extended_resources(&mut self, snapshot: &'a Snapshot, catalog: &Catalog<'a>, pod: &Pod) {
        let status = pod.status.as_ref().and_then(|it| it.extended_resource_claim_status.as_ref());
        if let Some(status) = status {
            let found = snapshot
                .claims
                .iter()
                .find(|it| is(&it.metadata, &self.namespace, &status.resource_claim_name));
            self.held.extend(found.cloned());
            return;
        }
        let mut has_other = false;
        for resource in requested(pod).into_keys() {
            let is_gpu = resource.starts_with("nvidia.com/")
                || resource.starts_with(dra_allocator::extended::IMPLICIT_PREFIX);
            let has_class = catalog.extended().class_of(&resource).is_some();
            if !is_gpu && !has_class {
                continue;
            }
            has_other = true;
            let plugin = plugin_nodes(snapshot, &resource);
            if has_class {
                self.with_class(snapshot, pod, &resource, &plugin);
            } else if plugin.is_empty() {
                self.without_class(snapshot, &resource);
            } else {
                let sentence = format!(
                    "a device plugin serves {resource} on {}, and not a ResourceClaim",
                    some_of(&plugin, 3)
                );
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                let reason = Reason::new(ReasonId::DevicePlugin, sentence).advise(format!(
                    "kubectl -n {} describe pod {name} says what the scheduler finds",
                    self.namespace
                ));
                self.hold_back(Verdict::Unknown, reason);
            }
        }
        let asks =
            pod.spec.as_ref().is_some_and(|it| it.resource_claims.as_ref().is_some_and(|it| !it.is_empty()));
        if !asks && !has_other {
            let reason = Reason::new(ReasonId::NoDeviceRequested, "the pod asks for no device")
                .advise("name a ResourceClaimTemplate in spec.resourceClaims and in resources.claims of the container: docs/selectors.md, examples/single-instance");
            self.decide(Verdict::Never, reason);
        }
    }

    fn with_class(&mut self, snapshot: &Snapshot, pod: &Pod, resource: &str, plugin: &[String]) {
        let gate = snapshot.gates.map(|it| it.extended_resource);
        let refused =
            scheduler_message(pod).is_some_and(|it| it.contains(&format!("Insufficient {resource}")));
        if (gate == Some(false) || (refused && gate.is_none())) && plugin.is_empty() {
            let sentence = format!(
                "kube-scheduler looks for {resource} at a device plugin: DRAExtendedResource is off in it"
            );
            return self.decide(Verdict::Never, gate_off(sentence, resource));
        }
        self.extended.push(resource.to_owned());
        let made = |claim: &ResourceClaim| {
            claim.metadata.annotations.as_ref().is_some_and(|it| it.contains_key(CLAIM_ANNOTATION))
        };
        let known = gate.is_some()
            || snapshot.version.is_some_and(|it| it >= (1, 36))
            || snapshot.claims.iter().any(made);
        if !known {
            self.assumptions.push(
                "DRAExtendedResource is on in kube-scheduler, kube-controller-manager and the kubelets, as it is in kube-apiserver"
                    .to_owned(),
            );
        }
    }

    fn without_class(&mut self, snapshot: &Snapshot, resource: &str) {
        if snapshot.gates.is_some_and(|it| !it.extended_resource) {
            let sentence = format!("no device plugin offers {resource}, and DRAExtendedResource is off");
            return self.decide(Verdict::Never, gate_off(sentence, resource));
        }
        let implied = resource.strip_prefix("nvidia.com/").unwrap_or(resource);
        let same =
            |it: &&k8s_openapi::api::resource::v1::DeviceClass| it.metadata.name.as_deref() == Some(implied);
        if snapshot.classes.iter().find(same).is_some_and(|it| it.spec.extended_resource_name.is_none()) {
            let sentence = format!(
                "class {implied} stands for {resource}, but kube-apiserver does not keep its extendedResourceName: DRAExtendedResource is off"
            );
            return self.decide(Verdict::Never, gate_off(sentence, resource));
        }
        let known: Vec<String> =
            snapshot.classes.iter().filter_map(|it| it.spec.extended_resource_name.clone()).collect();
        let mut reason = Reason::new(
            ReasonId::ExtendedResourceWithoutClass,
            format!(
                "no DeviceClass has the extendedResourceName {resource}, and no node's device plugin offers it"
            ),
        );
        if !known.is_empty() {
            reason = reason.advise(format!("request one of these: {}", some_of(&known, 8)));
        }
        if resource == "nvidia.com/gpu" {
            reason = reason.advise("set the chart value deviceClasses.gpuExtendedResource=true, which gives this name to class gpu.dra-driver.dev");
        }
        self.decide(Verdict::Never, reason.advise("or ask with a claim: kubectl mig convert -f FILE"));
    }
}

fn gate_off(sentence: String, resource: &str) -> Reason {
    Reason::new(ReasonId::ExtendedResourceGateOff, sentence)
        .advise(format!("ask for {resource} with a claim: kubectl mig convert -f FILE"))
        .advise("or turn the feature gate DRAExtendedResource on in kube-apiserver, kube-controller-manager, kube-scheduler and the kubelets, and apply the device classes again")
}

fn plugin_nodes(snapshot: &Snapshot, resource: &str) -> Vec<String> {
    let offers = |node: &&k8s_openapi::api::core::v1::Node| {
        let allocatable = node.status.as_ref().and_then(|it| it.allocatable.as_ref());
        allocatable.and_then(|it| it.get(resource)).is_some_and(|it| it.0 != "0")
    };
    snapshot
        .nodes
        .iter()
        .filter(offers)
        .filter_map(|it| Some(format!("node {}", it.metadata.name.as_deref()?)))
        .collect()
}

/// The claim that Kubernetes would create for an entry of `spec.resourceClaims`.
fn would_be(snapshot: &Snapshot, pod: &Pod, entry: &str) -> Option<ResourceClaim> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let entries = pod.spec.as_ref()?.resource_claims.as_ref()?;
    let template = entries.iter().find(|it| it.name == entry)?.resource_claim_template_name.as_deref()?;
    let template = snapshot.templates.iter().find(|it| is(&it.metadata, namespace, template))?;
    let mut claim = ResourceClaim { spec: template.spec.spec.clone(), ..ResourceClaim::default() };
    claim.metadata.namespace = Some(namespace.to_owned());
    Some(claim)
}

fn is(
    metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    namespace: &str,
    name: &str,
) -> bool {
    metadata.name.as_deref() == Some(name) && metadata.namespace.as_deref().unwrap_or("default") == namespace
}

/// Whether a pod that has not ended names a claim, or has it from a template.
fn uses(pod: &Pod, claim: &str, namespace: &str) -> bool {
    let phase = pod.status.as_ref().and_then(|it| it.phase.as_deref());
    if pod.metadata.namespace.as_deref().unwrap_or("default") != namespace
        || matches!(phase, Some("Succeeded" | "Failed"))
    {
        return false;
    }
    let named = pod
        .spec
        .iter()
        .flat_map(|it| it.resource_claims.iter().flatten())
        .filter_map(|it| it.resource_claim_name.as_deref());
    let made = pod
        .status
        .iter()
        .flat_map(|it| it.resource_claim_statuses.iter().flatten())
        .filter_map(|it| it.resource_claim_name.as_deref());
    named.chain(made).any(|it| it == claim)
}

/// `namespace/name` of the pods that use a claim.
pub(super) fn consumers(claim: &ResourceClaim) -> Vec<String> {
    let namespace = claim.metadata.namespace.as_deref().unwrap_or("default");
    let reserved = claim.status.iter().flat_map(|it| it.reserved_for.iter().flatten());
    reserved.map(|it| format!("{namespace}/{}", it.name)).collect()
}

/// `a (device d), b (device e)` of allocated claims.
fn devices(claims: &[ResourceClaim]) -> String {
    let of = |claim: &ResourceClaim| {
        let results =
            claim.status.as_ref().and_then(|it| it.allocation.as_ref()?.devices.as_ref()?.results.clone());
        let names: Vec<String> = results
            .unwrap_or_default()
            .iter()
            .map(|it| format!("{} of pool {}", it.device, it.pool))
            .collect();
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        format!("claim {name} has {}", if names.is_empty() { count(0, "device") } else { some_of(&names, 4) })
    };
    claims.iter().map(of).collect::<Vec<_>>().join("; ")
}

/// What the scheduler last said about a pod.
pub(super) fn scheduler_message(pod: &Pod) -> Option<&str> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions.iter().find(|it| it.type_ == "PodScheduled" && it.status == "False")?;
    condition.message.as_deref()
}
