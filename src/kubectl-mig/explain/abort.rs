//! What makes the scheduler give up a pod on all nodes.

use dra_allocator::{Abort, EvaluationError, SelectorError, SelectorPlace};

use super::findings::Findings;
use super::profile::class_of;
use super::reason::{Reason, ReasonId, some_of};
use crate::shell::word;

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
        "create DeviceClass {class}; this driver's classes: kubectl apply -f deploy/manifests/deviceclasses.yaml"
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

pub(super) fn selector_error(error: &SelectorError) -> Reason {
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
        SelectorPlace::Class { class } => reason.advise(format!("correct the class: kubectl edit deviceclass {}", word(class))),
        SelectorPlace::Request { .. } => reason
            .advise("correct the selector in the template, and delete the pod so that it gets a new claim; a claim itself cannot be changed"),
    }
    .advise(format!("where devices of other drivers are in the way, begin it with device.driver == \"{}\" &&", error.device.driver))
}
