//! The requests of a pod to the device plugin, and the claims that replace them.
//!
//! Each container with a request gets its own claim, so that containers do not share devices. An init
//! container that asks for what a container asks for uses that one's claim: the device plugin, too, gives the devices of
//! init containers on to the containers that follow. A pod is converted wholly or not at all.

use std::collections::{BTreeMap, BTreeSet};

use super::change::{Change, Changes};
use super::object::{Findings, Place};
use super::placement;
use super::resource::{DOMAIN, WHOLE_GPU, is_device};
use super::template::{MAX_DEVICES, Shape, Templates};
use super::tree::{Content, Node};

/// Advice where the same thing could be said in a simpler way.
const WRITE_OUT: &str = "write it out and convert again";

/// A container that asks for devices.
struct Asking<'n, 't> {
    resources: &'n Node<'t>,
    name: String,
    shape: Shape,
    removals: Changes,
    /// An init container that ends before the containers start.
    ends_first: bool,
}

/// Converts the pod spec of an object.
pub(super) fn convert(
    spec: &Node<'_>,
    place: &Place<'_>,
    namespace: Option<&str>,
    templates: &mut Templates,
    findings: &mut Findings,
) {
    let mut asking = Vec::new();
    for (list, init) in [("containers", false), ("initContainers", true)] {
        let place = place.field(list);
        let Some(containers) = get(spec, list, &place, findings) else { continue };
        for (index, container) in containers.items().iter().enumerate() {
            if let Some(it) = container_asks(container, init, &place.item(index), findings) {
                asking.push(it);
            }
        }
    }
    if asking.is_empty() && !findings.refused {
        return;
    }
    let whole = asking.iter().any(|it| it.shape.contains_key(WHOLE_GPU));
    placement::remark(spec, place, whole, findings);
    if !findings.refused {
        change(spec, place, namespace, asking, templates, findings);
    }
}

/// A field that can be changed: not behind an alias, not anchored, not twice, not merged.
pub(super) fn get<'n, 't>(
    node: &'n Node<'t>,
    key: &str,
    place: &Place<'_>,
    findings: &mut Findings,
) -> Option<&'n Node<'t>> {
    let value = node.get(key)?;
    if value.is_null() {
        return None;
    }
    let twice = node.entries().iter().filter(|(it, _)| it.text() == Some(key)).count() > 1;
    let why = if twice {
        "the key is there twice"
    } else if matches!(value.content, Content::Alias(_)) {
        "it is an alias"
    } else if value.anchor.is_some() {
        "it has an anchor, so a change here could be one elsewhere"
    } else if value.tagged {
        "it has a tag"
    } else if value.get("<<").is_some() {
        "it has a merge key"
    } else {
        return Some(value);
    };
    // Only worth a word where devices are asked for, here or where the alias leads to.
    if findings.aliases.mention_devices(value) {
        findings.refuse(value, place, format!("{why}; {WRITE_OUT}"));
        return None;
    }
    // The target of an alias is not read, and the alias itself has nothing to convert.
    (!matches!(value.content, Content::Alias(_))).then_some(value)
}

fn container_asks<'n, 't>(
    container: &'n Node<'t>,
    init: bool,
    place: &Place<'_>,
    findings: &mut Findings,
) -> Option<Asking<'n, 't>> {
    let merged = container.get("<<").is_some_and(|it| findings.aliases.mention_devices(it));
    let shared = matches!(container.content, Content::Alias(_)) || container.anchor.is_some();
    if merged || (shared && findings.aliases.mention_devices(container)) {
        findings.refuse(
            container,
            place,
            format!("it is an alias, or has an anchor or a merge key; {WRITE_OUT}"),
        );
        return None;
    }
    let place = place.field("resources");
    let resources = get(container, "resources", &place, findings)?;
    let mut removals = Changes::default();
    let limits = amounts(resources, "limits", &place, &mut removals, findings);
    let requests = amounts(resources, "requests", &place, &mut removals, findings);
    let mut shape = Shape::new();
    for (resource, (class, count)) in &limits {
        if requests.get(resource).is_some_and(|(_, requested)| requested != count) {
            findings.refuse(
                resources,
                &place,
                format!("{resource} has another number in requests than in limits"),
            );
        }
        shape.insert(class.clone(), *count);
    }
    if let Some(resource) = requests.keys().find(|it| !limits.contains_key(*it)) {
        let why = format!(
            "{resource} is in requests but not in limits, which the API server refuses; add the limit"
        );
        findings.refuse(resources, &place, why);
    }
    if shape.values().fold(0, |sum: u32, it| sum.saturating_add(*it)) > MAX_DEVICES {
        findings.refuse(
            resources,
            &place,
            format!("a claim has at most {MAX_DEVICES} devices; use several claims"),
        );
    }
    if let Some(claims) = resources.get("claims")
        && !shape.is_empty()
        && (matches!(claims.content, Content::Alias(_)) || claims.is_null() || claims.anchor.is_some())
    {
        findings.refuse(
            claims,
            &place.field("claims"),
            format!("there can be no claim added to it; {WRITE_OUT}"),
        );
    }
    let name = container.get("name").and_then(Node::text).unwrap_or("container").to_owned();
    let sidecar = container.get("restartPolicy").and_then(Node::text) == Some("Always");
    (!shape.is_empty()).then_some(Asking { resources, name, shape, removals, ends_first: init && !sidecar })
}

/// Resource names with device class and number in `limits` or `requests`, and the removal of their lines.
fn amounts(
    resources: &Node<'_>,
    list: &str,
    place: &Place<'_>,
    removals: &mut Changes,
    findings: &mut Findings,
) -> BTreeMap<String, (String, u32)> {
    let place = place.field(list);
    let mut found = BTreeMap::new();
    let Some(node) = get(resources, list, &place, findings) else { return found };
    let mut kept = node.entries().len();
    for (index, (key, value)) in node.entries().iter().enumerate() {
        let Some(name) = key.text().filter(|it| is_device(it)) else { continue };
        let place = place.field(name);
        let Some(class) = findings.class_of(name, key, &place) else { continue };
        let number = value.text().and_then(|it| it.parse::<u32>().ok());
        match number {
            _ if key.anchor.is_some() || value.anchor.is_some() || value.tagged => {
                findings.refuse(key, &place, format!("it has an anchor or a tag; {WRITE_OUT}"));
            }
            // Nothing is asked for, and the line does no harm.
            Some(0) => {}
            Some(count) => {
                if found.insert(name.to_owned(), (class, count)).is_some() {
                    findings.refuse(key, &place, "the key is there twice".to_owned());
                }
                removals.add(node, Change::Remove(index));
                kept -= 1;
            }
            None => findings.refuse(
                key,
                &place,
                format!("its value is not a whole number in plain digits; {WRITE_OUT}"),
            ),
        }
    }
    if kept == 0 && !found.is_empty() {
        remove_entry(resources, list, removals);
    }
    found
}

fn remove_entry(mapping: &Node<'_>, key: &str, removals: &mut Changes) {
    if let Some(index) = mapping.entries().iter().position(|(it, _)| it.text() == Some(key)) {
        removals.add(mapping, Change::Remove(index));
    }
}

/// Makes the changes of a pod about which there is no doubt.
fn change(
    spec: &Node<'_>,
    place: &Place<'_>,
    namespace: Option<&str>,
    asking: Vec<Asking<'_, '_>>,
    templates: &mut Templates,
    findings: &mut Findings,
) {
    let claims = spec.get("resourceClaims");
    if claims.is_some_and(|it| matches!(it.content, Content::Alias(_)) || it.is_null() || it.anchor.is_some())
    {
        let why = format!("there can be no claim added to it; {WRITE_OUT}");
        findings.refuse(spec, &place.field("resourceClaims"), why);
        return;
    }
    let mut names: BTreeSet<String> = claims
        .map_or(&[][..], Node::items)
        .iter()
        .filter_map(|it| Some(it.get("name")?.text()?.to_owned()))
        .collect();
    let mut made: Vec<(Shape, String)> = Vec::new();
    let mut items = Vec::new();
    for it in asking {
        // Containers come first, so their claims are there when the init containers' turn comes.
        let shared =
            made.iter().find(|(shape, _)| it.ends_first && *shape == it.shape).map(|(_, name)| name.clone());
        let claim = shared.unwrap_or_else(|| {
            if it.ends_first {
                let why = "no container asks for the same devices, so this init container gets its own claim, whose \
                     devices stay with the pod to its end";
                findings.note(it.resources, &place.field("initContainers"), why.to_owned());
            }
            let name = claim_name(&it.name, &mut names);
            let template = templates.name(namespace, &it.shape);
            items.push(vec![("name", name.clone()), ("resourceClaimTemplateName", template)]);
            made.push((it.shape.clone(), name.clone()));
            name
        });
        findings.changes.merge(it.removals);
        add(it.resources, "claims", vec![vec![("name", claim)]], &mut findings.changes);
    }
    add(spec, "resourceClaims", items, &mut findings.changes);
}

/// `<container>-gpu`, or with a number where that is taken or too long for a DNS label.
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

/// True for labels and taints of the device plugin and its companions.
pub(super) fn is_label(name: &str) -> bool {
    name.starts_with(DOMAIN)
}
