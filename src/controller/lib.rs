//! The controller of a cluster: it watches pods that wait for devices, reports why they wait, and decides what nodes should publish
//! for them.
//!
//! ```text
//! API server -> watches -> world -> decisions (pure) -> writes -> API server
//!                            ^                                       |
//!                            +------- every change wakes the loop ---+
//! ```
//!
//! It keeps no state outside the API server. Of several replicas one acts: the holder of the Lease.
//!
//! # Layers
//!
//! A module imports modules of the lines above its own:
//!
//! ```text
//! client                       the client of the API server
//! election demand              who acts; what nodes should publish: pure
//! world                        the objects of the cluster
//! movable                      which pods may be evicted, and what they have: pure
//! metrics watches probes       what is counted; what feeds the world; whether this process is well
//! reasons                      why pods wait, as events
//! evictor                      evictions of pods that make room
//! layouts                      what nodes should publish, as specs of MigNodes
//! control                      the loop
//! args                         the command line
//! ```

pub mod args;
pub mod client;
pub mod control;
pub mod demand;
pub mod election;
pub mod evictor;
pub mod layouts;
pub mod metrics;
pub mod movable;
mod present;
pub mod probes;
pub mod reasons;
mod waits;
pub mod watches;
pub mod world;

use std::io;
use std::time::Duration;

use anyhow::anyhow;
use k8s_openapi::jiff::Timestamp;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use args::Args;
use control::Control;
use election::{Campaign, Candidate, Timings};
use evictor::Evictor;
use layouts::Layouts;
use metrics::Metrics;
use reasons::{Events, Limits, Reporter};

/// How long a round may take to end once the process was asked to stop; below the 30 s that Kubernetes gives.
const DRAIN: Duration = Duration::from_secs(20);

/// Runs the controller until `stop`, then gives the Lease back. Ends with an error if a part of it ends by itself.
///
/// # Errors
/// What keeps it from starting, or which part has ended and why.
pub async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let health = mig_telemetry::bind_health(args.http_address, "/livez and /readyz").await?;
    let metrics_listener = mig_telemetry::bind_metrics(args.metrics_address).await?;
    let client = client::client(args.kubeconfig.as_deref()).await?;
    let identity = format!("{}_{:x}", args.pod_name, Timestamp::now().as_nanosecond());
    let namespace = args.lease_namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
    let timings = Timings::of_lease(args.lease_duration);
    info!(identity, namespace, lease = args.lease_name, "standing for election");
    let candidate = Candidate::new(&namespace, &args.lease_name, &identity, timings);
    let (campaign, leadership) = Campaign::new(client.clone(), &namespace, candidate);
    let metrics = Metrics::default();
    let reporter = (!args.no_events).then(|| {
        let events = Events::new(client.clone(), &identity);
        Reporter::new(events, &args.driver_name, Limits::with_patience(args.patience), metrics.clone())
    });
    let layouts = args.demand.then(|| {
        let options = demand::Options {
            driver: args.driver_name.clone(),
            patience: args.patience,
            hold_after: args.hold_after,
            hold_for: args.hold_for,
            consolidate_after: args.consolidate_after,
            evictions_per_hour: args.consolidate.then_some(args.evictions_per_hour),
            ..demand::Options::default()
        };
        let events = (!args.no_events).then(|| Events::new(client.clone(), &identity));
        let evictor = Evictor::new(client.clone(), events, metrics.clone());
        Layouts::new(client.clone(), options, args.default_auto, evictor, metrics.clone())
    });
    let (control, status) = Control::new(client, leadership.clone(), reporter, layouts, metrics.clone());

    let idle = CancellationToken::new();
    let mut parts: JoinSet<(&'static str, io::Result<()>)> = JoinSet::new();
    let (exporter, stopped) = (metrics.exporter(leadership.clone()), stop.clone());
    parts.spawn(async move {
        ("metrics", mig_telemetry::serve_metrics(metrics_listener, exporter, stopped).await)
    });
    let stopped = stop.clone();
    parts.spawn(async move { ("health", probes::serve_health(health, status, leadership, stopped).await) });
    let (stopped, acted) = (stop.clone(), idle.clone());
    parts.spawn(async move {
        control.run(stopped).await;
        // The Lease is given back once nothing is written any more.
        acted.cancel();
        ("loop", Ok(()))
    });
    let stopped = stop.clone();
    parts.spawn(async move {
        campaign.run(stopped, idle).await;
        ("election", Ok(()))
    });
    watch(parts, stop).await
}

/// Waits for `stop`, or for the first part that ends, and then until all have ended.
async fn watch(
    mut parts: JoinSet<(&'static str, io::Result<()>)>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let failure = tokio::select! {
        biased;
        () = stop.cancelled() => None,
        ended = parts.join_next() => Some(match ended {
            Some(Ok((name, Err(error)))) => anyhow!("{name} failed: {error}"),
            Some(Ok((name, Ok(())))) => anyhow!("{name} ended by itself"),
            Some(Err(error)) => anyhow!("a part of the controller died: {error}"),
            None => anyhow!("nothing to run"),
        }),
    };
    stop.cancel();
    info!("stopping");
    if timeout(DRAIN, async { while parts.join_next().await.is_some() {} }).await.is_err() {
        warn!("not everything ended in time; the Lease expires by itself");
    }
    info!("stopped");
    failure.map_or(Ok(()), Err)
}
