//! What the host lacks is reported, and what cannot be prepared is not offered, until the host is repaired.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use crate::common;
use common::{
    ControlPlane, DRIVER, Lab, device_names, eventually, free_address, get, is_complete, prepare, read_json,
    scrape, try_prepare, unprepare,
};
use dra_driver_mig::api::EventReason;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::resource::v1::ResourceSlice;
use kube::Api;
use kube::api::ListParams;
use nvml_sim::{Code, Fault};

const FIRST_1G: &str = "gpu-0000-1a-00-mig-1g-10gb-6";
const SECOND_1G: &str = "gpu-0000-1a-00-mig-1g-10gb-5";
const LIBRARIES: &str = "host/usr/lib/x86_64-linux-gnu";

/// Answers as nvidia-cdi-hook 1.17.9 does.
const HOOK_1_17_9: &str = "#!/bin/sh
case \"$1\" in
create-symlinks | enable-cuda-compat | update-ldcache | chmod) exit 0 ;;
*) echo \"No help topic for '$1'\" >&2; exit 3 ;;
esac
";

/// A node that looks at its host each second, and the addresses of its health and of its metrics.
async fn lab(gpus: &str) -> (Lab, SocketAddr, SocketAddr) {
    let health = free_address();
    let extra = ["--http-address", &health.to_string(), "--rescan-interval", "1"];
    let (lab, metrics) = Lab::new(ControlPlane::simulated(true).await, gpus).await.with_metrics(&extra);
    (lab, health, metrics)
}

/// The answer of /readyz once it says this.
async fn readyz_when(health: SocketAddr, says: &str) -> String {
    eventually(&format!("/readyz says {says}"), async || {
        let answer = get(health, "/readyz").await?;
        answer.contains(says).then_some(answer)
    })
    .await
}

/// The note of an event of the node with this reason and these words.
async fn event_when(lab: &Lab, reason: EventReason, words: &str) -> String {
    let api: Api<Event> = Api::namespaced(lab.client.clone(), "default");
    eventually(&format!("there is an event {} with {words}", reason.as_str()), async || {
        let found = api.list(&ListParams::default()).await.unwrap().items;
        let of_node = found.into_iter().filter(|it| {
            it.regarding.as_ref().and_then(|it| it.name.as_deref()) == Some(&lab.node_name)
                && it.reason.as_deref() == Some(reason.as_str())
        });
        of_node.filter_map(|it| it.note).find(|it| it.contains(words))
    })
    .await
}

/// Waits until exactly so many devices are published.
async fn offers(lab: &Lab, count: usize) {
    lab.slices_when(|it| is_complete(it) && device_names(it).len() == count).await;
}

/// The command lines of the hooks in the only CDI file, program first.
fn hooks(lab: &Lab) -> Vec<Vec<String>> {
    let spec = read_json(&lab.path("cdi").join(&lab.files("cdi")[0]));
    let hooks = spec["containerEdits"]["hooks"].as_array().unwrap().clone();
    let text = |it: &serde_json::Value| it.as_str().unwrap().to_owned();
    let line = |it: &serde_json::Value| {
        let args = it["args"].as_array().unwrap().iter().skip(1).map(text);
        [text(&it["path"])].into_iter().chain(args).collect()
    };
    hooks.iter().map(line).collect()
}

fn exit_code(host: &Path, hook: &[String]) -> Option<i32> {
    let program = host.join(hook[0].trim_start_matches('/'));
    Command::new("sh").arg(program).args(&hook[1..]).output().unwrap().status.code()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cdi_file_names_only_hooks_that_the_hosts_program_has() {
    const NEWER: &str = "disable-device-node-modification";
    let (mut lab, health, metrics) = lab("1xH100-80GB").await;
    let host = lab.path("host");
    let program = host.join("usr/bin/nvidia-cdi-hook");
    let newer = fs::read(&program).unwrap();
    fs::write(&program, HOOK_1_17_9).unwrap();
    assert_eq!(exit_code(&host, &["/usr/bin/nvidia-cdi-hook".to_owned(), NEWER.to_owned()]), Some(3));
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    prepare(&kubelet, &claim).await.unwrap();
    let found = hooks(&lab);
    let names: Vec<&str> = found.iter().map(|it| it[1].as_str()).collect();
    assert_eq!(names, ["create-symlinks", "enable-cuda-compat", "update-ldcache"]);
    assert!(found.iter().all(|it| exit_code(&host, it) == Some(0)), "{found:?}");

    let what = format!("no subcommand {NEWER}");
    // It withholds nothing and does not make the node unready.
    offers(&lab, 26).await;
    readyz_when(health, "HTTP/1.1 200").await;
    let answer = readyz_when(health, &what).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("1.18.0"), "{answer}");
    let note = event_when(&lab, EventReason::HostDegraded, &what).await;
    assert!(note.contains("1.18.0"), "{note}");
    let degraded = scrape(metrics).await.value("dra_mig_host_conditions", &[("effect", "degraded")]);
    assert_eq!(degraded, Some(1.0));

    // A package upgrade: a new file in the place of the old one.
    let upgraded = host.join("usr/bin/upgraded");
    fs::copy(&program, &upgraded).unwrap();
    fs::write(&upgraded, newer).unwrap();
    fs::rename(&upgraded, &program).unwrap();
    unprepare(&kubelet, &claim).await.unwrap();
    prepare(&kubelet, &claim).await.unwrap();
    assert_eq!(hooks(&lab).last().unwrap()[1], NEWER);
    event_when(&lab, EventReason::HostRecovered, NEWER).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_hook_is_in_no_cdi_file() {
    let lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await;
    let mut lab = lab.with_args(&["--disable-hooks", "enable-cuda-compat,update-ldcache"]);
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    prepare(&kubelet, &claim).await.unwrap();
    let found = hooks(&lab);
    let names: Vec<&str> = found.iter().map(|it| it[1].as_str()).collect();
    assert_eq!(names, ["create-symlinks", "disable-device-node-modification"]);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_cuda_offers_nothing_until_the_files_are_there() {
    let (mut lab, health, metrics) = lab("1xH100-80GB,1xL4").await;
    let cuda = lab.files(LIBRARIES).into_iter().find(|it| it.starts_with("libcuda.so.5")).unwrap();
    let (there, away) = (lab.path(LIBRARIES).join(&cuda), lab.path("away"));
    fs::rename(&there, &away).unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    offers(&lab, 0).await;
    let answer = readyz_when(health, &cuda).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("[-] host: "), "{answer}");
    assert!(answer.contains("no claim can be prepared: ") && answer.contains("--driver-root"), "{answer}");
    event_when(&lab, EventReason::HostNotReady, &cuda).await;
    let seen = scrape(metrics).await;
    assert_eq!(seen.value("dra_mig_host_conditions", &[("effect", "no_claims")]), Some(1.0));
    let withheld = [("gpu", "gpu-0000-1a-00"), ("reason", "host_not_ready")];
    assert_eq!(seen.value("dra_mig_placements_withheld", &withheld), Some(26.0));

    fs::rename(&away, &there).unwrap();
    offers(&lab, 27).await;
    event_when(&lab, EventReason::HostRecovered, &cuda).await;
    readyz_when(health, "[+] host: claims can be prepared\n").await;

    // What claims hold stays published, whatever becomes of the host.
    let claim = lab.claim_of("one", FIRST_1G).await;
    prepare(&kubelet, &claim).await.unwrap();
    fs::rename(&there, &away).unwrap();
    lab.slices_when(|it| is_complete(it) && device_names(it) == [FIRST_1G]).await;
    let refused = try_prepare(&kubelet, &claim).await.unwrap_err().to_string();
    assert!(refused.contains(&cuda), "{refused}");
    fs::rename(&away, &there).unwrap();
    offers(&lab, 27).await;
    prepare(&kubelet, &claim).await.unwrap();
    unprepare(&kubelet, &claim).await.unwrap();
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_common_edits_file_that_cannot_be_used_is_reported_and_nothing_is_offered() {
    let health = free_address();
    let lab = Lab::new(ControlPlane::simulated(true).await, "1xL4").await;
    let file = lab.path("common.json");
    let (http, path) = (health.to_string(), file.display().to_string());
    let mut lab =
        lab.with_args(&["--http-address", &http, "--common-edits", &path, "--rescan-interval", "1"]);
    fs::write(&file, "{}").unwrap();
    lab.start();
    offers(&lab, 0).await;
    let answer = readyz_when(health, "common.json").await;
    assert!(answer.contains("it has no containerEdits outside of its devices"), "{answer}");
    event_when(&lab, EventReason::HostNotReady, "common.json").await;
    fs::write(&file, r#"{"env": ["A=b"]}"#).unwrap();
    offers(&lab, 1).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nvml_refuses_to_create_instances_only_whole_gpus_are_offered_until_it_permits() {
    let (mut lab, health, _) = lab("1xH100-80GB,1xL4").await;
    let refused = Fault::returning("nvmlDeviceSetMigMode", Code::NO_PERMISSION);
    lab.sim.inject(refused).unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    offers(&lab, 27).await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    let refused = try_prepare(&kubelet, &claim).await.unwrap_err().to_string();
    assert!(refused.contains("NO_PERMISSION"), "{refused}");
    let answer = readyz_when(health, "NO_PERMISSION").await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("no MIG instance can be created"),
        "{answer}"
    );
    event_when(&lab, EventReason::HostNotReady, "NO_PERMISSION").await;
    // MIG mode is off, so that the whole GPU needs no right; the claim keeps its device.
    let (h100, l4) = (lab.gpu_name(0), lab.gpu_name(1));
    let expected = BTreeSet::from([h100.as_str(), FIRST_1G, l4.as_str()]);
    let is_expected = |it: &[ResourceSlice]| BTreeSet::from_iter(device_names(it)) == expected;
    lab.slices_when(|it| is_complete(it) && is_expected(it)).await;

    lab.sim.clear_faults().unwrap();
    // The kubelet asks again for the claim.
    prepare(&kubelet, &claim).await.unwrap();
    offers(&lab, 27).await;
    readyz_when(health, "[+] host: claims can be prepared\n").await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nvml_refuses_to_create_instances_on_one_gpu_the_others_are_offered() {
    let (mut lab, health, _) = lab("2xH100-80GB").await;
    lab.sim.inject(Fault::returning("nvmlDeviceSetMigMode", Code::NO_PERMISSION).on_gpu(0)).unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    offers(&lab, 52).await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    try_prepare(&kubelet, &claim).await.unwrap_err();
    let uuid = lab.sim.snapshot().unwrap().gpus[0].uuid.clone();
    let answer =
        readyz_when(health, &format!("GPU {uuid}: nvmlDeviceSetMigMode failed with NO_PERMISSION")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // What is left of the first: the whole GPU, and what the claim keeps.
    offers(&lab, 28).await;
    lab.sim.clear_faults().unwrap();
    prepare(&kubelet, &claim).await.unwrap();
    offers(&lab, 52).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_library_named_by_its_path_brings_the_libraries_for_containers_with_it() {
    let lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await;
    let elsewhere = lab.path("host/opt/nvidia");
    fs::create_dir_all(&elsewhere).unwrap();
    fs::rename(lab.path(LIBRARIES), elsewhere.join("lib")).unwrap();
    let library = elsewhere.join("lib/libnvidia-ml.so.1").display().to_string();
    let mut lab = lab.with_args(&["--driver-library", &library]);
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("one", SECOND_1G).await;
    prepare(&kubelet, &claim).await.unwrap();
    let spec = read_json(&lab.path("cdi").join(format!("{DRIVER}-claim_{}.json", claim.uid)));
    let mounts = spec["containerEdits"]["mounts"].as_array().unwrap();
    let paths: Vec<&str> = mounts.iter().filter_map(|it| it["containerPath"].as_str()).collect();
    assert!(paths.iter().any(|it| it.starts_with("/opt/nvidia/lib/libcuda.so.")), "{paths:?}");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_of_others_are_offered_where_none_can_be_made_but_not_without_device_numbers() {
    let (mut lab, health, _) = lab("1xH100-80GB,1xL4").await;
    let http = health.to_string();
    lab.set_args(&["--http-address", &http, "--rescan-interval", "1", "--existing-instances", "adopt"]);
    lab.sim.plant_instance(0, "1g.10gb", 0).unwrap();
    let refused = Fault::returning("nvmlDeviceCreateGpuInstanceWithPlacement", Code::NO_PERMISSION);
    lab.sim.inject(refused).unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    // Gone with slice 0 are 7g, 4g, 3g, 2g, both 1g, and the whole GPU; the adopted instance and the L4 are there.
    let is_all = |it: &[ResourceSlice]| is_complete(it) && device_names(it).len() > 15;
    lab.slices_when(is_all).await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    try_prepare(&kubelet, &claim).await.unwrap_err();
    // The claim's own device stays. MIG mode is on, and switching it off would need the right, too.
    offers(&lab, 3).await;
    assert!(device_names(&lab.slices().await).iter().any(|it| it.contains("-adopted-")));

    let devices = lab.path("host/proc/devices");
    let with_caps = fs::read_to_string(&devices).unwrap();
    fs::write(&devices, with_caps.replace("nvidia-caps\n", "other\n")).unwrap();
    offers(&lab, 2).await;
    let answer = readyz_when(health, "no MIG device can be prepared").await;
    assert!(answer.contains("load the kernel modules of a driver that supports MIG"), "{answer}");

    fs::write(&devices, with_caps).unwrap();
    lab.sim.clear_faults().unwrap();
    prepare(&kubelet, &claim).await.unwrap();
    lab.slices_when(is_all).await;
    lab.stop().await;
}
