//! The whole job on a machine with neither GPU nor cluster: a simulated node, the real node code on real sockets, a simulated
//! control plane and kubelet around it, and a map of the partitioned GPUs.
//!
//! `cargo run -p sandbox`, see `--help`. The exit status is 0 only if all pods ran and everything was removed, and 2 when nothing was
//! started because a manifest has a mistake.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "printing is what this program is for")]

mod args;
mod cluster;
mod manifests;
mod map;
mod operators;
mod report;
mod serve;
mod story;
mod why;

use std::process::ExitCode;

use dra_driver_mig::telemetry::{LogFormat, init_logging};

/// Exit status for a mistake in the command line or in a manifest, as clap has it.
const MISTAKE: u8 = 2;

fn main() -> ExitCode {
    let args = args::Args::read();
    if let Err(error) = init_logging(&args.log_level, LogFormat::Text) {
        eprintln!("sandbox: --log-level {}: {error}", args.log_level);
        return ExitCode::FAILURE;
    }
    let plan = match story::plan(&args) {
        Ok(Ok(plan)) => plan,
        Ok(Err(mistakes)) => {
            for mistake in &mistakes {
                // A message may show the expression that it is about, on lines of its own.
                eprintln!("sandbox: {}", mistake.to_string().replace('\n', "\n    "));
            }
            return ExitCode::from(MISTAKE);
        }
        Err(error) => {
            eprintln!("sandbox: {error:#}");
            return ExitCode::from(MISTAKE);
        }
    };
    // kube asks for a TLS provider even where it speaks plain HTTP.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("sandbox: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(story::run(args, plan));
    drop(runtime);
    match outcome {
        Ok((true, _directory)) => ExitCode::SUCCESS,
        Ok((false, _directory)) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sandbox: {error:#}");
            ExitCode::FAILURE
        }
    }
}
