//! The status of a MigNode, from what the driver knows. No call, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use mig_model::claim::ClaimRef;
use mig_model::mig_node::{
    Followed, MigNodeStatus, Observed, PublishingMode, Readiness, conditions, describe, summary,
};
use mig_model::slices::{Offered, Publication};

use crate::checkpoint::Record;
use crate::hardware::NodeState;
use crate::readiness::Effect;

/// What the driver knows.
pub(super) struct Known<'a> {
    pub(super) node: &'a NodeState,
    pub(super) publication: &'a Publication,
    pub(super) offered: &'a Offered,
    pub(super) records: &'a [Arc<Record>],
    /// Value of the label that names a layout.
    pub(super) layout: Option<&'a str>,
    pub(super) followed: Option<&'a Followed>,
}

impl Known<'_> {
    /// The status, with the conditions as they were `before`.
    pub(super) fn status(&self, before: &[Condition], now: Timestamp) -> MigNodeStatus {
        let Known { node, publication, followed, .. } = *self;
        let held = self.held();
        let (problems, missing) = self.problems();
        let is_counted = matches!(publication, Publication::Complete { is_counted: true, .. });
        let gpus = describe(&Observed {
            gpus: &node.inputs.gpus,
            policy: &node.inputs.policy,
            inventory: &node.inventory,
            published: &self.offered.devices,
            held: &held,
            problems: &problems,
            is_counted,
        });
        let unpublished = match publication {
            Publication::Pending { reason } => Some(reason.as_str()),
            Publication::Complete { .. }
            | Publication::Layout { .. }
            | Publication::WithoutCounters { .. } => None,
        };
        let host = node.host.iter().find(|it| it.effect == Effect::NoClaims).map(ToString::to_string);
        let ready = Readiness::of(unpublished, host.as_deref(), &gpus, &missing);
        MigNodeStatus {
            observed_generation: followed.map(|it| it.generation),
            mode: mode(publication),
            layout: self.layout.map(str::to_owned),
            summary: summary(&gpus, is_counted),
            conditions: conditions(&ready, followed, before, now),
            gpus,
        }
    }

    /// What claims have: by records, and where the API server has more as allocated, without the claim.
    fn held(&self) -> BTreeMap<String, Option<ClaimRef>> {
        let names: BTreeSet<&String> = self.node.held.iter().chain(&self.offered.allocated).collect();
        let mut held: BTreeMap<String, Option<ClaimRef>> =
            names.into_iter().map(|it| (it.clone(), None)).collect();
        for record in self.records {
            for device in record.held() {
                held.insert(device.name.clone(), Some(record.claim.clone()));
            }
        }
        held
    }

    /// Why GPUs offer nothing: of those that are described by UUID, of others as text.
    fn problems(&self) -> (BTreeMap<String, String>, Vec<String>) {
        let is_described = |gpu: &str| self.node.inputs.gpus.iter().any(|it| it.facts.uuid == gpu);
        let (known, others): (Vec<_>, Vec<_>) =
            self.node.problems.iter().partition(|it| is_described(&it.gpu));
        let known = known.into_iter().map(|it| (it.gpu.clone(), it.reason.clone())).collect();
        let unread = self.node.hardware.as_ref().err().cloned();
        (known, others.into_iter().map(ToString::to_string).chain(unread).collect())
    }
}

fn mode(publication: &Publication) -> Option<PublishingMode> {
    match publication {
        Publication::Pending { .. } => None,
        Publication::Complete { .. } => Some(PublishingMode::Partitionable),
        Publication::Layout { .. } | Publication::WithoutCounters { .. } => Some(PublishingMode::Layout),
    }
}
