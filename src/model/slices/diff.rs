//! What has to be written so that the API server has what is wanted. Pure.
//!
//! A pool is valid only while all its slices carry the same generation and the right count, so a change that touches
//! more than one slice raises the generation of all. A change within one slice keeps it: one write, and the pool is
//! never incomplete (kubernetes-dra.md 3.3). So does a change of nothing but the order of devices within their slices, of
//! however many slices: old and new slices make a whole in any mixture.

use std::collections::BTreeMap;

use k8s_openapi::api::resource::v1::{CounterSet, Device, ResourcePool, ResourceSlice, ResourceSliceSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::quantity;

/// One write.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Delete what should not be there.
    Delete(ResourceSlice),
    /// Replace an existing slice; carries the resource version that was seen.
    Update(ResourceSlice),
    /// Create a missing slice.
    Create(ResourceSlice),
}

/// The writes that lead from `published`, all slices of this node and driver, to `wanted`, in the order to make them. Takes
/// what is wanted, because slices are large and most of them are not written.
#[must_use]
pub fn diff(wanted: Vec<ResourceSlice>, published: &[ResourceSlice]) -> Vec<Change> {
    let by_name: BTreeMap<&str, &ResourceSlice> = published.iter().map(|it| (name(it), it)).collect();
    let existing = |wanted: &ResourceSlice| {
        by_name.get(name(wanted)).copied().filter(|published| is_update_of(wanted, published))
    };
    let pool = wanted.first().map(|it| it.spec.pool.name.as_str()).unwrap_or_default();
    let generation =
        published.iter().filter(|it| it.spec.pool.name == pool).map(|it| it.spec.pool.generation).max();

    let obsolete = published.iter().filter(|it| !wanted.iter().any(|wanted| is_update_of(wanted, it)));
    let current = generation.unwrap_or(0);
    let touched = wanted
        .iter()
        .filter(|slice| existing(slice).is_none_or(|it| !is_same_at(current, slice, it, Order::AnyIsRight)));
    let touched = touched.count();
    let created = wanted.iter().any(|it| existing(it).is_none());
    let next = match generation {
        None => 1,
        Some(generation) if touched == 0 || (touched == 1 && !created) => generation,
        // Another program has written the highest one there is: the pool begins again, which it may once all its slices say so.
        Some(generation) => generation.checked_add(1).unwrap_or(1),
    };

    let mut changes: Vec<Change> = obsolete.cloned().map(Change::Delete).collect();
    let mut updates = Vec::new();
    for mut slice in wanted {
        let existing = existing(&slice);
        if existing.is_some_and(|it| is_same_at(next, &slice, it, Order::Matters)) {
            continue;
        }
        slice.spec.pool.generation = next;
        match existing {
            None => changes.push(Change::Create(slice)),
            Some(existing) => {
                slice.metadata.resource_version.clone_from(&existing.metadata.resource_version);
                updates.push(Change::Update(slice));
            }
        }
    }
    // Last, so that a create which fails leaves the pool as it was.
    changes.append(&mut updates);
    changes
}

/// True where both say the same to the scheduler. Quantities count by value, an absent list is an empty one.
#[must_use]
pub fn is_same(left: &ResourceSlice, right: &ResourceSlice) -> bool {
    is_same_at(left.spec.pool.generation, left, right, Order::Matters)
}

/// Whether devices in another order make another slice.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    Matters,
    AnyIsRight,
}

/// As [`is_same`] if `left` were of this generation. Looks at a device at a time: whole slices are large.
fn is_same_at(generation: i64, left: &ResourceSlice, right: &ResourceSlice, order: Order) -> bool {
    let owners = |it: &ResourceSlice| it.metadata.owner_references.clone().unwrap_or_default();
    // The rest. Every field is named, so that one which Kubernetes adds is not forgotten.
    let frame = |it: &ResourceSliceSpec, generation| ResourceSliceSpec {
        all_nodes: it.all_nodes,
        devices: None,
        driver: it.driver.clone(),
        node_name: it.node_name.clone(),
        node_selector: it.node_selector.clone(),
        per_device_node_selection: it.per_device_node_selection,
        pool: ResourcePool { generation, ..it.pool.clone() },
        shared_counters: None,
    };
    owners(left) == owners(right)
        && frame(&left.spec, generation) == frame(&right.spec, right.spec.pool.generation)
        && have_same(&devices(left, order), &devices(right, order), normal_device)
        && have_same(&counters(left), &counters(right), normal_counters)
}

fn devices(slice: &ResourceSlice, order: Order) -> Vec<&Device> {
    let mut devices: Vec<&Device> = slice.spec.devices.iter().flatten().collect();
    if order == Order::AnyIsRight {
        devices.sort_by(|left, right| left.name.cmp(&right.name));
    }
    devices
}

fn counters(slice: &ResourceSlice) -> Vec<&CounterSet> {
    slice.spec.shared_counters.iter().flatten().collect()
}

/// True where each of `left` says the same as its counterpart.
fn have_same<T: Clone + PartialEq>(left: &[&T], right: &[&T], to_normal: fn(&mut T)) -> bool {
    let normal = |it: &T| {
        let mut it = it.clone();
        to_normal(&mut it);
        it
    };
    left.len() == right.len()
        && left.iter().zip(right).all(|(left, right)| left == right || normal(left) == normal(right))
}

/// True where the API server did not keep the counters that it was given, because `DRAPartitionableDevices` is off there.
#[must_use]
pub fn lost_counters(sent: &ResourceSlice, stored: &ResourceSlice) -> bool {
    let consumers = |it: &ResourceSlice| {
        it.spec.devices.iter().flatten().filter(|it| it.consumes_counters.is_some()).count()
    };
    sent.spec.shared_counters.is_some() && stored.spec.shared_counters.is_none()
        || consumers(stored) < consumers(sent)
}

fn name(slice: &ResourceSlice) -> &str {
    slice.metadata.name.as_deref().unwrap_or_default()
}

/// Driver, pool and node of a slice cannot be changed; one that differs there has to be replaced.
fn is_update_of(wanted: &ResourceSlice, published: &ResourceSlice) -> bool {
    fn fixed(it: &ResourceSlice) -> (&str, &str, &str, Option<&str>) {
        (name(it), &it.spec.driver, &it.spec.pool.name, it.spec.node_name.as_deref())
    }
    fixed(wanted) == fixed(published)
}

fn normal_device(device: &mut Device) {
    for capacity in device.capacity.iter_mut().flat_map(BTreeMap::values_mut) {
        normal_quantity(&mut capacity.value);
    }
    for consumption in device.consumes_counters.iter_mut().flatten() {
        for counter in consumption.counters.values_mut() {
            normal_quantity(&mut counter.value);
        }
    }
    device.taints = device.taints.take().filter(|it| !it.is_empty());
}

fn normal_counters(set: &mut CounterSet) {
    for counter in set.counters.values_mut() {
        normal_quantity(&mut counter.value);
    }
}

fn normal_quantity(quantity: &mut Quantity) {
    if let Some(value) = quantity::thousandths(quantity) {
        *quantity = Quantity(value.to_string());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use k8s_openapi::api::resource::v1::DeviceCapacity;

    use super::*;
    use crate::inventory::Inventory;
    use crate::placement::{Policy, Ranking};
    use crate::slices::{Owner, render};

    /// Three slices with one device each, which `sizes` gives a capacity.
    fn pool(sizes: &[&str]) -> Vec<ResourceSlice> {
        let owner = Owner { driver: "d.example.com".into(), node: "n".into(), node_uid: "u".into() };
        let ranking = Ranking::of(&Inventory::default(), &BTreeSet::new(), Policy::Static);
        let empty = render(&Inventory::default(), &ranking, &owner).remove(0);
        let slice = |(index, size): (usize, &&str)| {
            let mut slice = empty.clone();
            slice.metadata.name = Some(format!("{index}-n"));
            slice.spec.pool.resource_slice_count = i64::try_from(sizes.len()).unwrap();
            let capacity = DeviceCapacity { value: Quantity((*size).to_owned()), ..Default::default() };
            let capacity = Some([("memory".to_owned(), capacity)].into());
            slice.spec.devices =
                Some(vec![Device { name: format!("gpu-{index}"), capacity, ..Default::default() }]);
            slice
        };
        sizes.iter().enumerate().map(slice).collect()
    }

    fn published(sizes: &[&str], generation: i64) -> Vec<ResourceSlice> {
        let mut slices = pool(sizes);
        for slice in &mut slices {
            slice.spec.pool.generation = generation;
            slice.metadata.resource_version = Some("7".to_owned());
            slice.metadata.uid = Some("server-made".to_owned());
        }
        slices
    }

    /// The changes as words: what, which, and the generation.
    fn words(wanted: &[ResourceSlice], published: &[ResourceSlice]) -> Vec<String> {
        let word = |change: &Change| match change {
            Change::Delete(it) => format!("delete {}", name(it)),
            Change::Update(it) => format!("update {} @{}", name(it), it.spec.pool.generation),
            Change::Create(it) => format!("create {} @{}", name(it), it.spec.pool.generation),
        };
        diff(wanted.to_vec(), published).iter().map(word).collect()
    }

    #[test]
    fn a_new_pool_is_created() {
        assert_eq!(words(&pool(&["1Gi", "2Gi"]), &[]), ["create 0-n @1", "create 1-n @1"]);
    }

    #[test]
    fn what_the_server_rewrote_is_no_change() {
        let mut stored = published(&["1Gi", "2Gi"], 4);
        stored[1].spec.devices.as_mut().unwrap()[0].taints = Some(Vec::new());
        assert_eq!(words(&pool(&["1024Mi", "2048Mi"]), &stored), [""; 0]);
    }

    #[test]
    fn a_change_within_one_slice_keeps_the_generation() {
        assert_eq!(words(&pool(&["1Gi", "3Gi"]), &published(&["1Gi", "2Gi"], 4)), ["update 1-n @4"]);
    }

    #[test]
    fn a_change_of_two_slices_raises_it_everywhere() {
        let changes = words(&pool(&["2Gi", "3Gi", "1Gi"]), &published(&["1Gi", "2Gi", "1Gi"], 4));
        assert_eq!(changes, ["update 0-n @5", "update 1-n @5", "update 2-n @5"]);
    }

    #[test]
    fn new_orders_keep_the_generation_however_many_slices_have_one() {
        let two_each = |mut slices: Vec<ResourceSlice>, is_turned: bool| {
            for slice in &mut slices {
                let devices = slice.spec.devices.as_mut().unwrap();
                devices.push(Device { name: "another".to_owned(), ..devices[0].clone() });
                if is_turned {
                    devices.reverse();
                }
            }
            slices
        };
        let stored = two_each(published(&["1Gi", "2Gi"], 4), true);
        assert_eq!(
            words(&two_each(pool(&["1Gi", "2Gi"]), false), &stored),
            ["update 0-n @4", "update 1-n @4"]
        );
        assert_eq!(
            words(&two_each(pool(&["1Gi", "3Gi"]), false), &stored),
            ["update 0-n @4", "update 1-n @4"]
        );
        assert_eq!(
            words(&two_each(pool(&["3Gi", "3Gi"]), false), &stored),
            ["update 0-n @5", "update 1-n @5"]
        );
    }

    #[test]
    fn a_missing_slice_raises_it_everywhere() {
        let mut stored = published(&["1Gi", "2Gi"], 4);
        stored.remove(0);
        assert_eq!(words(&pool(&["1Gi", "2Gi"]), &stored), ["create 0-n @5", "update 1-n @5"]);
    }

    #[test]
    fn a_generation_that_cannot_rise_begins_again() {
        let changes = words(&pool(&["2Gi", "3Gi"]), &published(&["1Gi", "2Gi"], i64::MAX));
        assert_eq!(changes, ["update 0-n @1", "update 1-n @1"]);
    }

    #[test]
    fn a_surplus_slice_is_deleted_before_the_others_change_their_count() {
        let changes = words(&pool(&["1Gi"]), &published(&["1Gi", "2Gi"], 4));
        assert_eq!(changes, ["delete 1-n", "update 0-n @4"]);
    }

    #[test]
    fn a_slice_of_another_pool_under_our_name_is_replaced() {
        let mut stored = published(&["1Gi"], 4);
        stored[0].spec.pool.name = "other".to_owned();
        assert_eq!(words(&pool(&["1Gi"]), &stored), ["delete 0-n", "create 0-n @1"]);
    }

    #[test]
    fn dropped_counters_are_noticed() {
        let mut sent = pool(&["1Gi"]).remove(0);
        sent.spec.devices.as_mut().unwrap()[0].consumes_counters = Some(Vec::new());
        assert!(lost_counters(&sent, &pool(&["1Gi"])[0]));
        assert!(!lost_counters(&sent, &sent));
    }
}
