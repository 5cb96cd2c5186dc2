//! Rules of the scheduler that keep a pod away from a node, apart from devices and sizes: cordon, taints, selectors, affinity, a node
//! that the pod names.

use crate::shell::word;
use dra_allocator::{requirement_holds, selects_node, tolerates};
use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Taint, Toleration,
};

/// The taint that a cordon stands for.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Why a pod cannot use a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    /// What keeps the pod away: a clause.
    pub(crate) why: String,
    /// What lets it in.
    pub(crate) advice: String,
    /// Whether the pod asks for other nodes, rather than the node keeps pods away.
    pub(crate) is_choice: bool,
}

/// All rules that keep a pod away from a node.
pub(crate) fn rules(pod: &Pod, node: &Node) -> Vec<Rule> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let mut found: Vec<Rule> = named(spec, node).into_iter().collect();
    found.extend(tainted(spec, node));
    found.extend(unlabelled(spec, node));
    found.extend(unrelated(spec, node));
    found
}

/// The toleration with which the controller of DaemonSets lets its pods onto cordoned nodes.
pub(crate) fn cordon_toleration() -> Toleration {
    Toleration {
        key: Some(UNSCHEDULABLE.to_owned()),
        operator: Some("Exists".to_owned()),
        ..Toleration::default()
    }
}

/// Another node in `spec.nodeName`.
fn named(spec: &PodSpec, node: &Node) -> Option<Rule> {
    let wanted = spec.node_name.as_deref().filter(|it| !it.is_empty())?;
    (node.metadata.name.as_deref() != Some(wanted)).then(|| Rule {
        why: format!("the pod's spec.nodeName is {wanted}"),
        advice: "remove spec.nodeName from the pod".to_owned(),
        is_choice: true,
    })
}

/// A cordon, and taints that the pod does not tolerate.
fn tainted(spec: &PodSpec, node: &Node) -> Vec<Rule> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let mut found = Vec::new();
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let is_cordoned = node.spec.as_ref().and_then(|it| it.unschedulable) == Some(true);
    if is_cordoned {
        let cordon =
            Taint { key: UNSCHEDULABLE.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
        if !tolerates(tolerations, &cordon) {
            let (why, advice) = ("it is cordoned".to_owned(), format!("kubectl uncordon {}", word(name)));
            found.push(Rule { why, advice, is_choice: false });
        }
    }
    let taints = node.spec.as_ref().and_then(|it| it.taints.as_deref()).unwrap_or_default();
    for taint in taints.iter().filter(|it| it.effect == "NoSchedule" || it.effect == "NoExecute") {
        // A cordon sets this one, too.
        let is_of_cordon = is_cordoned && taint.key == UNSCHEDULABLE;
        if !is_of_cordon && !tolerates(tolerations, taint) {
            found.push(of_taint(name, taint));
        }
    }
    found
}

/// Labels of the pod's `nodeSelector` that the node does not have.
fn unlabelled(spec: &PodSpec, node: &Node) -> Vec<Rule> {
    let label = |key: &String| node.metadata.labels.as_ref().and_then(|it| it.get(key));
    let mut found = Vec::new();
    for (key, wanted) in
        spec.node_selector.iter().flatten().filter(|(key, wanted)| label(key) != Some(wanted))
    {
        let has = label(key).map_or("has no such label".to_owned(), |it| format!("has {key}={it}"));
        found.push(Rule {
            why: format!("the pod's nodeSelector wants {key}={wanted}, and it {has}"),
            advice: format!(
                "to use other nodes: remove {key} from spec.nodeSelector of the pod, or give one of them the label {key}={wanted}"
            ),
            is_choice: true,
        });
    }
    found
}

/// Required node affinity that the node does not match.
fn unrelated(spec: &PodSpec, node: &Node) -> Option<Rule> {
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let selector = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    if selects_node(selector, node) {
        return None;
    }
    let failing = match selector.node_selector_terms.as_slice() {
        [term] => failing(term, node),
        terms => format!("none of the {} terms matches", terms.len()),
    };
    Some(Rule {
        why: format!("the pod's required node affinity does not match it: {failing}"),
        advice:
            "to use other nodes: change spec.affinity.nodeAffinity of the pod, or the labels of one of them"
                .to_owned(),
        is_choice: true,
    })
}

fn of_taint(node: &str, taint: &Taint) -> Rule {
    let value = taint.value.as_deref().filter(|it| !it.is_empty());
    let text = match value {
        Some(value) => format!("{}={value}:{}", taint.key, taint.effect),
        None => format!("{}:{}", taint.key, taint.effect),
    };
    let why = format!("the pod does not tolerate its taint {text}");
    let advice = if taint.key.starts_with("node.kubernetes.io/") {
        format!("see why the node is in this state: kubectl describe node {}", word(node))
    } else {
        let operator = value.map_or_else(
            || "operator: Exists".to_owned(),
            |it| format!("value: {}", serde_json::Value::from(it)),
        );
        format!(
            "add to spec.tolerations of the pod {{key: {}, {operator}, effect: {}}}; or kubectl taint node {} {}-",
            taint.key,
            taint.effect,
            word(node),
            word(&format!("{}:{}", taint.key, taint.effect))
        )
    };
    Rule { why, advice, is_choice: false }
}

/// The requirements of a term that a node does not meet.
fn failing(term: &NodeSelectorTerm, node: &Node) -> String {
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|it| it.get(key)).map(String::as_str);
    let expressions =
        term.match_expressions.iter().flatten().filter(|it| !requirement_holds(it, label(&it.key)));
    let fields = term.match_fields.iter().flatten();
    let fields = fields.filter(|it| !requirement_holds(it, node.metadata.name.as_deref()));
    let texts: Vec<String> = expressions.chain(fields).map(requirement).collect();
    if texts.is_empty() { "the term is empty".to_owned() } else { texts.join(", ") }
}

fn requirement(it: &NodeSelectorRequirement) -> String {
    let values = it.values.as_deref().unwrap_or_default().join(", ");
    match it.operator.as_str() {
        "Exists" | "DoesNotExist" => format!("{} {}", it.key, it.operator),
        operator => format!("{} {operator} [{values}]", it.key),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn why(pod: Value, node: Value) -> Option<String> {
        let pod: Pod = serde_json::from_value(json!({"spec": pod})).unwrap_or_default();
        let node: Node = serde_json::from_value(node).unwrap_or_default();
        rules(&pod, &node).into_iter().next().map(|it| it.why)
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
