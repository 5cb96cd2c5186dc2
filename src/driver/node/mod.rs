//! Connects and supervises all parts: the only file that names each of them.

mod args;
mod attempt;
mod hardware_watch;
mod kernel_view;
mod parts;
mod problems;

use std::sync::Arc;

use anyhow::bail;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::api::{self, Allocations, ClaimReader, ClaimStatuses, Events, NodeSlices, OwnNode};
use crate::cdi::{ClaimFiles, CommonSource, Kind, ManagementFile};
use crate::checkpoint::Checkpoint;
use crate::claim::{Claims, ClaimsParts};
use crate::hardware::{HardwareMetrics, NodeState, Opener};
use crate::health::{Follower, HealthMetrics, Keeper, Silent, Watchdog};
use crate::kubelet::{
    DeviceHealth, DraPlugin, Registration, RegistrationMetrics, RegistrationState, Socket, SocketPaths,
    SoleProcess, Turn, serve_plugin, serve_registration,
};
use crate::layout::{Decision, LayoutFollower, LayoutMemory, StateLabel};
use crate::nvml::Pulse;
use crate::pods::Pods;
use crate::probes::{Health, bind_health, health_service, serve_health};
use crate::readiness::HostReadiness;
use crate::slices::{Offer, Publication, PublicationMetrics, Publisher, PublisherParts, pool_name};
use crate::telemetry::metrics::{Exporter, Metrics, bind_metrics, serve_metrics};
use crate::usage::{ClaimMetrics, DcgmInstances, Instances, Sampler, Seen};
use crate::{check, host};
pub use args::NodeArgs;
use hardware_watch::HardwareWatch;
use kernel_view::KernelView;
use parts::Parts;

/// Capacity of the queue of GPU events; the kernel log keeps more.
const MOST_HEARD: usize = 64;

/// Serves a node until `stop`. Ends with an error if a part of it ends by itself.
pub async fn run(args: NodeArgs, stop: CancellationToken) -> anyhow::Result<()> {
    // Before any change that affects a running process, and before the bind of its ports fails. Pods
    // have their own sockets.
    let _sole = match args.pod_uid {
        None => Some(SoleProcess::claim(&args.driver.plugin_directory())?),
        Some(_) => None,
    };
    let health_listener = bind_health(args.http_address).await?;
    let metrics_listener = bind_metrics(args.metrics_address).await?;
    let metrics = Metrics::default();
    let kind = Kind::of_driver(&args.driver.driver_name)?;
    let client = api::counted(api::client(args.kubeconfig.as_deref()).await?, &metrics);
    let boot_id = host::boot_id(&args.hardware.proc_root)?;
    let directory = args.driver.claims_directory();
    // Every driver that ran here has left it, whatever the GPUs and the mode.
    let has_past = directory.exists();
    let checkpoint = Checkpoint::open(&directory)?;
    let cdi = ClaimFiles::open(&args.host.cdi_root, kind.clone())?;
    let (changed, changes) = watch::channel(());
    let surprised = Arc::new(Notify::new());
    let (heard, to_be_heard) = mpsc::channel(MOST_HEARD);
    let sick = args.driver.plugin_directory().join("health.json");
    let keeper = Keeper::new(sick, &boot_id, args.ignore_xids.clone());
    let unknown = NodeState::without("NVML was not opened yet");
    let (state, node) = watch::channel(NodeState { health: keeper.report(), ..unknown });

    let (name, driver) = (args.node_name.clone(), args.driver.driver_name.clone());
    let pool = pool_name(&name, &driver);
    let events = Events::new(client.clone(), &name, &driver);
    let pending = Publication::Pending { reason: "not published yet".to_owned() };
    let (publication_report, publication) = watch::channel(pending);
    let (registration_report, registration) = watch::channel(RegistrationState::Waiting);
    let (silence_report, silent) = watch::channel(Silent::new());
    let health = Health {
        registration: registration.clone(),
        publication: publication.clone(),
        node: node.clone(),
        silent,
    };
    let common = CommonSource::new(args.host.driver_root(&args.hardware), args.host.common_edits.clone());
    let readiness = HostReadiness::new(
        common,
        args.hardware.proc_root.clone(),
        args.host.cdi_root.clone(),
        args.driver.claims_directory(),
    );
    let readiness = Arc::new(readiness);
    let mut watch = HardwareWatch {
        opener: Arc::new(Opener::new(args.hardware.clone(), metrics.clone(), args.nvml_patience)),
        patience: args.hardware.nvml_step_time * 2,
        existing: args.existing_instances,
        time_slices: args.time_slices,
        checkpoint: checkpoint.clone(),
        cdi: cdi.clone(),
        kernel: KernelView::new(
            args.hardware.proc_root.clone(),
            args.host.dev_root.clone(),
            ManagementFile::new(&args.host.cdi_root, kind.clone()),
            Arc::clone(&surprised),
        ),
        state,
        gpus: Vec::new(),
        readiness: Arc::clone(&readiness),
        host: Vec::new(),
        health: keeper.clone(),
        heard,
        surprised: Arc::clone(&surprised),
        attempt: None,
        at_host: None,
        was_open: false,
        opening: Pulse::default(),
        looking: None,
        events: events.clone(),
        metrics: metrics.clone(),
    };
    let watchdog = Watchdog {
        node: node.clone(),
        opening: watch.opening.clone(),
        patience: args.nvml_patience,
        events: events.clone(),
        report: silence_report,
    };

    let (seen, pods) = (Arc::<Seen>::default(), Pods::default());
    let mut exporter = Exporter::new(&metrics);
    exporter.show(HealthMetrics { node: node.clone(), opening: watch.opening.clone() });
    exporter.show(HardwareMetrics(node.clone()));
    exporter.show(PublicationMetrics { node: node.clone(), publication: publication.clone() });
    exporter.show(RegistrationMetrics(registration.clone()));
    exporter.show(ClaimMetrics(Arc::clone(&seen)));
    let with_pods = args.metrics_pod_labels;
    exporter.show(Instances { seen: Arc::clone(&seen), with_pods });
    if args.metrics_dcgm_names {
        let (seen, node) = (Arc::clone(&seen), args.node_name.clone());
        exporter.show_as_named(DcgmInstances { seen, node, with_pods });
    }

    // Health and metrics come first, because NVML may hang before anything else works. The first look comes before the kubelet may
    // call, so that no pod fails only because we have just started.
    let mut parts = Parts::default();
    parts.add("health", serve_health(health_listener, health.clone(), stop.clone()));
    parts.add("metrics", serve_metrics(metrics_listener, exporter, stop.clone()));
    parts.add_endless("watchdog", watchdog.run(stop.clone()));
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        looked = watch.look() => looked?,
    }

    let reports = keeper.reports();
    let health_follower = Follower {
        heard: to_be_heard,
        node: node.clone(),
        keeper,
        checkpoint: checkpoint.clone(),
        boot_id: boot_id.clone(),
        events: events.clone(),
        metrics: metrics.clone(),
        surprised: Arc::clone(&surprised),
        pods: pods.clone(),
    };
    let device_health = DeviceHealth { pool: pool.clone(), node: node.clone(), stop: stop.clone() };
    let sampler = Sampler {
        node: node.clone(),
        checkpoint: checkpoint.clone(),
        policy: args.metrics_usage,
        pods: pods.clone(),
        seen: Arc::clone(&seen),
        boot_id: boot_id.clone(),
    };
    let claims = Claims::new(ClaimsParts {
        pool: pool.clone(),
        proc_root: args.hardware.proc_root.clone(),
        reader: ClaimReader::new(client.clone()),
        node: node.clone(),
        checkpoint: checkpoint.clone(),
        readiness,
        cdi,
        changed,
        surprised: Arc::clone(&surprised),
        kind,
        boot_id: boot_id.clone(),
        budget: args.call_budget,
        mode_policy: args.mig_mode,
        events: events.clone(),
        metrics: metrics.clone(),
        pods: pods.clone(),
    });
    let (decision, layouts) = watch::channel(Decision::default());
    let directory = args.driver.plugin_directory();
    let pod = args.pod_uid.as_deref();
    let paths = SocketPaths::new(&directory, &args.host.registry_dir, &driver, pod);
    let turn = Turn::new(&paths);
    let memory = LayoutMemory::new(directory.join("layout.json"));
    let publisher = Publisher::new(PublisherParts {
        api: NodeSlices::new(client.clone(), &name, &driver),
        allocations: Allocations::new(client.clone(), &driver, pool),
        mode: args.mode,
        offer: Offer { policy: args.placement, profiles: args.profiles.clone() },
        settle_time: args.settle_time,
        has_past,
        layouts,
        taint_effect: args.taint_effect,
        turn: turn.clone(),
        events: events.clone(),
        report: publication_report,
        node: name.clone(),
        driver: driver.clone(),
        metrics: metrics.clone(),
    });
    let follower = LayoutFollower::new(
        OwnNode::new(client.clone(), &name, &driver),
        events,
        args.layouts.clone(),
        memory,
        decision,
        turn,
        args.state_label == StateLabel::On,
    );
    let layouts = follower.run(node.clone(), publication.clone());
    let statuses = ClaimStatuses::new(client.clone(), checkpoint, reports, &name, &driver);

    // The work socket first: the kubelet dials it as soon as it sees the other one.
    let plugin_socket = Socket::listen(&paths.plugin)?;
    let registration_socket = Socket::listen(&paths.registration)?;
    let (plugin_watch, registration_watch) = (plugin_socket.watch(), registration_socket.watch());
    let service = Registration::new(&driver, paths.plugin.clone(), registration_report);
    let sweep = paths.keep_clean(driver, args.rescan_interval, stop.clone());

    // Missing host files are reported while the rest starts; nothing waits for it.
    let settings = check::Settings {
        mode: args.mode,
        state_label: args.state_label,
        disabled_hooks: args.host.disable_hooks.clone(),
    };
    let place = check::Place { driver: args.driver, hardware: args.hardware, host: args.host };
    tokio::spawn(check::at_start(place, settings, client, node.clone()));
    let claims = Arc::new(claims);
    parts.add("recovery", Arc::clone(&claims).look_after(args.rescan_interval, stop.clone()));
    parts.add("following claims", Arc::clone(&claims).follow_objects(args.rescan_interval, stop.clone()));
    let plugin = Arc::new(DraPlugin::new(claims, metrics.clone()));
    parts.add(
        "kubelet plugin",
        serve_plugin(plugin_socket, plugin, device_health, Routes::new(health_service(health)), stop.clone()),
    );
    parts.add("registration", serve_registration(registration_socket, service, stop.clone()));
    parts.add_endless("sockets", sweep);
    parts.add("plugin socket", plugin_watch.run(stop.clone()));
    parts.add("registration socket", registration_watch.run(stop.clone()));
    parts.add_endless("device status of claims", statuses.run(changes.clone(), stop.clone()));
    parts.add("sampler", sampler.run(stop.clone()));
    parts.add("registration with the kubelet", refusal(registration));
    parts.add("hardware watch", watch.run(changes, args.rescan_interval, stop.clone()));
    parts.add_endless("health of GPUs", health_follower.run());
    parts.add_endless("layouts", layouts);
    parts.add_endless("publisher", publisher.run(node));
    parts.watch(stop).await
}

/// Ends with the kubelet's reason if it rejects the registration. It does not retry until the socket is recreated, which the next
/// start of the driver does.
async fn refusal(mut state: watch::Receiver<RegistrationState>) -> anyhow::Result<()> {
    let refused = state.wait_for(|it| matches!(it, RegistrationState::Refused(_))).await?;
    match &*refused {
        RegistrationState::Refused(reason) => bail!("{reason}"),
        RegistrationState::Waiting | RegistrationState::Registered => Ok(()),
    }
}
