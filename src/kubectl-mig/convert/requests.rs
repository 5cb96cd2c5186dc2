//! What the containers of a pod request from the device plugin, and what they claim.

use std::collections::BTreeMap;

use super::access::{WRITE_OUT, get};
use super::change::{Change, Changes};
use super::findings::{Findings, Place};
use super::resource::{ANY_MIG, DOMAIN, WHOLE_GPU, is_device, qualified_gpu};
use super::template::{MAX_DEVICES, Shape, Templates};
use super::tree::{Content, Node};

/// A pod spec and what has to be known about the object around it.
pub(super) struct Pod<'n, 't> {
    pub(super) spec: &'n Node<'t>,
    /// The metadata beside the spec.
    pub(super) metadata: Option<&'n Node<'t>>,
    pub(super) namespace: Option<&'n str>,
    /// Fields of the spec that are containers.
    pub(super) containers: &'static [&'static str],
    /// A field that the object lacks, so that it is a patch.
    pub(super) missing: Option<&'static str>,
    /// Whether a container without an image is part of a patch.
    pub(super) image: bool,
}

/// A container of a pod.
pub(super) struct Container<'n, 't, 'a> {
    pub(super) node: &'n Node<'t>,
    pub(super) place: Place<'a>,
    pub(super) name: String,
    pub(super) resources: Option<&'n Node<'t>>,
    /// What it requests from the device plugin.
    pub(super) requested: Shape,
    /// How the requests are removed.
    pub(super) removals: Changes,
    /// The claims of the pod that it uses, with what their templates say, where that is known and of this driver.
    pub(super) claims: Vec<(String, Shape)>,
    /// An init container that ends before the containers start.
    pub(super) ends_first: bool,
}

impl Container<'_, '_, '_> {
    /// The devices that it requests or claims.
    pub(super) fn uses(&self) -> Shape {
        let mut all = self.requested.clone();
        for (class, count) in self.claims.iter().flat_map(|(_, shape)| shape) {
            let sum = all.entry(class.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
        all
    }

    /// The number of those devices.
    pub(super) fn count(&self) -> u32 {
        self.uses().values().fold(0, |sum, it| sum.saturating_add(*it))
    }
}

/// The containers of a pod; what cannot be converted is refused.
pub(super) fn containers<'n, 't, 'a>(
    pod: &Pod<'n, 't>,
    place: &Place<'a>,
    templates: &Templates,
    findings: &mut Findings<'_>,
) -> Vec<Container<'n, 't, 'a>> {
    let claimed = claimed(pod, templates, findings);
    let mut found = Vec::new();
    let mut take =
        |node: &'n Node<'t>, name: &str, init: bool, place: Place<'a>, findings: &mut Findings<'_>| {
            if let Some(it) = container(node, name, init, place, &claimed, findings) {
                found.push(it);
            }
        };
    for field in pod.containers {
        let place = place.field(field);
        if let Some(node) = get(pod.spec, field, &place, findings) {
            take(node, field, false, place, findings);
        }
    }
    for (list, init) in [("containers", false), ("initContainers", true)] {
        let place = place.field(list);
        let Some(containers) = get(pod.spec, list, &place, findings) else { continue };
        for (index, node) in containers.items().iter().enumerate() {
            take(node, "container", init, place.item(index), findings);
        }
    }
    found
}

/// The claims of a pod by name, with what their templates say.
fn claimed(pod: &Pod<'_, '_>, templates: &Templates, findings: &Findings<'_>) -> BTreeMap<String, Shape> {
    let classes = &findings.knowledge.classes;
    let ours = |shape: &&Shape| shape.keys().all(|it| it == WHOLE_GPU || it == ANY_MIG || classes.has(it));
    let items = pod.spec.get("resourceClaims").map_or(&[][..], Node::items);
    items
        .iter()
        .filter_map(|it| {
            let template = it.get("resourceClaimTemplateName")?.text()?;
            let shape = templates.shape(pod.namespace, template).filter(ours)?;
            Some((it.get("name")?.text()?.to_owned(), shape.clone()))
        })
        .collect()
}

fn container<'n, 't, 'a>(
    node: &'n Node<'t>,
    name: &str,
    init: bool,
    place: Place<'a>,
    claimed: &BTreeMap<String, Shape>,
    findings: &mut Findings<'_>,
) -> Option<Container<'n, 't, 'a>> {
    let merged = node.get("<<").is_some_and(|it| findings.aliases.mention_devices(it));
    let shared = matches!(node.content, Content::Alias(_)) || node.anchor.is_some();
    if merged || (shared && findings.aliases.mention_devices(node)) {
        let why = format!("it is an alias, or has an anchor or a merge key; {WRITE_OUT}");
        findings.refuse(node, &place, why);
        return None;
    }
    let at = place.field("resources");
    let resources = get(node, "resources", &at, findings);
    let mut removals = Changes::default();
    let requested = resources.map(|it| requested(it, &at, &mut removals, findings)).unwrap_or_default();
    let claims = resources.and_then(|it| it.get("claims")).map_or(&[][..], Node::items);
    let claims = claims.iter().filter_map(|it| {
        let name = it.get("name")?.text()?;
        Some((name.to_owned(), claimed.get(name)?.clone()))
    });
    Some(Container {
        node,
        name: node.get("name").and_then(Node::text).unwrap_or(name).to_owned(),
        resources,
        requested,
        removals,
        claims: claims.collect(),
        ends_first: init && node.get("restartPolicy").and_then(Node::text) != Some("Always"),
        place,
    })
}

/// What `resources` requests, if it can be replaced by a claim.
fn requested(
    resources: &Node<'_>,
    place: &Place<'_>,
    removals: &mut Changes,
    findings: &mut Findings<'_>,
) -> Shape {
    let limits = amounts(resources, "limits", place, removals, findings);
    let requests = amounts(resources, "requests", place, removals, findings);
    let mut shape = Shape::new();
    for (resource, (class, count)) in &limits {
        if requests.get(resource).is_some_and(|(_, requested)| requested != count) {
            let why = format!("{resource} has another number in requests than in limits");
            findings.refuse(resources, place, why);
        }
        shape.insert(class.clone(), *count);
    }
    if let Some(resource) = requests.keys().find(|it| !limits.contains_key(*it)) {
        let why = format!(
            "{resource} is in requests but not in limits, which the API server refuses; add the limit"
        );
        findings.refuse(resources, place, why);
    }
    if shape.values().fold(0, |sum: u32, it| sum.saturating_add(*it)) > MAX_DEVICES {
        let why = format!("a claim has at most {MAX_DEVICES} devices; use several claims");
        findings.refuse(resources, place, why);
    }
    if let Some(claims) = resources.get("claims")
        && !shape.is_empty()
        && (matches!(claims.content, Content::Alias(_)) || claims.is_null() || claims.anchor.is_some())
    {
        let why = format!("no claim can be added to it; {WRITE_OUT}");
        findings.refuse(claims, &place.field("claims"), why);
    }
    shape
}

/// Resource names with device class and number in `limits` or `requests`, and the removal of their lines.
fn amounts(
    resources: &Node<'_>,
    list: &str,
    place: &Place<'_>,
    removals: &mut Changes,
    findings: &mut Findings<'_>,
) -> BTreeMap<String, (String, u32)> {
    let place = place.field(list);
    let mut found = BTreeMap::new();
    let Some(node) = get(resources, list, &place, findings) else { return found };
    let mut kept = node.entries().len();
    for (index, (key, value)) in node.entries().iter().enumerate() {
        let Some(name) = key.text() else { continue };
        let place = place.field(name);
        if !is_device(name) {
            other(name, key, value, &place, findings);
            continue;
        }
        let number = value.text().and_then(|it| it.parse::<u32>().ok());
        // Nothing is requested, and the line does no harm.
        if number == Some(0) && value.anchor.is_none() && !value.tagged {
            findings.seen(key);
            continue;
        }
        let Some(class) = findings.class_of(name, key, &place) else { continue };
        match number {
            _ if key.anchor.is_some() || value.anchor.is_some() || value.tagged => {
                findings.refuse(key, &place, format!("it has an anchor or a tag; {WRITE_OUT}"));
            }
            Some(count) => {
                if found.insert(name.to_owned(), (class, count)).is_some() {
                    findings.refuse(key, &place, "the key appears twice".to_owned());
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

/// A resource that is not converted: refused if its name qualifies `nvidia.com/gpu`.
fn other(name: &str, key: &Node<'_>, value: &Node<'_>, place: &Place<'_>, findings: &mut Findings<'_>) {
    if value.text() == Some("0") {
        return;
    }
    if let Some(why) = qualified_gpu(name) {
        findings.refuse(key, place, why);
    } else if name.starts_with(DOMAIN) {
        let why = format!(
            "{name} stays: `convert` does not know it; if it is a GPU that the device plugin renamed, replace it by \
             nvidia.com/gpu or a MIG profile and convert again"
        );
        findings.note(key, place, why);
    }
}

fn remove_entry(mapping: &Node<'_>, key: &str, removals: &mut Changes) {
    if let Some(index) = mapping.entries().iter().position(|(it, _)| it.text() == Some(key)) {
        removals.add(mapping, Change::Remove(index));
    }
}
