//! Flags of `inspect`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::hardware::HardwareArgs;
use crate::kubelet::DriverArgs;
use crate::telemetry::{OutputFormat, seconds};

/// Arguments of `inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take a doc comment for help text")]
    pub hardware: HardwareArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take a doc comment for help text")]
    pub driver: DriverArgs,
    /// Kubeconfig file, to read the pods of claims [default: the service account of the pod, if this is one].
    #[arg(long, env, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Output format.
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub output: OutputFormat,
    /// Repeat the output until interrupted.
    #[arg(short, long)]
    pub watch: bool,
    /// Time between two outputs of --watch.
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    pub interval: Duration,
}
