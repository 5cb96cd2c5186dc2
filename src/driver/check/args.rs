//! Flags of `check`.

use std::path::PathBuf;

use clap::Args;

use crate::hardware::{HardwareArgs, HostArgs};
use crate::kubelet::DriverArgs;

/// Arguments of `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Name of this node's Node object; without it, what the API server knows of the node is not looked at.
    #[arg(long, env, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Kubeconfig file [default: the service account of the pod].
    #[arg(long, env, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take a doc comment for help text")]
    pub place: Place,
}

/// What of the node is looked at.
#[derive(Debug, Clone, Args)]
#[expect(missing_docs, reason = "clap would take a doc comment of a flattened field for help text")]
pub struct Place {
    #[command(flatten)]
    pub driver: DriverArgs,
    #[command(flatten)]
    pub hardware: HardwareArgs,
    #[command(flatten)]
    pub host: HostArgs,
}
