//! Whether a device is one that a request asks for: selectors, binding conditions, node and taints.

use k8s_openapi::api::resource::v1::{DeviceTaint, DeviceToleration, ResourceClaim};

use crate::allocated::ClaimRef;
use crate::cel_env::Evaluator;
use crate::cluster::Cluster;
use crate::node::device_targets;
use crate::pool::{Candidate, View};
use crate::refusal::{SelectorError, SelectorPlace};
use crate::request::Wanted;

/// What the selectors of class and request say of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Selected {
    Yes,
    /// It has binding conditions, which need a feature gate.
    BindingConditions,
    /// The class's selector of this index is false.
    NotByClass(usize),
    /// The request's selector of this index is false.
    NotByRequest(usize),
    /// It is for other nodes.
    OtherNode,
}

/// What class and request say of a candidate.
pub(crate) fn selected(
    cluster: &Cluster<'_>,
    evaluator: &Evaluator,
    view: &View<'_>,
    claim: &ResourceClaim,
    wanted: &Wanted<'_>,
    candidate: &Candidate<'_>,
) -> Result<Selected, SelectorError> {
    let Candidate { id, device, spec, .. } = candidate;
    if device.binding_conditions.as_ref().is_some_and(|conditions| !conditions.is_empty()) {
        return Ok(Selected::BindingConditions);
    }
    let of_class = wanted.class.spec.selectors.as_deref().unwrap_or_default();
    for (by_class, selectors) in [(true, of_class), (false, wanted.selectors)] {
        for (index, selector) in selectors.iter().enumerate() {
            let Some(cel) = &selector.cel else { continue };
            let answer = cluster.selectors.evaluate(&cel.expression, evaluator, &id.driver, device);
            match answer {
                Ok(true) => {}
                Ok(false) if by_class => return Ok(Selected::NotByClass(index)),
                Ok(false) => return Ok(Selected::NotByRequest(index)),
                Err(error) => {
                    let class = wanted.class.metadata.name.clone().unwrap_or_default();
                    let (claim, request) = (ClaimRef::of(claim), wanted.name.clone());
                    let place = if by_class {
                        SelectorPlace::Class { class }
                    } else {
                        SelectorPlace::Request { claim, request }
                    };
                    return Err(SelectorError { place, selector: index, device: id.clone(), error });
                }
            }
        }
    }
    let elsewhere = spec.per_device_node_selection == Some(true) && !device_targets(device, view.node);
    Ok(if elsewhere { Selected::OtherNode } else { Selected::Yes })
}

/// The first taint that keeps a request away from a device.
pub(crate) fn intolerable<'t>(
    taints: Option<&'t [DeviceTaint]>,
    tolerations: &[DeviceToleration],
) -> Option<&'t DeviceTaint> {
    let keeps_out = |taint: &&DeviceTaint| taint.effect == "NoSchedule" || taint.effect == "NoExecute";
    let tolerated = |taint: &DeviceTaint| {
        tolerations.iter().any(|toleration| {
            let effect = toleration.effect.as_deref().is_none_or(|e| e.is_empty() || e == taint.effect);
            let key = toleration.key.as_deref().is_none_or(|k| k.is_empty() || k == taint.key);
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            let value = match toleration.operator.as_deref() {
                Some("Exists") => true,
                None | Some("" | "Equal") => text(&toleration.value) == text(&taint.value),
                Some(_) => false,
            };
            effect && key && value
        })
    };
    taints.unwrap_or_default().iter().filter(keeps_out).find(|taint| !tolerated(taint))
}
