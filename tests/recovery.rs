//! What becomes of claims, instances and files that no call asks for, on the simulated hardware.

use std::process::Child;

use crate::common;
use common::{ControlPlane, DRIVER, Lab, eventually, node_events, prepare, read_json, unprepare};
use dra_driver_mig::kubelet::SocketPaths;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use kube_sim::Fault as ApiFault;
use kube_sim::kubelet::{Claim, KubeletClient, Plugin};
use nvml_sim::{Action, Code, Fault, Process};

const FIRST_1G: &str = "gpu-0000-1a-00-mig-1g-10gb-6";
const SECOND_1G: &str = "gpu-0000-1a-00-mig-1g-10gb-5";
const CLAIMS: &str = "plugins/mig.dra-driver.dev/claims";

async fn lab(gpus: &str) -> Lab {
    Lab::new(ControlPlane::simulated(true).await, gpus).await
}

async fn delete(lab: &Lab, claim: &Claim) {
    let api: Api<ResourceClaim> = Api::namespaced(lab.client.clone(), "default");
    api.delete(&claim.name, &DeleteParams::default()).await.unwrap();
}

fn is_clean(lab: &Lab) -> bool {
    lab.left().is_empty()
}

async fn becomes_clean(lab: &Lab) {
    eventually("nothing is left of any claim", async || is_clean(lab).then_some(())).await;
}

/// The kubelet's connection to the pod with this UID.
async fn kubelet_of(lab: &Lab, uid: &str) -> Plugin {
    let directory = lab.path("plugins").join(DRIVER);
    let socket = SocketPaths::new(&directory, &lab.path("registry"), DRIVER, Some(uid)).registration;
    eventually("the kubelet reaches the pod", async || KubeletClient::register_socket(&socket).await.ok())
        .await
}

fn terminate(process: &Child) {
    let pid = rustix::process::Pid::from_child(process);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
}

/// What the driver was doing when it died.
#[derive(Clone, Copy, PartialEq)]
enum Half {
    Prepared,
    Unprepared,
}

/// The driver dies in the middle, before and after each of these calls of NVML, and no call comes again.
async fn is_tidied_up_at_the_next_start(half: Half, calls: [&str; 2]) {
    let mut lab = lab("1xH100-80GB").await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    let asked = std::slice::from_ref(&claim);
    for call in calls {
        for action in [Action::CrashBefore, Action::CrashAfter] {
            let mut process = lab.spawn();
            let kubelet = lab.kubelet().await;
            if half == Half::Unprepared {
                prepare(&kubelet, &claim).await.unwrap();
            }
            lab.sim.inject(Fault::new(call, action).times(1)).unwrap();
            let is_answered = match half {
                Half::Prepared => kubelet.prepare(asked).await.is_ok(),
                Half::Unprepared => kubelet.unprepare(asked).await.is_ok(),
            };
            assert!(!is_answered, "the process died");
            process.wait().unwrap();
            assert!(!is_clean(&lab));
            lab.start();
            becomes_clean(&lab).await;
            lab.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_prepared_claim_that_is_not_requested_again_is_undone_at_the_next_start() {
    let calls = ["nvmlDeviceCreateGpuInstanceWithPlacement", "nvmlGpuInstanceCreateComputeInstance"];
    is_tidied_up_at_the_next_start(Half::Prepared, calls).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_unprepared_claim_is_finished_at_the_next_start() {
    let calls = ["nvmlComputeInstanceDestroy", "nvmlGpuInstanceDestroy"];
    is_tidied_up_at_the_next_start(Half::Unprepared, calls).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_claim_whose_object_is_gone_or_another_one_is_taken_down() {
    let mut lab = lab("1xH100-80GB").await.with_args(&["--rescan-interval", "1"]);
    lab.start();
    let kubelet = lab.kubelet().await;
    let stays = lab.claim_of("stays", "gpu-0000-1a-00-mig-1g-10gb-4").await;
    let gone = lab.claim_of("gone", FIRST_1G).await;
    let again = lab.claim_of("again", "gpu-0000-1a-00-mig-1g-10gb-5").await;
    for claim in [&stays, &gone, &again] {
        prepare(&kubelet, claim).await.unwrap();
    }
    delete(&lab, &gone).await;
    delete(&lab, &again).await;
    let namesake = lab.claim_of("again", "gpu-0000-1a-00-mig-1g-10gb-5").await;
    assert_ne!(namesake.uid, again.uid);
    // While the driver runs, at one of its regular sweeps.
    eventually("only what has a claim is left", async || {
        (lab.instances().len() == 1 && lab.files("cdi").len() == 1).then_some(())
    })
    .await;
    assert_eq!(lab.instances(), [(0, "1g.10gb".to_owned(), 4)]);
    // While it does not run, at its start.
    lab.stop().await;
    delete(&lab, &stays).await;
    lab.start();
    becomes_clean(&lab).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_api_server_says_on_a_bad_day_takes_nothing_down() {
    let mut lab = lab("1xH100-80GB").await;
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    prepare(&kubelet, &claim).await.unwrap();
    let ControlPlane::Simulated(server) = lab.plane.clone() else { unreachable!("asked for") };
    // A 404 that is not about the claim, as of a proxy, is no proof that it is gone.
    for fault in [ApiFault::Status(404), ApiFault::Status(500), ApiFault::Status(403), ApiFault::Garbage] {
        lab.stop().await;
        let asked = server.requests().len();
        server.inject(usize::MAX, |it| it.path.contains("resourceclaims"), fault);
        lab.start();
        let is_claim = |it: &kube_sim::RequestInfo| it.path.contains("resourceclaims");
        eventually("the driver has asked", async || {
            server.requests()[asked..].iter().any(is_claim).then_some(())
        })
        .await;
        let kubelet = lab.kubelet().await;
        // What was promised needs no API server.
        prepare(&kubelet, &claim).await.unwrap();
        assert_eq!((lab.instances().len(), lab.files("cdi").len()), (1, 1), "{fault:?}");
        server.clear_faults();
    }
    lab.stop().await;
}

/// How often the API server was asked for this claim.
fn questions(lab: &Lab, claim: &Claim) -> usize {
    let ControlPlane::Simulated(server) = &lab.plane else { unreachable!("asked for") };
    let path = format!("/resourceclaims/{}", claim.name);
    server.requests().iter().filter(|it| it.method == "GET" && it.path.ends_with(&path)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_is_allocated_other_devices_keeps_those_it_was_answered_until_it_is_unprepared() {
    let mut lab = lab("1xH100-80GB").await.with_args(&["--rescan-interval", "1"]);
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    prepare(&kubelet, &claim).await.unwrap();
    lab.reallocate(&claim, &[SECOND_1G]).await;
    let refused = prepare(&kubelet, &claim).await.unwrap_err();
    assert!(
        refused.contains(FIRST_1G) && refused.contains(SECOND_1G) && refused.contains("delete the pods"),
        "{refused}"
    );
    // The driver asks after every tenth rescan whether its claims exist: so often that it would have acted.
    let asked = questions(&lab, &claim);
    eventually("the driver has asked again and again", async || {
        (asked + 3 <= questions(&lab, &claim)).then_some(())
    })
    .await;
    assert_eq!(lab.instances(), [(0, "1g.10gb".to_owned(), 6)], "its pod may be running");
    unprepare(&kubelet, &claim).await.unwrap();
    assert!(is_clean(&lab));
    assert_eq!(prepare(&kubelet, &claim).await.unwrap()[0].device, SECOND_1G);

    // Without an API server the record counts.
    lab.reallocate(&claim, &[FIRST_1G]).await;
    let ControlPlane::Simulated(server) = lab.plane.clone() else { unreachable!("asked for") };
    server.inject(usize::MAX, |it| it.path.contains("resourceclaims"), ApiFault::Status(503));
    assert_eq!(prepare(&kubelet, &claim).await.unwrap()[0].device, SECOND_1G);
    server.clear_faults();

    // Nothing survives a reboot, so there is nothing to keep.
    lab.stop().await;
    lab.sim.reboot().unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    assert_eq!(prepare(&kubelet, &claim).await.unwrap()[0].device, FIRST_1G);
    assert_eq!(lab.instances(), [(0, "1g.10gb".to_owned(), 6)]);
    unprepare(&kubelet, &claim).await.unwrap();
    assert!(is_clean(&lab));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_begun_for_an_earlier_allocation_gives_way_to_what_is_allocated_now() {
    let mut lab = lab("1xH100-80GB").await;
    // An unprepare that was refused, so that the claim is half taken down.
    lab.set_args(&["--call-budget", "2"]);
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    prepare(&kubelet, &claim).await.unwrap();
    lab.sim.inject(Fault::returning("nvmlGpuInstanceDestroy", Code::UNKNOWN)).unwrap();
    unprepare(&kubelet, &claim).await.unwrap_err();
    lab.reallocate(&claim, &[SECOND_1G]).await;
    let refused = prepare(&kubelet, &claim).await.unwrap_err();
    assert!(
        refused.contains("nvmlGpuInstanceDestroy") && refused.contains("earlier allocation"),
        "{refused}"
    );
    lab.sim.clear_faults().unwrap();
    assert_eq!(prepare(&kubelet, &claim).await.unwrap()[0].device, SECOND_1G);
    assert_eq!(lab.instances(), [(0, "1g.10gb".to_owned(), 5)]);
    unprepare(&kubelet, &claim).await.unwrap();
    assert!(is_clean(&lab));
    lab.stop().await;
}

/// Serial numbers tell an instance from its successor.
fn serials(lab: &Lab) -> Vec<u32> {
    lab.sim.snapshot().unwrap().gpus[0].gpu_instances.iter().map(|it| it.serial).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_an_administrator_creates_where_a_crashed_prepare_was_about_to_is_not_destroyed() {
    let mut lab = lab("1xH100-80GB").await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    let mut process = lab.spawn();
    let kubelet = lab.kubelet().await;
    let create = "nvmlDeviceCreateGpuInstanceWithPlacement";
    lab.sim.inject(Fault::new(create, Action::CrashBefore).times(1)).unwrap();
    assert!(kubelet.prepare(std::slice::from_ref(&claim)).await.is_err(), "the process died");
    process.wait().unwrap();
    lab.sim.plant_instance(0, "1g.10gb", 6).unwrap();
    let planted = serials(&lab);
    lab.start();
    let kubelet = lab.kubelet().await;
    eventually("the claim is undone", async || lab.recorded().is_empty().then_some(())).await;
    assert_eq!(serials(&lab), planted);
    let refused = prepare(&kubelet, &claim).await.unwrap_err();
    assert!(refused.contains("occupied"), "{refused}");
    unprepare(&kubelet, &claim).await.unwrap();
    assert_eq!(serials(&lab), planted);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_an_administrator_creates_during_the_create_is_not_destroyed() {
    let mut lab = lab("1xH100-80GB").await;
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    let create = "nvmlDeviceCreateGpuInstanceWithPlacement";
    lab.sim.inject(Fault::new(create, Action::Latency(2_000.0)).times(1)).unwrap();
    let (refused, ()) = tokio::join!(prepare(&kubelet, &claim), async {
        let begun = async || {
            let file = lab.path(CLAIMS).join(format!("{}.jsonl", claim.uid));
            std::fs::read_to_string(file).is_ok_and(|it| it.contains("creating")).then_some(())
        };
        eventually("the create has begun", begun).await;
        lab.sim.plant_instance(0, "1g.10gb", 6).unwrap();
    });
    assert!(refused.unwrap_err().contains("occupied"));
    assert_eq!((serials(&lab).len(), lab.recorded().len()), (1, 0));
    unprepare(&kubelet, &claim).await.unwrap();
    assert_eq!(serials(&lab).len(), 1);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_an_administrator_removed_and_created_again_is_not_destroyed() {
    let mut lab = lab("1xH100-80GB").await.with_args(&["--rescan-interval", "1"]);
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    let first = prepare(&kubelet, &claim).await.unwrap();
    lab.sim.on_gpu(0, |gpu| gpu.instances.clear()).unwrap();
    let journal = lab.path(CLAIMS).join(format!("{}.jsonl", claim.uid));
    let noticed = async || {
        let text = std::fs::read_to_string(&journal).ok()?;
        text.lines().last()?.contains("reserved").then_some(())
    };
    eventually("the driver has noticed", noticed).await;
    lab.sim.plant_instance(0, "1g.10gb", 6).unwrap();
    let planted = serials(&lab);
    let refused = prepare(&kubelet, &claim).await.unwrap_err();
    assert!(refused.contains("occupied"), "{refused}");
    unprepare(&kubelet, &claim).await.unwrap();
    assert_eq!(serials(&lab), planted);
    // Without it the claim gets its own again.
    lab.sim.on_gpu(0, |gpu| gpu.instances.clear()).unwrap();
    assert_eq!(prepare(&kubelet, &claim).await.unwrap(), first);
    unprepare(&kubelet, &claim).await.unwrap();
    assert!(is_clean(&lab));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_an_administrator_creates_behind_a_half_finished_unprepare_is_not_destroyed() {
    let mut lab = lab("1xH100-80GB").await.with_args(&["--rescan-interval", "3600", "--call-budget", "1"]);
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim("two", &[("gpu", DRIVER, FIRST_1G), ("gpu", DRIVER, SECOND_1G)]).await;
    prepare(&kubelet, &claim).await.unwrap();
    let gpu = lab.sim.snapshot().unwrap().gpus[0].clone();
    let used = gpu.gpu_instances.iter().find(|it| it.start == 5).unwrap();
    let (gpu_instance, compute_instance) = (Some(used.id), Some(used.compute_instances[0].id));
    lab.sim.plant_process(0, Process { pid: 77, gpu_instance, compute_instance, memory_mib: 1 }).unwrap();
    let refused = unprepare(&kubelet, &claim).await.unwrap_err();
    assert!(refused.contains("process 77"), "{refused}");
    assert_eq!(lab.instances(), [(0, "1g.10gb".to_owned(), 5)]);

    lab.sim.plant_instance(0, "1g.10gb", 6).unwrap();
    let planted: Vec<u32> = serials(&lab).into_iter().filter(|it| *it != used.serial).collect();
    lab.sim.remove_process(0, 77).unwrap();
    unprepare(&kubelet, &claim).await.unwrap();
    assert_eq!(serials(&lab), planted);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_gone_is_noticed_also_where_other_claims_have_the_gpu() {
    let mut lab = lab("1xH100-80GB").await.with_args(&["--rescan-interval", "1"]);
    lab.start();
    let kubelet = lab.kubelet().await;
    let mut claims = Vec::new();
    for start in [0, 1, 2, 5] {
        let claim =
            lab.claim_of(&format!("at-{start}"), &format!("gpu-0000-1a-00-mig-1g-10gb-{start}")).await;
        prepare(&kubelet, &claim).await.unwrap();
        claims.push((claim, start));
    }
    // The driver looks after claims in this order; those before the last one keep the GPU busy for a moment.
    claims.sort_by(|left, right| left.0.uid.cmp(&right.0.uid));
    let (gone, start) = claims.last().unwrap();
    lab.sim.set_latency("nvmlDeviceGetGpuInstanceById", 50.0).unwrap();
    lab.sim.on_gpu(0, |gpu| gpu.instances.retain(|it| it.start != *start)).unwrap();
    let journal = lab.path(CLAIMS).join(format!("{}.jsonl", gone.uid));
    let noticed = async || {
        let text = std::fs::read_to_string(&journal).ok()?;
        text.lines().last()?.contains("reserved").then_some(())
    };
    eventually("the driver has noticed", noticed).await;
    for (claim, _) in &claims {
        unprepare(&kubelet, claim).await.unwrap();
    }
    assert!(is_clean(&lab));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_cannot_be_taken_down_does_not_hold_up_the_others() {
    let mut lab = lab("1xH100-80GB").await;
    let mut claims = Vec::new();
    for start in [0, 1, 2, 3] {
        claims
            .push(lab.claim_of(&format!("at-{start}"), &format!("gpu-0000-1a-00-mig-1g-10gb-{start}")).await);
    }
    lab.start();
    let kubelet = lab.kubelet().await;
    for claim in &claims {
        prepare(&kubelet, claim).await.unwrap();
    }
    lab.stop().await;
    for claim in &claims {
        delete(&lab, claim).await;
    }
    // Another process works on two of them, first and third in the order of their UIDs, and does not come to an end.
    claims.sort_by(|left, right| left.uid.cmp(&right.uid));
    let file =
        |claim: &Claim| std::fs::File::open(lab.path(CLAIMS).join(format!("{}.jsonl", claim.uid))).unwrap();
    let held = [file(&claims[0]), file(&claims[2])];
    for it in &held {
        it.lock().unwrap();
    }
    lab.start();
    let left = async || {
        let recorded = lab.recorded();
        (!recorded.contains(&claims[1].uid) && !recorded.contains(&claims[3].uid)).then_some(())
    };
    eventually("the others are taken down", left).await;
    assert_eq!((lab.instances().len(), lab.recorded().len()), (2, 2));
    drop(held);
    lab.stop().await;
    lab.start();
    becomes_clean(&lab).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_finds_the_library_stale_has_it_opened_again_at_once() {
    // No regular look comes between.
    let mut lab = lab("1xH100-80GB").await.with_args(&["--rescan-interval", "3600"]);
    lab.sim.configure(|it| it.log_calls = true).unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    let opened = || lab.sim.calls().unwrap().iter().filter(|it| it.call.starts_with("nvmlInit")).count();
    let calls = ["nvmlDeviceCreateGpuInstanceWithPlacement", "nvmlGpuInstanceCreateComputeInstance"];
    let again = ["nvmlComputeInstanceDestroy", "nvmlGpuInstanceDestroy"];
    for code in [1, 9, 18] {
        for (call, is_prepare) in calls.iter().map(|it| (it, true)).chain(again.iter().map(|it| (it, false)))
        {
            for action in [Action::Return(code), Action::ReturnAfter(code)] {
                if !is_prepare {
                    prepare(&kubelet, &claim).await.unwrap();
                }
                let before = opened();
                lab.sim.inject(Fault::new(call, action).times(1)).unwrap();
                let failed = match is_prepare {
                    true => prepare(&kubelet, &claim).await.map(drop),
                    false => unprepare(&kubelet, &claim).await,
                };
                assert!(failed.unwrap_err().contains(call), "{action:?}");
                eventually("NVML is opened again", async || (before < opened()).then_some(())).await;
                eventually("the claim is served", async || prepare(&kubelet, &claim).await.ok()).await;
                unprepare(&kubelet, &claim).await.unwrap();
                assert!(is_clean(&lab), "{call} {action:?}");
            }
        }
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_of_a_gpu_that_is_skipped_for_the_moment_is_not_said_to_be_unknown() {
    let mut lab = lab("2xH100-80GB").await;
    lab.sim.inject(Fault::returning("nvmlDeviceGetMigMode", Code::UNKNOWN).on_gpu(0)).unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    let refused = prepare(&kubelet, &claim).await.unwrap_err();
    assert!(refused.contains("nvmlDeviceGetMigMode") && !refused.contains("delete"), "{refused}");
    lab.sim.clear_faults().unwrap();
    let unknown = lab.claim_of("unknown", "gpu-0000-ff-00").await;
    lab.stop().await;
    lab.start();
    let kubelet = lab.kubelet().await;
    prepare(&kubelet, &claim).await.unwrap();
    let refused = prepare(&kubelet, &unknown).await.unwrap_err();
    assert!(refused.contains("delete the pod and its claim"), "{refused}");
    unprepare(&kubelet, &claim).await.unwrap();
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cdi_file_and_its_claim_are_brought_together() {
    let mut lab = lab("1xH100-80GB").await.with_args(&["--rescan-interval", "1"]);
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    prepare(&kubelet, &claim).await.unwrap();
    let file = lab.path("cdi").join(&lab.files("cdi")[0]);
    let spec = read_json(&file);

    let stray = lab.path("cdi").join(format!("{DRIVER}-claim_0f3c2d1e-stray.json"));
    let other = lab.path("cdi").join("nvidia.com-gpu.json");
    std::fs::copy(&file, &stray).unwrap();
    std::fs::write(&other, "{}").unwrap();
    std::fs::remove_file(&file).unwrap();
    eventually("the file is there again and the stray one is not", async || {
        (file.exists() && !stray.exists()).then_some(())
    })
    .await;
    assert_eq!(read_json(&file), spec);
    assert!(other.exists(), "what is not ours stays");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_survives_the_loss_of_the_state_directory_and_its_instance_is_still_given_back() {
    let mut lab = lab("1xH100-80GB").await;
    let (asked, left) =
        (lab.claim_of("asked", FIRST_1G).await, lab.claim_of("left", "gpu-0000-1a-00-mig-1g-10gb-5").await);
    lab.start();
    let kubelet = lab.kubelet().await;
    let first = prepare(&kubelet, &asked).await.unwrap();
    prepare(&kubelet, &left).await.unwrap();
    lab.stop().await;
    std::fs::remove_dir_all(lab.path(CLAIMS)).unwrap();

    lab.start();
    let kubelet = lab.kubelet().await;
    assert_eq!(prepare(&kubelet, &asked).await.unwrap(), first, "the instance is known to be the claim's");
    assert_eq!(lab.instances().len(), 2);
    unprepare(&kubelet, &asked).await.unwrap();
    unprepare(&kubelet, &left).await.unwrap();
    assert!(is_clean(&lab));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_state_file_is_an_event_of_the_node_and_no_crash() {
    let mut lab = lab("1xH100-80GB").await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    lab.start();
    let kubelet = lab.kubelet().await;
    let first = prepare(&kubelet, &claim).await.unwrap();
    lab.stop().await;
    let file = lab.path(CLAIMS).join(format!("{}.jsonl", claim.uid));
    std::fs::write(&file, "{\"version\":2}\n").unwrap();

    lab.start();
    let kubelet = lab.kubelet().await;
    let events: Api<Event> = Api::namespaced(lab.client.clone(), "default");
    let event = eventually("there is an event", async || {
        let found = events.list(&ListParams::default()).await.unwrap().items;
        found.into_iter().find(|it| it.reason.as_deref() == Some("UnreadableState"))
    })
    .await;
    let note = event.note.unwrap();
    assert!(note.contains(&claim.uid) && note.contains("version 2"), "{note}");
    assert_eq!(event.regarding.unwrap().name.as_deref(), Some(lab.node_name.as_str()));
    assert_eq!(lab.instances().len(), 1, "its instance stays");
    assert_eq!(prepare(&kubelet, &claim).await.unwrap(), first);
    unprepare(&kubelet, &claim).await.unwrap();
    assert_eq!(lab.instances(), []);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_file_that_is_a_symbolic_link_is_set_aside_reported_and_never_followed() {
    let mut lab = lab("1xH100-80GB").await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    lab.start();
    let kubelet = lab.kubelet().await;
    let first = prepare(&kubelet, &claim).await.unwrap();
    let (file, elsewhere) = (lab.path(CLAIMS).join(format!("{}.jsonl", claim.uid)), lab.path("elsewhere"));
    // What it leads to says that the claim is being taken down.
    let content = std::fs::read_to_string(&file).unwrap().replace("\"prepared\"", "\"unpreparing\"");
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&elsewhere, &content).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
    lab.stop().await;
    lab.start();
    let kubelet = lab.kubelet().await;
    let notes = eventually("it is reported", async || {
        let notes = node_events(&lab, "UnreadableState").await;
        (!notes.is_empty()).then_some(notes)
    })
    .await;
    assert!(notes[0].contains(&claim.uid) && notes[0].contains("symbolic link"), "{notes:?}");
    assert_eq!(lab.instances().len(), 1, "its instance stays");
    assert_eq!(prepare(&kubelet, &claim).await.unwrap(), first);
    unprepare(&kubelet, &claim).await.unwrap();
    assert_eq!((lab.instances(), lab.recorded().len()), (Vec::new(), 0));
    assert_eq!(std::fs::read_to_string(&elsewhere).unwrap(), content, "neither written nor removed");
    assert_eq!(std::fs::read_link(file.with_extension("unreadable")).unwrap(), elsewhere);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reboot_without_an_api_server_a_claim_gets_the_same_devices() {
    let mut lab = lab("2xH100-80GB").await;
    let devices = [("a", DRIVER, FIRST_1G), ("b", DRIVER, "gpu-0000-1b-00-mig-3g-40gb-0")];
    let claim = lab.claim("one", &devices).await;
    lab.start();
    let kubelet = lab.kubelet().await;
    let first = prepare(&kubelet, &claim).await.unwrap();
    let instances = lab.instances();
    lab.stop().await;
    lab.sim.reboot().unwrap();
    std::fs::remove_dir_all(lab.path("cdi")).unwrap();

    let ControlPlane::Simulated(server) = lab.plane.clone() else { unreachable!("asked for") };
    server.inject(usize::MAX, |_| true, ApiFault::Status(503));
    lab.start();
    let kubelet = lab.kubelet().await;
    assert_eq!(prepare(&kubelet, &claim).await.unwrap(), first);
    assert_eq!((lab.instances(), lab.files("cdi").len()), (instances, 1));
    unprepare(&kubelet, &claim).await.unwrap();
    assert!(is_clean(&lab));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mig_mode_is_released_behind_the_last_instance_only_where_that_is_asked_for() {
    for (policy, goes_off) in [("keep", false), ("release", true)] {
        let mut lab = lab("1xH100-80GB").await.with_args(&["--mig-mode", policy]);
        lab.start();
        let kubelet = lab.kubelet().await;
        let first = lab.claim_of("first", FIRST_1G).await;
        let second = lab.claim_of("second", "gpu-0000-1a-00-mig-1g-10gb-5").await;
        prepare(&kubelet, &first).await.unwrap();
        prepare(&kubelet, &second).await.unwrap();
        let is_on = || lab.sim.snapshot().unwrap().gpus[0].mig_current;
        unprepare(&kubelet, &first).await.unwrap();
        assert!(is_on(), "an instance lives");
        lab.sim.plant_instance(0, "1g.10gb", 0).unwrap();
        unprepare(&kubelet, &second).await.unwrap();
        assert!(is_on(), "an unmanaged instance lives");
        lab.sim.on_gpu(0, |gpu| gpu.instances.clear()).unwrap();
        prepare(&kubelet, &first).await.unwrap();
        unprepare(&kubelet, &first).await.unwrap();
        assert_eq!(is_on(), !goes_off, "{policy}");
        lab.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_in_use_is_given_up_with_the_name_of_its_holder_and_taken_up_where_it_was_left() {
    let mut lab = lab("1xH100-80GB").await.with_args(&["--call-budget", "1"]);
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    prepare(&kubelet, &claim).await.unwrap();
    let id = lab.sim.snapshot().unwrap().gpus[0].gpu_instances[0].id;
    let process = Process { pid: 4242, gpu_instance: Some(id), compute_instance: Some(0), memory_mib: 100 };
    lab.sim.plant_process(0, process).unwrap();
    let refused = unprepare(&kubelet, &claim).await.unwrap_err();
    assert!(refused.contains("held by process 4242") && refused.contains(FIRST_1G), "{refused}");

    // The process ends, but a monitoring agent still has the GPU instance.
    lab.sim.remove_process(0, 4242).unwrap();
    lab.sim.inject(Fault::returning("nvmlGpuInstanceDestroy", Code::IN_USE)).unwrap();
    let refused = unprepare(&kubelet, &claim).await.unwrap_err();
    assert!(refused.contains("DCGM") && refused.contains("compute instance is gone already"), "{refused}");
    lab.sim.clear_faults().unwrap();
    unprepare(&kubelet, &claim).await.unwrap();
    assert!(is_clean(&lab));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_on_a_placement_that_stays_held_fails_with_the_name_of_the_other_claim() {
    let mut lab = lab("1xH100-80GB").await.with_args(&["--call-budget", "1"]);
    lab.start();
    let kubelet = lab.kubelet().await;
    let holder = lab.claim_of("holder", "gpu-0000-1a-00-mig-2g-20gb-4").await;
    let late = lab.claim_of("late", "gpu-0000-1a-00-mig-1g-10gb-5").await;
    prepare(&kubelet, &holder).await.unwrap();
    let refused = prepare(&kubelet, &late).await.unwrap_err();
    assert!(refused.contains(&holder.name), "{refused}");
    unprepare(&kubelet, &late).await.unwrap();
    assert_eq!(lab.instances(), [(0, "2g.20gb".to_owned(), 4)], "the running tenant keeps its instance");
    unprepare(&kubelet, &holder).await.unwrap();
    assert!(is_clean(&lab));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_for_one_claim_come_one_after_the_other() {
    let mut lab = lab("1xH100-80GB").await;
    lab.sim.set_latency("nvmlDeviceCreateGpuInstanceWithPlacement", 200.0).unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    let (first, again, once_more) =
        tokio::join!(prepare(&kubelet, &claim), prepare(&kubelet, &claim), prepare(&kubelet, &claim));
    let first = first.unwrap();
    assert_eq!((again.unwrap(), once_more.unwrap()), (first.clone(), first));
    assert_eq!(lab.instances().len(), 1);
    unprepare(&kubelet, &claim).await.unwrap();

    // The kubelet gave up on a prepare that still runs, and unprepares.
    let running = tokio::spawn({
        let (kubelet, claim) = (lab.kubelet().await, claim.clone());
        async move { prepare(&kubelet, &claim).await }
    });
    let journal = lab.path(CLAIMS).join(format!("{}.jsonl", claim.uid));
    eventually("the prepare has begun", async || journal.exists().then_some(())).await;
    unprepare(&kubelet, &claim).await.unwrap();
    running.await.unwrap().unwrap();
    assert!(is_clean(&lab));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_share_the_claims_of_a_node() {
    let lab = lab("1xH100-80GB").await;
    lab.sim.set_latency("nvmlDeviceCreateGpuInstanceWithPlacement", 100.0).unwrap();
    let [old_pod, new_pod] = ["0a0a0a0a-1111-4222-8333-444444444444", "0b0b0b0b-1111-4222-8333-444444444444"];
    let (mut old, _) = lab.spawn_pod(old_pod);
    let to_old = kubelet_of(&lab, old_pod).await;
    let before = lab.claim_of("before", "gpu-0000-1a-00-mig-1g-10gb-5").await;
    prepare(&to_old, &before).await.unwrap();
    // As in a rolling update: each has sockets of its own, and both work on the same claims.
    let (mut new, _) = lab.spawn_pod(new_pod);
    let to_new = kubelet_of(&lab, new_pod).await;
    let claim = lab.claim_of("both", FIRST_1G).await;
    let (one, two) = tokio::join!(prepare(&to_old, &claim), prepare(&to_new, &claim));
    assert_eq!(one.unwrap(), two.unwrap());
    assert_eq!(lab.instances().len(), 2);
    terminate(&old);
    assert!(old.wait().unwrap().success());
    unprepare(&to_new, &before).await.unwrap();
    unprepare(&to_new, &claim).await.unwrap();
    assert!(is_clean(&lab));
    terminate(&new);
    assert!(new.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn mig_mode_that_another_process_needs_is_not_released_beneath_it() {
    let lab = lab("1xH100-80GB").await.with_args(&["--mig-mode", "release"]);
    let pods = ["0a0a0a0a-1111-4222-8333-444444444444", "0b0b0b0b-1111-4222-8333-444444444444"];
    let mut processes = pods.map(|it| lab.spawn_pod(it).0);
    let (old, new) = (kubelet_of(&lab, pods[0]).await, kubelet_of(&lab, pods[1]).await);
    let is_on = || lab.sim.snapshot().unwrap().gpus[0].mig_current;
    // The new pod is creating an instance when the old one destroys the last; then the old one is switching the mode off
    // when the new one wants to create an instance.
    let slow = ["nvmlDeviceCreateGpuInstanceWithPlacement", "nvmlDeviceSetMigMode"];
    for (index, call) in slow.into_iter().enumerate() {
        let first = lab.claim_of(&format!("first-{index}"), "gpu-0000-1a-00-mig-1g-10gb-5").await;
        prepare(&old, &first).await.unwrap();
        lab.sim.set_latency(call, 1500.0).unwrap();
        let second = lab.claim_of(&format!("second-{index}"), FIRST_1G).await;
        let journal = lab.path(CLAIMS).join(format!("{}.jsonl", second.uid));
        let is_creating = || std::fs::read_to_string(&journal).is_ok_and(|it| it.contains("creating"));
        let (prepared, unprepared) = tokio::join!(prepare(&new, &second), async {
            if call == slow[0] {
                eventually("it is creating an instance", async || is_creating().then_some(())).await;
            }
            unprepare(&old, &first).await
        });
        unprepared.unwrap();
        prepared.unwrap();
        assert!(is_on(), "{call}");
        assert_eq!(lab.instances(), [(0, "1g.10gb".to_owned(), 6)], "{call}");
        lab.sim.set_latency(call, 0.0).unwrap();
        unprepare(&new, &second).await.unwrap();
        assert!(!is_on(), "{call}: the last one releases it");
    }
    for process in &mut processes {
        terminate(process);
        assert!(process.wait().unwrap().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_sigterm_finishes_what_runs_and_closes_nvml_last() {
    let lab = lab("2xH100-80GB").await;
    lab.sim.configure(|it| it.log_calls = true).unwrap();
    lab.sim.set_latency("nvmlDeviceCreateGpuInstanceWithPlacement", 500.0).unwrap();
    let mut process = lab.spawn();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    let (answer, ()) = tokio::join!(prepare(&kubelet, &claim), async {
        let journal = lab.path(CLAIMS).join(format!("{}.jsonl", claim.uid));
        eventually("the prepare has begun", async || journal.exists().then_some(())).await;
        terminate(&process);
    });
    answer.unwrap();
    assert!(process.wait().unwrap().success());
    let calls = lab.sim.calls().unwrap();
    assert_eq!(calls.last().unwrap().call, "nvmlShutdown");
    assert_eq!(calls.iter().filter(|it| it.call == "nvmlShutdown").count(), 1);
    assert_eq!((lab.instances().len(), lab.files("cdi").len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_ends_the_driver_at_once_and_leaves_a_record_of_what_ran() {
    let mut lab = lab("1xH100-80GB").await;
    lab.sim.set_latency("nvmlGpuInstanceCreateComputeInstance", 60_000.0).unwrap();
    let mut process = lab.spawn();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    let (answer, ()) = tokio::join!(kubelet.prepare(std::slice::from_ref(&claim)), async {
        eventually("it hangs in the compute instance", async || (lab.instances().len() == 1).then_some(()))
            .await;
        terminate(&process);
        let sockets = async || lab.files("registry").is_empty().then_some(());
        eventually("the first signal is being obeyed", sockets).await;
        terminate(&process);
    });
    assert!(answer.is_err());
    assert_eq!(process.wait().unwrap().code(), Some(1));
    lab.sim.set_latency("nvmlGpuInstanceCreateComputeInstance", 0.0).unwrap();
    lab.start();
    becomes_clean(&lab).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_was_replaced_underneath_is_opened_again() {
    let mut lab = lab("1xH100-80GB").await.with_args(&["--rescan-interval", "1"]);
    lab.sim.configure(|it| it.log_calls = true).unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    let first = prepare(&kubelet, &claim).await.unwrap();
    let mismatch = Action::Return(Code(18).0);
    lab.sim.inject(Fault::new("nvmlDeviceGetMigMode", mismatch).times(1)).unwrap();
    let opened = || {
        let calls = lab.sim.calls().unwrap();
        calls.iter().filter(|it| it.call.starts_with("nvmlInit")).count()
    };
    eventually("NVML is opened a second time", async || (opened() == 2).then_some(())).await;
    eventually("the claim is served as before", async || {
        (prepare(&kubelet, &claim).await.as_ref() == Ok(&first)).then_some(())
    })
    .await;
    unprepare(&kubelet, &claim).await.unwrap();
    assert!(is_clean(&lab));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ampere_gpu_that_needs_a_reset_offers_what_it_can_and_says_what_to_do() {
    let mut lab = lab("1xA100-40GB").await;
    lab.start();
    let kubelet = lab.kubelet().await;
    let slices = lab.slices_when(common::is_complete).await;
    let names = common::device_names(&slices);
    assert_eq!(names.len(), 1, "MIG mode is off, so only the whole GPU is available: {names:?}");
    let gpu = names[0].to_owned();
    let claim = lab.claim_of("cut", &format!("{gpu}-mig-1g-5gb-6")).await;
    let refused = prepare(&kubelet, &claim).await.unwrap_err();
    assert!(refused.contains("needs a reset") && refused.contains("nvidia-smi -i GPU -mig 1"), "{refused}");
    assert!(is_clean(&lab));
    let whole = lab.claim_of("whole", &gpu).await;
    prepare(&kubelet, &whole).await.unwrap();
    unprepare(&kubelet, &whole).await.unwrap();
    assert!(is_clean(&lab));
    lab.stop().await;
}
