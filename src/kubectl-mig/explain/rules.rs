//! Rules of the scheduler that keep a pod away from a node, apart from devices: cordon, taints, selectors, affinity, and requests
//! that are larger than the node.

use std::collections::BTreeMap;

use dra_allocator::quantity::Quantity;
use dra_allocator::{requirement_holds, selects_node};
use k8s_openapi::api::core::v1::{
    Container, Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration,
};

/// The taint that a cordon stands for.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Why a pod cannot use a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    /// What keeps the pod away: a clause.
    pub(super) why: String,
    /// What lets it in.
    pub(super) advice: String,
}

/// All rules that keep a pod away from a node. Resources named in `served_by_claims` are left out.
pub(super) fn rules(pod: &Pod, node: &Node, served_by_claims: &dyn Fn(&str) -> bool) -> Vec<Rule> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let mut found = Vec::new();
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    if node.spec.as_ref().and_then(|it| it.unschedulable) == Some(true) {
        let cordon =
            Taint { key: UNSCHEDULABLE.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
        if !tolerates(tolerations, &cordon) {
            let (why, advice) = ("it is cordoned".to_owned(), format!("kubectl uncordon {name}"));
            found.push(Rule { why, advice });
        }
    }
    let taints = node.spec.as_ref().and_then(|it| it.taints.as_deref()).unwrap_or_default();
    for taint in taints.iter().filter(|it| it.effect == "NoSchedule" || it.effect == "NoExecute") {
        // A cordon sets this one, too.
        if taint.key != UNSCHEDULABLE && !tolerates(tolerations, taint) {
            found.push(of_taint(name, taint));
        }
    }
    let labels = node.metadata.labels.clone().unwrap_or_default();
    for (key, wanted) in spec.node_selector.iter().flatten() {
        if labels.get(key) != Some(wanted) {
            let has = labels.get(key).map_or("has no such label".to_owned(), |it| format!("has {key}={it}"));
            found.push(Rule {
                why: format!("the pod's nodeSelector wants {key}={wanted}, and it {has}"),
                advice: format!(
                    "kubectl label node {name} {key}={wanted} --overwrite; or remove {key} from spec.nodeSelector of the pod"
                ),
            });
        }
    }
    let affinity = spec.affinity.as_ref().and_then(|it| it.node_affinity.as_ref());
    let required = affinity.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref());
    if let Some(selector) = required
        && !selects_node(selector, node)
    {
        let failing = match selector.node_selector_terms.as_slice() {
            [term] => failing(term, node),
            terms => format!("none of the {} terms matches", terms.len()),
        };
        found.push(Rule {
            why: format!("the pod's required node affinity does not match it: {failing}"),
            advice: format!("change spec.affinity.nodeAffinity of the pod, or label node {name} accordingly"),
        });
    }
    found.extend(too_large(pod, node, served_by_claims));
    found
}

fn of_taint(node: &str, taint: &Taint) -> Rule {
    let value = taint.value.as_deref().filter(|it| !it.is_empty());
    let text = match value {
        Some(value) => format!("{}={value}:{}", taint.key, taint.effect),
        None => format!("{}:{}", taint.key, taint.effect),
    };
    let why = format!("the pod does not tolerate its taint {text}");
    let advice = if taint.key.starts_with("node.kubernetes.io/") {
        format!("see why the node is in this state: kubectl describe node {node}")
    } else {
        let operator = value.map_or_else(
            || "operator: Exists".to_owned(),
            |it| format!("value: {}", serde_json::Value::from(it)),
        );
        format!(
            "add to spec.tolerations of the pod {{key: {}, {operator}, effect: {}}}; or kubectl taint node {node} {}:{}-",
            taint.key, taint.effect, taint.key, taint.effect
        )
    };
    Rule { why, advice }
}

fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|it| {
        let effect = it.effect.as_deref().is_none_or(|e| e.is_empty() || e == taint.effect);
        let key = it.key.as_deref().is_none_or(|k| k.is_empty() || k == taint.key);
        let value = match it.operator.as_deref() {
            Some("Exists") => true,
            None | Some("" | "Equal") => {
                it.key.is_some()
                    && it.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
            }
            Some(_) => false,
        };
        effect && key && value
    })
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

/// Requests of a container; the API server sets those that are missing to the limits.
fn of_container(container: &Container) -> BTreeMap<String, Quantity> {
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|it| it.limits.as_ref()).into_iter().flatten();
    let requests = resources.and_then(|it| it.requests.as_ref()).into_iter().flatten();
    let parsed =
        limits.chain(requests).filter_map(|(name, it)| Some((name.clone(), Quantity::parse(&it.0).ok()?)));
    parsed.collect()
}

/// Requests that are larger than all that a node has.
fn too_large(pod: &Pod, node: &Node, served_by_claims: &dyn Fn(&str) -> bool) -> Vec<Rule> {
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
            });
        }
    }
    found
}
