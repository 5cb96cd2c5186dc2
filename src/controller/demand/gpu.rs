//! What is left of one GPU while pods are given devices in thought.

use std::cell::Cell;
use std::collections::BTreeMap;

use k8s_openapi::api::resource::v1::Counter;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::given::{Given, Room, Source, around};
use super::kind::{Choice, Kind, Set, members};
use super::world::{GpuState, Placed};

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
    /// UIDs of the claims that it is held back for, and what is not offered because of that.
    reserved: Vec<(String, Set)>,
}

impl<'w> GpuLedger<'w> {
    pub(super) fn new(state: &'w GpuState) -> Self {
        let kind = &*state.kind;
        let mut gpu = Self {
            state,
            kind,
            room: Room::empty(kind),
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

    /// The GPU as if what claims have of it was free and on offer; not if it is held back or has a problem.
    pub(super) fn emptied(&self) -> Self {
        let mut room = Room::empty(self.kind);
        room.open &= !self.foreign;
        let is_offered = !self.is_reserved() && !self.state.has_problem;
        room.published = if is_offered { room.open } else { 0 };
        Self { room, given: Vec::new(), before: None, reserved: Vec::new(), ..self.clone() }
    }

    fn position(&self, placed: &Placed) -> Option<usize> {
        self.kind.position(&placed.profile, placed.start)
    }

    pub(super) fn fits(&self, device: usize) -> bool {
        self.room.fits(self.kind, device)
    }

    fn take(&mut self, device: usize) {
        self.room.take(self.kind, device);
        self.is_used = true;
    }

    /// Gives a device to a pod that any of `equal` serves as well. What was given before makes room where it has to.
    pub(super) fn give(&mut self, device: usize, equal: Set, source: Source) {
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

    /// What holds of other claims keep from a claim: it can have what is published and not in their way.
    pub(super) fn barred(&self, uid: &str) -> Set {
        let others = self.reserved.iter().filter(|it| it.0 != uid);
        others.fold(0, |set, it| set | it.1 | !self.room.published)
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

    /// The node is about to offer a device: what it excludes is not there, and it is not given to a pod yet.
    pub(super) fn expect(&mut self, device: usize) {
        self.room.published &= !self.kind.conflicts[device];
        self.room.open &= !self.kind.conflicts[device] | 1 << device;
        self.room.coming |= 1 << device;
    }

    /// Keeps a device for a claim: the driver offers nothing there that is in the way of its profile, and changes the GPU for no
    /// demand.
    pub(super) fn reserve(&mut self, uid: &str, device: usize) {
        self.reserved.push((uid.to_owned(), self.kind.held_back[device]));
    }

    /// Keeps nothing for a claim any more.
    pub(super) fn release(&mut self, uid: &str) {
        self.reserved.retain(|it| it.0 != uid);
    }

    /// What is left is what is published and not in the way of a device's profile: nothing there changes for others.
    pub(super) fn close(&mut self, device: usize) {
        self.room.published &= !self.kind.held_back[device];
        self.room.open &= self.room.published;
        self.room.coming = 0;
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

    /// Whether anything is published that is in the way of a profile, wherever that is placed.
    pub(super) fn offers_in_the_way_of(&self, profile: &str) -> bool {
        let own = self.kind.devices.iter().position(|it| it.profile == profile);
        let held_back = own.map_or(Set::MAX, |it| self.kind.held_back[it]);
        let is_in_the_way = |it: usize| held_back >> it & 1 == 1;
        let mut others = self.state.published.iter().filter(|it| it.profile != profile);
        others.any(|it| match self.position(it) {
            Some(it) => is_in_the_way(it),
            None => own.is_none_or(|own| self.kind.overlapping(it.start, it.size) >> own & 1 == 1),
        })
    }

    /// The placement of a profile that is likely to be free first: the fewest claims stand in its way.
    pub(super) fn soonest(&self, profile: &str) -> Option<usize> {
        let all = self.kind.devices.iter().enumerate().filter(|(_, it)| it.profile == profile);
        let possible =
            all.filter_map(|(position, it)| Some((self.in_the_way(position)?, it.start, position)));
        possible.min_by_key(|(held, start, _)| (held.count_ones(), *start)).map(|it| it.2)
    }

    /// The best of these choices that a source has for a claim.
    pub(super) fn best(
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

    pub(super) fn score(&self, gpu: usize, choice: Choice, source: Source, fresh: bool) -> Score {
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
