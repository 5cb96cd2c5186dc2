//! Which nodes a slice or device is for.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelector, NodeSelectorRequirement};
use k8s_openapi::api::resource::v1::{Device, ResourceSliceSpec};

/// Whether a slice has something for the node: as a whole, or in a device that chooses its own nodes.
pub(crate) fn slice_targets(spec: &ResourceSliceSpec, node: &Node) -> bool {
    let whole = Target::of_slice(spec);
    if whole.is_set() {
        return whole.matches(node);
    }
    spec.per_device_node_selection == Some(true)
        && spec.devices.iter().flatten().any(|device| Target::of_device(device).matches(node))
}

/// Whether a device that chooses its own nodes is for the node.
pub(crate) fn device_targets(device: &Device, node: &Node) -> bool {
    Target::of_device(device).matches(node)
}

/// The three ways of choosing nodes.
struct Target<'a> {
    name: Option<&'a str>,
    all: bool,
    selector: Option<&'a NodeSelector>,
}

impl<'a> Target<'a> {
    fn of_slice(spec: &'a ResourceSliceSpec) -> Self {
        Self {
            name: spec.node_name.as_deref().filter(|name| !name.is_empty()),
            all: spec.all_nodes == Some(true),
            selector: spec.node_selector.as_ref(),
        }
    }

    fn of_device(device: &'a Device) -> Self {
        Self {
            name: device.node_name.as_deref().filter(|name| !name.is_empty()),
            all: device.all_nodes == Some(true),
            selector: device.node_selector.as_ref(),
        }
    }

    fn is_set(&self) -> bool {
        self.name.is_some() || self.all || self.selector.is_some()
    }

    fn matches(&self, node: &Node) -> bool {
        match self.name {
            Some(name) => Some(name) == node.metadata.name.as_deref(),
            None => self.all || self.selector.is_some_and(|selector| selects_node(selector, node)),
        }
    }
}

/// Whether a node selector, of a slice or of a pod's node affinity, selects a node.
#[must_use]
pub fn selects_node(selector: &NodeSelector, node: &Node) -> bool {
    let no_labels = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&no_labels);
    selector.node_selector_terms.iter().any(|term| {
        let expressions = term.match_expressions.as_deref().unwrap_or_default();
        let fields = term.match_fields.as_deref().unwrap_or_default();
        let empty = expressions.is_empty() && fields.is_empty();
        !empty
            && expressions.iter().all(|r| holds(r, labels.get(&r.key).map(String::as_str)))
            && fields.iter().all(|r| r.key == "metadata.name" && holds(r, node.metadata.name.as_deref()))
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
