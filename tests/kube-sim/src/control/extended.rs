//! Pods with extended resources that a device class serves (feature gate `DRAExtendedResource`): the scheduler makes one claim for
//! all of them, as `extendeddynamicresources.go` of Kubernetes 1.35 does.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{owned, place, text};
use crate::api::error::ApiError;
use crate::api::kinds::{POD, RESOURCE_CLAIM};
use crate::api::patch::Patch;
use crate::api::quota::{EXTENDED_CLAIM, amount, is_extended_resource};
use crate::api::store::{DeleteOptions, Part, Store, WriteOptions};

const IMPLICIT: &str = "deviceclass.resource.kubernetes.io/";

/// The claim for a pod's extended resources on a node, not stored yet.
#[derive(Debug, Clone)]
pub(super) struct SpecialClaim {
    object: Value,
    mappings: Vec<Value>,
}

/// The extended resources of a container with their amounts, and the index of each among all that the container requests.
fn requested(container: &Value) -> Vec<(usize, String, i64)> {
    let requests = container["resources"]["requests"].as_object().cloned().unwrap_or_default();
    // A BTreeMap, because the names in a claim depend on the order.
    let sorted: BTreeMap<String, Value> = requests.into_iter().collect();
    let all = sorted.into_iter().enumerate();
    let extended = all.filter(|(_, (name, value))| is_extended_resource(name) && amount(value) > 0);
    extended.map(|(index, (name, value))| (index, name, amount(&value))).collect()
}

/// The class that serves a resource: the one of that implicit name, else of those that name it the newest, then the first.
fn class_of<'c>(resource: &str, classes: &'c [DeviceClass]) -> Option<&'c str> {
    let name = |class: &'c DeviceClass| class.metadata.name.as_deref();
    if let Some(implicit) = resource.strip_prefix(IMPLICIT) {
        return classes.iter().filter_map(name).find(|class| *class == implicit);
    }
    let named = classes.iter().filter(|c| c.spec.extended_resource_name.as_deref() == Some(resource));
    let age = |class: &DeviceClass| class.metadata.creation_timestamp.as_ref().map(|time| time.0);
    named.min_by(|a, b| age(b).cmp(&age(a)).then(name(a).cmp(&name(b)))).and_then(name)
}

/// The claim that a pod needs for its extended resources on a node, if any.
///
/// # Errors
/// The resource that the node does not have and no class serves.
pub(super) fn special_claim(
    pod: &Value,
    node: &Node,
    classes: &[DeviceClass],
    gate: bool,
) -> Result<Option<SpecialClaim>, String> {
    let list = |field: &str| pod["spec"][field].as_array().cloned().unwrap_or_default();
    let (init, main) = (list("initContainers"), list("containers"));
    let is_brief = |container: &Value| text(container, "restartPolicy") != "Always";
    let indexed = || init.iter().chain(&main).enumerate();
    // Init containers that end come last: what the others hold by then is there for them, too.
    let is_last = |index: usize, container: &Value| index < init.len() && is_brief(container);
    let long = indexed().filter(|(index, container)| !is_last(*index, container));
    let brief = indexed().filter(|(index, container)| is_last(*index, container));
    let mut requests: Vec<Value> = Vec::new();
    let mut mappings = Vec::new();
    // Requests by resource, with their counts.
    let mut made: BTreeMap<String, Vec<(String, i64)>> = BTreeMap::new();
    for (index, container) in long.chain(brief) {
        for (position, resource, wanted) in requested(container) {
            let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref()?.get(&resource));
            let by_plugin = allocatable.is_some_and(|quantity| amount(&json!(quantity)) > 0);
            let class = class_of(&resource, classes).filter(|_| gate && !by_plugin);
            // What a device plugin offers is not simulated, so it is missing, too.
            let Some(class) = class else { return Err(resource) };
            let mut mapping = |request: &str| {
                let name = &container["name"];
                mappings
                    .push(json!({"containerName": name, "resourceName": resource, "requestName": request}));
            };
            let mut missing = wanted;
            for (request, count) in
                made.get(&resource).into_iter().flatten().filter(|_| is_last(index, container))
            {
                if missing > 0 {
                    mapping(request);
                    missing -= count;
                }
            }
            if missing > 0 {
                let request = format!("container-{index}-request-{position}");
                mapping(&request);
                let exactly =
                    json!({"deviceClassName": class, "allocationMode": "ExactCount", "count": missing});
                requests.push(json!({"name": request, "exactly": exactly}));
                made.entry(resource).or_default().push((request, missing));
            }
        }
    }
    if requests.is_empty() {
        return Ok(None);
    }
    let (namespace, name) = place(pod);
    let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": pod["metadata"]["uid"], "controller": true,
        "blockOwnerDeletion": true}]);
    let metadata = json!({"generateName": format!("{name}-extended-resources-"), "namespace": namespace,
        "annotations": {EXTENDED_CLAIM: "true"}, "ownerReferences": owner});
    Ok(Some(SpecialClaim {
        object: json!({"metadata": metadata, "spec": {"devices": {"requests": requests}}}),
        mappings,
    }))
}

impl SpecialClaim {
    /// The claim as the allocator takes it.
    pub(super) fn typed(&self) -> Option<ResourceClaim> {
        ResourceClaim::deserialize(&self.object).ok()
    }

    /// Stores the claim and notes it in the pod's status; answers the claim.
    ///
    /// # Errors
    /// As the server answers, for instance when a quota is exceeded.
    pub(super) fn store(&self, store: &Store, pod: &Value) -> Result<Value, ApiError> {
        let (namespace, name) = place(pod);
        // One of an attempt that did not come to its end.
        for stale in owned::owned(store, &RESOURCE_CLAIM, pod) {
            if stale["metadata"]["annotations"][EXTENDED_CLAIM] == "true" {
                store.delete(&RESOURCE_CLAIM, namespace, place(&stale).1, &DeleteOptions::default())?;
            }
        }
        let options = WriteOptions::default();
        let claim = store.create(&RESOURCE_CLAIM, namespace, self.object.clone(), &options)?;
        let note = json!({"resourceClaimName": place(&claim).1, "requestMappings": self.mappings});
        let patch = Patch::Merge(json!({"status": {"extendedResourceClaimStatus": note}}));
        store.patch(&POD, namespace, name, &patch, Part::Status, &options)?;
        Ok((*claim).clone())
    }
}
