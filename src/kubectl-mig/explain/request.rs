//! What is in the way of one request.

use dra_allocator::Amount;
use k8s_openapi::api::resource::v1::{DeviceClass, DeviceSelector, ResourceClaim};

use super::abort::{abort_reason, scheduler_gate, selector_error};
use super::detail::Detail;
use super::findings::Findings;
use super::fleet::Outcome;
use super::profile::{Wish, class_of, gibibytes};
use super::reason::{Holder, Reason, ReasonId, some_of};
use super::tally::Tally;
use crate::text::count;

/// Most names in a sentence.
pub(super) const MOST: usize = 4;

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
    pub(super) fn noun(&self) -> String {
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
            reasons.extend(self.allocated(findings));
        }
        reasons.extend(self.unavailable());
        reasons.extend(self.layout(findings));
        reasons
    }

    /// No device of the nodes is of the kind.
    fn nothing_selected(&self, findings: &Findings<'_>) -> Vec<Reason> {
        let mut reasons = self.layout(findings);
        let is_incomplete = findings.usable.iter().any(|it| !it.pools.is_empty());
        if self.tally.counts.total == 0 && self.tally.of_class == 0 {
            // What is wrong with a pool is said of the pool.
            if !is_incomplete {
                reasons.push(no_slices(findings));
            }
            return reasons;
        }
        let elsewhere: Vec<String> = findings
            .hidden
            .iter()
            .filter(|it| {
                let tally = it.tallies.get(&(self.claim.clone(), self.request.clone()));
                matches!(it.outcome, Outcome::Fits(_)) || tally.is_some_and(|it| it.counts.selected > 0)
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
    fn allocated(&self, findings: &Findings<'_>) -> Option<Reason> {
        let counts = self.tally.counts;
        let with: Vec<(&Detail, usize)> =
            findings.details.iter().filter_map(|it| Some((it, self.position(it)?))).collect();
        if let Some(reason) = self.too_few(&with) {
            return Some(reason);
        }
        if counts.allocated + counts.blocked == 0 {
            return None;
        }
        let mut holders: Vec<Holder> = Vec::new();
        for (detail, position) in &with {
            holders.extend(detail.in_the_way(*position));
        }
        if self.tally.amount == Some(Amount::All) {
            let sentence = format!(
                "request {} wants all devices of a node that it selects, and on every node some are allocated",
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
                "GPU {} of node {} has memory for a {noun}, but not what else it needs: {} is allocated",
                room.gpu.name(),
                detail.node,
                some_of(&room.engines, MOST)
            );
            let reason = Reason::new(ReasonId::EngineAllocated, sentence).held_by(holders);
            return Some(match self.wish.profiles.first().and_then(|it| it.split_once('+')) {
                Some((plain, _)) => {
                    reason.advise(format!("ask for {plain}, if the pod needs no media engines of its own"))
                }
                None => reason,
            });
        }
        let nodes = count(findings.usable.iter().filter(|it| it.offer.devices > 0).count(), "node");
        let sentence = format!(
            "every {noun} on the {nodes} that the pod can use is allocated, or overlaps what is allocated"
        );
        Some(Reason::new(ReasonId::AllAllocated, sentence).held_by(holders))
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

    /// Where a detail has this request.
    pub(super) fn position(&self, detail: &Detail) -> Option<usize> {
        detail.requests.iter().position(|it| it.request == self.request && it.claim.to_string() == self.claim)
    }
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

/// No node that the pod can use publishes anything.
fn no_slices(findings: &Findings<'_>) -> Reason {
    let sentence = match findings.usable {
        [one] => format!("node {}, the only one that the pod can use, publishes no devices", one.name),
        all => format!("none of the {} that the pod can use publishes devices", count(all.len(), "node")),
    };
    Reason::new(ReasonId::NoSlices, sentence)
        .advise("see which nodes publish devices: kubectl get resourceslices")
        .advise("see why a node does not: docs/troubleshooting.md, step 3")
}
