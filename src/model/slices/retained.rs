//! What stays published for no other reason than that it is allocated: an allocated device is never withdrawn.
//!
//! A device that vanishes from its slice while a claim has it looks free to the scheduler (kubernetes#140802). What is
//! prepared is known on the node. That something is allocated and not prepared yet only the API server knows, so it is asked
//! where something is about to go: the GPU became unhealthy, a filter leaves the profile out, an instance or a GPU is not there
//! any more. A scheduler may still allocate what it saw a moment before. So the claims are read once more when the device has
//! been gone for the settle time, and one that was allocated all the same comes back.
//!
//! While an allocated device is not published, its counters look free, so what overlaps it may be allocated as well. With both
//! published, a counter would be below what they consume, and kube-scheduler would refuse every device of the pool. So:
//!
//! - A free device that was withdrawn comes back only after a read of the claims, begun after it has been gone for the settle
//!   time, shows that it is free.
//! - An allocated one comes back when nothing else of its GPU can be allocated: the free devices are withdrawn for a settle
//!   time first, and then all allocations are known.
//! - A device that a hold hides, with what it takes of the counters, was never free: it comes back at once, see `layout::holds`.
//! - Where allocated devices overlap then, one of them is left out, see `leave_out`, until there is room for it beside the others.
//!   A device is never published without its cost, because a scheduler could allocate it at any time after its release.
//!
//! Pure. Refuses to ask where nothing could come of the answer: it is a list of all claims of the cluster.

mod pause;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::inventory::{AllocatableDevice, GpuInventory, Inventory, fits_into};
use crate::layout::HeldBack;
use k8s_openapi::api::resource::v1::ResourceSlice;

use super::leave_out::leave_out;
use super::withdrawn::{Gone, Withdrawn};

/// Remembers what stays, and until when something may have to come back.
#[derive(Debug, Clone)]
pub(super) struct RetainedDevices {
    settle: Duration,
    /// Devices that stay.
    taken: BTreeSet<String>,
    /// Those of them that were prepared when the claims were read: until that ends, they need not be read again.
    prepared: BTreeSet<String>,
    /// Allocated devices that are not published, and of which no counter has what they take.
    reserved: BTreeSet<String>,
    /// What claims have by the last read, as long as that is a settle time old at most.
    allocated: BTreeSet<String>,
    /// Allocated devices for which there is no room beside others that are allocated.
    left_out: BTreeSet<String>,
    /// Devices that are not published any more, until a read shows whether they were allocated at the last moment.
    withdrawn: Withdrawn,
    /// When this process first looked, if it found slices: a process before it may just have withdrawn what is not in them.
    start: Option<Instant>,
    has_looked: bool,
    /// The same from when the node has devices, and until what is not published is known to be free or allocated.
    began: Option<Instant>,
    /// When the read that found them began.
    read_at: Option<Instant>,
    gone: Option<Gone>,
    has_past: bool,
}

/// Names of devices, and where those that are published come from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Devices<'a> {
    /// What is offered whatever the API server says.
    pub(super) offered: &'a BTreeSet<String>,
    /// What else the node has and could offer.
    pub(super) withheld: &'a BTreeSet<String>,
    /// What is published.
    pub(super) published: &'a BTreeSet<String>,
    /// What claims hold and a hold hides.
    pub(super) hidden: &'a BTreeSet<String>,
    /// What is prepared.
    pub(super) prepared: &'a BTreeSet<String>,
    /// Whether counters are kept; layouts see to what they withdraw.
    pub(super) is_counted: bool,
    /// Whether there are no slices, not even empty ones.
    pub(super) is_wiped: bool,
}

impl RetainedDevices {
    /// Starts without knowledge of what was before. `settle` is how long a scheduler may act on what it saw, `has_past` whether
    /// a driver was on this node before this process: it may have withdrawn something a moment ago.
    #[must_use]
    pub(super) fn new(settle: Duration, has_past: bool) -> Self {
        Self {
            settle,
            taken: BTreeSet::new(),
            prepared: BTreeSet::new(),
            reserved: BTreeSet::new(),
            allocated: BTreeSet::new(),
            left_out: BTreeSet::new(),
            withdrawn: Withdrawn::default(),
            start: None,
            has_looked: false,
            began: None,
            read_at: None,
            gone: None,
            has_past,
        }
    }

    /// Whether the claims have to be read, and passed to [`RetainedDevices::found`], before anything is published: where something goes
    /// of which that is not known, and when it is time to look again.
    pub(super) fn asks(&mut self, devices: Devices<'_>, now: Instant) -> bool {
        if !std::mem::replace(&mut self.has_looked, true) {
            self.start = Some(now).filter(|_| !devices.is_wiped);
        }
        // Before NVML works there is nothing that could come back.
        let has_any = !devices.offered.is_empty() || !devices.withheld.is_empty();
        let is_first = has_any && self.has_past;
        let is_empty = devices.published.is_empty();
        // Also what a hold hid that this process does not know of yet is missing then.
        let is_all = devices.withheld.is_empty() && devices.offered.is_subset(devices.published);
        if is_first {
            self.gone = Some(Gone::Since(now));
            self.began = self.start.filter(|_| !is_all);
        }
        // Where all is offered, nothing can come back.
        if devices.withheld.is_empty() && self.gone.is_some_and(|it| it.has_settled(self.settle, now)) {
            self.gone = None;
        }
        // What comes back makes free devices go, of which some may be allocated.
        let held = devices.prepared.union(&self.allocated);
        let returns = !is_empty && {
            let is_missing = |it: &&String| !devices.published.contains(*it) && !self.left_out.contains(*it);
            let mut missing = held.filter(is_missing);
            missing.any(|it| devices.offered.contains(it))
        };
        // What a hold hides goes although it is allocated; also after a write that failed.
        let stays = |it: &String| self.taken.contains(it) && !devices.hidden.contains(it);
        let goes = devices.published.difference(devices.offered).any(|it| !stays(it));
        let is_over = |it: &String| !devices.prepared.contains(it) || devices.offered.contains(it);
        let asks = goes
            || returns
            || self.prepared.iter().any(is_over)
            || is_first && (is_empty || !devices.withheld.is_empty() || devices.is_counted && !is_all)
            || self.next().is_some_and(|it| it <= now);
        if is_first && !asks {
            self.has_past = false;
        }
        // Beside what is hidden, what is allocated keeps its share of the counters.
        if !asks && self.next().is_none() && devices.hidden.is_empty() {
            self.allocated.clear();
        }
        asks
    }

    /// Takes note of what claims have, by a read that began at `read_at`.
    pub(super) fn found(&mut self, allocated: &BTreeSet<String>, devices: Devices<'_>, read_at: Instant) {
        // Also what was withdrawn and that the node cannot describe now: its GPU may come back.
        let is_known = |it: &String| self.withdrawn.has(it) || self.taken.contains(it);
        let is_possible =
            |it: &&String| devices.published.contains(*it) || devices.withheld.contains(*it) || is_known(it);
        self.taken = allocated.difference(devices.offered).filter(is_possible).cloned().collect();
        self.prepared = &self.taken & devices.prepared;
        self.allocated.clone_from(allocated);
        self.has_past = false;
        self.read_at = Some(read_at);
        self.gone = self.gone.filter(|it| !it.has_settled(self.settle, read_at));
        self.began = self.began.filter(|it| read_at < *it + self.settle);
        self.withdrawn.settle(self.settle, read_at);
        let goes = devices.published.difference(devices.offered).filter(|it| !self.taken.contains(*it));
        self.withdrawn.add(goes);
    }

    /// What of the offer may be published now where counters keep devices apart. `before` is what is published, `prepared`
    /// what is prepared on the node, `held_back` GPUs on which a claim has its turn.
    pub(super) fn show<'i>(
        &mut self,
        offered: &'i Inventory,
        before: &BTreeSet<String>,
        prepared: &BTreeSet<String>,
        held_back: &HeldBack,
    ) -> Cow<'i, Inventory> {
        let mut shown = Cow::Borrowed(offered);
        self.left_out.clear();
        self.reserved.retain(|it| !before.contains(it));
        for (index, gpu) in offered.gpus.iter().enumerate().filter(|(_, it)| !it.counters.is_empty()) {
            let crowded_out = self.crowded_out(gpu, before, prepared);
            let mut devices = self.shown_of(gpu, before, prepared, &crowded_out);
            if held_back.contains_key(&gpu.counter_set) {
                self.hide(gpu, before, prepared);
                self.pause(gpu, prepared, &mut devices);
            }
            self.left_out.extend(crowded_out);
            if devices.len() < gpu.devices.len() {
                let shown_names = devices.iter().map(|it| it.name.to_string()).collect();
                let hidden =
                    gpu.devices.iter().map(|it| it.name.to_string()).filter(|it| before.contains(it));
                self.withdrawn.add_missing(&hidden.collect(), &shown_names);
                shown.to_mut().gpus[index] = GpuInventory { devices, ..gpu.clone() };
            }
        }
        let is_shown = shown.names();
        self.withdrawn.retain(|name| !is_shown.contains(name));
        shown
    }

    fn shown_of(
        &self,
        gpu: &GpuInventory,
        before: &BTreeSet<String>,
        prepared: &BTreeSet<String>,
        crowded_out: &BTreeSet<String>,
    ) -> Vec<AllocatableDevice> {
        let is_in = |names: &BTreeSet<String>, it: &AllocatableDevice| names.contains(it.name.as_str());
        let is_held = |it: &AllocatableDevice| is_in(prepared, it) || is_in(&self.allocated, it);
        let is_settled =
            |it: &AllocatableDevice| self.began.is_none() && !self.withdrawn.has(it.name.as_str());
        let is_free = |it: &AllocatableDevice| !is_held(it) && !it.consumes.is_empty();
        let may_return = |it: &AllocatableDevice| is_held(it) && !is_in(crowded_out, it);
        // What a reserved device takes was never free.
        let is_counted = |it: &AllocatableDevice| is_in(before, it) || is_in(&self.reserved, it);
        let returns = gpu.devices.iter().any(|it| may_return(it) && !is_counted(it));
        let is_quiet =
            !gpu.devices.iter().filter(|it| is_free(it)).any(|it| is_in(before, it) || !is_settled(it));
        let may_show = |it: &&AllocatableDevice| match (is_held(it), is_in(before, it)) {
            (true, _) => may_return(it) && (is_counted(it) || is_quiet),
            (false, true) => !is_free(it) || !returns,
            (false, false) => is_settled(it) && (!returns || is_quiet),
        };
        gpu.devices.iter().filter(may_show).cloned().collect()
    }

    /// Whether allocated devices seem to overlap. The last read of the claims may be old, so they have to be read again, and
    /// passed to [`RetainedDevices::confirm`], before [`RetainedDevices::show`] leaves one of them out.
    #[must_use]
    pub(super) fn is_crowded(
        &self,
        offered: &Inventory,
        before: &BTreeSet<String>,
        prepared: &BTreeSet<String>,
    ) -> bool {
        let mut counted = offered.gpus.iter().filter(|it| !it.counters.is_empty());
        counted.any(|it| !self.crowded_out(it, before, prepared).is_empty())
    }

    /// Takes note of what claims have by a read of this round, which began at `read_at`.
    pub(super) fn confirm(&mut self, allocated: &BTreeSet<String>, read_at: Instant) {
        self.allocated.clone_from(allocated);
        self.read_at = Some(read_at);
    }

    /// The allocated devices for which the GPU has no room beside others that are allocated.
    fn crowded_out(
        &self,
        gpu: &GpuInventory,
        before: &BTreeSet<String>,
        prepared: &BTreeSet<String>,
    ) -> BTreeSet<String> {
        let order = self.order(prepared, before);
        let rank = |it: &&AllocatableDevice| order.iter().position(|names| names.contains(it.name.as_str()));
        let mut held: Vec<&AllocatableDevice> = gpu.devices.iter().filter(|it| rank(it).is_some()).collect();
        held.sort_by_key(rank);
        let mut left = gpu.counters.clone();
        let mut crowded_out = BTreeSet::new();
        for device in held {
            if !fits_into(&device.consumes, &left) {
                crowded_out.insert(device.name.to_string());
                continue;
            }
            for (counter, amount) in &device.consumes {
                left.entry(counter.clone()).and_modify(|it| *it -= amount);
            }
        }
        crowded_out
    }

    /// Allocated devices, those first that stay the longest where there is no room for all of them: what is prepared, what
    /// schedulers see, and last what is prepared and not allocated any more.
    fn order(&self, prepared: &BTreeSet<String>, before: &BTreeSet<String>) -> [BTreeSet<String>; 4] {
        [&self.allocated & prepared, &self.allocated & before, self.allocated.clone(), prepared.clone()]
    }

    /// Takes note that what was published by other rules, and may just have gone, may have to come back.
    pub(super) fn expect_more(&mut self) {
        self.gone = Some(Gone::NotYet);
    }

    /// Without counters nothing is left out; what was would be asked for again and again.
    pub(super) fn leave_nothing_out(&mut self) {
        self.left_out.clear();
    }

    /// Takes note that what was decided last is written.
    pub(super) fn written(&mut self, now: Instant) {
        self.withdrawn.written(now);
        self.gone.iter_mut().for_each(|it| it.written(now));
    }

    /// What claims have by the last read, as long as that is a settle time old at most.
    #[must_use]
    pub(super) fn allocated(&self) -> &BTreeSet<String> {
        &self.allocated
    }

    /// What stays.
    #[must_use]
    pub(super) fn taken(&self) -> &BTreeSet<String> {
        &self.taken
    }

    /// Leaves allocated devices out where counters would be below what they consume, undescribed devices included.
    pub(super) fn leave_out(
        &mut self,
        slices: &mut [ResourceSlice],
        prepared: &BTreeSet<String>,
        before: &BTreeSet<String>,
    ) {
        let order = self.order(prepared, before);
        let without = leave_out(slices, &order.each_ref());
        self.withdrawn.add(without.intersection(before));
        self.left_out.extend(without);
    }

    /// Whether an allocated device is not published, so that what it takes looks free.
    pub(super) fn has_left_out(&self) -> bool {
        !self.left_out.is_empty()
    }

    /// Whether something may have been allocated at the last moment. What a process before may have withdrawn matters where the node
    /// `has_any` devices of GPUs that are cut.
    pub(super) fn is_settling(&self, has_any: bool) -> bool {
        has_any && self.has_past || self.began.is_some() || self.gone.is_some() || !self.withdrawn.is_empty()
    }

    /// When to look again. No event reports the release of a claim that was never prepared.
    #[must_use]
    pub(super) fn next(&self) -> Option<Instant> {
        let gone = self.withdrawn.since().into_iter().chain(self.gone.and_then(Gone::since));
        let is_unsure = self.prepared.len() < self.taken.len() || !self.left_out.is_empty();
        let taken = self.read_at.filter(|_| is_unsure);
        gone.chain(self.began).chain(taken).min().map(|it| it + self.settle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLE: Duration = Duration::from_secs(10);
    static NOTHING: BTreeSet<String> = BTreeSet::new();

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|it| (*it).to_owned()).collect()
    }

    /// One round: whether it asked, and what stays.
    fn round(
        retained: &mut RetainedDevices,
        at: Instant,
        [offered, withheld, published, allocated]: [&[&str]; 4],
    ) -> (bool, BTreeSet<String>) {
        let (offered, withheld, published) = (set(offered), set(withheld), set(published));
        let devices = Devices {
            offered: &offered,
            withheld: &withheld,
            published: &published,
            hidden: &NOTHING,
            prepared: &NOTHING,
            is_counted: true,
            is_wiped: false,
        };
        let asks = retained.asks(devices, at);
        if asks {
            retained.found(&set(allocated), devices, at);
        }
        retained.written(at);
        (asks, retained.taken().clone())
    }

    #[test]
    fn what_is_allocated_stays_and_is_looked_after_until_it_is_released() {
        let (mut retained, start) = (RetainedDevices::new(SETTLE, false), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(round(&mut retained, at(0), [&["a", "b"], &[], &["a", "b"], &["b"]]), (false, set(&[])));
        assert_eq!(retained.next(), None);
        assert_eq!(
            round(&mut retained, at(5), [&["a"], &["b", "c"], &["a", "b"], &["b"]]),
            (true, set(&["b"]))
        );
        assert_eq!(retained.next(), Some(at(15)));
        assert_eq!(round(&mut retained, at(15), [&["a"], &["b", "c"], &["a", "b"], &[]]), (true, set(&[])));
        assert_eq!(retained.next(), Some(at(25)), "it may be allocated just before it goes");
        assert_eq!(round(&mut retained, at(25), [&["a"], &["b", "c"], &["a"], &[]]), (true, set(&[])));
        assert_eq!(retained.next(), None);
        assert_eq!(round(&mut retained, at(99), [&["a"], &["b", "c"], &["a"], &["c"]]), (false, set(&[])));
    }

    #[test]
    fn what_was_given_away_at_the_last_moment_comes_back() {
        let (mut retained, start) = (RetainedDevices::new(SETTLE, false), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(round(&mut retained, at(0), [&[], &["a", "b"], &["a", "b"], &[]]), (true, set(&[])));
        assert_eq!(round(&mut retained, at(9), [&[], &["a", "b"], &[], &["b"]]), (false, set(&[])));
        assert_eq!(retained.next(), Some(at(10)), "before that it would be too early");
        assert_eq!(round(&mut retained, at(10), [&[], &["a", "b"], &[], &["b"]]), (true, set(&["b"])));
    }

    #[test]
    fn a_driver_that_starts_asks_for_what_the_one_before_may_have_withdrawn() {
        let start = Instant::now();
        for (has_past, withheld) in [(true, &["a"][..]), (true, &[]), (false, &["a"])] {
            let mut retained = RetainedDevices::new(SETTLE, has_past);
            let asks = has_past && !withheld.is_empty();
            assert_eq!(round(&mut retained, start, [&["b"], withheld, &["b"], &[]]).0, asks);
            assert_eq!(round(&mut retained, start + SETTLE, [&["b"], withheld, &["b"], &[]]).0, asks);
            assert!(!round(&mut retained, start + 2 * SETTLE, [&["b"], withheld, &["b"], &[]]).0);
            assert_eq!(retained.next(), None);
        }
    }
}
