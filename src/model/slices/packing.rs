//! Which devices share a slice. Pure.
//!
//! Kubernetes 1.35 visits slices in random order and only within a slice in ours, so a request should find as many GPUs
//! as possible in one. A slice therefore has devices of one size, of as many GPUs of one kind as the limit allows, and
//! further sizes where all of them fit. What lies at the same place of a GPU and differs only in its media engines has
//! the same size, hence the same slice, so that a plain device comes before a scarce one in whichever slice is visited
//! first. The shelf of a device does not depend on what is in use: a change of the order never moves one to another slice.

use std::collections::BTreeMap;

use crate::inventory::{AllocatableDevice, Attribute, GpuInventory, Inventory};

/// Devices in one slice where any of them consumes counters (ResourceSliceMaxDevicesWithTaintsOrConsumesCounters).
pub(super) const MAX_DEVICES: usize = 64;

/// A device and the name of its counter set.
pub(super) type Packed<'i> = (&'i str, &'i AllocatableDevice);

/// The devices of each slice, sizes from small to large.
pub(super) fn packing(inventory: &Inventory) -> Vec<Vec<Packed<'_>>> {
    let mut kinds: Vec<&str> = Vec::new();
    // By kind and size the devices of each GPU.
    let mut groups: BTreeMap<(usize, u32), Vec<Vec<Packed<'_>>>> = BTreeMap::new();
    for gpu in &inventory.gpus {
        let product = product(gpu);
        let kind = kinds.iter().position(|it| *it == product).unwrap_or_else(|| {
            kinds.push(product);
            kinds.len() - 1
        });
        let mut sizes: BTreeMap<u32, Vec<Packed<'_>>> = BTreeMap::new();
        for device in &gpu.devices {
            let size = device.mig().map_or(u32::MAX, |it| it.placement.size);
            sizes.entry(size).or_default().push((&gpu.counter_set, device));
        }
        for (size, devices) in sizes {
            groups.entry((kind, size)).or_default().push(devices);
        }
    }

    let mut shelves: Vec<Vec<Packed<'_>>> = Vec::new();
    let mut room = 0;
    for group in groups.into_values() {
        if room < group.iter().map(Vec::len).sum() {
            room = 0;
        }
        for devices in group {
            if room < devices.len() {
                room = 0;
            }
            for device in devices {
                if room == 0 {
                    shelves.push(Vec::new());
                    room = MAX_DEVICES;
                }
                if let Some(shelf) = shelves.last_mut() {
                    shelf.push(device);
                }
                room -= 1;
            }
        }
    }
    shelves
}

fn product(gpu: &GpuInventory) -> &str {
    match gpu.devices.first().and_then(|it| it.attributes.get("productName")) {
        Some(Attribute::String(name)) => name,
        _ => "",
    }
}
