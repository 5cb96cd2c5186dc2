//! Reads the device numbers of MIG capabilities from the NVIDIA kernel module's files under `/proc`.
//!
//! The module publishes one `access` file per GPU instance and per compute instance, named by the *minor* of the GPU,
//! with the minor number of the node that grants access; the major is that of `nvidia-caps` in `/proc/devices`. The
//! numbers are read for every instance and never computed: their formula is not part of any documented interface.

use std::io;
use std::path::{Path, PathBuf};

use crate::cdi::device::{CapNode, MigCaps};
use crate::files::read_kernel;

/// `/proc/devices` has a line of at most about 30 bytes for each of at most 1024 majors; capability files have 3 lines.
const MAX_BYTES: u64 = 64 * 1024;
/// The name of the capability driver in `/proc/devices`.
const CAPS: &str = "nvidia-caps";

/// Why the device nodes of a MIG instance are unknown.
#[derive(Debug, thiserror::Error)]
pub enum CapsError {
    /// The file can't be read.
    #[error("can't read {path:?}: {source}; {hint}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
        /// What to do next.
        hint: &'static str,
    },
    /// `/proc/devices` does not list `nvidia-caps`.
    #[error(
        "{path:?} lists no character device {driver:?}; load the kernel modules of a driver that supports MIG"
    )]
    NoMajor {
        /// The file.
        path: PathBuf,
        /// The device's name there.
        driver: &'static str,
    },
    /// A capability file lacks a field, or the field is not a number in range.
    #[error("{path:?} has no usable {field:?} line; this driver version's format is not known, report it")]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
    },
}

impl MigCaps {
    /// The capability nodes of compute instance `ci` of GPU instance `gi` on the GPU with this minor number.
    /// `proc_root` is `/proc`, or where a test has its own.
    pub fn read(proc_root: &Path, parent_minor: u32, gi: u32, ci: u32) -> Result<Self, CapsError> {
        let major = read_major(proc_root, CAPS)?;
        let capabilities = proc_root.join("driver/nvidia/capabilities");
        let instance = capabilities.join(format!("gpu{parent_minor}/mig/gi{gi}"));
        Ok(Self {
            gpu_instance: read_access(major, instance.join("access"))?,
            compute_instance: read_access(major, instance.join(format!("ci{ci}/access")))?,
        })
    }
}

/// The minor number of the node that permits to make and destroy MIG instances, where the kernel module has capability
/// nodes.
pub fn config_minor(proc_root: &Path) -> Result<u32, CapsError> {
    let major = read_major(proc_root, CAPS)?;
    Ok(read_access(major, proc_root.join("driver/nvidia/capabilities/mig/config"))?.minor)
}

/// The node by which a container sees all MIG instances of the node.
pub fn monitor_node(proc_root: &Path) -> Result<CapNode, CapsError> {
    let major = read_major(proc_root, CAPS)?;
    read_access(major, proc_root.join("driver/nvidia/capabilities/mig/monitor"))
}

/// The major number of a character device driver that is loaded now.
pub(super) fn read_major(proc_root: &Path, driver: &'static str) -> Result<u32, CapsError> {
    let path = proc_root.join("devices");
    let hint = "mount the host's /proc, or set the directory that has it";
    let text = read_text(&path, hint)?;
    text.lines()
        .take_while(|line| !line.starts_with("Block devices"))
        .filter_map(|line| line.trim().split_once(' '))
        .find_map(|(major, name)| if name.trim() == driver { major.parse().ok() } else { None })
        .ok_or(CapsError::NoMajor { path, driver })
}

/// The node that an `access` file, or one of the two files `mig/config` and `mig/monitor`, describes.
pub(super) fn read_access(major: u32, path: PathBuf) -> Result<CapNode, CapsError> {
    let hint = "the instance may be gone, or MIG mode off; compare `nvidia-smi mig -lci`";
    let text = read_text(&path, hint)?;
    let value = |field: &'static str, max: u32| {
        let mut fields = text.lines().filter_map(|line| line.split_once(':'));
        let number = fields.find(|(name, _)| name.trim() == field).and_then(|(_, v)| v.trim().parse().ok());
        number.filter(|n: &u32| *n <= max).ok_or_else(|| CapsError::Field { path: path.clone(), field })
    };
    // Linux minor numbers have 20 bits; the mode is written in decimal (292 is 0444).
    Ok(CapNode { major, minor: value("DeviceFileMinor", 0xf_ffff)?, mode: value("DeviceFileMode", 0o777)? })
}

fn read_text(path: &Path, hint: &'static str) -> Result<String, CapsError> {
    read_kernel(path, MAX_BYTES)
        .and_then(|bytes| String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into()))
        .map_err(|source| CapsError::Read { path: path.to_owned(), source, hint })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const DEVICES: &str = "Character devices:\n  1 mem\n195 nvidia\n195 nvidiactl\n237 nvidia-caps\n\
        238 nvidia-caps-imex-channels\n510 nvidia-uvm\n\nBlock devices:\n  7 loop\n";

    /// A `/proc` with GPU instance 3 of the GPU with minor 2, and its compute instance 0.
    fn proc_root(devices: &str, gi: &str, ci: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let instance = dir.path().join("driver/nvidia/capabilities/gpu2/mig/gi3");
        fs::create_dir_all(instance.join("ci0")).unwrap();
        fs::write(dir.path().join("devices"), devices).unwrap();
        fs::write(instance.join("access"), gi).unwrap();
        fs::write(instance.join("ci0/access"), ci).unwrap();
        dir
    }

    fn access(minor: &str) -> String {
        format!("DeviceFileMinor: {minor}\nDeviceFileMode: 292\nDeviceFileModify: 1\n")
    }

    #[test]
    fn both_nodes_of_an_instance_are_read() {
        let dir = proc_root(DEVICES, &access("300"), &access("301"));
        let caps = MigCaps::read(dir.path(), 2, 3, 0).unwrap();
        assert_eq!(caps.gpu_instance, CapNode { major: 237, minor: 300, mode: 0o444 });
        assert_eq!(caps.compute_instance, CapNode { major: 237, minor: 301, mode: 0o444 });
    }

    #[test]
    fn an_absent_instance_is_named_with_the_next_step() {
        let dir = proc_root(DEVICES, &access("300"), &access("301"));
        let error = MigCaps::read(dir.path(), 2, 3, 1).unwrap_err().to_string();
        assert!(
            error.contains("gpu2/mig/gi3/ci1/access") && error.contains("nvidia-smi mig -lci"),
            "{error}"
        );
    }

    #[test]
    fn a_kernel_without_capabilities_is_reported_as_such() {
        for devices in ["", "Character devices:\n195 nvidia\n", "Block devices:\n237 nvidia-caps\n"] {
            let dir = proc_root(devices, &access("300"), &access("301"));
            let error = MigCaps::read(dir.path(), 2, 3, 0).unwrap_err();
            assert!(matches!(error, CapsError::NoMajor { .. }), "{error}");
        }
    }

    #[test]
    fn an_odd_capability_file_is_refused() {
        for odd in [
            "",
            "DeviceFileMinor: 1\n",
            &access("x"),
            &access("-1"),
            &access("1048576"),
            "DeviceFileMode: 292",
        ] {
            let dir = proc_root(DEVICES, odd, &access("301"));
            let error = MigCaps::read(dir.path(), 2, 3, 0).unwrap_err();
            assert!(matches!(error, CapsError::Field { .. }), "{odd:?}: {error}");
        }
    }

    #[test]
    fn an_endless_file_is_not_read_to_its_end() {
        let dir = proc_root(&"x".repeat(70_000), &access("300"), &access("301"));
        let error = MigCaps::read(dir.path(), 2, 3, 0).unwrap_err().to_string();
        assert!(error.contains("longer than 65536 bytes"), "{error}");
    }
}
