//! The rendered host: what a driver reads beside NVML.

use std::fs;

use crate::common::*;

#[test]
fn capability_files_follow_the_instances() {
    let (bench, client) = Bench::with_mig("H100-80GB,L4,H100-80GB");
    assert_eq!(client.set_mode(2, 1), (SUCCESS, SUCCESS));
    let dir = "proc/driver/nvidia/capabilities";
    let minor = |path: &str| {
        let text = fs::read_to_string(bench.file(&format!("{dir}/{path}/access"))).ok()?;
        assert!(text.ends_with("\nDeviceFileMode: 292\nDeviceFileModify: 1\n"), "{text}");
        text.lines().next()?.strip_prefix("DeviceFileMinor: ")?.parse::<u32>().ok()
    };
    let gi = client.create_at(2, THREE, 4, 4).unwrap();
    // 3 + 135 * gpu + 9 * gi, then 1 + ci more.
    assert_eq!(minor("gpu2/mig/gi2"), Some(3 + 270 + 18));
    assert_eq!(minor("gpu2/mig/gi2/ci0"), None);
    let (first, second) = (client.compute(gi, 0).unwrap(), client.compute(gi, 0).unwrap());
    assert_eq!(minor("gpu2/mig/gi2/ci0"), Some(292));
    assert_eq!(minor("gpu2/mig/gi2/ci1"), Some(293));
    assert_eq!(client.destroy_compute(first), SUCCESS);
    assert_eq!((minor("gpu2/mig/gi2/ci0"), minor("gpu2/mig/gi2/ci1")), (None, Some(293)));
    assert_eq!((client.destroy_compute(second), client.destroy(gi)), (SUCCESS, SUCCESS));
    assert!(!bench.file(&format!("{dir}/gpu2/mig/gi2")).exists());
    assert!(bench.file(&format!("{dir}/gpu2/mig")).is_dir());
    assert!(!bench.file(&format!("{dir}/gpu1")).exists(), "an L4 has no partitions");
}

#[test]
fn a_reboot_removes_all_capability_files() {
    let bench = Bench::new("A100-80GB");
    bench.node.plant_instance(0, "3g.40gb", 0).unwrap();
    bench.node.plant_instance(0, "1g.10gb", 5).unwrap();
    let dir = bench.file("proc/driver/nvidia/capabilities/gpu0/mig");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
    bench.node.reboot().unwrap();
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
}

#[test]
fn mig_minors_agree_with_the_numbers_nvidias_driver_mentions() {
    let bench = Bench::new("H100-80GB");
    let text = fs::read_to_string(bench.file("proc/driver/nvidia-caps/mig-minors")).unwrap();
    let has = |line: &str| text.lines().any(|known| known == line);
    for line in ["config 1", "monitor 2", "gpu0/gi0/access 3", "gpu0/gi0/ci0/access 4"] {
        assert!(has(line), "{line}");
    }
    assert!(has("gpu3/gi3/ci3/access 439") && has("gpu6/gi11/ci5/access 918"));
    let config = fs::read_to_string(bench.file("proc/driver/nvidia/capabilities/mig/config")).unwrap();
    assert_eq!(config, "DeviceFileMinor: 1\nDeviceFileMode: 256\nDeviceFileModify: 1\n");
}

#[test]
fn the_root_has_what_a_driver_root_has() {
    let bench = Bench::new("H100-80GB,L4");
    for path in [
        "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
        "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.82.07",
        "usr/lib/x86_64-linux-gnu/libcuda.so.580.82.07",
        "usr/lib/x86_64-linux-gnu/libcuda.so.1",
        "usr/bin/nvidia-smi",
        "usr/bin/nvidia-cdi-hook",
        "sbin/ldconfig",
        "lib/firmware/nvidia/580.82.07/gsp_ga10x.bin",
        "dev/nvidia0",
        "dev/nvidia1",
        "dev/nvidiactl",
        "dev/nvidia-uvm",
        "dev/nvidia-uvm-tools",
    ] {
        assert!(bench.file(path).exists(), "{path}");
    }
    assert!(!bench.file("dev/nvidia2").exists());
    let devices = fs::read_to_string(bench.file("proc/devices")).unwrap();
    assert!(devices.lines().any(|line| line == "235 nvidia-caps"), "{devices}");
    assert!(devices.lines().any(|line| line == "195 nvidia"), "{devices}");
}

#[test]
fn sysfs_tells_numa_node_and_pci_root_as_linux_does() {
    let bench = Bench::new("8xH100-80GB");
    let gpus = bench.node.snapshot().unwrap().gpus;
    let distinct: std::collections::BTreeSet<&str> = gpus.iter().map(|gpu| gpu.pci.as_str()).collect();
    assert_eq!(distinct.len(), 8);
    for (gpu, node) in gpus.iter().zip(["0", "0", "0", "0", "1", "1", "1", "1"]) {
        let link = bench.file("sys/bus/pci/devices").join(&gpu.pci);
        assert_eq!(fs::read_to_string(link.join("numa_node")).unwrap().trim(), node);
        let target = fs::read_link(&link).unwrap().display().to_string();
        assert!(target.starts_with("../../../devices/pci0000:") && target.ends_with(&gpu.pci), "{target}");
    }
}

#[test]
fn a_changed_minor_moves_device_and_capabilities() {
    let bench = Bench::new("H100-80GB");
    bench.node.plant_instance(0, "7g.80gb", 0).unwrap();
    bench.node.on_gpu(0, |gpu| gpu.minor = 5).unwrap();
    assert!(bench.file("dev/nvidia5").exists() && !bench.file("dev/nvidia0").exists());
    let pci = &bench.node.snapshot().unwrap().gpus[0].pci;
    let listed = bench.file(&format!("proc/driver/nvidia/gpus/{pci}/information"));
    assert!(fs::read_to_string(listed).unwrap().contains("Device Minor: \t 5\n"));
    let dir = bench.file("proc/driver/nvidia/capabilities");
    assert!(dir.join("gpu5/mig/gi0/ci0/access").exists() && !dir.join("gpu0/mig/gi0").exists());
    let client = bench.client();
    assert_eq!(number!(client, nvmlDeviceGetMinorNumber(client.gpu(0))), (SUCCESS, 5));
}

#[test]
fn the_kernel_lists_gpus_that_nvml_does_not_count() {
    let bench = Bench::new("2xH100-80GB");
    bench.node.count_gpus(Some(1)).unwrap();
    let client = bench.client();
    assert_eq!(number!(client, nvmlDeviceGetCount_v2()), (SUCCESS, 1));
    let listed = fs::read_dir(bench.file("proc/driver/nvidia/gpus")).unwrap();
    assert_eq!(listed.count(), 2);
    bench.node.count_gpus(None).unwrap();
    assert_eq!(number!(client, nvmlDeviceGetCount_v2()), (SUCCESS, 2));
}
