//! Reads the host and queries the API server. The only file of the check with effects; it writes nothing.

use std::fs;
use std::path::{Path, PathBuf};

use futures::future::join_all;
use kube::Client;
use mig_model::facts::NodeFacts;
use mig_model::slices::Owner;
use tokio::time::timeout;

use super::facts::{ClusterFacts, DirectoryFacts, HostFacts};
use super::finding::Subject;
use super::runtime::{CONTAINERD, CRIO, NVIDIA_RUNTIME, cdi_setting, nvidia_mode};
use crate::access::DeviceAccess;
use crate::api::{CALL_TIMEOUT, NodeSlices, RIGHTS, Right, is_allowed};
use crate::cdi::{CommonSource, Root};
use crate::files::read_bounded;
use crate::hardware::{HardwareArgs, HostArgs};
use crate::kubelet::DriverArgs;
use crate::publisher::counter_support;
use crate::readiness::{HostReadiness, not_makeable, unwritable};
use crate::telemetry::with_causes;

/// Configuration files of container runtimes have some KiB.
const MAX_CONFIG: u64 = 1024 * 1024;

/// Reads the host. `hardware` is what NVML reports.
pub(super) fn host(
    hardware_args: &HardwareArgs,
    host: &HostArgs,
    driver: &DriverArgs,
    hardware: Result<NodeFacts, String>,
) -> HostFacts {
    let library = match hardware_args.nvml_library() {
        Ok(path) if path.exists() => Ok(path),
        Ok(path) => Err(format!("no file {}", path.display())),
        Err(error) => Err(error.to_string()),
    };
    let readiness = HostReadiness::new(
        CommonSource::new(host.driver_root(hardware_args), host.common_edits.clone()),
        hardware_args.proc_root.clone(),
        host.cdi_root.clone(),
        driver.claims_directory(),
    );
    let version = hardware.as_ref().ok().and_then(|it| it.driver_version.as_deref());
    let has_mig = hardware.as_ref().is_ok_and(|it| it.gpus.iter().any(|gpu| gpu.cuttable().is_some()));
    let mut conditions = readiness.look(version, has_mig);
    let host_root = Root::new(&host.host_root, "/");
    let access = DeviceAccess::look(&hardware_args.proc_root, &host.dev_root).report(hardware.as_ref().ok());
    conditions.extend(access.mig_denied);
    HostFacts {
        missing_gpus: access.missing,
        library,
        hardware,
        conditions,
        hook: host.cdi_hook.clone(),
        directories: directories(host, driver),
        nvidia_mode: nvidia_mode(&files(&host_root, &NVIDIA_RUNTIME)),
        cdi: cdi_setting(&files(&host_root, &CONTAINERD), !files(&host_root, &CRIO).is_empty()),
    }
}

fn directories(host: &HostArgs, driver: &DriverArgs) -> Vec<DirectoryFacts> {
    const KUBELET: &str = "run the check on a node with a kubelet, as root; where its --root-dir is not /var/lib/kubelet, name \
                           the directory with --registry-dir and --plugins-dir";
    let directory = |subject, path: &Path, problem, remedy| DirectoryFacts {
        subject,
        path: path.to_owned(),
        is_there: path.is_dir(),
        problem,
        remedy,
    };
    let cdi = "run as root and mount the directory writable; container runtimes read CDI specs there";
    vec![
        directory(Subject::KubeletRegistry, &host.registry_dir, unwritable(&host.registry_dir), KUBELET),
        directory(
            Subject::PluginDirectory,
            &driver.plugin_directory(),
            not_makeable(&driver.plugin_directory()),
            KUBELET,
        ),
        directory(Subject::CdiDirectory, &host.cdi_root, not_makeable(&host.cdi_root), cdi),
    ]
}

/// The text of those files that can be read; of directories, all files in them.
fn files(root: &Root, paths: &[&str]) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for path in paths {
        let here = root.here(path);
        let mut names: Vec<PathBuf> = match fs::read_dir(&here) {
            Ok(entries) => entries.flatten().map(|it| it.path()).collect(),
            Err(_) => vec![here],
        };
        names.sort();
        found.extend(names.into_iter().filter_map(|it| {
            let text = String::from_utf8(read_bounded(&it, MAX_CONFIG).ok()?).ok()?;
            Some((it, text))
        }));
    }
    found
}

/// Asks for every right.
pub(super) async fn rights(client: &Client) -> Vec<(Right, Result<bool, String>)> {
    join_all(RIGHTS.iter().map(async |right| (*right, is_allowed(client, right).await))).await
}

/// Asks the API server for everything.
pub(super) async fn cluster(client: Client, node: Option<&str>, driver: &str) -> ClusterFacts {
    let version = match timeout(CALL_TIMEOUT, client.apiserver_version()).await {
        Ok(Ok(version)) => Ok(version.git_version),
        Ok(Err(error)) => Err(with_causes(&error)),
        Err(_) => Err(format!("no answer within {} s", CALL_TIMEOUT.as_secs())),
    };
    if version.is_err() {
        return ClusterFacts::All { version, node: None, rights: Vec::new(), counters: None };
    }
    let rights = rights(&client).await;
    let Some(name) = node else { return ClusterFacts::All { version, node: None, rights, counters: None } };
    let slices = NodeSlices::new(client, name, driver);
    let (node, counters) = match slices.node_uid().await {
        Ok(node_uid) => {
            let owner = Owner { driver: driver.to_owned(), node: name.to_owned(), node_uid };
            (Ok(()), Some(counter_support(&slices, &owner).await.map_err(|it| it.to_string())))
        }
        Err(error) => (Err(error.to_string()), None),
    };
    ClusterFacts::All { version, node: Some((name.to_owned(), node)), rights, counters }
}
