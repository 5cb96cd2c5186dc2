#![allow(clippy::unwrap_used, reason = "tests")]

use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use super::*;

fn objects(text: &str) -> Result<Vec<Object>, ManifestError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("it.yaml");
    std::fs::write(&path, text).unwrap();
    read(&[path.display().to_string()], false)
}

const WORK: &str = "
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: slice, namespace: team}
spec: {spec: {devices: {requests: [{name: mig, exactly: {deviceClassName: mig-1g.10gb}}]}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: team}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    spec:
      resourceClaims: [{name: gpu, resourceClaimTemplateName: slice}]
      containers: [{name: main, image: web}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
";

#[test]
fn a_deployment_asks_for_its_replicas_with_a_claim_of_the_template_each() {
    let objects = objects(WORK).unwrap();
    let demands: Vec<Demand> = objects.iter().filter_map(|it| Demand::of(it, "default").unwrap()).collect();
    assert_eq!(demands.len(), 1);
    assert_eq!(
        (demands[0].owner.as_str(), demands[0].replicas, demands[0].per_node),
        ("deployment/web", 3, false)
    );
    let templates = objects.iter().filter_map(|it| match it {
        Object::ResourceClaimTemplate(it) => Some(&**it),
        _ => None,
    });
    let catalog = Catalog::new([], templates, [], "default");
    let claims = catalog.planned_claims(&demands[0].pod(2)).unwrap();
    assert_eq!(claims[0].metadata.name.as_deref(), Some("web-2-gpu"));
    assert_eq!(claims[0].metadata.namespace.as_deref(), Some("team"));
    assert_eq!(claims[0].spec.devices.as_ref().unwrap().requests.as_ref().unwrap()[0].name, "mig");
    assert!(matches!(&objects[2], Object::Other { kind, .. } if kind == "Service"));
}

#[test]
fn a_template_that_does_not_exist_is_named() {
    let objects = objects(WORK).unwrap();
    let demand = Demand::of(&objects[1], "default").unwrap().unwrap();
    let error = Catalog::new([], [], [], "default").planned_claims(&demand.pod(0)).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("pod web-0: ResourceClaimTemplate `slice` does not exist in namespace `team`"),
        "{text}"
    );
}

#[test]
fn items_of_a_typed_list_get_the_kind_of_the_list() {
    let list = json!({"apiVersion": "v1", "kind": "NodeList", "items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}]});
    let objects = objects(&list.to_string()).unwrap();
    assert!(matches!(&objects[..], [Object::Node(_), Object::Node(_)]), "{objects:?}");
}

#[test]
fn mistakes_are_refused_with_file_document_and_item() {
    for (text, says) in [
        ("kind: [", "it.yaml: line "),
        ("kind: Pod\nspec:\n\tcontainers: []\n", "it.yaml: line 3, column "),
        ("{\"kind\": ", "it.yaml: line 1, column 9: not JSON: EOF while parsing a value"),
        ("a: 1\n", "it.yaml`, document 1: not a Kubernetes object: it has no `kind`"),
        ("kind: X\n---\napiVersion: v1\nkind: Pod\nspec: 7\n", "it.yaml`, document 2: Pod: "),
        (
            "{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [{\"kind\": \"A\"}, 3]}",
            "it.yaml`, document 1, item 2: ",
        ),
        (
            "apiVersion: resource.k8s.io/v1beta1\nkind: ResourceClaim\n",
            "resource.k8s.io/v1beta1 is an older version of the API",
        ),
    ] {
        let error = objects(text).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(!error.contains('\n') && !error.contains("helm"), "{error}");
    }
    let template = "kind: Pod\nmetadata:\n  name: a\n  labels: {{ include \"x\" . }}\n";
    let error = objects(template).unwrap_err().to_string();
    assert!(error.contains("it.yaml: line 4, column ") && error.contains(": not YAML: "), "{error}");
    assert!(error.ends_with("render it first (`helm template`, `kubectl kustomize`)"), "{error}");
    assert_eq!(error.matches("line 4").count(), 1, "the place is named once: {error}");
    let error = read(&["/does/not/exist.yaml".to_owned()], false).unwrap_err().to_string();
    assert!(error.starts_with("cannot read `/does/not/exist.yaml`: "), "{error}");
}

#[test]
fn an_extended_resource_becomes_the_claim_that_the_scheduler_makes() {
    let class = json!({"metadata": {"name": "mig-1g.10gb"}, "spec": {"extendedResourceName": "nvidia.com/mig-1g.10gb"}});
    let class = serde_json::from_value(class).unwrap();
    let catalog = Catalog::new([], [], [&class], "default");
    let limits = |count: i32| json!({"limits": {"nvidia.com/mig-1g.10gb": count.to_string(), "cpu": "1"}});
    let pod = json!({"metadata": {"name": "p"}, "spec": {
        "initContainers": [{"name": "warm", "resources": limits(3)}, {"name": "side", "restartPolicy": "Always", "resources": limits(1)}],
        "containers": [{"name": "main", "resources": limits(1)}, {"name": "none"}]}});
    let pod = serde_json::from_value(pod).unwrap();
    let claim = catalog.extended_claim(&pod, &Node::default()).unwrap();
    let requests = claim.spec.devices.unwrap().requests.unwrap();
    let counts: Vec<(&str, i64)> =
        requests.iter().map(|it| (it.name.as_str(), it.exactly.as_ref().unwrap().count.unwrap())).collect();
    // The init container uses the two devices of the containers after it, and one more.
    assert_eq!(
        counts,
        [("container-0-request-1", 1), ("container-1-request-1", 1), ("container-2-request-1", 1)]
    );
    let node = json!({"status": {"allocatable": {"nvidia.com/mig-1g.10gb": "4"}}});
    let node: Node = serde_json::from_value(node).unwrap();
    assert!(catalog.extended_claim(&pod, &node).is_none(), "the device plugin of the node serves it");
}
