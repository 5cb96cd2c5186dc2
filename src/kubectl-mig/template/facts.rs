//! A GPU model as NVML would report it of a GPU that is empty.

use std::sync::Arc;

use mig_model::facts::{GpuFacts, MediaEngines, MigFacts, MigMode, PciAddress, Placement, Profile};
use mig_model::inventory::{Attachment, Gpu, GpuState};
use mig_models::{Model, Seat};

/// PCI id of NVIDIA.
const VENDOR: u32 = 0x10de;

/// The GPU of a model at an index of a node, with MIG mode on or off.
pub(super) fn gpu(model: Model, index: usize, is_mig_on: bool) -> Gpu {
    let data = model.data();
    let seat = Seat::of(index);
    let mode = model.has_mig().then_some(MigMode { current: is_mig_on, pending: is_mig_on });
    let mut profiles: Vec<Profile> = model.profiles().iter().map(profile).collect();
    // NVML's order.
    profiles.sort_by_key(|it| it.index);
    let number = u32::try_from(index).unwrap_or(u32::MAX);
    let facts = GpuFacts {
        index: number,
        uuid: format!("GPU-00000000-0000-4000-8000-{number:012x}"),
        pci: PciAddress { domain: 0, bus: u8::try_from(seat.bus).unwrap_or(u8::MAX), device: 0 },
        pci_device_id: data.pci_device << 16 | VENDOR,
        product_name: Some(data.product_name.clone()),
        brand: Some(data.brand_name.clone()),
        architecture: Some(data.architecture_name.clone()),
        compute_capability: Some(data.compute_capability),
        memory_bytes: Some(data.memory_mib << 20),
        mig: mode.map(|mode| MigFacts { resetless: model.resetless_mig(), profiles, mode }),
        unknown: Vec::new(),
    };
    Gpu {
        facts: Arc::new(facts),
        attachment: Attachment {
            pcie_root: Some(format!("pci0000:{:02x}", seat.root)),
            numa_node: Some(seat.numa),
        },
        state: GpuState { mode, instances: Vec::new(), problem: None },
    }
}

fn profile(it: &mig_models::Profile) -> Profile {
    Profile {
        index: it.index,
        id: it.id,
        name: it.name.clone(),
        slices: it.slices,
        max_instances: it.max,
        multiprocessors: it.sm,
        copy_engines: it.ce,
        media: MediaEngines { decoders: it.dec, encoders: it.enc, jpegs: it.jpeg, ofas: it.ofa },
        memory_mib: it.memory_mib,
        placements: it.starts.iter().map(|start| Placement { start: *start, size: it.size }).collect(),
    }
}
