//! `kubectl mig`: a kubectl plugin for users of MIG devices.
//!
//! It knows Kubernetes objects and no hardware: no NVML, no kubelet. [`convert`] rewrites manifests for the device plugin.

pub mod args;
pub mod convert;

use std::process::ExitCode;

use args::{Cli, Command};

/// Runs a subcommand to its end and returns its exit status.
#[must_use]
pub fn run(cli: &Cli) -> ExitCode {
    match &cli.command {
        Command::Convert(args) => convert::run(args).into(),
    }
}
