//! The files around the library that a host with NVIDIA's driver has: `/proc`, `/sys`, `/dev`, the driver's
//! own files.
//!
//! Formats as in `reference/mig-nvml-cdi.md` 3.4. Device nodes are plain files; the placeholders say what
//! they are.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::machine::{Gpu, Machine};
use crate::mig::{CI_IDS, GI_IDS};
use mig_models::MAX_GPUS;

/// Where the driver's libraries lie, below the root.
pub(crate) const LIBRARY_DIR: &str = "usr/lib/x86_64-linux-gnu";
const CAPABILITIES: &str = "proc/driver/nvidia/capabilities";
const GPUS: &str = "proc/driver/nvidia/gpus";
/// What every file that stands in for a real one holds.
const PLACEHOLDER: &str = "placeholder made by nvml-sim; not NVIDIA software\n";
/// Stands for the toolkit's hook program: knows the subcommands that toolkit 1.18 has, and does nothing.
const HOOK_PROGRAM: &str = "#!/bin/sh
# placeholder made by nvml-sim; not NVIDIA software
case \"$1\" in
create-symlinks | enable-cuda-compat | update-ldcache | disable-device-node-modification) exit 0 ;;
*) echo \"No help topic for '$1'\" >&2; exit 3 ;;
esac
";
/// Majors as `/proc/devices` of a machine with the driver shows them; the last three are dynamic there.
const DEVICES: &str = "Character devices:\n  1 mem\n  5 /dev/tty\n 10 misc\n\
                       195 nvidia\n195 nvidia-modeset\n195 nvidiactl\n\
                       235 nvidia-caps\n236 nvidia-caps-imex-channels\n511 nvidia-uvm\n\nBlock devices:\n259 blkext\n";

/// Writes everything that does not depend on partitions, and what does for the present ones. `library` is the
/// built simulator, of which the node gets its own copy.
pub(crate) fn build(root: &Path, machine: &Machine, library: &Path) -> io::Result<()> {
    driver_files(root, &machine.driver_version, library)?;
    put(root, "proc/devices", DEVICES)?;
    put(root, "proc/driver/nvidia/version", &version_text(&machine.driver_version))?;
    put(root, "proc/driver/nvidia-caps/mig-minors", &mig_minors())?;
    put(root, "proc/sys/kernel/random/boot_id", &format!("{}\n", machine.boot_id))?;
    for (name, minor, mode) in [("config", 1, 0o400), ("monitor", 2, 0o444)] {
        put(root, &format!("{CAPABILITIES}/mig/{name}"), &capability(minor, mode))?;
        device_node(root, &format!("dev/nvidia-caps/nvidia-cap{minor}"))?;
    }
    for node in ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"] {
        device_node(root, &format!("dev/{node}"))?;
    }
    for gpu in &machine.gpus {
        device_node(root, &format!("dev/nvidia{}", gpu.minor))?;
        put(root, &format!("{GPUS}/{}/information", gpu.pci), &information(gpu, &machine.driver_version))?;
        sysfs(root, gpu)?;
        if gpu.memory_units() > 0 {
            fs::create_dir_all(root.join(format!("{CAPABILITIES}/gpu{}/mig", gpu.minor)))?;
        }
    }
    for (path, text) in capabilities(&machine.gpus) {
        put(root, &path, &text)?;
    }
    Ok(())
}

/// Stands for a device node: a link to a character device that every machine has and that does no harm,
/// because making a real node takes root.
fn device_node(root: &Path, name: &str) -> io::Result<()> {
    let path = root.join(name);
    make_parent(&path)?;
    std::os::unix::fs::symlink("/dev/null", path)
}

/// Brings the rendered files from one state of the machine to the next, touching only what differs.
pub(crate) fn follow(root: &Path, before: &Machine, after: &Machine) -> io::Result<()> {
    for (was, is) in before.gpus.iter().zip(&after.gpus).filter(|(was, is)| was.minor != is.minor) {
        let _ = fs::remove_file(root.join(format!("dev/nvidia{}", was.minor)));
        device_node(root, &format!("dev/nvidia{}", is.minor))?;
        put(root, &format!("{GPUS}/{}/information", is.pci), &information(is, &after.driver_version))?;
        fs::create_dir_all(root.join(format!("{CAPABILITIES}/gpu{}/mig", is.minor)))?;
    }
    let differs = |(was, is): &(&Gpu, &Gpu)| was.minor != is.minor || was.instances != is.instances;
    let changed = || before.gpus.iter().zip(&after.gpus).filter(differs);
    let old = capabilities(changed().map(|(was, _)| was));
    let new = capabilities(changed().map(|(_, is)| is));
    // Longest paths first: a compute instance's directory lies in that of its GPU instance.
    for path in old.keys().rev().filter(|path| !new.contains_key(*path)) {
        let file = root.join(path);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if let Some(dir) = file.parent() {
            // Not empty yet if a sibling remains; that one removes it.
            let _ = fs::remove_dir(dir);
        }
    }
    for (path, text) in new.iter().filter(|(path, _)| !old.contains_key(*path)) {
        put(root, path, text)?;
    }
    if before.boot_id != after.boot_id {
        put(root, "proc/sys/kernel/random/boot_id", &format!("{}\n", after.boot_id))?;
    }
    Ok(())
}

/// The capability files of the GPUs' partitions, path to content.
fn capabilities<'a>(gpus: impl IntoIterator<Item = &'a Gpu>) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for gpu in gpus {
        for instance in &gpu.instances {
            let dir = format!("{CAPABILITIES}/gpu{}/mig/gi{}", gpu.minor, instance.id);
            files.insert(format!("{dir}/access"), capability(gi_minor(gpu.minor, instance.id), 0o444));
            for compute in &instance.compute_instances {
                let minor = gi_minor(gpu.minor, instance.id) + 1 + compute.id;
                files.insert(format!("{dir}/ci{}/access", compute.id), capability(minor, 0o444));
            }
        }
    }
    files
}

/// Minor number of a GPU instance's capability device: 135 per GPU, 9 per GPU instance, the first two are
/// taken.
fn gi_minor(gpu_minor: u32, gi: u32) -> u32 {
    3 + gpu_minor * GI_IDS * (1 + CI_IDS) + gi * (1 + CI_IDS)
}

fn capability(minor: u32, mode: u32) -> String {
    format!("DeviceFileMinor: {minor}\nDeviceFileMode: {mode}\nDeviceFileModify: 1\n")
}

/// Every capability that could exist, as the driver lists them whether it does or not.
fn mig_minors() -> String {
    let mut text = String::from("config 1\nmonitor 2\n");
    for gpu in 0..u32::try_from(MAX_GPUS).unwrap_or(u32::MAX) {
        for gi in 0..GI_IDS {
            let minor = gi_minor(gpu, gi);
            text.push_str(&format!("gpu{gpu}/gi{gi}/access {minor}\n"));
            for ci in 0..CI_IDS {
                text.push_str(&format!("gpu{gpu}/gi{gi}/ci{ci}/access {}\n", minor + 1 + ci));
            }
        }
    }
    text
}

/// What the kernel module says of a GPU (`nv-procfs.c`), as far as programs read it.
fn information(gpu: &Gpu, version: &str) -> String {
    let name = gpu.model().map_or("NVIDIA GPU", |model| model.data().product_name.as_str());
    format!(
        "Model: \t\t {name}\nGPU UUID: \t {}\nBus Type: \t PCIe\nBus Location: \t {}\nDevice Minor: \t {}\n\
         GPU Firmware: \t {version}\nGPU Excluded:\t No\n",
        gpu.uuid, gpu.pci, gpu.minor
    )
}

fn version_text(version: &str) -> String {
    format!("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build  (nvml-sim)\n")
}

fn sysfs(root: &Path, gpu: &Gpu) -> io::Result<()> {
    let device = format!("sys/devices/{}/{}", gpu.pci_root, gpu.pci);
    put(root, &format!("{device}/numa_node"), &format!("{}\n", gpu.numa))?;
    put(root, &format!("{device}/vendor"), "0x10de\n")?;
    let pci_device = gpu.model().map_or(0, |model| model.data().pci_device);
    put(root, &format!("{device}/device"), &format!("0x{pci_device:04x}\n"))?;
    put(root, &format!("{device}/class"), "0x030200\n")?;
    let link = root.join(format!("sys/bus/pci/devices/{}", gpu.pci));
    make_parent(&link)?;
    symlink(format!("../../../devices/{}/{}", gpu.pci_root, gpu.pci), link)
}

fn driver_files(root: &Path, version: &str, library: &Path) -> io::Result<()> {
    let dir = root.join(LIBRARY_DIR);
    fs::create_dir_all(&dir)?;
    let own = format!("libnvidia-ml.so.{version}");
    fs::copy(library, dir.join(&own))?;
    link(&dir, &own, &["libnvidia-ml.so.1", "libnvidia-ml.so"])?;
    for (name, major) in [("libcuda", 1), ("libnvidia-ptxjitcompiler", 1), ("libnvidia-nvvm", 4)] {
        let real = format!("{name}.so.{version}");
        put(root, &format!("{LIBRARY_DIR}/{real}"), PLACEHOLDER)?;
        link(&dir, &real, &[&format!("{name}.so.{major}"), &format!("{name}.so")])?;
    }
    for (program, text) in [
        ("usr/bin/nvidia-smi", PLACEHOLDER),
        ("usr/bin/nvidia-cdi-hook", HOOK_PROGRAM),
        ("usr/bin/nvidia-persistenced", PLACEHOLDER),
        ("usr/bin/nvidia-debugdump", PLACEHOLDER),
        ("sbin/ldconfig", PLACEHOLDER),
    ] {
        let path = put(root, program, text)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    for firmware in ["gsp_ga10x.bin", "gsp_tu10x.bin"] {
        put(root, &format!("lib/firmware/nvidia/{version}/{firmware}"), PLACEHOLDER)?;
    }
    Ok(())
}

fn link(dir: &Path, target: &str, names: &[&str]) -> io::Result<()> {
    names.iter().try_for_each(|name| symlink(target, dir.join(name)))
}

fn put(root: &Path, path: &str, text: &str) -> io::Result<PathBuf> {
    let file = root.join(path);
    make_parent(&file)?;
    fs::write(&file, text)?;
    Ok(file)
}

fn make_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}
