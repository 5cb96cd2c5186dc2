//! The way from what is published to what is wanted, where old and new devices may overlap. Pure.
//!
//! Several schedulers may have seen different things. So what leaves a pool is waited for: it counts as taken as long as it is
//! [`Withdrawn`]. If it was allocated, it is held, and then the caller wants it back.
//!
//! - Without counters, a device that goes is withdrawn first, and what would overlap it appears only after that.
//! - When counters come or go, any device may overlap what was given away on other terms. So the pool keeps what claims hold
//!   and is closed, which is to say incomplete: schedulers give nothing away from it until all have seen that. Where the
//!   process before has published no such device, there is nothing to close: what it withdrew is waited for.
//!
//! Refuses to guess what a driver before this one did: what it published when this process began is waited for as well.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::inventory::{AllocatableDevice, GpuInventory, Inventory, fits_into};

use super::pool::Pool;
use super::withdrawn::{Gone, Withdrawn};

/// Remembers what schedulers may still act on.
#[derive(Debug, Clone)]
pub(super) struct Transition {
    settle: Duration,
    /// Devices that are not published any more.
    withdrawn: Withdrawn,
    /// A pool in which devices were kept apart otherwise.
    other: Option<Gone>,
    /// How it was published; `None` before this process published anything.
    last: Option<Kind>,
    /// When this process first looked, if a driver before it may have withdrawn something a moment before.
    start: Option<Instant>,
    has_past: bool,
    /// Whether the process before is known to have withdrawn nothing.
    knows_past: bool,
}

/// How devices are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    ByCounters,
    ByLayout,
}

/// What claims have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held<'a> {
    /// Names of the devices that are prepared on the node.
    pub(super) prepared: &'a BTreeSet<String>,
    /// Names of the devices that the API server has as allocated.
    pub(super) allocated: &'a BTreeSet<String>,
    /// Those that are not published all the same.
    pub(super) hidden: &'a BTreeSet<String>,
    /// When the read that found them began.
    pub(super) read_at: Instant,
}

impl Held<'_> {
    fn contains(&self, name: &str) -> bool {
        self.prepared.contains(name) || self.allocated.contains(name)
    }

    fn is_allocated(&self, device: &AllocatableDevice) -> bool {
        self.allocated.contains(device.name.as_str())
    }
}

impl Transition {
    /// Starts without knowledge of what was before. `settle` is how long a scheduler may act on what it saw, `has_past` whether
    /// a driver was on this node before this process.
    #[must_use]
    pub(super) fn new(settle: Duration, has_past: bool) -> Self {
        let withdrawn = Withdrawn::default();
        Self { settle, withdrawn, other: None, last: None, start: None, has_past, knows_past: false }
    }

    /// How long a scheduler may act on what it saw.
    pub(super) fn settle(&self) -> Duration {
        self.settle
    }

    /// The process before has withdrawn nothing lately, and what it published is known.
    pub(super) fn know_the_past(&mut self) {
        self.knows_past = true;
    }

    /// What may be published without counters now, on the way to `target`.
    ///
    /// `all` is the inventory with its counters, `published` what the API server has (`None` where there is no pool), `before` what
    /// schedulers have seen, as far as this process knows.
    pub(super) fn step(
        &mut self,
        all: &Inventory,
        target: &Inventory,
        published: Option<&Pool>,
        before: &BTreeSet<String>,
        held: Held<'_>,
    ) -> Inventory {
        let read_at = held.read_at;
        let wanted = target.names();
        let is_first = self.last.is_none();
        if is_first && !self.knows_past && (published.is_some() || self.has_past) {
            self.start = Some(read_at);
        }
        // An open pool without counters needs no closing; what it had is withdrawn one by one.
        let is_other = match self.last {
            Some(kind) => kind == Kind::ByCounters,
            None => published.map_or(self.has_past, |it| !it.is_open),
        };
        if is_other || published.is_some_and(|it| it.is_counted) {
            self.other = Some(Gone::NotYet);
        }
        self.last = Some(Kind::ByLayout);
        self.withdrawn.add_missing(before, &wanted);
        self.forget_what_has_settled(read_at);

        let gpus = target.gpus.iter().map(|gpu| {
            let full = all.gpus.iter().find(|it| it.counter_set == gpu.counter_set);
            let mut devices = full.map_or(Vec::new(), |full| self.allowed(full, gpu, before, &held, &wanted));
            devices.retain(|it| !held.hidden.contains(it.name.as_str()));
            GpuInventory { devices, ..gpu.clone() }
        });
        let next = Inventory { gpus: gpus.collect() };
        let now = next.names();
        self.withdrawn.add_missing(before, &now);
        self.withdrawn.retain(|name| !now.contains(name));
        next
    }

    /// What may be published with counters now, on the way to everything in `all`; `None` where that is everything. `published` is
    /// what the API server has of devices that may overlap.
    pub(super) fn count(
        &mut self,
        all: &Inventory,
        published: Option<&Pool>,
        before: &BTreeSet<String>,
        held: &BTreeSet<String>,
        now: Instant,
    ) -> Option<Inventory> {
        let is_other = match self.last {
            Some(kind) => kind == Kind::ByLayout,
            None => published.is_some_and(|it| !it.is_open || !it.is_counted && !it.devices.is_empty()),
        };
        // Where nothing can overlap there are no counters.
        let overlaps = all.gpus.iter().any(|it| !it.counters.is_empty());
        if is_other && overlaps {
            self.other = Some(Gone::NotYet);
        }
        self.last = Some(Kind::ByCounters);
        self.forget_what_has_settled(now);
        if self.is_open() {
            return None;
        }
        let stays =
            |it: &&AllocatableDevice| before.contains(it.name.as_str()) || held.contains(it.name.as_str());
        let gpus = all.gpus.iter().map(|gpu| {
            let devices = gpu.devices.iter().filter(stays).cloned().collect();
            GpuInventory { devices, ..gpu.clone() }
        });
        Some(Inventory { gpus: gpus.collect() })
    }

    /// Takes note that what was decided last is written.
    pub(super) fn written(&mut self, now: Instant) {
        self.withdrawn.written(now);
        self.other.iter_mut().for_each(|it| it.written(now));
    }

    /// Whether anybody may be given anything of what is published.
    #[must_use]
    pub(super) fn is_open(&self) -> bool {
        self.other.is_none()
    }

    /// Whether layouts decided last what is published.
    pub(super) fn is_by_layout(&self) -> bool {
        self.last == Some(Kind::ByLayout)
    }

    /// When it can go further; `None` where nothing is waited for.
    #[must_use]
    pub(super) fn next(&self) -> Option<Instant> {
        let other = self.other.and_then(Gone::since);
        self.withdrawn.since().into_iter().chain(other).chain(self.start).min().map(|it| it + self.settle)
    }

    /// Whether something is waited for.
    pub(super) fn is_settling(&self) -> bool {
        !self.withdrawn.is_empty() || self.other.is_some() || self.start.is_some()
    }

    fn forget_what_has_settled(&mut self, now: Instant) {
        let settle = self.settle;
        self.withdrawn.settle(settle, now);
        self.other = self.other.filter(|it| !it.has_settled(settle, now));
        self.start = self.start.filter(|it| now < *it + settle);
    }

    /// The devices of a GPU that fit beside all that claims hold and all that may just have been given away.
    fn allowed(
        &self,
        full: &GpuInventory,
        target: &GpuInventory,
        before: &BTreeSet<String>,
        held: &Held<'_>,
        wanted: &BTreeSet<String>,
    ) -> Vec<AllocatableDevice> {
        let everything = || full.devices.iter().chain(&full.withheld);
        let mut room = full.counters.clone();
        let mut allowed = held.allocated.clone();
        everything().filter(|it| allowed.contains(it.name.as_str())).for_each(|it| consume(&mut room, it));
        // Prepared, but not allocated: its pod was deleted by force, and what overlaps it may have been given away since.
        let is_left_over =
            |it: &&AllocatableDevice| held.prepared.contains(it.name.as_str()) && !held.is_allocated(it);
        for device in everything().filter(is_left_over) {
            if fits_into(&device.consumes, &room) {
                allowed.insert(device.name.to_string());
            }
            consume(&mut room, device);
        }
        let is_withdrawn = |it: &&AllocatableDevice| {
            let name = it.name.as_str();
            self.withdrawn.has(name) && !wanted.contains(name) && !held.contains(name)
        };
        everything().filter(is_withdrawn).for_each(|it| consume(&mut room, it));
        // What is published already has the first claim to what is left.
        let mut free: Vec<&AllocatableDevice> =
            target.devices.iter().filter(|it| !held.contains(it.name.as_str())).collect();
        free.sort_by_key(|it| !before.contains(it.name.as_str()));
        for device in free {
            let Some(known) = everything().find(|it| it.name == device.name) else { continue };
            let may_come = self.start.is_none() || before.contains(device.name.as_str());
            if may_come && fits_into(&known.consumes, &room) {
                consume(&mut room, known);
                allowed.insert(known.name.to_string());
            }
        }
        target.devices.iter().filter(|it| allowed.contains(it.name.as_str())).cloned().collect()
    }
}

fn consume(room: &mut BTreeMap<String, u32>, device: &AllocatableDevice) {
    for (counter, amount) in &device.consumes {
        if let Some(left) = room.get_mut(counter) {
            *left = left.saturating_sub(*amount);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::PciAddress;
    use crate::inventory::{DeviceKind, DeviceName};

    const SETTLE: Duration = Duration::from_secs(10);
    const NEW: u8 = 1;
    const STAYS: u8 = 2;
    const GOES: u8 = 3;

    /// A GPU with so many engines, and devices that take one each.
    fn gpu(engines: u32, devices: &[u8]) -> Inventory {
        let device = |bus: &u8| AllocatableDevice {
            name: DeviceName::gpu(PciAddress { domain: 0, bus: *bus, device: 0 }),
            parent_uuid: "GPU-1".to_owned(),
            kind: DeviceKind::Gpu,
            attributes: BTreeMap::new(),
            capacities: BTreeMap::new(),
            consumes: [("engines".to_owned(), 1)].into(),
        };
        let counters = [("engines".to_owned(), engines)].into();
        let devices = devices.iter().map(device).collect();
        let counter_set = "gpu".to_owned();
        Inventory { gpus: vec![GpuInventory { counter_set, counters, devices, ..GpuInventory::default() }] }
    }

    /// One step of which all is written at once; what is published then.
    fn step(
        transition: &mut Transition,
        engines: u32,
        wanted: &[u8],
        before: &BTreeSet<String>,
        now: Instant,
    ) -> BTreeSet<String> {
        let nothing = BTreeSet::new();
        let held = Held { prepared: &nothing, allocated: &nothing, hidden: &nothing, read_at: now };
        let pool = Pool { devices: before.clone(), is_counted: false, is_open: true };
        let all = gpu(engines, &[NEW, STAYS, GOES]);
        let next = transition.step(&all, &gpu(engines, wanted), Some(&pool), before, held);
        transition.written(now);
        next.names()
    }

    #[test]
    fn a_published_device_stays_where_what_goes_leaves_no_room_for_a_new_one_beside_it() {
        let (mut transition, start) = (Transition::new(SETTLE, false), Instant::now());
        let before = gpu(2, &[STAYS, GOES]).names();
        assert_eq!(step(&mut transition, 2, &[STAYS, GOES], &before, start), before);
        let next = step(&mut transition, 2, &[NEW, STAYS], &before, start + SETTLE);
        assert_eq!(next, gpu(2, &[STAYS]).names());
    }

    #[test]
    fn a_device_that_has_to_go_although_it_is_wanted_is_waited_for_as_any_other() {
        let (mut transition, start) = (Transition::new(SETTLE, false), Instant::now());
        let before = gpu(2, &[STAYS, GOES]).names();
        let next = step(&mut transition, 2, &[STAYS], &before, start);
        assert_eq!(next, gpu(2, &[STAYS]).names());
        // An unmanaged instance takes one engine.
        let next = step(&mut transition, 1, &[STAYS], &next, start + SETTLE / 2);
        assert_eq!(next, BTreeSet::new());
        let next = step(&mut transition, 1, &[NEW], &next, start + SETTLE);
        assert_eq!(next, BTreeSet::new(), "a scheduler may just have allocated it");
        let next = step(&mut transition, 1, &[NEW], &next, start + 2 * SETTLE);
        assert_eq!(next, gpu(1, &[NEW]).names());
    }
}
