//! The layouts of hosts in docs/compatibility.md, as file trees: what the driver finds with the values given there. They were made
//! from the sources of the distributions, and show that the files are found, not that the driver was tried on a real host.

use std::fs;
use std::os::unix::fs::symlink;

use crate::cdi::fixture::{Fixture, HOOK_PROGRAM, VERSION};
use crate::cdi::{CommonEdits, DriverRoot, Root, find_nvml};

/// A host, and what the chart's values make of it.
struct Layout {
    /// The driver's files and the host.
    fixture: Fixture,
    /// The value `driverRoot`.
    driver_root: &'static str,
    /// The value `devRoot`.
    dev_root: &'static str,
    /// Where it has the driver's libraries, below the driver root.
    libraries: &'static str,
}

impl Layout {
    fn new(driver_root: &'static str, dev_root: &'static str, libraries: &'static str) -> Self {
        let fixture = Fixture::with_driver_root(driver_root);
        fixture.libraries(libraries);
        if dev_root != driver_root {
            let _ = fs::remove_dir_all(fixture.in_root("dev"));
            fs::create_dir_all(fixture.path("dev")).unwrap();
            for node in ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia0"] {
                let _ = fs::remove_file(fixture.path("dev").join(node));
                symlink("/dev/null", fixture.path("dev").join(node)).unwrap();
            }
        }
        Self { fixture, driver_root, dev_root, libraries }
    }

    /// As the chart has the driver see it: each tree where it is mounted, and by its path on the host.
    fn root(&self) -> DriverRoot {
        let tree = |path: &str| Root::new(self.fixture.path(path), path);
        DriverRoot { files: tree(self.driver_root), devices: tree(self.dev_root), ..self.fixture.root() }
    }

    /// NVML is found, nothing is missing but `nvidia-smi` where it is `without_smi`, and CUDA's library comes from the host's
    /// path of it. Answers the mounts, container path and host path.
    fn works(&self, without_smi: bool) -> Vec<(String, String)> {
        let root = self.root();
        let nvml = find_nvml(&root.files).unwrap();
        assert!(nvml.starts_with(self.fixture.in_root(self.libraries)), "{nvml:?}");
        let edits = CommonEdits::discover(&root);
        let missing: Vec<&str> = edits.missing().iter().map(|it| it.what.as_str()).collect();
        match without_smi {
            true => assert!(missing.len() == 1 && missing[0].starts_with("nvidia-smi"), "{missing:?}"),
            false => assert_eq!(missing, Vec::<&str>::new()),
        }
        let mounts: Vec<_> =
            edits.edits().mounts.iter().map(|it| (it.container_path.clone(), it.host_path.clone())).collect();
        let cuda = format!("{}/libcuda.so.{VERSION}", self.libraries);
        let on_host = format!("{}{cuda}", self.driver_root.trim_end_matches('/'));
        assert!(mounts.contains(&(cuda, on_host)), "{mounts:?}");
        let control = &edits.edits().device_nodes[0];
        let on_host = control.host_path.clone().unwrap_or_else(|| control.path.clone());
        assert_eq!(on_host, format!("{}/dev/nvidiactl", self.dev_root.trim_end_matches('/')));
        mounts
    }
}

#[test]
fn gpu_operators_driver_container() {
    let layout = Layout::new("/run/nvidia/driver", "/run/nvidia/driver", "/usr/lib/x86_64-linux-gnu");
    layout.fixture.program("/usr/bin/nvidia-smi");
    layout.works(false);
    // Nodes on the host, as with a driver container that does not make them.
    let layout = Layout::new("/run/nvidia/driver", "/", "/usr/lib64");
    layout.fixture.program("/usr/bin/nvidia-smi");
    layout.works(false);
}

#[test]
fn gke_container_optimized_os() {
    let layout = Layout::new("/home/kubernetes/bin/nvidia", "/", "/lib64");
    layout.fixture.program("/bin/nvidia-smi");
    let mounts = layout.works(false);
    let smi = ("/bin/nvidia-smi".to_owned(), "/home/kubernetes/bin/nvidia/bin/nvidia-smi".to_owned());
    assert!(mounts.contains(&smi), "{mounts:?}");
}

#[test]
fn talos_with_the_extension_of_the_toolkit() {
    let layout = Layout::new("/", "/", "/usr/local/lib");
    let fixture = &layout.fixture;
    fixture.program("/usr/local/bin/nvidia-smi").link("/usr/bin/nvidia-smi", "/usr/local/bin/nvidia-smi");
    // Programs are links to absolute paths there, and /sbin is one to /usr/bin.
    for path in ["usr/bin/nvidia-cdi-hook", "sbin/ldconfig"] {
        fs::remove_file(fixture.path(path)).unwrap();
    }
    fs::remove_dir(fixture.path("sbin")).unwrap();
    fixture.link("/sbin", "usr/bin").link("/usr/bin/ldconfig", "/usr/local/sbin/ldconfig");
    fixture.link("/usr/bin/nvidia-cdi-hook", "/usr/local/bin/nvidia-cdi-hook");
    fixture.program("/usr/local/sbin/ldconfig");
    fixture.host_program_with("/usr/local/bin/nvidia-cdi-hook", HOOK_PROGRAM);
    fixture.file(&format!("/usr/lib/firmware/nvidia/{VERSION}/gsp_ga10x.bin"));
    let mounts = layout.works(false);
    assert!(mounts.iter().any(|(_, host)| host.ends_with("gsp_ga10x.bin")), "{mounts:?}");
    // Talos before 1.10.
    Layout::new("/", "/", "/usr/local/glibc/usr/lib").works(true);
}

#[test]
fn bottlerocket() {
    let layout = Layout::new("/", "/", "/usr/lib/nvidia/tesla");
    layout.fixture.program("/usr/bin/nvidia-smi");
    layout.works(false);
}

/// Merged or not, `/lib/firmware` may be absent, and only `/usr` is mounted: the kernel's files are below it on merged hosts.
#[test]
fn a_host_without_lib_firmware() {
    let layout = Layout::new("/", "/", "/usr/lib64");
    layout.fixture.program("/usr/bin/nvidia-smi");
    assert!(!layout.works(false).iter().any(|(_, host)| host.contains("firmware")));
    layout.fixture.file(&format!("/usr/lib/firmware/nvidia/{VERSION}/gsp_tu10x.bin"));
    assert!(!layout.fixture.path("/lib").exists());
    let path = format!("/usr/lib/firmware/nvidia/{VERSION}/gsp_tu10x.bin");
    assert!(layout.works(false).contains(&(path.clone(), path)));
}
