//! What every part of the node needs.

use std::sync::Arc;

use tokio::sync::{Notify, watch};

use crate::api::Events;
use crate::checkpoint::Checkpoint;
use crate::hardware::NodeState;
use crate::pods::Pods;
use crate::telemetry::metrics::Metrics;

/// The node, this driver on it, and what all parts share. Clones share the same.
#[derive(Debug, Clone)]
pub struct NodeContext {
    /// Name of the Node object.
    pub name: String,
    /// Name of the DRA driver.
    pub driver: String,
    /// This node's pool: device names alone are the same on every node.
    pub pool: String,
    /// The present boot of the node.
    pub boot_id: String,
    /// GPUs and offers, or why there are none.
    pub node: watch::Receiver<NodeState>,
    /// The records of claims.
    pub checkpoint: Checkpoint,
    /// Events of the node and of claims.
    pub events: Events,
    /// Where it is counted.
    pub metrics: Metrics,
    /// Which pods have which claim.
    pub pods: Pods,
    /// Notified when the hardware turns out not to be as published, so that it is looked at again at once.
    pub rescan: Arc<Notify>,
}
