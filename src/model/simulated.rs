//! GPUs of the simulator's models, for tests.

use std::sync::Arc;

use nvml_sim::Model;

use crate::facts::{
    GpuFacts, GpuInstance, MediaEngines, MigFacts, MigMode, NodeFacts, PciAddress, Placement, Profile,
};
use crate::inventory::{Attachment, Gpu, GpuState};

fn profile(it: nvml_sim::Profile) -> Profile {
    Profile {
        index: it.index,
        id: it.id,
        slices: it.slices,
        max_instances: it.max,
        multiprocessors: it.sm,
        copy_engines: it.ce,
        media: MediaEngines { decoders: it.dec, encoders: it.enc, jpegs: it.jpeg, ofas: it.ofa },
        memory_mib: it.memory_mib,
        placements: it.starts.iter().map(|start| Placement { start: *start, size: it.size }).collect(),
        name: it.name,
    }
}

fn facts(index: usize, model: Model, is_mig_on: bool) -> GpuFacts {
    let mode = MigMode { current: is_mig_on, pending: is_mig_on };
    GpuFacts {
        index: u32::try_from(index).unwrap(),
        uuid: format!("GPU-{index}"),
        pci: PciAddress { domain: 0, bus: 0x1a + u8::try_from(index).unwrap(), device: 0 },
        pci_device_id: model.data().pci_device << 16 | 0x10DE,
        product_name: Some(model.data().product_name.clone()),
        brand: Some(model.data().brand_name.clone()),
        architecture: Some(model.data().architecture_name.clone()),
        compute_capability: Some(model.data().compute_capability),
        memory_bytes: Some(model.data().memory_mib << 20),
        unknown: Vec::new(),
        mig: model.has_mig().then(|| MigFacts {
            resetless: model.resetless_mig(),
            profiles: model.profiles().into_iter().map(profile).collect(),
            mode,
        }),
    }
}

/// GPUs of these models; on the first one unmanaged instances of these profiles, each at its last placement.
pub(crate) fn gpus(models: &str, is_mig_on: bool, unmanaged: &[&str]) -> Vec<Gpu> {
    let gpu = |(index, model): (usize, Model)| {
        let facts = facts(index, model, is_mig_on);
        let known = |name: &&&str| facts.mig.as_ref()?.profiles.iter().find(|it| it.name == ***name);
        let instance = |profile: &Profile| GpuInstance {
            id: profile.id,
            profile_id: profile.id,
            placement: *profile.placements.last().unwrap(),
            compute_instances: Vec::new(),
        };
        let planted = unmanaged.iter().filter(|_| index == 0);
        let instances = planted.filter_map(|it| known(&it)).map(instance).collect();
        let mode = facts.mig.as_ref().map(|it| it.mode);
        let attachment = Attachment { pcie_root: Some("pci0000:3a".to_owned()), numa_node: Some(1) };
        Gpu { facts: Arc::new(facts), attachment, state: GpuState { mode, instances, problem: None } }
    };
    nvml_sim::parse_gpus(models).unwrap().into_iter().enumerate().map(gpu).collect()
}

pub(crate) fn node_facts() -> NodeFacts {
    let driver_version = Some("570.124.06".to_owned());
    NodeFacts { driver_version, cuda_version: Some((12, 8)), ..NodeFacts::default() }
}
