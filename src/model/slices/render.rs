//! Inventory to ResourceSlices. Pure; knows the limits of resource.k8s.io/v1.

use std::collections::BTreeMap;

use crate::inventory::{AllocatableDevice, Attribute, Capacity, GpuInventory, Inventory};
use crate::placement::Ranking;
use k8s_openapi::api::resource::v1::{
    Counter, CounterSet, Device, DeviceAttribute, DeviceCapacity, DeviceCounterConsumption, ResourcePool,
    ResourceSlice, ResourceSliceSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::packing::packing;
use super::quantity;

/// Counter sets in one slice (ResourceSliceMaxCounterSets).
pub(super) const MAX_COUNTER_SETS: usize = 8;
/// The capacity and the counter that tell how much memory a device has. The counter excludes nothing that the others admit.
pub const MEMORY: &str = "memory";
/// Longest object name.
const MAX_NAME: usize = 253;

/// Whose slices these are.
#[derive(Debug, Clone)]
pub struct Owner {
    /// Driver name.
    pub driver: String,
    /// Node name.
    pub node: String,
    /// UID of the Node object, so that the slices go when the node goes.
    pub node_uid: String,
}

/// Name of a node's pool: never the bare node name, under which another driver may have a pool with counters
/// (kubernetes#140434).
#[must_use]
pub fn pool_name(node: &str, driver: &str) -> String {
    format!("{node}/{driver}")
}

/// Renders the whole pool. Every slice has generation 0; the diff against what is published decides the real one.
/// Counters and devices are in different slices, as the API asks. An empty inventory is one empty slice, which says
/// that the driver is alive. The order of the devices in a slice is that of the ranking.
#[must_use]
pub fn render(inventory: &Inventory, ranking: &Ranking, owner: &Owner) -> Vec<ResourceSlice> {
    let counted: Vec<CounterSet> =
        inventory.gpus.iter().filter(|it| !it.counters.is_empty()).map(counter_set).collect();
    let mut contents: Vec<ResourceSliceSpec> = counted
        .chunks(MAX_COUNTER_SETS)
        .map(|sets| ResourceSliceSpec { shared_counters: Some(sets.to_vec()), ..Default::default() })
        .collect();
    for mut slice in packing(inventory) {
        slice.sort_by_key(|(_, it)| ranking.place(it.name.as_str()));
        let devices = slice.into_iter().map(|(gpu, it)| device(it, gpu)).collect();
        contents.push(ResourceSliceSpec { devices: Some(devices), ..Default::default() });
    }
    if contents.is_empty() {
        contents.push(ResourceSliceSpec { devices: Some(Vec::new()), ..Default::default() });
    }

    let count = i64::try_from(contents.len()).unwrap_or(i64::MAX);
    let complete = |(index, content): (usize, ResourceSliceSpec)| ResourceSlice {
        metadata: metadata(index, owner),
        spec: ResourceSliceSpec {
            driver: owner.driver.clone(),
            node_name: Some(owner.node.clone()),
            pool: ResourcePool {
                name: pool_name(&owner.node, &owner.driver),
                generation: 0,
                resource_slice_count: count,
            },
            ..content
        },
    };
    contents.into_iter().enumerate().map(complete).collect()
}

/// Leaves the devices of a slice in the order that is published, if it has the same devices, where that serves as well: it leads to
/// choices that are as good as those of the ranking. Also where it does not, unless the order of that slice may change. Answers with
/// the indices of those of which it changes.
pub fn keep_order(
    wanted: &mut [ResourceSlice],
    published: &[ResourceSlice],
    ranking: &Ranking,
    may_change: impl Fn(&ResourceSlice) -> bool,
) -> Vec<usize> {
    let mut changed = Vec::new();
    for (index, slice) in wanted.iter_mut().enumerate() {
        let Some(old) = published.iter().find(|it| it.metadata.name == slice.metadata.name) else { continue };
        let places: BTreeMap<&str, usize> = names(old).enumerate().map(|(place, it)| (it, place)).collect();
        let has_same = names(slice).count() == places.len() && names(slice).all(|it| places.contains_key(it));
        if has_same && (ranking.agrees_with(names(old)) || !may_change(slice)) {
            slice.spec.devices.iter_mut().for_each(|it| it.sort_by_key(|it| places.get(it.name.as_str())));
        } else if has_same {
            changed.push(index);
        }
    }
    changed
}

/// Names of the devices in a slice.
pub(super) fn names(slice: &ResourceSlice) -> impl Iterator<Item = &str> {
    slice.spec.devices.iter().flatten().map(|it| it.name.as_str())
}

/// A device of this GPU as it stands in a slice.
pub(crate) fn device(device: &AllocatableDevice, gpu: &GpuInventory) -> Device {
    let consumption = DeviceCounterConsumption {
        counter_set: gpu.counter_set.clone(),
        counters: counters(&device.consumes, Some(gpu.memory_of(device)).filter(|it| 0 < *it)),
    };
    Device {
        name: device.name.as_str().to_owned(),
        attributes: Some(attributes(device)),
        capacity: Some(capacities(device)),
        consumes_counters: (!device.consumes.is_empty()).then(|| vec![consumption]),
        ..Default::default()
    }
}

/// The attributes of a device as they stand in a slice.
pub(crate) fn attributes(of: &AllocatableDevice) -> BTreeMap<String, DeviceAttribute> {
    of.attributes.iter().map(|(key, it)| ((*key).to_owned(), attribute(it))).collect()
}

/// The capacities of a device as they stand in a slice.
pub(crate) fn capacities(of: &AllocatableDevice) -> BTreeMap<String, DeviceCapacity> {
    of.capacities.iter().map(|(key, it)| ((*key).to_owned(), capacity(*it))).collect()
}

fn attribute(value: &Attribute) -> DeviceAttribute {
    let none = DeviceAttribute::default();
    match value {
        Attribute::Int(it) => DeviceAttribute { int: Some(*it), ..none },
        Attribute::Bool(it) => DeviceAttribute { bool: Some(*it), ..none },
        Attribute::String(it) => DeviceAttribute { string: Some(it.clone()), ..none },
        Attribute::Version(it) => DeviceAttribute { version: Some(it.clone()), ..none },
    }
}

fn capacity(value: Capacity) -> DeviceCapacity {
    let value = match value {
        Capacity::Count(it) => quantity::count(it),
        Capacity::Mebibytes(it) => quantity::mebibytes(it),
    };
    DeviceCapacity { value, ..Default::default() }
}

/// The counters of a GPU as they stand in a slice.
pub(crate) fn counter_set(gpu: &GpuInventory) -> CounterSet {
    // Also where nothing of it is left: kube-scheduler takes a pool for invalid where a device consumes a counter that is not in its set.
    let memory_mib = (0 < gpu.memory_mib).then(|| gpu.memory_mib.saturating_sub(gpu.reserved_mib));
    CounterSet { name: gpu.counter_set.clone(), counters: counters(&gpu.counters, memory_mib) }
}

/// The counters that keep devices apart, and the memory in bytes, as in capacity.
fn counters(exact: &BTreeMap<String, u32>, memory_mib: Option<u64>) -> BTreeMap<String, Counter> {
    let exact = exact.iter().map(|(name, amount)| (name.clone(), quantity::count(*amount)));
    let memory = memory_mib.map(|it| (MEMORY.to_owned(), quantity::mebibytes(it)));
    exact.chain(memory).map(|(name, value)| (name, Counter { value })).collect()
}

fn metadata(index: usize, owner: &Owner) -> ObjectMeta {
    ObjectMeta {
        name: Some(slice_name(index, owner)),
        owner_references: Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: owner.node.clone(),
            uid: owner.node_uid.clone(),
            controller: Some(true),
            block_owner_deletion: None,
        }]),
        ..Default::default()
    }
}

/// `<index>-<driver>-<node>`: the same at every start, and sorted by preference, which the scheduler honours from 1.36 on. Where
/// that would be too long, `<index>-<driver>.<UID of the node>`: unlike a hash, the admission policy can compare it with the
/// token of the pod, so that no node can take the names of another one. The two forms never meet.
pub fn slice_name(index: usize, owner: &Owner) -> String {
    let Owner { driver, node, node_uid } = owner;
    let name = format!("{index:05x}-{driver}-{node}");
    if name.len() <= MAX_NAME { name } else { format!("{index:05x}-{driver}.{node_uid}") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::inventory::{OfferPolicy, inventory_on};
    use crate::placement::Policy;
    use crate::simulated::{gpus, node_facts};

    fn owner(driver: &str, node: &str) -> Owner {
        Owner { driver: driver.to_owned(), node: node.to_owned(), node_uid: "0f3c-u".to_owned() }
    }

    #[test]
    fn a_slice_is_named_by_the_node_or_where_that_is_too_long_by_its_uid() {
        const DRIVER: &str = "mig.dra-driver.dev";
        assert_eq!(slice_name(0x2a, &owner("d", "node")), "0002a-d-node");
        let longest = owner(DRIVER, &"n".repeat(MAX_NAME - "00000--".len() - DRIVER.len()));
        assert_eq!(slice_name(1, &longest).len(), MAX_NAME);
        let too_long = owner(DRIVER, &format!("{}n", longest.node));
        assert_eq!(slice_name(1, &too_long), "00001-mig.dra-driver.dev.0f3c-u");
    }

    #[test]
    fn no_two_nodes_have_slices_of_one_name() {
        let nodes = ["a", "b-a", "a-b", "d-a", "00000-d-a", "d.a", "d", "d-d", "0f3c-u", "d.0f3c-u"];
        let names: BTreeSet<String> = nodes.iter().map(|it| slice_name(0, &owner("d", it))).collect();
        assert_eq!(names.len(), nodes.len());
        // Not even a node that is called as another one's UID.
        let long = owner("d", &"n".repeat(MAX_NAME));
        assert!(!names.contains(&slice_name(0, &long)));
    }

    fn nothing() -> Vec<ResourceSlice> {
        let owner = Owner { node_uid: "u".to_owned(), ..owner("d", "n") };
        let ranking = Ranking::of(&Inventory::default(), &BTreeSet::new(), Policy::Pack);
        render(&Inventory::default(), &ranking, &owner)
    }

    #[test]
    fn a_device_has_no_more_bytes_than_one_of_nvidias_driver() {
        let inventory = inventory_on(&node_facts(), &gpus("8xH100-80GB", true, &[]), &OfferPolicy::default());
        let devices = inventory.gpus.iter().flat_map(|gpu| gpu.devices.iter().map(|it| device(it, gpu)));
        let bytes: Vec<usize> = devices.map(|it| serde_json::to_string(&it).unwrap().len()).collect();
        // Measured of its 26 devices of an H100 80GB, November 2026.
        assert!(bytes.iter().sum::<usize>() < 1107 * bytes.len(), "{bytes:?}");
    }

    #[test]
    fn an_empty_inventory_is_one_empty_slice() {
        let slices = nothing();
        assert_eq!(slices.len(), 1);
        assert_eq!(slices[0].spec.pool.resource_slice_count, 1);
        assert_eq!(slices[0].spec.pool.name, "n/d");
        assert_eq!(slices[0].spec.devices, Some(Vec::new()));
    }
}
