//! The command line: every flag is also an environment variable, so that a DaemonSet can set it either way.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::cdi::{DEFAULT_LDCONFIG, DisabledHooks, DriverRoot, HookSettings, Root, find_nvml};
use crate::health::IgnoredXids;
use crate::inventory::{ExistingInstances, MOST_SHARES, ProfileFilter};
use crate::kubelet::is_pod_uid;
use crate::mig::ModePolicy;
use crate::nvml::OpenError;
use crate::placement::Policy;
use crate::slices::{Mode, TaintEffect};
use crate::telemetry::LogFormat;
use crate::telemetry::metrics::{MetricsAddress, UsagePolicy};

/// Kubernetes DRA driver that cuts NVIDIA GPUs into MIG instances on demand.
#[derive(Debug, Parser)]
#[command(name = "dra-driver-mig", version, about, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Every setting with its origin, for the log; only [`Cli::from_process`] fills it in.
    #[arg(skip)]
    pub configuration: String,
}

impl Cli {
    /// The command line and environment of this process. Ends it with a message if they cannot be understood.
    #[must_use]
    pub fn from_process() -> Self {
        let matches = Self::command().get_matches();
        let parsed = Self::from_arg_matches(&matches);
        let mut cli = parsed.unwrap_or_else(|error| error.format(&mut Self::command()).exit());
        cli.configuration = configuration(&matches);
        cli
    }
}

/// Every flag of the subcommand, by where its value comes from. No flag takes a secret: kubeconfig files are named, not
/// read here.
fn configuration(matches: &ArgMatches) -> String {
    let Some((name, given)) = matches.subcommand() else { return String::new() };
    let command = Cli::command();
    let Some(subcommand) = command.find_subcommand(name) else { return String::new() };
    let mut origins =
        [("flags", Vec::new()), ("environment", Vec::new()), ("defaults", Vec::new()), ("unset", Vec::new())];
    for argument in subcommand.get_arguments().filter(|it| it.get_long() != Some("help")) {
        let id = argument.get_id().as_str();
        let values: Vec<String> =
            given.get_raw(id).into_iter().flatten().map(|it| it.to_string_lossy().into_owned()).collect();
        let (origin, setting) = match given.value_source(id) {
            _ if values.iter().all(String::is_empty) => (3, argument.get_long().unwrap_or(id).to_owned()),
            source => {
                let origin = match source {
                    Some(ValueSource::CommandLine) => 0,
                    Some(ValueSource::EnvVariable) => 1,
                    _ => 2,
                };
                (origin, format!("{}={}", argument.get_long().unwrap_or(id), values.join(",")))
            }
        };
        origins[origin].1.push(setting);
    }
    let told = origins.iter().filter(|(_, settings)| !settings.is_empty());
    let told: Vec<String> =
        told.map(|(origin, settings)| format!("{origin}: {}", settings.join(" "))).collect();
    told.join("; ")
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve this node: publish ResourceSlices, prepare and unprepare claims for the kubelet.
    Node(Box<NodeArgs>),
    /// Show this node's GPUs and claims: MIG mode, a map of each GPU, instances and their owners, memory in use, how busy they
    /// are and what is sick, profiles and where they still fit. Needs no running driver and changes nothing.
    Inspect(InspectArgs),
    /// List what the driver needs on this host and in the cluster, what of it is missing, and what to do. Changes nothing;
    /// exit status 1 if something is missing.
    Check(Box<CheckArgs>),
    /// Write the CDI spec by which this driver's own container gets the GPUs, `<driver>-management.json` with the device
    /// `<driver>/management=all`, from what the kernel lists in /proc. Run before `node` in an init container; needs no GPU, no
    /// capability and no API server. Exit status 1 only if the spec cannot be written.
    ManagementSpec(ManagementSpecArgs),
    /// Turn manifests that ask the device plugin (`nvidia.com/mig-1g.10gb: 1`, `nvidia.com/gpu: 1`) into ones that claim
    /// devices of this driver. Comments and what else is in the file stay. Exit status: 0 all converted, 1 something was
    /// left as it is (see standard error), 2 the file cannot be used and nothing is written.
    Convert(ConvertArgs),
}

/// Where the hardware is.
#[derive(Debug, Clone, Args)]
pub struct HardwareArgs {
    /// Root of the NVIDIA driver's files as this process sees them: `/` for a driver installed on the host,
    /// `/run/nvidia/driver` for the GPU Operator's driver container, or where that is mounted.
    #[arg(long, env, value_name = "DIR", default_value = "/")]
    pub driver_root: PathBuf,
    /// libnvidia-ml.so.1 [default: searched below --driver-root]. Libraries for containers are searched in its directory,
    /// too, if that is below --driver-root.
    #[arg(long, env, value_name = "FILE")]
    pub driver_library: Option<PathBuf>,
    /// The proc file system.
    #[arg(long, env, value_name = "DIR", default_value = "/proc")]
    pub proc_root: PathBuf,
    /// The sys file system.
    #[arg(long, env, value_name = "DIR", default_value = "/sys")]
    pub sys_root: PathBuf,
}

impl HardwareArgs {
    /// The path of libnvidia-ml.so.1. Looks for it in the directories in which the libraries for containers are looked for.
    pub fn nvml_library(&self) -> Result<PathBuf, OpenError> {
        match &self.driver_library {
            Some(path) => Ok(path.clone()),
            None => find_nvml(&Root::new(&self.driver_root, "/"))
                .ok_or_else(|| OpenError::NotFound { root: self.driver_root.clone() }),
        }
    }
}

/// What identifies the driver on a node.
#[derive(Debug, Clone, Args)]
pub struct DriverArgs {
    /// Name of the DRA driver: in ResourceSlices, device classes, CDI ids and the domain of attributes.
    #[arg(long, env, value_name = "NAME", default_value = "mig.dra-driver.dev")]
    pub driver_name: String,
    /// The kubelet's directory for plugins; sockets and state of this driver go below it.
    #[arg(long, env, value_name = "DIR", default_value = "/var/lib/kubelet/plugins")]
    pub plugins_dir: PathBuf,
}

impl DriverArgs {
    /// Directory of this driver below the kubelet's.
    #[must_use]
    pub fn plugin_directory(&self) -> PathBuf {
        self.plugins_dir.join(&self.driver_name)
    }

    /// Directory with one state file per claim.
    #[must_use]
    pub fn claims_directory(&self) -> PathBuf {
        self.plugin_directory().join("claims")
    }
}

/// Where things are on the host, as this process sees them and as the host does.
#[derive(Debug, Clone, Args)]
pub struct HostArgs {
    /// The directory in which the kubelet looks for plugins.
    #[arg(long, env, value_name = "DIR", default_value = "/var/lib/kubelet/plugins_registry")]
    pub registry_dir: PathBuf,
    /// Path of --driver-root on the host, where it is another one than in this container.
    #[arg(long, env, value_name = "DIR")]
    pub host_driver_root: Option<String>,
    /// Root below which this process finds `dev` with the GPU device nodes.
    #[arg(long, env, value_name = "DIR", default_value = "/")]
    pub dev_root: PathBuf,
    /// Path of --dev-root on the host, where it is another one than in this container.
    #[arg(long, env, value_name = "DIR")]
    pub host_dev_root: Option<String>,
    /// Where CDI specs go; container runtimes must read this directory.
    #[arg(long, env, value_name = "DIR", default_value = "/var/run/cdi")]
    pub cdi_root: PathBuf,
    /// Path of nvidia-cdi-hook on the host.
    #[arg(long, env, value_name = "FILE", default_value = crate::cdi::DEFAULT_HOOK)]
    pub cdi_hook: String,
    /// Hooks of nvidia-cdi-hook that CDI specs leave out, separated by commas: create-symlinks, enable-cuda-compat,
    /// update-ldcache, disable-device-node-modification. Those that the program does not have are left out anyway.
    #[arg(long, env, value_name = "LIST", default_value = "", hide_default_value = true)]
    pub disable_hooks: DisabledHooks,
    /// Root below which this process finds --cdi-hook, where the host's files are mounted elsewhere.
    #[arg(long, env, value_name = "DIR", default_value = "/")]
    pub host_root: PathBuf,
    /// A CDI spec (JSON or YAML, as `nvidia-ctk cdi generate` writes it) whose common edits every container gets,
    /// instead of those discovered below --driver-root.
    #[arg(long, env, value_name = "FILE")]
    pub common_edits: Option<PathBuf>,
}

impl HostArgs {
    /// Where CDI specs take the NVIDIA driver's files from.
    #[must_use]
    pub fn driver_root(&self, hardware: &HardwareArgs) -> DriverRoot {
        let root = |here: &Path, host: &Option<String>| {
            Root::new(here, host.clone().unwrap_or_else(|| here.to_string_lossy().into_owned()))
        };
        let files = root(&hardware.driver_root, &self.host_driver_root);
        let nvml = hardware.driver_library.as_deref().and_then(Path::parent);
        DriverRoot {
            nvml_directory: nvml.and_then(|it| files.inside(it)),
            files,
            devices: root(&self.dev_root, &self.host_dev_root),
            version: None,
            hooks: HookSettings {
                host_root: self.host_root.clone(),
                program: self.cdi_hook.clone(),
                ldconfig: DEFAULT_LDCONFIG.to_owned(),
                disabled: self.disable_hooks.clone(),
            },
            proc: hardware.proc_root.clone(),
            sys: hardware.sys_root.clone(),
        }
    }
}

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
    /// Tell namespace, pod and claim of each instance in /metrics.
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
    /// spanning it is offered as a device of its own, which is neither made nor destroyed for a claim.
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
    /// A call into NVML that takes longer is told of: in the log, as an event of the node, and by /readyz. Shorter for tests.
    #[arg(long, env, value_name = "SECONDS", default_value = "60", value_parser = seconds, hide = true)]
    pub nvml_patience: Duration,
    /// How often GPUs are looked at for instances that somebody else made, a missing driver for having come, and state
    /// files for claims that nobody works on; at each tenth time the API server is asked whether the claims still exist.
    #[arg(long, env, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub rescan_interval: Duration,
    /// Log level, or a filter such as `info,dra_driver_mig::claim=debug`.
    #[arg(long, env, value_name = "LEVEL", default_value = "info", value_parser = log_level)]
    pub log_level: String,
    /// Log format.
    #[arg(long, env, value_enum, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Whether the state of a layout is written to the node's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StateLabel {
    /// It is.
    On,
    /// It is not; another program owns the label.
    Off,
}

/// Arguments of `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Name of this node's Node object; without it, what the API server knows of the node is not looked at.
    #[arg(long, env, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Kubeconfig file [default: the service account of the pod].
    #[arg(long, env, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take a doc comment for help text")]
    pub driver: DriverArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take a doc comment for help text")]
    pub hardware: HardwareArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take a doc comment for help text")]
    pub host: HostArgs,
}

/// Arguments of `inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take a doc comment for help text")]
    pub hardware: HardwareArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take a doc comment for help text")]
    pub driver: DriverArgs,
    /// Kubeconfig file, to ask for the pods of claims [default: the service account of the pod, where this is one].
    #[arg(long, env, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Output format.
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub output: OutputFormat,
    /// Show it again and again, until interrupted.
    #[arg(short, long)]
    pub watch: bool,
    /// Time between two pictures of --watch.
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    pub interval: Duration,
}

/// Arguments of `management-spec`.
#[derive(Debug, Clone, Args)]
pub struct ManagementSpecArgs {
    /// Name of the DRA driver, which is the vendor of the CDI device.
    #[arg(long, env, value_name = "NAME", default_value = "mig.dra-driver.dev")]
    pub driver_name: String,
    /// The proc file system.
    #[arg(long, env, value_name = "DIR", default_value = "/proc")]
    pub proc_root: PathBuf,
    /// Where the spec goes; the container runtime must read this directory.
    #[arg(long, env, value_name = "DIR", default_value = "/var/run/cdi")]
    pub cdi_root: PathBuf,
}

/// Arguments of `convert`.
#[derive(Debug, Clone, Args)]
pub struct ConvertArgs {
    /// The manifests: YAML or JSON, one object or many; `-` is standard input.
    #[arg(short, long, value_name = "FILE")]
    pub filename: String,
    /// Where the result goes; the input file itself is a good place [default: standard output].
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// How `inspect` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    Table,
    /// For programs.
    Json,
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

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u32>() {
        Ok(seconds) if 0 < seconds => Ok(Duration::from_secs(seconds.into())),
        _ => Err("a whole number of seconds above 0".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_flag_is_an_environment_variable() {
        let command = Cli::command();
        command.clone().debug_assert();
        for name in ["node", "check", "management-spec"] {
            let subcommand = command.find_subcommand(name).unwrap();
            for argument in subcommand.get_arguments().filter(|it| it.get_id() != "help") {
                assert!(argument.get_env().is_some(), "{}", argument.get_id());
                assert!(argument.get_help().is_some(), "{}", argument.get_id());
            }
        }
    }

    #[test]
    fn the_configuration_tells_where_each_setting_is_from() {
        let line = ["dra-driver-mig", "node", "--node-name", "n-1", "--mode=layout"];
        let told = configuration(&Cli::command().get_matches_from(line));
        let (flags, rest) = told.split_once("; ").unwrap();
        assert_eq!(flags, "flags: node-name=n-1 mode=layout");
        assert!(rest.contains("defaults: ") && rest.contains(" rescan-interval=60 "), "{rest}");
        assert!(rest.contains("unset: ") && rest.contains(" driver-library"), "{rest}");
    }

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

    #[test]
    fn a_rescan_interval_of_nothing_is_refused() {
        assert_eq!(seconds("60"), Ok(Duration::from_secs(60)));
        for text in ["0", "-1", "1m", ""] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
