//! Allocated devices of this node, whether or not the kubelet has requested them yet.

use std::collections::BTreeSet;

use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::api::ListParams;
use kube::{Api, Client};

use super::slices::{SliceError, call};

/// Claims in one answer.
const PAGE: u32 = 500;

/// Reads the allocations of all claims of the cluster. Needs the verb `list`, and is asked only when published devices
/// are about to go, or others are to take their place.
#[derive(Debug, Clone)]
pub struct Allocations {
    api: Api<ResourceClaim>,
    driver: String,
    pool: String,
}

impl Allocations {
    /// Allocations from this driver's pool.
    #[must_use]
    pub fn new(client: Client, driver: &str, pool: String) -> Self {
        Self { api: Api::all(client), driver: driver.to_owned(), pool }
    }

    /// Names of the allocated devices. Consistent: it knows every allocation that was written before the call.
    pub async fn read(&self) -> Result<BTreeSet<String>, SliceError> {
        let mut devices = BTreeSet::new();
        // No resource version: the API server asks etcd, and not a cache that may be behind.
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = call("list resourceclaims".to_owned(), self.api.list(&params)).await?;
            devices.extend(page.items.iter().flat_map(|it| self.allocated(it)));
            match page.metadata.continue_.filter(|it| !it.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(devices),
            }
        }
    }

    fn allocated<'a>(&'a self, claim: &'a ResourceClaim) -> impl Iterator<Item = String> + 'a {
        let allocation = claim.status.iter().filter_map(|it| it.allocation.as_ref());
        let results =
            allocation.filter_map(|it| it.devices.as_ref()).flat_map(|it| it.results.iter().flatten());
        // Admin access does not allocate a device.
        results
            .filter(|it| it.driver == self.driver && it.pool == self.pool && it.admin_access != Some(true))
            .map(|it| it.device.clone())
    }
}
