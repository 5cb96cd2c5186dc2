//! The published counters against the simulated hardware: what the scheduler would allow is what the hardware makes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dra_driver_mig::nvml::{self, Code, DeviceHandle};
use mig_model::facts::{GpuFacts, GpuInstance, MigMode, NodeFacts, Placement, Profile};
use mig_model::inventory::{Attachment, CounterPlan, Gpu, GpuState, fits_into, inventory};
use nvml_sim::{Model, SimNode};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

/// Creates what the index points at if it does not exist, and else destroys it.
type Toggles = Vec<Index>;

#[test]
fn counters_admit_exactly_what_the_hardware_admits() {
    let sequences = prop::collection::vec(any::<Index>(), 1..40);
    on_each_model(&sequences, |gpu, facts, toggles| {
        toggle_all(gpu, &facts.mig.as_ref().unwrap().profiles, &toggles)
    });
}

#[test]
fn beside_unmanaged_instances_the_totals_stay_and_what_they_admit_is_what_the_hardware_admits() {
    let sequences =
        (prop::collection::vec(any::<Index>(), 1..4), prop::collection::vec(any::<Index>(), 1..40));
    on_each_model(&sequences, |gpu, facts, (unmanaged, toggles)| {
        toggle_published(gpu, facts, &unmanaged, &toggles)
    });
}

fn on_each_model<S: Strategy>(
    sequences: &S,
    check: impl Fn(&DeviceHandle<'_>, &GpuFacts, S::Value) -> Result<(), TestCaseError>,
) {
    for model in Model::all() {
        let directory = tempfile::tempdir().unwrap();
        let node = SimNode::create(directory.path(), &[model]).unwrap();
        let library = nvml::open(&node.library()).unwrap();
        let facts = nvml::discover(&library).unwrap();
        if facts.gpus[0].mig.is_none() {
            continue;
        }
        let gpu = DeviceHandle::by_uuid(&library, &facts.gpus[0].uuid, 0).unwrap();
        // Ampere takes the mode at the next reset.
        gpu.set_mig_mode(true).unwrap();
        node.reset_gpu(0).unwrap();
        assert!(gpu.mig_mode().unwrap().current, "{model:?}");

        let mut runner = TestRunner::new_with_rng(
            Config { cases: 24, failure_persistence: None, ..Config::default() },
            proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
        );
        runner.run(sequences, |it| check(&gpu, &facts.gpus[0], it)).unwrap();
    }
}

fn toggle_all(gpu: &DeviceHandle<'_>, profiles: &[Profile], toggles: &Toggles) -> Result<(), TestCaseError> {
    let plan = CounterPlan::of(profiles);
    let places: Vec<(&Profile, Placement)> =
        profiles.iter().flat_map(|profile| profile.placements.iter().map(move |it| (profile, *it))).collect();
    let mut left = plan.totals();
    let mut live = BTreeMap::new();
    for toggle in toggles {
        let place = toggle.index(places.len());
        let (profile, placement) = places[place];
        let cost = plan.cost(profile, placement);
        if let Some(instance) = live.remove(&place) {
            gpu.destroy_gpu_instance(instance).unwrap();
            cost.iter().for_each(|(counter, amount)| *left.get_mut(counter).unwrap() += amount);
            continue;
        }
        let is_admitted = fits_into(&cost, &left);
        match gpu.create_gpu_instance(profile.id, placement) {
            Ok(instance) => {
                prop_assert!(is_admitted, "made {} at {placement}, which the counters forbid", profile.name);
                cost.iter().for_each(|(counter, amount)| *left.get_mut(counter).unwrap() -= amount);
                live.insert(place, instance);
            }
            Err(error) => {
                prop_assert_eq!(error.code, Code::INSUFFICIENT_RESOURCES);
                prop_assert!(
                    !is_admitted,
                    "refused {} at {placement}, which the counters allow",
                    profile.name
                );
            }
        }
    }
    for instance in live.into_values() {
        gpu.destroy_gpu_instance(instance).unwrap();
    }
    Ok(())
}

/// Makes up to three instances past the driver, and then the published devices come and go.
fn toggle_published(
    gpu: &DeviceHandle<'_>,
    facts: &GpuFacts,
    unmanaged: &[Index],
    toggles: &Toggles,
) -> Result<(), TestCaseError> {
    let profiles = &facts.mig.as_ref().unwrap().profiles;
    let places: Vec<(&Profile, Placement)> =
        profiles.iter().flat_map(|profile| profile.placements.iter().map(move |it| (profile, *it))).collect();
    let made: Vec<_> = unmanaged
        .iter()
        .filter_map(|it| {
            let (profile, placement) = places[it.index(places.len())];
            let instance = gpu.create_gpu_instance(profile.id, placement).ok()?;
            let live = GpuInstance {
                id: instance.id,
                profile_id: profile.id,
                placement,
                compute_instances: Vec::new(),
            };
            Some((instance, live))
        })
        .collect();
    let state = GpuState {
        mode: Some(MigMode { current: true, pending: true }),
        instances: made.iter().map(|it| it.1.clone()).collect(),
        problem: None,
    };
    let now = Gpu { facts: Arc::new(facts.clone()), attachment: Attachment::default(), state };
    let offered = inventory(&NodeFacts::default(), &[now], &BTreeSet::new()).gpus.remove(0);
    prop_assert!(offered.devices.is_empty() || offered.counters == CounterPlan::of(profiles).totals());
    let costs: BTreeMap<(u32, Placement), _> = offered
        .devices
        .iter()
        .filter_map(|it| it.mig().map(|spec| ((spec.profile_id, spec.placement), it.consumes.clone())))
        .collect();
    let mut left = offered.counters.clone();
    let mut live = BTreeMap::new();
    for toggle in toggles {
        let place = toggle.index(places.len());
        let (profile, placement) = places[place];
        let cost = costs.get(&(profile.id, placement));
        if let Some(instance) = live.remove(&place) {
            gpu.destroy_gpu_instance(instance).unwrap();
            cost.unwrap().iter().for_each(|(counter, amount)| *left.get_mut(counter).unwrap() += amount);
            continue;
        }
        let is_admitted = cost.is_some_and(|it| fits_into(it, &left));
        match gpu.create_gpu_instance(profile.id, placement) {
            Ok(instance) => {
                prop_assert!(is_admitted, "made {} at {placement}, which is not available", profile.name);
                let taken = cost.unwrap().iter();
                taken.for_each(|(counter, amount)| *left.get_mut(counter).unwrap() -= amount);
                live.insert(place, instance);
            }
            Err(error) => {
                prop_assert_eq!(error.code, Code::INSUFFICIENT_RESOURCES);
                prop_assert!(!is_admitted, "refused {} at {placement}, which is published", profile.name);
            }
        }
    }
    for instance in live.into_values().chain(made.into_iter().map(|it| it.0)) {
        gpu.destroy_gpu_instance(instance).unwrap();
    }
    Ok(())
}

#[test]
fn only_engines_that_really_exclude_something_are_counted() {
    let engines_of = |model: &str| {
        let directory = tempfile::tempdir().unwrap();
        let node = SimNode::create(directory.path(), &nvml_sim::parse_gpus(model).unwrap()).unwrap();
        let facts = nvml::discover(&nvml::open(&node.library()).unwrap()).unwrap();
        let totals = CounterPlan::of(&facts.gpus[0].mig.as_ref().unwrap().profiles).totals();
        totals.into_keys().filter(|it| !it.starts_with("memory-slice-")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(engines_of("1xH100-80GB"), "ofas");
    assert_eq!(engines_of("1xA100-40GB"), "jpegs");
    assert_eq!(engines_of("1xA100-80GB"), "jpegs");
    assert_eq!(engines_of("1xB200-180GB"), "ofas");
    assert_eq!(engines_of("1xA30-24GB"), "jpegs");
    assert_eq!(engines_of("1xRTX-PRO-6000-96GB"), "decoders ofas");
}
