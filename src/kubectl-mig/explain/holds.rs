//! GPUs that are held back, so that a claim gets its turn.

use std::collections::BTreeMap;

use k8s_openapi::api::resource::v1::ResourceClaim;

use super::fleet::NodeAnswer;
use super::reason::{Reason, ReasonId};
use super::world::{MAX_NAMED, Ranked};
use crate::cluster::Demanded;

/// The rank of a GPU that is held back for the pod itself.
const OWN: u8 = 1;

/// The GPUs that are held back for the claims, and those on nodes that the pod can use that are held back for others.
pub(super) fn holds(
    nodes: &[NodeAnswer],
    demanded: &BTreeMap<String, Demanded>,
    claims: &[ResourceClaim],
) -> Ranked {
    let all = nodes.iter().filter_map(|it| Some((it, demanded.get(&it.name)?)));
    let all = all.flat_map(|(node, it)| it.holds.iter().map(move |hold| (node.name.as_str(), hold)));
    let mut reasons = Ranked::new();
    for (node, hold) in all {
        let (gpu, profile, time) = (&hold.gpu, &hold.profile, "%H:%M:%S UTC");
        // The end of a hold of the controller moves.
        let (how_long, until) = match &hold.since {
            Some(since) => (format!("since {}", since.0.strftime(time)), String::new()),
            None => {
                let until = format!("until {}", hold.until.0.strftime(time));
                (until.clone(), format!(", {until} at the latest"))
            }
        };
        let uid = hold.claim.uid.to_string();
        let is_own = claims.iter().any(|it| it.metadata.uid.as_ref() == Some(&uid));
        // A pod with several devices has several holds.
        if reasons.iter().filter(|it| (it.0 == OWN) == is_own).count() == MAX_NAMED {
            continue;
        }
        if is_own {
            let device = if profile == "full" { "the whole GPU".to_owned() } else { format!("a {profile}") };
            let sentence = format!(
                "GPU {gpu} of node {node} is held back for it {how_long}, and offers it {device} once what is in the way has been released"
            );
            let reason = Reason::new(ReasonId::GpuHeldForClaim, sentence);
            reasons.push((
                OWN,
                reason.advise("wait until what is allocated there has been released, or end it"),
            ));
        } else {
            let claim = format!("{}/{}", hold.claim.namespace, hold.claim.name);
            let sentence = format!(
                "GPU {gpu} of node {node} is held back for claim {claim}, whose turn it is{until}: it offers nothing that is in the way of that claim"
            );
            let advice = format!(
                "wait until another device is free, or GPU {gpu} of node {node} is not held back any more"
            );
            reasons.push((6, Reason::new(ReasonId::GpuHeldBack, sentence).advise(advice)));
        }
    }
    reasons
}
