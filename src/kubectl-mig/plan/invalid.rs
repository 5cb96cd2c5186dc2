//! Values that the API server refuses and that would change the number of pods or devices of a plan.

use dra_allocator::quantity::Quantity;

use super::PlanError;
use super::stock::is_extended;
use crate::manifest::{Demand, Object};

/// What is wrong with the number of pods of an object, or with the extended resources of its pods.
pub(super) fn invalid(object: &Object, demand: &Demand) -> Option<PlanError> {
    let error = |field: String, why: String| PlanError::Field { owner: demand.owner.clone(), field, why };
    if let Some((field, count)) =
        counts(object).into_iter().find_map(|(field, it)| Some((field, it.filter(|it| *it < 0)?)))
    {
        return Some(error(field.to_owned(), format!("{count} is negative; write 0 or more")));
    }
    let spec = demand.pod.spec.as_ref()?;
    let lists = [("containers", Some(&spec.containers)), ("initContainers", spec.init_containers.as_ref())];
    for (list, containers) in lists {
        for container in containers.into_iter().flatten() {
            let Some(resources) = &container.resources else { continue };
            for (what, amounts) in [("limits", &resources.limits), ("requests", &resources.requests)] {
                let mut amounts = amounts.iter().flatten().filter(|(name, _)| is_extended(name));
                if let Some((name, amount)) = amounts.find(|(_, it)| !is_count(&it.0)) {
                    return Some(error(
                        format!("{list}[{}].resources.{what}[{name}]", container.name),
                        format!("`{}` is not a whole number of devices, such as 1", amount.0),
                    ));
                }
            }
        }
    }
    None
}

/// The fields that say how many pods there are.
fn counts(object: &Object) -> Vec<(&'static str, Option<i32>)> {
    match object {
        Object::Deployment(it) => vec![("spec.replicas", it.spec.as_ref().and_then(|it| it.replicas))],
        Object::StatefulSet(it) => vec![("spec.replicas", it.spec.as_ref().and_then(|it| it.replicas))],
        Object::ReplicaSet(it) => vec![("spec.replicas", it.spec.as_ref().and_then(|it| it.replicas))],
        Object::ReplicationController(it) => {
            vec![("spec.replicas", it.spec.as_ref().and_then(|it| it.replicas))]
        }
        Object::Job(it) => vec![
            ("spec.parallelism", it.spec.as_ref().and_then(|it| it.parallelism)),
            ("spec.completions", it.spec.as_ref().and_then(|it| it.completions)),
        ],
        Object::CronJob(it) => {
            let job = it.spec.as_ref().and_then(|it| it.job_template.spec.as_ref());
            vec![
                ("spec.jobTemplate.spec.parallelism", job.and_then(|it| it.parallelism)),
                ("spec.jobTemplate.spec.completions", job.and_then(|it| it.completions)),
            ]
        }
        _ => Vec::new(),
    }
}

/// Whether an amount is a whole number from 0.
fn is_count(amount: &str) -> bool {
    Quantity::parse(amount).ok().and_then(Quantity::as_integer).is_some_and(|it| 0 <= it)
}
