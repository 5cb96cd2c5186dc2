//! The search: claims, requests and devices in order, the first complete solution wins.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::resource::v1::{DeviceConstraint, DeviceTaint, DeviceToleration, ResourceClaim};

use crate::cel_env::Evaluator;
use crate::pool::{Candidate, Counters, Pool};
use crate::request::{self, Amount, Request, Wanted};
use crate::{Cluster, MAX_STEPS, Refusal, constraint, counters, selector_failed};

/// A device given to a request.
#[derive(Debug)]
pub(super) struct Choice<'p, 'a> {
    pub(super) claim: usize,
    pub(super) request: usize,
    pub(super) alternative: usize,
    pub(super) candidate: &'p Candidate<'a>,
}

/// Where the search stands: the request, the alternative, and how many of its devices are found.
#[derive(Clone, Copy)]
struct At {
    claim: usize,
    request: usize,
    alternative: usize,
    device: usize,
}

/// The state of one attempt on one node.
pub(super) struct Search<'p, 'a> {
    cluster: &'p Cluster<'a>,
    pools: &'p [Pool<'a>],
    claims: &'p [ResourceClaim],
    pub(super) requests: Vec<Vec<Request>>,
    pub(super) chosen: Vec<Choice<'p, 'a>>,
    available: Vec<Counters>,
    evaluator: Evaluator,
    /// Answers of selectors, by claim, request, alternative and the candidate's address.
    selected: BTreeMap<(usize, usize, usize, usize), bool>,
    steps: usize,
}

impl<'p, 'a> Search<'p, 'a> {
    pub(super) fn new(
        cluster: &'p Cluster<'a>,
        pools: &'p [Pool<'a>],
        claims: &'p [ResourceClaim],
    ) -> Result<Self, Refusal> {
        Ok(Self {
            cluster,
            pools,
            claims,
            requests: request::read(cluster, claims)?,
            chosen: Vec::new(),
            available: pools.iter().map(|p| p.available.clone()).collect(),
            evaluator: Evaluator::new(),
            selected: BTreeMap::new(),
            steps: 0,
        })
    }

    /// Searches from the start. True when everything is allocated.
    pub(super) fn run(&mut self) -> Result<bool, Refusal> {
        self.request(0, 0)
    }

    fn request(&mut self, claim: usize, request: usize) -> Result<bool, Refusal> {
        if claim == self.claims.len() {
            return Ok(true);
        }
        if request == self.requests[claim].len() {
            return self.request(claim + 1, 0);
        }
        for alternative in 0..self.requests[claim][request].alternatives.len() {
            let at = At { claim, request, alternative, device: 0 };
            let found = match self.wanted(at).amount {
                Amount::Exactly(count) => self.exactly(at, count)?,
                Amount::All => self.all(at)?,
            };
            if found {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn wanted(&self, at: At) -> &Wanted {
        &self.requests[at.claim][at.request].alternatives[at.alternative]
    }

    fn candidates(&self) -> impl Iterator<Item = &'p Candidate<'a>> + use<'p, 'a> {
        self.pools.iter().filter(|p| !p.incomplete).flat_map(|p| &p.devices)
    }

    /// Finds the remaining devices of a request that wants a number of them, and then everything after it.
    fn exactly(&mut self, at: At, count: usize) -> Result<bool, Refusal> {
        if at.device == count {
            return self.request(at.claim, at.request + 1);
        }
        for candidate in self.candidates() {
            if self.take(at, candidate)? {
                if self.exactly(At { device: at.device + 1, ..at }, count)? {
                    return Ok(true);
                }
                self.give_back();
            }
        }
        Ok(false)
    }

    /// Takes every device that the selectors choose; one that is not to be had fails the request.
    fn all(&mut self, at: At) -> Result<bool, Refusal> {
        if self.pools.iter().any(|p| p.incomplete) {
            let why = "asks for all devices, but a resource pool is incomplete";
            return Err(Refusal::in_claim(&self.claims[at.claim], why));
        }
        let mut wanted = Vec::new();
        for candidate in self.candidates() {
            if self.selects(at, candidate)? {
                wanted.push(candidate);
            }
        }
        let before = self.chosen.len();
        let mut complete = !wanted.is_empty();
        for candidate in wanted {
            complete = complete && self.take(at, candidate)?;
        }
        if complete && self.request(at.claim, at.request + 1)? {
            return Ok(true);
        }
        while self.chosen.len() > before {
            self.give_back();
        }
        Ok(false)
    }

    /// Whether class and request select the device; every selector's answer is kept.
    fn selects(&mut self, at: At, candidate: &'p Candidate<'a>) -> Result<bool, Refusal> {
        let key = (at.claim, at.request, at.alternative, std::ptr::from_ref(candidate).addr());
        if let Some(answer) = self.selected.get(&key) {
            return Ok(*answer);
        }
        let mut answer = true;
        for program in &self.wanted(at).selectors {
            let selected = self.evaluator.selects(program, &candidate.id.driver, candidate.device);
            answer =
                selected.map_err(|e| selector_failed(&self.claims[at.claim], &candidate.id.device, &e))?;
            if !answer {
                break;
            }
        }
        self.selected.insert(key, answer);
        Ok(answer)
    }

    /// Gives the device to the request, if it may have it. The order of the checks is upstream's.
    fn take(&mut self, at: At, candidate: &'p Candidate<'a>) -> Result<bool, Refusal> {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return Err(Refusal::TimedOut);
        }
        let admin = self.wanted(at).admin;
        let taken = self.cluster.in_use.contains(&candidate.id)
            || self.chosen.iter().any(|c| c.candidate.id == candidate.id && !self.is_admin(c));
        if taken && !admin {
            return Ok(false);
        }
        if !self.selects(at, candidate)? {
            return Ok(false);
        }
        if !tolerated(candidate.device.taints.as_deref(), &self.wanted(at).tolerations) {
            return Ok(false);
        }
        if !self.constraints(at, candidate) {
            return Ok(false);
        }
        if !counters::take(&mut self.available[candidate.pool], candidate.device) {
            return Ok(false);
        }
        self.chosen.push(Choice {
            claim: at.claim,
            request: at.request,
            alternative: at.alternative,
            candidate,
        });
        Ok(true)
    }

    fn is_admin(&self, choice: &Choice<'p, 'a>) -> bool {
        self.requests[choice.claim][choice.request].alternatives[choice.alternative].admin
    }

    fn give_back(&mut self) {
        if let Some(choice) = self.chosen.pop() {
            counters::give_back(&mut self.available[choice.candidate.pool], choice.candidate.device);
        }
    }

    fn constraints(&self, at: At, candidate: &Candidate<'a>) -> bool {
        let name = &self.wanted(at).name;
        let devices = self.claims[at.claim].spec.devices.as_ref();
        let all = devices.and_then(|d| d.constraints.as_deref()).unwrap_or_default();
        all.iter().filter(|c| constraint::covers(c, name)).all(|constraint| {
            constraint::holds(constraint, self.chosen_under(at.claim, constraint), candidate)
        })
    }

    /// The devices that the claim has so far for requests under a constraint.
    fn chosen_under<'s>(
        &'s self,
        claim: usize,
        constraint: &'s DeviceConstraint,
    ) -> impl Iterator<Item = &'s Candidate<'a>> {
        let covered = move |choice: &&Choice<'p, 'a>| {
            let wanted = &self.requests[choice.claim][choice.request].alternatives[choice.alternative];
            choice.claim == claim && constraint::covers(constraint, &wanted.name)
        };
        self.chosen.iter().filter(covered).map(|choice| choice.candidate)
    }
}

fn tolerated(taints: Option<&[DeviceTaint]>, tolerations: &[DeviceToleration]) -> bool {
    let keeps_out = |taint: &&DeviceTaint| taint.effect == "NoSchedule" || taint.effect == "NoExecute";
    taints.unwrap_or_default().iter().filter(keeps_out).all(|taint| {
        tolerations.iter().any(|toleration| {
            let effect = toleration.effect.as_deref().is_none_or(|e| e.is_empty() || e == taint.effect);
            let key = toleration.key.as_deref().is_none_or(|k| k.is_empty() || k == taint.key);
            let exists = toleration.operator.as_deref() == Some("Exists");
            effect && key && (exists || toleration.value == taint.value)
        })
    })
}

/// Devices that the allocations of claims hold; those with admin access hold nothing.
#[must_use]
pub(super) fn held<'c>(claims: impl Iterator<Item = &'c ResourceClaim>) -> BTreeSet<crate::DeviceId> {
    let mut held = BTreeSet::new();
    for claim in claims {
        let devices =
            claim.status.as_ref().and_then(|s| s.allocation.as_ref()).and_then(|a| a.devices.as_ref());
        for result in devices.and_then(|d| d.results.as_deref()).unwrap_or_default() {
            if result.admin_access != Some(true) {
                held.insert(crate::DeviceId {
                    driver: result.driver.clone(),
                    pool: result.pool.clone(),
                    device: result.device.clone(),
                });
            }
        }
    }
    held
}
