//! A Kubernetes DRA driver that cuts NVIDIA GPUs into MIG instances on demand.
//!
//! Two flows, and a folder for each of their steps:
//!
//! ```text
//! advertise   libnvidia-ml.so -> nvml -> inventory -> slices -> API server       (kubectl get resourceslices)
//! prepare     kubelet gRPC -> claim -> mig (GI + CI) -> cdi spec -> reply        (the pod sees exactly its instance)
//! unprepare   kubelet gRPC -> claim -> mig destroy (CI, GI) -> cdi file removed  (the hardware is whole again)
//! ```
//!
//! [`placement`] says in which order the slices offer devices, [`layout`] which of them where there are no counters; [`node`]
//! wires everything, [`checkpoint`] is what was promised, on disk, [`health`] what GPUs suffer from; [`api`], [`host`] and
//! [`telemetry`] stand beside both flows. [`inspect`] and [`check`] only look. [`management`]
//! runs before the driver and gives its container the GPUs.
//!
//! What is never lost, and the test behind each promise, is in [`guarantees`]. What holds everywhere:
//!
//! * `inventory`, `placement`, `layout::{choose, fit, apply}`, `slices::{next, render, diff}`, `claim::{allocation, plan}`,
//!   `health::{owner, state, report}` and the building of CDI specs are functions from data to data; they neither wait nor read.
//! * The intent is on disk before the hardware changes; the answer comes after the record says that all is there.
//! * Every effect can be repeated: create finds first, destroying what is gone is success.
//! * An instance is destroyed only if its id, profile and placement are those of the record. What others made is left
//!   alone, and what it occupies is not offered.
//! * An allocated device is never withdrawn. Overlapping devices are never published without the counters that keep
//!   them apart; where there are none, [`layout`] chooses some that don't overlap.
//! * `unsafe` is in `nvml/device.rs` and `nvml/event.rs` alone.

pub mod args;
pub mod backoff;

pub mod inventory;
pub mod layout;
pub mod nvml;
pub mod placement;
pub mod slices;

pub mod cdi;
pub mod claim;
pub mod kubelet;
pub mod mig;

pub mod access;
pub mod api;
pub mod check;
pub mod checkpoint;
pub mod convert;
pub mod guarantees;
pub mod hardware;
pub mod health;
pub mod host;
pub mod inspect;
pub mod management;
pub mod node;
pub mod readiness;
pub mod telemetry;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use args::{Cli, Command};
use telemetry::LogFormat;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Runs a subcommand to its end. Answers the exit status of what ended well; only `convert` has others than 0.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match &cli.command {
        Command::Convert(args) => return Ok(convert::run(args).into()),
        Command::ManagementSpec(args) => return management::run(args).map(|()| ExitCode::SUCCESS),
        Command::Node(_) | Command::Inspect(_) | Command::Check(_) => {}
    }
    // Two threads: the work is NVML's, on threads of its own, and waiting. Two more stand in for them while they wait for
    // a disk; with tokio's limit of 512 a burst of claims has a thread each, and each thread its share of the heap.
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(2)
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        match cli.command {
            Command::Node(args) => {
                telemetry::init_logging(&args.log_level, args.log_format)?;
                info!(version = env!("CARGO_PKG_VERSION"), configuration = cli.configuration, "starting");
                node::run(*args, stop_on_signal()?).await?;
            }
            Command::Inspect(args) => {
                telemetry::init_logging("warn", LogFormat::Text)?;
                inspect::run(&args).await?;
            }
            // No log: what there is to say is in the list.
            Command::Check(args) => check::run(&args).await?,
            // Done above: they need no runtime.
            Command::Convert(_) | Command::ManagementSpec(_) => {}
        }
        Ok(ExitCode::SUCCESS)
    });
    // A call into a driver that hangs must not keep the process from ending.
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

/// A token that is cancelled by the first SIGTERM or SIGINT; the second one ends the process at once.
fn stop_on_signal() -> io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            if token.is_cancelled() {
                std::process::exit(1);
            }
            token.cancel();
        }
    });
    Ok(stop)
}
