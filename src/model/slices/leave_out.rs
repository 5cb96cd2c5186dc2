//! No counter is published below what allocated devices consume. Pure.
//!
//! kube-scheduler compares every counter of a pool for each device that it tries (dynamic-resource-allocation, structured
//! allocator), so a single one that is overdrawn refuses all devices of the node until a claim is released. Totals are those of
//! the empty hardware, so they are overdrawn only where two allocated devices overlap: after a device was allocated that had
//! just been withdrawn, or by a driver before this one. One of the two is left out then: published without its cost, it could
//! be allocated again at the moment at which its claim releases it. The node refuses to prepare it as long as the other one is
//! prepared, whatever the counters say.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::resource::v1::{Device, ResourceSlice};

use super::quantity::thousandths;
/// Leaves out as many allocated devices as it takes, and answers with their names. One that comes first in `allocated` stays the
/// longest.
pub(super) fn leave_out(slices: &mut [ResourceSlice], allocated: &[&BTreeSet<String>]) -> BTreeSet<String> {
    let mut left: BTreeMap<(String, String), i128> = BTreeMap::new();
    for set in slices.iter().flat_map(|it| it.spec.shared_counters.iter().flatten()) {
        let amounts = set.counters.iter().map(|(name, it)| (name, thousandths(&it.value).unwrap_or(0)));
        left.extend(amounts.map(|(name, amount)| ((set.name.clone(), name.clone()), amount)));
    }
    if left.is_empty() {
        return BTreeSet::new();
    }
    let rank = |device: &Device| allocated.iter().position(|it| it.contains(&device.name));
    let mut devices: Vec<(usize, &Device)> = slices
        .iter()
        .flat_map(|it| it.spec.devices.iter().flatten())
        .filter_map(|it| Some((rank(it)?, it)))
        .collect();
    devices.sort_by_key(|(rank, _)| *rank);
    let mut without = BTreeSet::new();
    for (_, device) in devices {
        let consumed: Vec<((String, String), i128)> = consumed(device).collect();
        if consumed.iter().any(|(key, amount)| left.get(key).is_none_or(|it| it < amount)) {
            without.insert(device.name.clone());
            continue;
        }
        for (key, amount) in consumed {
            left.entry(key).and_modify(|it| *it -= amount);
        }
    }
    for devices in slices.iter_mut().filter_map(|it| it.spec.devices.as_mut()) {
        devices.retain(|it| !without.contains(&it.name));
    }
    without
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
    fn of_allocated_devices_that_overlap_the_later_ones_are_left_out_and_others_stay() {
        let mut slices = pool();
        assert_eq!(leave_out(&mut slices, &[&set(&["gpu-a-mig-1g-0", "gpu-a-mig-1g-1"])]), set(&[]));
        assert_eq!(slices, pool(), "there is enough for both");

        let (first, then) = (set(&["gpu-a-mig-1g-1"]), set(&["gpu-a", "gpu-a-mig-1g-0", "gpu-a-adopted-1"]));
        let without = leave_out(&mut slices, &[&first, &then]);
        assert_eq!(without, set(&["gpu-a"]), "what comes first stays, and what fits beside it");
        let left: Vec<&str> = slices[1].spec.devices.iter().flatten().map(|it| it.name.as_str()).collect();
        assert_eq!(left, ["gpu-a-mig-1g-0", "gpu-a-mig-1g-1", "gpu-a-adopted-1"]);
    }

    #[test]
    fn a_device_that_is_free_stays_whatever_is_allocated() {
        let mut slices = pool();
        assert_eq!(leave_out(&mut slices, &[&set(&["gpu-a-mig-1g-0"])]), set(&[]));
        assert_eq!(slices, pool());
    }

    #[test]
    fn a_device_that_draws_on_a_counter_which_is_not_published_is_left_out() {
        let mut slices = pool();
        slices[1]
            .spec
            .devices
            .iter_mut()
            .for_each(|it| it.push(device("gpu-a-mig-1g-2", &["memory-slice-2"])));
        let without = leave_out(&mut slices, &[&set(&["gpu-a-mig-1g-2"])]);
        assert_eq!((without, slices), (set(&["gpu-a-mig-1g-2"]), pool()));
    }
}
