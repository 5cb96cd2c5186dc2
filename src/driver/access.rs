//! Which GPUs the kernel lists and this process does not see, and whether it may create MIG instances.
//!
//! A container sees the GPUs whose device nodes it was given when it was created. NVML does not mention the others, so the
//! kernel's list is read as well.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use mig_model::facts::NodeFacts;
use mig_model::inventory::Problem;

use crate::cdi::{CapNode, KernelDevices, KernelGpu};
use crate::readiness::{Effect, HostCondition, HostSubject};

/// What the kernel lists, and which of the nodes are here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceAccess {
    /// What the kernel lists.
    pub kernel: KernelDevices,
    /// Minor numbers of GPUs that have no device node here.
    absent: BTreeSet<u32>,
    /// Whether `/dev/nvidiactl` is here.
    has_control: bool,
    /// The node that permits MIG instances to be created.
    mig_config: DeviceFile,
}

/// How a device node is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum DeviceFile {
    /// It is not needed: the kernel does not list it.
    #[default]
    Unlisted,
    /// It is not here.
    Absent,
    /// It is here with numbers that the kernel has given to something else since.
    Outdated,
    /// It is here.
    Present,
}

/// What of it an operator has to know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccessReport {
    /// GPUs that the kernel lists and NVML does not.
    pub missing: Vec<Problem>,
    /// Why NVML may refuse to create and destroy MIG instances, if so. The kernel module permits it to a process that has
    /// opened this node or has CAP_SYS_ADMIN (`rmclientIsCapableOrAdmin` in NVIDIA's open-gpu-kernel-modules), so that this alone
    /// withholds nothing.
    pub mig_denied: Option<HostCondition>,
}

impl DeviceAccess {
    /// Reads `/proc` and looks for the nodes below `dev_root`. Opens no device.
    #[must_use]
    pub fn look(proc_root: &Path, dev_root: &Path) -> Self {
        let kernel = KernelDevices::read(proc_root);
        let node = |name: &str| dev_root.join("dev").join(name);
        let minors = kernel.gpus.iter().map(|it| it.minor);
        let absent = minors.filter(|it| !is_node(&node(&format!("nvidia{it}")))).collect();
        let mig_config =
            kernel.mig_config.map_or(DeviceFile::Unlisted, |it| capability(&node(&cap_name(it)), it));
        Self { absent, has_control: is_node(&node("nvidiactl")), mig_config, kernel }
    }

    /// GPUs that the kernel lists and NVML does not, by PCI address. One that NVML counts and cannot describe is not among them.
    fn unseen<'a>(&'a self, facts: &'a NodeFacts) -> impl Iterator<Item = &'a KernelGpu> {
        let is_seen = |it: &&KernelGpu| {
            let has_uuid = |uuid: &Option<String>| uuid.is_some() && *uuid == it.uuid;
            facts.gpus.iter().any(|gpu| gpu.pci == it.pci || has_uuid(&Some(gpu.uuid.clone())))
                || facts.skipped.iter().any(|gpu| has_uuid(&gpu.uuid))
        };
        let unseen: Vec<&KernelGpu> = self.kernel.gpus.iter().filter(|it| !is_seen(it)).collect();
        // Those that NVML counts and has not named yet may be these.
        let unnamed = facts.skipped.iter().filter(|it| it.uuid.is_none()).count();
        let is_explained = unseen.len() <= unnamed;
        unseen.into_iter().filter(move |_| !is_explained)
    }

    /// True where NVML shows every GPU that the kernel lists.
    #[must_use]
    pub fn shows_all(&self, facts: &NodeFacts) -> bool {
        self.unseen(facts).next().is_none()
    }

    /// True where a GPU that NVML does not show has its node here, so that another look may find it.
    #[must_use]
    pub fn may_find_more(&self, facts: &NodeFacts) -> bool {
        self.unseen(facts).any(|it| !self.absent.contains(&it.minor))
    }

    /// True where a container that was created now would get nodes for GPUs which this one lacks.
    #[must_use]
    pub fn lacks_nodes(&self) -> bool {
        !self.kernel.gpus.is_empty() && (!self.has_control || !self.absent.is_empty())
    }

    /// What an operator has to know. `facts` is what NVML says, if it is open.
    #[must_use]
    pub fn report(&self, facts: Option<&NodeFacts>) -> AccessReport {
        let nothing = NodeFacts::default();
        let unseen = self.unseen(facts.unwrap_or(&nothing));
        let missing =
            unseen.map(|it| Problem { gpu: it.pci.to_string(), reason: self.reason(it, facts.is_some()) });
        let has_mig = facts.is_some_and(|it| it.gpus.iter().any(|gpu| gpu.mig.is_some()));
        AccessReport { missing: missing.collect(), mig_denied: self.mig_denied().filter(|_| has_mig) }
    }

    /// Why NVML does not show a GPU, as far as can be known, and what to do.
    fn reason(&self, gpu: &KernelGpu, is_open: bool) -> String {
        let minor = gpu.minor;
        if self.absent.contains(&minor) {
            return format!(
                "the kernel lists it, but /dev/nvidia{minor} is not here, so NVML does not show it. In the driver's pod: delete \
                 the pod, and the init container of the new one passes the node on. On a host, or with a privileged pod: \
                 `nvidia-modprobe -c {minor}` on the host"
            );
        }
        if !is_open {
            return "the kernel lists it, but NVML is not open".to_owned();
        }
        format!(
            "the kernel lists it and /dev/nvidia{minor} is here, but NVML does not show it: see `nvidia-smi` and the kernel log \
             on the host. If it works there, delete this pod, so that NVML is opened again"
        )
    }

    fn mig_denied(&self) -> Option<HostCondition> {
        let name = cap_name(self.kernel.mig_config?);
        let state = match self.mig_config {
            DeviceFile::Unlisted | DeviceFile::Present => return None,
            DeviceFile::Absent => "is not here",
            DeviceFile::Outdated => "has numbers from before the NVIDIA module was loaded again",
        };
        Some(HostCondition {
            subject: HostSubject::MigAccess,
            effect: Effect::MayRefuse,
            text: format!("/dev/{name}, which permits it, {state}; CAP_SYS_ADMIN may be enough"),
            remedy: "in the driver's pod: delete the pod, and the init container of the new one passes the node on. On a host, or \
                     with a privileged pod: `nvidia-modprobe -f /proc/driver/nvidia/capabilities/mig/config` on the host"
                .to_owned(),
        })
    }
}

fn cap_name(cap: CapNode) -> String {
    format!("nvidia-caps/nvidia-cap{}", cap.minor)
}

fn is_node(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|it| it.file_type().is_char_device())
}

/// Numbers are compared where the file is a node itself: a link can point anywhere.
fn capability(path: &PathBuf, cap: CapNode) -> DeviceFile {
    if !is_node(path) {
        return DeviceFile::Absent;
    }
    let numbers = |it: &Metadata| (rustix::fs::major(it.rdev()), rustix::fs::minor(it.rdev()));
    let own = std::fs::symlink_metadata(path).ok().filter(|it| it.file_type().is_char_device());
    match own {
        Some(own) if numbers(&own) != (cap.major, cap.minor) => DeviceFile::Outdated,
        _ => DeviceFile::Present,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use mig_model::facts::SkippedGpu;

    fn gpu(pci: &str, minor: u32) -> KernelGpu {
        KernelGpu { pci: pci.parse().unwrap(), minor, uuid: Some(format!("GPU-{minor}")) }
    }

    /// Two GPUs, of which the second has no node here.
    fn access() -> DeviceAccess {
        let gpus = vec![gpu("0000:3b:00.0", 0), gpu("0000:86:00.0", 1)];
        let kernel = KernelDevices { gpus, ..KernelDevices::default() };
        DeviceAccess { kernel, absent: [1].into(), has_control: true, mig_config: DeviceFile::Unlisted }
    }

    fn skipped(uuid: Option<&str>) -> SkippedGpu {
        SkippedGpu {
            index: 0,
            uuid: uuid.map(str::to_owned),
            reason: "lost".to_owned(),
            is_gone: true,
            is_for_good: false,
        }
    }

    fn names(report: &AccessReport) -> Vec<&str> {
        report.missing.iter().map(|it| it.gpu.as_str()).collect()
    }

    #[test]
    fn a_gpu_without_a_node_is_missing_with_the_pod_as_the_remedy_and_one_with_a_node_with_the_host() {
        let report = access().report(Some(&NodeFacts::default()));
        assert_eq!(names(&report), ["0000:3b:00.0", "0000:86:00.0"]);
        assert!(report.missing[0].reason.contains("see `nvidia-smi`"), "{}", report.missing[0]);
        assert!(report.missing[1].reason.contains("/dev/nvidia1 is not here"), "{}", report.missing[1]);
        assert!(report.missing[1].reason.contains("delete the pod"), "{}", report.missing[1]);
    }

    #[test]
    fn a_gpu_that_nvml_counts_and_cannot_describe_is_not_missing_as_well() {
        let mut facts = NodeFacts { skipped: vec![skipped(Some("GPU-0"))], ..NodeFacts::default() };
        assert_eq!(names(&access().report(Some(&facts))), ["0000:86:00.0"]);
        facts.skipped.push(skipped(None));
        assert_eq!(names(&access().report(Some(&facts))), Vec::<&str>::new(), "it may be the unnamed one");
    }

    #[test]
    fn another_look_may_find_only_a_gpu_that_has_its_node_here() {
        let facts = NodeFacts { skipped: vec![skipped(Some("GPU-0"))], ..NodeFacts::default() };
        assert!(access().may_find_more(&NodeFacts::default()));
        assert!(!access().may_find_more(&facts), "the one that is left has no node");
        assert!(access().lacks_nodes());
        assert!(!DeviceAccess::default().lacks_nodes(), "nothing is lacking where the kernel lists nothing");
    }

    #[test]
    fn the_node_that_permits_mig_is_absent_present_or_of_another_module() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nvidia-cap1");
        let cap = CapNode { major: 237, minor: 1, mode: 0o400 };
        assert_eq!(capability(&path, cap), DeviceFile::Absent);
        symlink("/dev/null", &path).unwrap();
        assert_eq!(capability(&path, cap), DeviceFile::Present, "a link is taken as it is");
        let null = PathBuf::from("/dev/null");
        assert_eq!(capability(&null, cap), DeviceFile::Outdated);
        assert_eq!(capability(&null, CapNode { major: 1, minor: 3, mode: 0o666 }), DeviceFile::Present);
    }
}
