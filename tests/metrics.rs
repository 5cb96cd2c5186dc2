//! `/metrics` as Prometheus reads it, of a driver that serves a kubelet on the simulated hardware.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common;
use common::{ControlPlane, Lab, eventually, prepare, scrape, try_prepare, unprepare};
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube_sim::kubelet::{Claim, Plugin};
use nvml_sim::{Action, Code, Fault, Process};
use serde_json::json;

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

/// What a call that fails, a call that waits and what is repaired leave in the numbers.
#[tokio::test(flavor = "multi_thread")]
async fn failures_waits_and_recovery_are_counted() {
    let (mut lab, kubelet, metrics) = started("1xH100-80GB", &[]).await;
    let broken = "nvmlGpuInstanceCreateComputeInstance";
    lab.sim.inject(Fault::returning(broken, Code::UNKNOWN).times(1)).unwrap();
    let claim = lab.claim_of("one", FIRST_1G).await;
    try_prepare(&kubelet, &claim).await.unwrap_err();
    let seen = scrape(metrics).await;
    let step = |step, outcome| {
        seen.value("dra_mig_step_duration_seconds_count", &[("step", step), ("outcome", outcome)])
    };
    assert_eq!([step("gi_create", "success"), step("ci_create", "failure")], [Some(1.0); 2]);
    assert_eq!(seen.value("dra_mig_calls_total", &[("method", "prepare"), ("reason", "nvml")]), Some(1.0));
    let undone = [("action", "undo"), ("outcome", "success")];
    assert_eq!(seen.value("dra_mig_recovery_actions_total", &undone), Some(1.0));
    let errors = [("call", broken), ("code", "UNKNOWN")];
    assert_eq!(seen.value("dra_mig_nvml_errors_total", &errors), Some(1.0));

    // The scheduler gives away what is just being released.
    prepare(&kubelet, &claim).await.unwrap();
    let late = lab.claim_of("late", FIRST_1G).await;
    let waits = {
        let (kubelet, late) = (lab.kubelet().await, late.clone());
        tokio::spawn(async move { prepare(&kubelet, &late).await })
    };
    let reads = [("step", "api_get"), ("outcome", "success")];
    eventually("the late claim was read", async || {
        let reads = scrape(metrics).await.value("dra_mig_step_duration_seconds_count", &reads);
        (reads == Some(3.0)).then_some(())
    })
    .await;
    // Long enough for the late claim to find its place taken.
    lab.sim.inject(slow("nvmlGpuInstanceDestroy", 1000.0)).unwrap();
    unprepare(&kubelet, &claim).await.unwrap();
    waits.await.unwrap().unwrap();
    let seen = scrape(metrics).await;
    let waited = [("step", "device_busy_wait"), ("outcome", "success")];
    assert_eq!(seen.value("dra_mig_step_duration_seconds_count", &waited), Some(1.0));

    // Who does not wait for the answer is counted, too.
    lab.sim.inject(slow("nvmlGpuInstanceDestroy", 1500.0)).unwrap();
    let given_up =
        tokio::time::timeout(std::time::Duration::from_millis(300), unprepare(&kubelet, &late)).await;
    assert!(given_up.is_err());
    let abandoned = [("method", "unprepare"), ("reason", "abandoned")];
    eventually("the abandoned call is counted", async || {
        (scrape(metrics).await.value("dra_mig_calls_total", &abandoned) == Some(1.0)).then_some(())
    })
    .await;
    lab.stop().await;
}

fn slow(call: &str, milliseconds: f64) -> Fault {
    Fault { call: call.to_owned(), gpu: None, skip: 0, times: Some(1), action: Action::Latency(milliseconds) }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_and_what_is_left_of_each_gpu_is_reported() {
    let (mut lab, kubelet, metrics) = started("2xH100-80GB", &[]).await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    prepare(&kubelet, &claim).await.unwrap();
    let (first, second) = (lab.gpu_name(0), lab.gpu_name(1));
    let seen = eventually("the numbers show the claim, and what is published", async || {
        let seen = scrape(metrics).await;
        let is_held =
            seen.value("dra_mig_instances_live", &[("gpu", &first), ("profile", "1g.10gb")]) == Some(1.0);
        let is_listed = seen.value("dra_mig_claims", &[("state", "prepared")]) == Some(1.0);
        let is_published = seen.value("dra_mig_publication", &[("state", "counters")]) == Some(1.0);
        (is_held && is_listed && is_published).then_some(seen)
    })
    .await;
    let of = |name: &str, gpu: &str| seen.value(name, &[("gpu", gpu)]);
    assert_eq!([of("dra_mig_memory_slices", &first), of("dra_mig_memory_slices", &second)], [Some(8.0); 2]);
    // The last slice is not taken, but nothing that could still be made reaches it.
    assert_eq!(of("dra_mig_memory_slices_free", &first), Some(6.0));
    assert_eq!(of("dra_mig_memory_slices_free", &second), Some(8.0));
    let largest = |gpu, profile| {
        seen.value("dra_mig_largest_free_profile_slices", &[("gpu", gpu), ("profile", profile)])
    };
    assert_eq!([largest(&first, "4g.40gb"), largest(&second, "7g.80gb")], [Some(4.0), Some(8.0)]);
    let free = |gpu, profile| seen.value("dra_mig_placements_free", &[("gpu", gpu), ("profile", profile)]);
    assert_eq!(
        [free(&first, "1g.10gb"), free(&first, "3g.40gb"), free(&first, "full")],
        [Some(6.0), Some(1.0), Some(0.0)]
    );
    assert_eq!(
        [free(&second, "1g.10gb"), free(&second, "3g.40gb"), free(&second, "full")],
        [Some(7.0), Some(2.0), Some(1.0)]
    );
    assert_eq!(seen.value("dra_mig_devices_published", &[]), Some(52.0));
    assert_eq!(seen.value("dra_mig_kubelet_registered", &[]), Some(1.0));
    assert_eq!(seen.value("dra_mig_nvml_up", &[]), Some(1.0));
    assert_eq!(seen.value("dra_mig_gpus", &[("state", "known")]), Some(2.0));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn free_is_what_a_new_claim_could_still_get() {
    let adopt = ["--existing-instances", "adopt", "--rescan-interval", "1"];
    let (mut lab, metrics) =
        Lab::new(ControlPlane::simulated(true).await, "2xH100-80GB,1xL4").await.with_metrics(&adopt);
    // All of the first GPU is others', in two instances.
    let planted = [0, 4].map(|start| lab.sim.plant_instance(0, "3g.40gb", start).unwrap());
    lab.start();
    let kubelet = lab.kubelet().await;
    let free_when = async |gpu: usize, expected: f64| {
        let name = lab.gpu_name(gpu);
        eventually(&format!("{expected} slices of {name} are free"), async || {
            let free = scrape(metrics).await.value("dra_mig_memory_slices_free", &[("gpu", &name)]);
            (free == Some(expected)).then_some(())
        })
        .await;
    };
    free_when(0, 8.0).await;
    free_when(2, 0.0).await;
    let name = format!("{}-adopted-{}", lab.gpu_name(0), planted[0].uuid.strip_prefix("MIG-").unwrap());
    let claim = lab.claim_of("one", &name).await;
    prepare(&kubelet, &claim).await.unwrap();
    free_when(0, 4.0).await;
    // A GPU that is unhealthy has nothing to give.
    free_when(1, 8.0).await;
    eventually("the driver listens", async || {
        lab.sim.post_xid(1, 48, None, None).unwrap();
        let seen = scrape(metrics).await;
        (0 < seen.all("dra_mig_gpu_events_total", &[]).count()).then_some(())
    })
    .await;
    free_when(1, 0.0).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_does_not_know_openmetrics_is_given_plain_text() {
    let (mut lab, _, metrics) = started("1xH100-80GB", &[]).await;
    for accept in ["*/*", "text/plain;version=0.0.4;q=1,*/*;q=0.1"] {
        let (head, text) = common::scrape_as(metrics, accept).await;
        assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
        assert!(text.contains("\n# TYPE dra_mig_calls_total counter\n"), "{text}");
        assert!(text.contains("\n# TYPE dra_mig_build_info gauge\n") && !text.contains("# EOF"), "{text}");
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_occupy_is_shown_as_withheld() {
    let (mut lab, metrics) =
        Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB,1xA100-40GB").await.with_metrics(&[]);
    lab.sim.on_gpu(0, |gpu| (gpu.mig_current, gpu.mig_pending) = (true, true)).unwrap();
    lab.sim.plant_instance(0, "1g.10gb", 6).unwrap();
    lab.start();
    lab.slices_when(common::is_complete).await;
    let seen = scrape(metrics).await;
    let withheld = |gpu, reason| {
        seen.value("dra_mig_placements_withheld", &[("gpu", &lab.gpu_name(gpu)), ("reason", reason)])
    };
    assert!(withheld(0, "occupied") > Some(0.0), "{}", seen.text);
    assert!(withheld(1, "mig_mode") > Some(0.0), "an A100 changes its mode with a reset only: {}", seen.text);
    assert_eq!(seen.value("dra_mig_placements_withheld", &[("reason", "counters_dropped")]), Some(0.0));
    lab.stop().await;
}

/// Names the pod for which a claim is reserved, as the scheduler does.
async fn reserve(lab: &Lab, claim: &Claim, pod: &str) {
    let api: Api<ResourceClaim> = Api::namespaced(lab.client.clone(), &claim.namespace);
    let consumer = json!({"resource": "pods", "name": pod, "uid": "pod-1"});
    let status = Patch::Merge(json!({"status": {"reservedFor": [consumer]}}));
    api.patch_status(&claim.name, &PatchParams::default(), &status).await.unwrap();
}

/// Of those that were logged.
fn assert_no_destroy_was_refused(lab: &Lab) {
    let mut calls = lab.sim.calls().unwrap();
    calls.retain(|it| it.call.ends_with("Destroy") && it.code != 0);
    assert!(calls.is_empty(), "{calls:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_instance_uses_is_reported_until_it_is_gone_and_keeps_nothing_from_being_destroyed() {
    let (mut lab, kubelet, metrics) =
        started("1xH100-80GB", &["--metrics-pod-labels", "--metrics-dcgm-names"]).await;
    lab.sim.configure(|config| config.log_calls = true).unwrap();
    lab.sim.on_gpu(0, |gpu| gpu.utilization = (73, 40)).unwrap();
    let claim = lab.claim_of("one", FIRST_1G).await;
    reserve(&lab, &claim, "trainer").await;
    prepare(&kubelet, &claim).await.unwrap();
    let id = lab.sim.snapshot().unwrap().gpus[0].gpu_instances[0].id;
    let process = Process { pid: 77, gpu_instance: Some(id), compute_instance: Some(0), memory_mib: 1234 };
    lab.sim.plant_process(0, process).unwrap();

    let gi = id.to_string();
    let labels = [("gpu", lab.gpu_name(0)), ("gi", gi.clone()), ("profile", "1g.10gb".to_owned())];
    let labels: Vec<(&str, &str)> = labels.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let seen = eventually("the numbers show the use of the instance", async || {
        let seen = scrape(metrics).await;
        // Under both names: an instance may be looked at between the writing of the one and of the other.
        let names = ["dra_mig_instance_utilization_ratio", "DCGM_FI_PROF_GR_ENGINE_ACTIVE"];
        let is_measured = names.into_iter().all(|it| 0 < seen.all(it, &[]).count());
        let used =
            ["dra_mig_instance_memory_used_bytes", "DCGM_FI_DEV_FB_USED"].map(|it| seen.value(it, &[]));
        (is_measured && used == [Some(f64::from(1234 << 20)), Some(1234.0)]).then_some(seen)
    })
    .await;
    let busy = |engine| {
        let labels: Vec<_> = labels.iter().copied().chain([("engine", engine)]).collect();
        seen.value("dra_mig_instance_utilization_ratio", &labels)
    };
    assert_eq!([busy("graphics"), busy("memory_bandwidth"), busy("tensor")], [Some(0.73), Some(0.4), None]);
    let whose = [("namespace", "default"), ("pod", "trainer"), ("claim", &claim.name)];
    assert!(seen.value("dra_mig_instance_memory_total_bytes", &whose) > Some(9e9), "{}", seen.text);
    let dcgm = [("GPU_I_ID", gi.as_str()), ("GPU_I_PROFILE", "1g.10gb"), ("gpu", "0"), ("pod", "trainer")];
    assert_eq!(seen.value("DCGM_FI_DEV_FB_USED", &dcgm), Some(1234.0));
    assert_eq!(seen.value("DCGM_FI_PROF_GR_ENGINE_ACTIVE", &dcgm), Some(0.73));

    // A sample of the instance is kept for the next look; the simulator counts it as a handle of the instance.
    lab.sim.remove_process(0, 77).unwrap();
    unprepare(&kubelet, &claim).await.unwrap();
    assert_no_destroy_was_refused(&lab);
    eventually("the series of the instance vanish", async || {
        let seen = scrape(metrics).await;
        (seen.all("dra_mig_instance_memory_used_bytes", &[]).count() == 0).then_some(())
    })
    .await;
    lab.stop().await;
}

/// Acceptance: metrics are read without pause while instances come and go.
#[tokio::test(flavor = "multi_thread")]
async fn no_destroy_is_refused_while_metrics_are_read() {
    const ROUNDS: usize = 40;
    let (mut lab, kubelet, metrics) = started("1xH100-80GB", &[]).await;
    lab.sim.configure(|config| config.log_calls = true).unwrap();
    let reading = tokio::spawn(async move {
        loop {
            scrape(metrics).await;
            tokio::task::yield_now().await;
        }
    });
    let kept = lab.claim_of("kept", FIRST_1G).await;
    prepare(&kubelet, &kept).await.unwrap();
    let other = lab.claim_of("other", &format!("{}-mig-1g-10gb-0", lab.gpu_name(0))).await;
    let rounds = AtomicUsize::new(0);
    // Until the kept instance was sampled twice: then a sample of it is at hand when it is destroyed.
    eventually("instances are sampled while others come and go", async || {
        prepare(&kubelet, &other).await.unwrap();
        unprepare(&kubelet, &other).await.unwrap();
        let rounds = rounds.fetch_add(1, Ordering::Relaxed) + 1;
        let calls = lab.sim.calls().unwrap();
        let samples = calls.iter().filter(|it| it.call == "nvmlGpmMigSampleGet" && it.code == 0).count();
        (ROUNDS <= rounds && 2 <= samples).then_some(())
    })
    .await;
    unprepare(&kubelet, &kept).await.unwrap();
    reading.abort();
    assert_no_destroy_was_refused(&lab);
    assert_eq!(lab.left(), Vec::<String>::new());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reading_is_answered_while_nvml_hangs() {
    let (mut lab, kubelet, metrics) = started("1xH100-80GB", &[]).await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    lab.sim.inject(slow("nvmlDeviceCreateGpuInstanceWithPlacement", 3000.0)).unwrap();
    let prepared = tokio::spawn(async move { prepare(&kubelet, &claim).await });
    let gpu = lab.gpu_name(0);
    eventually("a reading finds the GPU at work", async || {
        let seen = scrape(metrics).await;
        let is_at_work = seen.value("dra_mig_gpu_queue_length", &[("gpu", &gpu)]) == Some(1.0);
        let runs = |thread| seen.value("dra_mig_nvml_call_running_seconds", &[("thread", thread)]);
        (is_at_work && Some(0.0) < runs(&gpu) && runs("open") == Some(0.0)).then_some(())
    })
    .await;
    assert!(!prepared.is_finished(), "the readings were answered while the GPU was busy");
    prepared.await.unwrap().unwrap();
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_flags_no_series_names_a_pod_or_dcgm() {
    let (mut lab, kubelet, metrics) = started("1xH100-80GB", &["--metrics-usage", "memory"]).await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    reserve(&lab, &claim, "trainer").await;
    prepare(&kubelet, &claim).await.unwrap();
    let seen = eventually("the numbers show the memory of the instance", async || {
        let seen = scrape(metrics).await;
        let is_shown = 0 < seen.all("dra_mig_instance_memory_used_bytes", &[]).count();
        is_shown.then_some(seen)
    })
    .await;
    assert!(
        !seen.text.contains("DCGM") && !seen.text.contains("trainer") && !seen.text.contains(&claim.name)
    );
    assert_eq!(seen.all("dra_mig_instance_utilization_ratio", &[]).count(), 0);
    lab.stop().await;
}
