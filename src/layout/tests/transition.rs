//! Layouts that change under a scheduler that is late.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;
use crate::slices::{Transition, names};

const SETTLE: u64 = 10;

/// What the API server showed from a moment on.
struct View {
    since: u64,
    devices: BTreeSet<String>,
    /// Whether counters kept them apart.
    is_counted: bool,
}

/// A node with one GPU, its driver, and a scheduler that acts on what it saw up to nine seconds ago.
struct World {
    facts: Vec<GpuFacts>,
    inventory: Inventory,
    layouts: Layouts,
    keeps_counters: bool,
    transition: Transition,
    start: Instant,
    now: u64,
    views: Vec<View>,
    /// The newest view that the scheduler has acted on.
    acted_on: usize,
    allocated: BTreeSet<String>,
    prepared: BTreeSet<String>,
    /// When the gate was turned last.
    turned: u64,
}

impl World {
    fn new(model: Model, is_restart_possible: bool) -> Self {
        let facts = facts(model.name());
        Self {
            inventory: inventory_of(&facts, true, &BTreeSet::new()),
            layouts: default_layouts(&facts),
            keeps_counters: false,
            transition: Transition::new(Duration::from_secs(SETTLE)),
            start: Instant::now(),
            now: if is_restart_possible { 100 } else { 0 },
            views: vec![View { since: 0, devices: BTreeSet::new(), is_counted: false }],
            acted_on: 0,
            allocated: BTreeSet::new(),
            prepared: BTreeSet::new(),
            turned: 0,
            facts,
        }
    }

    fn published(&self) -> BTreeSet<String> {
        self.views.last().unwrap().devices.clone()
    }

    /// One round of the publisher.
    fn sync(&mut self) {
        let now = self.start + Duration::from_secs(self.now);
        let devices = if self.keeps_counters {
            self.transition.counted(names(&self.inventory));
            names(&self.inventory)
        } else {
            let held = &self.prepared | &self.allocated;
            let target = apply(&self.inventory, &self.layouts, &held).inventory;
            let next = {
                let published = self.published();
                let pool = (1 < self.views.len()).then_some(&published);
                self.transition.step(&self.inventory, &target, pool, &held, now)
            };
            self.transition.written(now);
            names(&next)
        };
        self.views.push(View { since: self.now, devices, is_counted: self.keeps_counters });
    }

    /// The scheduler gives a device away, from a view that was the newest one less than the settle time ago.
    fn allocate(&mut self, which: u8, age: u8) {
        let is_recent =
            |index: usize| self.views.get(index + 1).is_none_or(|next| self.now < next.since + SETTLE);
        let recent: Vec<usize> = (self.acted_on..self.views.len()).filter(|it| is_recent(*it)).collect();
        let index = recent[pick(age, recent.len())];
        let view = &self.views[index];
        let free: Vec<&String> = view
            .devices
            .difference(&self.allocated)
            .filter(|it| !view.is_counted || self.are_possible(self.allocated.iter().chain([*it])))
            .collect();
        if !free.is_empty() {
            let device = free[pick(which, free.len())].clone();
            self.allocated.insert(device);
            self.acted_on = index;
        }
    }

    fn are_possible<'a>(&self, devices: impl Iterator<Item = &'a String>) -> bool {
        let kinds: Vec<&DeviceKind> = devices.map(|it| &self.inventory.device(it).unwrap().kind).collect();
        let parts: Vec<(&Profile, Placement)> = kinds
            .iter()
            .filter_map(|it| match it {
                DeviceKind::Mig(spec) => Some((self.facts[0].profile(spec.profile_id)?, spec.placement)),
                _ => None,
            })
            .collect();
        let whole = kinds.len() - parts.len();
        let profiles = &self.facts[0].mig.as_ref().unwrap().profiles;
        (whole == 0 || kinds.len() == 1) && exist_together(profiles, &parts)
    }

    fn change_layout(&mut self, which: u8, other: u8) {
        let profiles = &self.facts[0].mig.as_ref().unwrap().profiles;
        let name = |it: u8| profiles[pick(it, profiles.len())].name.clone();
        let layout = match pick(which, 4) {
            0 => GpuLayout::Whole,
            _ => GpuLayout::Cut([(name(which), 7), (name(other), 2)].into()),
        };
        self.layouts.values_mut().for_each(|it| *it = layout.clone());
    }
}

/// What, which, and which other: any number will do, a smaller one shrinks better than an index.
type Step = (u8, u8, u8);

fn pick(number: u8, of: usize) -> usize {
    usize::from(number) % of
}

fn play(model: u8, steps: Vec<Step>, has_gate: bool) -> Result<(), TestCaseError> {
    let models = mig_models();
    let mut world = World::new(models[pick(model, models.len())], true);
    world.sync();
    for (what, which, other) in steps {
        match pick(what, if has_gate { 9 } else { 8 }) {
            0 => world.change_layout(which, other),
            1 => world.now += 1 + u64::try_from(pick(which, 12)).unwrap(),
            // What is released while a scheduler still sees counters, and is given away again when it no longer does, can
            // overlap what it gave away in between; then the second one is refused when it is prepared.
            2 if world.now < world.turned + SETTLE => {}
            2 => {
                let held: Vec<String> = world.allocated.iter().cloned().collect();
                if !held.is_empty() {
                    let gone = &held[pick(which, held.len())];
                    world.allocated.remove(gone);
                    world.prepared.remove(gone);
                }
            }
            3 => world.prepared = world.allocated.clone(),
            // A restart at the worst moment.
            4 if pick(which, 3) == 0 => world.transition = Transition::new(Duration::from_secs(SETTLE)),
            4 | 5 => world.sync(),
            8 => (world.keeps_counters, world.turned) = (!world.keeps_counters, world.now),
            _ => world.allocate(which, other),
        }
        // With a gate there is one scheduler, which does not go back to what it saw before.
        if !has_gate {
            world.acted_on = 0;
        }
        prop_assert!(world.are_possible(world.allocated.iter()), "{:?}", world.allocated);
        let before = world.published();
        world.sync();
        let after = world.published();
        for device in &world.allocated {
            prop_assert!(
                after.contains(device),
                "{device} is allocated and not in {after:?}, was {before:?}"
            );
        }
        if !world.keeps_counters {
            prop_assert!(world.are_possible(after.iter()), "published together: {after:?}");
        }
    }
    // Whatever happened: when nothing happens any more, the layout is in force as far as claims allow.
    world.keeps_counters = false;
    for _ in 0..3 {
        world.now += SETTLE;
        world.sync();
    }
    let target = apply(&world.inventory, &world.layouts, &world.allocated).inventory;
    prop_assert_eq!(world.published(), names(&target));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, rng_seed: RngSeed::Fixed(4), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_late_scheduler_never_gives_away_what_overlaps(
        model in any::<u8>(),
        steps in prop::collection::vec(any::<Step>(), 1..40),
    ) {
        play(model, steps, false)?;
    }

    #[test]
    fn nor_when_the_gate_is_turned_on_and_off(
        model in any::<u8>(),
        steps in prop::collection::vec(any::<Step>(), 1..40),
    ) {
        play(model, steps, true)?;
    }
}

#[test]
fn what_overlaps_appears_only_after_the_settle_time_and_what_does_not_at_once() {
    let mut world = World::new(Model::named("H100-80GB").unwrap(), false);
    world.layouts = choose(Some("all-1g.10gb"), None, &world.facts).unwrap();
    world.sync();
    assert_eq!(world.published().len(), 7, "the first publication waits for nothing");
    world.layouts = choose(Some("all-balanced"), None, &world.facts).unwrap();
    world.now += 1;
    world.sync();
    let mig = |it: &str| format!("gpu-0000-1a-00-mig-{it}");
    assert_eq!(world.published(), [mig("1g-10gb-2"), mig("1g-10gb-3")].into(), "the rest is withdrawn");
    world.now += SETTLE - 1;
    world.allocated.insert(mig("1g-10gb-6"));
    world.sync();
    assert_eq!(world.published(), [mig("1g-10gb-6")].into(), "it is back, and the rest makes room for a 3g");
    world.now += 1;
    world.sync();
    let around = [mig("1g-10gb-6"), mig("2g-20gb-4"), mig("3g-40gb-0")];
    world.now += SETTLE;
    world.sync();
    assert_eq!(world.published(), around.into());
}
