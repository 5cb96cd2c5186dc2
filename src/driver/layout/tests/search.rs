//! The search against brute force, and what holds after any sequence of layouts and claims.

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::RngSeed;

use super::*;

/// The most instances, and with these the most memory slices, that are possible of `wanted` beside `fixed`.
pub(super) fn brute_force(
    profiles: &[Profile],
    fixed: &[(&Profile, Placement)],
    wanted: &Counts,
) -> (u32, u32) {
    fn extend<'a>(
        profiles: &[Profile],
        places: &[(&'a Profile, Placement)],
        chosen: &mut Vec<(&'a Profile, Placement)>,
        wanted: &mut Counts,
        so_far: (u32, u32),
    ) -> (u32, u32) {
        let mut best = so_far;
        for (position, place) in places.iter().enumerate() {
            if wanted.get(&place.0.name).is_none_or(|it| *it == 0) {
                continue;
            }
            chosen.push(*place);
            if exist_together(profiles, chosen) {
                *wanted.get_mut(&place.0.name).unwrap() -= 1;
                let now = (so_far.0 + 1, so_far.1 + place.1.size);
                best = best.max(extend(profiles, &places[position + 1..], chosen, wanted, now));
                *wanted.get_mut(&place.0.name).unwrap() += 1;
            }
            chosen.pop();
        }
        best
    }
    let places = all_placements(profiles);
    extend(profiles, &places, &mut fixed.to_vec(), &mut wanted.clone(), (0, 0))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, rng_seed: RngSeed::Fixed(4), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn search_is_as_good_as_brute_force(
        model in any::<Index>(),
        wanted in prop::collection::vec((any::<Index>(), 1_u32..4), 1..4),
        fixed in prop::collection::vec(any::<Index>(), 0..3),
    ) {
        let models = mig_models();
        let profiles = profiles(models[model.index(models.len())]);
        let places = all_placements(&profiles);
        let mut obstacles = Vec::new();
        for place in fixed {
            obstacles.push(places[place.index(places.len())]);
            if !exist_together(&profiles, &obstacles) {
                obstacles.pop();
            }
        }
        let wanted: Counts = wanted
            .iter()
            .map(|(profile, count)| (profiles[profile.index(profiles.len())].name.clone(), *count))
            .collect();

        let plan = CounterPlan::of(&profiles);
        let mut room = plan.totals();
        for (profile, placement) in &obstacles {
            plan.cost(profile, *placement).iter().for_each(|(counter, it)| *room.get_mut(counter).unwrap() -= it);
        }
        let candidates = candidates(&profiles, &plan);
        let chosen = fit(&candidates, &room, &wanted);
        let chosen_places: Vec<_> = chosen.iter().map(|it| places[*it]).collect();
        let together: Vec<_> = obstacles.iter().copied().chain(chosen_places.iter().copied()).collect();
        prop_assert!(exist_together(&profiles, &together));
        let found = (
            u32::try_from(chosen.len()).unwrap(),
            chosen_places.iter().map(|it| it.1.size).sum::<u32>(),
        );
        prop_assert_eq!(found, brute_force(&profiles, &obstacles, &wanted));
        let dropped: u32 = dropped(&candidates, &chosen, &wanted).values().sum();
        prop_assert_eq!(dropped, wanted.values().sum::<u32>() - found.0);
        prop_assert_eq!(chosen, fit(&candidates, &room, &wanted), "the same question, the same answer");
    }

    #[test]
    fn no_sequence_of_layouts_and_claims_publishes_an_overlap_or_withdraws_a_held_device(
        model in any::<Index>(),
        steps in prop::collection::vec((any::<Index>(), any::<Index>(), any::<Index>(), 0_u32..5), 1..12),
    ) {
        let models = mig_models();
        let facts = facts(models[model.index(models.len())].name());
        let profiles = &facts[0].mig.as_ref().unwrap().profiles;
        let mut held = BTreeSet::new();
        let mut layouts = default_layouts(&facts);
        for (what, which, other, count) in steps {
            match what.index(4) {
                0 => {
                    let one = &profiles[which.index(profiles.len())].name;
                    let two = &profiles[other.index(profiles.len())].name;
                    let counts = [(one.clone(), count), (two.clone(), 2)].into();
                    let layout =
                        if other.index(5) == 0 { GpuLayout::Whole } else { GpuLayout::Cut(counts) };
                    layouts.values_mut().for_each(|it| *it = layout.clone());
                }
                1 if !held.is_empty() => {
                    let name: String = held.iter().nth(which.index(held.len())).cloned().unwrap();
                    held.remove(&name);
                }
                _ => {
                    let before = apply(&inventory_of(&facts, true, &held), &layouts, &held);
                    let free: Vec<String> =
                        before.inventory.devices().map(|it| it.name.to_string()).filter(|it| !held.contains(it)).collect();
                    if !free.is_empty() {
                        held.insert(free[which.index(free.len())].clone());
                        let after = apply(&inventory_of(&facts, true, &held), &layouts, &held);
                        prop_assert_eq!(shown(&before), shown(&after), "giving a device away changes nothing");
                    }
                }
            }
            let offer = apply(&inventory_of(&facts, true, &held), &layouts, &held);
            let names: BTreeSet<String> = offer.inventory.devices().map(|it| it.name.to_string()).collect();
            prop_assert!(held.is_subset(&names), "{held:?} in {names:?}");
            prop_assert!(offer.inventory.gpus.iter().all(|it| it.counters.is_empty()));
            prop_assert!(offer.inventory.devices().all(|it| it.consumes.is_empty()));
            let whole = offer.inventory.devices().any(|it| it.kind == DeviceKind::Gpu);
            prop_assert!(!whole || names.len() == 1, "a whole GPU and its parts exclude each other: {names:?}");
            let parts: Vec<(&Profile, Placement)> = offer
                .inventory
                .devices()
                .filter_map(|it| match &it.kind {
                    DeviceKind::Mig(spec) => Some((facts[0].profile(spec.profile_id)?, spec.placement)),
                    _ => None,
                })
                .collect();
            prop_assert!(exist_together(profiles, &parts), "{names:?}");
        }
    }
}
