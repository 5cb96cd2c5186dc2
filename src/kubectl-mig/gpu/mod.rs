//! ResourceSlices in terms of GPUs: which devices are of which GPU, and where on it.
//!
//! Reads what this project's driver and NVIDIA's DRA driver publish, with and without counters. Drivers of other devices have
//! no GPUs here.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use dra_allocator::quantity::Quantity;
use dra_allocator::{Allocated, ClaimRef, DeviceId};
use k8s_openapi::api::resource::v1::{
    Device, DeviceAttribute, DeviceTaint, ResourceSlice, ResourceSliceSpec,
};
use mig_model::inventory::DeviceName;
use mig_models::Model;

/// Counters named so stand for one memory slice each.
const MEMORY_SLICE: &str = "memory-slice-";

/// Attributes that [`gpus`] reads, in the driver's domain unless they have one.
const ATTRIBUTES: [&str; 8] = [
    "type",
    "parentUUID",
    "uuid",
    "profile",
    "placementStart",
    "memorySlices",
    "productName",
    "resource.kubernetes.io/pciBusID",
];

/// Capacities that [`gpus`] reads.
const CAPACITIES: [&str; 2] = ["memory", "multiprocessors"];

/// A GPU as its driver publishes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Gpu {
    /// Driver name.
    pub driver: String,
    /// Pool name.
    pub pool: String,
    /// The node that the slices name; empty where they choose nodes otherwise.
    pub node: String,
    /// What its devices have in common: the GPU's UUID, else the counter set, else the name of its only device.
    pub key: String,
    /// PCI address where it is published.
    pub pci: Option<String>,
    /// Product name, for example `NVIDIA H100 80GB HBM3`; empty where it is not published.
    pub product: String,
    /// Memory slices of the GPU; 0 where nothing says so, as on GPUs without MIG.
    pub memory_slices: usize,
    /// Whether its devices are kept apart by counters. If not, what is published does not overlap.
    pub is_counted: bool,
    /// Its devices, in the order of the slices.
    pub devices: Vec<GpuDevice>,
}

/// A device of a GPU.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuDevice {
    /// Device name.
    pub name: String,
    /// MIG profile; `None` for the whole GPU.
    pub profile: Option<String>,
    /// The memory slices that it takes; empty where that is not published.
    pub slices: Range<usize>,
    /// Memory in bytes; 0 where it is not published.
    pub memory: u64,
    /// Multiprocessors; 0 where they are not published.
    pub multiprocessors: u64,
    /// The claim that has it.
    pub holder: Option<ClaimRef>,
    /// Its taints.
    pub taints: Vec<DeviceTaint>,
    /// `share-<n>` and the like for one of several devices that stand for the same part of the GPU.
    pub is_shared: bool,
}

impl Gpu {
    /// One without devices.
    fn new(slice: &ResourceSlice, key: String) -> Self {
        Self {
            driver: slice.spec.driver.clone(),
            pool: slice.spec.pool.name.clone(),
            node: slice.spec.node_name.clone().unwrap_or_default(),
            key,
            pci: None,
            product: String::new(),
            memory_slices: 0,
            is_counted: false,
            devices: Vec::new(),
        }
    }

    /// A short name: the PCI address, else the key.
    #[must_use]
    pub fn name(&self) -> &str {
        self.pci.as_deref().unwrap_or(&self.key)
    }

    /// Memory slices that claims hold.
    #[must_use]
    pub fn held(&self) -> Vec<Option<&GpuDevice>> {
        let mut cells = vec![None; self.memory_slices];
        for device in self.devices.iter().filter(|it| it.holder.is_some()) {
            for cell in cells.iter_mut().take(device.slices.end).skip(device.slices.start) {
                *cell = Some(device);
            }
        }
        cells
    }
}

/// The slices of the newest generation of each pool: older ones do not count.
pub(crate) fn current(slices: &[ResourceSlice]) -> Vec<&ResourceSlice> {
    let mut newest: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    for slice in slices {
        let pool = &slice.spec.pool;
        let generation = newest.entry((&slice.spec.driver, &pool.name)).or_insert(pool.generation);
        *generation = pool.generation.max(*generation);
    }
    let is_current = |slice: &&ResourceSlice| {
        newest.get(&(slice.spec.driver.as_str(), slice.spec.pool.name.as_str()))
            == Some(&slice.spec.pool.generation)
    };
    slices.iter().filter(is_current).collect()
}

/// The GPUs of slices, by driver, pool and PCI address; without an address by the device names, `gpu-2` before `gpu-10`. Slices of older generations of a pool do not count. A set of counters of which no
/// device consumes any is a GPU without devices, if memory slices are among the counters.
#[must_use]
pub fn gpus(slices: &[ResourceSlice], allocated: &Allocated) -> Vec<Gpu> {
    let current = current(slices);
    let mut all: BTreeMap<(String, String, String), Gpu> = BTreeMap::new();
    let mut by_set: BTreeMap<(String, String, String), usize> = BTreeMap::new();
    for slice in current.iter().copied() {
        for set in slice.spec.shared_counters.iter().flatten() {
            let cells = set.counters.keys().filter_map(|name| memory_slice(name)).map(|it| it + 1).max();
            let (driver, pool) = (slice.spec.driver.clone(), slice.spec.pool.name.clone());
            by_set.insert((driver, pool, set.name.clone()), cells.unwrap_or(0));
        }
    }
    for slice in current.iter().copied() {
        for device in slice.spec.devices.iter().flatten() {
            add(&mut all, &by_set, slice, device, allocated);
        }
    }
    let consumed: BTreeSet<(&str, &str, &str)> = current.iter().copied().flat_map(consumed_sets).collect();
    for slice in current.iter().copied() {
        for set in slice.spec.shared_counters.iter().flatten() {
            let (driver, pool) = (slice.spec.driver.as_str(), slice.spec.pool.name.as_str());
            let key = (driver.to_owned(), pool.to_owned(), set.name.clone());
            let cells = by_set.get(&key).copied().unwrap_or(0);
            if 0 < cells && !consumed.contains(&(driver, pool, &set.name)) {
                let described =
                    Gpu { is_counted: true, memory_slices: cells, ..Gpu::new(slice, set.name.clone()) };
                all.insert(key, described);
            }
        }
    }
    let mut gpus: Vec<Gpu> = all.into_values().collect();
    for gpu in gpus.iter_mut().filter(|it| !it.is_counted && 0 < it.memory_slices) {
        gpu.memory_slices = gpu.memory_slices.max(memory_slices_of(&gpu.product));
    }
    gpus.sort_by_cached_key(|it| (it.driver.clone(), it.pool.clone(), place(it)));
    gpus
}

/// Memory slices of a model by its product name; 0 for one that is not known. Where there are no counters, nothing that is
/// published shows the slices behind the last device.
fn memory_slices_of(product: &str) -> usize {
    let model = Model::all().find(|it| it.data().product_name == product);
    model.and_then(|it| usize::try_from(it.data().memory_units).ok()).unwrap_or(0)
}

/// Where a GPU stands among those of its pool. The shorter text comes first.
fn place(gpu: &Gpu) -> (usize, String) {
    let text = match &gpu.pci {
        // As this project's driver has it in names of devices and counter sets.
        Some(pci) => pci.split('.').next().unwrap_or(pci).replace(':', "-").to_lowercase(),
        None => {
            let first = gpu.devices.iter().map(|it| it.name.as_str()).min_by_key(|it| (it.len(), *it));
            let name = first.unwrap_or(&gpu.key);
            name.strip_prefix("gpu-").unwrap_or(name).to_owned()
        }
    };
    (text.len(), text)
}

/// Removes the attributes and capacities that [`gpus`] does not read. Selectors may need them; where nothing is selected, the rest is
/// half as much to keep and to parse.
pub fn trim(slice: &mut ResourceSlice) {
    let ResourceSliceSpec { driver, devices, .. } = &mut slice.spec;
    let is_read = |name: &str| {
        let own = name.strip_prefix(driver.as_str()).and_then(|it| it.strip_prefix('/'));
        ATTRIBUTES.contains(&own.unwrap_or(name))
    };
    for device in devices.iter_mut().flatten() {
        if let Some(attributes) = &mut device.attributes {
            attributes.retain(|name, _| is_read(name));
        }
        if let Some(capacity) = &mut device.capacity {
            capacity.retain(|name, _| CAPACITIES.contains(&name.as_str()));
        }
    }
}

/// The counter sets that the devices of a slice consume, with driver and pool.
fn consumed_sets(slice: &ResourceSlice) -> impl Iterator<Item = (&str, &str, &str)> {
    let sets = slice.spec.devices.iter().flatten().flat_map(|it| it.consumes_counters.iter().flatten());
    sets.map(|it| (slice.spec.driver.as_str(), slice.spec.pool.name.as_str(), it.counter_set.as_str()))
}

type Key = (String, String, String);

fn add(
    all: &mut BTreeMap<Key, Gpu>,
    by_set: &BTreeMap<Key, usize>,
    slice: &ResourceSlice,
    device: &Device,
    allocated: &Allocated,
) {
    let (driver, pool) = (&slice.spec.driver, &slice.spec.pool.name);
    let text = |name: &str| attribute(driver, device, name).and_then(|it| it.string.clone());
    let consumed = device.consumes_counters.iter().flatten();
    let set = consumed.clone().map(|it| it.counter_set.as_str()).next();
    let Some(kind) = text("type").or_else(|| set.map(|_| "mig".to_owned())) else { return };
    let key = text("parentUUID").or_else(|| text("uuid")).or_else(|| set.map(str::to_owned));
    let key = key.unwrap_or_else(|| device.name.clone());
    let cells = consumed.flat_map(|it| it.counters.keys()).filter_map(|name| memory_slice(name));
    let int = |name: &str| {
        attribute(driver, device, name).and_then(|it| it.int).and_then(|it| usize::try_from(it).ok())
    };
    let mut range = match (cells.clone().min(), cells.max()) {
        (Some(first), Some(last)) => first..last + 1,
        _ => match (int("placementStart"), int("memorySlices")) {
            (Some(start), Some(size)) if size <= 64 && start <= 64 => start..start + size,
            _ => 0..0,
        },
    };
    let gpu = all.entry((driver.clone(), pool.clone(), key.clone())).or_insert_with(|| Gpu::new(slice, key));
    if let Some(set) = set {
        gpu.is_counted = true;
        let known = by_set.get(&(driver.clone(), pool.clone(), set.to_owned())).copied().unwrap_or(0);
        gpu.memory_slices = gpu.memory_slices.max(known);
    }
    let is_whole = kind == "gpu";
    if is_whole && range.is_empty() {
        range = 0..int("memorySlices").unwrap_or(0).min(64);
    }
    gpu.memory_slices = gpu.memory_slices.max(range.end);
    let pci = attribute(driver, device, "resource.kubernetes.io/pciBusID").and_then(|it| it.string.clone());
    if let Some(pci) = pci.or_else(|| Some(DeviceName::address_in(&device.name)?.to_string())) {
        gpu.pci = Some(pci);
    }
    if let Some(product) = text("productName") {
        gpu.product = product;
    }
    let capacity = |name: &str| {
        let quantity = device.capacity.as_ref().and_then(|all| all.get(name))?;
        u64::try_from(Quantity::parse(&quantity.value.0).ok()?.as_integer()?).ok()
    };
    let id = DeviceId { driver: driver.clone(), pool: pool.clone(), device: device.name.clone() };
    gpu.devices.push(GpuDevice {
        name: device.name.clone(),
        profile: if is_whole { None } else { text("profile").or(Some(kind)) },
        slices: range,
        memory: capacity("memory").unwrap_or(0),
        multiprocessors: capacity("multiprocessors").unwrap_or(0),
        holder: allocated.holder(&id).cloned(),
        taints: device.taints.clone().unwrap_or_default(),
        is_shared: device.name.contains("-share-"),
    });
}

/// An attribute, by its name without the driver's domain or with it.
#[must_use]
pub fn attribute<'d>(driver: &str, device: &'d Device, name: &str) -> Option<&'d DeviceAttribute> {
    let all = device.attributes.as_ref()?;
    all.get(name).or_else(|| all.get(&format!("{driver}/{name}")))
}

/// The number of a memory slice that a counter stands for.
fn memory_slice(counter: &str) -> Option<usize> {
    counter.strip_prefix(MEMORY_SLICE)?.parse().ok().filter(|number| *number < 64)
}
