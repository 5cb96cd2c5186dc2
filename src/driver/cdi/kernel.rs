//! Reads what NVIDIA's kernel module lists under `/proc`: its GPUs, the numbers of its device nodes, and the two capabilities that
//! belong to no instance. No device is opened, and no device node has to exist.
//!
//! Formats: `kernel-open/nvidia/nv-procfs.c` and `nv-caps.c` of NVIDIA's open kernel modules. All of it is bounded: a
//! file that is too long or has no number where one belongs leaves out what it describes, with the reason.

use std::io;
use std::path::{Path, PathBuf};

use mig_model::facts::PciAddress;

use crate::cdi::caps::{read_access, read_major};
use crate::cdi::device::CapNode;
use crate::files::read_kernel;

/// More GPUs than one host has; the module's minor numbers end at 247.
const MAX_GPUS: usize = 256;
/// The highest minor number of a GPU (`NV_MINOR_DEVICE_NUMBER_REGULAR_MAX`).
const MAX_MINOR: u32 = 247;
/// A GPU's `information` has some 12 lines.
const MAX_BYTES: u64 = 64 * 1024;
/// Names of the module's character device in `/proc/devices`: since 555, and before.
const FRONTEND: [&str; 2] = ["nvidia", "nvidia-frontend"];

/// A GPU that the kernel module drives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelGpu {
    /// Where it sits.
    pub pci: PciAddress,
    /// The number of its node, `/dev/nvidia<minor>`.
    pub minor: u32,
    /// Its UUID, where the module knows it already.
    pub uuid: Option<String>,
}

/// What the kernel module lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelDevices {
    /// The GPUs, by PCI address. Those that a module parameter excludes are left out.
    pub gpus: Vec<KernelGpu>,
    /// GPUs that are listed and cannot be described, each with the reason.
    pub unreadable: Vec<String>,
    /// Major number of GPUs and of `nvidiactl`; `None` where the module is not loaded.
    pub major: Option<u32>,
    /// Major number of `nvidia-uvm`; `None` where that module is not loaded.
    pub uvm_major: Option<u32>,
    /// The node that permits MIG instances to be created and destroyed, `nvidia-cap1`.
    pub mig_config: Option<CapNode>,
    /// The node that permits all MIG instances to be monitored, `nvidia-cap2`.
    pub mig_monitor: Option<CapNode>,
}

impl KernelDevices {
    /// Reads everything below `proc_root`. Never fails: what is not there is absent from the answer.
    #[must_use]
    pub fn read(proc_root: &Path) -> Self {
        let (gpus, unreadable) = gpus(&proc_root.join("driver/nvidia/gpus"));
        let caps = read_major(proc_root, "nvidia-caps").ok();
        let capability = |name: &str| {
            let path: PathBuf = proc_root.join("driver/nvidia/capabilities/mig").join(name);
            read_access(caps?, path).ok()
        };
        Self {
            gpus,
            unreadable,
            major: FRONTEND.iter().find_map(|it| read_major(proc_root, it).ok()),
            uvm_major: read_major(proc_root, "nvidia-uvm").ok(),
            mig_config: capability("config"),
            mig_monitor: capability("monitor"),
        }
    }
}

/// The GPUs in the module's directory, and what of it cannot be used.
fn gpus(directory: &Path) -> (Vec<KernelGpu>, Vec<String>) {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Default::default(),
        Err(error) => return (Vec::new(), vec![format!("{}: {error}", directory.display())]),
    };
    let (mut gpus, mut unreadable) = (Vec::new(), Vec::new());
    for (count, entry) in entries.flatten().enumerate() {
        if count == MAX_GPUS {
            unreadable.push(format!("{}: only the first {MAX_GPUS} are read", directory.display()));
            break;
        }
        let name = entry.file_name().to_string_lossy().chars().take(80).collect::<String>();
        match name.parse() {
            Err(error) => unreadable.push(format!("{name:?}: {error}")),
            Ok(pci) => match information(&entry.path().join("information"), pci) {
                Ok(gpu) => gpus.extend(gpu),
                Err(reason) => unreadable.push(format!("GPU {pci}: {reason}")),
            },
        }
    }
    gpus.sort_by_key(|it| it.pci);
    unreadable.sort();
    let mut minors = std::collections::BTreeSet::new();
    gpus.retain(|it| {
        let is_new = minors.insert(it.minor);
        if !is_new {
            unreadable.push(format!("GPU {}: another GPU has the same device minor {}", it.pci, it.minor));
        }
        is_new
    });
    (gpus, unreadable)
}

/// A GPU; `None` for one that is excluded by the module parameter `NVreg_ExcludedGpus`.
fn information(path: &Path, pci: PciAddress) -> Result<Option<KernelGpu>, String> {
    let bytes = read_kernel(path, MAX_BYTES).map_err(|error| format!("{}: {error}", path.display()))?;
    let text = String::from_utf8_lossy(&bytes);
    let value = |field: &str| {
        let mut fields = text.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(name, _)| name.trim() == field).map(|(_, value)| value.trim())
    };
    if ["GPU Excluded", "Blacklisted"].iter().any(|it| value(it) == Some("Yes")) {
        return Ok(None);
    }
    let minor = value("Device Minor").and_then(|it| it.parse().ok()).filter(|it| *it <= MAX_MINOR);
    let minor = minor.ok_or_else(|| {
        format!("{} has no usable \"Device Minor\" line (0 to {MAX_MINOR})", path.display())
    })?;
    // Before the first use the module prints question marks.
    let is_uuid = |it: &&str| {
        it.len() <= 64 && it.starts_with("GPU-") && it.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    Ok(Some(KernelGpu { pci, minor, uuid: value("GPU UUID").filter(is_uuid).map(str::to_owned) }))
}
