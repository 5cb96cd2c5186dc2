//! Explains why each device does not match each request.

use std::collections::BTreeMap;

use k8s_openapi::api::resource::v1::{AllocationResult, DeviceAttribute, DeviceConstraint, ResourceClaim};
use serde::Serialize;

use crate::allocated::{Allocated, ClaimRef, DeviceId};
use crate::cel_env::Evaluator;
use crate::cluster::Cluster;
use crate::constraint;
use crate::counters::{Counters, consumes};
use crate::pool::{Candidate, PoolProblem, PoolReport, View};
use crate::refusal::{Abort, Refusal, SelectorError};
use crate::request::{self, Amount, Wanted, Written};
use crate::search::{Search, Solved};
use crate::select::{Selected, intolerable, selected};
use crate::shortage::Shortage;

/// What a node can do for claims, and why not more.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// What [`Cluster::allocate`] answers.
    pub outcome: Result<Vec<AllocationResult>, Refusal>,
    /// Whether the claims would fit if refused candidates gave their counters back (kubernetes #140436). `Some(true)` means that
    /// nothing but this defect is in the way; `None` when the question does not arise.
    pub fits_without_leak: Option<bool>,
    /// Pools with a problem. Pools of other nodes are among them where they matter: with an invalid one the scheduler gives another
    /// message, with an incomplete one requests for all devices fail.
    pub pools: Vec<PoolReport>,
    /// The requests, alternatives one by one, in order.
    pub requests: Vec<RequestReport>,
}

/// What a node can do for one request or alternative.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestReport {
    /// Index of the claim.
    #[serde(skip)]
    pub claim_index: usize,
    /// The claim.
    pub claim: ClaimRef,
    /// `request`, or `request/alternative`.
    pub request: String,
    /// The device class.
    pub class: String,
    /// How many devices it takes; `None` for a mode that the scheduler does not know.
    pub amount: Option<Amount>,
    /// What aborts the pod on all nodes because of this request, if something does.
    pub abort: Option<Abort>,
    /// Whether the node could serve this request if the pod asked for nothing else.
    pub fits_alone: bool,
    /// Every device that the node sees. Empty where the request cannot be evaluated.
    pub devices: Vec<DeviceReport>,
}

impl RequestReport {
    /// Devices that nothing stands in the way of.
    pub fn usable(&self) -> impl Iterator<Item = &DeviceId> {
        self.devices.iter().filter(|d| d.finding == Finding::Usable).map(|d| &d.id)
    }

    /// The report of a request that asks for the same in the same claim; `None` where something in it names this one.
    fn for_equal(&self, other: &Written<'_>) -> Option<Self> {
        let names_it = |it: &DeviceReport| matches!(it.finding, Finding::SelectorError { .. });
        let is_plain = self.abort.is_none() && !self.devices.iter().any(names_it);
        is_plain.then(|| Self { request: other.name(), ..self.clone() })
    }
}

/// What stands between a device and a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceReport {
    /// The device.
    #[serde(flatten)]
    pub id: DeviceId,
    /// The first obstacle.
    #[serde(flatten)]
    pub finding: Finding,
}

/// The first obstacle between a device and a request. What the request does not select comes before what is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "finding")]
pub enum Finding {
    /// None: the request could have it.
    Usable,
    /// It has binding conditions, which need `DRADeviceBindingConditions`.
    BindingConditions,
    /// It is for other nodes.
    OtherNode,
    /// A selector of the class is false for it.
    ClassSelectorFalse {
        /// Index of the selector.
        selector: usize,
    },
    /// A selector of the request is false for it.
    RequestSelectorFalse {
        /// Index of the selector.
        selector: usize,
    },
    /// A selector gives no answer for it. Unless the device is allocated, this aborts the pod on all nodes.
    SelectorError {
        /// The error.
        error: Box<SelectorError>,
    },
    /// A claim holds it.
    Allocated {
        /// The claim.
        holder: ClaimRef,
    },
    /// It consumes counters, which needs `DRAPartitionableDevices`.
    CountersDisabled,
    /// Counters are missing.
    Counters {
        /// Which.
        shortages: Vec<Shortage>,
    },
    /// It has a taint that the request does not tolerate.
    Taint {
        /// Key of the taint.
        key: String,
        /// Value of the taint.
        value: Option<String>,
        /// `NoSchedule` or `NoExecute`.
        effect: String,
    },
    /// A `matchAttribute` needs an attribute that it does not have.
    AttributeMissing {
        /// The attribute.
        attribute: String,
    },
    /// A `matchAttribute` needs more devices with this device's value than there are.
    Constraint {
        /// The attribute.
        attribute: String,
        /// The device's value.
        value: String,
        /// The request that has too few devices with the value.
        request: String,
        /// Usable devices with the value.
        found: usize,
        /// Devices that the request needs.
        needed: usize,
    },
}

/// Explains what a search found.
pub(crate) fn explain(
    cluster: &Cluster<'_>,
    view: &View<'_>,
    claims: &[ResourceClaim],
    allocated: &Allocated,
    solved: Solved,
) -> Explanation {
    let Solved { outcome, leaked } = solved;
    let fits_without_leak = match outcome {
        Ok(_) | Err(Refusal::Aborted(_)) => None,
        Err(_) if !cluster.leaks => None,
        Err(_) => Some(leaked && Search::new(cluster, view, claims, allocated).solve(false).outcome.is_ok()),
    };
    let mut counters = Counters::new(view, allocated);
    let pools = pools(view, &mut counters);
    let mut explainer = Explainer { cluster, view, allocated, counters, evaluator: Evaluator::new() };
    let mut requests = Vec::new();
    for (index, claim) in claims.iter().enumerate() {
        let written: Vec<Written<'_>> = request::requests(claim).iter().flat_map(request::written).collect();
        let mut reports: Vec<RequestReport> = Vec::new();
        for (position, this) in written.iter().enumerate() {
            let equal = written[..position].iter().position(|it| it.is_equal(this));
            let known = equal.and_then(|it| reports[it].for_equal(this));
            reports.push(known.unwrap_or_else(|| explainer.request(index, claim, this)));
        }
        let devices = claim.spec.devices.as_ref();
        for constraint in devices.and_then(|d| d.constraints.as_deref()).unwrap_or_default() {
            constrain(view, constraint, &mut reports);
        }
        requests.extend(reports);
    }
    Explanation { outcome, fits_without_leak, pools, requests }
}

/// Pools with a problem.
pub(crate) fn pools(view: &View<'_>, counters: &mut Counters<'_, '_>) -> Vec<PoolReport> {
    let mut reports = Vec::new();
    for (index, pool) in view.pools.iter().enumerate() {
        let mut report = |problem| {
            let (driver, pool) = (pool.driver.to_owned(), pool.name.to_owned());
            reports.push(PoolReport { driver, pool, problem });
        };
        if let Some(problem) = &pool.problem {
            report(problem.clone());
            continue;
        }
        let counted = |p: &crate::pool::Pool<'_>| p.name == pool.name && !p.counter_sets.is_empty();
        if let Some(other) =
            view.pools.iter().find(|p| p.driver != pool.driver && counted(p) && counted(pool))
        {
            report(PoolProblem::NameShared { driver: other.driver.to_owned() });
        }
        let shortages = counters.overdrawn(index);
        if !shortages.is_empty() {
            report(PoolProblem::Overdrawn { shortages });
        }
    }
    reports
}

struct Explainer<'p, 'a> {
    cluster: &'p Cluster<'a>,
    view: &'p View<'a>,
    allocated: &'p Allocated,
    counters: Counters<'p, 'a>,
    evaluator: Evaluator,
}

impl<'a> Explainer<'_, 'a> {
    fn request(
        &mut self,
        claim_index: usize,
        claim: &'a ResourceClaim,
        written: &Written<'a>,
    ) -> RequestReport {
        let mut report = RequestReport {
            claim_index,
            claim: ClaimRef::of(claim),
            request: written.name(),
            class: written.class.to_owned(),
            amount: written.amount(),
            abort: None,
            fits_alone: false,
            devices: Vec::new(),
        };
        match written.resolve(self.cluster, claim) {
            Err(abort) => report.abort = Some(abort),
            Ok(wanted) => {
                let candidates = self.view.candidates.iter().enumerate();
                report.devices = candidates
                    .map(|(index, candidate)| DeviceReport {
                        id: candidate.id.clone(),
                        finding: self.finding(claim, &wanted, index, candidate),
                    })
                    .collect();
                match self.alone(claim, written) {
                    Ok(_) => report.fits_alone = true,
                    Err(Refusal::Aborted(abort)) => report.abort = Some(*abort),
                    Err(_) => {}
                }
            }
        }
        report
    }

    /// Tries a claim with nothing but one request or alternative.
    fn alone(&self, claim: &ResourceClaim, written: &Written<'_>) -> Result<Vec<AllocationResult>, Refusal> {
        let mut request = written.request.clone();
        if let Some(list) = &mut request.first_available {
            list.retain(|one| Some(one.name.as_str()) == written.alternative);
        }
        let mut alone = claim.clone();
        if let Some(devices) = &mut alone.spec.devices {
            devices.requests = Some(vec![request]);
            devices.constraints = None;
        }
        let claims = std::slice::from_ref(&alone);
        Search::new(self.cluster, self.view, claims, self.allocated).solve(self.cluster.leaks).outcome
    }

    fn finding(
        &mut self,
        claim: &ResourceClaim,
        wanted: &Wanted<'_>,
        index: usize,
        candidate: &Candidate<'_>,
    ) -> Finding {
        let holder = self.allocated.holder(&candidate.id).filter(|_| !wanted.admin);
        let allocated = || holder.map(|holder| Finding::Allocated { holder: holder.clone() });
        match selected(self.cluster, &self.evaluator, self.view, claim, wanted, candidate) {
            Ok(Selected::Yes) => {}
            Ok(Selected::BindingConditions) => return Finding::BindingConditions,
            Ok(Selected::NotByClass(selector)) => return Finding::ClassSelectorFalse { selector },
            Ok(Selected::NotByRequest(selector)) => return Finding::RequestSelectorFalse { selector },
            Ok(Selected::OtherNode) => return Finding::OtherNode,
            Err(error) if wanted.amount == Amount::All => {
                return Finding::SelectorError { error: Box::new(error) };
            }
            Err(error) => return allocated().unwrap_or(Finding::SelectorError { error: Box::new(error) }),
        }
        if let Some(allocated) = allocated() {
            return allocated;
        }
        if consumes(candidate.device) {
            if !self.cluster.features.partitionable_devices {
                return Finding::CountersDisabled;
            }
            let shortages = self.counters.shortages(index);
            if !shortages.is_empty() {
                return Finding::Counters { shortages };
            }
        }
        let taint = intolerable(candidate.device.taints.as_deref(), wanted.tolerations);
        if let Some(taint) = taint.filter(|_| self.cluster.features.device_taints) {
            let (key, value, effect) = (taint.key.clone(), taint.value.clone(), taint.effect.clone());
            return Finding::Taint { key, value, effect };
        }
        Finding::Usable
    }
}

/// Marks the usable devices whose value of a `matchAttribute` too few others share.
fn constrain(view: &View<'_>, constraint: &DeviceConstraint, reports: &mut [RequestReport]) {
    let Some(attribute) = constraint.match_attribute.as_deref() else { return };
    let value = |position: usize| {
        let candidate = &view.candidates[position];
        constraint::value(&candidate.id.driver, candidate.device, attribute).map(text)
    };
    let usable = |report: &RequestReport, value_of: &str| {
        let devices = report.devices.iter().enumerate();
        devices
            .filter(|(p, d)| d.finding == Finding::Usable && value(*p).as_deref() == Some(value_of))
            .count()
    };
    let is_covered = |report: &RequestReport| constraint::covers(constraint, &report.request);
    // A request is bound by the constraint only if all its alternatives are.
    let mut bound: BTreeMap<&str, Vec<&RequestReport>> = BTreeMap::new();
    for report in reports.iter() {
        bound.entry(report.request.split('/').next().unwrap_or_default()).or_default().push(report);
    }
    bound.retain(|_, alternatives| alternatives.iter().all(|report| is_covered(report)));
    let needed = |report: &RequestReport| match report.amount {
        Some(Amount::Exactly(count)) => count,
        Some(Amount::All) | None => 1,
    };
    // The request that lacks devices of a value, by value.
    let lacking = |value_of: &str| {
        bound.values().find_map(|alternatives| {
            let short = |report: &&RequestReport| usable(report, value_of) < needed(report);
            let closest = alternatives.first().filter(|_| alternatives.iter().all(short))?;
            let request = closest.request.clone();
            Some((request, usable(closest, value_of), needed(closest)))
        })
    };
    let mut verdicts: BTreeMap<String, Option<(String, usize, usize)>> = BTreeMap::new();
    for value_of in (0..view.candidates.len()).filter_map(value) {
        verdicts.entry(value_of).or_insert_with_key(|value_of| lacking(value_of));
    }
    for report in reports.iter_mut().filter(|report| is_covered(report)) {
        for (position, device) in report.devices.iter_mut().enumerate() {
            if device.finding != Finding::Usable {
                continue;
            }
            let attribute = attribute.to_owned();
            let Some(value) = value(position) else {
                device.finding = Finding::AttributeMissing { attribute };
                continue;
            };
            if let Some(Some((request, found, needed))) = verdicts.get(&value).cloned() {
                device.finding = Finding::Constraint { attribute, value, request, found, needed };
            }
        }
    }
}

/// A value for people; values of different types differ, too.
fn text(value: &DeviceAttribute) -> String {
    if let Some(text) = &value.string {
        return text.clone();
    }
    if let Some(version) = &value.version {
        return format!("version {version}");
    }
    match (value.int, value.bool) {
        (Some(int), _) => format!("int {int}"),
        (_, Some(bool)) => format!("bool {bool}"),
        _ => "unknown type".to_owned(),
    }
}
