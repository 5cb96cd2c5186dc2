//! The node: it registers drivers as they come and go, and takes pods from bound to running to gone.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::client::{Claim, KubeletClient, KubeletError, Plugin, PreparedDevice};
use super::pod::{self, PodClaim, text};
use crate::api::kinds::{NODE, POD, RESOURCE_SLICE};
use crate::api::selector::Selectors;
use crate::api::server::ApiServer;
use crate::api::store::{DeleteOptions, Store, WriteOptions};
use crate::control::{finished, record_event};

/// How the kubelet is to behave.
#[derive(Debug, Clone)]
pub struct KubeletOptions {
    /// Name of the node; the Node object is created where it is missing.
    pub node: String,
    /// The directory that drivers put their registration sockets into.
    pub registry_dir: PathBuf,
    /// Pause between two tries for a pod. The real kubelet takes 60 to 90 s.
    pub retry: Duration,
    /// How often sockets are looked for.
    pub scan: Duration,
    /// Delete all ResourceSlices of the node at the start, as the real kubelet does.
    pub wipe_at_start: bool,
    /// Delete a driver's ResourceSlices so long after its last connection was lost; the real kubelet takes 30 s.
    pub wipe_after: Option<Duration>,
}

impl KubeletOptions {
    /// A kubelet that behaves like the real one, but retries after a quarter of a second.
    #[must_use]
    pub fn new(node: impl Into<String>, registry_dir: impl Into<PathBuf>) -> Self {
        Self {
            node: node.into(),
            registry_dir: registry_dir.into(),
            retry: Duration::from_millis(250),
            scan: Duration::from_millis(100),
            wipe_at_start: true,
            wipe_after: Some(Duration::from_secs(30)),
        }
    }
}

/// A claim that is prepared on the node.
#[derive(Debug, Clone)]
pub struct PreparedClaim {
    /// The claim.
    pub claim: Claim,
    /// What each driver prepared for it.
    pub devices: BTreeMap<String, Vec<PreparedDevice>>,
    /// UIDs of the pods that use it.
    pub pods: BTreeSet<String>,
}

/// What a container gets for one of its claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerDevice {
    /// Container name.
    pub container: String,
    /// Entry in the pod's `spec.resourceClaims`; none for the claim of its extended resources.
    pub entry: Option<String>,
    /// The claim's name.
    pub claim: String,
    /// The device that serves it.
    pub device: PreparedDevice,
}

/// How many claims were prepared and unprepared so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Claims prepared.
    pub prepared: usize,
    /// Claims unprepared.
    pub unprepared: usize,
}

#[derive(Debug, Default)]
struct State {
    prepared: BTreeMap<String, PreparedClaim>,
    counts: Counts,
    plugins: BTreeMap<String, Plugin>,
}

/// A running kubelet; it stops, leaving everything as it is, when this is dropped.
#[derive(Debug)]
pub struct Kubelet {
    state: Arc<Mutex<State>>,
    _stop: DropGuard,
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Every change is complete in itself, so a panic elsewhere leaves nothing half done.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kubelet {
    /// Starts a kubelet on a server's objects.
    ///
    /// # Errors
    /// When the Node object cannot be created.
    pub fn start(server: &ApiServer, options: KubeletOptions) -> Result<Self, crate::api::error::ApiError> {
        let store = server.store();
        create_node(&store, &options.node)?;
        if options.wipe_at_start {
            wipe(&store, &options.node, None);
        }
        let state = Arc::new(Mutex::new(State::default()));
        let stop = CancellationToken::new();
        let worker = Worker {
            store,
            options,
            state: state.clone(),
            sockets: BTreeMap::new(),
            gone_since: BTreeMap::new(),
            retry_at: BTreeMap::new(),
        };
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = worker.run() => {}
            }
        });
        Ok(Self { state, _stop: stop.drop_guard() })
    }

    /// The claims that are prepared now.
    #[must_use]
    pub fn prepared(&self) -> Vec<PreparedClaim> {
        locked(&self.state).prepared.values().cloned().collect()
    }

    /// How many claims were prepared and unprepared so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        locked(&self.state).counts
    }

    /// The registered drivers.
    #[must_use]
    pub fn plugins(&self) -> Vec<Plugin> {
        locked(&self.state).plugins.values().cloned().collect()
    }

    /// What each container of a pod gets: a device is handed over where the container names the claim, and either no request or
    /// one that the device serves; for extended resources where the pod's status maps the container to the request.
    #[must_use]
    pub fn containers(&self, store: &Store, pod: &Value) -> Vec<ContainerDevice> {
        let claims = pod::claims(store, pod).unwrap_or_default();
        let state = locked(&self.state);
        let mut devices = Vec::new();
        let list = |name: &str| pod["spec"][name].as_array().cloned().unwrap_or_default();
        let mappings = pod["status"]["extendedResourceClaimStatus"]["requestMappings"].as_array();
        for container in list("initContainers").into_iter().chain(list("containers")) {
            let named = container["resources"]["claims"].as_array().into_iter().flatten();
            let named = named.map(|used| (used["name"].as_str(), text(used, "request")));
            let mapped = mappings.into_iter().flatten().filter(|it| it["containerName"] == container["name"]);
            let mapped = mapped.map(|it| (None, text(it, "requestName")));
            for (entry, wanted) in named.chain(mapped) {
                let Some(claim) = claims.iter().find(|c| c.entry.as_deref() == entry) else { continue };
                let Some(prepared) = state.prepared.get(&claim.claim.uid) else { continue };
                let serves = |d: &&PreparedDevice| {
                    wanted.is_empty() || d.requests.is_empty() || d.requests.iter().any(|r| r == wanted)
                };
                for device in prepared.devices.values().flatten().filter(serves) {
                    devices.push(ContainerDevice {
                        container: text(&container, "name").to_owned(),
                        entry: claim.entry.clone(),
                        claim: claim.claim.name.clone(),
                        device: device.clone(),
                    });
                }
            }
        }
        devices
    }
}

fn create_node(store: &Store, name: &str) -> Result<(), crate::api::error::ApiError> {
    if store.get(&NODE, "", name).is_ok() {
        return Ok(());
    }
    let capacity = json!({"cpu": "64", "memory": "512Gi", "pods": "110"});
    let node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
        "status": {"capacity": capacity, "allocatable": capacity,
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "simulated"}],
            "nodeInfo": {"kubeletVersion": crate::api::version::Version::default().release(), "architecture": "amd64", "operatingSystem": "linux",
                "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "", "kubeProxyVersion": "", "machineID": "",
                "osImage": "", "systemUUID": ""}}});
    store.create(&NODE, "", node, &WriteOptions::default()).map(drop)
}

/// Deletes the node's ResourceSlices: of one driver, or of all.
fn wipe(store: &Store, node: &str, driver: Option<&str>) {
    let of_driver = driver.map(|d| format!(",spec.driver={d}")).unwrap_or_default();
    if let Ok(selectors) = Selectors::parse(&RESOURCE_SLICE, "", &format!("spec.nodeName={node}{of_driver}"))
    {
        store.delete_collection(&RESOURCE_SLICE, None, &selectors, &DeleteOptions::default());
    }
}

struct Worker {
    store: Arc<Store>,
    options: KubeletOptions,
    state: Arc<Mutex<State>>,
    /// Registration sockets seen, by inode so that a re-created one is noticed, and the driver behind each once it is known.
    sockets: BTreeMap<PathBuf, (u64, Option<String>)>,
    gone_since: BTreeMap<String, Instant>,
    retry_at: BTreeMap<String, Instant>,
}

impl Worker {
    async fn run(mut self) {
        loop {
            let mut revisions = self.store.subscribe();
            revisions.borrow_and_update();
            self.plugins().await;
            self.watch_connections().await;
            self.pods().await;
            tokio::select! {
                () = sleep(self.options.scan) => {}
                _ = revisions.changed() => {}
            }
        }
    }

    /// Registers drivers whose sockets appeared and forgets those whose sockets went.
    async fn plugins(&mut self) {
        let mut present = BTreeMap::new();
        for socket in KubeletClient::sockets(&self.options.registry_dir) {
            if let Ok(meta) = std::fs::metadata(&socket) {
                present.insert(socket, meta.ino());
            }
        }
        let gone: Vec<PathBuf> = self.sockets.keys().filter(|s| !present.contains_key(*s)).cloned().collect();
        for socket in gone {
            if let Some((_, Some(driver))) = self.sockets.remove(&socket) {
                locked(&self.state).plugins.remove(&driver);
            }
        }
        for (socket, inode) in present {
            let known = self.sockets.get(&socket);
            if known.is_some_and(|(seen, driver)| *seen == inode && driver.is_some()) {
                continue;
            }
            match KubeletClient::register_socket(&socket).await {
                Ok(plugin) => {
                    tracing::info!(driver = plugin.name, endpoint = plugin.endpoint, "driver registered");
                    self.sockets.insert(socket, (inode, Some(plugin.name.clone())));
                    locked(&self.state).plugins.insert(plugin.name.clone(), plugin);
                    // A driver that is back is tried again at once.
                    self.retry_at.clear();
                }
                Err(error) => {
                    tracing::warn!(socket = %socket.display(), %error, "registration failed");
                    self.sockets.insert(socket, (inode, None));
                }
            }
        }
    }

    /// Wipes the slices of drivers that have been out of reach for too long.
    async fn watch_connections(&mut self) {
        let Some(wipe_after) = self.options.wipe_after else { return };
        let plugins: Vec<Plugin> = locked(&self.state).plugins.values().cloned().collect();
        for plugin in &plugins {
            if UnixStream::connect(&plugin.endpoint).await.is_ok() {
                self.gone_since.remove(&plugin.name);
            } else {
                self.gone_since.entry(plugin.name.clone()).or_insert_with(Instant::now);
            }
        }
        let slices = self.store.list(&RESOURCE_SLICE, None, &Selectors::default()).0;
        let here = slices.iter().filter(|s| text(&s["spec"], "nodeName") == self.options.node);
        let drivers: BTreeSet<&str> = here.map(|s| text(&s["spec"], "driver")).collect();
        for driver in drivers {
            if !plugins.iter().any(|p| p.name == driver) {
                self.gone_since.entry(driver.to_owned()).or_insert_with(Instant::now);
            }
            if self.gone_since.get(driver).is_some_and(|since| since.elapsed() >= wipe_after) {
                wipe(&self.store, &self.options.node, Some(driver));
                self.gone_since.remove(driver);
            }
        }
    }

    async fn pods(&mut self) {
        let Ok(mine) = Selectors::parse(&POD, "", &format!("spec.nodeName={}", self.options.node)) else {
            return;
        };
        let (pods, _) = self.store.list(&POD, None, &mine);
        let ends = |pod: &Value| !pod["metadata"]["deletionTimestamp"].is_null() || finished(pod);
        let (ending, living): (Vec<_>, Vec<_>) = pods.into_iter().partition(|pod| ends(pod));
        let now = Instant::now();
        let due =
            |pod: &&Arc<Value>| self.retry_at.get(text(&pod["metadata"], "uid")).is_none_or(|at| *at <= now);

        let alive: BTreeSet<String> = living.iter().map(|p| text(&p["metadata"], "uid").to_owned()).collect();
        let ended = futures::future::join_all(ending.iter().filter(due).map(|pod| self.end(pod))).await;
        let started = futures::future::join_all(living.iter().filter(due).map(|pod| self.start(pod))).await;
        for (uid, done) in ended.into_iter().chain(started) {
            if done {
                self.retry_at.remove(&uid);
            } else {
                self.retry_at.insert(uid, Instant::now() + self.options.retry);
            }
        }
        // Pods that vanished without a deletion (forced) leave their claims behind.
        let known: BTreeSet<String> = ending.iter().map(|p| text(&p["metadata"], "uid").to_owned()).collect();
        let lost: BTreeSet<String> = locked(&self.state)
            .prepared
            .values()
            .flat_map(|claim| &claim.pods)
            .filter(|uid| !alive.contains(*uid) && !known.contains(*uid))
            .cloned()
            .collect();
        for uid in lost {
            if let Err(error) = self.release(&uid).await {
                tracing::warn!(pod = uid, %error, "unprepare failed");
            }
        }
    }

    /// Prepares what a pod needs and lets it run. Answers the pod's uid, and whether nothing is left to do.
    async fn start(&self, pod: &Value) -> (String, bool) {
        let uid = text(&pod["metadata"], "uid").to_owned();
        let claims = match pod::claims(&self.store, pod) {
            Ok(claims) => claims,
            Err(why) => return (uid, self.failed(pod, &why)),
        };
        let unprepared = {
            let mut state = locked(&self.state);
            let mut unprepared = Vec::new();
            for claim in claims {
                match state.prepared.get_mut(&claim.claim.uid) {
                    // A second pod of a prepared claim: no call.
                    Some(prepared) => drop(prepared.pods.insert(uid.clone())),
                    None => unprepared.push(claim),
                }
            }
            unprepared
        };
        if unprepared.is_empty() {
            if text(&pod["status"], "phase") != "Running" {
                pod::running(&self.store, pod);
            }
            return (uid, true);
        }
        pod::creating(&self.store, pod);
        match self.prepare(&uid, &unprepared).await {
            Ok(()) => {
                pod::running(&self.store, pod);
                (uid, true)
            }
            Err(why) => (uid, self.failed(pod, &why)),
        }
    }

    fn failed(&self, pod: &Value, why: &str) -> bool {
        let message = format!("Failed to prepare dynamic resources: {why}");
        record_event(&self.store, pod, "Warning", "FailedPrepareDynamicResources", &message, "kubelet");
        false
    }

    fn plugin(&self, driver: &str) -> Result<Plugin, String> {
        let plugin = locked(&self.state).plugins.get(driver).cloned();
        plugin.ok_or_else(|| format!("DRA driver {driver} is not registered"))
    }

    /// One call per driver, with all the pod's claims for it.
    async fn prepare(&self, pod_uid: &str, claims: &[PodClaim]) -> Result<(), String> {
        let drivers: BTreeSet<&String> = claims.iter().flat_map(|c| &c.drivers).collect();
        let mut devices: BTreeMap<String, BTreeMap<String, Vec<PreparedDevice>>> = BTreeMap::new();
        for driver in drivers {
            let mine: Vec<Claim> =
                claims.iter().filter(|c| c.drivers.contains(driver)).map(|c| c.claim.clone()).collect();
            let answer = self.plugin(driver)?.prepare(&mine).await.map_err(|e| e.to_string())?;
            for claim in &mine {
                match answer.get(&claim.uid) {
                    Some(Ok(prepared)) => {
                        devices
                            .entry(claim.uid.clone())
                            .or_default()
                            .insert(driver.clone(), prepared.clone());
                    }
                    Some(Err(why)) => {
                        return Err(format!(
                            "NodePrepareResources failed for ResourceClaim {}: {why}",
                            claim.name
                        ));
                    }
                    None => return Err(format!("NodePrepareResources skipped ResourceClaim {}", claim.name)),
                }
            }
        }
        let mut state = locked(&self.state);
        for claim in claims {
            let uid = &claim.claim.uid;
            let fresh = PreparedClaim {
                claim: claim.claim.clone(),
                devices: devices.remove(uid).unwrap_or_default(),
                pods: BTreeSet::new(),
            };
            if !state.prepared.contains_key(uid) {
                state.counts.prepared += 1;
            }
            state.prepared.entry(uid.clone()).or_insert(fresh).pods.insert(pod_uid.to_owned());
        }
        Ok(())
    }

    /// Takes a pod's claims back and, where it was deleted, removes it.
    async fn end(&self, pod: &Value) -> (String, bool) {
        let uid = text(&pod["metadata"], "uid").to_owned();
        if let Err(error) = self.release(&uid).await {
            let message = error.to_string();
            record_event(&self.store, pod, "Warning", "FailedUnprepareDynamicResources", &message, "kubelet");
            return (uid, false);
        }
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            let (namespace, name) = (text(&pod["metadata"], "namespace"), text(&pod["metadata"], "name"));
            let now = DeleteOptions {
                grace_period_seconds: Some(0),
                uid: Some(uid.clone()),
                ..DeleteOptions::default()
            };
            drop(self.store.delete(&POD, namespace, name, &now));
        }
        (uid, true)
    }

    /// Unprepares the claims of which this was the last pod.
    async fn release(&self, pod_uid: &str) -> Result<(), KubeletError> {
        let last: Vec<PreparedClaim> = {
            let mut state = locked(&self.state);
            let mut last = Vec::new();
            for prepared in state.prepared.values_mut().filter(|p| p.pods.contains(pod_uid)) {
                if prepared.pods.len() == 1 {
                    last.push(prepared.clone());
                } else {
                    prepared.pods.remove(pod_uid);
                }
            }
            last
        };
        let drivers: BTreeSet<&String> = last.iter().flat_map(|p| p.devices.keys()).collect();
        let mut failure = None;
        for driver in drivers {
            let claims: Vec<Claim> =
                last.iter().filter(|p| p.devices.contains_key(driver)).map(|p| p.claim.clone()).collect();
            let plugin = self.plugin(driver).map_err(KubeletError::Unsuitable)?;
            for (uid, outcome) in plugin.unprepare(&claims).await? {
                let mut state = locked(&self.state);
                match outcome {
                    Ok(()) => {
                        if let Some(prepared) = state.prepared.get_mut(&uid) {
                            prepared.devices.remove(driver);
                        }
                    }
                    Err(text) => failure = Some(KubeletError::Call { call: "NodeUnprepareResources", text }),
                }
            }
        }
        let mut state = locked(&self.state);
        for claim in last {
            let uid = &claim.claim.uid;
            if state.prepared.get(uid).is_some_and(|p| p.devices.is_empty() && p.pods.len() <= 1) {
                state.prepared.remove(uid);
                state.counts.unprepared += 1;
            }
        }
        failure.map_or(Ok(()), Err)
    }
}
