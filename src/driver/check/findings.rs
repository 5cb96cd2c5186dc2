//! Turns what was gathered into findings. Pure.

use std::path::Path;

use mig_model::inventory::Problem;

use mig_model::facts::NodeFacts;
use mig_model::slices::{CounterSupport, Mode};

use super::facts::{ClusterFacts, DirectoryFacts, Facts, HostFacts, Settings};
use super::finding::{Finding, Subject, Verdict};
use super::runtime::CdiSetting;
use crate::api::Right;
use crate::cdi::DisabledHooks;
use crate::layout::StateLabel;
use crate::mig_node::MigNodeSwitch;
use crate::nvml::RESET_ADVICE;
use crate::readiness::{Effect, HostCondition, HostSubject};

fn good(subject: Subject, text: impl Into<String>) -> Finding {
    Finding::new(subject, Verdict::Good, text, None)
}

fn missing(subject: Subject, text: impl Into<String>, remedy: &str) -> Finding {
    Finding::new(subject, Verdict::Missing, text, Some(remedy))
}

fn off(subject: Subject, text: impl Into<String>, remedy: Option<&str>) -> Finding {
    Finding::new(subject, Verdict::Off, text, remedy)
}

fn note(subject: Subject, text: impl Into<String>, remedy: Option<&str>) -> Finding {
    Finding::new(subject, Verdict::Note, text, remedy)
}

fn unknown(subject: Subject, text: impl Into<String>, remedy: Option<&str>) -> Finding {
    Finding::new(subject, Verdict::Unknown, text, remedy)
}

/// What there is to say, in the order in which a host is set up.
#[must_use]
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let mut all = driver(&facts.host);
    all.extend(containers(&facts.host, &facts.settings.disabled_hooks));
    all.extend(directories(&facts.host.directories));
    all.push(runtime(&facts.host.cdi));
    all.extend(facts.host.nvidia_mode.as_ref().map(|(file, mode)| nvidia_runtime(file, mode)));
    all.extend(cluster(&facts.cluster, &facts.settings));
    all
}

fn driver(host: &HostFacts) -> Vec<Finding> {
    const LIBRARY: Subject = Subject::NvidiaDriver;
    const GPUS: Subject = Subject::Gpus;
    let library = match &host.library {
        Ok(path) => path,
        Err(reason) => {
            let remedy = "install the NVIDIA driver on this host (https://docs.nvidia.com/datacenter/tesla/); where it is there \
                          already, but elsewhere, name the directory that has its files: --driver-root /run/nvidia/driver with \
                          the GPU Operator's driver container";
            // The reason has its own remedy at its end, which is shorter than this one.
            let reason = reason.split(';').next().unwrap_or_default();
            let gpus = unknown(GPUS, "unknown without the NVIDIA driver", None);
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
                unknown(GPUS, "unknown until the NVIDIA driver works", None),
            ];
            all.extend(missing_gpus(GPUS, &host.missing_gpus));
            all
        }
        Ok(facts) => {
            let version = facts.driver_version.as_deref().unwrap_or("unknown");
            let mut all = vec![good(LIBRARY, format!("version {version}, {}", library.display()))];
            all.extend(facts.unknown.iter().map(|it| note(LIBRARY, it.to_string(), None)));
            all.extend(gpus(GPUS, facts));
            all.extend(missing_gpus(GPUS, &host.missing_gpus));
            all
        }
    }
}

/// GPUs that the kernel lists and this process lacks. The remedy is the sentence after the first.
fn missing_gpus(subject: Subject, gpus: &[Problem]) -> impl Iterator<Item = Finding> {
    gpus.iter().map(ToString::to_string).map(move |line| match line.split_once(". ") {
        Some((text, remedy)) => missing(subject, text, remedy),
        None => missing(subject, line, "`nvidia-smi` and the kernel log on the host say more"),
    })
}

fn gpus(subject: Subject, facts: &NodeFacts) -> Vec<Finding> {
    let mut all = Vec::new();
    for skipped in &facts.skipped {
        let text = format!("GPU {} is not offered: {}", skipped.index, skipped.reason);
        all.push(missing(subject, text, "`nvidia-smi -q` and the kernel's log on the host say more"));
    }
    for gpu in &facts.gpus {
        let text = |it| format!("{} ({}): {it}; it is offered as far as that allows", gpu.pci, gpu.product());
        all.extend(gpu.unknown.iter().map(|it| note(subject, text(it), None)));
    }
    let with_mig = facts.gpus.iter().filter(|it| it.cuttable().is_some()).count();
    match (facts.gpus.len(), with_mig) {
        (0, _) => all.push(missing(
            subject,
            "NVML lists none",
            "nothing to do on a node that has no NVIDIA GPU; else run `nvidia-smi -L` on the host",
        )),
        (count, 0) => {
            all.push(note(subject, format!("{count}, none with MIG: they are offered whole"), None));
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
            "to offer MIG devices of it: run `nvidia-smi -i {} -mig 1` on the node, then {RESET_ADVICE}",
            gpu.index
        );
        all.push(note(subject, text, Some(&remedy)));
    }
    all
}

fn containers(host: &HostFacts, disabled: &DisabledHooks) -> Vec<Finding> {
    let about = |subject: Subject, subjects: &[HostSubject]| -> Vec<Finding> {
        let conditions = host.conditions.iter().filter(|it| subjects.contains(&it.subject));
        conditions.map(|it| of_condition(subject, it)).collect()
    };
    let mut all = about(Subject::CdiHook, &[HostSubject::Hooks]);
    if all.is_empty() {
        all.push(good(Subject::CdiHook, host.hook.as_str()));
    }
    if !disabled.0.is_empty() {
        let names: Vec<&str> = disabled.0.iter().map(|it| it.name()).collect();
        let text = format!("--disable-hooks leaves {} out of CDI specs", names.join(", "));
        all.push(off(Subject::CdiHook, text, None));
    }
    if host.library.is_err() {
        all.push(unknown(Subject::DeviceNodes, "unknown without the NVIDIA driver", None));
        return all;
    }
    let lacks = about(Subject::Containers, &[HostSubject::DriverFiles, HostSubject::CommonEdits]);
    if lacks.is_empty() {
        all.push(good(Subject::Containers, "get device nodes, libraries and programs of the NVIDIA driver"));
    }
    all.extend(lacks);
    all.extend(about(Subject::MigAccess, &[HostSubject::MigAccess]));
    all
}

fn of_condition(subject: Subject, condition: &HostCondition) -> Finding {
    match condition.effect {
        Effect::MayRefuse | Effect::Degraded => {
            note(subject, condition.text.as_str(), Some(&condition.remedy))
        }
        _ => missing(subject, condition.text.as_str(), &condition.remedy),
    }
}

fn directories(directories: &[DirectoryFacts]) -> impl Iterator<Item = Finding> {
    directories.iter().map(|it| match &it.problem {
        None if it.is_there => good(it.subject, format!("{}", it.path.display())),
        None => good(it.subject, format!("{}: not there yet, the driver creates it", it.path.display())),
        Some(problem) => missing(it.subject, format!("{}: {problem}", it.path.display()), it.remedy),
    })
}

fn runtime(cdi: &CdiSetting) -> Finding {
    const SUBJECT: Subject = Subject::ContainerRuntime;
    match cdi {
        CdiSetting::On { reason } => good(SUBJECT, format!("CDI is on: {reason}")),
        CdiSetting::Off { file } => missing(
            SUBJECT,
            format!("CDI is off: {} says enable_cdi = false", file.display()),
            "set `enable_cdi = true` there and restart containerd; without CDI no container gets its GPU",
        ),
        CdiSetting::Unset { file } => unknown(
            SUBJECT,
            format!(
                "{} does not say whether CDI is on: containerd 2 has it on, containerd 1.7 off",
                file.display()
            ),
            Some(
                "with containerd 1.7, set `enable_cdi = true` under [plugins.\"io.containerd.grpc.v1.cri\"] and restart it",
            ),
        ),
        CdiSetting::Unseen => unknown(
            SUBJECT,
            "its configuration is not visible from here, so it is unknown whether CDI is on",
            Some(
                "containerd 2 and CRI-O have it on; with containerd 1.7 /etc/containerd/config.toml needs `enable_cdi = true` \
                 under [plugins.\"io.containerd.grpc.v1.cri\"]",
            ),
        ),
    }
}

/// Whether NVIDIA's runtime can give the driver's own container its CDI device. No fault by itself: a privileged pod does not
/// need it.
fn nvidia_runtime(file: &Path, mode: &str) -> Finding {
    const SUBJECT: Subject = Subject::NvidiaRuntime;
    let text = format!("{} says mode = {mode:?}", file.display());
    match mode {
        "auto" | "cdi" | "jit-cdi" => good(SUBJECT, text),
        _ => note(
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

fn cluster(facts: &ClusterFacts, settings: &Settings) -> Vec<Finding> {
    const SERVER: Subject = Subject::ApiServer;
    match facts {
        ClusterFacts::NotRead(reason) => vec![unknown(
            SERVER,
            format!("not asked: {reason}"),
            Some(
                "run the check in the driver's pod (`kubectl -n dra-driver-mig exec POD -- dra-driver-mig check`), or give \
                 --kubeconfig FILE --node-name NODE; the cluster has to be Kubernetes 1.34 or later",
            ),
        )],
        ClusterFacts::Rights(granted) => rights(granted, settings),
        ClusterFacts::All { version: Err(reason), .. } => vec![missing(
            SERVER,
            format!("does not answer: {reason}"),
            "its address is in the kubeconfig, or in a pod in KUBERNETES_SERVICE_HOST; a NetworkPolicy must let the pod reach \
             it, also at the port behind the service (value networkPolicy.apiServerPorts)",
        )],
        ClusterFacts::All { version: Ok(version), node, rights: granted, counters } => {
            let mut all = vec![server(SERVER, version)];
            match node {
                None => all.push(unknown(Subject::Node, "not checked: no --node-name was given", None)),
                Some((name, Ok(()))) => all.push(good(Subject::Node, name.as_str())),
                Some((name, Err(reason))) => all.push(missing(
                    Subject::Node,
                    format!("{name}: {reason}"),
                    "--node-name must be the name that `kubectl get nodes` has for this node",
                )),
            }
            all.extend(rights(granted, settings));
            all.extend(gate(counters.as_ref(), settings.mode));
            all
        }
    }
}

/// A version such as `v1.35.6`, or `v1.34.1+k3s1`; one that is not understood is not judged.
fn server(subject: Subject, version: &str) -> Finding {
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
        (Some(1), Some(35), Some(0..6)) => note(
            subject,
            format!(
                "{version}: before 1.35.6 kube-scheduler dies of a claim with `allocationMode: All` for devices with counters"
            ),
            Some("upgrade kube-scheduler to 1.35.6 or later"),
        ),
        _ => good(subject, version),
    }
}

fn rights(granted: &[(Right, Result<bool, String>)], settings: &Settings) -> Vec<Finding> {
    const SUBJECT: Subject = Subject::Permissions;
    let named = |right: &Right| match right.group {
        "" => format!("{} {}", right.verb, right.resource),
        group => format!("{} {}.{group}", right.verb, right.resource),
    };
    let mut all = Vec::new();
    let has_label = settings.state_label == StateLabel::On;
    if !has_label {
        let text = "--state-label=off leaves the node label nvidia.com/mig.config.state to another program";
        all.push(off(Subject::StateLabel, text, None));
    }
    let has_mig_node = settings.mig_node == MigNodeSwitch::On;
    if !has_mig_node {
        let text =
            "--mig-node=off: the status of the node's MigNode is not written, and no demand is followed";
        all.push(off(Subject::MigNode, text, None));
    }
    let is_used = |right: &Right| match (right.resource, right.verb) {
        ("nodes", "patch") => has_label,
        ("mignodes" | "mignodes/status", _) => has_mig_node,
        _ => true,
    };
    let used: Vec<&(Right, Result<bool, String>)> = granted.iter().filter(|(it, _)| is_used(it)).collect();
    let refused = || used.iter().filter(|(_, it)| *it == Ok(false)).map(|(it, _)| it);
    let needed: Vec<String> = refused().filter(|it| it.lost_without().is_none()).map(named).collect();
    if !needed.is_empty() {
        let remedy = "apply the RBAC rules that come with the driver (deploy/helm or deploy/manifests/rbac.yaml) for its \
                      service account";
        all.push(missing(SUBJECT, format!("this account may not {}", needed.join(", ")), remedy));
    }
    // The driver works without these: who leaves them out of the rules does so on purpose.
    let optional = refused().filter_map(|it| Some((named(it), it.lost_without()?)));
    all.extend(optional.map(|(right, lost)| {
        let remedy = "to turn it on, grant the right: chart values rbac.layoutLabels, rbac.deviceStatus, \
                      stateLabel and migNode.enabled";
        off(SUBJECT, format!("{lost}: this account may not {right}"), Some(remedy))
    }));
    if let Some(reason) = used.iter().find_map(|(_, it)| it.as_ref().err()) {
        all.push(unknown(SUBJECT, format!("the API server does not say: {reason}"), None));
    }
    if !all.iter().any(|it| it.subject == SUBJECT) {
        all.push(good(SUBJECT, format!("this account has all {} rights", used.len())));
    }
    all
}

/// What the API server does with counters, and whether that is what the operator has chosen; nothing where it was not asked.
fn gate(counters: Option<&Result<CounterSupport, String>>, mode: Mode) -> Option<Finding> {
    const SUBJECT: Subject = Subject::FeatureGate;
    const UPGRADE: &str = "upgrade kube-apiserver and kube-scheduler to 1.35.6 or later";
    const TURN_ON: &str =
        "start kube-apiserver and kube-scheduler with --feature-gates=DRAPartitionableDevices=true";
    let (text, how) = match counters? {
        _ if mode == Mode::Layout => {
            let text = "--mode=layout publishes devices that cannot overlap, and needs no feature gate";
            return Some(off(SUBJECT, text, None));
        }
        Ok(CounterSupport::Pool) => {
            let text = "kube-apiserver has DRAPartitionableDevices on; kube-scheduler must have it on, too";
            return Some(good(SUBJECT, text));
        }
        Ok(CounterSupport::SliceOnly) => (
            "kube-apiserver has DRAPartitionableDevices on, but its version (1.34) refuses devices that draw on the counters of \
             another slice",
            UPGRADE,
        ),
        Ok(CounterSupport::Dropped) => (
            "kube-apiserver has DRAPartitionableDevices off: it drops the counters that keep overlapping MIG devices apart",
            TURN_ON,
        ),
        Err(reason) => {
            let text = format!("it is unknown whether DRAPartitionableDevices is on: {reason}");
            return Some(unknown(SUBJECT, text, None));
        }
    };
    Some(match mode {
        Mode::Partitionable => missing(
            SUBJECT,
            format!("{text}, which --mode=partitionable needs"),
            &format!("{how}; or remove --mode=partitionable, to publish by layout"),
        ),
        // The driver publishes by layout then, which is no fault.
        Mode::Auto | Mode::Layout => off(
            SUBJECT,
            format!("{text}, so only devices that cannot overlap are offered, as a layout says"),
            Some(&format!("to have every placement offered, {how}")),
        ),
    })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
