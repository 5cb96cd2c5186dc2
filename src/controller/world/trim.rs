//! What of an object is kept: what decisions go by. The rest would take memory, and its changes would wake the controller.

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, Node, NodeCondition, NodeSpec, NodeStatus, Pod, PodCondition, PodSpec,
    PodStatus, ResourceQuota, Volume,
};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceClaimSpec, ResourceClaimTemplate};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Annotations of Kubernetes that say where a claim comes from.
const CLAIM_ANNOTATIONS: &str = "resource.kubernetes.io/";

fn identity(metadata: &mut ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        namespace: metadata.namespace.take(),
        name: metadata.name.take(),
        uid: metadata.uid.take(),
        labels: metadata.labels.take(),
        creation_timestamp: metadata.creation_timestamp.take(),
        deletion_timestamp: metadata.deletion_timestamp.take(),
        ..ObjectMeta::default()
    }
}

/// Whether a pod asks for devices: with claims, or with an extended resource, which a class may stand behind.
#[must_use]
pub fn asks_for_devices(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let has_claims = spec.resource_claims.as_ref().is_some_and(|it| !it.is_empty());
    has_claims || extended_resources(spec).next().is_some()
}

/// Names of extended resources that containers request.
pub(crate) fn extended_resources(spec: &PodSpec) -> impl Iterator<Item = &str> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let amounts = containers
        .flat_map(|it| it.resources.iter())
        .flat_map(|it| it.limits.iter().flatten().chain(it.requests.iter().flatten()));
    // Kubernetes' own resources have no domain, except `kubernetes.io/…`.
    amounts.map(|(name, _)| name.as_str()).filter(|it| it.contains('/') && !it.starts_with("kubernetes.io/"))
}

/// The condition that the scheduler sets on a pod for which it finds no place.
#[must_use]
pub fn unschedulable(pod: &Pod) -> Option<&PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|it| {
        it.type_ == "PodScheduled" && it.status == "False" && it.reason.as_deref() == Some("Unschedulable")
    })
}

/// A pod, or the metadata of one that asks for no device.
pub(super) fn pod(mut pod: Pod) -> Result<Pod, Box<ObjectMeta>> {
    if !asks_for_devices(&pod) {
        return Err(Box::new(pod.metadata));
    }
    let spec = pod.spec.unwrap_or_default();
    let spec = PodSpec {
        affinity: spec.affinity,
        containers: spec.containers.into_iter().map(container).collect(),
        init_containers: spec.init_containers.map(|it| it.into_iter().map(container).collect()),
        node_name: spec.node_name,
        node_selector: spec.node_selector,
        overhead: spec.overhead,
        priority: spec.priority,
        resource_claims: spec.resource_claims,
        resources: spec.resources,
        scheduler_name: spec.scheduler_name,
        scheduling_gates: spec.scheduling_gates,
        tolerations: spec.tolerations,
        ..PodSpec::default()
    };
    let status = pod.status.unwrap_or_default();
    let mut conditions = status.conditions.unwrap_or_default();
    conditions.retain(|it| it.type_ == "PodScheduled");
    for condition in &mut conditions {
        condition.last_probe_time = None;
    }
    let status = PodStatus {
        conditions: Some(conditions),
        extended_resource_claim_status: status.extended_resource_claim_status,
        phase: status.phase,
        resource_claim_statuses: status.resource_claim_statuses,
        ..PodStatus::default()
    };
    Ok(Pod { metadata: identity(&mut pod.metadata), spec: Some(spec), status: Some(status) })
}

/// A pod with a node: what decides where its replacement can be placed, and who replaces it; or the metadata of one that asks for no
/// device.
pub(super) fn movable_pod(mut pod: Pod) -> Result<Pod, Box<ObjectMeta>> {
    let owners = pod.metadata.owner_references.take();
    let spec = pod.spec.as_mut();
    let (constraints, volumes, grace) = spec.map_or((None, None, None), |it| {
        (it.topology_spread_constraints.take(), it.volumes.take(), it.termination_grace_period_seconds)
    });
    let containers = pod.spec.iter_mut().flat_map(|it| &mut it.containers);
    let of_host = |it: Vec<ContainerPort>| {
        let ports: Vec<_> = it.into_iter().filter(|it| it.host_port.is_some()).collect();
        (!ports.is_empty()).then_some(ports)
    };
    let ports: Vec<_> = containers.map(|it| it.ports.take().and_then(of_host)).collect();
    let started = pod.status.as_ref().and_then(|it| it.start_time.clone());
    let mut pod = self::pod(pod)?;
    pod.metadata.owner_references = owners;
    if let Some(spec) = &mut pod.spec {
        let binds = |it: &Volume| it.persistent_volume_claim.is_some() || it.ephemeral.is_some();
        let bare = |it: Volume| Volume {
            name: it.name,
            persistent_volume_claim: it.persistent_volume_claim,
            ephemeral: it.ephemeral,
            ..Volume::default()
        };
        let volumes: Vec<Volume> = volumes.into_iter().flatten().filter(binds).map(bare).collect();
        spec.volumes = (!volumes.is_empty()).then_some(volumes);
        spec.topology_spread_constraints = constraints;
        spec.termination_grace_period_seconds = grace;
        spec.containers.iter_mut().zip(ports).for_each(|(it, ports)| it.ports = ports);
    }
    if let Some(status) = &mut pod.status {
        status.start_time = started;
        status.conditions = None;
    }
    Ok(pod)
}

fn container(it: Container) -> Container {
    Container {
        name: it.name,
        resources: it.resources,
        restart_policy: it.restart_policy,
        ..Container::default()
    }
}

pub(super) fn node(mut node: Node) -> Node {
    let spec = node.spec.unwrap_or_default();
    let spec = NodeSpec { taints: spec.taints, unschedulable: spec.unschedulable, ..NodeSpec::default() };
    let status = node.status.unwrap_or_default();
    let mut conditions = status.conditions.unwrap_or_default();
    conditions.retain(|it| it.type_ == "Ready");
    let ready =
        |it: NodeCondition| NodeCondition { status: it.status, type_: it.type_, ..NodeCondition::default() };
    let status = NodeStatus {
        allocatable: status.allocatable,
        conditions: Some(conditions.into_iter().map(ready).collect()),
        ..NodeStatus::default()
    };
    Node { metadata: identity(&mut node.metadata), spec: Some(spec), status: Some(status) }
}

pub(super) fn claim(mut claim: ResourceClaim) -> ResourceClaim {
    let mut annotations = claim.metadata.annotations.take();
    if let Some(annotations) = &mut annotations {
        annotations.retain(|key, _| key.starts_with(CLAIM_ANNOTATIONS));
    }
    let metadata = ObjectMeta { annotations, ..identity(&mut claim.metadata) };
    let mut status = claim.status;
    if let Some(status) = &mut status {
        status.devices = None;
        if let Some(devices) = status.allocation.as_mut().and_then(|it| it.devices.as_mut()) {
            devices.config = None;
        }
    }
    ResourceClaim { metadata, spec: without_config(claim.spec), status }
}

pub(super) fn template(mut template: ResourceClaimTemplate) -> ResourceClaimTemplate {
    let mut spec = template.spec;
    spec.metadata = None;
    spec.spec = without_config(spec.spec);
    ResourceClaimTemplate { metadata: identity(&mut template.metadata), spec }
}

fn without_config(mut spec: ResourceClaimSpec) -> ResourceClaimSpec {
    if let Some(devices) = &mut spec.devices {
        devices.config = None;
    }
    spec
}

pub(super) fn class(mut class: DeviceClass) -> DeviceClass {
    class.spec.config = None;
    DeviceClass { metadata: identity(&mut class.metadata), spec: class.spec }
}

pub(super) fn quota(mut quota: ResourceQuota) -> ResourceQuota {
    quota.metadata = identity(&mut quota.metadata);
    quota
}
