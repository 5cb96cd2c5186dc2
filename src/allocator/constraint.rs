//! `matchAttribute`: the devices of some requests share one value.

use k8s_openapi::api::resource::v1::{Device, DeviceAttribute, DeviceConstraint};

/// Whether the constraint is about a request (`request` or `request/alternative`); alternatives are covered by their request's
/// name, too.
pub(crate) fn covers(constraint: &DeviceConstraint, request: &str) -> bool {
    let requests = constraint.requests.as_deref().unwrap_or_default();
    let parent = request.split('/').next();
    requests.is_empty() || requests.iter().any(|r| r == request || Some(r.as_str()) == parent)
}

/// The device's value of a fully qualified attribute; an unqualified name belongs to the driver's domain.
pub(crate) fn value<'a>(driver: &str, device: &'a Device, attribute: &str) -> Option<&'a DeviceAttribute> {
    let attributes = device.attributes.as_ref()?;
    attributes.get(attribute).or_else(|| {
        let (domain, name) = attribute.split_once('/')?;
        if domain == driver { attributes.get(name) } else { None }
    })
}

/// A `matchAttribute` and the devices chosen under it.
#[derive(Debug)]
pub(crate) struct MatchAttribute<'a> {
    constraint: &'a DeviceConstraint,
    attribute: &'a str,
    /// The first device's value. Kept when that device is given back, as upstream keeps it, and replaced by the next first.
    value: Option<&'a DeviceAttribute>,
    devices: usize,
}

impl<'a> MatchAttribute<'a> {
    /// `None` when the constraint is of another kind.
    pub(crate) fn new(constraint: &'a DeviceConstraint) -> Option<Self> {
        let attribute = constraint.match_attribute.as_deref()?;
        Some(Self { constraint, attribute, value: None, devices: 0 })
    }

    /// Adds a device for a request, if the constraint allows it.
    pub(crate) fn add(&mut self, request: &str, driver: &str, device: &'a Device) -> bool {
        if !covers(self.constraint, request) {
            return true;
        }
        let Some(value) = value(driver, device, self.attribute) else { return false };
        if self.devices == 0 {
            self.value = Some(value);
        } else if self.value.is_none_or(|first| !same(first, value)) {
            return false;
        }
        self.devices += 1;
        true
    }

    /// What the next device has to do with: the first device's value, and how many devices there are.
    pub(crate) fn state(&self) -> [usize; 2] {
        let value = self.value.filter(|_| self.devices > 0);
        [value.map_or(0, |it| std::ptr::from_ref(it).addr()), self.devices]
    }

    /// Takes back one successful [`add`](Self::add).
    pub(crate) fn remove(&mut self, request: &str) {
        if covers(self.constraint, request) {
            self.devices = self.devices.saturating_sub(1);
        }
    }
}

/// Whether two values are of one type and equal. One without a known type equals none.
fn same(first: &DeviceAttribute, next: &DeviceAttribute) -> bool {
    if next.string.is_some() {
        next.string == first.string
    } else if next.int.is_some() {
        next.int == first.int
    } else if next.bool.is_some() {
        next.bool == first.bool
    } else {
        next.version.is_some() && next.version == first.version
    }
}
