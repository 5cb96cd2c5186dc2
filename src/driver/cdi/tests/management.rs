//! The management spec: from what the kernel lists, through the subcommand, to a runtime that applies it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use clap::Parser;
use oci_spec::runtime::LinuxDeviceType;

use super::judge::{accept, inject, nodes, paths};
use crate::args::{Cli, Command};
use crate::cdi::KernelDevices;
use crate::management::execute;

const DEVICES: &str = "Character devices:\n  1 mem\n195 nvidia\n195 nvidia-modeset\n195 nvidiactl\n237 nvidia-caps\n\
    510 nvidia-uvm\n\nBlock devices:\n  7 loop\n";
const ID: &str = "mig.dra-driver.dev/management=all";

/// A host's `/proc` and CDI directory; there is no `/dev`.
struct Host(tempfile::TempDir);

impl Host {
    /// A host with two GPUs, of which the second on the bus has the lower minor.
    fn with_two_gpus() -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        host.put("proc/devices", DEVICES);
        host.gpu("0000:3b:00.0", "1").gpu("0000:86:00.0", "0");
        for (name, minor, mode) in [("config", 1, 256), ("monitor", 2, 292)] {
            let text = format!("DeviceFileMinor: {minor}\nDeviceFileMode: {mode}\nDeviceFileModify: 1\n");
            host.put(&format!("proc/driver/nvidia/capabilities/mig/{name}"), &text);
        }
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, text: &str) -> &Self {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
        self
    }

    fn gpu(&self, pci: &str, minor: &str) -> &Self {
        let text = format!(
            "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 18\nGPU UUID: \t GPU-????????-????-????-????-????????????\n\
             Bus Type: \t PCIe\nBus Location: \t {pci}\nDevice Minor: \t {minor}\nGPU Excluded:\t No\n"
        );
        self.put(&format!("proc/driver/nvidia/gpus/{pci}/information"), &text)
    }

    fn spec(&self) -> PathBuf {
        self.path("cdi/mig.dra-driver.dev-management.json")
    }

    /// Runs `dra-driver-mig management-spec` and answers what it prints.
    fn run(&self) -> String {
        self.try_run().unwrap()
    }

    fn try_run(&self) -> anyhow::Result<String> {
        let flags =
            ["dra-driver-mig", "management-spec", "--driver-name", "mig.dra-driver.dev", "--proc-root"];
        let mut line: Vec<String> = flags.map(str::to_owned).into();
        line.extend([self.path("proc").display().to_string(), "--cdi-root".to_owned()]);
        line.push(self.path("cdi").display().to_string());
        match Cli::parse_from(line).command {
            Command::ManagementSpec(args) => execute(&args),
            _ => unreachable!("the command line says management-spec"),
        }
    }

    /// The device nodes that a runtime gives a container which names the device.
    fn given(&self) -> Vec<String> {
        accept(&self.spec());
        let oci = inject(&self.path("cdi"), &[ID.to_owned()]);
        paths(&oci).into_iter().map(str::to_owned).collect()
    }
}

#[test]
fn a_runtime_gives_the_container_every_gpu_and_the_right_to_cut_them_although_no_node_exists() {
    let host = Host::with_two_gpus();
    let text = host.run();
    assert!(text.contains("0000:3b:00.0 as /dev/nvidia1, 0000:86:00.0 as /dev/nvidia0"), "{text}");
    assert!(!text.contains("missing"), "{text}");
    accept(&host.spec());
    let oci = inject(&host.path("cdi"), &[ID.to_owned()]);
    let numbers: Vec<_> = nodes(&oci)
        .iter()
        .map(|it| {
            assert_eq!(it.typ(), LinuxDeviceType::C);
            (it.path().to_str().unwrap().to_owned(), it.major(), it.minor(), it.file_mode())
        })
        .collect();
    let expected = [
        ("/dev/nvidiactl", 195, 255, None),
        ("/dev/nvidia1", 195, 1, None),
        ("/dev/nvidia0", 195, 0, None),
        ("/dev/nvidia-uvm", 510, 0, None),
        ("/dev/nvidia-uvm-tools", 510, 1, None),
        ("/dev/nvidia-caps/nvidia-cap1", 237, 1, Some(0o400)),
        ("/dev/nvidia-caps/nvidia-cap2", 237, 2, Some(0o444)),
    ];
    assert_eq!(numbers, expected.map(|(path, major, minor, mode)| (path.to_owned(), major, minor, mode)));
    let rules = oci.linux().as_ref().unwrap().resources().as_ref().unwrap().devices().clone().unwrap();
    let may_use = |minor| {
        let is_it =
            |it: &&oci_spec::runtime::LinuxDeviceCgroup| (it.major(), it.minor()) == (Some(237), Some(minor));
        rules.iter().find(is_it).is_some_and(|it| it.allow() && it.access().as_deref() == Some("rw"))
    };
    assert!(may_use(1) && may_use(2));
    let env = oci.process().as_ref().unwrap().env().clone().unwrap();
    assert!(env.contains(&"NVIDIA_VISIBLE_DEVICES=void".to_owned()), "{env:?}");
    assert!(oci.hooks().is_none() && oci.mounts().as_ref().unwrap().is_empty());
}

#[test]
fn a_second_run_leaves_the_file_alone_and_a_changed_host_rewrites_it() {
    let host = Host::with_two_gpus();
    assert!(host.run().starts_with("wrote "));
    let inode = || fs::metadata(host.spec()).unwrap().ino();
    let before = inode();
    assert!(host.run().starts_with("unchanged: "));
    assert_eq!(inode(), before);
    // A reload of the module gives other numbers.
    host.put("proc/devices", &DEVICES.replace("237 nvidia-caps", "240 nvidia-caps"));
    assert!(host.run().starts_with("wrote "));
    assert!(fs::read_to_string(host.spec()).unwrap().contains("240"));
    // What a runtime without root rights could not read is written again, as is what is no file of ours.
    fs::set_permissions(host.spec(), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(host.run().starts_with("wrote "));
    assert_eq!(fs::metadata(host.spec()).unwrap().mode() & 0o777, 0o644);
    fs::write(host.spec(), "{").unwrap();
    assert!(host.run().starts_with("wrote "));
    let names: Vec<_> = fs::read_dir(host.path("cdi")).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(names.len(), 1, "nothing unfinished is left: {names:?}");
}

#[test]
fn without_the_kernel_module_the_device_exists_gives_nothing_and_the_reason_is_printed() {
    let host = Host::with_two_gpus();
    host.run();
    assert_eq!(host.given().len(), 7);
    fs::remove_dir_all(host.path("proc/driver/nvidia")).unwrap();
    host.put("proc/devices", "Character devices:\n  1 mem\n");
    let text = host.run();
    assert!(text.contains("GPUs: none") && text.contains("the NVIDIA kernel module is not loaded"), "{text}");
    assert_eq!(host.given(), Vec::<String>::new(), "nothing of the spec before is left");
    // A host on which nothing of it ever was, without even a /proc.
    let bare = Host(tempfile::tempdir().unwrap());
    assert!(bare.run().contains("the NVIDIA kernel module is not loaded"));
    assert_eq!(bare.given(), Vec::<String>::new());
}

#[test]
fn each_thing_that_the_kernel_does_not_list_is_named_and_the_rest_is_given() {
    let host = Host::with_two_gpus();
    host.put("proc/devices", "Character devices:\n195 nvidia-frontend\n");
    fs::remove_dir_all(host.path("proc/driver/nvidia/capabilities")).unwrap();
    let text = host.run();
    for part in [
        "missing: the kernel module nvidia-uvm",
        "nvidia-modprobe -u",
        "missing: the kernel lists no capability",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(host.given(), ["/dev/nvidiactl", "/dev/nvidia1", "/dev/nvidia0"]);
    fs::remove_dir_all(host.path("proc/driver/nvidia/gpus")).unwrap();
    assert!(host.run().contains("missing: the kernel module drives no GPU"));
    assert_eq!(host.given(), ["/dev/nvidiactl"]);
}

#[test]
fn an_excluded_gpu_is_neither_given_nor_missing() {
    let host = Host::with_two_gpus();
    host.put("proc/driver/nvidia/gpus/0000:86:00.0/information", "Device Minor: 0\nGPU Excluded: Yes\n");
    let text = host.run();
    assert!(text.contains("GPUs: 0000:3b:00.0 as /dev/nvidia1\n") && !text.contains("missing"), "{text}");
}

#[test]
fn what_the_kernel_would_never_list_is_left_out_and_named_and_bounded() {
    let host = Host::with_two_gpus();
    for (pci, minor) in
        [("0000:01:00.0", "255"), ("0000:02:00.0", "-1"), ("0000:03:00.0", "1"), ("0000:04:00.0", "x")]
    {
        host.gpu(pci, minor);
    }
    host.gpu("../../../etc", "3").gpu("0000:zz:00.0", "4");
    host.put("proc/driver/nvidia/gpus/0000:05:00.0/information", &"x".repeat(70_000));
    fs::create_dir_all(host.path("proc/driver/nvidia/gpus/0000:06:00.0")).unwrap();
    symlink("/dev/zero", host.path("proc/driver/nvidia/gpus/0000:06:00.0/information")).unwrap();
    let text = host.run();
    for part in [
        "0000:01:00.0",
        "0000:02:00.0",
        "0000:04:00.0",
        "longer than 65536 bytes",
        "GPU 0000:06:00.0",
        "zz:00.0",
    ] {
        assert!(text.lines().any(|it| it.starts_with("missing: ") && it.contains(part)), "{part}: {text}");
    }
    assert!(text.contains("another GPU has the same device minor 1"), "{text}");
    let given = host.given();
    assert_eq!(given.iter().filter(|it| it.as_str() == "/dev/nvidia1").count(), 1, "{given:?}");
    for number in 0..300 {
        host.gpu(&format!("{:04x}:10:00.0", 0x1000 + number), &number.to_string());
    }
    let kernel = KernelDevices::read(&host.path("proc"));
    assert!(kernel.gpus.len() <= 248 && kernel.unreadable.iter().any(|it| it.contains("only the first 256")));
    host.run();
    host.given();
}

#[test]
fn a_directory_that_cannot_be_written_fails_and_is_named() {
    let host = Host::with_two_gpus();
    fs::write(host.path("cdi"), "a file").unwrap();
    let error = host.try_run().unwrap_err().to_string();
    assert!(error.contains("cdi") && error.contains("mounted and writable"), "{error}");
}
