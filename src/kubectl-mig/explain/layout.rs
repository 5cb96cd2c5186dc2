//! Nodes that publish by layout, and what their layouts leave out.

use super::findings::Findings;
use super::fleet::NodeAnswer;
use super::profile::{Published, Size, label};
use super::reason::{Reason, ReasonId, some_of};
use super::request::{Asked, MOST};
use crate::shell::word;

impl Asked<'_> {
    /// Nodes that publish by layout, and leave out what is asked for.
    pub(super) fn layout(&self, findings: &Findings<'_>) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let profile = match self.wish.profiles.as_slice() {
            [profile] => profile.as_str(),
            [] if self.wish.is_whole => "full",
            _ => return reasons,
        };
        let lacks = |it: &&NodeAnswer| it.offer.devices > 0 && it.offer.published.get(profile).is_none();
        let without: Vec<&NodeAnswer> = findings.usable.iter().filter(lacks).collect();
        let follows = |it: &&NodeAnswer| findings.demanded.get(&it.name).is_some_and(|it| it.follows);
        let (mut following, mut without): (Vec<&NodeAnswer>, Vec<&NodeAnswer>) =
            without.into_iter().partition(follows);
        following
            .retain(|it| findings.demanded.get(&it.name).is_some_and(|it| it.profiles.contains(profile)));
        reasons.extend(self.following(&following));
        without.retain(|it| !it.offer.is_counted && self.is_plausible(profile, it, findings.published));
        let (mig, whole): (Vec<&NodeAnswer>, Vec<&NodeAnswer>) =
            without.iter().partition(|it| it.offer.has_mig);
        if let Some(first) = whole.first()
            && profile != "full"
        {
            let names: Vec<String> = whole.iter().map(|it| format!("node {}", it.name)).collect();
            let gpu = first.offer.whole_only.first().map_or("", |(_, product)| product.as_str());
            let sentence = format!(
                "the GPUs of {} ({gpu}) are offered whole, not as MIG devices",
                some_of(&names, MOST)
            );
            reasons.push(
                Reason::new(ReasonId::WholeGpuOnly, sentence)
                    .advise(format!("choose a layout: kubectl label node {} nvidia.com/mig.config=all-{} --overwrite", word(&first.name), word(&label(profile))))
                    .advise("an A100 or A30 also needs MIG mode turned on: docs/layouts.md, \"Before you rely on it\""),
            );
        }
        if let Some(first) = mig.first() {
            let names: Vec<String> = mig.iter().map(|it| format!("node {}", it.name)).collect();
            let noun = self.noun();
            let sentence = format!("the layout of {} has no {noun}", some_of(&names, MOST));
            let layout =
                if profile == "full" { "all-disabled".to_owned() } else { format!("all-{}", label(profile)) };
            let free: Vec<String> =
                first.offer.free.iter().map(|(it, number)| format!("{number} of {it}")).collect();
            let mut reason = Reason::new(ReasonId::NotInLayout, sentence);
            if !free.is_empty() {
                reason.details.push(format!("free on node {}: {}", first.name, some_of(&free, 8)));
            }
            reasons.push(
                reason
                    .advise(format!("choose a layout with it: kubectl label node {} nvidia.com/mig.config={} --overwrite", word(&first.name), word(&layout)))
                    .advise("or turn the feature gate DRAPartitionableDevices on in kube-apiserver and kube-scheduler, so that no layout is needed"),
            );
        }
        reasons
    }

    /// Nodes whose layout follows demand: a label would end that.
    fn following(&self, nodes: &[&NodeAnswer]) -> Option<Reason> {
        let first = nodes.first()?;
        let names: Vec<String> = nodes.iter().map(|it| format!("node {}", it.name)).collect();
        let sentence = format!(
            "the layout of {}, which follows demand, has no {} now",
            some_of(&names, MOST),
            self.noun()
        );
        let reason = Reason::new(ReasonId::LayoutFollowsDemand, sentence);
        Some(reason.advise("wait: mig-controller changes the layout of a node where that serves the pod").advise(format!(
            "if nothing changes, see why: kubectl get mignode {} -o yaml, condition DemandFollowed; docs/controller.md",
            word(&first.name)
        )))
    }

    /// Whether a node's GPUs can have the profile, as far as what is published says: another node with the same product has it, or
    /// its memory is that of 1, 2, 4 or 8 memory slices.
    fn is_plausible(&self, profile: &str, node: &NodeAnswer, published: &Published) -> bool {
        if profile == "full" {
            return true;
        }
        let own = node.offer.published.products();
        if published.get(profile).is_some_and(|it| it.products.iter().any(|it| own.contains(it))) {
            return true;
        }
        let Some(wanted) = Size::of(profile) else { return false };
        let slice = node.offer.published.slice_gigabytes();
        slice.is_some_and(|slice| {
            [1, 2, 4, 8].iter().any(|it| (slice * it).abs_diff(wanted.memory) <= *it / 2)
        })
    }
}
