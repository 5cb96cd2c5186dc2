//! Which nodes a pod may use, devices aside: cordons, taints, node selectors, required node affinity.

use dra_allocator::selects_node;
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec, Taint, Toleration};

/// Taint that a cordoned node has; pods that tolerate it may use the node all the same.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Why a pod may not use a node; `None` where it may.
pub(super) fn hindrance(pod: &Pod, node: &Node) -> Option<String> {
    let no_spec = PodSpec::default();
    let pod = pod.spec.as_ref().unwrap_or(&no_spec);
    let spec = node.spec.as_ref();
    let tolerations = pod.tolerations.as_deref().unwrap_or_default();
    if let Some(name) = pod.node_name.as_deref().filter(|name| node.metadata.name.as_deref() != Some(*name)) {
        return Some(format!("spec.nodeName of the pod is {name}"));
    }
    let cordon = Taint { key: UNSCHEDULABLE.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
    if spec.is_some_and(|it| it.unschedulable == Some(true))
        && !tolerations.iter().any(|it| tolerates(it, &cordon))
    {
        return Some("it is cordoned".to_owned());
    }
    let taints = spec.and_then(|it| it.taints.as_deref()).unwrap_or_default();
    let keeps_out = |taint: &&Taint| taint.effect == "NoSchedule" || taint.effect == "NoExecute";
    let untolerated = |taint: &&Taint| !tolerations.iter().any(|it| tolerates(it, taint));
    if let Some(taint) = taints.iter().filter(keeps_out).find(untolerated) {
        let value =
            taint.value.as_deref().filter(|it| !it.is_empty()).map(|it| format!("={it}")).unwrap_or_default();
        return Some(format!("the pod does not tolerate its taint {}{value}:{}", taint.key, taint.effect));
    }
    let labels = node.metadata.labels.as_ref();
    let missing = |(key, value): &(&String, &String)| labels.and_then(|it| it.get(*key)) != Some(*value);
    if let Some((key, value)) = pod.node_selector.iter().flatten().find(missing) {
        return Some(format!("it does not have the label {key}={value} of the pod's nodeSelector"));
    }
    let affinity = pod.affinity.as_ref().and_then(|it| it.node_affinity.as_ref());
    let required = affinity.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref());
    if required.is_some_and(|selector| !selects_node(selector, node)) {
        return Some("it does not match the pod's required node affinity".to_owned());
    }
    None
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().is_none_or(|it| it.is_empty() || it == taint.effect);
    let key = toleration.key.as_deref().is_none_or(|it| it.is_empty() || it == taint.key);
    let value = match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => {
            toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
        }
        Some(_) => false,
    };
    effect && key && value
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn why(pod: Value, node: Value) -> Option<String> {
        let pod: Pod = serde_json::from_value(json!({"spec": pod})).unwrap_or_default();
        let node: Node = serde_json::from_value(node).unwrap_or_default();
        hindrance(&pod, &node)
    }

    fn container() -> Value {
        json!([{"name": "c"}])
    }

    #[test]
    fn a_node_is_hidden_by_cordon_taint_selector_or_affinity() {
        let pod = json!({"containers": container()});
        let node = json!({"metadata": {"name": "n", "labels": {"zone": "a"}}});
        assert_eq!(why(pod.clone(), node.clone()), None);
        let cordoned = json!({"metadata": {"name": "n"}, "spec": {"unschedulable": true}});
        assert_eq!(why(pod.clone(), cordoned.clone()).as_deref(), Some("it is cordoned"));
        let anywhere = json!({"containers": container(), "tolerations": [{"operator": "Exists"}]});
        assert_eq!(why(anywhere, cordoned), None);
        let tainted = json!({"spec": {"taints": [{"key": "team", "value": "a", "effect": "NoSchedule"}]}});
        let text = why(pod.clone(), tainted.clone());
        assert_eq!(text.as_deref(), Some("the pod does not tolerate its taint team=a:NoSchedule"));
        for (value, is_tolerated) in [("a", true), ("b", false)] {
            let pod = json!({"containers": container(), "tolerations": [{"key": "team", "value": value}]});
            assert_eq!(why(pod, tainted.clone()).is_none(), is_tolerated);
        }
        let preferred = json!({"spec": {"taints": [{"key": "team", "effect": "PreferNoSchedule"}]}});
        assert_eq!(why(pod, preferred), None);
        let selecting = |zone: &str| json!({"containers": container(), "nodeSelector": {"zone": zone}});
        assert_eq!(why(selecting("a"), node.clone()), None);
        assert!(why(selecting("b"), node.clone()).is_some_and(|it| it.contains("zone=b")));
        let affinity = |operator: &str| {
            let term = json!({"matchExpressions": [{"key": "zone", "operator": operator, "values": ["a"]}]});
            let required =
                json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}});
            json!({"containers": container(), "affinity": {"nodeAffinity": required}})
        };
        assert_eq!(why(affinity("In"), node.clone()), None);
        assert!(why(affinity("NotIn"), node.clone()).is_some());
        let elsewhere = json!({"containers": container(), "nodeName": "m"});
        assert!(why(elsewhere, node).is_some());
    }
}
