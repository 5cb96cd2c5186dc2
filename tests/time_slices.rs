//! GPUs without MIG: whole, or as time-shared devices; and that a whole GPU and its parts exclude each other, however they
//! are published.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mig_model::facts::MigMode;
use mig_model::inventory::{Attachment, Gpu, GpuState, Inventory, OfferPolicy, inventory_on};

use crate::common;
use common::{
    ControlPlane, Lab, device_names, each_control_plane, eventually, is_complete, prepare, unprepare,
};
use dra_driver_mig::nvml;
use k8s_openapi::api::resource::v1::{Device, ResourceClaim};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube_sim::kubelet::Claim;
use mig_model::layout::{GpuLayout, Layouts, apply};
use nvml_sim::{Model, SimNode};
use serde_json::json;

const L4: &str = "gpu-0000-1a-00";

fn share(index: u32) -> String {
    format!("{L4}-share-{index}")
}

fn names(inventory: &Inventory) -> Vec<String> {
    inventory.devices().map(|it| it.name.to_string()).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|it| (*it).to_owned()).collect()
}

/// What a node with these GPUs offers.
fn offers(gpus: &str, time_slices: u32, held: &[&str], problem: Option<&str>) -> Inventory {
    let directory = tempfile::tempdir().unwrap();
    let node = SimNode::create(directory.path(), &nvml_sim::parse_gpus(gpus).unwrap()).unwrap();
    let facts = nvml::discover(&nvml::open(&node.library()).unwrap()).unwrap();
    let gpu = |facts: &mig_model::facts::GpuFacts| Gpu {
        facts: Arc::new(facts.clone()),
        attachment: Attachment::default(),
        state: GpuState {
            mode: facts.mig.as_ref().map(|_| MigMode { current: true, pending: true }),
            instances: Vec::new(),
            problem: problem.map(str::to_owned),
        },
    };
    let policy = OfferPolicy { held: set(held), time_slices, ..OfferPolicy::default() };
    inventory_on(&facts, &facts.gpus.iter().map(gpu).collect::<Vec<_>>(), &policy)
}

#[test]
fn every_gpu_without_mig_is_whole_by_default_and_shared_where_that_is_wanted() {
    for model in Model::all() {
        let gpus = format!("1x{}", model.name());
        let alone = names(&offers(&gpus, 1, &[], None));
        if model.has_mig() {
            assert!(1 < alone.len(), "{gpus}");
            let asked = names(&offers(&gpus, 8, &[], None));
            assert_eq!(asked, alone, "{gpus}: a GPU with MIG is never time-sliced");
        } else {
            assert_eq!(alone, [L4], "{gpus}");
            let shared: Vec<String> = (0..8).map(share).collect();
            assert_eq!(names(&offers(&gpus, 8, &[], None)), shared, "{gpus}");
        }
    }
    assert!(Model::all().filter(|it| !it.has_mig()).count() >= 3, "L4, L40S and T4 are among them");
}

#[test]
fn whatever_the_number_of_shares_becomes_what_claims_hold_stays_and_excludes_the_rest() {
    let check = |slices: u32, held: &[&str], expected: &[&str]| {
        assert_eq!(names(&offers("1xL4", slices, held, None)), expected, "{slices} {held:?}");
    };
    let [s0, s1, s2, s3] = [0, 1, 2, 3].map(share);
    let [s0, s1, s2, s3] = [s0.as_str(), &s1, &s2, &s3];
    check(1, &[s2], &[s2]);
    check(1, &[L4], &[L4]);
    check(4, &[L4], &[L4]);
    check(4, &[s2], &[s0, s1, s2, s3]);
    check(2, &[s3], &[s0, s3]);
    check(2, &[s2, s3], &[s2, s3]);
    check(2, &[s1, s2, s3], &[s1, s2, s3]);
    // Both are held only after something has gone wrong; neither is taken away.
    check(1, &[L4, s1], &[L4, s1]);
    check(4, &["gpu-0000-99-00-share-1"], &[s0, s1, s2, s3]);
    assert_eq!(names(&offers("1xL4", 4, &[s3], Some("it is lost"))), [s3]);
}

#[test]
fn what_is_left_out_for_a_claim_is_withheld_and_so_comes_back_when_that_claim_goes() {
    for (slices, held) in [(1, share(0)), (2, L4.to_owned()), (2, share(3))] {
        let offered = offers("1xL4", slices, &[&held], None);
        assert!(
            !offered.gpus[0].withheld.is_empty(),
            "{slices} {held}: the driver looks again where it is not"
        );
    }
}

#[test]
fn a_share_that_is_not_offered_any_more_is_still_known_to_its_claim() {
    let inventory = offers("1xL4,1xH100-80GB", 1, &[], None);
    let l4 = inventory.devices().find(|it| it.mig().is_none() && it.consumes.is_empty()).unwrap();
    let known = inventory.find(&format!("{}-share-7", l4.name)).unwrap();
    assert_eq!(known.parent_uuid, l4.parent_uuid);
    let h100 = inventory.gpus.iter().find(|it| it.can_be_cut()).unwrap();
    assert!(inventory.find(&format!("{}-share-7", h100.counter_set)).is_none());
    assert!(inventory.find(&format!("{}-share-48", l4.name)).is_none());
}

#[test]
fn a_whole_gpu_and_its_parts_exclude_each_other_by_counters_and_by_layout() {
    for model in Model::all().filter(|it| it.has_mig() && it.name().contains("H100")) {
        let all = offers(&format!("1x{}", model.name()), 1, &[], None);
        let gpu = &all.gpus[0];
        let whole = gpu.devices.iter().find(|it| it.mig().is_none()).unwrap();
        assert_eq!(whole.consumes, gpu.counters, "the whole GPU takes all there is");
        for part in gpu.devices.iter().filter(|it| it.mig().is_some()) {
            assert!(part.consumes.values().any(|it| 0 < *it), "{}: so it excludes each part", part.name);
        }
        let counts: BTreeMap<String, u32> = [("1g.10gb".to_owned(), 2)].into();
        for layout in [
            GpuLayout::Whole,
            GpuLayout::Cut(counts.clone()),
            GpuLayout::Free { cut: true, counts: counts.clone() },
            GpuLayout::Free { cut: false, counts },
        ] {
            let layouts: Layouts = [(gpu.counter_set.clone(), layout)].into();
            for held in [None, Some(whole), gpu.devices.iter().find(|it| it.mig().is_some())] {
                let held: BTreeSet<String> = held.iter().map(|it| it.name.to_string()).collect();
                let offered = apply(&all, &layouts, &held).inventory;
                let (parts, wholes): (Vec<_>, Vec<_>) = offered.devices().partition(|it| it.mig().is_some());
                assert!(parts.is_empty() || wholes.is_empty(), "{layouts:?} {held:?}: {offered:?}");
            }
        }
    }
}

fn text(device: &Device, attribute: &str) -> String {
    device.attributes.as_ref().unwrap()[attribute].string.clone().unwrap()
}

async fn lab(plane: ControlPlane, gpus: &str, time_slices: &str) -> Lab {
    let lab = Lab::new(plane, gpus).await;
    lab.with_args(&["--time-slices", time_slices, "--settle-time", "1", "--call-budget", "2"])
}

async fn delete(lab: &Lab, claim: &Claim) {
    let api: Api<ResourceClaim> = Api::namespaced(lab.client.clone(), "default");
    api.delete(&claim.name, &DeleteParams::default()).await.unwrap();
}

async fn published_when(lab: &Lab, wanted: &[&str]) {
    let wanted = set(wanted);
    eventually(&format!("{wanted:?} are published"), async || {
        let slices = lab.slices().await;
        let names: BTreeSet<String> = device_names(&slices).into_iter().map(str::to_owned).collect();
        (is_complete(&slices) && names == wanted).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_claims_share_a_gpu_at_the_same_time() {
    each_control_plane(false, async |plane| {
        let mut lab = lab(plane, "1xL4", "2").await;
        lab.start();
        published_when(&lab, &[&share(0), &share(1)]).await;
        let slices = lab.slices().await;
        for device in slices.iter().flat_map(|it| it.spec.devices.iter().flatten()) {
            assert_eq!(
                (text(device, "sharing"), text(device, "type")),
                ("time-slicing".into(), "gpu".into())
            );
            assert!(device.consumes_counters.is_none());
            let memory = &device.capacity.as_ref().unwrap()["memory"].value.0;
            assert!(memory.starts_with("23034"), "all of the memory, which all users share: {memory}");
        }
        let kubelet = lab.kubelet().await;
        let first = lab.claim_of("first", &share(0)).await;
        let second = lab.claim_of("second", &share(1)).await;
        let same = lab.claim_of("same", &share(1)).await;
        let whole = lab.claim_of("whole", L4).await;
        prepare(&kubelet, &first).await.unwrap();
        prepare(&kubelet, &second).await.unwrap();
        assert_eq!(lab.files("cdi").len(), 2);
        let shares = lab.inspect()["gpus"][0]["shares"].clone();
        let owner = |claim: &Claim| format!("default/{}", claim.name);
        assert_eq!(shares, json!({"0": owner(&first), "1": owner(&second)}));
        let refused = prepare(&kubelet, &same).await.unwrap_err();
        assert!(refused.contains("overlaps") && refused.contains(&second.name), "{refused}");
        let refused = prepare(&kubelet, &whole).await.unwrap_err();
        assert!(refused.contains("overlaps") && refused.contains(&format!("{L4}-share-")), "{refused}");
        unprepare(&kubelet, &second).await.unwrap();
        prepare(&kubelet, &same).await.unwrap();
        for claim in [&first, &same] {
            unprepare(&kubelet, claim).await.unwrap();
        }
        // And the other way round: what has the whole GPU keeps its shares away.
        prepare(&kubelet, &whole).await.unwrap();
        assert!(prepare(&kubelet, &first).await.unwrap_err().contains("overlaps"));
        for claim in [&first, &second, &same] {
            delete(&lab, claim).await;
        }
        published_when(&lab, &[L4]).await;
        unprepare(&kubelet, &whole).await.unwrap();
        delete(&lab, &whole).await;
        published_when(&lab, &[&share(0), &share(1)]).await;
        assert_eq!(lab.left(), Vec::<String>::new());
        lab.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_number_of_shares_waits_for_what_claims_have() {
    for keeps_counters in [true, false] {
        each_control_plane(keeps_counters, async |plane| {
            // An H100 beside it: then counters, or layouts, are in use.
            let mut lab = lab(plane, "1xL4,1xH100-80GB", "4").await;
            let shares_of = async |lab: &Lab, wanted: &[&str]| {
                let wanted = set(wanted);
                eventually(&format!("{wanted:?} of the L4 are published"), async || {
                    let slices = lab.slices().await;
                    let names = device_names(&slices).into_iter().filter(|it| it.starts_with(L4));
                    let names: BTreeSet<String> = names.map(str::to_owned).collect();
                    (is_complete(&slices) && names == wanted).then_some(())
                })
                .await;
            };
            lab.start();
            shares_of(&lab, &[&share(0), &share(1), &share(2), &share(3)]).await;
            let kubelet = lab.kubelet().await;
            let held = lab.claim_of("held", &share(2)).await;
            prepare(&kubelet, &held).await.unwrap();
            // Given away, but the kubelet has not asked for it yet.
            let allocated = lab.claim_of("allocated", &share(3)).await;
            lab.stop().await;

            lab = lab.with_args(&["--settle-time", "1"]);
            lab.start();
            shares_of(&lab, &[&share(2), &share(3)]).await;
            let kubelet = lab.kubelet().await;
            prepare(&kubelet, &allocated).await.unwrap();
            for claim in [&held, &allocated] {
                unprepare(&kubelet, claim).await.unwrap();
                delete(&lab, claim).await;
            }
            shares_of(&lab, &[L4]).await;
            lab.stop().await;

            let whole = lab.claim_of("whole", L4).await;
            lab = lab.with_args(&["--settle-time", "1", "--time-slices", "2"]);
            lab.start();
            let kubelet = lab.kubelet().await;
            prepare(&kubelet, &whole).await.unwrap();
            shares_of(&lab, &[L4]).await;
            unprepare(&kubelet, &whole).await.unwrap();
            delete(&lab, &whole).await;
            shares_of(&lab, &[&share(0), &share(1)]).await;
            lab.stop().await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_behind_a_withdrawal_never_offers_the_whole_gpu_beside_a_share() {
    let plane = ControlPlane::simulated(false).await;
    let ControlPlane::Simulated(server) = plane.clone() else { unreachable!("it is the simulated one") };
    let mut lab = lab(plane, "1xL4", "2").await;
    lab.start();
    published_when(&lab, &[&share(0), &share(1)]).await;
    lab.stop().await;
    // The shares are withdrawn, and the driver ends before the settle time does.
    lab.set_args(&["--settle-time", "3600"]);
    lab.start();
    published_when(&lab, &[]).await;
    lab.stop().await;

    let seen = server.requests().len();
    lab.start();
    let rounds = || {
        let requests = server.requests().split_off(seen);
        let lists = requests.iter().filter(|it| it.path.ends_with("/resourceslices") && it.method == "GET");
        lists.filter(|it| !it.is_watch() && it.query.contains("fieldSelector")).count()
    };
    // Two rounds: what the first one decides is written before the second one begins.
    for round in 1..=2 {
        let before = rounds();
        let name = lab.slices().await[0].metadata.name.clone().unwrap();
        let odd = json!({"metadata": {"annotations": {"example.com/round": round.to_string()}}});
        lab.slices_api().patch(&name, &PatchParams::default(), &Patch::Merge(odd)).await.unwrap();
        eventually("the driver compares", async || (before + 1 < rounds()).then_some(())).await;
    }
    assert_eq!(device_names(&lab.slices().await), [""; 0], "a scheduler may still give away a share");
    // One that did is not too late.
    lab.claim_of("late", &share(1)).await;
    let name = lab.slices().await[0].metadata.name.clone().unwrap();
    lab.slices_api().delete(&name, &DeleteParams::default()).await.unwrap();
    published_when(&lab, &[&share(1)]).await;
    lab.stop().await;
}
