//! The API server as kube-rs sees it: what the driver's publisher relies on.

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::ResourceSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::runtime::watcher;
use kube::{Api, Client, Config};
use kube_sim::{ApiServer, Fault, Options};
use serde_json::{Value, json};

async fn server(partitionable: bool) -> (ApiServer, Client) {
    let options = Options { partitionable_devices: partitionable, ..Options::default() };
    let server = ApiServer::start(options).await.unwrap();
    // Other members of the workspace bring a second TLS provider into the build, and kube asks for one even for plain HTTP.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::try_from(Config::new(server.url().parse().unwrap())).unwrap();
    (server, client)
}

fn slice(name: &str, spec: Value) -> ResourceSlice {
    let mut all = json!({"driver": "mig.dra-driver.dev", "nodeName": "node-0",
        "pool": {"name": "node-0/mig.dra-driver.dev", "generation": 1, "resourceSliceCount": 1}});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    serde_json::from_value(json!({"metadata": {"name": name}, "spec": all})).unwrap()
}

fn with_counters() -> Value {
    json!({"devices": [{"name": "gpu-0", "capacity": {"memory": {"value": "1024Mi"}},
        "consumesCounters": [{"counterSet": "gpu-0", "counters": {"memory-slice-0": {"value": "1"}}}]}]})
}

fn code<T: std::fmt::Debug>(result: Result<T, kube::Error>) -> u16 {
    match result.unwrap_err() {
        kube::Error::Api(status) => status.code,
        other => panic!("not an API error: {other}"),
    }
}

#[tokio::test]
async fn a_slice_is_created_read_listed_and_deleted() {
    let (_server, client) = server(true).await;
    let slices: Api<ResourceSlice> = Api::all(client);
    let made = slices.create(&PostParams::default(), &slice("a", with_counters())).await.unwrap();
    assert!(made.metadata.uid.is_some() && made.metadata.creation_timestamp.is_some());
    assert_eq!(slices.get("a").await.unwrap(), made);
    let mine = ListParams::default().fields("spec.driver=mig.dra-driver.dev,spec.nodeName=node-0");
    assert_eq!(slices.list(&mine).await.unwrap().items.len(), 1);
    let others = ListParams::default().fields("spec.nodeName=node-1");
    assert_eq!(slices.list(&others).await.unwrap().items.len(), 0);
    slices.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(code(slices.get("a").await), 404);
}

#[tokio::test]
async fn quantities_come_back_canonical() {
    let (_server, client) = server(true).await;
    let slices: Api<ResourceSlice> = Api::all(client);
    let made = slices.create(&PostParams::default(), &slice("a", with_counters())).await.unwrap();
    let devices = made.spec.devices.unwrap();
    let memory = &devices[0].capacity.as_ref().unwrap()["memory"];
    assert_eq!(memory.value.0, "1Gi");
}

#[tokio::test]
async fn a_dry_run_answers_the_object_and_stores_nothing() {
    let (_server, client) = server(false).await;
    let slices: Api<ResourceSlice> = Api::all(client);
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let echo = slices.create(&dry_run, &slice("probe", with_counters())).await.unwrap();
    assert_eq!(echo.spec.devices.unwrap()[0].consumes_counters, None);
    assert_eq!(code(slices.get("probe").await), 404);
}

#[tokio::test]
async fn with_the_gate_off_counters_are_dropped_unless_the_stored_slice_uses_them() {
    let (server, client) = server(true).await;
    let slices: Api<ResourceSlice> = Api::all(client);
    let counters = |s: &ResourceSlice| s.spec.devices.as_ref().unwrap()[0].consumes_counters.is_some();
    let mut kept = slices.create(&PostParams::default(), &slice("old", with_counters())).await.unwrap();
    assert!(counters(&kept));
    server.set_partitionable_devices(false);
    let dropped = slices.create(&PostParams::default(), &slice("new", with_counters())).await.unwrap();
    assert!(!counters(&dropped));
    kept.spec.pool.generation = 2;
    assert!(counters(&slices.replace("old", &PostParams::default(), &kept).await.unwrap()));
    let sets = json!({"sharedCounters": [{"name": "s", "counters": {"c": {"value": "1"}}}]});
    let empty = slices.create(&PostParams::default(), &slice("sets", sets)).await.unwrap();
    assert_eq!(empty.spec.shared_counters, None);
}

#[tokio::test]
async fn an_invalid_slice_is_refused_with_422_and_the_field() {
    let (_server, client) = server(true).await;
    let slices: Api<ResourceSlice> = Api::all(client);
    let bad = slice("a", json!({"devices": [{"name": "mig-1g.10gb"}]}));
    let kube::Error::Api(status) = slices.create(&PostParams::default(), &bad).await.unwrap_err() else {
        panic!()
    };
    assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
    assert!(status.message.contains("spec.devices[0].name"), "{}", status.message);
}

#[tokio::test]
async fn a_stale_write_is_a_conflict_and_a_second_create_already_exists() {
    let (_server, client) = server(true).await;
    let slices: Api<ResourceSlice> = Api::all(client);
    let first = slices.create(&PostParams::default(), &slice("a", json!({}))).await.unwrap();
    let mut newer = first.clone();
    newer.spec.pool.generation = 2;
    slices.replace("a", &PostParams::default(), &newer).await.unwrap();
    assert_eq!(code(slices.replace("a", &PostParams::default(), &newer).await), 409);
    assert_eq!(code(slices.create(&PostParams::default(), &first).await), 409);
}

#[tokio::test]
async fn deletion_honours_preconditions() {
    let (_server, client) = server(true).await;
    let slices: Api<ResourceSlice> = Api::all(client);
    let made = slices.create(&PostParams::default(), &slice("a", json!({}))).await.unwrap();
    let with_uid = |uid: &str| {
        let preconditions = kube::api::Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() }
    };
    assert_eq!(code(slices.delete("a", &with_uid("other")).await), 409);
    slices.delete("a", &with_uid(&made.metadata.uid.unwrap())).await.unwrap();
}

#[tokio::test]
async fn a_watch_sees_what_happens_after_its_resource_version() {
    let (_server, client) = server(true).await;
    let slices: Api<ResourceSlice> = Api::all(client);
    let version = slices.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    slices.create(&PostParams::default(), &slice("a", json!({}))).await.unwrap();
    let mut other = slice("b", json!({"driver": "other.example.com"}));
    other.spec.pool.name = "p".into();
    slices.create(&PostParams::default(), &other).await.unwrap();
    let patch = json!({"spec": {"pool": {"generation": 2}}});
    slices.patch("a", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    slices.delete("a", &DeleteParams::default()).await.unwrap();
    let mine = WatchParams::default().fields("spec.driver=mig.dra-driver.dev");
    let mut events = Box::pin(slices.watch(&mine, &version).await.unwrap());
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.push(match events.try_next().await.unwrap().unwrap() {
            WatchEvent::Added(s) => ("added", s.metadata.name.unwrap()),
            WatchEvent::Modified(s) => ("modified", s.metadata.name.unwrap()),
            WatchEvent::Deleted(s) => ("deleted", s.metadata.name.unwrap()),
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(seen, ["added", "modified", "deleted"].map(|e| (e, "a".to_owned())));
}

/// The next event of a watcher that is not about the initial list's bounds.
async fn next_object(
    events: &mut (impl futures::Stream<Item = Result<watcher::Event<ResourceSlice>, watcher::Error>> + Unpin),
) -> (&'static str, String) {
    loop {
        match events.try_next().await {
            Ok(Some(watcher::Event::InitApply(s))) => return ("init", s.metadata.name.unwrap()),
            Ok(Some(watcher::Event::Apply(s))) => return ("apply", s.metadata.name.unwrap()),
            Ok(Some(watcher::Event::Delete(s))) => return ("delete", s.metadata.name.unwrap()),
            Ok(Some(_)) | Err(_) => {}
            Ok(None) => panic!("the watcher ended"),
        }
    }
}

async fn watcher_follows(config: watcher::Config) {
    let (server, client) = server(true).await;
    let slices: Api<ResourceSlice> = Api::all(client);
    slices.create(&PostParams::default(), &slice("a", json!({}))).await.unwrap();
    let mut events = Box::pin(watcher(slices.clone(), config));
    assert_eq!(next_object(&mut events).await, ("init", "a".into()));
    slices.create(&PostParams::default(), &slice("b", json!({}))).await.unwrap();
    assert_eq!(next_object(&mut events).await, ("apply", "b".into()));
    server.cut_watches();
    slices.delete("b", &DeleteParams::default()).await.unwrap();
    assert_eq!(next_object(&mut events).await, ("delete", "b".into()));
    server.compact();
    server.cut_watches();
    assert_eq!(next_object(&mut events).await, ("init", "a".into()));
}

#[tokio::test]
async fn a_watcher_survives_a_cut_and_an_expired_version() {
    watcher_follows(watcher::Config::default()).await;
}

#[tokio::test]
async fn a_watcher_that_streams_its_list_survives_too() {
    watcher_follows(watcher::Config::default().streaming_lists()).await;
}

#[tokio::test]
async fn apply_creates_then_changes_and_drops_only_its_own_fields() {
    let (_server, client) = server(true).await;
    let slices: Api<ResourceSlice> = Api::all(client);
    let params = PatchParams::apply("driver").force();
    let body = |spec: Value, labels: Value| {
        let mut value = serde_json::to_value(slice("a", spec)).unwrap();
        value["metadata"]["labels"] = labels;
        value
    };
    slices.patch("a", &params, &Patch::Apply(body(with_counters(), json!({"mine": "1"})))).await.unwrap();
    let label = json!({"metadata": {"labels": {"theirs": "2"}}});
    slices.patch("a", &PatchParams::default(), &Patch::Merge(&label)).await.unwrap();
    let after = slices.patch("a", &params, &Patch::Apply(body(json!({}), json!({})))).await.unwrap();
    assert_eq!(after.spec.devices, None);
    let labels = after.metadata.labels.unwrap();
    assert_eq!(labels.keys().collect::<Vec<_>>(), ["theirs"]);
}

#[tokio::test]
async fn a_write_that_changes_nothing_keeps_the_resource_version() {
    let (_server, client) = server(true).await;
    let slices: Api<ResourceSlice> = Api::all(client);
    let made = slices.create(&PostParams::default(), &slice("a", with_counters())).await.unwrap();
    let again = slices.replace("a", &PostParams::default(), &made).await.unwrap();
    assert_eq!(again.metadata.resource_version, made.metadata.resource_version);
}

#[tokio::test]
async fn slices_go_with_the_node_that_owns_them() {
    let (_server, client) = server(true).await;
    let nodes: Api<Node> = Api::all(client.clone());
    let slices: Api<ResourceSlice> = Api::all(client);
    let node: Node = serde_json::from_value(json!({"metadata": {"name": "node-0"}})).unwrap();
    let node = nodes.create(&PostParams::default(), &node).await.unwrap();
    let mut owned = slice("a", json!({}));
    let owner = json!({"apiVersion": "v1", "kind": "Node", "name": "node-0", "uid": node.metadata.uid});
    owned.metadata.owner_references = Some(vec![serde_json::from_value(owner).unwrap()]);
    slices.create(&PostParams::default(), &owned).await.unwrap();
    nodes.delete("node-0", &DeleteParams::default()).await.unwrap();
    assert_eq!(code(slices.get("a").await), 404);
}

#[tokio::test]
async fn the_kubelet_can_wipe_the_slices_of_a_node() {
    let (_server, client) = server(true).await;
    let slices: Api<ResourceSlice> = Api::all(client);
    slices.create(&PostParams::default(), &slice("a", json!({}))).await.unwrap();
    slices.create(&PostParams::default(), &slice("b", json!({"nodeName": "node-1"}))).await.unwrap();
    let of_node = ListParams::default().fields("spec.nodeName=node-0");
    slices.delete_collection(&DeleteParams::default(), &of_node).await.unwrap();
    let left: Vec<String> = slices
        .list(&ListParams::default())
        .await
        .unwrap()
        .into_iter()
        .filter_map(|s| s.metadata.name)
        .collect();
    assert_eq!(left, ["b"]);
}

#[tokio::test]
async fn injected_faults_hit_only_the_chosen_requests() {
    let (server, client) = server(true).await;
    let slices: Api<ResourceSlice> = Api::all(client);
    server.inject(1, |r| r.method == "POST", Fault::Status(403));
    assert!(slices.list(&ListParams::default()).await.is_ok());
    assert_eq!(code(slices.create(&PostParams::default(), &slice("a", json!({}))).await), 403);
    server.inject(1, |r| r.method == "POST", Fault::AfterEffect(403));
    assert_eq!(code(slices.create(&PostParams::default(), &slice("a", json!({}))).await), 403);
    assert!(slices.get("a").await.is_ok());
    server.inject(1, |_| true, Fault::Garbage);
    assert!(matches!(slices.get("a").await, Err(kube::Error::SerdeError(_))));
}

fn named(name: &str) -> Node {
    serde_json::from_value(json!({"metadata": {"name": name}})).unwrap()
}

fn names(nodes: &[Node]) -> Vec<&str> {
    nodes.iter().filter_map(|it| it.metadata.name.as_deref()).collect()
}

#[tokio::test]
async fn the_pages_of_a_list_show_the_objects_as_they_were_at_the_first_page() {
    let (_server, client) = server(false).await;
    let nodes: Api<Node> = Api::all(client);
    for name in ["a", "b", "c", "d", "e"] {
        nodes.create(&PostParams::default(), &named(name)).await.unwrap();
    }
    let mut params = ListParams::default().limit(2);
    let first = nodes.list(&params).await.unwrap();
    assert_eq!((names(&first.items), first.metadata.remaining_item_count), (vec!["a", "b"], Some(3)));
    nodes.delete("c", &DeleteParams::default()).await.unwrap();
    nodes.create(&PostParams::default(), &named("bb")).await.unwrap();
    let label = Patch::Merge(json!({"metadata": {"labels": {"later": "yes"}}}));
    nodes.patch("d", &PatchParams::default(), &label).await.unwrap();
    params.continue_token = first.metadata.continue_;
    let second = nodes.list(&params).await.unwrap();
    assert_eq!(names(&second.items), ["c", "d"]);
    assert_eq!(second.items[1].metadata.labels, None);
    assert_eq!(second.metadata.resource_version, first.metadata.resource_version);
    params.continue_token = second.metadata.continue_;
    let third = nodes.list(&params).await.unwrap();
    assert_eq!((names(&third.items), third.metadata.continue_), (vec!["e"], None));
    assert_eq!(names(&nodes.list(&ListParams::default()).await.unwrap().items), ["a", "b", "bb", "d", "e"]);
}

#[tokio::test]
async fn a_list_of_version_0_is_not_cut_and_selected_objects_are_not_counted_ahead() {
    let (_server, client) = server(false).await;
    let nodes: Api<Node> = Api::all(client.clone());
    for name in ["a", "b", "c"] {
        nodes.create(&PostParams::default(), &named(name)).await.unwrap();
    }
    // kube itself leaves one of the two out.
    let cached = http::Request::get("/api/v1/nodes?limit=1&resourceVersion=0").body(Vec::new()).unwrap();
    assert_eq!(client.request::<Value>(cached).await.unwrap()["items"].as_array().unwrap().len(), 3);
    let selected = nodes.list(&ListParams::default().limit(1).fields("metadata.name!=a")).await.unwrap();
    assert_eq!((names(&selected.items), selected.metadata.remaining_item_count), (vec!["b"], None));
    assert!(selected.metadata.continue_.is_some());
}

#[tokio::test]
async fn a_list_that_is_continued_too_late_or_with_an_unknown_token_is_refused() {
    let (server, client) = server(false).await;
    let nodes: Api<Node> = Api::all(client);
    for name in ["a", "b"] {
        nodes.create(&PostParams::default(), &named(name)).await.unwrap();
    }
    let first = nodes.list(&ListParams::default().limit(1)).await.unwrap();
    server.compact();
    let late = ListParams::default().limit(1).continue_token(&first.metadata.continue_.unwrap());
    assert_eq!(code(nodes.list(&late).await), 410);
    assert_eq!(code(nodes.list(&ListParams::default().continue_token("x")).await), 400);
}

#[tokio::test]
async fn a_watcher_reads_a_list_in_pages() {
    let (server, client) = server(false).await;
    let nodes: Api<Node> = Api::all(client);
    for name in ["a", "b", "c", "d", "e"] {
        nodes.create(&PostParams::default(), &named(name)).await.unwrap();
    }
    let events = watcher(nodes, watcher::Config::default().page_size(2));
    let mut events = std::pin::pin!(events);
    let mut seen = Vec::new();
    while let Some(event) = events.try_next().await.unwrap() {
        match event {
            watcher::Event::InitApply(node) => seen.push(node.metadata.name.unwrap()),
            watcher::Event::InitDone => break,
            _ => {}
        }
    }
    assert_eq!(seen, ["a", "b", "c", "d", "e"]);
    let lists = server.requests().into_iter().filter(|it| it.query.contains("limit=2"));
    assert_eq!(lists.count(), 3);
}
