//! Preparing and unpreparing, as the kubelet asks for it, on the simulated hardware.

use crate::common;
use common::{ControlPlane, DRIVER, Lab, each_control_plane, eventually, prepare, read_json, unprepare};
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Api;
use kube::api::DeleteParams;
use kube_sim::kubelet::{Claim, Plugin, Version};
use nvml_sim::{Action, Code, Fault, SimNode};
use serde_json::json;

const FIRST_1G: &str = "gpu-0000-1a-00-mig-1g-10gb-6";

/// A running driver on one or more H100 and the kubelet's connection to it.
async fn started(gpus: &str) -> (Lab, Plugin) {
    let mut lab = Lab::new(ControlPlane::simulated(true).await, gpus).await;
    lab.start();
    let kubelet = lab.kubelet().await;
    (lab, kubelet)
}

fn fault(call: &str, times: Option<u32>, action: Action) -> Fault {
    Fault { call: call.to_owned(), gpu: None, skip: 0, times, action }
}

/// Nothing is left of any claim.
fn assert_clean(lab: &Lab) {
    assert_eq!(lab.left(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_gets_its_instance_and_gives_it_back() {
    each_control_plane(true, async |plane| {
        let mut lab = Lab::new(plane, "2xH100-80GB").await;
        lab.start();
        let kubelet = lab.kubelet().await;
        let claim = lab.claim_of("one", "gpu-0000-1b-00-mig-3g-40gb-4").await;

        let devices = prepare(&kubelet, &claim).await.unwrap();
        let cdi_id = format!("{DRIVER}/claim={}-gpu-0000-1b-00-mig-3g-40gb-4", claim.uid);
        assert_eq!(devices.len(), 1);
        assert_eq!(devices[0].requests, ["gpu"]);
        assert_eq!(devices[0].pool, format!("{}/{DRIVER}", lab.node_name));
        assert_eq!(devices[0].cdi_ids, [cdi_id]);
        assert_eq!(lab.instances(), [(1, "3g.40gb".to_owned(), 4)]);
        assert_eq!(lab.files("cdi"), [format!("{DRIVER}-claim_{}.json", claim.uid)]);

        unprepare(&kubelet, &claim).await.unwrap();
        assert_clean(&lab);
        lab.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cdi_file_gives_exactly_the_instance() {
    let (mut lab, kubelet) = started("2xH100-80GB").await;
    let claim = lab.claim_of("one", "gpu-0000-1b-00-mig-1g-10gb-2").await;
    let cdi_id = prepare(&kubelet, &claim).await.unwrap().remove(0).cdi_ids.remove(0);

    // Judged and applied by the CDI library, which this project did not write.
    let cache = container_device_interface::cache::new_cache(vec![
        container_device_interface::cache::with_auto_refresh(false),
        container_device_interface::spec_dirs::with_spec_dirs(&[&lab.path("cdi").display().to_string()]),
    ]);
    cache.lock().unwrap().refresh().unwrap();
    let mut oci = oci_spec::runtime::Spec::default();
    cache.lock().unwrap().inject_devices(Some(&mut oci), vec![cdi_id]).unwrap();
    let linux = oci.linux().as_ref().unwrap();
    let devices: Vec<String> =
        linux.devices().iter().flatten().map(|it| it.path().display().to_string()).collect();
    let gpu = &lab.sim.snapshot().unwrap().gpus[1];
    let instance = &gpu.gpu_instances[0];
    let caps = lab
        .path("host/proc/driver/nvidia/capabilities")
        .join(format!("gpu{}/mig/gi{}", gpu.minor, instance.id));
    let minor = |file: &str| {
        let text = std::fs::read_to_string(caps.join(file)).unwrap();
        text.lines().find_map(|it| it.strip_prefix("DeviceFileMinor: ")).unwrap().trim().to_owned()
    };
    for node in [
        format!("/dev/nvidia{}", gpu.minor),
        format!("/dev/nvidia-caps/nvidia-cap{}", minor("access")),
        format!(
            "/dev/nvidia-caps/nvidia-cap{}",
            minor(&format!("ci{}/access", instance.compute_instances[0].id))
        ),
        "/dev/nvidiactl".to_owned(),
        "/dev/nvidia-uvm".to_owned(),
        "/dev/nvidia-uvm-tools".to_owned(),
    ] {
        assert!(devices.contains(&node), "{node} in {devices:?}");
    }
    assert_eq!(devices.len(), 6, "and nothing else: {devices:?}");
    let environment = oci.process().as_ref().unwrap().env().clone().unwrap_or_default();
    assert!(environment.contains(&"NVIDIA_VISIBLE_DEVICES=void".to_owned()));
    let mounts: Vec<String> =
        oci.mounts().iter().flatten().map(|it| it.destination().display().to_string()).collect();
    assert!(mounts.iter().any(|it| it.contains("libcuda.so.")), "{mounts:?}");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn preparing_again_gives_the_same_answer_and_repairs_what_is_missing() {
    let (mut lab, kubelet) = started("1xH100-80GB").await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    let first = prepare(&kubelet, &claim).await.unwrap();
    let file = lab.path("cdi").join(&lab.files("cdi")[0]);
    let spec = read_json(&file);

    std::fs::remove_file(&file).unwrap();
    assert_eq!(prepare(&kubelet, &claim).await.unwrap(), first);
    assert_eq!(read_json(&file), spec);

    lab.stop().await;
    lab.start();
    let kubelet = lab.kubelet().await;
    assert_eq!(prepare(&kubelet, &claim).await.unwrap(), first);
    assert_eq!(lab.instances().len(), 1);

    // Another program destroyed the instance behind our back.
    lab.sim.on_gpu(0, |gpu| gpu.instances.clear()).unwrap();
    assert_eq!(prepare(&kubelet, &claim).await.unwrap(), first);
    assert_eq!(lab.instances(), [(0, "1g.10gb".to_owned(), 6)]);

    unprepare(&kubelet, &claim).await.unwrap();
    assert_clean(&lab);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_is_healed_by_the_next_prepare() {
    let (mut lab, kubelet) = started("1xH100-80GB").await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    let first = prepare(&kubelet, &claim).await.unwrap();
    lab.stop().await;
    lab.sim.reboot().unwrap();
    std::fs::remove_dir_all(lab.path("cdi")).unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    assert_eq!(prepare(&kubelet, &claim).await.unwrap(), first);
    assert_eq!((lab.instances().len(), lab.files("cdi").len()), (1, 1));

    lab.stop().await;
    lab.sim.reboot().unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    unprepare(&kubelet, &claim).await.unwrap();
    assert_clean(&lab);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unprepare_of_an_unknown_claim_succeeds() {
    let (mut lab, kubelet) = started("1xH100-80GB").await;
    let claim = Claim { namespace: "default".into(), name: "never".into(), uid: "0a-unknown".into() };
    unprepare(&kubelet, &claim).await.unwrap();
    unprepare(&kubelet, &claim).await.unwrap();
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_with_several_requests_gets_all_and_only_ours() {
    let (mut lab, kubelet) = started("2xH100-80GB").await;
    let claim = lab
        .claim(
            "many",
            &[
                ("big/first", DRIVER, "gpu-0000-1a-00-mig-3g-40gb-4"),
                ("small", DRIVER, "gpu-0000-1b-00-mig-1g-10gb-6"),
                ("small", DRIVER, "gpu-0000-1b-00-mig-1g-10gb-5"),
                ("net", "nic.example.com", "eth1"),
            ],
        )
        .await;
    let devices = prepare(&kubelet, &claim).await.unwrap();
    let named: Vec<_> = devices.iter().map(|it| (it.requests[0].as_str(), it.device.as_str())).collect();
    assert_eq!(
        named,
        [
            ("big", "gpu-0000-1a-00-mig-3g-40gb-4"),
            ("small", "gpu-0000-1b-00-mig-1g-10gb-6"),
            ("small", "gpu-0000-1b-00-mig-1g-10gb-5"),
        ]
    );
    assert_eq!(lab.instances().len(), 3);
    unprepare(&kubelet, &claim).await.unwrap();

    let other = lab.claim("other", &[("net", "nic.example.com", "eth1")]).await;
    assert_eq!(prepare(&kubelet, &other).await.unwrap(), []);
    unprepare(&kubelet, &other).await.unwrap();
    assert_clean(&lab);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_claim_of_a_call_has_its_own_answer() {
    let (mut lab, kubelet) = started("1xH100-80GB").await;
    let good = lab.claim_of("good", FIRST_1G).await;
    let unknown = lab.claim_of("unknown", "gpu-0000-ff-00").await;
    let gone =
        Claim { uid: "another-uid".into(), ..lab.claim_of("gone", "gpu-0000-1a-00-mig-1g-10gb-5").await };
    let invalid = Claim { namespace: "default".into(), name: "x".into(), uid: "../../etc".into() };
    let pool = format!("{}/{DRIVER}", lab.node_name);
    let mut admin = json!({"request": "gpu", "driver": DRIVER, "pool": pool, "device": FIRST_1G});
    admin["adminAccess"] = json!(true);
    let admin = lab.claim_with("admin", json!({"results": [admin]})).await;

    let answers = kubelet
        .prepare(&[good.clone(), unknown.clone(), gone.clone(), invalid.clone(), admin.clone()])
        .await
        .unwrap();
    assert!(answers[&good.uid].is_ok());
    let error = |claim: &Claim| answers[&claim.uid].clone().unwrap_err();
    assert!(error(&unknown).contains("gpu-0000-ff-00"), "{}", error(&unknown));
    assert!(error(&gone).contains("no longer exists"), "{}", error(&gone));
    assert!(error(&invalid).contains("does not name a ResourceClaim"), "{}", error(&invalid));
    assert!(error(&admin).contains("adminAccess"), "{}", error(&admin));
    assert_eq!(lab.instances().len(), 1);
    unprepare(&kubelet, &good).await.unwrap();
    assert_clean(&lab);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_too_large_is_refused_and_the_next_one_served() {
    let (mut lab, kubelet) = started("1xH100-80GB").await;
    let claim =
        |name: String, uid: usize| Claim { namespace: "default".into(), name, uid: format!("u-{uid}") };
    let many: Vec<Claim> = (0..2000).map(|it| claim("c".into(), it)).collect();
    assert!(kubelet.prepare(&many).await.unwrap_err().to_string().contains("more than 1024 claims"));
    let long = [claim("c".repeat(2 << 20), 1)];
    assert!(kubelet.prepare(&long).await.is_err());
    let claim = lab.claim_of("one", FIRST_1G).await;
    prepare(&kubelet, &claim).await.unwrap();
    unprepare(&kubelet, &claim).await.unwrap();
    assert_clean(&lab);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_gpu_waits_for_its_parts_and_is_handed_out_with_mig_mode_off() {
    let (mut lab, kubelet) = started("1xH100-80GB").await;
    let cut = lab.claim_of("cut", FIRST_1G).await;
    let whole = lab.claim_of("whole", "gpu-0000-1a-00").await;
    prepare(&kubelet, &cut).await.unwrap();
    assert!(lab.sim.snapshot().unwrap().gpus[0].mig_current);

    let (devices, unprepared) = tokio::join!(prepare(&kubelet, &whole), unprepare(&kubelet, &cut));
    unprepared.unwrap();
    assert_eq!(devices.unwrap()[0].device, "gpu-0000-1a-00");
    assert!(!lab.sim.snapshot().unwrap().gpus[0].mig_current);
    assert_eq!(lab.inspect()["gpus"][0]["owner"], json!(format!("default/{}", whole.name)));
    unprepare(&kubelet, &whole).await.unwrap();
    assert_clean(&lab);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_devices_exclude_each_other_is_refused_before_anything_is_created() {
    let (mut lab, kubelet) = started("1xH100-80GB").await;
    lab.sim.configure(|it| it.log_calls = true).unwrap();
    let pairs = [
        ("gpu-0000-1a-00-mig-2g-20gb-4", "gpu-0000-1a-00-mig-1g-10gb-5", "memory slices"),
        ("gpu-0000-1a-00", "gpu-0000-1a-00-mig-1g-10gb-5", "memory slices"),
        // No overlap, but the GPU has one OFA, which each of them needs.
        ("gpu-0000-1a-00-mig-1g-10gb-me-0", "gpu-0000-1a-00-mig-1g-10gb-me-1", "ofas"),
    ];
    for (index, (left, right, lacking)) in pairs.into_iter().enumerate() {
        let results = [("a", DRIVER, left), ("b", DRIVER, right)];
        let claim = lab.claim(&format!("both-{index}"), &results).await;
        let refused = prepare(&kubelet, &claim).await.unwrap_err();
        for part in [&claim.name, left, right, lacking, "delete the pod"] {
            assert!(refused.contains(part), "{part}: {refused}");
        }
        assert_eq!(lab.recorded(), [""; 0]);
        unprepare(&kubelet, &claim).await.unwrap();
    }
    let changes = lab
        .sim
        .calls()
        .unwrap()
        .into_iter()
        .filter(|it| it.call.contains("Create") || it.call.contains("Set"));
    assert_eq!(changes.filter(|it| it.call != "nvmlEventSetCreate").count(), 0);
    assert_clean(&lab);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_on_a_placement_that_is_still_held_waits_for_it() {
    let (mut lab, kubelet) = started("1xH100-80GB").await;
    let holder = lab.claim_of("holder", "gpu-0000-1a-00-mig-2g-20gb-4").await;
    let late = lab.claim_of("late", "gpu-0000-1a-00-mig-1g-10gb-5").await;
    prepare(&kubelet, &holder).await.unwrap();
    let (devices, unprepared) = tokio::join!(prepare(&kubelet, &late), unprepare(&kubelet, &holder));
    unprepared.unwrap();
    devices.unwrap();
    assert_eq!(lab.instances(), [(0, "1g.10gb".to_owned(), 5)]);
    unprepare(&kubelet, &late).await.unwrap();
    assert_clean(&lab);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_claims_that_come_at_once_for_one_placement_each_gets_it_in_turn() {
    let (mut lab, kubelet) = started("1xH100-80GB").await;
    lab.sim.set_latency("nvmlDeviceCreateGpuInstanceWithPlacement", 20.0).unwrap();
    let mut claims = Vec::new();
    for name in ["a", "b", "c", "d"] {
        claims.push(lab.claim_of(name, FIRST_1G).await);
    }
    let turns = claims.iter().map(|claim| async {
        prepare(&kubelet, claim).await.unwrap();
        let owner = lab.inspect()["gpus"][0]["mig"]["instances"][0]["owner"].clone();
        assert_eq!(owner, json!(format!("default/{}", claim.name)), "no other claim has it meanwhile");
        unprepare(&kubelet, claim).await.unwrap();
    });
    futures::future::join_all(turns).await;
    assert_clean(&lab);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_of_another_nodes_pool_is_refused() {
    let (mut lab, kubelet) = started("1xH100-80GB").await;
    let result = json!({"request": "gpu", "driver": DRIVER, "pool": "elsewhere/pool", "device": FIRST_1G});
    let claim = lab.claim_with("astray", json!({"results": [result]})).await;
    let refused = prepare(&kubelet, &claim).await.unwrap_err();
    assert!(refused.contains("elsewhere/pool") && refused.contains("wrong node"), "{refused}");
    assert_clean(&lab);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_gpu_does_not_keep_its_claims() {
    let (mut lab, kubelet) = started("2xH100-80GB").await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    let later = lab.claim_of("later", "gpu-0000-1a-00-mig-1g-10gb-5").await;
    prepare(&kubelet, &claim).await.unwrap();
    prepare(&kubelet, &later).await.unwrap();
    lab.sim.lose_gpu(0).unwrap();
    unprepare(&kubelet, &claim).await.unwrap();
    lab.stop().await;
    lab.start();
    let kubelet = lab.kubelet().await;
    unprepare(&kubelet, &later).await.unwrap();
    assert_eq!(lab.files("cdi"), Vec::<String>::new());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_prepare_leaves_nothing_behind() {
    let (mut lab, kubelet) = started("1xH100-80GB").await;
    let devices = [("a", DRIVER, FIRST_1G), ("b", DRIVER, "gpu-0000-1a-00-mig-1g-10gb-5")];
    let claim = lab.claim("one", &devices).await;
    let broken = fault("nvmlGpuInstanceCreateComputeInstance", None, Action::Return(Code::UNKNOWN.0));
    lab.sim.inject(broken).unwrap();
    let refused = prepare(&kubelet, &claim).await.unwrap_err();
    assert!(refused.contains("nvmlGpuInstanceCreateComputeInstance failed"), "{refused}");
    assert_clean(&lab);
    lab.sim.clear_faults().unwrap();
    prepare(&kubelet, &claim).await.unwrap();
    unprepare(&kubelet, &claim).await.unwrap();
    assert_clean(&lab);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_use_for_a_moment_is_tried_again_within_the_call() {
    let (mut lab, kubelet) = started("1xH100-80GB").await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    let busy = |call| fault(call, Some(2), Action::Return(Code::IN_USE.0));
    lab.sim.inject(busy("nvmlDeviceCreateGpuInstanceWithPlacement")).unwrap();
    prepare(&kubelet, &claim).await.unwrap();
    lab.sim.inject(busy("nvmlGpuInstanceDestroy")).unwrap();
    unprepare(&kubelet, &claim).await.unwrap();
    assert_clean(&lab);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_after_the_gpu_instance_was_made_leaks_nothing() {
    let mut lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    let mut process = lab.spawn();
    let kubelet = lab.kubelet().await;
    lab.sim.inject(fault("nvmlGpuInstanceCreateComputeInstance", Some(1), Action::CrashBefore)).unwrap();
    assert!(kubelet.prepare(std::slice::from_ref(&claim)).await.is_err(), "the process died");
    process.wait().unwrap();
    assert_eq!(lab.instances().len(), 1, "the GPU instance is there, without a compute instance");

    lab.start();
    let kubelet = lab.kubelet().await;
    prepare(&kubelet, &claim).await.unwrap();
    assert_eq!(lab.instances().len(), 1);
    unprepare(&kubelet, &claim).await.unwrap();
    assert_clean(&lab);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_state_file_is_rebuilt_from_the_allocation() {
    let (mut lab, kubelet) = started("1xH100-80GB").await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    let first = prepare(&kubelet, &claim).await.unwrap();
    let claims = lab.path("plugins/mig.dra-driver.dev/claims");
    let file = claims.join(format!("{}.jsonl", claim.uid));
    std::fs::write(&file, "rubbish").unwrap();
    assert_eq!(prepare(&kubelet, &claim).await.unwrap(), first);
    std::fs::write(&file, "more rubbish").unwrap();
    unprepare(&kubelet, &claim).await.unwrap();
    assert_eq!(lab.instances(), []);
    assert_eq!(lab.files("cdi"), Vec::<String>::new());
    assert!(claims.join(format!("{}.unreadable", claim.uid)).exists(), "nothing is lost");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_state_file_is_kept_until_its_instance_is_destroyed() {
    let (mut lab, kubelet) = started("1xH100-80GB").await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    prepare(&kubelet, &claim).await.unwrap();
    let file = lab.path("plugins/mig.dra-driver.dev/claims").join(format!("{}.jsonl", claim.uid));
    std::fs::write(&file, "rubbish").unwrap();
    lab.sim.inject(fault("nvmlGpuInstanceDestroy", Some(1), Action::Return(Code::UNKNOWN.0))).unwrap();
    let refused = unprepare(&kubelet, &claim).await.unwrap_err();
    assert!(refused.contains("nvmlGpuInstanceDestroy"), "{refused}");
    assert!(file.exists(), "the claim is still known");
    unprepare(&kubelet, &claim).await.unwrap();
    assert_eq!((lab.instances(), file.exists()), (Vec::new(), false));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_after_a_rebuild_does_not_take_a_running_pod_its_instance() {
    let (mut lab, kubelet) = started("1xH100-80GB").await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    prepare(&kubelet, &claim).await.unwrap();
    let file = lab.path("plugins/mig.dra-driver.dev/claims").join(format!("{}.jsonl", claim.uid));
    std::fs::write(&file, "rubbish").unwrap();
    lab.sim.inject(fault("nvmlDeviceGetMinorNumber", Some(1), Action::Return(Code::UNKNOWN.0))).unwrap();
    prepare(&kubelet, &claim).await.unwrap_err();
    assert_eq!(lab.instances().len(), 1);
    prepare(&kubelet, &claim).await.unwrap();
    unprepare(&kubelet, &claim).await.unwrap();
    assert_eq!(lab.instances(), []);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unmanaged_instance_is_never_changed() {
    let (mut lab, kubelet) = started("1xH100-80GB").await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    // Planted after the driver looked, so the slices do not know of it.
    lab.slices_when(common::is_complete).await;
    let planted = lab.sim.plant_instance(0, "1g.10gb", 6).unwrap();
    let refused = prepare(&kubelet, &claim).await.unwrap_err();
    assert!(refused.contains("occupied"), "{refused}");
    // What was met by surprise is no longer offered, long before the next regular look, except what is allocated already.
    let overlapping = FIRST_1G.replace("1g-10gb-6", "1g-20gb-6");
    let is_gone =
        |it: &[_]| common::is_complete(it) && !common::device_names(it).contains(&overlapping.as_str());
    let slices = lab.slices_when(is_gone).await;
    assert!(common::device_names(&slices).contains(&FIRST_1G), "{slices:?}");
    unprepare(&kubelet, &claim).await.unwrap();
    lab.delete_claim(&claim).await;
    lab.slices_when(|it| !common::device_names(it).contains(&FIRST_1G)).await;
    let left = &lab.sim.snapshot().unwrap().gpus[0].gpu_instances;
    assert_eq!((left.len(), left[0].id), (1, planted.gpu_instance));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_is_gone_can_still_be_unprepared() {
    let (mut lab, kubelet) = started("1xH100-80GB").await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    prepare(&kubelet, &claim).await.unwrap();
    let api: Api<ResourceClaim> = Api::namespaced(lab.client.clone(), "default");
    api.delete(&claim.name, &DeleteParams::default()).await.unwrap();
    unprepare(&kubelet, &claim).await.unwrap();
    assert_clean(&lab);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_of_the_protocol_are_served() {
    let (mut lab, kubelet) = started("1xH100-80GB").await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    let first = prepare(&kubelet, &claim).await.unwrap();
    let older = kubelet.speaking(Version::V1Beta1);
    assert_eq!(prepare(&older, &claim).await.unwrap(), first);
    unprepare(&older, &claim).await.unwrap();
    assert_clean(&lab);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_driver_name_works_throughout() {
    let mut lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await;
    lab = lab.with_args(&["--driver-name", "gpu.nvidia.com"]);
    lab.start();
    let kubelet = lab.kubelet().await;
    let slices = lab.slices_when(common::is_complete).await;
    assert!(slices.iter().all(|it| it.spec.driver == "gpu.nvidia.com"));
    let claim = lab.claim("one", &[("gpu", "gpu.nvidia.com", FIRST_1G)]).await;
    let devices = prepare(&kubelet, &claim).await.unwrap();
    assert!(devices[0].cdi_ids[0].starts_with("gpu.nvidia.com/claim="));
    unprepare(&kubelet, &claim).await.unwrap();
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_program_sees_the_same_partitions() {
    let (mut lab, kubelet) = started("1xH100-80GB").await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    prepare(&kubelet, &claim).await.unwrap();
    let seen = SimNode::open(&lab.path("host")).unwrap().snapshot().unwrap();
    assert_eq!(seen.gpus[0].gpu_instances.len(), 1);
    let report = lab.inspect();
    let instance = &report["gpus"][0]["mig"]["instances"][0];
    assert_eq!(instance["owner"], json!(format!("default/{}", claim.name)));
    assert_eq!(instance["placement"], json!({"start": 6, "size": 1}));
    unprepare(&kubelet, &claim).await.unwrap();
    lab.stop().await;
    eventually("the sockets are gone", async || lab.files("registry").is_empty().then_some(())).await;
}
