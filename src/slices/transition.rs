//! The way from what is published to what is wanted, where no counters keep old and new devices apart. Pure.
//!
//! A scheduler may still give away what it saw a moment ago. So a device that goes is withdrawn first, and what would
//! overlap it appears only after it has been gone for a settle time and a read of the claims, begun after that, shows that
//! nobody took it. If somebody did, it is held, and then the caller wants it back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::inventory::{AllocatableDevice, GpuInventory, Inventory, fits_into};

/// Remembers what was withdrawn lately.
#[derive(Debug)]
pub struct Transition {
    settle: Duration,
    /// Withdrawn devices and when they were gone; `None` until the withdrawal is written.
    withdrawn: BTreeMap<String, Option<Instant>>,
    /// What was published last.
    seen: BTreeSet<String>,
    /// When this process first looked, if a driver before it may have withdrawn something a moment before.
    start: Option<Instant>,
    is_first: bool,
}

impl Transition {
    /// Starts without a past. `settle` is how long a scheduler may act on what it saw.
    #[must_use]
    pub fn new(settle: Duration) -> Self {
        Self { settle, withdrawn: BTreeMap::new(), seen: BTreeSet::new(), start: None, is_first: true }
    }

    /// What may be published now on the way to `target`.
    ///
    /// `all` is the inventory with its counters, `published` what the API server has (`None` where there is no pool), `held`
    /// what claims hold, prepared or allocated, and `read_at` when the read of the claims that `held` and `target` know of
    /// began.
    pub fn step(
        &mut self,
        all: &Inventory,
        target: &Inventory,
        published: Option<&BTreeSet<String>>,
        held: &BTreeSet<String>,
        read_at: Instant,
    ) -> Inventory {
        let wanted = names(target);
        let before: BTreeSet<String> = published.into_iter().flatten().chain(&self.seen).cloned().collect();
        if self.is_first && published.is_some() {
            self.start = Some(read_at);
        }
        self.is_first = false;
        for name in before.difference(&wanted) {
            self.withdrawn.entry(name.clone()).or_insert(None);
        }
        let is_settled = |since: Instant| since + self.settle <= read_at;
        self.withdrawn.retain(|_, since| !since.is_some_and(is_settled));
        self.start = self.start.filter(|it| !is_settled(*it));

        let gpus = target.gpus.iter().map(|gpu| {
            let full = all.gpus.iter().find(|it| it.counter_set == gpu.counter_set);
            let devices = full.map_or(Vec::new(), |full| self.allowed(full, gpu, &before, held, &wanted));
            GpuInventory { devices, ..gpu.clone() }
        });
        let next = Inventory { gpus: gpus.collect() };
        let now = names(&next);
        for name in before.difference(&now) {
            self.withdrawn.entry(name.clone()).or_insert(None);
        }
        self.withdrawn.retain(|name, _| !now.contains(name));
        self.seen = now;
        next
    }

    /// Takes note that what the last step said is written.
    pub fn written(&mut self, now: Instant) {
        for since in self.withdrawn.values_mut() {
            since.get_or_insert(now);
        }
    }

    /// Forgets what was withdrawn: counters keep everything apart now. `published` is what is published with them.
    pub fn counted(&mut self, published: BTreeSet<String>) {
        self.withdrawn.clear();
        self.start = None;
        self.seen = published;
        self.is_first = false;
    }

    /// What the last step published.
    #[must_use]
    pub fn published(&self) -> &BTreeSet<String> {
        &self.seen
    }

    /// When the next step can go further; `None` where no withdrawal is waited for.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        let since = self.withdrawn.values().copied().chain([self.start]);
        since.flatten().min().map(|it| it + self.settle)
    }

    /// The devices of a GPU that fit beside all that claims hold and all that may just have been given away.
    fn allowed(
        &self,
        full: &GpuInventory,
        target: &GpuInventory,
        before: &BTreeSet<String>,
        held: &BTreeSet<String>,
        wanted: &BTreeSet<String>,
    ) -> Vec<AllocatableDevice> {
        let mut room = full.counters.clone();
        let everything = || full.devices.iter().chain(&full.withheld);
        for device in everything() {
            let name = device.name.as_str();
            let may_be_taken = self.withdrawn.contains_key(name) && !wanted.contains(name);
            if may_be_taken || held.contains(name) {
                consume(&mut room, device);
            }
        }
        // What is published already has the first claim to what is left.
        let mut free: Vec<&AllocatableDevice> =
            target.devices.iter().filter(|it| !held.contains(it.name.as_str())).collect();
        free.sort_by_key(|it| !before.contains(it.name.as_str()));
        let mut allowed = held.clone();
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

/// Names of all devices that are offered.
#[must_use]
pub fn names(inventory: &Inventory) -> BTreeSet<String> {
    inventory.devices().map(|it| it.name.to_string()).collect()
}

fn consume(room: &mut BTreeMap<String, u32>, device: &AllocatableDevice) {
    for (counter, amount) in &device.consumes {
        if let Some(left) = room.get_mut(counter) {
            *left = left.saturating_sub(*amount);
        }
    }
}
