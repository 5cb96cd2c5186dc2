//! What is the same for every pod that is placed, and where the pods went.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use dra_allocator::{Allocated, ClaimRef, Cluster};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceRequestAllocationResult, ResourceClaim};

use super::args::Scoring;
use super::stock::{FURTHER, Kind, Site};
use super::workload::Workload;
use crate::cluster::Gates;
use crate::manifest::Catalog;

/// What is the same for every attempt.
#[derive(Debug)]
pub(super) struct Engine<'a> {
    pub(super) kinds: &'a [Kind],
    /// One for each kind.
    pub(super) clusters: Vec<Cluster<'a>>,
    pub(super) catalog: &'a Catalog<'a>,
    pub(super) gates: Gates,
    pub(super) scoring: Scoring,
    pub(super) known: RefCell<HashMap<Question, Attempt>>,
    states: Cell<usize>,
}

/// Kind and state of a node, and the workload.
pub(super) type Question = (usize, usize, usize);

/// A claim with what it gets from this pod on: nothing where another pod of the plan has it already.
pub(super) type Allocation = (ClaimRef, Vec<DeviceRequestAllocationResult>);

/// A pod with its place, or without.
#[derive(Debug)]
pub(super) struct Planned {
    /// Index of its workload.
    pub(super) workload: usize,
    pub(super) pod: ClaimRef,
    /// Index of the node and what is allocated there.
    pub(super) place: Option<(usize, Vec<Allocation>)>,
}

/// Where everything went.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) pods: Vec<Planned>,
    pub(super) sites: Vec<Site>,
    pub(super) books: Vec<Allocated>,
    /// By workload, why the first of its pods that does not fit does not.
    pub(super) reasons: HashMap<usize, String>,
}

impl Outcome {
    pub(super) fn placed(&self) -> usize {
        self.pods.iter().filter(|it| it.place.is_some()).count()
    }

    /// Whether each pod has a place.
    pub(super) fn fits(&self) -> bool {
        self.pods.iter().all(|it| it.place.is_some())
    }
}

/// One pod on one node.
#[derive(Debug, Clone)]
pub(super) enum Attempt {
    /// What its claims get, and the state of the node with it.
    Placed(Rc<Vec<AllocationResult>>, Option<usize>),
    /// This node cannot have it.
    Refused,
    /// No node can have it.
    Aborted,
}

impl<'a> Engine<'a> {
    pub(super) fn new(
        kinds: &'a [Kind],
        clusters: Vec<Cluster<'a>>,
        catalog: &'a Catalog<'a>,
        gates: Gates,
        scoring: Scoring,
    ) -> Self {
        Self {
            kinds,
            clusters,
            catalog,
            gates,
            scoring,
            known: RefCell::default(),
            states: Cell::new(FURTHER),
        }
    }

    /// A state that no node had before.
    pub(super) fn new_state(&self) -> usize {
        self.states.replace(self.states.get() + 1)
    }
}

impl Engine<'_> {
    pub(super) fn node_of<'s>(&'s self, site: &Site) -> &'s Node {
        &self.kinds[site.kind].node
    }

    /// The claim for a pod's extended resources, where the scheduler makes one.
    pub(super) fn extended_claim(&self, pod: &Pod, node: &Node) -> Option<ResourceClaim> {
        if self.gates.extended_resource { self.catalog.extended_claim(pod, node) } else { None }
    }
}

/// An extended resource that neither a device plugin of the node nor a DeviceClass serves.
pub(super) fn lacking(engine: &Engine<'_>, workload: &Workload, site: &Site) -> Option<String> {
    let by_class = |name: &str| {
        let has_plugin = 0 < site.plugin_capacity(name);
        engine.gates.extended_resource && !has_plugin && engine.catalog.extended().class_of(name).is_some()
    };
    let is_short = |(name, amount): &(&String, &i64)| !by_class(name) && site.plugin_room(name) < **amount;
    workload.resources.iter().find(is_short).map(|(name, _)| name.clone())
}

/// Whether an allocated claim can be used on a node.
pub(super) fn usable_on(claim: &ResourceClaim, site: &Site, node: &Node) -> bool {
    let allocation = claim.status.as_ref().and_then(|it| it.allocation.as_ref());
    let Some(selector) = allocation.and_then(|it| it.node_selector.as_ref()) else { return true };
    let mut named = site.node.clone().unwrap_or_else(|| node.clone());
    named.metadata.name = Some(site.name.clone());
    dra_allocator::selects_node(selector, &named)
}
