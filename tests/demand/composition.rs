//! What a demand is composed of: devices that pods count on in thought have no place yet, so they make room for each other.

use mig_controller::demand::{Memory, Options, PendingPod, Prospect, Reason, decide};
use mig_model::layout::{Wanted, arrange};
use proptest::prelude::*;

use crate::chance::Chance;
use crate::facts::{Gpu, NONE, SEVEN, WHOLE, node, world};
use crate::model::Model;
use crate::pods::{at, for_profile};

/// Pods that wait, the oldest first.
fn pods(profiles: &[&str]) -> Vec<PendingPod> {
    let one = |(age, profile): (usize, &&str)| {
        for_profile(&format!("p{age:02}"), at(f64::from(u32::try_from(age).unwrap())), profile)
    };
    profiles.iter().enumerate().map(one).collect()
}

/// What is demanded of a node with one GPU.
fn demanded(gpu: Gpu<'_>, profiles: &[&str]) -> String {
    let world = world(vec![node("a", &[gpu])], pods(profiles));
    let outcome = decide(&world, &Options::default(), &Memory::default(), at(60.0));
    let write = outcome.decisions.writes.iter().find(|it| it.reason == Reason::Change);
    let demand = write.map(|it| it.demand.clone().unwrap().profiles).unwrap_or_default();
    demand.iter().map(|(profile, count)| format!("{count} x {profile}")).collect::<Vec<_>>().join(", ")
}

const ONE: &str = "1g.10gb";
const THREE: &str = "3g.40gb";

#[test]
fn small_devices_make_room_for_a_large_one_and_the_rest_of_the_small_ones() {
    // The 1g take the end of the GPU first; the 3g then lies at its start, and keeps the fourth 1g out.
    let waiting = [ONE, ONE, ONE, THREE, ONE, ONE, ONE, ONE];
    assert_eq!(demanded((NONE, WHOLE), &waiting), "4 x 1g.10gb, 1 x 3g.40gb");
    assert_eq!(demanded((NONE, &[]), &waiting), "4 x 1g.10gb, 1 x 3g.40gb");
}

#[test]
fn pods_that_count_on_equal_published_devices_make_room_for_a_large_one() {
    assert_eq!(demanded((NONE, SEVEN), &[ONE, ONE, ONE, ONE, THREE]), "4 x 1g.10gb, 1 x 3g.40gb");
    // With a fifth there is no room, wherever they are.
    assert_eq!(demanded((NONE, SEVEN), &[ONE, ONE, ONE, ONE, ONE, THREE]), "");
}

#[test]
fn what_is_held_makes_no_room() {
    // Two memory slices at the end and one in the middle are held.
    let gpu: Gpu<'_> = (&[("1g.10gb", 6), ("1g.10gb", 2)], NONE);
    assert_eq!(demanded(gpu, &[ONE, THREE]), "1 x 1g.10gb");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// The driver's own search says that the demand fits, and that it does not with any pod more that waits.
    #[test]
    fn no_pod_waits_that_the_gpu_has_room_for_beside_those_that_are_served(seed in any::<u64>()) {
        let mut chance = Chance::new(seed);
        let profiles = ["1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"];
        let waiting: Vec<&str> = (0..1 + chance.below(9)).map(|_| profiles[chance.below(6)]).collect();
        let published = [WHOLE, SEVEN, NONE][chance.below(3)];
        let world = world(vec![node("a", &[(NONE, published)])], pods(&waiting));
        let outcome = decide(&world, &Options::default(), &Memory::default(), at(60.0));
        let model = Model::new("H100-80GB", 1);
        let (held, nothing, base) = (Default::default(), Default::default(), model.base.clone());
        let missing = |counts: &mig_controller::demand::Profiles| {
            let wanted = Wanted { free: counts.clone(), ..Wanted::default() };
            arrange(model.inputs(&held, &nothing), &base, &wanted).missing
        };
        let mut served = mig_controller::demand::Profiles::new();
        for (pod, profile) in waiting.iter().enumerate() {
            if !matches!(outcome.decisions.pods[&format!("p{pod:02}")], Prospect::Waits) {
                *served.entry((*profile).to_owned()).or_default() += 1;
            }
        }
        prop_assert!(missing(&served).is_empty(), "{waiting:?}: {served:?} do not fit");
        for (pod, profile) in waiting.iter().enumerate() {
            if outcome.decisions.pods[&format!("p{pod:02}")] == Prospect::Waits {
                let mut more = served.clone();
                *more.entry((*profile).to_owned()).or_default() += 1;
                prop_assert!(!missing(&more).is_empty(), "{waiting:?}: beside {served:?} there is room for {profile}");
            }
        }
    }
}
