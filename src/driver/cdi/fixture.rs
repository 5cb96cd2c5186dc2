//! Driver roots for tests, each in its own temporary directory.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use crate::cdi::{DriverRoot, HookSettings, Root};

/// The driver version of all fixtures.
pub(super) const VERSION: &str = "550.54.15";
/// Where the host has the driver root of the container layouts.
pub(super) const CONTAINER_ROOT: &str = "/run/nvidia/driver";

/// Stands for the hook program of toolkit 1.18 or later: a program that is not a script and has all names.
pub(super) const HOOK_PROGRAM: &[u8] =
    b"\x7fELF\x02 create-symlinks enable-cuda-compat update-ldcache disable-device-node-modification";

/// A host: its root directory, and below it a driver root.
pub(super) struct Fixture {
    dir: tempfile::TempDir,
    driver_root: &'static str,
}

impl Fixture {
    /// A host that has the driver in its own root, with hooks' programs and device nodes, but no libraries yet.
    pub(super) fn on_host() -> Self {
        Self::with_driver_root("/")
    }

    /// A host that has the driver in `/run/nvidia/driver`.
    pub(super) fn in_container_root() -> Self {
        Self::with_driver_root(CONTAINER_ROOT)
    }

    /// A host that has the driver in this directory.
    pub(super) fn with_driver_root(driver_root: &'static str) -> Self {
        let fixture = Self { dir: tempfile::tempdir().unwrap(), driver_root };
        fixture.host_program_with("/usr/bin/nvidia-cdi-hook", HOOK_PROGRAM);
        fixture.host_program("/sbin/ldconfig");
        for node in ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia0", "nvidia3"] {
            fixture.node(node);
        }
        fixture.kernel_file("proc/sys/kernel/osrelease", "6.8.0-test\n");
        fixture
    }

    /// Input of discovery: the host's paths of everything are the true ones of the temporary directory, so that a
    /// runtime could follow them.
    pub(super) fn root(&self) -> DriverRoot {
        let tree = Root::same(self.path(self.driver_root).to_str().unwrap());
        self.root_with(tree)
    }

    /// As [`Fixture::root`], but the driver root has `host` as its path on the host.
    pub(super) fn root_on_host_as(&self, host: &str) -> DriverRoot {
        self.root_with(Root::new(self.path(self.driver_root), host))
    }

    fn root_with(&self, tree: Root) -> DriverRoot {
        let hooks = HookSettings { host_root: self.path("/"), ..HookSettings::default() };
        let [proc, sys] = [self.path("/proc"), self.path("/sys")];
        DriverRoot {
            files: tree.clone(),
            devices: tree,
            nvml_directory: None,
            version: Some(VERSION.into()),
            hooks,
            proc,
            sys,
        }
    }

    /// The true path of something on the host.
    pub(super) fn path(&self, on_host: &str) -> PathBuf {
        self.dir.path().join(on_host.trim_start_matches('/'))
    }

    /// The true path of something in the driver root.
    pub(super) fn in_root(&self, path: &str) -> PathBuf {
        self.path(self.driver_root).join(path.trim_start_matches('/'))
    }

    /// Writes an empty file in the driver root.
    pub(super) fn file(&self, path: &str) -> &Self {
        write(self.in_root(path), b"", 0o644);
        self
    }

    /// Writes a file with content in the driver root.
    pub(super) fn file_with(&self, path: &str, content: &[u8]) -> &Self {
        write(self.in_root(path), content, 0o644);
        self
    }

    /// Writes an executable file in the driver root.
    pub(super) fn program(&self, path: &str) -> &Self {
        write(self.in_root(path), b"", 0o755);
        self
    }

    /// Makes a link in the driver root.
    pub(super) fn link(&self, path: &str, target: &str) -> &Self {
        let path = self.in_root(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
        self
    }

    /// Makes `/dev/<name>`: a link to a character device that every machine has, since only root can make nodes.
    pub(super) fn node(&self, name: &str) -> &Self {
        self.link(&format!("/dev/{name}"), "/dev/null")
    }

    /// Writes an executable file on the host.
    pub(super) fn host_program(&self, path: &str) -> &Self {
        write(self.path(path), b"", 0o755);
        self
    }

    /// Writes an executable file with content on the host.
    pub(super) fn host_program_with(&self, path: &str, content: &[u8]) -> &Self {
        write(self.path(path), content, 0o755);
        self
    }

    /// Writes a file in the host's `/proc` or `/sys`.
    pub(super) fn kernel_file(&self, path: &str, content: &str) -> &Self {
        write(self.path(path), content.as_bytes(), 0o444);
        self
    }

    /// Writes the usual libraries in a directory, with the links that a package has.
    pub(super) fn libraries(&self, dir: &str) -> &Self {
        for name in ["libcuda", "libnvidia-ml", "libnvidia-ptxjitcompiler"] {
            self.file(&format!("{dir}/{name}.so.{VERSION}"));
            self.link(&format!("{dir}/{name}.so.1"), &format!("{name}.so.{VERSION}"));
        }
        self.link(&format!("{dir}/libcuda.so"), "libcuda.so.1");
        // Neighbours that are not the driver's.
        self.file(&format!("{dir}/libc.so.6")).file(&format!("{dir}/libcuda.txt.{VERSION}"))
    }
}

fn write(path: PathBuf, content: &[u8], mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
}
