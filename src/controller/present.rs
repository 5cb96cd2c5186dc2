//! What MigNodes do not say, or not yet: whose driver is gone, and what was allocated a moment ago.

use std::collections::HashMap;

use k8s_openapi::api::resource::v1::{DeviceRequestAllocationResult, ResourceClaim};
use kubectl_mig::cluster::Slices;

use crate::demand::{GpuState, NodeState, Placed, Possible};

/// Leaves out nodes without slices. A driver publishes one even for nothing, and the kubelet removes them where there is no driver any
/// more: what the MigNode says is of the past then, and nothing there serves a pod.
pub(crate) fn only_with_slices(nodes: &mut Vec<NodeState>, slices: &Slices, driver: &str) {
    nodes.retain(|it| slices.has(it.name(), driver));
}

/// Adds the devices that claims have and MigNodes do not show yet: the driver writes down what it has prepared, and the kubelet may ask
/// for that a minute after the device was allocated.
pub(crate) fn add_allocated<'c>(
    nodes: &mut [NodeState],
    claims: impl IntoIterator<Item = &'c ResourceClaim>,
    driver: &str,
) {
    let positions: HashMap<String, usize> = nodes.iter().map(|it| it.name().to_owned()).zip(0..).collect();
    for result in claims.into_iter().flat_map(results) {
        if result.driver != driver || result.admin_access == Some(true) {
            continue;
        }
        let Some(&node) = positions.get(node_of(result)) else { continue };
        let gpus = &mut nodes[node].gpus;
        let Some((gpu, device)) = device_of(gpus, result) else { continue };
        let placed = Placed { profile: device.profile.clone(), start: device.start, size: device.size };
        let gpu = &mut gpus[gpu];
        if !gpu.held.contains(&placed) {
            gpu.held.push(placed);
        }
    }
}

/// The devices of a claim.
pub(crate) fn results(claim: &ResourceClaim) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    let devices = claim.status.as_ref().and_then(|it| it.allocation.as_ref()?.devices.as_ref());
    devices.into_iter().flat_map(|it| it.results.iter().flatten())
}

/// The node of a device: pools are called by their nodes, and by the driver where one node has several.
pub(crate) fn node_of(result: &DeviceRequestAllocationResult) -> &str {
    result.pool.split_once('/').map_or(result.pool.as_str(), |it| it.0)
}

/// A device that a claim has: of which of these GPUs of its node, and what it is.
pub(crate) fn device_of<'g>(
    gpus: &'g [GpuState],
    result: &DeviceRequestAllocationResult,
) -> Option<(usize, &'g Possible)> {
    let found = |(position, gpu): (usize, &'g GpuState)| {
        Some((position, gpu.kind.device_called(result.device.strip_prefix(&gpu.name)?)?))
    };
    gpus.iter().enumerate().find_map(found)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;
    use k8s_openapi::api::resource::v1::ResourceSlice;
    use mig_model::mig_node::MigNode;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;
    use crate::demand::Kinds;

    const DRIVER: &str = "mig.dra-driver.dev";

    fn of<T: DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    /// A node with an H100 of which claims are said to hold nothing.
    fn node(name: &str) -> NodeState {
        let profile = |name: &str, starts: &[u32], size: u32| {
            let placements: Vec<Value> = starts.iter().map(|it| json!({"start": it, "size": size})).collect();
            json!({"profile": name, "placements": placements})
        };
        let profiles = [profile("1g.10gb", &[0, 1], 1), profile("full", &[0], 8)];
        let gpu =
            json!({"name": "gpu-0000-1a-00", "uuid": "GPU-0", "migMode": "enabled", "profiles": profiles});
        let mig_node: MigNode = of(
            json!({"apiVersion": "mig.dra-driver.dev/v1alpha1", "kind": "MigNode", "metadata": {"name": name}, "status": {"mode": "layout", "gpus": [gpu]}}),
        );
        let node: Node = of(json!({"metadata": {"name": name}}));
        NodeState::of(&mig_node, node.into(), true, &mut Kinds::default())
    }

    #[test]
    fn a_node_without_slices_of_the_driver_is_left_out() {
        let slice = |node: &str, driver: &str| -> ResourceSlice {
            let pool = json!({"name": node, "generation": 1, "resourceSliceCount": 1});
            of(
                json!({"metadata": {"name": format!("{node}-{driver}")}, "spec": {"driver": driver, "nodeName": node, "pool": pool}}),
            )
        };
        let slices = Slices::from_iter([slice("b", DRIVER), slice("a", "other.example.com")]);
        let mut nodes = vec![node("a"), node("b"), node("c")];
        only_with_slices(&mut nodes, &slices, DRIVER);
        assert_eq!(nodes.iter().map(NodeState::name).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn a_device_that_a_claim_has_is_held_before_the_driver_says_so() {
        let claim = |device: &str, more: Value| -> ResourceClaim {
            let mut result =
                json!({"request": "r", "driver": DRIVER, "pool": "a/mig.dra-driver.dev", "device": device});
            for (key, value) in more.as_object().into_iter().flatten() {
                result[key] = value.clone();
            }
            of(
                json!({"metadata": {}, "spec": {}, "status": {"allocation": {"devices": {"results": [result]}}}}),
            )
        };
        let small = "gpu-0000-1a-00-mig-1g-10gb-1";
        let none = json!({});
        let others = [
            claim(small, json!({"driver": "other.example.com"})),
            claim(small, json!({"adminAccess": true})),
            claim(small, json!({"pool": "c"})),
            claim("gpu-0000-1a-00-mig-9g-10gb-1", none.clone()),
            claim("gpu-0000-1b-00", none.clone()),
            of(json!({"metadata": {}, "spec": {}})),
        ];
        let held = |claims: &[ResourceClaim]| {
            let mut nodes = vec![node("b"), node("a")];
            add_allocated(&mut nodes, claims, DRIVER);
            let names = |it: &NodeState| {
                it.gpus[0].held.iter().map(|it| format!("{}@{}", it.profile, it.start)).collect::<Vec<_>>()
            };
            (names(&nodes[0]), names(&nodes[1]))
        };
        assert_eq!(held(&others), (Vec::new(), Vec::new()));
        let twice = [claim(small, none.clone()), claim(small, none.clone())];
        assert_eq!(held(&twice), (Vec::new(), vec!["1g.10gb@1".to_owned()]));
        assert_eq!(held(&[claim("gpu-0000-1a-00", none)]).1, ["full@0"]);
    }
}
