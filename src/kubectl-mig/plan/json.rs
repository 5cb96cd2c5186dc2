//! The plan for programs.

use serde_json::{Value, json};

use super::map::{Instance, MappedGpu};
use super::needed::NotNeeded;
use super::report::cells;
use super::summary::Plan;

/// Rises when a field goes or changes its meaning.
const SCHEMA_VERSION: u32 = 1;

/// The whole text.
pub(super) fn text(plan: &Plan<'_>) -> serde_json::Result<String> {
    Ok(serde_json::to_string_pretty(&value(plan))? + "\n")
}

fn value(plan: &Plan<'_>) -> Value {
    let sum = |of: fn(&MappedGpu) -> usize| plan.gpus.iter().map(of).sum::<usize>();
    json!({
        "schemaVersion": SCHEMA_VERSION,
        "fits": plan.outcome.fits(),
        "pods": plan.outcome.pods.len(),
        "placed": plan.outcome.placed(),
        "workloads": (0..plan.workloads.len()).map(|it| workload(plan, it)).collect::<Vec<_>>(),
        "placements": placements(plan),
        "gpus": plan.gpus.iter().map(|it| gpu(plan, it)).collect::<Vec<_>>(),
        "memorySlices": {
            "total": sum(|it| it.gpu.memory_slices),
            "free": sum(|it| it.free.len()),
            "stranded": sum(|it| it.stranded.len()),
            "strandedForThesePods": sum(|it| it.stranded_for_mix.len()),
        },
        "needed": needed(plan),
        "cost": plan.cost.as_ref().map(|it| json!({
            "gpuHour": it.gpu, "perHour": it.total, "perHourWithWholeGpus": it.whole_gpus, "saving": it.saving(),
        })),
        "notes": plan.notes,
    })
}

fn workload(plan: &Plan<'_>, index: usize) -> Value {
    let pods = plan.outcome.pods.iter().filter(|it| it.workload == index).count();
    let workload = &plan.workloads[index];
    json!({
        "name": workload.demand.owner,
        "namespace": workload.demand.pod.metadata.namespace,
        "priority": workload.priority,
        "pods": pods,
        "placed": pods - plan.missing(index),
        "devices": plan.profiles_of(index),
        "reason": plan.outcome.reasons.get(&index),
        "costPerPodHour": plan.cost.as_ref().and_then(|it| it.per_pod[index]),
    })
}

fn placements(plan: &Plan<'_>) -> Vec<Value> {
    let one = |planned: &super::engine::Planned| {
        let node = planned.place.as_ref().map(|(site, _)| plan.outcome.sites[*site].name.as_str());
        let claims = planned.place.iter().flat_map(|(_, claims)| claims);
        let claims: Vec<Value> = claims
            .map(|(claim, results)| {
                let devices: Vec<&str> = results.iter().map(|it| it.device.as_str()).collect();
                json!({"name": claim.name, "devices": devices})
            })
            .collect();
        json!({
            "pod": planned.pod.name, "namespace": planned.pod.namespace,
            "workload": plan.workloads[planned.workload].demand.owner, "node": node, "claims": claims,
        })
    };
    plan.outcome.pods.iter().map(one).collect()
}

fn gpu(plan: &Plan<'_>, it: &MappedGpu) -> Value {
    let instance = |instance: &Instance| {
        json!({
            "profile": instance.profile, "start": instance.start, "size": instance.cells, "device": instance.device,
            "claim": instance.claim, "workload": instance.workload.map(|it| plan.workloads[it].demand.owner.as_str()),
        })
    };
    json!({
        "node": it.node, "name": it.gpu.name(), "driver": it.gpu.driver, "productName": it.gpu.product,
        "memorySlices": it.gpu.memory_slices, "map": cells(it),
        "instances": it.instances.iter().map(instance).collect::<Vec<_>>(),
        "free": it.free, "stranded": it.stranded, "strandedForThesePods": it.stranded_for_mix,
    })
}

fn needed(plan: &Plan<'_>) -> Value {
    match &plan.needed {
        Some(Ok(it)) => json!({
            "gpus": it.gpus, "nodes": it.nodes, "like": it.like, "inAddition": it.is_additional,
        }),
        Some(Err(NotNeeded::Never(which))) => {
            let names: Vec<&str> = which.iter().map(|it| plan.workloads[*it].demand.owner.as_str()).collect();
            json!({"impossibleFor": names})
        }
        Some(Err(NotNeeded::TooMany)) => json!({"moreThanTried": true}),
        None => Value::Null,
    }
}
