//! Wires everything and watches it run: the only file that names every part.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::api::{self, Allocations, ClaimReader, Events, NodeSlices, OwnNode};
use crate::args::{HardwareArgs, NodeArgs};
use crate::cdi::{ClaimFiles, Kind};
use crate::check;
use crate::checkpoint::{Checkpoint, Record, RecordedKind, Stored};
use crate::claim::{Claims, ClaimsParts, CommonSource};
use crate::hardware::{Hardware, NodeState};
use crate::host;
use crate::inventory::{ExistingInstances, Gpu, Inventory, Terms, inventory_on, not_adopted};
use crate::kubelet::{
    DraPlugin, Registration, RegistrationState, Socket, SocketPaths, serve_plugin, serve_registration,
};
use crate::layout::{Decision, LayoutFollower, LayoutMemory};
use crate::nvml::facts::GpuInstance;
use crate::slices::{Offer, Publication, Publisher, PublisherParts, pool_name};
use crate::telemetry::{Health, bind_health, serve_health};

/// How long running calls may take to end once the process was asked to stop; below the 30 s that Kubernetes gives.
const DRAIN: Duration = Duration::from_secs(25);

/// How long changes of what claims hold are collected before they are looked at.
const BURST: Duration = Duration::from_millis(50);

/// Serves a node until `stop`. Ends with an error if a part of it ends by itself.
pub async fn run(args: NodeArgs, stop: CancellationToken) -> anyhow::Result<()> {
    info!(version = env!("CARGO_PKG_VERSION"), ?args, "starting");
    let health_listener = bind_health(args.http_address).await?;
    let kind = Kind::of_driver(&args.driver.driver_name)?;
    let client = api::client(args.kubeconfig.as_deref()).await?;
    let boot_id = host::boot_id(&args.hardware.proc_root)?;
    let checkpoint = Checkpoint::open(&args.driver.claims_directory())?;
    let cdi = ClaimFiles::open(&args.host.cdi_root, kind.clone())?;
    let (changed, changes) = watch::channel(());
    let surprised = Arc::new(Notify::new());
    let (state, node) = watch::channel(NodeState {
        hardware: Err("NVML was not opened yet".to_owned()),
        inventory: Arc::default(),
        held: BTreeSet::new(),
        problems: Vec::new(),
    });

    // The first look comes before the kubelet may call, so that no pod fails only because we have just started.
    let mut watch = HardwareWatch {
        args: args.hardware.clone(),
        existing: args.existing_instances,
        time_slices: args.time_slices,
        checkpoint: checkpoint.clone(),
        cdi: cdi.clone(),
        state,
        gpus: Vec::new(),
    };
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        looked = watch.look() => looked?,
    }

    let (name, driver) = (args.node_name.clone(), args.driver.driver_name.clone());
    let pool = pool_name(&name, &driver);
    let events = Events::new(client.clone(), &name, &driver);
    let claims = Claims::new(ClaimsParts {
        pool: pool.clone(),
        proc_root: args.hardware.proc_root.clone(),
        reader: ClaimReader::new(client.clone()),
        node: node.clone(),
        checkpoint,
        common: CommonSource::new(args.host.driver_root(&args.hardware), args.host.common_edits.clone()),
        cdi,
        changed,
        surprised: Arc::clone(&surprised),
        kind,
        boot_id,
        budget: args.call_budget,
        mode_policy: args.mig_mode,
        events: events.clone(),
    });
    let pending = Publication::Pending { reason: "not published yet".to_owned() };
    let (publication_report, publication) = watch::channel(pending);
    let (registration_report, registration) = watch::channel(RegistrationState::Waiting);
    let (decision, layouts) = watch::channel(Decision::default());
    let publisher = Publisher::new(PublisherParts {
        api: NodeSlices::new(client.clone(), &name, &driver),
        allocations: Allocations::new(client.clone(), &driver, pool),
        mode: args.mode,
        offer: Offer { policy: args.placement, profiles: args.profiles.clone() },
        settle_time: args.settle_time,
        layouts,
        report: publication_report,
        node: name.clone(),
        driver: driver.clone(),
    });
    let directory = args.driver.plugin_directory();
    let memory = LayoutMemory::new(directory.join("layout.json"));
    let follower = LayoutFollower::new(
        OwnNode::new(client.clone(), &name),
        events,
        args.layouts.clone(),
        memory,
        decision,
    );
    let layouts = follower.run(node.clone(), publication.clone());
    let health = Health { registration: registration.clone(), publication, node: node.clone() };

    let pod = args.pod_uid.as_deref();
    let paths = SocketPaths::new(&directory, &args.host.registry_dir, &driver, pod);
    // The work socket first: the kubelet dials it as soon as it sees the other one.
    let plugin_socket = Socket::listen(&paths.plugin)?;
    let registration_socket = Socket::listen(&paths.registration)?;
    let service = Registration::new(&driver, paths.plugin.clone(), registration_report);
    let sweep = paths.keep_clean(driver, args.rescan_interval, stop.clone());

    // What is missing on the host is told while the rest starts; nothing waits for it.
    tokio::spawn(check::at_start(args.clone(), client, node.clone()));
    claims.warm_up();
    let mut parts = Parts { running: JoinSet::new() };
    let claims = Arc::new(claims);
    parts.add("recovery", Arc::clone(&claims).look_after(args.rescan_interval, stop.clone()));
    parts.add("following claims", Arc::clone(&claims).follow_objects(args.rescan_interval, stop.clone()));
    let plugin = Arc::new(DraPlugin::new(claims));
    parts.add("kubelet plugin", serve_plugin(plugin_socket, plugin, stop.clone()));
    parts.add("registration", serve_registration(registration_socket, service, stop.clone()));
    parts.add_endless("sockets", sweep);
    parts.add("health", serve_health(health_listener, health, stop.clone()));
    parts.add("registration with the kubelet", refusal(registration));
    parts.add("hardware watch", watch.run(changes, surprised, args.rescan_interval, stop.clone()));
    parts.add_endless("layouts", layouts);
    parts.add_endless("publisher", publisher.run(node));
    parts.watch(stop).await
}

/// Ends with the kubelet's reason if it refuses us. It does not ask again until the socket is made anew, which the next
/// start of the driver does.
async fn refusal(mut state: watch::Receiver<RegistrationState>) -> anyhow::Result<()> {
    let refused = state.wait_for(|it| matches!(it, RegistrationState::Refused(_))).await?;
    match &*refused {
        RegistrationState::Refused(reason) => bail!("{reason}"),
        RegistrationState::Waiting | RegistrationState::Registered => Ok(()),
    }
}

/// The tasks of the process. One that ends before it was asked to ends them all.
struct Parts {
    running: JoinSet<(&'static str, anyhow::Result<()>)>,
}

impl Parts {
    fn add<E>(&mut self, name: &'static str, part: impl Future<Output = Result<(), E>> + Send + 'static)
    where
        E: Into<anyhow::Error>,
    {
        self.running.spawn(async move { (name, part.await.map_err(Into::into)) });
    }

    /// Adds a part that cannot fail, only end.
    fn add_endless(&mut self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        self.add(name, async {
            part.await;
            anyhow::Ok(())
        });
    }

    async fn watch(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let failure = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            ended = self.running.join_next() => Some(match ended {
                Some(Ok((name, Err(error)))) => anyhow!("{name} failed: {error}"),
                Some(Ok((name, Ok(())))) => anyhow!("{name} ended by itself"),
                Some(Err(error)) => anyhow!("a part of the driver died: {error}"),
                None => anyhow!("nothing to run"),
            }),
        };
        stop.cancel();
        info!("stopping: calls that run are finished first");
        let drained = timeout(DRAIN, async { while self.running.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            warn!(
                "some calls did not end in time; they are finished or undone by the next call for their claims"
            );
        }
        info!("stopped");
        failure.map_or(Ok(()), Err)
    }
}

/// The same hardware with those of the GPUs that were skipped and have come back.
async fn completed(open: Arc<Hardware>) -> anyhow::Result<Arc<Hardware>> {
    let known = Arc::clone(&open);
    match tokio::task::spawn_blocking(move || known.again()).await? {
        Ok(Some(more)) => {
            let (gpus, skipped) = (more.facts.gpus.len(), more.facts.skipped.len());
            info!(gpus, skipped, "GPUs have come back");
            Ok(Arc::new(more))
        }
        Ok(None) => Ok(open),
        Err(error) => {
            warn!(%error, "cannot look for GPUs that were skipped");
            Ok(open)
        }
    }
}

/// Keeps the node's state up to date.
struct HardwareWatch {
    args: HardwareArgs,
    existing: ExistingInstances,
    time_slices: u32,
    checkpoint: Checkpoint,
    cdi: ClaimFiles,
    state: watch::Sender<NodeState>,
    gpus: Vec<Gpu>,
}

impl HardwareWatch {
    async fn run(
        mut self,
        mut changes: watch::Receiver<()>,
        surprised: Arc<Notify>,
        interval: Duration,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        // A clock of its own: a busy node must not put the next look off for ever.
        let mut clock = interval_at(Instant::now() + interval, interval);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                change = changes.changed() => {
                    change.context("the claims are gone")?;
                    // A pod's claims, and pods themselves, come and go in bursts.
                    sleep(BURST).await;
                    changes.borrow_and_update();
                    if let Err(error) = self.note_held() {
                        warn!(%error, "cannot tell what claims hold now");
                    }
                    continue;
                }
                () = surprised.notified() => {}
                _ = clock.tick() => {}
            }
            // What was known stays; the next look may succeed.
            if let Err(error) = self.look().await {
                warn!(%error, "cannot look at the hardware now");
            }
        }
    }

    /// Opens the hardware if it is not open, reads what may have changed, and tells everybody.
    async fn look(&mut self) -> anyhow::Result<()> {
        let known = self.state.borrow().hardware.clone();
        let hardware = match known {
            Ok(open) if open.is_stale() => {
                let reason = "the NVIDIA driver was unloaded or replaced";
                warn!("{reason}: opening it again");
                self.opened(reason).await?
            }
            Ok(open) if open.is_complete() => Ok(open),
            Ok(open) => Ok(completed(open).await?),
            Err(before) => self.opened(&before).await?,
        };
        self.gpus = match &hardware {
            Ok(hardware) => self.scan(hardware).await?,
            Err(_) => Vec::new(),
        };
        self.publish(hardware)
    }

    /// Opens the hardware; a reason why it cannot be is logged where it is another one than before.
    async fn opened(&self, before: &str) -> anyhow::Result<Result<Arc<Hardware>, String>> {
        let args = self.args.clone();
        let opened = tokio::task::spawn_blocking(move || Hardware::open(&args)).await?;
        Ok(opened.map(Arc::new).map_err(|error| {
            let reason = error.to_string();
            if reason != before {
                warn!(reason, "no GPUs to offer; looking again from time to time");
            }
            reason
        }))
    }

    /// Reads every GPU and leaves only those instances that no record means. Records are read before and after, because
    /// claims come and go meanwhile.
    async fn scan(&self, hardware: &Hardware) -> anyhow::Result<Vec<Gpu>> {
        let mut records: Vec<Arc<Record>> = self.checkpoint.records()?;
        let mut gpus = hardware.scan().await?;
        records.extend(self.checkpoint.records()?);
        for gpu in &mut gpus {
            let parent = &gpu.facts.uuid;
            gpu.state
                .instances
                .retain(|it| !records.iter().any(|record| hardware.is_recorded(parent, it, record)));
            self.report(gpu);
        }
        Ok(gpus)
    }

    /// Logs what is new about a GPU.
    fn report(&self, gpu: &Gpu) {
        let before = self.gpus.iter().find(|it| it.facts.uuid == gpu.facts.uuid).map(|it| &it.state);
        let uuid = &gpu.facts.uuid;
        for instance in &gpu.state.instances {
            if !before.is_some_and(|it| it.instances.contains(instance)) {
                let (gi, placement) = (instance.id, instance.placement);
                warn!(uuid, gi, %placement, "GPU instance of somebody else: nothing else is offered in its place");
            }
        }
        if let Some(problem) = &gpu.state.problem
            && before.is_none_or(|it| it.problem.as_ref() != Some(problem))
        {
            warn!(uuid, problem, "GPU cannot be read: only what claims hold of it stays published");
        }
        if let Some(mode) = gpu.state.mode
            && mode.current != mode.pending
            && before.is_none_or(|it| it.mode != gpu.state.mode)
        {
            warn!(
                uuid,
                current = mode.current,
                pending = mode.pending,
                "MIG mode changes at the next GPU reset"
            );
        }
    }

    /// Follows what claims hold. The inventory depends on it only where something is withheld, and is not built anew
    /// elsewhere; the order in which devices are offered always does.
    fn note_held(&self) -> anyhow::Result<()> {
        let held = self.terms()?.held;
        let (hardware, is_independent) = {
            let state = self.state.borrow();
            let offers_all =
                held.iter().all(|name| state.inventory.devices().any(|it| it.name.as_str() == name));
            let is_independent = offers_all && state.inventory.gpus.iter().all(|it| it.withheld.is_empty());
            (state.hardware.clone(), is_independent)
        };
        if !is_independent {
            return self.publish(hardware);
        }
        self.state.send_if_modified(|state| {
            let is_same = state.held == held;
            state.held = held;
            !is_same
        });
        Ok(())
    }

    /// What is wanted, and what claims hold. Of a claim whose record cannot be read its CDI file tells.
    fn terms(&self) -> anyhow::Result<Terms> {
        let (existing, time_slices) = (self.existing, self.time_slices);
        let mut terms = Terms { existing, time_slices, ..Terms::default() };
        let mut unrecorded = BTreeSet::new();
        // Only an instance of somebody else may be what was made for a claim of which no record tells.
        if existing == ExistingInstances::Adopt && self.gpus.iter().any(|it| !it.state.instances.is_empty()) {
            unrecorded.extend(self.cdi.list()?);
        }
        for (uid, stored) in self.checkpoint.list()? {
            match &*stored {
                Stored::Nothing => continue,
                Stored::Record(record) => {
                    for device in &record.devices {
                        terms.held.insert(device.name.clone());
                        if let RecordedKind::Adopted(adopted) = &device.kind {
                            terms.adopted.push((device.parent_uuid.clone(), adopted.clone()));
                        }
                    }
                }
                Stored::Unreadable(_) => terms.held.extend(self.cdi.devices(uid.as_str())?),
            }
            unrecorded.remove(uid.as_str());
        }
        for uid in unrecorded {
            terms.named.extend(self.cdi.devices(&uid)?);
        }
        Ok(terms)
    }

    /// What of the hardware is not offered, and why.
    fn problems(&self, hardware: &Result<Arc<Hardware>, String>, terms: &Terms) -> Vec<String> {
        let unreadable = self.gpus.iter().filter_map(|it| Some((&it.facts.uuid, it.state.problem.as_ref()?)));
        let unreadable = unreadable.map(|(uuid, problem)| format!("{uuid}: {problem}"));
        let skipped = hardware.iter().flat_map(|it| &it.facts.skipped);
        let skipped = skipped.map(|it| format!("GPU {}: {}", it.index, it.reason));
        let instances = self.gpus.iter().flat_map(|gpu| gpu.state.instances.iter().map(move |it| (gpu, it)));
        let foreign = instances.filter_map(|(gpu, it)| {
            let (uuid, GpuInstance { id, placement, .. }) = (&gpu.facts.uuid, it);
            let reason = not_adopted(gpu, it, terms)?;
            Some(format!("GPU instance {id} at {placement} of {uuid}, which somebody else made: {reason}"))
        });
        unreadable.chain(skipped).chain(foreign).collect()
    }

    fn publish(&self, hardware: Result<Arc<Hardware>, String>) -> anyhow::Result<()> {
        let terms = self.terms()?;
        let inventory = match &hardware {
            Ok(hardware) => inventory_on(&hardware.facts, &self.gpus, &terms),
            Err(_) => Inventory::default(),
        };
        let problems = self.problems(&hardware, &terms);
        let held = terms.held;
        // Dropped after the lock: closing NVML takes its time.
        let mut before = None;
        self.state.send_if_modified(|state| {
            let is_same = *state.inventory == inventory
                && state.held == held
                && state.problems == problems
                && state.hardware.is_ok() == hardware.is_ok()
                && state.hardware.as_ref().err() == hardware.as_ref().err();
            let now = NodeState { hardware, inventory: Arc::new(inventory), held, problems };
            before = Some(std::mem::replace(state, now));
            !is_same
        });
        Ok(())
    }
}
