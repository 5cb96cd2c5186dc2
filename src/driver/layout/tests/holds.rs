//! GPUs that are held back for a claim.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use mig_model::claim::ClaimRef;
use mig_model::mig_node::Hold;

use super::*;

const GPU: &str = "gpu-0000-1a-00";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn hold(profile: &str, until: i64) -> Hold {
    let claim = ClaimRef::new("ns".into(), "large".into(), "uid-1".into()).unwrap();
    Hold { gpu: GPU.to_owned(), profile: profile.to_owned(), claim, until: Time(at(until)), since: None }
}

fn h100() -> (Vec<GpuFacts>, Inventory) {
    let facts = facts("1xH100-80GB");
    let inventory = inventory_of(&facts, true, &BTreeSet::new());
    (facts, inventory)
}

#[test]
fn a_hold_ends_at_its_time_and_after_fifteen_minutes_at_most() {
    let (_, inventory) = h100();
    let mut memory = HoldMemory::default();
    let mut step = |until, now| memory.follow(&[hold("7g.80gb", until)], &inventory, None, at(now));
    let first = step(60, 0);
    assert_eq!(first.in_force, [(GPU.to_owned(), "7g.80gb".to_owned())].into());
    assert_eq!((first.has_begun, first.wake, first.notes.len()), (true, Some(at(60)), 0));
    let second = step(60, 59);
    assert_eq!((second.in_force.len(), second.has_begun), (1, false));
    assert_eq!(step(60, 60), HoldStep::default());

    let long = step(100_000, 100);
    assert_eq!(long.wake, Some(at(1000)));
    assert!(
        long.notes[0].starts_with("gpu-0000-1a-00 is held back for 15 minutes at most, until "),
        "{long:?}"
    );
    assert_eq!(step(100_000, 999).in_force.len(), 1);
    assert_eq!(step(100_000, 1000).in_force, HeldBack::new());
    assert_eq!(step(100_000, 5000).in_force, HeldBack::new(), "nor does it begin again");
    assert_eq!(
        step(100_000, 50).in_force,
        [(GPU.to_owned(), "7g.80gb".to_owned())].into(),
        "the clock was put back"
    );
}

#[test]
fn a_hold_that_is_renewed_goes_on_without_a_gap_and_ends_soon_after_the_last_renewal() {
    let (_, inventory) = h100();
    let mut memory = HoldMemory::default();
    // The begin of a hold would have to wait; that of a renewed one is over.
    let mut step =
        |until, not_before, now| memory.follow(&[hold("7g.80gb", until)], &inventory, not_before, at(now));
    assert!(step(300, None, 0).has_begun);
    for renewed in (150..6000).step_by(150) {
        let renewal = step(renewed + 300, Some(at(renewed + 30)), renewed);
        assert_eq!(
            (renewal.in_force.len(), renewal.has_begun, renewal.notes.len()),
            (1, false, 0),
            "{renewed}"
        );
    }
    assert_eq!(step(6150, None, 6149).in_force.len(), 1);
    assert_eq!(step(6150, None, 6150), HoldStep::default());
}

#[test]
fn a_hold_that_is_removed_ends_and_one_of_a_device_that_is_not_offered_never_begins() {
    let (_, inventory) = h100();
    let mut memory = HoldMemory::default();
    assert_eq!(memory.follow(&[hold("full", 60)], &inventory, None, at(0)).in_force.len(), 1);
    assert_eq!(memory.follow(&[], &inventory, None, at(1)), HoldStep::default());
    let none = memory.follow(&[hold("7g.40gb", 60)], &inventory, None, at(2));
    assert_eq!((none.in_force.len(), none.wake), (0, None));
    assert_eq!(none.notes, ["gpu-0000-1a-00 offers no 7g.40gb, so it is not held back"]);
}

#[test]
fn a_hold_begins_no_sooner_than_the_node_may_change() {
    let (_, inventory) = h100();
    let mut memory = HoldMemory::default();
    let mut step = |now| memory.follow(&[hold("7g.80gb", 60)], &inventory, Some(at(30)), at(now));
    let early = step(0);
    assert_eq!((early.in_force.len(), early.wake), (0, Some(at(30))));
    assert!(step(30).has_begun);
    assert_eq!(step(31).in_force.len(), 1);
}

#[test]
fn a_gpu_that_is_held_back_has_the_profile_as_often_as_it_fits_and_serves_no_demand() {
    let (facts, inventory) = h100();
    let base = default_layouts(&facts);
    let held_back: HeldBack = [(GPU.to_owned(), "3g.40gb".to_owned())].into();
    let layouts = with_holds(&base, &held_back, &facts);
    let small = DeviceName::mig(facts[0].pci, "1g.10gb", 6).to_string();
    for (held, expected) in [
        (BTreeSet::new(), vec!["3g.40gb@0", "3g.40gb@4"]),
        (BTreeSet::from([small.clone()]), vec!["1g.10gb@6", "3g.40gb@0"]),
    ] {
        let offer = apply(&inventory_of(&facts, true, &held), &layouts, &held);
        assert_eq!(shown(&offer), expected);
    }
    let whole = with_holds(&base, &[(GPU.to_owned(), "full".to_owned())].into(), &facts);
    let nothing = BTreeSet::new();
    assert_eq!(shown(&apply(&inventory, &whole, &nothing)), ["whole"]);

    let inputs = LayoutInputs { inventory: &inventory, held: &nothing, base: &base, held_back: &held_back };
    let wanted = Wanted { free: counts("1x1g.10gb"), floor: Counts::new() };
    let arranged = arrange(inputs, &base, &wanted);
    assert_eq!(arranged.missing.len(), 1, "{arranged:?}");
    assert_eq!(arranged.layouts, base);
}
