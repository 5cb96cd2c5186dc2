//! The command line. kubectl runs the program `kubectl-mig` as `kubectl mig`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::plan::PlanArgs;
use crate::slices::SlicesArgs;

/// Ask for MIG devices on Kubernetes.
#[derive(Debug, Clone, Parser)]
#[command(name = "kubectl-mig", bin_name = "kubectl mig", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Turn manifests that ask the device plugin (`nvidia.com/mig-1g.10gb: 1`, `nvidia.com/gpu: 1`) into manifests that
    /// claim devices. Comments and everything else in the file stay. Exit status: 0 all converted, 1 something was left as
    /// it is (see standard error), 2 the file cannot be used and nothing is written.
    Convert(ConvertArgs),
    /// Show whether the pods of manifests get their devices: on the cluster as it is, on empty nodes (--gpus), or on slices from a
    /// file (--from). Prints a map of each GPU, what does not fit and why, and how many GPUs all of it needs. Exit status: 0 all
    /// fits, 1 something does not, 2 the input cannot be used.
    Plan(Box<PlanArgs>),
    /// Print the ResourceSlices that the driver publishes on a node with these GPUs, for templates of autoscalers, KWOK and
    /// tests. Needs no cluster and no GPU. Exit status: 0 printed, 2 not.
    Slices(Box<SlicesArgs>),
}

/// Arguments of `convert`.
#[derive(Debug, Clone, Args)]
pub struct ConvertArgs {
    /// The manifests: YAML or JSON, one object or many; `-` is standard input.
    #[arg(short, long, value_name = "FILE")]
    pub filename: String,
    /// Where to write the result, which can be the input file itself [default: standard output].
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}
