//! The requests of a pod to the device plugin, and the claims that replace them.
//!
//! Each container with a request gets its own claim, so that containers do not share devices. An init
//! container that requests the same as a container uses that container's claim: the device plugin, too, passes the devices of
//! init containers on to the containers that follow. A pod is converted wholly or not at all.
//!
//! Remarks are about what containers use, whether they request or claim it, so that they are the same after the conversion.

use std::collections::BTreeSet;

use super::access::WRITE_OUT;
use super::change::{Change, Changes};
use super::environment;
use super::findings::{Findings, Place};
use super::placement::{self, Uses};
use super::requests::{self, Container, Pod};
use super::resource::WHOLE_GPU;
use super::template::{Shape, Templates};
use super::tree::{Content, Node};

/// Converts a pod spec. Answers how many devices its containers have at one time.
pub(super) fn convert(
    pod: &Pod<'_, '_>,
    place: &Place<'_>,
    templates: &mut Templates,
    findings: &mut Findings<'_>,
) -> u32 {
    let mut containers = requests::containers(pod, place, templates, findings);
    placement::annotations(pod.metadata, place, findings);
    let requests = containers.iter().any(|it| !it.requested.is_empty());
    if !findings.refused && containers.iter().all(|it| it.uses().is_empty()) {
        return 0;
    }
    if requests {
        refuse_patch(pod, &containers, place, findings);
    }
    let whole = containers.iter().any(|it| it.uses().contains_key(WHOLE_GPU));
    placement::remark(pod.spec, place, Uses { whole, requests }, findings);
    for it in &containers {
        environment::remark(it, findings);
        several_mig_devices(it, findings);
    }
    if requests && !findings.refused {
        change(pod, place, &mut containers, templates, findings);
    }
    if !findings.refused {
        init_containers(&containers, place, findings);
    }
    let sum = |init: bool| {
        containers
            .iter()
            .filter(|it| it.ends_first == init)
            .map(Container::count)
            .fold(0_u32, u32::saturating_add)
    };
    if sum(false) > 0 { sum(false) } else { sum(true) }
}

/// kustomize cannot use a ResourceClaimTemplate in a patch.
fn refuse_patch(
    pod: &Pod<'_, '_>,
    containers: &[Container<'_, '_, '_>],
    place: &Place<'_>,
    findings: &mut Findings<'_>,
) {
    let mut refuse = |node: &Node<'_>, place: &Place<'_>, missing: &str| {
        let why = format!(
            "looks like a patch, because it has no {missing}: kustomize cannot use a ResourceClaimTemplate in a patch; convert \
             what the kustomization renders (`kubectl kustomize DIR | kubectl mig convert -f -`), or write the claim into the \
             patch by hand"
        );
        findings.refuse(node, place, why);
    };
    if let Some(missing) = pod.missing {
        refuse(pod.spec, place, missing);
        return;
    }
    if pod.image {
        let partial =
            |it: &&Container<'_, '_, '_>| !it.requested.is_empty() && it.node.get("image").is_none();
        for it in containers.iter().filter(partial) {
            refuse(it.node, &it.place, "image");
        }
    }
}

fn several_mig_devices(container: &Container<'_, '_, '_>, findings: &mut Findings<'_>) {
    let mig: u32 =
        container.uses().iter().filter(|(class, _)| *class != WHOLE_GPU).map(|(_, count)| *count).sum();
    if let Some(resources) = container.resources.filter(|_| mig > 1) {
        let why = format!(
            "has {mig} MIG devices, but a CUDA process uses one MIG device; start a process for each with its UUID in \
             CUDA_VISIBLE_DEVICES (`nvidia-smi -L` lists them), or request one larger profile"
        );
        findings.note(resources, &container.place.field("resources"), why);
    }
}

/// Reports init containers that use a claim of which no container makes use afterwards.
fn init_containers(containers: &[Container<'_, '_, '_>], place: &Place<'_>, findings: &mut Findings<'_>) {
    let mut used = BTreeSet::new();
    for it in containers {
        let first = it.claims.iter().any(|(name, _)| !used.contains(name));
        if let Some(resources) = it.resources.filter(|_| it.ends_first && first) {
            let why = "no container requests the same devices, so this init container has a claim that only it uses, whose \
                 devices stay with the pod to its end";
            findings.note(resources, &place.field("initContainers"), why.to_owned());
        }
        used.extend(it.claims.iter().map(|(name, _)| name));
    }
}

/// Replaces requests by claims; everything that could prevent it has been refused before.
fn change(
    pod: &Pod<'_, '_>,
    place: &Place<'_>,
    containers: &mut [Container<'_, '_, '_>],
    templates: &mut Templates,
    findings: &mut Findings<'_>,
) {
    let claims = pod.spec.get("resourceClaims");
    if claims.is_some_and(|it| matches!(it.content, Content::Alias(_)) || it.is_null() || it.anchor.is_some())
    {
        let why = format!("no claim can be added to it; {WRITE_OUT}");
        findings.refuse(pod.spec, &place.field("resourceClaims"), why);
        return;
    }
    let mut names: BTreeSet<String> = claims
        .map_or(&[][..], Node::items)
        .iter()
        .filter_map(|it| Some(it.get("name")?.text()?.to_owned()))
        .collect();
    let mut added: Vec<(Shape, String)> = Vec::new();
    let mut items = Vec::new();
    for it in containers {
        let Some(resources) = it.resources.filter(|_| !it.requested.is_empty()) else { continue };
        // Containers come first, so their claims exist before those of init containers.
        let shared = added.iter().find(|(shape, _)| it.ends_first && *shape == it.requested);
        let claim = shared.map(|(_, name)| name.clone()).unwrap_or_else(|| {
            let name = claim_name(&it.name, &mut names);
            let template = templates.name(pod.namespace, &it.requested);
            items.push(vec![("name", name.clone()), ("resourceClaimTemplateName", template)]);
            added.push((it.requested.clone(), name.clone()));
            name
        });
        findings.changes.merge(std::mem::take(&mut it.removals));
        add(resources, "claims", vec![vec![("name", claim.clone())]], &mut findings.changes);
        it.claims.push((claim, std::mem::take(&mut it.requested)));
    }
    add(pod.spec, "resourceClaims", items, &mut findings.changes);
}

/// `<container>-gpu`, or with a number where that is used or too long for a DNS label.
fn claim_name(container: &str, names: &mut BTreeSet<String>) -> String {
    let base = if container.len() <= 59 { format!("{container}-gpu") } else { "gpu".to_owned() };
    let mut name = base.clone();
    let mut number = 2;
    while !names.insert(name.clone()) {
        name = format!("{base}-{number}");
        number += 1;
    }
    name
}

fn add(
    mapping: &Node<'_>,
    key: &'static str,
    items: Vec<Vec<(&'static str, String)>>,
    changes: &mut Changes,
) {
    match mapping.get(key) {
        Some(list) => changes.add(list, Change::Append(items)),
        None => changes.add(mapping, Change::Add(key, items)),
    }
}
