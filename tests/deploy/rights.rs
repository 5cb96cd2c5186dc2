//! The rights that are shipped against the requests that the driver makes: nothing missing, nothing unused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dra_driver_mig::api::RIGHTS;
use kube_sim::kubelet::Claim;
use kube_sim::{ApiServer, Part, RequestInfo, kinds};
use serde_json::{Value, json};

use super::chart::{objects, objects_of, shipped as shipped_objects};
use crate::common::{ControlPlane, DRIVER, Lab, eventually};

const FIRST_1G: &str = "gpu-0000-1a-00-mig-1g-10gb-6";

/// (namespace or nothing, group, resource, verb)
pub(super) type Used = (Option<String>, String, String, String);

/// What is granted although the driver does not ask for it, and why.
fn granted_ahead() -> BTreeMap<Used, &'static str> {
    let associated = |verb: &str| {
        let right = (None, "resource.k8s.io".to_owned(), "resourceclaims/driver".to_owned(), verb.to_owned());
        (
            right,
            "Kubernetes 1.36 asks for it when a driver writes a claim's device status; no other component knows it",
        )
    };
    [associated("associated-node:update"), associated("associated-node:patch")].into()
}

/// What is used although the chart does not grant it, and who does.
fn granted_by_others() -> BTreeMap<Used, &'static str> {
    let review =
        (None, "authorization.k8s.io".to_owned(), "selfsubjectaccessreviews".to_owned(), "create".to_owned());
    [(review, "the cluster role system:basic-user, which every account has")].into()
}

/// What rules grant, with the namespace in which they hold.
pub(super) fn granted(roles: &[Value]) -> BTreeSet<Used> {
    let mut rights = BTreeSet::new();
    for role in roles {
        let namespace = role["metadata"]["namespace"].as_str().map(str::to_owned);
        for rule in role["rules"].as_array().unwrap() {
            let texts = |field: &str| {
                let items = rule[field].as_array().unwrap();
                items.iter().map(|it| it.as_str().unwrap().to_owned()).collect::<Vec<_>>()
            };
            for group in texts("apiGroups") {
                for resource in texts("resources") {
                    for verb in texts("verbs") {
                        assert!(![&group, &resource, &verb].contains(&&"*".to_owned()), "{rule}");
                        rights.insert((namespace.clone(), group.clone(), resource.clone(), verb));
                    }
                }
            }
        }
    }
    rights
}

fn shipped() -> BTreeSet<Used> {
    granted(&[objects_of("ClusterRole"), objects_of("Role")].concat())
}

/// What a request asks RBAC for (k8s.io/apiserver/pkg/endpoints/request/requestinfo.go).
pub(super) fn asked(request: &RequestInfo) -> Option<Used> {
    let parts: Vec<&str> = request.path.trim_matches('/').split('/').collect();
    let (group, rest) = match parts.as_slice() {
        ["api", "v1", rest @ ..] => ("", rest),
        ["apis", group, _version, rest @ ..] => (*group, rest),
        _ => return None,
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some((*namespace).to_owned()), rest),
        rest => (None, rest),
    };
    let (resource, name, subresource) = match rest {
        [resource] => (*resource, None, None),
        [resource, name] => (*resource, Some(*name), None),
        [resource, name, subresource] => (*resource, Some(*name), Some(*subresource)),
        _ => return None,
    };
    let verb = match (request.method.as_str(), name) {
        ("GET", _) if request.is_watch() => "watch",
        ("GET", Some(_)) => "get",
        ("GET", None) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", Some(_)) => "delete",
        ("DELETE", None) => "deletecollection",
        _ => return None,
    };
    let resource = subresource.map_or_else(|| resource.to_owned(), |it| format!("{resource}/{it}"));
    Some((namespace, group.to_owned(), resource, verb.to_owned()))
}

/// A claim, made without a request: only the driver's requests are to be seen.
fn claim(server: &ApiServer, node: &str, name: &str, device: &str) -> Claim {
    let object = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": {"name": name, "namespace": "team"},
        "spec": {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "any"}}]}},
    });
    let uid = server.create(object).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    let result =
        json!({"request": "gpu", "driver": DRIVER, "pool": format!("{node}/{DRIVER}"), "device": device});
    let status = json!({"status": {"allocation": {"devices": {"results": [result]}}}});
    server.patch(&kinds::RESOURCE_CLAIM, "team", name, Part::Status, status).unwrap();
    Claim { namespace: "team".to_owned(), name: name.to_owned(), uid }
}

fn slices(server: &ApiServer) -> Vec<Arc<Value>> {
    server.list(&kinds::RESOURCE_SLICE)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_rights_are_what_the_driver_uses_and_nothing_more() {
    let ControlPlane::Simulated(server) = ControlPlane::simulated(true).await else { unreachable!() };
    let mut lab = Lab::new(ControlPlane::Simulated(Arc::clone(&server)), "2xH100-80GB").await;
    lab = lab.with_args(&["--rescan-interval", "1"]);
    server.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}})).unwrap();
    server.create(objects_of("CustomResourceDefinition").remove(0)).unwrap();
    let before = server.requests().len();
    let seen = |right: &str| {
        let requests = server.requests().split_off(before);
        requests.iter().filter_map(asked).any(|(_, _, resource, verb)| format!("{verb} {resource}") == right)
    };
    let happens = async |right: &str| eventually(right, async || seen(right).then_some(())).await;

    // Publish, and answer the kubelet's wipe and another writer's odd slice.
    lab.start();
    let kubelet = lab.kubelet().await;
    let complete = async || {
        eventually("the slices are published", async || (1 < slices(&server).len()).then_some(())).await;
    };
    complete().await;
    happens("watch resourceslices").await;
    happens("patch mignodes/status").await;
    happens("watch mignodes").await;
    for slice in slices(&server) {
        server.delete(&kinds::RESOURCE_SLICE, "", slice["metadata"]["name"].as_str().unwrap()).unwrap();
    }
    complete().await;
    let mut odd = Value::clone(&slices(&server)[0]);
    odd["metadata"] = json!({"name": "odd"});
    server.create(odd).unwrap();
    happens("delete resourceslices").await;

    // Prepare and unprepare; a restart between them; a claim that is gone meanwhile.
    let one = claim(&server, &lab.node_name, "one", FIRST_1G);
    let gone = claim(&server, &lab.node_name, "gone", "gpu-0000-1b-00-mig-1g-10gb-6");
    for it in [&one, &gone] {
        kubelet.prepare(std::slice::from_ref(it)).await.unwrap().remove(&it.uid).unwrap().unwrap();
    }
    lab.stop().await;
    server.delete(&kinds::RESOURCE_CLAIM, "team", "gone").unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    eventually("the claim that is gone is taken down", async || (lab.instances().len() == 1).then_some(()))
        .await;
    kubelet.unprepare(std::slice::from_ref(&one)).await.unwrap().remove(&one.uid).unwrap().unwrap();

    // Another program cuts, so that the slices change; a state file cannot be read, which is an event of the node; and a claim
    // that cannot be prepared is one of the claim, which is counted when it comes again.
    lab.sim.plant_instance(0, "1g.10gb", 0).unwrap();
    happens("update resourceslices").await;
    let claims = lab.path("plugins").join(DRIVER).join("claims");
    std::fs::write(claims.join("11111111-0000.jsonl"), "not a journal\n").unwrap();
    happens("create events").await;
    let unknown = claim(&server, &lab.node_name, "unknown", "gpu-0000-ff-00");
    for _ in 0..2 {
        kubelet
            .prepare(std::slice::from_ref(&unknown))
            .await
            .unwrap()
            .remove(&unknown.uid)
            .unwrap()
            .unwrap_err();
    }
    happens("patch events").await;
    lab.stop().await;

    // A layout, which a label of the node chooses.
    let label = json!({"metadata": {"labels": {"nvidia.com/mig.config": "all-1g.10gb"}}});
    server.patch(&kinds::NODE, "", &lab.node_name, Part::Main, label).unwrap();
    lab = lab.with_args(&["--mode", "layout", "--settle-time", "1"]);
    lab.start();
    for right in ["watch nodes", "patch nodes", "list resourceclaims"] {
        happens(right).await;
    }
    lab.stop().await;

    let used: BTreeSet<Used> = server.requests().split_off(before).iter().filter_map(asked).collect();
    // A claim is read in its own namespace; the right to it is one for all namespaces.
    let everywhere = |(_, group, resource, verb): Used| (None, group, resource, verb);
    let used: BTreeSet<Used> = used.into_iter().map(everywhere).collect();
    let mut expected = shipped();
    for right in granted_ahead().keys() {
        assert!(expected.remove(right), "granted ahead, but not shipped: {right:?}");
    }
    expected.extend(granted_by_others().into_keys());
    assert_eq!(used, expected);
}

#[test]
fn the_check_asks_for_the_rights_that_are_shipped() {
    let own = |text: &str| text.to_owned();
    let mut checked: BTreeSet<Used> =
        RIGHTS.iter().map(|it| (None, own(it.group), own(it.resource), own(it.verb))).collect();
    checked.extend(granted_ahead().into_keys());
    assert_eq!(checked, shipped());
}

#[test]
fn rights_on_mignodes_come_only_with_the_kind() {
    let change = json!({"migNode": {"enabled": false}});
    let Some(without) = objects(&change) else { return };
    let is_about_it = |it: &&Value| it.to_string().contains("mignodes");
    assert_eq!(without.iter().filter(is_about_it).collect::<Vec<_>>(), Vec::<&Value>::new());
    let daemon = without.iter().find(|it| it["kind"] == "DaemonSet").unwrap();
    let environment = daemon["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
    assert!(
        environment.contains(&json!({"name": "MIG_NODE", "value": "off"})),
        "the driver does not look for it"
    );
    let kinds: BTreeSet<String> =
        shipped_objects().iter().filter(is_about_it).map(|it| it["kind"].to_string()).collect();
    assert_eq!(kinds.len(), 4, "{kinds:?}");
}

#[test]
fn rights_on_nodes_beyond_reading_come_only_with_the_labels_that_need_them() {
    let roles = |rbac: Value| {
        let all = objects(&rbac)?;
        Some(granted(&all.into_iter().filter(|it| it.get("rules").is_some()).collect::<Vec<_>>()))
    };
    let with = granted(&objects_of("ClusterRole"));
    let missing = |without: &BTreeSet<Used>| -> Vec<(String, String)> {
        with.difference(without).map(|it| (it.2.clone(), it.3.clone())).collect()
    };
    let nodes = |verbs: &[&str]| -> Vec<(String, String)> {
        verbs.iter().map(|it| ("nodes".to_owned(), (*it).to_owned())).collect()
    };
    let Some(without) = roles(json!({"rbac": {"layoutLabels": false}})) else { return };
    assert_eq!(missing(&without), nodes(&["list", "patch", "watch"]));
    let Some(without) = roles(json!({"stateLabel": false})) else { return };
    assert_eq!(missing(&without), nodes(&["patch"]));
}
