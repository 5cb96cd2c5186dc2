//! Controllers, quotas and extended resources, step by step on a store: no server, no kubelet, no time.

use std::sync::Arc;

use kube_sim::api::error::ApiError;
use kube_sim::api::gates::Gates;
use kube_sim::api::store::{DeleteOptions, Store, WriteOptions};
use kube_sim::control::reconcile;
use kube_sim::kinds::{self, EVENT, JOB, KindRef, NODE, POD, RESOURCE_CLAIM, RESOURCE_QUOTA};
use kube_sim::manifest;
use serde_json::{Value, json};

/// A cluster with two nodes that have four devices each of class `small`, named `example.com/small`, too.
fn cluster(extended_resource: bool) -> Store {
    let store = Store::new(Gates { extended_resource, ..Gates::default() });
    let class = json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": "small"},
        "spec": {"extendedResourceName": "example.com/small"}});
    add(&store, &class).unwrap();
    for node in ["a", "b"] {
        add(&store, &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})).unwrap();
        let devices: Vec<Value> = (0..4).map(|index| json!({"name": format!("d-{index}")})).collect();
        let spec = json!({"driver": "d.example.com", "nodeName": node, "devices": devices,
            "pool": {"name": node, "generation": 1, "resourceSliceCount": 1}});
        let slice = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": node}, "spec": spec});
        add(&store, &slice).unwrap();
    }
    store
}

fn add(store: &Store, object: &Value) -> Result<Arc<Value>, ApiError> {
    let text = |field: &str| object[field].as_str().unwrap();
    let kind = kinds::by_type(text("apiVersion"), text("kind")).unwrap();
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
    store.create(kind, namespace, object.clone(), &WriteOptions { strict: true, ..WriteOptions::default() })
}

/// Creates the objects of a text and lets the controllers work.
fn play(store: &Store, text: &str) {
    for object in manifest::parse(text).unwrap() {
        add(store, &object).unwrap();
    }
    settle(store);
}

/// Lets the controllers work until they have nothing to do, which they come to.
fn settle(store: &Store) {
    for _ in 0..100 {
        let before = store.revision();
        reconcile(store);
        if store.revision() == before {
            return;
        }
    }
    panic!("the controllers find no end");
}

fn list(store: &Store, kind: KindRef) -> Vec<Arc<Value>> {
    store.list(kind, None, &Default::default()).0
}

fn names(store: &Store, kind: KindRef) -> Vec<String> {
    list(store, kind).iter().map(|it| it["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

fn merge(store: &Store, kind: KindRef, name: &str, part: kube_sim::Part, change: Value) {
    let patch = kube_sim::api::patch::Patch::Merge(change);
    store.patch(kind, "default", name, &patch, part, &WriteOptions::default()).unwrap();
}

/// What a kubelet would say of a pod.
fn set_phase(store: &Store, pod: &str, phase: &str) {
    merge(store, &POD, pod, kube_sim::Part::Status, json!({"status": {"phase": phase}}));
    settle(store);
}

/// Removes a pod as the kubelet does in the end.
fn remove(store: &Store, pod: &str) {
    let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
    store.delete(&POD, "default", pod, &now).unwrap();
    settle(store);
}

fn message(store: &Store, reason: &str) -> Option<String> {
    let events = list(store, &EVENT);
    let event = events.iter().find(|event| event["reason"] == reason)?;
    event["message"].as_str().map(str::to_owned)
}

const SET: &str = "
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: set}
spec:
  serviceName: set
  replicas: 3
  POLICY
  selector: {matchLabels: {app: set}}
  template:
    metadata: {labels: {app: set}}
    spec: {containers: [{name: c, image: i}]}
";

#[test]
fn a_stateful_set_makes_its_pods_one_after_the_other_and_takes_the_last_away_first() {
    let store = cluster(false);
    play(&store, &SET.replace("POLICY", ""));
    assert_eq!(names(&store, &POD), ["set-0"]);
    set_phase(&store, "set-0", "Running");
    set_phase(&store, "set-1", "Running");
    assert_eq!(names(&store, &POD), ["set-0", "set-1", "set-2"]);
    merge(&store, &kinds::STATEFUL_SET, "set", kube_sim::Part::Main, json!({"spec": {"replicas": 1}}));
    settle(&store);
    let leaving: Vec<bool> =
        list(&store, &POD).iter().map(|it| !it["metadata"]["deletionTimestamp"].is_null()).collect();
    assert_eq!(leaving, [false, true, true]);
}

#[test]
fn a_parallel_stateful_set_makes_all_pods_at_once_and_replaces_one_under_its_name() {
    let store = cluster(false);
    play(&store, &SET.replace("POLICY", "podManagementPolicy: Parallel"));
    assert_eq!(names(&store, &POD), ["set-0", "set-1", "set-2"]);
    let uid = list(&store, &POD)[1]["metadata"]["uid"].clone();
    remove(&store, "set-1");
    assert_eq!(names(&store, &POD), ["set-0", "set-1", "set-2"]);
    assert_ne!(list(&store, &POD)[1]["metadata"]["uid"], uid);
}

#[test]
fn a_daemon_set_has_one_pod_on_each_node() {
    let store = cluster(false);
    let text = "{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: d}, spec: {selector: {matchLabels: {a: b}}, \
                template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}";
    play(&store, text);
    let nodes = |store: &Store| {
        let mut nodes: Vec<String> =
            list(store, &POD).iter().map(|it| it["spec"]["nodeName"].as_str().unwrap().to_owned()).collect();
        nodes.sort();
        nodes
    };
    assert_eq!(nodes(&store), ["a", "b"]);
    store.delete(&NODE, "", "b", &DeleteOptions::default()).unwrap();
    let gone: Vec<String> = names(&store, &POD);
    gone.iter().for_each(|pod| remove(&store, pod));
    assert_eq!(nodes(&store), ["a"]);
}

const JOB_OF_THREE: &str = "
apiVersion: batch/v1
kind: Job
metadata: {name: job}
spec:
  completions: 3
  parallelism: 2
  backoffLimit: 1
  template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}
";

fn active(store: &Store) -> Vec<String> {
    let pods = list(store, &POD);
    let active = pods
        .iter()
        .filter(|it| it["status"]["phase"] == "Pending" && it["metadata"]["deletionTimestamp"].is_null());
    active.map(|it| it["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

fn conditions(store: &Store) -> Vec<Value> {
    let job = list(store, &JOB).swap_remove(0);
    job["status"]["conditions"].as_array().into_iter().flatten().map(|it| it["type"].clone()).collect()
}

#[test]
fn a_job_runs_as_many_pods_at_once_as_it_may_until_enough_have_succeeded() {
    let store = cluster(false);
    play(&store, JOB_OF_THREE);
    assert_eq!(active(&store).len(), 2);
    set_phase(&store, &active(&store)[0], "Succeeded");
    assert_eq!(active(&store).len(), 2);
    set_phase(&store, &active(&store)[0], "Succeeded");
    assert_eq!((active(&store).len(), conditions(&store).len()), (1, 0));
    set_phase(&store, &active(&store)[0], "Succeeded");
    assert_eq!((active(&store).len(), conditions(&store)), (0, vec![json!("Complete")]));
}

#[test]
fn a_job_gives_up_after_its_backoff_limit() {
    let store = cluster(false);
    play(&store, JOB_OF_THREE);
    set_phase(&store, &active(&store)[0], "Failed");
    assert_eq!(active(&store).len(), 2);
    set_phase(&store, &active(&store)[0], "Failed");
    assert_eq!((active(&store).len(), conditions(&store)), (0, vec![json!("Failed")]));
}

#[test]
fn a_job_whose_pods_restart_forever_is_refused() {
    let store = cluster(false);
    let text = JOB_OF_THREE.replace("restartPolicy: Never", "restartPolicy: Always");
    let error = add(&store, &manifest::parse(&text).unwrap()[0]).unwrap_err();
    assert_eq!(error.place(), Some("spec.template.spec.restartPolicy"));
}

#[test]
fn a_cron_job_runs_once() {
    let store = cluster(false);
    let text = "{apiVersion: batch/v1, kind: CronJob, metadata: {name: cron}, spec: {schedule: '0 3 * * *', jobTemplate: {spec: \
                {template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}}}}";
    play(&store, text);
    assert_eq!((names(&store, &JOB), active(&store).len()), (vec!["cron-1".to_owned()], 1));
    store.delete(&JOB, "default", "cron-1", &DeleteOptions::default()).unwrap();
    settle(&store);
    assert_eq!(names(&store, &JOB), [""; 0]);
}

const QUOTA: &str = "
apiVersion: v1
kind: ResourceQuota
metadata: {name: q}
spec: {hard: {small.deviceclass.resource.k8s.io/devices: '2', requests.example.com/small: '2'}}
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: t}
spec: {spec: {devices: {requests: [{name: r, exactly: {deviceClassName: small}}]}}}
";

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: w}
spec:
  replicas: 3
  selector: {matchLabels: {app: w}}
  template:
    metadata: {labels: {app: w}}
    spec:
      containers: [{name: c, image: i, resources: RESOURCES}]
      CLAIMS
";

#[test]
fn claims_beyond_a_quota_are_refused_and_the_quota_says_what_is_used() {
    let store = cluster(false);
    let claims = "resourceClaims: [{name: gpu, resourceClaimTemplateName: t}]";
    let text = DEPLOYMENT.replace("RESOURCES", "{claims: [{name: gpu}]}").replace("CLAIMS", claims);
    play(&store, &format!("{QUOTA}---{text}"));
    assert_eq!((list(&store, &POD).len(), list(&store, &RESOURCE_CLAIM).len()), (3, 2));
    let why = message(&store, "FailedResourceClaimCreation").unwrap();
    let name = "small.deviceclass.resource.k8s.io/devices";
    assert!(
        why.ends_with(&format!("exceeded quota: q, requested: {name}=1, used: {name}=2, limited: {name}=2")),
        "{why}"
    );
    let quota = list(&store, &RESOURCE_QUOTA).swap_remove(0);
    assert_eq!(quota["status"]["used"][name], "2");
    assert_eq!(quota["status"]["hard"][name], "2");
    let more = json!({"spec": {"hard": {name: "3"}}});
    merge(&store, &RESOURCE_QUOTA, "q", kube_sim::Part::Main, more);
    settle(&store);
    assert_eq!(list(&store, &RESOURCE_CLAIM).len(), 3);
}

#[test]
fn pods_of_an_older_deployment_come_first() {
    let store = cluster(false);
    let claims = "resourceClaims: [{name: gpu, resourceClaimTemplateName: t}]";
    let young = DEPLOYMENT.replace("RESOURCES", "{claims: [{name: gpu}]}").replace("CLAIMS", claims);
    let young = young.replace("name: w", "name: a").replace("replicas: 3", "replicas: 8");
    let old = young.replace("name: a", "name: z").replace("replicas: 8", "replicas: 5");
    let template = QUOTA.split("---").nth(1).unwrap();
    play(&store, &format!("{template}---{old}---{young}"));
    let pods = list(&store, &POD);
    let bound = pods.iter().filter(|it| !it["spec"]["nodeName"].is_null());
    let old = bound.filter(|it| it["metadata"]["name"].as_str().unwrap().starts_with("z-")).count();
    assert_eq!(old, 5);
}

#[test]
fn a_pod_with_an_extended_resource_gets_a_claim_from_the_scheduler() {
    let store = cluster(true);
    let text = DEPLOYMENT.replace("RESOURCES", "{limits: {example.com/small: 2}}").replace("CLAIMS", "");
    play(&store, &text.replace("replicas: 3", "replicas: 1"));
    let pod = list(&store, &POD).swap_remove(0);
    let claim = list(&store, &RESOURCE_CLAIM).swap_remove(0);
    let status = &pod["status"]["extendedResourceClaimStatus"];
    assert_eq!(status["resourceClaimName"], claim["metadata"]["name"]);
    let mapping = json!([{"containerName": "c", "resourceName": "example.com/small", "requestName": "container-0-request-0"}]);
    assert_eq!(status["requestMappings"], mapping);
    assert_eq!(claim["spec"]["devices"]["requests"][0]["exactly"]["count"], 2);
    assert_eq!(claim["metadata"]["annotations"]["resource.kubernetes.io/extended-resource-claim"], "true");
    assert_eq!(claim["status"]["allocation"]["devices"]["results"].as_array().unwrap().len(), 2);
    assert_eq!(claim["status"]["reservedFor"][0]["uid"], pod["metadata"]["uid"]);
    store.delete(&kinds::DEPLOYMENT, "default", "w", &DeleteOptions::default()).unwrap();
    remove(&store, pod["metadata"]["name"].as_str().unwrap());
    assert_eq!(list(&store, &RESOURCE_CLAIM).len(), 0);
}

#[test]
fn init_containers_share_the_devices_of_the_others() {
    let store = cluster(true);
    let text = "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {\
        initContainers: [{name: i, image: i, resources: {limits: {example.com/small: 3}}}], \
        containers: [{name: c, image: i, resources: {limits: {example.com/small: 1, cpu: 1}}}]}}";
    play(&store, text);
    let claim = list(&store, &RESOURCE_CLAIM).swap_remove(0);
    let requests = claim["spec"]["devices"]["requests"].as_array().unwrap();
    let counts: Vec<(&str, i64)> = requests
        .iter()
        .map(|it| (it["name"].as_str().unwrap(), it["exactly"]["count"].as_i64().unwrap()))
        .collect();
    assert_eq!(counts, [("container-0-request-0", 2), ("container-1-request-1", 1)]);
}

#[test]
fn without_the_gate_or_a_class_an_extended_resource_is_insufficient() {
    let text = DEPLOYMENT.replace("RESOURCES", "{limits: {example.com/small: 1}}").replace("CLAIMS", "");
    for (gate, text, resource) in [
        (false, text.clone(), "small"),
        (true, text.replace("example.com/small", "example.com/large"), "large"),
    ] {
        let store = cluster(gate);
        play(&store, &text);
        let why = message(&store, "FailedScheduling").unwrap();
        assert_eq!(why, format!("0/2 nodes are available: 2 Insufficient example.com/{resource}."));
        assert_eq!(list(&store, &RESOURCE_CLAIM).len(), 0);
        assert!(list(&store, &POD).iter().all(|pod| pod["spec"]["nodeName"].is_null()));
    }
}

#[test]
fn pods_beyond_a_quota_on_an_extended_resource_are_refused_once() {
    let store = cluster(true);
    let text = DEPLOYMENT.replace("RESOURCES", "{limits: {example.com/small: 1}}").replace("CLAIMS", "");
    play(&store, &format!("{QUOTA}---{text}"));
    assert_eq!((list(&store, &POD).len(), list(&store, &RESOURCE_CLAIM).len()), (2, 2));
    let why = message(&store, "FailedCreate").unwrap();
    let name = "requests.example.com/small";
    assert!(
        why.ends_with(&format!("exceeded quota: q, requested: {name}=1, used: {name}=2, limited: {name}=2")),
        "{why}"
    );
}

#[test]
fn pods_of_a_higher_priority_come_first_and_an_unknown_class_is_refused() {
    let store = cluster(false);
    let class =
        "{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: high}, value: 1000}";
    let claims = "resourceClaims: [{name: gpu, resourceClaimTemplateName: t}]";
    let low = DEPLOYMENT.replace("RESOURCES", "{claims: [{name: gpu}]}").replace("CLAIMS", claims);
    let low = low.replace("replicas: 3", "replicas: 8");
    let high = low.replace("name: w", "name: h").replace("replicas: 8", "replicas: 4");
    let high = high.replace("resourceClaims:", "priorityClassName: high\n      resourceClaims:");
    let template = QUOTA.split("---").nth(1).unwrap();
    play(&store, &format!("{class}\n---\n{template}---{low}---{high}"));
    let bound = |prefix: &str| {
        let pods = list(&store, &POD);
        let mine = pods.iter().filter(|it| it["metadata"]["name"].as_str().unwrap().starts_with(prefix));
        mine.filter(|it| !it["spec"]["nodeName"].is_null()).count()
    };
    assert_eq!((bound("h-"), bound("w-")), (4, 4));
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"priorityClassName": "none", "containers": [{"name": "c"}]}});
    let error = add(&store, &pod).unwrap_err();
    assert_eq!(error.message, "pods \"p\" is forbidden: no PriorityClass with name none was found");
}

#[test]
fn what_was_created_for_a_workload_that_was_deleted_meanwhile_is_deleted() {
    let store = cluster(true);
    let orphan = |name: &str, kind: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "c", "image": "i"}]}, "metadata": {"name": name,
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": kind, "name": "gone", "uid": "gone", "controller": true}]}})
    };
    add(&store, &orphan("of-a-set", "ReplicaSet")).unwrap();
    add(&store, &orphan("of-something-else", "Workflow")).unwrap();
    settle(&store);
    let names: Vec<String> =
        list(&store, &POD).iter().map(|it| it["metadata"]["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, ["of-something-else"], "owners of kinds that are not played are not judged");
}
