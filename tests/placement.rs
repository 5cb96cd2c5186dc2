//! The order in which devices are offered, for every model that the simulator knows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mig_model::facts::MigMode;
use mig_model::inventory::{
    AllocatableDevice, Attachment, Capacity, DeviceKind, Gpu, GpuState, Inventory, inventory,
};
use mig_model::placement::{Policy, Ranking};

use crate::common;
use common::{ControlPlane, Lab, device_names, eventually, is_complete};
use dra_driver_mig::nvml;
use k8s_openapi::api::resource::v1::ResourceSlice;
use mig_model::slices::{Change, Owner, diff, keep_order, render};
use nvml_sim::{Model, SimNode};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

type Held = BTreeSet<String>;

/// What a node with these GPUs offers, MIG mode being on.
fn offers(gpus: &str) -> Inventory {
    let directory = tempfile::tempdir().unwrap();
    let node = SimNode::create(directory.path(), &nvml_sim::parse_gpus(gpus).unwrap()).unwrap();
    let facts = nvml::discover(&nvml::open(&node.library()).unwrap()).unwrap();
    let state = |mode| GpuState { mode, instances: Vec::new(), problem: None };
    let gpu = |facts: &mig_model::facts::GpuFacts| Gpu {
        facts: Arc::new(facts.clone()),
        attachment: Attachment::default(),
        state: state(facts.mig.as_ref().map(|_| MigMode { current: true, pending: true })),
    };
    inventory(&facts, &facts.gpus.iter().map(gpu).collect::<Vec<_>>(), &Held::new())
}

fn mig_models() -> impl Iterator<Item = &'static str> {
    Model::all().filter(|it| it.has_mig()).map(|it| it.name())
}

/// Nodes of every model, alone and in the numbers that servers have, and a mixed one.
fn nodes() -> Vec<String> {
    let counts = [1, 3, 8];
    let mut nodes: Vec<String> =
        mig_models().flat_map(|model| counts.map(|count| format!("{count}x{model}"))).collect();
    nodes.extend(
        ["2xH100-80GB,2xA100-40GB,1xL4", "3xH100-80GB,1xA30-24GB", "16xH100-80GB", "2xL4"].map(str::to_owned),
    );
    nodes
}

fn owner() -> Owner {
    Owner { driver: "d.example.com".to_owned(), node: "n".to_owned(), node_uid: "u".to_owned() }
}

fn slices(inventory: &Inventory, held: &Held, policy: Policy) -> Vec<ResourceSlice> {
    render(inventory, &Ranking::of(inventory, held, policy), &owner())
}

/// True where the scheduler could allocate the device beside those that are held.
fn is_available(inventory: &Inventory, held: &Held, name: &str) -> bool {
    let gpu = inventory.gpus.iter().find(|it| it.devices.iter().any(|it| it.name.as_str() == name)).unwrap();
    let taken = gpu.devices.iter().filter(|it| it.name.as_str() == name || held.contains(it.name.as_str()));
    let mut left = gpu.counters.clone();
    let mut fits = !held.contains(name);
    for (counter, amount) in taken.flat_map(|it| &it.consumes) {
        let left = left.get_mut(counter).unwrap();
        fits &= *amount <= *left;
        *left = left.saturating_sub(*amount);
    }
    fits
}

/// Allocates or frees what the indices point at, as far as the counters allow it.
fn toggle(inventory: &Inventory, held: &mut Held, toggles: &[Index]) {
    let names: Vec<String> = inventory.devices().map(|it| it.name.to_string()).collect();
    for name in toggles.iter().map(|it| it.get(&names)) {
        if !held.remove(name) && is_available(inventory, held, name) {
            held.insert(name.clone());
        }
    }
}

/// The device that a request gets from a slice.
fn first_fit<'i>(
    inventory: &'i Inventory,
    held: &Held,
    slice: &ResourceSlice,
    accepts: impl Fn(&AllocatableDevice) -> bool,
) -> Option<&'i AllocatableDevice> {
    let devices: BTreeMap<&str, &AllocatableDevice> =
        inventory.devices().map(|it| (it.name.as_str(), it)).collect();
    let names = device_names(std::slice::from_ref(slice));
    let mut found = names.iter().map(|it| devices[*it]);
    found.find(|it| accepts(it) && is_available(inventory, held, it.name.as_str()))
}

/// Runs a property over states of a node.
fn check(cases: u32, property: impl Fn(&[Index]) -> Result<(), TestCaseError>) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    runner.run(&prop::collection::vec(any::<Index>(), 0..60), |toggles| property(&toggles)).unwrap();
}

fn profile(device: &AllocatableDevice) -> &str {
    device.mig().map_or("full", |it| &it.profile)
}

fn starts_of(ranking: &Ranking, inventory: &Inventory, profile: &str) -> Vec<u32> {
    let available = ranking.names().filter(|it| ranking.cost(it).is_some());
    let specs = available.filter_map(|it| inventory.device(it)?.mig());
    specs.filter(|it| it.profile == profile).map(|it| it.placement.start).collect()
}

#[test]
fn every_device_is_published_exactly_once_and_within_the_limits() {
    for node in nodes() {
        let inventory = offers(&node);
        let mut all: Vec<&str> = inventory.devices().map(|it| it.name.as_str()).collect();
        all.sort_unstable();
        check(3, |toggles| {
            let mut held = Held::new();
            toggle(&inventory, &mut held, toggles);
            for policy in [Policy::Pack, Policy::Spread, Policy::Static] {
                let slices = slices(&inventory, &held, policy);
                let mut published = device_names(&slices);
                published.sort_unstable();
                prop_assert_eq!(&published, &all, "{}", node);
                prop_assert!(slices.iter().all(|it| it.spec.devices.iter().flatten().count() <= 64));
            }
            Ok(())
        });
    }
}

#[test]
fn gpus_share_slices_as_far_as_their_small_devices_fit() {
    for (node, slices_of_devices) in [
        ("2xH100-80GB", 1),
        ("4xH100-80GB", 2),
        ("8xH100-80GB", 5),
        ("8xA100-40GB", 5),
        ("8xRTX-PRO-6000-96GB", 5),
        ("4xA30-24GB", 1),
        ("8xL4", 1),
    ] {
        let slices = slices(&offers(node), &Held::new(), Policy::Pack);
        let of_devices = slices.iter().filter(|it| it.spec.devices.is_some()).count();
        assert_eq!(of_devices, slices_of_devices, "{node}");
    }
}

#[test]
fn a_change_of_what_is_held_only_reorders_devices_within_their_slices() {
    for node in
        ["1xH100-80GB", "8xH100-80GB", "5xA30-24GB", "4xRTX-PRO-6000-96GB", "2xH100-80GB,2xA100-40GB,1xL4"]
    {
        let inventory = offers(node);
        check(12, |toggles| {
            let mut held = Held::new();
            let (before, after) = toggles.split_at(toggles.len() / 2);
            toggle(&inventory, &mut held, before);
            let mut published = slices(&inventory, &held, Policy::Pack);
            published.iter_mut().for_each(|it| it.spec.pool.generation = 7);
            toggle(&inventory, &mut held, after);
            let ranking = Ranking::of(&inventory, &held, Policy::Pack);
            let write = |published: &[ResourceSlice]| {
                let mut wanted = render(&inventory, &ranking, &owner());
                keep_order(&mut wanted, published, &ranking, |_| true);
                diff(wanted, published)
            };
            for change in write(&published) {
                let Change::Update(new) = change else { panic!("{change:?}") };
                prop_assert_eq!(new.spec.pool.generation, 7);
                let old = published.iter_mut().find(|it| it.metadata.name == new.metadata.name).unwrap();
                let sorted = |slice: &ResourceSlice| {
                    let mut devices = slice.spec.devices.clone().unwrap();
                    devices.sort_by(|left, right| left.name.cmp(&right.name));
                    devices
                };
                prop_assert_eq!(sorted(old), sorted(&new));
                *old = new;
            }
            prop_assert_eq!(write(&published), [], "once written, it is as wanted");
            Ok(())
        });
    }
}

#[test]
fn what_was_published_gives_a_choice_as_good_as_the_rankings() {
    for policy in [Policy::Pack, Policy::Spread, Policy::Static] {
        let inventory = offers("4xH100-80GB");
        check(12, |toggles| {
            let mut held = Held::new();
            let published = slices(&inventory, &held, policy);
            toggle(&inventory, &mut held, toggles);
            let ranking = Ranking::of(&inventory, &held, policy);
            let fresh = render(&inventory, &ranking, &owner());
            let mut kept = fresh.clone();
            keep_order(&mut kept, &published, &ranking, |_| true);
            for wanted in inventory.devices().map(profile).collect::<BTreeSet<_>>() {
                for (kept, fresh) in kept.iter().zip(&fresh) {
                    let choice = |slice| first_fit(&inventory, &held, slice, |it| profile(it) == wanted);
                    let (kept, fresh) = (choice(kept), choice(fresh));
                    let cost = |it: &AllocatableDevice| ranking.cost(it.name.as_str()).unwrap();
                    prop_assert_eq!(kept.map(cost), fresh.map(cost));
                    if policy == Policy::Static {
                        prop_assert_eq!(kept, fresh);
                    }
                }
            }
            // While the order may not change, it stays as it is published.
            let mut fixed = fresh.clone();
            prop_assert_eq!(keep_order(&mut fixed, &published, &ranking, |_| false), [0usize; 0]);
            prop_assert_eq!(device_names(&fixed), device_names(&published));
            Ok(())
        });
    }
}

#[test]
fn the_ranking_depends_on_nothing_but_what_is_offered_and_held() {
    let inventory = offers("4xH100-80GB");
    let mut held = Held::new();
    toggle(&inventory, &mut held, &[]);
    for policy in [Policy::Pack, Policy::Spread, Policy::Static] {
        assert_eq!(Ranking::of(&inventory, &held, policy), Ranking::of(&inventory, &held, policy));
    }
    let names = |held: &Held| {
        Ranking::of(&inventory, held, Policy::Static).names().map(str::to_owned).collect::<Vec<_>>()
    };
    check(12, |toggles| {
        let mut held = Held::new();
        toggle(&inventory, &mut held, toggles);
        prop_assert_eq!(names(&held), names(&Held::new()));
        Ok(())
    });
}

#[test]
fn small_instances_begin_where_they_block_the_least() {
    let inventory = offers("1xH100-80GB");
    for policy in [Policy::Pack, Policy::Spread, Policy::Static] {
        let ranking = Ranking::of(&inventory, &Held::new(), policy);
        let starts = |profile| starts_of(&ranking, &inventory, profile);
        assert_eq!(starts("1g.10gb"), [6, 5, 4, 3, 2, 1, 0]);
        assert_eq!(starts("1g.20gb"), [6, 4, 2, 0]);
        assert_eq!(starts("2g.20gb"), [4, 2, 0]);
        assert_eq!(starts("3g.40gb"), [4, 0]);
    }
}

#[test]
fn a_pair_is_filled_before_another_one_is_begun() {
    let inventory = offers("1xH100-80GB");
    for (taken, next) in [(2, 3), (3, 2), (0, 1), (1, 0)] {
        let held = [4, 5, 6, taken].map(|it| format!("gpu-0000-1a-00-mig-1g-10gb-{it}"));
        let ranking = Ranking::of(&inventory, &held.into(), Policy::Pack);
        assert_eq!(starts_of(&ranking, &inventory, "1g.10gb")[0], next);
    }
}

#[test]
fn the_second_largest_profile_stays_possible_as_long_as_any_order_could_keep_it() {
    for model in mig_models() {
        let inventory = offers(&format!("1x{model}"));
        let gpu = &inventory.gpus[0];
        let plain: Vec<_> =
            gpu.devices.iter().filter(|it| it.mig().is_some() && !profile(it).contains(['+', '-'])).collect();
        let size = |it: &&&AllocatableDevice| it.mig().map_or(0, |it| it.placement.size);
        let whole = plain.iter().map(|it| size(&it)).max().unwrap();
        let large = plain.iter().filter(|it| size(it) < whole);
        let large = large.max_by_key(|it| (size(it), it.mig().map(|it| it.slices)));
        let large = profile(large.unwrap());
        let smallest = plain.iter().map(|it| size(&it)).min().unwrap();
        let ranking = Ranking::of(&inventory, &Held::new(), Policy::Pack);
        let small: Vec<&str> = ranking
            .names()
            .filter(|it| plain.iter().any(|plain| plain.name.as_str() == *it && size(&plain) == smallest))
            .collect();
        let is_possible = |held: &Held| {
            let mut all = gpu.devices.iter().filter(|it| profile(it) == large);
            all.any(|it| is_available(&inventory, held, it.name.as_str()))
        };
        let held = |chosen: &dyn Fn(usize) -> bool| -> Held {
            (0..small.len()).filter(|it| chosen(*it)).map(|it| small[it].to_owned()).collect()
        };
        let most = |choices: Vec<Held>| choices.iter().filter(|it| is_possible(it)).map(Held::len).max();
        let ours = most((0..=small.len()).map(|count| held(&|it| it < count)).collect());
        let best = most((0..1_u32 << small.len()).map(|bits| held(&|it| bits >> it & 1 == 1)).collect());
        assert_eq!(ours, best, "{large} of {model}");
    }
}

#[test]
fn pack_prefers_a_partly_used_gpu_and_spread_an_empty_one() {
    for node in ["8xH100-80GB", "4xA30-24GB", "3xRTX-PRO-6000-96GB"] {
        let inventory = offers(node);
        check(12, |toggles| {
            let mut held = Held::new();
            toggle(&inventory, &mut held, &toggles[..toggles.len().min(12)]);
            let is_used = |device: &AllocatableDevice| {
                let gpu = inventory.gpus.iter().find(|it| it.devices.contains(device)).unwrap();
                gpu.devices.iter().any(|it| held.contains(it.name.as_str()))
            };
            for (policy, prefers_used) in [(Policy::Pack, true), (Policy::Spread, false)] {
                for slice in slices(&inventory, &held, policy) {
                    for wanted in inventory.devices().map(profile).collect::<BTreeSet<_>>() {
                        let choice = |accepts: &dyn Fn(&AllocatableDevice) -> bool| {
                            first_fit(&inventory, &held, &slice, |it| profile(it) == wanted && accepts(it))
                        };
                        let preferred = choice(&|it| is_used(it) == prefers_used);
                        prop_assert!(preferred.is_none() || preferred == choice(&|_| true), "{wanted}");
                    }
                }
            }
            Ok(())
        });
    }
}

#[test]
fn a_request_by_size_takes_the_scarce_devices_last() {
    for model in mig_models() {
        for count in [1, 3, 8] {
            let inventory = offers(&format!("{count}x{model}"));
            let memory = |it: &AllocatableDevice| match it.capacities["memory"] {
                Capacity::Mebibytes(mebibytes) => mebibytes,
                Capacity::Count(_) => unreachable!("memory has a unit"),
            };
            let is_mig = |it: &AllocatableDevice| matches!(it.kind, DeviceKind::Mig(_));
            let has_media = |it: &AllocatableDevice| profile(it).contains("+me");
            // More memory than the plain profile of as many compute slices.
            let least = |slices| {
                let specs = inventory.devices().filter_map(|it| it.mig());
                specs.filter(|it| it.slices == slices).map(|it| it.placement.size).min()
            };
            let is_double = |it: &AllocatableDevice| {
                it.mig().is_some_and(|it| least(it.slices) < Some(it.placement.size))
            };
            let sizes: BTreeSet<u64> = inventory.devices().filter(|it| is_mig(it)).map(memory).collect();
            check(4, |toggles| {
                let mut held = Held::new();
                toggle(&inventory, &mut held, toggles);
                for slice in slices(&inventory, &held, Policy::Pack) {
                    for size in &sizes {
                        let choice = |accepts: &dyn Fn(&AllocatableDevice) -> bool| {
                            let fits = |it: &_| is_mig(it) && *size <= memory(it) && accepts(it);
                            first_fit(&inventory, &held, &slice, fits)
                        };
                        let Some(taken) = choice(&|_| true) else { continue };
                        prop_assert!(!has_media(taken), "{} for {size} MiB", taken.name);
                        let plain = choice(&|it| !has_media(it) && !is_double(it));
                        prop_assert!(plain.is_none() || !is_double(taken), "{} for {size} MiB", taken.name);
                    }
                }
                Ok(())
            });
        }
    }
}

#[test]
fn what_is_held_stays_though_its_profile_is_left_out() {
    let inventory = offers("2xH100-80GB");
    let filter = "!*+me*,!1g.20gb".parse().unwrap();
    let held = Held::from(["gpu-0000-1a-00-mig-1g-10gb-me-3".to_owned()]);
    assert_eq!(inventory.with_profiles(&filter, &Held::new()).devices().count(), 52 - 14 - 8);
    let reduced = inventory.with_profiles(&filter, &held);
    assert_eq!(reduced.devices().filter(|it| profile(it).contains("+me")).count(), 1);
    // What is left out can still be prepared for a claim that was allocated before.
    assert!(inventory.devices().all(|it| reduced.device(it.name.as_str()) == Some(it)));
}

/// Writes of slices that the API server has seen.
fn writes(plane: &ControlPlane) -> usize {
    let ControlPlane::Simulated(server) = plane else { unreachable!("it is the simulated one") };
    let requests = server.requests();
    let is_write = |it: &&kube_sim::RequestInfo| {
        it.path.contains("resourceslices") && it.method != "GET" && !it.query.contains("dryRun")
    };
    requests.iter().filter(is_write).count()
}

fn first<'s>(slices: &'s [ResourceSlice], pattern: &str) -> Option<&'s str> {
    device_names(slices).into_iter().find(|it| it.contains(pattern))
}

#[tokio::test(flavor = "multi_thread")]
async fn slices_follow_what_claims_hold_in_place_and_only_where_it_matters() {
    let plane = ControlPlane::simulated(true).await;
    let mut lab = Lab::new(plane.clone(), "4xH100-80GB").await;
    lab.start();
    let before = lab.slices_when(is_complete).await;
    let written = writes(&plane);
    let kubelet = lab.kubelet().await;

    // What the slices offer first: nothing has to change for the next one.
    let choice = first(&before, "mig-1g-10gb-").unwrap().to_owned();
    let expected = lab.claim_of("expected", &choice).await;
    kubelet.prepare(std::slice::from_ref(&expected)).await.unwrap();
    // Another GPU, as if it had been the only one with room then: it is the fuller one now, and comes first.
    let other = lab.claim_of("other", "gpu-0000-3b-00-mig-3g-40gb-4").await;
    kubelet.prepare(std::slice::from_ref(&other)).await.unwrap();
    let place = |slices: &[ResourceSlice], name: &str| device_names(slices).iter().position(|it| *it == name);
    let after = lab
        .slices_when(|it| {
            place(it, "gpu-0000-3b-00-mig-1g-10gb-0") < place(it, "gpu-0000-1a-00-mig-1g-10gb-5")
        })
        .await;
    assert_eq!(before.len(), after.len());
    for (old, new) in before.iter().zip(&after) {
        assert_eq!(old.spec.pool, new.spec.pool, "the generation stays");
        let sorted = |slice| {
            let mut names = device_names(std::slice::from_ref(slice));
            names.sort_unstable();
            names.into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(sorted(old), sorted(new));
    }
    eventually("there is one write for each slice whose order changed", async || {
        let now = lab.slices().await;
        let changed = before.iter().zip(&now).filter(|(old, new)| old != new).count();
        (writes(&plane) - written == changed).then_some(())
    })
    .await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_that_is_left_out_goes_with_its_last_claim() {
    let mut lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await;
    lab.start();
    lab.slices_when(|it| is_complete(it) && device_names(it).len() == 26).await;
    let claim = lab.claim_of("media", "gpu-0000-1a-00-mig-1g-10gb-me-2").await;
    lab.kubelet().await.prepare(std::slice::from_ref(&claim)).await.unwrap();
    lab.stop().await;
    lab = lab.with_args(&["--profiles", "!*+me*", "--settle-time", "1"]);
    lab.start();
    let slices = lab.slices_when(|it| is_complete(it) && device_names(it).len() == 26 - 7 + 1).await;
    assert!(first(&slices, "-me-2").is_some());
    lab.kubelet().await.unprepare(std::slice::from_ref(&claim)).await.unwrap();
    lab.delete_claim(&claim).await;
    lab.slices_when(|it| is_complete(it) && device_names(it).len() == 26 - 7).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_that_is_left_out_stays_for_a_claim_that_is_allocated_and_not_prepared() {
    // Published before by layout or with counters, which is all the same to the claim.
    for counted in [true, false] {
        let mut lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await;
        let before = if counted { &[][..] } else { &["--mode", "layout"] };
        lab = lab.with_args(&[before, &["--settle-time", "1"]].concat());
        lab.start();
        let slices = lab.slices_when(|it| is_complete(it) && !device_names(it).is_empty()).await;
        let left_out = first(&slices, "mig-1g-10gb-").unwrap().to_owned();
        let claim = lab.claim_of("small", &left_out).await;
        lab.stop().await;
        lab = lab.with_args(&["--profiles", "!1g.10gb", "--settle-time", "1"]);
        lab.start();
        let slices = lab.slices_when(|it| is_complete(it) && device_names(it).len() == 26 - 7 + 1).await;
        assert!(device_names(&slices).contains(&left_out.as_str()));
        lab.delete_claim(&claim).await;
        lab.slices_when(|it| is_complete(it) && device_names(it).len() == 26 - 7).await;
        lab.stop().await;
    }
}
