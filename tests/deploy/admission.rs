//! The admission policy for ResourceSlices, evaluated here: what a pod of the driver on one node may write. `policy.rs` asks a real
//! API server the same.

use std::collections::BTreeSet;
use std::sync::Arc;

use kube::api::DeleteParams;
use kube_sim::admission::{Request, admit};
use kube_sim::{ApiServer, Options, kinds};
use mig_model::inventory::Inventory;
use mig_model::placement::{Policy, Ranking};
use mig_model::slices::{Owner, render};
use serde_json::{Value, json};

use super::chart::{objects, shipped};
use crate::common::{ControlPlane, DRIVER, Lab, device_names, is_complete};

/// Names of nodes that might be taken for one another: they begin or end alike, or have the driver's name in them.
const NODES: [&str; 12] = [
    "a",
    "b-a",
    "a-b",
    "x.a",
    "a.x",
    "mig.dra-driver.dev",
    "mig.dra-driver.dev-a",
    "a-mig.dra-driver.dev",
    "00000-mig.dra-driver.dev-a",
    "dev-a",
    "uid-of-nnnn",
    "mig.dra-driver.dev.uid-of-a",
];

/// Those, and two whose slices cannot have the node's name in theirs.
fn nodes() -> Vec<String> {
    let long = |letter: &str| letter.repeat(230);
    NODES.into_iter().map(str::to_owned).chain([long("n"), long("m")]).collect()
}

/// The shipped policy.
fn policy() -> Value {
    policy_in(shipped())
}

fn policy_in(objects: Vec<Value>) -> Value {
    let is_it =
        |it: &Value| it["kind"] == "ValidatingAdmissionPolicy" && it["metadata"]["name"] == "dra-driver-mig";
    objects.into_iter().find(is_it).unwrap()
}

fn uid(node: &str) -> String {
    format!("uid-of-{}", &node[..node.len().min(40)])
}

/// A slice as the driver renders it, with another index.
fn slice(node: &str, driver: &str, index: usize) -> Value {
    let owner = Owner { driver: driver.to_owned(), node: node.to_owned(), node_uid: uid(node) };
    let nothing = Inventory::default();
    let ranking = Ranking::of(&nothing, &BTreeSet::new(), Policy::Static);
    let mut slice = serde_json::to_value(&render(&nothing, &ranking, &owner)[0]).unwrap();
    let name = slice["metadata"]["name"].as_str().unwrap().replacen("00000", &format!("{index:05x}"), 1);
    slice["metadata"]["name"] = name.into();
    slice
}

/// What the policy says to a pod of the driver on this node; every operation must get the same answer.
fn judge(policy: &Value, node: &str, slice: &Value) -> Result<(), String> {
    let extra = match node {
        "" => json!({}),
        node => json!({
            "authentication.kubernetes.io/node-name": [node],
            "authentication.kubernetes.io/node-uid": [uid(node)],
        }),
    };
    let username = "system:serviceaccount:dra-driver-mig:dra-driver-mig";
    let ask = |operation, object: &Value, old_object: &Value| {
        let (object, old_object) = (object.clone(), old_object.clone());
        admit(policy, &Request { operation, username, extra: extra.clone(), object, old_object })
    };
    let created = ask("CREATE", slice, &Value::Null);
    assert_eq!(ask("DELETE", &Value::Null, slice), created);
    assert_eq!(ask("UPDATE", slice, slice), created);
    // An update counts by what there was, too, and by what there will be.
    if created.is_err() && !node.is_empty() {
        let own = self::slice(node, DRIVER, 0);
        ask("UPDATE", &own, slice).unwrap_err();
        ask("UPDATE", slice, &own).unwrap_err();
    }
    created
}

#[test]
fn a_pod_writes_the_slices_of_its_own_node_and_of_no_other() {
    let policy = policy();
    for writer in nodes() {
        for owner in nodes() {
            for index in [0, 0x2f, 0xf_ffff] {
                let answer = judge(&policy, &writer, &slice(&owner, DRIVER, index));
                assert_eq!(answer.is_ok(), writer == owner, "{writer} writes a slice of {owner}: {answer:?}");
            }
        }
    }
}

#[test]
fn of_a_slice_everything_that_names_a_node_has_to_be_the_own() {
    let policy = policy();
    for writer in nodes() {
        for other in nodes().into_iter().filter(|it| *it != writer) {
            let theirs = slice(&other, DRIVER, 0);
            for (field, expected) in [
                ("/metadata/name", "with names such as"),
                ("/spec/pool/name", "resourceslices of the pool"),
                ("/spec/nodeName", "may not write resourceslices of node"),
            ] {
                let mut slice = slice(&writer, DRIVER, 0);
                *slice.pointer_mut(field).unwrap() = theirs.pointer(field).unwrap().clone();
                slice["spec"]["pool"]["generation"] = json!(999_999_999);
                let message = judge(&policy, &writer, &slice).unwrap_err();
                assert!(message.contains(expected), "{writer}, {field} of {other}: {message}");
            }
        }
    }
}

#[test]
fn other_drivers_pools_and_forms_of_names_are_refused() {
    let policy = policy();
    let with = |field: &str, value: Value| {
        let mut slice = slice("a", DRIVER, 0);
        *slice.pointer_mut(field).unwrap() = value;
        judge(&policy, "a", &slice).unwrap_err()
    };
    let message = with("/spec/driver", json!("gpu.nvidia.com"));
    assert!(message.contains("of the driver mig.dra-driver.dev only"), "{message}");
    // A slice of the driver `mig.dra-driver.dev-b` on node `a` has the name that node `b-a` has with this driver.
    let twin = slice("a", "mig.dra-driver.dev-b", 0);
    assert_eq!(twin["metadata"]["name"], slice("b-a", DRIVER, 0)["metadata"]["name"]);
    judge(&policy, "a", &twin).unwrap_err();
    for pool in ["a", "a/", "/mig.dra-driver.dev", "a/mig.dra-driver.dev/probe", "a/mig.dra-driver.dev2"] {
        with("/spec/pool/name", json!(pool));
    }
    for start in ["", "0", "0000", "000000", "0000g", "0000A", "-0000", "probe-00000", "00000-x", "0.000"] {
        with("/metadata/name", json!(format!("{start}-mig.dra-driver.dev-a")));
    }
    for name in ["", "a", "00000-mig.dra-driver.dev-a\n", "00000-mig.dra-driver.dev.uid-of-a"] {
        with("/metadata/name", json!(name));
    }
    with("/spec/nodeName", Value::Null);
    let message = judge(&policy, "", &slice("a", DRIVER, 0)).unwrap_err();
    assert!(message.contains("is not bound to a pod on a node"), "{message}");
}

#[test]
fn the_policy_follows_the_name_of_the_driver() {
    let Some(objects) = objects(&json!({"driverName": "gpu.nvidia.com"})) else { return };
    let policy = policy_in(objects);
    judge(&policy, "a", &slice("a", "gpu.nvidia.com", 0)).unwrap();
    judge(&policy, "a", &slice("a", DRIVER, 0)).unwrap_err();
}

/// Judges every write of a slice as one of the driver's pod on this node.
fn put_into_force(server: &ApiServer, node: String, node_uid: String) {
    let policy = policy();
    server.store().set_admission(move |kind, operation, object, old_object| {
        if kind != &kinds::RESOURCE_SLICE {
            return Ok(());
        }
        let extra = json!({
            "authentication.kubernetes.io/node-name": [node], "authentication.kubernetes.io/node-uid": [node_uid],
        });
        let (object, old_object) = (object.clone(), old_object.clone());
        let username = "system:serviceaccount:dra-driver-mig:dra-driver-mig";
        admit(&policy, &Request { operation, username, extra, object, old_object })
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_driver_does_its_whole_work_within_the_policy() {
    for keeps_counters in [true, false] {
        let options =
            Options { partitionable_devices: keeps_counters, device_taints: true, ..Options::default() };
        let server = Arc::new(ApiServer::start(options).await.unwrap());
        let plane = ControlPlane::Simulated(Arc::clone(&server));
        let mut lab = Lab::new(plane, "3xH100-80GB").await.with_args(&["--settle-time", "1"]);
        let node = server.get(&kinds::NODE, "", &lab.node_name).unwrap();
        put_into_force(&server, lab.node_name.clone(), node["metadata"]["uid"].as_str().unwrap().to_owned());
        lab.start();
        // Create: the probe for counters, and the slices.
        let published = lab.slices_when(is_complete).await;
        // Delete and create again: a whole pool, and a slice that the driver did not make.
        for slice in &published {
            lab.slices_api()
                .delete(slice.metadata.name.as_deref().unwrap(), &DeleteParams::default())
                .await
                .unwrap();
        }
        lab.slices_when(|it| is_complete(it) && it.len() == published.len()).await;
        let mut odd = slice(&lab.node_name, DRIVER, 0xfff);
        odd["apiVersion"] = json!("resource.k8s.io/v1");
        odd["kind"] = json!("ResourceSlice");
        server.create(odd).unwrap();
        lab.slices_when(|it| is_complete(it) && it.len() == published.len()).await;
        // Update, and the probe for taints: a claim has a part of a GPU that becomes unhealthy.
        let kubelet = lab.kubelet().await;
        let slices = lab.slices().await;
        let device = device_names(&slices).into_iter().find(|it| it.contains("1a-00-mig-1g-10gb")).unwrap();
        let claim = lab.claim_of("one", device).await;
        let asked = std::slice::from_ref(&claim);
        kubelet.prepare(asked).await.unwrap().remove(&claim.uid).unwrap().unwrap();
        lab.sim.post_xid(0, 48, None, None).unwrap();
        lab.slices_when(|it| {
            let mut devices = it.iter().flat_map(|it| it.spec.devices.iter().flatten());
            devices.any(|it| it.taints.iter().flatten().next().is_some())
        })
        .await;
        lab.stop().await;
    }
}

#[test]
fn of_mignodes_a_pod_writes_the_status_of_its_own_node_only() {
    let is_it = |it: &Value| {
        it["kind"] == "ValidatingAdmissionPolicy" && it["metadata"]["name"] == "dra-driver-mig-mignodes"
    };
    let policy = shipped().into_iter().find(is_it).unwrap();
    let object =
        |name: &str| json!({"metadata": {"name": name}, "spec": {"floor": []}, "status": {"mode": "layout"}});
    let ask = |operation: &str, node: &str, object: &Value, old_object: &Value| {
        let extra = json!({"authentication.kubernetes.io/node-name": [node]});
        let username = "system:serviceaccount:dra-driver-mig:dra-driver-mig";
        let (object, old_object) = (object.clone(), old_object.clone());
        admit(&policy, &Request { operation, username, extra, object, old_object })
    };
    for writer in nodes() {
        for owner in nodes() {
            let bare = json!({"metadata": {"name": owner}});
            let created = ask("CREATE", &writer, &bare, &Value::Null);
            let updated = ask("UPDATE", &writer, &object(&owner), &object(&owner));
            assert_eq!(created.is_ok(), writer == owner, "{writer} creates that of {owner}: {created:?}");
            assert_eq!(updated.is_ok(), writer == owner, "{writer} writes that of {owner}: {updated:?}");
        }
    }
    ask("CREATE", "", &json!({"metadata": {"name": ""}}), &Value::Null).unwrap_err();
    let is_kind = |it: &Value| it["kind"] == "CustomResourceDefinition";
    let kind = shipped().into_iter().find(is_kind).unwrap();
    let spec = &kind["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    // As the API server stores an object without a spec.
    let bare = json!({"metadata": {"name": "a"}, "spec": spec["default"]});
    ask("CREATE", "a", &bare, &Value::Null).unwrap();
    for field in spec["properties"].as_object().unwrap().keys() {
        let object = json!({"metadata": {"name": "a"}, "spec": {field: []}});
        let message = ask("CREATE", "a", &object, &Value::Null).unwrap_err();
        assert!(message.contains("not the spec"), "{field}: {message}");
    }
    for (field, value) in [("/spec", json!({"floor": [1]})), ("/spec", Value::Null)] {
        let mut changed = object("a");
        *changed.pointer_mut(field).unwrap() = value;
        assert!(ask("UPDATE", "a", &changed, &object("a")).unwrap_err().contains("not the spec"));
    }
    for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
        let mut changed = object("a");
        changed["metadata"][field] = json!([]);
        let message = ask("UPDATE", "a", &changed, &object("a")).unwrap_err();
        assert!(message.contains("nothing of a mignode but the status"), "{message}");
    }
}

// Kubernetes checks the types of expressions against the kinds that a policy names, and reports in the status of the policy what does
// not fit. A map literal fits labels, which are a map, and never an object whose fields the schema names.
#[test]
fn no_policy_compares_an_object_that_has_a_schema_with_a_map() {
    let policies = || shipped().into_iter().filter(|it| it["kind"] == "ValidatingAdmissionPolicy");
    assert!(policies().count() > 3);
    for policy in policies() {
        for validation in policy["spec"]["validations"].as_array().unwrap() {
            let expression =
                validation["expression"].as_str().unwrap().replace("labels.orValue({})", "labels");
            assert!(!expression.contains("{}"), "{}: {expression}", policy["metadata"]["name"]);
        }
    }
}
