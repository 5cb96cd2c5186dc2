//! Where a pod may run: node selectors, affinities, tolerations and runtime classes are reported, not changed. Where they choose
//! nodes on which a request is a part or a share of a GPU, the pod is refused.

use super::findings::{Findings, Place};
use super::resource::DOMAIN;
use super::tree::Node;

/// What the containers of a pod use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Uses {
    /// `nvidia.com/gpu`, or a whole GPU by claim.
    pub(super) whole: bool,
    /// Whether anything is requested from the device plugin, so that there is something to refuse.
    pub(super) requests: bool,
}

/// Annotations by which other programs give a pod a share of a GPU: KAI Scheduler and Run:ai, HAMi.
const SHARES: [&str; 3] = ["gpu-fraction", "gpu-memory", "nvidia.com/vgpu-mode"];

/// Refuses a pod whose annotations request a share of a GPU.
pub(super) fn annotations(metadata: Option<&Node<'_>>, place: &Place<'_>, findings: &mut Findings<'_>) {
    let annotations = metadata.and_then(|it| it.get("annotations")).map_or(&[][..], Node::entries);
    for (key, _) in annotations {
        if let Some(name) = key.text().filter(|it| SHARES.contains(it)) {
            let why = format!(
                "the annotation {name} requests a share of a GPU from another scheduler or device plugin; remove it and request \
                 a MIG profile, such as nvidia.com/mig-1g.10gb, or share one ResourceClaim as examples/shared-claim does"
            );
            findings.refuse(key, place, why);
        }
    }
}

/// Reports what a pod that uses devices says about its nodes.
pub(super) fn remark(spec: &Node<'_>, place: &Place<'_>, uses: Uses, findings: &mut Findings<'_>) {
    if let Some(selector) = spec.get("nodeSelector") {
        for (key, value) in selector.entries() {
            if let Some(name) = key.text().filter(|it| is_label(it)) {
                let place = place.field("nodeSelector").field(name);
                let chosen = Chosen::In(vec![value.text().unwrap_or("")]);
                label(name, &chosen, key, &place, uses, findings);
            }
        }
    }
    if let Some(affinity) = spec.get("affinity") {
        expressions(affinity, &place.field("affinity"), uses, findings);
    }
    for (index, toleration) in spec.get("tolerations").map_or(&[][..], Node::items).iter().enumerate() {
        if let Some(name) = toleration.get("key").and_then(Node::text).filter(|it| it.starts_with(DOMAIN)) {
            let why = format!("tolerates the taint {name}, which is needed as long as nodes have it");
            findings.note(toleration, &place.field("tolerations").item(index), why);
        }
    }
    if let Some(class) =
        spec.get("runtimeClassName").filter(|it| it.text().is_some_and(|it| it.starts_with("nvidia")))
    {
        let why = "devices of claims need no runtime class, because CDI adds them; the field does no harm while the class exists";
        findings.note(class, &place.field("runtimeClassName"), why.to_owned());
    }
    if let Some(scheduler) = spec.get("schedulerName").filter(|it| it.text() != Some("default-scheduler")) {
        let why = format!(
            "verify that the scheduler {} allocates ResourceClaims",
            scheduler.text().unwrap_or("of this pod")
        );
        findings.note(scheduler, &place.field("schedulerName"), why);
    }
}

/// True for labels of the device plugin, its companions, and of node pools with shared or partitioned GPUs.
fn is_label(name: &str) -> bool {
    name.starts_with(DOMAIN) || name.starts_with("cloud.google.com/gke-gpu-") || name == GKE_CLIENTS
}

/// GKE's label for the number of containers on a shared GPU.
const GKE_CLIENTS: &str = "cloud.google.com/gke-max-shared-clients-per-gpu";

/// Match expressions about such labels, at any depth of an affinity.
fn expressions(node: &Node<'_>, place: &Place<'_>, uses: Uses, findings: &mut Findings<'_>) {
    if let Some(name) = node.get("key").and_then(Node::text).filter(|it| is_label(it)) {
        let values: Vec<&str> =
            node.get("values").map_or(&[][..], Node::items).iter().filter_map(Node::text).collect();
        let chosen = Chosen::of(node.get("operator").and_then(Node::text).unwrap_or("In"), values);
        label(name, &chosen, node, &place.field(name), uses, findings);
        return;
    }
    for (key, value) in node.entries() {
        expressions(value, &place.field(key.text().unwrap_or("?")), uses, findings);
    }
    for (index, item) in node.items().iter().enumerate() {
        expressions(item, &place.item(index), uses, findings);
    }
}

/// The values of a label that are chosen.
#[derive(Debug)]
enum Chosen<'n> {
    In(Vec<&'n str>),
    NotIn(Vec<&'n str>),
    GreaterThan(&'n str),
    /// `Lt`, `Exists`, `DoesNotExist`: says nothing about one value.
    Any,
}

impl<'n> Chosen<'n> {
    fn of(operator: &str, values: Vec<&'n str>) -> Self {
        match (operator, values.first()) {
            ("In", _) => Self::In(values),
            ("NotIn", _) => Self::NotIn(values),
            ("Gt", Some(value)) => Self::GreaterThan(value),
            _ => Self::Any,
        }
    }

    /// Whether a value is chosen that is not `neutral`: named, or because all neutral ones are excluded.
    fn leaves(&self, neutral: &[&str]) -> bool {
        match self {
            Self::In(values) => values.iter().any(|it| !neutral.contains(it)),
            Self::NotIn(values) => neutral.iter().all(|it| values.contains(it)),
            Self::GreaterThan(_) | Self::Any => false,
        }
    }

    fn names(&self, is: impl Fn(&str) -> bool) -> bool {
        matches!(self, Self::In(values) if values.iter().any(|it| is(it)))
    }
}

/// Why a label makes a request less than a GPU or a MIG device; `None` where it does not.
fn less_than_a_device(name: &str, chosen: &Chosen<'_>, whole: bool) -> Option<String> {
    let ends = |suffix: &str| name.strip_prefix(DOMAIN).is_some_and(|it| it.ends_with(suffix));
    let above_one = matches!(chosen, Chosen::GreaterThan(it) if it.parse::<i64>().is_ok_and(|it| it > 0));
    let shared = (ends(".sharing-strategy") && chosen.leaves(&["none"]))
        || (ends(".replicas")
            && (chosen.leaves(&["0", "1"])
                || matches!(chosen, Chosen::NotIn(it) if it.contains(&"1"))
                || above_one))
        || (ends("mps.capable") && chosen.leaves(&["false"]))
        || (ends(".product") && chosen.names(|it| it.ends_with("-SHARED")))
        || name == "cloud.google.com/gke-gpu-sharing-strategy"
        || name == GKE_CLIENTS;
    if shared {
        return Some(format!(
            "chooses nodes with shared GPUs ({name}), where a request is a share of a device and not a device; request a MIG \
             profile and remove the selector, or share one ResourceClaim as examples/shared-claim does"
        ));
    }
    if ends("device-plugin.config") {
        return Some(format!(
            "chooses nodes by a configuration of the device plugin ({name}), which may share or rename GPUs; remove the selector \
             if it does not, or request a MIG profile instead, and convert again"
        ));
    }
    let partitioned = (name == "nvidia.com/mig.strategy" && chosen.leaves(&["none", "mixed"]))
        || (name == "nvidia.com/mig.config" && chosen.leaves(&["all-disabled"]))
        || (ends(".product") && chosen.names(|it| it.contains("-MIG-")))
        || name == "cloud.google.com/gke-gpu-partition-size";
    (partitioned && whole).then(|| {
        format!(
            "chooses nodes with partitioned GPUs ({name}), where nvidia.com/gpu can be a MIG device (strategy `single`) and not a \
             GPU; replace nvidia.com/gpu by the MIG profile, such as nvidia.com/mig-1g.5gb, remove the selector and convert again"
        )
    })
}

fn label(
    name: &str,
    chosen: &Chosen<'_>,
    node: &Node<'_>,
    place: &Place<'_>,
    uses: Uses,
    findings: &mut Findings<'_>,
) {
    // A label of GPU feature discovery about the hardware, with the name of those about the partitioning.
    let by_partition = name.starts_with("nvidia.com/mig") && name != "nvidia.com/mig.capable";
    if let Some(why) = less_than_a_device(name, chosen, uses.whole) {
        if uses.requests {
            findings.refuse(node, place, why);
        } else {
            findings.left(node, place, why);
        }
    } else if by_partition || chosen.names(|it| it.contains("-MIG-")) || name.starts_with("cloud.google.com/")
    {
        let why = format!(
            "chooses nodes by the partitioning of their GPUs ({name}), but this driver creates MIG devices when the pod comes; \
             remove it, or the pod may wait for a label that is no longer set"
        );
        findings.left(node, place, why);
    } else {
        let why = format!(
            "{name} is a label of GPU feature discovery and works while that runs; a selector in the claim (productName, memory) \
             can express the same"
        );
        findings.note(node, place, why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn less(name: &str, operator: &str, values: &[&str], whole: bool) -> bool {
        less_than_a_device(name, &Chosen::of(operator, values.to_vec()), whole).is_some()
    }

    #[test]
    fn selectors_for_shared_devices_are_found_by_what_they_choose() {
        for (name, operator, values) in [
            ("nvidia.com/gpu.sharing-strategy", "In", &["time-slicing"][..]),
            ("nvidia.com/gpu.sharing-strategy", "NotIn", &["none"]),
            ("nvidia.com/mig-1g.5gb.sharing-strategy", "In", &["none", "mps"]),
            ("nvidia.com/gpu.replicas", "In", &["4"]),
            ("nvidia.com/gpu.replicas", "NotIn", &["1"]),
            ("nvidia.com/gpu.replicas", "Gt", &["1"]),
            ("nvidia.com/gpu.product", "In", &["NVIDIA-A100-SXM4-40GB-SHARED"]),
            ("nvidia.com/mps.capable", "In", &["true"]),
            ("nvidia.com/device-plugin.config", "In", &["sliced"]),
            ("cloud.google.com/gke-gpu-sharing-strategy", "In", &["time-sharing"]),
            ("cloud.google.com/gke-max-shared-clients-per-gpu", "In", &["3"]),
        ] {
            assert!(less(name, operator, values, true), "{name} {operator} {values:?}");
            assert!(less(name, operator, values, false), "{name} {operator} {values:?}");
        }
        for (name, operator, values) in [
            ("nvidia.com/gpu.sharing-strategy", "In", &["none"][..]),
            ("nvidia.com/gpu.sharing-strategy", "NotIn", &["time-slicing", "mps"]),
            ("nvidia.com/gpu.replicas", "In", &["1"]),
            ("nvidia.com/gpu.replicas", "Gt", &["0"]),
            ("nvidia.com/gpu.replicas", "Lt", &["2"]),
            ("nvidia.com/gpu.product", "NotIn", &["NVIDIA-A100-SXM4-40GB-SHARED"]),
            ("nvidia.com/gpu.product", "In", &["NVIDIA-A100-SXM4-40GB"]),
            ("nvidia.com/mps.capable", "In", &["false"]),
            ("nvidia.com/gpu.present", "In", &["true"]),
            ("nvidia.com/gpu.count", "Exists", &[]),
        ] {
            assert!(!less(name, operator, values, true), "{name} {operator} {values:?}");
        }
    }

    #[test]
    fn selectors_for_partitioned_gpus_matter_for_whole_gpus() {
        for (name, operator, values) in [
            ("nvidia.com/mig.strategy", "In", &["single"][..]),
            ("nvidia.com/mig.strategy", "NotIn", &["none", "mixed"]),
            ("nvidia.com/mig.config", "In", &["all-1g.5gb"]),
            ("nvidia.com/gpu.product", "In", &["NVIDIA-A100-SXM4-40GB-MIG-1g.5gb"]),
            ("cloud.google.com/gke-gpu-partition-size", "In", &["1g.5gb"]),
        ] {
            assert!(less(name, operator, values, true), "{name} {operator} {values:?}");
            assert!(!less(name, operator, values, false), "{name} {operator} {values:?}");
        }
        for (name, operator, values) in [
            ("nvidia.com/mig.strategy", "In", &["mixed"][..]),
            ("nvidia.com/mig.config", "In", &["all-disabled"]),
            ("nvidia.com/mig.config", "Exists", &[]),
            ("nvidia.com/mig.capable", "In", &["true"]),
            ("nvidia.com/mig.config.state", "In", &["success"]),
        ] {
            assert!(!less(name, operator, values, true), "{name} {operator} {values:?}");
        }
    }
}
