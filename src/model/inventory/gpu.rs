//! A GPU with all that is known about it.

use std::sync::Arc;

use crate::facts::{GpuFacts, GpuInstance, MigMode};

/// Where a GPU is attached to the machine, from sysfs; nothing where that is unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attachment {
    /// PCIe root complex, `pci0000:3a`.
    pub pcie_root: Option<String>,
    /// NUMA node.
    pub numa_node: Option<u32>,
}

/// What can change about a GPU while the driver runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuState {
    /// MIG mode; `None` on a GPU without MIG.
    pub mode: Option<MigMode>,
    /// Live instances; for the inventory only those that this driver did not make.
    pub instances: Vec<GpuInstance>,
    /// Why the GPU cannot be read at the moment, if so.
    pub problem: Option<String>,
}

/// A GPU with all that is known about it.
#[derive(Debug, Clone)]
pub struct Gpu {
    /// What NVML says of it.
    pub facts: Arc<GpuFacts>,
    /// Where it is attached.
    pub attachment: Attachment,
    /// What changes.
    pub state: GpuState,
}
