//! What is in the way of one request.

use dra_allocator::{Abort, Amount, EvaluationError, SelectorError, SelectorPlace};
use k8s_openapi::api::resource::v1::{DeviceClass, DeviceSelector, ResourceClaim};

use super::detail::Detail;
use super::fleet::{NodeAnswer, Tally};
use super::profile::{Published, Size, Wish, class_of, gibibytes, label};
use super::reason::{Holder, Reason, ReasonId, count, some_of};

/// Most names in a sentence.
const MOST: usize = 4;

/// What is known about all nodes when the reasons are put into words.
pub(super) struct Findings<'a> {
    pub(super) classes: &'a [DeviceClass],
    /// Nodes that the pod can use.
    pub(super) usable: &'a [NodeAnswer],
    /// The others.
    pub(super) hidden: &'a [NodeAnswer],
    /// Everything that any node publishes.
    pub(super) published: &'a Published,
    pub(super) details: &'a [Detail],
}

/// A request, with what the nodes answer to it.
pub(super) struct Asked<'a> {
    pub(super) claim: String,
    pub(super) request: String,
    /// Sums over the nodes that the pod can use.
    pub(super) tally: &'a Tally,
    pub(super) wish: Wish,
}

impl<'a> Asked<'a> {
    pub(super) fn new(
        key: &(String, String),
        tally: &'a Tally,
        classes: &[DeviceClass],
        claims: &[ResourceClaim],
    ) -> Self {
        let class = classes.iter().find(|it| it.metadata.name.as_deref() == Some(tally.class.as_str()));
        let of_class = class.into_iter().flat_map(|it| it.spec.selectors.iter().flatten());
        let own = selectors(claims, key);
        let wish = Wish::of(own.iter());
        // What the request names is narrower than what the class names.
        let mut wish_of_class = Wish::of(of_class);
        if !wish.profiles.is_empty() || wish.is_whole {
            wish_of_class = wish.clone();
        }
        let wish = Wish { memory: wish.memory.or(wish_of_class.memory), ..wish_of_class };
        Self { claim: key.0.clone(), request: key.1.clone(), tally, wish }
    }

    /// `1g.10gb`, or `device of class mig`.
    fn noun(&self) -> String {
        self.wish
            .noun()
            .unwrap_or_else(|| format!("device for request {} (class {})", self.request, self.tally.class))
    }

    /// The reasons why no node that the pod can use serves it alone, the most important first.
    pub(super) fn reasons(&self, findings: &Findings<'_>) -> Vec<Reason> {
        let tally = self.tally;
        if let Some(abort) = &tally.abort {
            return vec![abort_reason(abort, findings)];
        }
        if tally.fits_alone {
            return Vec::new();
        }
        let mut reasons = Vec::new();
        if tally.counts.selected == 0 {
            if let Some(error) = &tally.error {
                return vec![selector_error(error)];
            }
            reasons.extend(self.nothing_selected(findings));
            return reasons;
        }
        if tally.overdrawn == 0 {
            reasons.extend(self.taken(findings));
        }
        reasons.extend(self.unavailable());
        reasons.extend(self.layout(findings));
        reasons
    }

    /// No device of the nodes is of the kind.
    fn nothing_selected(&self, findings: &Findings<'_>) -> Vec<Reason> {
        let mut reasons = self.layout(findings);
        let elsewhere: Vec<String> = findings
            .hidden
            .iter()
            .filter(|it| {
                it.tallies
                    .get(&(self.claim.clone(), self.request.clone()))
                    .is_some_and(|it| it.counts.selected > 0)
            })
            .map(|it| format!("node {}", it.name))
            .collect();
        if !elsewhere.is_empty() {
            let names = some_of(&elsewhere, MOST);
            let sentence = format!("only nodes that the pod cannot use have a {}: {names}", self.noun());
            reasons.push(Reason::new(ReasonId::NodeRules, sentence));
            return reasons;
        }
        if reasons.is_empty() {
            reasons.push(match self.wish.profiles.as_slice() {
                [profile] if findings.published.get(profile).is_none() => self.no_profile(profile, findings),
                _ => self.no_device(findings),
            });
        }
        reasons
    }

    fn no_profile(&self, profile: &str, findings: &Findings<'_>) -> Reason {
        let published = findings.published;
        let sentence = format!("no GPU of the cluster offers the MIG profile {profile}");
        let mut reason = Reason::new(ReasonId::NoSuchProfile, sentence);
        let Some((by_memory, by_compute)) = published.nearest(profile) else {
            return match published.largest() {
                Some(_) => reason.advise("ask for a whole GPU, or add a node with a GPU that has this profile: no node offers MIG devices"),
                None => reason.advise("install the driver on a node with such a GPU: docs/install.md"),
            };
        };
        let describe = |name: &str| {
            let Some(kind) = published.get(name) else { return name.to_owned() };
            format!("{name} ({}, on {})", gibibytes(kind.memory), some_of(&kind.products, 2))
        };
        reason.details.push(format!("nearest by memory: {}", describe(by_memory)));
        reason.details.push(format!("nearest by compute: {}", describe(by_compute)));
        for near in if by_memory == by_compute { vec![by_memory] } else { vec![by_memory, by_compute] } {
            reason = match class_of(findings.classes, near) {
                Some(class) => reason
                    .advise(format!("ask for {near}: deviceClassName: {class} in the claim or its template")),
                None => reason.advise(format!(
                    "ask for {near}, with a selector for this profile in the claim or its template"
                )),
            };
        }
        reason
    }

    fn no_device(&self, findings: &Findings<'_>) -> Reason {
        let tally = self.tally;
        let nodes = count(findings.usable.len(), "node");
        let class = &tally.class;
        if tally.counts.total == 0 && tally.of_class == 0 {
            return Reason::new(
                ReasonId::NoSlices,
                format!("none of the {nodes} that the pod can use publishes devices"),
            )
            .advise("see which nodes publish devices: kubectl get resourceslices")
            .advise("see why a node does not: docs/troubleshooting.md, step 3");
        }
        if tally.of_class == 0 {
            let sentence = format!(
                "class {class} selects none of the {} of the {nodes}",
                count(tally.counts.total, "device")
            );
            let mut reason = Reason::new(ReasonId::NoDeviceOfClass, sentence);
            if self.wish.is_whole {
                reason = reason.advise(
                    "ask for a MIG device, or see which nodes offer whole GPUs: kubectl get resourceslices",
                );
            }
            return reason.advise(format!("compare its selectors with the devices: kubectl get deviceclass {class} -o yaml; kubectl get resourceslices -o yaml"));
        }
        let sentence = format!(
            "the selectors of request {} choose none of the {} of class {class}",
            self.request,
            count(tally.of_class, "device")
        );
        let mut reason = Reason::new(ReasonId::NoDeviceOfRequest, sentence);
        if let (Some(wanted), Some((name, largest))) = (self.wish.memory, findings.published.largest()) {
            let has = gibibytes(largest);
            reason
                .details
                .push(format!("it names {wanted} of memory; the largest device is {name} with {has}"));
        }
        reason.advise("compare the selectors with attributes and capacities of the devices: kubectl get resourceslices -o yaml; docs/selectors.md")
    }

    /// Devices of the kind exist, and none is free.
    fn taken(&self, findings: &Findings<'_>) -> Option<Reason> {
        let counts = self.tally.counts;
        let with: Vec<(&Detail, usize)> =
            findings.details.iter().filter_map(|it| Some((it, self.position(it)?))).collect();
        if let Some(reason) = self.too_few(&with) {
            return Some(reason);
        }
        if counts.taken + counts.blocked == 0 {
            return None;
        }
        let mut holders: Vec<Holder> = Vec::new();
        for (detail, position) in &with {
            holders.extend(detail.in_the_way(*position));
        }
        if self.tally.amount == Some(Amount::All) {
            let sentence = format!(
                "request {} wants all devices of a node that it selects, and on every node some are taken",
                self.request
            );
            let reason = Reason::new(ReasonId::NotAllFree, sentence).held_by(holders);
            return Some(reason.advise("ask for a number of devices: allocationMode: ExactCount, and count"));
        }
        let rooms: Vec<_> = with
            .iter()
            .flat_map(|(it, position)| it.rooms(*position).into_iter().map(move |r| (it, r)))
            .collect();
        let noun = self.noun();
        if let Some((detail, room)) = rooms.iter().find(|(_, it)| {
            it.gpu.is_counted && it.needs > 0 && it.room >= it.needs && !it.free && it.engines.is_empty()
        }) {
            let sentence = format!(
                "the free parts do not fit together: GPU {} of node {} has {} free, a {noun} needs {}, and each of its places has a part in use",
                room.gpu.name(),
                detail.node,
                count(room.room, "memory slice"),
                room.needs
            );
            return Some(Reason::new(ReasonId::Fragmented, sentence).held_by(holders));
        }
        if let Some((detail, room)) = rooms.iter().find(|(_, it)| !it.engines.is_empty() && !it.free) {
            let sentence = format!(
                "GPU {} of node {} has memory for a {noun}, but not what else it needs: {} is taken",
                room.gpu.name(),
                detail.node,
                some_of(&room.engines, MOST)
            );
            let reason = Reason::new(ReasonId::EngineTaken, sentence).held_by(holders);
            return Some(match self.wish.profiles.first().and_then(|it| it.split_once('+')) {
                Some((plain, _)) => {
                    reason.advise(format!("ask for {plain}, if the pod needs no media engines of its own"))
                }
                None => reason,
            });
        }
        let nodes = count(findings.usable.iter().filter(|it| it.offer.devices > 0).count(), "node");
        let sentence =
            format!("every {noun} on the {nodes} that the pod can use is taken, or overlaps what is taken");
        Some(Reason::new(ReasonId::AllTaken, sentence).held_by(holders))
    }

    /// Several devices are wanted, and fewer fit on one node.
    fn too_few(&self, details: &[(&Detail, usize)]) -> Option<Reason> {
        let Some(Amount::Exactly(wanted)) = self.tally.amount.filter(|it| *it != Amount::Exactly(1)) else {
            return None;
        };
        let most =
            |(detail, position): &(&Detail, usize)| Some((*detail.most.get(position)?, detail.node.clone()));
        let (most, node) =
            details.iter().filter_map(most).max_by(|a, b| a.0.cmp(&b.0).then_with(|| b.1.cmp(&a.1)))?;
        if most == 0 {
            return None;
        }
        let holders = details.iter().flat_map(|(it, position)| it.in_the_way(*position)).collect();
        let sentence = format!(
            "request {} wants {wanted} devices on one node, and no node has more than {most} free that fit together (node {node})",
            self.request
        );
        let reason = Reason::new(ReasonId::TooFewOnOneNode, sentence).held_by(holders);
        Some(reason.advise(format!(
            "ask for {most}: count: {most} in request {}; or spread the devices over several pods",
            self.request
        )))
    }

    /// Devices that something else than a claim keeps from the request.
    fn unavailable(&self) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let tally = self.tally;
        if !tally.taints.is_empty() {
            let taints: Vec<String> = tally.taints.keys().cloned().collect();
            let devices = count(tally.taints.values().sum(), "device");
            let sentence = format!(
                "{devices} have a taint that request {} does not tolerate: {}",
                self.request,
                some_of(&taints, MOST)
            );
            reasons.push(
                Reason::new(ReasonId::DeviceTaint, sentence)
                    .advise("wait until the driver or the administrator who set the taint removes it: kubectl get resourceslices -o yaml, kubectl get devicetaintrules")
                    .advise("or tolerate it: tolerations in the request of the claim or its template"),
            );
        }
        if tally.counters_disabled > 0 {
            reasons.push(scheduler_gate(&self.noun()));
        }
        if tally.binding > 0 {
            let sentence = format!("{} have binding conditions", count(tally.binding, "device"));
            reasons.push(Reason::new(ReasonId::BindingConditions, sentence).advise(
                "turn the feature gate DRADeviceBindingConditions on in kube-apiserver and kube-scheduler",
            ));
        }
        reasons
    }

    /// Nodes that publish by layout, and leave out what is asked for.
    fn layout(&self, findings: &Findings<'_>) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let profile = match self.wish.profiles.as_slice() {
            [profile] => profile.as_str(),
            [] if self.wish.is_whole => "full",
            _ => return reasons,
        };
        let lacks = |it: &&NodeAnswer| it.offer.devices > 0 && it.offer.published.get(profile).is_none();
        let mut without: Vec<&NodeAnswer> = findings.usable.iter().filter(lacks).collect();
        without.retain(|it| !it.offer.is_counted && self.is_plausible(profile, it, findings.published));
        let (mig, whole): (Vec<&NodeAnswer>, Vec<&NodeAnswer>) =
            without.iter().partition(|it| it.offer.has_mig);
        if let Some(first) = whole.first()
            && profile != "full"
        {
            let names: Vec<String> = whole.iter().map(|it| format!("node {}", it.name)).collect();
            let gpu = first.offer.whole_only.first().map_or("", |(_, product)| product.as_str());
            let sentence = format!(
                "the GPUs of {} ({gpu}) are offered whole, not as MIG devices",
                some_of(&names, MOST)
            );
            reasons.push(
                Reason::new(ReasonId::WholeGpuOnly, sentence)
                    .advise(format!("choose a layout: kubectl label node {} nvidia.com/mig.config=all-{} --overwrite", first.name, label(profile)))
                    .advise("an A100 or A30 also needs MIG mode turned on: docs/layouts.md, \"Before you rely on it\""),
            );
        }
        if let Some(first) = mig.first() {
            let names: Vec<String> = mig.iter().map(|it| format!("node {}", it.name)).collect();
            let noun = self.noun();
            let sentence =
                format!("{} publish by layout, and their layouts have no {noun}", some_of(&names, MOST));
            let layout =
                if profile == "full" { "all-disabled".to_owned() } else { format!("all-{}", label(profile)) };
            let free: Vec<String> =
                first.offer.free.iter().map(|(it, number)| format!("{number} of {it}")).collect();
            let mut reason = Reason::new(ReasonId::NotInLayout, sentence);
            if !free.is_empty() {
                reason.details.push(format!("free on node {}: {}", first.name, some_of(&free, 8)));
            }
            reasons.push(
                reason
                    .advise(format!("choose a layout with it: kubectl label node {} nvidia.com/mig.config={layout} --overwrite", first.name))
                    .advise("or turn the feature gate DRAPartitionableDevices on in kube-apiserver and kube-scheduler, so that no layout is needed"),
            );
        }
        reasons
    }

    /// Whether a node's GPUs can have the profile, as far as what is published says: another node with the same product has it, or
    /// its memory is that of 1, 2, 4 or 8 memory slices.
    fn is_plausible(&self, profile: &str, node: &NodeAnswer, published: &Published) -> bool {
        if profile == "full" {
            return true;
        }
        let own = node.offer.published.products();
        if published.get(profile).is_some_and(|it| it.products.iter().any(|it| own.contains(it))) {
            return true;
        }
        let Some(wanted) = Size::of(profile) else { return false };
        let slice = node.offer.published.slice_gigabytes();
        slice.is_some_and(|slice| {
            [1, 2, 4, 8].iter().any(|it| (slice * it).abs_diff(wanted.memory) <= *it / 2)
        })
    }

    /// Where a detail has this request.
    pub(super) fn position(&self, detail: &Detail) -> Option<usize> {
        detail.requests.iter().position(|it| it.request == self.request && it.claim.to_string() == self.claim)
    }
}

/// Why a pod is refused on all nodes.
pub(super) fn abort_reason(abort: &Abort, findings: &Findings<'_>) -> Reason {
    let unsupported = |sentence: String| Reason::new(ReasonId::UnsupportedRequest, sentence);
    match abort {
        Abort::ClassMissing { class, .. } => class_missing(class, findings),
        Abort::Selector(error) => selector_error(error),
        Abort::TooManyDevices { claim, requested, limit } => {
            let sentence = format!("claim {claim} asks for {requested} devices, and a claim can have {limit}");
            Reason::new(ReasonId::TooManyDevices, sentence)
                .advise("ask for fewer devices, or spread them over several claims")
        }
        Abort::AllFromBrokenPool { request, driver, pool, state, .. } => {
            let sentence = format!("request {request} wants all devices, and pool {pool} of driver {driver} is {state}");
            Reason::new(ReasonId::AllFromBrokenPool, sentence)
                .advise("wait until the driver has published the pool; if it stays so, look at the driver's pod on that node")
                .advise("or ask for a number of devices: allocationMode: ExactCount")
        }
        Abort::AllAgainstConstraint { request, device, .. } => {
            let device = &device.device;
            let sentence = format!(
                "request {request} wants all devices, and {device} does not share the attribute of the claim's constraint with the others"
            );
            Reason::new(ReasonId::MatchAttribute, sentence)
                .advise("remove the constraint, or ask for a number of devices: allocationMode: ExactCount")
        }
        Abort::Unsupported { request, why, .. } => {
            unsupported(format!("the scheduler does not know request {request}: {why}"))
                .advise("correct the request in the claim or its template: kubectl explain resourceclaim.spec.devices.requests")
        }
        Abort::ConstraintUnsupported { claim, constraint } => {
            unsupported(format!("constraint {constraint} of claim {claim} is not a matchAttribute"))
                .advise("write it as matchAttribute, or turn on the feature gate that it needs (distinctAttribute: DRAConsumableCapacity)")
        }
        Abort::NodeSelector { terms, .. } => {
            unsupported(format!("a ResourceSlice has a nodeSelector with {terms} terms, and the scheduler takes one"))
                .advise("report it to the maintainers of the driver that publishes the slice")
        }
    }
}

fn class_missing(class: &str, findings: &Findings<'_>) -> Reason {
    let reason = Reason::new(ReasonId::ClassMissing, format!("device class {class} does not exist"));
    let wanted = class.strip_prefix("mig-").unwrap_or(class);
    let near = class_of(findings.classes, wanted).or_else(|| {
        let (by_memory, _) = findings.published.nearest(wanted)?;
        class_of(findings.classes, by_memory)
    });
    let names: Vec<String> = findings.classes.iter().filter_map(|it| it.metadata.name.clone()).collect();
    let reason = match near {
        Some(near) => reason.advise(format!("use class {near} in the claim or its template")),
        None if names.is_empty() => reason,
        None => reason.advise(format!("use one of these classes: {}", some_of(&names, 6))),
    };
    reason.advise(format!(
        "or create DeviceClass {class}; this driver's classes: kubectl apply -f deploy/manifests/deviceclasses.yaml"
    ))
}

/// kube-scheduler does not take devices with counters.
pub(super) fn scheduler_gate(noun: &str) -> Reason {
    let sentence = format!(
        "every {noun} consumes counters, and kube-scheduler does not look at such devices: DRAPartitionableDevices is off in it"
    );
    Reason::new(ReasonId::SchedulerGateOff, sentence)
        .advise("turn the feature gate DRAPartitionableDevices on in kube-scheduler: --feature-gates=DRAPartitionableDevices=true")
        .advise("or let the driver publish by layout: the chart value mode=layout (--mode layout)")
}

fn selector_error(error: &SelectorError) -> Reason {
    let device = format!("device {} of pool {}", error.device.device, error.device.pool);
    let number = error.selector;
    let place = match &error.place {
        SelectorPlace::Class { class } => format!("selector {number} of class {class}"),
        SelectorPlace::Request { request, .. } => format!("selector {number} of request {request}"),
    };
    let id = match &error.place {
        SelectorPlace::Class { .. } => ReasonId::ClassSelectorError,
        SelectorPlace::Request { .. } => ReasonId::RequestSelectorError,
    };
    let reason = match &error.error {
        EvaluationError::NoSuchKey(key) => {
            Reason::new(id, format!("{place} fails at {device}, which has no {key}"))
                .advise(format!("guard it: has(...), or .?{key}.orValue(...); docs/selectors.md"))
        }
        other => Reason::new(id, format!("{place} fails at {device}: {other}")),
    };
    let reason = reason.detail(["a selector that fails on one device stops the pod on all nodes".to_owned()]);
    match &error.place {
        SelectorPlace::Class { class } => reason.advise(format!("correct the class: kubectl edit deviceclass {class}")),
        SelectorPlace::Request { .. } => reason
            .advise("correct the selector in the template, and delete the pod so that it gets a new claim; a claim itself cannot be changed"),
    }
    .advise(format!("where devices of other drivers are in the way, begin it with device.driver == \"{}\" &&", error.device.driver))
}

/// The selectors of a request or alternative.
fn selectors(claims: &[ResourceClaim], key: &(String, String)) -> Vec<DeviceSelector> {
    let (claim, request) = key;
    let of = |it: &&ResourceClaim| dra_allocator::ClaimRef::of(it).to_string() == *claim;
    let Some(claim) = claims.iter().find(of) else { return Vec::new() };
    let (name, alternative) = request.split_once('/').map_or((request.as_str(), None), |(a, b)| (a, Some(b)));
    let requests = claim.spec.devices.iter().flat_map(|it| it.requests.iter().flatten());
    let Some(request) = requests.into_iter().find(|it| it.name == name) else { return Vec::new() };
    match alternative {
        Some(alternative) => {
            let found = request.first_available.iter().flatten().find(|it| it.name == alternative);
            found.and_then(|it| it.selectors.clone()).unwrap_or_default()
        }
        None => request.exactly.as_ref().and_then(|it| it.selectors.clone()).unwrap_or_default(),
    }
}
