//! Parses the command line and calls the library.

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use kubectl_mig::args::Cli;

fn main() -> ExitCode {
    Cli::try_parse().map_or_else(|error| usage(&error), |cli| kubectl_mig::run(&cli))
}

/// Prints what is wrong with the command line, or the help. 2 is a verdict of `explain`, so that its status is 3 there.
fn usage(error: &clap::Error) -> ExitCode {
    let root = Cli::command();
    // Flags may stand before the subcommand.
    let first = std::env::args().skip(1).find(|it| root.find_subcommand(it).is_some());
    let is_explain = first.as_deref() == Some("explain");
    // No reader is left where this fails.
    let _ = error.print();
    ExitCode::from(match (error.use_stderr(), is_explain) {
        (false, _) => 0,
        (true, true) => 3,
        (true, false) => 2,
    })
}
