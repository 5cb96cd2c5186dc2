//! What a MigNode says of demand.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use mig_model::mig_node::{Hold, MigNode, PublishingMode};

/// The label that chooses the layout of a node.
const LABEL: &str = "nvidia.com/mig.config";
/// Its value where the layout follows demand.
const AUTO: &str = "auto";

/// What a MigNode says of demand, as far as it tells why a pod waits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demanded {
    /// Whether the layout of the node follows demand.
    pub follows: bool,
    /// What its GPUs can be allocated as.
    pub profiles: BTreeSet<String>,
    /// GPUs that are held back.
    pub holds: Vec<Hold>,
}

impl Demanded {
    /// Of a node. Without the label for layouts it follows demand where `default_auto` says so.
    #[must_use]
    pub fn of(mig_node: &MigNode, node: Option<&Node>, default_auto: bool) -> Self {
        let mut demanded = Self::whatever_the_label(mig_node);
        demanded.with_label_of(node, default_auto);
        demanded
    }

    /// Of a node whose label is not known yet.
    #[must_use]
    pub fn whatever_the_label(mig_node: &MigNode) -> Self {
        let status = mig_node.status.as_ref();
        let profiles = status.iter().flat_map(|it| &it.gpus).flat_map(|it| &it.profiles);
        Self {
            follows: status.and_then(|it| it.mode) == Some(PublishingMode::Layout),
            profiles: profiles.map(|it| it.profile.clone()).collect(),
            holds: mig_node.spec.holds.clone(),
        }
    }

    /// Takes the label of the node into account. The controller holds GPUs back on nodes that take part only.
    pub fn with_label_of(&mut self, node: Option<&Node>, default_auto: bool) {
        self.follows &= is_auto(node, default_auto || !self.holds.is_empty());
    }

    /// Leaves out holds that are over.
    pub fn end_holds(&mut self, now: Timestamp) {
        self.holds.retain(|it| !it.is_over(now));
    }

    /// The layout that the label of a node names.
    pub(super) fn label_of(node: &Node) -> Option<&str> {
        node.metadata.labels.as_ref()?.get(LABEL).map(String::as_str)
    }
}

/// Whether demand decides the layout of a node: its label says `auto`, or it has none and `default_auto` says so.
#[must_use]
pub fn is_auto(node: Option<&Node>, default_auto: bool) -> bool {
    node.and_then(Demanded::label_of).map_or(default_auto, |it| it == AUTO)
}
