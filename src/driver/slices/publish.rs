//! The loop that keeps the API server's slices as the inventory wants them.
//!
//! It reads before it writes, every time: the kubelet wipes a node's slices at its start, people delete things, and a
//! list of one node's slices is cheap. Where the API server drops counters (feature gate `DRAPartitionableDevices` off)
//! it publishes what a layout says, which needs none, and keeps asking whether that has changed.
//!
//! What claims hold changes with every pod. It is looked at without the API server, after a pause in which more may come;
//! slices are written only where the scheduler would now choose what the ranking does not.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::{Duration, Instant};

use k8s_openapi::api::resource::v1::ResourceSlice;
use mig_model::inventory::{GpuInventory, Inventory, ProfileFilter};
use mig_model::placement::{Policy, Ranking};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::by_allocation::Strangers;
use super::by_sharing::Withdrawn;
use super::pauses::{Overwritten, retry};
use super::probe::CounterSupport;
use super::render::{keep, names as names_in};
use super::taint::{TaintEffect, Taints};
use super::{Change, Kept, Owner, Publication, Transition, diff, keep_order, lost_counters, render};
use crate::api::{Allocations, Events, NodeSlices, SliceError, SliceErrorKind};
use crate::backoff::Backoff;
use crate::hardware::NodeState;
use crate::kubelet::Turn;
use crate::layout::Decision;
use crate::slices::Mode;
use crate::telemetry::metrics::{Metrics, SliceWrite};

/// How long changes made by others are collected before they are looked at.
pub(super) const DEBOUNCE: Duration = Duration::from_millis(500);
/// Full comparison even if nothing was heard: a watch may lose a deletion.
pub(super) const RESYNC: Duration = Duration::from_secs(300);
/// How soon a process that left the slices to a newer one sees that it is gone.
const TURN_RETRY: Duration = Duration::from_secs(5);
/// How often a gate is asked for again.
pub(super) const GATE_RETRY: Duration = Duration::from_secs(30);
/// Why nobody is given anything for a while.
const CLOSED: &str = "kube-apiserver keeps shared counters now; every placement is published once no scheduler can act on what \
                      was published without them, see --settle-time";
/// How long one API server after the other may be started anew, with another gate, without breaking off our watch again.
const ROLLING_RESTART: Duration = Duration::from_secs(600);

/// What a publisher is made of.
#[derive(Debug)]
pub struct PublisherParts {
    /// The slices to keep.
    pub api: NodeSlices,
    /// Which devices claims have been given.
    pub allocations: Allocations,
    /// Name of the node.
    pub node: String,
    /// Name of the driver.
    pub driver: String,
    /// What to publish.
    pub mode: Mode,
    /// Which of it, and in which order.
    pub offer: Offer,
    /// How long a withdrawn device keeps others away.
    pub settle_time: Duration,
    /// Whether a driver was on this node before this process.
    pub has_past: bool,
    /// How GPUs are cut where there are no counters.
    pub layouts: watch::Receiver<Decision>,
    /// What the taint of an unhealthy GPU does.
    pub taint_effect: TaintEffect,
    /// Whether this process or a newer one writes them.
    pub turn: Turn,
    /// Events of the node.
    pub events: Events,
    /// Where to report.
    pub report: watch::Sender<Publication>,
    /// Where writes are counted.
    pub metrics: Metrics,
}

/// What is offered, and in which order.
#[derive(Debug)]
pub struct Offer {
    /// Which GPU comes first.
    pub policy: Policy,
    /// Which profiles there are to be where counters keep devices apart; a layout names its own.
    pub profiles: ProfileFilter,
}

/// Keeps the slices of one node and driver.
#[derive(Debug)]
pub struct Publisher {
    pub(super) parts: PublisherParts,
    /// What the API server does with counters; `None` before it was asked.
    pub(super) counters: Option<CounterSupport>,
    /// When it was asked last; `None` where it has to be asked again.
    pub(super) asked: Option<Instant>,
    /// Pauses after failures.
    pub(super) retry: Backoff,
    /// What others did to the slices.
    pub(super) overwritten: Overwritten,
    /// When a watch broke off last, as it does when an API server is started anew.
    restarted: Option<Instant>,
    is_watching: bool,
    /// What claims were found to have when the layout last changed, prepared or not.
    pub(super) taken: BTreeSet<String>,
    pub(super) transition: Transition,
    taints: Taints,
    /// Whole and time-shared GPUs that are not offered any more.
    pub(super) withdrawn: Withdrawn,
    /// Devices that stay because they are allocated.
    pub(super) kept: Kept,
    /// Devices that stay as they are published: claims have them, and the node cannot describe them any more.
    pub(super) strangers: Strangers,
    /// What schedulers could see when this round began, of GPUs that can be cut.
    pub(super) before: BTreeSet<String>,
    /// What claims have, as read in this round.
    pub(super) claims: Option<(Instant, BTreeSet<String>)>,
    /// Resource versions of our own last writes, to tell them from those of others.
    pub(super) written: BTreeMap<String, Option<String>>,
    /// Names of the devices in each slice of devices, as they stood after the last round.
    pub(super) published: Vec<Vec<String>>,
    /// Whether it was told which of `--profiles` have no effect on this node.
    has_told_profiles: bool,
    /// Whether this round has written anything.
    has_written: bool,
    /// Whether the slices were complete once.
    has_published: bool,
    /// Whether the last round was ours.
    had_turn: bool,
}

impl Publisher {
    /// Publishes for this node and driver, and reports how that stands.
    #[must_use]
    pub fn new(parts: PublisherParts) -> Self {
        let transition = Transition::new(parts.settle_time, parts.has_past);
        let kept = Kept::new(parts.settle_time, parts.has_past);
        let withdrawn = Withdrawn::new(parts.has_past);
        let taints = Taints::new(&parts.driver, parts.taint_effect);
        let retry = retry(&parts.node);
        let overwritten = Overwritten::new(&parts.node);
        Self {
            parts,
            counters: None,
            asked: None,
            retry,
            overwritten,
            restarted: None,
            is_watching: false,
            taken: BTreeSet::new(),
            transition,
            taints,
            withdrawn,
            kept,
            strangers: Strangers::default(),
            before: BTreeSet::new(),
            claims: None,
            written: BTreeMap::new(),
            published: Vec::new(),
            has_told_profiles: false,
            has_written: false,
            has_published: false,
            had_turn: true,
        }
    }

    /// Runs until the sender of the node's state is gone.
    pub async fn run(mut self, mut node: watch::Receiver<NodeState>) {
        let mut changes = pin!(self.parts.api.changes());
        let mut layouts = self.parts.layouts.clone();
        let mut is_foreign = false;
        loop {
            let state = node.borrow_and_update().clone();
            layouts.mark_unchanged();
            self.has_written = false;
            let pause = match (&state.hardware, state.held.is_empty()) {
                // Claims hold devices that cannot be described now; an allocated device is never withdrawn.
                (Err(reason), false) => {
                    self.parts.report.send_replace(Publication::Pending { reason: reason.clone() });
                    RESYNC
                }
                _ => self.sync_or_report(&state).await,
            };
            if std::mem::take(&mut is_foreign) && self.has_written {
                self.overwritten.corrected(&self.parts.events);
            }
            tokio::select! {
                is_alive = self.news(&mut node, &state) => if !is_alive { return },
                is_alive = layouts.changed() => if is_alive.is_err() { return },
                is_restart = self.foreign_change(&mut changes) => {
                    is_foreign = !is_restart;
                    if is_restart {
                        // The API server may have come back with another gate.
                        self.asked = None;
                        // The first time it only began.
                        self.restarted = self.is_watching.then(Instant::now);
                        self.is_watching = true;
                    }
                },
                () = sleep(pause) => {}
            }
        }
    }

    /// One round, and how long to wait before the next.
    async fn sync_or_report(&mut self, state: &NodeState) -> Duration {
        // What was published once stays reported, so that a pod which leaves the slices to a newer one is still ready.
        if self.has_published && !self.parts.turn.is_ours().await {
            self.had_turn = false;
            return TURN_RETRY;
        }
        if !std::mem::replace(&mut self.had_turn, true) {
            // Another one has published meanwhile: nothing is known of what it withdrew, as after a start.
            self.transition = Transition::new(self.parts.settle_time, true);
            self.kept = Kept::new(self.parts.settle_time, true);
            self.withdrawn = Withdrawn::new(true);
            self.published.clear();
            (self.counters, self.asked) = (None, None);
        }
        self.taints.follow(&state.health);
        match self.sync(state).await {
            Ok(pause) => {
                self.retry.succeeded();
                pause
            }
            Err(error) => self.failed(&error),
        }
    }

    pub(super) fn offered<'i>(
        &self,
        inventory: &'i Inventory,
        held: &BTreeSet<String>,
    ) -> Cow<'i, Inventory> {
        if self.parts.offer.profiles.is_everything() {
            Cow::Borrowed(inventory)
        } else {
            Cow::Owned(inventory.with_profiles(&self.parts.offer.profiles, held))
        }
    }

    /// Warns once, when there are GPUs, of patterns that mean none of their profiles, and of all of them in a mode in which
    /// they mean nothing.
    fn tell_of_profiles(&mut self, inventory: &Inventory) {
        if self.has_told_profiles || inventory.gpus.is_empty() {
            return;
        }
        self.has_told_profiles = true;
        let filter = &self.parts.offer.profiles;
        if self.parts.mode == Mode::Layout && !filter.is_everything() {
            warn!("--profiles has no effect with --mode=layout: a layout names its profiles");
        }
        let devices = inventory.gpus.iter().flat_map(|it| it.devices.iter().chain(&it.withheld));
        let profiles = devices.map(|it| it.mig().map_or("full", |it| &it.profile)).collect();
        for pattern in filter.without_effect(&profiles) {
            warn!(
                pattern,
                "a pattern of --profiles means no profile of this node's GPUs; `inspect` lists them"
            );
        }
    }

    /// Whether counters keep devices apart.
    pub(super) fn counts(&self) -> bool {
        self.parts.mode != Mode::Layout && self.counters.is_none_or(|it| it == CounterSupport::Pool)
    }

    async fn sync(&mut self, state: &NodeState) -> Result<Duration, SliceError> {
        let node_uid = self.parts.api.node_uid().await?;
        let owner = Owner { driver: self.parts.driver.clone(), node: self.parts.node.clone(), node_uid };
        let published = self.parts.api.list().await?;
        let before = published.iter().flat_map(names_in).map(str::to_owned).collect();
        self.claims = None;
        self.keep_allocated(state, &published).await?;
        let inventory = state.inventory_with(self.kept.taken());
        let (inventory, soon) = self.settle_shares(&inventory, &state.held, &before).await?;
        let inventory = &*inventory;
        self.tell_of_profiles(inventory);
        let can_be_cut = inventory.gpus.iter().any(GpuInventory::can_be_cut);
        let held = &state.held | self.kept.taken();
        let offered = self.offered(inventory, &held);
        let ranking = Ranking::of(&offered, &held, self.parts.offer.policy);
        let slices = render(&offered, &ranking, &owner);
        if self.parts.mode != Mode::Layout && can_be_cut {
            self.ask_for_the_gate(published.len() < slices.len(), &owner).await?;
        }
        if self.counts() {
            let pool = self.pool(&published);
            if self.kept.is_crowded(&offered, &self.before, &state.held) {
                let (read_at, allocated) = self.allocated().await?;
                self.kept.confirm(&allocated, read_at);
            }
            let shown = self.kept.show(&offered, &self.before, &state.held);
            let part = self.transition.count(&shown, pool.as_ref(), &held, Instant::now());
            if part.is_some() {
                self.kept.expect_more();
            }
            let shown = part.as_ref().unwrap_or(&shown);
            let slices = if *shown == *offered { slices } else { render(shown, &ranking, &owner) };
            let slices = self.publish(slices, &ranking, &state.held, &published, &owner).await?;
            self.transition.written(Instant::now());
            self.tell(if self.transition.is_open() {
                Publication::Complete { slices, devices: offered.devices().count(), is_counted: can_be_cut }
            } else {
                Publication::Pending { reason: CLOSED.to_owned() }
            });
            let is_rolling = self.restarted.is_some_and(|it| it.elapsed() < ROLLING_RESTART);
            return Ok(self.due().min(soon).min(if is_rolling { GATE_RETRY } else { RESYNC }));
        }
        Ok(self.publish_layout(inventory, &state.held, &published, &owner).await?.min(soon))
    }

    /// How long until what was withdrawn no longer keeps anything away, or may not come back any more.
    pub(super) fn due(&self) -> Duration {
        let next = self.transition.next().into_iter().chain(self.kept.next()).min();
        next.map_or(RESYNC, |it| it.saturating_duration_since(Instant::now()))
    }

    /// Brings the API server's slices to what is rendered, and answers with their number. `prepared` is what is prepared on
    /// the node.
    pub(super) async fn publish(
        &mut self,
        mut slices: Vec<ResourceSlice>,
        ranking: &Ranking,
        prepared: &BTreeSet<String>,
        published: &[ResourceSlice],
        owner: &Owner,
    ) -> Result<usize, SliceError> {
        let own = slices.len();
        keep(&mut slices, &self.strangers, self.counts(), owner);
        self.kept.leave_out(&mut slices, prepared, &self.before);
        if !self.transition.is_open() {
            close(&mut slices);
        }
        keep_order(&mut slices, published, ranking);
        self.taints.apply(&mut slices, published, &self.parts.api, owner).await?;
        let count = slices.len();
        let shown = slices.iter().take(own).map(|it| names_in(it).map(str::to_owned).collect::<Vec<_>>());
        let shown = shown.filter(|it| !it.is_empty()).collect();
        self.write(slices, published).await?;
        self.withdrawn.written(Instant::now());
        self.kept.written(Instant::now());
        self.published = shown;
        Ok(count)
    }

    pub(super) fn tell(&mut self, publication: Publication) {
        self.has_published |= !matches!(publication, Publication::Pending { .. });
        self.parts.report.send_if_modified(|it| {
            let changed = *it != publication;
            if changed {
                info!(?publication, "published ResourceSlices");
                it.clone_from(&publication);
            }
            changed
        });
    }

    async fn write(
        &mut self,
        wanted: Vec<ResourceSlice>,
        published: &[ResourceSlice],
    ) -> Result<(), SliceError> {
        for change in diff(wanted, published) {
            let stored = match self.parts.api.apply(&change).await {
                Err(error) if error.kind == SliceErrorKind::CountersRefused => {
                    self.set_support(CounterSupport::SliceOnly);
                    return Err(SliceError::lost_counters());
                }
                answer => answer?,
            };
            self.parts.metrics.slice_written(match &change {
                Change::Create(_) => SliceWrite::Create,
                Change::Update(_) => SliceWrite::Update,
                Change::Delete(_) => SliceWrite::Delete,
            });
            debug!(?change, "resourceslice written");
            self.has_written = true;
            let (Change::Create(sent) | Change::Update(sent)) = &change else { continue };
            let Some(stored) = stored else { continue };
            if let Some(name) = &sent.metadata.name {
                self.written.insert(name.clone(), stored.metadata.resource_version.clone());
            }
            self.taints.check(sent, &stored);
            if lost_counters(sent, &stored) {
                self.set_support(CounterSupport::Dropped);
                // Whatever was written is withdrawn by the next round, which starts at once.
                return Err(SliceError::lost_counters());
            }
        }
        Ok(())
    }
}

/// Makes the pool one of which a slice seems to be missing: schedulers give nothing away from it.
fn close(slices: &mut [ResourceSlice]) {
    for slice in slices {
        slice.spec.pool.resource_slice_count += 1;
    }
}
