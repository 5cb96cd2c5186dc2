//! Whatever changes, and however late schedulers are: nothing that overlaps is given away, nor prepared.
//!
//! Longer than other files: the properties and the facts are played with the same steps in the same world.

use mig_model::slices::Pool;
use proptest::prelude::*;

use super::world::{SETTLE, World, pick};
use super::*;
use crate::publisher::tests::config;

/// Enough to find each of the faults that are named in the tests below within seconds.
const CASES: u32 = 1024;

/// Something that happens. The numbers choose among what there is then: any will do, and a smaller one shrinks better than
/// an index.
#[derive(Debug, Clone, Copy)]
enum Step {
    ChangeLayout(u8, u8),
    Wait(u8),
    End(u8, u8),
    Prepare(u8),
    Decide,
    Write,
    /// Fails after so many slices.
    WritePart(u8),
    /// With these flags.
    Restart(u8),
    /// A kubelet's, which deletes the slices of the node.
    KubeletRestart,
    NodeRestart(u8),
    GpuError,
    Recovery,
    Allocate(u8, u8),
    TurnGate,
    /// An instance is made past the driver.
    MakeUnmanaged(u8),
    RemoveUnmanaged(u8),
    /// The GPU does not answer when the driver starts.
    Loss,
    /// It answers again.
    Return,
    /// The GPU is held back for a claim.
    Hold(u8),
    EndHold,
}

/// With counters, errors of the GPU and flags come together: both make devices go that no layout has withdrawn.
fn step(has_gate: bool, has_flags: bool) -> impl Strategy<Value = Step> {
    let step = move |(what, which, other): (u8, u8, u8)| match pick(what, if has_gate { 15 } else { 14 }) {
        0 => Step::ChangeLayout(which, other),
        1 => Step::Wait(1 + which % 12),
        2 | 3 => Step::End(which, other % 4),
        4 | 5 => Step::Prepare(which),
        6 | 7 => Step::Decide,
        8 if which % 4 == 0 => Step::WritePart(other % 3),
        8 => Step::Write,
        9 if which % 3 == 0 => Step::Restart(if has_flags { other } else { 0 }),
        9 if which % 3 == 1 => Step::KubeletRestart,
        9 => Step::NodeRestart(if has_flags { other } else { 0 }),
        13 if which % 2 == 0 && (has_flags || !has_gate) => Step::GpuError,
        13 => Step::Recovery,
        14 => Step::TurnGate,
        _ => Step::Allocate(which, other),
    };
    any::<(u8, u8, u8)>().prop_map(step)
}

/// The same with instances that the driver did not make.
fn step_beside_unmanaged() -> impl Strategy<Value = Step> {
    let unmanaged = |(is_made, which): (bool, u8)| {
        if is_made { Step::MakeUnmanaged(which) } else { Step::RemoveUnmanaged(which) }
    };
    let allocate = |(which, age): (u8, u8)| Step::Allocate(which, age);
    prop_oneof![
        6 => step(true, true),
        3 => any::<(u8, u8)>().prop_map(allocate),
        2 => any::<(bool, u8)>().prop_map(unmanaged),
        2 => Just(Step::Decide),
    ]
}

/// The same with a GPU that is held back now and then.
fn step_with_holds() -> impl Strategy<Value = Step> {
    let allocate = |(which, age): (u8, u8)| Step::Allocate(which, age);
    prop_oneof![
        6 => step(true, false),
        3 => any::<(u8, u8)>().prop_map(allocate),
        2 => any::<u8>().prop_map(Step::Hold),
        1 => Just(Step::EndHold),
        2 => Just(Step::Decide),
    ]
}

/// The same with a GPU that is lost now and then.
fn step_with_losses() -> impl Strategy<Value = Step> {
    let allocate = |(which, age): (u8, u8)| Step::Allocate(which, age);
    prop_oneof![
        6 => step(true, true),
        3 => any::<(u8, u8)>().prop_map(allocate),
        1 => Just(Step::Loss),
        1 => Just(Step::Return),
        3 => Just(Step::Decide),
    ]
}

/// Plays what a fuzzer thinks of. With `is_wild`, schedulers give away anything, twice as well, whatever was published.
fn play(model: u8, steps: &[Step], has_gate: bool, is_wild: bool) {
    let models = mig_models();
    let world = World::new(models[pick(model, models.len())]);
    play_in(world, model, steps, has_gate, is_wild);
}

fn play_in(mut world: World, model: u8, steps: &[Step], has_gate: bool, is_wild: bool) {
    world.keeps_counters |= has_gate && pick(model, 3) == 0;
    for step in steps {
        match *step {
            Step::ChangeLayout(which, other) => world.change_layout(which, other),
            Step::Wait(seconds) => world.now += u64::from(seconds),
            Step::End(which, how) => world.end(which, how),
            Step::Prepare(which) => world.prepare(which, is_wild),
            Step::Decide => world.decide(),
            Step::Write => world.write(),
            Step::WritePart(most) => world.write_part(usize::from(most)),
            Step::Restart(flags) => world.restart(flags),
            Step::KubeletRestart => world.wipe(),
            Step::NodeRestart(flags) => {
                world.wipe();
                world.restart(flags);
            }
            Step::GpuError => {
                world.is_unhealthy = true;
                world.may_overlap |= has_gate;
            }
            Step::Recovery => world.is_unhealthy = false,
            Step::TurnGate => world.keeps_counters = !world.keeps_counters,
            Step::MakeUnmanaged(which) => {
                world.make_unmanaged(which);
                world.may_overlap = true;
            }
            Step::RemoveUnmanaged(which) if !world.unmanaged.is_empty() => {
                let index = pick(which, world.unmanaged.len());
                world.unmanaged.remove(index);
            }
            Step::RemoveUnmanaged(_) => {}
            Step::Loss => {
                world.restart(0);
                (world.is_lost, world.may_overlap) = (true, true);
            }
            Step::Return => world.is_lost = false,
            Step::Hold(which) => world.hold_any(which),
            Step::EndHold => world.end_hold(),
            Step::Allocate(which, _) if is_wild => {
                let all: Vec<String> = world.inventory.names().into_iter().collect();
                world.claim(all[pick(which, all.len())].clone());
            }
            Step::Allocate(which, age) => world.allocate(which, age),
        }
        let allocated: Vec<String> =
            world.claims.values().filter(|it| it.is_allocated).map(|it| it.device.clone()).collect();
        let is_safe = is_wild || world.may_overlap || world.can_exist(&allocated);
        assert!(is_safe, "allocated together: {allocated:?}");
        world.check_prepared();
        if world.has_one_scheduler {
            world.check_counters();
        }
    }
    if !is_wild {
        world.comes_to_rest();
    }
}

proptest! {
    #![proptest_config(config(CASES))]

    #[test]
    fn late_schedulers_never_give_away_what_overlaps(
        model in any::<u8>(),
        steps in prop::collection::vec(step(false, false), 1..60),
    ) {
        play(model, &steps, false, false);
    }

    #[test]
    fn nor_when_the_gate_is_turned_on_and_off(
        model in any::<u8>(),
        steps in prop::collection::vec(step(true, false), 1..60),
    ) {
        play(model, &steps, true, false);
    }

    #[test]
    fn nor_is_it_prepared_or_withdrawn_from_a_claim_when_flags_change_or_the_gpu_is_unhealthy(
        model in any::<u8>(),
        steps in prop::collection::vec(step(true, true), 1..60),
    ) {
        play(model, &steps, true, false);
    }

    #[test]
    fn whatever_schedulers_give_away_nothing_that_overlaps_is_prepared(
        model in any::<u8>(),
        steps in prop::collection::vec(step(true, true), 1..60),
    ) {
        play(model, &steps, true, true);
    }
}

proptest! {
    #![proptest_config(config(CASES))]

    #[test]
    fn no_counter_is_ever_below_what_allocated_devices_consume(
        model in any::<u8>(),
        steps in prop::collection::vec(step_beside_unmanaged(), 1..60),
    ) {
        let models = mig_models();
        let mut world = World::new(models[pick(model, models.len())]);
        (world.has_one_scheduler, world.keeps_counters) = (true, true);
        play_in(world, model, &steps, true, false);
    }
}

proptest! {
    #![proptest_config(config(CASES))]

    #[test]
    fn what_claims_have_of_a_lost_gpu_stays_as_it_is_published(
        model in any::<u8>(),
        steps in prop::collection::vec(step_with_losses(), 1..60),
    ) {
        play(model, &steps, true, false);
    }
}

proptest! {
    #![proptest_config(config(CASES))]

    #[test]
    fn a_gpu_that_is_held_back_is_given_away_once_and_in_the_end_all_is_offered(
        model in any::<u8>(),
        steps in prop::collection::vec(step_with_holds(), 1..60),
    ) {
        play(model, &steps, true, false);
    }

    #[test]
    fn one_scheduler_finds_enough_counters_whatever_is_held_back(
        model in any::<u8>(),
        steps in prop::collection::vec(step_with_holds(), 1..60),
    ) {
        let models = mig_models();
        let mut world = World::new(models[pick(model, models.len())]);
        (world.has_one_scheduler, world.keeps_counters) = (true, true);
        play_in(world, model, &steps, true, false);
    }
}

#[test]
fn a_gpu_that_is_held_back_offers_nothing_until_the_last_moment_of_the_rest_is_known() {
    let mut world = world("all-1g.10gb");
    world.keeps_counters = true;
    settle(&mut world);
    assert_eq!(world.published().len(), 26);
    world.hold("7g.80gb");
    sync(&mut world);
    assert_eq!(world.published(), BTreeSet::new());
    // A scheduler that is late.
    world.claim(mig("1g-10gb-3"));
    world.now += SETTLE;
    sync(&mut world);
    sync(&mut world);
    assert_eq!(world.published(), [mig("7g-80gb-0")].into());
    assert_eq!(world.allocatable(), BTreeSet::new(), "it is known, and what it takes is not in the counters");
    world.end(0, 0);
    sync(&mut world);
    world.end_hold();
    world.now += SETTLE;
    sync(&mut world);
    sync(&mut world);
    assert_eq!(world.published().len(), 26);
}

#[test]
fn without_counters_what_is_released_on_a_gpu_that_is_held_back_is_offered_to_nobody_before_the_large_device()
{
    let mut world = world("all-1g.10gb");
    settle(&mut world);
    assert_eq!(world.published().len(), 7);
    world.claim(mig("1g-10gb-3"));
    world.hold("7g.80gb");
    world.rounds.layout.layouts = choose(Some("all-7g.80gb"), None, &world.facts).unwrap();
    world.rounds.layout.revision += 1;
    sync(&mut world);
    assert_eq!(world.published(), BTreeSet::new(), "at its release a scheduler would give it away again");
    world.now += 2 * SETTLE;
    sync(&mut world);
    assert_eq!(world.published(), BTreeSet::new(), "it is allocated");
    world.end(0, 0);
    world.rest(true);
    assert_eq!(world.published(), [mig("7g-80gb-0")].into());
    world.end_hold();
}

#[test]
fn what_claims_hold_of_a_gpu_that_becomes_unhealthy_while_it_is_held_back_is_published_with_its_taint() {
    let mut world = world("all-7g.80gb");
    let device = mig("1g-10gb-3");
    world.claim(device.clone());
    world.prepare(0, false);
    world.hold("7g.80gb");
    world.rest(true);
    assert_eq!(world.published(), BTreeSet::new());
    world.is_unhealthy = true;
    world.rest(false);
    assert_eq!(world.published(), [device.clone()].into(), "without it there is nothing to taint");
    world.is_unhealthy = false;
    world.rest(false);
    assert_eq!(world.published(), BTreeSet::new());
    world.end_hold();
}

/// A world with counters in which all seven small devices are prepared.
fn full_with_counters() -> World {
    let mut world = world("all-1g.10gb");
    world.keeps_counters = true;
    settle(&mut world);
    for start in 0..7 {
        world.claim(mig(&format!("1g-10gb-{start}")));
        world.prepare(0, false);
    }
    world
}

#[test]
fn with_counters_what_is_released_on_a_gpu_that_is_held_back_can_be_allocated_to_nobody_before_the_large_device()
 {
    let mut world = full_with_counters();
    let large: BTreeSet<String> = [mig("7g-80gb-0")].into();
    world.hold("7g.80gb");
    sync(&mut world);
    assert_eq!(world.published(), BTreeSet::new(), "a late scheduler may still give something away");
    // As one does, the moment the first claim ends.
    world.end(0, 0);
    world.claim(mig("1g-10gb-0"));
    world.now += SETTLE;
    sync(&mut world);
    for _ in 0..7 {
        assert_eq!(world.published(), large);
        assert_eq!(world.allocatable(), BTreeSet::new(), "it is not free yet");
        // Released, but the driver has not looked at the claims since.
        world.end(0, 0);
        assert_eq!(world.allocatable(), BTreeSet::new());
        world.rest(false);
    }
    assert_eq!(world.allocatable(), large);
    world.claim(mig("7g-80gb-0"));
    world.end_hold();
    sync(&mut world);
    assert_eq!((world.published().len(), world.allocatable().len()), (26, 0));
}

#[test]
fn with_counters_what_a_hold_hides_takes_nothing_from_the_rest_and_comes_back_at_once_with_its_share() {
    let mut world = full_with_counters();
    for _ in 0..3 {
        world.end(0, 0);
    }
    // The four at 3, 4, 5 and 6 stay.
    world.hold("3g.40gb");
    sync(&mut world);
    world.now += SETTLE;
    sync(&mut world);
    assert_eq!(world.published(), [mig("3g-40gb-0"), mig("3g-40gb-4")].into());
    assert_eq!(world.allocatable(), BTreeSet::new());
    world.end(0, 0);
    world.rest(false);
    assert_eq!(world.allocatable(), [mig("3g-40gb-0")].into());
    world.check_counters();
    world.claim(mig("3g-40gb-0"));
    world.restart(0);
    sync(&mut world);
    assert_eq!(world.published().len(), 2, "the claims say what is hidden");
    world.check_counters();
    assert_eq!(world.allocatable(), BTreeSet::new());
    world.end_hold();
    sync(&mut world);
    assert!(world.prepared().is_subset(&world.published()), "no slices in between have offered it");
    world.check_counters();
    world.now += SETTLE;
    sync(&mut world);
    assert_eq!((world.published().len(), world.allocatable().len()), (26, 0), "{:?}", world.allocatable());
    world.check_counters();
}

#[test]
fn with_counters_what_claims_hold_of_a_gpu_that_becomes_unhealthy_while_it_is_held_back_is_published_at_once()
{
    let mut world = full_with_counters();
    let held = world.prepared();
    world.hold("7g.80gb");
    sync(&mut world);
    world.now += SETTLE;
    sync(&mut world);
    assert_eq!(world.published(), [mig("7g-80gb-0")].into());
    world.is_unhealthy = true;
    sync(&mut world);
    assert_eq!(world.published(), held);
    world.check_counters();
    world.end_hold();
}

fn mig(name: &str) -> String {
    format!("gpu-0000-1a-00-mig-{name}")
}

/// A world with one H100 and this layout in force.
fn world(layout: &str) -> World {
    let mut world = World::new(Model::named("H100-80GB").unwrap());
    world.rounds.layout.layouts = choose(Some(layout), None, &world.facts).unwrap();
    sync(&mut world);
    world
}

fn sync(world: &mut World) {
    world.decide();
    world.write();
}

/// Twice, each time when the settle time has passed: nothing of before is waited for.
fn settle(world: &mut World) {
    for _ in 0..2 {
        world.now += SETTLE;
        sync(world);
    }
}

#[test]
fn what_overlaps_appears_only_after_the_settle_time_and_what_does_not_at_once() {
    let mut world = world("all-1g.10gb");
    assert_eq!(world.published().len(), 7, "the first publication waits for nothing");
    world.rounds.layout.layouts = choose(Some("all-balanced"), None, &world.facts).unwrap();
    world.now += 1;
    sync(&mut world);
    assert_eq!(world.published(), [mig("1g-10gb-2"), mig("1g-10gb-3")].into(), "the rest is withdrawn");
    world.now += SETTLE - 1;
    world.claim(mig("1g-10gb-6"));
    sync(&mut world);
    assert_eq!(world.published(), [mig("1g-10gb-6")].into(), "it is back, and the rest makes room for a 3g");
    world.now += 1;
    sync(&mut world);
    let around = [mig("1g-10gb-6"), mig("2g-20gb-4"), mig("3g-40gb-0")];
    world.now += SETTLE;
    sync(&mut world);
    assert_eq!(world.published(), around.into());
}

#[test]
fn a_pool_that_gets_or_loses_its_counters_is_closed_for_the_settle_time() {
    let mut world = world("all-1g.10gb");
    world.keeps_counters = true;
    world.now += SETTLE;
    sync(&mut world);
    let closed = world.pool().unwrap();
    assert_eq!((closed.devices.len(), closed.is_open), (7, false), "a scheduler may still act on the layout");
    world.now += SETTLE;
    sync(&mut world);
    assert_eq!(world.published().len(), 26);
    world.claim(mig("3g-40gb-4"));

    world.keeps_counters = false;
    sync(&mut world);
    let closed = Pool { devices: [mig("3g-40gb-4")].into(), is_counted: false, is_open: false };
    assert_eq!(world.pool(), Some(&closed));
    world.now += SETTLE - 1;
    sync(&mut world);
    assert_eq!(world.pool(), Some(&closed));
    world.now += 1;
    sync(&mut world);
    assert!(world.pool().unwrap().is_open);
    assert_eq!(world.published().len(), 5, "four small ones beside it");
}

#[test]
fn what_was_deleted_by_force_is_not_offered_beside_what_was_given_away_in_its_place() {
    let mut world = world("all-1g.10gb");
    world.keeps_counters = true;
    settle(&mut world);
    world.claim(mig("3g-40gb-4"));
    world.prepare(0, false);
    world.end(0, 1);
    world.claim(mig("1g-10gb-6"));
    world.keeps_counters = false;
    sync(&mut world);
    assert_eq!(world.published(), [mig("1g-10gb-6")].into());
    world.prepare(0, false);
    assert_eq!(world.prepared(), [mig("3g-40gb-4")].into(), "the other one waits for it");
    world.end(0, 0);
    world.prepare(0, false);
    assert_eq!(world.prepared(), [mig("1g-10gb-6")].into());
}

#[test]
fn a_restart_behind_a_withdrawal_waits_as_the_process_before_would_have() {
    for is_wiped in [false, true] {
        let mut world = world("all-1g.10gb");
        world.rounds.layout.layouts = choose(Some("all-disabled"), None, &world.facts).unwrap();
        sync(&mut world);
        assert_eq!(world.published(), BTreeSet::new());
        if is_wiped {
            world.wipe();
        }
        world.restart(0);
        world.claim(mig("1g-10gb-6"));
        world.now += SETTLE - 1;
        sync(&mut world);
        assert_eq!(world.published(), [mig("1g-10gb-6")].into());
        assert_eq!(world.pool().unwrap().is_open, !is_wiped, "of what was wiped nothing is known");
        world.now += SETTLE;
        sync(&mut world);
        assert_eq!(world.published(), [mig("1g-10gb-6")].into(), "the whole GPU waits for it");
        assert!(world.pool().unwrap().is_open);
    }
}

#[test]
fn where_counters_are_kept_what_is_allocated_outlives_errors_and_filters_and_late_schedulers() {
    let mut world = world("all-1g.10gb");
    world.keeps_counters = true;
    settle(&mut world);
    let (first, late) = (mig("1g-10gb-6"), mig("1g-10gb-0"));
    world.claim(first.clone());
    world.is_unhealthy = true;
    sync(&mut world);
    assert_eq!(world.published(), [first.clone()].into());
    // By a scheduler that has not seen that yet.
    world.claim(late.clone());
    world.now += SETTLE;
    sync(&mut world);
    assert_eq!(world.published(), [first.clone(), late.clone()].into());
    world.is_unhealthy = false;
    world.restart(1);
    sync(&mut world);
    assert_eq!(world.published().iter().filter(|it| it.contains("-1g-")).count(), 2);
    world.end(0, 0);
    world.end(0, 0);
    world.now += SETTLE;
    sync(&mut world);
    assert!(world.published().iter().all(|it| !it.contains("-1g-")), "{:?}", world.published());
    assert!(!world.published().is_empty());
}

/// A world with counters in which a 1g.20gb at 0 was allocated just before it went, because an unmanaged instance is at 0.
fn late_beside_unmanaged() -> (World, String) {
    let mut world = world("all-1g.10gb");
    world.keeps_counters = true;
    settle(&mut world);
    let profiles = &world.facts[0].mig.as_ref().unwrap().profiles;
    let small = profiles.iter().find(|it| it.name == "1g.10gb").unwrap().clone();
    world.unmanaged.push((small, Placement { start: 0, size: 1 }));
    world.decide();
    let late = mig("1g-20gb-0");
    world.claim(late.clone());
    world.write();
    assert!(!world.published().contains(&late));
    (world, late)
}

#[test]
fn an_allocated_device_comes_back_only_where_nothing_that_overlaps_was_given_away_meanwhile() {
    let (mut world, late) = late_beside_unmanaged();
    world.now += SETTLE;
    // The claims are read, and only then another one is given what overlaps the device that is about to come back.
    world.decide();
    world.claim(mig("1g-10gb-1"));
    world.write();
    world.check_counters();
    assert!(!world.published().contains(&late), "not while others can be allocated");
    world.now += SETTLE;
    sync(&mut world);
    world.check_counters();
    assert!(!world.published().contains(&late) && world.published().contains(&mig("1g-10gb-1")));
    assert!(world.published().contains(&mig("1g-10gb-6")), "the rest is offered again");
}

#[test]
fn of_two_allocated_devices_that_overlap_one_is_left_out_until_the_other_is_released() {
    let (mut world, late) = late_beside_unmanaged();
    world.claim(mig("1g-10gb-1"));
    for _ in 0..2 {
        world.now += SETTLE;
        sync(&mut world);
        world.check_counters();
    }
    assert!(!world.published().contains(&late), "a scheduler could give it away again once it is released");
    assert_eq!(world.cost(&mig("1g-10gb-1")), 1);
    world.unmanaged.clear();
    sync(&mut world);
    assert!(!world.published().contains(&late), "as long as a claim has the other one");
    world.end(1, 0);
    for _ in 0..2 {
        world.now += SETTLE;
        sync(&mut world);
        world.check_counters();
    }
    assert_eq!(world.cost(&late), 2, "what it consumes is counted again");
}

#[test]
fn a_device_that_was_released_since_the_last_read_is_not_offered_without_its_cost() {
    let mut world = world("all-1g.10gb");
    world.keeps_counters = true;
    settle(&mut world);
    // Driver and kubelet start again: the slices are gone, and the claims are read.
    let (large, small) = (mig("4g-40gb-0"), mig("1g-10gb-0"));
    world.claim(large.clone());
    world.restart(0);
    world.wipe();
    sync(&mut world);
    assert_eq!(world.cost(&large), 4);
    world.end(0, 0);
    world.claim(small.clone());
    world.prepare(0, false);
    world.now += 1;
    sync(&mut world);
    world.check_counters();
    for _ in 0..3 {
        world.now += SETTLE;
        sync(&mut world);
        world.check_counters();
    }
    assert_eq!((world.cost(&small), world.cost(&large)), (1, 4), "the next read shows that it is free");
}

#[test]
fn a_gate_that_turns_soon_after_a_start_makes_no_round_without_a_pause() {
    let mut world = world("all-1g.10gb");
    world.restart(0);
    sync(&mut world);
    world.now += 1;
    world.keeps_counters = true;
    sync(&mut world);
    // Here the settle time of the start is over, and that of the gate is not.
    world.now += SETTLE - 1;
    sync(&mut world);
    assert!(!world.pool().unwrap().is_open);
    world.now += 1;
    sync(&mut world);
    assert!(world.pool().unwrap().is_open);
}

#[test]
fn claims_that_are_read_at_a_start_count_for_layouts_at_once() {
    let mut world = world("all-1g.10gb");
    world.is_unhealthy = true;
    sync(&mut world);
    world.claim(mig("1g-10gb-0"));
    world.restart(0);
    sync(&mut world);
    assert!(world.rounds.has_read());
    assert_eq!(world.published(), [mig("1g-10gb-0")].into());
}

#[test]
fn nothing_is_published_before_the_layouts_are_known() {
    let mut world = world("all-1g.10gb");
    world.wipe();
    world.rounds.layout.revision = 0;
    sync(&mut world);
    assert_eq!(world.pool(), None);
    world.rounds.layout.revision = 1;
    sync(&mut world);
    assert_eq!(world.published().len(), 7);
}

#[test]
fn a_lost_gpu_keeps_what_claims_have_of_it_with_its_cost_until_the_last_one_ends() {
    let mut world = world("all-1g.10gb");
    world.keeps_counters = true;
    settle(&mut world);
    world.claim(mig("2g-20gb-0"));
    world.prepare(0, false);
    world.restart(0);
    world.is_lost = true;
    sync(&mut world);
    assert_eq!(world.published(), [mig("2g-20gb-0")].into());
    assert_eq!(world.cost(&mig("2g-20gb-0")), 2);
    world.wipe();
    sync(&mut world);
    assert_eq!(world.cost(&mig("2g-20gb-0")), 2, "it is remembered as it was published");
    world.comes_to_rest();
}

#[test]
fn a_release_makes_room_for_the_layout_also_after_the_claims_were_read() {
    let mut world = world("all-1g.10gb");
    world.claim(mig("1g-10gb-0"));
    world.prepare(0, false);
    world.rounds.layout.layouts = choose(Some("all-disabled"), None, &world.facts).unwrap();
    sync(&mut world);
    world.now += SETTLE;
    sync(&mut world);
    assert!(world.rounds.has_read(), "the last round has seen the claim as allocated");
    assert_eq!(world.published(), [mig("1g-10gb-0")].into());
    world.end(0, 0);
    world.rest(false);
    assert_eq!(world.published(), ["gpu-0000-1a-00".to_owned()].into());
}

#[test]
fn what_is_allocated_on_a_gpu_that_is_held_back_stays_published_when_counters_are_kept_again() {
    let mut world = world("all-3g.40gb");
    world.keeps_counters = true;
    settle(&mut world);
    world.hold("3g.40gb");
    sync(&mut world);
    world.keeps_counters = false;
    sync(&mut world);
    // By a scheduler that is late, so that only the claims say it.
    let device = mig("3g-40gb-0");
    world.claim(device.clone());
    sync(&mut world);
    sync(&mut world);
    assert!(world.published().contains(&device));
    world.keeps_counters = true;
    sync(&mut world);
    assert!(world.published().contains(&device), "a late scheduler's other allocations are not known yet");
}
