//! The loop that keeps the API server's slices as the node's state wants them.
//!
//! What to publish is decided by [`next`]; the loop reads what that asks for, writes what it answers, and reports. What claims
//! hold changes with every pod. It is looked at without the API server, after a pause in which more may come; slices are written
//! only where the scheduler would now choose something worse, and not often.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::pin;
use std::time::{Duration, Instant};

use k8s_openapi::api::resource::v1::ResourceSlice;
use mig_model::inventory::Inventory;
use mig_model::layout::Decision;
use mig_model::slices::{
    Change, Claims, CounterSupport, Gates, Inputs, Memory, Mode, NodeView, Offered, Owner, Plan, Pool,
    Publication, Published, Question, Settings, World, diff, lost_counters, lost_taints, next, pool_name,
};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::pauses::{Overwritten, retry};
use super::resumption::Resumption;
use crate::api::{Allocations, EventReason, NodeSlices, SliceError, SliceErrorKind};
use crate::backoff::Backoff;
use crate::context::NodeContext;
use crate::hardware::NodeState;
use crate::heap;
use crate::kubelet::{PublisherElection, refuse_other_driver};
use crate::telemetry::metrics::SliceWrite;

/// Conflicts in a row that may be races with another writer; more are reported.
const MOST_RACES: u32 = 4;
/// How soon a process that left the slices to a newer one sees that it is gone.
const TURN_RETRY: Duration = Duration::from_secs(5);

/// What a publisher is made of.
#[derive(Debug)]
pub struct PublisherParts {
    /// The node.
    pub context: NodeContext,
    /// The slices to keep.
    pub api: NodeSlices,
    /// Which devices claims have been given.
    pub allocations: Allocations,
    /// What is published, and how.
    pub settings: Settings,
    /// Whether a driver was on this node before this process.
    pub has_past: bool,
    /// What that driver left for this one.
    pub resumption: Resumption,
    /// Where drivers register with the kubelet.
    pub registry: PathBuf,
    /// How GPUs are cut where there are no counters.
    pub layouts: watch::Receiver<Decision>,
    /// Whether this process or a newer one writes them.
    pub election: PublisherElection,
    /// Where to report.
    pub report: watch::Sender<Publication>,
    /// Where to report what is in the slices.
    pub offered: watch::Sender<Offered>,
}

/// Keeps the slices of one node and driver.
#[derive(Debug)]
pub struct Publisher {
    pub(super) parts: PublisherParts,
    /// What the API server does with counters and taints.
    pub(super) gates: Gates,
    /// What schedulers may still act on.
    pub(super) memory: Memory,
    /// Pauses after failures.
    retry: Backoff,
    /// What others did to the slices.
    pub(super) overwritten: Overwritten,
    is_watching: bool,
    /// Resource versions of our own last writes, to tell them from those of others.
    pub(super) written: BTreeMap<String, Option<String>>,
    /// Whether it was logged which of `--profiles` have no effect on this node.
    has_logged_profiles: bool,
    /// Whether this round has written anything.
    has_written: bool,
    /// Whether the slices were complete once.
    has_published: bool,
    /// Whether the last round was ours.
    had_turn: bool,
    /// Whether it was looked for what the process before has left.
    has_resumed: bool,
}

impl Publisher {
    /// Publishes for this node and driver, and reports how that stands.
    #[must_use]
    pub fn new(parts: PublisherParts) -> Self {
        let memory = Memory::new(parts.settings.settle_time, parts.has_past);
        let retry = retry(&parts.context.name);
        let overwritten = Overwritten::new(&parts.context.name);
        Self {
            parts,
            gates: Gates::default(),
            memory,
            retry,
            overwritten,
            is_watching: false,
            written: BTreeMap::new(),
            has_logged_profiles: false,
            has_written: false,
            has_published: false,
            had_turn: true,
            has_resumed: false,
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
            let pause = self.round_or_report(&state).await;
            // A round has the whole pool in memory twice, as published and as wanted, which is as much as all that lives on.
            heap::trim();
            if std::mem::take(&mut is_foreign) && self.has_written {
                self.overwritten.corrected(&self.parts.context.events);
            }
            tokio::select! {
                is_alive = self.triggered(&mut node, &state) => if !is_alive { return },
                is_alive = layouts.changed() => if is_alive.is_err() { return },
                is_restart = self.foreign_change(&mut changes) => {
                    is_foreign = !is_restart;
                    if is_restart {
                        // The API server may have come back with another gate.
                        self.gates.counters.asked = None;
                        // The first time it only began.
                        self.gates.restarted = self.is_watching.then(Instant::now);
                        self.is_watching = true;
                    }
                },
                () = sleep(pause) => {}
            }
        }
    }

    /// One round, and how long to wait before the next.
    async fn round_or_report(&mut self, state: &NodeState) -> Duration {
        // What was published once stays reported, so that a pod which leaves the slices to a newer one is still ready.
        if self.has_published && !self.parts.election.is_ours().await {
            self.had_turn = false;
            return TURN_RETRY;
        }
        if !std::mem::replace(&mut self.had_turn, true) {
            self.memory.forget(self.parts.settings.settle_time);
            self.gates.counters = Default::default();
        }
        match self.round(state).await {
            Ok(wake) => {
                self.retry.succeeded();
                wake.saturating_duration_since(Instant::now())
            }
            Err(error) => self.failed(&error),
        }
    }

    pub(super) fn world<'a>(&'a self, state: &'a NodeState, layout: &'a Decision) -> World<'a> {
        let (settings, gates) = (&self.parts.settings, &self.gates);
        World {
            settings,
            node: view(state),
            layout,
            gates,
            published: None,
            claims: None,
            still_allocated: None,
        }
    }

    /// Reads what has to be known, writes what is decided, and answers when to look again.
    async fn round(&mut self, state: &NodeState) -> Result<Instant, SliceError> {
        let now = Instant::now();
        let layout = self.parts.layouts.borrow().clone();
        self.log_profiles(&state.inventory);
        let (mut published, mut claims, mut still_allocated) = (None, None, None);
        let Plan { slices, status, wake, memory } = loop {
            let world = World {
                published: published.as_ref(),
                claims: claims.as_ref(),
                still_allocated: still_allocated.as_ref(),
                ..self.world(state, &layout)
            };
            let question = match next(&world, &self.memory, now) {
                Ok(plan) => break plan,
                Err(question) => question,
            };
            match (question, &published) {
                (Question::Slices, _) | (_, None) => {
                    let found = self.read_slices().await?;
                    self.resume(&found.owner.node_uid);
                    published = Some(found);
                }
                (Question::Claims, _) => {
                    let read_at = Instant::now();
                    claims = Some(Claims { read_at, allocated: self.parts.allocations.read().await? });
                }
                (Question::Releases, _) => {
                    still_allocated = Some(self.parts.allocations.still(&self.memory.pending()).await?);
                }
                (Question::Counters, Some(Published { owner, .. })) => self.ask_for_counters(owner).await?,
                (Question::Taints, Some(Published { owner, .. })) => self.ask_for_taints(owner).await?,
            }
        };
        self.memory = memory;
        let due = match (slices, &published) {
            (Some(slices), Some(published)) => {
                let (uid, pool) = (&published.owner.node_uid, Pool::of(&slices));
                let removed = self.parts.resumption.before(uid, pool.as_ref());
                removed.map_err(|it| SliceError::cannot_forget(&it))?;
                self.write(slices, &published.slices).await?;
                let due = self.memory.written(Instant::now());
                let pool = pool.and_then(|it| self.memory.to_resume(it, &state.inventory, now));
                self.parts.resumption.after(uid, pool.as_ref());
                due
            }
            _ => None,
        };
        self.report(status);
        let offered = self.memory.offered();
        self.parts.offered.send_if_modified(|it| {
            let changed = *it != offered;
            *it = offered;
            changed
        });
        Ok(due.map_or(wake, |it| it.min(wake)))
    }

    /// Goes on, in the first round, where the process before ended, if that left anything for the Node with this UID.
    fn resume(&mut self, node_uid: &str) {
        if !std::mem::replace(&mut self.has_resumed, true)
            && let Some(pool) = self.parts.resumption.read(node_uid)
        {
            self.memory = Memory::resume(self.parts.settings.settle_time, pool);
        }
    }

    async fn read_slices(&self) -> Result<Published, SliceError> {
        let other = refuse_other_driver(&self.parts.registry, &self.parts.context.driver).await;
        other.map_err(|it| SliceError::other_driver(&it))?;
        let node_uid = self.parts.api.node_uid().await?;
        let owner = Owner {
            driver: self.parts.context.driver.clone(),
            node: self.parts.context.name.clone(),
            node_uid,
        };
        let slices = self.parts.api.list().await?;
        match other_publisher(&owner, &slices) {
            Some(error) => Err(error),
            None => Ok(Published { owner, slices }),
        }
    }

    /// Warns once, when there are GPUs, of patterns that mean none of their profiles, and of all of them in a mode in which
    /// they mean nothing.
    fn log_profiles(&mut self, inventory: &Inventory) {
        if self.has_logged_profiles || inventory.gpus.is_empty() {
            return;
        }
        self.has_logged_profiles = true;
        let filter = &self.parts.settings.profiles;
        if self.parts.settings.mode == Mode::Layout && !filter.is_everything() {
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

    fn report(&mut self, publication: Publication) {
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

    /// Reports why a round failed, once for each reason, and says how long to wait before the next.
    fn failed(&mut self, error: &SliceError) -> Duration {
        let pause = self.retry.failed();
        if error.kind == SliceErrorKind::Conflict && self.retry.failures() <= MOST_RACES {
            debug!(%error, "slices changed underneath, reading again");
            return pause;
        }
        let pending = Publication::Pending { reason: error.to_string() };
        if *self.parts.report.borrow() != pending {
            warn!(%error, "cannot publish resourceslices, trying again");
            if matches!(error.kind, SliceErrorKind::NameTaken | SliceErrorKind::Refused) {
                self.parts.context.events.emit(EventReason::PublishRefused, error.to_string());
            }
        }
        self.parts.report.send_replace(pending);
        pause
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
            self.parts.context.metrics.slice_written(match &change {
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
            if lost_taints(sent, &stored) {
                self.set_taints(false);
            }
            if lost_counters(sent, &stored) {
                self.set_support(CounterSupport::Dropped);
                // Whatever was written is withdrawn by the next round, which starts at once.
                return Err(SliceError::lost_counters());
            }
        }
        Ok(())
    }
}

/// An error where slices of this driver's name and node are in another pool than this driver's: NVIDIA's driver, which can have
/// the same name, publishes or has published the same GPUs. Nothing is written then, because each would delete what the other
/// writes, and schedulers would give a GPU to two pods.
fn other_publisher(owner: &Owner, slices: &[ResourceSlice]) -> Option<SliceError> {
    let own = pool_name(&owner.node, &owner.driver);
    let others: Vec<&ResourceSlice> = slices.iter().filter(|it| it.spec.pool.name != own).collect();
    let pool = &others.first()?.spec.pool.name;
    let names: Vec<&str> = others.iter().filter_map(|it| it.metadata.name.as_deref()).collect();
    Some(SliceError::other_publisher(&owner.driver, &owner.node, &names, pool))
}

/// What the publishing step sees of the node's state.
pub(super) fn view(state: &NodeState) -> NodeView<'_> {
    let NodeState { inventory, inputs, held, health, hardware, .. } = state;
    let inputs = match hardware {
        Ok(hardware) => Ok(Inputs { facts: &hardware.facts, gpus: &inputs.gpus, policy: &inputs.policy }),
        Err(reason) => Err(reason.as_str()),
    };
    NodeView { inventory, inputs, held, health }
}
