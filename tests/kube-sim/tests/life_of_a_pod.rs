//! Control plane and kubelet together, against a driver made by hand: what happens to pods and claims from creation to release.

use std::sync::Arc;
use std::time::Duration;

use crate::common::{FakeDriver, eventually};
use kube_sim::api::table::claim_state;
use kube_sim::kinds::{DEPLOYMENT, EVENT, KindRef, NODE, POD, RESOURCE_CLAIM, RESOURCE_SLICE};
use kube_sim::kubelet::{Claim, KubeletError, Version, encode_authority};
use kube_sim::{ApiServer, ControlPlane, Kubelet, KubeletClient, KubeletOptions, Options, Part};
use serde_json::{Value, json};
use tempfile::TempDir;

const BOTH: [&str; 2] = ["v1.DRAPlugin", "v1beta1.DRAPlugin"];
const SOCKET: &str = "mig.dra-driver.dev@reg.sock";

struct Cluster {
    server: ApiServer,
    driver: FakeDriver,
    kubelet: Kubelet,
    _control: ControlPlane,
    _directory: TempDir,
}

/// A cluster whose node has `devices` devices; slices come after the kubelet's wipe.
async fn cluster(devices: usize) -> Cluster {
    let directory = tempfile::tempdir().unwrap();
    let server = ApiServer::start(Options::default()).await.unwrap();
    let driver = FakeDriver::start(directory.path(), SOCKET, &BOTH);
    let options = KubeletOptions {
        retry: Duration::from_millis(20),
        ..KubeletOptions::new("node-0", &driver.registry)
    };
    let kubelet = Kubelet::start(&server, options).unwrap();
    publish(&server, devices);
    let control = ControlPlane::start(&server);
    create(&server, "resource.k8s.io/v1", "DeviceClass", "mig", json!({"spec": {"selectors": []}}));
    create(
        &server,
        "resource.k8s.io/v1",
        "ResourceClaimTemplate",
        "t",
        json!({"spec": {"spec": claim_spec()}}),
    );
    Cluster { server, driver, kubelet, _control: control, _directory: directory }
}

fn publish(server: &ApiServer, devices: usize) {
    let devices: Vec<Value> = (0..devices).map(|n| json!({"name": format!("d-{n}")})).collect();
    let pool = json!({"name": "p", "generation": 1, "resourceSliceCount": 1});
    let spec =
        json!({"driver": "mig.dra-driver.dev", "nodeName": "node-0", "pool": pool, "devices": devices});
    create(server, "resource.k8s.io/v1", "ResourceSlice", "s", json!({ "spec": spec }));
}

fn create(server: &ApiServer, api_version: &str, kind: &str, name: &str, mut body: Value) {
    body["apiVersion"] = api_version.into();
    body["kind"] = kind.into();
    body["metadata"]["name"] = name.into();
    server.create(body).unwrap();
}

fn claim_spec() -> Value {
    json!({"devices": {"requests": [{"name": "mig", "exactly": {"deviceClassName": "mig"}}]}})
}

fn pod_spec(claim: Value) -> Value {
    let mut entry = claim;
    entry["name"] = "gpu".into();
    json!({"containers": [{"name": "c", "image": "i", "resources": {"claims": [{"name": "gpu"}]}}],
        "resourceClaims": [entry]})
}

fn from_template() -> Value {
    pod_spec(json!({"resourceClaimTemplateName": "t"}))
}

fn shared() -> Value {
    pod_spec(json!({"resourceClaimName": "shared"}))
}

impl Cluster {
    fn pod(&self, name: &str, spec: Value) {
        create(&self.server, "v1", "Pod", name, json!({ "spec": spec }));
    }

    fn get(&self, kind: KindRef, name: &str) -> Option<Arc<Value>> {
        self.server.get(kind, "default", name).ok()
    }

    async fn running(&self, name: &str) -> Arc<Value> {
        eventually("the pod runs", || self.get(&POD, name).filter(|p| p["status"]["phase"] == "Running"))
            .await
    }

    async fn gone(&self, name: &str) {
        eventually("the pod is gone", || self.get(&POD, name).is_none().then_some(())).await;
    }

    fn event(&self, reason: &str) -> Option<String> {
        let events = self.server.list(&EVENT);
        let event = events.iter().find(|e| e["reason"] == reason)?;
        Some(event["message"].as_str().unwrap_or("").to_owned())
    }
}

#[tokio::test]
async fn a_pod_with_a_template_gets_a_claim_a_device_and_a_node_and_gives_all_back() {
    let cluster = cluster(1).await;
    cluster.pod("one", from_template());
    let pod = cluster.running("one").await;
    assert_eq!(pod["spec"]["nodeName"], "node-0");
    let claim_name = pod["status"]["resourceClaimStatuses"][0]["resourceClaimName"].as_str().unwrap();
    assert!(claim_name.starts_with("one-gpu-"), "{claim_name}");
    let claim = cluster.get(&RESOURCE_CLAIM, claim_name).unwrap();
    assert_eq!(claim_state(&claim), "allocated,reserved");
    assert_eq!(claim["metadata"]["annotations"]["resource.kubernetes.io/pod-claim-name"], "gpu");
    assert_eq!(claim["metadata"]["ownerReferences"][0]["uid"], pod["metadata"]["uid"]);
    assert_eq!(claim["status"]["reservedFor"][0]["uid"], pod["metadata"]["uid"]);
    let devices = cluster.kubelet.containers(&cluster.server.store(), &pod);
    let uid = claim["metadata"]["uid"].as_str().unwrap();
    assert_eq!(devices[0].device.cdi_ids, [format!("mig.dra-driver.dev/claim={uid}-d")]);

    cluster.server.delete(&POD, "default", "one").unwrap();
    cluster.gone("one").await;
    eventually("the claim goes with its pod", || {
        cluster.get(&RESOURCE_CLAIM, claim_name).is_none().then_some(())
    })
    .await;
    let seen = cluster.driver.seen.lock().unwrap();
    assert_eq!(seen.unprepared, [[claim_name.to_owned()]]);
    assert_eq!(cluster.kubelet.counts().prepared, 1);
    assert_eq!(cluster.kubelet.counts().unprepared, 1);
}

#[tokio::test]
async fn a_shared_claim_is_prepared_once_and_unprepared_after_its_last_pod() {
    let cluster = cluster(1).await;
    create(&cluster.server, "resource.k8s.io/v1", "ResourceClaim", "shared", json!({"spec": claim_spec()}));
    cluster.pod("a", shared());
    cluster.running("a").await;
    cluster.pod("b", shared());
    cluster.running("b").await;
    assert_eq!(cluster.driver.seen.lock().unwrap().prepared.len(), 1);
    cluster.server.delete(&POD, "default", "a").unwrap();
    cluster.gone("a").await;
    assert_eq!(cluster.driver.seen.lock().unwrap().unprepared.len(), 0);
    cluster.server.delete(&POD, "default", "b").unwrap();
    cluster.gone("b").await;
    assert_eq!(cluster.driver.seen.lock().unwrap().unprepared.len(), 1);
    let pending = || cluster.get(&RESOURCE_CLAIM, "shared").filter(|c| claim_state(c) == "pending");
    eventually("the claim is deallocated and stays", pending).await;
}

#[tokio::test]
async fn a_pod_that_does_not_fit_waits_and_runs_when_a_device_is_free() {
    let cluster = cluster(1).await;
    cluster.pod("first", from_template());
    cluster.running("first").await;
    cluster.pod("second", from_template());
    let message = eventually("an event says so", || cluster.event("FailedScheduling")).await;
    assert!(
        message.contains("0/1 nodes are available: 1 cannot allocate all claims")
            || message.contains("waiting")
    );
    cluster.server.delete(&POD, "default", "first").unwrap();
    cluster.running("second").await;
}

#[tokio::test]
async fn a_failed_prepare_is_reported_in_an_event_and_tried_again() {
    let cluster = cluster(1).await;
    cluster.driver.seen.lock().unwrap().error = "no MIG today".into();
    cluster.pod("one", from_template());
    let message = eventually("an event says so", || cluster.event("FailedPrepareDynamicResources")).await;
    assert!(message.ends_with("no MIG today"), "{message}");
    cluster.driver.seen.lock().unwrap().error.clear();
    cluster.running("one").await;
}

#[tokio::test]
async fn a_deployment_scales_its_pods_and_their_claims() {
    let cluster = cluster(3).await;
    let template = json!({"metadata": {"labels": {"app": "w"}}, "spec": from_template()});
    let spec = json!({"replicas": 3, "selector": {"matchLabels": {"app": "w"}}, "template": template});
    create(&cluster.server, "apps/v1", "Deployment", "w", json!({ "spec": spec }));
    let ready = |n: i64| cluster.get(&DEPLOYMENT, "w").filter(|d| d["status"]["readyReplicas"] == n);
    eventually("three replicas are ready", || ready(3)).await;
    let scale = json!({"spec": {"replicas": 1}});
    cluster.server.patch(&DEPLOYMENT, "default", "w", Part::Main, scale).unwrap();
    eventually("one claim is left", || (cluster.server.list(&RESOURCE_CLAIM).len() == 1).then_some(())).await;
    cluster.server.delete(&DEPLOYMENT, "default", "w").unwrap();
    eventually("nothing is left", || cluster.server.list(&POD).is_empty().then_some(())).await;
    eventually("all is unprepared", || cluster.kubelet.prepared().is_empty().then_some(())).await;
}

#[tokio::test]
async fn the_kubelet_wipes_slices_at_its_start_and_after_the_driver_has_gone() {
    let directory = tempfile::tempdir().unwrap();
    let server = ApiServer::start(Options::default()).await.unwrap();
    publish(&server, 1);
    let driver = FakeDriver::start(directory.path(), SOCKET, &BOTH);
    let wipe_after = Some(Duration::from_millis(50));
    let options = KubeletOptions { wipe_after, ..KubeletOptions::new("node-0", &driver.registry) };
    let kubelet = Kubelet::start(&server, options).unwrap();
    assert!(server.list(&RESOURCE_SLICE).is_empty());
    eventually("the driver is registered", || (!kubelet.plugins().is_empty()).then_some(())).await;
    publish(&server, 1);
    std::fs::remove_file(driver.registry.join(SOCKET)).unwrap();
    eventually("its slices are wiped", || server.list(&RESOURCE_SLICE).is_empty().then_some(())).await;
    assert!(server.get(&NODE, "", "node-0").is_ok());
}

#[tokio::test]
async fn registration_is_dialled_with_the_encoded_path_and_the_service_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let driver = FakeDriver::start(directory.path(), SOCKET, &BOTH);
    let plugin = KubeletClient::register(&driver.registry).await.unwrap();
    assert_eq!((plugin.name.as_str(), plugin.version), ("mig.dra-driver.dev", Version::V1));
    let claim = Claim { namespace: "default".into(), name: "c".into(), uid: "u".into() };
    let answer = plugin.prepare(std::slice::from_ref(&claim)).await.unwrap();
    assert_eq!(answer["u"].as_ref().unwrap()[0].cdi_ids, ["mig.dra-driver.dev/claim=u-d"]);
    plugin.speaking(Version::V1Beta1).unprepare(&[claim]).await.unwrap();
    let seen = driver.seen.lock().unwrap();
    assert_eq!(seen.registered, Some((true, String::new())));
    let encoded = encode_authority(&driver.registry.join(SOCKET).to_string_lossy());
    assert_eq!(seen.calls[0], format!("{encoded} /pluginregistration.Registration/GetInfo"));
    assert!(!seen.calls[2].starts_with('%'), "{}", seen.calls[2]);
    assert!(seen.calls[2].ends_with(" /k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodePrepareResources"));
    assert!(
        seen.calls[3].ends_with(" /k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin/NodeUnprepareResources")
    );
}

#[tokio::test]
async fn a_socket_name_without_an_at_sign_cannot_be_registered() {
    let directory = tempfile::tempdir().unwrap();
    let driver = FakeDriver::start(directory.path(), "mig.dra-driver.dev-reg.sock", &BOTH);
    let refused = KubeletClient::register(&driver.registry).await.unwrap_err();
    assert!(matches!(refused, KubeletError::Authority(_)), "{refused}");
}

#[tokio::test]
async fn the_first_version_that_the_kubelet_knows_is_taken_and_none_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let driver =
        FakeDriver::start(directory.path(), SOCKET, &["v2.DRAPlugin", "v1beta1.DRAPlugin", "v1.DRAPlugin"]);
    assert_eq!(KubeletClient::register(&driver.registry).await.unwrap().version, Version::V1Beta1);
    let other = tempfile::tempdir().unwrap();
    let driver = FakeDriver::start(other.path(), SOCKET, &["v2.DRAPlugin"]);
    assert!(KubeletClient::register(&driver.registry).await.is_err());
    assert!(
        driver.seen.lock().unwrap().registered.as_ref().is_some_and(|(ok, text)| !ok && !text.is_empty())
    );
}
