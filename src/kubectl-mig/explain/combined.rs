//! The requests one by one, and all of them on one node.

use std::collections::BTreeMap;

use super::detail::Detail;
use super::explanation::{GpuMap, RequestExplanation};
use super::findings::Findings;
use super::fleet::NodeAnswer;
use super::reason::{Holder, Reason, ReasonId};
use super::request::Asked;
use super::tally::Tally;
use super::world::{MAX_NAMED, Ranked};

/// Maps of a request.
const MAX_MAPS: usize = 4;

pub(super) fn request(asked: &Asked<'_>, findings: &Findings<'_>) -> RequestExplanation {
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

/// The requests that nothing serves alone; of alternatives the first one that exists anywhere stands for all.
pub(super) fn failing(requests: &[RequestExplanation]) -> Vec<usize> {
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

/// All requests fit, but not together.
pub(super) fn together(asked: &[Asked<'_>], details: &[Detail], answers: &[NodeAnswer], ranked: &mut Ranked) {
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
