//! The controller with the manifests that are shipped: its rights against the requests that it makes, and its pod.

use std::collections::BTreeSet;
use std::net::TcpListener;

use clap::{CommandFactory, Parser};
use kube_sim::{ApiServer, Options, Part, kinds, manifest};
use mig_controller::args::Args;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::chart::objects;
use super::rights::{Used, asked, granted};
use crate::common::{eventually, repository};

const NAMESPACE: &str = "dra-driver-mig";

/// The objects of the manifest.
fn shipped() -> Vec<Value> {
    manifest::load(&repository().join("deploy/manifests/optional/controller.yaml")).unwrap()
}

fn of_kind(kind: &str) -> Vec<Value> {
    shipped().into_iter().filter(|it| it["kind"] == kind).collect()
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// A pod that waits for a device that no node has.
fn create_waiting_pod(server: &ApiServer) {
    let devices = json!({"requests": [{"name": "gpu", "exactly": {"deviceClassName": "mig-1g.10gb"}}]});
    let class = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": "mig-1g.10gb"},
        "spec": {"selectors": [{"cel": {"expression": "device.driver == \"mig.dra-driver.dev\""}}]},
    });
    let claim = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": "c", "namespace": "default"},
        "spec": {"devices": devices},
    });
    let container = json!({"name": "main", "image": "i", "resources": {"claims": [{"name": "gpu"}]}});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
        "spec": {"containers": [container], "resourceClaims": [{"name": "gpu", "resourceClaimName": "c"}]},
    });
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}});
    for object in [class, claim, node, pod] {
        server.create(object).unwrap();
    }
    let condition = json!({
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    let status = json!({"status": {"conditions": [condition]}});
    server.patch(&kinds::POD, "default", "p", Part::Status, status).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_rights_are_what_the_controller_uses_and_nothing_more() {
    let server = ApiServer::start(Options::default()).await.unwrap();
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    server.create(namespace).unwrap();
    create_waiting_pod(&server);
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    server.write_kubeconfig(&kubeconfig).unwrap();
    let line = [
        "mig-controller".to_owned(),
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--lease-namespace={NAMESPACE}"),
        format!("--http-address={}", free_address()),
        "--metrics-address=off".to_owned(),
        "--patience=1".to_owned(),
        "--lease-duration=1".to_owned(),
    ];
    let stop = CancellationToken::new();
    let before = server.requests().len();
    let running = tokio::spawn(mig_controller::run(Args::try_parse_from(line).unwrap(), stop.clone()));
    // Leases are in one namespace; all else is granted in every namespace.
    let as_granted = |(namespace, group, resource, verb): Used| {
        (namespace.filter(|_| resource == "leases"), group, resource, verb)
    };
    let used = || -> BTreeSet<Used> {
        server.requests().split_off(before).iter().filter_map(asked).map(as_granted).collect()
    };
    let granted = granted(&[of_kind("ClusterRole"), of_kind("Role")].concat());
    eventually("each right is used", async || granted.is_subset(&used()).then_some(())).await;
    stop.cancel();
    running.await.unwrap().unwrap();
    assert_eq!(used(), granted);
    assert_eq!(server.list(&kinds::NEW_EVENT).len(), 1);
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
fn without_events_the_controller_has_no_right_to_them() {
    let Some(all) = objects(&json!({"controller": {"enabled": true, "events": false}})) else { return };
    let roles: Vec<Value> = all
        .into_iter()
        .filter(|it| it["metadata"]["name"] == "mig-controller" && !it["rules"].is_null())
        .collect();
    assert!(granted(&roles).iter().all(|(_, _, resource, _)| resource != "events"));
}
