//! One GPU without MIG, its publisher, and schedulers of which each may act on what was published less than the settle time ago.

use std::sync::Arc;

use mig_model::inventory::inventory_on;
use proptest::prelude::*;

use super::*;
use crate::layout::tests::{facts, gpus};

const GPU: &str = "gpu-0000-1a-00";

/// A claim's device, whether it is allocated, and whether it is prepared.
type Claim = (String, bool, bool);

struct World {
    shares: u32,
    rounds: Rounds,
    gpus: Vec<Gpu>,
    is_unhealthy: bool,
    start: Instant,
    now: u64,
    views: Vec<(u64, Option<Pool>)>,
    /// What was allocated when it was decided.
    known: BTreeSet<String>,
    claims: Vec<Claim>,
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Wait(u8),
    Decide,
    Write,
    /// Fails after so many slices.
    WritePart(u8),
    /// With another number of shares.
    Restart(u8),
    KubeletRestart,
    UnhealthyReason,
    Recovery,
    Allocate(u8, u8),
    Prepare(u8),
    End(u8),
}

fn pick(number: u8, of: usize) -> usize {
    usize::from(number) % of
}

impl World {
    fn new() -> Self {
        let gpus = gpus(&facts("1xL4"), false, &[]);
        Self {
            shares: 0,
            rounds: Rounds::new(),
            gpus,
            is_unhealthy: false,
            start: Instant::now(),
            now: 0,
            views: vec![(0, None)],
            known: BTreeSet::new(),
            claims: Vec::new(),
        }
    }

    fn at(&self) -> Instant {
        self.start + Duration::from_secs(self.now)
    }

    fn with(&self, is_it: impl Fn(&Claim) -> bool) -> BTreeSet<String> {
        self.claims.iter().filter(|it| is_it(it)).map(|it| it.0.clone()).collect()
    }

    fn published(&self) -> BTreeSet<String> {
        self.rounds.pool().map_or_else(BTreeSet::new, |it| it.devices)
    }

    fn inventory(&self, held: &BTreeSet<String>) -> (Inventory, Vec<Gpu>, OfferPolicy) {
        let mut gpus = self.gpus.clone();
        gpus[0].state.problem = self.is_unhealthy.then(|| "it is unhealthy".to_owned());
        let policy = OfferPolicy { held: held.clone(), time_slices: self.shares, ..OfferPolicy::default() };
        (inventory_on(&NodeFacts::default(), &gpus, &policy), gpus, policy)
    }

    fn node(&self) -> (Node, Vec<Gpu>, OfferPolicy) {
        let held = self.with(|it| it.2);
        let (inventory, gpus, policy) = self.inventory(&held);
        (Node { inventory: Arc::new(inventory), held, ..Node::default() }, gpus, policy)
    }

    fn decide(&mut self) {
        self.write(usize::MAX);
        let (node, gpus, policy) = self.node();
        self.known = self.with(|it| it.1);
        let now = self.at();
        self.rounds.decide(node, &Source { gpus: &gpus, policy }, true, &self.known, now);
    }

    fn write(&mut self, most: usize) {
        let before = self.published();
        if !self.rounds.write(most, self.at()) {
            return;
        }
        let allocated = &self.known & &self.with(|it| it.1);
        let after = self.published();
        let gone = before.difference(&after).find(|it| allocated.contains(*it));
        assert_eq!(gone, None, "it is allocated and goes");
        self.show();
    }

    fn show(&mut self) {
        self.views.push((self.now, self.rounds.pool()));
    }

    fn allocate(&mut self, which: u8, age: u8) {
        let is_recent = |it: &usize| self.views.get(it + 1).is_none_or(|next| self.now < next.0 + SETTLE);
        let recent: Vec<usize> = (0..self.views.len()).filter(is_recent).collect();
        let Some(pool) = &self.views[recent[pick(age, recent.len())]].1 else { return };
        let allocated = self.with(|it| it.1);
        let free: Vec<&String> = pool.devices.difference(&allocated).filter(|_| pool.is_open).collect();
        if !free.is_empty() {
            self.claims.push((free[pick(which, free.len())].clone(), true, false));
        }
        let allocated = self.with(|it| it.1);
        assert!(!allocated.contains(GPU) || allocated.len() == 1, "allocated together: {allocated:?}");
    }

    fn play(&mut self, event: Event) {
        match event {
            Event::Wait(seconds) => self.now += u64::from(seconds),
            Event::Decide => self.decide(),
            Event::Write => self.write(usize::MAX),
            Event::WritePart(most) => self.write(usize::from(most)),
            Event::Restart(shares) => {
                self.shares = [0, 2, 4][pick(shares, 3)];
                if shares < 128 { self.rounds.restart() } else { self.rounds.resume() }
            }
            Event::KubeletRestart => {
                self.rounds.wipe();
                self.show();
            }
            Event::UnhealthyReason => self.is_unhealthy = true,
            Event::Recovery => self.is_unhealthy = false,
            Event::Allocate(which, age) => self.allocate(which, age),
            Event::Prepare(which) if !self.claims.is_empty() => {
                let index = pick(which, self.claims.len());
                self.claims[index].2 = self.claims[index].1;
            }
            Event::End(which) if !self.claims.is_empty() => {
                drop(self.claims.swap_remove(pick(which, self.claims.len())));
            }
            Event::Prepare(_) | Event::End(_) => {}
        }
    }

    /// Goes on by what wakes the driver, until nothing but the next comparison is left.
    fn comes_to_rest(&mut self) {
        self.write(usize::MAX);
        let (node, gpus, policy) = self.node();
        if self.rounds.is_news(&node, &Source { gpus: &gpus, policy }, &Gates::default(), self.at()) {
            self.decide();
        }
        for _ in 0..10 {
            self.write(usize::MAX);
            let wake = self.rounds.wake.map_or(0, |it| it.duration_since(self.at()).as_secs());
            if RESYNC.as_secs() <= wake {
                break;
            }
            self.now += wake;
            self.decide();
        }
        self.write(usize::MAX);
        let held = self.with(|_| true);
        let offered = self.inventory(&held).0;
        assert_eq!(self.published(), offered.names(), "{held:?} are held");
    }
}

fn event() -> impl Strategy<Value = Event> {
    any::<(u8, u8, u8)>().prop_map(|(what, which, other)| match what % 14 {
        0 => Event::Wait(1 + which % 12),
        1..=3 => Event::Decide,
        4 => Event::Write,
        5 => Event::Restart(which),
        6 => Event::KubeletRestart,
        7 | 8 => Event::Allocate(which, other),
        9 => Event::Prepare(which),
        10 => Event::WritePart(which % 2),
        11 if which % 2 == 0 => Event::UnhealthyReason,
        11 => Event::Recovery,
        _ => Event::End(which),
    })
}

proptest! {
    #![proptest_config(config(4096))]

    #[test]
    fn late_schedulers_never_give_away_a_whole_gpu_beside_a_share_and_what_they_gave_stays(
        events in prop::collection::vec(event(), 1..60),
    ) {
        let mut world = World::new();
        for event in events {
            world.play(event);
        }
        world.comes_to_rest();
    }
}

/// A world in which the whole GPU is published, and then withdrawn because it is unhealthy.
fn withdrawn() -> World {
    let mut world = World::new();
    let events = [Event::Decide, Event::Write, Event::UnhealthyReason, Event::Decide, Event::Write];
    events.into_iter().for_each(|it| world.play(it));
    assert_eq!(world.published(), BTreeSet::new());
    world
}

fn late(world: &mut World) {
    world.claims.push((GPU.to_owned(), true, false));
}

#[test]
fn an_allocated_gpu_that_is_unhealthy_is_published_again_when_its_slices_are_deleted() {
    let mut world = World::new();
    [Event::Decide, Event::Write].into_iter().for_each(|it| world.play(it));
    late(&mut world);
    [Event::UnhealthyReason, Event::KubeletRestart, Event::Decide, Event::Write]
        .into_iter()
        .for_each(|it| world.play(it));
    assert_eq!(world.published(), [GPU.to_owned()].into());
}

#[test]
fn an_allocated_gpu_that_is_unhealthy_is_published_again_after_a_write_that_failed() {
    let mut world = withdrawn();
    late(&mut world);
    [Event::Decide, Event::WritePart(0), Event::Decide, Event::Write]
        .into_iter()
        .for_each(|it| world.play(it));
    assert_eq!(world.published(), [GPU.to_owned()].into());
}

#[test]
fn an_unhealthy_gpu_that_was_allocated_at_the_last_moment_is_published_again_also_by_the_next_process() {
    let mut world = withdrawn();
    world.play(Event::Restart(0));
    [Event::Decide, Event::Write].into_iter().for_each(|it| world.play(it));
    late(&mut world);
    world.play(Event::Wait(10));
    [Event::Decide, Event::Write].into_iter().for_each(|it| world.play(it));
    assert_eq!(world.published(), [GPU.to_owned()].into());
    assert_eq!(world.rounds.lists, 3, "at the withdrawal, at the start, and when the settle time is over");
}

#[test]
fn an_unhealthy_gpu_whose_slices_were_deleted_and_that_was_allocated_at_the_last_moment_is_published_again() {
    let mut world = World::new();
    [Event::Decide, Event::Write, Event::UnhealthyReason, Event::KubeletRestart, Event::Decide, Event::Write]
        .into_iter()
        .for_each(|it| world.play(it));
    late(&mut world);
    world.comes_to_rest();
    assert_eq!(world.published(), [GPU.to_owned()].into());
}
