//! Whole files in and out.

mod embedded;
mod kinds;
mod left;
mod shares;

use super::error::MAX_BYTES;
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

fn pod(rest: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\nspec:\n{rest}")
}

fn container(resources: &str) -> String {
    pod(&format!("  containers:\n  - name: c\n    image: x\n    resources:\n{resources}"))
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
fn markers_and_directives_keep_their_documents() {
    let text = format!(
        "%YAML 1.2\n---\n{POD}...\n---\n# second\n{}",
        POD.replace("one", "two").replace("3g.20gb", "1g.5gb")
    );
    let text = converted(&text);
    assert!(text.starts_with("%YAML 1.2\n---\napiVersion: resource.k8s.io/v1\n"), "{text}");
    assert!(text.contains("\n---\n# second\n# A pod of ours.\n"), "{text}");
}
