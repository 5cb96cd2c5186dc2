//! Facts about the machine that come from the kernel rather than from NVML: boot id and PCI attachment.
//!
//! All reads are bounded and below a given root, so that tests and containers can point them elsewhere.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use mig_model::facts::PciAddress;
use mig_model::inventory::Attachment;

/// The kernel's boot id: another one means that every MIG instance of the old one is gone.
pub fn boot_id(proc_root: &Path) -> io::Result<String> {
    let path = proc_root.join("sys/kernel/random/boot_id");
    read_line(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("read `{}`: {error}", path.display())))
}

/// PCIe root complex and NUMA node of a device; unknown if sysfs does not report it.
#[must_use]
pub fn attachment(sys_root: &Path, pci: PciAddress) -> Attachment {
    let device = sys_root.join("bus/pci/devices").join(pci.to_string());
    // The kernel says -1 where it knows no node.
    let numa_node = read_line(&device.join("numa_node")).ok().and_then(|it| it.parse().ok());
    // The link leads to /sys/devices/pci0000:3a/…/0000:3b:00.0; its first component of that form is the root complex.
    let pcie_root = std::fs::canonicalize(&device).ok().and_then(|it| root_complex(&it));
    Attachment { pcie_root, numa_node }
}

fn root_complex(device: &Path) -> Option<String> {
    device
        .iter()
        .filter_map(|it| it.to_str())
        .find(|it| it.starts_with("pci") && it.contains(':'))
        .map(str::to_owned)
}

/// First line of a small file.
fn read_line(path: &Path) -> io::Result<String> {
    const MOST_BYTES: u64 = 256;
    let mut text = String::new();
    File::open(path)?.take(MOST_BYTES).read_to_string(&mut text)?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_attached_where_sysfs_links_to() {
        let root = tempfile::tempdir().unwrap();
        let device = root.path().join("devices/pci0000:3a/0000:3a:00.0/0000:3b:00.0");
        std::fs::create_dir_all(&device).unwrap();
        std::fs::write(device.join("numa_node"), "1\n").unwrap();
        let bus = root.path().join("bus/pci/devices");
        std::fs::create_dir_all(&bus).unwrap();
        std::os::unix::fs::symlink(&device, bus.join("0000:3b:00.0")).unwrap();

        let found = attachment(root.path(), "0000:3b:00.0".parse().unwrap());
        assert_eq!(found, Attachment { pcie_root: Some("pci0000:3a".to_owned()), numa_node: Some(1) });
        std::fs::write(device.join("numa_node"), "-1\n").unwrap();
        assert_eq!(attachment(root.path(), "0000:3b:00.0".parse().unwrap()).numa_node, None);
        let unknown = attachment(root.path(), "0000:4b:00.0".parse().unwrap());
        assert_eq!(unknown, Attachment { pcie_root: None, numa_node: None });
    }
}
