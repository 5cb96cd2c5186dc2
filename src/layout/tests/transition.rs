//! Whatever changes, and however late schedulers are: nothing that overlaps is given away, nor prepared.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::world::{SETTLE, World, pick};
use super::*;
use crate::slices::{Pool, names};

/// Enough to find each of the faults that are named in the tests below within seconds.
const CASES: u32 = 1024;

/// What, which, and which other: any number will do, a smaller one shrinks better than an index.
type Step = (u8, u8, u8);

/// Plays what a fuzzer thinks of. With `is_wild`, schedulers give away anything, twice as well, whatever was published.
fn play(model: u8, steps: &[Step], has_gate: bool, is_wild: bool) {
    let models = mig_models();
    let mut world = World::new(models[pick(model, models.len())]);
    world.keeps_counters = has_gate && pick(model, 3) == 0;
    for &(what, which, other) in steps {
        match pick(what, if has_gate { 14 } else { 13 }) {
            0 => world.change_layout(which, other),
            1 => world.now += 1 + u64::from(which % 12),
            2 | 3 => world.end(which, other % 4),
            4 | 5 => world.prepare(which, is_wild),
            6 | 7 => world.decide(),
            8 => world.write(),
            // A restart at the worst moment, and a kubelet's, which deletes the slices of the node.
            9 if which % 3 == 0 => world.restart(),
            9 if which % 3 == 1 => world.show(None),
            9 => {
                world.show(None);
                world.restart();
            }
            13 => world.keeps_counters = !world.keeps_counters,
            _ if is_wild => {
                let all: Vec<String> = names(&world.inventory).into_iter().collect();
                world.claim(all[pick(which, all.len())].clone());
            }
            _ => world.allocate(which, other),
        }
        let allocated: Vec<String> =
            world.claims.values().filter(|it| it.is_allocated).map(|it| it.device.clone()).collect();
        assert!(is_wild || world.can_exist(&allocated), "allocated together: {allocated:?}");
        world.check_prepared();
    }
    if !is_wild {
        world.comes_to_rest();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, rng_seed: RngSeed::Fixed(4), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn late_schedulers_never_give_away_what_overlaps(
        model in any::<u8>(),
        steps in prop::collection::vec(any::<Step>(), 1..60),
    ) {
        play(model, &steps, false, false);
    }

    #[test]
    fn nor_when_the_gate_is_turned_on_and_off(
        model in any::<u8>(),
        steps in prop::collection::vec(any::<Step>(), 1..60),
    ) {
        play(model, &steps, true, false);
    }

    #[test]
    fn whatever_schedulers_give_away_nothing_that_overlaps_is_prepared(
        model in any::<u8>(),
        steps in prop::collection::vec(any::<Step>(), 1..60),
    ) {
        play(model, &steps, true, true);
    }
}

fn mig(name: &str) -> String {
    format!("gpu-0000-1a-00-mig-{name}")
}

/// A world with one H100 and this layout in force.
fn world(layout: &str) -> World {
    let mut world = World::new(Model::named("H100-80GB").unwrap());
    world.layouts = choose(Some(layout), None, &world.facts).unwrap();
    sync(&mut world);
    world
}

fn sync(world: &mut World) {
    world.decide();
    world.write();
}

#[test]
fn what_overlaps_appears_only_after_the_settle_time_and_what_does_not_at_once() {
    let mut world = world("all-1g.10gb");
    assert_eq!(world.published().len(), 7, "the first publication waits for nothing");
    world.layouts = choose(Some("all-balanced"), None, &world.facts).unwrap();
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
    for _ in 0..2 {
        world.now += SETTLE;
        sync(&mut world);
    }
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
        world.layouts = choose(Some("all-disabled"), None, &world.facts).unwrap();
        sync(&mut world);
        assert_eq!(world.published(), BTreeSet::new());
        if is_wiped {
            world.show(None);
        }
        world.restart();
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
