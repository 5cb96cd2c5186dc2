//! Follows the node's label, the layout file and what is demanded of the node.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use mig_model::facts::GpuFacts;
use mig_model::inventory::Inventory;
use mig_model::layout::{Decision, HeldBack, Layouts, Refusal, choose, default_layouts, with_holds};
use mig_model::mig_node::Followed;
use mig_model::slices::Publication;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::demand::{AUTO, DemandFollower};
use super::memory::{InForce, LayoutMemory};
use super::report::{Gpus, LayoutReporter};
use super::source::LayoutSource;
use crate::api::{Allocations, CONFIG_LABEL, Events, LayoutLabels, OwnMigNode, OwnNode};
use crate::hardware::{Hardware, NodeState};
use crate::kubelet::PublisherElection;

/// How often the file is looked at. The kubelet needs about a minute to bring a changed ConfigMap, so this adds nothing that is
/// noticed.
const PERIOD: Duration = Duration::from_secs(2);

/// What a follower is made of.
#[derive(Debug)]
pub struct LayoutFollowerParts {
    /// The node, whose labels are followed.
    pub node: OwnNode,
    /// Where what comes of a layout is reported.
    pub events: Events,
    /// The layout file, if there is one.
    pub file: Option<PathBuf>,
    /// What was in force before this process.
    pub memory: LayoutMemory,
    /// The node's MigNode, which says what is demanded.
    pub mig_node: watch::Receiver<OwnMigNode>,
    /// Which devices claims have been given.
    pub allocations: Allocations,
    /// What is in force.
    pub decision: watch::Sender<Decision>,
    /// What came of the demand.
    pub followed: watch::Sender<Option<Followed>>,
    /// Whether this process reports, or a newer one.
    pub election: PublisherElection,
    /// Whether the state label is this driver's to write; another program may own it.
    pub writes_state: bool,
}

/// Turns labels, files and demands into decisions.
#[derive(Debug)]
pub struct LayoutFollower {
    parts: LayoutFollowerParts,
    file: Option<LayoutSource>,
    labels: Option<LayoutLabels>,
    demand: DemandFollower,
    /// What is in force; before the first decision, what was.
    in_force: Option<InForce>,
    /// What the file says that was in force.
    written: Option<InForce>,
    /// The node when the demand was followed last: its offers, what claims hold, and whether devices were published on other terms.
    seen: Option<(Arc<Inventory>, BTreeSet<String>, bool)>,
    reporter: LayoutReporter,
}

impl LayoutFollower {
    /// Follows the labels of the node, what is demanded of it and, where there is one, a file; what comes of it is reported while the
    /// election is ours.
    #[must_use]
    pub fn new(parts: LayoutFollowerParts) -> Self {
        let file = parts.file.clone().map(LayoutSource::new);
        let LayoutFollowerParts { node, events, election, .. } = &parts;
        let reporter =
            LayoutReporter::new(node.clone(), events.clone(), election.clone(), parts.writes_state);
        let in_force = parts.memory.read();
        Self {
            file,
            labels: None,
            demand: DemandFollower::new(parts.allocations.clone()),
            written: in_force.clone(),
            in_force,
            seen: None,
            reporter,
            parts,
        }
    }

    /// Runs until the senders of the hardware's state and of the publication are gone.
    pub async fn run(
        mut self,
        mut hardware: watch::Receiver<NodeState>,
        mut publication: watch::Receiver<Publication>,
    ) {
        let mut labels = pin!(self.parts.node.labels());
        let mut mig_node = self.parts.mig_node.clone();
        let mut clock = interval(PERIOD);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut known: Option<Arc<Hardware>> = None;
        let mut is_new = true;
        loop {
            let state = hardware.borrow_and_update().clone();
            is_new |= self.demand.take(&mig_node.borrow_and_update());
            let gpus = Gpus::of(&state.hardware);
            let now = state.hardware.as_ref().ok();
            is_new |= now.map(Arc::as_ptr) != known.as_ref().map(Arc::as_ptr);
            known = now.cloned();
            let published = publication.borrow_and_update().clone();
            let is_counted = is_counted(&published);
            if self.labels.is_some()
                && (is_new || self.follows_demand() && self.is_demand_news(&state, is_counted))
            {
                self.decide(&state, is_counted).await;
                is_new = false;
            }
            self.report_demand(&published);
            if let Some(labels) = &mut self.labels {
                let decision = self.parts.decision.borrow().clone();
                self.reporter.update(labels, &decision, &gpus, &published).await;
            }
            tokio::select! {
                next = next_of(&mut labels) => is_new |= self.take(next),
                () = next_change(&mut mig_node) => {}
                changed = hardware.changed() => if changed.is_err() { return },
                changed = publication.changed() => if changed.is_err() { return },
                _ = clock.tick() => is_new |= self.file.as_mut().is_some_and(LayoutSource::refresh),
            }
        }
    }

    /// Takes over what the Node says, and answers whether it may change the decision. What is known already stays in force while
    /// this account may not watch its Node; without anything known, the node counts as one without the label.
    fn take(&mut self, next: Result<LayoutLabels, String>) -> bool {
        let next = match next {
            Ok(next) => next,
            Err(_) if self.labels.is_some() => return false,
            Err(reason) => {
                info!(
                    reason,
                    "this account may not watch its Node: the label {CONFIG_LABEL} is ignored, and layouts are chosen by the \
                     built-in rule; to use the label, grant list, watch and patch on nodes (chart value rbac.layoutLabels)"
                );
                LayoutLabels::default()
            }
        };
        let is_new = self.labels.as_ref().is_none_or(|it| it.config != next.config);
        self.labels = Some(next);
        is_new
    }

    /// Whether the label leaves the layout to what is demanded.
    fn follows_demand(&self) -> bool {
        self.label().is_none_or(|it| it == AUTO)
    }

    fn label(&self) -> Option<&str> {
        self.labels.as_ref().and_then(|it| it.config.as_deref())
    }

    /// Whether the demand may lead to other layouts than before.
    fn is_demand_news(&self, state: &NodeState, is_counted: bool) -> bool {
        let is_same = |(inventory, held, was_counted): &(Arc<Inventory>, BTreeSet<String>, bool)| {
            *was_counted == is_counted
                && *held == state.held
                && (Arc::ptr_eq(inventory, &state.inventory) || *inventory == state.inventory)
        };
        self.demand.is_due() || !self.seen.as_ref().is_some_and(is_same)
    }

    async fn decide(&mut self, state: &NodeState, is_counted: bool) {
        let hardware = state.hardware.as_ref().ok();
        let Some(gpus) = hardware.map(|it| &it.facts.gpus).filter(|it| !it.is_empty()) else { return };
        let label = self.label().map(str::to_owned);
        self.seen = Some((Arc::clone(&state.inventory), state.held.clone(), is_counted));
        let before = self.parts.decision.borrow().clone();
        let mut held_back = HeldBack::new();
        let (in_force, refusal) = match label.as_deref().filter(|it| *it != AUTO) {
            None => {
                let before = self.in_force.as_ref();
                let (in_force, holds) = self.demand.layouts(before, state, gpus, is_counted).await;
                held_back = holds;
                (in_force, None)
            }
            Some(label) => match self.chosen(label, gpus) {
                Ok(layouts) => (InForce { layouts, demand: None }, None),
                // What was in force stays so.
                Err(refusal) => {
                    let default = || InForce { layouts: default_layouts(gpus), demand: None };
                    (self.in_force.clone().unwrap_or_else(default), Some(refusal))
                }
            },
        };
        if refusal.is_none() && self.written.as_ref().is_none_or(|it| it.differs_from(&in_force)) {
            self.parts.memory.write(&in_force);
            self.written = Some(in_force.clone());
        }
        let layouts = with_holds(&in_force.layouts, &held_back, gpus);
        let mut next = Decision { revision: before.revision, label, layouts, refusal, held_back };
        self.in_force = Some(in_force);
        if next == before {
            return;
        }
        next.revision += 1;
        match &next.refusal {
            Some(refusal) => warn!(label = next.label, %refusal, "layout refused"),
            None => info!(label = next.label, layouts = ?next.layouts, "layout"),
        }
        self.parts.decision.send_replace(next);
    }

    /// The layouts that a label names.
    fn chosen(&mut self, label: &str, gpus: &[GpuFacts]) -> Result<Layouts, Refusal> {
        self.demand.rest();
        match &mut self.file {
            None => choose(Some(label), None, gpus),
            Some(source) => match source.content() {
                Ok(file) => choose(Some(label), Some(file), gpus),
                Err(error) => Err(Refusal::Impossible(error.clone())),
            },
        }
    }

    /// Reports what came of the demand.
    fn report_demand(&self, publication: &Publication) {
        let revision = self.parts.decision.borrow().revision;
        let is_settling = match publication {
            Publication::Layout { revision: published, settling, .. } => *published != revision || *settling,
            _ => true,
        };
        let report = self.demand.report(self.label(), is_counted(publication), is_settling);
        self.parts.followed.send_if_modified(|it| {
            let is_new = *it != report;
            *it = report;
            is_new
        });
    }
}

/// Whether devices are published on other terms than layouts.
fn is_counted(publication: &Publication) -> bool {
    matches!(
        publication,
        Publication::Complete { is_counted: true, .. } | Publication::WithoutCounters { .. }
    )
}

/// The next change of the MigNode; none where it is not watched.
async fn next_change(mig_node: &mut watch::Receiver<OwnMigNode>) {
    if mig_node.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The next labels; the watch behind them reconnects for ever.
async fn next_of<T>(labels: &mut (impl Stream<Item = T> + Unpin)) -> T {
    match labels.next().await {
        Some(labels) => labels,
        None => std::future::pending().await,
    }
}
