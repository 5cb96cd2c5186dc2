//! Which nodes a slice or device is for.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelector, NodeSelectorRequirement};
use k8s_openapi::api::resource::v1::{Device, ResourceSliceSpec};

/// Whether all devices of a slice are for the node.
pub(super) fn slice_offers(spec: &ResourceSliceSpec, node: &Node) -> bool {
    spec.all_nodes == Some(true)
        || spec.node_name.as_ref().is_some_and(|name| Some(name) == node.metadata.name.as_ref())
        || spec.node_selector.as_ref().is_some_and(|selector| selects(selector, node))
}

/// Whether a device that chooses its own nodes is for the node.
pub(super) fn offers(spec: &ResourceSliceSpec, device: &Device, node: &Node) -> bool {
    spec.per_device_node_selection == Some(true)
        && (device.all_nodes == Some(true)
            || device.node_name.as_ref().is_some_and(|name| Some(name) == node.metadata.name.as_ref())
            || device.node_selector.as_ref().is_some_and(|selector| selects(selector, node)))
}

fn selects(selector: &NodeSelector, node: &Node) -> bool {
    let no_labels = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&no_labels);
    selector.node_selector_terms.iter().any(|term| {
        let expressions = term.match_expressions.iter().flatten();
        let fields = term.match_fields.iter().flatten();
        let empty = term.match_expressions.is_none() && term.match_fields.is_none();
        !empty
            && expressions.into_iter().all(|r| holds(r, labels.get(&r.key).map(String::as_str)))
            && fields.into_iter().all(|r| r.key == "metadata.name" && holds(r, node.metadata.name.as_deref()))
    })
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|v| values.iter().any(|w| w == v));
    let number = |text: &str| text.parse::<i64>().ok();
    let compared = || Some((number(value?)?, number(values.first()?)?));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared().is_some_and(|(a, b)| a > b),
        "Lt" => compared().is_some_and(|(a, b)| a < b),
        _ => false,
    }
}
