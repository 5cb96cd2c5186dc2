//! Slices that are written for nothing but the order of their devices: only where the next allocation would be worse, and not often.

use mig_model::inventory::inventory_on;
use mig_model::placement::Ranking;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::scene::{Scene, mig};
use super::*;

fn scene(models: &str) -> Scene {
    let mut scene = Scene::new(models);
    scene.rounds.settings.placement = Policy::Pack;
    scene.look();
    scene.rounds.writes = 0;
    scene
}

impl Scene {
    /// The names of the devices of each slice, as published.
    fn lists(&self) -> Vec<Vec<String>> {
        let mut slices: Vec<_> = self.rounds.slices.iter().collect();
        slices.sort_by_key(|it| it.metadata.name.clone());
        let names = |it: &ResourceSlice| it.spec.devices.iter().flatten().map(|it| it.name.clone()).collect();
        slices.into_iter().map(names).filter(|it: &Vec<_>| !it.is_empty()).collect()
    }

    /// What a scheduler takes for a profile that visits the slices from this one on.
    fn choice(&self, profile: &str, from: usize) -> Option<String> {
        let inventory = self.inventory();
        let ranking = Ranking::of(&inventory, &self.node.held, Policy::Pack);
        let lists = self.lists();
        let mut visited = lists.iter().cycle().skip(from).take(lists.len()).flatten();
        let part = format!("-mig-{profile}-");
        let is_wanted =
            |it: &str| it.split_once(&part).is_some_and(|(_, start)| start.parse::<u32>().is_ok());
        visited.find(|it| is_wanted(it) && ranking.cost(it).is_some()).cloned()
    }

    fn inventory(&self) -> Inventory {
        let policy = OfferPolicy { held: self.node.held.clone(), ..OfferPolicy::default() };
        inventory_on(&NodeFacts::default(), &self.gpus, &policy)
    }

    /// Time passes; the publisher looks when it is woken, and where the node's state makes it look.
    fn pass(&mut self, seconds: u64) {
        self.notice();
        self.elapse(seconds);
    }
}

const PROFILES: [&str; 4] = ["1g-10gb", "1g-10gb-me", "2g-20gb", "3g-40gb"];

#[test]
fn a_pod_that_comes_and_goes_ten_times_on_an_empty_node_costs_two_writes_at_most() {
    for pause in [1, 15, 60] {
        // In two groups. That it is so for every profile is a test of the ranking.
        let mut scene = scene("5xH100-80GB");
        for number in 0..10 {
            // Kubernetes 1.35 visits the slices in random order.
            let device = scene.choice("1g-10gb", number * 3).unwrap();
            scene.prepare(&device);
            scene.pass(pause);
            scene.end(&device);
            scene.pass(pause);
        }
        scene.pass(2 * REORDER);
        let writes = scene.rounds.writes;
        assert!(writes <= 2, "{writes} writes with pauses of {pause} s");
    }
}

#[test]
fn a_slice_with_an_order_that_would_be_worse_changes_once_in_an_interval() {
    let mut scene = scene("2xH100-80GB");
    let other = "gpu-0000-1b-00-mig-1g-10gb-6".to_owned();
    scene.prepare(&other);
    assert!(scene.notice());
    let packed = scene.lists();
    scene.now += 1;
    scene.end(&other);
    scene.prepare(&mig("3g-40gb-4"));
    assert!(!scene.notice(), "it has changed a second ago");
    scene.elapse(REORDER - 2);
    scene.look();
    assert_eq!(scene.lists(), packed, "nor does a look for something else change it");
    scene.elapse(1);
    let next = scene.choice("1g-10gb", 0).unwrap();
    assert!(next.starts_with("gpu-0000-1a-00"), "{next}, by itself at the end of the interval");
}

#[test]
fn a_slice_does_not_wait_for_the_interval_of_another_one() {
    // Two groups, and the devices of a group have two slices.
    let mut scene = scene("5xH100-80GB");
    scene.prepare("gpu-0000-1b-00-mig-1g-10gb-6");
    assert!(scene.notice());
    let before = scene.lists();
    scene.now += 1;
    let last = before[2].iter().rfind(|it| it.contains("-mig-1g-10gb-")).unwrap();
    scene.prepare(last);
    assert!(scene.notice(), "{last}");
    let after = scene.lists();
    let changed: Vec<bool> = before.iter().zip(&after).map(|(before, after)| before != after).collect();
    assert_eq!(changed, [false, false, true], "{after:?}");
}

#[test]
fn without_an_interval_an_order_follows_at_once() {
    let mut scene = scene("2xH100-80GB");
    scene.rounds.settings.reorder_interval = Duration::ZERO;
    for (device, gpu) in [("gpu-0000-1b-00-mig-1g-10gb-6".to_owned(), "1b"), (mig("3g-40gb-4"), "1a")] {
        scene.prepare(&device);
        assert!(scene.notice());
        let next = scene.choice("2g-20gb", 0).unwrap();
        assert!(next.starts_with(&format!("gpu-0000-{gpu}-00")), "{next}");
        scene.end(&device);
    }
}

#[test]
fn whatever_pods_do_the_order_of_a_slice_changes_once_in_an_interval_and_is_the_best_at_its_end() {
    let steps = prop::collection::vec((0..PROFILES.len(), 0usize..8, any::<bool>(), 0u64..5), 1..20);
    let mut runner = TestRunner::new(config(3));
    let played = runner.run(&steps, |steps| {
        let mut scene = scene("2xH100-80GB");
        let mut running: Vec<String> = Vec::new();
        let mut changed_at = vec![None; scene.lists().len()];
        for (profile, from, ends, pause) in steps {
            if ends && !running.is_empty() {
                let device = running.remove(from % running.len());
                scene.end(&device);
            } else if let Some(device) = scene.choice(PROFILES[profile], from) {
                scene.prepare(&device);
                running.push(device);
            }
            for _ in 0..=pause {
                let before = scene.lists();
                scene.pass(0);
                let after = scene.lists();
                for slice in (0..after.len()).filter(|it| after[*it] != before[*it]) {
                    let last = changed_at[slice].replace(scene.now);
                    prop_assert!(
                        last.is_none_or(|it: u64| it + REORDER <= scene.now),
                        "{last:?}, then {}",
                        scene.now
                    );
                }
                scene.now += 1;
            }
        }
        scene.pass(2 * REORDER);
        let ranking = Ranking::of(&scene.inventory(), &scene.node.held, Policy::Pack);
        for list in scene.lists() {
            prop_assert!(ranking.agrees_with(list.iter().map(String::as_str)));
        }
        Ok(())
    });
    played.unwrap();
}
