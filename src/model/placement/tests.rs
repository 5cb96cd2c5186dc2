use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use super::*;
use crate::inventory::{AllocatableDevice, GpuInventory, OfferPolicy, fits_into, inventory_on, take};
use crate::simulated::{gpus, node_facts};
use crate::slices::{Owner, render};

type Held = BTreeSet<String>;

fn offers(models: &str) -> Inventory {
    inventory_on(&node_facts(), &gpus(models, true, &[]), &OfferPolicy::default())
}

fn held(names: &[&str]) -> Held {
    names.iter().map(|it| format!("gpu-0000-{it}")).collect()
}

/// What a scheduler can still take of this GPU.
fn available<'i>(gpu: &'i GpuInventory, held: &Held) -> Vec<&'i AllocatableDevice> {
    let is_held = |it: &&AllocatableDevice| held.contains(it.name.as_str());
    let mut left = gpu.counters.clone();
    gpu.devices.iter().filter(is_held).for_each(|it| take(&mut left, &it.consumes));
    gpu.devices.iter().filter(|it| !is_held(it) && fits_into(&it.consumes, &left)).collect()
}

fn gpu_of<'i>(inventory: &'i Inventory, name: &str) -> &'i GpuInventory {
    inventory.gpus.iter().find(|it| it.devices.iter().any(|it| it.name.as_str() == name)).unwrap()
}

/// The device that a request for a profile gets from a list.
fn first_fit(inventory: &Inventory, held: &Held, list: &[String], wanted: &str) -> Option<String> {
    let fits = |name: &&String| {
        let found = available(gpu_of(inventory, name), held).into_iter().find(|it| it.name.as_str() == *name);
        found.is_some_and(|it| profile(it) == wanted)
    };
    list.iter().find(fits).cloned()
}

fn profile(of: &AllocatableDevice) -> &str {
    of.mig().map_or("full", |it| &it.profile)
}

/// The lists that a scheduler visits.
fn lists(inventory: &Inventory, ranking: &Ranking) -> Vec<Vec<String>> {
    let owner = Owner { driver: "d".to_owned(), node: "n".to_owned(), node_uid: "u".to_owned() };
    let names = |it: Vec<_>| {
        it.into_iter().map(|it: k8s_openapi::api::resource::v1::Device| it.name).collect::<Vec<_>>()
    };
    render(inventory, ranking, &owner).into_iter().filter_map(|it| it.spec.devices.map(names)).collect()
}

/// Allocates or frees what the indices point at, as far as the counters allow it.
fn toggle(inventory: &Inventory, held: &mut Held, toggles: &[Index]) {
    let names: Vec<String> = inventory.devices().map(|it| it.name.to_string()).collect();
    for name in toggles.iter().map(|it| it.get(&names)) {
        let is_available =
            |it: &Held| available(gpu_of(inventory, name), it).iter().any(|it| it.name.as_str() == name);
        if !held.remove(name) && is_available(held) {
            held.insert(name.clone());
        }
    }
}

fn check(property: impl Fn(&[Index], &[Index]) -> Result<(), TestCaseError>) {
    let config =
        Config { cases: 8, rng_seed: RngSeed::Fixed(7), failure_persistence: None, ..Config::default() };
    let toggles = || prop::collection::vec(any::<Index>(), 0..40);
    let mut runner = TestRunner::new(config);
    runner.run(&(toggles(), toggles()), |(before, after)| property(&before, &after)).unwrap();
}

fn agrees(ranking: &Ranking, list: &[String]) -> bool {
    ranking.agrees_with(list.iter().map(String::as_str))
}

#[test]
fn an_old_order_is_kept_exactly_where_each_profile_still_gets_a_device_as_good_as_any_other() {
    for (models, policy) in [
        ("2xH100-80GB", Policy::Pack),
        ("2xA30-24GB,1xH100-80GB", Policy::Pack),
        ("2xH100-80GB", Policy::Spread),
    ] {
        let inventory = offers(models);
        let profiles: BTreeSet<&str> = inventory.devices().map(profile).collect();
        check(|before, after| {
            let mut held = Held::new();
            toggle(&inventory, &mut held, before);
            let old = lists(&inventory, &Ranking::of(&inventory, &held, policy));
            toggle(&inventory, &mut held, after);
            let ranking = Ranking::of(&inventory, &held, policy);
            let fresh = lists(&inventory, &ranking);
            for (old, fresh) in old.iter().zip(&fresh) {
                let cost = |list: &[String], wanted: &str| {
                    first_fit(&inventory, &held, list, wanted).map(|it| ranking.cost(&it).unwrap())
                };
                prop_assert!(
                    profiles.iter().all(|it| cost(fresh, it) <= cost(old, it)),
                    "the new order is best"
                );
                let is_as_good = profiles.iter().all(|it| cost(fresh, it) == cost(old, it));
                prop_assert!(agrees(&ranking, fresh), "{models} {policy:?} {held:?}: {fresh:?}");
                prop_assert_eq!(agrees(&ranking, old), is_as_good);
            }
            Ok(())
        });
    }
}

#[test]
fn with_pack_the_best_device_is_on_the_fullest_gpu_and_blocks_the_least_there() {
    let inventory = offers("2xH100-80GB");
    check(|before, after| {
        let mut held = Held::new();
        toggle(&inventory, &mut held, before);
        toggle(&inventory, &mut held, after);
        let ranking = Ranking::of(&inventory, &held, Policy::Pack);
        // Memory slices of all that could be taken next; the whole GPU has all of its own.
        let worth = |gpu: &GpuInventory, held: &Held| -> u32 {
            available(gpu, held).into_iter().map(|it| it.mig().map_or(8, |it| it.placement.size)).sum()
        };
        for gpu in &inventory.gpus {
            for one in available(gpu, &held) {
                let blocked = |of: &Held| {
                    let with = of.iter().cloned().chain([one.name.to_string()]).collect();
                    worth(gpu, of) - worth(gpu, &with)
                };
                let expected = Cost {
                    gpu: worth(gpu, &held),
                    blocked_when_empty: blocked(&Held::new()),
                    blocked: blocked(&held),
                };
                prop_assert_eq!(ranking.cost(one.name.as_str()), Some(expected), "{}", one.name);
            }
        }
        Ok(())
    });
}

#[test]
fn on_a_node_that_is_empty_again_no_order_is_worse() {
    for models in ["5xH100-80GB", "4xA30-24GB", "2xRTX-PRO-6000-96GB"] {
        let inventory = offers(models);
        let empty = Ranking::of(&inventory, &Held::new(), Policy::Pack);
        for device in inventory.devices().step_by(5) {
            let ranking = Ranking::of(&inventory, &[device.name.to_string()].into(), Policy::Pack);
            let lists = lists(&inventory, &ranking);
            assert!(lists.iter().all(|it| agrees(&empty, it)), "{}", device.name);
        }
    }
}

#[test]
fn the_first_pod_on_an_empty_node_makes_no_order_worse() {
    for models in ["5xH100-80GB", "4xA30-24GB", "2xRTX-PRO-6000-96GB"] {
        let inventory = offers(models);
        let lists = lists(&inventory, &Ranking::of(&inventory, &Held::new(), Policy::Pack));
        for wanted in inventory.devices().map(profile).collect::<BTreeSet<_>>() {
            for list in &lists {
                let Some(device) = first_fit(&inventory, &Held::new(), list, wanted) else { continue };
                let ranking = Ranking::of(&inventory, &[device.clone()].into(), Policy::Pack);
                assert!(lists.iter().all(|it| agrees(&ranking, it)), "{device}");
            }
        }
    }
}

#[test]
fn a_second_choice_on_a_gpu_comes_before_the_first_choice_on_an_empty_one() {
    let inventory = offers("2xH100-80GB");
    let list: Vec<String> =
        Ranking::of(&inventory, &Held::new(), Policy::Pack).names().map(str::to_owned).collect();
    // A GPU has one of them: an order by runs alone would have the other GPU's next.
    let next = first_fit(&inventory, &held(&["1a-00-mig-1g-10gb-6"]), &list, "1g.10gb+me");
    assert_eq!(next.as_deref(), Some("gpu-0000-1a-00-mig-1g-10gb-me-5"));
    let next = first_fit(&inventory, &held(&["1a-00-mig-1g-10gb-me-6"]), &list, "1g.10gb+me");
    assert_eq!(next.as_deref(), Some("gpu-0000-1b-00-mig-1g-10gb-me-6"));
}

#[test]
fn with_static_an_order_is_kept_only_where_it_is_the_same_choice() {
    let inventory = offers("2xH100-80GB");
    let ranking = Ranking::of(&inventory, &Held::new(), Policy::Static);
    let mut names: Vec<String> = ranking.names().map(str::to_owned).collect();
    assert!(agrees(&ranking, &names));
    names.reverse();
    assert!(!agrees(&ranking, &names));
}
