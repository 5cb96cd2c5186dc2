//! The store keeps what it needs, however long it runs.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers included")]

use http::Request;
use kube::{Client, Config};
use kube_sim::api::patch::Patch;
use kube_sim::api::store::{HISTORY_BYTES, WriteOptions};
use kube_sim::control::record_event;
use kube_sim::kinds::{CONFIG_MAP, EVENT};
use kube_sim::{ApiServer, Options, Part};
use serde_json::{Value, json};

/// The text that the server answers.
async fn read(server: &ApiServer, path: &str) -> String {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::try_from(Config::new(server.url().parse().unwrap())).unwrap();
    client.request_text(Request::get(path).body(Vec::new()).unwrap()).await.unwrap()
}

/// The first line of a watch from a resource version.
async fn watch(server: &ApiServer, from: u64) -> Value {
    let path = format!("/api/v1/configmaps?watch=true&timeoutSeconds=1&resourceVersion={from}");
    serde_json::from_str(read(server, &path).await.lines().next().unwrap()).unwrap()
}

#[tokio::test]
async fn ten_thousand_updates_leave_a_bounded_history_and_a_watch_from_before_is_gone() {
    let server = ApiServer::start(Options::default()).await.unwrap();
    let store = server.store();
    let data: Value = (0..20)
        .map(|n| (format!("key-{n}"), json!("x".repeat(500))))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data});
    server.create(object).unwrap();
    let first = store.revision();
    let mut most = 0;
    for n in 0..10_000 {
        let patch = Patch::Merge(json!({"data": {"key-0": n.to_string()}}));
        store.patch(&CONFIG_MAP, "default", "c", &patch, Part::Main, &WriteOptions::default()).unwrap();
        most = most.max(store.history_bytes());
    }
    assert!(most <= HISTORY_BYTES, "{most}");
    assert!(most > HISTORY_BYTES / 2, "{most}: the updates do not come to the limit");
    let gone = watch(&server, first).await;
    assert_eq!((&gone["type"], &gone["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(gone["object"]["reason"], "Expired");
    let last = watch(&server, store.revision() - 1).await;
    assert_eq!((&last["type"], &last["object"]["data"]["key-0"]), (&json!("MODIFIED"), &json!("9999")));
}

#[tokio::test]
async fn only_the_newest_events_are_kept() {
    let server = ApiServer::start(Options::default()).await.unwrap();
    let store = server.store();
    let about = json!({"kind": "Pod", "metadata": {"name": "p", "namespace": "default", "uid": "u"}});
    for n in 0..1_500 {
        record_event(&store, &about, "Normal", "Test", &format!("message {n}"), "test");
    }
    let events = server.list(&EVENT);
    assert_eq!(events.len(), 1000);
    let has = |n: u32| events.iter().any(|event| event["message"] == format!("message {n}"));
    assert!(has(1_499) && has(500) && !has(499));
}

/// Of 30,000 names with one beginning about 31 would exist already: five characters of 27 are 14 million.
#[tokio::test]
async fn a_generated_name_that_exists_is_generated_again() {
    let server = ApiServer::start(Options::default()).await.unwrap();
    for _ in 0..30_000 {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "c-"}});
        server.create(object).unwrap();
    }
}

#[tokio::test]
async fn requests_are_recorded_unless_the_server_runs_without_a_log_of_them() {
    for (without_request_log, expected) in [(false, 1), (true, 0)] {
        let server = ApiServer::start(Options { without_request_log, ..Options::default() }).await.unwrap();
        read(&server, "/api/v1/pods").await;
        assert_eq!(server.requests().len(), expected);
    }
}
