//! The counter `memory` against the counters that keep devices apart, as both are published for every model.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::resource::v1::{Counter, Device, ResourceSlice};
use nvml_sim::Model;

use super::quantity::thousandths;
use super::{MEMORY, Owner, render};
use crate::inventory::{ExistingInstances, OfferPolicy, inventory_on};
use crate::placement::{Policy, Ranking};
use crate::simulated::{gpus, node_facts};

type Amounts = BTreeMap<String, i128>;

/// What a node with these GPUs publishes.
fn slices(models: &str, is_mig_on: bool, unmanaged: &[&str], policy: &OfferPolicy) -> Vec<ResourceSlice> {
    let inventory = inventory_on(&node_facts(), &gpus(models, is_mig_on, unmanaged), policy);
    let ranking = Ranking::of(&inventory, &policy.held, Policy::Pack);
    let owner = Owner { driver: "d".to_owned(), node: "n".to_owned(), node_uid: "u".to_owned() };
    render(&inventory, &ranking, &owner)
}

fn devices(slices: &[ResourceSlice]) -> Vec<&Device> {
    slices.iter().flat_map(|it| it.spec.devices.iter().flatten()).collect()
}

fn amounts(counters: &BTreeMap<String, Counter>) -> Amounts {
    counters.iter().map(|(name, it)| (name.clone(), thousandths(&it.value).unwrap())).collect()
}

/// The only counter set.
fn totals(slices: &[ResourceSlice]) -> Amounts {
    let sets: Vec<_> = slices.iter().flat_map(|it| it.spec.shared_counters.iter().flatten()).collect();
    assert_eq!(sets.len(), 1);
    amounts(&sets[0].counters)
}

fn cost(device: &Device) -> Amounts {
    device.consumes_counters.iter().flatten().flat_map(|it| amounts(&it.counters)).collect()
}

fn memory_capacity(device: &Device) -> i128 {
    thousandths(&device.capacity.as_ref().unwrap()[MEMORY].value).unwrap()
}

/// Looks through every set of devices that fits into the counters other than `memory`; answers with how many there are, and the most memory
/// that one of them needs.
fn most_memory(open: &[Amounts], left: &Amounts, memory: i128) -> (usize, i128) {
    let mut found = (1, memory);
    for (position, device) in open.iter().enumerate() {
        let exact = || device.iter().filter(|(name, _)| *name != MEMORY);
        if !exact().all(|(name, amount)| amount <= &left[name]) {
            continue;
        }
        let mut rest = left.clone();
        exact().for_each(|(name, amount)| *rest.get_mut(name).unwrap() -= amount);
        let (sets, most) = most_memory(&open[position + 1..], &rest, memory + device[MEMORY]);
        found = (found.0 + sets, found.1.max(most));
    }
    found
}

#[test]
fn whatever_fits_into_the_other_counters_fits_into_the_memory_and_some_set_needs_all_of_it() {
    for model in Model::all().filter(|it| it.has_mig()) {
        let name = model.name();
        let slices = slices(name, true, &[], &OfferPolicy::default());
        let totals = totals(&slices);
        assert!(totals.len() <= 32, "{name}: the API server takes 32");
        // Devices that take the same are one, tried as often as there are of them.
        let mut costs: Vec<Amounts> = devices(&slices).into_iter().map(cost).collect();
        costs.sort_by_key(|it| it.iter().map(|(name, amount)| (name.clone(), *amount)).collect::<Vec<_>>());
        costs.dedup();
        let (sets, most) = most_memory(&costs, &totals, 0);
        assert!(10 < sets, "{name}: {sets}");
        assert_eq!(most, totals[MEMORY], "{name}: of {sets} sets");
    }
}

#[test]
fn a_mig_device_takes_its_capacity_and_the_whole_gpu_takes_all_there_is() {
    for model in Model::all().filter(|it| it.has_mig()) {
        let name = model.name();
        let slices = slices(name, true, &[], &OfferPolicy::default());
        let totals = totals(&slices);
        for device in devices(&slices) {
            match device.name.contains("-mig-") {
                true => assert_eq!(cost(device)[MEMORY], memory_capacity(device), "{name}: {}", device.name),
                false => assert_eq!(cost(device), totals, "{name}: {}", device.name),
            }
        }
        let gpu = i128::from(model.data().memory_mib) << 20;
        let most = totals[MEMORY] / 1000;
        assert!(gpu * 95 / 100 < most && most <= gpu, "{name}: {most} of {gpu} bytes");
    }
}

#[test]
fn the_total_stays_beside_unmanaged_instances_and_with_other_profiles() {
    let all = totals(&slices("H100-80GB", true, &[], &OfferPolicy::default()));
    let existing = ExistingInstances::Adopt;
    for policy in [OfferPolicy::default(), OfferPolicy { existing, ..OfferPolicy::default() }] {
        let slices = slices("H100-80GB", true, &["7g.80gb"], &policy);
        assert!(slices.iter().all(|it| it.spec.shared_counters.is_none()), "nothing is left to share");
    }
    let beside = slices("H100-80GB", true, &["3g.40gb"], &OfferPolicy::default());
    assert_eq!(totals(&beside), all);
    let names: BTreeSet<String> = devices(&beside).into_iter().map(|it| it.name.clone()).collect();
    assert!(!names.is_empty());
}

#[test]
fn what_overlaps_nothing_has_no_counters() {
    let shared = OfferPolicy { time_slices: 4, ..OfferPolicy::default() };
    for (models, policy) in
        [("L4", OfferPolicy::default()), ("L4", shared), ("A100-40GB", OfferPolicy::default())]
    {
        let slices = slices(models, false, &[], &policy);
        assert!(slices.iter().all(|it| it.spec.shared_counters.is_none()), "{models}");
        assert!(devices(&slices).iter().all(|it| it.consumes_counters.is_none()), "{models}");
    }
}
