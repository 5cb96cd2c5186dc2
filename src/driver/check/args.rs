//! Flags of `check`.

use std::path::PathBuf;

use clap::Args;
use mig_model::slices::Mode;

use crate::hardware::{HardwareArgs, HostArgs};
use crate::kubelet::DriverArgs;
use crate::layout::StateLabel;
use crate::mig_node::MigNodeSwitch;
use crate::telemetry::OutputFormat;

/// Arguments of `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Name of this node's Node object; without it, the Node object is not checked.
    #[arg(long, env, value_name = "NAME")]
    pub node_name: Option<String>,
    /// What `node` publishes: determines whether the feature gate DRAPartitionableDevices is needed.
    #[arg(long, env, value_enum, value_name = "MODE", default_value = "auto")]
    pub mode: Mode,
    /// Whether `node` writes the node label nvidia.com/mig.config.state.
    #[arg(long, env, value_enum, value_name = "STATE", default_value = "on")]
    pub state_label: StateLabel,
    /// Whether `node` keeps the status of its MigNode.
    #[arg(long, env, value_enum, value_name = "STATE", default_value = "on")]
    pub mig_node: MigNodeSwitch,
    /// Output format.
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub output: OutputFormat,
    /// Kubeconfig file [default: the service account of the pod].
    #[arg(long, env, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take a doc comment for help text")]
    pub place: Place,
}

/// The parts of the node to check.
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
