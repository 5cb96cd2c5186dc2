//! A node's state at one moment, for assertions and tables: the machine without what only the simulator
//! needs.

use crate::machine::{Gpu, Machine};

/// The state of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Boot id.
    pub boot_id: String,
    /// All GPUs by index.
    pub gpus: Vec<GpuSnapshot>,
}

/// The state of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuSnapshot {
    /// NVML's index.
    pub index: usize,
    /// `GPU-...`.
    pub uuid: String,
    /// `0000:3b:00.0`.
    pub pci: String,
    /// `/dev/nvidia<minor>`.
    pub minor: u32,
    /// Name of the model.
    pub model: String,
    /// MIG mode now.
    pub mig_current: bool,
    /// MIG mode after a reset.
    pub mig_pending: bool,
    /// Memory units.
    pub memory_slices: u32,
    /// Partitions by id.
    pub gpu_instances: Vec<GiSnapshot>,
}

/// The state of a GPU instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GiSnapshot {
    /// Id.
    pub id: u32,
    /// Tells it from an earlier instance with the same id.
    pub serial: u32,
    /// Profile id.
    pub profile_id: u32,
    /// Profile name.
    pub profile: String,
    /// First memory unit.
    pub start: u32,
    /// Memory units.
    pub size: u32,
    /// Compute instances by id.
    pub compute_instances: Vec<CiSnapshot>,
}

/// The state of a compute instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CiSnapshot {
    /// Id.
    pub id: u32,
    /// `MIG-...`.
    pub uuid: String,
    /// Compute profile id.
    pub profile_id: u32,
    /// First compute slice.
    pub start: u32,
    /// Compute slices.
    pub size: u32,
}

/// Takes it.
pub(crate) fn take(machine: &Machine) -> Snapshot {
    let gpus = machine.gpus.iter().enumerate().map(|(index, gpu)| gpu_snapshot(index, gpu)).collect();
    Snapshot { boot_id: machine.boot_id.clone(), gpus }
}

fn gpu_snapshot(index: usize, gpu: &Gpu) -> GpuSnapshot {
    let profiles = gpu.profiles();
    let mut gpu_instances: Vec<GiSnapshot> = Vec::new();
    for instance in &gpu.instances {
        let profile = profiles.iter().find(|profile| profile.id == instance.profile_id);
        let computes = instance.compute_instances.iter().map(|compute| CiSnapshot {
            id: compute.id,
            uuid: compute.uuid.clone(),
            profile_id: compute.profile_id,
            start: compute.start,
            size: compute.size,
        });
        gpu_instances.push(GiSnapshot {
            id: instance.id,
            serial: instance.serial,
            profile_id: instance.profile_id,
            profile: profile.map(|profile| profile.name.clone()).unwrap_or_default(),
            start: instance.start,
            size: instance.size,
            compute_instances: computes.collect(),
        });
    }
    gpu_instances.sort_by_key(|instance| instance.id);
    GpuSnapshot {
        index,
        uuid: gpu.uuid.clone(),
        pci: gpu.pci.clone(),
        minor: gpu.minor,
        model: gpu.model.clone(),
        mig_current: gpu.mig_current,
        mig_pending: gpu.mig_pending,
        memory_slices: gpu.memory_units(),
        gpu_instances,
    }
}
