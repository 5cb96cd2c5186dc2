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

/// A device and its GPU.
pub(super) type Packed<'i> = (&'i GpuInventory, &'i AllocatableDevice);

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
            sizes.entry(size).or_default().push((gpu, device));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{PciAddress, Placement};
    use crate::inventory::{DeviceKind, DeviceName, MigSpec};

    /// A GPU of this product with so many devices of each size.
    fn gpu(bus: u8, product: &str, sizes: &[(u32, u32)]) -> GpuInventory {
        let pci = PciAddress { domain: 0, bus, device: 0 };
        let device = |size: u32, start: u32| AllocatableDevice {
            name: DeviceName::mig(pci, &format!("{size}g"), start),
            parent_uuid: "GPU-1".to_owned(),
            kind: DeviceKind::Mig(MigSpec {
                profile: format!("{size}g"),
                profile_id: size,
                slices: size,
                placement: Placement { start, size },
            }),
            attributes: [("productName", Attribute::String(product.to_owned()))].into(),
            capacities: BTreeMap::new(),
            consumes: BTreeMap::new(),
        };
        let devices = sizes.iter().flat_map(|(size, count)| (0..*count).map(|it| device(*size, it)));
        let counter_set = DeviceName::gpu(pci).to_string();
        let (counters, withheld) = (BTreeMap::new(), Vec::new());
        let devices = devices.collect();
        GpuInventory {
            counter_set,
            counters,
            memory_mib: 0,
            reserved_mib: 0,
            devices,
            withheld,
            problem: None,
        }
    }

    /// How many devices of which GPU and size each slice has.
    fn packed(gpus: Vec<GpuInventory>) -> Vec<Vec<(usize, u32, usize)>> {
        let inventory = Inventory { gpus };
        let index = |set: &str| inventory.gpus.iter().position(|it| it.counter_set == set).unwrap();
        let count = |shelf: Vec<Packed<'_>>| {
            let mut counts: BTreeMap<(u32, usize), usize> = BTreeMap::new();
            for (gpu, device) in shelf {
                *counts
                    .entry((device.mig().unwrap().placement.size, index(&gpu.counter_set)))
                    .or_default() += 1;
            }
            counts.into_iter().map(|((size, gpu), count)| (gpu, size, count)).collect()
        };
        packing(&inventory).into_iter().map(count).collect()
    }

    #[test]
    fn no_slice_has_more_than_the_limit_and_a_gpu_is_not_split_where_it_can_be_whole() {
        let gpus = (0..3).map(|it| gpu(it, "a", &[(1, 30)])).collect();
        assert_eq!(packed(gpus), [vec![(0, 1, 30), (1, 1, 30)], vec![(2, 1, 30)]]);
        assert_eq!(packed(vec![gpu(0, "a", &[(1, 65)])]), [vec![(0, 1, 64)], vec![(0, 1, 1)]]);
    }

    #[test]
    fn another_size_is_in_the_same_slice_only_where_all_of_it_fits() {
        let two = |sizes: &[(u32, u32)]| vec![gpu(0, "a", sizes), gpu(1, "a", sizes)];
        assert_eq!(packed(two(&[(1, 10), (2, 5)])), [vec![(0, 1, 10), (1, 1, 10), (0, 2, 5), (1, 2, 5)]]);
        let apart = [vec![(0, 1, 25), (1, 1, 25)], vec![(0, 2, 10), (1, 2, 10)]];
        assert_eq!(packed(two(&[(1, 25), (2, 10)])), apart);
    }

    #[test]
    fn gpus_of_a_kind_are_together() {
        let gpus = vec![gpu(0, "a", &[(1, 40)]), gpu(1, "b", &[(1, 40)]), gpu(2, "a", &[(1, 20)])];
        assert_eq!(packed(gpus), [vec![(0, 1, 40), (2, 1, 20)], vec![(1, 1, 40)]]);
    }
}
