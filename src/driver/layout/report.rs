//! Reports on the node how a layout stands: as events, and in the state label.

use std::sync::Arc;
use std::time::Duration;

use mig_model::layout::{Decision, Refusal};
use mig_model::slices::Publication;
use tokio::time::Instant;
use tracing::warn;

use super::demand::AUTO;
use crate::api::{EventReason, Events, LayoutLabels, OwnNode, STATE_LABEL, refusal_pauses};
use crate::backoff::Backoff;
use crate::hardware::Hardware;
use crate::kubelet::PublisherElection;

/// The first pause after a label could not be written.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// The longest of these pauses.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Why layouts have no effect where the API server keeps counters.
const COUNTED: &str = "kube-apiserver keeps shared counters, so every placement of every profile is published at all times; \
                       remove the label nvidia.com/mig.config, or start the driver with --mode=layout";
/// Why they have none where counters are insisted on.
const INSISTING: &str = "--mode=partitionable publishes whole GPUs where kube-apiserver drops shared counters; start the driver \
                         with --mode=auto or --mode=layout";

/// Reports while the election is ours.
#[derive(Debug)]
pub(super) struct LayoutReporter {
    node: OwnNode,
    events: Events,
    election: PublisherElection,
    /// Whether the state label is this driver's to write.
    writes_state: bool,
    /// Whether the state label on the node is ours.
    wrote_state: bool,
    /// The other writer of the state label of which an event was written.
    other_writer: Option<String>,
    /// What was reported last.
    reported: Option<Report>,
    /// Whether the API server kept counters, when that was seen last.
    was_counted: Option<bool>,
    /// Pauses after a label could not be written, and until when the last one lasts.
    retry: (Backoff, Option<Instant>),
    /// Pauses while this account may not label its Node.
    refusals: Backoff,
}

/// How a decision fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Devices are not published by layout.
    Unused,
    Pending,
    Success,
    Failed,
}

/// What the last event was about.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Report {
    revision: u64,
    stage: Stage,
    has_reasons: bool,
}

impl LayoutReporter {
    /// Writes events, and the state label if `writes_state`.
    pub(super) fn new(
        node: OwnNode,
        events: Events,
        election: PublisherElection,
        writes_state: bool,
    ) -> Self {
        let retry = (Backoff::new(FIRST_PAUSE, LONGEST_PAUSE, node.name()), None);
        let refusals = refusal_pauses(node.name());
        Self {
            node,
            events,
            election,
            writes_state,
            wrote_state: false,
            other_writer: None,
            reported: None,
            was_counted: None,
            retry,
            refusals,
        }
    }

    /// Brings the state label and the events up to date.
    pub(super) async fn update(
        &mut self,
        labels: &mut LayoutLabels,
        decision: &Decision,
        gpus: &Gpus,
        publication: &Publication,
    ) {
        if self.election.is_ours().await {
            self.notice_other_writer(labels);
        }
        let (stage, waiting) = match (publication, gpus) {
            (Publication::Pending { .. }, _) => return,
            (_, Gpus::None(reason)) => (Stage::Pending, std::slice::from_ref(reason)),
            // Every placement is published, so whatever is demanded can be allocated.
            (Publication::Complete { is_counted: true, .. }, _) if labels.config.as_deref() == Some(AUTO) => {
                (Stage::Success, &[][..])
            }
            (Publication::Complete { is_counted: true, .. }, _) => (Stage::Unused, &[COUNTED.to_owned()][..]),
            (Publication::WithoutCounters { .. }, _) => (Stage::Unused, &[INSISTING.to_owned()][..]),
            _ if decision.revision == 0 => return,
            _ if decision.refusal.is_some() => (Stage::Failed, &[][..]),
            // Whole GPUs, which no layout changes; unless one that can be cut has just come.
            (Publication::Complete { .. }, Gpus::Whole) => (Stage::Success, &[][..]),
            (Publication::Complete { .. }, Gpus::Cuttable) => (Stage::Pending, &[][..]),
            (Publication::Layout { revision, waiting, settling, .. }, _) => {
                let is_settled = *revision == decision.revision && !settling;
                match (is_settled, waiting.is_empty()) {
                    (true, true) => (Stage::Success, &[][..]),
                    (true, false) => (Stage::Pending, &waiting[..]),
                    // What is waited for then is not known before.
                    (false, _) => (Stage::Pending, &[][..]),
                }
            }
        };
        if !self.election.is_ours().await {
            return;
        }
        self.report_counters(publication);
        self.label(labels, stage).await;
        self.report(labels.config.as_deref(), stage, decision, waiting);
    }

    async fn label(&mut self, labels: &mut LayoutLabels, stage: Stage) {
        let state = match stage {
            _ if labels.config.is_none() => None,
            Stage::Pending => Some("pending"),
            Stage::Success => Some("success"),
            // A program that waits for the state has to learn that nothing will come.
            Stage::Failed | Stage::Unused => Some("failed"),
        };
        // A state that another program wrote is not ours to remove.
        if labels.state.as_deref() == state || state.is_none() && !self.wrote_state {
            return;
        }
        let (retry, not_before) = &mut self.retry;
        if !self.writes_state || not_before.is_some_and(|it| Instant::now() < it) {
            return;
        }
        match self.node.set_state(state).await {
            Ok(()) => {
                retry.succeeded();
                self.refusals.succeeded();
                self.wrote_state = state.is_some();
                labels.state = state.map(str::to_owned);
                labels.state_manager = state.map(|_| self.node.manager().to_owned());
            }
            Err(error) if error.is_forbidden => {
                if self.refusals.failures() == 0 {
                    warn!(
                        %error,
                        "this account may not label its Node: the label {STATE_LABEL} is not written; grant patch on nodes \
                         (chart value rbac.layoutLabels), or leave the label alone with --state-label off"
                    );
                }
                *not_before = Some(Instant::now() + self.refusals.failed());
            }
            Err(error) => {
                if retry.failures() == 0 {
                    warn!(%error, "the label {STATE_LABEL} could not be written, trying again");
                }
                *not_before = Some(Instant::now() + retry.failed());
            }
        }
    }

    /// Reports once that another program writes the state label: a MIG manager destroys instances that this driver offers.
    fn notice_other_writer(&mut self, labels: &LayoutLabels) {
        let other =
            labels.state_manager.as_deref().filter(|it| self.writes_state && *it != self.node.manager());
        if other == self.other_writer.as_deref() {
            return;
        }
        self.other_writer = other.map(str::to_owned);
        let (Some(manager), Some(state)) = (other, &labels.state) else { return };
        let node = self.node.name();
        let note = format!(
            "label {STATE_LABEL} was set to `{state}` by `{manager}`, not by this driver. A MIG manager on this node destroys and \
             creates the MIG instances that this driver offers: stop it here (kubectl label node {node} \
             nvidia.com/gpu.deploy.mig-manager=false --overwrite). If it only switches MIG mode, leave the label to it: \
             --state-label off, chart value stateLabel. If no program writes the label any more, remove it: kubectl label node \
             {node} {STATE_LABEL}-"
        );
        warn!(state, manager, "another program writes the label {STATE_LABEL}");
        self.events.emit(EventReason::MigManagerDetected, note);
    }

    /// Says so where the API server began or ceased to keep counters.
    fn report_counters(&mut self, publication: &Publication) {
        let is_counted = match publication {
            Publication::Complete { is_counted: true, .. } => true,
            Publication::Layout { .. } => false,
            _ => return,
        };
        match (self.was_counted.replace(is_counted), is_counted) {
            (Some(true), false) => {
                let note = "kube-apiserver does not keep the pool's shared counters (Kubernetes 1.35 or later with the feature gate \
                            DRAPartitionableDevices does): devices that don't overlap are published, by layout";
                self.events.emit(EventReason::CountersDropped, note.to_owned());
            }
            (Some(false), true) => {
                let note = "kube-apiserver keeps shared counters: every placement is published, layouts play no part";
                self.events.emit(EventReason::CountersKept, note.to_owned());
            }
            _ => {}
        }
    }

    fn report(&mut self, label: Option<&str>, stage: Stage, decision: &Decision, waiting: &[String]) {
        let report = Report { revision: decision.revision, stage, has_reasons: !waiting.is_empty() };
        let before = self.reported.replace(report.clone());
        if before.as_ref() == Some(&report) {
            return;
        }
        let Some(label) = label else { return };
        match (stage, &decision.refusal) {
            (Stage::Unused, _) => {
                let note = format!("layout `{label}` has no effect on this node: {}", waiting.join("; "));
                self.events.emit(EventReason::LayoutHasNoEffect, note);
            }
            (Stage::Failed, Some(Refusal::NoEffect(refusal))) => {
                let note = format!(
                    "layout `{label}` has no effect on this node, the one before stays in force: {refusal}"
                );
                self.events.emit(EventReason::LayoutHasNoEffect, note);
            }
            (Stage::Failed, Some(Refusal::Impossible(refusal))) => {
                let note = format!("layout `{label}` refused, the one before stays in force: {refusal}");
                self.events.emit(EventReason::LayoutRefused, note);
            }
            (Stage::Pending, _) if !waiting.is_empty() => {
                let note = format!("layout `{label}` is in force as far as possible; {}", waiting.join("; "));
                self.events.emit(EventReason::LayoutPending, note);
            }
            (Stage::Success, _) => {
                self.events.emit(EventReason::LayoutApplied, format!("layout `{label}` is in force"));
            }
            _ => {}
        }
    }
}

/// What a layout could be about.
pub(super) enum Gpus {
    /// Nothing, and why.
    None(String),
    /// GPUs of which none can be cut.
    Whole,
    /// GPUs of which one at least can be cut.
    Cuttable,
}

impl Gpus {
    pub(super) fn of(hardware: &Result<Arc<Hardware>, String>) -> Self {
        let (gpus, reason) = match hardware {
            Ok(hardware) => {
                let first = hardware.facts.skipped.first();
                (&hardware.facts.gpus[..], first.map_or("NVML lists no GPU", |it| &it.reason))
            }
            Err(reason) => (&[][..], reason.as_str()),
        };
        match gpus {
            [] => Self::None(format!("no GPU of this node can be offered now: {reason}")),
            gpus if gpus.iter().any(|it| it.cuttable().is_some()) => Self::Cuttable,
            _ => Self::Whole,
        }
    }
}
