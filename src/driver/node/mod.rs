//! Connects and supervises all parts: the only file that names each of them.

mod args;
mod attempt;
mod hardware_watch;
mod kernel_view;
mod parts;
mod problems;
mod publish_state;
mod shared;

use std::future::Future;
use std::sync::Arc;

use mig_model::layout::Decision;
use mig_model::mig_node::Followed;
use mig_model::slices::{Offered, Publication, Settings};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::api::{
    Allocations, ClaimReader, ClaimStatuses, MigNodes, NodeSlices, OwnMigNode, OwnNode, PodGroups,
};
use crate::cdi::ManagementFile;
use crate::check;
use crate::claim::{ClaimSettings, Claims};
use crate::hardware::{HardwareMetrics, NodeState, Opener};
use crate::health::{Follower, HealthMetrics, Watchdog};
use crate::job_mapping::JobMapping;
use crate::kubelet::{
    DeviceHealth, DraPlugin, PublisherElection, Registration, RegistrationMetrics, RegistrationState, Socket,
    SocketPaths, SoleProcess, refuse_other_driver, serve_plugin, serve_registration, watch_registration,
};
use crate::layout::{LayoutFollower, LayoutFollowerParts, LayoutMemory, StateLabel};
use crate::mig_node::{MigNodeSwitch, StatusParts, StatusWriter, watch_own};
use crate::nvml::{CallTimer, NvmlEvent};
use crate::probes::{health_service, serve_health};
use crate::publisher::{PublicationMetrics, Publisher, PublisherParts, Resumption};
use crate::telemetry::bind_health;
use crate::telemetry::metrics::{Exporter, bind_metrics, serve_metrics};
use crate::usage::{ClaimMetrics, DcgmInstances, Instances, Sampler};
pub use args::NodeArgs;
use attempt::Attempts;
use hardware_watch::HardwareWatch;
use kernel_view::KernelView;
use parts::Parts;
use shared::Shared;

/// Serves a node until `stop`. Ends with an error if a part of it ends by itself.
///
/// # Errors
/// What keeps the driver from starting, or which part has ended and why.
pub async fn run(args: NodeArgs, stop: CancellationToken) -> anyhow::Result<()> {
    // Before any change that affects a running process, and before the bind of its ports fails. Pods
    // have their own sockets.
    let _sole = match args.pod_uid {
        None => Some(SoleProcess::claim(&args.driver.plugin_directory())?),
        Some(_) => None,
    };
    refuse_other_driver(&args.host.registry_dir, &args.driver.driver_name).await?;
    let health_listener = bind_health(args.http_address, "/healthz and /readyz").await?;
    let metrics_listener = bind_metrics(args.metrics_address).await?;
    let (shared, senders) = Shared::new(&args).await?;
    let mut watch = hardware_watch(&args, &shared, senders.state, senders.nvml_events);
    let opening = watch.opening.clone();
    let watchdog = Watchdog {
        node: shared.context.node.clone(),
        opening: opening.clone(),
        patience: args.nvml_patience,
        events: shared.context.events.clone(),
        report: senders.hung,
    };

    // Health and metrics come first, because NVML may hang before anything else works. The first look comes before the kubelet may
    // call, so that no pod fails only because the driver has just started.
    let mut parts = Parts::default();
    parts.add("health", serve_health(health_listener, shared.health(), stop.clone()));
    let exporter = exporter(&args, &shared, opening);
    parts.add("metrics", serve_metrics(metrics_listener, exporter, stop.clone()));
    parts.add_endless("watchdog", watchdog.run(stop.clone()));
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        looked = watch.look_first() => looked?,
    }

    let context = &shared.context;
    let sampler =
        Sampler { context: context.clone(), policy: args.metrics_usage, seen: Arc::clone(&shared.seen) };
    let follower = Follower {
        context: context.clone(),
        nvml_events: senders.nvml_event_receiver,
        store: shared.store.clone(),
    };
    serve_kubelet(&args, &shared, senders.changed, senders.registration, &stop, &mut parts)?;
    let mig_node = (senders.own_mig_node, senders.followed);
    publish(&args, &shared, senders.publication, mig_node, &stop, &mut parts);
    let (client, reports) = (shared.client.clone(), shared.store.reports());
    let statuses =
        ClaimStatuses::new(client, context.checkpoint.clone(), reports, &context.name, &context.driver);
    parts.add_endless("device status of claims", statuses.run(shared.changes.clone(), stop.clone()));
    parts.add("sampler", sampler.run(stop.clone()));
    if args.resolve_pod_groups {
        let groups = PodGroups::new(shared.client.clone(), &context.name, context.pods.clone());
        parts.add_endless("pods of PodGroups", groups.run(args.rescan_interval, stop.clone()));
    }
    if let Some(directory) = args.dcgm_job_mapping_dir.clone() {
        let mapping = JobMapping::new(context.clone(), directory);
        let run = mapping.run(shared.changes.clone(), args.rescan_interval, stop.clone());
        parts.add_endless("job mapping for the DCGM exporter", run);
    }
    parts.add("registration with the kubelet", watch_registration(shared.registration.clone()));
    parts.add("hardware watch", watch.run(shared.changes.clone(), args.rescan_interval, stop.clone()));
    parts.add_endless("health of GPUs", follower.run());
    parts.add_endless("check at the start", check_at_start(args, &shared, stop.clone()));
    drop(shared);
    parts.watch(stop).await
}

fn hardware_watch(
    args: &NodeArgs,
    shared: &Shared,
    state: watch::Sender<NodeState>,
    nvml_events: mpsc::Sender<NvmlEvent>,
) -> HardwareWatch {
    let context = shared.context.clone();
    let (hardware, metrics) = (args.hardware.clone(), context.metrics.clone());
    let late_result = Arc::default();
    HardwareWatch {
        opener: Arc::new(Opener::new(hardware, metrics, args.nvml_patience)),
        patience: args.hardware.nvml_step_time * 2,
        existing: args.existing_instances,
        time_slices: args.time_slices,
        cdi: shared.cdi.clone(),
        kernel: KernelView::new(
            args.hardware.proc_root.clone(),
            args.host.dev_root.clone(),
            ManagementFile::new(&args.host.cdi_root, shared.kind.clone()),
            Arc::clone(&late_result),
        ),
        context,
        state,
        gpus: Vec::new(),
        readiness: Arc::clone(&shared.readiness),
        host: Vec::new(),
        health: shared.store.clone(),
        nvml_events,
        late_result,
        opens: Attempts::default(),
        host_reads: Attempts::default(),
        was_open: false,
        opening: CallTimer::default(),
        looking: None,
    }
}

/// What `/metrics` shows: each module collects the numbers of its own state.
fn exporter(args: &NodeArgs, shared: &Shared, opening: CallTimer) -> Exporter {
    let (node, with_pods) = (&shared.context.node, args.metrics_pod_labels);
    let mut exporter = shared.context.metrics.exporter();
    exporter.show(HealthMetrics { node: node.clone(), opening });
    exporter.show(HardwareMetrics(node.clone()));
    exporter.show(PublicationMetrics { node: node.clone(), publication: shared.publication.clone() });
    exporter.show(RegistrationMetrics(shared.registration.clone()));
    exporter.show(ClaimMetrics(Arc::clone(&shared.seen)));
    exporter.show(Instances { seen: Arc::clone(&shared.seen), with_pods });
    if args.metrics_dcgm_names {
        let (seen, node) = (Arc::clone(&shared.seen), shared.context.name.clone());
        exporter.show_as_named(DcgmInstances { seen, node, with_pods });
    }
    exporter
}

/// Claims, and the sockets on which the kubelet asks for them.
fn serve_kubelet(
    args: &NodeArgs,
    shared: &Shared,
    changed: watch::Sender<()>,
    registration: watch::Sender<RegistrationState>,
    stop: &CancellationToken,
    parts: &mut Parts,
) -> anyhow::Result<()> {
    let context = &shared.context;
    let settings = ClaimSettings {
        kind: shared.kind.clone(),
        proc_root: args.hardware.proc_root.clone(),
        budget: args.call_budget,
        mode_policy: args.mig_mode,
        device_metadata: args.device_metadata,
    };
    let reader = ClaimReader::new(shared.client.clone());
    let (readiness, cdi) = (Arc::clone(&shared.readiness), shared.cdi.clone());
    let claims = Arc::new(Claims::new(context.clone(), settings, reader, readiness, cdi, changed));
    parts.add("recovery", Arc::clone(&claims).look_after(args.rescan_interval, stop.clone()));
    parts.add("following claims", Arc::clone(&claims).follow_objects(args.rescan_interval, stop.clone()));

    // The work socket first: the kubelet dials it as soon as it sees the other one.
    let paths = socket_paths(args);
    let plugin_socket = Socket::listen(&paths.plugin)?;
    let registration_socket = Socket::listen(&paths.registration)?;
    let (plugin_watch, registration_watch) = (plugin_socket.watch(), registration_socket.watch());
    let service = Registration::new(&context.driver, paths.plugin.clone(), registration);
    let devices = DeviceHealth { pool: context.pool.clone(), node: context.node.clone(), stop: stop.clone() };
    let plugin = Arc::new(DraPlugin::new(claims, context.metrics.clone()));
    let routes = Routes::new(health_service(shared.health()));
    parts.add("kubelet plugin", serve_plugin(plugin_socket, plugin, devices, routes, stop.clone()));
    parts.add("registration", serve_registration(registration_socket, service, stop.clone()));
    let sweep = paths.keep_clean(context.driver.clone(), args.rescan_interval, stop.clone());
    parts.add_endless("sockets", sweep);
    parts.add("plugin socket", plugin_watch.run(stop.clone()));
    parts.add("registration socket", registration_watch.run(stop.clone()));
    Ok(())
}

fn socket_paths(args: &NodeArgs) -> SocketPaths {
    let (directory, driver) = (args.driver.plugin_directory(), &args.driver.driver_name);
    SocketPaths::new(&directory, &args.host.registry_dir, driver, args.pod_uid.as_deref())
}

/// The layout in force, the slices, and the node's MigNode.
fn publish(
    args: &NodeArgs,
    shared: &Shared,
    report: watch::Sender<Publication>,
    (own, followed): (watch::Sender<OwnMigNode>, watch::Sender<Option<Followed>>),
    stop: &CancellationToken,
    parts: &mut Parts,
) {
    let (context, client) = (&shared.context, &shared.client);
    let (name, driver) = (&context.name, &context.driver);
    let (decision, layouts) = watch::channel(Decision::default());
    let (offered_sender, offered) = watch::channel(Offered::default());
    let election = PublisherElection::new(&socket_paths(args));
    let publisher = Publisher::new(PublisherParts {
        context: context.clone(),
        api: NodeSlices::new(client.clone(), name, driver),
        allocations: Allocations::new(client.clone(), driver, context.pool.clone()),
        settings: Settings {
            mode: args.mode,
            placement: args.placement,
            profiles: args.profiles.clone(),
            reorder_interval: args.reorder_interval,
            settle_time: args.settle_time,
            taint_effect: args.taint_effect,
        },
        has_past: shared.has_past,
        resumption: Resumption::new(args.driver.plugin_directory().join("published.json")),
        registry: args.host.registry_dir.clone(),
        layouts: layouts.clone(),
        election: election.clone(),
        report,
        offered: offered_sender,
    });
    mig_node(args, shared, own, (offered, layouts), election.clone(), stop, parts);
    let follower = LayoutFollower::new(LayoutFollowerParts {
        node: OwnNode::new(client.clone(), name, driver),
        events: context.events.clone(),
        file: args.layouts.clone(),
        memory: LayoutMemory::new(args.driver.plugin_directory().join("layout.json")),
        mig_node: shared.own_mig_node.clone(),
        allocations: Allocations::new(client.clone(), driver, context.pool.clone()),
        decision,
        followed,
        election,
        writes_state: args.state_label == StateLabel::On,
    });
    parts.add_endless("layouts", follower.run(context.node.clone(), shared.publication.clone()));
    parts.add_endless("publisher", publisher.run(context.node.clone()));
}

/// The node's MigNode: a watch of it, and its status.
fn mig_node(
    args: &NodeArgs,
    shared: &Shared,
    own: watch::Sender<OwnMigNode>,
    (offered, layouts): (watch::Receiver<Offered>, watch::Receiver<Decision>),
    election: PublisherElection,
    stop: &CancellationToken,
    parts: &mut Parts,
) {
    if args.mig_node == MigNodeSwitch::Off {
        // Nothing is demanded then.
        own.send_replace(OwnMigNode::NoKind);
        return;
    }
    let objects = MigNodes::new(shared.client.clone(), &shared.context.name);
    let writer = StatusWriter::new(StatusParts {
        context: shared.context.clone(),
        objects: objects.clone(),
        own: shared.own_mig_node.clone(),
        publication: shared.publication.clone(),
        offered,
        layouts,
        followed: shared.followed.clone(),
        changes: shared.changes.clone(),
        election,
    });
    parts.add_endless("watch of the MigNode", watch_own(objects, own, stop.clone()));
    parts.add_endless("status of the MigNode", writer.run(stop.clone()));
}

/// Logs what is missing on the host while the rest starts; nothing waits for it.
fn check_at_start(
    args: NodeArgs,
    shared: &Shared,
    stop: CancellationToken,
) -> impl Future<Output = ()> + use<> {
    let settings = check::Settings {
        mode: args.mode,
        state_label: args.state_label,
        mig_node: args.mig_node,
        disabled_hooks: args.host.disable_hooks.clone(),
    };
    let place = check::Place { driver: args.driver, hardware: args.hardware, host: args.host };
    let (client, node) = (shared.client.clone(), shared.context.node.clone());
    async move {
        tokio::select! {
            () = check::at_start(place, settings, client, node) => stop.cancelled().await,
            () = stop.cancelled() => {}
        }
    }
}
