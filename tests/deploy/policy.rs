//! The shipped objects on a real API server, where `KUBEBUILDER_ASSETS` has one: it takes them, the driver does its work with
//! the account that they give it, and that account cannot touch what belongs to another node.

use crate::common::{ControlPlane, DRIVER, Lab, eventually, is_complete, repository};
use dra_driver_mig::api::{CONFIG_LABEL, STATE_LABEL};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, ServiceAccount};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceSlice};
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
    ValidationDirective,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use kube_sim::manifest;
use mig_model::mig_node::MigNode;
use serde_json::{Value, json};

use super::chart::shipped;

const NAMESPACE: &str = "dra-driver-mig";

/// Server-side apply, with every unknown field refused.
pub(crate) async fn apply(client: &Client, object: &Value, dry_run: bool) -> Result<(), kube::Error> {
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

/// A token of the driver's account that is bound to a pod of this name on this node, which is made for it.
async fn token_on(admin: &Client, node: &str, name: &str) -> String {
    let pods: Api<Pod> = Api::namespaced(admin.clone(), NAMESPACE);
    let pod = json!({
        "metadata": {"name": name},
        "spec": {"nodeName": node, "serviceAccountName": "dra-driver-mig",
                 "containers": [{"name": "driver", "image": "x"}]},
    });
    let pod = pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    let reference = BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: pod.metadata.name,
        uid: pod.metadata.uid,
    };
    token(admin, Some(reference)).await
}

/// A token of the driver's account, bound to this or to nothing.
async fn token(admin: &Client, bound_object_ref: Option<BoundObjectReference>) -> String {
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
        "metadata": {"name": format!("0fff0-{driver}-{node}")},
        "spec": {"driver": driver, "nodeName": node,
                 "pool": {"name": format!("{node}/{driver}"), "generation": 1, "resourceSliceCount": 1},
                 "devices": []},
    });
    serde_json::from_value(slice).unwrap()
}

/// As in a merge patch: null removes.
fn json_patch(value: &mut Value, change: &Value) {
    let (Value::Object(map), Value::Object(change)) = (&mut *value, change) else {
        return *value = change.clone();
    };
    for (key, it) in change {
        if it.is_null() {
            map.remove(key);
        } else {
            json_patch(map.entry(key.clone()).or_insert(Value::Null), it);
        }
    }
}

/// The API server's message for a refusal.
pub(crate) fn refused<T: std::fmt::Debug>(answer: Result<T, kube::Error>) -> String {
    match answer.unwrap_err() {
        kube::Error::Api(status) if status.code == 403 || status.code == 422 => status.message,
        other => panic!("not refused, but {other}"),
    }
}

/// Makes everything that is shipped but the pods, after the API server has said that it would take all of it.
async fn install(admin: &Client) {
    let namespace = repository().join("deploy/manifests/namespace.yaml");
    apply(admin, &manifest::load(&namespace).unwrap()[0], false).await.unwrap();
    for object in shipped() {
        apply(admin, &object, true).await.unwrap_or_else(|error| panic!("{error}\n{object:#}"));
        if object["kind"] != "DaemonSet" {
            apply(admin, &object, false).await.unwrap();
        }
    }
}

/// The driver's whole work: publish, prepare, unprepare, publish again what another client deleted, follow the node's label and tell
/// how the layout fares.
async fn work(lab: &mut Lab) {
    lab.start();
    let kubelet = lab.kubelet().await;
    let published = lab.slices_when(is_complete).await;
    eventually("the MigNode has a status", async || {
        Api::<MigNode>::all(lab.client.clone()).get_opt(&lab.node_name).await.unwrap()?.status
    })
    .await;
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

    let nodes: Api<Node> = Api::all(lab.client.clone());
    let layout = json!({"metadata": {"labels": {CONFIG_LABEL: "all-1g.10gb"}}});
    nodes.patch(&lab.node_name, &PatchParams::default(), &Patch::Merge(layout)).await.unwrap();
    lab.set_args(&["--mode", "layout", "--settle-time", "1"]);
    lab.start();
    eventually("the label says that the layout is in force", async || {
        let labels = nodes.get(&lab.node_name).await.unwrap().metadata.labels?;
        (labels.get(STATE_LABEL)? == "success").then_some(())
    })
    .await;
    let events: Api<Event> = Api::namespaced(lab.client.clone(), "default");
    eventually("an event says it, too", async || {
        let events = events.list(&ListParams::default()).await.unwrap().items;
        events.iter().any(|it| it.reason.as_deref() == Some("LayoutApplied")).then_some(())
    })
    .await;
    lab.stop().await;
}

/// A real API server with the shipped objects, and what has the driver's account on two nodes.
struct Installed {
    lab: Lab,
    /// With the token of the pod on the lab's node, which is also what the driver itself uses.
    here: Client,
    /// With that of a pod on `other-node`.
    there: Client,
    /// With a token that is bound to no pod.
    unbound: Client,
}

impl Installed {
    /// Where there is an API server. The policies are in force.
    async fn new() -> Option<Self> {
        let plane = ControlPlane::real(true).await?;
        let lab = Lab::new(plane.clone(), "1xH100-80GB").await;
        let admin = lab.client.clone();
        install(&admin).await;
        let mut other = Node::default();
        other.metadata.name = Some("other-node".to_owned());
        Api::<Node>::all(admin.clone()).create(&PostParams::default(), &other).await.unwrap();
        let here = token_on(&admin, &lab.node_name, "driver-here").await;
        let mine = plane.kubeconfig().replace("token: sandbox", &format!("token: {here}"));
        std::fs::write(lab.path("kubeconfig"), mine).unwrap();
        let here = client(&plane, &here).await;
        let there = client(&plane, &token_on(&admin, "other-node", "driver-there").await).await;
        let unbound = client(&plane, &token(&admin, None).await).await;

        // A policy is in force some moments after it was made.
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let more = slice(&lab.node_name, DRIVER);
        let slices = Api::<ResourceSlice>::all(there.clone());
        eventually("the slices are kept", async || slices.create(&dry, &more).await.is_err().then_some(()))
            .await;
        let patch = PatchParams { dry_run: true, ..PatchParams::default() };
        let label = Patch::Merge(json!({"metadata": {"labels": {STATE_LABEL: "failed"}}}));
        let nodes = Api::<Node>::all(there.clone());
        eventually("the nodes are kept", async || {
            nodes.patch(&lab.node_name, &patch, &label).await.is_err().then_some(())
        })
        .await;
        let events = Api::<Event>::namespaced(there.clone(), "default");
        let forged = event("kept", DRIVER, &lab.node_name);
        eventually("the events are kept", async || events.create(&dry, &forged).await.is_err().then_some(()))
            .await;
        Some(Self { lab, here, there, unbound })
    }
}

/// A MigNode of this name, whose spec is empty unless one is given.
fn mig_node(name: &str, spec: &Value) -> MigNode {
    serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
}

fn event(name: &str, controller: &str, node: &str) -> Event {
    let event = json!({
        "metadata": {"name": name, "namespace": "default"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "type": "Normal", "reason": "Test", "action": "Test",
        "reportingController": controller, "reportingInstance": node, "note": "x",
        "regarding": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node},
    });
    serde_json::from_value(event).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_shipped_account_alone_the_driver_does_its_whole_work() {
    let Some(mut installed) = Installed::new().await else {
        return eprintln!("skipped: no KUBEBUILDER_ASSETS");
    };
    work(&mut installed.lab).await;
    // What is not granted is refused.
    let pods = Api::<Pod>::namespaced(installed.here, NAMESPACE);
    assert!(refused(pods.list(&ListParams::default()).await).contains("cannot list"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_the_driver_writes_the_slices_of_its_own_node_and_driver_only() {
    let Some(Installed { mut lab, here, there, unbound }) = Installed::new().await else {
        return eprintln!("skipped: no KUBEBUILDER_ASSETS");
    };
    lab.start();
    let own = lab.slices_when(is_complete).await.swap_remove(0);
    lab.stop().await;
    let slices = |client: &Client| Api::<ResourceSlice>::all(client.clone());
    let (params, delete) = (PostParams::default(), DeleteParams::default());
    let more = slice(&lab.node_name, DRIVER);

    // Those of another node it can neither make, nor change, nor delete.
    let name = own.metadata.name.clone().unwrap();
    let mut changed = own;
    changed.spec.pool.generation += 1;
    for message in [
        refused(slices(&there).create(&params, &more).await),
        refused(slices(&there).replace(&name, &params, &changed).await),
        refused(slices(&there).delete(&name, &delete).await),
    ] {
        let expected =
            format!("a pod on node other-node may not write resourceslices of node {}", lab.node_name);
        assert!(message.contains(&expected), "{message}");
    }

    // Nor one that only seems to be its own.
    let own = |change: &Value| {
        let mut slice = serde_json::to_value(&more).unwrap();
        json_patch(&mut slice, change);
        serde_json::from_value::<ResourceSlice>(slice).unwrap()
    };
    let other_pool = format!("other-node/{DRIVER}");
    for (change, expected) in [
        (json!({"spec": {"pool": {"name": other_pool}}}), "resourceslices of the pool"),
        (
            json!({"spec": {"pool": {"name": other_pool, "generation": 999_999_999}}}),
            "resourceslices of the pool",
        ),
        (json!({"spec": {"nodeName": "other-node"}}), "may not write resourceslices of node other-node"),
        (
            json!({"spec": {"nodeName": null, "allNodes": true}}),
            "may not write resourceslices of node (none)",
        ),
        (json!({"spec": {"driver": "gpu.example.com"}}), "resourceslices of the driver"),
        (json!({"metadata": {"name": format!("00000-{DRIVER}-other-node")}}), "with names such as"),
        (json!({"metadata": {"name": format!("x-{DRIVER}-{}", lab.node_name)}}), "with names such as"),
        (
            json!({"metadata": {"name": null, "generateName": format!("00000-{DRIVER}-")}}),
            "with names such as",
        ),
    ] {
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        for params in [&params, &dry] {
            let message = refused(slices(&here).create(params, &own(&change)).await);
            assert!(message.contains(expected), "{change}: {message}");
        }
    }
    // What another writer has put under such a name it may neither change nor delete.
    let squatted = own(
        &json!({"metadata": {"name": format!("0fff1-{DRIVER}-{}", lab.node_name)}, "spec": {"driver": "gpu.example.com"}}),
    );
    let squatted = slices(&lab.client).create(&params, &squatted).await.unwrap();
    let name_of_it = squatted.metadata.name.clone().unwrap();
    for message in [
        refused(slices(&here).replace(&name_of_it, &params, &squatted).await),
        refused(slices(&here).delete(&name_of_it, &delete).await),
    ] {
        assert!(message.contains("resourceslices of the driver"), "{message}");
    }

    // Nor those of another driver; and with a token that is bound to no pod, none at all.
    let message = refused(slices(&here).create(&params, &slice(&lab.node_name, "gpu.example.com")).await);
    assert!(message.contains("resourceslices of the driver"), "{message}");
    let message = refused(slices(&unbound).create(&params, &more).await);
    assert!(message.contains("not bound to a pod"), "{message}");

    // Its own it may.
    slices(&there).create(&params, &slice("other-node", DRIVER)).await.unwrap();
    slices(&there).delete(&format!("0fff0-{DRIVER}-other-node"), &delete).await.unwrap();
    slices(&here).replace(&name, &params, &changed).await.unwrap();
    slices(&here).delete(&name, &delete).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn slices_of_a_node_with_a_very_long_name_have_its_uid_in_theirs() {
    let Some(Installed { lab, here, .. }) = Installed::new().await else {
        return eprintln!("skipped: no KUBEBUILDER_ASSETS");
    };
    let mut node = Node::default();
    node.metadata.name = Some("n".repeat(230));
    let node = Api::<Node>::all(lab.client.clone()).create(&PostParams::default(), &node).await.unwrap();
    let (name, uid) = (node.metadata.name.unwrap(), node.metadata.uid.unwrap());
    let token = token_on(&lab.client, &name, "driver-on-a-long-name").await;
    let there = client(&lab.plane, &token).await;
    let slices = |client: &Client| Api::<ResourceSlice>::all(client.clone());
    let named = |uid: &str| {
        let mut slice = slice(&name, DRIVER);
        slice.metadata.name = Some(format!("00000-{DRIVER}.{uid}"));
        slice
    };
    let params = PostParams::default();
    let message = refused(slices(&there).create(&params, &named("another")).await);
    assert!(message.contains("with names such as"), "{message}");
    refused(slices(&here).create(&params, &named(&uid)).await);
    slices(&there).create(&params, &named(&uid)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_the_driver_writes_one_label_of_its_own_node_only() {
    let Some(Installed { lab, here, there, unbound }) = Installed::new().await else {
        return eprintln!("skipped: no KUBEBUILDER_ASSETS");
    };
    let nodes = |client: &Client| Api::<Node>::all(client.clone());
    let labels = json!({"metadata": {"labels": {CONFIG_LABEL: "all-1g.10gb"}}});
    nodes(&lab.client).patch(&lab.node_name, &PatchParams::default(), &Patch::Merge(labels)).await.unwrap();
    let patch = async |client: &Client, change: Value| {
        nodes(client).patch(&lab.node_name, &PatchParams::default(), &Patch::Merge(change)).await
    };
    let state = |value: &str| json!({"metadata": {"labels": {STATE_LABEL: value}}});

    let expected = format!("a pod on node other-node may not write node {}", lab.node_name);
    let message = refused(patch(&there, state("failed")).await);
    assert!(message.contains(&expected), "{message}");
    let message = refused(patch(&unbound, state("failed")).await);
    assert!(message.contains("a pod on node (unknown) may not write node"), "{message}");

    for other in [
        json!({"metadata": {"labels": {CONFIG_LABEL: "all-7g.80gb"}}}),
        json!({"metadata": {"labels": {CONFIG_LABEL: null}}}),
        json!({"metadata": {"labels": {"pool": "gpu", STATE_LABEL: "success"}}}),
    ] {
        let message = refused(patch(&here, other).await);
        assert!(message.contains("no label of a node but nvidia.com/mig.config.state"), "{message}");
    }
    for other in [
        json!({"spec": {"unschedulable": true}}),
        json!({"spec": {"taints": [{"key": "x", "effect": "NoSchedule"}]}}),
        json!({"metadata": {"annotations": {"x": "y"}}}),
        json!({"metadata": {"finalizers": ["example.com/x"]}}),
        json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "y"}]}}),
    ] {
        let message = refused(patch(&here, other).await);
        assert!(message.contains("nothing of a node but one label"), "{message}");
    }
    let status = Patch::Merge(json!({"status": {"allocatable": {"nvidia.com/gpu": "8"}}}));
    refused(nodes(&here).patch_status(&lab.node_name, &PatchParams::default(), &status).await);
    refused(nodes(&here).delete(&lab.node_name, &DeleteParams::default()).await);

    for value in [json!("pending"), json!("success"), json!(null)] {
        patch(&here, json!({"metadata": {"labels": {STATE_LABEL: value}}})).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_the_driver_writes_the_status_of_its_own_mignode_only() {
    let Some(Installed { lab, here, there, unbound }) = Installed::new().await else {
        return eprintln!("skipped: no KUBEBUILDER_ASSETS");
    };
    let objects = |client: &Client| Api::<MigNode>::all(client.clone());
    let params = PostParams::default();
    let own = mig_node(&lab.node_name, &json!({}));
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let is_refused = async || objects(&there).create(&dry, &own).await.is_err().then_some(());
    eventually("the policy is in force", is_refused).await;
    for client in [&there, &unbound] {
        let message = refused(objects(client).create(&params, &own).await);
        assert!(message.contains(&format!("may not write mignode {}", lab.node_name)), "{message}");
    }
    let demanding = mig_node(&lab.node_name, &json!({"floor": [{"profile": "1g.10gb", "count": 1}]}));
    let message = refused(objects(&here).create(&params, &demanding).await);
    assert!(message.contains("not the spec"), "{message}");

    objects(&here).create(&params, &own).await.unwrap();
    let status = async |client: &Client, name: &str| {
        let status = json!({"apiVersion": "mig.dra-driver.dev/v1alpha1", "kind": "MigNode", "status": {"mode": "layout"}});
        objects(client).patch_status(name, &PatchParams::apply("test"), &Patch::Apply(&status)).await
    };
    status(&here, &lab.node_name).await.unwrap();
    let message = refused(status(&there, &lab.node_name).await);
    assert!(message.contains("a pod on node other-node may not write mignode"), "{message}");
    objects(&lab.client).create(&params, &mig_node("other-node", &json!({}))).await.unwrap();
    refused(status(&here, "other-node").await);

    // With the status come metadata; and the object itself RBAC keeps.
    let labelled = json!({"apiVersion": "mig.dra-driver.dev/v1alpha1", "kind": "MigNode", "metadata": {"labels": {"a": "b"}}});
    let patch = Patch::Apply(&labelled);
    let answer = objects(&here).patch_status(&lab.node_name, &PatchParams::apply("test"), &patch).await;
    assert!(answer.is_err() || answer.unwrap().metadata.labels.is_none());
    let floor = Patch::Merge(json!({"spec": {"floor": [{"profile": "1g.10gb", "count": 1}]}}));
    refused(objects(&here).patch(&lab.node_name, &PatchParams::default(), &floor).await);
    refused(objects(&here).delete(&lab.node_name, &DeleteParams::default()).await);
    refused(objects(&here).get(&lab.node_name).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_the_driver_writes_its_own_events_only() {
    let Some(Installed { lab, here, there, unbound }) = Installed::new().await else {
        return eprintln!("skipped: no KUBEBUILDER_ASSETS");
    };
    let events = |client: &Client| Api::<Event>::namespaced(client.clone(), "default");
    let params = PostParams::default();
    let own = event("own", DRIVER, &lab.node_name);
    let again =
        Patch::Merge(json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:01.000000Z"}}));
    let patch =
        async |client: &Client, name: &str| events(client).patch(name, &PatchParams::default(), &again).await;

    events(&here).create(&params, &own).await.unwrap();
    events(&lab.client).create(&params, &event("kubelets", "kubelet", &lab.node_name)).await.unwrap();
    for message in [
        refused(events(&there).create(&params, &event("forged", DRIVER, &lab.node_name)).await),
        refused(events(&here).create(&params, &event("forged", "kubelet", &lab.node_name)).await),
        refused(events(&unbound).create(&params, &event("forged", DRIVER, &lab.node_name)).await),
        refused(patch(&there, "own").await),
        refused(patch(&here, "kubelets").await),
    ] {
        assert!(message.contains("may write the events that it reports itself only"), "{message}");
    }
    patch(&here, "own").await.unwrap();
    let mut of_another_node = event("of-another-node", DRIVER, &lab.node_name);
    of_another_node.regarding.as_mut().unwrap().name = Some("another".to_owned());
    let mut of_a_deployment = event("of-a-deployment", DRIVER, &lab.node_name);
    of_a_deployment.regarding.as_mut().unwrap().kind = Some("Deployment".to_owned());
    for forged in [of_another_node, of_a_deployment] {
        let message = refused(events(&here).create(&params, &forged).await);
        assert!(message.contains("about its own node, ResourceClaims and pods only"), "{message}");
    }
    // Those of a claim are in the claim's namespace.
    let mut of_a_claim = event("of-a-claim", DRIVER, &lab.node_name);
    of_a_claim.metadata.namespace = Some(NAMESPACE.to_owned());
    of_a_claim.regarding = Some(ObjectReference {
        api_version: Some("resource.k8s.io/v1".to_owned()),
        kind: Some("ResourceClaim".to_owned()),
        name: Some("claim".to_owned()),
        namespace: Some(NAMESPACE.to_owned()),
        ..ObjectReference::default()
    });
    Api::<Event>::namespaced(here, NAMESPACE).create(&params, &of_a_claim).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_the_driver_writes_of_a_claim_what_became_of_its_own_nodes_devices_only() {
    let Some(Installed { lab, here, there, unbound }) = Installed::new().await else {
        return eprintln!("skipped: no KUBEBUILDER_ASSETS");
    };
    let claims = |client: &Client| Api::<ResourceClaim>::namespaced(client.clone(), "default");
    let claim = lab.claim_of("one", "gpu-0000-1a-00-mig-1g-10gb-6").await.name;
    let pool = format!("{}/{DRIVER}", lab.node_name);
    let devices =
        json!([{"driver": DRIVER, "pool": pool, "device": "gpu-0000-1a-00-mig-1g-10gb-6", "data": {"x": 1}}]);
    let write = async |client: &Client, status: Value| {
        let status = Patch::Merge(json!({"status": status}));
        claims(client).patch_status(&claim, &PatchParams::default(), &status).await
    };
    let is_refused = async || write(&there, json!({"devices": devices})).await.is_err().then_some(());
    eventually("the policy is in force", is_refused).await;
    let message = refused(write(&there, json!({"devices": devices})).await);
    assert!(message.contains("its own node's devices only"), "{message}");
    let message = refused(write(&unbound, json!({"devices": devices})).await);
    assert!(message.contains("not bound to a pod"), "{message}");

    write(&here, json!({"devices": devices})).await.unwrap();
    let message = refused(write(&here, json!({"allocation": null, "devices": null})).await);
    assert!(message.contains("not the allocation of a claim"), "{message}");
    write(&here, json!({"devices": null})).await.unwrap();
}
