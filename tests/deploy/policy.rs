//! The shipped objects on a real API server, where `KUBEBUILDER_ASSETS` has one: it takes them, the driver does its work with
//! the account that they give it, and that account cannot touch the slices of another node.

use std::path::Path;

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceSlice};
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
    ValidationDirective,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use kube_sim::manifest;
use serde_json::{Value, json};

use crate::chart::objects;
use crate::common::{ControlPlane, DRIVER, Lab, eventually, is_complete};

const NAMESPACE: &str = "dra-driver-mig";

/// Server-side apply, with every unknown field refused.
async fn apply(client: &Client, object: &Value, dry_run: bool) -> Result<(), kube::Error> {
    let text = |it: &Value| it.as_str().unwrap_or_default().to_owned();
    let (group, version) = match text(&object["apiVersion"]).split_once('/') {
        Some((group, version)) => (group.to_owned(), version.to_owned()),
        None => (String::new(), text(&object["apiVersion"])),
    };
    let resource = ApiResource::from_gvk(&GroupVersionKind { group, version, kind: text(&object["kind"]) });
    let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let params = PatchParams {
        dry_run,
        force: true,
        field_manager: Some("test".to_owned()),
        field_validation: Some(ValidationDirective::Strict),
    };
    api.patch(&text(&object["metadata"]["name"]), &params, &Patch::Apply(object)).await.map(|_| ())
}

/// A token of the driver's account: bound to a pod on this node, which is made for it, or to nothing.
async fn token(admin: &Client, node: Option<&str>) -> String {
    let mut bound_object_ref = None;
    if let Some(node) = node {
        let pods: Api<Pod> = Api::namespaced(admin.clone(), NAMESPACE);
        let pod = json!({
            "metadata": {"name": format!("driver-on-{node}")},
            "spec": {"nodeName": node, "serviceAccountName": "dra-driver-mig",
                     "containers": [{"name": "driver", "image": "x"}]},
        });
        let pod = pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
        bound_object_ref = Some(BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: pod.metadata.name,
            uid: pod.metadata.uid,
        });
    }
    let spec = TokenRequestSpec { bound_object_ref, ..TokenRequestSpec::default() };
    let request = TokenRequest { spec, ..TokenRequest::default() };
    let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), NAMESPACE);
    let answer = accounts.create_token_request("dra-driver-mig", &PostParams::default(), &request).await;
    answer.unwrap().status.unwrap().token
}

/// A client with a token.
async fn client(plane: &ControlPlane, token: &str) -> Client {
    let text = plane.kubeconfig().replace("token: sandbox", &format!("token: {token}"));
    let file = Kubeconfig::from_yaml(&text).unwrap();
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

fn slice(node: &str, driver: &str) -> ResourceSlice {
    let slice = json!({
        "metadata": {"name": format!("{node}-{driver}")},
        "spec": {"driver": driver, "nodeName": node,
                 "pool": {"name": format!("{node}/{driver}"), "generation": 1, "resourceSliceCount": 1},
                 "devices": []},
    });
    serde_json::from_value(slice).unwrap()
}

/// The API server's message for a refusal.
fn refused<T: std::fmt::Debug>(answer: Result<T, kube::Error>) -> String {
    match answer.unwrap_err() {
        kube::Error::Api(status) if status.code == 403 || status.code == 422 => status.message,
        other => panic!("not refused, but {other}"),
    }
}

/// Makes everything that is shipped but the pods, after the API server has said that it would take all of it.
async fn install(admin: &Client) {
    let namespace = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/manifests/namespace.yaml");
    apply(admin, &manifest::load(&namespace).unwrap()[0], false).await.unwrap();
    for object in objects(&json!({})) {
        apply(admin, &object, true).await.unwrap_or_else(|error| panic!("{error}\n{object:#}"));
        if object["kind"] != "DaemonSet" {
            apply(admin, &object, false).await.unwrap();
        }
    }
}

/// The driver's whole work: publish, prepare, unprepare, and publish again what somebody deleted.
async fn work(lab: &mut Lab) {
    lab.start();
    let kubelet = lab.kubelet().await;
    let published = lab.slices_when(is_complete).await;
    let claim = lab.claim_of("one", "gpu-0000-1a-00-mig-1g-10gb-6").await;
    let asked = std::slice::from_ref(&claim);
    let devices = async || {
        let claims = Api::<ResourceClaim>::namespaced(lab.client.clone(), "default");
        claims.get(&claim.name).await.unwrap().status.and_then(|it| it.devices).unwrap_or_default().len()
    };
    kubelet.prepare(asked).await.unwrap().remove(&claim.uid).unwrap().unwrap();
    eventually("the device has a status", async || (devices().await == 1).then_some(())).await;
    kubelet.unprepare(asked).await.unwrap().remove(&claim.uid).unwrap().unwrap();
    eventually("the status is taken back", async || (devices().await == 0).then_some(())).await;
    let name = published[0].metadata.name.clone().unwrap();
    lab.slices_api().delete(&name, &DeleteParams::default()).await.unwrap();
    lab.slices_when(|it| it.len() == published.len()).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_api_server_takes_the_objects_and_keeps_a_node_to_its_own_slices() {
    let Some(plane) = ControlPlane::real(true).await else {
        return eprintln!("skipped: no KUBEBUILDER_ASSETS");
    };
    let mut lab = Lab::new(plane.clone(), "1xH100-80GB").await;
    let admin = lab.client.clone();
    install(&admin).await;
    let mut other = Node::default();
    other.metadata.name = Some("other-node".to_owned());
    Api::<Node>::all(admin.clone()).create(&PostParams::default(), &other).await.unwrap();
    let here = token(&admin, Some(&lab.node_name)).await;
    let there = client(&plane, &token(&admin, Some("other-node")).await).await;

    std::fs::write(
        lab.path("kubeconfig"),
        plane.kubeconfig().replace("token: sandbox", &format!("token: {here}")),
    )
    .unwrap();
    work(&mut lab).await;
    let here = client(&plane, &here).await;

    // Another node's pod must not touch the slices: neither make more of them, nor change, nor delete them.
    let slices = |client: &Client| Api::<ResourceSlice>::all(client.clone());
    let (params, delete) = (PostParams::default(), DeleteParams::default());
    let more = slice(&lab.node_name, DRIVER);
    // The policy is in force some moments after it was made.
    let is_refused = async || slices(&there).create(&params, &more).await.is_err().then_some(());
    eventually("the policy is in force", is_refused).await;
    let own = lab.slices().await.swap_remove(0);
    let name = own.metadata.name.clone().unwrap();
    let mut changed = own;
    changed.spec.pool.generation += 1;
    for message in [
        refused(slices(&there).create(&params, &more).await),
        refused(slices(&there).replace(&name, &params, &changed).await),
        refused(slices(&there).delete(&name, &delete).await),
    ] {
        let told = format!("a pod on node other-node may not write resourceslices of node {}", lab.node_name);
        assert!(message.contains(&told), "{message}");
    }

    // Nor may a pod write those of another driver, and a token that is bound to no pod writes none at all.
    let message = refused(slices(&here).create(&params, &slice(&lab.node_name, "gpu.example.com")).await);
    assert!(message.contains("resourceslices of the driver"), "{message}");
    let unbound = client(&plane, &token(&admin, None).await).await;
    let message = refused(slices(&unbound).create(&params, &more).await);
    assert!(message.contains("not bound to a pod"), "{message}");

    // Of a claim's status it writes that of its own node's devices, whoever holds them, and nothing else.
    let claims = |client: &Client| Api::<ResourceClaim>::namespaced(client.clone(), "default");
    let claim = lab.claim_of("two", "gpu-0000-1a-00-mig-1g-10gb-6").await.name;
    let pool = format!("{}/{DRIVER}", lab.node_name);
    let devices = json!([{"driver": DRIVER, "pool": pool, "device": "gpu-0000-1a-00-mig-1g-10gb-6", "data": {"x": 1}}]);
    let write = async |client: &Client, status: Value| {
        let status = Patch::Merge(json!({"status": status}));
        claims(client).patch_status(&claim, &PatchParams::default(), &status).await
    };
    let is_refused = async || write(&there, json!({"devices": devices})).await.is_err().then_some(());
    eventually("the other policy is in force", is_refused).await;
    let message = refused(write(&there, json!({"devices": devices})).await);
    assert!(message.contains("its own node's devices only"), "{message}");
    write(&here, json!({"devices": devices})).await.unwrap();
    let message = refused(write(&here, json!({"allocation": null, "devices": null})).await);
    assert!(message.contains("not the allocation of a claim"), "{message}");
    write(&here, json!({"devices": null})).await.unwrap();
    let message = refused(write(&unbound, json!({"devices": devices})).await);
    assert!(message.contains("not bound to a pod"), "{message}");

    // Its own it may; and what nobody granted it may not.
    slices(&there).create(&params, &slice("other-node", DRIVER)).await.unwrap();
    slices(&there).delete(&format!("other-node-{DRIVER}"), &delete).await.unwrap();
    slices(&here).delete(&name, &delete).await.unwrap();
    let pods = Api::<Pod>::namespaced(here, NAMESPACE);
    assert!(refused(pods.list(&ListParams::default()).await).contains("cannot list"));
}
