//! What claims ask for.

use dra_allocator::is_allocated;
use k8s_openapi::api::resource::v1::{DeviceRequest, ResourceClaim};

pub(super) fn claim_of_class(class: &str) -> ResourceClaim {
    use k8s_openapi::api::resource::v1::{DeviceClaim, ExactDeviceRequest};
    let exactly = ExactDeviceRequest { device_class_name: class.to_owned(), ..ExactDeviceRequest::default() };
    let request = DeviceRequest { name: "r".to_owned(), exactly: Some(exactly), ..DeviceRequest::default() };
    let mut claim = ResourceClaim::default();
    claim.spec.devices = Some(DeviceClaim { requests: Some(vec![request]), ..DeviceClaim::default() });
    claim
}

pub(super) fn requests(claim: &ResourceClaim) -> impl Iterator<Item = &DeviceRequest> {
    claim.spec.devices.iter().flat_map(|it| it.requests.iter().flatten())
}

pub(super) fn classes(request: &DeviceRequest) -> Vec<&str> {
    let listed = request.first_available.iter().flatten().map(|it| it.device_class_name.as_str());
    listed.chain(request.exactly.iter().map(|it| it.device_class_name.as_str())).collect()
}

pub(super) fn selectors(request: &DeviceRequest) -> Vec<String> {
    let listed = request.first_available.iter().flatten().filter_map(|it| it.selectors.as_ref());
    let all = listed.chain(request.exactly.iter().filter_map(|it| it.selectors.as_ref())).flatten();
    all.filter_map(|it| Some(it.cel.as_ref()?.expression.clone())).collect()
}

pub(super) fn is_admin(request: &DeviceRequest) -> bool {
    request.exactly.as_ref().is_some_and(|it| it.admin_access == Some(true))
}

/// Whether the claim is for one device, whatever alternative it gets.
pub(super) fn is_single(claim: &ResourceClaim) -> bool {
    let mut all = requests(claim);
    let (Some(request), None) = (all.next(), all.next()) else { return false };
    let is_one = |mode: Option<&str>, count: Option<i64>| {
        mode.is_none_or(|it| it == "ExactCount") && count.unwrap_or(1) == 1
    };
    let mut listed = request.first_available.iter().flatten();
    !is_admin(request)
        && listed.all(|it| is_one(it.allocation_mode.as_deref(), it.count))
        && request.exactly.iter().all(|it| is_one(it.allocation_mode.as_deref(), it.count))
}

/// Whether a claim has no devices yet.
pub(super) fn is_waiting(claim: &ResourceClaim) -> bool {
    !is_allocated(claim)
}
