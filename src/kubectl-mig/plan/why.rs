//! Why a pod has no place, in one sentence: what stands against it on each node, equal reasons together.

use std::collections::{BTreeMap, BTreeSet};

use dra_allocator::{
    Allocated, Amount, Explanation, Finding, PoolProblem, PoolReport, Refusal, RequestReport, is_allocated,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;

use super::engine::{Engine, Outcome, lacking, usable_on};
use super::stock::{Kind, Site};
use super::workload::Workload;
use crate::cluster::rules;
use crate::explain::pool_sentence;

/// Profiles of a node that are named: more than any GPU model has.
const MAX_PROFILES: usize = 16;

/// Nodes that are asked. More say the same.
const MAX_NODES: usize = 64;

/// Why the pod has no place on any node, or on the one that it must have.
pub(super) fn reason(
    engine: &Engine<'_>,
    outcome: &Outcome,
    workload: &Workload,
    pod: &Pod,
    claims: &[ResourceClaim],
    only: Option<usize>,
) -> String {
    let sites: Vec<&Site> = match only {
        Some(site) => outcome.sites.get(site).into_iter().collect(),
        None => outcome.sites.iter().collect(),
    };
    if sites.is_empty() {
        return "there is no node that publishes devices".to_owned();
    }
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for site in sites.iter().take(MAX_NODES) {
        match on_node(engine, outcome, workload, pod, claims, site) {
            Ok(reason) => *reasons.entry(reason).or_default() += 1,
            Err(everywhere) => return everywhere,
        }
    }
    let asked = sites.len().min(MAX_NODES);
    let mut reasons: Vec<(String, usize)> = reasons.into_iter().collect();
    reasons.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    if let [(reason, _)] = reasons.as_slice() {
        return match asked {
            1 => reason.clone(),
            _ => format!("{reason} (on each node)"),
        };
    }
    let texts: Vec<String> =
        reasons.iter().map(|(reason, count)| format!("on {count} of {asked} nodes {reason}")).collect();
    texts.join("; ")
}

/// Why not on this node. The error is what stops the pod on every node.
fn on_node(
    engine: &Engine<'_>,
    outcome: &Outcome,
    workload: &Workload,
    pod: &Pod,
    claims: &[ResourceClaim],
    site: &Site,
) -> Result<String, String> {
    if let Some(rule) = site.node.as_ref().and_then(|node| rules(pod, node).into_iter().next()) {
        return Ok(rule.why);
    }
    let node = engine.node_of(site);
    if let Some(claim) = claims.iter().find(|claim| !usable_on(claim, site, node)) {
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        return Ok(format!("its claim {name} has devices of another node"));
    }
    if let Some(resource) = lacking(engine, workload, site) {
        let class = engine.catalog.extended().class_of(&resource);
        let name = class.and_then(|it| it.metadata.name.as_deref());
        return Ok(match name {
            Some(name) if !engine.gates.extended_resource => format!(
                "no device plugin has {resource} free, and DeviceClass {name} serves it only with the feature gate DRAExtendedResource"
            ),
            Some(_) => format!("the device plugin has no {resource} left"),
            None => format!(
                "no device plugin has {resource} free, and no DeviceClass has that extendedResourceName"
            ),
        });
    }
    let mut open: Vec<ResourceClaim> = claims.iter().filter(|claim| !is_allocated(claim)).cloned().collect();
    open.extend(engine.extended_claim(pod, site.node.as_ref().unwrap_or(node)));
    let explanation = engine.clusters[site.kind].explain(node, &open, &outcome.books[site.book]);
    if let Err(Refusal::Aborted(abort)) = &explanation.outcome {
        return Err(format!("{abort}; no node is tried further"));
    }
    Ok(of_explanation(&explanation, &engine.kinds[site.kind]))
}

fn of_explanation(explanation: &Explanation, kind: &Kind) -> String {
    // Pools of one name hinder nothing by themselves, and those of other nodes only requests for all devices.
    let wants_all = explanation.requests.iter().any(|it| matches!(it.amount, Some(Amount::All)));
    let hinders = |it: &&PoolReport| {
        !matches!(it.problem, PoolProblem::NameShared { .. })
            && (wants_all || kind.has_pool(&it.driver, &it.pool))
    };
    let problem = explanation.pools.iter().find(hinders).map(pool_sentence);
    if let Err(Refusal::TimedOut) = explanation.outcome {
        return "the search takes too long".to_owned();
    }
    if let Some(problem) = problem {
        return problem;
    }
    match explanation.requests.iter().find(|it| !it.fits_alone) {
        Some(report) => of_request(report, kind),
        None if explanation.fits_without_leak == Some(true) => {
            "the devices are free, and the scheduler does not find them (kubernetes#140436)".to_owned()
        }
        None => "each request would fit alone, but not all of them together".to_owned(),
    }
}

/// The profiles that a node publishes, those with the least memory first.
fn profiles(kind: &Kind) -> String {
    let gpus = kind.gpus(&Allocated::default());
    let devices = gpus.iter().flat_map(|it| &it.devices);
    let all: BTreeSet<(u64, &str)> =
        devices.map(|it| (it.memory, it.profile.as_deref().unwrap_or("whole GPUs"))).collect();
    let mut names: Vec<&str> = Vec::new();
    for (_, name) in all {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.truncate(MAX_PROFILES);
    names.join(", ")
}

/// What stands between the devices of a node and a request.
fn of_request(report: &RequestReport, kind: &Kind) -> String {
    let (mut allocated, mut blocked, mut tainted, mut gated, mut constrained, mut usable) =
        (0, 0, 0, 0, 0, 0);
    for device in &report.devices {
        match &device.finding {
            Finding::Usable => usable += 1,
            Finding::Allocated { .. } => allocated += 1,
            Finding::Counters { .. } => blocked += 1,
            Finding::Taint { .. } => tainted += 1,
            Finding::CountersDisabled => gated += 1,
            Finding::AttributeMissing { .. } | Finding::Constraint { .. } => constrained += 1,
            _ => {}
        }
    }
    let matching: usize = allocated + blocked + tainted + gated + constrained + usable;
    let what = format!("request {} (class {})", report.request, report.class);
    if matching == 0 {
        let profiles = profiles(kind);
        let there = if profiles.is_empty() { "no device" } else { &profiles };
        return format!("no device matches {what}; the node publishes {there}");
    }
    let mut parts = Vec::new();
    let mut say = |count: usize, text: &str| {
        if 0 < count {
            parts.push(format!("{count} {text}"));
        }
    };
    say(allocated, "allocated");
    say(blocked, "overlap allocated ones");
    say(tainted, "tainted");
    say(gated, "consume counters, which needs the feature gate DRAPartitionableDevices");
    say(constrained, "excluded by matchAttribute");
    let parts = parts.join(", ");
    match report.amount {
        Some(Amount::Exactly(count)) if 0 < usable => {
            format!(
                "{what} needs {count} devices at once, and of the {matching} that match at most {usable} are free ({parts})"
            )
        }
        _ if matching == 1 => format!("the only device that matches {what} is not free: {parts}"),
        _ => format!("none of the {matching} devices that match {what} is free: {parts}"),
    }
}
