//! The shipped objects on a real API server, where `KUBEBUILDER_ASSETS` has one: it takes them, the driver does its work with
//! the account that they give it, and that account cannot touch the slices of another node.

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use k8s_openapi::api::resource::v1::ResourceSlice;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams,
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

/// A client with a token of the driver's account that is bound to a pod on this node, and the token.
async fn as_driver_on(admin: &Client, kubeconfig: &str, node: &str) -> (Client, String) {
    let pods: Api<Pod> = Api::namespaced(admin.clone(), NAMESPACE);
    let pod = json!({
        "metadata": {"name": format!("driver-on-{node}")},
        "spec": {"nodeName": node, "serviceAccountName": "dra-driver-mig",
                 "containers": [{"name": "driver", "image": "x"}]},
    });
    let pod = pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    let bound_object_ref = Some(BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: pod.metadata.name,
        uid: pod.metadata.uid,
    });
    let spec = TokenRequestSpec { bound_object_ref, ..TokenRequestSpec::default() };
    let request = TokenRequest { spec, ..TokenRequest::default() };
    let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), NAMESPACE);
    let answer =
        accounts.create_token_request("dra-driver-mig", &PostParams::default(), &request).await.unwrap();
    let kubeconfig =
        kubeconfig.replace("token: sandbox", &format!("token: {}", answer.status.unwrap().token));
    let file = Kubeconfig::from_yaml(&kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    (Client::try_from(config).unwrap(), kubeconfig)
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

#[tokio::test(flavor = "multi_thread")]
async fn a_real_api_server_takes_the_objects_and_keeps_a_node_to_its_own_slices() {
    let Some(plane) = ControlPlane::real(true).await else {
        return eprintln!("skipped: no KUBEBUILDER_ASSETS");
    };
    let mut lab = Lab::new(plane.clone(), "1xH100-80GB").await;
    let admin = lab.client.clone();
    let namespace = manifest::load(
        &std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/manifests/namespace.yaml"),
    );
    apply(&admin, &namespace.unwrap()[0], false).await.unwrap();
    for object in objects(&json!({})) {
        apply(&admin, &object, true).await.unwrap_or_else(|error| panic!("{error}\n{object:#}"));
        if object["kind"] != "DaemonSet" {
            apply(&admin, &object, false).await.unwrap();
        }
    }
    let mut other = Node::default();
    other.metadata.name = Some("other-node".to_owned());
    Api::<Node>::all(admin.clone()).create(&PostParams::default(), &other).await.unwrap();
    let (here, kubeconfig) = as_driver_on(&admin, &plane.kubeconfig(), &lab.node_name).await;
    let (there, _) = as_driver_on(&admin, &plane.kubeconfig(), "other-node").await;

    // The driver's whole work, with nothing but its account.
    std::fs::write(lab.path("kubeconfig"), kubeconfig).unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    let own = lab.slices_when(is_complete).await;
    let claim = lab.claim_of("one", "gpu-0000-1a-00-mig-1g-10gb-6").await;
    kubelet.prepare(std::slice::from_ref(&claim)).await.unwrap().remove(&claim.uid).unwrap().unwrap();
    kubelet.unprepare(std::slice::from_ref(&claim)).await.unwrap().remove(&claim.uid).unwrap().unwrap();
    let name = own[0].metadata.name.clone().unwrap();
    lab.slices_api().delete(&name, &DeleteParams::default()).await.unwrap();
    lab.slices_when(|it| it.len() == own.len()).await;
    lab.stop().await;

    // Another node's pod must not touch them: neither change, nor delete, nor make more of them.
    let slices = |client: &Client| Api::<ResourceSlice>::all(client.clone());
    let params = PostParams::default();
    // The policy is in force some moments after it was made.
    eventually("the policy is in force", async || {
        slices(&there).create(&params, &slice(&lab.node_name, DRIVER)).await.is_err().then_some(())
    })
    .await;
    let created = refused(slices(&there).create(&params, &slice(&lab.node_name, DRIVER)).await);
    let own = lab.slices().await.swap_remove(0);
    let mut changed = own.clone();
    changed.spec.pool.generation += 1;
    let updated = refused(slices(&there).replace(&name, &params, &changed).await);
    let deleted = refused(slices(&there).delete(&name, &DeleteParams::default()).await);
    for message in [created, updated, deleted] {
        let told = format!("a pod on node other-node may not write resourceslices of node {}", lab.node_name);
        assert!(message.contains(&told), "{message}");
    }
    // Nor may a pod write those of another driver, and a token that is bound to no pod writes none at all.
    let foreign = refused(slices(&here).create(&params, &slice(&lab.node_name, "gpu.example.com")).await);
    assert!(foreign.contains("resourceslices of the driver"), "{foreign}");
    let request = TokenRequest::default();
    let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), NAMESPACE);
    let token = accounts
        .create_token_request("dra-driver-mig", &params, &request)
        .await
        .unwrap()
        .status
        .unwrap()
        .token;
    let file =
        Kubeconfig::from_yaml(&plane.kubeconfig().replace("token: sandbox", &format!("token: {token}")))
            .unwrap();
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    let unbound = Client::try_from(config).unwrap();
    let message = refused(slices(&unbound).create(&params, &slice(&lab.node_name, DRIVER)).await);
    assert!(message.contains("not bound to a pod"), "{message}");
    // Its own it may.
    slices(&there).create(&params, &slice("other-node", DRIVER)).await.unwrap();
    slices(&there).delete(&format!("other-node-{DRIVER}"), &DeleteParams::default()).await.unwrap();
    slices(&here).delete(&name, &DeleteParams::default()).await.unwrap();
    // And what nobody granted it may not.
    let pods = Api::<Pod>::namespaced(here.clone(), NAMESPACE);
    assert!(refused(pods.list(&kube::api::ListParams::default()).await).contains("cannot list"));
}
