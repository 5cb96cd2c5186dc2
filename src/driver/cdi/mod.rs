//! What a container runtime must know to give a container its devices: CDI specs, one file for each claim.
//!
//! ```text
//! driver root -> CommonEdits --\
//!                               claim_spec -> Spec -> ClaimFiles -> <cdi root>/<driver>-claim_<uid>.json
//! /proc -> MigCaps -> ClaimDevice --/
//! /proc -> KernelDevices -> management_spec -> Spec -> ManagementFile -> <cdi root>/<driver>-management.json
//! ```
//!
//! [`claim_spec`] and everything in `device` and `spec` are pure. The file system is read in `driver_root` (what the
//! driver's installation has), `caps` and `kernel` (device numbers) and `common` (an operator's file), and written
//! in `files` only.
//!
//! What this folder refuses to do: it starts no program, makes no device node, serves no graphics, and never follows
//! a link out of the driver root. The Container Device Interface is specified at
//! <https://github.com/cncf-tags/container-device-interface>; the tests have every spec judged by its Rust library.

mod caps;
mod common;
mod device;
mod driver_root;
mod file_error;
mod files;
mod group;
mod hook_program;
mod hooks;
mod kernel;
mod ld_cache;
mod libraries;
mod management;
mod metadata;
mod missing;
mod root;
mod source;
mod spec;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;

pub use caps::{CapsError, config_minor, monitor_node};
pub use common::{CommonEdits, CommonFileError, CommonFileReason};
pub use device::{CapNode, DeviceNodes, Kind, MigCaps, device_edits};
pub use driver_root::DriverRoot;
pub use file_error::FilesError;
pub use files::{ClaimFiles, NamedDevices};
pub use hooks::{
    DEFAULT_HOOK, DEFAULT_LDCONFIG, DisabledHooks, HookKind, HookSettings, MINIMUM_TOOLKIT, install_toolkit,
};
pub use kernel::{KernelDevices, KernelGpu};
pub use libraries::find_nvml;
pub use management::{ManagementFile, management_spec};
pub use metadata::ClaimName;
pub use missing::{Missing, MissingPart, Severity};
pub use root::Root;
pub use source::{CommonError, CommonSource};
pub use spec::{ContainerEdits, Device, DeviceNode, Hook, Mount, Spec, SpecError};

/// One allocated device of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimDevice {
    /// Its name in the ResourceSlice.
    pub name: String,
    /// The nodes that give access to it.
    pub nodes: DeviceNodes,
    /// Whether it was given with adminAccess, so that it holds nothing.
    pub admin_access: bool,
    /// What is mounted with it.
    pub mounts: Vec<Mount>,
}

/// The spec for a claim: one CDI device for each allocated device, named as [`Kind::device_id`] says, and the common
/// edits at the top. `devices_root` is the tree whose `/dev` has the nodes ([`DriverRoot::devices`]).
///
/// Fails if the claim has no devices, if two have one name, or if a name breaks a rule.
pub fn claim_spec(
    kind: &Kind,
    claim_uid: &str,
    devices: &[ClaimDevice],
    devices_root: &Root,
    common: &ContainerEdits,
) -> Result<Spec, SpecError> {
    let named = |device: &ClaimDevice| {
        let edits = device_edits(&device.nodes, devices_root);
        Ok(Device {
            name: device::device_name(claim_uid, &device.name)?,
            container_edits: ContainerEdits { mounts: device.mounts.clone(), ..edits },
            annotations: device::annotations(kind, device.admin_access),
        })
    };
    let devices = devices.iter().map(named).collect::<Result<_, SpecError>>()?;
    let spec = Spec { kind: kind.to_string(), devices, container_edits: common.clone(), ..Spec::default() };
    let spec = spec.with_lowest_version();
    spec.validate()?;
    Ok(spec)
}
