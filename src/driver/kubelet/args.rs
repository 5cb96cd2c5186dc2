//! Flags: what identifies the driver on a node.

use std::path::PathBuf;

use clap::Args;
use mig_model::drivers::DEFAULT;

/// What identifies the driver on a node.
#[derive(Debug, Clone, Args)]
pub struct DriverArgs {
    /// Name of the DRA driver: in ResourceSlices, device classes, CDI ids and the domain of attributes.
    #[arg(long, env, value_name = "NAME", default_value = DEFAULT)]
    pub driver_name: String,
    /// The kubelet's directory for plugins; it contains the sockets and state of this driver.
    #[arg(long, env, value_name = "DIR", default_value = "/var/lib/kubelet/plugins")]
    pub plugins_dir: PathBuf,
}

impl DriverArgs {
    /// Directory of this driver below the kubelet's.
    #[must_use]
    pub fn plugin_directory(&self) -> PathBuf {
        self.plugins_dir.join(&self.driver_name)
    }

    /// Directory with one state file per claim.
    #[must_use]
    pub fn claims_directory(&self) -> PathBuf {
        self.plugin_directory().join("claims")
    }
}
