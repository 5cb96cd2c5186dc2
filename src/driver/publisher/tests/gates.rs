//! Counters that come or go, in a process that goes on and in one that starts: no pool is open to schedulers that act on other terms.

use super::scene::{Scene, mig};
use super::*;

fn is_open(scene: &Scene) -> bool {
    scene.rounds.pool().is_some_and(|it| it.is_open)
}

fn counted() -> Scene {
    let mut scene = Scene::new("1xH100-80GB");
    scene.look();
    scene.elapse(RESYNC.as_secs());
    scene
}

/// A whole GPU by layout, in place of seven instances that are withdrawn.
fn withdrawn_by_layout() -> Scene {
    let mut scene = Scene::with_layout("1xH100-80GB", "all-1g.10gb");
    scene.look();
    scene.choose("all-disabled");
    scene.look();
    assert_eq!(scene.published(), BTreeSet::new());
    scene
}

#[test]
fn a_pool_that_loses_its_counters_between_two_processes_is_closed() {
    let mut scene = counted();
    scene.rounds.restart();
    scene.keeps_counters = false;
    scene.look();
    assert!(!is_open(&scene));
    scene.now += SETTLE;
    scene.look();
    assert!(is_open(&scene));
}

#[test]
fn a_pool_that_loses_its_counters_is_closed_also_where_its_slices_were_deleted() {
    let mut scene = counted();
    scene.rounds.wipe();
    scene.keeps_counters = false;
    scene.look();
    assert!(!is_open(&scene));
}

#[test]
fn what_a_layout_has_withdrawn_and_was_allocated_at_the_last_moment_comes_back_where_counters_are_kept_meanwhile()
 {
    let mut scene = Scene::with_layout("1xH100-80GB", "all-1g.10gb");
    scene.look();
    scene.elapse(3 * SETTLE);
    scene.make_unhealthy(0);
    scene.look();
    assert_eq!(scene.published(), BTreeSet::new());
    let late = mig("1g-10gb-3");
    scene.allocate(&late);
    scene.keeps_counters = true;
    scene.look();
    scene.elapse(3 * SETTLE);
    assert_eq!(scene.published(), [late].into());
}

#[test]
fn a_pool_that_is_closed_stays_closed_for_the_settle_time_after_a_start() {
    for keeps_counters in [false, true] {
        let mut scene =
            if keeps_counters { Scene::with_layout("1xH100-80GB", "all-1g.10gb") } else { counted() };
        scene.look();
        scene.keeps_counters = keeps_counters;
        scene.look();
        assert!(!is_open(&scene));
        scene.rounds.restart();
        scene.now += SETTLE - 1;
        scene.look();
        scene.now += 1;
        scene.look();
        assert!(!is_open(&scene));
        scene.now += SETTLE;
        scene.look();
        assert!(is_open(&scene));
    }
}

#[test]
fn counters_on_a_pool_that_another_process_has_published_without_close_it() {
    let mut scene = Scene::with_layout("1xH100-80GB", "all-1g.10gb");
    scene.look();
    scene.rounds.restart();
    scene.keeps_counters = true;
    scene.look();
    assert!(!is_open(&scene));
    scene.now += SETTLE;
    scene.look();
    assert!(is_open(&scene));
}

#[test]
fn what_the_process_before_has_withdrawn_by_layout_is_waited_for() {
    let mut scene = withdrawn_by_layout();
    scene.rounds.restart();
    scene.look();
    assert_eq!(scene.published(), BTreeSet::new());
    assert_eq!(scene.pause(), SETTLE);
    // At the last moment.
    let late = mig("1g-10gb-3");
    scene.now += SETTLE - 1;
    scene.allocate(&late);
    scene.now += 1;
    scene.look();
    assert_eq!(scene.published(), [late].into());
}

#[test]
fn devices_that_come_back_within_the_settle_time_wait_for_its_end() {
    let mut scene = counted();
    scene.make_unhealthy(0);
    scene.look();
    scene.now += 1;
    scene.recover(0);
    scene.look();
    assert_eq!(scene.published(), BTreeSet::new(), "a scheduler may have allocated the whole GPU");
    scene.now += SETTLE - 1;
    scene.look();
    assert_eq!(scene.published().len(), 26);
}

#[test]
fn a_layout_that_is_chosen_again_counts_the_settle_time_anew() {
    let mut scene = withdrawn_by_layout();
    scene.now += 5;
    scene.choose("all-1g.10gb");
    scene.look();
    assert_eq!(scene.published().len(), 7, "what was withdrawn may come back at any time");
    scene.now += 1;
    scene.choose("all-disabled");
    scene.look();
    let late = mig("1g-10gb-3");
    scene.elapse(SETTLE - 1);
    assert_eq!(scene.published(), BTreeSet::new());
    scene.allocate(&late);
    scene.elapse(1);
    assert_eq!(scene.published(), [late].into());
}
