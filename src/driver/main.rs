//! Parses the command line and calls the library.

use std::io;
use std::process::ExitCode;

use dra_driver_mig::args::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::from_process();
    if matches!(cli.command, Command::Node(_)) {
        mig_telemetry::use_one_heap();
    }
    // One TLS provider for the whole process, chosen before the first use.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match dra_driver_mig::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader closed the pipe, as in `dra-driver-mig inspect | head`.
        Err(error)
            if error.downcast_ref::<io::Error>().is_some_and(|it| it.kind() == io::ErrorKind::BrokenPipe) =>
        {
            ExitCode::SUCCESS
        }
        Err(error) => {
            // The driver's error messages include their causes, so the chain would repeat them.
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
