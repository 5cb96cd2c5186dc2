//! The controller with the manifests that are shipped: its rights against the requests that it makes, and its pod.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::Arc;

use clap::{CommandFactory, Parser};
use kube_sim::{ApiServer, Options, Part, kinds, manifest};
use mig_controller::args::Args;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::chart::{objects, refusal};
use super::rights::{Used, asked, granted};
use crate::common::{ControlPlane, Lab, eventually, repository};

const NAMESPACE: &str = "dra-driver-mig";

/// The objects of a manifest.
fn objects_in(file: &str) -> Vec<Value> {
    manifest::load(&repository().join("deploy/manifests/optional").join(file)).unwrap()
}

fn shipped() -> Vec<Value> {
    objects_in("controller.yaml")
}

fn of_kind(kind: &str) -> Vec<Value> {
    shipped().into_iter().filter(|it| it["kind"] == kind).collect()
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// A node, and a pod that waits for a device that no node has.
fn create_waiting_pod(server: &ApiServer) {
    server.create(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}})).unwrap();
    create_waiting_pod_for(server, "mig-1g.10gb", "true");
}

/// A pod that waits for a device of a class of the driver that it is the first for; both have its name.
fn create_waiting_pod_for(server: &ApiServer, name: &str, selector: &str) {
    let devices = json!({"requests": [{"name": "gpu", "exactly": {"deviceClassName": name}}]});
    let expression = format!("device.driver == \"mig.dra-driver.dev\" && {selector}");
    let class = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": name},
        "spec": {"selectors": [{"cel": {"expression": expression}}]},
    });
    let claim = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": name, "namespace": "default"},
        "spec": {"devices": devices},
    });
    let container = json!({"name": "main", "image": "i", "resources": {"claims": [{"name": "gpu"}]}});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": [container], "resourceClaims": [{"name": "gpu", "resourceClaimName": name}]},
    });
    for object in [class, claim, pod] {
        server.create(object).unwrap();
    }
    let condition = json!({
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available: 1 cannot allocate all claims.",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    let status = json!({"status": {"conditions": [condition]}});
    server.patch(&kinds::POD, "default", name, Part::Status, status).unwrap();
}

/// Starts the controller on a server.
async fn start(server: &ApiServer, extra: &[&str]) -> (CancellationToken, JoinHandle<anyhow::Result<()>>) {
    // As main does; here another provider is linked as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    server.write_kubeconfig(&kubeconfig).unwrap();
    let mut line = vec![
        "mig-controller".to_owned(),
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--lease-namespace={NAMESPACE}"),
        format!("--http-address={}", free_address()),
        "--metrics-address=off".to_owned(),
        "--patience=1".to_owned(),
        "--lease-duration=1".to_owned(),
    ];
    line.extend(extra.iter().map(|it| (*it).to_owned()));
    let stop = CancellationToken::new();
    let (args, stopped) = (Args::try_parse_from(line).unwrap(), stop.clone());
    let running = tokio::spawn(async move {
        let _directory = directory;
        mig_controller::run(args, stopped).await
    });
    (stop, running)
}

fn namespace() -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
}

/// Leases are in one namespace; all else is granted in every namespace.
fn used(server: &ApiServer, before: usize) -> BTreeSet<Used> {
    let as_granted = |(namespace, group, resource, verb): Used| {
        (namespace.filter(|_| resource == "leases"), group, resource, verb)
    };
    server.requests().split_off(before).iter().filter_map(asked).map(as_granted).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_rights_are_what_the_controller_uses_and_nothing_more() {
    let server = ApiServer::start(Options::default()).await.unwrap();
    server.create(namespace()).unwrap();
    create_waiting_pod(&server);
    let before = server.requests().len();
    let (stop, running) = start(&server, &[]).await;
    let granted = granted(&[of_kind("ClusterRole"), of_kind("Role")].concat());
    eventually("each right is used", async || granted.is_subset(&used(&server, before)).then_some(())).await;
    stop.cancel();
    running.await.unwrap().unwrap();
    assert_eq!(used(&server, before), granted);
    assert_eq!(server.list(&kinds::NEW_EVENT).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_demand_a_node_is_asked_for_what_a_pod_waits_for_and_the_rights_are_those_that_are_used() {
    let plane = ControlPlane::simulated(false).await;
    let ControlPlane::Simulated(server) = &plane else { unreachable!() };
    let server = Arc::clone(server);
    // The driver writes what the GPU can be partitioned into, and ends: its requests are not to be seen.
    let mut lab = Lab::new(plane, "1xH100-80GB").await;
    let crd = manifest::load(&repository().join("deploy/manifests/crd.yaml")).unwrap().remove(0);
    server.create(crd).unwrap();
    lab.start();
    eventually("the status is there", async || {
        let object = server.get(&kinds::MIG_NODE, "", &lab.node_name).ok()?;
        (object["status"]["mode"] == "layout").then_some(())
    })
    .await;
    lab.stop().await;
    // As a driver that follows demand says it: it has seen this spec.
    let generation =
        server.get(&kinds::MIG_NODE, "", &lab.node_name).unwrap()["metadata"]["generation"].clone();
    let seen = json!({"status": {"observedGeneration": generation}});
    server.patch(&kinds::MIG_NODE, "", &lab.node_name, Part::Status, seen).unwrap();
    // No node publishes the whole GPU as one instance: one GPU is cut into parts by default.
    server.create(namespace()).unwrap();
    create_waiting_pod_for(
        &server,
        "mig-7g.80gb",
        r#"device.attributes["mig.dra-driver.dev"].profile == "7g.80gb""#,
    );
    let before = server.requests().len();
    let (stop, running) = start(&server, &["--demand", "--default-auto"]).await;
    let demand = eventually("demand", async || {
        let object = server.get(&kinds::MIG_NODE, "", &lab.node_name).ok()?;
        object["spec"].get("demand").cloned()
    })
    .await;
    assert_eq!(demand["profiles"], json!([{"profile": "7g.80gb", "count": 1}]));
    assert!(demand["renewTime"].is_string(), "{demand}");
    // Another change wakes it; nothing is written again.
    let writes = || {
        let all = server.requests().split_off(before);
        all.iter().filter(|it| it.method == "PATCH" && it.path.contains("mignodes")).count()
    };
    assert_eq!(writes(), 1);
    let events = server.list(&kinds::NEW_EVENT).len();
    create_waiting_pod_for(&server, "mig-none", "false");
    eventually("it has seen the other pod", async || {
        (events < server.list(&kinds::NEW_EVENT).len()).then_some(())
    })
    .await;
    assert_eq!(writes(), 1);
    let is_role = |it: &Value| it["metadata"]["name"] == "mig-controller" && !it["rules"].is_null();
    let granted =
        granted(&objects_in("controller-demand.yaml").into_iter().filter(is_role).collect::<Vec<_>>());
    eventually("each right is used", async || granted.is_subset(&used(&server, before)).then_some(())).await;
    stop.cancel();
    running.await.unwrap().unwrap();
    assert_eq!(used(&server, before), granted);
}

/// A node with counters, as a driver has left it, on which one pod keeps a claim for a whole GPU waiting: it has a 1g of the first
/// GPU, a pod without the label has a 4g of the second one. Answers the name of the node.
async fn create_fragmented(server: &ApiServer, lab: &mut Lab) {
    let crd = manifest::load(&repository().join("deploy/manifests/crd.yaml")).unwrap().remove(0);
    server.create(crd).unwrap();
    lab.start();
    eventually("the status is there", async || {
        let object = server.get(&kinds::MIG_NODE, "", &lab.node_name).ok()?;
        (object["status"]["mode"] == "partitionable").then_some(())
    })
    .await;
    lab.stop().await;
    server.create(namespace()).unwrap();
    let of = |profile: &str| format!(r#"device.attributes["mig.dra-driver.dev"].profile == "{profile}""#);
    create_waiting_pod_for(server, "mig-1g.10gb", &of("1g.10gb"));
    create_waiting_pod_for(server, "mig-7g.80gb", &of("7g.80gb"));
    let mut status = server.get(&kinds::MIG_NODE, "", &lab.node_name).unwrap()["status"].clone();
    let uid = |kind, name: &str| server.get(kind, "default", name).unwrap()["metadata"]["uid"].clone();
    let claim = json!({"namespace": "default", "name": "mig-1g.10gb", "uid": uid(&kinds::RESOURCE_CLAIM, "mig-1g.10gb")});
    let published = |gpu: usize, profile: &str, start: u64| {
        let all = status["gpus"][gpu]["published"].as_array().unwrap();
        all.iter().find(|it| it["profile"] == profile && it["start"] == start).unwrap().clone()
    };
    let (mut small, large, free) =
        (published(0, "1g.10gb", 0), published(1, "4g.40gb", 0), published(1, "1g.10gb", 6));
    let device = small["device"].clone();
    small["claim"] = claim;
    for (gpu, held, offered) in [(0, small, json!([])), (1, large, json!([free]))] {
        status["gpus"][gpu]["held"] = json!([held]);
        status["gpus"][gpu]["published"] = offered;
    }
    server.patch(&kinds::MIG_NODE, "", &lab.node_name, Part::Status, json!({"status": status})).unwrap();
    // The pod runs since long ago, and a controller replaces it.
    let pool = format!("{}/mig.dra-driver.dev", lab.node_name);
    let result = json!({"request": "gpu", "driver": "mig.dra-driver.dev", "pool": pool, "device": device});
    let user = json!({"resource": "pods", "name": "mig-1g.10gb", "uid": uid(&kinds::POD, "mig-1g.10gb")});
    let allocated =
        json!({"status": {"allocation": {"devices": {"results": [result]}}, "reservedFor": [user]}});
    server.patch(&kinds::RESOURCE_CLAIM, "default", "mig-1g.10gb", Part::Status, allocated).unwrap();
    let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "set", "controller": true,
        "uid": "00000000-0000-4000-8000-000000000001"});
    let labels = json!({"mig.dra-driver.dev/movable": "true"});
    let change = json!({"metadata": {"labels": labels, "ownerReferences": [owner]}, "spec": {"nodeName": lab.node_name}});
    server.patch(&kinds::POD, "default", "mig-1g.10gb", Part::Main, change).unwrap();
    let runs = json!({"status": {"phase": "Running", "startTime": "2026-01-01T00:00:00Z", "conditions": []}});
    server.patch(&kinds::POD, "default", "mig-1g.10gb", Part::Status, runs).unwrap();
}

/// The driver has seen the spec.
fn see_spec(server: &ApiServer, node: &str) {
    let generation = server.get(&kinds::MIG_NODE, "", node).unwrap()["metadata"]["generation"].clone();
    let seen = json!({"status": {"observedGeneration": generation}});
    server.patch(&kinds::MIG_NODE, "", node, Part::Status, seen).unwrap();
}

const CONSOLIDATE: [&str; 5] =
    ["--demand", "--default-auto", "--hold-after=1", "--consolidate", "--evictions-per-hour=3600"];

/// Requests for evictions, the queries of those that were made.
fn evictions(server: &ApiServer, before: usize) -> Vec<String> {
    let all = server.requests().split_off(before);
    all.into_iter().filter(|it| it.path.ends_with("/eviction")).map(|it| it.query).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_consolidation_a_pod_is_evicted_once_the_driver_has_seen_the_hold_and_the_rights_are_those_that_are_used()
 {
    let plane = ControlPlane::simulated(true).await;
    let ControlPlane::Simulated(server) = &plane else { unreachable!() };
    let server = Arc::clone(server);
    let mut lab = Lab::new(plane, "2xH100-80GB").await;
    create_fragmented(&server, &mut lab).await;
    let before = server.requests().len();
    let (stop, running) = start(&server, &CONSOLIDATE).await;
    let hold = eventually("a GPU is held back", async || {
        let object = server.get(&kinds::MIG_NODE, "", &lab.node_name).ok()?;
        object["spec"]["holds"].get(0).cloned()
    })
    .await;
    assert_eq!((&hold["profile"], &hold["claim"]["name"]), (&json!("7g.80gb"), &json!("mig-7g.80gb")));
    assert_eq!(evictions(&server, before), Vec::<String>::new(), "the driver has not seen the hold");
    see_spec(&server, &lab.node_name);
    eventually("the pod is evicted", async || {
        let pod = server.get(&kinds::POD, "default", "mig-1g.10gb").ok()?;
        (!pod["metadata"]["deletionTimestamp"].is_null()).then_some(())
    })
    .await;
    let notes = eventually("both pods have an event", async || {
        let all = server.list(&kinds::NEW_EVENT);
        let about = |name: &str| {
            let is = |it: &&Arc<Value>| it["reason"] == "MigConsolidation" && it["regarding"]["name"] == name;
            Some(all.iter().find(is)?["note"].as_str()?.to_owned())
        };
        Some((about("mig-1g.10gb")?, about("mig-7g.80gb")?))
    })
    .await;
    assert!(notes.0.starts_with("Evicted because pod mig-7g.80gb has waited"), "{notes:?}");
    assert!(notes.1.starts_with("1 of 1 pods evicted from GPU gpu-0000-1a-00"), "{notes:?}");
    // A trial, and the eviction.
    let queries = evictions(&server, before);
    assert_eq!(queries.iter().map(|it| it.contains("dryRun=All")).collect::<Vec<_>>(), [true, false]);
    let change = json!({"controller": {"enabled": true, "demand": {"enabled": true, "holdAfter": 1},
        "consolidation": {"enabled": true}}});
    if let Some(all) = objects(&change) {
        let is_role = |it: &Value| it["metadata"]["name"] == "mig-controller" && !it["rules"].is_null();
        let granted = granted(&all.into_iter().filter(is_role).collect::<Vec<_>>());
        eventually("each right is used", async || granted.is_subset(&used(&server, before)).then_some(()))
            .await;
        assert_eq!(used(&server, before), granted);
    }
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_a_budget_keeps_is_not_evicted_and_its_hold_stays() {
    let plane = ControlPlane::simulated(true).await;
    let ControlPlane::Simulated(server) = &plane else { unreachable!() };
    let server = Arc::clone(server);
    let mut lab = Lab::new(plane, "2xH100-80GB").await;
    create_fragmented(&server, &mut lab).await;
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": {"name": "b", "namespace": "default"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"mig.dra-driver.dev/movable": "true"}}}});
    server.create(budget).unwrap();
    let status = json!({"status": {"observedGeneration": 1, "disruptionsAllowed": 0, "desiredHealthy": 1,
        "currentHealthy": 1, "expectedPods": 1}});
    server.patch(&kinds::POD_DISRUPTION_BUDGET, "default", "b", Part::Status, status).unwrap();
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    server.patch(&kinds::POD, "default", "mig-1g.10gb", Part::Status, ready).unwrap();
    let before = server.requests().len();
    let (stop, running) = start(&server, &CONSOLIDATE).await;
    let held = || {
        let object = server.get(&kinds::MIG_NODE, "", &lab.node_name).ok()?;
        object["spec"]["holds"].get(0).cloned()
    };
    let hold = eventually("a GPU is held back", async || held()).await;
    see_spec(&server, &lab.node_name);
    eventually("it is asked for", async || (!evictions(&server, before).is_empty()).then_some(())).await;
    // Another change wakes the controller; the pod is left alone for a minute.
    let events = server.list(&kinds::NEW_EVENT).len();
    create_waiting_pod_for(&server, "mig-none", "false");
    eventually("it has seen the other pod", async || {
        (events < server.list(&kinds::NEW_EVENT).len()).then_some(())
    })
    .await;
    let queries = evictions(&server, before);
    assert!(queries.len() == 1 && queries[0].contains("dryRun=All"), "{queries:?}");
    let pod = server.get(&kinds::POD, "default", "mig-1g.10gb").unwrap();
    assert!(pod["metadata"]["deletionTimestamp"].is_null());
    assert_eq!(held(), Some(hold));
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[test]
fn what_the_deployment_sets_is_what_the_controller_reads() {
    let command = Args::command();
    let known: BTreeSet<&str> = command.get_arguments().filter_map(|it| it.get_env()?.to_str()).collect();
    let deployments = of_kind("Deployment");
    let [deployment] = deployments.as_slice() else { panic!("{deployments:?}") };
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let mut line = vec!["mig-controller".to_owned()];
    for variable in container["env"].as_array().unwrap() {
        let name = variable["name"].as_str().unwrap();
        assert!(known.contains(name), "{name}");
        // As flags, because tests share the environment.
        if let (Some(value), false) = (variable["value"].as_str(), name == "NO_EVENTS") {
            line.push(format!("--{}={value}", name.to_lowercase().replace('_', "-")));
        }
    }
    Args::try_parse_from(line).unwrap();
    assert_eq!(
        container["securityContext"],
        json!({
            "privileged": false, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"}, "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
            "readOnlyRootFilesystem": true,
        })
    );
    assert!(pod["volumes"].is_null() && pod["hostNetwork"].is_null());
}

#[test]
fn the_driver_and_the_controller_select_their_own_pods() {
    let Some(all) = objects(&json!({"controller": {"enabled": true}, "podMonitor": {"enabled": true}}))
    else {
        return;
    };
    for object in &all {
        let name = object["metadata"]["labels"]["app.kubernetes.io/name"].clone();
        let selector = match object["kind"].as_str().unwrap() {
            "DaemonSet" | "Deployment" | "PodDisruptionBudget" | "PodMonitor" => &object["spec"]["selector"],
            "NetworkPolicy" => &object["spec"]["podSelector"],
            _ => continue,
        };
        assert_eq!(selector["matchLabels"], json!({"app.kubernetes.io/name": name}), "{object}");
    }
}

#[test]
fn the_right_to_evict_comes_only_with_consolidation_which_needs_holds() {
    let evicts = |change: Value| -> Option<(bool, bool)> {
        let all = objects(&change)?;
        let is_role = |it: &&Value| it["metadata"]["name"] == "mig-controller" && !it["rules"].is_null();
        let roles: Vec<Value> = all.iter().filter(is_role).cloned().collect();
        let environment =
            all.iter().find(|it| it["kind"] == "Deployment" && it["metadata"]["name"] == "mig-controller");
        let environment =
            environment.unwrap()["spec"]["template"]["spec"]["containers"][0]["env"].to_string();
        Some((granted(&roles).iter().any(|it| it.2 == "pods/eviction"), environment.contains("CONSOLIDATE")))
    };
    let with = |demand: Value, is_enabled: bool| json!({"controller": {"enabled": true, "demand": demand, "consolidation": {"enabled": is_enabled}}});
    let demand = || json!({"enabled": true, "holdAfter": 300});
    let Some(found) = evicts(with(demand(), true)) else { return };
    assert_eq!(found, (true, true));
    assert_eq!(evicts(with(demand(), false)), Some((false, false)));
    for missing in [json!({"enabled": false, "holdAfter": 300}), json!({"enabled": true, "holdAfter": 0})] {
        let refused = refusal(&with(missing, true)).unwrap();
        assert!(
            refused.contains("set controller.demand.enabled to true and controller.demand.holdAfter"),
            "{refused}"
        );
    }
}

#[test]
fn without_events_the_controller_has_no_right_to_them() {
    let Some(all) = objects(&json!({"controller": {"enabled": true, "events": false}})) else { return };
    let roles: Vec<Value> = all
        .into_iter()
        .filter(|it| it["metadata"]["name"] == "mig-controller" && !it["rules"].is_null())
        .collect();
    assert!(granted(&roles).iter().all(|(_, _, resource, _)| resource != "events"));
}
