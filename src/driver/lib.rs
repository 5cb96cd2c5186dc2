//! A Kubernetes DRA driver that creates MIG instances on NVIDIA GPUs on demand.
//!
//! Two flows:
//!
//! ```text
//! advertise   libnvidia-ml.so -> nvml -> inventory -> slices -> API server       (kubectl get resourceslices)
//! prepare     kubelet gRPC -> claim -> mig (GI + CI) -> cdi spec -> reply        (the pod sees exactly its instance)
//! unprepare   kubelet gRPC -> claim -> mig destroy (CI, GI) -> cdi file removed  (the hardware is whole again)
//! ```
//!
//! `inventory` and `slices` (devices, their order and their slices) are modules of the crate `mig_model`; each other step is a
//! folder of this crate, which has the effects.
//!
//! # Layers
//!
//! A module imports modules of the lines above its own, and no others (`tests/layers.rs` reads the `use` lines):
//!
//! ```text
//! telemetry backoff files heap threads host pods    log, numbers, pauses, threads, the kernel's facts, which pods have which claim
//! nvml checkpoint                        the library; what was promised, on disk
//! cdi mig                                specs for containers; GPU and compute instances
//! readiness                              what the host needs before claims can be prepared
//! access                                 which GPUs this process can open
//! hardware                               the GPUs of the node and their threads
//! api                                    the API server
//! context                                what every part of the node needs
//! health usage claim job_mapping         conditions of GPUs; use of instances; claims from call to answer; pods for DCGM
//! kubelet                                gRPC towards the kubelet
//! layout publisher mig_node              which layout is in force, the slices in the API server, and the node's MigNode
//! probes check inspect management        ready or not, and why; what a person asks for
//! node                                   wires everything
//! args                                   the command line
//! guarantees                             what the driver guarantees, in words
//! ```
//!
//! Nor do files use each other in a circle (the same test): a parent shows the names of its children or uses them, and a child uses
//! its siblings, not its parent's items where the parent uses the child.
//!
//! What the driver guarantees, and the test behind each guarantee, is in [`guarantees`]. What holds everywhere:
//!
//! * `claim::{allocation, plan}`, `health::{owner, state}` and the building of CDI specs are functions from data to data, as all
//!   of `mig_model`; they neither wait nor read.
//! * The intent is on disk before the hardware changes; the answer comes after the record says that all is there.
//! * Every effect can be repeated: create finds first, destroying what is gone is success.
//! * An instance is destroyed only if its id, profile and placement are those of the record. What others made is left
//!   alone, and what it occupies is not offered.
//! * An allocated device is never withdrawn, except where it is in the way on a GPU that is held back: a scheduler would give it to
//!   the next pod at its release. Where counters are kept, what it takes leaves them with it. Overlapping devices are never
//!   published without the counters that keep them apart; where there are none, [`layout`] chooses some that don't overlap.
//! * `unsafe` is in `nvml/device.rs`, `nvml/event.rs` and `heap.rs` alone.

pub mod access;
pub mod api;
pub mod args;
pub mod backoff;
pub mod cdi;
pub mod check;
pub mod checkpoint;
pub mod claim;
pub mod context;
pub mod files;
pub mod guarantees;
pub mod hardware;
pub mod health;
pub mod heap;
pub mod host;
pub mod inspect;
pub mod job_mapping;
pub mod kubelet;
pub mod layout;
pub mod management;
pub mod mig;
pub mod mig_node;
pub mod node;
pub mod nvml;
pub mod pods;
pub mod probes;
pub mod publisher;
pub mod readiness;
pub mod telemetry;
pub mod threads;
pub mod usage;

use std::time::Duration;

use args::{Cli, Command};
use telemetry::{LogFormat, stop_on_signal};
use tokio::runtime;
use tracing::info;

/// Runs a subcommand to its end.
///
/// # Errors
/// Why it ended before its work was done, for a person.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    if let Command::ManagementSpec(args) = &cli.command {
        return management::run(args);
    }
    // Two threads: NVML calls run on their own threads; the rest is waiting. Two more stand in for them while they wait for
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
            // Done above: it needs no runtime.
            Command::ManagementSpec(_) => {}
        }
        Ok(())
    });
    // A call into a driver that hangs must not keep the process from ending.
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}
