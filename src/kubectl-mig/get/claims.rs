//! Claims: those that hold a device of a GPU, and those that hold nothing yet. Pure.

use std::collections::{BTreeSet, HashMap};

use dra_allocator::{ClaimRef, DeviceId};
use k8s_openapi::api::resource::v1::{DeviceRequest, DeviceRequestAllocationResult, ResourceClaim};
use k8s_openapi::jiff::Timestamp;

use super::report::{ClaimRow, DeviceRow, GpuRow, RequestRow};

/// What is known of a device that a claim holds: profile, GPU and node.
type Located<'g> = HashMap<DeviceId, (&'g str, &'g GpuRow)>;

/// The rows of claims. A claim that holds devices of other drivers only is left out.
pub(super) fn rows(claims: &[ResourceClaim], gpus: &[GpuRow], drivers: &BTreeSet<&str>) -> Vec<ClaimRow> {
    let mut located = Located::new();
    for gpu in gpus {
        for holder in &gpu.holders {
            let (driver, pool) = (gpu.driver.clone(), gpu.pool.clone());
            let id = DeviceId { driver, pool, device: holder.device.clone() };
            located.insert(id, (&holder.profile, gpu));
        }
    }
    let mut rows: Vec<ClaimRow> = claims.iter().filter_map(|it| row(it, &located, drivers)).collect();
    rows.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    rows
}

fn row(claim: &ResourceClaim, located: &Located<'_>, drivers: &BTreeSet<&str>) -> Option<ClaimRow> {
    let allocation = claim.status.as_ref().and_then(|it| it.allocation.as_ref());
    let results = allocation.and_then(|it| it.devices.as_ref()?.results.as_deref());
    let of_gpus = results.unwrap_or_default().iter().filter(|it| drivers.contains(it.driver.as_str()));
    let devices: Vec<DeviceRow> = of_gpus.map(|it| device(it, located)).collect();
    if allocation.is_some() && devices.is_empty() {
        return None;
    }
    let requests = claim.spec.devices.as_ref().and_then(|it| it.requests.as_deref());
    let ClaimRef { namespace, name } = ClaimRef::of(claim);
    Some(ClaimRow {
        namespace,
        name,
        state: state(claim),
        requests: requests.unwrap_or_default().iter().map(request).collect(),
        devices,
        pods: pods(claim),
        since: since(claim),
    })
}

fn device(result: &DeviceRequestAllocationResult, located: &Located<'_>) -> DeviceRow {
    let DeviceRequestAllocationResult { driver, pool, device, .. } = result.clone();
    let id = DeviceId { driver, pool, device };
    let known = located.get(&id);
    let DeviceId { driver, pool, device } = id;
    DeviceRow {
        profile: known.map(|it| it.0.to_owned()),
        gpu: known.map(|it| it.1.name.clone()),
        node: known.map(|it| it.1.node.clone()),
        driver,
        pool,
        device,
    }
}

fn request(request: &DeviceRequest) -> RequestRow {
    let name = request.name.clone();
    let Some(exactly) = &request.exactly else {
        let alternatives = request.first_available.iter().flatten();
        let classes = alternatives.map(|it| it.device_class_name.clone()).collect();
        return RequestRow { name, classes, count: None };
    };
    let is_all = exactly.allocation_mode.as_deref() == Some("All");
    let count = if is_all { None } else { Some(exactly.count.unwrap_or(1)) };
    RequestRow { name, classes: vec![exactly.device_class_name.clone()], count }
}

/// As kubectl prints it.
fn state(claim: &ResourceClaim) -> String {
    let status = claim.status.as_ref();
    let mut states = Vec::new();
    if claim.metadata.deletion_timestamp.is_some() {
        states.push("deleted");
    }
    match status.and_then(|it| it.allocation.as_ref()) {
        None => states.push("pending"),
        Some(_) => states.push("allocated"),
    }
    if status.is_some_and(|it| it.reserved_for.as_ref().is_some_and(|it| !it.is_empty())) {
        states.push("reserved");
    }
    states.join(",")
}

/// The consumers of a claim: pods by name, others as `<resource>/<name>`.
pub(super) fn pods(claim: &ResourceClaim) -> Vec<String> {
    let consumers = claim.status.iter().flat_map(|it| it.reserved_for.iter().flatten());
    let name = |resource: &str, name: &str| {
        if resource == "pods" { name.to_owned() } else { format!("{resource}/{name}") }
    };
    consumers.map(|it| name(&it.resource, &it.name)).collect()
}

/// When a claim was created. For a claim that Kubernetes made for a pod this is the pod's age.
pub(super) fn since(claim: &ResourceClaim) -> Option<Timestamp> {
    claim.metadata.creation_timestamp.as_ref().map(|it| it.0)
}
