//! From a driver root to the part of a CDI spec that all containers share: control nodes, libraries, programs,
//! firmware, sockets and hooks. Compute only: nothing for displays, no `nvidia-modeset`.
//!
//! The list of files follows NVIDIA's container toolkit (`pkg/nvcdi/driver-nvml.go`, `internal/discover/ipc.go`).
//! Discovery reads the file system and nothing else; it starts no program and changes nothing.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::cdi::caps::read_major;
use crate::cdi::device::{host_node, numbered_node, parent_path};
use crate::cdi::group::{group_of_module, needed_group};
use crate::cdi::hooks::{HookInput, HookKind, HookSettings, Hooks};
use crate::cdi::libraries::{self, DriverFile, Libraries, join, parent};
use crate::cdi::missing::{Missing, MissingPart, Severity};
use crate::cdi::root::{Root, is_plain_name};
use crate::cdi::spec::{ContainerEdits, DeviceNode, Mount};
use crate::files::read_kernel;

/// A node that CUDA programs open besides their GPU's.
struct ControlNode {
    path: &'static str,
    severity: Severity,
    consequence: &'static str,
    /// The minor number, if the node belongs to `nvidia-uvm`.
    uvm_minor: Option<i64>,
}

/// The nodes that all containers get. Minor numbers: `uvm_common.h` of NVIDIA's open kernel modules.
const CONTROL_NODES: [ControlNode; 3] = [
    ControlNode {
        path: "/dev/nvidiactl",
        severity: Severity::Fatal,
        consequence: "no container could open the driver",
        uvm_minor: None,
    },
    ControlNode {
        path: "/dev/nvidia-uvm",
        severity: Severity::Fatal,
        consequence: "CUDA would fail to start in every container",
        uvm_minor: Some(0),
    },
    ControlNode {
        path: "/dev/nvidia-uvm-tools",
        severity: Severity::Degraded,
        consequence: "profilers and debuggers don't see unified memory events",
        uvm_minor: Some(1),
    },
];
/// The name of the unified memory driver in `/proc/devices`.
const UVM: &str = "nvidia-uvm";
/// The search path for programs, best first.
const PROGRAM_DIRECTORIES: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// The driver's programs; only the first is expected everywhere.
const PROGRAMS: [&str; 7] = [
    "nvidia-smi",
    "nvidia-debugdump",
    "nvidia-persistenced",
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
    "nvidia-imex",
    "nvidia-imex-ctl",
];
/// Sockets of the driver's daemons, below `/run` or else `/var/run`.
const SOCKETS: [&str; 2] = ["nvidia-persistenced/socket", "nvidia-fabricmanager/socket"];
/// Where the MPS control daemon has its pipes by default.
const MPS_DIRECTORY: &str = "/tmp/nvidia-mps";

const FILE_OPTIONS: [&str; 5] = ["ro", "nosuid", "nodev", "rbind", "rprivate"];
const SOCKET_OPTIONS: [&str; 5] = ["nosuid", "nodev", "rbind", "rprivate", "noexec"];
/// A kernel release or a firmware path is shorter than a page.
const MAX_KERNEL_TEXT: u64 = 4096;

/// Where the driver's files are, and what is known about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverRoot {
    /// Libraries, programs, firmware and sockets.
    pub files: Root,
    /// The tree whose `/dev` has the device nodes.
    pub devices: Root,
    /// The directory below `files` in which NVML was found, where that may be none of the usual ones.
    pub nvml_directory: Option<String>,
    /// The driver version from NVML, for example `550.54.15`; if absent, it is taken from the names of libraries.
    pub version: Option<String>,
    /// Where hooks and the programs that they need are on the host.
    pub hooks: HookSettings,
    /// `/proc`: the kernel release and device numbers are read from it.
    pub proc: PathBuf,
    /// `/sys`: the kernel's own firmware directory is read from it.
    pub sys: PathBuf,
}

impl DriverRoot {
    /// A driver installed on the host, seen by a process that runs on the host.
    pub fn on_host() -> Self {
        Self {
            files: Root::same("/"),
            devices: Root::same("/"),
            nvml_directory: None,
            version: None,
            hooks: HookSettings::default(),
            proc: "/proc".into(),
            sys: "/sys".into(),
        }
    }

    /// The group that a process needs to use a GPU's node, if any. Fails where the node is not below the device root, so that a
    /// claim fails with this text and not at container start.
    pub fn gpu_node_group(&self, parent_minor: u32) -> Result<Option<u32>, Missing> {
        let path = parent_path(parent_minor);
        match find_node(&self.devices, &path) {
            Some(node) => Ok(group_of_node(&node).or_else(|| group_of_module(&self.proc))),
            None => {
                let consequence = "the container could not open its GPU";
                Err(missing_node(&self.devices, &path, Severity::Fatal, consequence))
            }
        }
    }
}

/// What discovery finds: the edits, what is missing (worst first), and the paths whose change can change the answer.
pub(super) struct Discovery {
    pub(super) edits: ContainerEdits,
    pub(super) missing: Vec<Missing>,
    pub(super) watched: Vec<(Root, String)>,
}

/// Looks for everything.
pub(super) fn discover(root: &DriverRoot) -> Discovery {
    let (device_nodes, mut missing) =
        control_nodes(&root.devices, uvm_major(&root.proc), group_of_module(&root.proc));
    let mut additional_gids: Vec<u32> = device_nodes.iter().filter_map(|it| it.gid).collect();
    additional_gids.dedup();
    let mut edits = ContainerEdits { device_nodes, additional_gids, ..ContainerEdits::default() };
    edits.env.push("NVIDIA_VISIBLE_DEVICES=void".to_owned());

    let libraries = libraries::find(&root.files, root.nvml_directory.as_deref(), root.version.as_deref())
        .unwrap_or_else(|what| {
            missing.push(what);
            Libraries::default()
        });
    let mut watched = watched_paths(root, &libraries);
    let folders = unique(libraries.files.iter().map(|file| parent(&file.in_container).to_owned()));
    let input = HookInput { version: &libraries.version, links: &libraries.links, folders: &folders };
    let Hooks { hooks, missing: missing_hooks, watched: hook_files } = root.hooks.hooks(&input);
    let host = root.hooks.host();
    watched.extend(hook_files.into_iter().map(|path| (host.clone(), path)));
    missing.extend(missing_hooks);
    if !libraries.directories.is_empty() {
        missing.extend(missing_libraries(root, &libraries));
        edits.env.push(format!("NVIDIA_CTK_LIBCUDA_DIR={}", libraries.directories.join(":")));
        edits.mounts.extend(mounts(&root.files, &libraries.files, &FILE_OPTIONS));
        let makes_links = |args: &[String]| args.get(1).is_some_and(|a| a == HookKind::CreateSymlinks.name());
        if !hooks.iter().any(|hook| makes_links(&hook.args)) {
            edits.mounts.extend(mounts(&root.files, &links_as_files(&libraries), &FILE_OPTIONS));
        }
        edits.hooks = hooks;
    }

    let programs = programs(&root.files);
    if !programs.iter().any(|file| file.in_container.ends_with("/nvidia-smi")) {
        missing.push(missing_file(root, "nvidia-smi", "containers have no nvidia-smi"));
    }
    let firmware = firmware(root, &libraries.version);
    edits.mounts.extend(mounts(&root.files, &[programs, firmware].concat(), &FILE_OPTIONS));
    edits.mounts.extend(mounts(&root.files, &sockets(&root.files), &SOCKET_OPTIONS));
    missing.sort_by_key(|missing| missing.severity);
    Discovery { edits, missing, watched }
}

/// The control nodes. After a boot the nodes of `nvidia-uvm` are often not made before the first CUDA program runs;
/// its number then goes into the edits, and the runtime makes the node in the container, for everyone. `group` is what the
/// kernel module says of `nvidiactl`.
fn control_nodes(
    devices: &Root,
    uvm_major: Option<u32>,
    group: Option<u32>,
) -> (Vec<DeviceNode>, Vec<Missing>) {
    let mut nodes = Vec::new();
    let mut missing = Vec::new();
    for ControlNode { path, severity, consequence, uvm_minor } in CONTROL_NODES {
        if let Some(node) = find_node(devices, path) {
            let group = group_of_node(&node).or(group.filter(|_| uvm_minor.is_none()));
            nodes.push(host_node(path, devices, group));
        } else if let (Some(major), Some(minor)) = (uvm_major, uvm_minor) {
            nodes.push(numbered_node(path.to_owned(), major.into(), minor));
        } else {
            missing.push(missing_node(devices, path, severity, consequence));
        }
    }
    (nodes, missing)
}

/// The major number of the unified memory driver, if it is loaded.
pub(super) fn uvm_major(proc_root: &Path) -> Option<u32> {
    read_major(proc_root, UVM).ok()
}

/// A character device, if there is one. Links are followed as the container runtime will follow them, not below the
/// root: a link that does not work for it does not help.
fn find_node(devices: &Root, path: &str) -> Option<Metadata> {
    std::fs::metadata(devices.here(path)).ok().filter(|it| it.file_type().is_char_device())
}

fn group_of_node(node: &Metadata) -> Option<u32> {
    needed_group(node.mode(), node.gid())
}

fn missing_node(devices: &Root, path: &str, severity: Severity, consequence: &'static str) -> Missing {
    Missing {
        part: MissingPart::Driver,
        severity,
        what: format!("device node {path:?} not found (looked at {:?})", devices.here(path)),
        consequence,
        remedy: "run `nvidia-modprobe -u -c 0` on the host, which loads the kernel modules and makes the nodes, or set \
                 --dev-root to the tree whose /dev has them"
            .to_owned(),
    }
}

fn missing_file(root: &DriverRoot, name: &str, consequence: &'static str) -> Missing {
    Missing {
        part: MissingPart::Driver,
        severity: Severity::Degraded,
        what: format!("{name} not found below the driver root {:?}", root.files.here("/")),
        consequence,
        remedy: "install the whole driver, or set --driver-root to where it is".to_owned(),
    }
}

/// The two libraries without which the others are useless or blind.
fn missing_libraries(root: &DriverRoot, libraries: &Libraries) -> Vec<Missing> {
    let version = &libraries.version;
    let has =
        |name: &str| libraries.files.iter().any(|file| file.in_container.ends_with(&format!("/{name}")));
    let cuda = format!("libcuda.so.{version}");
    let nvml = format!("libnvidia-ml.so.{version}");
    let mut missing = Vec::new();
    if !has(&cuda) {
        let consequence = "CUDA would fail to start in every container";
        missing.push(Missing { severity: Severity::Fatal, ..missing_file(root, &cuda, consequence) });
    }
    if !has(&nvml) {
        missing.push(missing_file(
            root,
            &nvml,
            "nvidia-smi and everything else that uses NVML fails in containers",
        ));
    }
    missing
}

fn links_as_files(libraries: &Libraries) -> Vec<DriverFile> {
    let as_file = |link: &libraries::Link| DriverFile {
        in_container: link.in_container.clone(),
        resolved: link.resolved.clone(),
    };
    libraries.links.iter().map(as_file).collect()
}

fn programs(root: &Root) -> Vec<DriverFile> {
    let directories = unique(PROGRAM_DIRECTORIES.iter().filter_map(|dir| root.find_dir(dir)));
    let find = |name: &&str| {
        let paths = directories.iter().map(|dir| join(dir, name));
        paths
            .into_iter()
            .find_map(|path| Some(DriverFile { resolved: root.find_program(&path)?, in_container: path }))
    };
    PROGRAMS.iter().filter_map(find).collect()
}

/// `gsp*.bin` of this driver version, from the first of the kernel's firmware directories that has any.
fn firmware(root: &DriverRoot, version: &str) -> Vec<DriverFile> {
    if version.is_empty() {
        return Vec::new();
    }
    let own =
        kernel_text(root.sys.join("module/firmware_class/parameters/path")).filter(|p| p.starts_with('/'));
    let release =
        kernel_text(root.proc.join("sys/kernel/osrelease")).filter(|release| is_plain_name(release));
    // The last two are the same directories on most hosts, where /lib is a link, or not mounted here.
    let bases = ["/lib/firmware/updates", "/lib/firmware", "/usr/lib/firmware/updates", "/usr/lib/firmware"];
    let usual =
        bases.iter().flat_map(|base| [release.as_ref().map(|r| join(base, r)), Some((*base).to_owned())]);
    let directories = own.into_iter().chain(usual.flatten());
    let found =
        directories.filter_map(|dir| root.files.find_dir(&format!("{dir}/nvidia/{version}"))).map(|dir| {
            let names = root.files.names(&dir).into_iter();
            let paths =
                names.filter(|n| n.starts_with("gsp") && n.ends_with(".bin")).map(|name| join(&dir, &name));
            let file = |path: String| {
                Some(DriverFile { resolved: root.files.find_file(&path)?, in_container: path })
            };
            paths.filter_map(file).collect::<Vec<_>>()
        });
    found.into_iter().find(|files| !files.is_empty()).unwrap_or_default()
}

fn kernel_text(path: PathBuf) -> Option<String> {
    let text = String::from_utf8(read_kernel(&path, MAX_KERNEL_TEXT).ok()?).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn sockets(root: &Root) -> Vec<DriverFile> {
    let find = |name: &&str| {
        let mut places = ["/run", "/var/run"].iter().map(|dir| join(dir, name));
        let (resolved, _) =
            places.find_map(|path| root.find(&path).filter(|(_, m)| m.file_type().is_socket()))?;
        Some(DriverFile { in_container: resolved.clone(), resolved })
    };
    SOCKETS.iter().filter_map(find).chain(mps_directory(root)).collect()
}

/// The MPS directory is in `/tmp`, where every user can create one. So a link is not followed, and the directory must
/// belong to the owner of the root: otherwise a user of the host could have any directory mounted in containers.
fn mps_directory(root: &Root) -> Option<DriverFile> {
    let owner = std::fs::metadata(root.here("/")).ok()?.uid();
    let metadata = std::fs::symlink_metadata(root.here(MPS_DIRECTORY)).ok()?;
    let file =
        DriverFile { in_container: MPS_DIRECTORY.to_owned(), resolved: root.resolve(MPS_DIRECTORY).ok()? };
    Some(file).filter(|file| metadata.is_dir() && metadata.uid() == owner && file.resolved == MPS_DIRECTORY)
}

fn mounts(root: &Root, files: &[DriverFile], options: &[&str]) -> Vec<Mount> {
    let mount = |file: &DriverFile| Mount {
        host_path: root.host(&file.resolved),
        container_path: file.in_container.clone(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
        r#type: None,
    };
    files.iter().map(mount).collect()
}

fn watched_paths(root: &DriverRoot, libraries: &Libraries) -> Vec<(Root, String)> {
    let programs =
        PROGRAM_DIRECTORIES.iter().flat_map(|dir| PROGRAMS.iter().map(move |name| join(dir, name)));
    let sockets = SOCKETS.iter().map(|name| join("/run", name)).chain([MPS_DIRECTORY.to_owned()]);
    let files =
        libraries::watched_paths(libraries, root.nvml_directory.as_deref()).chain(programs).chain(sockets);
    let nodes = CONTROL_NODES.iter().map(|node| (root.devices.clone(), node.path.to_owned()));
    let files = files.map(|path| (root.files.clone(), path));
    files.chain(nodes).collect()
}

fn unique(paths: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for path in paths {
        if !kept.contains(&path) {
            kept.push(path);
        }
    }
    kept
}
