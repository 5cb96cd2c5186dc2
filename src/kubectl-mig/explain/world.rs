//! What the reasons are found in: the objects, and what the nodes answer.

use k8s_openapi::api::core::v1::{Node, Pod};

use super::explanation::NodeCounts;
use super::fleet::{NodeAnswer, Question};
use super::reason::Reason;
use crate::cluster::Snapshot;

/// Nodes and reports that are named.
pub(super) const MAX_NAMED: usize = 5;

/// What the nodes answer.
#[derive(Default)]
pub(super) struct Answers {
    pub(super) usable: Vec<NodeAnswer>,
    pub(super) hidden: Vec<NodeAnswer>,
    pub(super) counts: NodeCounts,
}

/// What the answer is about.
pub(super) struct World<'w, 'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) pod: Option<&'w Pod>,
    pub(super) question: &'w Question<'a>,
    pub(super) nodes: &'w [Node],
}

/// A reason with its rank: the lowest decides the sentence.
pub(super) type Ranked = Vec<(u8, Reason)>;
