//! Pods whose end makes room.

use super::detail::Detail;
use super::reason::{Holder, Reason, ReasonId};
use crate::shell::word;

/// Pods whose end makes room, at most a few.
pub(super) fn best_releases(details: &[Detail]) -> Vec<Holder> {
    details.iter().flat_map(|it| it.releases.iter().take(2)).take(4).cloned().collect()
}

pub(super) fn add_releases(reason: &mut Reason, releases: &[Holder]) {
    use ReasonId::{
        AllAllocated, EngineAllocated, Fragmented, MatchAttribute, NotAllFree, RequestsNotTogether,
        TooFewOnOneNode,
    };
    let concerns = [
        AllAllocated,
        EngineAllocated,
        Fragmented,
        MatchAttribute,
        NotAllFree,
        RequestsNotTogether,
        TooFewOnOneNode,
    ];
    if !concerns.contains(&reason.reason) {
        return;
    }
    let mut advice: Vec<String> = Vec::new();
    for holder in releases {
        let (what, node) = (&holder.device, &holder.node);
        advice.push(match holder.pods.first().and_then(|it| it.split_once('/')) {
            Some((namespace, pod)) => format!("kubectl -n {} delete pod {}  # makes room on node {node}: it has the {what}", word(namespace), word(pod)),
            None => {
                let (namespace, claim) = holder.claim.split_once('/').unwrap_or(("default", &holder.claim));
                format!("kubectl -n {} delete resourceclaim {}  # makes room on node {node}: it has the {what}, and no pod uses it", word(namespace), word(claim))
            }
        });
    }
    if !advice.is_empty() {
        advice.insert(
            0,
            "wait until one of these pods has ended, or end it; a controller may create it again".to_owned(),
        );
    }
    if advice.is_empty() && !reason.holders.is_empty() {
        advice.push("wait until pods have ended, or add a node: no single pod's end makes room".to_owned());
    }
    advice.append(&mut reason.advice);
    reason.advice = advice;
}
