//! Pods with extended resources that a device class serves (feature gate `DRAExtendedResource`): the scheduler makes one claim for
//! all of them.

use dra_allocator::extended::{CLAIM_ANNOTATION, ExtendedResources};
use k8s_openapi::api::core::v1::{ContainerExtendedResourceRequest, Node, Pod};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim};
use serde::Deserialize;
use serde_json::{Value, json};

use super::objects::place;
use super::owned;
use crate::api::error::ApiError;
use crate::api::kinds::{POD, RESOURCE_CLAIM};
use crate::api::patch::Patch;
use crate::api::quota::{amount, is_extended_resource};
use crate::api::store::{DeleteOptions, Part, Store, WriteOptions};

/// The claim for a pod's extended resources on a node, not stored yet, and which container uses which of its requests.
pub(super) type SpecialClaim = (ResourceClaim, Vec<ContainerExtendedResourceRequest>);

/// The claim that a pod needs for its extended resources on a node, if any.
///
/// # Errors
/// The resource that the node does not have and no class serves. What a device plugin offers is not simulated, so it is missing,
/// too.
pub(super) fn special_claim(
    pod: &Value,
    node: &Node,
    classes: &[DeviceClass],
    gate: bool,
) -> Result<Option<SpecialClaim>, String> {
    let containers = ["initContainers", "containers"].into_iter();
    let containers = containers.filter_map(|list| pod["spec"][list].as_array()).flatten();
    let requests =
        containers.filter_map(|container| container["resources"]["requests"].as_object()).flatten();
    let extended = requests.filter(|(name, value)| is_extended_resource(name) && amount(value) > 0);
    let mut extended = extended.map(|(name, _)| name).peekable();
    if extended.peek().is_none() {
        return Ok(None);
    }
    let resources = ExtendedResources::of(classes);
    let by_plugin = |name: &str| {
        let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
        allocatable.and_then(|all| all.get(name)).is_some_and(|quantity| amount(&json!(quantity)) > 0)
    };
    let is_served = |name: &String| gate && resources.class_of(name).is_some() && !by_plugin(name);
    if let Some(missing) = extended.find(|name| !is_served(name)) {
        return Err(missing.clone());
    }
    // Everything in the store went through this type.
    Ok(Pod::deserialize(pod).ok().and_then(|pod| resources.claim(&pod, node)))
}

/// Stores the claim and notes it in the pod's status; answers the claim.
///
/// # Errors
/// As the server answers, for instance when a quota is exceeded.
pub(super) fn store_claim(store: &Store, pod: &Value, special: &SpecialClaim) -> Result<Value, ApiError> {
    let (namespace, name) = place(pod);
    // One of an attempt that did not come to its end.
    for stale in owned::owned(store, &RESOURCE_CLAIM, pod) {
        if stale["metadata"]["annotations"][CLAIM_ANNOTATION] == "true" {
            store.delete(&RESOURCE_CLAIM, namespace, place(&stale).1, &DeleteOptions::default())?;
        }
    }
    let (mut claim, mappings) = special.clone();
    claim.metadata.name = None;
    let options = WriteOptions::default();
    let claim = store.create(&RESOURCE_CLAIM, namespace, json!(claim), &options)?;
    let note = json!({"resourceClaimName": place(&claim).1, "requestMappings": mappings});
    let patch = Patch::Merge(json!({"status": {"extendedResourceClaimStatus": note}}));
    store.patch(&POD, namespace, name, &patch, Part::Status, &options)?;
    Ok((*claim).clone())
}
