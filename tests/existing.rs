//! Unmanaged MIG instances: withheld, or adopted as devices of their own; never touched.

use std::collections::BTreeSet;
use std::sync::Arc;

use mig_model::facts::{MigMode, Placement};
use mig_model::inventory::{Adopted, Attachment, Gpu, GpuState, MigSpec, OfferPolicy, inventory_on};

use crate::common;
use common::{
    ControlPlane, DRIVER, Lab, device_names, each_control_plane, eventually, get, is_complete, prepare,
    read_json, unprepare,
};
use dra_driver_mig::nvml;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{Device, ResourceClaim};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube_sim::kubelet::{Claim, Plugin};
use nvml_sim::{Planted, SimNode};
use serde_json::json;

const ADOPT: [&str; 6] = ["--existing-instances", "adopt", "--rescan-interval", "1", "--settle-time", "1"];
const WITHHOLD: [&str; 4] = ["--rescan-interval", "1", "--settle-time", "1"];

/// Name of the device for an instance on the first GPU.
fn device(planted: &Planted) -> String {
    format!("gpu-0000-1a-00-adopted-{}", planted.uuid.strip_prefix("MIG-").unwrap())
}

/// A running driver that adopts, on one H100 with an unmanaged 2g.20gb at 2.
async fn adopting() -> (Lab, Plugin, Planted) {
    let mut lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await.with_args(&ADOPT);
    let planted = lab.sim.plant_instance(0, "2g.20gb", 2).unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    (lab, kubelet, planted)
}

async fn published(lab: &Lab, name: &str) -> Option<Device> {
    let slices = lab.slices().await;
    if !is_complete(&slices) {
        return None;
    }
    slices.into_iter().flat_map(|it| it.spec.devices.unwrap_or_default()).find(|it| it.name == name)
}

async fn published_when(lab: &Lab, name: &str, is_wanted: bool) {
    eventually(&format!("{name} is published: {is_wanted}"), async || {
        let slices = lab.slices().await;
        (is_complete(&slices) && device_names(&slices).contains(&name) == is_wanted).then_some(())
    })
    .await;
}

fn text(device: &Device, attribute: &str) -> String {
    device.attributes.as_ref().unwrap()[attribute].string.clone().unwrap()
}

/// Another program destroys all instances.
fn destroy(lab: &Lab) {
    lab.sim
        .on_gpu(0, |gpu| {
            gpu.instances.clear();
            gpu.mig_slots.clear();
        })
        .unwrap();
}

async fn delete(lab: &Lab, claim: &Claim) {
    let api: Api<ResourceClaim> = Api::namespaced(lab.client.clone(), "default");
    api.delete(&claim.name, &DeleteParams::default()).await.unwrap();
}

#[test]
fn an_instance_that_is_gone_and_on_record_for_two_claims_is_published_once() {
    let directory = tempfile::tempdir().unwrap();
    let node = SimNode::create(directory.path(), &nvml_sim::parse_gpus("1xH100-80GB").unwrap()).unwrap();
    let facts = nvml::discover(&nvml::open(&node.library()).unwrap()).unwrap();
    let gpu = &facts.gpus[0];
    let state = GpuState {
        mode: Some(MigMode { current: true, pending: true }),
        instances: Vec::new(),
        problem: None,
    };
    let gpu_now = Gpu { facts: Arc::new(gpu.clone()), attachment: Attachment::default(), state };
    let profile = gpu.mig.as_ref().unwrap().profiles.iter().find(|it| it.name == "2g.20gb").unwrap();
    let spec = MigSpec::of(profile, Placement { start: 2, size: 2 });
    let adopted =
        (gpu.uuid.clone(), Adopted { spec, gpu_instance: 1, compute_instance: 0, uuid: "MIG-0a".to_owned() });
    let name = "gpu-0000-1a-00-adopted-0a".to_owned();
    let policy = OfferPolicy {
        held: [name.clone()].into(),
        adopted: vec![adopted.clone(), adopted],
        ..OfferPolicy::default()
    };
    let offered = inventory_on(&facts, &[gpu_now], &policy);
    let names: Vec<String> = offered.devices().map(|it| it.name.to_string()).collect();
    assert_eq!(names.iter().filter(|it| **it == name).count(), 1);
    assert!(!names.contains(&"gpu-0000-1a-00-mig-1g-10gb-3".to_owned()), "its place stays the claim's");
    assert!(names.contains(&"gpu-0000-1a-00-mig-1g-10gb-4".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adopted_instance_is_a_device_beside_what_it_leaves_of_the_gpu() {
    each_control_plane(true, async |plane| {
        let args = [&ADOPT[..], &["--mig-mode", "release"]].concat();
        let mut lab = Lab::new(plane, "1xH100-80GB").await.with_args(&args);
        let planted = lab.sim.plant_instance(0, "2g.20gb", 2).unwrap();
        lab.start();
        let slices = lab.slices_when(is_complete).await;
        let devices: Vec<&Device> = slices.iter().flat_map(|it| it.spec.devices.iter().flatten()).collect();
        let adopted = devices.iter().find(|it| it.name == device(&planted)).unwrap();
        assert_eq!(text(adopted, "uuid"), planted.uuid);
        assert_eq!((text(adopted, "type"), text(adopted, "profile")), ("mig".into(), "2g.20gb".into()));
        assert_eq!(text(adopted, "sharing"), "exclusive");
        assert!(adopted.consumes_counters.is_none(), "what it takes is not in the counters");
        let keys = |it: &Device| it.attributes.as_ref().unwrap().keys().cloned().collect::<Vec<_>>();
        for other in devices.iter().filter(|it| it.name != adopted.name) {
            assert_eq!(
                (text(other, "uuid"), keys(other)),
                (other.name.clone(), keys(adopted)),
                "made on demand"
            );
            let slices = other.consumes_counters.as_ref().unwrap()[0].counters.keys().cloned();
            let taken = ["memory-slice-2", "memory-slice-3"].map(str::to_owned).into();
            assert!(slices.collect::<BTreeSet<_>>().is_disjoint(&taken), "{}", other.name);
        }
        assert!(!device_names(&slices).contains(&"gpu-0000-1a-00"), "the whole GPU is unavailable");

        let kubelet = lab.kubelet().await;
        let claim = lab.claim_of("one", &adopted.name).await;
        let before = lab.instances();
        let answer = prepare(&kubelet, &claim).await.unwrap();
        assert_eq!(answer[0].cdi_ids, [format!("{DRIVER}/claim={}-{}", claim.uid, adopted.name)]);
        assert_eq!(prepare(&kubelet, &claim).await.unwrap(), answer);
        assert_eq!(lab.instances(), before, "nothing was made");
        let cdi = read_json(&lab.path("cdi").join(&lab.files("cdi")[0])).to_string();
        let access =
            format!("host/proc/driver/nvidia/capabilities/gpu0/mig/gi{}/access", planted.gpu_instance);
        let access = std::fs::read_to_string(lab.path(&access)).unwrap();
        let minor = access.lines().find_map(|it| it.strip_prefix("DeviceFileMinor: ")).unwrap();
        assert!(cdi.contains(&format!("/dev/nvidia-caps/nvidia-cap{}\"", minor.trim())), "{cdi}");
        let instance = &lab.inspect()["gpus"][0]["mig"]["instances"][0];
        assert_eq!(instance["owner"], json!(format!("default/{}", claim.name)));
        assert_eq!((&instance["unmanaged"], &instance["notAdopted"]), (&json!(true), &json!(null)));

        // One of ours beside it comes and goes: the mode stays on below the other.
        let ours = lab.claim_of("ours", "gpu-0000-1a-00-mig-1g-10gb-6").await;
        prepare(&kubelet, &ours).await.unwrap();
        unprepare(&kubelet, &claim).await.unwrap();
        unprepare(&kubelet, &ours).await.unwrap();
        assert_eq!(lab.instances(), before, "nothing was destroyed");
        assert!(lab.sim.snapshot().unwrap().gpus[0].mig_current, "MIG mode stays on below it");
        assert_eq!((lab.files("cdi"), lab.state_files()), (Vec::new(), Vec::new()));
        assert_eq!(lab.inspect()["gpus"][0]["mig"]["instances"][0]["owner"], json!("unmanaged"));
        lab.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_counters_adopted_instances_stand_beside_the_layout() {
    each_control_plane(false, async |plane| {
        let mut lab = Lab::new(plane, "1xH100-80GB").await.with_args(&ADOPT);
        let planted = lab.sim.plant_instance(0, "1g.10gb", 2).unwrap();
        let label = Patch::Merge(json!({"metadata": {"labels": {"nvidia.com/mig.config": "all-1g.10gb"}}}));
        let nodes = Api::<Node>::all(lab.client.clone());
        nodes.patch(&lab.node_name, &PatchParams::default(), &label).await.unwrap();
        lab.start();
        let small = |it: u32| format!("gpu-0000-1a-00-mig-1g-10gb-{it}");
        let with = |starts: &[u32], more: &[String]| -> BTreeSet<String> {
            starts.iter().map(|it| small(*it)).chain(more.iter().cloned()).collect()
        };
        let published_when = async |wanted: BTreeSet<String>| {
            eventually(&format!("{wanted:?} are published"), async || {
                let slices = lab.slices().await;
                let names: BTreeSet<String> = device_names(&slices).into_iter().map(str::to_owned).collect();
                (is_complete(&slices) && names == wanted).then_some(())
            })
            .await;
        };
        published_when(with(&[0, 1, 3, 4, 5, 6], &[device(&planted)])).await;
        let kubelet = lab.kubelet().await;
        let claim = lab.claim_of("one", &device(&planted)).await;
        prepare(&kubelet, &claim).await.unwrap();

        // Destroyed while a claim has it: neither withdrawn nor its place given to others.
        destroy(&lab);
        lab.slices_when(is_complete).await;
        assert!(prepare(&kubelet, &claim).await.unwrap_err().contains("it is gone"));
        published_when(with(&[0, 1, 3, 4, 5, 6], &[device(&planted)])).await;
        unprepare(&kubelet, &claim).await.unwrap();
        delete(&lab, &claim).await;
        published_when(with(&[0, 1, 2, 3, 4, 5, 6], &[])).await;
        lab.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_of_others_is_withheld_unless_adoption_is_wanted() {
    let mut lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await.with_args(&WITHHOLD);
    let planted = lab.sim.plant_instance(0, "2g.20gb", 2).unwrap();
    lab.start();
    let slices = lab.slices_when(is_complete).await;
    assert!(!device_names(&slices).contains(&device(&planted).as_str()));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_back_to_withhold_leaves_a_claim_what_it_has() {
    let (mut lab, kubelet, planted) = adopting().await;
    let name = device(&planted);
    let claim = lab.claim_of("one", &name).await;
    let allocated = lab.claim_of("allocated", &name).await;
    let answer = prepare(&kubelet, &claim).await.unwrap();
    lab.stop().await;
    lab = lab.with_args(&WITHHOLD);
    lab.start();
    let kubelet = lab.kubelet().await;
    assert_eq!(prepare(&kubelet, &claim).await.unwrap(), answer);
    let held = published(&lab, &name).await.unwrap();
    assert_eq!(text(&held, "uuid"), planted.uuid);
    unprepare(&kubelet, &claim).await.unwrap();
    lab.delete_claim(&claim).await;
    // Given away while it was offered.
    prepare(&kubelet, &allocated).await.unwrap();
    published_when(&lab, &name, true).await;
    unprepare(&kubelet, &allocated).await.unwrap();
    lab.delete_claim(&allocated).await;
    published_when(&lab, &name, false).await;
    assert_eq!(lab.instances(), [(0, "2g.20gb".to_owned(), 2)]);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_vanishes_under_a_claim_is_reported_and_its_place_stays_the_claims() {
    let (mut lab, kubelet, planted) = adopting().await;
    let name = device(&planted);
    let claim = lab.claim_of("one", &name).await;
    prepare(&kubelet, &claim).await.unwrap();
    destroy(&lab);
    let refused = prepare(&kubelet, &claim).await.unwrap_err();
    assert!(refused.contains(&planted.uuid) && refused.contains("it is gone"), "{refused}");

    // The driver has scanned the hardware again when it knows what another instance leaves.
    lab.sim.plant_instance(0, "1g.10gb", 6).unwrap();
    published_when(&lab, "gpu-0000-1a-00-mig-1g-10gb-6", false).await;
    let slices = lab.slices_when(is_complete).await;
    assert!(device_names(&slices).contains(&name.as_str()), "a device that a claim has is never withdrawn");
    assert!(!device_names(&slices).contains(&"gpu-0000-1a-00-mig-1g-10gb-2"), "nor its place given away");
    let other = lab.claim_of("other", "gpu-0000-1a-00-mig-1g-10gb-5").await;
    prepare(&kubelet, &other).await.unwrap();

    unprepare(&kubelet, &claim).await.unwrap();
    lab.delete_claim(&claim).await;
    published_when(&lab, &name, false).await;
    published_when(&lab, "gpu-0000-1a-00-mig-1g-10gb-2", true).await;
    let stale = lab.claim_of("stale", &name).await;
    let refused = prepare(&kubelet, &stale).await.unwrap_err();
    assert!(refused.contains("no such instance any more") && refused.contains(&name), "{refused}");
    unprepare(&kubelet, &stale).await.unwrap();
    unprepare(&kubelet, &other).await.unwrap();
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_instance_in_the_same_place_is_another_device() {
    let (mut lab, kubelet, planted) = adopting().await;
    let claim = lab.claim_of("one", &device(&planted)).await;
    let stale = lab.claim_of("stale", &device(&planted)).await;
    prepare(&kubelet, &claim).await.unwrap();
    let next = "MIG-00000000-1111-2222-3333-444455556666";
    lab.sim.on_gpu(0, |gpu| gpu.instances[0].compute_instances[0].uuid = next.to_owned()).unwrap();
    let refused = prepare(&kubelet, &claim).await.unwrap_err();
    assert!(refused.contains(&planted.uuid) && refused.contains(&format!("{next} is there instead")));
    // While a claim has the place, whatever is there is not offered to others.
    let another = "gpu-0000-1a-00-adopted-00000000-1111-2222-3333-444455556666";
    assert!(published(&lab, another).await.is_none());
    unprepare(&kubelet, &claim).await.unwrap();
    lab.delete_claim(&claim).await;
    published_when(&lab, another, true).await;
    // Another claim has it still, for what that is worth.
    assert!(published(&lab, &device(&planted)).await.is_some());
    assert!(prepare(&kubelet, &stale).await.unwrap_err().contains("no such instance any more"));
    lab.delete_claim(&stale).await;
    published_when(&lab, &device(&planted), false).await;
    let new = lab.claim_of("new", another).await;
    prepare(&kubelet, &new).await.unwrap();
    unprepare(&kubelet, &new).await.unwrap();
    assert_eq!(lab.instances(), [(0, "2g.20gb".to_owned(), 2)]);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_takes_adopted_instances_and_the_same_one_made_again_serves_its_claim() {
    let (mut lab, kubelet, planted) = adopting().await;
    let name = device(&planted);
    let claim = lab.claim_of("one", &name).await;
    let answer = prepare(&kubelet, &claim).await.unwrap();
    lab.stop().await;
    lab.sim.reboot().unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    assert!(prepare(&kubelet, &claim).await.unwrap_err().contains("it is gone"));
    published_when(&lab, &name, true).await;
    assert_eq!(lab.instances(), [], "the driver does not make it for a claim");
    // The program that made it makes it again, and it has the same UUID.
    assert_eq!(lab.sim.plant_instance(0, "2g.20gb", 2).unwrap(), planted);
    assert_eq!(prepare(&kubelet, &claim).await.unwrap(), answer);
    lab.stop().await;

    lab.sim.reboot().unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    unprepare(&kubelet, &claim).await.unwrap();
    lab.delete_claim(&claim).await;
    published_when(&lab, &name, false).await;
    published_when(&lab, "gpu-0000-1a-00", true).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_one_whole_mig_device_is_not_adopted() {
    let mut lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await.with_args(&ADOPT);
    for start in [0, 2, 4] {
        lab.sim.plant_instance(0, "2g.20gb", start).unwrap();
    }
    lab.sim
        .on_gpu(0, |gpu| {
            let mut second = gpu.instances[1].compute_instances[0].clone();
            (second.id, second.serial, second.start, second.size) = (1, 1000, 1, 1);
            second.uuid = "MIG-another".to_owned();
            gpu.instances[0].compute_instances.clear();
            gpu.instances[1].compute_instances.push(second);
            // The compute profile of one slice has the id 0.
            for it in gpu.instances.iter_mut().flat_map(|it| &mut it.compute_instances) {
                (it.profile_id, it.size) = (0, 1);
            }
        })
        .unwrap();
    lab.start();
    let slices = lab.slices_when(is_complete).await;
    assert!(device_names(&slices).iter().all(|it| !it.contains("adopted")), "{slices:?}");
    let instances = lab.inspect()["gpus"][0]["mig"]["instances"].clone();
    lab.stop().await;
    let reasons: Vec<&str> =
        instances.as_array().unwrap().iter().map(|it| it["notAdopted"].as_str().unwrap()).collect();
    let expected = ["no compute instance", "2 compute instances", "does not span it"];
    assert!(reasons.iter().zip(expected).all(|(reason, it)| reason.contains(it)), "{reasons:?}");

    let (mut process, address) = lab.spawn_pod("0a-1");
    let page = eventually("readiness tells why", async || {
        let page = get(address, "/readyz").await?;
        page.contains("not offered").then_some(page)
    })
    .await;
    process.kill().unwrap();
    process.wait().unwrap();
    for (start, reason) in [0, 2, 4].into_iter().zip(reasons) {
        assert!(page.contains(&format!("at {start}:2 of GPU-")) && page.contains(reason), "{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_made_for_a_claim_is_not_adopted_when_its_record_is_lost() {
    let mut lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await.with_args(&ADOPT);
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("one", "gpu-0000-1a-00-mig-1g-10gb-6").await;
    prepare(&kubelet, &claim).await.unwrap();
    lab.stop().await;
    std::fs::remove_dir_all(lab.path(&format!("plugins/{DRIVER}/claims"))).unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    published_when(&lab, "gpu-0000-1a-00", false).await;
    let slices = lab.slices_when(is_complete).await;
    assert!(device_names(&slices).contains(&"gpu-0000-1a-00-mig-1g-10gb-6"), "it is allocated still");
    assert!(device_names(&slices).iter().all(|it| !it.contains("adopted")), "a pod may be using it");
    unprepare(&kubelet, &claim).await.unwrap();
    assert_eq!(lab.left(), Vec::<String>::new());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_made_for_a_claim_is_not_adopted_while_only_its_allocation_is_known() {
    let mut lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await.with_args(&ADOPT);
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("one", "gpu-0000-1a-00-mig-1g-10gb-6").await;
    let first = prepare(&kubelet, &claim).await.unwrap();
    lab.stop().await;
    let record = lab.path(&format!("plugins/{DRIVER}/claims/{}.jsonl", claim.uid));
    std::fs::write(&record, "rubbish").unwrap();
    std::fs::remove_dir_all(lab.path("cdi")).unwrap();
    let planted = lab.sim.plant_instance(0, "2g.20gb", 2).unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    published_when(&lab, &device(&planted), true).await;
    let slices = lab.slices_when(is_complete).await;
    let names = device_names(&slices);
    assert_eq!(names.iter().filter(|it| it.contains("adopted")).count(), 1, "a pod may be using it");
    // The kubelet's next call says what it has.
    assert_eq!(prepare(&kubelet, &claim).await.unwrap(), first);
    published_when(&lab, &device(&planted), true).await;
    unprepare(&kubelet, &claim).await.unwrap();
    assert_eq!(lab.instances(), [(0, "2g.20gb".to_owned(), 2)]);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adopted_device_has_one_user_and_keeps_others_from_its_place_and_the_whole_gpu() {
    let mut lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await;
    lab = lab.with_args(&[&ADOPT[..], &["--call-budget", "2"]].concat());
    let planted = lab.sim.plant_instance(0, "2g.20gb", 2).unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("one", &device(&planted)).await;
    prepare(&kubelet, &claim).await.unwrap();
    for name in [device(&planted).as_str(), "gpu-0000-1a-00-mig-1g-10gb-3", "gpu-0000-1a-00"] {
        let late = lab.claim_of(&format!("late-{}", name.len()), name).await;
        let refused = prepare(&kubelet, &late).await.unwrap_err();
        assert!(refused.contains("overlaps") && refused.contains(&claim.name), "{refused}");
    }
    unprepare(&kubelet, &claim).await.unwrap();
    let whole = lab.claim_of("whole", "gpu-0000-1a-00").await;
    let refused = prepare(&kubelet, &whole).await.unwrap_err();
    assert!(refused.contains("still has 1 MIG instance"), "{refused}");
    let cut = lab.claim_of("cut", "gpu-0000-1a-00-mig-1g-10gb-3").await;
    assert!(prepare(&kubelet, &cut).await.unwrap_err().contains("is occupied"));
    assert_eq!(lab.instances(), [(0, "2g.20gb".to_owned(), 2)]);
    lab.stop().await;
}
