//! Parses the command line and calls the library.

use std::process::ExitCode;

use clap::Parser;
use dra_driver_mig::args::Cli;

fn main() -> ExitCode {
    // One TLS provider for the whole process, chosen before anybody asks for one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match dra_driver_mig::run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The driver's errors tell their causes themselves, so the chain below them would repeat it.
            tracing::error!(%error, "exiting");
            #[expect(clippy::print_stderr, reason = "the log may be filtered or not set up")]
            {
                eprintln!("dra-driver-mig: {error}");
            }
            ExitCode::FAILURE
        }
    }
}
