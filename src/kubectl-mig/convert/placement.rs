//! Node selectors and tolerations for labels and taints of the device plugin: reported, not changed.

use super::object::{Findings, Place};
use super::pod::is_label;
use super::tree::Node;

/// Reports node selectors, affinities, tolerations, the runtime class and the device variable of a pod that asks for
/// devices; `whole` where it asks for `nvidia.com/gpu`.
pub(super) fn remark(spec: &Node<'_>, place: &Place<'_>, whole: bool, findings: &mut Findings) {
    if let Some(selector) = spec.get("nodeSelector") {
        for (key, value) in selector.entries() {
            if let Some(name) = key.text().filter(|it| is_label(it)) {
                let place = place.field("nodeSelector").field(name);
                label(name, &[value.text().unwrap_or("")], key, &place, whole, findings);
            }
        }
    }
    if let Some(affinity) = spec.get("affinity") {
        expressions(affinity, &place.field("affinity"), whole, findings);
    }
    for (index, toleration) in spec.get("tolerations").map_or(&[][..], Node::items).iter().enumerate() {
        if let Some(name) = toleration.get("key").and_then(Node::text).filter(|it| is_label(it)) {
            let why = format!("tolerates the taint {name}, which stays useful where nodes have it");
            findings.note(toleration, &place.field("tolerations").item(index), why);
        }
    }
    if let Some(class) =
        spec.get("runtimeClassName").filter(|it| it.text().is_some_and(|it| it.starts_with("nvidia")))
    {
        let why =
            "devices come through CDI, so no runtime class is needed; it does no harm while the class exists";
        findings.note(class, &place.field("runtimeClassName"), why.to_owned());
    }
    for list in ["containers", "initContainers"] {
        for (index, container) in spec.get(list).map_or(&[][..], Node::items).iter().enumerate() {
            for variable in container.get("env").map_or(&[][..], Node::items) {
                if variable.get("name").and_then(Node::text) == Some("NVIDIA_VISIBLE_DEVICES") {
                    let why = "NVIDIA_VISIBLE_DEVICES asks the NVIDIA runtime for devices without any allocation; remove it";
                    findings.left(variable, &place.field(list).item(index).field("env"), why.to_owned());
                }
            }
        }
    }
}

/// Match expressions about labels of the device plugin, at any depth of an affinity.
fn expressions(node: &Node<'_>, place: &Place<'_>, whole: bool, findings: &mut Findings) {
    if let Some(name) = node.get("key").and_then(Node::text).filter(|it| is_label(it)) {
        let values: Vec<&str> =
            node.get("values").map_or(&[][..], Node::items).iter().filter_map(Node::text).collect();
        label(name, &values, node, &place.field(name), whole, findings);
        return;
    }
    for (key, value) in node.entries() {
        expressions(value, &place.field(key.text().unwrap_or("?")), whole, findings);
    }
    for (index, item) in node.items().iter().enumerate() {
        expressions(item, &place.item(index), whole, findings);
    }
}

fn label(
    name: &str,
    values: &[&str],
    node: &Node<'_>,
    place: &Place<'_>,
    whole: bool,
    findings: &mut Findings,
) {
    let slices = values.iter().any(|it| it.contains("-MIG-"));
    if slices && whole {
        let why = "asks for a node whose GPUs are cut under the MIG strategy `single`, where nvidia.com/gpu is a slice and \
             not a GPU; replace nvidia.com/gpu by the slice's name, such as nvidia.com/mig-1g.5gb, and convert again";
        findings.refuse(node, place, why.to_owned());
    } else if slices || name.starts_with("nvidia.com/mig") {
        let why = format!(
            "wants a node by how its GPUs are cut ({name}), but now they are cut when the pod comes; remove it, or the pod \
             may wait for a label that is no longer set"
        );
        findings.left(node, place, why);
    } else {
        let why = format!(
            "{name} is a label of GPU feature discovery; it goes on working while that runs, and a selector on the claim \
             (productName, memory) can say the same"
        );
        findings.note(node, place, why);
    }
}
