//! `dra-driver-mig management-spec`: writes the CDI spec by which the driver's own container gets the GPUs, and says what of
//! them is missing and why.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use mig_model::drivers::DEFAULT;

use crate::cdi::{KernelDevices, Kind, ManagementFile};

/// Arguments of `management-spec`.
#[derive(Debug, Clone, Args)]
pub struct ManagementSpecArgs {
    /// Name of the DRA driver, which is the vendor of the CDI device.
    #[arg(long, env, value_name = "NAME", default_value = DEFAULT)]
    pub driver_name: String,
    /// The proc file system.
    #[arg(long, env, value_name = "DIR", default_value = "/proc")]
    pub proc_root: PathBuf,
    /// Where the spec goes; the container runtime must read this directory.
    #[arg(long, env, value_name = "DIR", default_value = "/var/run/cdi")]
    pub cdi_root: PathBuf,
}

/// Writes the spec. Fails only where it cannot be written: without GPUs the driver's container must start all the same, because
/// it reports the reason at `/readyz`, and claims of this node may have to be unprepared.
pub fn run(args: &ManagementSpecArgs) -> anyhow::Result<()> {
    Ok(io::stdout().write_all(execute(args)?.as_bytes())?)
}

/// Writes the spec and answers what there is to say about it.
pub(crate) fn execute(args: &ManagementSpecArgs) -> anyhow::Result<String> {
    let kind = Kind::of_driver(&args.driver_name)?;
    let kernel = KernelDevices::read(&args.proc_root);
    let file = ManagementFile::new(&args.cdi_root, kind.clone());
    let is_new = file.update(&kernel)?;
    Ok(report(&kind, &file, is_new, &kernel))
}

/// What the spec has, and one line for each thing that it lacks.
fn report(kind: &Kind, file: &ManagementFile, is_new: bool, kernel: &KernelDevices) -> String {
    let verb = if is_new { "wrote" } else { "unchanged:" };
    let gpus: Vec<String> =
        kernel.gpus.iter().map(|it| format!("{} as /dev/nvidia{}", it.pci, it.minor)).collect();
    let gpus = if gpus.is_empty() { "none".to_owned() } else { gpus.join(", ") };
    let mut text =
        format!("{verb} {}: device {}, GPUs: {gpus}\n", file.path().display(), kind.management_id());
    for missing in missing(kernel) {
        text.push_str(&format!("missing: {missing}\n"));
    }
    text
}

/// What the kernel does not list, with what follows from it and what to do. Pure.
fn missing(kernel: &KernelDevices) -> Vec<String> {
    if kernel.major.is_none() {
        return vec![
            "the NVIDIA kernel module is not loaded (/proc/devices lists no `nvidia`), so the driver starts without GPUs. \
             Install the NVIDIA driver, or wait until its container has loaded the module: the driver then restarts its \
             container by itself, which gives it the GPUs"
                .to_owned(),
        ];
    }
    let mut all: Vec<String> = kernel
        .unreadable
        .iter()
        .map(|it| format!("{it}; see the kernel log on the host, then delete this pod"))
        .collect();
    if kernel.gpus.is_empty() && kernel.unreadable.is_empty() {
        all.push(
            "the kernel module drives no GPU (/proc/driver/nvidia/gpus is empty); see `lspci -d 10de:` and the kernel log on \
             the host"
                .to_owned(),
        );
    }
    if kernel.uvm_major.is_none() {
        all.push(
            "the kernel module nvidia-uvm is not loaded, and CUDA needs it in every container with a claim; on the host, \
             `nvidia-modprobe -u -c0` loads it"
                .to_owned(),
        );
    }
    if kernel.mig_config.is_none() {
        all.push(
            "the kernel lists no capability mig/config (/proc/driver/nvidia/capabilities), so MIG instances cannot be created: \
             this NVIDIA driver does not support MIG, or its capabilities are switched off"
                .to_owned(),
        );
    }
    all
}
