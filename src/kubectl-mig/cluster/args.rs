//! Flags that choose a cluster, named as kubectl's.

use std::path::PathBuf;

use clap::Args;

/// Which cluster, and as whom.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// The kubeconfig file [default: the files of $KUBECONFIG, or ~/.kube/config, or the pod's service account].
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig file.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// The namespace of what is named without one [default: that of the context].
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,
}
