//! Arguments of `plan`.

use clap::{Args, ValueEnum};

use super::gates::GateFlags;
use crate::cluster::ClusterArgs;
use crate::template::{Gpus, TemplateArgs, gpus};

/// Most nodes of a plan.
const MAX_NODES: usize = 5000;

/// Arguments of `plan`.
#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    /// The manifests: files, directories, or `-` for standard input; may be repeated. Pods are placed in their order.
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    pub filenames: Vec<String>,
    /// Read the directories below a directory, too.
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// Plan on empty nodes instead of the cluster. GPUS are the GPUs of one node: 8xH100-80GB, or 2xH100-80GB,1xL4 for a node
    /// that has both. Repeat the flag for nodes of several kinds.
    #[arg(long, value_name = "GPUS", value_parser = gpus, conflicts_with_all = ["from", "context", "kubeconfig"])]
    pub gpus: Vec<Gpus>,
    /// How many nodes there are of each --gpus.
    #[arg(long, value_name = "N", default_value = "1", value_parser = nodes, requires = "gpus")]
    pub nodes: usize,
    /// Plan on the ResourceSlices of a file instead of the cluster, such as one that `kubectl get resourceslices -o json` wrote.
    /// Its Nodes, DeviceClasses, ResourceClaims and Pods count, too; may be repeated.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["context", "kubeconfig"])]
    pub from: Vec<String>,
    /// Feature gates of API server and scheduler, such as DRAPartitionableDevices=false,DRAExtendedResource=true [default: those
    /// of Kubernetes 1.36; with --layout those of 1.35; for a cluster, what its version and its objects show].
    #[arg(long, value_name = "GATES")]
    pub gates: Option<GateFlags>,
    /// Which node the scheduler prefers (NodeResourcesFit).
    #[arg(long, value_enum, value_name = "STRATEGY", default_value = "least-allocated")]
    pub scoring: Scoring,
    /// Price of a GPU for an hour, in any currency: prints what a pod costs, and what is saved against a GPU for each device.
    #[arg(long, value_name = "PRICE", value_parser = price)]
    pub price: Option<f64>,
    /// Print a layout file, in mig-parted's format, that serves many of the pods on clusters without counters: the best of several ways of
    /// cutting the GPUs. Needs --gpus.
    #[arg(long, value_enum, value_name = "WHAT", requires = "gpus", conflicts_with_all = ["layout", "price", "output"])]
    pub suggest: Option<Suggest>,
    /// Format of the output.
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub output: PlanFormat,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take a doc comment for help text")]
    pub cluster: ClusterArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take a doc comment for help text")]
    pub template: TemplateArgs,
}

/// Which node the scheduler prefers, named as in its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scoring {
    /// The one with the largest free share of CPU and memory, which spreads pods: the default of kube-scheduler.
    LeastAllocated,
    /// The one with the smallest, which fills nodes one after the other.
    MostAllocated,
}

/// What to suggest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Suggest {
    /// A layout file.
    Layout,
}

/// Format of the output of `plan`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PlanFormat {
    /// For people.
    Text,
    /// For programs; has a `schemaVersion`.
    Json,
}

fn nodes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=MAX_NODES).contains(&count) => Ok(count),
        _ => Err(format!("a number from 1 to {MAX_NODES}")),
    }
}

fn price(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(price) if price.is_finite() && 0.0 < price => Ok(price),
        _ => Err("it is not a positive number, such as 2.50".to_owned()),
    }
}
