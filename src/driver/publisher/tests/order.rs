//! Slices that are written for nothing but the order of their devices: only where the next allocation would be worse, and not often.

use proptest::prelude::*;

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
        let lists = self.lists();
        let visited = lists.iter().cycle().skip(from).take(lists.len()).flatten();
        let part = format!("-mig-{profile}-");
        let starts = |it: &&String| {
            let start = it.split_once(&part).map(|(_, start)| start.parse::<u32>());
            start.is_some_and(|it| it.is_ok())
        };
        visited.filter(starts).find(|it| self.is_available(it)).cloned()
    }

    fn is_available(&self, name: &str) -> bool {
        let gpu = self.node.inventory_of(&self.gpus);
        let gpu = gpu.gpus.iter().find(|it| it.devices.iter().any(|it| it.name.as_str() == name)).unwrap();
        let mut left = gpu.counters.clone();
        let is_held =
            |it: &&mig_model::inventory::AllocatableDevice| self.node.held.contains(it.name.as_str());
        gpu.devices.iter().filter(is_held).for_each(|it| mig_model::inventory::take(&mut left, &it.consumes));
        let device = gpu.devices.iter().find(|it| it.name.as_str() == name).unwrap();
        !self.node.held.contains(name) && mig_model::inventory::fits_into(&device.consumes, &left)
    }

    /// Time passes; the publisher looks when it is woken, and where the node's state makes it look.
    fn pass(&mut self, seconds: u64) {
        self.notice();
        self.elapse(seconds);
    }
}

impl Node {
    fn inventory_of(&self, gpus: &[Gpu]) -> Inventory {
        let policy = OfferPolicy { held: self.held.clone(), ..OfferPolicy::default() };
        mig_model::inventory::inventory_on(&NodeFacts::default(), gpus, &policy)
    }
}

const PROFILES: [&str; 7] = ["1g-10gb", "1g-10gb-me", "1g-20gb", "2g-20gb", "3g-40gb", "4g-40gb", "7g-80gb"];

#[test]
fn a_pod_that_comes_and_goes_ten_times_on_an_empty_node_costs_two_writes_at_most() {
    for profile in PROFILES {
        for pause in [1, 15, 60] {
            let mut scene = scene("8xH100-80GB");
            for number in 0..10 {
                // Kubernetes 1.35 visits the slices in random order.
                let device = scene.choice(profile, number * 3).unwrap();
                scene.prepare(&device);
                scene.pass(pause);
                scene.end(&device);
                scene.pass(pause);
            }
            scene.pass(2 * REORDER);
            let writes = scene.rounds.writes;
            assert!(writes <= 2, "{writes} writes for {profile} with pauses of {pause} s");
        }
    }
}

#[test]
fn an_order_that_would_be_worse_changes_once_in_an_interval() {
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
fn whatever_pods_do_orders_change_once_in_an_interval_and_are_the_best_at_its_end() {
    let steps = prop::collection::vec((0usize..7, 0usize..8, any::<bool>(), 0u64..8), 1..40);
    let mut runner = proptest::test_runner::TestRunner::new(config(24));
    let played = runner.run(&steps, |steps| {
        let mut scene = scene("3xH100-80GB");
        let mut running: Vec<String> = Vec::new();
        let mut changed_at: Option<u64> = None;
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
                if scene.lists() != before {
                    let last = changed_at.replace(scene.now);
                    prop_assert!(
                        last.is_none_or(|it| it + REORDER <= scene.now),
                        "{last:?}, then {}",
                        scene.now
                    );
                }
                scene.now += 1;
            }
        }
        scene.pass(2 * REORDER);
        let ranking = {
            let inventory = scene.node.inventory_of(&scene.gpus);
            mig_model::placement::Ranking::of(&inventory, &scene.node.held, Policy::Pack)
        };
        for list in scene.lists() {
            prop_assert!(ranking.agrees_with(list.iter().map(String::as_str)));
        }
        Ok(())
    });
    played.unwrap();
}
