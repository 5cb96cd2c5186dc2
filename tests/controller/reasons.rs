//! Events that say why pods wait.

use kube_sim::{Fault, kinds};
use serde_json::json;

use crate::cluster::{Cluster, Controller, eventually, get};

const GPU: &str = "1xH100-80GB";

/// A cluster whose only GPU is taken.
async fn full() -> Cluster {
    let cluster = Cluster::new(&[("gpu-1", GPU)]).await;
    cluster.add_pod("holder", "gpu.dra-driver.dev");
    cluster.scheduled("holder").await;
    cluster
}

/// Waits until changes have led to further rounds, each after at least one more.
async fn further_rounds(cluster: &Cluster, controller: &Controller) {
    for name in ["extra-1", "extra-2"] {
        let before = controller.rounds();
        cluster
            .server
            .create(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}))
            .unwrap();
        eventually("a further round", || (before < controller.rounds()).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_waiting_pod_gets_one_event_and_equal_pods_share_an_explanation() {
    let cluster = full().await;
    for name in ["waits-a", "waits-b", "waits-c"] {
        cluster.add_pod(name, "mig-1g.10gb");
    }
    let controller = cluster.controller("a", &[]);
    for name in ["waits-a", "waits-b", "waits-c"] {
        let note = cluster.note(name).await;
        let expected =
            "The pod gets no devices now: every 1g.10gb on the 1 node that the pod can use is allocated";
        assert!(note.starts_with(expected), "{note}");
        assert!(note.ends_with(&format!("kubectl mig explain pod/{name} -n team")), "{note}");
        assert!(note.contains("holder"), "{note}");
    }
    further_rounds(&cluster, &controller).await;
    for name in ["waits-a", "waits-b", "waits-c"] {
        assert_eq!(cluster.reported(name).len(), 1);
    }
    let event = &cluster.reported("waits-a")[0];
    let uid = cluster.server.get(&kinds::POD, "team", "waits-a").unwrap()["metadata"]["uid"].clone();
    assert_eq!((&event["regarding"]["uid"], &event["type"]), (&uid, &json!("Warning")));
    let sample = r#"dra_mig_controller_explanations_total{verdict="not_now"}"#;
    assert_eq!(controller.metric(sample), Some(1.0));
    assert_eq!(controller.metric("dra_mig_controller_waiting_pods"), Some(3.0));
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_wait_for_other_devices_or_have_theirs_get_no_event() {
    let cluster = full().await;
    let other = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": "nic"},
        "spec": {"selectors": [{"cel": {"expression": "device.driver == \"nic.example.com\""}}]},
    });
    cluster.server.create(other).unwrap();
    cluster.add_pod("nic", "nic");
    cluster.add_pod("waits", "mig-1g.10gb");
    // Its class does not exist: whoever misspells a profile is to know.
    cluster.add_pod("misspelt", "mig-1g.10gbb");
    let controller = cluster.controller("a", &[]);
    cluster.note("waits").await;
    let note = cluster.note("misspelt").await;
    assert!(note.contains("mig-1g.10gbb"), "{note}");
    further_rounds(&cluster, &controller).await;
    for name in ["nic", "holder"] {
        assert!(cluster.reported(name).is_empty(), "{name}");
    }
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_no_events_nothing_is_written() {
    let cluster = full().await;
    cluster.add_pod("waits", "mig-1g.10gb");
    let controller = cluster.controller("a", &["--no-events"]);
    further_rounds(&cluster, &controller).await;
    let events = cluster.server.requests().into_iter().filter(|it| it.path.contains("/events"));
    assert_eq!(events.count(), 0);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_gets_its_event_after_watches_broke_and_the_history_was_compacted() {
    let cluster = full().await;
    let controller = cluster.controller("a", &[]);
    eventually("ready", || get(controller.http, "/readyz")?.contains("200 OK").then_some(())).await;
    cluster.server.compact();
    cluster.server.cut_watches();
    cluster.add_pod("waits", "mig-1g.10gb");
    cluster.note("waits").await;
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_answer_was_lost_is_not_written_twice() {
    let cluster = full().await;
    let is_event = |it: &kube_sim::RequestInfo| it.method == "POST" && it.path.ends_with("/events");
    cluster.server.inject(1, is_event, Fault::AfterEffect(500));
    cluster.add_pod("waits", "mig-1g.10gb");
    let controller = cluster.controller("a", &[]);
    let sample = r#"dra_mig_controller_events_total{outcome="success"}"#;
    eventually("success", || controller.metric(sample).filter(|it| *it == 1.0)).await;
    assert_eq!(cluster.reported("waits").len(), 1);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_is_forbidden_is_named_by_readyz_and_by_a_metric() {
    let cluster = full().await;
    let is_quota = |it: &kube_sim::RequestInfo| it.path.ends_with("/resourcequotas");
    cluster.server.inject(usize::MAX, is_quota, Fault::Status(403));
    let controller = cluster.controller("a", &[]);
    let answer = eventually("not ready", || {
        get(controller.http, "/readyz").filter(|it| it.contains("resourcequotas: cannot be watched"))
    })
    .await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    let sample = r#"dra_mig_controller_watch_errors_total{resource="resourcequotas"}"#;
    assert!(controller.metric(sample).is_some_and(|it| 0.0 < it));
    cluster.server.clear_faults();
    eventually("ready", || get(controller.http, "/readyz")?.contains("200 OK").then_some(())).await;
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reasons_are_reported_although_the_events_that_exist_cannot_be_read() {
    let cluster = full().await;
    let is_list = |it: &kube_sim::RequestInfo| it.method == "GET" && it.path.ends_with("/events");
    cluster.server.inject(usize::MAX, is_list, Fault::Status(500));
    cluster.add_pod("waits", "mig-1g.10gb");
    let controller = cluster.controller("a", &[]);
    // Each round tries again.
    further_rounds(&cluster, &controller).await;
    cluster.note("waits").await;
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_in_which_no_event_can_be_written_keeps_no_other_pod_from_its_event() {
    let cluster = full().await;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "broken"}});
    cluster.server.create(namespace).unwrap();
    let is_broken =
        |it: &kube_sim::RequestInfo| it.method == "POST" && it.path.ends_with("/namespaces/broken/events");
    cluster.server.inject(usize::MAX, is_broken, Fault::Status(500));
    for name in ["broken-a", "broken-b"] {
        cluster.add_pod_in("broken", name, "mig-1g.10gb");
    }
    let controller = cluster.controller("a", &[]);
    let sample = r#"dra_mig_controller_events_total{outcome="failure"}"#;
    eventually("failures", || controller.metric(sample).filter(|it| 2.0 <= *it)).await;
    cluster.add_pod("waits", "mig-1g.10gb");
    cluster.note("waits").await;
    cluster.server.clear_faults();
    cluster.note("broken-a").await;
    controller.stop().await;
}
