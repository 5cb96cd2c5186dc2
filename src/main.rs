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
            if tracing::dispatcher::has_been_set() {
                tracing::error!("{error}");
            } else {
                #[expect(clippy::print_stderr, reason = "there is no log yet")]
                {
                    eprintln!("dra-driver-mig: {error}");
                }
            }
            ExitCode::FAILURE
        }
    }
}
