//! Parses the command line and calls the library.

use std::process::ExitCode;

use clap::Parser;
use mig_controller::args::Args;
use tokio::runtime;
use tracing::info;

fn main() -> ExitCode {
    let args = Args::parse();
    mig_telemetry::use_one_heap();
    // One TLS provider for the whole process, chosen before the first use.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The error messages include their causes, so the chain would repeat them.
            if tracing::dispatcher::has_been_set() {
                tracing::error!("{error}");
            } else {
                #[expect(clippy::print_stderr, reason = "there is no log yet")]
                {
                    eprintln!("mig-controller: {error}");
                }
            }
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    mig_telemetry::init_logging(&filter(&args.log_level), args.log_format)?;
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        info!(version = env!("CARGO_PKG_VERSION"), "starting");
        mig_controller::run(args, mig_telemetry::stop_on_signal()?).await
    })
}

/// The level, without what kube logs of each attempt of a watch that fails: the loop reports a failure once. A filter that names it
/// has it.
fn filter(level: &str) -> String {
    if level.contains("kube_runtime") { level.to_owned() } else { format!("{level},kube_runtime=error") }
}
