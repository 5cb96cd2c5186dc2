//! Which devices share a slice. Pure.
//!
//! The scheduler evaluates its selectors on every free device before the one it takes, and Kubernetes 1.35 visits slices in random order
//! and follows the driver's order only within a slice. Many GPUs in a slice are more choice; a slice without a device for a request is
//! work for nothing. So GPUs of one kind form groups: all of them where the devices of each size fit into one slice, otherwise as many as
//! have all their small devices in one, which is what most requests are for. A group has a slice of its small devices, and further
//! ones of the larger sizes, as far as these do not fit into the same. docs/placement.md has the numbers. What lies at the same place of
//! a GPU and differs only in its media engines has the same size, hence the same slice, so that a plain device comes before a scarce
//! one in whichever slice is visited first. Another kind is in the same slice where all of it fits.
//!
//! The slice of a device does not depend on what is in use: a change of the order never moves one to another slice. Groups are the same for
//! all sizes: what is allocated of one group is no reason to write the slices of another. Only where GPUs are held back for claims
//! can there be fewer devices of a size, and so other groups.

use std::collections::BTreeMap;

use crate::inventory::{AllocatableDevice, Attribute, GpuInventory, Inventory};

/// Devices in one slice where any of them consumes counters (ResourceSliceMaxDevicesWithTaintsOrConsumesCounters).
pub(super) const MAX_DEVICES: usize = 64;

/// A device and its GPU.
pub(super) type Packed<'i> = (&'i GpuInventory, &'i AllocatableDevice);

/// Stands for the size of whole GPUs.
const WHOLE: u32 = u32::MAX;

/// The devices of a GPU, by size.
type Sizes<'i> = BTreeMap<u32, Vec<Packed<'i>>>;

/// The devices of each slice, group by group, those with small devices first.
pub(super) fn packing(inventory: &Inventory) -> Vec<Vec<Packed<'_>>> {
    let mut kinds: Vec<(&str, Vec<Sizes<'_>>)> = Vec::new();
    for gpu in &inventory.gpus {
        let mut sizes = Sizes::new();
        for device in &gpu.devices {
            let size = device.mig().map_or(WHOLE, |it| it.placement.size);
            sizes.entry(size).or_default().push((gpu, device));
        }
        match kinds.iter_mut().find(|it| it.0 == product(gpu)) {
            Some((_, gpus)) => gpus.push(sizes),
            None => kinds.push((product(gpu), vec![sizes])),
        }
    }
    let mut slices: Vec<Vec<Packed<'_>>> = Vec::new();
    for (_, gpus) in &kinds {
        let of_kind = of_kind(gpus);
        match (slices.last_mut(), of_kind.as_slice()) {
            (Some(last), [only]) if last.len() + only.len() <= MAX_DEVICES => last.extend(only),
            _ => slices.extend(of_kind),
        }
    }
    slices
}

/// The slices of GPUs of one kind. Groups differ by one GPU at most.
fn of_kind<'i>(gpus: &[Sizes<'i>]) -> Vec<Vec<Packed<'i>>> {
    let mut left = gpus;
    let mut slices = Vec::new();
    for groups in (1..=gpus.len().div_ceil(most_in_group(gpus))).rev() {
        let (group, others) = left.split_at(left.len().div_ceil(groups));
        slices.extend(of_group(group));
        left = others;
    }
    slices
}

/// How many of these GPUs form a group at most.
fn most_in_group(gpus: &[Sizes<'_>]) -> usize {
    let mut totals: BTreeMap<u32, usize> = BTreeMap::new();
    for (size, devices) in gpus.iter().flatten() {
        *totals.entry(*size).or_default() += devices.len();
    }
    if totals.values().all(|it| *it <= MAX_DEVICES) {
        return gpus.len().max(1);
    }
    let largest = totals.keys().copied().filter(|it| *it < WHOLE).max().unwrap_or(0);
    let is_small = |size: u32| size < largest.div_ceil(2);
    let devices = |gpu: &Sizes<'_>| -> usize {
        let small = gpu.iter().filter(|(size, _)| is_small(**size)).map(|(_, it)| it.len()).sum();
        gpu.values().map(Vec::len).fold(small, usize::max)
    };
    let most = gpus.iter().map(devices).max().unwrap_or(1);
    (MAX_DEVICES / most.max(1)).max(1)
}

/// The slices of a group of GPUs, sizes from small to large.
fn of_group<'i>(gpus: &[Sizes<'i>]) -> Vec<Vec<Packed<'i>>> {
    let mut sizes = Sizes::new();
    for (size, devices) in gpus.iter().flatten() {
        sizes.entry(*size).or_default().extend(devices);
    }
    let mut slices: Vec<Vec<Packed<'i>>> = Vec::new();
    for devices in sizes.into_values() {
        for part in devices.chunks(MAX_DEVICES) {
            match slices.last_mut().filter(|it| it.len() + part.len() <= MAX_DEVICES) {
                Some(slice) => slice.extend(part),
                None => slices.push(part.to_vec()),
            }
        }
    }
    slices
}

fn product(gpu: &GpuInventory) -> &str {
    // Where all of it is held back, what it is does not change.
    match gpu.devices.first().or(gpu.withheld.first()).and_then(|it| it.attributes.get("productName")) {
        Some(Attribute::String(name)) => name,
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

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
        GpuInventory { counter_set, devices: devices.collect(), ..GpuInventory::default() }
    }

    /// How many devices of which GPU and size each slice has.
    fn packed(gpus: Vec<GpuInventory>) -> Vec<Vec<(usize, u32, usize)>> {
        let inventory = Inventory { gpus };
        let index = |set: &str| inventory.gpus.iter().position(|it| it.counter_set == set).unwrap();
        let count = |slice: Vec<Packed<'_>>| {
            let mut counts: BTreeMap<(u32, usize), usize> = BTreeMap::new();
            for (gpu, device) in slice {
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
    fn sizes_share_a_slice_as_far_as_all_of_the_group_fits() {
        let two = |sizes: &[(u32, u32)]| vec![gpu(0, "a", sizes), gpu(1, "a", sizes)];
        assert_eq!(packed(two(&[(1, 10), (2, 5)])), [vec![(0, 1, 10), (1, 1, 10), (0, 2, 5), (1, 2, 5)]]);
        let apart = [vec![(0, 1, 25), (1, 1, 25)], vec![(0, 2, 10), (1, 2, 10)]];
        assert_eq!(packed(two(&[(1, 25), (2, 10)])), apart);
    }

    #[test]
    fn groups_are_the_same_for_all_sizes_and_small_devices_come_first() {
        let gpus = (0..4).map(|it| gpu(it, "a", &[(1, 25), (2, 10), (4, 5)])).collect();
        let small = |one, other| vec![(one, 1, 25), (other, 1, 25)];
        let large = |one, other| vec![(one, 2, 10), (other, 2, 10), (one, 4, 5), (other, 4, 5)];
        assert_eq!(packed(gpus), [small(0, 1), large(0, 1), small(2, 3), large(2, 3)]);
    }

    #[test]
    fn a_group_has_all_that_is_smaller_than_half_a_gpu_in_one_slice() {
        // As an H100 has them.
        let h100 = |count| (0..count).map(|it| gpu(it, "a", &[(1, 14), (2, 7), (4, 3), (8, 1)])).collect();
        let of = |sizes: [(u32, usize); 2], gpus: [usize; 3]| {
            sizes.into_iter().flat_map(|(size, count)| gpus.map(|it| (it, size, count))).collect::<Vec<_>>()
        };
        let small = |gpus| of([(1, 14), (2, 7)], gpus);
        let large = |gpus| of([(4, 3), (8, 1)], gpus);
        let all = packed(h100(8));
        assert_eq!(all[..4], [small([0, 1, 2]), large([0, 1, 2]), small([3, 4, 5]), large([3, 4, 5])]);
        assert_eq!(all[4..].iter().map(Vec::len).collect::<Vec<_>>(), [8], "two GPUs have all in one slice");
        let sizes = |gpus| {
            packed(gpus)
                .iter()
                .map(|it| it.iter().map(|it| it.1).collect::<BTreeSet<_>>())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            sizes(h100(4)),
            [BTreeSet::from([1]), BTreeSet::from([2, 4, 8])],
            "one group: each size of all fits"
        );
    }

    #[test]
    fn gpus_of_a_kind_are_together() {
        let gpus = vec![gpu(0, "a", &[(1, 40)]), gpu(1, "b", &[(1, 40)]), gpu(2, "a", &[(1, 20)])];
        assert_eq!(packed(gpus), [vec![(0, 1, 40), (2, 1, 20)], vec![(1, 1, 40)]]);
        let gpus = vec![gpu(0, "a", &[(1, 40)]), gpu(1, "b", &[(1, 4)]), gpu(2, "a", &[(1, 20)])];
        assert_eq!(
            packed(gpus),
            [vec![(0, 1, 40), (1, 1, 4), (2, 1, 20)]],
            "another kind where all of it fits"
        );
    }

    #[test]
    fn groups_have_as_many_gpus_as_each_other_or_one_more() {
        let gpus = (0..4).map(|it| gpu(it, "a", &[(1, 20)])).collect();
        assert_eq!(
            packed(gpus),
            [vec![(0, 1, 20), (1, 1, 20)], vec![(2, 1, 20), (3, 1, 20)]],
            "not three and one"
        );
    }
}
