//! The simulation against its model: the same objects to a real kube-apiserver and to the simulated one, and the same answers.
//! Runs where `KUBEBUILDER_ASSETS` points at etcd, kube-apiserver and kubectl.

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use kube_sim::real::RealApiServer;
use kube_sim::{ApiServer, Options, manifest};
use serde_json::{Value, json};

const SLICES: &str = "/apis/resource.k8s.io/v1/resourceslices?dryRun=All&fieldValidation=Strict";
const CLAIMS: &str =
    "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims?dryRun=All&fieldValidation=Strict";

/// A code, and the spec that would be stored or the fields at fault.
async fn answer(client: &Client, path: &str, object: &Value) -> (u16, Value) {
    let request = http::Request::post(path).header("content-type", "application/json");
    let request = request.body(object.to_string().into_bytes()).unwrap();
    match client.request::<Value>(request).await {
        Ok(stored) => (201, stored["spec"].clone()),
        Err(kube::Error::Api(status)) => {
            let causes = status.details.iter().flat_map(|d| &d.causes);
            // The real one adds a cause without a field where it does not evaluate rules because of other faults.
            let mut fields: Vec<&str> =
                causes.map(|c| c.field.as_str()).filter(|it| *it != "<nil>").collect();
            fields.sort_unstable();
            (status.code, json!(fields))
        }
        Err(other) => panic!("{other}"),
    }
}

/// The object with the value at a JSON pointer replaced, or removed where the value is null.
fn with(object: &Value, pointer: &str, value: &Value) -> Value {
    let mut object = object.clone();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = object.pointer_mut(parent).unwrap();
    if value.is_null() {
        parent.as_object_mut().unwrap().remove(key);
    } else {
        parent[key] = value.clone();
    }
    object
}

fn counters(count: usize) -> Value {
    (0..count).map(|n| (format!("c{n}"), json!({"value": "1"}))).collect::<serde_json::Map<_, _>>().into()
}

fn sets(count: usize) -> Value {
    (0..count).map(|n| json!({"name": format!("s{n}"), "counters": counters(1)})).collect()
}

fn slices() -> Vec<Value> {
    let good = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": "x"}, "spec": {
        "driver": "x.dev", "nodeName": "n", "pool": {"name": "n/x.dev", "generation": 1, "resourceSliceCount": 1},
        "devices": [{"name": "gpu-0", "attributes": {"type": {"string": "gpu"}}, "capacity": {"memory": {"value": "1024Mi"}},
            "consumesCounters": [{"counterSet": "gpu-0", "counters": {"memory-slice-0": {"value": "1"}}}]}]}});
    let set = json!({"counterSet": "s", "counters": counters(1)});
    let many: Value = (0..129).map(|n| json!({"name": format!("d{n}")})).collect();
    let costly: Value =
        (0..65).map(|n| json!({"name": format!("d{n}"), "consumesCounters": [set]})).collect();
    let changes = [
        ("/spec/driver", json!("")),
        ("/spec/driver", json!("a_b")),
        ("/spec/driver", json!("X.dev")),
        ("/spec/pool/name", json!("a//b")),
        ("/spec/pool/resourceSliceCount", json!(0)),
        ("/spec/pool/generation", json!(-1)),
        ("/spec/nodeName", Value::Null),
        ("/spec/nodeName", json!("")),
        ("/spec/allNodes", json!(true)),
        ("/spec/allNodes", json!(false)),
        ("/spec/perDeviceNodeSelection", json!(true)),
        ("/spec/nodeSelector", json!({"nodeSelectorTerms": []})),
        ("/spec/sharedCounters", json!([])),
        ("/spec/sharedCounters", sets(1)),
        ("/spec/devices", many),
        ("/spec/devices", costly),
        ("/spec/devices", json!([{"name": "d"}, {"name": "d"}])),
        ("/spec/devices/0/name", json!("mig-1g.10gb")),
        ("/spec/devices/0/name", Value::Null),
        ("/spec/devices/0/nodeName", json!("n")),
        ("/spec/devices/0/colour", json!("red")),
        ("/spec/devices/0/taints", json!([{"key": "k", "effect": "NoSchedule"}])),
        ("/spec/devices/0/attributes/type", json!({})),
        ("/spec/devices/0/attributes/type", json!({"int": 1, "bool": true})),
        ("/spec/devices/0/attributes/type", json!({"string": "x".repeat(65)})),
        ("/spec/devices/0/attributes/type", json!({"version": "570.124.06"})),
        ("/spec/devices/0/attributes/type", json!({"version": "12.8"})),
        ("/spec/devices/0/attributes/type", json!({"version": "1.2.3-a+b"})),
        ("/spec/devices/0/attributes", json!({"a-b": {"int": 1}})),
        ("/spec/devices/0/attributes", json!({"/x": {"int": 1}})),
        ("/spec/devices/0/attributes", json!({"a/b/c": {"int": 1}})),
        ("/spec/devices/0/capacity/memory", json!({"value": "ten"})),
        ("/spec/devices/0/capacity/memory", json!({"value": 5})),
        ("/spec/devices/0/capacity/memory", json!({"value": "0.5Gi"})),
        ("/spec/devices/0/capacity/memory", json!({"value": "1e3"})),
        ("/spec/devices/0/capacity/memory", json!({})),
        ("/spec/devices/0/consumesCounters", json!([])),
        ("/spec/devices/0/consumesCounters", json!([set, set])),
        ("/spec/devices/0/consumesCounters/0/counters", json!({})),
        ("/spec/devices/0/consumesCounters/0/counters", json!({"A": {"value": "1"}})),
        ("/spec/devices/0/consumesCounters/0/counters", counters(33)),
        ("/metadata/name", json!("A_b")),
        ("/metadata/name", json!("")),
    ];
    let mut all: Vec<Value> = changes.iter().map(|(pointer, value)| with(&good, pointer, value)).collect();
    let without = with(&good, "/spec/devices", &Value::Null);
    for value in [sets(8), sets(9), json!([{"name": "s", "counters": counters(33)}]), json!([])] {
        all.push(with(&without, "/spec/sharedCounters", &value));
    }
    all.push(good);
    all
}

fn claims() -> Vec<Value> {
    let good = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": "x"}, "spec": {
        "devices": {"requests": [{"name": "a", "exactly": {"deviceClassName": "mig"}}]}}});
    let cel = |text: &str| json!([{"cel": {"expression": text}}]);
    let alternatives = |count: usize| -> Value {
        let list: Value =
            (0..count).map(|n| json!({"name": format!("x{n}"), "deviceClassName": "a"})).collect();
        json!({"name": "a", "firstAvailable": list})
    };
    let request = &good["spec"]["devices"]["requests"][0];
    let changes = [
        ("/spec/devices/requests/0/name", json!("a.b")),
        ("/spec/devices/requests/0/exactly", Value::Null),
        ("/spec/devices/requests/0/exactly/deviceClassName", json!("")),
        ("/spec/devices/requests/0/exactly/count", json!(0)),
        ("/spec/devices/requests/0/exactly/count", json!(-1)),
        ("/spec/devices/requests/0/exactly/allocationMode", json!("All")),
        ("/spec/devices/requests/0/exactly/allocationMode", json!("Most")),
        ("/spec/devices/requests/0/exactly/adminAccess", json!(true)),
        ("/spec/devices/requests/0/exactly/selectors", json!([{}])),
        ("/spec/devices/requests/0/exactly/selectors", cel("")),
        ("/spec/devices/requests/0/exactly/selectors", cel("device.driver ==")),
        (
            "/spec/devices/requests/0/exactly/selectors",
            cel(r#"device.attributes["a"].?b.orValue("") == "c""#),
        ),
        (
            "/spec/devices/requests/0/exactly/selectors",
            cel(r#"cel.bind(a, device.attributes["x"], a.t == "m")"#),
        ),
        ("/spec/devices/requests", json!([request, request])),
        ("/spec/devices/requests", json!([alternatives(8)])),
        ("/spec/devices/requests", json!([alternatives(9)])),
        ("/spec/devices/constraints", json!([{"matchAttribute": "parentUUID"}])),
        ("/spec/devices/constraints", json!([{"matchAttribute": "a.b/c", "requests": ["a"]}])),
        ("/spec/devices/constraints", json!([{"matchAttribute": "a.b/c", "requests": ["z"]}])),
        ("/spec/devices/config", json!([{}])),
        ("/spec/devices/config", json!([{"opaque": {"driver": "d", "parameters": [1]}}])),
        ("/spec/devices/config", json!([{"opaque": {"driver": "d", "parameters": {"a": 1}}}])),
    ];
    let mut all: Vec<Value> = changes.iter().map(|(pointer, value)| with(&good, pointer, value)).collect();
    all.push(good);
    all
}

/// A request with this body: a code, and what `status.devices` is then.
async fn patched(client: &Client, path: &str, content_type: &str, body: &Value) -> (u16, Value) {
    let request = http::Request::patch(path).header("content-type", content_type);
    match client.request::<Value>(request.body(body.to_string().into_bytes()).unwrap()).await {
        Ok(stored) => {
            let mut devices = stored["status"]["devices"].clone();
            // The real one writes null for a list that is not there.
            for device in devices.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
                device.retain(|_, it| !it.is_null());
            }
            (200, devices)
        }
        Err(kube::Error::Api(status)) => (status.code, Value::Null),
        Err(other) => panic!("{other}"),
    }
}

/// The life of a claim's device status: what each step answers.
async fn life_of_a_device_status(client: &Client) -> Vec<(u16, Value)> {
    let claims = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims";
    let claim = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": "c"},
        "spec": {"devices": {"requests": [{"name": "a", "exactly": {"deviceClassName": "mig"}}]}}});
    let request = http::Request::post(claims).header("content-type", "application/json");
    let request = request.body(claim.to_string().into_bytes()).unwrap();
    let uid = client.request::<Value>(request).await.unwrap()["metadata"]["uid"].clone();
    let status = |claim: &str| format!("{claims}/{claim}/status");
    let apply = async |manager: &str, claim: &str, uid: Option<&Value>, devices: Option<Value>| {
        let mut body =
            json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": claim}});
        if let Some(uid) = uid {
            body["metadata"]["uid"] = uid.clone();
        }
        if let Some(devices) = devices {
            body["status"] = json!({"devices": devices});
        }
        let path = format!("{}?fieldManager={manager}&force=true", status(claim));
        patched(client, &path, "application/apply-patch+yaml", &body).await
    };
    let device = |driver: &str, device: &str, data: i32| json!({"driver": driver, "pool": "p", "device": device, "data": {"n": data}});
    let result =
        |driver: &str, device: &str| json!({"request": "a", "driver": driver, "pool": "p", "device": device});
    let results = json!([result("m.dev", "x"), result("m.dev", "y"), result("o.dev", "x")]);
    let allocate = |value: Value| json!({"status": {"allocation": value}});
    let merge = "application/merge-patch+json";
    let mut answers = Vec::new();
    // Nothing is allocated yet.
    answers.push(apply("m", "c", Some(&uid), Some(json!([device("m.dev", "x", 1)]))).await);
    let allocation = json!({"devices": {"results": results}});
    answers.push(patched(client, &status("c"), merge, &allocate(allocation)).await);
    answers.push(apply("o", "c", None, Some(json!([device("o.dev", "x", 1)]))).await);
    let both = json!([device("m.dev", "x", 1), device("m.dev", "y", 1)]);
    answers.push(apply("m", "c", Some(&uid), Some(both)).await);
    answers.push(apply("m", "c", Some(&uid), Some(json!([device("m.dev", "y", 2)]))).await);
    // Not allocated, another claim, no claim.
    answers.push(apply("m", "c", Some(&uid), Some(json!([device("m.dev", "z", 1)]))).await);
    answers.push(apply("m", "c", Some(&json!("another")), Some(json!([device("m.dev", "y", 3)]))).await);
    answers.push(apply("m", "none", Some(&uid), Some(json!([device("m.dev", "y", 3)]))).await);
    // Only the own entry goes; and with the allocation all do.
    answers.push(apply("m", "c", Some(&uid), None).await);
    answers.push(patched(client, &status("c"), merge, &allocate(Value::Null)).await);
    answers
}

/// Variations of a MigNode.
fn mig_nodes() -> Vec<Value> {
    let good = json!({"apiVersion": "mig.dra-driver.dev/v1alpha1", "kind": "MigNode", "metadata": {"name": "n"}, "spec": {
        "demand": {"renewTime": "2026-11-29T12:00:00Z", "profiles": [{"profile": "1g.10gb+me", "count": 4}]},
        "floor": [{"profile": "full", "count": 1}],
        "holds": [{"gpu": "gpu-0000-3b-00", "profile": "7g.80gb", "until": "2026-11-29T12:05:00Z",
                   "claim": {"namespace": "t", "name": "c", "uid": "u-1"}}]}});
    let count = |profile: &str, count: i64| json!({"profile": profile, "count": count});
    let hold = good["spec"]["holds"][0].clone();
    let many = |number: i64| (0..number).map(|it| count(&format!("p{it}"), 1)).collect::<Value>();
    let changes = [
        ("/spec/demand", Value::Null),
        ("/spec/demand/profiles", Value::Null),
        ("/spec/demand/renewTime", json!("now")),
        ("/spec/demand/colour", json!("red")),
        ("/spec/floor", json!("many")),
        ("/spec/floor", json!([count("a", 0)])),
        ("/spec/floor", json!([count("a", 513)])),
        ("/spec/floor", json!([count("a", 512)])),
        ("/spec/floor", json!([count("a b", 1)])),
        ("/spec/floor", json!([count("", 1)])),
        ("/spec/floor", json!([count(&"p".repeat(64), 1)])),
        ("/spec/floor", json!([count("a", 1), count("a", 1)])),
        ("/spec/floor", json!([{"profile": "a"}])),
        ("/spec/floor", many(64)),
        ("/spec/floor", many(65)),
        ("/spec/holds/0/until", Value::Null),
        ("/spec/holds/0/until", json!("tomorrow")),
        ("/spec/holds/0/gpu", json!("gpu-3b")),
        ("/spec/holds/0/claim", json!({"namespace": "t", "name": "c"})),
        ("/spec/holds/0/claim/uid", json!("-")),
        ("/spec/holds", json!([hold, hold])),
        ("/colour", json!("red")),
    ];
    let mut all: Vec<Value> = changes.iter().map(|(pointer, value)| with(&good, pointer, value)).collect();
    all.push(good);
    all
}

/// The life of a MigNode, from before its kind is there: what each step answers.
async fn life_of_a_mig_node(client: &Client) -> Vec<(u16, Value)> {
    const OBJECTS: &str = "/apis/mig.dra-driver.dev/v1alpha1/mignodes";
    const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let strictly = format!("{OBJECTS}?dryRun=All&fieldValidation=Strict");
    let good = mig_nodes().pop().unwrap();
    let mut answers = vec![answer(client, &strictly, &good).await];
    let definition = manifest::parse(include_str!("../../../deploy/manifests/crd.yaml")).unwrap().remove(0);
    assert_eq!(answer(client, DEFINITIONS, &definition).await.0, 201);
    // The real one serves the kind some moments later.
    while answer(client, &strictly, &good).await.0 == 404 {
        tokio::task::yield_now().await;
    }
    for object in mig_nodes() {
        answers.push(answer(client, &strictly, &object).await);
    }
    let bare =
        json!({"apiVersion": "mig.dra-driver.dev/v1alpha1", "kind": "MigNode", "metadata": {"name": "n"}});
    answers.push(answer(client, OBJECTS, &with(&bare, "/status", &json!({"mode": "layout"}))).await);
    let apply = async |manager: &str, subresource: &str, change: (&str, Value)| {
        let path = format!("{OBJECTS}/n{subresource}?fieldManager={manager}&force=true");
        let request = http::Request::patch(path).header("content-type", "application/apply-patch+yaml");
        let body = with(&bare, change.0, &change.1).to_string().into_bytes();
        match client.request::<Value>(request.body(body).unwrap()).await {
            Ok(it) => (200, json!([it["metadata"]["generation"], it["spec"], it["status"]])),
            Err(kube::Error::Api(status)) => (status.code, Value::Null),
            Err(other) => panic!("{other}"),
        }
    };
    let count = |profile: &str| json!({"profile": profile, "count": 1});
    let gpus = |device: &str| {
        let held = json!({"device": device, "profile": "full", "start": 0, "size": 8});
        json!({"mode": "layout", "gpus": [{"name": "gpu-0000-3b-00", "held": [held]}]})
    };
    // Two managers of one list, each with its entry; the status apart from the spec.
    answers.push(apply("a", "", ("/spec", json!({"floor": [count("1g.10gb")]}))).await);
    answers.push(apply("b", "", ("/spec", json!({"floor": [count("full")]}))).await);
    answers.push(apply("a", "", ("/spec", json!({}))).await);
    // The last field goes: by a spec without fields, and by no spec.
    answers.push(apply("b", "", ("/spec", json!({}))).await);
    answers.push(apply("b", "", ("/spec", json!({"floor": [count("full")]}))).await);
    answers.push(apply("b", "", ("/spec", Value::Null)).await);
    answers.push(apply("a", "/status", ("/status", gpus("gpu-0000-3b-00"))).await);
    answers.push(apply("a", "/status", ("/status", gpus("gpu-0000-4b-00"))).await);
    answers.push(apply("a", "/status", ("/status", json!({"mode": "both"}))).await);
    answers.push(apply("a", "/status", ("/spec", json!({"floor": []}))).await);
    let strategic = "application/strategic-merge-patch+json";
    answers.push(patched(client, &format!("{OBJECTS}/n"), strategic, &bare).await);
    answers
}

async fn agree(gates: &str, partitionable_devices: bool) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let gates = gates.to_owned();
    let started =
        tokio::task::spawn_blocking(move || RealApiServer::start(&path, &gates)).await.unwrap().unwrap();
    let Some(real) = started else {
        #[expect(
            clippy::print_stderr,
            reason = "a reader of the output should know that nothing was compared"
        )]
        {
            eprintln!("KUBEBUILDER_ASSETS is not set: nothing to compare with");
        }
        return;
    };
    // Another test may have installed it; one of them is enough.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = Kubeconfig::read_from(real.kubeconfig()).unwrap();
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
    let real_client = Client::try_from(config).unwrap();
    let simulated = ApiServer::start(Options { partitionable_devices, ..Options::default() }).await.unwrap();
    let sim_client = Client::try_from(Config::new(simulated.url().parse().unwrap())).unwrap();
    let objects = slices().into_iter().map(|o| (SLICES, o)).chain(claims().into_iter().map(|o| (CLAIMS, o)));
    for (path, object) in objects {
        let (expected, got) =
            (answer(&real_client, path, &object).await, answer(&sim_client, path, &object).await);
        assert_eq!(got, expected, "{object:#}");
    }
    let (expected, got) =
        (life_of_a_device_status(&real_client).await, life_of_a_device_status(&sim_client).await);
    assert_eq!(got, expected);
    let (expected, got) = (life_of_a_mig_node(&real_client).await, life_of_a_mig_node(&sim_client).await);
    for (step, (expected, got)) in expected.iter().zip(&got).enumerate() {
        assert_eq!(got, expected, "step {step}");
    }
}

#[tokio::test]
async fn both_servers_agree_with_partitionable_devices() {
    agree("DRAPartitionableDevices=true", true).await;
}

#[tokio::test]
async fn both_servers_agree_on_what_is_dropped_without_the_gate() {
    agree("", false).await;
}
