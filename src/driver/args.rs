//! The command line: every flag is also an environment variable, so that a DaemonSet can set it either way.

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::check::CheckArgs;
use crate::inspect::InspectArgs;
use crate::management::ManagementSpecArgs;
use crate::node::NodeArgs;

/// Kubernetes DRA driver that creates MIG instances on NVIDIA GPUs on demand.
#[derive(Debug, Parser)]
#[command(name = "dra-driver-mig", version, about, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Every setting with its origin, for the log; only [`Cli::from_process`] fills it in.
    #[arg(skip)]
    pub configuration: String,
}

impl Cli {
    /// The command line and environment of this process. Ends it with a message if they cannot be understood.
    #[must_use]
    pub fn from_process() -> Self {
        let matches = Self::command().get_matches();
        let parsed = Self::from_arg_matches(&matches);
        let mut cli = parsed.unwrap_or_else(|error| error.format(&mut Self::command()).exit());
        cli.configuration = configuration(&matches);
        cli
    }
}

/// Every flag of the subcommand, by where its value comes from. No flag takes a secret: kubeconfig files are named, not
/// read here.
fn configuration(matches: &ArgMatches) -> String {
    let Some((name, given)) = matches.subcommand() else { return String::new() };
    let command = Cli::command();
    let Some(subcommand) = command.find_subcommand(name) else { return String::new() };
    let mut origins =
        [("flags", Vec::new()), ("environment", Vec::new()), ("defaults", Vec::new()), ("unset", Vec::new())];
    for argument in subcommand.get_arguments().filter(|it| it.get_long() != Some("help")) {
        let id = argument.get_id().as_str();
        let values: Vec<String> =
            given.get_raw(id).into_iter().flatten().map(|it| it.to_string_lossy().into_owned()).collect();
        let (origin, setting) = match given.value_source(id) {
            _ if values.iter().all(String::is_empty) => (3, argument.get_long().unwrap_or(id).to_owned()),
            source => {
                let origin = match source {
                    Some(ValueSource::CommandLine) => 0,
                    Some(ValueSource::EnvVariable) => 1,
                    _ => 2,
                };
                (origin, format!("{}={}", argument.get_long().unwrap_or(id), values.join(",")))
            }
        };
        origins[origin].1.push(setting);
    }
    let origins_set = origins.iter().filter(|(_, settings)| !settings.is_empty());
    let origins_set: Vec<String> =
        origins_set.map(|(origin, settings)| format!("{origin}: {}", settings.join(" "))).collect();
    origins_set.join("; ")
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve this node: publish ResourceSlices, prepare and unprepare claims for the kubelet.
    Node(Box<NodeArgs>),
    /// Show this node's GPUs and claims: MIG mode, a map of each GPU, instances and their owners, memory in use, utilization,
    /// unhealthy GPUs and instances, profiles and where they still fit. Needs no running driver and changes nothing.
    Inspect(InspectArgs),
    /// List what the driver needs on this host and in the cluster, what is missing or turned off, and what to do.
    /// Changes nothing; exit status 1 if something is missing.
    Check(Box<CheckArgs>),
    /// Write the CDI spec that gives this driver's container the GPUs, `<driver>-management.json` with the device
    /// `<driver>/management=all`, from what the kernel lists in /proc. Run before `node` in an init container; needs no GPU, no
    /// capability and no API server. Exit status 1 only if the spec cannot be written.
    ManagementSpec(ManagementSpecArgs),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_flag_is_an_environment_variable() {
        let command = Cli::command();
        command.clone().debug_assert();
        for name in ["node", "check", "management-spec"] {
            let subcommand = command.find_subcommand(name).unwrap();
            // The form of the output is a matter of the call, not of the node.
            let settings =
                subcommand.get_arguments().filter(|it| !["help", "output"].contains(&it.get_id().as_str()));
            for argument in settings {
                assert!(argument.get_env().is_some(), "{}", argument.get_id());
                assert!(argument.get_help().is_some(), "{}", argument.get_id());
            }
        }
    }

    #[test]
    fn the_configuration_shows_where_each_setting_is_from() {
        let line = ["dra-driver-mig", "node", "--node-name", "n-1", "--mode=layout"];
        let origins_set = configuration(&Cli::command().get_matches_from(line));
        let (flags, rest) = origins_set.split_once("; ").unwrap();
        assert_eq!(flags, "flags: node-name=n-1 mode=layout");
        assert!(rest.contains("defaults: ") && rest.contains(" rescan-interval=60 "), "{rest}");
        assert!(rest.contains("unset: ") && rest.contains(" driver-library"), "{rest}");
    }
}
