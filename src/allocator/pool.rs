//! Pools: which slices count, and whether they make a whole.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::resource::v1::{Device, ResourceSlice, ResourceSliceSpec};

use crate::node::{offers, slice_offers};
use crate::quantity::Quantity;
use crate::{Cluster, DeviceId};

/// Amounts by counter set and counter.
pub(super) type Counters = BTreeMap<(String, String), Quantity>;

/// A device that the node can use, with where it was published.
#[derive(Debug)]
pub(super) struct Candidate<'a> {
    pub(super) id: DeviceId,
    pub(super) device: &'a Device,
    pub(super) spec: &'a ResourceSliceSpec,
    pub(super) pool: usize,
}

/// The current generation of a pool.
#[derive(Debug)]
pub(super) struct Pool<'a> {
    pub(super) devices: Vec<Candidate<'a>>,
    /// Slices of the generation are missing; such a pool gives nothing.
    pub(super) incomplete: bool,
    /// Why the pool cannot be used, if it cannot.
    pub(super) invalid: Option<String>,
    /// What is left of the shared counters.
    pub(super) available: Counters,
}

/// The pools that matter for the node, by driver and name.
pub(super) fn gather<'a>(cluster: &Cluster<'a>) -> Vec<Pool<'a>> {
    let mut groups: BTreeMap<(&str, &str), Vec<&ResourceSlice>> = BTreeMap::new();
    for slice in cluster.slices {
        groups.entry((&slice.spec.driver, &slice.spec.pool.name)).or_default().push(slice);
    }
    let mut pools = Vec::new();
    for slices in groups.into_values() {
        let pool = current(cluster, slices, pools.len());
        if !pool.devices.is_empty() || pool.invalid.is_some() {
            pools.push(pool);
        }
    }
    pools
}

fn current<'a>(cluster: &Cluster<'a>, mut slices: Vec<&'a ResourceSlice>, index: usize) -> Pool<'a> {
    let generation = slices.iter().map(|s| s.spec.pool.generation).max().unwrap_or(0);
    slices.retain(|s| s.spec.pool.generation == generation);
    slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let expected = slices.iter().map(|s| s.spec.pool.resource_slice_count).max().unwrap_or(0);
    let mut devices = Vec::new();
    for slice in &slices {
        let spec = &slice.spec;
        for device in spec.devices.iter().flatten() {
            if slice_offers(spec, cluster.node) || offers(spec, device, cluster.node) {
                let id = id(spec, device);
                devices.push(Candidate { id, device, spec, pool: index });
            }
        }
    }
    let incomplete = i64::try_from(slices.len()).unwrap_or(i64::MAX) != expected;
    let invalid = if incomplete || devices.is_empty() { None } else { fault(&slices) };
    let available = available(&slices, cluster.in_use);
    if invalid.is_some() {
        devices.clear();
    }
    Pool { devices, incomplete, invalid, available }
}

fn id(spec: &ResourceSliceSpec, device: &Device) -> DeviceId {
    DeviceId { driver: spec.driver.clone(), pool: spec.pool.name.clone(), device: device.name.clone() }
}

/// What the API server cannot see because it looks at one slice at a time.
fn fault(slices: &[&ResourceSlice]) -> Option<String> {
    let pool = &slices.first()?.spec.pool.name;
    let mut sets = BTreeMap::new();
    for set in slices.iter().flat_map(|s| s.spec.shared_counters.iter().flatten()) {
        if sets.insert(set.name.as_str(), &set.counters).is_some() {
            return Some(format!("pool {pool}: duplicate counter set {}", set.name));
        }
    }
    let mut names = BTreeSet::new();
    for device in slices.iter().flat_map(|s| s.spec.devices.iter().flatten()) {
        if !names.insert(device.name.as_str()) {
            return Some(format!("pool {pool}: duplicate device {}", device.name));
        }
        for consumed in device.consumes_counters.iter().flatten() {
            let Some(set) = sets.get(consumed.counter_set.as_str()) else {
                return Some(format!(
                    "pool {pool}: device {} uses unknown counter set {}",
                    device.name, consumed.counter_set
                ));
            };
            for counter in consumed.counters.keys() {
                if !set.contains_key(counter) {
                    return Some(format!(
                        "pool {pool}: device {} uses unknown counter {counter}",
                        device.name
                    ));
                }
            }
        }
    }
    None
}

/// The shared counters minus what the devices in use consume, by the CURRENT slices: a device that was withdrawn while in use
/// frees its counters, which is upstream's behaviour too.
fn available(slices: &[&ResourceSlice], in_use: &BTreeSet<DeviceId>) -> Counters {
    let mut available = Counters::new();
    for set in slices.iter().flat_map(|s| s.spec.shared_counters.iter().flatten()) {
        for (name, counter) in &set.counters {
            let amount = Quantity::parse(&counter.value.0).unwrap_or_else(|_| Quantity::zero());
            available.insert((set.name.clone(), name.clone()), amount);
        }
    }
    for slice in slices {
        for device in slice.spec.devices.iter().flatten().filter(|d| in_use.contains(&id(&slice.spec, d))) {
            for (key, amount) in crate::counters::consumption(device) {
                if let Some(left) = available.get_mut(&key) {
                    *left = left.minus(amount);
                }
            }
        }
    }
    available
}
