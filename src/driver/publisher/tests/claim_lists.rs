//! How often the publisher lists the claims of the whole cluster, by what happens on its node. No read costs the API server more,
//! and every node makes it. A number here may fall; it rises only with a reason. `looks` are reads of the claims that a list has
//! found to be allocated and not prepared.

use super::scene::{Scene, mig};
use super::*;

const HOUR: u64 = 60 * 60;
const GPU: &str = "gpu-0000-1a-00";

/// Lists so far, from now on.
fn lists(scene: &mut Scene) -> usize {
    std::mem::take(&mut scene.rounds.lists)
}

/// Reads of known claims so far, from now on.
fn looks(scene: &mut Scene) -> usize {
    std::mem::take(&mut scene.rounds.looks)
}

/// The publisher starts again, on a node where a driver was before.
fn restart(scene: &mut Scene) {
    scene.rounds.restart();
    scene.look();
}

/// With counters, and then with a layout, after the first publication.
fn scenes(models: &str) -> [Scene; 2] {
    let mut scenes = [Scene::new(models), Scene::with_layout(models, "all-1g.10gb")];
    for scene in &mut scenes {
        scene.look();
        scene.elapse(2 * SETTLE);
    }
    scenes
}

#[test]
fn a_node_on_which_nothing_happens_lists_none() {
    for mut scene in scenes("2xH100-80GB,1xL4") {
        scene.rounds.lists = 0;
        scene.elapse(HOUR);
        assert_eq!(lists(&mut scene), 0);
    }
}

#[test]
fn a_node_that_is_new_lists_none_with_counters_and_one_where_nothing_but_a_withdrawal_keeps_devices_apart() {
    let mut counted = Scene::new("1xH100-80GB");
    counted.look();
    counted.elapse(HOUR);
    assert_eq!(lists(&mut counted), 0);
    for mut scene in [Scene::with_layout("1xH100-80GB", "all-1g.10gb"), Scene::new("1xL4")] {
        scene.look();
        assert_eq!(lists(&mut scene), 1, "what is allocated has to be known before the first publication");
        scene.elapse(HOUR);
        assert_eq!(lists(&mut scene), 0);
    }
}

#[test]
fn claims_that_come_and_go_list_none() {
    let devices: Vec<String> = (0..7).map(|it| mig(&format!("1g-10gb-{it}"))).collect();
    for mut scene in scenes("1xH100-80GB") {
        scene.rounds.lists = 0;
        // One at a time, and then all at once.
        for batch in devices.chunks(1).chain([&devices[..]]) {
            batch.iter().for_each(|it| scene.allocate(it));
            scene.notice();
            batch.iter().for_each(|it| scene.prepare(it));
            scene.notice();
            scene.elapse(3600);
            batch.iter().for_each(|it| scene.end(it));
            scene.notice();
            scene.elapse(3600);
        }
        assert_eq!(lists(&mut scene), 0);
    }
}

#[test]
fn a_gpu_without_mig_that_is_prepared_lists_none_beside_one_that_is_cut() {
    for mut scene in scenes("1xH100-80GB,1xL4") {
        scene.rounds.lists = 0;
        let gpu = "gpu-0000-1b-00";
        scene.allocate(gpu);
        scene.prepare(gpu);
        scene.look();
        scene.elapse(HOUR);
        assert_eq!(lists(&mut scene), 0);
        scene.end(gpu);
        scene.look();
        scene.elapse(HOUR);
        assert_eq!(lists(&mut scene), 0);
    }
}

#[test]
fn a_gpu_that_becomes_unhealthy_lists_when_its_devices_go_and_when_no_scheduler_can_act_on_them_any_more() {
    let [mut counted, mut layout] = scenes("2xH100-80GB");
    for (scene, falls) in [(&mut counted, 2), (&mut layout, 2)] {
        scene.rounds.lists = 0;
        scene.make_unhealthy(0);
        assert!(scene.notice());
        scene.elapse(HOUR);
        assert_eq!(lists(scene), falls);
    }
    counted.recover(0);
    counted.notice();
    counted.elapse(HOUR);
    assert_eq!(lists(&mut counted), 0, "all that comes back is known to be free");
    layout.recover(0);
    layout.notice();
    layout.elapse(HOUR);
    assert_eq!(lists(&mut layout), 1, "what a layout publishes anew may not overlap what is allocated");
}

#[test]
fn what_is_prepared_of_an_unhealthy_gpu_costs_no_list_and_what_is_only_allocated_reads_of_its_claim() {
    let mut scene = Scene::new("2xH100-80GB");
    scene.look();
    scene.prepare(&mig("1g-10gb-0"));
    scene.make_unhealthy(0);
    scene.notice();
    scene.elapse(HOUR);
    assert_eq!(lists(&mut scene), 2, "for the others");
    let late = mig("1g-10gb-1");
    scene.allocate(&late);
    restart(&mut scene);
    assert_eq!(lists(&mut scene), 1, "what the process before withdrew may be allocated");
    assert!(scene.published().contains(&late));
    scene.elapse(100);
    assert_eq!(lists(&mut scene), 1, "when no scheduler can act on what the process before withdrew");
    assert!((3..=5).contains(&looks(&mut scene)), "no event reports its release");
    scene.end(&late);
    scene.elapse(HOUR);
    assert_eq!(lists(&mut scene), 2, "one finds the release, the other a late allocation");
}

#[test]
fn a_restart_without_its_file_lists_only_where_something_is_withheld_or_the_slices_are_gone() {
    let [mut counted, mut layout] = scenes("2xH100-80GB,1xL4");
    for (scene, there, wiped) in [(&mut counted, 0, 2), (&mut layout, 1, 2)] {
        scene.rounds.lists = 0;
        restart(scene);
        scene.elapse(HOUR);
        assert_eq!(lists(scene), there, "with its slices");
        scene.rounds.wipe();
        restart(scene);
        scene.elapse(HOUR);
        assert_eq!(lists(scene), wiped, "without");
    }
    counted.make_unhealthy(0);
    counted.notice();
    counted.elapse(HOUR);
    lists(&mut counted);
    restart(&mut counted);
    counted.elapse(HOUR);
    assert_eq!(lists(&mut counted), 2, "at once, and when the settle time is over");
}

/// A node with two GPUs and an L4 starts again with its file; what happens before that is said by `before`.
fn resume(scene: &mut Scene, before: impl FnOnce(&mut Scene)) -> usize {
    before(scene);
    lists(scene);
    scene.rounds.resume();
    scene.look();
    scene.elapse(10 * SETTLE);
    lists(scene)
}

#[test]
fn a_restart_with_its_file_lists_only_where_something_else_is_to_be_published() {
    for mut scene in scenes("2xH100-80GB,1xL4") {
        restart(&mut scene);
        scene.elapse(2 * SETTLE);
        scene.look();
        let (all, allocated) = (scene.published(), mig("1g-10gb-3"));
        scene.allocate(&allocated);
        assert_eq!(resume(&mut scene, |_| {}), 0, "with its slices");
        assert_eq!(resume(&mut scene, |it| it.rounds.wipe()), 0, "without");
        assert_eq!(resume(&mut scene, |it| it.rounds.slices.truncate(1)), 0, "with some");
        assert_eq!(scene.published(), all);
        // While it is down, a GPU becomes unhealthy: what is free goes, and what is allocated stays.
        let goes = |it: &mut Scene| {
            it.rounds.wipe();
            it.make_unhealthy(0);
        };
        assert_eq!(resume(&mut scene, goes), 2);
        assert!(scene.published().contains(&allocated) && scene.published().len() < all.len());
        assert!(resume(&mut scene, |it| it.rounds.wipe()) <= 2, "no more than without a file");
        assert!(scene.published().contains(&allocated));
    }
}

#[test]
fn a_file_that_does_not_fit_the_slices_is_not_believed() {
    let mut scene = Scene::new("1xH100-80GB");
    scene.look();
    let pool = scene.rounds.on_disk.as_mut().unwrap();
    pool.devices.retain(|it| !it.contains("1g"));
    scene.make_unhealthy(0);
    assert_eq!(resume(&mut scene, |_| {}), 2, "another program has published since");
}

#[test]
fn slices_that_another_program_deletes_cost_no_list_with_counters_and_one_by_layout() {
    for (mut scene, expected) in scenes("1xH100-80GB,1xL4").into_iter().zip([0, 1]) {
        scene.rounds.lists = 0;
        scene.rounds.wipe();
        scene.notice();
        scene.elapse(HOUR);
        assert_eq!(lists(&mut scene), expected);
    }
}

#[test]
fn another_layout_lists_until_what_went_has_settled() {
    let mut scene = Scene::with_layout("1xH100-80GB", "all-1g.10gb");
    scene.look();
    lists(&mut scene);
    scene.choose("all-balanced");
    scene.look();
    scene.elapse(HOUR);
    assert_eq!(lists(&mut scene), 2, "before devices go, and before others come in their place");
    // A claim that is allocated and never prepared is in the way of the next.
    scene.allocate(&mig("1g-10gb-2"));
    scene.choose("all-disabled");
    scene.look();
    scene.elapse(100);
    assert_eq!(lists(&mut scene), 2, "before the free devices go, and after");
    assert!((3..=5).contains(&looks(&mut scene)), "its release is waited for");
    scene.end(&mig("1g-10gb-2"));
    scene.elapse(100);
    assert!(!scene.published().contains(&mig("1g-10gb-2")), "and found");
}

#[test]
fn counters_that_come_or_go_list_until_schedulers_have_seen_it() {
    let mut scene = Scene::with_layout("1xH100-80GB", "all-1g.10gb");
    scene.look();
    scene.elapse(HOUR);
    lists(&mut scene);
    for (keeps_counters, expected) in [(true, 0), (false, 2)] {
        scene.keeps_counters = keeps_counters;
        scene.look();
        scene.elapse(HOUR);
        assert_eq!(lists(&mut scene), expected, "counters: {keeps_counters}");
    }
}

#[test]
fn another_number_of_shares_lists_before_the_old_ones_go_and_before_the_new_ones_come() {
    let mut scene = Scene::new("1xL4");
    scene.look();
    assert_eq!(scene.published(), [GPU.to_owned()].into());
    assert_eq!(lists(&mut scene), 1);
    scene.policy.time_slices = 4;
    restart(&mut scene);
    scene.elapse(HOUR);
    assert_eq!((lists(&mut scene), scene.published().len()), (2, 4));
    scene.policy.time_slices = 0;
    scene.allocate(&format!("{GPU}-share-3"));
    restart(&mut scene);
    scene.elapse(100);
    assert_eq!(lists(&mut scene), 2, "before the free shares go, and after");
    assert!((3..=5).contains(&looks(&mut scene)), "its release is waited for");
}

#[test]
fn a_gpu_that_is_held_back_lists_when_it_is_hidden_a_settle_time_later_and_when_one_of_its_devices_is_released()
 {
    let mut scene = Scene::new("2xH100-80GB");
    scene.look();
    for device in ["1g-10gb-0", "1g-10gb-1"] {
        scene.prepare(&mig(device));
    }
    scene.elapse(2 * SETTLE);
    lists(&mut scene);
    scene.rounds.layout.held_back.insert(GPU.to_owned(), "7g.80gb".to_owned());
    scene.look();
    scene.elapse(2 * SETTLE);
    assert_eq!(lists(&mut scene), 2);
    scene.elapse(HOUR);
    assert_eq!(lists(&mut scene), 0, "as long as all of it is prepared");
    scene.end(&mig("1g-10gb-0"));
    assert!(scene.notice());
    scene.elapse(HOUR);
    assert_eq!(lists(&mut scene), 1);
    // Unprepared, and not deallocated for a while.
    scene.node.held.remove(&mig("1g-10gb-1"));
    assert!(scene.notice());
    scene.elapse(3 * SETTLE);
    assert_eq!(lists(&mut scene), 1);
    assert!((1..=3).contains(&looks(&mut scene)), "after one list its claim is read");
    scene.end(&mig("1g-10gb-1"));
    scene.elapse(HOUR);
    assert_eq!(lists(&mut scene), 1);
}
