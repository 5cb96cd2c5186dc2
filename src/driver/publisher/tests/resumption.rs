//! A driver that starts while a GPU is held back for a claim: devices that claims have may be missing from the slices, and so from
//! what the process before has noted of them.

use mig_model::layout::with_holds;

use super::holds::allocates;
use super::scene::{Scene, mig};
use super::*;

const GPU: &str = "gpu-0000-1a-00";

/// Holds the first GPU back for a profile, as the layout follower does.
fn hold(scene: &mut Scene, profile: &str) {
    scene.rounds.layout.held_back = [(GPU.to_owned(), profile.to_owned())].into();
    follow(scene);
}

/// Layouts and holds as they are now.
fn follow(scene: &mut Scene) {
    let facts: Vec<_> = scene.gpus.iter().map(|it| (*it.facts).clone()).collect();
    let layout = &mut scene.rounds.layout;
    layout.layouts = with_holds(&layout.layouts, &layout.held_back, &facts);
    layout.revision += 1;
}

/// A driver starts again, while the slices are as they are or deleted.
fn resume(scene: &mut Scene, is_wiped: bool) {
    if is_wiped {
        scene.rounds.wipe();
    }
    scene.rounds.resume();
    scene.look();
}

/// A node without counters, of which a claim has a small device when a GPU is held back for a large one that overlaps it.
fn held_back(profile: &str, is_prepared: bool) -> (Scene, String) {
    let mut scene = Scene::with_layout("2xH100-80GB", "all-1g.10gb");
    scene.look();
    scene.elapse(3 * SETTLE);
    let device = mig("1g-10gb-3");
    match is_prepared {
        true => scene.prepare(&device),
        false => scene.allocate(&device),
    }
    hold(&mut scene, profile);
    scene.look();
    scene.elapse(10 * SETTLE);
    assert!(!scene.published().contains(&device));
    (scene, device)
}

#[test]
fn a_device_that_is_hidden_on_a_gpu_that_is_held_back_is_given_to_no_other_claim_after_a_restart() {
    for (is_prepared, is_wiped) in [(false, false), (false, true), (true, false), (true, true)] {
        let (mut scene, device) = held_back("4g.40gb", is_prepared);
        let large = mig("4g-40gb-0");
        resume(&mut scene, is_wiped);
        scene.elapse(10 * SETTLE);
        assert!(!scene.published().contains(&large), "it overlaps {device}, {is_prepared} {is_wiped}");
        assert!(!scene.published().contains(&device), "at its release a scheduler would give it away");
        scene.end(&device);
        scene.notice();
        scene.elapse(10 * SETTLE);
        assert!(scene.published().contains(&large), "its release is found, {is_prepared} {is_wiped}");
    }
}

#[test]
fn what_a_hidden_device_takes_is_known_to_a_driver_that_starts_where_counters_are_kept_meanwhile() {
    for (is_prepared, is_wiped) in [(false, false), (false, true), (true, false), (true, true)] {
        let (mut scene, device) = held_back("4g.40gb", is_prepared);
        let (large, of) = (mig("4g-40gb-0"), format!("{is_prepared} {is_wiped}"));
        scene.keeps_counters = true;
        resume(&mut scene, is_wiped);
        // The other GPU would serve it, too.
        let other: BTreeSet<String> = ["gpu-0000-1b-00".to_owned()].into();
        for _ in 0..10 {
            scene.elapse(SETTLE);
            let allocated = &scene.allocated | &other;
            assert_eq!(
                allocates(&scene.rounds.slices, &allocated, "4g.40gb"),
                None,
                "it overlaps {device}, {of}"
            );
        }
        scene.end(&device);
        scene.notice();
        scene.elapse(10 * SETTLE);
        assert_eq!(allocates(&scene.rounds.slices, &other, "4g.40gb"), Some(large), "{of}");
    }
}

#[test]
fn with_counters_a_driver_that_starts_and_does_not_know_the_hold_yet_gives_no_share_of_a_hidden_device_away()
{
    let mut scene = Scene::new("1xH100-80GB");
    scene.look();
    scene.allocate(&mig("1g-10gb-3"));
    hold(&mut scene, "4g.40gb");
    scene.look();
    scene.elapse(10 * SETTLE);
    assert!(!scene.published().contains(&mig("1g-10gb-3")));
    let hidden = scene.rounds.layout.clone();
    scene.rounds.layout.held_back.clear();
    follow(&mut scene);
    resume(&mut scene, false);
    for _ in 0..3 {
        assert_eq!(
            allocates(&scene.rounds.slices, &scene.allocated, "4g.40gb"),
            None,
            "it overlaps what a claim has"
        );
        scene.elapse(SETTLE);
    }
    scene.rounds.layout = hidden;
    scene.look();
    scene.elapse(10 * SETTLE);
    assert_eq!(allocates(&scene.rounds.slices, &scene.allocated, "4g.40gb"), None);
}

#[test]
fn what_a_hold_keeps_back_is_not_offered_by_a_driver_that_starts_and_does_not_know_the_hold_yet() {
    let mut scene = Scene::new("2xH100-80GB");
    scene.look();
    scene.prepare(&mig("1g-10gb-3"));
    scene.notice();
    hold(&mut scene, "7g.80gb");
    scene.look();
    scene.elapse(10 * SETTLE);
    let published = scene.published();
    let held_back = std::mem::take(&mut scene.rounds.layout.held_back);
    resume(&mut scene, false);
    assert!(
        scene.published().is_subset(&published),
        "a scheduler would give it to the pods that the hold keeps away"
    );
    scene.rounds.layout.held_back = held_back;
    scene.look();
    scene.elapse(10 * SETTLE);
    assert_eq!(scene.published(), published);
}

#[test]
fn a_hold_that_has_ended_costs_a_restart_no_list() {
    let (mut scene, device) = held_back("4g.40gb", false);
    scene.rounds.layout.held_back.clear();
    scene.choose("all-1g.10gb");
    scene.look();
    scene.elapse(10 * SETTLE);
    let published = scene.published();
    assert_eq!((published.len(), published.contains(&device)), (14, true));
    scene.rounds.lists = 0;
    resume(&mut scene, true);
    scene.elapse(10 * SETTLE);
    assert_eq!((scene.rounds.lists, scene.published()), (0, published));
}

#[test]
fn a_driver_that_starts_before_nvml_works_withdraws_nothing_that_a_kubelet_has_deleted() {
    for mut scene in [Scene::new("2xH100-80GB"), Scene::with_layout("2xH100-80GB", "all-1g.10gb")] {
        scene.look();
        scene.elapse(3 * SETTLE);
        scene.allocate(&mig("1g-10gb-3"));
        let published = scene.published();
        scene.rounds.lists = 0;
        scene.node.problem = Some("the kernel module is not loaded yet".to_owned());
        resume(&mut scene, true);
        assert!(scene.rounds.slices.is_empty(), "no empty slice, either");
        scene.elapse(100);
        scene.node.problem = None;
        scene.look();
        scene.elapse(100);
        assert_eq!((scene.published(), scene.rounds.lists), (published, 0));
    }
}

#[test]
fn a_file_of_before_another_process_published_is_not_relied_on() {
    let mut scene = Scene::with_layout("2xH100-80GB", "all-1g.10gb");
    scene.look();
    scene.elapse(3 * SETTLE);
    let file = scene.rounds.on_disk.clone();
    assert!(file.is_some());
    let small = scene.rounds.layout.layouts.clone();
    scene.choose("all-disabled");
    scene.look();
    scene.elapse(3 * SETTLE);
    // A process that keeps no file has just withdrawn a whole GPU.
    scene.rounds.layout.layouts.insert(GPU.to_owned(), small[GPU].clone());
    scene.rounds.layout.revision += 1;
    scene.look();
    assert_eq!(scene.published().len(), 1);
    scene.rounds.on_disk = file;
    resume(&mut scene, false);
    scene.allocate(GPU);
    for _ in 0..5 {
        assert!(!scene.published().contains(&mig("1g-10gb-3")), "it overlaps {GPU}");
        scene.elapse(SETTLE);
    }
}

#[test]
fn a_device_that_is_allocated_and_left_out_is_in_no_file() {
    let mut scene = Scene::new("1xH100-80GB");
    scene.look();
    scene.elapse(3 * SETTLE);
    assert!(scene.rounds.on_disk.is_some());
    // Two schedulers gave away what overlaps.
    let (one, other) = (mig("1g-10gb-3"), mig("4g-40gb-0"));
    scene.prepare(&one);
    scene.allocate(&other);
    scene.make_unhealthy(0);
    scene.look();
    scene.elapse(10 * SETTLE);
    let published = scene.published();
    assert!(published.contains(&one));
    let noted = scene.rounds.on_disk.clone();
    assert!(noted.is_none_or(|it| it.devices.contains(&one) && it.devices.contains(&other)));
}
