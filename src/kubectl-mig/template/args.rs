//! Flags that say what a node without a machine has and how its driver is set up.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use mig_model::inventory::{MOST_SHARES, ProfileFilter};
use mig_model::placement::Policy;
use mig_models::Model;

/// The GPUs of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpus {
    /// As the user wrote them.
    pub text: String,
    /// One for each GPU, in NVML's order.
    pub models: Vec<Model>,
}

/// Reads `8xH100-80GB`.
///
/// # Errors
/// What is wrong with the text.
pub fn gpus(text: &str) -> Result<Gpus, String> {
    Ok(Gpus { text: text.trim().to_owned(), models: mig_models::parse_gpus(text)? })
}

/// MIG mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MigMode {
    /// Partitioned.
    On,
    /// Whole.
    Off,
}

/// How the driver of the node is set up. The flags have the names that the driver's have.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Driver of the nodes")]
pub struct TemplateArgs {
    /// Publish what this layout has, as where the API server keeps no counters: a built-in layout such as all-balanced or
    /// all-1g.10gb, one of the file of --layouts, or `default`, what a node without the label nvidia.com/mig.config has
    /// [default: every placement, with counters].
    #[arg(long, value_name = "LAYOUT")]
    pub layout: Option<String>,
    /// Layouts in mig-parted's format, from which --layout chooses [default: the built-in layouts].
    #[arg(long, value_name = "FILE")]
    pub layouts: Option<PathBuf>,
    /// Which GPU a request gets first, if several fit.
    #[arg(long, value_enum, value_name = "POLICY", default_value = "pack")]
    pub placement: Policy,
    /// Profiles to publish, as patterns separated by commas, such as `1g.*,3g.40gb,full` or `!*+me*` [default: all].
    #[arg(long, value_name = "PATTERNS", default_value = "", hide_default_value = true)]
    pub profiles: ProfileFilter,
    /// Time-shared devices for each GPU without MIG, 1 to 48; 1 is the whole GPU.
    #[arg(long, value_name = "N", default_value = "1", value_parser = time_slices)]
    pub time_slices: u32,
    /// MIG mode of GPUs that need a reset to switch it (A100, A30). Not with --layout, which decides on it.
    #[arg(long, value_enum, value_name = "MODE", default_value = "on", conflicts_with = "layout")]
    pub mig_mode: MigMode,
    /// Version of the NVIDIA driver, for the attribute driverVersion that devices of the driver gpu.nvidia.com have.
    #[arg(long, value_name = "VERSION", default_value = "580.82.07")]
    pub driver_version: String,
    /// Newest CUDA version that the NVIDIA driver serves, for the attribute cudaDriverVersion that devices of the driver gpu.nvidia.com have.
    #[arg(long, value_name = "MAJOR.MINOR", default_value = "13.0", value_parser = cuda_version)]
    pub cuda_version: (u32, u32),
}

impl Default for TemplateArgs {
    fn default() -> Self {
        Self {
            layout: None,
            layouts: None,
            placement: Policy::Pack,
            profiles: ProfileFilter::default(),
            time_slices: 1,
            mig_mode: MigMode::On,
            driver_version: "580.82.07".to_owned(),
            cuda_version: (13, 0),
        }
    }
}

fn time_slices(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(count) if (1..=MOST_SHARES).contains(&count) => Ok(count),
        _ => Err(format!("a number from 1 to {MOST_SHARES}")),
    }
}

fn cuda_version(text: &str) -> Result<(u32, u32), String> {
    let parsed =
        text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parsed.ok_or_else(|| "major and minor version, such as 13.0".to_owned())
}
