//! The whole job on a machine with neither GPU nor cluster: a simulated node, the real node code on real sockets, a simulated
//! control plane and kubelet around it, and a map of the partitioned GPUs.
//!
//! `cargo run -p sandbox`, see `--help`. The exit status is 0 only if all of it held.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "printing is what this program is for")]

mod args;
mod cluster;
mod map;
mod report;
mod story;

use std::process::ExitCode;

use clap::Parser;
use dra_driver_mig::telemetry::{LogFormat, init_logging};

fn main() -> ExitCode {
    let args = args::Args::parse();
    if let Err(error) = init_logging(&args.log_level, LogFormat::Text) {
        eprintln!("sandbox: --log-level {}: {error}", args.log_level);
        return ExitCode::FAILURE;
    }
    // kube asks for a TLS provider even where it speaks plain HTTP.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("sandbox: {error}");
            return ExitCode::FAILURE;
        }
    };
    let told = runtime.block_on(story::run(args));
    drop(runtime);
    match told {
        Ok((true, _directory)) => ExitCode::SUCCESS,
        Ok((false, _directory)) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sandbox: {error:#}");
            ExitCode::FAILURE
        }
    }
}
