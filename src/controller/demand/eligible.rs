//! Whether the scheduler could place a pod on a node, as far as labels, taints and conditions say. Other resources are not looked
//! at: a pod that does not use a device it is offered is left out after a while.

use std::collections::HashMap;
use std::sync::Arc;

use dra_allocator::{selects_node, tolerates};
use k8s_openapi::api::core::v1::{Node, PodSpec, Taint};
use k8s_openapi::api::resource::v1::ResourceClaim;

use super::share::Share;
use super::world::{NodeState, PendingPod};

/// Groups of pods that one round looks at.
const MAX_GROUPS: usize = 512;

/// Which nodes pods with the same selectors can be placed on.
#[derive(Debug)]
pub(super) struct Eligibility<'w> {
    known: HashMap<String, usize>,
    nodes: Vec<Vec<bool>>,
    share: Share<'w>,
}

impl<'w> Eligibility<'w> {
    /// Without any group.
    pub(super) fn new() -> Self {
        Self { known: HashMap::new(), nodes: Vec::new(), share: Share::new(MAX_GROUPS) }
    }

    /// The number of the group that a pod is in; `None` where there are too many others, or too many of its namespace.
    pub(super) fn group(&mut self, pod: &'w PendingPod, nodes: &[NodeState]) -> Option<usize> {
        let selector = |it: &Arc<ResourceClaim>| {
            it.status.as_ref()?.allocation.as_ref().map(|it| it.node_selector.clone())
        };
        let allocated: Vec<_> = pod.claims.iter().filter_map(selector).flatten().collect();
        let affinity = pod.spec.affinity.as_ref().and_then(|it| it.node_affinity.as_ref());
        let required =
            affinity.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref());
        let parts = (&pod.spec.node_selector, required, &pod.spec.tolerations, &allocated);
        let key = serde_json::to_string(&parts).unwrap_or_default();
        if let Some(group) = self.known.get(&key) {
            return Some(*group);
        }
        if !self.share.take(&pod.namespace) {
            return None;
        }
        let takes = |node: &NodeState| {
            is_open(&node.node, &pod.spec)
                && required.is_none_or(|it| selects_node(it, &node.node))
                && allocated.iter().all(|it| selects_node(it, &node.node))
        };
        self.nodes.push(nodes.iter().map(takes).collect());
        self.known.insert(key, self.nodes.len() - 1);
        Some(self.nodes.len() - 1)
    }

    /// Whether pods of a group can be placed on a node.
    pub(super) fn takes(&self, group: usize, node: usize) -> bool {
        self.nodes[group][node]
    }
}

/// Whether the node is ready, and selector and taints let the pod in.
fn is_open(node: &Node, pod: &PodSpec) -> bool {
    let labels = node.metadata.labels.as_ref();
    let selector = pod.node_selector.iter().flatten();
    let mut selected = selector.map(|(key, value)| labels.and_then(|it| it.get(key)) == Some(value));
    let conditions = node.status.iter().flat_map(|it| it.conditions.iter().flatten());
    let mut conditions = conditions.filter(|it| it.type_ == "Ready");
    let is_ready = conditions.next().is_none_or(|it| it.status == "True");
    let spec = node.spec.as_ref();
    let tolerations = pod.tolerations.as_deref().unwrap_or_default();
    let cordon = Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    let is_cordoned = spec.is_some_and(|it| it.unschedulable == Some(true));
    let taints = spec.iter().flat_map(|it| it.taints.iter().flatten());
    let mut taints = taints.chain(is_cordoned.then_some(&cordon));
    is_ready
        && selected.all(|it| it)
        && taints.all(|taint| taint.effect == "PreferNoSchedule" || tolerates(tolerations, taint))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(value: serde_json::Value) -> Node {
        serde_json::from_value(value).unwrap()
    }

    fn pod(value: serde_json::Value) -> PodSpec {
        let mut value = value;
        value["containers"] = json!([]);
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_cordoned_a_tainted_and_an_unready_node_take_only_pods_that_tolerate_it() {
        let plain = pod(json!({}));
        assert!(is_open(&node(json!({})), &plain));
        let cordoned = node(json!({"spec": {"unschedulable": true}}));
        assert!(!is_open(&cordoned, &plain));
        assert!(is_open(&cordoned, &pod(json!({"tolerations": [{"operator": "Exists"}]}))));
        let tainted =
            node(json!({"spec": {"taints": [{"key": "gpu", "value": "a", "effect": "NoSchedule"}]}}));
        assert!(!is_open(&tainted, &plain));
        assert!(is_open(&tainted, &pod(json!({"tolerations": [{"key": "gpu", "value": "a"}]}))));
        assert!(!is_open(&tainted, &pod(json!({"tolerations": [{"key": "gpu", "value": "b"}]}))));
        let preferred = node(json!({"spec": {"taints": [{"key": "a", "effect": "PreferNoSchedule"}]}}));
        assert!(is_open(&preferred, &plain));
        let unready = node(json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}));
        assert!(!is_open(&unready, &plain));
    }

    #[test]
    fn a_pod_is_placed_where_its_selectors_say() {
        let labelled = node(json!({"metadata": {"labels": {"zone": "a"}}}));
        assert!(is_open(&labelled, &pod(json!({"nodeSelector": {"zone": "a"}}))));
        assert!(!is_open(&labelled, &pod(json!({"nodeSelector": {"zone": "b"}}))));
        assert!(!is_open(&labelled, &pod(json!({"nodeSelector": {"rack": "1"}}))));
    }
}
