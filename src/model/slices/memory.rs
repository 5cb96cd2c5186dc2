//! What the publishing step remembers between rounds: what schedulers may still act on. Pure.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::inventory::Inventory;
use crate::layout::hidden;
use k8s_openapi::api::resource::v1::ResourceSlice;

use super::found::Found;
use super::pool::Pool;
use super::render::names as names_in;
use super::retained::{Devices, RetainedDevices};
use super::sharing::ShareTransition;
use super::transition::{Held, Transition};
use super::undescribed::UndescribedDevices;
use super::world::{Published, Question, World};

/// What was published and decided so far.
#[derive(Debug, Clone)]
pub struct Memory {
    /// The way from one set of devices to another one without counters, and from and to counters.
    pub(super) transition: Transition,
    /// Whole and time-shared GPUs that are not offered any more.
    sharing: ShareTransition,
    /// Devices that stay because they are allocated.
    retained: RetainedDevices,
    /// Devices that stay as they are published: claims have them, and the node cannot describe them any more.
    undescribed: UndescribedDevices,
    /// What claims had when the layout last changed, prepared or not.
    pub(super) allocated: BTreeSet<String>,
    /// Names of the devices in each slice of described devices, as they stood after the last round.
    published: Vec<Vec<String>>,
    /// The same as it was decided last.
    decided: Vec<Vec<String>>,
    /// What the last list of the claims has found; `None` before there was one.
    pub(super) found: Option<Found>,
    /// What a process before this one has left, until this one has written.
    resumed: Option<Pool>,
    /// Whether a GPU was held back when it was decided last what to publish.
    is_held_back: bool,
    /// When the order of a slice may change again, by the first of its devices in the order of names, which stays the same.
    next_order: BTreeMap<String, Instant>,
}

/// What is in the slices, by name, as far as the node can describe it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offered {
    /// The devices that schedulers can allocate, and those that they have allocated.
    pub devices: BTreeSet<String>,
    /// What is known to be allocated, prepared or not; nothing where that did not matter.
    pub allocated: BTreeSet<String>,
}

impl Memory {
    /// What was written last, or is being written.
    #[must_use]
    pub fn offered(&self) -> Offered {
        let devices = if self.is_open() { self.decided().cloned().collect() } else { BTreeSet::new() };
        Offered { devices, allocated: &self.allocated | self.retained() }
    }

    /// Starts without knowledge of what was before. `settle` is how long a scheduler may act on what it saw, `has_past` whether
    /// a driver was on this node before this process: it may have withdrawn something a moment ago.
    #[must_use]
    pub fn new(settle: Duration, has_past: bool) -> Self {
        Self {
            transition: Transition::new(settle, has_past),
            sharing: ShareTransition::new(has_past),
            retained: RetainedDevices::new(settle, has_past),
            undescribed: UndescribedDevices::default(),
            allocated: BTreeSet::new(),
            published: Vec::new(),
            decided: Vec::new(),
            found: None,
            resumed: None,
            is_held_back: false,
            next_order: BTreeMap::new(),
        }
    }

    /// Goes on where the process before ended, with what [`Memory::to_resume`] said there last: the slices may have been deleted
    /// since, as the kubelet does at its start, but nothing was withdrawn.
    #[must_use]
    pub fn resume(settle: Duration, pool: Pool) -> Self {
        let mut memory = Self::new(settle, false);
        memory.transition.know_the_past();
        memory.published = vec![pool.devices.iter().cloned().collect()];
        memory.resumed = Some(pool);
        memory
    }

    /// What a process that starts after this one may rely on: this pool, if it is as decided last, and if every device that schedulers
    /// may act on, or that a claim has and the node does not know of, is in it. So nothing while something is withdrawn or left out.
    /// Nothing either while a GPU is held back: without counters, devices that claims have of it are hidden, and with counters the
    /// next process would offer what is kept back before it knows of the hold.
    #[must_use]
    pub fn to_resume(&self, pool: Pool, inventory: &Inventory, now: Instant) -> Option<Pool> {
        let is_settling = self.is_settling(inventory, now) || self.retained.is_settling(true);
        let is_all = self.found.as_ref().is_none_or(|it| it.pending.is_subset(&pool.devices));
        let is_decided = pool.is_open && pool.devices == self.decided().cloned().collect();
        let is_it = is_decided && is_all && !is_settling && !self.has_left_out() && !self.is_held_back;
        is_it.then_some(pool)
    }

    /// Forgets what a process before this one has left where the slices have something else: another program has published since.
    pub(super) fn check_resumed(&mut self, published: &Published, settle: Duration) {
        let (Some(resumed), Some(pool)) = (&self.resumed, Pool::of(&published.slices)) else { return };
        let is_left_of_it = pool.devices.is_subset(&resumed.devices)
            && (pool.devices.is_empty() || pool.is_counted == resumed.is_counted);
        if !is_left_of_it {
            *self = Self::new(settle, true);
        }
    }

    /// Whether nothing is published, and nothing was done yet about what a process before this one has left.
    pub(super) fn is_to_publish_again(&self, published: &Published) -> bool {
        self.resumed.is_some() && published.slices.is_empty()
    }

    /// Devices that were allocated and not prepared when the claims were listed last: whether they still are is what
    /// [`Question::Releases`] asks for.
    #[must_use]
    pub fn pending(&self) -> BTreeSet<String> {
        self.found.as_ref().map(|it| it.pending.clone()).unwrap_or_default()
    }

    /// Whether an allocated device is not published, so that what it takes looks free.
    pub(super) fn has_left_out(&self) -> bool {
        self.retained.has_left_out()
    }

    /// Whether schedulers may have allocated at the last moment what is not published any more.
    pub(super) fn is_settling(&self, inventory: &Inventory, now: Instant) -> bool {
        let has_uncut = inventory.gpus.iter().any(|it| !it.can_be_cut());
        let has_any = inventory.gpus.iter().any(|it| it.can_be_cut());
        self.transition.is_settling()
            || self.sharing.is_settling(has_uncut, self.transition.settle(), now)
            || self.retained.is_settling(has_any)
    }

    /// Another process has published meanwhile: nothing is known of what it withdrew, as after a start. What nothing but this process
    /// can describe stays.
    pub fn forget(&mut self, settle: Duration) {
        *self = Self { undescribed: std::mem::take(&mut self.undescribed), ..Self::new(settle, true) };
    }

    /// Whether the slice with these devices may be written for nothing but their order.
    pub(super) fn may_reorder<'a>(&self, devices: impl IntoIterator<Item = &'a str>, now: Instant) -> bool {
        let next = devices.into_iter().min().and_then(|it| self.next_order.get(it));
        next.is_none_or(|it| *it <= now)
    }

    /// Takes note that it is, and when it may be again.
    pub(super) fn reordered<'a>(&mut self, devices: impl IntoIterator<Item = &'a str>, next: Instant) {
        if let Some(first) = devices.into_iter().min() {
            self.next_order.insert(first.to_owned(), next);
        }
    }

    /// Takes note that what was decided last is written. Answers when the first of what then goes has settled, or the order of
    /// a slice may change again, which is not looked at before.
    pub fn written(&mut self, now: Instant) -> Option<Instant> {
        self.sharing.written(now);
        self.retained.written(now);
        self.transition.written(now);
        self.published.clone_from(&self.decided);
        self.resumed = None;
        self.next_order.retain(|_, it| now < *it);
        let next_order = self.next_order.values().copied().min();
        self.transition.next().into_iter().chain(self.retained.next()).chain(next_order).min()
    }

    /// Allocated devices that stay although the node would not offer them.
    pub(super) fn retained(&self) -> &BTreeSet<String> {
        self.retained.taken()
    }

    /// What claims have by the last read, as long as that is a settle time old at most.
    pub(super) fn known_allocated(&self) -> &BTreeSet<String> {
        self.retained.allocated()
    }

    pub(super) fn undescribed(&self) -> &UndescribedDevices {
        &self.undescribed
    }

    /// True where one of them stays only because it is prepared, and is not any more.
    pub(super) fn may_lose_undescribed(&self, held: &BTreeSet<String>) -> bool {
        self.undescribed.names().any(|it| !held.contains(it) && !self.retained().contains(it))
    }

    /// Names of the devices in each slice of described devices.
    pub(super) fn published(&self) -> &[Vec<String>] {
        &self.published
    }

    /// The described devices that were to be published last.
    pub(super) fn decided(&self) -> impl Iterator<Item = &String> {
        self.decided.iter().flatten()
    }

    /// Whether schedulers give anything away of what is published.
    pub(super) fn is_open(&self) -> bool {
        self.transition.is_open()
    }

    /// Takes note of the allocated devices that stay, and answers with what schedulers could see, of GPUs that can be cut.
    pub(super) fn retain_allocated(
        &mut self,
        world: &World<'_>,
        published: &Published,
        now: Instant,
    ) -> Result<BTreeSet<String>, Question> {
        self.is_held_back = !world.layout.held_back.is_empty();
        let (inventory, held) = (world.node.inventory, world.node.held);
        // GPUs that are not cut see to what they withdraw, and so do layouts.
        let cut = |names: &BTreeSet<String>| {
            names.iter().filter(|it| !inventory.is_uncut(it)).cloned().collect::<BTreeSet<_>>()
        };
        let withheld = inventory.gpus.iter().flat_map(|it| &it.withheld).map(|it| it.name.to_string());
        let known = cut(&inventory.names().into_iter().chain(withheld).collect());
        let prepared = known.intersection(held).cloned().collect();
        let offered =
            if world.is_counted() { cut(&world.offered(inventory, held).names()) } else { known.clone() };
        let withheld = known.difference(&offered).cloned().collect();
        // What layouts hide they see to.
        let hidden = if world.is_counted() {
            hidden(inventory, &world.layout.held_back, &(held | self.retained.taken()))
        } else {
            BTreeSet::new()
        };
        // Also what was deleted since: it may be allocated all the same.
        let seen: BTreeSet<String> = published.slices.iter().flat_map(names_in).map(str::to_owned).collect();
        let before = seen.iter().chain(self.published.iter().flatten()).chain(self.undescribed.names());
        let before = cut(&before.cloned().collect());
        let devices = Devices {
            offered: &(&offered | &(&cut(held) - &hidden)),
            withheld: &withheld,
            published: &before,
            hidden: &hidden,
            prepared: &prepared,
            is_counted: world.is_counted(),
            is_wiped: published.slices.is_empty(),
        };
        if self.retained.asks(devices, now) {
            let claims = world.claims()?;
            self.retained.found(&claims.allocated, devices, claims.read_at);
        }
        let stays = |it: &&String| held.contains(*it) || self.retained.taken().contains(*it);
        let undescribed = before.difference(&known).filter(stays).cloned().collect();
        self.undescribed.set(&undescribed, &published.slices);
        Ok(before)
    }

    /// The inventory with as much of the GPUs without MIG as may be published now, and when to look at them again.
    pub(super) fn settle_shares<'i>(
        &mut self,
        world: &World<'_>,
        inventory: &'i Inventory,
        published: &Published,
        now: Instant,
    ) -> Result<(Cow<'i, Inventory>, Duration), Question> {
        // Also what was deleted since, or not written in the end: it may be allocated all the same.
        let attempted = self.published.iter().flatten().chain(self.decided()).map(String::as_str);
        let seen = published.slices.iter().flat_map(names_in).chain(attempted);
        let seen = seen.map(str::to_owned).collect();
        self.sharing.settle(world, inventory, &seen, now)
    }

    /// What of the offer may be published now where counters keep devices apart. `before` is what schedulers could see, of GPUs
    /// that can be cut.
    pub(super) fn show_counted<'i>(
        &mut self,
        world: &World<'_>,
        offered: &'i Inventory,
        before: &BTreeSet<String>,
        held: &BTreeSet<String>,
        now: Instant,
    ) -> Result<Cow<'i, Inventory>, Question> {
        let (pool, prepared) = (self.pool(world.published()?), world.node.held);
        // The layout may just have withdrawn something.
        if self.transition.is_by_layout() {
            self.retained.expect_more();
        }
        // One of two that overlap is left out only by what claims have now: the other one may be free already.
        let held_back = &world.layout.held_back;
        if self.retained.is_crowded(offered, before, prepared)
            || self.retained.hides_unread(offered, before, prepared, held_back)
        {
            let claims = world.claims()?;
            self.retained.confirm(&claims.allocated, claims.read_at);
        }
        let shown = self.retained.show(offered, before, prepared, held_back);
        let seen = self.seen(pool.as_ref());
        let pool = pool.map(|it| it.without(|name| is_apart(name, world.node.inventory)));
        let part = self.transition.count(&shown, pool.as_ref(), &seen, held, now);
        Ok(part.map_or(shown, Cow::Owned))
    }

    /// Takes note of what is decided, and leaves allocated devices out where counters would be overdrawn.
    pub(super) fn decide(
        &mut self,
        shown: Vec<Vec<String>>,
        slices: &mut [ResourceSlice],
        prepared: &BTreeSet<String>,
        before: &BTreeSet<String>,
    ) {
        self.retained.leave_out(slices, prepared, before);
        self.decided = shown;
    }

    /// Takes note of the order in which devices are published.
    pub(super) fn order_as(&mut self, slices: &[ResourceSlice]) {
        let places: BTreeMap<&str, usize> = slices.iter().flat_map(names_in).zip(0..).collect();
        for names in &mut self.decided {
            names.sort_by_key(|it| places.get(it.as_str()).copied());
        }
    }

    /// What layouts allow on the way to `target`, without what is hidden of it; they see to what they withdraw.
    pub(super) fn step(
        &mut self,
        all: &Inventory,
        target: &Inventory,
        pool: Option<&Pool>,
        (prepared, hidden): (&BTreeSet<String>, &BTreeSet<String>),
        read_at: Instant,
    ) -> Inventory {
        let seen = self.seen(pool);
        // Where nothing changes, nothing was read.
        let allocated = if self.allocated.is_empty() { prepared } else { &self.allocated };
        self.retained.leave_nothing_out();
        self.transition.step(all, target, pool, &seen, Held { prepared, allocated, hidden, read_at })
    }

    /// What schedulers have seen, as far as this process knows.
    fn seen(&self, pool: Option<&Pool>) -> BTreeSet<String> {
        pool.into_iter().flat_map(|it| &it.devices).chain(self.decided()).cloned().collect()
    }

    /// The pool that is published, without what only stays in it.
    pub(super) fn pool(&self, published: &Published) -> Option<Pool> {
        if self.resumed.is_some() {
            return self.resumed.clone();
        }
        Pool::of(&published.slices).map(|it| it.without(|name| self.undescribed.has(name)))
    }
}

/// Whether a device overlaps none, so that neither counters nor a layout keep it apart: it is of a GPU without MIG, or an instance
/// that another program made.
fn is_apart(name: &str, inventory: &Inventory) -> bool {
    inventory.is_uncut(name) || inventory.device(name).is_some_and(|it| it.consumes.is_empty())
}
