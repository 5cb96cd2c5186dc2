//! Devices that stay published although the node cannot describe them any more: claims have them, of a GPU that was lost or of
//! an instance that is gone. Pure.
//!
//! They stay as they were published, and are remembered, so that neither a write that fails halfway nor a deletion of the slices
//! takes one from its claim.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::resource::v1::{
    CounterSet, Device, DeviceCounterConsumption, ResourceSlice, ResourceSliceSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::packing::MAX_DEVICES;
use super::render::{MAX_COUNTER_SETS, Owner, slice_name};

/// Devices that the node cannot describe, as they were published.
#[derive(Debug, Clone, Default)]
pub(super) struct UndescribedDevices {
    devices: BTreeMap<String, Device>,
    /// The counters that they take from.
    sets: BTreeMap<String, CounterSet>,
}

impl UndescribedDevices {
    pub(super) fn has(&self, name: &str) -> bool {
        self.devices.contains_key(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.devices.keys()
    }

    pub(super) fn devices(&self) -> impl Iterator<Item = &Device> {
        self.devices.values()
    }

    pub(super) fn sets(&self) -> impl Iterator<Item = &CounterSet> {
        self.sets.values()
    }

    /// These are undescribed now, and no others. What is published of them counts, and what was before where that is nothing.
    pub(super) fn set(&mut self, names: &BTreeSet<String>, published: &[ResourceSlice]) {
        let mut devices = std::mem::take(&mut self.devices);
        let theirs = published.iter().flat_map(|it| it.spec.devices.iter().flatten());
        devices.extend(theirs.filter(|it| names.contains(&it.name)).map(|it| (it.name.clone(), it.clone())));
        devices.retain(|name, _| names.contains(name));
        let sets = published.iter().flat_map(|it| it.spec.shared_counters.iter().flatten());
        self.sets.extend(sets.map(|it| (it.name.clone(), it.clone())));
        let consumed = devices.values().flat_map(|it| it.consumes_counters.iter().flatten());
        let consumed: BTreeSet<&String> = consumed.map(|it| &it.counter_set).collect();
        self.sets.retain(|name, _| consumed.contains(name));
        self.devices = devices;
    }
}

/// Adds slices with these devices as they were published, and with the counters that they take where `is_counted`. What is
/// counted nowhere any more costs nothing: its GPU is not offered, and a counter that is missing would make the whole pool
/// invalid (dynamic-resource-allocation, structured allocator).
pub(super) fn publish_undescribed(
    slices: &mut Vec<ResourceSlice>,
    undescribed: &UndescribedDevices,
    is_counted: bool,
    owner: &Owner,
) {
    let mut known: BTreeMap<String, CounterSet> = BTreeMap::new();
    let theirs = slices.iter().flat_map(|it| it.spec.shared_counters.iter().flatten());
    known.extend(theirs.map(|it| (it.name.clone(), it.clone())));
    let mut counted: Vec<CounterSet> = undescribed.sets().cloned().collect();
    counted.retain(|it| is_counted && !known.contains_key(&it.name));
    known.extend(counted.iter().map(|it| (it.name.clone(), it.clone())));
    let is_known = |it: &DeviceCounterConsumption| {
        let set = known.get(&it.counter_set);
        is_counted && set.is_some_and(|set| it.counters.keys().all(|name| set.counters.contains_key(name)))
    };
    let mut devices: Vec<Device> = undescribed.devices().cloned().collect();
    for device in &mut devices {
        device.consumes_counters.iter_mut().for_each(|it| it.retain(is_known));
        device.consumes_counters = device.consumes_counters.take().filter(|it| !it.is_empty());
    }
    let counted = counted.chunks(MAX_COUNTER_SETS).map(|sets| (Some(sets.to_vec()), None));
    let devices = devices.chunks(MAX_DEVICES).map(|devices| (None, Some(devices.to_vec())));
    for (shared_counters, devices) in counted.chain(devices) {
        let Some(ResourceSlice { metadata, spec }) = slices.first().cloned() else { return };
        let name = slice_name(slices.len(), owner);
        let metadata = ObjectMeta { name: Some(name), ..metadata };
        slices.push(ResourceSlice { metadata, spec: ResourceSliceSpec { shared_counters, devices, ..spec } });
    }
    let count = i64::try_from(slices.len()).unwrap_or(i64::MAX);
    slices.iter_mut().for_each(|it| it.spec.pool.resource_slice_count = count);
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::resource::v1::Counter;

    use super::*;
    use crate::inventory::Inventory;
    use crate::placement::{Policy, Ranking};
    use crate::slices::{quantity, render};

    fn owner() -> Owner {
        Owner { driver: "d".to_owned(), node: "n".to_owned(), node_uid: "u".to_owned() }
    }

    fn nothing() -> Vec<ResourceSlice> {
        let ranking = Ranking::of(&Inventory::default(), &BTreeSet::new(), Policy::Pack);
        render(&Inventory::default(), &ranking, &owner())
    }

    #[test]
    fn a_device_that_cannot_be_described_stays_as_it_is_published_and_keeps_its_cost() {
        let taken = |name: &str, counter_set: &str| Device {
            name: name.to_owned(),
            consumes_counters: Some(vec![DeviceCounterConsumption {
                counter_set: counter_set.to_owned(),
                counters: [("memory-slice-0".to_owned(), Counter { value: quantity::count(1) })].into(),
            }]),
            ..Device::default()
        };
        let set = |name: &str| CounterSet {
            name: name.to_owned(),
            counters: [("memory-slice-0".to_owned(), Counter { value: quantity::count(1) })].into(),
        };
        let mut published = [nothing(), nothing()].concat();
        published[0].spec.shared_counters = Some(vec![set("lost"), set("other")]);
        published[1].spec.devices = Some(vec![taken("one", "lost"), taken("two", "lost")]);

        let undescribed = |published: &[ResourceSlice]| {
            let mut undescribed = UndescribedDevices::default();
            undescribed.set(&["two".to_owned()].into(), published);
            undescribed
        };
        let kept = |devices: &UndescribedDevices, is_counted| {
            let mut slices = nothing();
            publish_undescribed(&mut slices, devices, is_counted, &owner());
            slices
        };
        let slices = kept(&undescribed(&published), true);
        assert_eq!(slices[1].spec.shared_counters, Some(vec![set("lost")]));
        assert_eq!(slices[2].spec.devices, Some(vec![taken("two", "lost")]));
        assert!(slices.len() == 3 && slices.iter().all(|it| it.spec.pool.resource_slice_count == 3));
        assert_eq!(slices[2].metadata.name.as_deref(), Some("00002-d-n"));

        let uncounted = Device { consumes_counters: None, ..taken("two", "lost") };
        let slices = kept(&undescribed(&published), false);
        assert_eq!((slices.len(), &slices[1].spec.devices), (2, &Some(vec![uncounted.clone()])));

        // A write that failed halfway has taken the counters away already, and another one the device.
        let slices = kept(&undescribed(&published[1..]), true);
        assert_eq!((slices.len(), &slices[1].spec.devices), (2, &Some(vec![uncounted])));
        let mut remembered = undescribed(&published);
        remembered.set(&["two".to_owned()].into(), &[]);
        assert_eq!(kept(&remembered, true), kept(&undescribed(&published), true));
        remembered.set(&BTreeSet::new(), &published);
        assert_eq!(kept(&remembered, true).len(), 1);
    }

    fn counters(names: &[&str]) -> BTreeMap<String, Counter> {
        names.iter().map(|it| ((*it).to_owned(), Counter { value: quantity::count(1) })).collect()
    }

    fn set(name: &str, counters_of: &[&str]) -> CounterSet {
        CounterSet { name: name.to_owned(), counters: counters(counters_of) }
    }

    fn device(name: &str, counter_set: &str, counters_of: &[&str]) -> Device {
        let consumption =
            DeviceCounterConsumption { counter_set: counter_set.to_owned(), counters: counters(counters_of) };
        Device { name: name.to_owned(), consumes_counters: Some(vec![consumption]), ..Device::default() }
    }

    /// The slices of an empty node with these devices of a GPU that it cannot describe, and how they were published.
    fn published_beside(
        mut slices: Vec<ResourceSlice>,
        sets: &[CounterSet],
        devices: &[Device],
    ) -> Vec<ResourceSlice> {
        let mut published = [nothing(), nothing()].concat();
        published[0].spec.shared_counters = Some(sets.to_vec());
        published[1].spec.devices = Some(devices.to_vec());
        let mut undescribed = UndescribedDevices::default();
        undescribed.set(&devices.iter().map(|it| it.name.clone()).collect(), &published);
        publish_undescribed(&mut slices, &undescribed, true, &owner());
        slices
    }

    #[test]
    fn no_slice_has_more_counter_sets_or_devices_than_the_api_server_takes_and_all_are_counted() {
        let number = |it: usize| format!("{it:02}");
        let sets: Vec<CounterSet> = (0..=MAX_COUNTER_SETS).map(|it| set(&number(it), &["a"])).collect();
        let devices: Vec<Device> =
            (0..=MAX_DEVICES).map(|it| device(&number(it), &number(it % sets.len()), &["a"])).collect();
        let slices = published_beside(nothing(), &sets, &devices);
        let sizes = |it: &ResourceSlice| {
            (it.spec.shared_counters.iter().flatten().count(), it.spec.devices.iter().flatten().count())
        };
        let expected = [(0, 0), (MAX_COUNTER_SETS, 0), (1, 0), (0, MAX_DEVICES), (0, 1)];
        assert_eq!(slices.iter().map(sizes).collect::<Vec<_>>(), expected);
        let names: BTreeSet<_> = slices.iter().map(|it| &it.metadata.name).collect();
        assert_eq!(names.len(), slices.len());
        assert!(slices.iter().all(|it| it.spec.pool.resource_slice_count == 5), "or the pool is incomplete");
    }

    #[test]
    fn a_counter_that_is_not_published_is_not_drawn_on_and_one_that_is_published_is_not_published_again() {
        let mut described = nothing();
        described[0].spec.shared_counters = Some(vec![set("known", &["a"])]);
        let devices = [device("one", "known", &["a"]), device("two", "known", &["a", "b"])];
        let slices = published_beside(described, &[set("known", &["a", "b"])], &devices);
        let [_, last] = &slices[..] else { panic!("{slices:?}") };
        let uncounted = Device { consumes_counters: None, ..devices[1].clone() };
        assert_eq!(last.spec.devices, Some(vec![devices[0].clone(), uncounted]));
    }

    #[test]
    fn what_is_published_of_a_device_counts_more_than_what_is_remembered() {
        let mut undescribed = UndescribedDevices::default();
        for counters in [&["a"][..], &["b"]] {
            let mut published = nothing();
            published[0].spec.devices = Some(vec![device("one", "set", counters)]);
            undescribed.set(&["one".to_owned()].into(), &published);
            assert_eq!(undescribed.devices().collect::<Vec<_>>(), [&device("one", "set", counters)]);
        }
    }
}
