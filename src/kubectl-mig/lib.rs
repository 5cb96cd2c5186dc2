//! `kubectl mig`: a kubectl plugin for users of MIG devices.
//!
//! It knows Kubernetes objects and no hardware: no NVML, no kubelet. [`explain`] says why a pod does not get its devices, [`get`]
//! lists nodes, GPUs and claims, [`plan`] says whether manifests fit, [`slices`] prints what a node publishes, and [`convert`]
//! rewrites manifests for the device plugin.
//!
//! ```text
//! cluster (objects of an API server) \
//!                                     gpu (slices in terms of GPUs) -> explain, get
//! manifest (objects of files) -------/
//!
//! template (nodes without a machine) -> slices, plan
//! ```

#[cfg(feature = "cli")]
pub mod args;
pub mod cluster;
#[cfg(feature = "cli")]
pub mod completion;
pub mod convert;
pub mod explain;
pub mod get;
pub mod gpu;
pub mod manifest;
pub mod plan;
mod shell;
pub mod slices;
pub mod template;
mod text;
mod yaml;

#[cfg(feature = "cli")]
use std::io::{self, Write};
#[cfg(feature = "cli")]
use std::process::ExitCode;

#[cfg(feature = "cli")]
use args::{Cli, Command};
#[cfg(feature = "cli")]
use clap::CommandFactory;

/// Runs a subcommand to its end and returns its exit status.
#[cfg(feature = "cli")]
#[must_use]
pub fn run(cli: &Cli) -> ExitCode {
    let command = match cli.command.clone().with_cluster(&cli.cluster) {
        Ok(command) => command,
        Err(flag) => {
            // A closed standard error cannot be reported.
            let _ = writeln!(io::stderr(), "kubectl mig: {flag} is for subcommands that read a cluster");
            return ExitCode::from(2);
        }
    };
    match &command {
        Command::Completion(args) => completion::run(args, Cli::command()).into(),
        Command::Convert(args) => convert::run(args).into(),
        Command::Explain(args) => explain::run(args).into(),
        Command::Get(args) => get::run(args).into(),
        Command::Man(args) => completion::man(args, Cli::command()).into(),
        Command::Plan(args) => plan::run(args),
        Command::Slices(args) => slices::run(args),
    }
}
