//! The solution in the form of `status.allocation`.

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceAllocationConfiguration, DeviceAllocationResult, DeviceRequestAllocationResult,
    ResourceClaim,
};

use crate::Cluster;
use crate::request::{Request, Wanted};
use crate::search::Choice;

/// One allocation per claim, in their order.
pub(super) fn allocations(
    cluster: &Cluster<'_>,
    claims: &[ResourceClaim],
    requests: &[Vec<Request>],
    chosen: &[Choice<'_, '_>],
) -> Vec<AllocationResult> {
    let one = |(index, claim): (usize, &ResourceClaim)| {
        let mine: Vec<&Choice<'_, '_>> = chosen.iter().filter(|c| c.claim == index).collect();
        let wanted = |c: &Choice<'_, '_>| &requests[c.claim][c.request].alternatives[c.alternative];
        let results = mine.iter().map(|choice| result(choice, wanted(choice))).collect();
        let config = config(cluster, claim, &mine.iter().map(|c| wanted(c)).collect::<Vec<_>>());
        AllocationResult {
            devices: Some(DeviceAllocationResult {
                results: Some(results),
                config: if config.is_empty() { None } else { Some(config) },
            }),
            node_selector: node_selector(&mine),
            allocation_timestamp: None,
        }
    };
    claims.iter().enumerate().map(one).collect()
}

fn result(choice: &Choice<'_, '_>, wanted: &Wanted) -> DeviceRequestAllocationResult {
    let id = &choice.candidate.id;
    DeviceRequestAllocationResult {
        request: wanted.name.clone(),
        driver: id.driver.clone(),
        pool: id.pool.clone(),
        device: id.device.clone(),
        admin_access: wanted.admin.then_some(true),
        tolerations: if wanted.tolerations.is_empty() { None } else { Some(wanted.tolerations.clone()) },
        ..DeviceRequestAllocationResult::default()
    }
}

/// Configuration of the classes used, then of the claim.
fn config(
    cluster: &Cluster<'_>,
    claim: &ResourceClaim,
    used: &[&Wanted],
) -> Vec<DeviceAllocationConfiguration> {
    let mut config = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for wanted in used {
        if seen.contains(&wanted.name.as_str()) {
            continue;
        }
        seen.push(&wanted.name);
        let class = cluster.classes.get(&wanted.class);
        for entry in class.and_then(|c| c.spec.config.as_deref()).unwrap_or_default() {
            config.push(DeviceAllocationConfiguration {
                source: "FromClass".into(),
                requests: Some(vec![wanted.name.clone()]),
                opaque: entry.opaque.clone(),
            });
        }
    }
    let devices = claim.spec.devices.as_ref();
    for entry in devices.and_then(|d| d.config.as_deref()).unwrap_or_default() {
        config.push(DeviceAllocationConfiguration {
            source: "FromClaim".into(),
            requests: entry.requests.clone(),
            opaque: entry.opaque.clone(),
        });
    }
    config
}

/// Where the claim can be used: the devices' own node, or what their selectors say together; anywhere without either.
fn node_selector(chosen: &[&Choice<'_, '_>]) -> Option<NodeSelector> {
    let mut merged = NodeSelectorTerm::default();
    for choice in chosen {
        let (spec, device) = (choice.candidate.spec, choice.candidate.device);
        if let Some(node) = spec.node_name.as_ref().or(device.node_name.as_ref()) {
            let name = NodeSelectorRequirement {
                key: "metadata.name".into(),
                operator: "In".into(),
                values: Some(vec![node.clone()]),
            };
            let term = NodeSelectorTerm { match_fields: Some(vec![name]), match_expressions: None };
            return Some(NodeSelector { node_selector_terms: vec![term] });
        }
        let selector = spec.node_selector.as_ref().or(device.node_selector.as_ref());
        if let Some(term) = selector.and_then(|s| s.node_selector_terms.first()) {
            merge(&mut merged.match_expressions, term.match_expressions.as_deref());
            merge(&mut merged.match_fields, term.match_fields.as_deref());
        }
    }
    let empty = merged.match_expressions.is_none() && merged.match_fields.is_none();
    if empty { None } else { Some(NodeSelector { node_selector_terms: vec![merged] }) }
}

fn merge(into: &mut Option<Vec<NodeSelectorRequirement>>, from: Option<&[NodeSelectorRequirement]>) {
    for requirement in from.unwrap_or_default() {
        let list = into.get_or_insert_default();
        if !list.contains(requirement) {
            list.push(requirement.clone());
        }
    }
}
