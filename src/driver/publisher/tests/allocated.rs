//! What is allocated stays published, whatever else happens, and what overlaps it is looked after only as long as it has to be.

use std::sync::Arc;

use mig_model::facts::ComputeInstance;
use mig_model::inventory::ExistingInstances;

use super::scene::{Scene, mig};
use super::*;

const HOUR: u64 = 60 * 60;

/// Lists of claims in the next hour.
fn lists_in_an_hour(scene: &mut Scene) -> usize {
    let before = scene.rounds.lists;
    scene.elapse(HOUR);
    scene.rounds.lists - before
}

#[test]
fn an_allocated_device_of_an_unhealthy_gpu_is_published_again_when_the_slices_are_deleted() {
    let mut scene = Scene::new("1xH100-80GB");
    let device = mig("1g-10gb-0");
    scene.look();
    scene.allocate(&device);
    scene.make_unhealthy(0);
    scene.rounds.wipe();
    scene.look();
    assert_eq!(scene.published(), [device].into());
}

#[test]
fn a_lost_gpu_without_mig_is_not_waited_for() {
    let mut scene = Scene::new("2xL4");
    scene.look();
    scene.make_unhealthy(0);
    scene.look();
    scene.now += 1;
    scene.gpus.remove(0);
    scene.look();
    assert!(!scene.rounds.has_read());
    assert_eq!(lists_in_an_hour(&mut scene), 0);
}

/// Two allocated devices that overlap: `1g-10gb-0`, which is prepared, and `1g-20gb-0`, which was allocated at the last moment.
fn overlapping() -> Scene {
    let mut scene = Scene::with_prepared("1xH100-80GB", &mig("1g-10gb-0"));
    scene.make_unhealthy(0);
    scene.look();
    scene.allocate(&mig("1g-20gb-0"));
    scene.elapse(2 * SETTLE);
    assert_eq!(scene.published(), [mig("1g-10gb-0")].into());
    scene.recover(0);
    scene.look();
    scene.elapse(2 * SETTLE);
    assert!(scene.published().contains(&mig("1g-10gb-0")) && !scene.published().contains(&mig("1g-20gb-0")));
    scene
}

#[test]
fn of_two_that_overlap_the_one_that_is_left_out_comes_back_when_the_other_ends_and_costs_no_list_after_that()
{
    let mut scene = overlapping();
    scene.end(&mig("1g-10gb-0"));
    scene.elapse(3 * SETTLE);
    assert!(scene.published().contains(&mig("1g-20gb-0")));
    assert_eq!(lists_in_an_hour(&mut scene), 0);
}

#[test]
fn a_device_that_cannot_come_back_beside_another_takes_nothing_else_away() {
    let mut scene = Scene::with_prepared("1xH100-80GB", &mig("1g-10gb-0"));
    scene.add_unmanaged(2, 1, Vec::new());
    scene.look();
    let late = mig("1g-20gb-0");
    assert!(!scene.published().contains(&late));
    scene.allocate(&late);
    for _ in 0..4 * SETTLE {
        scene.elapse(1);
        let published = scene.published();
        assert!((2..7).all(|it| published.contains(&mig(&format!("1g-10gb-{it}")))), "{published:?}");
    }
    assert!(!scene.published().contains(&late));
}

#[test]
fn of_two_that_overlap_layouts_look_after_neither_once_both_have_ended() {
    let mut scene = overlapping();
    scene.keeps_counters = false;
    scene.look();
    scene.elapse(2 * SETTLE);
    scene.end(&mig("1g-10gb-0"));
    scene.end(&mig("1g-20gb-0"));
    scene.look();
    scene.elapse(3 * SETTLE);
    assert_eq!(lists_in_an_hour(&mut scene), 0);
}

#[test]
fn an_adopted_instance_stays_published_while_an_allocated_device_comes_back() {
    let mut scene = Scene::new("1xH100-80GB");
    scene.policy.existing = ExistingInstances::Adopt;
    let uuid = "MIG-5c89852c-d268-5c3f-9b07-de8f18a9c5a0".to_owned();
    let all = vec![ComputeInstance { id: 0, uuid, slices: 1 }];
    scene.add_unmanaged(1, 6, all);
    scene.look();
    // Another one, which is not adopted.
    scene.add_unmanaged(2, 0, Vec::new());
    scene.look();
    let late = mig("1g-20gb-0");
    assert!(!scene.published().contains(&late));
    scene.allocate(&late);
    for _ in 0..3 {
        assert!(scene.published().iter().any(|it| it.contains("-adopted-")), "{:?}", scene.published());
        scene.elapse(SETTLE);
    }
    assert!(scene.published().contains(&late));
}

#[test]
fn an_allocated_device_that_an_undescribed_one_overlaps_is_left_out_and_is_not_asked_for_in_every_round() {
    let mut scene = Scene::new("1xH100-80GB");
    let (undescribed, late) = (mig("1g-20gb-0"), mig("1g-10gb-0"));
    scene.look();
    scene.prepare(&undescribed);
    scene.look();
    // Another version of NVIDIA's driver does not have its profile.
    let mut facts = (*scene.gpus[0].facts).clone();
    facts.mig.iter_mut().for_each(|it| it.profiles.retain(|it| it.name != "1g.20gb"));
    scene.gpus[0].facts = Arc::new(facts);
    scene.look();
    scene.allocate(&late);
    scene.make_unhealthy(0);
    scene.look();
    scene.recover(0);
    scene.elapse(SETTLE);
    scene.look();
    assert!(scene.published().contains(&undescribed) && !scene.published().contains(&late));
    let lists = scene.rounds.lists;
    for _ in 0..5 {
        scene.look();
    }
    assert_eq!(scene.rounds.lists, lists);
}

#[test]
fn while_an_allocated_device_comes_back_no_free_one_that_overlaps_it_does() {
    let mut scene = Scene::new("1xH100-80GB");
    scene.look();
    scene.add_unmanaged(1, 0, Vec::new());
    scene.look();
    let (late, small) = (mig("1g-20gb-0"), mig("1g-10gb-0"));
    scene.allocate(&late);
    scene.now += 5;
    scene.gpus[0].state.instances.clear();
    scene.look();
    scene.elapse(5);
    let published = scene.published();
    assert!(!published.contains(&small) && !published.contains(&late), "a scheduler could allocate both");
    scene.elapse(SETTLE);
    assert!(scene.published().contains(&late));
    scene.elapse(SETTLE);
    assert!(scene.published().contains(&small));
}

#[test]
fn a_device_that_goes_twice_is_looked_after_for_a_settle_time_after_the_second() {
    let mut scene = Scene::new("1xH100-80GB");
    let device = mig("1g-10gb-0");
    scene.look();
    scene.make_unhealthy(0);
    scene.look();
    scene.now += 3;
    scene.prepare(&device);
    scene.look();
    assert_eq!(scene.published(), [device.clone()].into(), "it was allocated at the last moment");
    scene.now += 2;
    scene.end(&device);
    scene.look();
    assert_eq!(scene.published(), BTreeSet::new());
    scene.elapse(SETTLE - 1);
    scene.allocate(&device);
    scene.elapse(1);
    assert_eq!(scene.published(), [device].into());
}

#[test]
fn a_device_of_a_lost_gpu_that_was_allocated_at_the_last_moment_is_published_when_the_gpu_comes_back() {
    let mut scene = Scene::new("1xH100-80GB");
    scene.look();
    scene.rounds.restart();
    let device = mig("1g-10gb-0");
    let lost = scene.gpus.remove(0);
    scene.look();
    scene.allocate(&device);
    scene.elapse(3 * SETTLE);
    scene.gpus.push(lost);
    scene.make_unhealthy(0);
    scene.look();
    assert_eq!(scene.published(), [device].into());
}
