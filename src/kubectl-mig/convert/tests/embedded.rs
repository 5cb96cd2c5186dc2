//! Manifests in strings, patches, and what looks like a patch.

use super::*;

#[test]
fn a_manifest_in_a_config_map_is_said_with_its_place() {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: templates}\ndata:\n  note: nothing here\n  pod.yaml: |\n\n\n    apiVersion: \
                v1\n    kind: Pod\n    spec:\n      tolerations:\n      - {key: nvidia.com/gpu}\n      containers:\n      - name: c\n        \
                resources:\n          limits:\n            nvidia.com/gpu: 1\n  script: |\n    {{ if .x }}\n    nvidia.com/mig-1g.5gb: \
                1\n  json: '{\"limits\": {\"nvidia.com/gpu\": 1}}'\n";
    let left = untouched(text);
    let at = |name: &str| text.lines().position(|it| it.contains(name)).unwrap() + 1;
    let wanted = [
        format!(
            "{}: left as it is: document 1, ConfigMap templates, data[pod.yaml] > spec.containers[0].resources.limits[nvidia.com/gpu]: ",
            at("  nvidia.com/gpu: 1")
        ),
        format!("{}: left as it is: document 1, ConfigMap templates, data.script: ", at("mig-1g.5gb")),
        format!(
            "{}: left as it is: document 1, ConfigMap templates, data.json > limits[nvidia.com/gpu]: ",
            at("json:")
        ),
    ];
    assert_eq!(left.len(), 3, "{left:#?}");
    for (line, wanted) in left.iter().zip(&wanted) {
        assert!(line.starts_with(wanted), "{line}\n{wanted}");
    }
}

#[test]
fn a_query_in_a_dashboard_is_no_request() {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: dashboard}\ndata:\n  board.json: |\n    {\"expr\": \
                \"sum(requests{resource=\\\"nvidia.com/gpu\\\"})\"}\n";
    assert_eq!(untouched(text), [""; 0]);
}

#[test]
fn other_strings_count_where_they_request_devices() {
    let workflow = "apiVersion: argoproj.io/v1alpha1\nkind: Workflow\nmetadata: {name: w}\nspec:\n  podSpecPatch: \
                    '{\"containers\":[{\"name\":\"main\",\"resources\":{\"limits\":{\"nvidia.com/gpu\":1}}}]}'\n";
    let left = untouched(workflow);
    assert!(
        left[0].contains("spec.podSpecPatch > containers[0].resources.limits[nvidia.com/gpu]"),
        "{left:?}"
    );
    let prose = pod(
        "  containers:\n  - {name: c, image: x, args: ['kubectl get nodes -o custom-columns=nvidia.com/gpu', 'nvidia.com/gpu: 1',\n      /bin/wait --for=nvidia.com/gpu]}\n",
    );
    assert_eq!(untouched(&prose), [""; 0]);
}

#[test]
fn a_long_list_of_places_ends_with_their_number() {
    let data: String = (0..50).map(|it| format!("  k{it}: 'nvidia.com/gpu: 1'\n")).collect();
    let left =
        untouched(&format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: many}}\ndata:\n{data}"));
    assert_eq!(left.len(), 21);
    assert!(left[0].contains("30 more places"), "{left:?}");
}

#[test]
fn strings_in_strings_end_somewhere() {
    let mut text = "limits: {nvidia.com/gpu: 1}".to_owned();
    for _ in 0..8 {
        text = format!("a: {}", serde_json::Value::from(text));
    }
    let map = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: deep}}\ndata:\n  x: {}\n",
        serde_json::Value::from(text)
    );
    assert_eq!(untouched(&map).len(), 1);
}

#[test]
fn json_patch_operations_are_said() {
    let yaml = "- op: replace\n  path: /spec/template/spec/containers/0/resources/limits/nvidia.com~1gpu\n  value: 2\n- op: add\n  path: \
                /spec/template/spec/containers/0/resources/limits\n  value: {nvidia.com/mig-1g.5gb: 1}\n- op: remove\n  path: /spec/replicas\n";
    let left = untouched(yaml);
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(
        left[0].starts_with("2: left as it is: document 1, patch, [0].path: a patch names nvidia.com/gpu"),
        "{left:?}"
    );
    assert!(left[1].contains("[1].value[nvidia.com/mig-1g.5gb]"), "{left:?}");
    let json = r#"[{"op": "add", "path": "/spec/hard/requests.nvidia.com~1gpu", "value": "4"}]"#;
    assert_eq!(untouched(json).len(), 1);
    assert_eq!(untouched("- {op: remove, path: /spec/replicas}\n"), [""; 0]);
    assert!(convert("- {op: remove}\n").is_err(), "a list of something else");
}

const DEPLOYMENT: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: serve
spec:
  selector: {matchLabels: {a: b}}
  template:
    metadata: {labels: {a: b}}
    spec:
      containers:
      - name: c
        image: x
        resources:
          limits:
            nvidia.com/gpu: 1
";

#[test]
fn what_lacks_what_the_api_server_requires_is_a_patch() {
    converted(DEPLOYMENT);
    for (line, missing) in [
        ("  selector: {matchLabels: {a: b}}\n", "spec.selector"),
        ("        image: x\n", "image"),
        ("  name: serve\n", "metadata.name"),
    ] {
        let left = untouched(&DEPLOYMENT.replace(line, ""));
        assert!(left[0].contains(&format!("looks like a patch, because it has no {missing}:")), "{left:?}");
    }
    // A patch without devices is of no interest.
    assert_eq!(
        untouched("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {replicas: 3}\n"),
        [""; 0]
    );
}
