//! Arguments of `explain`.

use clap::{Args, ValueEnum};

use crate::cluster::ClusterArgs;

/// Arguments of `explain`.
#[derive(Debug, Clone, Args)]
pub struct ExplainArgs {
    /// What to explain: pod/NAME, claim/NAME, or NAME of a pod.
    #[arg(value_name = "pod/NAME | claim/NAME", num_args = 1..=2, required_unless_present = "filename")]
    pub subject: Vec<String>,
    /// Manifests that are not applied yet: pods, workloads and claims, on the cluster as it is. `-` is standard input.
    #[arg(short, long, value_name = "FILE", conflicts_with = "subject")]
    pub filename: Vec<String>,
    /// With -f: also the directories below.
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// Files with the objects of the cluster, in place of a cluster: `kubectl get
    /// resourceslices,deviceclasses,resourceclaims,resourceclaimtemplates,pods,nodes,resourcequotas,events -A -o json`.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kubeconfig", "context"])]
    pub from: Vec<String>,
    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// One document, with `schemaVersion`.
    Json,
}
