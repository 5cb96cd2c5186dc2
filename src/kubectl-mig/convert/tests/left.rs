//! What is left unchanged, and what is noted.

use super::*;

#[test]
fn quotas_are_renamed() {
    let text = "\
apiVersion: v1
kind: ResourceQuota
metadata: {name: gpus, namespace: team}
spec:
  hard:
    requests.nvidia.com/mig-1g.5gb: 4 # small ones
    \"requests.nvidia.com/gpu\": \"0\"
    requests.cpu: 10
";
    let wanted = text
        .replace("requests.nvidia.com/mig-1g.5gb:", "mig-1g.5gb.deviceclass.resource.k8s.io/devices:")
        .replace("requests.nvidia.com/gpu", "gpu.dra-driver.dev.deviceclass.resource.k8s.io/devices");
    assert_eq!(converted(text), wanted);
    let notes = convert(text).unwrap().remarks;
    assert!(notes[0].text.contains("mig.dra-driver.dev.deviceclass"), "{notes:?}");
}

#[test]
fn quotas_that_are_not_enforced_are_left() {
    let quota = |spec: &str| {
        untouched(&format!("apiVersion: v1\nkind: ResourceQuota\nmetadata: {{name: q}}\nspec:\n{spec}"))
    };
    let left = quota("  hard:\n    limits.nvidia.com/gpu: 1\n");
    assert!(left[0].contains("requests.nvidia.com/gpu"), "{left:?}");
    assert_eq!(quota("  hard: {nvidia.com/gpu: 1}\n").len(), 1);
    let left = quota("  scopes: [NotTerminating]\n  hard: {requests.nvidia.com/gpu: 1}\n");
    assert!(left[0].contains("scopes"), "{left:?}");
    let both = "  hard:\n    requests.nvidia.com/mig-1g.5gb: 1\n    mig-1g.5gb.deviceclass.resource.k8s.io/devices: 2\n";
    assert!(quota(both)[0].contains("keep one"));
}

#[test]
fn what_no_claim_can_express_is_left_with_a_reason() {
    for (resources, reason) in [
        ("      limits: {nvidia.com/gpu.shared: 1}\n", "shared-claim"),
        ("      limits: {nvidia.com/mig-1c.2g.10gb: 1}\n", "no device class"),
        ("      limits: {nvidia.com/gpu: 33}\n", "at most 32"),
        ("      limits: {nvidia.com/gpu: two}\n", "whole number"),
        ("      limits: {nvidia.com/gpu: 1.5}\n", "whole number"),
        ("      limits: {nvidia.com/gpu: -1}\n", "whole number"),
        ("      limits: {nvidia.com/gpu: 1k}\n", "in plain digits"),
        ("      limits: {nvidia.com/gpu: 1000m}\n", "in plain digits"),
        ("      limits: {nvidia.com/gpu: }\n", "in plain digits"),
        ("      requests: {nvidia.com/gpu: 1}\n", "add the limit"),
        ("      requests: {nvidia.com/gpu: 1}\n      limits: {nvidia.com/gpu: 2}\n", "another number"),
        ("      limits: {nvidia.com/gpu: !!int 1}\n", "tag"),
        ("      limits: {nvidia.com/gpu: &n 1}\n", "anchor"),
        ("      limits: &l {nvidia.com/gpu: 1}\n", "anchor"),
        ("      limits: {nvidia.com/gpu: 1}\n      claims: null\n", "no claim"),
        ("      limits: {nvidia.com/gpu: 1, nvidia.com/gpu: 2}\n", ""),
        ("      limits: {nvidia.com/gpu: 1}\n      limits: {nvidia.com/gpu: 1}\n", ""),
    ] {
        let text = container(resources);
        match convert(&text) {
            Ok(_) => {
                let left = untouched(&text);
                assert!(left.iter().any(|it| it.contains(reason)), "{resources}: {left:?}");
            }
            Err(error) => panic!("{resources}: {error}"),
        }
    }
    let left = untouched(&container("      limits: {nvidia.com/gpu.shared: 1}\n"));
    let wanted =
        "10: left as it is: document 1, Pod p, spec.containers[0].resources.limits[nvidia.com/gpu.shared]: ";
    assert!(left[0].starts_with(wanted), "{left:?}");
}

#[test]
fn one_container_that_cannot_be_converted_keeps_its_whole_pod_back_and_no_other() {
    let left = "  containers:\n  - name: a\n    image: x\n    resources: {limits: {nvidia.com/gpu.shared: 1}}\n  - name: b\n    \
                image: x\n    resources: {limits: {nvidia.com/gpu: 1}}\n";
    let it = convert(&format!("{}---\n{POD}", pod(left))).unwrap();
    assert!(it.text.starts_with(&pod(left)), "{}", it.text);
    assert!(it.text.contains("resourceClaimTemplateName: mig-3g.20gb"));
    assert!(it.left_something());
}

#[test]
fn anchors_and_aliases_with_devices_are_left_and_without_are_kept() {
    let gpu = "  containers:\n  - name: a\n    resources: &gpu\n      limits: {nvidia.com/gpu: 1}\n  - name: b\n    resources: *gpu\n";
    let left = untouched(&pod(gpu));
    assert_eq!(left.len(), 2, "{left:?}");
    let merge = "  containers:\n  - &a\n    name: a\n    resources: {limits: {nvidia.com/gpu: 1}}\n  - <<: *a\n    name: b\n";
    assert!(!untouched(&pod(merge)).is_empty());
    let far = "x: &x {limits: {nvidia.com/gpu: 1}}\n";
    let text = format!("{far}{}", pod("  containers:\n  - name: a\n    resources:\n      <<: *x\n"));
    assert!(!untouched(&text).is_empty());
    let harmless = "  nodeSelector: &s {disk: ssd}\n  other: *s\n  containers:\n  - name: a\n    env: &e [{name: A, value: b}]\n    \
                    image: x\n    resources:\n      limits: {nvidia.com/gpu: 1}\n  - name: b\n    env: *e\n    resources: &r {limits: {cpu: 1}}\n  \
                    - name: c\n    resources: *r\n";
    let text = converted(&pod(harmless));
    for kept in [
        "nodeSelector: &s {disk: ssd}\n",
        "env: &e [",
        "env: *e\n",
        "resources: &r {limits: {cpu: 1}}\n",
        "resources: *r\n",
    ] {
        assert!(text.contains(kept), "{kept}");
    }
}

#[test]
fn a_billion_laughs_cost_nothing() {
    let mut text = String::from("kind: X\na0: &a0 [nvidia.com/gpu]\n");
    for level in 1..60 {
        let one = format!("*a{}", level - 1);
        text.push_str(&format!("a{level}: &a{level} [{}]\n", [one.as_str(); 9].join(",")));
    }
    assert_eq!(untouched(&text).len(), 1);
}

#[test]
fn kinds_that_are_not_known_are_reported_only_where_they_name_devices() {
    let job = "apiVersion: kubeflow.org/v1\nkind: PyTorchJob\nmetadata: {name: t}\nspec:\n  worker:\n    template:\n      \
               spec:\n        containers:\n        - resources: {limits: {nvidia.com/mig-1g.5gb: 1}}\n";
    let left = untouched(job);
    assert!(
        left[0].contains(
            "PyTorchJob t, spec.worker.template.spec.containers[0].resources.limits[nvidia.com/mig-1g.5gb]"
        ),
        "{left:?}"
    );
    // A Job of another API group is not the Job of batch/v1.
    assert_eq!(
        untouched(&job.replace("kubeflow.org/v1", "batch.volcano.sh/v1alpha1").replace("PyTorchJob", "Job"))
            .len(),
        1
    );
    assert_eq!(
        untouched("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, labels: {nvidia.com/gpu: \"1\"}}\n"),
        [""; 0]
    );
    let class = "apiVersion: resource.k8s.io/v1\nkind: DeviceClass\nmetadata: {name: c}\nspec: {extendedResourceName: nvidia.com/gpu}\n";
    assert_eq!(untouched(class), [""; 0]);
    assert_eq!(untouched("# nothing\n"), [""; 0]);
    assert_eq!(untouched(""), [""; 0]);
    assert_eq!(untouched("---\n---\n# two empty documents\n"), [""; 0]);
    assert_eq!(untouched(&container("      limits: {cpu: 1, nvidia.com/gpu: 0}\n")), [""; 0]);
}

#[test]
fn selectors_and_tolerations_are_reported_and_stay() {
    let rest = "  nodeSelector:
    nvidia.com/mig.config: all-1g.5gb
    nvidia.com/gpu.product: NVIDIA-A100-SXM4-40GB
  tolerations:
  - key: nvidia.com/gpu
    operator: Exists
  runtimeClassName: nvidia
  containers:
  - name: c
    image: x
    env:
    - {name: NVIDIA_VISIBLE_DEVICES, value: all}
    resources:
      limits:
        nvidia.com/mig-1g.5gb: 1
  affinity:
    nodeAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        nodeSelectorTerms:
        - matchExpressions:
          - {key: nvidia.com/gpu.memory, operator: Gt, values: [\"40000\"]}
";
    let it = convert(&pod(rest)).unwrap();
    let of = |severity| {
        it.remarks.iter().filter(|it| it.severity == severity).map(|it| it.line).collect::<Vec<_>>()
    };
    assert_eq!(of(Severity::Left), [7, 17]);
    assert_eq!(of(Severity::Note), [8, 10, 12, 26]);
    for line in rest.lines().filter(|it| !it.contains("mig-1g.5gb: 1") && *it != "      limits:") {
        assert!(it.text.contains(&format!("{line}\n")), "{line}");
    }
    assert!(it.text.contains("resourceClaimTemplateName: mig-1g.5gb"));
}

#[test]
fn a_slice_that_is_called_a_gpu_is_not_taken_for_one() {
    let rest = "  nodeSelector: {nvidia.com/gpu.product: NVIDIA-A100-SXM4-40GB-MIG-1g.5gb}\n  containers:\n  - name: c\n    \
                image: x\n    resources: {limits: {nvidia.com/gpu: 1}}\n";
    let left = untouched(&pod(rest));
    assert!(left[0].contains("`single`"), "{left:?}");
}

#[test]
fn a_layout_that_cannot_be_edited_is_left() {
    let text = pod(
        "  containers:\n  - name: c\n    image: x\n    resources:\n      limits:\n        cpu: 1\n        ? nvidia.com/gpu\n        : 1\n",
    );
    assert!(untouched(&text)[0].contains("block style"));
}
