//! Flags of `node`. Flags that other subcommands share are next to what they configure.

use std::net::SocketAddr;
use std::path::{Component, PathBuf};
use std::time::Duration;

use clap::Args;
use mig_model::health::IgnoredXids;
use mig_model::inventory::{ExistingInstances, MOST_SHARES, ProfileFilter};
use mig_model::placement::Policy;
use mig_model::slices::{Mode, TaintEffect};

use crate::hardware::{HardwareArgs, HostArgs};
use crate::kubelet::{DriverArgs, is_pod_uid};
use crate::layout::StateLabel;
use crate::mig::ModePolicy;
use crate::mig_node::MigNodeSwitch;
use crate::telemetry::metrics::MetricsAddress;
use crate::telemetry::{LogFormat, log_level, seconds};
use crate::usage::UsagePolicy;

/// Arguments of `node`.
#[derive(Debug, Clone, Args)]
pub struct NodeArgs {
    /// Name of this node's Node object.
    #[arg(long, env, value_name = "NAME")]
    pub node_name: String,
    /// Kubeconfig file [default: the service account of the pod].
    #[arg(long, env, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take a doc comment for help text")]
    pub driver: DriverArgs,
    /// UID of this pod. It is part of the sockets' names, so that the old and the new pod of a rolling update can serve
    /// the kubelet side by side [default: none, for one process at a time].
    #[arg(long, env, value_name = "UID", value_parser = pod_uid)]
    pub pod_uid: Option<String>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take a doc comment for help text")]
    pub hardware: HardwareArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take a doc comment for help text")]
    pub host: HostArgs,
    /// Which GPU a request gets first, if several fit.
    #[arg(long, env, value_enum, value_name = "POLICY", default_value = "pack")]
    pub placement: Policy,
    /// Profiles to publish, as patterns separated by commas: `1g.*,3g.40gb,full` publishes these, `!*+me*,!1g.20gb` all except
    /// these; `full` is the whole GPU [default: all]. The fewer there are, the more GPUs share a slice, and the better
    /// requests are packed. Allocated devices stay published. A layout names its profiles itself.
    #[arg(long, env, value_name = "PATTERNS", default_value = "", hide_default_value = true)]
    pub profiles: ProfileFilter,
    /// What to publish: every placement, with shared counters that exclude overlaps (needs the feature gate DRAPartitionableDevices in
    /// kube-apiserver and kube-scheduler), or devices that don't overlap, chosen by a layout (needs nothing).
    #[arg(long, env, value_enum, value_name = "MODE", default_value = "auto")]
    pub mode: Mode,
    /// Layouts in mig-parted's format, which the node label nvidia.com/mig.config chooses from; read again when it
    /// changes [default: built-in layouts, such as all-balanced, all-disabled, all-1g.10gb].
    #[arg(long, env, value_name = "FILE")]
    pub layouts: Option<PathBuf>,
    /// Whether this driver writes the state of the layout to the node label nvidia.com/mig.config.state. `off` leaves the
    /// label to another program, such as a MIG manager that only switches MIG mode.
    #[arg(long, env, value_enum, value_name = "STATE", default_value = "on")]
    pub state_label: StateLabel,
    /// Whether this driver keeps the status of its MigNode, and follows the spec, if kube-apiserver has the kind
    /// mignodes.mig.dra-driver.dev. Without the kind it looks for it every 5 minutes.
    #[arg(long, env, value_enum, value_name = "STATE", default_value = "on")]
    pub mig_node: MigNodeSwitch,
    /// How long a device that leaves a layout is withdrawn before one that overlaps it is published; a node rejects the pods of a scheduler that
    /// needs longer to notice.
    #[arg(long, env, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub settle_time: Duration,
    /// How long the order of the devices in a slice stays as it is after it has changed: each slice is written for it at most once in this time,
    /// and only where the next allocation would be worse.
    #[arg(long, env, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub reorder_interval: Duration,
    /// Address for /healthz and /readyz. `[::]` is every address, including IPv4, even if the kernel has no IPv6.
    #[arg(long, env, value_name = "ADDRESS", default_value = "[::]:8081")]
    pub http_address: SocketAddr,
    /// Address for /metrics; `off` or an empty value disables it.
    #[arg(long, env, value_name = "ADDRESS", default_value = "[::]:8082")]
    pub metrics_address: MetricsAddress,
    /// What /metrics measures of instances.
    #[arg(long, env, value_enum, value_name = "WHAT", default_value = "all")]
    pub metrics_usage: UsagePolicy,
    /// Add namespace, pod and claim of each instance to /metrics.
    #[arg(long, env)]
    pub metrics_pod_labels: bool,
    /// Also export the metrics of each instance under the names of NVIDIA's DCGM exporter (DCGM_FI_DEV_FB_USED and others).
    #[arg(long, env)]
    pub metrics_dcgm_names: bool,
    /// Directory for the job mapping files of NVIDIA's DCGM exporter (its --hpc-job-mapping-dir): they name the pods of each GPU and
    /// MIG instance as `<namespace>/<pod>/<claim>` [default: none]. Files of other programs in it stay as they are.
    #[arg(long, env, value_name = "DIR", value_parser = absolute_directory)]
    pub dcgm_job_mapping_dir: Option<PathBuf>,
    /// Mount files into containers that say what their devices are, below /var/run/kubernetes.io/dra-device-attributes (KEP-5304): UUID, parent,
    /// profile, memory, and the other attributes of the ResourceSlice.
    #[arg(long, env)]
    pub device_metadata: bool,
    /// Find the pods of claims that are reserved for a PodGroup (Kubernetes 1.37), so that metrics and events name them. Lists the pods of
    /// this node in the namespaces of such claims, for which the account needs the right to list pods.
    #[arg(long, env)]
    pub resolve_pod_groups: bool,
    /// What happens to a GPU's MIG mode when its last MIG device is destroyed. Only GPUs that switch without a reset are switched.
    #[arg(long, env, value_enum, value_name = "POLICY", default_value = "keep")]
    pub mig_mode: ModePolicy,
    /// XIDs that do not make a GPU or instance unhealthy, separated by commas, in addition to those that NVIDIA's catalogue
    /// of XIDs answers with restarting the application or ignoring the error. A listed XID still counts if NVML recommends a
    /// reset of the GPU.
    #[arg(long, env, value_name = "XIDS", default_value = "", hide_default_value = true)]
    pub ignore_xids: IgnoredXids,
    /// Effect of the taint of an unhealthy GPU, if kube-apiserver supports device taints (feature gate DRADeviceTaints).
    #[arg(long, env, value_enum, value_name = "EFFECT", default_value = "NoSchedule")]
    pub taint_effect: TaintEffect,
    /// What to do with unmanaged MIG instances: withhold them, or adopt them: each with one compute instance
    /// spanning it is published as a device, which the driver neither creates nor destroys for a claim.
    #[arg(long, env, value_enum, value_name = "POLICY", default_value = "withhold")]
    pub existing_instances: ExistingInstances,
    /// Number of time-shared devices to publish for each GPU without MIG, 1 to 48; 1 publishes the whole GPU. Nothing
    /// separates the users of such devices: neither memory nor faults.
    #[arg(long, env, value_name = "N", default_value = "1", value_parser = time_slices)]
    pub time_slices: u32,
    /// Time for one call of the kubelet, which itself gives up after 45 s (pkg/kubelet/cm/dra/plugin/dra_plugin.go).
    /// Shorter for tests.
    #[arg(long, env, value_name = "SECONDS", default_value = "40", value_parser = seconds, hide = true)]
    pub call_budget: Duration,
    /// Time after which a call into NVML counts as hung: it is reported in the log, as an event of the node and by /readyz, and work for its
    /// GPU that has not started is cancelled. Shorter for tests.
    #[arg(long, env, value_name = "SECONDS", default_value = "60", value_parser = seconds, hide = true)]
    pub nvml_patience: Duration,
    /// How often to scan GPUs for unmanaged MIG instances, the host for a missing driver, and state
    /// files for claims that no call works on; every tenth scan asks the API server whether the claims still exist.
    #[arg(long, env, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub rescan_interval: Duration,
    /// Log level, or a filter such as `info,dra_driver_mig::claim=debug`.
    #[arg(long, env, value_name = "LEVEL", default_value = "info", value_parser = log_level)]
    pub log_level: String,
    /// Log format.
    #[arg(long, env, value_enum, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

fn pod_uid(text: &str) -> Result<String, String> {
    if is_pod_uid(text) { Ok(text.to_owned()) } else { Err("a pod's UID, as in metadata.uid".to_owned()) }
}

fn absolute_directory(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let is_plain = |it: Component<'_>| matches!(it, Component::RootDir | Component::Normal(_));
    let is_below_root = path.is_absolute() && path.file_name().is_some() && path.components().all(is_plain);
    if is_below_root { Ok(path) } else { Err("an absolute path without `..`".to_owned()) }
}

fn time_slices(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(count) if (1..=MOST_SHARES).contains(&count) => Ok(count),
        _ => Err(format!("a number from 1 to {MOST_SHARES}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_for_others_to_read_is_absolute_and_not_the_root() {
        assert_eq!(absolute_directory("/run/x"), Ok(PathBuf::from("/run/x")));
        for text in ["", "/", "run/x", "/run/../etc", "./x"] {
            assert!(absolute_directory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_gpu_has_at_least_one_user_and_not_too_many() {
        assert_eq!((time_slices("1"), time_slices("48")), (Ok(1), Ok(48)));
        for text in ["0", "49", "-1", "two", ""] {
            assert!(time_slices(text).is_err(), "{text}");
        }
    }
}
