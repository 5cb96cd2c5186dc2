//! GPUs without MIG: a whole GPU and its time-shared devices exclude each other without counters, in every mode.
//!
//! Their number changes only with a flag, at the start. Until then claims may have been given what is not wanted any more. So
//! where something else is published than is wanted, the claims are read and what they have stays; a device that goes is
//! withdrawn first, and what excludes it appears only after it has been gone for the settle time and a read of the claims,
//! begun after that, shows that nobody took it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use mig_model::inventory::{DeviceKind, DeviceName, GpuInventory, Inventory};

use super::Publisher;
use super::publish::RESYNC;
use crate::api::SliceError;

/// Whole GPUs and shares that were withdrawn lately, so far as this process knows. Pure.
#[derive(Debug)]
pub(super) struct Withdrawn {
    /// Since when they are gone; `None` until that is written.
    gone: BTreeMap<String, Option<Instant>>,
    /// When this process first looked, if a driver before it may have withdrawn something a moment before.
    start: Option<Instant>,
    has_past: bool,
}

impl Withdrawn {
    /// Starts without knowledge of what was before; `has_past` is whether a driver was on this node before this process.
    pub(super) fn new(has_past: bool) -> Self {
        Self { gone: BTreeMap::new(), start: None, has_past }
    }

    /// Takes note of the time. Until a settle time after the first look nothing may come that was not published then, unless
    /// this process itself has withdrawn it.
    fn look(&mut self, now: Instant, settle: Duration) {
        if std::mem::take(&mut self.has_past) {
            self.start = Some(now);
        }
        self.start = self.start.filter(|it| now < *it + settle);
    }

    /// What of a GPU's devices may be published now. `before` is what is published of it, `held` what claims have, by a read
    /// of the claims that began at `read_at`.
    fn step(
        &mut self,
        target: &GpuInventory,
        before: &BTreeSet<String>,
        held: &BTreeSet<String>,
        read_at: Instant,
        settle: Duration,
    ) -> GpuInventory {
        let wanted = names(target);
        for name in before.difference(&wanted) {
            self.gone.entry(name.clone()).or_insert(None);
        }
        let is_settled = |since: &Option<Instant>| since.is_some_and(|it| it + settle <= read_at);
        self.gone.retain(|name, since| !wanted.contains(name) && !is_settled(since) || !is_of(name, target));
        let gone = || self.gone.keys().filter(|it| is_of(it, target));
        let (whole_is_gone, share_is_gone) =
            (gone().any(|it| *it == target.counter_set), gone().any(|it| *it != target.counter_set));
        let mut next = target.clone();
        next.devices.retain(|it| {
            let is_excluded = if it.kind == DeviceKind::Gpu { share_is_gone } else { whole_is_gone };
            let name = it.name.as_str();
            let may_come = self.start.is_none() || before.contains(name);
            may_come && !is_excluded || held.contains(name)
        });
        // What is published and has to wait all the same was never withdrawn for long; it counts from now.
        for name in before.difference(&names(&next)) {
            self.gone.entry(name.clone()).or_insert(None);
        }
        next
    }

    /// Takes note that what the last step said is written.
    pub(super) fn written(&mut self, now: Instant) {
        for since in self.gone.values_mut() {
            since.get_or_insert(now);
        }
    }

    /// Since when the first thing is waited for.
    fn since(&self) -> Option<Instant> {
        self.gone.values().flatten().chain(&self.start).min().copied()
    }
}

impl Publisher {
    /// The inventory with as much of the GPUs without MIG as may be published now, and when to look again.
    pub(super) async fn settle_shares<'i>(
        &mut self,
        inventory: &'i Inventory,
        held: &BTreeSet<String>,
        published: &BTreeSet<String>,
    ) -> Result<(Cow<'i, Inventory>, Duration), SliceError> {
        let uncut = || inventory.gpus.iter().filter(|it| !it.can_be_cut());
        let before: BTreeSet<String> =
            published.iter().filter(|name| uncut().any(|it| is_of(name, it))).cloned().collect();
        let wanted: BTreeSet<String> = uncut().flat_map(names).collect();
        let settle = self.parts.settle_time;
        self.withdrawn.look(Instant::now(), settle);
        self.withdrawn.gone.retain(|name, _| uncut().any(|it| is_of(name, it)));
        if before == wanted && self.withdrawn.gone.is_empty() {
            return Ok((Cow::Borrowed(inventory), RESYNC));
        }
        let (read_at, allocated) = self.allocated().await?;
        let held = held | &allocated;
        let mut settled = inventory.clone();
        let mut is_held_up = false;
        for gpu in settled.gpus.iter_mut().filter(|it| !it.can_be_cut()) {
            let target = gpu.with_held(&held);
            is_held_up |= names(&target) != names(gpu);
            let before = before.iter().filter(|it| is_of(it, gpu)).cloned().collect();
            *gpu = self.withdrawn.step(&target, &before, &held, read_at, settle);
        }
        let due = match self.withdrawn.since() {
            Some(since) => (since + settle).saturating_duration_since(Instant::now()),
            None if self.withdrawn.gone.is_empty() => RESYNC,
            None => settle,
        };
        // Claims that are not prepared are not heard of when they are released.
        Ok((Cow::Owned(settled), if is_held_up { settle.min(due) } else { due }))
    }
}

fn names(gpu: &GpuInventory) -> BTreeSet<String> {
    gpu.devices.iter().map(|it| it.name.to_string()).collect()
}

/// True for the name of a GPU or of a share of it.
pub(super) fn is_of(name: &str, gpu: &GpuInventory) -> bool {
    DeviceName::share_in(name).map_or(name, |(gpu, _)| gpu) == gpu.counter_set
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;
    use mig_model::inventory::AllocatableDevice;

    const SETTLE: Duration = Duration::from_secs(10);

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|it| (*it).to_owned()).collect()
    }

    /// A GPU that is offered as so many shares; none is whole.
    fn gpu(shares: u32) -> GpuInventory {
        let whole = AllocatableDevice {
            name: DeviceName::gpu("0000:3b:00.0".parse().unwrap()),
            parent_uuid: "GPU-1".to_owned(),
            kind: DeviceKind::Gpu,
            attributes: BTreeMap::new(),
            capacities: BTreeMap::new(),
            consumes: BTreeMap::new(),
        };
        let shared: Vec<_> = (0..shares).map(|it| whole.share(it)).collect();
        let (devices, withheld) = if shares == 0 { (vec![whole], Vec::new()) } else { (shared, vec![whole]) };
        let counters = BTreeMap::new();
        GpuInventory { counter_set: "gpu-0000-3b-00".to_owned(), counters, devices, withheld, problem: None }
    }

    #[test]
    fn a_whole_gpu_comes_when_its_shares_have_been_gone_for_the_settle_time() {
        let (mut withdrawn, start) = (Withdrawn::new(false), Instant::now());
        let shares = set(&["gpu-0000-3b-00-share-0", "gpu-0000-3b-00-share-1"]);
        let nobody = BTreeSet::new();
        let mut step = |before: &BTreeSet<String>, held: &BTreeSet<String>, seconds: u64| {
            let read_at = start + Duration::from_secs(seconds);
            let next = withdrawn.step(&gpu(0).with_held(held), before, held, read_at, SETTLE);
            withdrawn.written(read_at);
            names(&next)
        };
        assert_eq!(step(&shares, &nobody, 0), nobody);
        assert_eq!(step(&nobody, &nobody, 9), nobody);
        // Somebody took one, just before it was gone.
        let taken = set(&["gpu-0000-3b-00-share-1"]);
        assert_eq!(step(&nobody, &taken, 10), taken);
        assert_eq!(step(&taken, &nobody, 11), nobody);
        assert_eq!(step(&nobody, &nobody, 20), nobody);
        assert_eq!(step(&nobody, &nobody, 21), set(&["gpu-0000-3b-00"]));
    }

    #[test]
    fn shares_come_when_the_whole_gpu_has_been_gone_and_fewer_of_them_at_once() {
        let (mut withdrawn, start) = (Withdrawn::new(false), Instant::now());
        let (whole, nobody) = (set(&["gpu-0000-3b-00"]), BTreeSet::new());
        let mut step = |count, before: &BTreeSet<String>, seconds: u64| {
            let read_at = start + Duration::from_secs(seconds);
            let next = withdrawn.step(&gpu(count), before, &nobody, read_at, SETTLE);
            withdrawn.written(read_at);
            names(&next)
        };
        assert_eq!(step(4, &whole, 0), nobody);
        assert_eq!(step(4, &nobody, 10), names(&gpu(4)));
        assert_eq!(step(2, &names(&gpu(4)), 11), names(&gpu(2)));
        assert_eq!(
            step(4, &names(&gpu(2)), 12),
            names(&gpu(4)),
            "what was withdrawn may come back at any time"
        );
    }

    #[test]
    fn a_restart_behind_a_withdrawal_waits_as_the_process_before_would_have() {
        let (whole, nobody) = (set(&["gpu-0000-3b-00"]), BTreeSet::new());
        for (has_past, first) in [(true, &nobody), (false, &whole)] {
            let (mut withdrawn, start) = (Withdrawn::new(has_past), Instant::now());
            let mut step = |before: &BTreeSet<String>, held: &BTreeSet<String>, seconds: u64| {
                let read_at = start + Duration::from_secs(seconds);
                withdrawn.look(read_at, SETTLE);
                let next = withdrawn.step(&gpu(0).with_held(held), before, held, read_at, SETTLE);
                withdrawn.written(read_at);
                names(&next)
            };
            assert_eq!(step(&nobody, &nobody, 0), *first);
            if has_past {
                // Somebody took a share of which only the process before knew.
                let taken = set(&["gpu-0000-3b-00-share-3"]);
                assert_eq!(step(&nobody, &taken, 5), taken);
                assert_eq!(step(&taken, &nobody, 9), nobody);
                assert_eq!(step(&nobody, &nobody, 18), nobody);
                assert_eq!(step(&nobody, &nobody, 19), whole);
            }
        }
        let (mut withdrawn, start) = (Withdrawn::new(true), Instant::now());
        withdrawn.look(start, SETTLE);
        let next = withdrawn.step(&gpu(0), &whole, &nobody, start, SETTLE);
        assert_eq!(names(&next), whole, "what is published stays");
    }

    /// One GPU, its publisher, and schedulers of which each may act on what was published less than the settle time ago.
    struct World {
        shares: u32,
        withdrawn: Withdrawn,
        decided: Option<BTreeSet<String>>,
        start: Instant,
        now: u64,
        views: Vec<(u64, BTreeSet<String>)>,
        /// Device, whether it is allocated, and whether it is prepared.
        claims: Vec<(String, bool, bool)>,
    }

    #[derive(Debug, Clone, Copy)]
    enum Event {
        Wait(u8),
        Decide,
        Write,
        /// With another number of shares.
        Restart(u8),
        KubeletRestart,
        Allocate(u8, u8),
        Prepare(u8),
        End(u8),
    }

    fn pick(number: u8, of: usize) -> usize {
        usize::from(number) % of
    }

    impl World {
        fn new() -> Self {
            let (withdrawn, start) = (Withdrawn::new(false), Instant::now());
            let (views, claims) = (vec![(0, BTreeSet::new())], Vec::new());
            Self { shares: 0, withdrawn, decided: None, start, now: 0, views, claims }
        }

        fn with(&self, is_it: impl Fn(&(String, bool, bool)) -> bool) -> BTreeSet<String> {
            self.claims.iter().filter(|it| is_it(it)).map(|it| it.0.clone()).collect()
        }

        fn published(&self) -> BTreeSet<String> {
            self.views.last().unwrap().1.clone()
        }

        fn decide(&mut self) {
            self.write();
            let now = self.start + Duration::from_secs(self.now);
            let (before, prepared) = (self.published(), self.with(|it| it.2));
            let gpu = gpu(self.shares).with_held(&prepared);
            self.withdrawn.look(now, SETTLE);
            let next = if before == names(&gpu) && self.withdrawn.gone.is_empty() {
                names(&gpu)
            } else {
                let held = &prepared | &self.with(|it| it.1);
                names(&self.withdrawn.step(&gpu.with_held(&held), &before, &held, now, SETTLE))
            };
            let allocated = self.with(|it| it.1);
            let gone = before.difference(&next).find(|it| allocated.contains(*it));
            assert_eq!(gone, None, "it is allocated and goes");
            self.decided = Some(next);
        }

        fn write(&mut self) {
            let Some(next) = self.decided.take() else { return };
            self.views.push((self.now, next));
            self.withdrawn.written(self.start + Duration::from_secs(self.now));
        }

        fn allocate(&mut self, which: u8, age: u8) {
            let is_recent =
                |it: &usize| self.views.get(it + 1).is_none_or(|next| self.now < next.0 + SETTLE.as_secs());
            let recent: Vec<usize> = (0..self.views.len()).filter(is_recent).collect();
            let seen = &self.views[recent[pick(age, recent.len())]].1;
            let allocated = self.with(|it| it.1);
            let free: Vec<&String> = seen.difference(&allocated).collect();
            if !free.is_empty() {
                self.claims.push((free[pick(which, free.len())].clone(), true, false));
            }
            let allocated = self.with(|it| it.1);
            let has_whole = allocated.contains("gpu-0000-3b-00");
            assert!(!has_whole || allocated.len() == 1, "allocated together: {allocated:?}");
        }

        fn play(&mut self, event: Event) {
            match event {
                Event::Wait(seconds) => self.now += u64::from(seconds),
                Event::Decide => self.decide(),
                Event::Write => self.write(),
                Event::Restart(shares) => {
                    self.shares = [0, 2, 4][pick(shares, 3)];
                    (self.withdrawn, self.decided) = (Withdrawn::new(true), None);
                }
                Event::KubeletRestart => self.views.push((self.now, BTreeSet::new())),
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
    }

    fn event() -> impl Strategy<Value = Event> {
        any::<(u8, u8, u8)>().prop_map(|(what, which, other)| match what % 12 {
            0 => Event::Wait(1 + which % 12),
            1..=3 => Event::Decide,
            4 => Event::Write,
            5 => Event::Restart(which),
            6 => Event::KubeletRestart,
            7 | 8 => Event::Allocate(which, other),
            9 => Event::Prepare(which),
            _ => Event::End(which),
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, rng_seed: RngSeed::Fixed(4), failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn late_schedulers_never_give_away_a_whole_gpu_beside_a_share_and_what_they_gave_stays(
            events in prop::collection::vec(event(), 1..60),
        ) {
            let mut world = World::new();
            for event in events {
                world.play(event);
            }
            for _ in 0..4 {
                world.now += SETTLE.as_secs();
                world.decide();
                world.write();
            }
            let held = world.with(|_| true);
            prop_assert_eq!(world.published(), names(&gpu(world.shares).with_held(&held)));
        }
    }
}
