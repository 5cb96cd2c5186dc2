//! A result of the check, and what there is to check. Ids and statuses are part of `check -o json`. Pure.

use serde::Serialize;

/// One result, as `check -o json` prints it too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What was checked.
    #[serde(rename = "id")]
    pub subject: Subject,
    /// How it stands.
    #[serde(rename = "status")]
    pub verdict: Verdict,
    /// What was found, for people.
    pub text: String,
    /// What to do about it, for people.
    pub remedy: Option<String>,
}

/// How a thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// It is as it should be.
    #[serde(rename = "ok")]
    Good,
    /// It was turned off on purpose, by a flag, a chart value or a feature gate. The driver works without it.
    Off,
    /// Something that is good to know; the driver works.
    Note,
    /// It cannot be determined from here.
    Unknown,
    /// It is not as it should be, and something will not work.
    Missing,
}

/// What is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Subject {
    /// libnvidia-ml.so.1, and whether it works.
    NvidiaDriver,
    /// The GPUs.
    Gpus,
    /// The host's `nvidia-cdi-hook` and what it runs.
    CdiHook,
    /// Device nodes of the NVIDIA driver, which are looked for once there is a driver.
    DeviceNodes,
    /// Files of the NVIDIA driver for containers.
    Containers,
    /// The right to create MIG instances.
    MigAccess,
    /// The directory in which the kubelet looks for plugins.
    KubeletRegistry,
    /// This driver's directory below the kubelet's.
    PluginDirectory,
    /// The directory of CDI specs.
    CdiDirectory,
    /// CDI in the container runtime.
    ContainerRuntime,
    /// The mode of NVIDIA's container runtime.
    NvidiaRuntime,
    /// The API server.
    ApiServer,
    /// The Node object.
    Node,
    /// The rights of this account.
    Permissions,
    /// The node label that answers how a layout stands.
    StateLabel,
    /// The MigNode of this node.
    MigNode,
    /// The feature gate DRAPartitionableDevices.
    FeatureGate,
}

impl Subject {
    /// All of them, in the order in which a node is set up.
    pub const ALL: [Self; 17] = [
        Self::NvidiaDriver,
        Self::Gpus,
        Self::CdiHook,
        Self::DeviceNodes,
        Self::Containers,
        Self::MigAccess,
        Self::KubeletRegistry,
        Self::PluginDirectory,
        Self::CdiDirectory,
        Self::ContainerRuntime,
        Self::NvidiaRuntime,
        Self::ApiServer,
        Self::Node,
        Self::Permissions,
        Self::StateLabel,
        Self::MigNode,
        Self::FeatureGate,
    ];

    /// Its name in the list.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NvidiaDriver => "NVIDIA driver",
            Self::Gpus => "GPUs",
            Self::CdiHook => "nvidia-cdi-hook",
            Self::DeviceNodes => "device nodes",
            Self::Containers => "containers",
            Self::MigAccess => "MIG access",
            Self::KubeletRegistry => "kubelet registry",
            Self::PluginDirectory => "plugin directory",
            Self::CdiDirectory => "CDI directory",
            Self::ContainerRuntime => "container runtime",
            Self::NvidiaRuntime => "NVIDIA runtime",
            Self::ApiServer => "API server",
            Self::Node => "Node object",
            Self::Permissions => "permissions",
            Self::StateLabel => "state label",
            Self::MigNode => "MigNode",
            Self::FeatureGate => "feature gate",
        }
    }
}

impl Finding {
    pub(super) fn new(
        subject: Subject,
        verdict: Verdict,
        text: impl Into<String>,
        remedy: Option<&str>,
    ) -> Self {
        Self { subject, verdict, text: text.into(), remedy: remedy.map(str::to_owned) }
    }
}
