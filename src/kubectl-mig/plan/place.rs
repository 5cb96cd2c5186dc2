//! Places pods one after the other, as the scheduler does.
//!
//! Of the nodes that a pod may use, the one with the best score that can allocate all its claims gets it; of equal ones the
//! first by name, where the scheduler draws lots. The scheduler scores nodes by more than CPU and memory, and looks at a part of
//! them only in clusters of more than a hundred; neither changes which devices a node allocates.

use std::collections::HashMap;
use std::rc::Rc;

use dra_allocator::{ClaimRef, Refusal, is_allocated};
use k8s_openapi::api::core::v1::{NodeSelector, Pod};
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceRequestAllocationResult, ResourceClaim};

use super::args::Scoring;
use super::engine::{Allocation, Attempt, Engine, Outcome, Planned, lacking, usable_on};
use super::stock::{Site, Stock};
use super::why;
use super::workload::Workload;
use crate::cluster::{cordon_toleration, rules};

/// What happens to a pod without a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unplaced {
    /// The reason is found out, and the next pod is tried.
    Explain,
    /// The next pod is tried.
    Skip,
    /// Nothing more is tried.
    Stop,
}

/// A claim that several pods may use, with the allocation that it has.
type Shared = HashMap<(String, String), AllocationResult>;

impl Engine<'_> {
    /// Places the pods of all workloads.
    pub(super) fn place(&self, stock: &Stock, workloads: &[Workload], unplaced: Unplaced) -> Outcome {
        let mut run = Run {
            engine: self,
            outcome: Outcome {
                pods: Vec::new(),
                sites: stock.sites.clone(),
                books: stock.books.clone(),
                reasons: HashMap::new(),
            },
            shared: Shared::new(),
        };
        for (index, workload) in workloads.iter().enumerate() {
            for (pod, only) in run.pods_of(workload) {
                let is_placed = run.add(index, workload, &pod, only, unplaced);
                if !is_placed && unplaced == Unplaced::Stop {
                    return run.outcome;
                }
            }
        }
        run.outcome
    }
}

struct Run<'e, 'a> {
    engine: &'e Engine<'a>,
    outcome: Outcome,
    shared: Shared,
}

impl Run<'_, '_> {
    /// The pods of a workload; one of a DaemonSet has its node.
    fn pods_of(&self, workload: &Workload) -> Vec<(Pod, Option<usize>)> {
        if !workload.demand.per_node {
            return (0..workload.demand.replicas).map(|index| (workload.demand.pod(index), None)).collect();
        }
        let sites = self.outcome.sites.iter().enumerate();
        let mut template = workload.demand.pod.clone();
        // The controller of DaemonSets lets its pods tolerate a cordon.
        if let Some(spec) = &mut template.spec {
            spec.tolerations.get_or_insert_default().push(cordon_toleration());
        }
        let may_run = |site: &Site| site.node.as_ref().is_none_or(|node| rules(&template, node).is_empty());
        let one = |(index, site): (usize, &Site)| {
            let mut pod = template.clone();
            if let Some(name) = &mut pod.metadata.name {
                *name = format!("{name}-{}", site.name);
            }
            (pod, Some(index))
        };
        sites.filter(|(_, site)| may_run(site)).map(one).collect()
    }

    /// Places a pod; false where it has no place.
    fn add(
        &mut self,
        index: usize,
        workload: &Workload,
        pod: &Pod,
        only: Option<usize>,
        unplaced: Unplaced,
    ) -> bool {
        let name = ClaimRef {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
        };
        // The same objects as for the workload's first pod, so they are there.
        let claims = self.engine.catalog.planned_claims(pod).unwrap_or_default();
        let claims = self.with_shared(claims);
        let place = self.find(workload, pod, &claims, only);
        let is_placed = place.is_some();
        if !is_placed && unplaced == Unplaced::Explain && !self.outcome.reasons.contains_key(&index) {
            let reason = why::reason(self.engine, &self.outcome, workload, pod, &claims, only);
            self.outcome.reasons.insert(index, reason);
        }
        self.outcome.pods.push(Planned { workload: index, pod: name, place });
        is_placed
    }

    /// Claims with the allocations that other pods of the plan have given them.
    fn with_shared(&self, mut claims: Vec<ResourceClaim>) -> Vec<ResourceClaim> {
        for claim in &mut claims {
            if let Some(allocation) = self.shared.get(&key(claim)) {
                claim.status.get_or_insert_default().allocation = Some(allocation.clone());
            }
        }
        claims
    }

    fn find(
        &mut self,
        workload: &Workload,
        pod: &Pod,
        claims: &[ResourceClaim],
        only: Option<usize>,
    ) -> Option<(usize, Vec<Allocation>)> {
        let sites: Vec<usize> = match only {
            Some(site) => vec![site],
            None => (0..self.outcome.sites.len()).collect(),
        };
        let share = |site: &usize| {
            let free = self.outcome.sites[*site].free_share();
            if self.engine.scoring == Scoring::LeastAllocated { -free } else { free }
        };
        let mut sites: Vec<(f64, usize)> = sites.into_iter().map(|site| (share(&site), site)).collect();
        sites.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        for (_, site) in sites {
            match self.attempt(workload, pod, claims, site) {
                Attempt::Placed(allocations, state) => {
                    self.outcome.sites[site].state = state;
                    return Some((site, self.enter(pod, claims, site, &allocations)));
                }
                Attempt::Refused => {}
                Attempt::Aborted => return None,
            }
        }
        None
    }

    fn attempt(&self, workload: &Workload, pod: &Pod, claims: &[ResourceClaim], site: usize) -> Attempt {
        let engine = self.engine;
        let site = &self.outcome.sites[site];
        if site.node.as_ref().is_some_and(|node| !rules(pod, node).is_empty()) {
            return Attempt::Refused;
        }
        let node = engine.node_of(site);
        if !claims.iter().all(|claim| usable_on(claim, site, node))
            || lacking(engine, workload, site).is_some()
        {
            return Attempt::Refused;
        }
        let has_allocated = claims.iter().any(is_allocated);
        // The answer is the same for each pod of a workload on each node of a kind and state.
        let question = site.state.filter(|_| !has_allocated).map(|state| (site.kind, state, workload.id));
        if let Some(known) = question.and_then(|it| engine.known.borrow().get(&it).cloned()) {
            return known;
        }
        let open = self.open(pod, claims, site);
        let answer = match engine.clusters[site.kind].allocate(node, &open, &self.outcome.books[site.book]) {
            Ok(allocations) => Attempt::Placed(Rc::new(allocations), site.state.map(|_| engine.new_state())),
            Err(Refusal::Aborted(_)) => Attempt::Aborted,
            Err(_) => Attempt::Refused,
        };
        if let Some(question) = question {
            engine.known.borrow_mut().insert(question, answer.clone());
        }
        answer
    }

    /// The claims of a pod that are to be allocated on a node.
    fn open(&self, pod: &Pod, claims: &[ResourceClaim], site: &Site) -> Vec<ResourceClaim> {
        let mut open: Vec<ResourceClaim> =
            claims.iter().filter(|claim| !is_allocated(claim)).cloned().collect();
        let node = site.node.as_ref().unwrap_or_else(|| self.engine.node_of(site));
        open.extend(self.engine.extended_claim(pod, node));
        open
    }

    /// Enters what a pod gets.
    fn enter(
        &mut self,
        pod: &Pod,
        claims: &[ResourceClaim],
        site: usize,
        allocations: &[AllocationResult],
    ) -> Vec<Allocation> {
        let book = self.outcome.sites[site].book;
        let open = self.open(pod, claims, &self.outcome.sites[site]);
        let mut entered = Vec::new();
        for (mut done, allocation) in open.into_iter().zip(allocations) {
            let results = results_of(allocation);
            let name = key(&done);
            if claims.iter().any(|it| key(it) == name) {
                self.shared.insert(name, with_site(allocation.clone(), &self.outcome.sites[site].name));
            }
            done.status.get_or_insert_default().allocation = Some(allocation.clone());
            self.outcome.books[book].add(&done);
            entered.push((ClaimRef::of(&done), results));
        }
        for claim in claims.iter().filter(|claim| is_allocated(claim)) {
            entered.push((ClaimRef::of(claim), Vec::new()));
        }
        self.outcome.sites[site].add(pod);
        entered
    }
}

fn key(claim: &ResourceClaim) -> (String, String) {
    let ClaimRef { namespace, name } = ClaimRef::of(claim);
    (namespace, name)
}

pub(super) fn results_of(allocation: &AllocationResult) -> Vec<DeviceRequestAllocationResult> {
    allocation.devices.as_ref().and_then(|it| it.results.clone()).unwrap_or_default()
}

/// An allocation on a node of the plan. Nodes that do not exist share the slices of their kind, which name another node.
fn with_site(mut allocation: AllocationResult, site: &str) -> AllocationResult {
    let terms = |it: &mut NodeSelector| {
        for term in &mut it.node_selector_terms {
            for field in term.match_fields.iter_mut().flatten().filter(|it| it.key == "metadata.name") {
                field.values = Some(vec![site.to_owned()]);
            }
        }
    };
    allocation.node_selector.iter_mut().for_each(terms);
    allocation
}
