//! What a node could have, as slices for the allocator.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{CounterSet, Device, ResourcePool, ResourceSlice, ResourceSliceSpec};

use super::kind::{Set, members};
use super::ledger::NodeLedger;
use super::world::GpuState;

/// A device of a node: GPU and possible device, by position.
pub(super) type Pick = (usize, usize);

/// Devices as slices, and which devices the names in them are.
pub(super) struct Offer {
    pub(super) slices: Vec<ResourceSlice>,
    pub(super) picks: HashMap<String, Pick>,
}

fn name(gpu: usize, device: usize) -> String {
    format!("{gpu}-{device}")
}

fn real(gpu: &GpuState, position: (usize, usize), set: Option<&str>) -> Device {
    let mut device = gpu.kind.devices[position.1].device.clone();
    device.name = name(position.0, position.1);
    let attributes = device.attributes.get_or_insert_default();
    for (key, value) in &gpu.identity {
        // A MIG device has the UUID of its GPU as parent, and none yet of its own.
        let is_own = key == "uuid" && gpu.kind.devices[position.1].profile != mig_model::mig_node::WHOLE;
        if !is_own {
            attributes.insert(key.clone(), value.clone());
        }
    }
    match (set, &mut device.consumes_counters) {
        (Some(set), Some(consumed)) => {
            consumed.iter_mut().for_each(|it| it.counter_set = set.to_owned());
        }
        _ => device.consumes_counters = None,
    }
    device
}

/// Devices of a node, best first, with what is left of the counters of each GPU.
pub(super) fn offer(driver: &str, node: &NodeLedger<'_>, of: impl Fn(usize) -> Set) -> Offer {
    let mut order: Vec<_> = node
        .gpus
        .iter()
        .enumerate()
        .flat_map(|(position, gpu)| {
            members(of(position)).map(move |device| {
                let withdrawn = (gpu.room.published & gpu.kind.conflicts[device]).count_ones();
                // None, unless it is offered as if the GPU was empty.
                let held = (gpu.held & gpu.kind.conflicts[device]).count_ones();
                let size = gpu.kind.devices[device].size;
                let cuts = !gpu.is_used && size < gpu.kind.largest;
                ((size, held, cuts, withdrawn, gpu.kind.blocks[device]), (position, device))
            })
        })
        .collect();
    order.sort_unstable();
    let mut sets = Vec::new();
    let mut devices = Vec::new();
    let mut picks = HashMap::new();
    for (position, gpu) in node.gpus.iter().enumerate() {
        if let Some(counters) = gpu.counters_left() {
            sets.push(CounterSet { name: position.to_string(), counters });
        }
    }
    for (_, (gpu, device)) in order {
        let ledger = &node.gpus[gpu];
        let set = ledger.counters_left().is_some().then(|| gpu.to_string());
        devices.push(real(ledger.state, (gpu, device), set.as_deref()));
        picks.insert(name(gpu, device), (gpu, device));
    }
    let of = node.state.node.metadata.name.as_deref().unwrap_or_default();
    let count = 1 + i64::from(!sets.is_empty());
    let mut slices = vec![slice(driver, of, devices, None, 0, count)];
    if !sets.is_empty() {
        slices.push(slice(driver, of, Vec::new(), Some(sets), 1, count));
    }
    Offer { slices, picks }
}

/// One slice of a node.
pub(super) fn slice(
    driver: &str,
    node: &str,
    devices: Vec<Device>,
    counters: Option<Vec<CounterSet>>,
    index: usize,
    count: i64,
) -> ResourceSlice {
    let pool = ResourcePool { name: node.to_owned(), generation: 1, resource_slice_count: count };
    let mut slice = ResourceSlice {
        spec: ResourceSliceSpec {
            driver: driver.to_owned(),
            node_name: Some(node.to_owned()),
            pool,
            shared_counters: counters.clone(),
            devices: counters.is_none().then_some(devices),
            ..ResourceSliceSpec::default()
        },
        ..ResourceSlice::default()
    };
    slice.metadata.name = Some(index.to_string());
    slice
}

pub(super) fn named(name: &str) -> Node {
    let mut node = Node::default();
    node.metadata.name = Some(name.to_owned());
    node
}
