//! The group that a process needs to use NVIDIA's device nodes, where they are not open to everyone.
//!
//! The kernel module's parameters `NVreg_DeviceFileMode` and `NVreg_DeviceFileGID` say with which mode and group its tools make
//! the nodes of GPUs and `nvidiactl` (`nvidia-modprobe-utils.c` of nvidia-modprobe); a udev rule can say the same of a node. Both are
//! read, because the nodes that this process sees may belong to its container, which has neither.

use std::path::Path;

use crate::files::read_kernel;

/// A CUDA program opens every node for reading and writing.
const READ_WRITE: u32 = 0o6;
/// The module has some fifty parameters, a line of at most a few hundred bytes each.
const MAX_BYTES: u64 = 64 * 1024;

/// The group of a node with this mode and group that grants access if the permissions for others do not. Group 0 is none to
/// give away: a node that only root's group may use is meant for root.
pub(super) fn needed_group(mode: u32, gid: u32) -> Option<u32> {
    let may_use = |class: u32| mode >> class & READ_WRITE == READ_WRITE;
    (gid != 0 && may_use(3) && !may_use(0)).then_some(gid)
}

/// The same as the module's parameters have it for `nvidiactl` and the GPUs' nodes; nothing where they cannot be read.
pub(super) fn group_of_module(proc_root: &Path) -> Option<u32> {
    let bytes = read_kernel(&proc_root.join("driver/nvidia/params"), MAX_BYTES).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let parameter = |name: &str| {
        let mut lines = text.lines().filter_map(|it| it.split_once(':'));
        lines.find(|(key, _)| key.trim() == name)?.1.trim().parse::<u32>().ok()
    };
    needed_group(parameter("DeviceFileMode")?, parameter("DeviceFileGID")?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_group_is_needed_only_where_it_may_use_the_node_and_others_may_not() {
        let cases = [
            (0o660, 44, Some(44)),
            (0o664, 44, Some(44)),
            (0o20660, 44, Some(44)),
            (0o666, 44, None),
            (0o660, 0, None),
            (0o640, 44, None),
            (0o600, 44, None),
        ];
        for (mode, gid, expected) in cases {
            assert_eq!(needed_group(mode, gid), expected, "{mode:o} {gid}");
        }
    }

    #[test]
    fn the_module_names_the_group_of_the_nodes_that_its_tools_make() {
        let check = |params: Option<&str>, expected: Option<u32>| {
            let proc_root = tempfile::tempdir().unwrap();
            let directory = proc_root.path().join("driver/nvidia");
            fs::create_dir_all(&directory).unwrap();
            params.into_iter().for_each(|it| fs::write(directory.join("params"), it).unwrap());
            assert_eq!(group_of_module(proc_root.path()), expected, "{params:?}");
        };
        let params = |gid: &str, mode: &str| {
            format!(
                "ResmanDebugLevel: 4294967295\nModifyDeviceFiles: 1\nDeviceFileUID: 0\nDeviceFileGID: {gid}\n\
                 DeviceFileMode: {mode}\nRegistryDwords: \"\"\n"
            )
        };
        check(Some(&params("44", "432")), Some(44));
        check(Some(&params("44", "438")), None);
        check(Some(&params("0", "432")), None);
        for broken in
            [params("-1", "432"), params("44", "rw"), "DeviceFileGID 44\n".to_owned(), "\u{0}".repeat(70_000)]
        {
            check(Some(&broken), None);
        }
        check(None, None);
    }
}
