//! Turns a prepared device into its CDI name and its container edits. Pure.
//!
//! Every text that ends in a path, a file name or a CDI identifier is checked here, even if a caller checked it before.

use std::collections::BTreeMap;

use crate::cdi::root::Root;
use crate::cdi::spec::{ContainerEdits, DeviceNode, SpecError};

/// The CDI class of claims.
const CLASS: &str = "claim";
/// The CDI class of what the driver's own container gets.
const MANAGEMENT: &str = "management";
/// A Kubernetes UID has 36 characters; nothing longer than a DNS label is one.
pub(super) const MAX_NAME: usize = 63;

/// The CDI kind of this driver's specs, `<driver name>/claim`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    vendor: String,
}

/// The device nodes that give a container one GPU or one MIG instance of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceNodes {
    /// Minor number of the GPU (`nvmlDeviceGetMinorNumber`), which is not its index.
    pub parent_minor: u32,
    /// Group that a process needs to use the GPU's node, where the host does not let everyone use it.
    pub parent_group: Option<u32>,
    /// The capability nodes of the instance; `None` gives the whole GPU.
    pub mig: Option<MigCaps>,
    /// The capability node by which all MIG instances of the node can be seen, for adminAccess.
    pub monitor: Option<CapNode>,
}

/// The capability nodes of one MIG instance, as [`MigCaps::read`](crate::cdi::MigCaps::read) finds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MigCaps {
    /// Of the GPU instance.
    pub gpu_instance: CapNode,
    /// Of the compute instance.
    pub compute_instance: CapNode,
}

/// One `/dev/nvidia-caps/nvidia-cap<minor>`. It need not exist on the host: the runtime makes it in the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapNode {
    /// Major number of `nvidia-caps`; assigned when the kernel module is loaded.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits that the kernel module wants the node to have.
    pub mode: u32,
}

impl Kind {
    /// The kind for a DRA driver of this name. A driver name is a DNS subdomain; a CDI vendor must also start with a
    /// letter, so a name such as `1.example.com` is refused.
    pub fn of_driver(driver_name: &str) -> Result<Self, SpecError> {
        let chars = driver_name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        let starts = driver_name.starts_with(|c: char| c.is_ascii_alphabetic());
        let ends = driver_name.ends_with(|c: char| c.is_ascii_alphanumeric());
        if !(chars && starts && ends && driver_name.len() <= MAX_NAME) {
            let rule = "at most 63 letters, digits, '-', '_' and '.', starting with a letter, \
                        ending with a letter or digit; set another --driver-name";
            return Err(name_error("driver name", driver_name, rule));
        }
        Ok(Self { vendor: driver_name.to_owned() })
    }

    /// The name of the DRA driver.
    pub fn driver(&self) -> &str {
        &self.vendor
    }

    /// The one device of the management spec.
    pub const MANAGEMENT_DEVICE: &str = "all";

    /// The kind of the spec for the driver's own container, `<driver>/management`.
    #[must_use]
    pub fn management(&self) -> String {
        format!("{}/{MANAGEMENT}", self.vendor)
    }

    /// The id by which the driver's own container asks for every GPU, `<driver>/management=all`.
    #[must_use]
    pub fn management_id(&self) -> String {
        format!("{}={}", self.management(), Self::MANAGEMENT_DEVICE)
    }

    /// The name of that spec's file.
    pub(super) fn management_file(&self) -> String {
        format!("{}-{MANAGEMENT}{FILE_SUFFIX}", self.vendor)
    }

    /// The id by which a container asks for a device: `<driver>/claim=<claim uid>-<device>`. It is a function of its
    /// arguments alone, so that the answer for a claim never changes.
    pub fn device_id(&self, claim_uid: &str, device: &str) -> Result<String, SpecError> {
        Ok(format!("{self}={}", device_name(claim_uid, device)?))
    }

    /// `<driver>-claim_<claim uid>.json`: how CDI's own library names transient spec files.
    pub(super) fn file_name(&self, claim_uid: &str) -> Result<String, SpecError> {
        check_claim_uid(claim_uid)?;
        Ok(format!("{}{claim_uid}{FILE_SUFFIX}", self.file_prefix()))
    }

    /// The claim UID in a name made by [`Kind::file_name`]; `None` for any other name.
    pub(super) fn claim_of_file<'a>(&self, file_name: &'a str) -> Option<&'a str> {
        let uid = file_name.strip_prefix(&self.file_prefix())?.strip_suffix(FILE_SUFFIX)?;
        check_claim_uid(uid).ok().map(|()| uid)
    }

    /// The annotation of a device that was given with adminAccess.
    pub(super) fn admin_access(&self) -> String {
        format!("{}/admin-access", self.vendor)
    }

    /// How the names of all of this driver's spec files begin.
    pub(super) fn file_prefix(&self) -> String {
        format!("{}-{CLASS}_", self.vendor)
    }
}

const FILE_SUFFIX: &str = ".json";

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{CLASS}", self.vendor)
    }
}

/// The name of a device within its spec file: `<claim uid>-<device>`.
pub(super) fn device_name(claim_uid: &str, device: &str) -> Result<String, SpecError> {
    check_claim_uid(claim_uid)?;
    let chars = device.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if !chars
        || device.is_empty()
        || device.len() > MAX_NAME
        || device.starts_with('-')
        || device.ends_with('-')
    {
        return Err(name_error("device name", device, "a DNS label, as every DRA device name is"));
    }
    Ok(format!("{claim_uid}-{device}"))
}

/// What a claim's device says for this driver alone, should the claim's record be lost.
pub(super) fn annotations(kind: &Kind, admin_access: bool) -> BTreeMap<String, String> {
    admin_access.then(|| (kind.admin_access(), "true".to_owned())).into_iter().collect()
}

/// The edits that give a container one device: the GPU's node and, for a MIG instance, its two capability nodes.
///
/// The GPU's node is left to the runtime to look up on the host, below `devices`. Permissions are `rw`: a container
/// needs no `m`, since the runtime makes the nodes.
pub fn device_edits(nodes: &DeviceNodes, devices: &Root) -> ContainerEdits {
    let parent = host_node(&parent_path(nodes.parent_minor), devices, nodes.parent_group);
    let caps = nodes.mig.map(|mig| [cap_node(mig.gpu_instance), cap_node(mig.compute_instance)]);
    let monitor = nodes.monitor.map(cap_node);
    ContainerEdits {
        device_nodes: [parent].into_iter().chain(caps.into_iter().flatten()).chain(monitor).collect(),
        additional_gids: nodes.parent_group.into_iter().collect(),
        ..ContainerEdits::default()
    }
}

/// Where a GPU's node is.
pub(super) fn parent_path(minor: u32) -> String {
    format!("/dev/nvidia{minor}")
}

/// A node that exists on the host below `devices`; the runtime reads type and numbers from it, from CDI 1.1 on also the mode. The
/// group, where one is needed, is named: otherwise the node would be that of the group of the container's user, or of root.
pub(super) fn host_node(path: &str, devices: &Root, group: Option<u32>) -> DeviceNode {
    let host_path = devices.host(path);
    DeviceNode {
        path: path.to_owned(),
        host_path: Some(host_path).filter(|host_path| host_path != path),
        permissions: Some("rw".to_owned()),
        gid: group,
        ..DeviceNode::default()
    }
}

/// A node that need not exist on the host: the runtime makes it from the numbers given.
pub(super) fn numbered_node(path: String, major: i64, minor: i64) -> DeviceNode {
    DeviceNode {
        path,
        r#type: Some("c".to_owned()),
        major: Some(major),
        minor: Some(minor),
        permissions: Some("rw".to_owned()),
        ..DeviceNode::default()
    }
}

/// A capability's node, by its numbers.
pub(super) fn cap_node(cap: CapNode) -> DeviceNode {
    let path = format!("/dev/nvidia-caps/nvidia-cap{}", cap.minor);
    DeviceNode { file_mode: Some(cap.mode), ..numbered_node(path, cap.major.into(), cap.minor.into()) }
}

pub(super) fn check_claim_uid(uid: &str) -> Result<(), SpecError> {
    let chars = uid.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if chars && !uid.is_empty() && uid.len() <= MAX_NAME && !uid.starts_with('-') && !uid.ends_with('-') {
        return Ok(());
    }
    let rule = "at most 63 letters, digits and '-', with a letter or digit at both ends";
    Err(name_error("claim UID", uid, rule))
}

/// A refused name, quoted shortened.
pub(super) fn name_error(what: &'static str, value: &str, rule: &'static str) -> SpecError {
    SpecError::Name { what, value: value.chars().take(80).collect(), rule }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "6f5b3c1e-0000-4000-8000-000000000001";

    #[test]
    fn ids_and_file_names_follow_from_driver_claim_and_device() {
        let kind = Kind::of_driver("mig.dra-driver.dev").unwrap();
        assert_eq!(kind.to_string(), "mig.dra-driver.dev/claim");
        let id = kind.device_id(UID, "gpu-0000-3b-00-mig-1g-10gb-6").unwrap();
        assert_eq!(id, format!("mig.dra-driver.dev/claim={UID}-gpu-0000-3b-00-mig-1g-10gb-6"));
        let file = kind.file_name(UID).unwrap();
        assert_eq!(file, format!("mig.dra-driver.dev-claim_{UID}.json"));
        assert_eq!(kind.claim_of_file(&file), Some(UID));
    }

    #[test]
    fn file_names_of_others_belong_to_no_claim() {
        let kind = Kind::of_driver("mig.dra-driver.dev").unwrap();
        for other in [
            "mig.dra-driver.dev-claim_.json",
            "mig.dra-driver.dev-claim_a.yaml",
            "mig.dra-driver.dev-claim_a b.json",
            "k8s.gpu.nvidia.com-claim_a.json",
            ".mig.dra-driver.dev-claim_a.json",
        ] {
            assert_eq!(kind.claim_of_file(other), None, "{other}");
        }
    }

    #[test]
    fn names_that_could_leave_their_place_are_refused() {
        let kind = Kind::of_driver("gpu.nvidia.com").unwrap();
        let long = "a".repeat(64);
        for uid in ["", "../../etc/x", "a/b", "a.b", "-a", "a-", "a\n", "ä", long.as_str()] {
            let error = kind.device_id(uid, "gpu-0").unwrap_err().to_string();
            assert!(error.contains("claim UID"), "{error}");
            assert!(kind.file_name(uid).is_err());
        }
        for device in ["", "GPU", "a/b", "a=b", "-a", "a-", "a.b", long.as_str()] {
            let error = kind.device_id(UID, device).unwrap_err().to_string();
            assert!(error.contains("device name"), "{error}");
        }
        for driver in ["", "1.example.com", "a/b", "a=b", "a.", ".a", "..", long.as_str()] {
            assert!(Kind::of_driver(driver).is_err(), "{driver}");
        }
    }

    #[test]
    fn an_error_quotes_a_hostile_name_shortened_and_escaped() {
        let error = Kind::of_driver(&"\n".repeat(1000)).unwrap_err().to_string();
        assert!(error.len() < 500 && !error.contains('\n'), "{error}");
    }

    #[test]
    fn a_whole_gpu_is_one_node() {
        let nodes = DeviceNodes { parent_minor: 3, parent_group: None, mig: None, monitor: None };
        let edits = device_edits(&nodes, &Root::same("/"));
        assert_eq!(edits.device_nodes.len(), 1);
        assert_eq!(edits.device_nodes[0].path, "/dev/nvidia3");
        assert_eq!(edits.device_nodes[0].host_path, None);
        assert!(edits.additional_gids.is_empty());
    }

    #[test]
    fn a_node_that_only_a_group_may_use_comes_with_that_group() {
        let cap = CapNode { major: 237, minor: 30, mode: 0o444 };
        let mig = Some(MigCaps { gpu_instance: cap, compute_instance: cap });
        let edits = device_edits(
            &DeviceNodes { parent_minor: 3, parent_group: Some(44), mig, monitor: None },
            &Root::same("/"),
        );
        assert_eq!(edits.device_nodes.iter().map(|it| it.gid).collect::<Vec<_>>(), [Some(44), None, None]);
        assert_eq!(edits.additional_gids, [44]);
    }

    #[test]
    fn a_mig_instance_is_the_parent_and_two_capability_nodes() {
        let cap = |minor| CapNode { major: 237, minor, mode: 0o444 };
        let mig = MigCaps { gpu_instance: cap(30), compute_instance: cap(31) };
        let nodes = DeviceNodes { parent_minor: 0, parent_group: None, mig: Some(mig), monitor: None };
        let edits = device_edits(&nodes, &Root::new("/driver-root", "/run/nvidia/driver"));
        let paths: Vec<_> = edits.device_nodes.iter().map(|n| n.path.as_str()).collect();
        assert_eq!(paths, ["/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap30", "/dev/nvidia-caps/nvidia-cap31"]);
        assert_eq!(edits.device_nodes[0].host_path.as_deref(), Some("/run/nvidia/driver/dev/nvidia0"));
        assert_eq!(edits.device_nodes[2].r#type.as_deref(), Some("c"));
        assert_eq!(edits.device_nodes[2].major, Some(237));
        assert_eq!(edits.device_nodes[2].minor, Some(31));
        assert_eq!(edits.device_nodes[2].file_mode, Some(292));
    }
}
