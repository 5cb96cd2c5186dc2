//! The command line. kubectl runs the program `kubectl-mig` as `kubectl mig`.

use clap::{Parser, Subcommand};

use crate::cluster::ClusterArgs;
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
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take a doc comment for help text")]
    pub cluster: ClusterArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Convert manifests of the device plugin to claims.
    ///
    /// Manifests that request devices from the device plugin (`nvidia.com/mig-1g.10gb: 1`, `nvidia.com/gpu: 1`) become manifests
    /// that claim devices. Comments and everything else in the files stay. Exit status: 0 all converted, 1 something was left
    /// unchanged or needs a review (see standard error), 2 a file cannot be used and nothing is written.
    Convert(ConvertArgs),
    /// Say why a pod or claim has no devices, and what to do.
    ///
    /// The answer is in terms of GPUs. Reads the API server and changes nothing. Exit status: 0 it has or will get its devices, 1
    /// not now, 2 never as things are, 3 that cannot be said.
    Explain(ExplainArgs),
    /// List nodes, GPUs or claims: what is held, what is free, and what is wrong.
    ///
    /// In the column SLICES letters are what pods hold, `.` is free, `-` is neither held nor can it be allocated, `x` is not
    /// offered. FREE counts each profile by itself. Exit status: 0 something is listed, 1 there is nothing to list or not all that
    /// was named, 2 the cluster or the files cannot be read.
    Get(GetArgs),
    /// Show whether the pods of manifests get their devices, and how many GPUs they need.
    ///
    /// On the cluster as it is, on empty nodes (--gpus), or on slices from a file (--from). Prints a map of each GPU, what does not
    /// fit and why, and how many GPUs all of it needs. Exit status: 0 all fits, 1 something does not, 2 the input cannot be used.
    Plan(Box<PlanArgs>),
    /// Print the ResourceSlices that the driver publishes on a node with given GPUs.
    ///
    /// For templates of autoscalers, KWOK and tests. Needs no cluster and no GPU. Exit status: 0 printed, 2 not.
    Slices(Box<SlicesArgs>),
    /// Print the completion script of a shell.
    ///
    /// `kubectl` is the script with which kubectl completes `kubectl mig`.
    Completion(CompletionArgs),
    /// Print the manual page, or write all of them into a directory.
    Man(ManArgs),
}

impl Command {
    /// Takes over the flags that stand before the subcommand.
    ///
    /// # Errors
    /// The flag, where the subcommand reads no cluster.
    pub fn with_cluster(mut self, before: &ClusterArgs) -> Result<Self, &'static str> {
        match &mut self {
            Self::Explain(args) => args.cluster.or(before),
            Self::Get(args) => args.cluster.or(before),
            Self::Plan(args) => args.cluster.or(before),
            Self::Convert(_) | Self::Slices(_) | Self::Completion(_) | Self::Man(_) => {
                return before.first().map_or(Ok(self), Err);
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use clap::CommandFactory;

    use super::*;

    fn parsed(words: &[&str]) -> Result<Command, &'static str> {
        let cli = Cli::try_parse_from(["kubectl-mig"].iter().chain(words)).unwrap();
        cli.command.with_cluster(&cli.cluster)
    }

    #[test]
    fn flags_of_the_cluster_may_stand_before_the_subcommand() {
        let command = parsed(&["--context", "c", "-n", "team", "get", "-n", "other"]).unwrap();
        let Command::Get(args) = command else { panic!("not get") };
        assert_eq!(
            (args.cluster.context.as_deref(), args.cluster.namespace.as_deref()),
            (Some("c"), Some("other"))
        );
        let command = parsed(&["--kubeconfig", "/k", "plan", "-f", "x"]).unwrap();
        let Command::Plan(args) = command else { panic!("not plan") };
        assert_eq!(args.cluster.kubeconfig.unwrap().to_str(), Some("/k"));
        assert_eq!(parsed(&["--context", "c", "slices", "--gpus", "1xL4"]).unwrap_err(), "--context");
        assert!(parsed(&["slices", "--gpus", "1xL4"]).is_ok());
    }

    #[test]
    fn the_short_help_has_one_line_for_each_subcommand_and_each_flag_of_get() {
        let mut root = Cli::command().term_width(100);
        let help = root.render_help().to_string();
        let names: Vec<&str> = help
            .lines()
            .skip_while(|it| *it != "Commands:")
            .skip(1)
            .map_while(|it| it.strip_prefix("  ")?.split(' ').next().filter(|it| !it.is_empty()))
            .collect();
        assert_eq!(
            names,
            ["convert", "explain", "get", "plan", "slices", "completion", "man", "help"],
            "{help}"
        );
        let get = root.find_subcommand_mut("get").unwrap().render_help().to_string();
        assert!(!get.contains("Exit status"), "{get}");
    }
}
