//! Events of claims and of the node, and what health says when NVML hangs.

use std::sync::Arc;

use crate::common;
use crate::common::repository;
use common::{
    ControlPlane, DRIVER, Lab, each_control_plane, eventually, free_address, get, prepare, scrape, unprepare,
};
use dra_driver_mig::api::{EventReason, Subject};
use futures::StreamExt;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use kube_sim::kubelet::{Claim, HealthProbe};
use kube_sim::{ApiServer, Fault, Options};
use nvml_sim::{Action, Code};
use serde_json::json;

const FIRST_1G: &str = "gpu-0000-1a-00-mig-1g-10gb-6";
const SECOND_1G: &str = "gpu-0000-1a-00-mig-1g-10gb-5";

async fn lab(gpus: &str) -> Lab {
    Lab::new(ControlPlane::simulated(true).await, gpus).await
}

/// Events about an object of this name with this reason, oldest first.
async fn events(lab: &Lab, about: &str, reason: EventReason) -> Vec<Event> {
    let api: Api<Event> = Api::namespaced(lab.client.clone(), "default");
    let mut found: Vec<Event> = api.list(&ListParams::default()).await.unwrap().items;
    found.retain(|it| {
        it.regarding.as_ref().and_then(|it| it.name.as_deref()) == Some(about)
            && it.reason.as_deref() == Some(reason.as_str())
    });
    found.sort_by_key(|it| it.event_time.as_ref().map(|it| it.0));
    found
}

/// The same once there are so many.
async fn events_when(lab: &Lab, about: &str, reason: EventReason, count: usize) -> Vec<Event> {
    eventually(&format!("there are {count} events {}", reason.as_str()), async || {
        let found = events(lab, about, reason).await;
        (found.len() == count).then_some(found)
    })
    .await
}

fn note(event: &Event) -> &str {
    event.note.as_deref().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_unreadable_state_file_is_an_event_with_its_own_text() {
    let mut lab = lab("1xH100-80GB").await.with_args(&["--rescan-interval", "1"]);
    lab.start();
    lab.kubelet().await;
    for uid in ["11111111-0000", "22222222-0000"] {
        let file = lab.path("plugins").join(DRIVER).join("claims").join(format!("{uid}.jsonl"));
        std::fs::write(file, format!("rubbish about {uid}\n")).unwrap();
    }
    let found = events_when(&lab, &lab.node_name, EventReason::UnreadableState, 2).await;
    for uid in ["11111111-0000", "22222222-0000"] {
        assert!(found.iter().any(|it| note(it).contains(uid)), "{found:#?}");
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_cannot_be_prepared_is_one_event_that_is_counted() {
    each_control_plane(true, async |plane| {
        let mut lab = Lab::new(plane, "1xH100-80GB").await;
        lab.start();
        let kubelet = lab.kubelet().await;
        let claim = lab.claim_of("unknown", "gpu-0000-ff-00").await;
        for _ in 0..3 {
            prepare(&kubelet, &claim).await.unwrap_err();
        }
        let event = eventually("the event was counted", async || {
            let found = events(&lab, &claim.name, EventReason::PrepareImpossible).await;
            let count = found.first()?.series.as_ref()?.count;
            (count == 3).then(|| found[0].clone())
        })
        .await;
        assert!(note(&event).contains("gpu-0000-ff-00"), "{event:#?}");
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        let about = event.regarding.unwrap();
        assert_eq!(
            (about.kind.as_deref(), about.uid.as_deref()),
            (Some("ResourceClaim"), Some(claim.uid.as_str()))
        );
        assert_eq!(events(&lab, &claim.name, EventReason::PrepareImpossible).await.len(), 1);
        lab.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_place_an_unmanaged_instance_takes_is_an_event_that_says_what_to_do() {
    let mut lab = lab("2xH100-80GB").await;
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("occupied", SECOND_1G).await;
    let whole = lab.claim_of("whole", &lab.gpu_name(1)).await;
    lab.sim.plant_instance(0, "2g.20gb", 4).unwrap();
    lab.sim.plant_instance(1, "1g.10gb", 0).unwrap();
    for claim in [&claim, &whole] {
        prepare(&kubelet, claim).await.unwrap_err();
        let found = events_when(&lab, &claim.name, EventReason::DeviceOccupied, 1).await;
        assert!(note(&found[0]).contains("destroy"), "{found:#?}");
        assert!(note(&found[0]).contains("delete the pod and its claim"), "{found:#?}");
        assert_eq!(found[0].type_.as_deref(), Some("Warning"));
        assert_eq!(events(&lab, &claim.name, EventReason::PrepareImpossible).await, []);
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_waits_says_for_which_other_one() {
    let mut lab = lab("1xH100-80GB").await;
    lab.start();
    let kubelet = lab.kubelet().await;
    let holder = lab.claim_of("holder", "gpu-0000-1a-00-mig-2g-20gb-4").await;
    let late = lab.claim_of("late", SECOND_1G).await;
    prepare(&kubelet, &holder).await.unwrap();
    let waiting = prepare(&kubelet, &late);
    let freed = async {
        let found = events_when(&lab, &late.name, EventReason::PrepareWaits, 1).await;
        assert!(note(&found[0]).contains(&format!("default/{}", holder.name)), "{found:#?}");
        unprepare(&kubelet, &holder).await.unwrap();
    };
    let (prepared, ()) = tokio::join!(waiting, freed);
    prepared.unwrap();
    unprepare(&kubelet, &late).await.unwrap();
    assert_eq!(events(&lab, &late.name, EventReason::PrepareImpossible).await, []);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepare_that_takes_longer_than_its_call_goes_on_says_so_and_is_answered_at_once_when_asked_again()
{
    let mut lab = lab("1xH100-80GB").await.with_args(&["--call-budget", "1"]);
    lab.sim.set_latency("nvmlDeviceCreateGpuInstanceWithPlacement", 1_500.0).unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim("slow", &[("a", DRIVER, FIRST_1G), ("b", DRIVER, SECOND_1G)]).await;
    let consumer = json!({"resource": "pods", "name": "slow-pod", "uid": "pod-uid"});
    let reserved = Patch::Merge(json!({"status": {"reservedFor": [consumer]}}));
    let api: Api<ResourceClaim> = Api::namespaced(lab.client.clone(), "default");
    api.patch_status(&claim.name, &PatchParams::default(), &reserved).await.unwrap();

    let refused = prepare(&kubelet, &claim).await.unwrap_err();
    assert!(refused.contains(FIRST_1G) && refused.contains("the driver goes on"), "{refused}");
    for about in [claim.name.as_str(), "slow-pod"] {
        let found = events_when(&lab, about, EventReason::PrepareContinues, 1).await;
        assert!(note(&found[0]).contains(SECOND_1G), "{found:#?}");
        // Both devices are created, one after the other on their GPU, without a further call.
        events_when(&lab, about, EventReason::PrepareFinished, 1).await;
    }
    assert_eq!((lab.instances().len(), lab.files("cdi").len()), (2, 1));
    // A create would take longer than the call.
    assert_eq!(prepare(&kubelet, &claim).await.unwrap().len(), 2);
    unprepare(&kubelet, &claim).await.unwrap();
    assert_eq!(lab.left(), Vec::<String>::new());

    // What fails after the answer is taken back, and says so.
    let broken =
        nvml_sim::Fault::new("nvmlGpuInstanceCreateComputeInstance", Action::Return(Code::UNKNOWN.0));
    lab.sim.inject(broken).unwrap();
    prepare(&kubelet, &claim).await.unwrap_err();
    for about in [claim.name.as_str(), "slow-pod"] {
        let found = events_when(&lab, about, EventReason::PrepareUndone, 1).await;
        assert!(note(&found[0]).contains("nvmlGpuInstanceCreateComputeInstance"), "{found:#?}");
    }
    assert_eq!(lab.left(), Vec::<String>::new());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepare_that_fails_after_its_call_says_what_there_is_of_the_claim() {
    let mut lab = lab("1xH100-80GB").await.with_args(&["--call-budget", "1"]);
    lab.start();
    let kubelet = lab.kubelet().await;
    let fails = |call| nvml_sim::Fault::new(call, Action::Return(Code::UNKNOWN.0));

    let prepared = lab.claim_of("prepared", FIRST_1G).await;
    prepare(&kubelet, &prepared).await.unwrap();
    lab.sim.set_latency("nvmlDeviceGetGpuInstanceById", 1_500.0).unwrap();
    lab.sim.inject(fails("nvmlDeviceGetMinorNumber")).unwrap();
    let refused = prepare(&kubelet, &prepared).await.unwrap_err();
    assert!(refused.contains("the driver goes on"), "{refused}");
    let found = events_when(&lab, &prepared.name, EventReason::PrepareFailed, 1).await;
    let text = note(&found[0]);
    assert!(text.contains("nvmlDeviceGetMinorNumber") && text.contains("keeps its devices"), "{text}");
    assert_eq!(lab.instances(), [(0, "1g.10gb".to_owned(), 6)]);
    lab.sim.clear_faults().unwrap();
    lab.sim.set_latency("nvmlDeviceGetGpuInstanceById", 0.0).unwrap();

    let stuck = lab.claim_of("stuck", SECOND_1G).await;
    lab.sim.set_latency("nvmlDeviceCreateGpuInstanceWithPlacement", 1_500.0).unwrap();
    for call in ["nvmlGpuInstanceCreateComputeInstance", "nvmlGpuInstanceDestroy"] {
        lab.sim.inject(fails(call)).unwrap();
    }
    prepare(&kubelet, &stuck).await.unwrap_err();
    let found = events_when(&lab, &stuck.name, EventReason::PrepareFailed, 1).await;
    assert!(note(&found[0]).contains("cannot be destroyed yet"), "{found:#?}");
    assert_eq!(lab.instances().len(), 2);

    // The same claim with another device: what it has of the first has to go before.
    lab.sim.set_latency("nvmlGpuInstanceDestroy", 1_500.0).unwrap();
    lab.reallocate(&stuck, &["gpu-0000-1a-00-mig-1g-10gb-4"]).await;
    let refused = eventually("its undo has ended", async || {
        prepare(&kubelet, &stuck).await.err().filter(|it| !it.contains("has not ended"))
    });
    assert!(refused.await.contains("the driver goes on"));
    let found = events_when(&lab, &stuck.name, EventReason::PrepareFailed, 2).await;
    let text = note(&found[1]);
    assert!(text.contains("cannot be destroyed yet") && text.contains("earlier allocation"), "{text}");
    lab.sim.clear_faults().unwrap();
    lab.sim.set_latency("nvmlGpuInstanceDestroy", 0.0).unwrap();

    for claim in [&prepared, &stuck] {
        assert_eq!(events(&lab, &claim.name, EventReason::PrepareUndone).await, []);
        unprepare(&kubelet, claim).await.unwrap();
    }
    assert_eq!(lab.left(), Vec::<String>::new());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_is_reported_when_it_is_undone_or_finished() {
    for (call, reason) in [
        ("nvmlGpuInstanceCreateComputeInstance", EventReason::PrepareUndone),
        ("nvmlGpuInstanceDestroy", EventReason::UnprepareFinished),
    ] {
        let mut lab = lab("1xH100-80GB").await;
        let claim = lab.claim_of("one", FIRST_1G).await;
        let mut process = lab.spawn();
        let kubelet = lab.kubelet().await;
        let crash = nvml_sim::Fault {
            call: call.to_owned(),
            gpu: None,
            skip: 0,
            times: Some(1),
            action: Action::CrashBefore,
        };
        lab.sim.inject(crash).unwrap();
        let one: &[Claim] = std::slice::from_ref(&claim);
        if reason == EventReason::UnprepareFinished {
            prepare(&kubelet, &claim).await.unwrap();
            assert!(kubelet.unprepare(one).await.is_err(), "the process died");
        } else {
            assert!(kubelet.prepare(one).await.is_err(), "the process died");
        }
        process.wait().unwrap();
        lab.start();
        events_when(&lab, &claim.name, reason, 1).await;
        assert_eq!(lab.instances(), []);
        lab.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_failed_call_left_is_not_said_to_be_left_by_a_driver_that_ended() {
    let mut lab = lab("1xH100-80GB").await.with_args(&["--rescan-interval", "1", "--call-budget", "1"]);
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    prepare(&kubelet, &claim).await.unwrap();
    lab.sim.inject(nvml_sim::Fault::returning("nvmlGpuInstanceDestroy", Code::UNKNOWN)).unwrap();
    unprepare(&kubelet, &claim).await.unwrap_err();
    lab.sim.clear_faults().unwrap();
    // The kubelet does not ask again for so long that the driver takes the claim down.
    let journal = lab.path("plugins").join(DRIVER).join("claims").join(format!("{}.jsonl", claim.uid));
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(600);
    std::fs::File::options().append(true).open(journal).unwrap().set_modified(long_ago).unwrap();
    let found = events_when(&lab, &claim.name, EventReason::UnprepareFinished, 1).await;
    assert!(note(&found[0]).contains("Unpreparing the claim failed"), "{found:#?}");
    assert_eq!(lab.left(), Vec::<String>::new());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_offered_is_reported_and_when_it_is_again() {
    let mut lab = lab("1xH100-80GB").await.with_args(&["--rescan-interval", "1"]);
    lab.start();
    lab.kubelet().await;
    lab.sim.plant_instance(0, "1g.10gb", 0).unwrap();
    let found = events_when(&lab, &lab.node_name, EventReason::UnmanagedInstance, 1).await;
    assert!(note(&found[0]).contains("0:1"), "{found:#?}");

    let broken = nvml_sim::Fault {
        call: "nvmlDeviceGetMigMode".to_owned(),
        gpu: None,
        skip: 0,
        times: None,
        action: Action::Return(Code::UNKNOWN.0),
    };
    lab.sim.inject(broken).unwrap();
    let uuid = lab.sim.snapshot().unwrap().gpus[0].uuid.clone();
    let found = events_when(&lab, &lab.node_name, EventReason::GpuNotOffered, 1).await;
    assert!(
        note(&found[0]).contains(&uuid) && note(&found[0]).contains("nvmlDeviceGetMigMode"),
        "{found:#?}"
    );
    lab.sim.clear_faults().unwrap();
    let found = events_when(&lab, &lab.node_name, EventReason::GpuOffered, 1).await;
    assert!(note(&found[0]).contains(&uuid), "{found:#?}");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_cannot_be_written_hold_nothing_up() {
    let server = Arc::new(
        ApiServer::start(Options { partitionable_devices: true, ..Options::default() }).await.unwrap(),
    );
    server.inject(usize::MAX, |it| it.path.ends_with("/events"), Fault::Hang);
    let mut lab = Lab::new(ControlPlane::Simulated(server), "1xH100-80GB").await;
    lab.start();
    let kubelet = lab.kubelet().await;
    let unknown = lab.claim_of("unknown", "gpu-0000-ff-00").await;
    // More than may wait to be written.
    for _ in 0..100 {
        prepare(&kubelet, &unknown).await.unwrap_err();
    }
    let claim = lab.claim_of("one", FIRST_1G).await;
    prepare(&kubelet, &claim).await.unwrap();
    unprepare(&kubelet, &claim).await.unwrap();
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_hangs_is_reported_by_event_and_readiness_and_the_process_is_alive() {
    let address = free_address();
    let http = address.to_string();
    let mut lab = lab("2xH100-80GB").await.with_args(&["--http-address", &http, "--nvml-patience", "1"]);
    lab.start();
    let kubelet = lab.kubelet().await;
    let is_ready = async || {
        let answer = get(address, "/readyz").await?;
        answer.starts_with("HTTP/1.1 200").then_some(answer)
    };
    eventually("it is ready", is_ready).await;
    let (on_port, on_socket) = (
        HealthProbe::on_port(address).await.unwrap(),
        HealthProbe::on_socket(&lab.path("plugins").join(DRIVER).join("dra.sock")).await.unwrap(),
    );
    for probe in [&on_port, &on_socket] {
        for service in ["", "liveness", "readiness", "v1.DRAPlugin"] {
            assert_eq!(probe.check(service).await, Ok(true), "{service}");
        }
        assert!(probe.check("unknown").await.unwrap_err().to_string().contains("NotFound"));
    }
    let mut statuses = on_socket.watch("").await.unwrap();
    assert_eq!(statuses.next().await, Some(true));

    let slow = nvml_sim::Fault {
        call: "nvmlDeviceCreateGpuInstanceWithPlacement".to_owned(),
        gpu: None,
        skip: 0,
        times: Some(1),
        action: Action::Latency(5000.0),
    };
    lab.sim.inject(slow).unwrap();
    let claim = lab.claim_of("slow", FIRST_1G).await;
    let prepared = prepare(&kubelet, &claim);
    let uuid = lab.sim.snapshot().unwrap().gpus[0].uuid.clone();
    let watched = async {
        let answer = eventually("it is not ready", async || {
            let answer = get(address, "/readyz").await?;
            answer.starts_with("HTTP/1.1 503").then_some(answer)
        })
        .await;
        assert!(answer.contains(&format!("[-] nvml: a call does not come back: GPU {uuid}")), "{answer}");
        assert!(get(address, "/healthz").await.unwrap().starts_with("HTTP/1.1 200"));
        assert_eq!((on_port.check("").await, on_port.check("liveness").await), (Ok(false), Ok(true)));
        // The other GPU is served meanwhile.
        let other = lab.claim_of("other", "gpu-0000-1b-00-mig-1g-10gb-6").await;
        prepare(&kubelet, &other).await.unwrap();
        unprepare(&kubelet, &other).await.unwrap();
    };
    let (prepared, ()) = tokio::join!(prepared, watched);
    prepared.unwrap();
    assert_eq!((statuses.next().await, statuses.next().await), (Some(false), Some(true)));
    eventually("it is ready again", is_ready).await;
    let found = events_when(&lab, &lab.node_name, EventReason::NvmlHung, 1).await;
    assert!(note(&found[0]).contains(&uuid), "{found:#?}");
    events_when(&lab, &lab.node_name, EventReason::NvmlRecovered, 1).await;
    unprepare(&kubelet, &claim).await.unwrap();
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thread_that_listens_and_hangs_is_not_ready_and_claims_are_served_all_the_same() {
    let address = free_address();
    let http = address.to_string();
    let lab = lab("1xH100-80GB").await;
    let (mut lab, metrics) = lab.with_metrics(&["--http-address", &http, "--nvml-patience", "2"]);
    lab.start();
    let kubelet = lab.kubelet().await;
    let answers = async |status: &str| {
        eventually(&format!("it answers {status}"), async || {
            let answer = get(address, "/readyz").await?;
            answer.starts_with(&format!("HTTP/1.1 {status}")).then_some(answer)
        })
        .await
    };
    answers("200").await;
    // One wait that takes long; those before and after it are ordinary ones.
    let slow = nvml_sim::Fault {
        call: "nvmlEventSetWait_v2".to_owned(),
        gpu: None,
        skip: 0,
        times: Some(1),
        action: Action::Latency(8000.0),
    };
    lab.sim.inject(slow).unwrap();
    let answer = answers("503").await;
    assert!(answer.contains("[-] nvml: a call does not come back: events of GPUs for"), "{answer}");
    let running = scrape(metrics).await.value("dra_mig_nvml_call_running_seconds", &[("thread", "events")]);
    assert!(Some(1.0) < running, "{running:?}");
    let claim = lab.claim_of("one", FIRST_1G).await;
    prepare(&kubelet, &claim).await.unwrap();
    unprepare(&kubelet, &claim).await.unwrap();
    answers("200").await;
    let found = events_when(&lab, &lab.node_name, EventReason::NvmlHung, 1).await;
    assert!(note(&found[0]).contains("claims are served"), "{found:#?}");
    events_when(&lab, &lab.node_name, EventReason::NvmlRecovered, 1).await;
    lab.stop().await;
}

#[test]
fn the_documentation_has_a_row_for_each_reason_and_no_other() {
    let page = repository().join("docs/troubleshooting.md");
    let page = std::fs::read_to_string(page).unwrap();
    let section = page.split("\n## ").find(|it| it.starts_with("Events of the driver")).expect("the section");
    let rows: Vec<Vec<&str>> = section
        .lines()
        .filter(|it| it.starts_with("| `"))
        .map(|it| it.trim_matches('|').split('|').map(|it| it.trim().trim_matches('`')).collect())
        .collect();
    let documented: Vec<_> = rows.iter().map(|it| json!([it[0], it[1], it[2]])).collect();
    let made = EventReason::ALL.map(|it| {
        let about = match it.subject() {
            Subject::Node => "Node",
            Subject::Claim => "ResourceClaim",
        };
        json!([it.as_str(), about, if it.is_warning() { "Warning" } else { "Normal" }])
    });
    assert_eq!(documented, made);
    assert!(rows.iter().all(|it| it.len() == 4 && !it[3].is_empty()), "each says what to do");
}

#[test]
fn kubectl_mig_explain_looks_for_reasons_that_the_driver_has() {
    let known: Vec<&str> = EventReason::ALL.iter().map(|it| it.as_str()).collect();
    let unknown: Vec<&str> =
        kubectl_mig::explain::reported_reasons().filter(|it| !known.contains(it)).collect();
    assert_eq!(unknown, Vec::<&str>::new());
}
