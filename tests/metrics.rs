//! `/metrics` as Prometheus reads it, of a driver that serves a kubelet on the simulated hardware.
#![allow(clippy::unwrap_used, reason = "what fails in a test is the test")]

mod common;

use std::net::SocketAddr;

use common::{ControlPlane, Lab, prepare, scrape, try_prepare, unprepare};
use kube_sim::kubelet::Plugin;

const FIRST_1G: &str = "gpu-0000-1a-00-mig-1g-10gb-6";

/// A running driver, the kubelet's connection to it, and where its metrics are.
async fn started(gpus: &str, extra: &[&str]) -> (Lab, Plugin, SocketAddr) {
    let (mut lab, metrics) = Lab::new(ControlPlane::simulated(true).await, gpus).await.with_metrics(extra);
    lab.start();
    let kubelet = lab.kubelet().await;
    (lab, kubelet, metrics)
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_and_their_steps_are_counted_failures_too() {
    let (mut lab, kubelet, metrics) = started("1xH100-80GB", &[]).await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    prepare(&kubelet, &claim).await.unwrap();
    unprepare(&kubelet, &claim).await.unwrap();
    let unknown = lab.claim_of("two", "gpu-0000-ff-00-mig-1g-10gb-6").await;
    try_prepare(&kubelet, &unknown).await.unwrap_err();

    let seen = scrape(metrics).await;
    let count = |name: &str, labels: &[(&str, &str)]| seen.value(name, labels).unwrap_or_default();
    let calls = |method, reason| count("dra_mig_calls_total", &[("method", method), ("reason", reason)]);
    assert_eq!(
        [calls("prepare", "ok"), calls("unprepare", "ok"), calls("prepare", "unknown_device")],
        [1.0; 3]
    );
    let failed = [("method", "prepare"), ("outcome", "failure")];
    assert_eq!(count("dra_mig_call_duration_seconds_count", &failed), 1.0);
    for step in ["gi_create", "ci_create", "cdi_write", "record_sync", "destroy"] {
        let labels = [("step", step), ("outcome", "success")];
        assert_eq!(count("dra_mig_step_duration_seconds_count", &labels), 1.0, "{step}");
    }
    let gets = [("verb", "get"), ("resource", "resourceclaims"), ("code", "200")];
    assert!(count("dra_mig_api_requests_total", &gets) >= 2.0);
    assert!(seen.head.contains("application/openmetrics-text; version=1.0.0"), "{}", seen.head);
    lab.stop().await;
}
