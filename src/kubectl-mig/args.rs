//! The command line. kubectl runs the program `kubectl-mig` as `kubectl mig`.

use clap::{Parser, Subcommand};

use crate::convert::args::ConvertArgs;

use crate::explain::args::ExplainArgs;

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
    /// Turn manifests that request devices from the device plugin (`nvidia.com/mig-1g.10gb: 1`, `nvidia.com/gpu: 1`) into
    /// manifests that claim devices. Comments and everything else in the files stay. Exit status: 0 all converted, 1
    /// something was left unchanged or needs a review (see standard error), 2 a file cannot be used and nothing is written.
    Convert(ConvertArgs),
    /// Say why a pod or claim has no devices, in terms of GPUs, and what to do. Reads the API server and changes nothing.
    /// Exit status: 0 it has or will get its devices, 1 not now, 2 never as things are, 3 that cannot be said.
    Explain(ExplainArgs),
}
