//! Finds pods and quotas in objects of the kinds that are known, and devices in all others.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::alias::Aliases;
use super::findings::{Findings, Place};
use super::kinds::{Knowledge, PodTemplate, Step};
use super::pod;
use super::requests::Pod;
use super::search::{Subject, search};
use super::template::{Shape, Templates};
use super::traits::Requires;
use super::tree::{Content, Node};
use super::{access, advice, quota};

/// Reads a document: an object, or a list of them. `document` counts from 1.
pub(super) fn examine<'k>(
    root: &Node<'_>,
    document: usize,
    templates: &mut Templates,
    knowledge: &'k Knowledge,
) -> Findings<'k> {
    let aliases = Rc::new(Aliases::of(root));
    let mut all = Findings::new(knowledge, Rc::clone(&aliases));
    for (node, path) in objects(root) {
        let mark = templates.mark();
        let it = one(node, document, path, Findings::new(knowledge, Rc::clone(&aliases)), templates);
        if it.refused {
            all.refused = true;
            templates.back_to(mark);
        } else {
            all.changes.merge(it.changes);
        }
        all.remarks.extend(it.remarks);
    }
    all
}

/// Reads a document that is not converted: only reports the devices that it names.
pub(super) fn inspect<'k>(
    root: &Node<'_>,
    document: usize,
    subject: Subject,
    knowledge: &'k Knowledge,
) -> Findings<'k> {
    let name = match subject {
        Subject::Patch => "patch",
        Subject::Kustomization => "Kustomization",
        _ => "no object",
    };
    let named = label(root);
    let object = if root.get("kind").is_some() { &named } else { name };
    let mut findings = Findings::new(knowledge, Rc::default());
    search(root, &Place::of_file(document, object), subject, &mut findings);
    findings
}

/// Notes the claim templates that a document has.
pub(super) fn note_templates(root: &Node<'_>, templates: &mut Templates) {
    for (node, _) in objects(root) {
        if text(node, "kind") == "ResourceClaimTemplate"
            && let Some(name) = name(node, "name")
        {
            templates.found(name_space(node), name, shape_of(node));
        }
    }
}

fn objects<'n, 't>(root: &'n Node<'t>) -> Vec<(&'n Node<'t>, String)> {
    match root.get("items") {
        Some(items) if text(root, "kind").ends_with("List") => {
            let all = items.items().iter().enumerate();
            all.map(|(index, it)| (it, format!("items[{index}]"))).collect()
        }
        _ => vec![(root, String::new())],
    }
}

fn one<'k>(
    node: &Node<'_>,
    document: usize,
    path: String,
    mut findings: Findings<'k>,
    templates: &mut Templates,
) -> Findings<'k> {
    let (api_version, kind) = (text(node, "apiVersion"), text(node, "kind"));
    let object = label(node);
    let group =
        api_version.rsplit_once('/').map_or(api_version.to_owned(), |(group, _)| format!("{group}/*"));
    let type_name = format!("{group}/{kind}");
    let place = Place { document, object: &object, type_name: &type_name, path };
    if (api_version, kind) == ("v1", "ResourceQuota") {
        quota::convert(node, &place, &mut findings);
    }
    let mut converted = BTreeSet::new();
    for it in findings.knowledge.pod_templates(api_version, kind) {
        for found in pod_specs(node, it.path(), &place, &mut findings) {
            // Two paths can lead to one pod spec.
            if converted.insert(found.spec.id) {
                convert_pod(node, it, &found, templates, &mut findings);
            }
        }
    }
    // An anchor or alias that was refused on the way covers all that is below it. Device classes may well have the name of
    // an extended resource.
    if !findings.refused && !api_version.starts_with("resource.k8s.io/") {
        let strings = api_version == "v1" && ["ConfigMap", "Secret"].contains(&kind);
        search(node, &place, if strings { Subject::ConfigMap } else { Subject::Object }, &mut findings);
    }
    findings
}

/// A pod spec, and what it is in.
struct Found<'n, 't, 'a> {
    spec: &'n Node<'t>,
    place: Place<'a>,
    /// From the object down to the parent of the spec.
    parents: Vec<&'n Node<'t>>,
}

/// Follows a path to the pod specs at its end.
fn pod_specs<'n, 't, 'a>(
    object: &'n Node<'t>,
    path: &[Step],
    place: &Place<'a>,
    findings: &mut Findings<'_>,
) -> Vec<Found<'n, 't, 'a>> {
    let mut found = vec![Found { spec: object, place: place.clone(), parents: Vec::new() }];
    for step in path {
        let mut next = Vec::new();
        for Found { spec: node, place, mut parents } in found {
            parents.push(node);
            let mut push = |value: Option<&'n Node<'t>>, place: Place<'a>| {
                next.extend(value.map(|spec| Found { spec, place, parents: parents.clone() }));
            };
            match step {
                Step::Field(name) => {
                    let place = place.field(name);
                    push(access::get(node, name, &place, findings), place);
                }
                Step::Items => {
                    for (index, item) in node.items().iter().enumerate() {
                        let place = place.item(index);
                        push(access::editable(item, &place, findings), place);
                    }
                }
                Step::Values => {
                    for (key, value) in node.entries() {
                        let place = place.field(key.text().unwrap_or("?"));
                        push(access::editable(value, &place, findings), place);
                    }
                }
            }
        }
        found = next;
    }
    found
}

fn convert_pod(
    object: &Node<'_>,
    template: &PodTemplate,
    found: &Found<'_, '_, '_>,
    templates: &mut Templates,
    findings: &mut Findings<'_>,
) {
    let traits = template.traits();
    let Found { spec, place, parents } = found;
    let pod = Pod {
        spec,
        metadata: parents.last().and_then(|it| it.get("metadata")),
        namespace: name_space(object),
        containers: traits.containers,
        missing: missing(object, traits.requires),
        image: traits.requires != Requires::Nothing,
    };
    let uses = pod::convert(&pod, place, templates, findings);
    if uses == 0 {
        return;
    }
    advice::say(object, spec, parents, traits.advice, place, uses, findings);
}

/// What an object lacks that the API server requires, so that it is a patch for another one.
fn missing(object: &Node<'_>, requires: Requires) -> Option<&'static str> {
    let has = |node: Option<&Node<'_>>| node.is_some_and(|it| !it.is_null());
    let spec = object.get("spec");
    if name(object, "name").or(name(object, "generateName")).is_none() {
        Some("metadata.name")
    } else if requires == Requires::SelectorAndImage
        && !has(spec.and_then(|it| it.get("selector")))
        && !has(spec.and_then(|it| it.get("workloadRef")))
    {
        Some("spec.selector")
    } else {
        None
    }
}

fn text<'n>(node: &'n Node<'_>, field: &str) -> &'n str {
    node.get(field).and_then(Node::text).unwrap_or("")
}

/// Kind and name.
fn label(node: &Node<'_>) -> String {
    let name = name(node, "name").or(name(node, "generateName")).unwrap_or("without a name");
    format!("{} {name}", text(node, "kind"))
}

fn name<'n>(node: &'n Node<'_>, field: &str) -> Option<&'n str> {
    node.get("metadata")?.get(field)?.text().filter(|it| !it.is_empty())
}

fn name_space<'n>(node: &'n Node<'_>) -> Option<&'n str> {
    name(node, "namespace")
}

/// The shape of a template that has nothing but classes and counts; `None` of any other.
fn shape_of(template: &Node<'_>) -> Option<Shape> {
    let devices = template.get("spec")?.get("spec")?.get("devices")?;
    let only = |node: &Node<'_>, keys: &[&str]| {
        node.entries().iter().all(|(key, _)| key.text().is_some_and(|it| keys.contains(&it)))
    };
    let mut shape = Shape::new();
    for request in devices.get("requests")?.items() {
        let exactly = request.get("exactly")?;
        let plain = only(devices, &["requests"])
            && only(request, &["name", "exactly"])
            && only(exactly, &["deviceClassName", "count"]);
        let count = exactly.get("count").map_or(Some(1), |it| it.text()?.parse().ok())?;
        let class = exactly.get("deviceClassName")?.text()?;
        if !plain || shape.insert(class.to_owned(), count).is_some() {
            return None;
        }
    }
    (!shape.is_empty()).then_some(shape)
}

/// True for a list of JSON patch operations (RFC 6902).
pub(super) fn is_json_patch(root: &Node<'_>) -> bool {
    let items = root.items();
    !items.is_empty()
        && matches!(root.content, Content::Sequence { .. })
        && items.iter().all(|it| it.get("op").is_some() && it.get("path").is_some())
}
