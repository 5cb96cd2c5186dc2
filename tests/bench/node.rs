//! A node with eight simulated H100, its API server, and the release binary as a process of its own.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail, ensure};
use kube_sim::kubelet::{Claim, Plugin};
use kube_sim::{ApiServer, KubeletClient, Options, Part, kinds};
use nvml_sim::{Call, SimNode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::nvml_time::Window;

/// The binary that is measured: the one that cargo has built beside this program, or that of `FIGURES_BINARY`, to
/// compare it with another build.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("FIGURES_BINARY")
        .map_or_else(|| env!("CARGO_BIN_EXE_dra-driver-mig").into(), PathBuf::from)
}

/// What can be shown of instances, so that it is measured, too.
const EVERYTHING: [&str; 2] = ["--metrics-pod-labels", "--metrics-dcgm-names"];
const GPUS: &str = "8xH100-80GB";
const NODE: &str = "bench";
const LIBRARY: &str = "libnvidia-ml.so.1";
const PROFILE: &str = "1g.10gb";
/// How often the API server's store is looked at; it adds at most this to a start.
const GLANCE: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Node {
    pub(crate) sim: SimNode,
    /// Where the driver that runs shows its metrics.
    pub(crate) metrics: SocketAddr,
    server: ApiServer,
    /// The simulated host, CDI files and sockets, on a tmpfs, as `/proc` and `/var/run` are: what the simulator writes
    /// must not get in the way of the driver's files.
    directory: TempDir,
    /// The driver's state, on the disk of the target folder: what is forced to disk costs what it costs. The library,
    /// too, because programs may not be loaded from every tmpfs.
    pub(crate) disk: TempDir,
}

/// A driver that runs. Dropping it kills it.
pub(crate) struct Driver {
    process: Child,
    /// From the start of the process until the API server had all slices.
    pub(crate) start: Window,
}

impl Node {
    pub(crate) async fn new() -> anyhow::Result<Self> {
        let (directory, disk) =
            (tempfile::tempdir_in("/dev/shm")?, tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?);
        let models = nvml_sim::parse_gpus(GPUS).map_err(anyhow::Error::msg)?;
        let sim = SimNode::create(&directory.path().join("host"), &models)?;
        fs::copy(sim.library(), disk.path().join(LIBRARY))?;
        let server = ApiServer::start(Options { partitionable_devices: true, ..Options::default() }).await?;
        server.write_kubeconfig(&directory.path().join("kubeconfig"))?;
        server
            .create(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}))
            .map_err(|error| anyhow::anyhow!("create the Node: {error:?}"))?;
        // Free a moment ago: the driver cannot be handed a listener.
        let metrics = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        Ok(Self { sim, metrics, server, directory, disk })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts the driver on a node without slices and waits until the API server has the whole pool.
    pub(crate) async fn start(&self) -> anyhow::Result<Driver> {
        for slice in self.server.list(&kinds::RESOURCE_SLICE) {
            let name = slice["metadata"]["name"].as_str().unwrap_or_default();
            self.server
                .delete(&kinds::RESOURCE_SLICE, "", name)
                .map_err(|error| anyhow::anyhow!("delete slice {name}: {error:?}"))?;
        }
        let log = File::options().create(true).append(true).open(self.path("driver.log"))?;
        let (began, clock) = (SystemTime::now(), Instant::now());
        let process = self.command().stdout(log.try_clone()?).stderr(log).spawn();
        let process = process.with_context(|| binary().display().to_string())?;
        let mut driver = Driver { process, start: Window { began, took: Duration::ZERO } };
        while !is_complete(&self.server.list(&kinds::RESOURCE_SLICE)) {
            if let Some(status) = driver.process.try_wait()? {
                bail!("the driver ended ({status})");
            }
            ensure!(clock.elapsed() < PATIENCE, "no complete pool after {} s", PATIENCE.as_secs());
            tokio::time::sleep(GLANCE).await;
        }
        driver.start.took = clock.elapsed();
        Ok(driver)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(binary());
        // No rescan comes between: it is rare, and would be counted for whatever is measured at that moment.
        command.args([
            "node",
            "--node-name",
            NODE,
            "--http-address",
            "127.0.0.1:0",
            "--rescan-interval",
            "3600",
        ]);
        command.arg("--metrics-address").arg(self.metrics.to_string()).args(EVERYTHING);
        for (flag, name) in [
            ("--kubeconfig", "kubeconfig"),
            ("--driver-root", "host"),
            ("--dev-root", "host"),
            ("--host-root", "host"),
            ("--proc-root", "host/proc"),
            ("--sys-root", "host/sys"),
            ("--cdi-root", "cdi"),
            ("--registry-dir", "registry"),
        ] {
            command.arg(flag).arg(self.path(name));
        }
        command.arg("--plugins-dir").arg(self.disk.path());
        command.arg("--driver-library").arg(self.disk.path().join(LIBRARY));
        command.env("NVML_SIM_STATE", self.path("host")).stdin(Stdio::null());
        command
    }

    /// The last lines of the driver's log.
    pub(crate) fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.path("driver.log")).unwrap_or_else(|error| error.to_string());
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    /// Registers the driver as the kubelet does.
    pub(crate) async fn kubelet(&self) -> anyhow::Result<Plugin> {
        Ok(KubeletClient::register(&self.path("registry")).await?)
    }

    /// A claim for every placement of the smallest profile, as the scheduler leaves it: seven a GPU, and one of each
    /// GPU before the second of any.
    pub(crate) fn allocated_claims(&self) -> anyhow::Result<Vec<Claim>> {
        let slices = self.server.list(&kinds::RESOURCE_SLICE);
        let mut devices: Vec<(i64, String, String, String)> = Vec::new();
        for slice in &slices {
            for device in slice["spec"]["devices"].as_array().into_iter().flatten() {
                let attributes = &device["attributes"];
                if attributes["profile"]["string"] == PROFILE {
                    let start = attributes["placementStart"]["int"].as_i64().context("placementStart")?;
                    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                    let (driver, pool) = (&slice["spec"]["driver"], &slice["spec"]["pool"]["name"]);
                    devices.push((start, text(&device["name"]), text(driver), text(pool)));
                }
            }
        }
        devices.sort();
        devices.into_iter().map(|(_, device, driver, pool)| self.claim(&device, &driver, &pool)).collect()
    }

    fn claim(&self, device: &str, driver: &str, pool: &str) -> anyhow::Result<Claim> {
        let request = json!({"name": "gpu", "exactly": {"deviceClassName": "mig.dra-driver.dev"}});
        let object = json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": device},
            "spec": {"devices": {"requests": [request]}},
        });
        let result = json!({"request": "gpu", "driver": driver, "pool": pool, "device": device});
        let allocation = json!({"status": {"allocation": {"devices": {"results": [result]}}}});
        let allocated = self
            .server
            .create(object)
            .and_then(|_| {
                self.server.patch(&kinds::RESOURCE_CLAIM, "default", device, Part::Status, allocation)
            })
            .map_err(|error| anyhow::anyhow!("claim {device}: {error:?}"))?;
        let uid = allocated["metadata"]["uid"].as_str().context("a claim has a UID")?.to_owned();
        Ok(Claim { namespace: "default".to_owned(), name: device.to_owned(), uid })
    }

    /// How many requests the API server had so far.
    pub(crate) fn requests(&self) -> usize {
        self.server.requests().len()
    }

    /// What this driver called so far.
    pub(crate) fn calls_of(&self, driver: &Driver) -> anyhow::Result<Vec<Call>> {
        let pid = driver.process.id();
        Ok(self.sim.calls()?.into_iter().filter(|it| it.pid == pid).collect())
    }
}

impl Driver {
    /// A line of `/proc/<pid>/status`, in KiB.
    pub(crate) fn memory_kib(&self, line: &str) -> anyhow::Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let value = status.lines().find_map(|it| it.strip_prefix(line)?.strip_prefix(':'));
        let number = value.and_then(|it| it.split_whitespace().next());
        number.with_context(|| format!("no {line} in /proc/<pid>/status"))?.parse().context("a number")
    }

    /// For how long its threads have had a core, and for how long they have waited for one, in milliseconds.
    pub(crate) fn on_core_and_waiting(&self) -> anyhow::Result<[f64; 2]> {
        scheduled(&self.process.id().to_string())
    }

    /// Ends it as Kubernetes does.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = self.process.wait()?;
        ensure!(status.success(), "the driver ended with {status}");
        Ok(())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Ok(Some(status)) = self.process.try_wait()
            && !status.success()
        {
            println!("the driver had ended before it was asked to: {status}");
        }
        // Both fail only where it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// True for a pool of which every slice is there, devices included.
fn is_complete(slices: &[impl std::ops::Deref<Target = Value>]) -> bool {
    let has_devices =
        slices.iter().any(|it| it["spec"]["devices"].as_array().is_some_and(|it| !it.is_empty()));
    let pool = |slice: &Value| slice["spec"]["pool"].clone();
    has_devices
        && slices.iter().all(|it| {
            pool(it) == pool(&slices[0])
                && pool(it)["resourceSliceCount"].as_u64() == Some(slices.len() as u64)
        })
}

/// Time on a core and time in wait for one of all threads of a process, from the kernel's
/// `/proc/<pid>/task/<tid>/schedstat` (Documentation/scheduler/sched-stats.rst), in milliseconds.
pub(crate) fn scheduled(process: &str) -> anyhow::Result<[f64; 2]> {
    let mut sums = [0.0; 2];
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        // A thread may have ended since it was listed.
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        for (sum, nanoseconds) in sums.iter_mut().zip(text.split_whitespace()) {
            *sum += nanoseconds.parse::<f64>()? / 1e6;
        }
    }
    Ok(sums)
}

/// Forces a small file and its directory to disk, as a careful program does, and says how long that took.
pub(crate) fn forced_write(directory: &Path) -> anyhow::Result<Duration> {
    fs::create_dir_all(directory)?;
    let (unfinished, path) = (directory.join("forced.tmp"), directory.join("forced"));
    let clock = Instant::now();
    fs::write(&unfinished, [b'x'; 1024])?;
    File::open(&unfinished)?.sync_data()?;
    fs::rename(&unfinished, &path)?;
    File::open(directory)?.sync_all()?;
    let took = clock.elapsed();
    fs::remove_file(&path)?;
    Ok(took)
}
