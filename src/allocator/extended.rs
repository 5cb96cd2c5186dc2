//! Extended resources that DeviceClasses stand behind (`DRAExtendedResource`): the claim that the scheduler makes of them.
//!
//! Follows `extendeddynamicresources.go` and `extendedresourcecache.go` of Kubernetes 1.35.6.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, ContainerExtendedResourceRequest, Node, Pod};
use k8s_openapi::api::resource::v1::{
    DeviceClaim, DeviceClass, DeviceRequest, ExactDeviceRequest, ResourceClaim, ResourceClaimSpec,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::quantity::Quantity as Amount;

/// Annotation of claims that the scheduler makes for extended resources.
pub const CLAIM_ANNOTATION: &str = "resource.kubernetes.io/extended-resource-claim";

/// Prefix of the resource name that each class has without naming one.
pub const IMPLICIT_PREFIX: &str = "deviceclass.resource.kubernetes.io/";

/// Which class stands behind which extended resource.
#[derive(Debug, Clone, Default)]
pub struct ExtendedResources<'a>(BTreeMap<String, &'a DeviceClass>);

impl<'a> ExtendedResources<'a> {
    /// Reads the classes. Where two name the same resource, the newer one counts, then the one with the lower name.
    #[must_use]
    pub fn of(classes: impl IntoIterator<Item = &'a DeviceClass>) -> Self {
        let mut by_resource: BTreeMap<String, &DeviceClass> = BTreeMap::new();
        for class in classes {
            let Some(name) = class.metadata.name.as_deref() else { continue };
            by_resource.insert(format!("{IMPLICIT_PREFIX}{name}"), class);
            let Some(resource) = &class.spec.extended_resource_name else { continue };
            let age = |class: &DeviceClass| class.metadata.creation_timestamp.clone().map(|time| time.0);
            let wins = by_resource.get(resource).is_none_or(|other| {
                age(class) > age(other)
                    || (age(class) == age(other) && class.metadata.name < other.metadata.name)
            });
            if wins {
                by_resource.insert(resource.clone(), class);
            }
        }
        Self(by_resource)
    }

    /// The class behind a resource.
    #[must_use]
    pub fn class_of(&self, resource: &str) -> Option<&'a DeviceClass> {
        self.0.get(resource).copied()
    }

    /// Resources that a pod requests and that a class stands behind, with the class.
    #[must_use]
    pub fn requested_by(&self, pod: &Pod) -> BTreeMap<String, &'a DeviceClass> {
        let names: BTreeSet<&String> =
            containers(pod).flat_map(|(_, c)| requests(c)).map(|(name, _)| name).collect();
        names.into_iter().filter_map(|name| Some((name.clone(), self.class_of(name)?))).collect()
    }

    /// The claim that the scheduler makes for a pod on a node, and which container uses which of its requests; `None` where the
    /// node's device plugin serves all of it, or the pod requests nothing of the kind. The claim's name is the prefix that the API
    /// server completes.
    #[must_use]
    pub fn claim(
        &self,
        pod: &Pod,
        node: &Node,
    ) -> Option<(ResourceClaim, Vec<ContainerExtendedResourceRequest>)> {
        let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
        let has_plugin = |name: &str| {
            allocatable.and_then(|all| all.get(name)).is_some_and(|it| Amount::whole(&it.0) != 0)
        };
        let mut made = Made::default();
        for (resource, class) in self.requested_by(pod) {
            if !has_plugin(&resource) {
                made.add(pod, &resource, class.metadata.name.as_deref().unwrap_or_default());
            }
        }
        if made.requests.is_empty() {
            return None;
        }
        made.requests.sort_by(|a, b| a.name.cmp(&b.name));
        let name = pod.metadata.name.clone().unwrap_or_default();
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            name: name.clone(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            controller: Some(true),
            ..OwnerReference::default()
        };
        let claim = ResourceClaim {
            metadata: ObjectMeta {
                namespace: pod.metadata.namespace.clone(),
                generate_name: Some(format!("{name}-extended-resources-")),
                name: Some(format!("{name}-extended-resources")),
                annotations: Some(BTreeMap::from([(CLAIM_ANNOTATION.to_owned(), "true".to_owned())])),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            spec: ResourceClaimSpec {
                devices: Some(DeviceClaim { requests: Some(made.requests), ..DeviceClaim::default() }),
            },
            status: None,
        };
        Some((claim, made.mappings))
    }
}

/// Requests of the claim so far, and who uses them.
#[derive(Default)]
struct Made {
    requests: Vec<DeviceRequest>,
    mappings: Vec<ContainerExtendedResourceRequest>,
}

impl Made {
    /// Adds what all containers want of a resource. An init container that ends uses the devices of the containers that start
    /// after it first; of what such containers want beyond that, the largest request is made, and all of them use it.
    fn add(&mut self, pod: &Pod, resource: &str, class: &str) {
        let all: Vec<(bool, &Container)> = containers(pod).collect();
        let mut long: Vec<Option<DeviceRequest>> = vec![None; all.len()];
        for (index, (ends, container)) in all.iter().enumerate() {
            if !ends {
                let (request, mappings) = wanted(index, container, resource, class, &[]);
                long[index] = request;
                self.mappings.extend(mappings);
            }
        }
        let mut largest: Option<DeviceRequest> = None;
        let mut names = BTreeSet::new();
        let mut short = Vec::new();
        for (index, (ends, container)) in all.iter().enumerate() {
            if !ends {
                continue;
            }
            let (request, mappings) = wanted(index, container, resource, class, &long[index..]);
            short.extend(mappings);
            let Some(request) = request else { continue };
            names.insert(request.name.clone());
            if largest.as_ref().is_none_or(|it| count(it) < count(&request)) {
                largest = Some(request);
            }
        }
        if let Some(largest) = largest {
            for mapping in short.iter_mut().filter(|it| names.contains(&it.request_name)) {
                mapping.request_name.clone_from(&largest.name);
            }
            self.requests.push(largest);
        }
        self.requests.extend(long.into_iter().flatten());
        self.mappings.extend(short);
    }
}

/// What a container wants beyond the requests that it can use before its own.
fn wanted(
    index: usize,
    container: &Container,
    resource: &str,
    class: &str,
    reusable: &[Option<DeviceRequest>],
) -> (Option<DeviceRequest>, Vec<ContainerExtendedResourceRequest>) {
    let mapping = |request: &str| ContainerExtendedResourceRequest {
        container_name: container.name.clone(),
        resource_name: resource.to_owned(),
        request_name: request.to_owned(),
    };
    let position = requests(container).position(|(name, _)| name == resource);
    let amount = requests(container)
        .find(|(name, _)| *name == resource)
        .map_or(0, |(_, amount)| Amount::whole(&amount.0));
    let (Some(position), true) = (position, amount > 0) else { return (None, Vec::new()) };
    let (mut sum, mut mappings) = (0, Vec::new());
    for request in reusable.iter().flatten() {
        sum = count(request).saturating_add(sum);
        mappings.push(mapping(&request.name));
        if sum >= amount {
            return (None, mappings);
        }
    }
    let name = format!("container-{index}-request-{position}");
    mappings.push(mapping(&name));
    let exactly = ExactDeviceRequest {
        device_class_name: class.to_owned(),
        allocation_mode: Some("ExactCount".to_owned()),
        count: Some(amount - sum),
        ..ExactDeviceRequest::default()
    };
    (Some(DeviceRequest { name, exactly: Some(exactly), ..DeviceRequest::default() }), mappings)
}

/// Init containers, then containers, with whether the container ends before the next one starts.
fn containers(pod: &Pod) -> impl Iterator<Item = (bool, &Container)> {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|it| it.init_containers.as_deref()).unwrap_or_default();
    let main = spec.map(|it| it.containers.as_slice()).unwrap_or_default();
    let ends = |container: &Container| container.restart_policy.as_deref() != Some("Always");
    init.iter().map(move |it| (ends(it), it)).chain(main.iter().map(|it| (false, it)))
}

/// What a container requests, by name of the resource. The API server sets requests to the limits where they are missing, and
/// a manifest often has limits only.
pub fn requests(container: &Container) -> impl Iterator<Item = (&String, &Quantity)> {
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|it| it.limits.as_ref()).into_iter().flatten();
    let requests = resources.and_then(|it| it.requests.as_ref()).into_iter().flatten();
    limits.chain(requests).collect::<BTreeMap<_, _>>().into_iter()
}

fn count(request: &DeviceRequest) -> i64 {
    request.exactly.as_ref().and_then(|it| it.count).unwrap_or(0)
}
