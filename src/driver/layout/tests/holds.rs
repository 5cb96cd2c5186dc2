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
    assert_eq!((early.in_force.len(), early.wake, early.begins_at), (0, Some(at(30)), Some(at(30))));
    let on_time = step(30);
    assert_eq!((on_time.has_begun, on_time.begins_at), (true, None));
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

/// The devices of the only GPU that are in the way of no instance of a profile.
fn clear_of<'a>(inventory: &'a Inventory, profile: &str) -> Vec<&'a AllocatableDevice> {
    let gpu = &inventory.gpus[0];
    let devices: Vec<&AllocatableDevice> = gpu.devices.iter().filter(|it| it.mig().is_some()).collect();
    let candidate = |it: &&AllocatableDevice| Candidate {
        profile: it.mig().unwrap().profile.clone(),
        placement: it.mig().unwrap().placement,
        cost: it.consumes.clone(),
    };
    let candidates: Vec<Candidate> = devices.iter().map(candidate).collect();
    beside(&candidates, &gpu.counters, profile).into_iter().map(|it| devices[it]).collect()
}

/// Whether counters have room for these devices together.
fn fit_together(counters: &BTreeMap<String, u32>, devices: &[&AllocatableDevice]) -> bool {
    counters.iter().all(|(name, total)| {
        devices.iter().map(|it| it.consumes.get(name).copied().unwrap_or(0)).sum::<u32>() <= *total
    })
}

/// Whether an instance has room beside each set of these devices that can exist, `chosen` included.
fn has_room<'a>(
    counters: &BTreeMap<String, u32>,
    instance: &'a AllocatableDevice,
    chosen: &mut Vec<&'a AllocatableDevice>,
    left: &[&'a AllocatableDevice],
) -> bool {
    let Some((next, left)) = left.split_first() else {
        chosen.push(instance);
        let fits = fit_together(counters, chosen);
        chosen.pop();
        return fits;
    };
    chosen.push(*next);
    let with = !fit_together(counters, chosen) || has_room(counters, instance, chosen, left);
    chosen.pop();
    with && has_room(counters, instance, chosen, left)
}

#[test]
fn whatever_is_allocated_beside_a_hold_its_profile_has_room_on_every_gpu() {
    let mut offered = BTreeMap::new();
    for model in mig_models() {
        let inventory = inventory_of(&facts(model.name()), true, &BTreeSet::new());
        let gpu = &inventory.gpus[0];
        for instance in gpu.devices.iter().filter(|it| it.mig().is_some()) {
            let profile = &instance.mig().unwrap().profile;
            let clear = clear_of(&inventory, profile);
            assert!(has_room(&gpu.counters, instance, &mut Vec::new(), &clear), "{} {profile}", model.name());
            offered.insert((model.name(), profile.clone()), clear.len());
        }
    }
    let of = |model: &str, profile: &str| offered[&(model, profile.to_owned())];
    assert!(0 < of("A100-40GB", "4g.20gb") && 0 < of("B200-180GB", "4g.90gb"), "{offered:?}");
    assert_eq!(
        (of("H100-80GB", "7g.80gb"), of("H100-80GB", "3g.40gb"), of("A30-24GB", "2g.12gb")),
        (0, 0, 0)
    );
}

#[test]
fn nothing_is_offered_beside_a_hold_where_it_could_use_up_what_the_profile_needs() {
    let candidate = |profile: &str, start: u32, size: u32, cost: &[(&str, u32)]| Candidate {
        profile: profile.to_owned(),
        placement: Placement { start, size },
        cost: cost.iter().map(|(name, amount)| ((*name).to_owned(), *amount)).collect(),
    };
    let mut candidates = vec![candidate("4g", 0, 4, &[("decoders", 4)]), candidate("1g", 3, 1, &[])];
    // The one of them that takes the most is not the largest.
    candidates.extend((4..7).map(|it| candidate("1g", it, 1, &[("decoders", 1), ("ofas", 1)])));
    candidates.push(candidate("3g", 4, 4, &[("decoders", 2)]));
    let offered = |decoders: u32| {
        let totals = [("decoders".to_owned(), decoders), ("ofas".to_owned(), 1)].into();
        beside(&candidates, &totals, "4g")
    };
    assert_eq!(offered(7), [2, 3, 4, 5]);
    assert_eq!(offered(6), Vec::<usize>::new());
    assert_eq!(beside(&candidates, &BTreeMap::new(), "7g"), Vec::<usize>::new(), "no such profile");
}

#[test]
fn a_layout_keeps_beside_a_hold_what_fits_there_and_nothing_free_that_is_in_the_way() {
    let (facts, _) = h100();
    let held_back: HeldBack = [(GPU.to_owned(), "4g.40gb".to_owned())].into();
    let name = |profile: &str, start: u32| DeviceName::mig(facts[0].pci, profile, start).to_string();
    let (first, last) = (name("1g.10gb", 1), name("1g.10gb", 6));
    for (label, held, expected) in [
        ("all-balanced", vec![], vec!["3g.40gb@4", "4g.40gb@0"]),
        ("all-balanced", vec![&first], vec!["1g.10gb@1", "3g.40gb@4"]),
        ("all-1g.10gb", vec![], vec!["1g.10gb@4", "1g.10gb@5", "1g.10gb@6", "4g.40gb@0"]),
        ("all-1g.10gb", vec![&first, &last], vec!["1g.10gb@1", "1g.10gb@4", "1g.10gb@5", "1g.10gb@6"]),
        ("all-7g.80gb", vec![], vec!["4g.40gb@0"]),
        ("all-disabled", vec![], vec!["4g.40gb@0"]),
    ] {
        let base = choose(Some(label), None, &facts).unwrap();
        let held: BTreeSet<String> = held.into_iter().cloned().collect();
        let layouts = with_holds(&base, &held_back, &facts);
        let offer = apply_held_back(&inventory_of(&facts, true, &held), &layouts, &held_back, &held);
        assert_eq!(shown(&offer), expected, "{label}");
    }
}

#[test]
fn whatever_the_layout_and_what_claims_hold_nothing_free_is_offered_that_is_in_the_way() {
    let (facts, _) = h100();
    let held_back: HeldBack = [(GPU.to_owned(), "4g.40gb".to_owned())].into();
    for label in ["all-1g.10gb", "all-1g.20gb", "all-2g.20gb", "all-3g.40gb", "all-balanced"] {
        let layouts = with_holds(&choose(Some(label), None, &facts).unwrap(), &held_back, &facts);
        // The second one leaves a 2g no place but in the way.
        for starts in (0..4).flat_map(|it| [vec![it], vec![it, 4]]) {
            let name = |start: &u32| DeviceName::mig(facts[0].pci, "1g.10gb", *start).to_string();
            let held: BTreeSet<String> = starts.iter().map(name).collect();
            let offer = apply_held_back(&inventory_of(&facts, true, &held), &layouts, &held_back, &held);
            let free = offer.inventory.devices().filter(|it| !held.contains(it.name.as_str()));
            let in_the_way: Vec<_> = free.filter(|it| it.mig().unwrap().placement.start < 4).collect();
            assert!(in_the_way.is_empty(), "{label}, {held:?}: {in_the_way:?}");
        }
    }
}
