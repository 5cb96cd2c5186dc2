//! Whole files in and out.

mod embedded;
mod kinds;
mod shares;

use super::*;

/// The result, which must have nothing left.
fn converted(text: &str) -> String {
    let it = convert(text).unwrap();
    assert!(!it.left_something(), "{:#?}", it.remarks);
    again(&it);
    it.text
}

/// What is left of a text that must not change.
fn untouched(text: &str) -> Vec<String> {
    let it = convert(text).unwrap();
    assert_eq!(it.text, text);
    again(&it);
    it.remarks.iter().filter(|it| it.severity == Severity::Left).map(ToString::to_string).collect()
}

/// What a run says, without the lines, which a conversion moves.
pub(super) fn said(converted: &Converted) -> Vec<String> {
    let line = |it: &Remark| format!("{:?} {} {}: {}", it.severity, it.object, it.path, it.text);
    let mut all: Vec<String> = converted.remarks.iter().map(line).collect();
    all.sort();
    all
}

/// A second run changes nothing and says the same.
fn again(first: &Converted) {
    let second = convert(&first.text).unwrap();
    assert_eq!(second.text, first.text);
    assert_eq!(said(&second), said(first), "{}", first.text);
}

const POD: &str = "\
# A pod of ours.
apiVersion: v1
kind: Pod
metadata: {name: one}
spec:
  containers:
  - name: cuda   # the only one
    image: cuda
    resources:
      limits:
        # half a GPU
        nvidia.com/mig-3g.20gb: 1   # not more
        memory: \"4Gi\"
  restartPolicy: Never
";

#[test]
fn a_pod_gets_a_template_and_a_claim_and_keeps_the_rest() {
    let wanted = "\
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata:
  name: mig-3g.20gb
spec:
  spec:
    devices:
      requests:
      - name: mig-3g-20gb
        exactly:
          deviceClassName: mig-3g.20gb
---
# A pod of ours.
apiVersion: v1
kind: Pod
metadata: {name: one}
spec:
  containers:
  - name: cuda   # the only one
    image: cuda
    resources:
      limits:
        # half a GPU
        # not more
        memory: \"4Gi\"
      claims:
      - name: cuda-gpu
  restartPolicy: Never
  resourceClaims:
  - name: cuda-gpu
    resourceClaimTemplateName: mig-3g.20gb
";
    assert_eq!(converted(POD), wanted);
}

#[test]
fn windows_line_ends_stay_and_a_missing_last_one_too() {
    let text = POD.replace('\n', "\r\n");
    assert_eq!(converted(&text), converted(POD).replace('\n', "\r\n"));
    let text = POD.trim_end();
    assert_eq!(converted(text), converted(POD).trim_end());
    assert_eq!(converted(&format!("\u{feff}{POD}")), format!("\u{feff}{}", converted(POD)));
}

#[test]
fn containers_have_separate_claims_and_templates_are_shared() {
    let text = "\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: serve
  namespace: ml
spec:
  selector: {matchLabels: {a: b}}
  template:
    spec:
      initContainers:
        - name: warm
          image: x
          resources: {limits: {nvidia.com/mig-1g.5gb: 1, cpu: 1}}
        - name: sidecar
          image: x
          restartPolicy: Always
          resources: {requests: {nvidia.com/mig-1g.5gb: \"1\"}, limits: {nvidia.com/mig-1g.5gb: 1}}
        - name: other
          image: x
          resources: {limits: {nvidia.com/gpu: 1}}
      containers:
        - name: a
          image: x
          resources:
            requests:
              nvidia.com/mig-1g.5gb: 1
            limits:
              nvidia.com/mig-1g.5gb: 1
        - name: b
          image: x
          resources:
            limits: {nvidia.com/gpu: 2, nvidia.com/mig-1g.5gb: 1}
            claims: []
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly, namespace: ml}
spec:
  jobTemplate:
    spec:
      template:
        spec:
          resourceClaims:
          - name: mine
            resourceClaimName: shared
          containers:
          - name: a
            image: x
            resources:
              claims:
              - name: mine
              limits:
                nvidia.com/mig-1g.5gb: 1
";
    let wanted = "\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: serve
  namespace: ml
spec:
  selector: {matchLabels: {a: b}}
  template:
    spec:
      initContainers:
        - name: warm
          image: x
          resources: {limits: {cpu: 1}, claims: [{name: a-gpu}]}
        - name: sidecar
          image: x
          restartPolicy: Always
          resources: {claims: [{name: sidecar-gpu}]}
        - name: other
          image: x
          resources: {claims: [{name: other-gpu}]}
      containers:
        - name: a
          image: x
          resources:
            claims:
            - name: a-gpu
        - name: b
          image: x
          resources:
            claims: [{name: b-gpu}]
      resourceClaims:
        - name: a-gpu
          resourceClaimTemplateName: mig-1g.5gb
        - name: b-gpu
          resourceClaimTemplateName: gpu-x2-mig-1g.5gb
        - name: sidecar-gpu
          resourceClaimTemplateName: mig-1g.5gb
        - name: other-gpu
          resourceClaimTemplateName: gpu
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly, namespace: ml}
spec:
  jobTemplate:
    spec:
      template:
        spec:
          resourceClaims:
          - name: mine
            resourceClaimName: shared
          - name: a-gpu
            resourceClaimTemplateName: mig-1g.5gb
          containers:
          - name: a
            image: x
            resources:
              claims:
              - name: mine
              - name: a-gpu
";
    let text = converted(text);
    let at = text.find("apiVersion: apps/v1").unwrap();
    assert_eq!(&text[at..], wanted);
    let names: Vec<&str> = text[..at].lines().filter(|it| it.starts_with("  name: ")).collect();
    assert_eq!(names, ["  name: mig-1g.5gb", "  name: gpu-x2-mig-1g.5gb", "  name: gpu"]);
    assert_eq!(text[..at].matches("  namespace: ml\n").count(), 3);
    assert!(text.contains("      - name: gpu\n        exactly:\n          deviceClassName: gpu.dra-driver.dev\n          count: 2\n"));
}

#[test]
fn every_kind_with_a_pod_template_is_known() {
    for (version, kind) in [
        ("apps/v1", "StatefulSet"),
        ("apps/v1", "DaemonSet"),
        ("apps/v1", "ReplicaSet"),
        ("batch/v1", "Job"),
        ("v1", "ReplicationController"),
    ] {
        let text = format!(
            "apiVersion: {version}\nkind: {kind}\nmetadata:\n  name: x\nspec:\n  selector: {{matchLabels: {{a: b}}}}\n  template:\n    spec:\n      containers:\n\
             \x20     - name: c\n        image: x\n        resources:\n          limits:\n            nvidia.com/gpu: 1\n"
        );
        assert!(converted(&text).contains("resourceClaimTemplateName: gpu\n"), "{kind}");
    }
}

#[test]
fn lists_are_looked_into() {
    let item =
        POD.lines().skip(1).map(|it| format!("  {it}\n")).collect::<String>().replacen("  api", "- api", 1);
    let text = format!("apiVersion: v1\nkind: List\nitems:\n{item}{}", item.replace("one", "two"));
    let text = converted(&text);
    assert_eq!(text.matches("kind: ResourceClaimTemplate\n").count(), 1);
    assert_eq!(text.matches("resourceClaimTemplateName: mig-3g.20gb\n").count(), 2);
}

#[test]
fn json_stays_json() {
    let text = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": {"containers": [
  {"name": "c", "image": "x", "resources": {"limits": {"cpu": 1, "nvidia.com/gpu": 1, "memory": "1Gi"}}}]}}
"#;
    let wanted = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": {"containers": [
  {"name": "c", "image": "x", "resources": {"limits": {"cpu": 1, "memory": "1Gi"}, "claims": [{"name": "c-gpu"}]}}], "resourceClaims": [{"name": "c-gpu", "resourceClaimTemplateName": "gpu"}]}}
"#;
    let text = converted(text);
    assert!(text.ends_with(&format!("---\n{wanted}")), "{text}");
    serde_json::from_str::<serde_json::Value>(wanted).unwrap();
}

#[test]
fn a_template_that_is_there_is_used_and_a_foreign_one_is_not_overwritten() {
    let once = converted(POD);
    let pod = &POD[POD.find("apiVersion").unwrap()..];
    let more = format!("{once}---\n{}", pod.replace("name: one", "name: two"));
    assert_eq!(converted(&more).matches("kind: ResourceClaimTemplate").count(), 1);
    let foreign = once[..once.find("---").unwrap()]
        .replace("          deviceClassName: mig-3g.20gb\n", "          deviceClassName: other\n");
    let text = converted(&format!("{foreign}---\n{pod}"));
    assert!(text.contains("resourceClaimTemplateName: mig-3g.20gb-2\n"), "{text}");
}

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

fn pod(rest: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\nspec:\n{rest}")
}

fn container(resources: &str) -> String {
    pod(&format!("  containers:\n  - name: c\n    image: x\n    resources:\n{resources}"))
}

#[test]
fn what_cannot_be_said_with_a_claim_is_left_with_a_reason() {
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
fn where_a_pod_wants_to_run_is_reported_and_stays() {
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
fn what_is_no_file_of_objects_is_refused() {
    for text in ["a: [", "{{ .Values.x }}: 1\n", "just text", "- 1\n- 2\n", "a: 1\n", "kind: Pod\n\tx: 1\n"] {
        assert!(convert(text).is_err(), "{text}");
    }
    let error = convert("kind: A\n---\nkind: [\n").unwrap_err().to_string();
    assert!(error.contains("helm template"), "{error}");
    let huge = " ".repeat(MAX_BYTES + 1);
    assert!(matches!(convert(&huge), Err(ConvertError::TooLarge { .. })));
}

#[test]
fn a_layout_that_cannot_be_edited_is_left() {
    let text = pod(
        "  containers:\n  - name: c\n    image: x\n    resources:\n      limits:\n        cpu: 1\n        ? nvidia.com/gpu\n        : 1\n",
    );
    assert!(untouched(&text)[0].contains("block style"));
}

#[test]
fn markers_and_directives_keep_their_documents() {
    let text = format!(
        "%YAML 1.2\n---\n{POD}...\n---\n# second\n{}",
        POD.replace("one", "two").replace("3g.20gb", "1g.5gb")
    );
    let text = converted(&text);
    assert!(text.starts_with("%YAML 1.2\n---\napiVersion: resource.k8s.io/v1\n"), "{text}");
    assert!(text.contains("\n---\n# second\n# A pod of ours.\n"), "{text}");
}
