//! What is left of nodes while pods are given devices in thought.

use std::cell::Cell;
use std::collections::BTreeMap;

use k8s_openapi::api::resource::v1::Counter;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::jiff::Timestamp;

use super::given::{Given, Room, around};
use super::kind::{Choice, Kind, Set, members};
use super::world::{GpuState, NodeState, Placed, Profiles, Progress};

/// How a device is had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Source {
    /// It is offered.
    Published,
    /// The node is about to publish it.
    Coming,
    /// The node would have to change.
    Change,
}

/// How good a device is for a request; the lower, the better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Score {
    /// Alternative of the request.
    alternative: u8,
    size: u32,
    /// Whether a GPU that is whole or free would be cut.
    cuts: bool,
    /// Whether what other pods count on has to make room.
    moves: bool,
    /// Free devices that are offered no more.
    withdrawn: u32,
    /// Whether the node has not been changed in this round.
    fresh: bool,
    /// What is still possible on the GPU: full GPUs first.
    open: u32,
    blocks: u32,
    /// Higher starts first.
    end: u32,
    pub(super) gpu: u32,
    pub(super) device: u32,
}

/// A hold of another claim: what it keeps free.
#[derive(Debug, Clone)]
struct Reserved {
    claim: String,
    devices: Set,
}

/// One GPU.
#[derive(Debug, Clone)]
pub(super) struct GpuLedger<'w> {
    pub(super) state: &'w GpuState,
    pub(super) kind: &'w Kind,
    pub(super) room: Room,
    /// What pods count on, and what there was before the first of them.
    given: Vec<Given>,
    before: Option<Box<Room>>,
    /// Devices that do not fit in, wherever the given ones are.
    excluded: Cell<Set>,
    /// Devices that claims have now.
    pub(super) held: Set,
    /// What cannot be had as long as an instance that is no possible device exists.
    foreign: Set,
    /// Whether anything of it is held or given.
    pub(super) is_used: bool,
    reserved: Vec<Reserved>,
}

impl<'w> GpuLedger<'w> {
    fn new(state: &'w GpuState) -> Self {
        let kind = &*state.kind;
        let all = match kind.devices.len() {
            128.. => Set::MAX,
            count => (1 << count) - 1,
        };
        let mut gpu = Self {
            state,
            kind,
            room: Room { open: all, left: kind.totals.clone(), published: 0, coming: 0, floor: 0 },
            given: Vec::new(),
            before: None,
            excluded: Cell::new(0),
            held: 0,
            foreign: 0,
            is_used: false,
            reserved: Vec::new(),
        };
        for placed in &state.held {
            match gpu.position(placed) {
                Some(device) => {
                    gpu.held |= 1 << device;
                    gpu.take(device);
                }
                None => {
                    gpu.foreign |= kind.overlapping(placed.start, placed.size);
                    gpu.room.open &= !gpu.foreign;
                    gpu.is_used = true;
                }
            }
        }
        // What was read a moment ago may be allocated by now.
        gpu.room.published =
            state.published.iter().filter_map(|it| gpu.position(it)).fold(0, |set, it| set | 1 << it);
        gpu.room.published &= gpu.room.open;
        if state.has_problem {
            gpu.room.open &= gpu.room.published;
        }
        gpu
    }

    fn position(&self, placed: &Placed) -> Option<usize> {
        self.kind.position(&placed.profile, placed.start)
    }

    fn fits(&self, device: usize) -> bool {
        self.room.fits(self.kind, device)
    }

    fn take(&mut self, device: usize) {
        self.room.take(self.kind, device);
        self.is_used = true;
    }

    /// Gives a device to a pod that any of `equal` serves as well. What was given before makes room where it has to.
    fn give(&mut self, device: usize, equal: Set, source: Source) {
        if source == Source::Change
            && !self.fits(device)
            && let Some(room) = &self.before
            && let Some(places) = around(device, &self.given, room, self.kind)
        {
            self.room = (**room).clone();
            for (given, place) in self.given.iter_mut().zip(places) {
                given.device = place;
                self.room.take(self.kind, place);
            }
        }
        self.before.get_or_insert_with(|| Box::new(self.room.clone()));
        self.given.push(Given { device, equal: equal | 1 << device, source });
        self.take(device);
    }

    /// Whether a change brings a device once what was given makes room.
    fn fits_around(&self, device: usize) -> bool {
        let Some(room) = &self.before else { return false };
        if self.excluded.get() >> device & 1 == 1 {
            return false;
        }
        let fits = around(device, &self.given, room, self.kind).is_some();
        if !fits {
            self.excluded.set(self.excluded.get() | 1 << device);
        }
        fits
    }

    /// What holds of other claims keep from a claim.
    pub(super) fn barred(&self, uid: &str) -> Set {
        let others = self.reserved.iter().filter(|it| it.claim != uid);
        others.fold(0, |set, it| set | it.devices)
    }

    /// Devices that a change of the GPU could bring: the floor and what other pods are about to get stay as they are.
    pub(super) fn changeable(&self) -> Set {
        let brings = |it: &usize| self.room.may_bring(self.kind, *it);
        members(self.room.open).filter(brings).fold(0, |set, it| set | 1 << it)
    }

    /// What is left of the counters; `None` where nothing overlaps. Counters of which a GPU has one are left where a device that
    /// needs them is open.
    pub(super) fn counters_left(&self) -> Option<BTreeMap<String, Counter>> {
        let names = &self.kind.counters;
        (!names.is_empty()).then(|| {
            let mut left: BTreeMap<String, Counter> = BTreeMap::new();
            let amount = |it: i64| Counter { value: Quantity(it.to_string()) };
            for (name, column) in names {
                let value = column.map_or(1, |it| self.room.left[it]);
                left.insert(name.clone(), amount(value));
            }
            left
        })
    }

    /// Keeps free what stands in the way of a profile, and the profile itself.
    pub(super) fn reserve(&mut self, uid: &str, device: usize) {
        let devices = self.kind.conflicts[device];
        self.reserved.push(Reserved { claim: uid.to_owned(), devices });
    }

    /// Nothing of it is left.
    pub(super) fn close(&mut self) {
        (self.room.open, self.room.published, self.room.coming) = (0, 0, 0);
        // Nor does what was given make room.
        self.before = None;
    }

    pub(super) fn is_reserved(&self) -> bool {
        !self.reserved.is_empty()
    }

    /// Allocated devices that stand in the way of a device; `None` where it cannot be had at all.
    pub(super) fn in_the_way(&self, device: usize) -> Option<Set> {
        let conflicts = self.kind.conflicts[device];
        (self.foreign & conflicts == 0 && !self.state.has_problem).then_some(self.held & conflicts)
    }

    /// The placement of a profile that is likely to be free first: the fewest claims stand in its way.
    pub(super) fn soonest(&self, profile: &str) -> Option<usize> {
        let all = self.kind.devices.iter().enumerate().filter(|(_, it)| it.profile == profile);
        let possible =
            all.filter_map(|(position, it)| Some((self.in_the_way(position)?, it.start, position)));
        possible.min_by_key(|(held, start, _)| (held.count_ones(), *start)).map(|it| it.2)
    }

    /// The best of these choices that a source has for a claim.
    fn best(
        &self,
        gpu: usize,
        choices: &[Choice],
        (source, fresh): (Source, bool),
        claim: &str,
    ) -> Option<Score> {
        let from = match source {
            Source::Published => self.room.published,
            Source::Coming => self.room.coming,
            Source::Change => Set::MAX,
        };
        if from == 0 {
            return None;
        }
        let from = from & !self.barred(claim);
        let choices = || choices.iter().filter(|it| from >> it.device & 1 == 1);
        let can = |device: usize| match source {
            Source::Published | Source::Coming => self.fits(device),
            Source::Change => self.room.may_bring(self.kind, device),
        };
        let score = |it: &Choice| self.score(gpu, *it, source, fresh);
        let best = choices().filter(|it| can(usize::from(it.device))).map(score).min();
        if best.is_some() || source != Source::Change {
            return best;
        }
        let around = choices().filter(|it| self.fits_around(usize::from(it.device)));
        around.map(|it| Score { moves: true, ..score(it) }).min()
    }

    fn score(&self, gpu: usize, choice: Choice, source: Source, fresh: bool) -> Score {
        let device = usize::from(choice.device);
        let of = &self.kind.devices[device];
        let withdrawn = self.room.published & self.kind.conflicts[device] & !(1 << device);
        let changes = source == Source::Change;
        let number = |it: usize| u32::try_from(it).unwrap_or(u32::MAX);
        Score {
            alternative: choice.alternative,
            size: of.size,
            cuts: !self.is_used && of.size < self.kind.largest,
            moves: false,
            withdrawn: if changes { withdrawn.count_ones() } else { 0 },
            fresh: changes && fresh,
            open: self.room.open.count_ones(),
            blocks: self.kind.blocks[device],
            end: u32::MAX - of.start,
            gpu: number(gpu),
            device: u32::from(choice.device),
        }
    }
}

/// One node.
#[derive(Debug, Clone)]
pub(super) struct NodeLedger<'w> {
    pub(super) state: &'w NodeState,
    /// Whether the state is what was written, and not yet what the world shows.
    pub(super) is_unseen: bool,
    pub(super) gpus: Vec<GpuLedger<'w>>,
    /// Whether it may be changed now.
    pub(super) may_change: bool,
    /// Whether it is changed in this round.
    pub(super) changes: bool,
    /// What pods count on here.
    pub(super) counted_on: Profiles,
    /// Rises when something is taken.
    pub(super) version: u32,
}

impl<'w> NodeLedger<'w> {
    /// The node, with holds in force and what it is about to publish.
    pub(super) fn new(state: &'w NodeState, is_counted_on: bool, may_change: bool, now: Timestamp) -> Self {
        let mut node = Self {
            state,
            is_unseen: false,
            gpus: state.gpus.iter().map(GpuLedger::new).collect(),
            may_change,
            changes: false,
            counted_on: Profiles::new(),
            version: 0,
        };
        for hold in state.holds.iter().filter(|it| now < it.until) {
            if let Some(gpu) = node.gpus.iter_mut().find(|it| it.state.name == hold.gpu)
                && let Some(device) = gpu.soonest(&hold.profile)
            {
                gpu.reserve(&hold.claim.uid, device);
            }
        }
        node.keep_floor();
        if is_counted_on
            && state.progress == Progress::Pending
            && let Some(demand) = &state.demand
        {
            node.expect(&demand.profiles);
        }
        node
    }

    /// Keeps what the floor needs: what is published first, then what fits.
    fn keep_floor(&mut self) {
        if self.state.floor.is_empty() || self.state.counts {
            return;
        }
        for (profile, count) in &self.state.floor {
            let is = |kind: &Kind, it: usize| kind.devices[it].profile == *profile;
            let held: usize =
                self.gpus.iter().map(|gpu| members(gpu.held).filter(|it| is(gpu.kind, *it)).count()).sum();
            let mut missing = (*count as usize).saturating_sub(held);
            for gpu in &mut self.gpus {
                for device in members(gpu.room.published).filter(|it| is(gpu.kind, *it)).take(missing) {
                    gpu.room.floor |= 1 << device;
                    missing -= 1;
                }
            }
            for _ in 0..missing {
                let Some(score) = self.best_of_profile(profile) else { break };
                let gpu = &mut self.gpus[score.gpu as usize];
                // No change takes its place; what is published there now can still be allocated.
                gpu.room.open &= !(gpu.kind.conflicts[score.device as usize] & !gpu.room.published);
            }
        }
    }

    /// Takes note of what a demand lets the node publish.
    fn expect(&mut self, demand: &BTreeMap<String, u32>) {
        // The largest first: what is small finds its place beside them.
        let size = |profile: &str| {
            let all = self.gpus.iter().flat_map(|it| &it.kind.devices);
            all.filter(|it| it.profile == profile).map(|it| it.size).max()
        };
        let mut order: Vec<(&String, &u32)> = demand.iter().collect();
        order.sort_by_key(|it| std::cmp::Reverse(size(it.0)));
        for (profile, count) in order {
            let is = |kind: &Kind, it: usize| kind.devices[it].profile == *profile;
            let free = self
                .gpus
                .iter()
                .map(|gpu| members(gpu.room.published).filter(|it| is(gpu.kind, *it)).count());
            let missing = (*count as usize).saturating_sub(free.sum());
            for _ in 0..missing {
                let Some(score) = self.best_of_profile(profile) else { break };
                let (gpu, device) = (&mut self.gpus[score.gpu as usize], score.device as usize);
                // It is not given to anybody yet: what it excludes is not there, it is.
                gpu.room.published &= !gpu.kind.conflicts[device];
                gpu.room.open &= !gpu.kind.conflicts[device] | 1 << device;
                gpu.room.coming |= 1 << device;
            }
        }
    }

    fn best_of_profile(&self, profile: &str) -> Option<Score> {
        let all = self.gpus.iter().enumerate().flat_map(|(position, gpu)| {
            let devices = gpu.kind.devices.iter().enumerate().filter(|(_, it)| it.profile == *profile);
            devices
                .filter(|(it, _)| {
                    gpu.fits(*it)
                        && (gpu.room.published | gpu.room.coming) >> *it & 1 == 0
                        && (gpu.room.floor | gpu.room.coming) & gpu.kind.conflicts[*it] == 0
                })
                .filter_map(move |(it, _)| {
                    let choice = Choice { alternative: 0, device: u8::try_from(it).ok()? };
                    Some(gpu.score(position, choice, Source::Change, false))
                })
        });
        all.min()
    }

    /// The best device of a source for a claim that takes any of these, by kind of GPU.
    pub(super) fn best<'a>(
        &self,
        choices: impl Fn(&'w Kind) -> &'a [Choice],
        source: Source,
        claim: &str,
    ) -> Option<Score> {
        let fresh = !self.changes;
        let gpus = self.gpus.iter().enumerate().filter(|_| source != Source::Change || !self.state.counts);
        gpus.filter_map(|(position, gpu)| gpu.best(position, choices(gpu.kind), (source, fresh), claim)).min()
    }

    /// Gives a device to a pod.
    pub(super) fn give(&mut self, gpu: usize, device: usize, source: Source) {
        self.give_equal(gpu, device, 0, source);
    }

    /// Gives a device to a claim that others of these choices may serve as well.
    pub(super) fn give_one_of<'a>(
        &mut self,
        gpu: usize,
        device: usize,
        choices: impl Fn(&'w Kind) -> &'a [Choice],
        (source, claim): (Source, &str),
    ) {
        let ledger = &self.gpus[gpu];
        let rank = |it: &Choice| (it.alternative, &ledger.kind.devices[usize::from(it.device)].profile);
        let choices = choices(ledger.kind);
        let chosen = choices.iter().find(|it| usize::from(it.device) == device).map(rank);
        let equal = choices.iter().filter(|it| Some(rank(it)) == chosen);
        let equal = equal.fold(0, |set, it| set | 1 << it.device) & !ledger.barred(claim);
        self.give_equal(gpu, device, equal, source);
    }

    fn give_equal(&mut self, gpu: usize, device: usize, equal: Set, source: Source) {
        let ledger = &mut self.gpus[gpu];
        ledger.give(device, equal, source);
        let profile = &ledger.kind.devices[device].profile;
        match self.counted_on.get_mut(profile) {
            Some(count) => *count += 1,
            None => drop(self.counted_on.insert(profile.clone(), 1)),
        }
        self.changes |= source == Source::Change;
        self.version += 1;
    }
}
