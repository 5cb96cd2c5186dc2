//! A driver that starts where slices without devices are published: nothing is given away from them, so they stay open.
//!
//! A pool that is closed makes every request for all devices of the cluster wait (`allocationMode: All`), also on other nodes.

use std::sync::Arc;

use mig_model::facts::{ComputeInstance, GpuInstance};
use mig_model::inventory::ExistingInstances;

use super::scene::{Scene, mig};
use super::*;

const L4: &str = "gpu-0000-1b-00";

fn is_open(scene: &Scene) -> bool {
    scene.rounds.pool().is_some_and(|it| it.is_open)
}

fn restart(scene: &mut Scene) {
    scene.rounds.restart();
    scene.look();
}

/// A node whose GPU with MIG has become unhealthy, and whose driver starts after that.
fn unhealthy(models: &str) -> Scene {
    let mut scene = Scene::new(models);
    scene.look();
    scene.make_unhealthy(0);
    scene.look();
    restart(&mut scene);
    scene
}

#[test]
fn a_restart_while_the_only_gpu_with_mig_is_unhealthy_closes_no_pool() {
    for (models, published) in [("1xH100-80GB", None), ("1xH100-80GB,1xL4", Some(L4.to_owned()))] {
        let scene = unhealthy(models);
        assert_eq!(scene.published(), published.into_iter().collect());
        assert!(is_open(&scene), "{models}");
        assert!(matches!(scene.status(), Publication::Complete { is_counted: true, .. }), "{models}");
    }
}

#[test]
fn a_restart_after_the_only_gpu_with_mig_was_lost_closes_no_pool_when_it_is_back() {
    for models in ["1xH100-80GB", "1xH100-80GB,1xL4"] {
        let mut scene = Scene::new(models);
        scene.look();
        let all = scene.published();
        let lost = scene.gpus.remove(0);
        scene.look();
        scene.gpus.insert(0, lost);
        restart(&mut scene);
        assert!(is_open(&scene), "{models}");
        scene.elapse(SETTLE);
        assert!(is_open(&scene), "{models}");
        assert_eq!(scene.published(), all);
    }
}

#[test]
fn shares_that_a_restart_takes_away_close_no_pool() {
    let mut scene = Scene::new("1xH100-80GB,1xL4");
    scene.policy.time_slices = 4;
    let lost = scene.gpus.remove(0);
    scene.look();
    assert_eq!(scene.published().len(), 4);
    scene.policy.time_slices = 2;
    scene.gpus.insert(0, lost);
    restart(&mut scene);
    assert!(is_open(&scene));
    scene.elapse(SETTLE);
    assert_eq!((is_open(&scene), scene.published().len()), (true, 26 + 2));
}

#[test]
fn a_restart_where_nothing_but_an_adopted_instance_was_offered_closes_no_pool() {
    let mut scene = Scene::new("1xH100-80GB");
    scene.policy.existing = ExistingInstances::Adopt;
    let facts = Arc::clone(&scene.gpus[0].facts);
    let mut make = |id, name, start, is_adopted: bool| {
        let profile = facts.mig.iter().flat_map(|it| &it.profiles).find(|it| it.name == name).unwrap();
        let placement = *profile.placements.iter().find(|it| it.start == start).unwrap();
        let uuid = "MIG-5c89852c-d268-5c3f-9b07-de8f18a9c5a0".to_owned();
        let all = ComputeInstance { id: 0, uuid, slices: profile.slices };
        let compute_instances = is_adopted.then_some(all).into_iter().collect();
        let instance = GpuInstance { id, profile_id: profile.id, placement, compute_instances };
        scene.gpus[0].state.instances.push(instance);
    };
    make(1, "1g.10gb", 6, true);
    make(2, "4g.40gb", 0, false);
    make(3, "2g.20gb", 4, false);
    scene.look();
    assert_eq!(scene.published().len(), 1);
    scene.gpus[0].state.instances.truncate(1);
    restart(&mut scene);
    assert!(is_open(&scene));
    scene.elapse(SETTLE);
    assert!(is_open(&scene) && 7 < scene.published().len());
}

#[test]
fn what_the_process_before_has_withdrawn_comes_when_no_scheduler_can_act_on_it_any_more() {
    let mut scene = Scene::new("1xH100-80GB");
    scene.look();
    scene.make_unhealthy(0);
    scene.look();
    scene.recover(0);
    restart(&mut scene);
    assert_eq!((is_open(&scene), scene.published()), (true, BTreeSet::new()));
    scene.elapse(SETTLE - 1);
    assert_eq!(scene.published(), BTreeSet::new());
    scene.elapse(1);
    assert_eq!((is_open(&scene), scene.published().len()), (true, 26));
}

#[test]
fn it_does_so_also_where_it_is_offered_only_after_the_start() {
    let mut scene = unhealthy("1xH100-80GB");
    // By a scheduler that has not seen the withdrawal, and after the claims were read.
    let (late, small) = (mig("1g-20gb-0"), mig("1g-10gb-1"));
    scene.allocate(&late);
    scene.now += 1;
    scene.recover(0);
    scene.add_unmanaged(1, 0, Vec::new());
    scene.look();
    assert!(is_open(&scene));
    assert!(!scene.published().contains(&small), "a scheduler could allocate it beside {late}");
    scene.elapse(SETTLE);
    assert!(scene.published().contains(&late));
}

#[test]
fn a_gate_that_was_turned_before_a_restart_closes_no_pool_without_devices() {
    for keeps_counters in [false, true] {
        let mut scene = if keeps_counters {
            Scene::with_layout("1xH100-80GB", "all-1g.10gb")
        } else {
            let mut scene = Scene::new("1xH100-80GB");
            scene.choose("all-1g.10gb");
            scene
        };
        scene.look();
        scene.make_unhealthy(0);
        scene.look();
        scene.recover(0);
        scene.keeps_counters = keeps_counters;
        restart(&mut scene);
        assert_eq!((is_open(&scene), scene.published()), (true, BTreeSet::new()), "{keeps_counters}");
        scene.elapse(SETTLE);
        let expected = if keeps_counters { 26 } else { 7 };
        assert_eq!((is_open(&scene), scene.published().len()), (true, expected));
    }
}

#[test]
fn gpus_that_can_be_described_only_long_after_a_start_are_published_at_once() {
    let mut scene = Scene::new("1xH100-80GB");
    scene.look();
    scene.node.problem = Some("NVML is not there yet".to_owned());
    scene.look();
    restart(&mut scene);
    assert_eq!(scene.published(), BTreeSet::new());
    scene.elapse(SETTLE);
    scene.node.problem = None;
    scene.look();
    assert_eq!((is_open(&scene), scene.published().len()), (true, 26));
}
