//! Allocated devices.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::resource::v1::ResourceClaim;
use serde::Serialize;

/// Whether a claim has its devices.
#[must_use]
pub fn is_allocated(claim: &ResourceClaim) -> bool {
    claim.status.as_ref().is_some_and(|it| it.allocation.is_some())
}

/// A device's identity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct DeviceId {
    /// Driver name.
    pub driver: String,
    /// Pool name.
    pub pool: String,
    /// Device name.
    pub device: String,
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.driver, self.pool, self.device)
    }
}

/// A claim's namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ClaimRef {
    /// Namespace; may be empty.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ClaimRef {
    /// The reference of a claim.
    #[must_use]
    pub fn of(claim: &ResourceClaim) -> Self {
        let text = |part: &Option<String>| part.clone().unwrap_or_default();
        Self { namespace: text(&claim.metadata.namespace), name: text(&claim.metadata.name) }
    }
}

impl fmt::Display for ClaimRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// Allocated devices and the claims that hold them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allocated(BTreeMap<DeviceId, ClaimRef>);

impl Allocated {
    /// What the allocations of claims hold; results with admin access hold nothing.
    #[must_use]
    pub fn of<'c>(claims: impl IntoIterator<Item = &'c ResourceClaim>) -> Self {
        let mut all = Self::default();
        for claim in claims {
            all.add(claim);
        }
        all
    }

    /// Adds what the allocation of a claim holds.
    pub fn add(&mut self, claim: &ResourceClaim) {
        let allocation = claim.status.as_ref().and_then(|s| s.allocation.as_ref());
        let devices = allocation.and_then(|a| a.devices.as_ref());
        for result in devices.and_then(|d| d.results.as_deref()).unwrap_or_default() {
            if result.admin_access != Some(true) {
                let (driver, pool) = (result.driver.clone(), result.pool.clone());
                self.insert(DeviceId { driver, pool, device: result.device.clone() }, ClaimRef::of(claim));
            }
        }
    }

    /// Adds one device.
    pub fn insert(&mut self, device: DeviceId, holder: ClaimRef) {
        self.0.insert(device, holder);
    }

    /// Frees what a claim holds.
    pub fn release(&mut self, claim: &ClaimRef) {
        self.0.retain(|_, holder| holder != claim);
    }

    /// The claim that holds a device.
    #[must_use]
    pub fn holder(&self, device: &DeviceId) -> Option<&ClaimRef> {
        self.0.get(device)
    }

    /// All devices with their claims, by device.
    pub fn iter(&self) -> impl Iterator<Item = (&DeviceId, &ClaimRef)> {
        self.0.iter()
    }
}
