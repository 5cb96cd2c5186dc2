//! The CDI spec by which the driver's own container gets every GPU: kind `<driver>/management`, one device, `all`.
//!
//! Nodes are given by their numbers, which the kernel reports: the runtime makes them in the container, whether or not the
//! host has them, and whatever tree its `/dev` is in. So only `/proc` has to be read.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::cdi::device::{CapNode, Kind, cap_node, numbered_node, parent_path};
use crate::cdi::file_error::{FilesError, MODE};
use crate::cdi::files::write_spec;
use crate::cdi::kernel::KernelDevices;
use crate::cdi::spec::{ContainerEdits, Device, DeviceNode, Spec, SpecError};
use crate::files::read_own;

/// Minor number of `/dev/nvidiactl` (`NV_MINOR_DEVICE_NUMBER_CONTROL_DEVICE`).
const CONTROL_MINOR: i64 = 255;
/// A spec with all 248 GPUs that a host can have has less than 64 KiB.
const MAX_FILE: u64 = 1024 * 1024;

/// The spec for what the kernel lists. Where that is nothing, the device `all` exists all the same and gives no node: a
/// container that names a device without a spec does not start, and its log would not say why.
///
/// Fails if the driver's name breaks a rule of CDI.
pub fn management_spec(kind: &Kind, kernel: &KernelDevices) -> Result<Spec, SpecError> {
    let major = kernel.major.map(i64::from);
    let node = |path: &str, major: i64, minor: i64| numbered_node(path.to_owned(), major, minor);
    let control = major.map(|it| node("/dev/nvidiactl", it, CONTROL_MINOR));
    let gpus =
        kernel.gpus.iter().filter_map(|gpu| Some(node(&parent_path(gpu.minor), major?, gpu.minor.into())));
    let uvm = kernel.uvm_major.into_iter().flat_map(|it| {
        [("/dev/nvidia-uvm", 0), ("/dev/nvidia-uvm-tools", 1)]
            .map(|(path, minor)| node(path, it.into(), minor))
    });
    let caps = [kernel.mig_config, kernel.mig_monitor].into_iter().flatten().map(|it: CapNode| cap_node(it));
    let device_nodes: Vec<DeviceNode> = control.into_iter().chain(gpus).chain(uvm).chain(caps).collect();
    // NVIDIA's runtime must not add devices to the container.
    let env = vec!["NVIDIA_VISIBLE_DEVICES=void".to_owned()];
    let device = Device {
        name: Kind::MANAGEMENT_DEVICE.to_owned(),
        container_edits: ContainerEdits { env, device_nodes, ..ContainerEdits::default() },
        ..Device::default()
    };
    let spec = Spec { kind: kind.management(), devices: vec![device], ..Spec::default() };
    let spec = spec.with_lowest_version();
    spec.validate()?;
    Ok(spec)
}

/// Where the management spec is.
#[derive(Debug, Clone)]
pub struct ManagementFile {
    directory: PathBuf,
    kind: Kind,
}

impl ManagementFile {
    /// In this CDI directory, which need not exist.
    pub fn new(directory: impl Into<PathBuf>, kind: Kind) -> Self {
        Self { directory: directory.into(), kind }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.join(self.kind.management_file())
    }

    /// True where there is one, current or not.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// Writes the spec for what the kernel lists, unless it is there already. Answers whether it was written.
    pub fn update(&self, kernel: &KernelDevices) -> Result<bool, FilesError> {
        let spec = management_spec(&self.kind, kernel)?;
        if self.is_current(&spec) {
            return Ok(false);
        }
        write_spec(&self.directory, &self.kind.management_file(), &spec).map(|_| true)
    }

    /// Whether the file has this content and everyone may read it.
    fn is_current(&self, spec: &Spec) -> bool {
        let path = self.path();
        let has_mode =
            std::fs::symlink_metadata(&path).is_ok_and(|it| it.is_file() && it.mode() & 0o777 == MODE);
        let read = read_own(&path, MAX_FILE).ok().and_then(|it| serde_json::from_slice::<Spec>(&it).ok());
        has_mode && read.as_ref() == Some(spec)
    }
}
