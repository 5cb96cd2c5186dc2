//! `matchAttribute`: the devices of some requests share one value.

use k8s_openapi::api::resource::v1::{DeviceAttribute, DeviceConstraint};

use crate::pool::Candidate;

/// Whether the constraint is about a request; alternatives are covered by their request's name too.
pub(super) fn covers(constraint: &DeviceConstraint, request: &str) -> bool {
    let requests = constraint.requests.as_deref().unwrap_or_default();
    let parent = request.split('/').next();
    requests.is_empty() || requests.iter().any(|r| r == request || Some(r.as_str()) == parent)
}

/// The device's value of a fully qualified attribute; an unqualified name belongs to the driver's domain.
pub(super) fn value<'a>(candidate: &Candidate<'a>, attribute: &str) -> Option<&'a DeviceAttribute> {
    let attributes = candidate.device.attributes.as_ref()?;
    attributes.get(attribute).or_else(|| {
        let (domain, name) = attribute.split_once('/')?;
        if domain == candidate.id.driver { attributes.get(name) } else { None }
    })
}

/// Whether the device can join the ones already chosen under this constraint.
pub(super) fn holds<'c, 'a: 'c>(
    constraint: &DeviceConstraint,
    mut chosen: impl Iterator<Item = &'c Candidate<'a>>,
    candidate: &Candidate<'_>,
) -> bool {
    let Some(attribute) = &constraint.match_attribute else { return true };
    let Some(wanted) = value(candidate, attribute) else { return false };
    chosen.all(|other| value(other, attribute) == Some(wanted))
}
