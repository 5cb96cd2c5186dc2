//! Nodes that would do, and that the pod cannot use.

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::ResourceClaim;

use super::claims::consumers;
use super::fleet::{NodeAnswer, Outcome};
use super::reason::{Reason, ReasonId, some_of};
use super::world::{Answers, MAX_NAMED, Ranked, World};
use crate::text::count;

impl World<'_, '_> {
    /// Nodes that would fit, if the pod could use them.
    pub(super) fn of_nodes(&self, answers: &Answers, ranked: &mut Ranked) {
        if answers.usable.is_empty()
            && let Some(reason) = self.bound(answers)
        {
            ranked.push((1, reason));
            return;
        }
        let mut fitting: Vec<&NodeAnswer> =
            answers.hidden.iter().filter(|it| matches!(it.outcome, Outcome::Fits(_))).collect();
        // Those that the pod asks for come before those that it does not.
        let is_chosen = |it: &&NodeAnswer| !it.rules.iter().any(|it| it.is_choice);
        if fitting.iter().any(is_chosen) {
            fitting.retain(is_chosen);
        }
        let is_other = !fitting.iter().any(is_chosen);
        let (some, sentence) = if !fitting.is_empty() {
            let names: Vec<String> = fitting.iter().map(|it| format!("node {}", it.name)).collect();
            let (verb, them) = if fitting.len() == 1 { ("has", "it") } else { ("have", "them") };
            let named = some_of(&names, MAX_NAMED);
            (fitting, format!("{named} {verb} the devices, but the pod cannot use {them}"))
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
        let is_aside = can_fit || (is_other && !answers.usable.is_empty());
        ranked.push((if is_aside { 6 } else { 1 }, reason));
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
        let users: Vec<String> = tied.iter().flat_map(|(it, _)| consumers(it)).collect();
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
}
