//! Parses the command line and calls the library.

use std::os::unix::process::CommandExt;
use std::process::{Command as Process, ExitCode};
use std::{env, io};

use dra_driver_mig::args::{Cli, Command};

/// glibc's limit for heaps that threads have to themselves; read when the process starts.
const HEAPS: &str = "MALLOC_ARENA_MAX";

fn main() -> ExitCode {
    let cli = Cli::from_process();
    if matches!(cli.command, Command::Node(_)) && env::var_os(HEAPS).is_none() {
        start_again_with_one_heap();
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

/// Replaces this process by itself with one heap for all threads. A heap for each GPU's thread costs a fifth of the
/// resident memory and gains nothing: the threads wait for hardware, not for the allocator. The driver also works if
/// this fails, only larger.
fn start_again_with_one_heap() {
    if let Ok(program) = env::current_exe() {
        let _error = Process::new(program).args(env::args_os().skip(1)).env(HEAPS, "1").exec();
    }
}
