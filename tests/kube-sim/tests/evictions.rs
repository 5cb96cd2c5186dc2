//! Evictions and PodDisruptionBudgets, over HTTP as a client sees them; the controllers work step by step.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::Eviction;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::PostParams;
use kube::core::response::StatusDetails;
use kube::{Api, Client, Config};
use kube_sim::control::reconcile;
use kube_sim::{ApiServer, Options, Part, kinds};
use serde_json::{Value, json};

/// A ReplicaSet with so many ready pods, and their names.
async fn cluster(replicas: usize) -> (ApiServer, Api<Pod>, Vec<String>) {
    let server = ApiServer::start(Options::default()).await.unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    // A refusal is to be seen, not tried again.
    let mut config = Config::new(server.url().parse().unwrap());
    config.default_retry = false;
    let client = Client::try_from(config).unwrap();
    let labels = json!({"app": "a"});
    let template =
        json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "c"}]}});
    let set = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "a", "namespace": "default"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}});
    server.create(set).unwrap();
    reconcile(&server.store());
    let names: Vec<String> = server
        .list(&kinds::POD)
        .iter()
        .map(|it| it["metadata"]["name"].as_str().unwrap().to_owned())
        .collect();
    for name in &names {
        runs(&server, name);
    }
    (server, Api::namespaced(client, "default"), names)
}

fn runs(server: &ApiServer, name: &str) {
    let conditions = json!([{"type": "Ready", "status": "True"}]);
    let status = json!({"status": {"phase": "Running", "conditions": conditions}});
    server.patch(&kinds::POD, "default", name, Part::Status, status).unwrap();
    reconcile(&server.store());
}

fn budget(server: &ApiServer, name: &str, spec: Value) {
    let mut spec = spec;
    spec["selector"] = json!({"matchLabels": {"app": "a"}});
    let object = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": {"name": name, "namespace": "default"}, "spec": spec});
    server.create(object).unwrap();
}

/// The code of the answer, and what it says beside.
async fn evict(
    pods: &Api<Pod>,
    name: &str,
    uid: Option<&str>,
    dry_run: bool,
) -> (u16, Option<StatusDetails>) {
    let options = uid.map(|it| json!({"preconditions": {"uid": it}}));
    let body: Eviction =
        serde_json::from_value(json!({"metadata": {"name": name}, "deleteOptions": options})).unwrap();
    let params = PostParams { dry_run, ..PostParams::default() };
    match pods.create_subresource::<_, Status>("eviction", name, &params, &body).await {
        Ok(status) => (u16::try_from(status.code.unwrap()).unwrap(), None),
        Err(kube::Error::Api(status)) => (status.code, status.details.clone()),
        Err(other) => panic!("{other}"),
    }
}

fn left(server: &ApiServer) -> usize {
    let pods = server.list(&kinds::POD);
    pods.iter().filter(|it| it["metadata"]["deletionTimestamp"].is_null()).count()
}

#[tokio::test]
async fn without_a_budget_a_pod_is_evicted_and_a_trial_deletes_nothing() {
    let (server, pods, names) = cluster(2).await;
    assert_eq!(evict(&pods, &names[0], None, true).await.0, 201);
    assert_eq!(left(&server), 2);
    assert_eq!(evict(&pods, &names[0], Some("another-uid"), false).await.0, 409);
    assert_eq!(evict(&pods, "none", None, false).await.0, 404);
    assert_eq!(evict(&pods, &names[0], None, false).await.0, 201);
    assert_eq!(left(&server), 1);
}

#[tokio::test]
async fn a_budget_allows_one_eviction_and_then_no_other_until_a_new_pod_is_ready() {
    let (server, pods, names) = cluster(2).await;
    budget(&server, "b", json!({"maxUnavailable": 1}));
    let (code, details) = evict(&pods, &names[0], None, false).await;
    let details = details.unwrap();
    assert_eq!((code, details.retry_after_seconds), (429, 10), "it was not looked at yet");
    assert_eq!(details.causes[0].reason, "DisruptionBudget");
    reconcile(&server.store());
    assert_eq!(evict(&pods, &names[0], None, true).await.0, 201);
    assert_eq!(evict(&pods, &names[0], None, false).await.0, 201);
    let (code, details) = evict(&pods, &names[1], None, false).await;
    let details = details.unwrap();
    assert_eq!((code, details.causes[0].reason.as_str()), (429, "DisruptionBudget"));
    assert_eq!(details.causes[0].message, "The disruption budget b needs 1 healthy pods and has 2 currently");
    for _ in 0..3 {
        reconcile(&server.store());
    }
    assert_eq!(evict(&pods, &names[1], None, false).await.0, 429);
    let new = server
        .list(&kinds::POD)
        .into_iter()
        .find(|it| !names.iter().any(|name| it["metadata"]["name"] == name.as_str()));
    runs(&server, new.unwrap()["metadata"]["name"].as_str().unwrap());
    assert_eq!(evict(&pods, &names[1], None, false).await.0, 201);
}

#[tokio::test]
async fn an_eviction_of_another_pod_of_the_name_costs_its_budget_a_disruption_and_a_trial_does_not() {
    let (server, pods, names) = cluster(2).await;
    budget(&server, "b", json!({"minAvailable": 1}));
    reconcile(&server.store());
    let allowed = || {
        let budget = server.get(&kinds::POD_DISRUPTION_BUDGET, "default", "b").unwrap();
        budget["status"]["disruptionsAllowed"].clone()
    };
    for (is_trial, left) in [(true, 1), (false, 0)] {
        assert_eq!(evict(&pods, &names[0], Some("another-uid"), is_trial).await.0, 409);
        assert_eq!(allowed(), left);
    }
}

#[tokio::test]
async fn a_share_of_the_replicas_is_rounded_up_and_two_budgets_are_an_error() {
    let (server, pods, names) = cluster(3).await;
    budget(&server, "b", json!({"minAvailable": "50%"}));
    reconcile(&server.store());
    let status = &server.get(&kinds::POD_DISRUPTION_BUDGET, "default", "b").unwrap()["status"];
    assert_eq!((&status["desiredHealthy"], &status["disruptionsAllowed"]), (&json!(2), &json!(1)));
    budget(&server, "c", json!({"minAvailable": 0}));
    assert_eq!(evict(&pods, &names[0], None, false).await.0, 500);
}
