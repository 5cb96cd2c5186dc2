//! What looks like a GPU and is a part or a share of one, and other things about devices that a pod says.

use super::*;

/// A pod with a request, and more in its spec.
fn asking(resource: &str, more: &str) -> String {
    pod(&format!(
        "{more}  containers:\n  - name: c\n    image: x\n    resources:\n      limits:\n        {resource}: 1\n"
    ))
}

#[test]
fn a_part_or_a_share_of_a_gpu_is_not_turned_into_a_gpu() {
    for more in [
        "nvidia.com/gpumem: 3000",
        "nvidia.com/gpumem-percentage: 50",
        "nvidia.com/gpucores: 30",
        "nvidia.com/gpu.shared: 1",
        "nvidia.com/gpu-10gb: 1",
        "nvidia.com/gpu.time-sliced: 1",
        "nvidia.com/vgpu: 1",
        "nvidia.com/mig-1g.5gb.shared: 1",
        "volcano.sh/vgpu-memory: 1024",
        "aliyun.com/gpu-mem: 3",
    ] {
        let left = untouched(&container(&format!("      limits: {{nvidia.com/gpu: 1, {more}}}\n")));
        let name = more.split(':').next().unwrap();
        assert!(left.iter().any(|it| it.contains(name)), "{more}: {left:?}");
        assert!(!untouched(&container(&format!("      limits: {{{more}}}\n"))).is_empty(), "{more} alone");
        let zero = format!("{name}: 0");
        converted(&container(&format!("      limits: {{nvidia.com/gpu: 1, {zero}}}\n")));
    }
    let quota = "apiVersion: v1\nkind: ResourceQuota\nmetadata: {name: q}\nspec:\n  hard: {limits.nvidia.com/gpumem: 1}\n";
    assert!(untouched(quota)[0].contains("share of a GPU"));
}

#[test]
fn another_resource_of_the_vendor_stays_with_a_note() {
    let it = convert(&container("      limits: {nvidia.com/gpu: 1, nvidia.com/hostdev: 1}\n")).unwrap();
    again(&it);
    assert!(!it.left_something() && it.text.contains("limits: {nvidia.com/hostdev: 1}"), "{}", it.text);
    assert!(it.remarks[0].text.contains("nvidia.com/hostdev stays"), "{:?}", it.remarks);
}

#[test]
fn a_selector_for_shared_or_partitioned_gpus_keeps_the_pod_as_it_is() {
    for label in [
        "nvidia.com/gpu.sharing-strategy: time-slicing",
        "nvidia.com/gpu.replicas: \"4\"",
        "nvidia.com/gpu.product: NVIDIA-A100-SXM4-40GB-SHARED",
        "nvidia.com/device-plugin.config: sliced",
        "nvidia.com/mps.capable: \"true\"",
        "nvidia.com/mig.strategy: single",
        "nvidia.com/mig.config: all-1g.5gb",
        "cloud.google.com/gke-gpu-partition-size: 1g.5gb",
        "cloud.google.com/gke-gpu-sharing-strategy: time-sharing",
    ] {
        let left = untouched(&asking("nvidia.com/gpu", &format!("  nodeSelector: {{{label}}}\n")));
        let name = label.split(':').next().unwrap();
        assert!(left[0].contains(name), "{label}: {left:?}");
    }
    let affinity = "  affinity:\n    nodeAffinity:\n      requiredDuringSchedulingIgnoredDuringExecution:\n        nodeSelectorTerms:\n        \
                    - matchExpressions:\n          - {key: nvidia.com/gpu.replicas, operator: Gt, values: [\"1\"]}\n";
    assert!(untouched(&asking("nvidia.com/gpu", affinity))[0].contains("shared GPUs"));
    let none = affinity
        .replace("replicas, operator: Gt, values: [\"1\"]", "sharing-strategy, operator: In, values: [none]");
    converted(&asking("nvidia.com/gpu", &none));
    // Under the strategy `mixed` a profile is a profile.
    let it =
        convert(&asking("nvidia.com/mig-1g.5gb", "  nodeSelector: {nvidia.com/mig.config: all-1g.5gb}\n"))
            .unwrap();
    again(&it);
    assert!(it.left_something() && it.text.contains("resourceClaims:"), "{}", it.text);
}

#[test]
fn an_annotation_for_a_share_keeps_the_pod_as_it_is() {
    for annotation in ["gpu-fraction: \"0.5\"", "gpu-memory: \"2000\"", "nvidia.com/vgpu-mode: mig"] {
        let metadata = format!("metadata:\n  annotations: {{{annotation}}}\n");
        let text = asking("nvidia.com/gpu", "").replace("metadata:\n", &metadata);
        assert!(untouched(&text)[0].contains("share of a GPU"), "{annotation}");
    }
}

fn with_env(name: &str, value: &str, resources: &str) -> Converted {
    let text = pod(&format!(
        "  containers:\n  - name: c\n    image: x\n    env:\n    - {{name: {name}, value: \"{value}\"}}\n    resources: \
         {{limits: {{{resources}}}}}\n"
    ));
    let it = convert(&text).unwrap();
    again(&it);
    assert!(it.text.contains("resourceClaims:"), "{}", it.text);
    it
}

#[test]
fn a_pinned_device_is_reported_whichever_variable_pins_it() {
    for (name, value) in [
        ("NVIDIA_VISIBLE_DEVICES", "all"),
        ("CUDA_VISIBLE_DEVICES", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"),
        ("CUDA_VISIBLE_DEVICES", "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f"),
        ("CUDA_VISIBLE_DEVICES", "1"),
        ("CUDA_VISIBLE_DEVICES", "0,1"),
    ] {
        let it = with_env(name, value, "nvidia.com/gpu: 1");
        let left: Vec<_> = it.remarks.iter().filter(|it| it.severity == Severity::Left).collect();
        assert_eq!(left.len(), 1, "{name}={value}: {left:?}");
        assert!(left[0].path == "spec.containers[0].env[0]" && left[0].text.contains(name), "{left:?}");
    }
    // It counts what the container has.
    for (value, resources) in
        [("0", "nvidia.com/gpu: 1"), ("1,0", "nvidia.com/gpu: 2"), ("0", "nvidia.com/mig-1g.5gb: 1")]
    {
        let it = with_env("CUDA_VISIBLE_DEVICES", value, resources);
        assert!(!it.left_something() && it.remarks.len() == 1, "{value}: {:?}", it.remarks);
    }
    for (name, value) in [("NVIDIA_VISIBLE_DEVICES", "void"), ("CUDA_VISIBLE_DEVICES", "")] {
        assert_eq!(with_env(name, value, "nvidia.com/gpu: 1").remarks, [], "{name}={value}");
    }
}

#[test]
fn a_device_that_is_pinned_on_the_command_line_is_reported() {
    let rest = "  containers:\n  - name: c\n    image: x\n    command: [sh, -c, \"CUDA_VISIBLE_DEVICES=3 python train.py\"]\n    \
                resources: {limits: {nvidia.com/gpu: 1}}\n";
    let it = convert(&pod(rest)).unwrap();
    again(&it);
    assert!(
        it.remarks[0].severity == Severity::Left && it.remarks[0].path == "spec.containers[0].command[2]",
        "{:?}",
        it.remarks
    );
}

#[test]
fn several_mig_devices_in_one_container_get_a_remark() {
    for (resources, count) in [
        ("nvidia.com/mig-1g.5gb: 2", 2),
        ("nvidia.com/mig-1g.5gb: 1, nvidia.com/mig-2g.10gb: 2", 3),
        ("nvidia.com/mig-1g.5gb: 1", 0),
        ("nvidia.com/gpu: 2", 0),
    ] {
        let it = convert(&container(&format!("      limits: {{{resources}}}\n"))).unwrap();
        again(&it);
        assert!(!it.left_something());
        let notes: Vec<_> =
            it.remarks.iter().filter(|it| it.text.contains("a CUDA process uses one")).collect();
        assert_eq!(notes.len(), usize::from(count > 0), "{resources}: {notes:?}");
        assert!(notes.iter().all(|it| it.text.contains(&format!("has {count} MIG devices"))), "{notes:?}");
    }
}

#[test]
fn another_scheduler_is_noted() {
    let it = convert(&asking("nvidia.com/gpu", "  schedulerName: volcano\n")).unwrap();
    again(&it);
    assert!(it.remarks[0].text.contains("the scheduler volcano"), "{:?}", it.remarks);
    assert_eq!(
        convert(&asking("nvidia.com/gpu", "  schedulerName: default-scheduler\n")).unwrap().remarks,
        []
    );
}
