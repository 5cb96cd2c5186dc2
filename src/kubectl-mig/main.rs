//! Parses the command line and calls the library.

use std::process::ExitCode;

use clap::Parser;
use kubectl_mig::args::Cli;

fn main() -> ExitCode {
    kubectl_mig::run(&Cli::parse())
}
