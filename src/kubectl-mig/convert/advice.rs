//! What the user has to know about claims in the kinds of operators.

use super::findings::{Findings, Place};
use super::traits::Advice;
use super::tree::Node;

/// Reports the advice for a pod spec that uses `uses` devices. `parents` lead from the object to it.
pub(super) fn say(
    object: &Node<'_>,
    spec: &Node<'_>,
    parents: &[&Node<'_>],
    advice: Advice,
    place: &Place<'_>,
    uses: u32,
    findings: &mut Findings<'_>,
) {
    match advice {
        Advice::Nothing => {}
        Advice::Note(text) => findings.note(spec, place, text.to_owned()),
        Advice::Review(text) => findings.review(spec, place, text.to_owned()),
        Advice::Refused(text) => findings.refuse(spec, place, text.to_owned()),
        Advice::Ray => ray(parents.iter().rev().nth(1).copied(), uses, spec, place, findings),
        Advice::KServe => kserve(object, spec, place, findings),
    }
}

/// KubeRay starts Ray with the number of GPUs that it reads from the limits (`ray-operator/controllers/ray/common/pod.go`),
/// and so does the autoscaler.
fn ray(group: Option<&Node<'_>>, uses: u32, spec: &Node<'_>, place: &Place<'_>, findings: &mut Findings<'_>) {
    let Some(group) = group else { return };
    let says = |field: &str, key: fn(&str) -> bool| {
        let entries = group.get(field).map_or(&[][..], Node::entries);
        entries.iter().any(|(it, _)| it.text().is_some_and(key))
    };
    if says("rayStartParams", |it| it == "num-gpus") || says("resources", |it| it.eq_ignore_ascii_case("gpu"))
    {
        return;
    }
    // KubeRay accepts only one of the two fields in a group.
    let resources = group.get("resources").is_some_and(|it| !it.entries().is_empty());
    let entry = if resources {
        format!("`GPU: \"{uses}\"` to its resources")
    } else {
        format!("`num-gpus: \"{uses}\"` to its rayStartParams")
    };
    findings.review(
        spec,
        place,
        format!("KubeRay counts the GPUs of a group by limits, not by claims, so Ray would place nothing on them; add {entry}"),
    );
}

fn kserve(object: &Node<'_>, spec: &Node<'_>, place: &Place<'_>, findings: &mut Findings<'_>) {
    if spec.get("workerSpec").is_some() {
        let why = "KServe adds nvidia.com/gpu to both parts of a predictor with workerSpec, with claims or without; use an \
             LLMInferenceService or a LeaderWorkerSet";
        findings.refuse(spec, place, why.to_owned());
        return;
    }
    let annotations = object.get("metadata").and_then(|it| it.get("annotations"));
    let mode = annotations.and_then(|it| it.get("serving.kserve.io/deploymentMode")).and_then(Node::text);
    match mode {
        Some("Standard" | "RawDeployment") => {}
        Some("Knative" | "Serverless") => {
            let why = "Knative refuses claims; set the annotation serving.kserve.io/deploymentMode to Standard (RawDeployment \
                 in older versions)";
            findings.refuse(spec, place, why.to_owned());
        }
        _ => {
            let why = "claims need KServe's deployment mode Standard, and Knative may be the default of the cluster; set the \
                 annotation serving.kserve.io/deploymentMode to Standard (RawDeployment in older versions)";
            findings.review(spec, place, why.to_owned());
        }
    }
}
