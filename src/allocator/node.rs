//! Which nodes a slice or device is for.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelector, NodeSelectorRequirement, Taint, Toleration};
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
            None => self.all || self.selector.is_some_and(|selector| selects(selector, node)),
        }
    }
}

/// Whether a node selector matches a node, as the scheduler has it.
#[must_use]
pub fn selects(selector: &NodeSelector, node: &Node) -> bool {
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

/// Whether a requirement holds for the value of a label or field, or its absence.
#[must_use]
pub fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
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

/// Whether one of the tolerations tolerates a taint: `ToleratesTaint` of Kubernetes 1.35. `Gt` and `Lt` (KEP-5471) compare the value of
/// the taint with that of the toleration; pods have them only where the API server has the feature gate for them.
#[must_use]
pub fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    let text = |it: &Option<String>| it.clone().unwrap_or_default();
    let compared =
        |it: &Toleration| Some((decimal(taint.value.as_deref()?)?, decimal(it.value.as_deref()?)?));
    tolerations.iter().any(|it| {
        let effect = it.effect.as_deref().is_none_or(|effect| effect.is_empty() || effect == taint.effect);
        let key = it.key.as_deref().is_none_or(|key| key.is_empty() || key == taint.key);
        let value = match it.operator.as_deref() {
            Some("Exists") => true,
            None | Some("" | "Equal") => text(&it.value) == text(&taint.value),
            Some("Gt") => compared(it).is_some_and(|(taint, own)| taint > own),
            Some("Lt") => compared(it).is_some_and(|(taint, own)| taint < own),
            Some(_) => false,
        };
        effect && key && value
    })
}

/// A number without a plus sign and leading zeros.
fn decimal(text: &str) -> Option<i64> {
    text.parse().ok().filter(|it: &i64| it.to_string() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_toleration_compares_the_value_of_the_taint_as_text_or_as_a_number() {
        let tolerated = |operator: &str, value: &str, of_taint: &str| {
            let toleration = Toleration {
                key: Some("score".to_owned()),
                operator: Some(operator.to_owned()),
                value: Some(value.to_owned()),
                ..Toleration::default()
            };
            let (key, effect) = ("score".to_owned(), "NoSchedule".to_owned());
            tolerates(
                &[toleration],
                &Taint { key, effect, value: Some(of_taint.to_owned()), ..Taint::default() },
            )
        };
        let cases = [
            ("Gt", "800", "1000", true),
            ("Gt", "800", "800", false),
            ("Gt", "800", "500", false),
            ("Lt", "5", "2", true),
            ("Lt", "5", "15", false),
            ("Lt", "5", "02", false),
            ("Lt", "5", "low", false),
            ("Equal", "a", "a", true),
            ("Equal", "a", "b", false),
            ("", "a", "a", true),
            ("Exists", "", "b", true),
            ("Unknown", "a", "a", false),
        ];
        for (operator, value, of_taint, expected) in cases {
            assert_eq!(tolerated(operator, value, of_taint), expected, "{operator} {value} {of_taint}");
        }
        let any = Toleration { operator: Some("Exists".to_owned()), ..Toleration::default() };
        let taint = Taint { key: "k".to_owned(), effect: "NoExecute".to_owned(), ..Taint::default() };
        assert!(tolerates(std::slice::from_ref(&any), &taint));
        assert!(!tolerates(&[Toleration { effect: Some("NoSchedule".to_owned()), ..any }], &taint));
        assert!(!tolerates(&[], &taint));
    }
}
