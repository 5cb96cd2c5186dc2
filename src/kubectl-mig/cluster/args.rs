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

impl ClusterArgs {
    /// With the flags that stand before the subcommand. One that stands behind it counts.
    pub fn or(&mut self, before: &Self) {
        let Self { kubeconfig, context, namespace } = before.clone();
        self.kubeconfig = self.kubeconfig.take().or(kubeconfig);
        self.context = self.context.take().or(context);
        self.namespace = self.namespace.take().or(namespace);
    }

    /// The first flag that is set.
    #[must_use]
    pub fn first(&self) -> Option<&'static str> {
        let set = [
            (self.kubeconfig.is_some(), "--kubeconfig"),
            (self.context.is_some(), "--context"),
            (self.namespace.is_some(), "--namespace"),
        ];
        set.into_iter().find(|it| it.0).map(|it| it.1)
    }
}
