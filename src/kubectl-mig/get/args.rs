//! Flags of `get`.

use clap::{Args, ValueEnum};

use crate::cluster::ClusterArgs;

/// What to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// One line for each node.
    #[value(alias = "node", alias = "no")]
    Nodes,
    /// One line for each GPU, with its holders.
    #[value(alias = "gpu")]
    Gpus,
    /// One line for each claim that holds a GPU or a part of one, or is pending.
    #[value(alias = "claim", alias = "resourceclaims", alias = "resourceclaim")]
    Claims,
}

/// How to print it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table of 80 columns.
    Table,
    /// A table with more columns in which nothing is cut.
    Wide,
    /// JSON, for programs.
    Json,
}

/// Arguments of `get`.
#[derive(Debug, Clone, Args)]
pub struct GetArgs {
    /// What to list.
    #[arg(value_enum, default_value = "gpus", value_name = "WHAT")]
    pub what: What,
    /// Only these nodes; with `claims`, only these claims.
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Output format.
    #[arg(short, long, value_enum, default_value = "table", value_name = "FORMAT")]
    pub output: Format,
    /// Print again whenever something has changed, at most once a second.
    #[arg(short, long, conflicts_with = "from")]
    pub watch: bool,
    /// With `claims`, those of all namespaces.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// Read objects from files instead of a cluster; `-` is standard input.
    ///
    /// YAML or JSON as `kubectl get
    /// resourceslices,deviceclasses,resourceclaims,resourceclaimtemplates,pods,nodes,resourcequotas,events -A -o json` prints it. Claims of
    /// all namespaces are listed.
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["kubeconfig", "context"])]
    pub from: Vec<String>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take a doc comment for help text")]
    pub cluster: ClusterArgs,
}
