//! Finds pods and quotas in objects of the kinds that are known, and devices in all others.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::alias::Aliases;
use super::change::Changes;
use super::kinds::{Knowledge, PodTemplate, Requires, Step};
use super::pod::{self, Pod};
use super::remark::{Remark, Severity};
use super::resource::device_class;
use super::search::{Subject, search};
use super::template::{Shape, Templates};
use super::tree::{Content, Node};
use super::{access, advice, quota};

/// Where a remark is about: document, object, and path.
#[derive(Debug, Clone)]
pub(super) struct Place<'a> {
    document: usize,
    object: &'a str,
    /// `apps/*/Deployment`.
    type_name: &'a str,
    path: String,
}

impl<'a> Place<'a> {
    /// The whole of something that is no object.
    pub(super) fn of_file(document: usize, object: &'a str) -> Self {
        Self { document, object, type_name: object, path: String::new() }
    }

    pub(super) fn field(&self, name: &str) -> Self {
        // Names that contain dots cannot be distinguished from path steps.
        let step = if name.contains('.') { format!("[{name}]") } else { format!(".{name}") };
        let path = format!("{}{step}", self.path);
        Self { path: path.trim_start_matches('.').replace("> .", "> "), ..self.clone() }
    }

    pub(super) fn item(&self, index: usize) -> Self {
        Self { path: format!("{}[{index}]", self.path), ..self.clone() }
    }

    /// The text of the string at this place.
    pub(super) fn inside(&self) -> Self {
        Self { path: format!("{} > ", self.path), ..self.clone() }
    }

    pub(super) fn is_inside(&self) -> bool {
        self.path.contains(" > ")
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn type_name(&self) -> &str {
        self.type_name
    }
}

/// What was found in an object.
#[derive(Debug)]
pub(super) struct Findings<'k> {
    /// Kinds and classes that are known.
    pub(super) knowledge: &'k Knowledge,
    /// What has to be changed; of no use where `refused`.
    pub(super) changes: Changes,
    /// Whether the object must stay as it is.
    pub(super) refused: bool,
    /// Remarks for the user.
    pub(super) remarks: Vec<Remark>,
    /// Which anchors of the document lead to devices.
    pub(super) aliases: Rc<Aliases>,
    /// Nodes that name devices and have been dealt with.
    seen: BTreeSet<usize>,
}

impl<'k> Findings<'k> {
    pub(super) fn new(knowledge: &'k Knowledge, aliases: Rc<Aliases>) -> Self {
        Self {
            knowledge,
            changes: Changes::default(),
            refused: false,
            remarks: Vec::new(),
            aliases,
            seen: BTreeSet::new(),
        }
    }

    pub(super) fn refuse(&mut self, node: &Node<'_>, place: &Place<'_>, text: String) {
        self.refused = true;
        self.left(node, place, text);
    }

    /// The device class for a name that stands for devices of the device plugin; that there is none is refused.
    pub(super) fn class_of(&mut self, name: &str, key: &Node<'_>, place: &Place<'_>) -> Option<String> {
        self.seen(key);
        match device_class(name) {
            Ok(Some(class)) if self.knowledge.classes.has(&class) => Some(class),
            Ok(Some(class)) => {
                let similar = self.knowledge.classes.similar(&class);
                let known = if similar.is_empty() {
                    String::new()
                } else {
                    format!(" Classes with as many slices: {}.", similar.join(", "))
                };
                let why = format!(
                    "no device class has the name {class}, so the pod would wait forever; correct the profile, or, if your GPUs \
                     have it, add it to the chart's deviceClasses.extraProfiles and pass `--device-class {class}`.{known}"
                );
                self.refuse(key, place, why);
                None
            }
            Ok(None) => None,
            Err(why) => {
                self.refuse(key, place, why);
                None
            }
        }
    }

    pub(super) fn left(&mut self, node: &Node<'_>, place: &Place<'_>, text: String) {
        self.say(Severity::Left, node.line, place, text);
    }

    pub(super) fn left_at(&mut self, line: usize, place: &Place<'_>, text: String) {
        self.say(Severity::Left, line, place, text);
    }

    pub(super) fn review(&mut self, node: &Node<'_>, place: &Place<'_>, text: String) {
        self.say(Severity::Review, node.line, place, text);
    }

    pub(super) fn note(&mut self, node: &Node<'_>, place: &Place<'_>, text: String) {
        self.say(Severity::Note, node.line, place, text);
    }

    /// Takes a node out of the search for devices in places that are not known.
    pub(super) fn seen(&mut self, node: &Node<'_>) {
        self.seen.insert(node.id);
    }

    pub(super) fn is_seen(&self, node: &Node<'_>) -> bool {
        self.seen.contains(&node.id)
    }

    fn say(&mut self, severity: Severity, line: usize, place: &Place<'_>, text: String) {
        let Place { document, object, path, .. } = place.clone();
        self.remarks.push(Remark { severity, line, document, object: object.to_owned(), path, text });
    }
}

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
