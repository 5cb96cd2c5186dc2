//! Flags: where the hardware and the host's files are.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::cdi::{DEFAULT_LDCONFIG, DisabledHooks, DriverRoot, HookSettings, Root, find_nvml};
use crate::nvml::OpenError;
use crate::telemetry::seconds;

/// Where the hardware is.
#[derive(Debug, Clone, Args)]
pub struct HardwareArgs {
    /// Root of the NVIDIA driver's files as this process sees them: `/` for a driver installed on the host,
    /// `/run/nvidia/driver` for the GPU Operator's driver container, or where that is mounted.
    #[arg(long, env, value_name = "DIR", default_value = "/")]
    pub driver_root: PathBuf,
    /// libnvidia-ml.so.1 [default: searched below --driver-root]. Libraries for containers are searched in its directory,
    /// too, if that is below --driver-root.
    #[arg(long, env, value_name = "FILE")]
    pub driver_library: Option<PathBuf>,
    /// The proc file system.
    #[arg(long, env, value_name = "DIR", default_value = "/proc")]
    pub proc_root: PathBuf,
    /// The sys file system.
    #[arg(long, env, value_name = "DIR", default_value = "/sys")]
    pub sys_root: PathBuf,
    /// Time limit for discovering one GPU before the others are served without it, and half of the time limit for opening NVML.
    /// Shorter for tests.
    #[arg(long, env, value_name = "SECONDS", default_value = "10", value_parser = seconds, hide = true)]
    pub nvml_step_time: Duration,
}

impl HardwareArgs {
    /// The path of libnvidia-ml.so.1. Searches the same directories as for the libraries for containers.
    pub fn nvml_library(&self) -> Result<PathBuf, OpenError> {
        match &self.driver_library {
            Some(path) => Ok(path.clone()),
            None => find_nvml(&Root::new(&self.driver_root, "/"))
                .ok_or_else(|| OpenError::NotFound { root: self.driver_root.clone() }),
        }
    }
}

/// Where things are on the host, as this process sees them and as the host does.
#[derive(Debug, Clone, Args)]
pub struct HostArgs {
    /// The directory in which the kubelet looks for plugins.
    #[arg(long, env, value_name = "DIR", default_value = "/var/lib/kubelet/plugins_registry")]
    pub registry_dir: PathBuf,
    /// Path of --driver-root on the host, if it differs from the path in this container.
    #[arg(long, env, value_name = "DIR")]
    pub host_driver_root: Option<String>,
    /// Root below which this process finds `dev` with the GPU device nodes.
    #[arg(long, env, value_name = "DIR", default_value = "/")]
    pub dev_root: PathBuf,
    /// Path of --dev-root on the host, if it differs from the path in this container.
    #[arg(long, env, value_name = "DIR")]
    pub host_dev_root: Option<String>,
    /// Directory for CDI specs; container runtimes must read it.
    #[arg(long, env, value_name = "DIR", default_value = "/var/run/cdi")]
    pub cdi_root: PathBuf,
    /// Path of nvidia-cdi-hook on the host.
    #[arg(long, env, value_name = "FILE", default_value = crate::cdi::DEFAULT_HOOK)]
    pub cdi_hook: String,
    /// Hooks of nvidia-cdi-hook that CDI specs leave out, separated by commas: create-symlinks, enable-cuda-compat,
    /// update-ldcache, disable-device-node-modification. Hooks that the program lacks are always left out.
    #[arg(long, env, value_name = "LIST", default_value = "", hide_default_value = true)]
    pub disable_hooks: DisabledHooks,
    /// Root below which this process finds --cdi-hook, if the host's files are mounted elsewhere.
    #[arg(long, env, value_name = "DIR", default_value = "/")]
    pub host_root: PathBuf,
    /// A CDI spec (JSON or YAML, as `nvidia-ctk cdi generate` writes it) whose common edits every container gets,
    /// instead of those discovered below --driver-root.
    #[arg(long, env, value_name = "FILE")]
    pub common_edits: Option<PathBuf>,
}

impl HostArgs {
    /// Where CDI specs take the NVIDIA driver's files from.
    #[must_use]
    pub fn driver_root(&self, hardware: &HardwareArgs) -> DriverRoot {
        let root = |here: &Path, host: &Option<String>| {
            Root::new(here, host.clone().unwrap_or_else(|| here.to_string_lossy().into_owned()))
        };
        let files = root(&hardware.driver_root, &self.host_driver_root);
        let nvml = hardware.driver_library.as_deref().and_then(Path::parent);
        DriverRoot {
            nvml_directory: nvml.and_then(|it| files.inside(it)),
            files,
            devices: root(&self.dev_root, &self.host_dev_root),
            version: None,
            hooks: HookSettings {
                host_root: self.host_root.clone(),
                program: self.cdi_hook.clone(),
                ldconfig: DEFAULT_LDCONFIG.to_owned(),
                disabled: self.disable_hooks.clone(),
            },
            proc: hardware.proc_root.clone(),
            sys: hardware.sys_root.clone(),
        }
    }
}
