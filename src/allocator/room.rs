//! How many more devices of a kind a node has room for.

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::Device;

use crate::allocated::{Allocated, DeviceId};
use crate::counters::{Counters, consumes};
use crate::explain::pools;
use crate::node::device_targets;
use crate::pool::{Candidate, PoolReport, View};
use crate::select::intolerable;
use crate::{Cluster, Features};

/// What is left of the devices of one node; made by [`Cluster::room`].
#[derive(Debug)]
pub struct Room<'r> {
    view: &'r View<'r>,
    counters: Counters<'r, 'r>,
    /// Whether a claim without tolerations could get the device, as far as counters do not forbid it.
    is_open: Vec<bool>,
}

impl Cluster<'_> {
    /// Asks what is left of the devices of a node.
    pub fn room<T>(&self, node: &Node, allocated: &Allocated, ask: impl FnOnce(&mut Room<'_>) -> T) -> T {
        let view = self.pools.view(node);
        ask(&mut Room::new(&view, self.features, allocated))
    }
}

impl<'r> Room<'r> {
    fn new(view: &'r View<'r>, features: Features, allocated: &'r Allocated) -> Self {
        let is_open = |candidate: &Candidate<'_>| {
            let device = candidate.device;
            let is_elsewhere =
                candidate.spec.per_device_node_selection == Some(true) && !device_targets(device, view.node);
            let is_conditional = device.binding_conditions.as_ref().is_some_and(|it| !it.is_empty());
            let is_tainted = features.device_taints && intolerable(device.taints.as_deref(), &[]).is_some();
            let is_uncounted = consumes(device) && !features.partitionable_devices;
            let is_free = allocated.holder(&candidate.id).is_none();
            is_free && !is_elsewhere && !is_conditional && !is_tainted && !is_uncounted
        };
        let is_open = view.candidates.iter().map(is_open).collect();
        Self { view, counters: Counters::new(view, allocated), is_open }
    }

    /// The devices that the node sees, in the order in which the scheduler tries them. Pools with a problem have none.
    pub fn devices(&self) -> impl Iterator<Item = (&'r DeviceId, &'r Device)> {
        self.view.candidates.iter().map(|it| (&it.id, it.device))
    }

    /// How many of these devices, given as positions in [`Room::devices`] in ascending order, the scheduler would allocate one
    /// after the other to claims for one of them each. Nothing is taken for good.
    pub fn count(&mut self, devices: &[usize]) -> usize {
        let mut counted = Vec::new();
        let mut count = 0;
        for position in devices.iter().copied().filter(|it| self.is_open.get(*it) == Some(&true)) {
            if consumes(self.view.candidates[position].device) {
                if !self.counters.take(position) {
                    continue;
                }
                counted.push(position);
            }
            count += 1;
        }
        counted.into_iter().for_each(|it| self.counters.give_back(it));
        count
    }

    /// Pools with a problem, as in [`Explanation::pools`](crate::Explanation::pools).
    pub fn problems(&mut self) -> Vec<PoolReport> {
        pools(self.view, &mut self.counters)
    }
}
