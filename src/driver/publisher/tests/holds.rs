//! What the allocator of kube-scheduler does with the slices of a GPU that is held back where counters are kept, whichever of them it
//! has seen, and whether it has seen them or a release first.

use std::collections::BTreeMap;

use dra_allocator::{Allocated, ClaimRef, Cluster, DeviceId, Features};
use k8s_openapi::api::core::v1::Node as KubeNode;
use k8s_openapi::api::resource::v1::{Counter, DeviceClass, ResourceClaim};
use serde_json::json;

use super::scene::{Scene, mig};
use super::*;

const GPU: &str = "gpu-0000-1a-00";

/// The device of a profile that a scheduler allocates which sees these slices and takes these devices for allocated.
pub(super) fn allocates(
    slices: &[ResourceSlice],
    allocated: &BTreeSet<String>,
    profile: &str,
) -> Option<String> {
    let expression = format!("device.attributes[\"d\"].profile == \"{profile}\"");
    let class: DeviceClass = serde_json::from_value(
        json!({"metadata": {"name": "c"}, "spec": {"selectors": [{"cel": {"expression": expression}}]}}),
    )
    .unwrap();
    let claim: ResourceClaim =
        serde_json::from_value(json!({"metadata": {"name": "new"}, "spec": {"devices": {"requests": [
        {"name": "r", "exactly": {"deviceClassName": "c", "allocationMode": "ExactCount", "count": 1}}]}}}))
        .unwrap();
    let mut known = Allocated::default();
    for device in allocated {
        let id = DeviceId { driver: "d".into(), pool: "n/d".into(), device: device.clone() };
        known.insert(id, ClaimRef { namespace: "ns".into(), name: device.clone() });
    }
    let mut node = KubeNode::default();
    node.metadata.name = Some("n".to_owned());
    let classes = [class];
    let cluster = Cluster::new(slices, &classes, Features::ALL);
    let results = cluster.allocate(&node, &[claim], &known).ok()?.pop()?.devices?.results?;
    Some(results[0].device.clone())
}

/// Every mixture of old and new slices that a scheduler may have.
fn mixtures(old: &[ResourceSlice], new: &[ResourceSlice]) -> Vec<Vec<ResourceSlice>> {
    let names: BTreeSet<&String> = old.iter().chain(new).filter_map(|it| it.metadata.name.as_ref()).collect();
    let find = |of: &[ResourceSlice], name: &String| {
        of.iter().find(|it| it.metadata.name.as_ref() == Some(name)).cloned()
    };
    let mixture = |choice: u32| {
        let chosen = names.iter().enumerate();
        chosen.filter_map(|(at, name)| find(if choice & 1 << at == 0 { old } else { new }, name)).collect()
    };
    (0..1 << names.len()).map(mixture).collect()
}

#[test]
fn whichever_slices_and_releases_a_scheduler_has_seen_it_allocates_nothing_that_overlaps() {
    let mut scene = Scene::new("1xH100-80GB");
    scene.look();
    let held = [mig("1g-10gb-0"), mig("1g-10gb-3")];
    held.iter().for_each(|it| scene.prepare(it));
    scene.look();
    let published = scene.rounds.slices.clone();
    assert!(allocates(&published, &scene.allocated, "1g.10gb").is_some());

    scene.rounds.layout.held_back.insert(GPU.to_owned(), "7g.80gb".to_owned());
    scene.look();
    let all: BTreeSet<String> = held.clone().into();
    for seen in mixtures(&published, &scene.rounds.slices) {
        assert_eq!(allocates(&seen, &all, "7g.80gb"), None);
        let small = allocates(&seen, &all, "1g.10gb");
        assert!(small.is_none_or(|it| !all.contains(&it) && seen == published), "as long as all are old");
    }
    let (hidden, mut views) = (scene.rounds.slices.clone(), Vec::new());
    scene.elapse(SETTLE);
    let mut before = std::iter::once(hidden).chain([scene.rounds.slices.clone()]).collect::<Vec<_>>();
    views.append(&mut before);
    for device in &held {
        let taken = scene.allocated.clone();
        scene.end(device);
        // A scheduler may see the release before the driver does anything, or after it.
        for (seen, allocated) in views.iter().flat_map(|it| [(it, &taken), (it, &scene.allocated)]) {
            for profile in ["1g.10gb", "7g.80gb"] {
                assert_eq!(allocates(seen, allocated, profile), None, "{device}");
            }
        }
        let old = scene.rounds.slices.clone();
        assert!(scene.notice());
        let is_free = scene.allocated.is_empty();
        for seen in mixtures(&old, &scene.rounds.slices) {
            for allocated in [&taken, &scene.allocated] {
                assert_eq!(allocates(&seen, allocated, "1g.10gb"), None);
                let large = allocates(&seen, allocated, "7g.80gb");
                assert!(large.is_none() || is_free && large == Some(mig("7g-80gb-0")), "{large:?}");
            }
        }
        views.push(scene.rounds.slices.clone());
    }
    for allocated in [BTreeSet::new(), all] {
        let large = allocates(&scene.rounds.slices, &allocated, "7g.80gb");
        assert_eq!(large, Some(mig("7g-80gb-0")), "also where the releases are not seen yet");
    }
}

#[test]
fn what_a_hold_offers_waits_until_it_is_known_what_was_allocated_at_the_last_moment() {
    let mut scene = Scene::with_prepared("1xH100-80GB", &mig("1g-10gb-5"));
    scene.rounds.layout.held_back.insert(GPU.to_owned(), "4g.40gb".to_owned());
    scene.look();
    // A scheduler that has the slices of before.
    let (late, wanted) = (mig("1g-10gb-0"), mig("4g-40gb-0"));
    scene.allocate(&late);
    let large = |scene: &Scene| allocates(&scene.rounds.slices, &scene.allocated, "4g.40gb");
    assert_eq!(large(&scene), None, "it overlaps {late}");
    scene.elapse(3 * SETTLE);
    assert_eq!(large(&scene), None, "it overlaps {late}");
    scene.end(&late);
    scene.elapse(3 * SETTLE);
    assert_eq!(large(&scene), Some(wanted));
}

#[test]
fn a_device_that_is_hidden_counts_with_its_memory_and_what_is_left_can_be_allocated() {
    let mut scene = Scene::with_prepared("1xH100-80GB", &mig("1g-10gb-4"));
    let memory = |scene: &Scene| {
        let sets = scene.rounds.slices.iter().flat_map(|it| it.spec.shared_counters.iter().flatten());
        sets.map(|it| it.counters[MEMORY].value.0.clone()).collect::<Vec<_>>()
    };
    let total = memory(&scene);
    scene.rounds.layout.held_back.insert(GPU.to_owned(), "3g.40gb".to_owned());
    scene.look();
    scene.elapse(SETTLE);
    assert_ne!(memory(&scene), total);
    assert_eq!(allocates(&scene.rounds.slices, &scene.allocated, "3g.40gb"), Some(mig("3g-40gb-0")));
    scene.allocate(&mig("3g-40gb-0"));
    assert_eq!(allocates(&scene.rounds.slices, &scene.allocated, "3g.40gb"), None);
    scene.rounds.layout.held_back.clear();
    scene.look();
    assert_eq!(memory(&scene), total);
    let free = allocates(&scene.rounds.slices, &scene.allocated, "1g.10gb").unwrap();
    assert!([mig("1g-10gb-5"), mig("1g-10gb-6")].contains(&free), "{free}");
}

#[test]
fn a_hold_for_half_of_a_gpu_offers_the_other_half_and_is_served_whatever_is_allocated_there() {
    let half = [mig("1g-10gb-4"), mig("1g-10gb-5"), mig("1g-10gb-6")];
    let (in_the_way, wanted) = (mig("1g-10gb-1"), mig("4g-40gb-0"));
    let mut scene = Scene::with_prepared("1xH100-80GB", &in_the_way);
    scene.prepare(&half[2]);
    scene.rounds.layout.held_back.insert(GPU.to_owned(), "4g.40gb".to_owned());
    scene.look();
    scene.elapse(3 * SETTLE);
    assert!(scene.published().contains(&half[2]), "it is not in the way, and stays published");
    assert!(!scene.published().contains(&in_the_way));
    let offers = |scene: &Scene, profile: &str| allocates(&scene.rounds.slices, &scene.allocated, profile);
    for _ in 0..2 {
        let free = offers(&scene, "1g.10gb").unwrap();
        assert!(half.contains(&free), "{free}");
        scene.allocate(&free);
        assert_eq!(offers(&scene, "4g.40gb"), None, "{in_the_way} is in the way");
    }
    assert_eq!(offers(&scene, "1g.10gb"), None);
    scene.end(&half[2]);
    assert_eq!(offers(&scene, "1g.10gb"), Some(half[2].clone()), "at once, without the driver");
    scene.allocate(&half[2]);
    scene.end(&in_the_way);
    scene.notice();
    scene.elapse(3 * SETTLE);
    assert_eq!(offers(&scene, "1g.10gb"), None);
    assert_eq!(offers(&scene, "4g.40gb"), Some(wanted));
}

/// What is left of each counter beside what these devices take of it. Panics where one takes of a counter that is not there.
fn counters_left(slices: &[ResourceSlice], allocated: &BTreeSet<String>) -> BTreeMap<(String, String), i128> {
    let bytes = |it: &Counter| {
        let text = it.value.0.as_str();
        text.strip_suffix("Mi")
            .map_or_else(|| text.parse::<i128>(), |it| it.parse().map(|it: i128| it << 20))
            .unwrap()
    };
    let sets = slices.iter().flat_map(|it| it.spec.shared_counters.iter().flatten());
    let mut left: BTreeMap<_, _> = sets
        .flat_map(|set| set.counters.iter().map(|(name, it)| ((set.name.clone(), name.clone()), bytes(it))))
        .collect();
    for device in slices.iter().flat_map(|it| it.spec.devices.iter().flatten()) {
        for consumed in device.consumes_counters.iter().flatten() {
            for (name, amount) in &consumed.counters {
                let key = (consumed.counter_set.clone(), name.clone());
                let left = left.get_mut(&key).unwrap_or_else(|| panic!("{} takes of {key:?}", device.name));
                if allocated.contains(&device.name) {
                    *left -= bytes(amount);
                }
            }
        }
    }
    left
}

#[test]
fn what_devices_take_is_a_counter_of_their_set_also_where_a_hidden_device_takes_all_of_it() {
    for (device, profile) in [("7g-80gb-0", "3g.40gb"), ("7g-80gb-0", "1g.10gb")] {
        let mut scene = Scene::with_prepared("2xH100-80GB", &mig(device));
        scene.rounds.layout.held_back.insert(GPU.to_owned(), profile.to_owned());
        scene.look();
        scene.elapse(3 * SETTLE);
        assert!(!scene.published().contains(&mig(device)));
        assert!(scene.published().iter().any(|it| it.starts_with(GPU)));
        counters_left(&scene.rounds.slices, &scene.allocated);
        assert!(allocates(&scene.rounds.slices, &scene.allocated, "7g.80gb").is_some(), "of the other GPU");
    }
}

#[test]
fn an_allocated_device_keeps_its_share_for_as_long_as_one_that_overlaps_it_is_hidden() {
    let mut scene = Scene::new("1xH100-80GB");
    scene.look();
    // Its pod was deleted by force: deallocated, and the instance is still there.
    scene.prepare(&mig("1g-10gb-3"));
    scene.allocated.remove(&mig("1g-10gb-3"));
    scene.allocate(&mig("4g-40gb-0"));
    scene.look();
    scene.rounds.layout.held_back.insert(GPU.to_owned(), "4g.40gb".to_owned());
    scene.look();
    for _ in 0..8 {
        scene.elapse(100);
        let left = counters_left(&scene.rounds.slices, &scene.allocated);
        let overdrawn: Vec<_> = left.iter().filter(|(_, it)| **it < 0).collect();
        assert!(overdrawn.is_empty(), "kube-scheduler would refuse every device of the node: {overdrawn:?}");
    }
}
