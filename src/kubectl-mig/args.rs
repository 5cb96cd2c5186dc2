//! The command line. kubectl runs the program `kubectl-mig` as `kubectl mig`.

use clap::{Parser, Subcommand};

use crate::completion::{CompletionArgs, ManArgs};
use crate::convert::args::ConvertArgs;
use crate::explain::args::ExplainArgs;
use crate::get::GetArgs;
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
    /// Turn manifests that request devices from the device plugin (`nvidia.com/mig-1g.10gb: 1`, `nvidia.com/gpu: 1`) into
    /// manifests that claim devices. Comments and everything else in the files stay. Exit status: 0 all converted, 1
    /// something was left unchanged or needs a review (see standard error), 2 a file cannot be used and nothing is written.
    Convert(ConvertArgs),
    /// Say why a pod or claim has no devices, in terms of GPUs, and what to do. Reads the API server and changes nothing.
    /// Exit status: 0 it has or will get its devices, 1 not now, 2 never as things are, 3 that cannot be said.
    Explain(ExplainArgs),
    /// List nodes, GPUs or claims: what is held and by whom, what could be allocated now, and what is wrong. In the column SLICES
    /// letters are what pods hold, `·` is free, `-` is neither held nor can it be allocated, `x` is not offered. FREE counts each
    /// profile by itself. Exit status: 0 something is listed, 1 there is nothing to list or not all that was named, 2 the
    /// cluster or the files cannot be read.
    Get(GetArgs),
    /// Print the completion script of a shell; `kubectl` is the script with which kubectl completes `kubectl mig`.
    Completion(CompletionArgs),
    /// Print the manual page, or write all of them into a directory.
    Man(ManArgs),
    /// Show whether the pods of manifests get their devices: on the cluster as it is, on empty nodes (--gpus), or on slices from a
    /// file (--from). Prints a map of each GPU, what does not fit and why, and how many GPUs all of it needs. Exit status: 0 all
    /// fits, 1 something does not, 2 the input cannot be used.
    Plan(Box<PlanArgs>),
    /// Print the ResourceSlices that the driver publishes on a node with these GPUs, for templates of autoscalers, KWOK and
    /// tests. Needs no cluster and no GPU. Exit status: 0 printed, 2 not.
    Slices(Box<SlicesArgs>),
}
