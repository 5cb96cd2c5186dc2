//! The verdict, from what the pod says itself and what the nodes answer.

use std::collections::BTreeMap;

use dra_allocator::{Abort, Features, MAX_STEPS, PoolProblem, PoolReport, Refusal};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::resource::v1::ResourceClaim;

use super::detail::{Detail, Holders, look};
use super::events::reports;
use super::explanation::{
    Explanation, GpuMap, NodeCounts, PlacedDevice, Placement, RequestExplanation, SCHEMA_VERSION, Verdict,
};
use super::fleet::{NodeAnswer, Outcome, Question, Tally};
use super::profile::Published;
use super::reason::{Holder, Reason, ReasonId, count, some_of};
use super::request::{Asked, Findings, abort_reason, scheduler_gate};
use super::subject::{Case, Subject, scheduler_message};
use crate::cluster::{Rule, Snapshot};
use crate::manifest::Catalog;

/// Nodes that are looked at closely.
const MAX_DETAILS: usize = 4;
/// Candidates that are tried on each of them.
const DETAIL_STEPS: usize = 100_000;
/// Fewest candidates that are tried on a node, however many nodes there are.
const FEWEST_STEPS: usize = 20_000;
/// Maps of a request.
const MAX_MAPS: usize = 4;
/// Nodes and reports that are named.
const MAX_NAMED: usize = 5;

/// What the scheduler's message has when something else than devices is missing.
const OTHER_REASONS: &[&str] = &[
    "Insufficient ",
    "olume",
    "pod affinity",
    "anti-affinity",
    "topology spread",
    "Too many pods",
    "free ports",
];

/// Says whether the subject has or gets its devices, and if not, why not and what to do.
#[must_use]
pub fn explain(snapshot: &Snapshot, subject: &Subject) -> Explanation {
    explain_within(snapshot, subject, MAX_STEPS)
}

/// The same with another limit for the search on a node.
pub(super) fn explain_within(snapshot: &Snapshot, subject: &Subject, max_steps: usize) -> Explanation {
    let catalog = Catalog::new(&snapshot.claims, &snapshot.templates, &snapshot.classes, "default");
    let mut case = Case::of(snapshot, &catalog, subject);
    let nodes = nodes(snapshot, &mut case);
    if let Some(verdict) = case.decided {
        return finish(case, verdict, NodeCounts { total: nodes.len(), usable: 0 });
    }
    let pod = case.pod.take();
    let (open, held) = (std::mem::take(&mut case.open), std::mem::take(&mut case.held));
    let extended = !case.extended.is_empty();
    // A gate that is off in kube-apiserver shows in what is stored.
    let features = snapshot.gates.map_or(Features::ALL, |it| it.features);
    let mut question = Question::new(snapshot, &catalog, pod.as_deref(), (&open, &held), extended, features);
    // However many nodes there are, the answer comes soon; one of those that are given up is searched to the end below.
    question.limit((max_steps / nodes.len().max(1)).max(FEWEST_STEPS.min(max_steps)));
    let with_rules: Vec<(&Node, Vec<Rule>)> = nodes.iter().map(|node| (node, question.rules(node))).collect();
    let (usable, hidden): (Vec<_>, Vec<_>) = with_rules.into_iter().partition(|(_, rules)| rules.is_empty());
    let mut answers = Answers { usable: question.ask(&usable), ..Answers::default() };
    answers.counts = NodeCounts { total: nodes.len(), usable: usable.len() };
    patient(&mut question, &nodes, &mut answers.usable, max_steps);
    let fits = answers.usable.iter().any(|it| matches!(it.outcome, Outcome::Fits(_)));
    if !fits {
        answers.hidden = question.ask(&hidden);
    }
    question.limit(DETAIL_STEPS.min(max_steps));
    let world = World { snapshot, pod: pod.as_deref(), question: &question, nodes: &nodes };
    world.answer(case, &answers)
}

/// The nodes, or what slices name where nodes cannot be read.
fn nodes(snapshot: &Snapshot, case: &mut Case<'_>) -> Vec<Node> {
    if !snapshot.nodes.is_empty() {
        return snapshot.nodes.clone();
    }
    let named = |name: &str| {
        let mut node = Node::default();
        node.metadata.name = Some(name.to_owned());
        node
    };
    let names = snapshot.slices.nodes();
    if !names.is_empty() {
        let why = snapshot.unread("nodes").map_or_else(String::new, |it| format!(" ({})", it.why));
        case.assumptions.push(format!(
            "no node keeps the pod away by labels, taints or size: the Nodes are not known{why}"
        ));
    }
    names.into_iter().map(named).collect()
}

/// Searches the first node that was given up once more, with the scheduler's own limit, where nothing fits otherwise.
fn patient(question: &mut Question<'_>, nodes: &[Node], answers: &mut [NodeAnswer], max_steps: usize) {
    if answers.iter().any(|it| matches!(it.outcome, Outcome::Fits(_))) {
        return;
    }
    let timed_out = |it: &&mut NodeAnswer| matches!(it.outcome, Outcome::Refused(Refusal::TimedOut));
    let Some(answer) = answers.iter_mut().find(timed_out) else { return };
    let Some(node) = nodes.iter().find(|it| it.metadata.name.as_deref() == Some(&answer.name)) else {
        return;
    };
    question.limit(max_steps);
    let Ok(site) = question.site(node) else { return };
    if let Ok(allocations) = question.cluster(&site.slices).allocate(node, &site.claims, &site.allocated) {
        answer.outcome = Outcome::Fits(super::fleet::with_allocations(&site.claims, allocations));
    }
}

#[derive(Default)]
struct Answers {
    usable: Vec<NodeAnswer>,
    hidden: Vec<NodeAnswer>,
    counts: NodeCounts,
}

struct World<'w, 'a> {
    snapshot: &'a Snapshot,
    pod: Option<&'w Pod>,
    question: &'w Question<'a>,
    nodes: &'w [Node],
}

/// A reason with its rank: the lowest decides the sentence.
type Ranked = Vec<(u8, Reason)>;

impl World<'_, '_> {
    fn answer(&self, mut case: Case<'_>, answers: &Answers) -> Explanation {
        let mut published = Published::default();
        for answer in answers.usable.iter().chain(&answers.hidden) {
            published.merge(answer.offer.published.clone());
        }
        let abort = answers.usable.iter().find_map(|it| match &it.outcome {
            Outcome::Refused(Refusal::Aborted(abort)) => Some(abort),
            _ => None,
        });
        let fit = answers.usable.iter().find_map(|it| match &it.outcome {
            Outcome::Fits(claims) => Some((it, claims)),
            _ => None,
        });
        match (abort, fit) {
            (None, Some((node, claims))) => {
                let verdict = self.fits(&mut case, answers, node);
                let mut explanation = finish(case, verdict, answers.counts);
                if matches!(verdict, Verdict::Fits) {
                    let (subject, node) = (&explanation.subject, &node.name);
                    explanation.sentence = if claims.is_empty() {
                        format!(
                            "{subject} will get its devices: its claims are allocated, and the pod can use node {node}."
                        )
                    } else {
                        format!("{subject} will get its devices: node {node} has them free.")
                    };
                    explanation.placement = Some(placement(node, claims));
                    explanation.allocated.clone_from(claims);
                }
                explanation
            }
            _ => self.refused(case, answers, &published, abort.map(AsRef::as_ref)),
        }
    }

    /// Whether nothing has to be assumed about feature gates.
    fn knows_gates(&self) -> bool {
        self.snapshot.gates.is_some() || self.snapshot.version.is_some_and(|it| it >= (1, 36))
    }

    /// Some node fits. What else may keep the pod back?
    fn fits(&self, case: &mut Case<'_>, answers: &Answers, node: &NodeAnswer) -> Verdict {
        let has_evidence = self.knows_gates() || answers.usable.iter().any(|it| it.counters_in_use);
        let message = self.pod.and_then(scheduler_message).unwrap_or_default();
        let mut verdict = Verdict::Fits;
        if OTHER_REASONS.iter().any(|it| message.contains(it)) {
            let sentence = format!(
                "devices are free on node {}, but the scheduler last reported something else: {message}",
                node.name
            );
            case.reasons.push(
                Reason::new(ReasonId::NotDevices, sentence)
                    .advise("resolve what the message names: it is not about devices"),
            );
            verdict = Verdict::NotNow;
        } else if message.contains("cannot allocate all claims") && node.fits_by_counters && !has_evidence {
            let reason = scheduler_gate("device that would do");
            case.reasons.push(reason.detail([format!(
                "devices are free on node {}, the scheduler reports `cannot allocate all claims`, and no device with counters is allocated in the cluster",
                node.name
            )]));
            verdict = Verdict::Never;
        } else if node.fits_by_counters && !has_evidence {
            case.assumptions.push(
                "DRAPartitionableDevices is on in kube-scheduler, as it is in kube-apiserver: nothing that is allocated shows it"
                    .to_owned(),
            );
        }
        case.held_back.unwrap_or(verdict)
    }

    fn refused(
        &self,
        mut case: Case<'_>,
        answers: &Answers,
        published: &Published,
        abort: Option<&Abort>,
    ) -> Explanation {
        let details = self.details(answers);
        let base = if answers.usable.is_empty() { &answers.hidden } else { &answers.usable };
        let findings = Findings {
            classes: &self.snapshot.classes,
            usable: base,
            hidden: if answers.usable.is_empty() { &[] } else { &answers.hidden },
            published,
            details: &details,
        };
        let mut tallies: BTreeMap<(String, String), Tally> = BTreeMap::new();
        for answer in base {
            for (key, tally) in &answer.tallies {
                tallies.entry(key.clone()).or_default().add(tally);
            }
        }
        let claims = self.question.open;
        let asked: Vec<Asked<'_>> =
            tallies.iter().map(|(key, tally)| Asked::new(key, tally, findings.classes, claims)).collect();
        let mut requests: Vec<RequestExplanation> = asked.iter().map(|it| request(it, &findings)).collect();
        let mut ranked: Ranked = Vec::new();
        if let Some(abort) = abort {
            ranked.push((0, abort_reason(abort, &findings)));
        }
        self.of_nodes(answers, &mut ranked);
        unreadable(base, &mut ranked);
        let empty = asked.iter().any(|it| {
            !it.tally.fits_alone && it.tally.abort.is_none() && it.tally.counts.selected <= it.tally.overdrawn
        });
        self.of_pools(base, empty, &mut ranked);
        self.of_reports(base, empty, &mut ranked);
        if abort.is_none() {
            together(&asked, &details, base, &mut ranked);
            let failing = failing(&requests);
            for reason in failing.iter().filter_map(|it| requests[*it].reasons.first()) {
                ranked.push((5, reason.clone()));
            }
        }
        ranked.sort_by_key(|(rank, _)| *rank);
        let releases = best_releases(&details);
        let verdict = verdict(answers, abort, &ranked);
        for reason in
            ranked.iter_mut().map(|(_, it)| it).chain(requests.iter_mut().flat_map(|it| &mut it.reasons))
        {
            add_releases(reason, &releases);
        }
        self.assume(&mut case, &tallies, answers);
        case.reasons.extend(ranked.into_iter().map(|(_, reason)| reason));
        let verdict = match (case.held_back, verdict) {
            (Some(Verdict::NotNow), Verdict::Never) => Verdict::Never,
            (Some(held), _) => held,
            (None, verdict) => verdict,
        };
        let mut explanation = finish(case, verdict, answers.counts);
        explanation.requests = requests;
        explanation
    }

    /// The nodes that come closest.
    fn details(&self, answers: &Answers) -> Vec<Detail> {
        let mut order: Vec<&NodeAnswer> = answers.usable.iter().collect();
        let score = |it: &NodeAnswer| {
            let alone = it.tallies.values().filter(|it| it.fits_alone).count();
            let selected = it.tallies.values().filter(|it| it.counts.selected > 0).count();
            (selected, alone)
        };
        order.retain(|it| score(it).0 > 0);
        order.sort_by_key(|it| std::cmp::Reverse(score(it)));
        let holders = Holders::new(&self.snapshot.claims, &self.snapshot.pods);
        let look = |answer: &&NodeAnswer| {
            let node = self.nodes.iter().find(|it| it.metadata.name.as_deref() == Some(&answer.name))?;
            look(self.question, node, &holders)
        };
        order.iter().take(MAX_DETAILS).filter_map(look).collect()
    }

    /// Nodes that would fit, if the pod could use them.
    fn of_nodes(&self, answers: &Answers, ranked: &mut Ranked) {
        if answers.usable.is_empty()
            && let Some(reason) = self.bound(answers)
        {
            ranked.push((1, reason));
            return;
        }
        let fitting: Vec<&NodeAnswer> =
            answers.hidden.iter().filter(|it| matches!(it.outcome, Outcome::Fits(_))).collect();
        let (some, sentence) = if !fitting.is_empty() {
            let names: Vec<String> = fitting.iter().map(|it| format!("node {}", it.name)).collect();
            let verb = if fitting.len() == 1 { "has" } else { "have" };
            (fitting, format!("{} {verb} the devices, but the pod cannot use it", some_of(&names, MAX_NAMED)))
        } else if answers.usable.is_empty() && !answers.hidden.is_empty() {
            let nodes = count(answers.hidden.len(), "node");
            (answers.hidden.iter().collect(), format!("the pod can use none of the {nodes} of the cluster"))
        } else if answers.usable.is_empty() {
            ranked.push((3, Reason::new(ReasonId::NoSlices, "the cluster has no node, as far as is known")));
            return;
        } else {
            return;
        };
        let mut reason = Reason::new(ReasonId::NodeRules, sentence);
        for answer in some.iter().take(MAX_NAMED) {
            let whys: Vec<String> = answer.rules.iter().map(|it| it.why.clone()).collect();
            reason.details.push(format!("node {}: {}", answer.name, whys.join("; and ")));
        }
        for rule in some.iter().take(3).flat_map(|it| &it.rules) {
            if !reason.advice.contains(&rule.advice) {
                reason.advice.push(rule.advice.clone());
            }
        }
        let can_fit = answers.usable.iter().any(|it| it.fits_empty);
        ranked.push((if can_fit { 6 } else { 1 }, reason));
    }

    /// Claims that are allocated tie the pod to nodes that it cannot use.
    fn bound(&self, answers: &Answers) -> Option<Reason> {
        let selector = |claim: &'_ ResourceClaim| {
            claim.status.as_ref().and_then(|it| it.allocation.as_ref()?.node_selector.clone())
        };
        let tied: Vec<_> = self.question.held.iter().filter_map(|it| Some((it, selector(it)?))).collect();
        let (claim, first) = tied.first()?;
        let name = |it: &ResourceClaim| it.metadata.name.clone().unwrap_or_default();
        let of = |selector: &_| -> Vec<&Node> {
            self.nodes.iter().filter(|it| dra_allocator::selects_node(selector, it)).collect()
        };
        let names: Vec<String> = of(first)
            .iter()
            .map(|it| format!("node {}", it.metadata.name.as_deref().unwrap_or_default()))
            .collect();
        let place = if names.is_empty() {
            "a node that does not exist".to_owned()
        } else {
            some_of(&names, MAX_NAMED)
        };
        let users: Vec<String> = tied.iter().flat_map(|(it, _)| super::subject::consumers(it)).collect();
        let all: Vec<&Node> = of(first)
            .into_iter()
            .filter(|node| tied.iter().all(|(_, it)| dra_allocator::selects_node(it, node)))
            .collect();
        let mut reason = if let ([_, (other, _), ..], []) = (tied.as_slice(), all.as_slice()) {
            let sentence = format!(
                "claims {} and {} are allocated on different nodes, and a pod has one",
                name(claim),
                name(other)
            );
            Reason::new(ReasonId::ClaimOnOtherNode, sentence)
        } else {
            let sentence = format!("claim {} is allocated on {place}, which the pod cannot use", name(claim));
            Reason::new(ReasonId::ClaimOnOtherNode, sentence)
        };
        for answer in answers
            .hidden
            .iter()
            .filter(|it| all.iter().any(|node| node.metadata.name.as_ref() == Some(&it.name)))
        {
            for rule in &answer.rules {
                reason.details.push(format!("node {}: {}", answer.name, rule.why));
                reason.advice.push(rule.advice.clone());
            }
        }
        if !users.is_empty() {
            reason.advice.push(format!(
                "or end the pods that use the claim, so that it is allocated again with this pod: {}",
                some_of(&users, MAX_NAMED)
            ));
        }
        Some(reason)
    }

    /// Broken pools of nodes that the pod can use.
    fn of_pools(&self, answers: &[NodeAnswer], decisive: bool, ranked: &mut Ranked) {
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
    fn of_reports(&self, answers: &[NodeAnswer], decisive: bool, ranked: &mut Ranked) {
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

    /// What the answer takes for granted.
    fn assume(&self, case: &mut Case<'_>, tallies: &BTreeMap<(String, String), Tally>, answers: &Answers) {
        if self.knows_gates() {
            return;
        }
        if tallies.values().any(|it| !it.taints.is_empty()) {
            case.assumptions
                .push("DRADeviceTaints is on in kube-scheduler, as it is in kube-apiserver".to_owned());
        }
        let counted = answers.usable.iter().any(|it| it.offer.is_counted);
        if counted && !answers.usable.iter().any(|it| it.counters_in_use) {
            case.assumptions.push(
                "DRAPartitionableDevices is on in kube-scheduler, as it is in kube-apiserver: nothing that is allocated shows it"
                    .to_owned(),
            );
        }
    }
}

fn of_pool(report: &PoolReport) -> Reason {
    let PoolReport { driver, pool, problem } = report;
    match problem {
        PoolProblem::Incomplete { found, expected } => {
            let sentence = format!(
                "pool {pool} of driver {driver} is incomplete: {found} of {expected} ResourceSlices are there, and nothing of it is allocated until all are"
            );
            Reason::new(ReasonId::PoolIncomplete, sentence)
                .advise("wait a moment: the driver is publishing; if it stays so, see /readyz of the driver's pod on that node (docs/troubleshooting.md, step 3)")
        }
        PoolProblem::Invalid { why } => {
            let sentence =
                format!("pool {pool} of driver {driver} is invalid, and nothing of it is allocated: {why}");
            Reason::new(ReasonId::PoolInvalid, sentence)
                .advise(format!("see who writes its ResourceSlices: kubectl get resourceslices -o yaml --show-managed-fields --field-selector spec.driver={driver}"))
        }
        PoolProblem::Overdrawn { shortages } => {
            let first = shortages.first();
            let counter = first.map(|it| format!("{} of {}", it.counter, it.set)).unwrap_or_default();
            let claims: Vec<String> =
                first.iter().flat_map(|it| &it.consumers).map(|it| format!("claim {}", it.claim)).collect();
            let sentence = format!(
                "pool {pool} of driver {driver} is broken: more than there is of {counter} is allocated ({}), and no device of the pool with counters is allocated until that ends",
                some_of(&claims, MAX_NAMED)
            );
            Reason::new(ReasonId::PoolOverdrawn, sentence).advise(format!(
                "end the pods of all but one of these claims: {}",
                some_of(&claims, MAX_NAMED)
            ))
        }
        PoolProblem::NameShared { driver: other } => {
            let sentence = format!(
                "drivers {driver} and {other} both have a pool named {pool} with counters, and the scheduler mixes them up (kubernetes #140434)"
            );
            Reason::new(ReasonId::PoolNameShared, sentence)
                .advise("run one of the two drivers on this node, or upgrade kube-scheduler to 1.37, or a later release of 1.36")
        }
    }
}

/// Nodes whose slices cannot be used.
fn unreadable(answers: &[NodeAnswer], ranked: &mut Ranked) {
    let why = answers.iter().find_map(|it| match &it.outcome {
        Outcome::Unreadable(why) => Some(format!("the devices of node {} cannot be read: {why}", it.name)),
        _ => None,
    });
    ranked.extend(why.map(|it| {
        (9, Reason::new(ReasonId::PoolInvalid, it).advise("report it with the ResourceSlice that is named"))
    }));
}

/// All requests fit, but not together.
fn together(asked: &[Asked<'_>], details: &[Detail], answers: &[NodeAnswer], ranked: &mut Ranked) {
    if let Some(detail) = details.iter().find(|it| it.fits_without_constraints && !it.fits) {
        let attributes: Vec<String> = detail
            .requests
            .iter()
            .flat_map(|it| &it.devices)
            .filter_map(|it| match &it.finding {
                dra_allocator::Finding::Constraint { attribute, value, request, found, needed } => {
                    Some(format!("with {attribute} {value}, request {request} has {found} of {needed}"))
                }
                dra_allocator::Finding::AttributeMissing { attribute } => {
                    Some(format!("{} has no {attribute}", it.id.device))
                }
                _ => None,
            })
            .fold(Vec::new(), |mut all, it| {
                if !all.contains(&it) {
                    all.push(it);
                }
                all
            });
        let sentence = format!(
            "the devices are free on node {}, but not so many that share the attribute of the claim's matchAttribute",
            detail.node
        );
        let reason = Reason::new(ReasonId::MatchAttribute, sentence)
            .detail(attributes.into_iter().take(MAX_NAMED))
            .advise("remove the constraint matchAttribute from the claim or its template, if the devices may be apart");
        ranked.push((4, reason));
        return;
    }
    let alone = |it: &NodeAnswer| !it.tallies.is_empty() && each_request(&it.tallies, |it| it.fits_alone);
    let somewhere = each_request(
        &asked.iter().map(|it| ((it.claim.clone(), it.request.clone()), it.tally.clone())).collect(),
        |it| it.fits_alone,
    );
    if asked.len() < 2 || !somewhere {
        return;
    }
    let node = answers.iter().find(|it| alone(it));
    let sentence = match node {
        Some(answer) => format!(
            "each request fits alone, but not all of them together, for example on node {}",
            answer.name
        ),
        None => "each request fits on some node, but no node has devices for all of them".to_owned(),
    };
    let mut holders: Vec<Holder> = Vec::new();
    for holder in details.iter().flat_map(|it| it.holders.values()) {
        holders.push(holder.clone());
    }
    let reason = Reason::new(ReasonId::RequestsNotTogether, sentence).held_by(holders);
    ranked.push((
        4,
        reason.advise(
            "ask for smaller devices, or spread them over several pods, which can be on different nodes",
        ),
    ));
}

/// Whether of each request the condition holds, for alternatives of one of them.
fn each_request(tallies: &BTreeMap<(String, String), Tally>, holds: impl Fn(&Tally) -> bool) -> bool {
    let mut by_request: BTreeMap<(&str, &str), bool> = BTreeMap::new();
    for ((claim, request), tally) in tallies {
        let name = request.split('/').next().unwrap_or_default();
        *by_request.entry((claim, name)).or_default() |= holds(tally);
    }
    by_request.values().all(|it| *it)
}

/// The requests that nothing serves alone; of alternatives the first one that exists anywhere stands for all.
fn failing(requests: &[RequestExplanation]) -> Vec<usize> {
    let name = |it: &RequestExplanation| {
        (it.claim.clone(), it.request.split('/').next().unwrap_or_default().to_owned())
    };
    let mut by_request: BTreeMap<(String, String), Vec<usize>> = BTreeMap::new();
    for (index, it) in requests.iter().enumerate() {
        by_request.entry(name(it)).or_default().push(index);
    }
    by_request.retain(|_, all| all.iter().all(|it| !requests[*it].fits_alone));
    let best = |all: &Vec<usize>| {
        let exists = all.iter().find(|it| requests[**it].devices.selected > 0);
        exists.or(all.first()).copied()
    };
    by_request.values().filter_map(best).collect()
}

fn request(asked: &Asked<'_>, findings: &Findings<'_>) -> RequestExplanation {
    let tally = asked.tally;
    let reasons = asked.reasons(findings);
    let mut gpus: Vec<GpuMap> = Vec::new();
    if !tally.fits_alone && tally.counts.selected > 0 {
        for detail in findings.details {
            let rooms = asked.position(detail).map(|it| detail.rooms(it)).unwrap_or_default();
            let with_map = rooms.iter().filter(|it| it.gpu.memory_slices > 0);
            gpus.extend(with_map.map(|it| detail.map(it.gpu)));
        }
        gpus.truncate(MAX_MAPS);
    }
    RequestExplanation {
        claim: asked.claim.clone(),
        request: asked.request.clone(),
        class: tally.class.clone(),
        amount: match tally.amount {
            Some(dra_allocator::Amount::Exactly(number)) => number.to_string(),
            Some(dra_allocator::Amount::All) => "all".to_owned(),
            None => "unknown".to_owned(),
        },
        fits_alone: tally.fits_alone,
        devices: tally.counts,
        reasons,
        gpus,
    }
}

/// Pods whose end makes room, at most a few.
fn best_releases(details: &[Detail]) -> Vec<Holder> {
    details.iter().flat_map(|it| it.releases.iter().take(2)).take(4).cloned().collect()
}

fn add_releases(reason: &mut Reason, releases: &[Holder]) {
    use ReasonId::{
        AllTaken, EngineTaken, Fragmented, MatchAttribute, NotAllFree, RequestsNotTogether, TooFewOnOneNode,
    };
    let concerns =
        [AllTaken, EngineTaken, Fragmented, MatchAttribute, NotAllFree, RequestsNotTogether, TooFewOnOneNode];
    if !concerns.contains(&reason.reason) {
        return;
    }
    let mut advice: Vec<String> = Vec::new();
    for holder in releases {
        let (what, node) = (&holder.device, &holder.node);
        advice.push(match holder.pods.first().and_then(|it| it.split_once('/')) {
            Some((namespace, pod)) => format!("kubectl -n {namespace} delete pod {pod}  # makes room on node {node}: it has {what}"),
            None => {
                let (namespace, claim) = holder.claim.split_once('/').unwrap_or(("default", &holder.claim));
                format!("kubectl -n {namespace} delete resourceclaim {claim}  # makes room on node {node}: it has {what}, and no pod uses it")
            }
        });
    }
    if advice.is_empty() && !reason.holders.is_empty() {
        advice.push("wait until pods have ended, or add a node: no single pod's end makes room".to_owned());
    }
    advice.append(&mut reason.advice);
    reason.advice = advice;
}

fn verdict(answers: &Answers, abort: Option<&Abort>, ranked: &Ranked) -> Verdict {
    use ReasonId::{ClaimOnOtherNode, DeviceTaint, PoolIncomplete, PoolInvalid, PoolOverdrawn, Withheld};
    match abort {
        Some(Abort::AllFromBrokenPool { .. }) => return Verdict::NotNow,
        Some(_) => return Verdict::Never,
        None => {}
    }
    if answers.usable.iter().any(|it| it.fits_empty) {
        return Verdict::NotNow;
    }
    let unreadable = |it: &NodeAnswer| matches!(it.outcome, Outcome::Unreadable(_));
    if answers.usable.iter().any(unreadable) {
        return Verdict::Unknown;
    }
    let passing = [ClaimOnOtherNode, DeviceTaint, PoolIncomplete, PoolInvalid, PoolOverdrawn, Withheld];
    if ranked.iter().any(|(_, it)| passing.contains(&it.reason)) { Verdict::NotNow } else { Verdict::Never }
}

fn placement(node: &str, claims: &[ResourceClaim]) -> Placement {
    let mut devices = Vec::new();
    for claim in claims {
        let results =
            claim.status.as_ref().and_then(|it| it.allocation.as_ref()?.devices.as_ref()?.results.as_ref());
        let name = dra_allocator::ClaimRef::of(claim).to_string();
        devices.extend(results.into_iter().flatten().map(|it| PlacedDevice {
            claim: name.clone(),
            request: it.request.clone(),
            device: it.device.clone(),
        }));
    }
    Placement { node: node.to_owned(), devices }
}

fn finish(case: Case<'_>, verdict: Verdict, nodes: NodeCounts) -> Explanation {
    let subject = case.label.clone();
    let why = case.reasons.first().map(|it| it.sentence.clone());
    let sentence = match (verdict, why) {
        (Verdict::Served, Some(why)) => format!("{subject} has its devices: {why}."),
        (Verdict::Served, None) => format!("{subject} has its devices."),
        (Verdict::Fits, _) => format!("{subject} will get its devices: they are free."),
        (Verdict::NotNow, Some(why)) => format!("{subject} gets no devices now: {why}."),
        (Verdict::Never, Some(why)) => format!("{subject} gets no devices as things are: {why}."),
        (Verdict::Unknown, Some(why)) => format!("Whether {subject} gets devices cannot be said: {why}."),
        (_, None) => format!("{subject} gets no devices, for a reason that is not known here."),
    };
    let mut reasons = case.reasons;
    reasons.extend(case.remarks);
    let mut advice: Vec<String> = Vec::new();
    for it in reasons.iter().flat_map(|it| &it.advice) {
        if !advice.contains(it) {
            advice.push(it.clone());
        }
    }
    Explanation {
        schema_version: SCHEMA_VERSION,
        subject,
        namespace: case.namespace,
        verdict,
        sentence,
        reasons,
        requests: Vec::new(),
        nodes,
        placement: None,
        advice,
        assumptions: case.assumptions,
        allocated: Vec::new(),
    }
}
