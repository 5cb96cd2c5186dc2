//! Flags of `node`. Those that other subcommands have, too, are beside what they configure.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use mig_model::health::IgnoredXids;
use mig_model::inventory::{ExistingInstances, MOST_SHARES, ProfileFilter};
use mig_model::placement::Policy;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::hardware::{HardwareArgs, HostArgs};
use crate::kubelet::{DriverArgs, is_pod_uid};
use crate::layout::StateLabel;
use crate::mig::ModePolicy;
use crate::slices::{Mode, TaintEffect};
use crate::telemetry::metrics::MetricsAddress;
use crate::telemetry::{LogFormat, seconds};
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
    /// Which GPU a request is given first, as far as several would do.
    #[arg(long, env, value_enum, value_name = "POLICY", default_value = "pack")]
    pub placement: Policy,
    /// Profiles to offer, as patterns separated by commas: `1g.*,3g.40gb,full` offers these, `!*+me*,!1g.20gb` all but
    /// these; `full` is the whole GPU [default: all]. The fewer there are, the more GPUs share a slice, and the better
    /// requests are packed. What claims hold stays published. A layout names its profiles itself.
    #[arg(long, env, value_name = "PATTERNS", default_value = "", hide_default_value = true)]
    pub profiles: ProfileFilter,
    /// What is published: every placement, kept apart by counters (needs the feature gate DRAPartitionableDevices in
    /// kube-apiserver and kube-scheduler), or devices that don't overlap, chosen by a layout (needs nothing).
    #[arg(long, env, value_enum, value_name = "MODE", default_value = "auto")]
    pub mode: Mode,
    /// Layouts in mig-parted's format, which the node label nvidia.com/mig.config chooses from; read again when it
    /// changes [default: built-in layouts, such as all-balanced, all-disabled, all-1g.10gb].
    #[arg(long, env, value_name = "FILE")]
    pub layouts: Option<PathBuf>,
    /// Whether this driver answers with the node label nvidia.com/mig.config.state how the layout stands. `off` leaves the
    /// label to another program, such as a MIG manager that only switches MIG mode.
    #[arg(long, env, value_enum, value_name = "STATE", default_value = "on")]
    pub state_label: StateLabel,
    /// How long a device that leaves a layout is withdrawn before one that overlaps it is published; a scheduler that
    /// needs longer to notice has its pod refused by the node.
    #[arg(long, env, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub settle_time: Duration,
    /// Address for /healthz and /readyz. `[::]` is every address, IPv4 included, also where the kernel has no IPv6.
    #[arg(long, env, value_name = "ADDRESS", default_value = "[::]:8081")]
    pub http_address: SocketAddr,
    /// Address for /metrics; `off`, or nothing, for none.
    #[arg(long, env, value_name = "ADDRESS", default_value = "[::]:8082")]
    pub metrics_address: MetricsAddress,
    /// What is measured of instances for /metrics.
    #[arg(long, env, value_enum, value_name = "WHAT", default_value = "all")]
    pub metrics_usage: UsagePolicy,
    /// Add namespace, pod and claim of each instance to /metrics.
    #[arg(long, env)]
    pub metrics_pod_labels: bool,
    /// Show the numbers of each instance under the names of NVIDIA's DCGM exporter, too (DCGM_FI_DEV_FB_USED and others).
    #[arg(long, env)]
    pub metrics_dcgm_names: bool,
    /// What becomes of a GPU's MIG mode when its last MIG device goes. Only GPUs that switch without a reset are switched.
    #[arg(long, env, value_enum, value_name = "POLICY", default_value = "keep")]
    pub mig_mode: ModePolicy,
    /// XIDs that make no GPU or instance unhealthy, separated by commas, besides those that NVIDIA's catalogue
    /// of XIDs answers with restarting the application or ignoring the error. An XID given here still counts where NVML recommends a
    /// reset of the GPU.
    #[arg(long, env, value_name = "XIDS", default_value = "", hide_default_value = true)]
    pub ignore_xids: IgnoredXids,
    /// What the taint of an unhealthy GPU does, where kube-apiserver keeps device taints (feature gate DRADeviceTaints).
    #[arg(long, env, value_enum, value_name = "EFFECT", default_value = "NoSchedule")]
    pub taint_effect: TaintEffect,
    /// What becomes of MIG instances that the driver did not make: they are left alone, or each that has one compute instance
    /// spanning it is published as a device, which the driver neither creates nor destroys for a claim.
    #[arg(long, env, value_enum, value_name = "POLICY", default_value = "withhold")]
    pub existing_instances: ExistingInstances,
    /// Number of time-shared devices as which each GPU without MIG is offered, 1 to 48; 1 offers it whole. Nothing
    /// separates the users of such devices: neither memory nor faults.
    #[arg(long, env, value_name = "N", default_value = "1", value_parser = time_slices)]
    pub time_slices: u32,
    /// Time for one call of the kubelet, which itself gives up after 45 s (pkg/kubelet/cm/dra/plugin/dra_plugin.go).
    /// Shorter for tests.
    #[arg(long, env, value_name = "SECONDS", default_value = "40", value_parser = seconds, hide = true)]
    pub call_budget: Duration,
    /// A call into NVML that takes longer hangs: it is reported in the log, as an event of the node and by /readyz, and work for its
    /// GPU that has not begun is not waited for any more. Shorter for tests.
    #[arg(long, env, value_name = "SECONDS", default_value = "60", value_parser = seconds, hide = true)]
    pub nvml_patience: Duration,
    /// How often GPUs are looked at for unmanaged MIG instances, a missing driver for having come, and state
    /// files for claims that no call works on; at each tenth time the API server is asked whether the claims still exist.
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

/// A level, or a list of `target=level`. EnvFilter alone would take a misspelt level for the name of a target.
fn log_level(text: &str) -> Result<String, String> {
    let is_known = |part: &str| {
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level).trim();
        !level.is_empty() && level.parse::<LevelFilter>().is_ok()
    };
    if text.split(',').all(is_known) && EnvFilter::try_new(text).is_ok() {
        return Ok(text.to_owned());
    }
    Err("a level (error, warn, info, debug, trace or off), or a list such as `info,dra_driver_mig::claim=debug`".to_owned())
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
    fn a_gpu_has_at_least_one_user_and_not_too_many() {
        assert_eq!((time_slices("1"), time_slices("48")), (Ok(1), Ok(48)));
        for text in ["0", "49", "-1", "two", ""] {
            assert!(time_slices(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_misspelt_log_level_is_refused() {
        for text in ["info", "warn", "off", "info,dra_driver_mig::claim=debug", "dra_driver_mig=trace"] {
            assert_eq!(log_level(text).as_deref(), Ok(text));
        }
        for text in ["", "nonsense", "info,verbose", "dra_driver_mig=loud", "info,,"] {
            assert!(log_level(text).is_err(), "{text}");
        }
    }
}
