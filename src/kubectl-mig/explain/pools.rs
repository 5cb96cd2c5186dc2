//! What is wrong with pools, whatever the requests are.

use dra_allocator::{PoolProblem, PoolReport, Refusal, Shortage};

use super::events::reports;
use super::fleet::{NodeAnswer, Outcome};
use super::reason::{Reason, ReasonId, some_of};
use super::world::{MAX_NAMED, Ranked, World};

impl World<'_, '_> {
    /// Broken pools of nodes that the pod can use.
    pub(super) fn of_pools(&self, answers: &[NodeAnswer], decisive: bool, ranked: &mut Ranked) {
        let mut seen: Vec<PoolReport> = Vec::new();
        for report in answers.iter().flat_map(|it| &it.pools) {
            if !seen.contains(report) {
                seen.push(report.clone());
            }
        }
        let rank = if decisive { 2 } else { 7 };
        ranked.extend(seen.iter().take(MAX_NAMED).map(|it| (rank, of_pool(it))));
        if answers.iter().any(|it| it.only_leak) {
            let sentence = "a defect of kube-scheduler is in the way (kubernetes #140436): it loses devices that a constraint or taint refused before";
            ranked.push((
                3,
                Reason::new(ReasonId::CounterLeak, sentence)
                    .advise("remove the constraint if it is not needed, or upgrade kube-scheduler to 1.37, or a later release of 1.36")
                    .advise("or wait: once other devices are allocated, an attempt may succeed"),
            ));
        }
        let timed_out = |it: &&NodeAnswer| matches!(it.outcome, Outcome::Refused(Refusal::TimedOut));
        if let Some(answer) = answers.iter().find(timed_out) {
            let sentence = format!(
                "the search for so many devices at once takes longer than the scheduler allows (10 s a node), for example on node {}",
                answer.name
            );
            ranked.push((
                4,
                Reason::new(ReasonId::TimedOut, sentence).advise(
                    "ask for fewer devices in one pod, or narrow the selectors, so that fewer devices match",
                ),
            ));
        }
        let dropped: Vec<String> =
            answers.iter().filter(|it| it.offer.dropped).map(|it| format!("node {}", it.name)).collect();
        if !dropped.is_empty() {
            let sentence = format!(
                "kube-apiserver dropped the counters of {}: devices that overlap can be allocated at the same time",
                some_of(&dropped, MAX_NAMED)
            );
            ranked.push((
                8,
                Reason::new(ReasonId::CountersDropped, sentence)
                    .advise("turn the feature gate DRAPartitionableDevices on in kube-apiserver and kube-scheduler, and restart the driver"),
            ));
        }
    }

    /// What drivers report about nodes that the pod can use.
    pub(super) fn of_reports(&self, answers: &[NodeAnswer], decisive: bool, ranked: &mut Ranked) {
        let mut found = reports(self.snapshot);
        found.retain(|it| answers.iter().any(|answer| answer.name == it.node));
        let rank = if decisive { 2 } else { 7 };
        for it in found.iter().take(MAX_NAMED) {
            let sentence = format!("the driver of node {} reports {}: {}", it.node, it.reason, it.message);
            ranked.push((
                rank,
                Reason::new(ReasonId::Withheld, sentence).advise(format!("node {}: {}", it.node, it.advice)),
            ));
        }
    }
}

fn of_pool(report: &PoolReport) -> Reason {
    let reason = |id| Reason::new(id, sentence(report));
    match &report.problem {
        PoolProblem::Incomplete { .. } => reason(ReasonId::PoolIncomplete)
            .advise("wait a moment: the driver is publishing; if it stays so, see /readyz of the driver's pod on that node (docs/troubleshooting.md, step 3)"),
        PoolProblem::Invalid { .. } => reason(ReasonId::PoolInvalid)
            .advise(format!("see who writes its ResourceSlices: kubectl get resourceslices -o yaml --show-managed-fields --field-selector spec.driver={}", report.driver)),
        PoolProblem::Overdrawn { shortages } => reason(ReasonId::PoolOverdrawn)
            .advise(format!("end the pods of all but one of these claims: {}", consumers(shortages))),
        PoolProblem::NameShared { .. } => reason(ReasonId::PoolNameShared)
            .advise("run one of the two drivers on this node, or upgrade kube-scheduler to 1.37, or a later release of 1.36"),
    }
}

/// What is wrong with a pool: a clause.
pub(crate) fn sentence(report: &PoolReport) -> String {
    let PoolReport { driver, pool, problem } = report;
    match problem {
        PoolProblem::Incomplete { found, expected } => format!(
            "pool {pool} of driver {driver} is incomplete: {found} of {expected} ResourceSlices are there, and nothing of it is allocated until all are"
        ),
        PoolProblem::Invalid { why } => {
            format!("pool {pool} of driver {driver} is invalid, and nothing of it is allocated: {why}")
        }
        PoolProblem::Overdrawn { shortages } => {
            let counter =
                shortages.first().map(|it| format!("{} of {}", it.counter, it.set)).unwrap_or_default();
            format!(
                "pool {pool} of driver {driver} is broken: more than there is of {counter} is allocated ({}), and no device of the pool with counters is allocated until that ends",
                consumers(shortages)
            )
        }
        PoolProblem::NameShared { driver: other } => format!(
            "drivers {driver} and {other} both have a pool named {pool} with counters, and the scheduler mixes them up (kubernetes #140434)"
        ),
    }
}

/// The claims that consume too much of the first counter.
fn consumers(shortages: &[Shortage]) -> String {
    let claims = shortages.first().into_iter().flat_map(|it| &it.consumers);
    some_of(&claims.map(|it| format!("claim {}", it.claim)).collect::<Vec<_>>(), MAX_NAMED)
}

/// Nodes whose slices cannot be used.
pub(super) fn unreadable(answers: &[NodeAnswer], ranked: &mut Ranked) {
    let why = answers.iter().find_map(|it| match &it.outcome {
        Outcome::Unreadable(why) => Some(format!("the devices of node {} cannot be read: {why}", it.name)),
        _ => None,
    });
    ranked.extend(why.map(|it| {
        (9, Reason::new(ReasonId::PoolInvalid, it).advise("report it with the ResourceSlice that is named"))
    }));
}
