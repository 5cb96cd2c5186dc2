//! The solution in the form of `status.allocation`.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceAllocationConfiguration, DeviceAllocationResult, DeviceRequestAllocationResult,
    ResourceClaim,
};

use crate::allocated::ClaimRef;
use crate::choice::{Choice, Request};
use crate::pool::View;
use crate::refusal::Abort;
use crate::request::{self, Wanted};

/// One allocation per claim, in their order.
pub(crate) fn allocations(
    view: &View<'_>,
    claims: &[ResourceClaim],
    requests: &[Vec<Request<'_>>],
    chosen: &[Vec<Choice>],
) -> Result<Vec<AllocationResult>, Abort> {
    let claims = claims.iter().zip(requests).zip(chosen);
    let one = |((claim, requests), chosen): ((&ResourceClaim, &Vec<Request<'_>>), &Vec<Choice>)| {
        let results = chosen.iter().map(|choice| result(view, requests, choice)).collect();
        let config = config(claim, requests);
        Ok(AllocationResult {
            devices: Some(DeviceAllocationResult {
                results: Some(results),
                config: if config.is_empty() { None } else { Some(config) },
            }),
            node_selector: node_selector(view, claim, chosen)?,
            allocation_timestamp: None,
        })
    };
    claims.map(one).collect()
}

fn result(view: &View<'_>, requests: &[Request<'_>], choice: &Choice) -> DeviceRequestAllocationResult {
    let id = &view.candidates[choice.candidate].id;
    let wanted = &requests[choice.request].alternatives[choice.alternative];
    let tolerations = wanted.tolerations;
    DeviceRequestAllocationResult {
        request: wanted.name.clone(),
        driver: id.driver.clone(),
        pool: id.pool.clone(),
        device: id.device.clone(),
        admin_access: wanted.admin.then_some(true),
        tolerations: if tolerations.is_empty() { None } else { Some(tolerations.to_vec()) },
        ..DeviceRequestAllocationResult::default()
    }
}

/// Configuration of the classes in the order of the requests, each class once; then of the claim. An entry of the claim that
/// names several requests appears once for each of them, as upstream has it.
fn config(claim: &ResourceClaim, requests: &[Request<'_>]) -> Vec<DeviceAllocationConfiguration> {
    let mut config: Vec<DeviceAllocationConfiguration> = Vec::new();
    let mut seen: Vec<(&str, std::ops::Range<usize>)> = Vec::new();
    let selected: Vec<&Wanted<'_>> = requests.iter().map(|r| &r.alternatives[r.selected]).collect();
    for wanted in &selected {
        let class = wanted.class.metadata.name.as_deref().unwrap_or_default();
        if let Some((_, range)) = seen.iter().find(|(name, _)| *name == class) {
            for entry in &mut config[range.clone()] {
                entry.requests.get_or_insert_default().push(wanted.name.clone());
            }
            continue;
        }
        let start = config.len();
        for entry in wanted.class.spec.config.as_deref().unwrap_or_default() {
            config.push(DeviceAllocationConfiguration {
                source: "FromClass".into(),
                requests: Some(vec![wanted.name.clone()]),
                opaque: entry.opaque.clone(),
            });
        }
        seen.push((class, start..config.len()));
    }
    let devices = claim.spec.devices.as_ref();
    for entry in devices.and_then(|d| d.config.as_deref()).unwrap_or_default() {
        let named = entry.requests.as_deref().unwrap_or_default();
        let concerns = |(asked, wanted): (&str, &&Wanted<'_>)| {
            named.iter().any(|name| name == asked || *name == wanted.name)
        };
        let names = request::requests(claim).iter().map(|r| r.name.as_str());
        let times =
            if named.is_empty() { 1 } else { names.zip(&selected).filter(|it| concerns(*it)).count() };
        config.extend((0..times).map(|_| DeviceAllocationConfiguration {
            source: "FromClaim".into(),
            requests: entry.requests.clone(),
            opaque: entry.opaque.clone(),
        }));
    }
    config
}

/// Where the claim can be used: the devices' own node, or what their selectors say together; anywhere without either.
fn node_selector(
    view: &View<'_>,
    claim: &ResourceClaim,
    chosen: &[Choice],
) -> Result<Option<NodeSelector>, Abort> {
    let mut merged = NodeSelectorTerm::default();
    for choice in chosen {
        let candidate = &view.candidates[choice.candidate];
        let (spec, device) = (candidate.spec, candidate.device);
        let (name, selector) = if spec.per_device_node_selection == Some(true) {
            (&device.node_name, &device.node_selector)
        } else {
            (&spec.node_name, &spec.node_selector)
        };
        if let Some(node) = name {
            let name = NodeSelectorRequirement {
                key: "metadata.name".into(),
                operator: "In".into(),
                values: Some(vec![node.clone()]),
            };
            let term = NodeSelectorTerm { match_fields: Some(vec![name]), match_expressions: None };
            return Ok(Some(NodeSelector { node_selector_terms: vec![term] }));
        }
        let terms = selector.as_ref().map(|s| s.node_selector_terms.as_slice()).unwrap_or_default();
        match terms {
            [] => {}
            [term] => {
                merge(&mut merged.match_fields, term.match_fields.as_deref());
                merge(&mut merged.match_expressions, term.match_expressions.as_deref());
            }
            _ => return Err(Abort::NodeSelector { claim: ClaimRef::of(claim), terms: terms.len() }),
        }
    }
    let empty = merged.match_expressions.is_none() && merged.match_fields.is_none();
    Ok(if empty { None } else { Some(NodeSelector { node_selector_terms: vec![merged] }) })
}

fn merge(into: &mut Option<Vec<NodeSelectorRequirement>>, from: Option<&[NodeSelectorRequirement]>) {
    for requirement in from.unwrap_or_default() {
        let list = into.get_or_insert_default();
        if !list.iter().any(|known| same(known, requirement)) {
            list.push(requirement.clone());
        }
    }
}

fn same(a: &NodeSelectorRequirement, b: &NodeSelectorRequirement) -> bool {
    let values =
        |r: &NodeSelectorRequirement| -> BTreeSet<String> { r.values.iter().flatten().cloned().collect() };
    a.key == b.key && a.operator == b.operator && values(a) == values(b)
}
