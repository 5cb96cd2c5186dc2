//! What discovery finds in the layouts that distributions and driver containers have.
//!
//! Longer than other files: it is a list of layouts, each a short test.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixListener;
use std::time::SystemTime;

use crate::cdi::fixture::{CONTAINER_ROOT, Fixture, VERSION};
use crate::cdi::ld_cache::tests::cache_of;
use crate::cdi::{CommonEdits, DriverRoot, Severity, find_nvml};

const DEBIAN: &str = "/usr/lib/x86_64-linux-gnu";

/// Container path -> host path of all mounts.
fn mounts(edits: &CommonEdits) -> BTreeMap<&str, &str> {
    edits.edits().mounts.iter().map(|m| (m.container_path.as_str(), m.host_path.as_str())).collect()
}

fn hook_args<'a>(edits: &'a CommonEdits, name: &str) -> Option<&'a [String]> {
    edits.edits().hooks.iter().find(|hook| hook.args[1] == name).map(|hook| &hook.args[2..])
}

fn env<'a>(edits: &'a CommonEdits, name: &str) -> Option<&'a str> {
    edits.edits().env.iter().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

fn lib(dir: &str, name: &str) -> String {
    format!("{dir}/{name}.so.{VERSION}")
}

#[test]
fn debian_layout_on_the_host() {
    let fixture = Fixture::on_host();
    fixture.libraries(DEBIAN).program("/usr/bin/nvidia-smi").link("/lib", "usr/lib");
    let edits = CommonEdits::discover(&fixture.root_on_host_as("/"));
    assert_eq!(edits.missing(), []);
    let mounts = mounts(&edits);
    assert_eq!(mounts.len(), 4, "{mounts:?}");
    for name in ["libcuda", "libnvidia-ml", "libnvidia-ptxjitcompiler"] {
        let path = lib(DEBIAN, name);
        assert_eq!(mounts[path.as_str()], path);
    }
    assert_eq!(mounts["/usr/bin/nvidia-smi"], "/usr/bin/nvidia-smi");
    assert_eq!(env(&edits, "NVIDIA_VISIBLE_DEVICES"), Some("void"));
    assert_eq!(env(&edits, "NVIDIA_CTK_LIBCUDA_DIR"), Some(DEBIAN));
    assert_eq!(hook_args(&edits, "update-ldcache").unwrap(), ["--folder", DEBIAN]);
    let links = hook_args(&edits, "create-symlinks").unwrap().join(" ");
    let expected = format!(
        "--link libcuda.so.1::{DEBIAN}/libcuda.so --link libcuda.so.{VERSION}::{DEBIAN}/libcuda.so.1 \
         --link libnvidia-ml.so.{VERSION}::{DEBIAN}/libnvidia-ml.so.1 \
         --link libnvidia-ptxjitcompiler.so.{VERSION}::{DEBIAN}/libnvidia-ptxjitcompiler.so.1"
    );
    assert_eq!(links, expected);
    let nodes: Vec<_> =
        edits.edits().device_nodes.iter().map(|n| (n.path.as_str(), n.host_path.as_deref())).collect();
    assert_eq!(nodes, [("/dev/nvidiactl", None), ("/dev/nvidia-uvm", None), ("/dev/nvidia-uvm-tools", None)]);
}

#[test]
fn rhel_layout_on_the_host_with_vdpau_nvvm_and_firmware() {
    let fixture = Fixture::on_host();
    fixture
        .libraries("/usr/lib64")
        .link("/lib64", "usr/lib64")
        .link("/bin", "usr/bin")
        .link("/lib", "usr/lib");
    fixture.file(&lib("/usr/lib64/vdpau", "libvdpau_nvidia")).file("/usr/lib64/libnvidia-nvvm70.so.4");
    fixture.file(&format!("/usr/lib/firmware/nvidia/{VERSION}/gsp_ga10x.bin"));
    fixture.file(&format!("/usr/lib/firmware/nvidia/{VERSION}/other.bin")).program("/usr/bin/nvidia-smi");
    let edits = CommonEdits::discover(&fixture.root_on_host_as("/"));
    assert_eq!(edits.missing(), []);
    let mounts = mounts(&edits);
    assert_eq!(mounts.len(), 7, "{mounts:?}");
    assert!(mounts.contains_key(lib("/usr/lib64/vdpau", "libvdpau_nvidia").as_str()));
    assert!(mounts.contains_key("/usr/lib64/libnvidia-nvvm70.so.4"));
    assert!(mounts.contains_key(format!("/usr/lib/firmware/nvidia/{VERSION}/gsp_ga10x.bin").as_str()));
    assert_eq!(
        hook_args(&edits, "update-ldcache").unwrap(),
        ["--folder", "/usr/lib64", "--folder", "/usr/lib64/vdpau"]
    );
    let options = &edits.edits().mounts[0].options;
    assert_eq!(options.join(","), "ro,nosuid,nodev,rbind,rprivate");
}

#[test]
fn a_container_root_has_host_paths_on_the_host_and_plain_ones_in_the_container() {
    let fixture = Fixture::in_container_root();
    fixture.libraries(DEBIAN).program("/usr/bin/nvidia-smi");
    let edits = CommonEdits::discover(&fixture.root_on_host_as(CONTAINER_ROOT));
    assert_eq!(edits.missing(), []);
    let path = lib(DEBIAN, "libcuda");
    assert_eq!(mounts(&edits)[path.as_str()], format!("{CONTAINER_ROOT}{path}"));
    let node = &edits.edits().device_nodes[0];
    assert_eq!(node.host_path.as_deref(), Some("/run/nvidia/driver/dev/nvidiactl"));
    // Hooks are programs of the host, not of the driver container.
    assert_eq!(edits.edits().hooks[0].path, "/usr/bin/nvidia-cdi-hook");
    let text = serde_json::to_string(edits.edits()).unwrap();
    assert!(
        !text.contains(fixture.path("/").to_str().unwrap()),
        "no path of this process is in the edits: {text}"
    );
}

#[test]
fn debian_alternatives_with_absolute_links_stay_in_the_root() {
    let fixture = Fixture::in_container_root();
    let current = format!("{DEBIAN}/nvidia/current");
    fixture.libraries(&current).link(&format!("{DEBIAN}/libcuda.so.1"), "/etc/alternatives/libcuda.so.1");
    fixture.link("/etc/alternatives/libcuda.so.1", &format!("{current}/libcuda.so.1"));
    fixture.link("/usr/bin/nvidia-smi", "/etc/alternatives/nvidia-smi");
    fixture.link("/etc/alternatives/nvidia-smi", "/usr/lib/nvidia/current/nvidia-smi");
    fixture.program("/usr/lib/nvidia/current/nvidia-smi");
    let edits = CommonEdits::discover(&fixture.root_on_host_as(CONTAINER_ROOT));
    assert_eq!(edits.missing(), []);
    let mounts = mounts(&edits);
    assert_eq!(mounts["/usr/bin/nvidia-smi"], "/run/nvidia/driver/usr/lib/nvidia/current/nvidia-smi");
    assert_eq!(
        mounts[lib(&current, "libcuda").as_str()],
        format!("{CONTAINER_ROOT}{}", lib(&current, "libcuda"))
    );
    assert_eq!(env(&edits, "NVIDIA_CTK_LIBCUDA_DIR"), Some(current.as_str()));
}

#[test]
fn a_versioned_name_that_is_a_link_is_mounted_from_where_it_leads() {
    let fixture = Fixture::in_container_root();
    fixture.file("/opt/store/cuda").link(&lib("/usr/lib64", "libcuda"), "/opt/store/cuda");
    let edits = CommonEdits::discover(&fixture.root_on_host_as(CONTAINER_ROOT));
    assert_eq!(mounts(&edits)[lib("/usr/lib64", "libcuda").as_str()], "/run/nvidia/driver/opt/store/cuda");
}

#[test]
fn libraries_that_only_the_ld_so_cache_knows_are_found() {
    let fixture = Fixture::on_host();
    fixture.libraries("/opt/nvidia/lib").libraries("/opt/linked");
    fixture.link("/opt/other/libnvidia-ml.so.1", "/opt/linked/libnvidia-ml.so.1");
    let cache = cache_of(&[
        (0x0303, "/opt/nvidia/lib/libcuda.so.1"),
        (0x0303, "/opt/other/libnvidia-ml.so.1"),
        (0x0303, "/nonexistent/libz.so.1"),
        (0x0303, "/../../../../../../../../opt/nvidia/lib/libx.so"),
    ]);
    fixture.file_with("/etc/ld.so.cache", &cache);
    let edits = CommonEdits::discover(&fixture.root_on_host_as("/"));
    assert_eq!(env(&edits, "NVIDIA_CTK_LIBCUDA_DIR"), Some("/opt/nvidia/lib:/opt/linked"));
    assert!(mounts(&edits).contains_key(lib("/opt/linked", "libnvidia-ml").as_str()));
}

#[test]
fn a_library_that_is_found_on_two_ways_is_mounted_once() {
    let fixture = Fixture::on_host();
    let vdpau = lib("/usr/lib64/vdpau", "libvdpau_nvidia");
    fixture
        .libraries("/usr/lib64")
        .file(&vdpau)
        .file_with("/etc/ld.so.cache", &cache_of(&[(0x0303, &vdpau)]));
    let edits = CommonEdits::discover(&fixture.root());
    assert_eq!(edits.edits().mounts.iter().filter(|m| m.container_path == vdpau).count(), 1);
}

#[test]
fn the_directory_in_which_nvml_was_found_counts_for_containers_too() {
    let fixture = Fixture::in_container_root();
    fixture.libraries("/opt/store").link("/opt/nvidia/libnvidia-ml.so.1", "/opt/store/libnvidia-ml.so.1");
    let root = fixture.root_on_host_as(CONTAINER_ROOT);
    assert!(CommonEdits::discover(&root).fatal().is_some());
    let root = DriverRoot { nvml_directory: Some("/opt/nvidia".to_owned()), ..root };
    let edits = CommonEdits::discover(&root);
    assert_eq!(edits.fatal(), None);
    assert_eq!(
        mounts(&edits)[lib("/opt/store", "libcuda").as_str()],
        format!("{CONTAINER_ROOT}{}", lib("/opt/store", "libcuda"))
    );
    fs::remove_dir_all(fixture.in_root("/opt/nvidia")).unwrap();
    assert!(!edits.is_current());
}

#[test]
fn nvml_is_found_wherever_the_libraries_for_containers_are() {
    for directory in [
        "/usr/lib64",
        "/usr/lib/aarch64-linux-gnu/nvidia/current",
        "/lib/x86_64-linux-gnu",
        "/usr/lib",
        "/opt/only/in/the/cache",
    ] {
        let fixture = Fixture::on_host();
        fixture.libraries(directory);
        let cache = cache_of(&[(0x0303, "/opt/only/in/the/cache/libnvidia-ml.so.1")]);
        fixture.file_with("/etc/ld.so.cache", &cache);
        let root = fixture.root();
        assert_eq!(
            find_nvml(&root.files),
            Some(fixture.path(&lib(directory, "libnvidia-ml"))),
            "{directory}"
        );
        assert_eq!(env(&CommonEdits::discover(&root), "NVIDIA_CTK_LIBCUDA_DIR"), Some(directory));
    }
    assert_eq!(find_nvml(&Fixture::on_host().root().files), None);
}

#[test]
fn libraries_for_32_bit_programs_are_left_out() {
    let fixture = Fixture::on_host();
    fixture.libraries("/usr/lib64");
    for name in ["libcuda", "libnvidia-ml"] {
        fixture.file_with(&lib("/usr/lib", name), b"\x7fELF\x01\x01");
    }
    fixture.link("/usr/lib/libnvidia-ml.so.1", &format!("libnvidia-ml.so.{VERSION}"));
    let edits = CommonEdits::discover(&fixture.root());
    assert_eq!(env(&edits, "NVIDIA_CTK_LIBCUDA_DIR"), Some("/usr/lib64"));
    fs::remove_dir_all(fixture.path("/usr/lib64")).unwrap();
    assert_eq!(find_nvml(&fixture.root().files), None);
}

#[test]
fn a_broken_ld_so_cache_does_not_hide_the_usual_directories() {
    let fixture = Fixture::on_host();
    fixture.libraries("/usr/lib64").file_with("/etc/ld.so.cache", b"glibc-ld.so.cache1.1\xff\xff\xff\xff");
    let edits = CommonEdits::discover(&fixture.root());
    assert_eq!(edits.fatal(), None);
}

#[test]
fn without_the_hook_the_links_are_mounted_and_the_lack_is_reported_once() {
    let fixture = Fixture::on_host();
    fixture.libraries(DEBIAN).program("/usr/bin/nvidia-smi");
    fs::remove_file(fixture.path("/usr/bin/nvidia-cdi-hook")).unwrap();
    let edits = CommonEdits::discover(&fixture.root_on_host_as("/"));
    assert_eq!(edits.edits().hooks, []);
    let [missing] = edits.missing() else { panic!("{:?}", edits.missing()) };
    assert_eq!(missing.severity, Severity::Impaired);
    let text = missing.to_string();
    assert!(text.contains("/usr/bin/nvidia-cdi-hook") && text.contains("install"), "{text}");
    let mounts = mounts(&edits);
    for link in ["libcuda.so", "libcuda.so.1"] {
        assert_eq!(mounts[format!("{DEBIAN}/{link}").as_str()], lib(DEBIAN, "libcuda"));
    }
}

#[test]
fn links_that_programs_expect_are_made_even_if_the_host_lacks_them() {
    let fixture = Fixture::on_host();
    fixture.file(&lib("/usr/lib64", "libcuda")).file(&lib("/usr/lib64", "libnvidia-opticalflow"));
    let edits = CommonEdits::discover(&fixture.root());
    let links = hook_args(&edits, "create-symlinks").unwrap();
    let expected = [
        "--link",
        "libcuda.so.1::/usr/lib64/libcuda.so",
        "--link",
        "libnvidia-opticalflow.so.1::/usr/lib64/libnvidia-opticalflow.so",
    ];
    assert_eq!(links, expected);
}

#[test]
fn links_that_lead_out_of_the_root_are_not_followed() {
    let fixture = Fixture::in_container_root();
    let outside = fixture.path("/secret");
    fs::write(&outside, "").unwrap();
    fixture.libraries("/usr/lib64");
    fixture.link(&lib("/usr/lib64", "libnvidia-absolute"), outside.to_str().unwrap());
    fixture.link(&lib("/usr/lib64", "libnvidia-relative"), "../../../../../../secret");
    fixture.link(&lib("/usr/lib64", "libnvidia-loop"), &format!("libnvidia-loop.so.{VERSION}"));
    fixture.link("/usr/bin", "/../../../../usr/bin");
    let edits = CommonEdits::discover(&fixture.root());
    let root = fixture.in_root("/");
    for mount in &edits.edits().mounts {
        let real = fs::canonicalize(&mount.host_path).unwrap();
        assert!(real.starts_with(fs::canonicalize(&root).unwrap()), "{mount:?}");
        assert!(!mount.container_path.contains("absolute") && !mount.container_path.contains("relative"));
    }
    assert_eq!(edits.edits().mounts.len(), 3);
}

#[test]
fn the_version_is_inferred_if_it_is_not_given_and_only_if_it_is_clear() {
    let fixture = Fixture::on_host();
    fixture.libraries("/usr/lib64");
    let unversioned = || DriverRoot { version: None, ..fixture.root() };
    let edits = CommonEdits::discover(&unversioned());
    assert_eq!(
        hook_args(&edits, "enable-cuda-compat").unwrap(),
        [format!("--host-driver-version={VERSION}")]
    );

    fixture.file("/usr/lib64/libcuda.so.535.104.05");
    let edits = CommonEdits::discover(&unversioned());
    let fatal = edits.fatal().unwrap().to_string();
    assert!(fatal.contains("535.104.05") && fatal.contains(VERSION), "{fatal}");
    // With the version from NVML, it takes that one.
    let edits = CommonEdits::discover(&fixture.root());
    assert_eq!(edits.fatal(), None);
    assert!(!mounts(&edits).contains_key("/usr/lib64/libcuda.so.535.104.05"));
}

#[test]
fn an_empty_root_is_reported_with_what_to_do() {
    let fixture = Fixture::on_host();
    for version in [Some("550.54.15"), Some("../../etc"), None] {
        let root = DriverRoot { version: version.map(str::to_owned), ..fixture.root() };
        let edits = CommonEdits::discover(&root);
        let fatal = edits.fatal().unwrap().to_string();
        assert!(fatal.contains("--driver-root"), "{fatal}");
        assert_eq!((edits.edits().mounts.len(), edits.edits().hooks.len()), (0, 0));
    }
}

#[test]
fn missing_nodes_are_reported_and_left_out() {
    let fixture = Fixture::on_host();
    fixture.libraries("/usr/lib64").program("/usr/bin/nvidia-smi");
    fs::remove_file(fixture.path("/dev/nvidia-uvm")).unwrap();
    fs::write(fixture.path("/dev/nvidia-uvm"), "a file is not a node").unwrap();
    let root = fixture.root();
    let edits = CommonEdits::discover(&root);
    let [missing] = edits.missing() else { panic!("{:?}", edits.missing()) };
    assert!(
        missing.severity == Severity::Fatal && missing.to_string().contains("nvidia-modprobe"),
        "{missing}"
    );
    assert!(!edits.edits().device_nodes.iter().any(|n| n.path == "/dev/nvidia-uvm"));
    assert_eq!(root.gpu_node_group(0), Ok(None));
    assert!(root.gpu_node_group(1).unwrap_err().to_string().contains("/dev/nvidia1"));
}

#[test]
fn nodes_of_nvidia_uvm_that_do_not_exist_yet_are_given_by_number() {
    let fixture = Fixture::on_host();
    fixture.libraries("/usr/lib64").program("/usr/bin/nvidia-smi");
    fs::remove_file(fixture.path("/dev/nvidia-uvm")).unwrap();
    let before = CommonEdits::discover(&fixture.root());
    fixture.kernel_file("proc/devices", "Character devices:\n195 nvidia\n510 nvidia-uvm\n");
    assert!(!before.is_current(), "the module was loaded");
    let edits = CommonEdits::discover(&fixture.root());
    assert!(edits.is_current());
    assert_eq!(edits.missing(), []);
    let node = edits.edits().device_nodes.iter().find(|n| n.path == "/dev/nvidia-uvm").unwrap();
    assert_eq!((node.r#type.as_deref(), node.major, node.minor), (Some("c"), Some(510), Some(0)));
    assert_eq!(node.host_path, None);
}

#[test]
fn libcuda_is_essential_and_nvml_is_not() {
    let fixture = Fixture::on_host();
    fixture.file(&lib("/usr/lib64", "libnvidia-ptxjitcompiler"));
    let edits = CommonEdits::discover(&fixture.root());
    let missing: Vec<_> =
        edits.missing().iter().map(|m| (m.severity, m.what.split(' ').next().unwrap())).collect();
    let expected = [
        (Severity::Fatal, "libcuda.so.550.54.15"),
        (Severity::Degraded, "libnvidia-ml.so.550.54.15"),
        (Severity::Degraded, "nvidia-smi"),
    ];
    assert_eq!(missing, expected);
}

#[test]
fn firmware_comes_from_the_kernels_own_directory_first_then_from_the_release() {
    let fixture = Fixture::on_host();
    fixture.libraries("/usr/lib64");
    let released = format!("/lib/firmware/6.8.0-test/nvidia/{VERSION}/gsp_tu10x.bin");
    fixture.file(&released).file(&format!("/lib/firmware/nvidia/{VERSION}/gsp_ga10x.bin"));
    let firmware = |fixture: &Fixture| -> Vec<String> {
        let edits = CommonEdits::discover(&fixture.root_on_host_as("/"));
        mounts(&edits).into_keys().filter(|path| path.contains("gsp")).map(str::to_owned).collect()
    };
    assert_eq!(firmware(&fixture), [released]);
    fixture.kernel_file("sys/module/firmware_class/parameters/path", "/opt/firmware\n");
    let own = format!("/opt/firmware/nvidia/{VERSION}/gsp_ga10x.bin");
    fixture.file(&own);
    assert_eq!(firmware(&fixture), [own]);
}

#[test]
fn sockets_are_mounted_once_and_writable_but_not_executable() {
    let fixture = Fixture::on_host();
    fixture.libraries("/usr/lib64").link("/var/run", "/run").file("/run/nvidia-fabricmanager/socket");
    fs::create_dir_all(fixture.path("/run/nvidia-persistenced")).unwrap();
    let _listener = UnixListener::bind(fixture.path("/run/nvidia-persistenced/socket")).unwrap();
    fs::create_dir_all(fixture.path("/tmp/nvidia-mps")).unwrap();
    let edits = CommonEdits::discover(&fixture.root_on_host_as("/"));
    let sockets: Vec<_> =
        edits.edits().mounts.iter().filter(|m| m.options.contains(&"noexec".into())).collect();
    let paths: Vec<_> = sockets.iter().map(|m| m.container_path.as_str()).collect();
    assert_eq!(paths, ["/run/nvidia-persistenced/socket", "/tmp/nvidia-mps"], "a plain file is not a socket");
    assert_eq!(sockets[0].options.join(","), "nosuid,nodev,rbind,rprivate,noexec");
}

#[test]
fn a_link_in_tmp_is_never_mounted() {
    let fixture = Fixture::on_host();
    fixture.libraries("/usr/lib64").file("/root/secret").link("/tmp/nvidia-mps", "/root");
    let edits = CommonEdits::discover(&fixture.root_on_host_as("/"));
    assert!(
        edits.edits().mounts.iter().all(|m| !m.host_path.contains("root") && !m.host_path.contains("tmp"))
    );
}

#[test]
fn a_change_of_the_installation_is_noticed() {
    let fixture = Fixture::on_host();
    fixture.libraries("/usr/lib64");
    // The clock of file times is coarse; what was made a moment ago could carry the time of the change.
    let libraries = fs::File::open(fixture.path("/usr/lib64")).unwrap();
    libraries.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    let changes: [&dyn Fn(); 5] = [
        // A package upgrade puts another file in its place.
        &|| {
            fs::remove_file(fixture.path("/usr/bin/nvidia-cdi-hook")).unwrap();
            fixture.host_program_with("/usr/bin/nvidia-cdi-hook", b"another version of the program");
        },
        &|| fs::remove_file(fixture.path("/dev/nvidia-uvm")).unwrap(),
        &|| fs::remove_file(fixture.path("/usr/bin/nvidia-cdi-hook")).unwrap(),
        &|| {
            fixture.program("/usr/bin/nvidia-smi");
        },
        &|| fs::remove_file(fixture.path(&lib("/usr/lib64", "libcuda"))).unwrap(),
    ];
    for change in changes {
        let edits = CommonEdits::discover(&fixture.root());
        assert!(edits.is_current());
        change();
        assert!(!edits.is_current());
    }
}
