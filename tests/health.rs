//! Health of GPUs: errors that NVML reports, and what becomes of slices, taints, the kubelet's streams, events, numbers.

use std::future::Future;
use std::net::SocketAddr;

use crate::common;
use common::{ControlPlane, DRIVER, Lab, device_names, eventually, is_complete, prepare, scrape, unprepare};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::resource::v1::{Device, DeviceTaint, ResourceClaim, ResourceSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube_sim::kubelet::{Claim, DeviceHealth, Health, HealthStream, Plugin};
use nvml_sim::{Code, Fault};
use serde_json::json;

/// The first GPU's last slice, and the one before it.
const LAST: &str = "gpu-0000-1a-00-mig-1g-10gb-6";
const BEFORE: &str = "gpu-0000-1a-00-mig-1g-10gb-5";
/// Devices of an H100.
const ALL: usize = 26;

/// Runs a test against API servers that keep counters and taints, or not.
async fn with_gates<F: Future<Output = ()>>(counters: bool, taints: bool, test: impl Fn(ControlPlane) -> F) {
    test(ControlPlane::simulated_with(counters, taints).await).await;
    if let Some(real) = ControlPlane::real_with(counters, taints).await {
        test(real).await;
    }
}

/// A running driver, the kubelet's connection to it, and where its metrics are.
async fn started(plane: ControlPlane, gpus: &str, extra: &[&str]) -> (Lab, Plugin, SocketAddr) {
    let arguments = [&["--rescan-interval", "1", "--settle-time", "1"], extra].concat();
    let (mut lab, metrics) = Lab::new(plane, gpus).await.with_metrics(&arguments);
    let kubelet = start(&mut lab).await;
    (lab, kubelet, metrics)
}

/// Starts the driver and waits until it listens to its GPUs: events are those that happen after that.
async fn start(lab: &mut Lab) -> Plugin {
    let gpus = lab.sim.snapshot().unwrap().gpus.len();
    let listens = |lab: &Lab| {
        let calls = lab.sim.calls().unwrap();
        calls.iter().filter(|it| it.call == "nvmlDeviceRegisterEvents").count()
    };
    let before = listens(lab);
    lab.sim.configure(|it| it.log_calls = true).unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    lab.slices_when(is_complete).await;
    eventually("the driver listens", async || (before + gpus <= listens(lab)).then_some(())).await;
    lab.sim.configure(|it| it.log_calls = false).unwrap();
    kubelet
}

fn devices(slices: &[ResourceSlice]) -> impl Iterator<Item = &Device> {
    slices.iter().flat_map(|it| it.spec.devices.iter().flatten())
}

/// Names of the published devices of a GPU.
fn of_gpu(lab: &Lab, slices: &[ResourceSlice], gpu: usize) -> Vec<String> {
    let prefix = lab.gpu_name(gpu);
    device_names(slices).into_iter().filter(|it| it.starts_with(&prefix)).map(str::to_owned).collect()
}

/// The slices once these devices of a GPU are published, and no others of it.
async fn published_of(lab: &Lab, gpu: usize, expected: &[&str]) -> Vec<ResourceSlice> {
    lab.slices_when(|it| is_complete(it) && of_gpu(lab, it, gpu) == expected).await
}

/// The slices once a GPU offers so many devices.
async fn count_of(lab: &Lab, gpu: usize, count: usize) -> Vec<ResourceSlice> {
    lab.slices_when(|it| is_complete(it) && of_gpu(lab, it, gpu).len() == count).await
}

fn device<'s>(slices: &'s [ResourceSlice], name: &str) -> &'s Device {
    devices(slices).find(|it| it.name == name).unwrap()
}

/// Key, value and effect of all taints.
fn taints(slices: &[ResourceSlice]) -> Vec<(String, String, String)> {
    let all = devices(slices).flat_map(|it| it.taints.iter().flatten());
    let short = |it: &DeviceTaint| (it.key.clone(), it.value.clone().unwrap_or_default(), it.effect.clone());
    all.map(short).collect()
}

fn taint(name: &str, value: &str, effect: &str) -> Vec<(String, String, String)> {
    vec![(format!("{DRIVER}/{name}"), value.to_owned(), effect.to_owned())]
}

/// Waits for an event about an object, and returns what it says.
async fn event(lab: &Lab, about: &str, reason: &str) -> String {
    event_with(lab, about, reason, "").await
}

/// The same of one that says this.
async fn event_with(lab: &Lab, about: &str, reason: &str, text: &str) -> String {
    eventually(&format!("there is an event {reason} about {about}"), async || {
        let events: Api<Event> = Api::namespaced(lab.client.clone(), "default");
        let all = events.list(&ListParams::default()).await.unwrap().items;
        let is_it = |it: &Event| {
            it.reason.as_deref() == Some(reason)
                && it.regarding.as_ref().and_then(|it| it.name.as_deref()) == Some(about)
                && it.note.as_ref().is_some_and(|it| it.contains(text))
        };
        all.into_iter().find(is_it).map(|it| it.note.unwrap_or_default())
    })
    .await
}

/// How many events of these reasons there are about an object.
async fn count_events(lab: &Lab, about: &str, reasons: &[&str]) -> usize {
    let events: Api<Event> = Api::namespaced(lab.client.clone(), "default");
    let all = events.list(&ListParams::default()).await.unwrap().items;
    let about = |it: &&Event| it.regarding.as_ref().and_then(|it| it.name.as_deref()) == Some(about);
    all.iter().filter(about).filter(|it| reasons.contains(&it.reason.as_deref().unwrap_or_default())).count()
}

/// Reads the stream until it says this of a device, with this text.
async fn health_update(stream: &mut HealthStream, name: &str, health: Health, text: &str) -> DeviceHealth {
    let listen = async {
        loop {
            let list = stream.next().await.expect("the stream goes on");
            if let Some(device) = list.into_iter().find(|it| it.device == name && it.health == health)
                && device.message.contains(text)
            {
                return device;
            }
        }
    };
    let patience = std::time::Duration::from_secs(60);
    let health_update = tokio::time::timeout(patience, listen).await;
    health_update.unwrap_or_else(|_| panic!("the kubelet did not receive that {name} is {health:?}"))
}

/// The stream has an end, which the driver has made.
async fn ends(mut stream: HealthStream) {
    let read = async { while stream.next().await.is_some() {} };
    tokio::time::timeout(std::time::Duration::from_secs(60), read)
        .await
        .expect("the stream ends with the driver");
}

/// GPU instance id of the instance at this slice of the first GPU.
fn instance_at(lab: &Lab, start: u32) -> u32 {
    let gpus = lab.sim.snapshot().unwrap().gpus;
    gpus[0].gpu_instances.iter().find(|it| it.start == start).unwrap().id
}

async fn is_condition(lab: &Lab, metrics: SocketAddr, gpu: usize, condition: &str) {
    let uuid = lab.sim.snapshot().unwrap().gpus[gpu].uuid.clone();
    eventually(&format!("GPU {gpu} is {condition}"), async || {
        let labels = [("uuid", uuid.as_str()), ("condition", condition)];
        (scrape(metrics).await.value("dra_mig_gpu_health", &labels) == Some(1.0)).then_some(())
    })
    .await;
}

/// Waits until so many instances of the first GPU are shown as unhealthy.
async fn unhealthy_instances(lab: &Lab, metrics: SocketAddr, count: f64) {
    let uuid = lab.sim.snapshot().unwrap().gpus[0].uuid.clone();
    eventually(&format!("{count} instances are unhealthy"), async || {
        let shown = scrape(metrics).await.value("dra_mig_unhealthy_instances", &[("uuid", &uuid)]);
        (shown == Some(count)).then_some(())
    })
    .await;
}

fn claims(lab: &Lab) -> Api<ResourceClaim> {
    Api::namespaced(lab.client.clone(), "default")
}

/// Waits until the condition `Ready` of the claim's one device has this status and message.
async fn is_ready(lab: &Lab, claim: &Claim, status: &str, message: &str) -> Condition {
    eventually(&format!("the device of {} is ready: {status}", claim.name), async || {
        let devices = claims(lab).get(&claim.name).await.unwrap().status?.devices?;
        let condition = devices.first()?.conditions.as_ref()?.first()?.clone();
        (condition.status == status && condition.message.contains(message)).then_some(condition)
    })
    .await
}

async fn prepared(lab: &Lab, kubelet: &Plugin, name: &str, device: &str) -> Claim {
    let claim = lab.claim_of(name, device).await;
    prepare(kubelet, &claim).await.unwrap();
    claim
}

#[tokio::test(flavor = "multi_thread")]
async fn an_xid_without_an_owner_withdraws_what_is_free_and_taints_what_is_held() {
    with_gates(true, true, async |plane| {
        let (mut lab, kubelet, metrics) = started(plane, "2xH100-80GB", &[]).await;
        let claim = prepared(&lab, &kubelet, "one", LAST).await;
        let before = count_of(&lab, 0, ALL).await;
        let mut stream = kubelet.watch_health().await.unwrap();
        assert_eq!(health_update(&mut stream, LAST, Health::Healthy, "").await.message, "");

        lab.sim.post_xid(0, 48, None, None).unwrap();
        let after = published_of(&lab, 0, &[LAST]).await;
        assert_eq!(of_gpu(&lab, &after, 1).len(), ALL, "the other GPU is none of that");
        let after = lab.slices_when(|it| !taints(it).is_empty()).await;
        assert_eq!(taints(&after), taint("xid", "48", "NoSchedule"));
        let (was, is) = (device(&before, LAST), device(&after, LAST));
        assert_eq!((&is.attributes, &is.capacity), (&was.attributes, &was.capacity));
        assert_eq!(is.consumes_counters, was.consumes_counters, "an allocated device is never re-costed");
        let unhealthy = health_update(&mut stream, LAST, Health::Unhealthy, "XID").await;
        assert_eq!(
            (unhealthy.message.as_str(), unhealthy.timeout_seconds),
            ("unhealthy: XID 48 (a double-bit ECC error)", 30)
        );
        let note = event(&lab, &lab.node_name, "GpuUnhealthy").await;
        assert!(note.contains("XID 48") && note.contains("health.json"), "{note}");
        is_condition(&lab, metrics, 0, "unhealthy").await;
        assert_eq!(count_events(&lab, &lab.node_name, &["GpuNotOffered"]).await, 0, "one event is enough");

        // The server's time of the taint is no reason to write, and a write of something else leaves it.
        let time = is.taints.as_ref().unwrap()[0].time_added.clone();
        assert!(time.is_some());
        lab.sim.post_xid(1, 95, None, None).unwrap();
        let later = count_of(&lab, 1, 0).await;
        assert_eq!(device(&later, LAST).taints.as_ref().unwrap()[0].time_added, time);

        // What is released is withdrawn, too.
        unprepare(&kubelet, &claim).await.unwrap();
        lab.delete_claim(&claim).await;
        count_of(&lab, 0, 0).await;
        lab.stop().await;
        ends(stream).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nvml_recommends_withdraws_a_gpu_and_brings_it_back_without_a_reboot() {
    let plane = ControlPlane::simulated_with(true, true).await;
    let (mut lab, metrics) =
        Lab::new(plane, "2xH100-80GB").await.with_metrics(&["--rescan-interval", "1", "--settle-time", "1"]);
    for gpu in 0..2 {
        lab.sim.set_recovery_action(gpu, Some(0)).unwrap();
    }
    let kubelet = start(&mut lab).await;
    let claim = prepared(&lab, &kubelet, "one", LAST).await;
    count_of(&lab, 0, ALL).await;

    // An error of the GPU for which NVML recommends nothing withdraws nothing. The claim's event is written after it was judged.
    lab.sim.post_xid(0, 48, Some(instance_at(&lab, 6)), Some(0)).unwrap();
    lab.sim.post_xid(0, 95, None, None).unwrap();
    event(&lab, &claim.name, "DeviceUnhealthy").await;
    is_condition(&lab, metrics, 0, "healthy").await;
    count_of(&lab, 0, ALL).await;

    lab.sim.set_recovery_action(0, Some(4)).unwrap();
    let after = lab.slices_when(|it| taints(it) == taint("recovery", "drain-and-reset", "NoSchedule")).await;
    assert_eq!(of_gpu(&lab, &after, 1).len(), ALL, "the other GPU is offered as before");
    published_of(&lab, 0, &[LAST]).await;
    let note = event(&lab, &lab.node_name, "GpuUnhealthy").await;
    assert!(note.contains("NVML recommends draining the GPU and a GPU reset"), "{note}");

    lab.sim.set_recovery_action(0, Some(0)).unwrap();
    count_of(&lab, 0, ALL).await;
    is_condition(&lab, metrics, 0, "healthy").await;
    event(&lab, &lab.node_name, "GpuRecovered").await;
    unprepare(&kubelet, &claim).await.unwrap();
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_allocated_and_not_prepared_stays_published_and_tainted() {
    with_gates(true, true, async |plane| {
        let (mut lab, kubelet, _) = started(plane, "2xH100-80GB", &[]).await;
        let before = count_of(&lab, 0, ALL).await;
        let claim = lab.claim_of("one", LAST).await;
        lab.sim.post_xid(0, 48, None, None).unwrap();
        published_of(&lab, 0, &[LAST]).await;
        let after = lab.slices_when(|it| taints(it) == taint("xid", "48", "NoSchedule")).await;
        let cost = |slices: &[ResourceSlice]| device(slices, LAST).consumes_counters.clone();
        assert_eq!(cost(&after), cost(&before), "an allocated device is never re-costed");
        assert_eq!(of_gpu(&lab, &after, 1).len(), ALL, "the other GPU is none of that");

        // Also over a restart, and when a kubelet has deleted the slices meanwhile.
        lab.stop().await;
        for slice in lab.slices().await {
            lab.slices_api().delete(&slice.metadata.name.unwrap(), &DeleteParams::default()).await.unwrap();
        }
        drop(kubelet);
        let kubelet = start(&mut lab).await;
        let again = published_of(&lab, 0, &[LAST]).await;
        assert_eq!(cost(&again), cost(&before));

        prepare(&kubelet, &claim).await.unwrap();
        unprepare(&kubelet, &claim).await.unwrap();
        lab.delete_claim(&claim).await;
        count_of(&lab, 0, 0).await;
        lab.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_taint_is_not_written_again() {
    let plane = ControlPlane::simulated_with(true, true).await;
    let ControlPlane::Simulated(server) = plane.clone() else { unreachable!("it is the simulated one") };
    let (mut lab, kubelet, _) = started(plane, "1xH100-80GB", &["--taint-effect", "NoExecute"]).await;
    prepared(&lab, &kubelet, "one", LAST).await;
    lab.sim.post_ecc(0, true, None, None).unwrap();
    let slices = lab.slices_when(|it| !taints(it).is_empty()).await;
    assert_eq!(taints(&slices), taint("ecc", "double-bit", "NoExecute"));
    // Twice: the first comparison may have begun before.
    let seen = server.requests().len();
    for round in 1..=2 {
        let compared = || {
            let requests = server.requests().split_off(seen);
            let lists =
                requests.iter().filter(|it| it.path.ends_with("/resourceslices") && it.method == "GET");
            lists.filter(|it| !it.is_watch()).filter(|it| it.query.contains("fieldSelector")).count()
        };
        let before = compared();
        let name = slices[0].metadata.name.clone().unwrap();
        let odd =
            Patch::Merge(json!({"metadata": {"annotations": {"example.com/round": round.to_string()}}}));
        lab.slices_api().patch(&name, &PatchParams::default(), &odd).await.unwrap();
        eventually("the driver compares", async || (before < compared()).then_some(())).await;
    }
    let requests = server.requests().split_off(seen);
    let is_write = |it: &&kube_sim::RequestInfo| it.path.contains("resourceslices") && it.method == "PUT";
    assert_eq!(requests.iter().filter(is_write).count(), 0);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_gate_of_taints_free_devices_go_all_the_same() {
    with_gates(true, false, async |plane| {
        let (mut lab, kubelet, _) = started(plane, "1xH100-80GB", &[]).await;
        prepared(&lab, &kubelet, "one", LAST).await;
        lab.sim.post_xid(0, 48, None, None).unwrap();
        let slices = published_of(&lab, 0, &[LAST]).await;
        assert_eq!(taints(&slices), []);
        lab.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_unhealthy_stays_so_over_a_restart_until_an_operator_says_otherwise() {
    with_gates(false, true, async |plane| {
        let (mut lab, kubelet, _) = started(plane, "2xH100-80GB", &["--mode", "layout"]).await;
        let offered = lab.slices_when(|it| is_complete(it) && !of_gpu(&lab, it, 0).is_empty()).await;
        let offered = of_gpu(&lab, &offered, 0);
        let claim = prepared(&lab, &kubelet, "one", &offered[0]).await;
        lab.sim.post_xid(0, 64, None, None).unwrap();
        published_of(&lab, 0, &[&offered[0]]).await;
        lab.stop().await;

        let kubelet = start(&mut lab).await;
        unprepare(&kubelet, &claim).await.unwrap();
        lab.delete_claim(&claim).await;
        count_of(&lab, 0, 0).await;
        std::fs::remove_file(lab.path("plugins").join(DRIVER).join("health.json")).unwrap();
        let slices = count_of(&lab, 0, offered.len()).await;
        assert_eq!(taints(&slices), []);
        event(&lab, &lab.node_name, "GpuRecovered").await;
        lab.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unhealthy_gpu_that_cannot_be_cut_is_withdrawn_unless_a_claim_holds_it() {
    let plane = ControlPlane::simulated_with(true, true).await;
    let (mut lab, kubelet, _) = started(plane, "2xL4", &[]).await;
    let (held, free) = (lab.gpu_name(0), lab.gpu_name(1));
    let claim = prepared(&lab, &kubelet, "one", &held).await;
    // A claim of the whole GPU is concerned by every error on it.
    lab.sim.post_xid(0, 31, None, None).unwrap();
    assert!(event(&lab, &claim.name, "DeviceError").await.contains("XID 31"));
    lab.sim.post_xid(0, 48, None, None).unwrap();
    assert!(event(&lab, &claim.name, "DeviceUnhealthy").await.contains("XID 48"));
    lab.sim.post_xid(1, 48, None, None).unwrap();
    let slices = lab.slices_when(|it| is_complete(it) && device_names(it) == [&held]).await;
    assert!(!device_names(&slices).contains(&free.as_str()));
    lab.slices_when(|it| taints(it) == taint("xid", "48", "NoSchedule")).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_xid_on_an_instance_is_its_claims_until_the_instance_is_recreated() {
    with_gates(true, true, async |plane| {
        let (mut lab, kubelet, metrics) = started(plane, "1xH100-80GB", &[]).await;
        let claim = lab.claim_of("one", LAST).await;
        let consumer = json!({"resource": "pods", "name": "trainer-0", "uid": "pod-1"});
        let reserved = Patch::Merge(json!({"status": {"reservedFor": [consumer]}}));
        claims(&lab).patch_status(&claim.name, &PatchParams::default(), &reserved).await.unwrap();
        prepare(&kubelet, &claim).await.unwrap();
        prepared(&lab, &kubelet, "two", BEFORE).await;
        let before = count_of(&lab, 0, ALL).await;
        let mut stream = kubelet.watch_health_v1alpha1().await.unwrap();
        lab.sim.post_xid(0, 94, Some(instance_at(&lab, 6)), Some(0)).unwrap();
        health_update(&mut stream, LAST, Health::Unhealthy, "XID 94").await;
        health_update(&mut stream, BEFORE, Health::Healthy, "").await;
        let note = event(&lab, &claim.name, "DeviceUnhealthy").await;
        assert!(note.contains(LAST) && note.contains("of the pod trainer-0"), "{note}");
        assert_eq!(event(&lab, "trainer-0", "DeviceUnhealthy").await, note, "its pod has the event, too");
        assert_eq!(count_events(&lab, &lab.node_name, &["GpuUnhealthy"]).await, 0);
        unhealthy_instances(&lab, metrics, 1.0).await;
        is_ready(&lab, &claim, "False", "XID 94").await;
        is_condition(&lab, metrics, 0, "healthy").await;
        assert_eq!(lab.slices().await, before, "the GPU and what else it offers is as before");

        unprepare(&kubelet, &claim).await.unwrap();
        health_update(&mut stream, LAST, Health::Healthy, "").await;
        unhealthy_instances(&lab, metrics, 0.0).await;
        let next = prepared(&lab, &kubelet, "three", LAST).await;
        health_update(&mut stream, LAST, Health::Healthy, "").await;
        is_ready(&lab, &next, "True", "").await;
        lab.stop().await;
        ends(stream).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_applications_are_reported_and_counted_and_make_nothing_unhealthy() {
    let plane = ControlPlane::simulated_with(true, true).await;
    let (mut lab, kubelet, metrics) = started(plane, "1xH100-80GB", &["--ignore-xids", "74"]).await;
    let claim = prepared(&lab, &kubelet, "one", LAST).await;
    let mut stream = kubelet.watch_health().await.unwrap();
    let gi = Some(instance_at(&lab, 6));
    for xid in [8, 11, 13, 31, 43, 45, 63, 68, 74] {
        lab.sim.post_xid(0, xid, gi, Some(0)).unwrap();
    }
    lab.sim.post_xid(0, 74, None, None).unwrap();
    lab.sim.post_xid(0, 94, None, None).unwrap();
    lab.sim.post_ecc(0, false, gi, Some(0)).unwrap();
    let uuid = lab.sim.snapshot().unwrap().gpus[0].uuid.clone();
    eventually("all of it is counted", async || {
        let seen = scrape(metrics).await;
        let count = |event: &str, code: &str| {
            let labels = [("uuid", uuid.as_str()), ("event", event), ("code", code)];
            seen.value("dra_mig_gpu_events_total", &labels)
        };
        (count("single_bit_ecc", "") == Some(1.0)
            && count("xid", "74") == Some(2.0)
            && ["8", "11", "13", "31", "43", "45", "63", "68", "94"]
                .iter()
                .all(|it| count("xid", it) == Some(1.0)))
        .then_some(())
    })
    .await;
    assert!(event(&lab, &claim.name, "DeviceError").await.contains("The device goes on"));
    assert_eq!(count_events(&lab, &claim.name, &["DeviceUnhealthy"]).await, 0);
    is_condition(&lab, metrics, 0, "healthy").await;
    health_update(&mut stream, LAST, Health::Healthy, "").await;
    assert_eq!(of_gpu(&lab, &lab.slices().await, 0).len(), ALL);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_gpu_is_reported_and_comes_back_when_it_answers_again() {
    with_gates(true, true, async |plane| {
        let (mut lab, kubelet, metrics) = started(plane, "2xH100-80GB", &[]).await;
        prepared(&lab, &kubelet, "one", LAST).await;
        let mut stream = kubelet.watch_health().await.unwrap();
        lab.sim.lose_gpu(0).unwrap();
        published_of(&lab, 0, &[LAST]).await;
        lab.slices_when(|it| taints(it) == taint("lost", "true", "NoSchedule")).await;
        health_update(&mut stream, LAST, Health::Unhealthy, "lost: ").await;
        assert!(event(&lab, &lab.node_name, "GpuLost").await.contains("GPU_IS_LOST"));
        is_condition(&lab, metrics, 0, "lost").await;
        // Events of the other GPU are received as before, once the lost one is not listened to any more.
        eventually("the other GPU's events are received", async || {
            lab.sim.post_xid(1, 48, None, None).unwrap();
            of_gpu(&lab, &lab.slices().await, 1).is_empty().then_some(())
        })
        .await;

        lab.sim.recover_gpu(0).unwrap();
        is_condition(&lab, metrics, 0, "healthy").await;
        let slices = count_of(&lab, 0, ALL).await;
        assert_eq!(taints(&slices), []);
        health_update(&mut stream, LAST, Health::Healthy, "").await;
        event(&lab, &lab.node_name, "GpuRecovered").await;
        // And it is listened to again.
        eventually("its events are received again", async || {
            lab.sim.post_xid(0, 48, None, None).unwrap();
            (of_gpu(&lab, &lab.slices().await, 0) == [LAST]).then_some(())
        })
        .await;
        lab.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_gpu_that_is_lost_when_the_driver_starts_what_claims_have_stays_until_it_comes_back() {
    for (counters, mode) in [(true, "partitionable"), (false, "layout")] {
        with_gates(counters, true, async |plane| {
            let (mut lab, kubelet, _) = started(plane, "2xH100-80GB", &["--mode", mode]).await;
            let before = lab.slices_when(|it| is_complete(it) && !of_gpu(&lab, it, 0).is_empty()).await;
            let offered = of_gpu(&lab, &before, 0);
            let held = prepared(&lab, &kubelet, "held", &offered[0]).await;
            let allocated = lab.claim_of("allocated", &offered[1]).await;
            lab.stop().await;
            lab.sim.lose_gpu(0).unwrap();
            lab.start();
            let after = lab.slices_when(|it| {
                let mut now = of_gpu(&lab, it, 0);
                now.sort_by_key(|it| offered.iter().position(|other| other == it));
                is_complete(it) && now == offered[..2]
            });
            let after = after.await;
            for name in &offered[..2] {
                let (was, is) = (device(&before, name), device(&after, name));
                assert_eq!((&is.attributes, &is.capacity), (&was.attributes, &was.capacity));
                assert_eq!(is.consumes_counters, was.consumes_counters, "it is never re-costed");
            }
            lab.slices_when(|it| is_complete(it) && !of_gpu(&lab, it, 1).is_empty()).await;
            assert!(event(&lab, &lab.node_name, "GpuNotOffered").await.contains("GPU_IS_LOST"));
            assert_eq!(is_ready(&lab, &held, "False", "").await.reason, "Lost");

            lab.delete_claim(&allocated).await;
            published_of(&lab, 0, &[&offered[0]]).await;
            lab.sim.recover_gpu(0).unwrap();
            count_of(&lab, 0, offered.len()).await;
            is_ready(&lab, &held, "True", "").await;
            unprepare(&lab.kubelet().await, &held).await.unwrap();
            lab.stop().await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_fell_off_the_bus_is_well_after_its_reset_also_behind_a_restart() {
    let plane = ControlPlane::simulated_with(true, true).await;
    let (mut lab, _, metrics) = started(plane, "2xH100-80GB", &[]).await;
    count_of(&lab, 0, ALL).await;
    // XID 79 is received.
    lab.sim.lose_gpu(0).unwrap();
    count_of(&lab, 0, 0).await;
    eventually("it is remembered", async || {
        lab.path("plugins").join(DRIVER).join("health.json").exists().then_some(())
    })
    .await;
    lab.stop().await;
    lab.start();
    let _kubelet = lab.kubelet().await;
    is_condition(&lab, metrics, 0, "lost").await;
    count_of(&lab, 1, ALL).await;
    lab.sim.recover_gpu(0).unwrap();
    count_of(&lab, 0, ALL).await;
    event(&lab, &lab.node_name, "GpuRecovered").await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_of_events_is_a_condition_of_its_own_and_withdraws_nothing() {
    let plane = ControlPlane::simulated_with(true, true).await;
    let (mut lab, kubelet, metrics) = started(plane, "1xH100-80GB", &[]).await;
    let mut stream = kubelet.watch_health().await.unwrap();
    health_update(&mut stream, LAST, Health::Healthy, "").await;
    lab.sim.inject(Fault::returning("nvmlEventSetWait_v2", Code::UNKNOWN)).unwrap();
    health_update(&mut stream, LAST, Health::Unknown, "nvmlEventSetWait_v2").await;
    assert!(event(&lab, &lab.node_name, "GpuUnmonitored").await.contains("events cannot be received"));
    assert_eq!(of_gpu(&lab, &lab.slices().await, 0).len(), ALL);
    let failed = [("cause", "failed")];
    assert!(1.0 <= scrape(metrics).await.value("dra_mig_gpu_event_gaps_total", &failed).unwrap());
    lab.sim.clear_faults().unwrap();
    health_update(&mut stream, LAST, Health::Healthy, "").await;
    event(&lab, &lab.node_name, "GpuRecovered").await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_is_too_old_for_events_serves_without_them() {
    let arguments = ["--rescan-interval", "1"];
    let mut lab = Lab::new(ControlPlane::simulated_with(true, true).await, "1xH100-80GB").await;
    lab.sim.hide_symbols(&["nvmlEventSetWait_v2"]).unwrap();
    lab = lab.with_args(&arguments);
    lab.start();
    let kubelet = lab.kubelet().await;
    let mut stream = kubelet.watch_health().await.unwrap();
    health_update(&mut stream, LAST, Health::Unknown, "FUNCTION_NOT_FOUND").await;
    let claim = prepared(&lab, &kubelet, "one", LAST).await;
    unprepare(&kubelet, &claim).await.unwrap();
    assert_eq!(count_events(&lab, &lab.node_name, &["GpuUnmonitored", "GpuUnhealthy"]).await, 0);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn listening_never_keeps_a_gpu_from_being_cut_or_made_whole() {
    let plane = ControlPlane::simulated_with(true, true).await;
    let (mut lab, kubelet, metrics) = started(plane, "1xH100-80GB", &["--mig-mode", "release"]).await;
    lab.sim.configure(|it| it.events_hold_gpus = true).unwrap();
    // The mode is switched, an instance made and destroyed, and the mode switched back.
    let claim = prepared(&lab, &kubelet, "one", LAST).await;
    unprepare(&kubelet, &claim).await.unwrap();
    assert_eq!(lab.left(), [""; 0]);
    eventually("MIG mode is off again", async || {
        (!lab.sim.snapshot().unwrap().gpus[0].mig_current).then_some(())
    })
    .await;
    // It was not listened to meanwhile, which is said.
    let aside = scrape(metrics).await.value("dra_mig_gpu_event_gaps_total", &[("cause", "paused")]);
    assert!(Some(1.0) <= aside, "{aside:?}");
    assert_eq!(count_events(&lab, &lab.node_name, &["GpuUnmonitored"]).await, 0);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unhealthy_gpus_devices_are_not_ready_until_it_is_well_again() {
    with_gates(true, true, async |plane| {
        let (mut lab, kubelet, _) = started(plane, "1xH100-80GB", &[]).await;
        let claim = prepared(&lab, &kubelet, "one", LAST).await;
        is_ready(&lab, &claim, "True", "1g.10gb at 6:1").await;
        lab.sim.post_xid(0, 48, None, None).unwrap();
        let unhealthy = is_ready(&lab, &claim, "False", "unhealthy: XID 48").await;
        assert_eq!((unhealthy.type_.as_str(), unhealthy.reason.as_str()), ("Ready", "Unhealthy"));
        // After a restart it is still so, and nothing is written for it.
        let version = async || claims(&lab).get(&claim.name).await.unwrap().metadata.resource_version;
        let before = version().await;
        lab.stop().await;
        let kubelet = start(&mut lab).await;
        let other = prepared(&lab, &kubelet, "other", BEFORE).await;
        is_ready(&lab, &other, "False", "XID 48").await;
        assert_eq!(claims(&lab).get(&claim.name).await.unwrap().metadata.resource_version, before);

        std::fs::remove_file(lab.path("plugins").join(DRIVER).join("health.json")).unwrap();
        let well = is_ready(&lab, &claim, "True", "").await;
        assert_eq!(well.reason, "Prepared");
        assert!(unhealthy.last_transition_time <= well.last_transition_time, "{well:?}");
        lab.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unhealthy_unmanaged_instance_is_not_offered_until_it_is_recreated() {
    for mode in ["partitionable", "layout"] {
        let plane = ControlPlane::simulated_with(mode == "partitionable", true).await;
        let (lab, metrics) = Lab::new(plane, "1xH100-80GB").await.with_metrics(&[]);
        let mut lab = lab.with_args(&[
            "--rescan-interval",
            "1",
            "--settle-time",
            "1",
            "--existing-instances",
            "adopt",
            "--mode",
            mode,
        ]);
        let planted = lab.sim.plant_instance(0, "2g.20gb", 2).unwrap();
        let name = format!("{}-adopted-{}", lab.gpu_name(0), planted.uuid.strip_prefix("MIG-").unwrap());
        let offered = async |lab: &Lab, is_wanted: bool| {
            lab.slices_when(|it| is_complete(it) && device_names(it).contains(&name.as_str()) == is_wanted)
                .await;
        };
        let kubelet = start(&mut lab).await;
        offered(&lab, true).await;
        let claim = prepared(&lab, &kubelet, "one", &name).await;
        lab.sim.post_xid(0, 94, Some(planted.gpu_instance), Some(0)).unwrap();
        event(&lab, &claim.name, "DeviceUnhealthy").await;
        unhealthy_instances(&lab, metrics, 1.0).await;
        offered(&lab, true).await;
        unprepare(&kubelet, &claim).await.unwrap();
        lab.delete_claim(&claim).await;
        offered(&lab, false).await;
        // A restart does not make it well.
        lab.stop().await;
        start(&mut lab).await;
        offered(&lab, false).await;
        unhealthy_instances(&lab, metrics, 1.0).await;

        lab.sim.on_gpu(0, |gpu| gpu.instances.clear()).unwrap();
        unhealthy_instances(&lab, metrics, 0.0).await;
        assert_eq!(lab.sim.plant_instance(0, "2g.20gb", 2).unwrap().uuid, planted.uuid);
        offered(&lab, true).await;
        // A free one is withdrawn at once.
        lab.sim.post_xid(0, 94, Some(planted.gpu_instance), Some(0)).unwrap();
        offered(&lab, false).await;
        let note = event_with(&lab, &lab.node_name, "UnmanagedInstance", "XID 94").await;
        assert!(note.contains(&name), "{note}");
        lab.stop().await;
    }
}
