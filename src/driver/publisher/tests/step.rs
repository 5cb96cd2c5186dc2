//! One step at a time: what it reads, publishes and reports, and when it looks again.

use mig_model::health::{Cause, Condition, UnhealthyReason};

use super::scene::{Scene, mig};
use super::*;

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|it| (*it).to_owned()).collect()
}

const GPU: &str = "gpu-0000-1a-00";

#[test]
fn while_nvml_fails_and_claims_hold_devices_nothing_is_read_and_the_slices_stay() {
    let mut scene = Scene::new("1xH100-80GB");
    scene.prepare(&mig("1g-10gb-0"));
    scene.look();
    let before = scene.rounds.slices.clone();
    scene.node.problem = Some("NVML hangs".to_owned());
    assert!(scene.is_changed());
    scene.look();
    assert_eq!((&scene.rounds.asked, &scene.rounds.slices), (&Vec::new(), &before));
    assert_eq!(*scene.status(), Publication::Pending { reason: "NVML hangs".to_owned() });
    assert_eq!(scene.pause(), RESYNC.as_secs());
    assert!(!scene.is_changed());
    scene.node.problem = Some("NVML is gone".to_owned());
    assert!(scene.is_changed(), "the reason is reported");
    scene.look();
    scene.node.held.clear();
    assert!(scene.is_changed(), "without claims the slices are emptied");
    scene.look();
    assert_eq!(scene.published(), set(&[&mig("1g-10gb-0")]), "it is allocated all the same");
}

#[test]
fn what_the_api_server_does_with_counters_is_asked_for_every_30_seconds_and_before_a_slice_is_created() {
    let mut scene = Scene::new("1xH100-80GB");
    scene.rounds.gates.counters = Gate { answer: Some(CounterSupport::Pool), asked: Some(scene.at(0)) };
    for (now, is_wiped, asks) in [(5, true, true), (6, false, false), (29, false, false), (30, false, true)] {
        scene.now = now;
        if is_wiped {
            scene.rounds.wipe();
        }
        scene.look();
        assert_eq!(scene.rounds.asked.contains(&Question::Counters), asks, "after {now} s");
    }
    scene.rounds.settings.mode = Mode::Layout;
    scene.look();
    assert!(!scene.rounds.asked.contains(&Question::Counters), "layouts do not need them");
}

#[test]
fn while_api_servers_restart_one_after_the_other_the_gate_is_looked_at_every_30_seconds() {
    let mut scene = Scene::new("1xH100-80GB");
    scene.look();
    assert_eq!(scene.pause(), RESYNC.as_secs());
    scene.rounds.gates.restarted = Some(scene.at(0));
    for (now, pause) in [(1, GATE_RETRY), (599, GATE_RETRY), (600, RESYNC)] {
        scene.now = now;
        scene.look();
        assert_eq!(scene.pause(), pause.as_secs(), "after {now} s");
    }
}

#[test]
fn a_pool_that_gets_its_counters_is_pending_until_schedulers_have_seen_it_and_complete_then() {
    let mut scene = Scene::with_layout("1xH100-80GB", "all-1g.10gb");
    scene.look();
    let layout = |waiting: &[&str], settling| Publication::Layout {
        revision: 2,
        slices: 1,
        devices: 7,
        waiting: waiting.iter().map(|it| (*it).to_owned()).collect(),
        settling,
    };
    assert_eq!(*scene.status(), layout(&[], false));
    scene.keeps_counters = true;
    scene.now = SETTLE;
    scene.look();
    assert!(matches!(scene.status(), Publication::Pending { reason } if reason.contains("--settle-time")));
    assert_eq!(scene.pause(), SETTLE);
    scene.now += SETTLE;
    scene.look();
    let (slices, devices) = (scene.rounds.slices.len(), scene.published().len());
    assert_eq!(*scene.status(), Publication::Complete { slices, devices, is_counted: true });
    scene.keeps_counters = false;
    scene.now += 1;
    scene.look();
    assert!(matches!(scene.status(), Publication::Layout { devices: 0, settling: true, .. }), "it is closed");
}

#[test]
fn a_layout_is_settling_until_its_devices_are_published_and_is_looked_at_as_often_as_it_has_to() {
    let mut scene = Scene::with_layout("1xH100-80GB", "all-balanced");
    scene.look();
    assert_eq!(scene.pause(), GATE_RETRY.as_secs(), "the gate may be turned on");
    scene.rounds.settings.mode = Mode::Layout;
    scene.look();
    assert_eq!(scene.pause(), RESYNC.as_secs());
    scene.choose("all-1g.10gb");
    scene.look();
    let is_settling = |it: &Publication| matches!(it, Publication::Layout { settling: true, .. });
    assert!(is_settling(scene.status()) && scene.pause() == SETTLE);
    scene.now += SETTLE;
    scene.look();
    assert!(!is_settling(scene.status()) && scene.published().len() == 7);
    for start in 0..3 {
        scene.allocate(&mig(&format!("1g-10gb-{start}")));
    }
    scene.choose("all-balanced");
    scene.look();
    scene.elapse(2 * SETTLE);
    assert!(!is_settling(scene.status()), "{:?}", scene.status());
    let waits = matches!(scene.status(), Publication::Layout { waiting, .. } if !waiting.is_empty());
    assert!(waits, "one more than it has: {:?}", scene.status());
    scene.elapse(RESYNC.as_secs());
    scene.look();
    let looks = scene.rounds.looks;
    scene.look();
    assert_eq!(scene.rounds.looks, looks + 1, "no event says when a claim that is not prepared is released");
    assert!((30..=38).contains(&scene.pause()), "{}", scene.pause());
}

#[test]
fn a_layout_whose_devices_are_all_published_is_not_settling_while_others_are_waited_for() {
    let mut scene = Scene::with_layout("2xH100-80GB", "all-1g.10gb");
    scene.look();
    scene.make_unhealthy(0);
    scene.look();
    assert!(matches!(scene.status(), Publication::Layout { devices: 7, settling: false, .. }));
    assert_eq!(scene.pause(), SETTLE, "one may have been allocated at the last moment");
}

#[test]
fn a_share_that_is_allocated_and_in_the_way_is_looked_after_also_with_layouts() {
    let mut scene = Scene::with_layout("1xL4", "all-disabled");
    scene.rounds.settings.mode = Mode::Layout;
    scene.policy.time_slices = 4;
    scene.look();
    let share = format!("{GPU}-share-3");
    scene.allocate(&share);
    scene.policy.time_slices = 0;
    scene.rounds.restart();
    scene.look();
    scene.elapse(3 * SETTLE);
    scene.look();
    assert_eq!(scene.published(), set(&[&share]));
    assert!((SETTLE..=38).contains(&scene.pause()), "no event reports its release: {}", scene.pause());
    scene.end(&share);
    scene.elapse(5 * SETTLE);
    assert_eq!(scene.published(), set(&[GPU]));
}

#[test]
fn where_counters_are_insisted_on_and_dropped_gpus_stay_whole_whatever_the_layout_says() {
    let mut scene = Scene::with_layout("1xH100-80GB", "all-1g.10gb");
    scene.rounds.settings.mode = Mode::Partitionable;
    scene.rounds.layout.revision = 0;
    scene.look();
    assert_eq!(scene.published(), set(&[GPU]));
    let support = CounterSupport::Dropped;
    assert_eq!(*scene.status(), Publication::WithoutCounters { support, devices: 1, withheld: 25 });
}

#[test]
fn another_process_in_between_takes_no_device_from_its_claim() {
    // One that cannot be described and was deleted is known to this process only.
    let mut scene = Scene::new("2xH100-80GB");
    let device = mig("1g-10gb-0");
    scene.prepare(&device);
    scene.look();
    scene.gpus.remove(0);
    scene.look();
    assert!(scene.published().contains(&device));
    scene.rounds.memory.forget(scene.rounds.settings.settle_time);
    scene.rounds.wipe();
    scene.look();
    assert!(scene.published().contains(&device));

    // What the other one may have withdrawn is asked for.
    let mut scene = Scene::new("1xH100-80GB");
    scene.look();
    scene.make_unhealthy(0);
    scene.look();
    scene.elapse(RESYNC.as_secs());
    scene.rounds.memory.forget(scene.rounds.settings.settle_time);
    scene.allocate(&device);
    scene.look();
    assert_eq!(scene.published(), set(&[&device]));
}

#[test]
fn a_claim_that_is_prepared_is_no_news_for_a_layout_that_waits_for_it() {
    let mut scene = Scene::with_layout("2xH100-80GB", "all-1g.10gb");
    let [first, second] = ["gpu-0000-1a-00-mig-1g-10gb-0", "gpu-0000-1b-00-mig-1g-10gb-0"];
    [first, second].iter().for_each(|it| scene.allocate(it));
    scene.choose("all-disabled");
    scene.look();
    assert_eq!(scene.published(), set(&[first, second]));
    scene.prepare(first);
    assert!(!scene.is_changed(), "the other one is allocated as before");
    scene.look();
    scene.end(first);
    assert!(scene.is_changed());
}

#[test]
fn an_undescribed_device_is_looked_at_when_its_last_holder_releases_it() {
    let mut scene = Scene::new("2xH100-80GB");
    let device = mig("1g-10gb-0");
    scene.prepare(&device);
    scene.look();
    scene.gpus.remove(0);
    scene.look();
    assert!(scene.published().contains(&device));
    // Unprepared, and allocated as before.
    scene.node.held.clear();
    assert!(scene.is_changed(), "only the API server knows whether it is allocated");
    scene.look();
    assert!(scene.published().contains(&device));
    scene.prepare(&mig("1g-10gb-1"));
    assert!(!scene.is_changed(), "that is known now");
    scene.end(&mig("1g-10gb-1"));
    scene.elapse(SETTLE);
    assert!(scene.published().contains(&device));
    scene.allocated.clear();
    scene.elapse(2 * SETTLE);
    assert!(!scene.published().contains(&device));
}

#[test]
fn an_undescribed_device_is_no_part_of_the_layout_and_costs_no_list_of_claims() {
    let mut scene = Scene::with_layout("2xH100-80GB", "all-1g.10gb");
    let device = mig("1g-10gb-0");
    scene.prepare(&device);
    scene.look();
    scene.gpus.remove(0);
    scene.look();
    scene.elapse(2 * SETTLE);
    let lists = scene.rounds.lists;
    scene.elapse(RESYNC.as_secs());
    assert!(scene.published().contains(&device));
    scene.look();
    assert_eq!((scene.rounds.lists, scene.pause()), (lists, GATE_RETRY.as_secs()));
    assert!(matches!(scene.status(), Publication::Layout { devices: 7, settling: false, .. }));
}

#[test]
fn the_health_of_gpus_is_news_and_their_devices_are_tainted() {
    let mut scene = Scene::new("1xH100-80GB");
    scene.look();
    assert!(!scene.is_news());
    let unhealthy = UnhealthyReason { cause: Cause::Xid(48), since: 1 };
    scene.node.health.gpus.insert("GPU-0".to_owned(), Condition::Unhealthy(unhealthy));
    assert!(scene.is_changed());
    scene.look();
    assert!(scene.rounds.asked.contains(&Question::Taints));
    assert!(!scene.is_changed());
}

#[test]
fn a_prepared_claim_is_news_only_where_the_next_one_would_be_placed_otherwise() {
    let mut scene = Scene::new("2xH100-80GB");
    scene.rounds.settings.placement = Policy::Pack;
    scene.look();
    scene.prepare("gpu-0000-1b-00-mig-1g-10gb-6");
    assert!(!scene.is_changed() && scene.is_news(), "the used GPU comes first");
    scene.look();
    assert!(!scene.is_news());
    let mut layout = Scene::with_layout("2xH100-80GB", "all-1g.10gb");
    layout.rounds.settings.placement = Policy::Pack;
    layout.look();
    layout.prepare("gpu-0000-1b-00-mig-1g-10gb-6");
    assert!(!layout.is_news(), "of a layout only what it makes room for counts");
}
