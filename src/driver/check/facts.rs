//! What was gathered, as data.

use std::path::PathBuf;

use mig_model::facts::NodeFacts;
use mig_model::inventory::Problem;
use mig_model::slices::{CounterSupport, Mode};

use super::finding::Subject;
use super::runtime::CdiSetting;
use crate::api::Right;
use crate::cdi::DisabledHooks;
use crate::layout::StateLabel;
use crate::mig_node::MigNodeSwitch;
use crate::readiness::HostCondition;

/// What the operator has turned off or chosen, as far as the check depends on it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What is published.
    pub mode: Mode,
    /// Whether the node label that answers is written.
    pub state_label: StateLabel,
    /// Whether the node's MigNode is watched and written.
    pub mig_node: MigNodeSwitch,
    /// Hooks that CDI specs leave out.
    pub disabled_hooks: DisabledHooks,
}

/// All that was seen.
#[derive(Debug)]
pub struct Facts {
    /// What the operator has chosen.
    pub settings: Settings,
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
    pub subject: Subject,
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
    /// The API server was not asked, and why.
    NotRead(String),
    /// The account's rights only.
    Rights(Vec<(Right, Result<bool, String>)>),
    /// Everything.
    All {
        /// Version of the API server, or why it does not answer.
        version: Result<String, String>,
        /// The Node object: its name and whether it could be read; `None` where no name was given.
        node: Option<(String, Result<(), String>)>,
        /// Each right, whether it was given, or why the answer is unknown.
        rights: Vec<(Right, Result<bool, String>)>,
        /// What the API server does with counters; `None` where it was not asked.
        counters: Option<Result<CounterSupport, String>>,
    },
}
