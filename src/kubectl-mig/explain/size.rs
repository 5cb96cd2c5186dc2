//! What a pod requests of the node itself, and nodes that are too small for it.

use std::collections::BTreeMap;

use dra_allocator::extended::requests;
use dra_allocator::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Node, Pod};

use crate::cluster::Rule;

/// What a pod requests of the node itself, by resource.
pub(super) fn requested(pod: &Pod) -> BTreeMap<String, Quantity> {
    let Some(spec) = &pod.spec else { return BTreeMap::new() };
    let mut sum: BTreeMap<String, Quantity> = BTreeMap::new();
    for container in &spec.containers {
        for (name, amount) in of_container(container) {
            let total = sum.entry(name).or_insert_with(Quantity::zero);
            *total = amount.plus(*total);
        }
    }
    for container in spec.init_containers.iter().flatten() {
        let stays = container.restart_policy.as_deref() == Some("Always");
        for (name, amount) in of_container(container) {
            let total = sum.entry(name).or_insert_with(Quantity::zero);
            *total = if stays { amount.plus(*total) } else { amount.max(*total) };
        }
    }
    for (name, amount) in spec.overhead.iter().flatten() {
        if let Ok(amount) = Quantity::parse(&amount.0) {
            let total = sum.entry(name.clone()).or_insert_with(Quantity::zero);
            *total = amount.plus(*total);
        }
    }
    sum
}

/// What a container requests, as numbers.
fn of_container(container: &Container) -> impl Iterator<Item = (String, Quantity)> {
    requests(container).filter_map(|(name, it)| Some((name.clone(), Quantity::parse(&it.0).ok()?)))
}

/// Requests that are larger than all that a node has. Resources named in `served_by_claims` are left out.
pub(super) fn too_large(pod: &Pod, node: &Node, served_by_claims: &dyn Fn(&str) -> bool) -> Vec<Rule> {
    let Some(allocatable) = node.status.as_ref().and_then(|it| it.allocatable.as_ref()) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (resource, wanted) in requested(pod) {
        let has = allocatable
            .get(&resource)
            .and_then(|it| Quantity::parse(&it.0).ok())
            .unwrap_or_else(Quantity::zero);
        if wanted > has && !served_by_claims(&resource) {
            found.push(Rule {
                why: format!("the pod requests {resource}: {wanted}, and it has {has} in all"),
                advice: format!("lower the request for {resource} in the pod's containers"),
                is_choice: false,
            });
        }
    }
    found
}
