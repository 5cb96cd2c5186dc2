//! Layouts, modes, drivers and kubelets that change under schedulers that are late, down to what is prepared.
//!
//! A world is one GPU, the driver's pure parts as the publisher and the kubelet plugin use them, and schedulers of which each
//! may act on anything that was published less than the settle time ago.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;
use crate::checkpoint::{Record, RecordedKind};
use crate::claim::{AllocatedDevice, ClaimRef, Ground, PlanError, plan};
use crate::slices::{Held, Pool, Transition, names};

/// Enough to find each of the faults that are named in the tests below within seconds.
const CASES: u32 = 1024;
/// Seconds.
const SETTLE: u64 = 10;

/// What the API server showed from a moment on.
struct View {
    since: u64,
    pool: Option<Pool>,
}

/// What the publisher has decided and not written yet.
struct Decided {
    pool: Pool,
    /// What was allocated when the claims were read.
    allocated: BTreeSet<String>,
}

#[derive(Default)]
struct Claim {
    device: String,
    is_allocated: bool,
    record: Option<Arc<Record>>,
}

struct World {
    facts: Vec<GpuFacts>,
    inventory: Inventory,
    layouts: Layouts,
    keeps_counters: bool,
    transition: Transition,
    /// Whether the driver has not decided anything yet.
    is_new: bool,
    decided: Option<Decided>,
    start: Instant,
    now: u64,
    views: Vec<View>,
    /// By a number that is never used again.
    claims: BTreeMap<usize, Claim>,
    /// Claims so far.
    count: usize,
}

impl World {
    fn new(model: Model) -> Self {
        let facts = facts(model.name());
        Self {
            inventory: inventory_of(&facts, true, &BTreeSet::new()),
            layouts: default_layouts(&facts),
            keeps_counters: false,
            transition: Transition::new(Duration::from_secs(SETTLE), false),
            is_new: true,
            decided: None,
            start: Instant::now(),
            now: 0,
            views: vec![View { since: 0, pool: None }],
            claims: BTreeMap::new(),
            count: 0,
            facts,
        }
    }

    fn at(&self, now: u64) -> Instant {
        self.start + Duration::from_secs(now)
    }

    fn pool(&self) -> Option<&Pool> {
        self.views.last().unwrap().pool.as_ref()
    }

    fn published(&self) -> BTreeSet<String> {
        self.pool().map_or(BTreeSet::new(), |it| it.devices.clone())
    }

    fn allocated(&self) -> BTreeSet<String> {
        self.claims.values().filter(|it| it.is_allocated).map(|it| it.device.clone()).collect()
    }

    fn records(&self) -> Vec<Arc<Record>> {
        self.claims.values().filter_map(|it| it.record.clone()).collect()
    }

    /// What the driver knows to be held without asking the API server.
    fn prepared(&self) -> BTreeSet<String> {
        self.records().iter().flat_map(|it| &it.devices).map(|it| it.name.clone()).collect()
    }

    /// The first half of a round of the publisher: it reads and decides.
    fn decide(&mut self) {
        self.write();
        // A driver that starts where the slices are gone and counters are kept trusts that nobody acts on a layout any more.
        if self.is_new && self.keeps_counters && self.pool().is_none() {
            self.now += SETTLE;
        }
        self.is_new = false;
        let (now, published) = (self.at(self.now), self.pool().cloned());
        let (allocated, prepared) = (self.allocated(), self.prepared());
        let pool = if self.keeps_counters {
            let part = self.transition.count(&self.inventory, published.as_ref(), &prepared, now);
            let devices = names(part.as_ref().unwrap_or(&self.inventory));
            Pool { devices, is_counted: true, is_open: self.transition.is_open() }
        } else {
            let held = &prepared | &allocated;
            let target = apply(&self.inventory, &self.layouts, &held).inventory;
            let held = Held { prepared: &prepared, allocated: &allocated, read_at: now };
            let next = self.transition.step(&self.inventory, &target, published.as_ref(), held);
            Pool { devices: names(&next), is_counted: false, is_open: self.transition.is_open() }
        };
        self.decided = Some(Decided { pool, allocated });
    }

    /// The second half: it writes, if it has decided anything.
    fn write(&mut self) {
        let Some(Decided { pool, allocated }) = self.decided.take() else { return };
        // A claim of which the driver knew is still published, if it is still allocated.
        for device in allocated.intersection(&self.allocated()) {
            let is_shown = !pool.is_counted || self.published().contains(device);
            assert!(
                pool.devices.contains(device) || !is_shown,
                "{device} is allocated and not in {:?}, was in {:?}",
                pool.devices,
                self.published()
            );
        }
        assert!(
            pool.is_counted || !pool.is_open || self.can_exist(&pool.devices) || !self.can_exist(&allocated),
            "published together: {:?}",
            pool.devices
        );
        self.show(Some(pool));
        self.transition.written(self.at(self.now));
    }

    fn show(&mut self, pool: Option<Pool>) {
        self.views.push(View { since: self.now, pool });
    }

    /// Another process goes on; the publisher's memory is lost, wherever it was.
    fn restart(&mut self) {
        self.is_new = true;
        self.decided = None;
        self.transition = Transition::new(Duration::from_secs(SETTLE), true);
    }

    /// A scheduler gives a device away, from a pool that was the newest one less than the settle time ago.
    fn allocate(&mut self, which: u8, age: u8) {
        let is_recent =
            |index: usize| self.views.get(index + 1).is_none_or(|next| self.now < next.since + SETTLE);
        let recent: Vec<usize> = (0..self.views.len()).filter(|it| is_recent(*it)).collect();
        let view = &self.views[recent[pick(age, recent.len())]];
        let Some(pool) = view.pool.as_ref().filter(|it| it.is_open) else { return };
        let allocated = self.allocated();
        // It counts what the devices of the pool take; what is allocated and not there costs nothing (kubernetes#140802).
        let counted: BTreeSet<String> = allocated.intersection(&pool.devices).cloned().collect();
        let fits = |it: &&String| !pool.is_counted || self.can_exist(counted.iter().chain([*it]));
        let free: Vec<&String> = pool.devices.difference(&allocated).filter(fits).collect();
        if !free.is_empty() {
            self.claim(free[pick(which, free.len())].clone());
        }
    }

    fn claim(&mut self, device: String) {
        self.claims.insert(self.count, Claim { device, is_allocated: true, record: None });
        self.count += 1;
    }

    /// The kubelet asks for a claim. A refusal names a claim that is not allocated any more, unless `is_wild`.
    fn prepare(&mut self, which: u8, is_wild: bool) {
        let Some(number) = self.nth(which, |it| it.is_allocated && it.record.is_none()) else { return };
        let claim = ClaimRef::new("ns".into(), format!("c-{number}"), format!("{number}")).unwrap();
        let device = self.claims[&number].device.clone();
        let allocated = AllocatedDevice { device, pool: "pool".into(), requests: Vec::new() };
        let ground = Ground { pool: "pool", inventory: &self.inventory, boot_id: "boot" };
        match plan(&claim, &[allocated], ground, &self.records()) {
            Ok(record) => self.claims.get_mut(&number).unwrap().record = Some(Arc::new(record)),
            Err(PlanError::Held(conflict)) => {
                let holder: usize = conflict.holder.uid.as_str().parse().unwrap();
                assert!(is_wild || !self.claims[&holder].is_allocated, "{conflict}");
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Ends the pods of a claim: it is unprepared, deallocated, or both, and gone when neither is left.
    fn end(&mut self, which: u8, how: u8) {
        let Some(number) = self.nth(which, |_| true) else { return };
        let claim = self.claims.get_mut(&number).unwrap();
        if how != 1 {
            claim.record = None;
        }
        // Without the other one it is a pod that was deleted by force.
        if how != 2 {
            claim.is_allocated = false;
        }
        self.claims.retain(|_, it| it.is_allocated || it.record.is_some());
    }

    fn nth(&self, which: u8, accept: impl Fn(&Claim) -> bool) -> Option<usize> {
        let numbers: Vec<usize> =
            self.claims.iter().filter(|(_, it)| accept(it)).map(|(number, _)| *number).collect();
        (!numbers.is_empty()).then(|| numbers[pick(which, numbers.len())])
    }

    fn can_exist<'a>(&self, devices: impl IntoIterator<Item = &'a String>) -> bool {
        let kinds = devices.into_iter().map(|it| self.inventory.device(it).unwrap().kind.clone());
        can_exist(&self.facts[0], &kinds.collect::<Vec<_>>())
    }

    /// What is prepared exists on the GPU.
    fn check_prepared(&self) {
        let records = self.records();
        let kinds: Vec<DeviceKind> = records
            .iter()
            .flat_map(|it| &it.devices)
            .map(|it| match &it.kind {
                RecordedKind::Mig { spec, .. } => DeviceKind::Mig(spec.clone()),
                _ => DeviceKind::Gpu,
            })
            .collect();
        let whole = kinds.iter().filter(|it| **it == DeviceKind::Gpu).count();
        assert!(whole == 0 || kinds.len() == 1, "prepared beside a whole GPU: {:?}", self.prepared());
        // Engines are counted by the hardware, which refuses then; memory it must never come to.
        let specs: Vec<Placement> = kinds.iter().filter_map(|it| Some(spec(it)?.placement)).collect();
        let is_apart = |index: usize| (0..index).all(|other| !specs[index].overlaps(specs[other]));
        assert!((0..specs.len()).all(is_apart), "prepared and overlapping: {:?}", self.prepared());
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

    /// Whatever happened: when nothing happens any more, the layout is in force as far as claims allow.
    fn comes_to_rest(&mut self) {
        self.keeps_counters = false;
        self.claims.retain(|_, it| it.is_allocated);
        for _ in 0..4 {
            self.now += SETTLE;
            self.decide();
            self.write();
        }
        let held = &self.prepared() | &self.allocated();
        let target = apply(&self.inventory, &self.layouts, &held).inventory;
        assert_eq!(self.published(), names(&target));
        assert!(self.pool().unwrap().is_open, "somebody can be given what is free");
    }
}

fn spec(kind: &DeviceKind) -> Option<&MigSpec> {
    match kind {
        DeviceKind::Mig(spec) => Some(spec),
        _ => None,
    }
}

/// Whether devices can exist on a GPU together.
fn can_exist(gpu: &GpuFacts, kinds: &[DeviceKind]) -> bool {
    let parts: Vec<(&Profile, Placement)> = kinds
        .iter()
        .filter_map(|it| Some((gpu.profile(spec(it)?.profile_id)?, spec(it)?.placement)))
        .collect();
    let whole = kinds.len() - parts.len();
    (whole == 0 || kinds.len() == 1) && exist_together(&gpu.mig.as_ref().unwrap().profiles, &parts)
}

/// What, which, and which other: any number will do, a smaller one shrinks better than an index.
type Step = (u8, u8, u8);

fn pick(number: u8, of: usize) -> usize {
    usize::from(number) % of
}

/// Plays what a fuzzer thinks of. With `is_wild`, schedulers give away anything, twice as well, whatever was published.
fn play(model: u8, steps: &[Step], has_gate: bool, is_wild: bool) {
    let models = mig_models();
    let mut world = World::new(models[pick(model, models.len())]);
    world.keeps_counters = has_gate && pick(model, 3) == 0;
    for &(what, which, other) in steps {
        match pick(what, if has_gate { 14 } else { 13 }) {
            0 => world.change_layout(which, other),
            1 => world.now += 1 + u64::from(which % 12),
            2 | 3 => world.end(which, other % 4),
            4 | 5 => world.prepare(which, is_wild),
            6 | 7 => world.decide(),
            8 => world.write(),
            // A restart at the worst moment, and a kubelet's, which deletes the slices of the node.
            9 if which % 3 == 0 => world.restart(),
            9 if which % 3 == 1 => world.show(None),
            9 => {
                world.show(None);
                world.restart();
            }
            13 => world.keeps_counters = !world.keeps_counters,
            _ if is_wild => {
                let all: Vec<String> = names(&world.inventory).into_iter().collect();
                world.claim(all[pick(which, all.len())].clone());
            }
            _ => world.allocate(which, other),
        }
        let allocated: Vec<String> =
            world.claims.values().filter(|it| it.is_allocated).map(|it| it.device.clone()).collect();
        assert!(is_wild || world.can_exist(&allocated), "allocated together: {allocated:?}");
        world.check_prepared();
    }
    if !is_wild {
        world.comes_to_rest();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, rng_seed: RngSeed::Fixed(4), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn late_schedulers_never_give_away_what_overlaps(
        model in any::<u8>(),
        steps in prop::collection::vec(any::<Step>(), 1..60),
    ) {
        play(model, &steps, false, false);
    }

    #[test]
    fn nor_when_the_gate_is_turned_on_and_off(
        model in any::<u8>(),
        steps in prop::collection::vec(any::<Step>(), 1..60),
    ) {
        play(model, &steps, true, false);
    }

    #[test]
    fn whatever_schedulers_give_away_nothing_that_overlaps_is_prepared(
        model in any::<u8>(),
        steps in prop::collection::vec(any::<Step>(), 1..60),
    ) {
        play(model, &steps, true, true);
    }
}

fn mig(name: &str) -> String {
    format!("gpu-0000-1a-00-mig-{name}")
}

/// A world with one H100 and this layout in force.
fn world(layout: &str) -> World {
    let mut world = World::new(Model::named("H100-80GB").unwrap());
    world.layouts = choose(Some(layout), None, &world.facts).unwrap();
    sync(&mut world);
    world
}

fn sync(world: &mut World) {
    world.decide();
    world.write();
}

#[test]
fn what_overlaps_appears_only_after_the_settle_time_and_what_does_not_at_once() {
    let mut world = world("all-1g.10gb");
    assert_eq!(world.published().len(), 7, "the first publication waits for nothing");
    world.layouts = choose(Some("all-balanced"), None, &world.facts).unwrap();
    world.now += 1;
    sync(&mut world);
    assert_eq!(world.published(), [mig("1g-10gb-2"), mig("1g-10gb-3")].into(), "the rest is withdrawn");
    world.now += SETTLE - 1;
    world.claim(mig("1g-10gb-6"));
    sync(&mut world);
    assert_eq!(world.published(), [mig("1g-10gb-6")].into(), "it is back, and the rest makes room for a 3g");
    world.now += 1;
    sync(&mut world);
    let around = [mig("1g-10gb-6"), mig("2g-20gb-4"), mig("3g-40gb-0")];
    world.now += SETTLE;
    sync(&mut world);
    assert_eq!(world.published(), around.into());
}

#[test]
fn a_pool_that_gets_or_loses_its_counters_is_closed_for_the_settle_time() {
    let mut world = world("all-1g.10gb");
    world.keeps_counters = true;
    world.now += SETTLE;
    sync(&mut world);
    let closed = world.pool().unwrap();
    assert_eq!((closed.devices.len(), closed.is_open), (7, false), "a scheduler may still act on the layout");
    world.now += SETTLE;
    sync(&mut world);
    assert_eq!(world.published().len(), 26);
    world.claim(mig("3g-40gb-4"));

    world.keeps_counters = false;
    sync(&mut world);
    let closed = Pool { devices: [mig("3g-40gb-4")].into(), is_counted: false, is_open: false };
    assert_eq!(world.pool(), Some(&closed));
    world.now += SETTLE - 1;
    sync(&mut world);
    assert_eq!(world.pool(), Some(&closed));
    world.now += 1;
    sync(&mut world);
    assert!(world.pool().unwrap().is_open);
    assert_eq!(world.published().len(), 5, "four small ones beside it");
}

#[test]
fn what_was_deleted_by_force_is_not_offered_beside_what_was_given_away_in_its_place() {
    let mut world = world("all-1g.10gb");
    world.keeps_counters = true;
    for _ in 0..2 {
        world.now += SETTLE;
        sync(&mut world);
    }
    world.claim(mig("3g-40gb-4"));
    world.prepare(0, false);
    world.end(0, 1);
    world.claim(mig("1g-10gb-6"));
    world.keeps_counters = false;
    sync(&mut world);
    assert_eq!(world.published(), [mig("1g-10gb-6")].into());
    world.prepare(0, false);
    assert_eq!(world.prepared(), [mig("3g-40gb-4")].into(), "the other one waits for it");
    world.end(0, 0);
    world.prepare(0, false);
    assert_eq!(world.prepared(), [mig("1g-10gb-6")].into());
}

#[test]
fn a_restart_behind_a_withdrawal_waits_as_the_process_before_would_have() {
    for is_wiped in [false, true] {
        let mut world = world("all-1g.10gb");
        world.layouts = choose(Some("all-disabled"), None, &world.facts).unwrap();
        sync(&mut world);
        assert_eq!(world.published(), BTreeSet::new());
        if is_wiped {
            world.show(None);
        }
        world.restart();
        world.claim(mig("1g-10gb-6"));
        world.now += SETTLE - 1;
        sync(&mut world);
        assert_eq!(world.published(), [mig("1g-10gb-6")].into());
        assert_eq!(world.pool().unwrap().is_open, !is_wiped, "of what was wiped nothing is known");
        world.now += SETTLE;
        sync(&mut world);
        assert_eq!(world.published(), [mig("1g-10gb-6")].into(), "the whole GPU waits for it");
        assert!(world.pool().unwrap().is_open);
    }
}
