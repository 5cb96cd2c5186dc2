//! Everything that runs: hardware, API server, control plane, kubelet, and the driver itself.

use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::Parser;
use dra_driver_mig::args::{Cli, Command};
use dra_driver_mig::node;
use dra_driver_mig::node::NodeArgs;
use kube_sim::{ApiServer, ControlPlane, Kubelet, KubeletOptions, manifest};
use nvml_sim::SimNode;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::args::Args;

/// Name of the node.
pub(crate) const NODE: &str = "gpu-node-0";

/// The running cluster.
pub(crate) struct Cluster {
    pub(crate) hardware: SimNode,
    pub(crate) server: ApiServer,
    pub(crate) kubelet: Kubelet,
    pub(crate) cdi_dir: PathBuf,
    pub(crate) kubeconfig: PathBuf,
    plugins_dir: PathBuf,
    control: Option<ControlPlane>,
    driver: JoinHandle<anyhow::Result<()>>,
    stop: CancellationToken,
    directory: TempDir,
}

impl Cluster {
    /// Starts all but the control plane. The driver publishes and registers in its own time.
    pub(crate) async fn start(args: &Args) -> anyhow::Result<Self> {
        // A short path: a socket's path may have 107 bytes, and these contain the driver's name.
        let directory = tempfile::Builder::new().prefix("sandbox-").tempdir_in("/tmp")?;
        let root = directory.path();
        let hardware = SimNode::create(&root.join("node"), &args.gpus.0).context("the simulated node")?;
        enable_mig(&hardware, args)?;
        let server = ApiServer::start(args.options()).await.context("the API server")?;
        for definition in manifest::parse(include_str!("../../deploy/manifests/crd.yaml"))? {
            server.create(definition).context("the kind MigNode")?;
        }
        let kubeconfig = root.join("kubeconfig");
        server.write_kubeconfig(&kubeconfig)?;
        let registry_dir = root.join("registry");
        std::fs::create_dir_all(&registry_dir)?;
        let kubelet = Kubelet::start(&server, KubeletOptions::new(NODE, &registry_dir))?;
        let (cdi_dir, plugins_dir) = (root.join("cdi"), root.join("plugins"));
        let stop = CancellationToken::new();
        let node_args = node_args(&hardware, &plugins_dir, &registry_dir, &cdi_dir, &kubeconfig)?;
        let driver = tokio::spawn(node::run(node_args, stop.clone()));
        Ok(Self {
            hardware,
            server,
            kubelet,
            cdi_dir,
            kubeconfig,
            plugins_dir,
            control: None,
            driver,
            stop,
            directory,
        })
    }

    /// Starts the control plane: once the first objects are there, so that it takes them in their order.
    pub(crate) fn start_control(&mut self) {
        self.control = Some(ControlPlane::start(&self.server));
    }

    /// Whether the control plane has nothing to do as things are.
    pub(crate) fn is_settled(&self) -> bool {
        let settled_at = self.control.as_ref().map(ControlPlane::settled_at);
        settled_at == Some(self.server.store().revision())
    }

    /// The flags with which `dra-driver-mig inspect` looks at this node.
    pub(crate) fn inspect_flags(&self) -> Vec<String> {
        let root = self.hardware.driver_root();
        let flags = [
            ("--driver-root", root.to_owned()),
            ("--proc-root", root.join("proc")),
            ("--sys-root", root.join("sys")),
            ("--plugins-dir", self.plugins_dir.clone()),
            ("--kubeconfig", self.kubeconfig.clone()),
        ];
        flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value.display().to_string()]).collect()
    }

    /// Fails when the driver has ended.
    pub(crate) fn driver_runs(&self) -> anyhow::Result<()> {
        if self.driver.is_finished() { Err(anyhow!("the driver has ended")) } else { Ok(()) }
    }

    /// Stops the driver as a pod deletion would. Answers whether it ended well, and the directory of it all: the driver's NVML
    /// threads may outlive it by a moment, so the directory is to go last.
    pub(crate) async fn stop(self) -> (anyhow::Result<()>, TempDir) {
        self.stop.cancel();
        let ended = self.driver.await.context("the driver's task");
        (ended.and_then(|ended| ended.context("the driver")), self.directory)
    }
}

/// Switches MIG mode on where that takes a reset of the GPU (A100, A30), as the node's administrator has done it before; the
/// driver switches it itself where it can.
fn enable_mig(hardware: &SimNode, args: &Args) -> anyhow::Result<()> {
    for (index, model) in args.gpus.0.iter().enumerate() {
        if model.has_mig() && !model.resetless_mig() {
            hardware.on_gpu(index, |gpu| {
                gpu.mig_pending = true;
                gpu.mig_current = true;
            })?;
        }
    }
    Ok(())
}

/// The driver's own command line, read by its own parser.
fn node_args(
    hardware: &SimNode,
    plugins: &std::path::Path,
    registry: &std::path::Path,
    cdi: &std::path::Path,
    kubeconfig: &std::path::Path,
) -> anyhow::Result<NodeArgs> {
    let root = hardware.driver_root();
    let arguments = [
        ("--driver-root", root.to_owned()),
        ("--dev-root", root.to_owned()),
        ("--proc-root", root.join("proc")),
        ("--sys-root", root.join("sys")),
        ("--host-root", root.to_owned()),
        ("--cdi-root", cdi.to_owned()),
        ("--plugins-dir", plugins.to_owned()),
        ("--registry-dir", registry.to_owned()),
        ("--kubeconfig", kubeconfig.to_owned()),
    ];
    let mut line: Vec<std::ffi::OsString> = vec!["dra-driver-mig".into(), "node".into()];
    line.extend(
        [
            "--node-name",
            NODE,
            "--http-address",
            "127.0.0.1:0",
            "--metrics-address",
            "127.0.0.1:0",
            "--rescan-interval",
            "5",
        ]
        .map(Into::into),
    );
    for (flag, value) in arguments {
        line.push(flag.into());
        line.push(value.into());
    }
    match Cli::try_parse_from(line)?.command {
        Command::Node(args) => Ok(*args),
        _ => Err(anyhow!("the command line names another subcommand")),
    }
}
