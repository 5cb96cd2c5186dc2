//! Layouts that follow a demand: what changes for it, and when.

use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::search::brute_force;
use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

/// `1x3g.40gb 2xfull`, and what there must be in any case.
fn wanted(free: &str, floor: &str) -> Wanted {
    Wanted { free: counts(free), floor: counts(floor) }
}

/// GPUs and the layouts in force, which follow.
struct Node {
    facts: Vec<GpuFacts>,
    is_mig: bool,
    held: BTreeSet<String>,
    base: Layouts,
    layouts: Layouts,
    memory: DemandMemory,
}

impl Node {
    fn new(models: &str) -> Self {
        let facts = facts(models);
        let base = default_layouts(&facts);
        let (held, memory) = (BTreeSet::new(), DemandMemory::default());
        Self { is_mig: true, held, layouts: base.clone(), base, memory, facts }
    }

    fn holding(self, names: &[String]) -> Self {
        Self { held: names.iter().cloned().collect(), ..self }
    }

    fn device(&self, gpu: usize, profile: &str, start: u32) -> String {
        DeviceName::mig(self.facts[gpu].pci, profile, start).to_string()
    }

    fn inventory(&self) -> Inventory {
        inventory_of(&self.facts, self.is_mig, &self.held)
    }

    fn offer(&self) -> Offer {
        apply(&self.inventory(), &self.layouts, &self.held)
    }

    /// Follows, and answers with what came of it and when to look again.
    fn follow(&mut self, demand: Option<&Demand>, now: Timestamp) -> (Outcome, Option<Timestamp>) {
        let inventory = self.inventory();
        let inputs = LayoutInputs {
            inventory: &inventory,
            held: &self.held,
            base: &self.base,
            held_back: &HeldBack::new(),
        };
        let Followed { layouts, outcome, memory, wake } =
            follow(inputs, &self.layouts, demand, &self.memory, now);
        (self.layouts, self.memory) = (layouts, memory);
        (outcome, wake)
    }

    /// Puts into force what is wanted, and answers with what is missing, in words.
    fn arrange(&mut self, free: &str, floor: &str) -> String {
        let inventory = self.inventory();
        let inputs = LayoutInputs {
            inventory: &inventory,
            held: &self.held,
            base: &self.base,
            held_back: &HeldBack::new(),
        };
        let Arrangement { layouts, missing } = arrange(inputs, &self.layouts, &wanted(free, floor));
        self.layouts = layouts;
        describe_missing(inputs, &missing)
    }

    /// Short names of what is published.
    fn shown(&self) -> Vec<String> {
        shown(&self.offer())
    }
}

#[test]
fn a_demand_that_is_served_changes_nothing() {
    let mut node = Node::new("2xH100-80GB,1xL4");
    assert_eq!(node.arrange("2x1g.10gb 1x2g.20gb 1x3g.40gb 2xfull", "1x1g.10gb"), "");
    assert_eq!(node.layouts, node.base);
}

#[test]
fn as_little_memory_as_possible_is_withdrawn() {
    let mut node = Node::new("1xH100-80GB");
    assert_eq!(node.arrange("4x1g.10gb", ""), "");
    assert_eq!(node.shown(), ["1g.10gb@0", "1g.10gb@1", "1g.10gb@2", "1g.10gb@3", "3g.40gb@4"]);
    assert_eq!(node.arrange("2x2g.20gb", ""), "");
    assert_eq!(node.shown(), ["2g.20gb@0", "2g.20gb@2", "3g.40gb@4"]);
}

#[test]
fn the_gpu_that_loses_the_least_changes_and_the_others_stay() {
    let mut node = Node::new("4xH100-80GB");
    assert_eq!(node.arrange("3x2g.20gb", ""), "");
    let changed = |node: &Node| -> Vec<usize> {
        node.layouts
            .values()
            .zip(node.base.values())
            .enumerate()
            .filter(|(_, (a, b))| a != b)
            .map(|(i, _)| i)
            .collect()
    };
    assert_eq!(changed(&node), [0], "two of the first, one of the second: {:?}", node.shown());

    let mut node = Node::new("4xH100-80GB");
    assert_eq!(node.arrange("1x7g.80gb", ""), "");
    assert_eq!(changed(&node).len(), 1);
}

#[test]
fn whole_gpus_are_kept_and_made_whole_where_they_are_demanded() {
    let mut node = Node::new("2xH100-80GB");
    assert_eq!(node.arrange("6x1g.10gb 1xfull", ""), "");
    assert_eq!(node.shown().iter().filter(|it| *it == "whole").count(), 1);
    assert_eq!(node.shown().iter().filter(|it| it.starts_with("1g.10gb@")).count(), 7);
    assert_eq!(node.arrange("2xfull", ""), "");
    assert_eq!(node.shown(), ["whole", "whole"]);
    let text = node.arrange("3xfull", "");
    assert_eq!(text, "the GPUs of this node have no room for 1 x full");
}

#[test]
fn what_claims_hold_is_gone_around_and_named_where_it_is_in_the_way() {
    let node = Node::new("1xH100-80GB");
    let small = [node.device(0, "1g.10gb", 0), node.device(0, "1g.10gb", 6)];
    let mut node = node.holding(&small);
    let text = node.arrange("1x3g.40gb", "");
    assert!(
        text.starts_with("1 x 3g.40gb waits until claims release devices; allocated: gpu-0000-1a-00-mig-1g"),
        "{text}"
    );
    assert_eq!(node.layouts, node.base, "nothing is withdrawn for nothing");
    assert_eq!(node.arrange("2x2g.20gb", ""), "");
    assert_eq!(node.shown(), ["1g.10gb@0", "1g.10gb@1", "1g.10gb@6", "2g.20gb@2", "2g.20gb@4"]);

    let gpu = DeviceName::gpu(node.facts[0].pci).to_string();
    let mut node = Node::new("1xH100-80GB").holding(&[gpu]);
    for what in ["1x1g.10gb", "1xfull"] {
        let text = node.arrange(what, "");
        assert!(text.contains("waits until claims release devices; allocated: gpu-0000-1a-00"), "{text}");
        assert_eq!(node.shown(), ["whole"]);
    }
}

#[test]
fn the_floor_comes_first_and_counts_what_claims_hold() {
    let mut node = Node::new("1xH100-80GB");
    let text = node.arrange("1x7g.80gb", "3x1g.10gb");
    assert_eq!(text, "the GPUs of this node have no room for 1 x 7g.80gb");
    assert_eq!(node.shown().iter().filter(|it| it.starts_with("1g.10gb@")).count(), 4);

    let node = Node::new("2xH100-80GB");
    let held: Vec<String> = (0..3).map(|it| node.device(0, "1g.10gb", it)).collect();
    let mut node = node.holding(&held);
    assert_eq!(node.arrange("1x7g.80gb", "3x1g.10gb"), "");
    assert!(node.shown().contains(&"7g.80gb@0".to_owned()), "{:?}", node.shown());
}

#[test]
fn a_floor_moves_to_another_gpu_where_that_serves_a_demand() {
    let node = Node::new("2xH100-80GB");
    let held = [node.device(1, "1g.10gb", 6)];
    let mut node = node.holding(&held);
    // The second GPU has no room for 7g, the first one offers what the floor asks for.
    assert_eq!(node.arrange("1x7g.80gb", "1x3g.40gb"), "");
    assert!(node.shown().contains(&"7g.80gb@0".to_owned()), "{:?}", node.shown());
    assert!(node.shown().iter().any(|it| it.starts_with("3g.40gb@")), "{:?}", node.shown());
}

#[test]
fn room_that_is_left_is_filled_as_without_a_demand() {
    let mut node = Node::new("2xH100-80GB");
    assert_eq!(node.arrange("2x3g.40gb", ""), "");
    assert_eq!(node.shown().iter().filter(|it| it.starts_with("3g.40gb@")).count(), 2);
    assert_eq!(node.arrange("2x3g.40gb 2x2g.20gb", ""), "");
    let small = node.shown().iter().filter(|it| it.starts_with("1g.10gb@")).count();
    assert!(2 <= small, "{:?}", node.shown());
}

#[test]
fn a_profile_that_no_gpu_has_is_named_with_those_there_are() {
    let mut node = Node::new("1xH100-80GB");
    let text = node.arrange("2x1g.5gb", "");
    assert!(
        text.starts_with("the GPUs of this node have no room for 2 x 1g.5gb; their profiles are 1g.10gb,"),
        "{text}"
    );
    assert_eq!(node.arrange("512x1g.10gb", ""), "the GPUs of this node have no room for 505 x 1g.10gb");
    assert_eq!(node.shown().len(), 7, "as many as there is room for");
}

#[test]
fn a_gpu_whose_mode_is_fixed_serves_what_its_mode_allows() {
    let mut node = Node::new("2xA100-40GB");
    assert_eq!(node.arrange("1xfull", ""), "the GPUs of this node have no room for 1 x full");
    assert_eq!(node.arrange("7x1g.5gb", ""), "");
    node.is_mig = false;
    assert!(node.arrange("1x1g.5gb", "").contains("no room for 1 x 1g.5gb"));
    assert_eq!(node.arrange("2xfull", ""), "");
    assert_eq!(node.shown(), ["whole", "whole"]);
}

fn demand(renewed: Option<i64>, free: &str) -> Demand {
    Demand { renewed: renewed.map(at), wanted: wanted(free, "") }
}

#[test]
fn layouts_change_once_in_thirty_seconds() {
    let mut node = Node::new("1xH100-80GB");
    assert_eq!(node.follow(Some(&demand(Some(0), "4x1g.10gb")), at(0)).0, Outcome::Followed);
    let first = node.layouts.clone();
    let (outcome, wake) = node.follow(Some(&demand(Some(1), "1x7g.80gb")), at(1));
    assert_eq!((outcome, wake), (Outcome::Waiting(at(30)), Some(at(30))));
    assert_eq!(node.layouts, first);
    assert_eq!(node.follow(Some(&demand(Some(1), "1x7g.80gb")), at(29)).0, Outcome::Waiting(at(30)));
    assert_eq!(node.follow(Some(&demand(Some(1), "1x7g.80gb")), at(30)).0, Outcome::Followed);
    assert_eq!(node.shown(), ["7g.80gb@0"]);
}

#[test]
fn a_demand_that_is_not_renewed_changes_nothing_and_one_without_a_time_does_not_age() {
    let mut node = Node::new("1xH100-80GB");
    let first = demand(Some(0), "4x1g.10gb");
    assert_eq!(node.follow(Some(&first), at(0)), (Outcome::Followed, Some(at(121))));
    let before = node.layouts.clone();
    let held = [node.device(0, "1g.10gb", 0)];
    node = node.holding(&held);
    assert_eq!(node.follow(Some(&first), at(120)).0, Outcome::Followed);
    let served = node.layouts.clone();
    assert_ne!(served, before, "of the four one is held");
    node.held.clear();
    assert_eq!(node.follow(Some(&demand(Some(0), "1x7g.80gb")), at(10_000)), (Outcome::Stale, None));
    assert_eq!(node.layouts, served, "also long after");
    assert_eq!(node.follow(Some(&demand(None, "1x7g.80gb")), at(100_000)).0, Outcome::Followed);
    assert_eq!(node.shown(), ["7g.80gb@0"]);
}

#[test]
fn a_writer_whose_clock_is_ahead_is_stale_all_the_same() {
    let mut node = Node::new("1xH100-80GB");
    let ahead = demand(Some(100_000), "4x1g.10gb");
    assert_eq!(node.follow(Some(&ahead), at(0)), (Outcome::Followed, Some(at(121))));
    assert_eq!(node.follow(Some(&ahead), at(120)).0, Outcome::Followed);
    assert_eq!(node.follow(Some(&ahead), at(121)).0, Outcome::Stale);
    assert_eq!(node.follow(Some(&demand(Some(100_001), "4x1g.10gb")), at(121)).0, Outcome::Followed);
}

#[test]
fn ten_minutes_after_the_last_demand_the_layouts_are_those_without_one() {
    for nothing in [None, Some(demand(None, ""))] {
        let mut node = Node::new("1xH100-80GB");
        node.follow(Some(&demand(Some(5), "1x7g.80gb")), at(5));
        let until = Some(at(605));
        for now in [6, 300, 604] {
            assert_eq!(node.follow(nothing.as_ref(), at(now)), (Outcome::NoDemand { until }, until));
            assert_eq!(node.shown(), ["7g.80gb@0"]);
        }
        assert_eq!(node.follow(nothing.as_ref(), at(605)), (Outcome::NoDemand { until: None }, None));
        assert_eq!(node.layouts, node.base);
    }
}

#[test]
fn layouts_that_change_back_soon_after_a_hold_has_begun_are_looked_at_when_they_may() {
    let mut node = Node::new("1xH100-80GB");
    node.follow(Some(&demand(Some(5), "1x7g.80gb")), at(5));
    node.memory.changed = Some(at(600));
    for now in [605, 620] {
        assert_eq!(node.follow(None, at(now)), (Outcome::Waiting(at(630)), Some(at(630))));
    }
    assert_eq!(node.follow(None, at(630)), (Outcome::NoDemand { until: None }, None));
}

#[test]
fn without_a_demand_a_floor_is_kept_and_goes_with_the_spec() {
    let mut node = Node::new("1xH100-80GB");
    let floor = Demand { renewed: None, wanted: wanted("", "3x1g.10gb") };
    assert_eq!(node.follow(Some(&floor), at(0)), (Outcome::Followed, None));
    assert_eq!(node.shown(), ["1g.10gb@0", "1g.10gb@1", "1g.10gb@2", "1g.10gb@3", "3g.40gb@4"]);
    node.follow(Some(&demand(None, "1x7g.80gb")), at(40));
    assert_eq!(node.follow(Some(&floor), at(100)).0, Outcome::Followed);
    assert_eq!(node.follow(Some(&floor), at(640)).0, Outcome::Followed);
    assert_eq!(node.shown().len(), 5, "the base layout with the floor");
    node.follow(None, at(700));
    assert_eq!(node.layouts, node.base);
}

#[test]
fn a_clock_that_is_put_back_makes_nothing_wait_longer_than_from_then_on() {
    let mut node = Node::new("1xH100-80GB");
    node.follow(Some(&demand(None, "4x1g.10gb")), at(5_000));
    let (outcome, wake) = node.follow(Some(&demand(None, "1x7g.80gb")), at(0));
    assert_eq!((outcome, wake), (Outcome::Waiting(at(30)), Some(at(30))));
    node.follow(Some(&demand(None, "1x7g.80gb")), at(30));
    assert_eq!(node.follow(None, at(10)).1, Some(at(610)));
}

#[test]
fn layouts_of_gpus_that_are_not_there_or_have_no_room_for_them_are_not_used() {
    let gpus = facts("2xH100-80GB");
    let base = default_layouts(&gpus);
    let name = |it: usize| DeviceName::gpu(gpus[it].pci).to_string();
    let small = GpuLayout::Free { cut: true, counts: counts("7x1g.10gb") };
    let layouts: Layouts = [
        (name(0), GpuLayout::Free { cut: true, counts: counts("7x1g.5gb") }),
        (name(1), small.clone()),
        ("gpu-0000-ff-00".to_owned(), small.clone()),
    ]
    .into();
    let usable = usable(&layouts, &base, &gpus);
    assert_eq!(usable.into_values().collect::<Vec<_>>(), [base[&name(0)].clone(), small]);
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Demand(u8, u8),
    Person(u8, u8),
    Renew,
    NoDemand,
    Floor(u8, u8),
    Wait(u8),
    PutClockBack(u8),
    Allocate(u8),
    Release(u8),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    (0_u8..14, any::<u8>(), any::<u8>()).prop_map(|(what, one, two)| match what {
        0 | 1 => Step::Demand(one, two),
        2 => Step::Person(one, two),
        3 => Step::Renew,
        4 => Step::NoDemand,
        5 => Step::Floor(one, two),
        6..=8 => Step::Wait(one),
        9 => Step::PutClockBack(one),
        10 | 11 => Step::Allocate(one),
        12 => Step::Release(one),
        _ => Step::Restart,
    })
}

/// A node under demands, with what must hold after each step.
struct World {
    node: Node,
    demand: Option<Demand>,
    floor: Counts,
    /// By the clock that is never put back, and by the other one.
    times: (i64, i64),
    changed: Option<i64>,
}

impl World {
    fn some(&self, one: u8, two: u8) -> Counts {
        let mut names: Vec<&str> =
            self.node.facts[0].mig.iter().flat_map(|it| &it.profiles).map(|it| it.name.as_str()).collect();
        names.push("full");
        let name = |it: u8| names[usize::from(it) % names.len()].to_owned();
        [(name(one), u32::from(two % 4)), (name(two), u32::from(one % 3))]
            .into_iter()
            .filter(|it| 0 < it.1)
            .collect()
    }

    fn play(&mut self, step: Step) {
        let now = at(self.times.1);
        match step {
            Step::Demand(one, two) => {
                let wanted = Wanted { free: self.some(one, two), floor: self.floor.clone() };
                self.demand = Some(Demand { renewed: Some(now), wanted });
            }
            Step::Person(one, two) => {
                let wanted = Wanted { free: self.some(one, two), floor: self.floor.clone() };
                self.demand = Some(Demand { renewed: None, wanted });
            }
            Step::Renew => {
                if let Some(Demand { renewed: Some(it), .. }) = &mut self.demand {
                    *it = now;
                }
            }
            Step::NoDemand => self.demand = None,
            Step::Floor(one, two) => {
                self.floor = if one % 3 == 0 { Counts::new() } else { self.some(one, two) };
                self.demand.get_or_insert_default().wanted.floor = self.floor.clone();
            }
            Step::Wait(how_long) => {
                let seconds = [1, 5, 12, 29, 31, 60, 125, 610][usize::from(how_long % 8)];
                self.times = (self.times.0 + seconds, self.times.1 + seconds);
            }
            Step::PutClockBack(by) => self.times.1 -= i64::from(by) * 10,
            Step::Allocate(which) => {
                let free: Vec<String> =
                    names_of(&self.node.offer()).difference(&self.node.held).cloned().collect();
                if !free.is_empty() {
                    self.node.held.insert(free[usize::from(which) % free.len()].clone());
                }
            }
            Step::Release(which) => {
                let held: Vec<String> = self.node.held.iter().cloned().collect();
                if !held.is_empty() {
                    self.node.held.remove(&held[usize::from(which) % held.len()]);
                }
            }
            Step::Restart => {
                let text = serde_json::to_string(&self.node.memory).unwrap();
                self.node.memory = serde_json::from_str(&text).unwrap();
            }
        }
    }

    /// Whether there is room for the floor beside what claims hold, by brute force.
    fn has_room_for_floor(&self) -> bool {
        let Node { facts, held, .. } = &self.node;
        let inventory = self.node.inventory();
        let mut floor = self.floor.clone();
        for device in held {
            let device = inventory.device(device).unwrap();
            let profile = device.mig().map_or("full", |it| &it.profile);
            floor.entry(profile.to_owned()).and_modify(|it| *it = it.saturating_sub(1));
        }
        floor.retain(|_, it| 0 < *it);
        let profiles = &facts[0].mig.as_ref().unwrap().profiles;
        let fits = |gpu: &GpuFacts, counts: &Counts| {
            let name = DeviceName::gpu(gpu.pci).to_string();
            let held: Vec<_> = held.iter().filter(|it| it.starts_with(&name)).collect();
            let specs: Vec<_> = held.iter().filter_map(|it| inventory.device(it).unwrap().mig()).collect();
            let fixed: Vec<(&Profile, Placement)> =
                specs.iter().map(|it| (gpu.profile(it.profile_id).unwrap(), it.placement)).collect();
            let counts: Counts =
                counts.iter().filter(|it| 0 < *it.1).map(|(it, count)| (it.clone(), *count)).collect();
            let count: u32 = counts.values().sum();
            match counts.get("full") {
                Some(_) => held.is_empty() && count == 1 && gpu.mig.as_ref().unwrap().resetless,
                None if fixed.len() < held.len() => count == 0,
                None => brute_force(profiles, &fixed, &counts).0 == count,
            }
        };
        let mut open = vec![(0, floor, Counts::new())];
        if let [only] = &facts[..] {
            return fits(only, &open[0].1);
        }
        // Every way to divide it among two.
        let keys: Vec<String> = open[0].1.keys().cloned().collect();
        while let Some((index, first, second)) = open.pop() {
            let Some(key) = keys.get(index) else {
                if fits(&facts[0], &first) && fits(&facts[1], &second) {
                    return true;
                }
                continue;
            };
            let all = first[key];
            for count in 0..=all {
                let (mut first, mut second) = (first.clone(), second.clone());
                first.insert(key.clone(), all - count);
                second.insert(key.clone(), count);
                open.push((index + 1, first, second));
            }
        }
        false
    }

    fn follow(&mut self) {
        let before = self.node.layouts.clone();
        let demand = self.demand.clone();
        let (outcome, wake) = self.node.follow(demand.as_ref(), at(self.times.1));
        if self.node.layouts != before {
            assert!(outcome != Outcome::Stale);
            assert!(
                self.changed.is_none_or(|it| it + 30 <= self.times.0),
                "{:?} {:?}",
                self.changed,
                self.times
            );
            self.changed = Some(self.times.0);
        }
        assert!(wake.is_none_or(|it| at(self.times.1) < it), "it would look again at once: {outcome:?}");
        self.check(&outcome);
    }

    fn check(&self, outcome: &Outcome) {
        let offer = self.node.offer();
        let names = names_of(&offer);
        assert!(self.node.held.is_subset(&names), "{:?} are held, {names:?} published", self.node.held);
        let mut published = Counts::new();
        let mut free = Counts::new();
        for (gpu, facts) in offer.inventory.gpus.iter().zip(&self.node.facts) {
            let parts: Vec<_> = gpu
                .devices
                .iter()
                .filter_map(|it| it.mig())
                .map(|it| (facts.profile(it.profile_id).unwrap(), it.placement))
                .collect();
            assert!(parts.is_empty() || parts.len() == gpu.devices.len(), "{names:?}");
            assert!(exist_together(&facts.mig.as_ref().unwrap().profiles, &parts), "{names:?}");
            for device in &gpu.devices {
                let profile = device.mig().map_or("full", |it| &it.profile);
                *published.entry(profile.to_owned()).or_insert(0) += 1;
                if !self.node.held.contains(device.name.as_str()) {
                    *free.entry(profile.to_owned()).or_insert(0) += 1;
                }
            }
        }
        let missing = match outcome {
            Outcome::Followed | Outcome::NoDemand { .. } => &[][..],
            Outcome::Missing(missing) => missing,
            Outcome::Waiting(_) | Outcome::Stale => return,
        };
        let count = |of: &Counts, profile: &str| of.get(profile).copied().unwrap_or(0);
        let nothing = Wanted::default();
        let wanted = self.demand.as_ref().map_or(&nothing, |it| &it.wanted);
        for (profile, wanted) in &wanted.free {
            let missing: u32 = missing.iter().filter(|it| it.profile == *profile).map(|it| it.count).sum();
            assert!(*wanted <= count(&free, profile) + missing, "{wanted} x {profile}, {free:?}, {missing}");
        }
        let has_floor = wanted.floor.iter().all(|(profile, it)| *it <= count(&published, profile));
        assert!(has_floor || !self.has_room_for_floor(), "{:?} in {published:?}", wanted.floor);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, rng_seed: RngSeed::Fixed(16), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_demanded_and_held_the_rules_are_kept(
        model in any::<prop::sample::Index>(),
        count in 1_usize..3,
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let models: Vec<Model> = mig_models();
        let model = models[model.index(models.len())].name();
        let node = Node::new(&format!("{count}x{model}"));
        let mut world = World { node, demand: None, floor: Counts::new(), times: (0, 0), changed: None };
        world.follow();
        for step in steps {
            world.play(step);
            world.follow();
        }
        // All is released, and nothing is demanded any more.
        world.node.held.clear();
        world.demand = None;
        for _ in 0..2 {
            world.follow();
            world.times.1 += 700;
            world.times.0 += 700;
        }
        world.follow();
        prop_assert_eq!(&world.node.layouts, &world.node.base);
    }
}
