//! The search: claims, requests and devices in order, the first complete solution wins.

use std::collections::BTreeSet;

use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim};

use crate::allocated::{Allocated, ClaimRef};
use crate::cel_env::Evaluator;
use crate::choice::{Choice, Request};
use crate::cluster::{Cluster, MAX_DEVICES};
use crate::constraint::MatchAttribute;
use crate::counters::{Counters, consumes};
use crate::dead_ends::{DeadEnds, State};
use crate::pool::{Candidate, PoolProblem, View};
use crate::position::{At, Stop};
use crate::refusal::{Abort, Refusal};
use crate::request::{self, Amount, Wanted};
use crate::result;
use crate::select::{Selected, intolerable, selected};

/// What a search found.
#[derive(Debug)]
pub(crate) struct Solved {
    pub(crate) outcome: Result<Vec<AllocationResult>, Refusal>,
    /// Whether a refused candidate kept its counters. If not, the search is the same where none does.
    pub(crate) leaked: bool,
}

/// The state of one attempt on one node.
pub(crate) struct Search<'p, 'a> {
    cluster: &'p Cluster<'a>,
    view: &'p View<'a>,
    claims: &'a [ResourceClaim],
    requests: Vec<Vec<Request<'a>>>,
    chosen: Vec<Vec<Choice>>,
    constraints: Vec<Vec<MatchAttribute<'a>>>,
    counters: Counters<'p, 'a>,
    /// Whether other claims hold a candidate.
    in_use: Vec<bool>,
    /// The claims of this attempt that a candidate is given to.
    given: Vec<BTreeSet<usize>>,
    evaluator: Evaluator,
    steps: usize,
    dead_ends: DeadEnds,
    /// Whether a candidate that a taint or a constraint refuses keeps its counters, as upstream's do.
    leaks: bool,
    /// How many have kept them.
    leaked: usize,
}

impl<'p, 'a> Search<'p, 'a> {
    pub(crate) fn new(
        cluster: &'p Cluster<'a>,
        view: &'p View<'a>,
        claims: &'a [ResourceClaim],
        allocated: &'p Allocated,
    ) -> Self {
        Self {
            cluster,
            view,
            claims,
            requests: Vec::new(),
            chosen: claims.iter().map(|_| Vec::new()).collect(),
            constraints: Vec::new(),
            counters: Counters::new(view, allocated),
            in_use: view.candidates.iter().map(|c| allocated.holder(&c.id).is_some()).collect(),
            given: view.candidates.iter().map(|_| BTreeSet::new()).collect(),
            evaluator: Evaluator::new(),
            steps: 0,
            dead_ends: DeadEnds::default(),
            leaks: true,
            leaked: 0,
        }
    }

    /// Searches from the start. Says, too, whether a refused candidate kept its counters.
    pub(crate) fn solve(mut self, leaks: bool) -> Solved {
        self.leaks = leaks;
        let outcome = self.outcome();
        Solved { outcome, leaked: self.leaked > 0 }
    }

    fn outcome(&mut self) -> Result<Vec<AllocationResult>, Refusal> {
        for claim in 0..self.claims.len() {
            self.prepare(claim)?;
        }
        // Upstream forgets here what selectors answered.
        for request in self.requests.iter_mut().flatten() {
            request.answers.iter_mut().for_each(|answers| answers.fill(None));
        }
        match self.allocate(At::start_of(0, 0), false) {
            Ok(true) => {
                return Ok(result::allocations(self.view, self.claims, &self.requests, &self.chosen)?);
            }
            Err(Stop::Refused(refusal)) => return Err(refusal),
            Ok(false) | Err(Stop::TooManyDevices) => {}
        }
        let invalid = self.view.pools.iter().filter_map(|pool| match &pool.problem {
            Some(PoolProblem::Invalid { why }) => Some(format!("pool {}: {why}", pool.name)),
            _ => None,
        });
        let invalid: Vec<String> = invalid.collect();
        Err(if invalid.is_empty() { Refusal::DoesNotFit } else { Refusal::InvalidPools(invalid.join("; ")) })
    }

    /// Looks up what a claim's requests and constraints name.
    fn prepare(&mut self, claim: usize) -> Result<(), Abort> {
        self.requests.push(Vec::new());
        let this = &self.claims[claim];
        for (index, asked) in request::requests(this).iter().enumerate() {
            let written = request::written(asked);
            let answers = written.iter().map(|_| vec![None; self.view.candidates.len()]).collect();
            let is_list = written.iter().any(|w| w.alternative.is_some());
            self.requests[claim].push(Request { is_list, answers, ..Request::default() });
            for (alternative, written) in written.iter().enumerate() {
                let mut wanted = written.resolve(self.cluster, this)?;
                if wanted.amount == Amount::All {
                    // Upstream's answers go under the alternative before: two alternatives for all devices share them.
                    let remembered =
                        At { alternative: alternative.saturating_sub(1), ..At::start_of(claim, index) };
                    wanted.all = self.all(remembered, &wanted)?;
                }
                self.requests[claim][index].alternatives.push(wanted);
            }
            if written.is_empty() {
                let (claim, request) = (ClaimRef::of(this), asked.name.clone());
                return Err(Abort::Unsupported { claim, request, why: "unsupported request type".into() });
            }
        }
        let requests: Vec<Vec<Wanted<'a>>> =
            self.requests[claim].iter().map(|r| r.alternatives.clone()).collect();
        request::check_total(this, &requests)?;
        let constraints = this.spec.devices.as_ref().and_then(|d| d.constraints.as_deref());
        let constraints = constraints.unwrap_or_default().iter().enumerate().map(|(constraint, written)| {
            MatchAttribute::new(written)
                .ok_or_else(|| Abort::ConstraintUnsupported { claim: ClaimRef::of(this), constraint })
        });
        self.constraints.push(constraints.collect::<Result<_, _>>()?);
        Ok(())
    }

    /// What a request for all devices takes.
    fn all(&mut self, remembered: At, wanted: &Wanted<'a>) -> Result<Vec<usize>, Abort> {
        let mut all = Vec::new();
        for pool in &self.view.pools {
            let state = match pool.problem {
                Some(PoolProblem::Incomplete { .. }) => "being updated",
                Some(_) => "invalid",
                None => {
                    for candidate in pool.devices.clone() {
                        if self.selects(remembered, wanted, candidate)? {
                            all.push(candidate);
                        }
                    }
                    continue;
                }
            };
            return Err(Abort::AllFromBrokenPool {
                claim: ClaimRef::of(&self.claims[remembered.claim]),
                request: wanted.name.clone(),
                driver: pool.driver.to_owned(),
                pool: pool.name.to_owned(),
                state,
            });
        }
        Ok(all)
    }

    fn wanted(&self, at: At) -> &Wanted<'a> {
        &self.requests[at.claim][at.request].alternatives[at.alternative]
    }

    /// Allocates everything from `at` on. `inside` is true when an alternative is chosen already.
    fn allocate(&mut self, at: At, inside: bool) -> Result<bool, Stop> {
        if at.claim == self.claims.len() {
            return Ok(true);
        }
        if at.request == self.requests[at.claim].len() {
            return match self.allocate(At::start_of(at.claim + 1, 0), false) {
                // An earlier claim may leave devices for an alternative of the next one that takes fewer.
                Err(Stop::TooManyDevices) => Ok(false),
                other => other,
            };
        }
        if !inside && self.requests[at.claim][at.request].is_list {
            return self.alternatives(at);
        }
        let wanted = self.wanted(at);
        let (amount, count) = (wanted.amount, wanted.count());
        if amount == Amount::All && count == 0 {
            return Ok(false);
        }
        if at.device >= count {
            return self.allocate(At::start_of(at.claim, at.request + 1), false);
        }
        if self.chosen[at.claim].len() + count - at.device > MAX_DEVICES {
            return Err(Stop::TooManyDevices);
        }
        if amount == Amount::All { self.next_of_all(at, inside) } else { self.any(at, inside) }
    }

    fn alternatives(&mut self, at: At) -> Result<bool, Stop> {
        let mut always_too_many = true;
        for alternative in 0..self.requests[at.claim][at.request].alternatives.len() {
            match self.allocate(At { alternative, ..at }, true) {
                Err(Stop::TooManyDevices) => continue,
                Err(stop) => return Err(stop),
                Ok(true) => {
                    self.requests[at.claim][at.request].selected = alternative;
                    return Ok(true);
                }
                Ok(false) => always_too_many = false,
            }
        }
        if always_too_many { Err(Stop::TooManyDevices) } else { Ok(false) }
    }

    /// Takes the next device of a request for all of them. Upstream continues with the first alternative, whichever this was.
    fn next_of_all(&mut self, at: At, inside: bool) -> Result<bool, Stop> {
        let candidate = self.wanted(at).all[at.device];
        if !self.take(at, candidate, true)? {
            return Ok(false);
        }
        let done = self.allocate(At { alternative: 0, device: at.device + 1, ..at }, inside);
        if !matches!(done, Ok(true)) {
            self.give_back(at);
        }
        done
    }

    /// Finds the next device, unless it is known from here that there is none. What was tried then counts again.
    fn any(&mut self, at: At, inside: bool) -> Result<bool, Stop> {
        let Some(state) = self.state(at, inside) else { return self.try_each(at, inside) };
        if let Some(steps) = self.dead_ends.steps(&state, self.leaked) {
            return self.count(steps).map(|()| false);
        }
        let (steps, leaked) = (self.steps, self.leaked);
        let found = self.try_each(at, inside)?;
        if !found && self.leaked == leaked {
            self.dead_ends.add(state, self.steps - steps);
        }
        Ok(found)
    }

    /// Where the search stands, if it can come here again.
    fn state(&self, at: At, inside: bool) -> Option<State> {
        let chosen: usize = self.chosen.iter().map(Vec::len).sum();
        if chosen < 2 {
            return None;
        }
        let mut state = vec![at.claim, at.request, at.alternative, at.device, usize::from(inside)];
        for of_claim in &self.chosen {
            state.push(of_claim.len());
            let first = state.len();
            state.extend(of_claim.iter().map(|choice| choice.candidate));
            state[first..].sort_unstable();
        }
        state.extend(self.constraints.iter().flatten().flat_map(MatchAttribute::state));
        Some(state)
    }

    /// Counts candidates that are tried.
    fn count(&mut self, steps: usize) -> Result<(), Stop> {
        self.steps = self.steps.saturating_add(steps);
        if self.steps > self.cluster.max_steps {
            return Err(Stop::Refused(Refusal::TimedOut));
        }
        Ok(())
    }

    /// Tries every candidate as the next device.
    fn try_each(&mut self, at: At, inside: bool) -> Result<bool, Stop> {
        for candidate in 0..self.view.candidates.len() {
            if self.is_taken(at, candidate) {
                continue;
            }
            self.count(1)?;
            let known = self.requests[at.claim][at.request].answers[at.alternative][candidate];
            let selected = match known {
                Some(answer) => answer,
                None => self.selects(at, &self.wanted(at).clone(), candidate)?,
            };
            if !selected || !self.take(at, candidate, false)? {
                continue;
            }
            match self.allocate(At { device: at.device + 1, ..at }, inside) {
                Ok(false) => self.give_back(at),
                Ok(true) => return Ok(true),
                Err(stop) => {
                    self.give_back(at);
                    return Err(stop);
                }
            }
        }
        Ok(false)
    }

    /// Whether class and request select the candidate; the answer is remembered.
    fn selects(&mut self, remembered: At, wanted: &Wanted<'a>, candidate: usize) -> Result<bool, Abort> {
        let claim = &self.claims[remembered.claim];
        let answers =
            &mut self.requests[remembered.claim][remembered.request].answers[remembered.alternative];
        if let Some(answer) = answers[candidate] {
            return Ok(answer);
        }
        let candidate_ref = &self.view.candidates[candidate];
        let selected = selected(self.cluster, &self.evaluator, self.view, claim, wanted, candidate_ref);
        let answer = selected.map_err(Abort::Selector)? == Selected::Yes;
        answers[candidate] = Some(answer);
        Ok(answer)
    }

    /// Whether another claim, or this attempt, has the device. With admin access only the same claim's other requests count.
    fn is_taken(&self, at: At, candidate: usize) -> bool {
        if self.wanted(at).admin {
            self.given[candidate].contains(&at.claim)
        } else {
            self.in_use[candidate] || !self.given[candidate].is_empty()
        }
    }

    /// Gives the device, which is selected, to the request, if it may have it. The order of the checks is upstream's.
    fn take(&mut self, at: At, candidate: usize, all: bool) -> Result<bool, Abort> {
        if self.is_taken(at, candidate) {
            return Ok(false);
        }
        let Candidate { id, device, .. } = &self.view.candidates[candidate];
        let device = *device;
        let features = self.cluster.features;
        let counted = consumes(device);
        if counted && !(features.partitionable_devices && self.counters.take(candidate)) {
            return Ok(false);
        }
        let wanted = &self.requests[at.claim][at.request].alternatives[at.alternative];
        if features.device_taints && intolerable(device.taints.as_deref(), wanted.tolerations).is_some() {
            self.refused(candidate, counted);
            return Ok(false);
        }
        for index in 0..self.constraints[at.claim].len() {
            let constraints = &mut self.constraints[at.claim];
            if constraints[index].add(&wanted.name, &id.driver, device) {
                continue;
            }
            if all {
                let (claim, request) = (ClaimRef::of(&self.claims[at.claim]), wanted.name.clone());
                return Err(Abort::AllAgainstConstraint { claim, request, device: id.clone() });
            }
            for earlier in &mut constraints[..index] {
                earlier.remove(&wanted.name);
            }
            self.refused(candidate, counted);
            return Ok(false);
        }
        self.given[candidate].insert(at.claim);
        let choice = Choice { request: at.request, alternative: at.alternative, candidate };
        self.chosen[at.claim].push(choice);
        Ok(true)
    }

    /// A candidate that got its counters is refused after all.
    fn refused(&mut self, candidate: usize, counted: bool) {
        if counted && self.leaks {
            self.leaked += 1;
        } else if counted {
            self.counters.give_back(candidate);
        }
    }

    /// Undoes the last [`take`](Self::take) for a claim.
    fn give_back(&mut self, at: At) {
        let Some(choice) = self.chosen[at.claim].pop() else { return };
        let name = &self.requests[at.claim][choice.request].alternatives[choice.alternative].name;
        for constraint in &mut self.constraints[at.claim] {
            constraint.remove(name);
        }
        self.given[choice.candidate].remove(&at.claim);
        if consumes(self.view.candidates[choice.candidate].device) {
            self.counters.give_back(choice.candidate);
        }
    }
}
