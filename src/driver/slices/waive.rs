//! No counter is published below what allocated devices consume. Pure.
//!
//! kube-scheduler compares every counter of a pool for each device that it tries (dynamic-resource-allocation, structured
//! allocator), so a single one that is overdrawn refuses all devices of the node until a claim is released. Totals are those of
//! the empty hardware, so they are overdrawn only where two allocated devices overlap: after a device was allocated that had
//! just been withdrawn, or by a driver before this one. One of the two costs nothing then. The node refuses to prepare it as
//! long as the other one is prepared, whatever the counters say.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::resource::v1::{Device, ResourceSlice};
use mig_model::inventory::DeviceName;

use super::quantity::thousandths;

/// Takes the cost from as many allocated devices as it takes, and answers with their names. The cost of a device that is in
/// `waived` is gone already, and what overlaps it may be allocated; one that comes first in `allocated` keeps it the longest.
pub(super) fn waive(
    slices: &mut [ResourceSlice],
    allocated: &[&BTreeSet<String>],
    waived: &BTreeSet<String>,
) -> BTreeSet<String> {
    let mut left: BTreeMap<(String, String), i128> = BTreeMap::new();
    for set in slices.iter().flat_map(|it| it.spec.shared_counters.iter().flatten()) {
        let amounts = set.counters.iter().map(|(name, it)| (name, thousandths(&it.value).unwrap_or(0)));
        left.extend(amounts.map(|(name, amount)| ((set.name.clone(), name.clone()), amount)));
    }
    if left.is_empty() {
        return BTreeSet::new();
    }
    let rank = |device: &Device| {
        let rank = allocated.iter().position(|it| it.contains(&device.name))?;
        Some(if waived.contains(&device.name) { allocated.len() } else { rank })
    };
    let mut devices: Vec<(usize, &mut Device)> = slices
        .iter_mut()
        .flat_map(|it| it.spec.devices.iter_mut().flatten())
        .filter(|it| it.consumes_counters.is_some())
        .filter_map(|it| Some((rank(it)?, it)))
        .collect();
    devices.sort_by_key(|(rank, _)| *rank);
    let mut without = BTreeSet::new();
    for (rank, device) in devices {
        let consumed: Vec<((String, String), i128)> = consumed(device).collect();
        let is_enough = consumed.iter().all(|(key, amount)| left.get(key).is_some_and(|it| amount <= it));
        if rank == allocated.len() || !is_enough {
            device.consumes_counters = None;
            without.insert(device.name.clone());
            continue;
        }
        for (key, amount) in consumed {
            left.entry(key).and_modify(|it| *it -= amount);
        }
    }
    without
}

/// The devices in slices of counted GPUs that are published without their cost; MIG instances that the driver did not make have
/// none.
pub(super) fn waived_in(slices: &[ResourceSlice]) -> BTreeSet<String> {
    let sets: BTreeSet<&str> = slices
        .iter()
        .flat_map(|it| it.spec.shared_counters.iter().flatten())
        .map(|it| it.name.as_str())
        .collect();
    let is_counted = |name: &str| {
        let gpu = name.split_once("-mig-").map_or(name, |(gpu, _)| gpu);
        sets.contains(gpu) && !DeviceName::is_adopted(name)
    };
    let devices = slices.iter().flat_map(|it| it.spec.devices.iter().flatten());
    let without = devices.filter(|it| it.consumes_counters.is_none() && is_counted(&it.name));
    without.map(|it| it.name.clone()).collect()
}

fn consumed(device: &Device) -> impl Iterator<Item = ((String, String), i128)> + '_ {
    device.consumes_counters.iter().flatten().flat_map(|set| {
        let amounts = set.counters.iter().map(|(name, it)| (name, thousandths(&it.value).unwrap_or(0)));
        amounts.map(|(name, amount)| ((set.counter_set.clone(), name.clone()), amount))
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::resource::v1::{Counter, CounterSet, DeviceCounterConsumption};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    use super::*;

    fn one(names: &[&str]) -> BTreeMap<String, Counter> {
        names.iter().map(|it| ((*it).to_owned(), Counter { value: Quantity("1".to_owned()) })).collect()
    }

    fn device(name: &str, counters: &[&str]) -> Device {
        let consumption =
            DeviceCounterConsumption { counter_set: "gpu-a".to_owned(), counters: one(counters) };
        let consumes_counters = (!counters.is_empty()).then(|| vec![consumption]);
        Device { name: name.to_owned(), consumes_counters, ..Device::default() }
    }

    /// A GPU of two memory slices, of which every part and an instance that the driver did not make are published.
    fn pool() -> Vec<ResourceSlice> {
        let mut slices = vec![ResourceSlice::default(), ResourceSlice::default()];
        let set =
            CounterSet { name: "gpu-a".to_owned(), counters: one(&["memory-slice-0", "memory-slice-1"]) };
        slices[0].spec.shared_counters = Some(vec![set]);
        slices[1].spec.devices = Some(vec![
            device("gpu-a", &["memory-slice-0", "memory-slice-1"]),
            device("gpu-a-mig-1g-0", &["memory-slice-0"]),
            device("gpu-a-mig-1g-1", &["memory-slice-1"]),
            device("gpu-a-adopted-1", &[]),
        ]);
        slices
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|it| (*it).to_owned()).collect()
    }

    #[test]
    fn allocated_devices_that_overlap_cost_no_more_than_there_is_and_others_keep_their_cost() {
        let mut slices = pool();
        assert_eq!(waive(&mut slices, &[&set(&["gpu-a-mig-1g-0", "gpu-a-mig-1g-1"])], &set(&[])), set(&[]));
        assert_eq!(slices, pool(), "there is enough for both");
        assert_eq!(waived_in(&slices), set(&[]));

        let (first, then) = (set(&["gpu-a-mig-1g-1"]), set(&["gpu-a", "gpu-a-mig-1g-0"]));
        let waived = waive(&mut slices, &[&first, &then], &set(&[]));
        assert_eq!(waived, set(&["gpu-a"]), "what comes first keeps its cost, and what fits beside it");
        assert_eq!(waived_in(&slices), waived, "the next process sees which it was");
    }

    #[test]
    fn a_cost_that_is_waived_stays_so_until_the_device_is_released() {
        let mut slices = pool();
        assert_eq!(waive(&mut slices, &[&set(&["gpu-a"])], &set(&["gpu-a"])), set(&["gpu-a"]));
        assert_eq!(waive(&mut pool(), &[&set(&["gpu-a-mig-1g-0"])], &set(&["gpu-a"])), set(&[]));
    }
}
