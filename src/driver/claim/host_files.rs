//! What CDI specs need of the host's files, read while a device is prepared.

use std::path::PathBuf;
use std::sync::Arc;

use crate::cdi::{CapsError, CommonEdits, CommonError, DeviceNodes, MigCaps, monitor_node};
use crate::mig::MigDevice;
use crate::readiness::HostReadiness;

/// What a container needs for a device.
#[derive(Debug)]
pub(super) struct OnHost {
    /// The nodes that give access to it.
    pub(super) nodes: DeviceNodes,
    /// What all devices share.
    pub(super) common: Arc<CommonEdits>,
}

/// Why it cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum HostError {
    /// The capability files of the instance are missing.
    #[error(transparent)]
    Caps(#[from] CapsError),
    /// What all devices share is missing.
    #[error(transparent)]
    Common(#[from] CommonError),
}

/// Reads it.
#[derive(Debug, Clone)]
pub(super) struct HostFiles {
    /// Knows what all devices share.
    pub(super) readiness: Arc<HostReadiness>,
    /// `/proc`, where the device numbers of instances are.
    pub(super) proc_root: PathBuf,
    /// Version of the NVIDIA driver, where NVML reports it.
    pub(super) driver_version: Option<String>,
}

impl HostFiles {
    /// To be done on the GPU's thread: the kernel module, whose files some are, may be busy with a GPU that hangs.
    pub(super) fn read(&self, parent_minor: u32, mig: Option<&MigDevice>) -> Result<OnHost, HostError> {
        let caps = |made: &MigDevice| {
            MigCaps::read(&self.proc_root, parent_minor, made.gpu_instance, made.compute_instance.id)
        };
        self.with(DeviceNodes { mig: mig.map(caps).transpose()?, ..self.parent(parent_minor)? })
    }

    /// The same for a GPU as it is, with adminAccess: on one that has MIG all instances can be seen.
    pub(super) fn read_for_admin(&self, parent_minor: u32, has_mig: bool) -> Result<OnHost, HostError> {
        let monitor = has_mig.then(|| monitor_node(&self.proc_root)).transpose()?;
        self.with(DeviceNodes { monitor, ..self.parent(parent_minor)? })
    }

    fn parent(&self, parent_minor: u32) -> Result<DeviceNodes, CommonError> {
        let parent_group = self.readiness.common().root().gpu_node_group(parent_minor);
        let parent_group = parent_group.map_err(|missing| CommonError::Incomplete(missing.to_string()))?;
        Ok(DeviceNodes { parent_minor, parent_group, mig: None, monitor: None })
    }

    fn with(&self, nodes: DeviceNodes) -> Result<OnHost, HostError> {
        Ok(OnHost { nodes, common: self.readiness.common().get(self.driver_version.as_deref())? })
    }
}
