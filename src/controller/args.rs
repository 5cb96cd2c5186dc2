//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use mig_model::drivers::DEFAULT;
use mig_telemetry::{LogFormat, MetricsAddress, log_level, seconds};

/// Controller of a cluster with dra-driver-mig: reports why pods wait for MIG devices. Run several replicas; one of them acts, the
/// holder of a Lease.
#[derive(Debug, Clone, Parser)]
#[command(name = "mig-controller", version)]
pub struct Args {
    /// Kubeconfig file [default: the service account of the pod].
    #[arg(long, env, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Name of the driver whose devices pods wait for: the same as the driver's --driver-name.
    #[arg(long, env, value_name = "NAME", default_value = DEFAULT)]
    pub driver_name: String,
    /// How long a pod is unschedulable before it is looked at.
    #[arg(long, env, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub patience: Duration,
    /// Write no events that say why pods wait.
    #[arg(long, env)]
    pub no_events: bool,
    /// Decide what nodes publish whose label nvidia.com/mig.config is `auto`, for the pods that wait. Needs the definition of MigNodes.
    #[arg(long, env)]
    pub demand: bool,
    /// With --demand: nodes without the label nvidia.com/mig.config take part, too.
    #[arg(long, env)]
    pub default_auto: bool,
    /// With --demand: a claim for a large device (4g, 7g, the whole GPU) that has waited for so long gets a GPU held back: what is in
    /// its way there is not offered to others [default: no GPU is held back].
    #[arg(long, env, value_name = "SECONDS", value_parser = seconds)]
    pub hold_after: Option<Duration>,
    /// How long a GPU is held back for one claim at most. Holds are short and renewed: they end 5 minutes, with --consolidate up to
    /// 15 minutes, after the controller has stopped.
    #[arg(long, env, value_name = "SECONDS", default_value = "3600", value_parser = seconds)]
    pub hold_for: Duration,
    /// With --hold-after: evict pods with the label mig.dra-driver.dev/movable=true that stand in the way on a GPU that is held back,
    /// where each of them finds another place. PodDisruptionBudgets apply.
    #[arg(long, env, requires_all = ["demand", "hold_after"])]
    pub consolidate: bool,
    /// With --consolidate: a claim that has waited for so long, for each pod that has to move, gets a GPU held back before --hold-after.
    #[arg(long, env, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub consolidate_after: Duration,
    /// With --consolidate: pods that are evicted in an hour at most; half of them for the pods of one namespace.
    #[arg(long, env, value_name = "COUNT", default_value = "20", value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub evictions_per_hour: u32,
    /// Name of this replica in the Lease, in events and in the log; a part is added that differs for each process.
    #[arg(long, env, value_name = "NAME", default_value = "mig-controller")]
    pub pod_name: String,
    /// Name of the Lease. Controllers of several drivers in one namespace need different ones.
    #[arg(long, env, value_name = "NAME", default_value = "mig-controller")]
    pub lease_name: String,
    /// Namespace of the Lease [default: that of the service account or kubeconfig].
    #[arg(long, env, value_name = "NAME")]
    pub lease_namespace: Option<String>,
    /// How long the Lease holds without being renewed. Another replica acts at the latest after this time; on SIGTERM, at once.
    #[arg(long, env, value_name = "SECONDS", default_value = "15", value_parser = seconds)]
    pub lease_duration: Duration,
    /// Address for /livez and /readyz. `[::]` is every address, including IPv4, even if the kernel has no IPv6.
    #[arg(long, env, value_name = "ADDRESS", default_value = "[::]:8081")]
    pub http_address: SocketAddr,
    /// Address for /metrics; `off` or an empty value disables it.
    #[arg(long, env, value_name = "ADDRESS", default_value = "[::]:8082")]
    pub metrics_address: MetricsAddress,
    /// Log level, or a filter such as `info,mig_controller=debug`.
    #[arg(long, env, value_name = "LEVEL", default_value = "info", value_parser = log_level)]
    pub log_level: String,
    /// Log format.
    #[arg(long, env, value_enum, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}
