//! The verdict, from what the pod says itself and what the nodes answer.

use std::borrow::Cow;
use std::collections::BTreeMap;

use dra_allocator::{Abort, Features, MAX_STEPS, Refusal};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::ResourceClaim;

use super::abort::{abort_reason, scheduler_gate};
use super::case::Case;
use super::combined::{failing, request, together};
use super::detail::{Detail, Holders, look};
use super::explanation::{
    Explanation, NodeCounts, PlacedDevice, Placement, RequestExplanation, SCHEMA_VERSION, Verdict,
};
use super::findings::Findings;
use super::fleet::{NodeAnswer, Outcome, Question};
use super::holds::holds;
use super::pools::unreadable;
use super::profile::Published;
use super::reason::{Reason, ReasonId};
use super::release::{add_releases, best_releases};
use super::request::Asked;
use super::subject::{NO_DEVICES, Subject, names_something_else, scheduler_message};
use super::tally::Tally;
use super::world::{Answers, Ranked, World};
use crate::cluster::{Rule, Snapshot};
use crate::manifest::Catalog;

/// Nodes that are looked at closely.
const MAX_DETAILS: usize = 4;
/// Candidates that are tried on each of them.
const DETAIL_STEPS: usize = 100_000;
/// Fewest candidates that are tried on a node, however many nodes there are.
const FEWEST_STEPS: usize = 20_000;

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
fn nodes<'s>(snapshot: &'s Snapshot, case: &mut Case<'_>) -> Cow<'s, [Node]> {
    if !snapshot.nodes.is_empty() {
        return Cow::Borrowed(&snapshot.nodes);
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
        answer.outcome = Outcome::Fits(super::fleet::with_allocations(&site.claims, &allocations));
    }
}

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
        if names_something_else(message) {
            let sentence = format!(
                "devices are free on node {}, but the scheduler last reported something else: {message}",
                node.name
            );
            case.reasons.push(
                Reason::new(ReasonId::NotDevices, sentence)
                    .advise("resolve what the message names: it is not about devices"),
            );
            verdict = Verdict::NotNow;
        } else if message.contains(NO_DEVICES) && node.fits_by_counters && !has_evidence {
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
            demanded: &self.snapshot.demanded,
        };
        let tallies = sums(base);
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
        ranked.extend(holds(base, &self.snapshot.demanded, claims));
        ranked.sort_by_key(|(rank, _)| *rank);
        let releases = best_releases(&details);
        let verdict = verdict(answers, abort, &ranked);
        let has_turn = ranked.iter().any(|(_, it)| it.reason == ReasonId::GpuHeldForClaim);
        for reason in
            ranked.iter_mut().map(|(_, it)| it).chain(requests.iter_mut().flat_map(|it| &mut it.reasons))
        {
            add_releases(reason, &releases);
            // What is held back for the claim serves it. A label would end that on its node.
            if has_turn && matches!(reason.reason, ReasonId::NotInLayout | ReasonId::WholeGpuOnly) {
                reason.advice.clear();
            }
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

/// Tallies of all nodes, by claim and request.
fn sums(answers: &[NodeAnswer]) -> BTreeMap<(String, String), Tally> {
    let mut sums: BTreeMap<(String, String), Tally> = BTreeMap::new();
    for (key, tally) in answers.iter().flat_map(|it| &it.tallies) {
        sums.entry(key.clone()).or_default().add(tally);
    }
    sums
}

fn verdict(answers: &Answers, abort: Option<&Abort>, ranked: &Ranked) -> Verdict {
    use ReasonId::{
        ClaimOnOtherNode, DeviceTaint, GpuHeldBack, GpuHeldForClaim, LayoutFollowsDemand, PoolIncomplete,
        PoolInvalid, PoolOverdrawn, Withheld,
    };
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
    let passing = [
        ClaimOnOtherNode,
        DeviceTaint,
        GpuHeldBack,
        GpuHeldForClaim,
        LayoutFollowsDemand,
        PoolIncomplete,
        PoolInvalid,
        PoolOverdrawn,
        Withheld,
    ];
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
