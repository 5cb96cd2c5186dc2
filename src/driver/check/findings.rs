//! From what was seen to what is said. Pure.

use std::path::{Path, PathBuf};

use mig_model::facts::NodeFacts;
use mig_model::inventory::Problem;

use super::runtime::CdiSetting;
use crate::api::Right;
use crate::nvml::RESET_ADVICE;
use crate::readiness::{Effect, HostCondition, HostSubject};
use crate::slices::CounterSupport;

/// A line of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub subject: &'static str,
    /// How it stands.
    pub verdict: Verdict,
    /// What was found.
    pub text: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// How a thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is as it should be.
    Good,
    /// It is not, and something will not work.
    Missing,
    /// It cannot be told from here, or is good to know.
    Open,
}

/// All that was seen.
#[derive(Debug)]
pub struct Facts {
    /// On this host.
    pub host: HostFacts,
    /// In the cluster.
    pub cluster: ClusterFacts,
}

/// What was seen on this host.
#[derive(Debug)]
pub struct HostFacts {
    /// libnvidia-ml.so.1, or why there is none.
    pub library: Result<PathBuf, String>,
    /// What NVML says, or why it says nothing.
    pub hardware: Result<NodeFacts, String>,
    /// GPUs that the kernel lists and NVML does not.
    pub missing_gpus: Vec<Problem>,
    /// What keeps claims from being prepared or containers from working: the same that a running driver reports.
    pub conditions: Vec<HostCondition>,
    /// Host path of nvidia-cdi-hook.
    pub hook: String,
    /// Directories that are written to.
    pub directories: Vec<DirectoryFacts>,
    /// The mode of NVIDIA's container runtime, and the file that says so; nothing where there is none or it is not visible.
    pub nvidia_mode: Option<(PathBuf, String)>,
    /// The container runtime's word on CDI.
    pub cdi: CdiSetting,
}

/// A directory that the driver writes to.
#[derive(Debug)]
pub struct DirectoryFacts {
    /// What for.
    pub subject: &'static str,
    /// Where.
    pub path: PathBuf,
    /// Whether it is there already.
    pub is_there: bool,
    /// Why it cannot be written, if so.
    pub problem: Option<String>,
    /// What to do then.
    pub remedy: &'static str,
}

/// What was seen of the cluster.
#[derive(Debug)]
pub enum ClusterFacts {
    /// Nobody was asked, and why.
    Unasked(String),
    /// The account's rights only.
    Rights(Vec<(Right, Result<bool, String>)>),
    /// Everything.
    All {
        /// Version of the API server, or why it does not answer.
        version: Result<String, String>,
        /// The Node object: its name and whether it could be read; `None` where no name was given.
        node: Option<(String, Result<(), String>)>,
        /// Each right, whether it was given, or why it cannot be told.
        rights: Vec<(Right, Result<bool, String>)>,
        /// What the API server does with counters; `None` where it was not asked.
        counters: Option<Result<CounterSupport, String>>,
    },
}

fn finding(
    subject: &'static str,
    verdict: Verdict,
    text: impl Into<String>,
    remedy: Option<&str>,
) -> Finding {
    Finding { subject, verdict, text: text.into(), remedy: remedy.map(str::to_owned) }
}

fn good(subject: &'static str, text: impl Into<String>) -> Finding {
    finding(subject, Verdict::Good, text, None)
}

fn missing(subject: &'static str, text: impl Into<String>, remedy: &str) -> Finding {
    finding(subject, Verdict::Missing, text, Some(remedy))
}

fn open(subject: &'static str, text: impl Into<String>, remedy: Option<&str>) -> Finding {
    finding(subject, Verdict::Open, text, remedy)
}

/// What there is to say, in the order in which a host is set up.
#[must_use]
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let mut all = driver(&facts.host);
    all.extend(containers(&facts.host));
    all.extend(directories(&facts.host.directories));
    all.push(runtime(&facts.host.cdi));
    all.extend(facts.host.nvidia_mode.as_ref().map(|(file, mode)| nvidia_runtime(file, mode)));
    all.extend(cluster(&facts.cluster));
    all
}

fn driver(host: &HostFacts) -> Vec<Finding> {
    const LIBRARY: &str = "NVIDIA driver";
    const GPUS: &str = "GPUs";
    let library = match &host.library {
        Ok(path) => path,
        Err(reason) => {
            let remedy = "install the NVIDIA driver on this host (https://docs.nvidia.com/datacenter/tesla/); where it is there \
                          already, but elsewhere, name the directory that has its files: --driver-root /run/nvidia/driver with \
                          the GPU Operator's driver container";
            // The reason has its own remedy at its end, which is shorter than this one.
            let reason = reason.split(';').next().unwrap_or_default();
            let gpus = open(GPUS, "cannot be told without the NVIDIA driver", None);
            return vec![missing(LIBRARY, reason, remedy), gpus];
        }
    };
    match &host.hardware {
        Err(reason) => {
            let remedy = "run `nvidia-smi` on the host: it must list the GPUs. In a container, the GPUs' device nodes must be \
                          given to it: by runtimeClassName, by nriPlugin, or by privileged=true with runtimeClassName=\"\" (docs/compatibility.md)";
            let text = reason.split("; `nvidia-smi`").next().unwrap_or_default();
            let mut all = vec![
                missing(LIBRARY, format!("{} does not work: {text}", library.display()), remedy),
                open(GPUS, "cannot be told before the NVIDIA driver works", None),
            ];
            all.extend(missing_gpus(GPUS, &host.missing_gpus));
            all
        }
        Ok(facts) => {
            let version = facts.driver_version.as_deref().unwrap_or("unknown");
            let mut all = vec![good(LIBRARY, format!("version {version}, {}", library.display()))];
            all.extend(facts.unknown.iter().map(|it| open(LIBRARY, it.to_string(), None)));
            all.extend(gpus(GPUS, facts));
            all.extend(missing_gpus(GPUS, &host.missing_gpus));
            all
        }
    }
}

/// GPUs that the kernel lists and this process lacks. The remedy is the sentence after the first.
fn missing_gpus(subject: &'static str, gpus: &[Problem]) -> impl Iterator<Item = Finding> {
    gpus.iter().map(ToString::to_string).map(move |line| match line.split_once(". ") {
        Some((text, remedy)) => missing(subject, text, remedy),
        None => missing(subject, line, "`nvidia-smi` and the kernel log on the host tell more"),
    })
}

fn gpus(subject: &'static str, facts: &NodeFacts) -> Vec<Finding> {
    let mut all = Vec::new();
    for skipped in &facts.skipped {
        let text = format!("GPU {} is not offered: {}", skipped.index, skipped.reason);
        all.push(missing(subject, text, "`nvidia-smi -q` and the kernel's log on the host tell more"));
    }
    for gpu in &facts.gpus {
        let text = |it| format!("{} ({}): {it}; it is offered as far as that allows", gpu.pci, gpu.product());
        all.extend(gpu.unknown.iter().map(|it| open(subject, text(it), None)));
    }
    let with_mig = facts.gpus.iter().filter(|it| it.cuttable().is_some()).count();
    match (facts.gpus.len(), with_mig) {
        (0, _) => {
            all.push(missing(subject, "NVML lists none", "nothing to do on a node that has no NVIDIA GPU"))
        }
        (count, 0) => {
            all.push(open(subject, format!("{count}, none with MIG: they are offered whole"), None));
        }
        (count, with_mig) => all.push(good(subject, format!("{count}, {with_mig} of them with MIG"))),
    }
    let needs_reset = |it: &&mig_model::facts::GpuFacts| {
        it.cuttable().is_some_and(|mig| !mig.resetless && !mig.mode.current)
    };
    for gpu in facts.gpus.iter().filter(needs_reset) {
        let text = format!(
            "{} ({}) has MIG mode off and cannot switch it without a reset: it is offered whole",
            gpu.pci,
            gpu.product()
        );
        let remedy = format!(
            "to have it cut: run `nvidia-smi -i {} -mig 1` on the node, then {RESET_ADVICE}",
            gpu.index
        );
        all.push(open(subject, text, Some(&remedy)));
    }
    all
}

fn containers(host: &HostFacts) -> Vec<Finding> {
    let about = |subject: &'static str, subjects: &[HostSubject]| -> Vec<Finding> {
        let conditions = host.conditions.iter().filter(|it| subjects.contains(&it.subject));
        conditions.map(|it| of_condition(subject, it)).collect()
    };
    let mut all = about("nvidia-cdi-hook", &[HostSubject::Hooks]);
    if all.is_empty() {
        all.push(good("nvidia-cdi-hook", host.hook.as_str()));
    }
    if host.library.is_err() {
        all.push(open("device nodes", "come with the NVIDIA driver", None));
        return all;
    }
    let lacks = about("containers", &[HostSubject::DriverFiles, HostSubject::CommonEdits]);
    if lacks.is_empty() {
        all.push(good("containers", "find device nodes, libraries and programs of the driver"));
    }
    all.extend(lacks);
    all.extend(about("MIG access", &[HostSubject::MigAccess]));
    all
}

fn of_condition(subject: &'static str, condition: &HostCondition) -> Finding {
    match condition.effect {
        Effect::MayRefuse | Effect::Degraded => {
            open(subject, condition.text.as_str(), Some(&condition.remedy))
        }
        _ => missing(subject, condition.text.as_str(), &condition.remedy),
    }
}

fn directories(directories: &[DirectoryFacts]) -> impl Iterator<Item = Finding> {
    directories.iter().map(|it| match &it.problem {
        None if it.is_there => good(it.subject, format!("{}", it.path.display())),
        None => good(it.subject, format!("{}: not there yet, the driver makes it", it.path.display())),
        Some(problem) => missing(it.subject, format!("{}: {problem}", it.path.display()), it.remedy),
    })
}

fn runtime(cdi: &CdiSetting) -> Finding {
    const SUBJECT: &str = "container runtime";
    match cdi {
        CdiSetting::On { reason } => good(SUBJECT, format!("CDI is on: {reason}")),
        CdiSetting::Off { file } => missing(
            SUBJECT,
            format!("CDI is off: {} says enable_cdi = false", file.display()),
            "set `enable_cdi = true` there and restart containerd; without CDI no container gets its GPU",
        ),
        CdiSetting::Unset { file } => open(
            SUBJECT,
            format!(
                "{} does not say whether CDI is on: containerd 2 has it on, containerd 1.7 off",
                file.display()
            ),
            Some(
                "with containerd 1.7, set `enable_cdi = true` under [plugins.\"io.containerd.grpc.v1.cri\"] and restart it",
            ),
        ),
        CdiSetting::Unseen => open(
            SUBJECT,
            "its configuration is not visible from here, so it cannot be told whether CDI is on",
            Some(
                "containerd 2 and CRI-O have it on; with containerd 1.7 /etc/containerd/config.toml needs `enable_cdi = true` \
                 under [plugins.\"io.containerd.grpc.v1.cri\"]",
            ),
        ),
    }
}

/// Whether NVIDIA's runtime can give the driver's own container its CDI device. No fault of its own: a privileged pod does not
/// need it.
fn nvidia_runtime(file: &Path, mode: &str) -> Finding {
    const SUBJECT: &str = "NVIDIA runtime";
    let text = format!("{} says mode = {mode:?}", file.display());
    match mode {
        "auto" | "cdi" | "jit-cdi" => good(SUBJECT, text),
        _ => open(
            SUBJECT,
            format!(
                "{text}, in which it gives no CDI devices: with the runtime class nvidia the driver's pod does not start"
            ),
            Some(
                "set mode = \"auto\" there, or install the chart with privileged=true and runtimeClassName=\"\", which needs no \
                 runtime class",
            ),
        ),
    }
}

fn cluster(facts: &ClusterFacts) -> Vec<Finding> {
    const SERVER: &str = "API server";
    match facts {
        ClusterFacts::Unasked(reason) => vec![open(
            SERVER,
            format!("not asked: {reason}"),
            Some(
                "run the check in the driver's pod (`kubectl -n dra-driver-mig exec POD -- dra-driver-mig check`), or give \
                 --kubeconfig FILE --node-name NODE; the cluster has to be Kubernetes 1.34 or later",
            ),
        )],
        ClusterFacts::Rights(granted) => rights(granted),
        ClusterFacts::All { version: Err(reason), .. } => vec![missing(
            SERVER,
            format!("does not answer: {reason}"),
            "its address is in the kubeconfig, or in a pod in KUBERNETES_SERVICE_HOST; a NetworkPolicy must let the pod reach \
             it, also at the port behind the service (value networkPolicy.apiServerPorts)",
        )],
        ClusterFacts::All { version: Ok(version), node, rights: granted, counters } => {
            let mut all = vec![server(SERVER, version)];
            match node {
                None => all.push(open("Node object", "no --node-name was given", None)),
                Some((name, Ok(()))) => all.push(good("Node object", name.as_str())),
                Some((name, Err(reason))) => all.push(missing(
                    "Node object",
                    format!("{name}: {reason}"),
                    "--node-name must be the name that `kubectl get nodes` has for this node",
                )),
            }
            all.extend(rights(granted));
            all.extend(counters.as_ref().map(gate));
            all
        }
    }
}

/// A version such as `v1.35.6`, or `v1.34.1+k3s1`; one that is not understood is not judged.
fn server(subject: &'static str, version: &str) -> Finding {
    let number = |part: &str| -> Option<u32> {
        let end = part.find(|it: char| !it.is_ascii_digit()).unwrap_or(part.len());
        part[..end].parse().ok()
    };
    let mut parts = version.trim_start_matches('v').splitn(3, '.').map(number);
    let (major, minor, patch) = (parts.next().flatten(), parts.next().flatten(), parts.next().flatten());
    match (major, minor, patch) {
        (Some(1), Some(..=33), _) => missing(
            subject,
            format!("{version} is too old: it does not serve resource.k8s.io/v1"),
            "upgrade the cluster to Kubernetes 1.34 or later",
        ),
        (Some(1), Some(35), Some(0..6)) => open(
            subject,
            format!(
                "{version}: before 1.35.6 kube-scheduler dies of a claim with `allocationMode: All` for devices with counters"
            ),
            Some("upgrade kube-scheduler to 1.35.6 or later"),
        ),
        _ => good(subject, version),
    }
}

fn rights(granted: &[(Right, Result<bool, String>)]) -> Vec<Finding> {
    const SUBJECT: &str = "permissions";
    let named = |right: &Right| match right.group {
        "" => format!("{} {}", right.verb, right.resource),
        group => format!("{} {}.{group}", right.verb, right.resource),
    };
    let refused = || granted.iter().filter(|(_, it)| *it == Ok(false)).map(|(it, _)| it);
    let needed: Vec<String> = refused().filter(|it| it.lost_without().is_none()).map(named).collect();
    let mut all = Vec::new();
    if !needed.is_empty() {
        let remedy = "apply the RBAC rules that come with the driver (deploy/helm or deploy/manifests/rbac.yaml) for its \
                      service account";
        all.push(missing(SUBJECT, format!("this account may not {}", needed.join(", ")), remedy));
    }
    let optional = refused().filter_map(|it| Some((named(it), it.lost_without()?)));
    all.extend(optional.map(|(right, lost)| {
        let remedy =
            "the chart's values rbac.layoutLabels, rbac.deviceStatus and stateLabel grant what is optional";
        open(SUBJECT, format!("this account may not {right}: {lost}"), Some(remedy))
    }));
    if let Some(reason) = granted.iter().find_map(|(_, it)| it.as_ref().err()) {
        all.push(open(SUBJECT, format!("cannot be told: {reason}"), None));
    }
    if all.is_empty() {
        all.push(good(SUBJECT, format!("this account has all {} rights", granted.len())));
    }
    all
}

fn gate(counters: &Result<CounterSupport, String>) -> Finding {
    const SUBJECT: &str = "feature gate";
    match counters {
        Ok(CounterSupport::Pool) => good(
            SUBJECT,
            "kube-apiserver has DRAPartitionableDevices on; kube-scheduler must have it on, too",
        ),
        // The driver publishes by layout then, which is no fault.
        Ok(CounterSupport::SliceOnly) => open(
            SUBJECT,
            "kube-apiserver has DRAPartitionableDevices on, but its version (1.34) refuses devices that draw on the counters of \
             another slice, so only devices that cannot overlap are offered, as a layout says",
            Some(
                "to have every placement offered, upgrade kube-apiserver and kube-scheduler to 1.35.6 or later",
            ),
        ),
        Ok(CounterSupport::Dropped) => open(
            SUBJECT,
            "kube-apiserver has DRAPartitionableDevices off: it drops the counters that keep overlapping MIG devices apart, so \
             only devices that cannot overlap are offered, as a layout says",
            Some(
                "to have every placement offered, start kube-apiserver and kube-scheduler with \
                 --feature-gates=DRAPartitionableDevices=true",
            ),
        ),
        Err(reason) => open(SUBJECT, format!("DRAPartitionableDevices cannot be told: {reason}"), None),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
