//! A node on which layouts, modes, drivers and kubelets change under schedulers that are late, down to what is prepared.
//!
//! A world is one GPU, the publishing step and the plan of a claim as the driver uses them, and schedulers of which each may act on
//! anything that was published less than the settle time ago.
//!
//! Longer than other files: it is one world, and each method is one kind of change in it.

use std::time::{Duration, Instant};

use k8s_openapi::api::resource::v1::{Counter, Device, ResourceSlice};
use mig_model::claim::ClaimRef;
use mig_model::inventory::{OfferPolicy, ProfileFilter};
use mig_model::slices::{CounterSupport, Gate, Gates, MEMORY, Pool, RESYNC};

use super::*;
use crate::checkpoint::{Record, RecordedKind};
use crate::claim::{AllocatedDevice, PlanContext, PlanError, plan};
use crate::publisher::tests::{Node, Rounds, Source};

pub(super) use crate::publisher::tests::SETTLE;

/// What the API server showed from a moment on.
struct View {
    since: u64,
    pool: Option<Pool>,
    counters: Counters,
}

/// The counters of a pool as kube-scheduler reads them, and what each of its devices consumes.
#[derive(Default)]
struct Counters {
    totals: Counts,
    costs: BTreeMap<String, Counts>,
}

impl Counters {
    fn of(slices: &[ResourceSlice]) -> Self {
        // The memory in MiB.
        let amount = |it: &Counter| match it.value.0.strip_suffix("Gi") {
            Some(gibibytes) => gibibytes.parse::<u32>().unwrap() << 10,
            None => it.value.0.trim_end_matches("Mi").parse().unwrap(),
        };
        let sets = slices.iter().flat_map(|it| it.spec.shared_counters.iter().flatten());
        let totals = sets.flat_map(|set| set.counters.iter().map(|(name, it)| (name.clone(), amount(it))));
        let cost = |it: &Device| {
            let sets = it.consumes_counters.iter().flatten();
            sets.flat_map(|set| set.counters.iter().map(|(name, it)| (name.clone(), amount(it)))).collect()
        };
        let devices = slices.iter().flat_map(|it| it.spec.devices.iter().flatten());
        Self { totals: totals.collect(), costs: devices.map(|it| (it.name.clone(), cost(it))).collect() }
    }

    /// Whether there is enough for all of these devices, as kube-scheduler asks for each candidate: of every counter.
    fn are_enough<'a>(&self, devices: impl IntoIterator<Item = &'a String>) -> bool {
        let mut consumed = Counts::new();
        for (name, amount) in devices.into_iter().filter_map(|it| self.costs.get(it)).flatten() {
            *consumed.entry(name.clone()).or_default() += amount;
        }
        consumed.iter().all(|(name, amount)| self.totals.get(name).is_some_and(|it| amount <= it))
    }
}

/// What the publisher has decided and not written yet.
struct Decided {
    is_counted: bool,
    /// Whether the node could describe its GPU.
    is_described: bool,
    /// What was allocated when the claims were read.
    allocated: BTreeSet<String>,
    /// What of it is not published, because the GPU is held back.
    hidden: BTreeSet<String>,
}

#[derive(Default)]
pub(super) struct Claim {
    pub(super) device: String,
    pub(super) is_allocated: bool,
    record: Option<Arc<Record>>,
}

pub(super) struct World {
    pub(super) facts: Vec<GpuFacts>,
    /// All that the GPU could ever be.
    pub(super) inventory: Arc<Inventory>,
    /// No claim is to be given more of the GPU.
    pub(super) is_unhealthy: bool,
    /// MIG instances that the driver did not make.
    pub(super) unmanaged: Vec<(Profile, Placement)>,
    /// There is one scheduler, which never goes back to what it saw before.
    pub(super) has_one_scheduler: bool,
    /// The view that a scheduler acted on last.
    acted_on: usize,
    /// The GPU does not answer since the driver started: the node cannot describe it.
    pub(super) is_lost: bool,
    /// What is left out where counters are kept.
    filter: ProfileFilter,
    pub(super) keeps_counters: bool,
    pub(super) rounds: Rounds,
    /// Devices have gone for another reason than a layout where counters are kept. Schedulers that have seen that and others
    /// that have not don't count the same devices for a while, so they may give away what overlaps; it must not be prepared.
    pub(super) may_overlap: bool,
    /// Claims had devices that overlap when what is published was decided: what is allocated stays.
    has_overlap: bool,
    /// Whether the driver has not decided anything yet.
    is_new: bool,
    decided: Option<Decided>,
    start: Instant,
    pub(super) now: u64,
    views: Vec<View>,
    /// By a number that is never used again.
    pub(super) claims: BTreeMap<usize, Claim>,
    /// Claims so far.
    count: usize,
}

impl World {
    pub(super) fn new(model: Model) -> Self {
        let facts = facts(model.name());
        Self {
            inventory: Arc::new(inventory_of(&facts, true, &BTreeSet::new())),
            is_unhealthy: false,
            unmanaged: Vec::new(),
            has_one_scheduler: false,
            acted_on: 0,
            is_lost: false,
            filter: ProfileFilter::default(),
            may_overlap: false,
            has_overlap: false,
            rounds: Rounds::with_layouts(default_layouts(&facts)),
            keeps_counters: false,
            is_new: true,
            decided: None,
            start: Instant::now(),
            now: 0,
            views: vec![View { since: 0, pool: None, counters: Counters::default() }],
            claims: BTreeMap::new(),
            count: 0,
            facts,
        }
    }

    fn at(&self, now: u64) -> Instant {
        self.start + Duration::from_secs(now)
    }

    pub(super) fn pool(&self) -> Option<&Pool> {
        self.views.last().unwrap().pool.as_ref()
    }

    pub(super) fn published(&self) -> BTreeSet<String> {
        self.pool().map_or(BTreeSet::new(), |it| it.devices.clone())
    }

    fn allocated(&self) -> BTreeSet<String> {
        self.claims.values().filter(|it| it.is_allocated).map(|it| it.device.clone()).collect()
    }

    fn records(&self) -> Vec<Arc<Record>> {
        self.claims.values().filter_map(|it| it.record.clone()).collect()
    }

    /// What the driver knows to be held without asking the API server.
    pub(super) fn prepared(&self) -> BTreeSet<String> {
        self.records().iter().flat_map(|it| &it.devices).map(|it| it.name.clone()).collect()
    }

    /// The GPU as the driver sees it.
    fn gpus(&self) -> Vec<Gpu> {
        if self.is_lost {
            return Vec::new();
        }
        let unmanaged: Vec<(&Profile, Placement)> = self.unmanaged.iter().map(|(it, at)| (it, *at)).collect();
        let mut gpus = gpus(&self.facts, true, &unmanaged);
        gpus[0].state.problem = self.is_unhealthy.then(|| "it is unhealthy".to_owned());
        gpus
    }

    /// What the GPU offers where these devices are held.
    fn offers(&self, held: &BTreeSet<String>) -> Arc<Inventory> {
        if !self.is_unhealthy && !self.is_lost && self.unmanaged.is_empty() {
            return Arc::clone(&self.inventory);
        }
        Arc::new(inventory(&NodeFacts::default(), &self.gpus(), held))
    }

    /// What is published with counters.
    fn counted(&self, held: &BTreeSet<String>) -> Arc<Inventory> {
        let all = self.offers(held);
        let all =
            if self.filter.is_everything() { all } else { Arc::new(all.with_profiles(&self.filter, held)) };
        let Some((gpu, profile)) = self.rounds.layout.held_back.first_key_value() else { return all };
        let mut offered = Inventory::clone(&all);
        let of_gpu = offered.gpus.iter_mut().filter(|it| it.counter_set == *gpu);
        of_gpu.for_each(|it| {
            it.devices.retain(|it| {
                !self.is_in_the_way(it, profile)
                    || held.contains(it.name.as_str()) && !self.is_hidden(it.name.as_str())
            });
        });
        Arc::new(offered)
    }

    /// Whether a device that claims hold is not published, because its GPU is held back for another profile.
    fn is_hidden(&self, device: &str) -> bool {
        let Some((gpu, profile)) = self.rounds.layout.held_back.first_key_value() else { return false };
        // Its taint has to be seen.
        if self.is_unhealthy {
            return false;
        }
        let found = self
            .inventory
            .gpus
            .iter()
            .filter(|it| it.counter_set == *gpu)
            .find_map(|it| it.devices.iter().chain(&it.withheld).find(|it| it.name.as_str() == device));
        found.is_some_and(|it| self.is_in_the_way(it, profile))
    }

    /// Whether a device shares a memory slice with a profile, wherever that is placed, and is no instance of it.
    fn is_in_the_way(&self, device: &AllocatableDevice, profile: &str) -> bool {
        let profiles = self.facts[0].mig.iter().flat_map(|it| &it.profiles);
        let mut placements = profiles.filter(|it| it.name == profile).flat_map(|it| &it.placements);
        match device.mig() {
            Some(own) if own.profile == profile => false,
            Some(own) => profile == "full" || placements.any(|it| it.overlaps(own.placement)),
            None => profile != "full",
        }
    }

    fn node(&self) -> (Node, Vec<Gpu>, OfferPolicy) {
        let held = self.prepared();
        let policy = OfferPolicy { held: held.clone(), ..OfferPolicy::default() };
        (Node { inventory: self.offers(&held), held, ..Node::default() }, self.gpus(), policy)
    }

    /// The first half of a round of the publisher: it reads and decides.
    pub(super) fn decide(&mut self) {
        self.write();
        // A driver that starts where the slices are gone and counters are kept trusts that no scheduler acts on a layout any more.
        if self.is_new && self.keeps_counters && self.pool().is_none() {
            self.now += SETTLE;
        }
        self.is_new = false;
        let (now, allocated, is_counted) = (self.at(self.now), self.allocated(), self.keeps_counters);
        let (node, gpus, policy) = self.node();
        self.rounds.decide(node, &Source { gpus: &gpus, policy }, is_counted, &allocated, now);
        let hidden = allocated.iter().filter(|it| self.is_hidden(it)).cloned().collect();
        self.decided = Some(Decided { is_counted, is_described: !self.is_lost, allocated, hidden });
    }

    /// The second half: it writes, if it has decided anything.
    pub(super) fn write(&mut self) {
        self.write_part(usize::MAX);
    }

    /// It writes so many slices at most, and then it fails.
    pub(super) fn write_part(&mut self, most: usize) {
        let Some(Decided { is_counted, is_described, allocated, hidden }) = self.decided.take() else {
            return;
        };
        let (before, is_whole) = (self.published(), most == usize::MAX);
        if !self.rounds.write(most, self.at(self.now)) {
            return;
        }
        let pool =
            self.rounds.pool().unwrap_or(Pool { devices: BTreeSet::new(), is_counted, is_open: false });
        // What was allocated and published stays, and without counters also what was not published, if the claims were read.
        for device in (&allocated - &hidden).intersection(&self.allocated()) {
            let is_found = is_whole && !is_counted && is_described && self.rounds.has_read();
            let is_shown = before.contains(device) || is_found;
            let is_usable = pool.is_open || is_whole;
            assert!(
                pool.devices.contains(device) || !is_shown || !is_usable || !self.can_exist(&allocated),
                "{device} is allocated and not in {:?}, was in {before:?}",
                pool.devices,
            );
        }
        // A write that fails leaves slices as they were.
        self.has_overlap = !self.can_exist(&allocated) || !is_whole && self.has_overlap;
        assert!(
            is_counted
                || pool.is_counted
                || !pool.is_open
                || self.can_exist(&pool.devices)
                || self.has_overlap,
            "published together: {:?}",
            pool.devices
        );
        self.show();
    }

    /// Schedulers can see what the API server has now.
    fn show(&mut self) {
        let counters = Counters::of(&self.rounds.slices);
        self.views.push(View { since: self.now, pool: self.rounds.pool(), counters });
    }

    /// The slices are deleted.
    pub(super) fn wipe(&mut self) {
        self.rounds.wipe();
        self.show();
    }

    /// Another process goes on, with other flags; the publisher's memory is lost, wherever it was, and with less than 128 what is on
    /// disk, too.
    pub(super) fn restart(&mut self, flags: u8) {
        let filter = ["", "!1g.*", "!*+me*,!full", "1g.*"][pick(flags, 4)].parse().unwrap();
        self.may_overlap |= filter != self.filter;
        self.filter = filter;
        self.rounds.settings.profiles = self.filter.clone();
        if flags < 128 {
            self.rounds.restart()
        } else {
            self.rounds.resume()
        }
        self.is_new = true;
        self.decided = None;
    }

    /// A scheduler gives a device away, from a pool that was the newest one less than the settle time ago.
    pub(super) fn allocate(&mut self, which: u8, age: u8) {
        let is_recent =
            |index: usize| self.views.get(index + 1).is_none_or(|next| self.now < next.since + SETTLE);
        let first = if self.has_one_scheduler { self.acted_on } else { 0 };
        let recent: Vec<usize> = (first..self.views.len()).filter(|it| is_recent(*it)).collect();
        let acted_on = recent[pick(age, recent.len())];
        let view = &self.views[acted_on];
        let Some(pool) = view.pool.as_ref().filter(|it| it.is_open) else { return };
        let allocated = self.allocated();
        // It counts what the devices of the pool take; what is allocated and not there costs nothing (kubernetes#140802).
        let fits = |it: &&String| view.counters.are_enough(allocated.iter().chain([*it]));
        let free: Vec<&String> = pool.devices.difference(&allocated).filter(fits).collect();
        if !free.is_empty() {
            let device = free[pick(which, free.len())].clone();
            self.acted_on = acted_on;
            self.claim(device);
        }
    }

    /// What a scheduler that is up to date can allocate now.
    pub(super) fn allocatable(&self) -> BTreeSet<String> {
        let (view, allocated) = (self.views.last().unwrap(), self.allocated());
        let Some(pool) = view.pool.as_ref().filter(|it| it.is_open) else { return BTreeSet::new() };
        let fits = |it: &&String| view.counters.are_enough(allocated.iter().chain([*it]));
        pool.devices.difference(&allocated).filter(fits).cloned().collect()
    }

    /// No counter that is published is below what allocated devices consume, so that the rest of the node can be allocated.
    pub(super) fn check_counters(&self) {
        let view = self.views.last().unwrap();
        let is_open = view.pool.as_ref().is_some_and(|it| it.is_open);
        assert!(
            !is_open || view.counters.are_enough(&self.allocated()),
            "counters {:?} are overdrawn by {:?} with costs {:?}",
            view.counters.totals,
            self.allocated(),
            view.counters.costs
        );
        let free = view.counters.costs.iter().find(|(name, cost)| {
            cost.is_empty() && self.inventory.device(name).is_some_and(|it| !it.consumes.is_empty())
        });
        let is_counted = view.pool.as_ref().is_some_and(|it| it.is_counted);
        assert!(!is_open || !is_counted || free.is_none(), "{free:?} is published without its cost");
    }

    /// How much a published device consumes of all counters together, the memory apart.
    pub(super) fn cost(&self, device: &str) -> u32 {
        let cost = &self.views.last().unwrap().counters.costs[device];
        cost.iter().filter(|(name, _)| *name != MEMORY).map(|(_, amount)| amount).sum()
    }

    /// Makes an instance where the hardware has room beside what is prepared, past the driver.
    pub(super) fn make_unmanaged(&mut self, which: u8) {
        let profiles = &self.facts[0].mig.as_ref().unwrap().profiles;
        let prepared = self.records();
        let prepared = prepared.iter().flat_map(|it| &it.devices);
        if prepared.clone().any(|it| !matches!(it.kind, RecordedKind::Mig { .. })) {
            return;
        }
        let mut live: Vec<(&Profile, Placement)> = self.unmanaged.iter().map(|(it, at)| (it, *at)).collect();
        live.extend(prepared.filter_map(|it| match &it.kind {
            RecordedKind::Mig { spec, .. } => {
                Some((profiles.iter().find(|it| it.id == spec.profile_id)?, spec.placement))
            }
            _ => None,
        }));
        let has_room = |it: &(&Profile, Placement)| {
            let all: Vec<_> = live.iter().copied().chain([*it]).collect();
            exist_together(profiles, &all)
        };
        let places = profiles.iter().flat_map(|it| it.placements.iter().map(move |at| (it, *at)));
        let free: Vec<(&Profile, Placement)> = places.filter(has_room).collect();
        if !free.is_empty() {
            let (profile, placement) = free[pick(which, free.len())];
            let made = (profile.clone(), placement);
            self.unmanaged.push(made);
        }
    }

    /// Whether the hardware has no room for a device beside the instances that the driver did not make.
    fn is_occupied(&self, device: &str) -> bool {
        let mut parts: Vec<(&Profile, Placement)> = self.unmanaged.iter().map(|(it, at)| (it, *at)).collect();
        let Some(spec) = self.inventory.device(device).and_then(|it| spec(&it.kind)) else {
            return !parts.is_empty();
        };
        let profiles = &self.facts[0].mig.as_ref().unwrap().profiles;
        parts.extend(profiles.iter().find(|it| it.id == spec.profile_id).map(|it| (it, spec.placement)));
        !exist_together(profiles, &parts)
    }

    pub(super) fn claim(&mut self, device: String) {
        self.claims.insert(self.count, Claim { device, is_allocated: true, record: None });
        self.count += 1;
    }

    /// The kubelet asks for a claim. A refusal names a claim that is not allocated any more, unless `is_wild`.
    pub(super) fn prepare(&mut self, which: u8, is_wild: bool) {
        let Some(number) = self.nth(which, |it| it.is_allocated && it.record.is_none()) else { return };
        let claim = ClaimRef::new("ns".into(), format!("c-{number}"), format!("{number}")).unwrap();
        let device = self.claims[&number].device.clone();
        if self.is_lost || self.is_occupied(&device) {
            return;
        }
        let allocated =
            AllocatedDevice { device, pool: "pool".into(), requests: Vec::new(), admin_access: false };
        let context = PlanContext { pool: "pool", inventory: &self.inventory, unread: "", boot_id: "boot" };
        match plan(&claim, &[allocated], context, &self.records()) {
            Ok(record) => self.claims.get_mut(&number).unwrap().record = Some(Arc::new(record)),
            Err(PlanError::Held(conflict)) => {
                let holder: usize = conflict.holder.uid.as_str().parse().unwrap();
                assert!(is_wild || self.may_overlap || !self.claims[&holder].is_allocated, "{conflict}");
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Ends the pods of a claim: it is unprepared, deallocated, or both, and gone when neither is left.
    pub(super) fn end(&mut self, which: u8, how: u8) {
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

    pub(super) fn can_exist<'a>(&self, devices: impl IntoIterator<Item = &'a String>) -> bool {
        let kinds = devices.into_iter().map(|it| self.inventory.device(it).unwrap().kind.clone());
        can_exist(&self.facts[0], &kinds.collect::<Vec<_>>())
    }

    /// What is prepared exists on the GPU.
    pub(super) fn check_prepared(&self) {
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

    pub(super) fn change_layout(&mut self, which: u8, other: u8) {
        let profiles = &self.facts[0].mig.as_ref().unwrap().profiles;
        let name = |it: u8| profiles[pick(it, profiles.len())].name.clone();
        let layout = match pick(which, 4) {
            0 => GpuLayout::Whole,
            _ => GpuLayout::Cut([(name(which), 7), (name(other), 2)].into()),
        };
        self.rounds.layout.layouts.values_mut().for_each(|it| *it = layout.clone());
    }

    /// The GPU is held back for one of its profiles.
    pub(super) fn hold_any(&mut self, which: u8) {
        let profiles = &self.facts[0].mig.as_ref().unwrap().profiles;
        let profile = profiles.get(pick(which, profiles.len() + 1)).map_or("full", |it| &it.name).to_owned();
        self.hold(&profile);
    }

    /// The GPU is held back for this profile.
    pub(super) fn hold(&mut self, profile: &str) {
        let gpu = self.inventory.gpus[0].counter_set.clone();
        self.end_hold();
        self.rounds.layout.held_back.insert(gpu, profile.to_owned());
    }

    /// The hold is over. A scheduler that has not seen the devices that come back does not count them.
    pub(super) fn end_hold(&mut self) {
        self.may_overlap |= !self.rounds.layout.held_back.is_empty();
        self.rounds.layout.held_back.clear();
    }

    /// Goes on by what wakes the driver, until nothing but the next comparison is left.
    pub(super) fn rest(&mut self, looks_anyway: bool) {
        self.write();
        let answer = if self.keeps_counters { CounterSupport::Pool } else { CounterSupport::Dropped };
        let gates = Gates { counters: Gate { answer: Some(answer), asked: None }, ..Gates::default() };
        let (node, gpus, policy) = self.node();
        if looks_anyway
            || self.rounds.is_news(&node, &Source { gpus: &gpus, policy }, &gates, self.at(self.now))
        {
            self.decide();
        }
        for _ in 0..10 {
            self.write();
            let wake = self.rounds.wake.map_or(0, |it| it.duration_since(self.at(self.now)).as_secs());
            if RESYNC.as_secs() <= wake {
                return;
            }
            self.now += wake;
            self.decide();
        }
        // What is allocated and not prepared is looked after for ever.
        self.write();
    }

    /// Whatever happened: when nothing happens any more, what is allocated is published, and the layout is in force as far as claims allow.
    pub(super) fn comes_to_rest(&mut self) {
        self.claims.retain(|_, it| it.is_allocated);
        // That a gate was turned, or slices deleted, is no news of the node.
        self.write();
        let before = self.published();
        self.rest(true);
        let mut held = &self.prepared() | &self.allocated();
        if self.is_lost {
            // Nothing describes what is not published.
            held = &held & &before;
        }
        // Counters keep those apart that do not fit beside each other: one is left out.
        let published = self.published();
        let is_left_out = |it: &&String| {
            let seen = held.intersection(&published).chain([*it]);
            !published.contains(*it) && self.keeps_counters && !self.can_exist(seen)
        };
        let left_out: BTreeSet<String> = held.iter().filter(is_left_out).cloned().collect();
        let mut held = &held - &left_out;
        held.retain(|it| !self.is_hidden(it));
        assert!(held.is_subset(&published), "{held:?} are allocated, not {published:?}");
        if self.keeps_counters && !self.is_lost {
            let wanted = &self.counted(&held).names() - &left_out;
            assert_eq!(published, wanted, "and the rest is as it is wanted");
        }
        if self.may_overlap || self.is_lost {
            return self.ends();
        }
        self.keeps_counters = false;
        self.rest(true);
        let held = &self.prepared() | &self.allocated();
        let (layouts, held_back) = (&self.rounds.layout.layouts, &self.rounds.layout.held_back);
        let target = apply_held_back(&self.offers(&held), layouts, held_back, &held).inventory;
        let mut expected = target.names();
        expected.retain(|it| !held.contains(it) || !self.is_hidden(it));
        assert_eq!(self.published(), expected);
        assert!(self.pool().unwrap().is_open, "free devices can be allocated");
        self.ends();
    }

    /// All claims end: what the node knows by itself, and the time, lead to what is published without any.
    fn ends(&mut self) {
        // No event says when a claim ends that was never prepared; the next comparison finds that.
        let is_unnoticed = self.claims.values().any(|it| it.record.is_none());
        self.claims.clear();
        self.rest(is_unnoticed);
        let nothing = BTreeSet::new();
        self.rounds.layout.held_back.clear();
        self.rest(true);
        let expected = match (self.is_lost, self.keeps_counters) {
            (true, _) => BTreeSet::new(),
            (false, true) => self.counted(&nothing).names(),
            (false, false) => {
                apply(&self.offers(&nothing), &self.rounds.layout.layouts, &nothing).inventory.names()
            }
        };
        assert_eq!(self.published(), expected, "without claims");
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

pub(super) fn pick(number: u8, of: usize) -> usize {
    usize::from(number) % of
}
