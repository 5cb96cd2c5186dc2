//! Finds pods and quotas in objects of the kinds that are known, and devices in all others.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::alias::Aliases;
use super::change::Changes;
use super::remark::{Remark, Severity};
use super::resource::{device_class, is_device};
use super::template::{Shape, Templates};
use super::tree::{Content, Node};
use super::{pod, quota};

/// Most remarks about devices in places that are not known, in one document.
const MAX_UNKNOWN: usize = 20;

/// Where a remark is about: document, object, and path.
#[derive(Debug, Clone)]
pub(super) struct Place<'a> {
    document: usize,
    object: &'a str,
    path: String,
}

impl Place<'_> {
    pub(super) fn field(&self, name: &str) -> Self {
        // Names that contain dots cannot be distinguished from path steps.
        let step = if name.contains('.') { format!("[{name}]") } else { format!(".{name}") };
        let path = format!("{}{step}", self.path);
        Self { path: path.trim_start_matches('.').to_owned(), ..self.clone() }
    }

    pub(super) fn item(&self, index: usize) -> Self {
        Self { path: format!("{}[{index}]", self.path), ..self.clone() }
    }
}

/// What was found in an object.
#[derive(Debug, Default)]
pub(super) struct Findings {
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

impl Findings {
    pub(super) fn refuse(&mut self, node: &Node<'_>, place: &Place<'_>, text: String) {
        self.refused = true;
        self.left(node, place, text);
    }

    /// The device class for a name that stands for devices of the device plugin; that there is none is refused.
    pub(super) fn class_of(&mut self, name: &str, key: &Node<'_>, place: &Place<'_>) -> Option<String> {
        self.seen(key);
        device_class(name).unwrap_or_else(|why| {
            self.refuse(key, place, why);
            None
        })
    }

    pub(super) fn left(&mut self, node: &Node<'_>, place: &Place<'_>, text: String) {
        self.say(Severity::Left, node, place, text);
    }

    pub(super) fn note(&mut self, node: &Node<'_>, place: &Place<'_>, text: String) {
        self.say(Severity::Note, node, place, text);
    }

    /// Takes a node out of the search for devices in places that are not known.
    pub(super) fn seen(&mut self, node: &Node<'_>) {
        self.seen.insert(node.id);
    }

    fn say(&mut self, severity: Severity, node: &Node<'_>, place: &Place<'_>, text: String) {
        let Place { document, object, path } = place.clone();
        self.remarks.push(Remark {
            severity,
            line: node.line,
            document,
            object: object.to_owned(),
            path,
            text,
        });
    }
}

/// Reads a document: an object, or a list of them. `document` counts from 1.
pub(super) fn examine(root: &Node<'_>, document: usize, templates: &mut Templates) -> Findings {
    let aliases = Rc::new(Aliases::of(root));
    let one = |node, path| one(node, document, path, Rc::clone(&aliases), templates);
    each_object(root, one).into_iter().fold(Findings::default(), |mut all, it| {
        if it.refused {
            all.refused = true;
        } else {
            all.changes.merge(it.changes);
        }
        all.remarks.extend(it.remarks);
        all
    })
}

/// Notes the claim templates that a document has.
pub(super) fn note_templates(root: &Node<'_>, templates: &mut Templates) {
    each_object(root, |node, _| {
        if node.get("kind").and_then(Node::text) == Some("ResourceClaimTemplate")
            && let Some(name) = name(node, "name")
        {
            templates.found(name_space(node), name, shape_of(node));
        }
    });
}

fn each_object<'n, 't, T>(root: &'n Node<'t>, mut take: impl FnMut(&'n Node<'t>, String) -> T) -> Vec<T> {
    let kind = root.get("kind").and_then(Node::text).unwrap_or("");
    match root.get("items") {
        Some(items) if kind.ends_with("List") => {
            let all = items.items().iter().enumerate();
            all.map(|(index, it)| take(it, format!("items[{index}]"))).collect()
        }
        _ => vec![take(root, String::new())],
    }
}

/// Path of the pod spec in kinds that have one.
fn pod_path(api_version: &str, kind: &str) -> Option<&'static [&'static str]> {
    Some(match (api_version, kind) {
        ("v1", "Pod") => &["spec"],
        ("v1", "PodTemplate") => &["template", "spec"],
        ("v1", "ReplicationController")
        | ("apps/v1", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("batch/v1", "Job") => &["spec", "template", "spec"],
        ("batch/v1", "CronJob") => &["spec", "jobTemplate", "spec", "template", "spec"],
        _ => return None,
    })
}

fn one(
    node: &Node<'_>,
    document: usize,
    path: String,
    aliases: Rc<Aliases>,
    templates: &mut Templates,
) -> Findings {
    let kind = node.get("kind").and_then(Node::text).unwrap_or("");
    let api_version = node.get("apiVersion").and_then(Node::text).unwrap_or("");
    let object =
        format!("{kind} {}", name(node, "name").or(name(node, "generateName")).unwrap_or("without a name"));
    let place = Place { document, object: &object, path };
    let mut findings = Findings { aliases, ..Findings::default() };
    if (api_version, kind) == ("v1", "ResourceQuota") {
        quota::convert(node, &place, &mut findings);
    } else if let Some(steps) = pod_path(api_version, kind) {
        let (mut spec, mut place) = (Some(node), place.clone());
        for step in steps {
            place = place.field(step);
            spec = spec.and_then(|it| pod::get(it, step, &place, &mut findings));
        }
        if let Some(spec) = spec {
            pod::convert(spec, &place, name_space(node), templates, &mut findings);
        }
    }
    // An anchor or alias that was refused on the way covers all that is below it. Device classes may well have the name of
    // an extended resource.
    if !findings.refused && !api_version.starts_with("resource.k8s.io/") {
        let mut count = 0;
        unknown(node, &place, &mut count, &mut findings);
    }
    findings
}

/// Devices in places that this program does not know.
fn unknown(node: &Node<'_>, place: &Place<'_>, count: &mut usize, findings: &mut Findings) {
    // Labels and where pods may run are not requests.
    const OTHER: [&str; 8] = [
        "labels",
        "annotations",
        "matchLabels",
        "matchExpressions",
        "nodeSelector",
        "tolerations",
        "affinity",
        "taints",
    ];
    if matches!(node.content, Content::Scalar { .. }) {
        mention(node, place, count, findings);
    }
    for (key, value) in node.entries() {
        let name = key.text().unwrap_or("?");
        if OTHER.contains(&name) {
            continue;
        }
        let place = place.field(name);
        mention(key, &place, count, findings);
        unknown(value, &place, count, findings);
    }
    for (index, item) in node.items().iter().enumerate() {
        unknown(item, &place.item(index), count, findings);
    }
}

/// Reports a node that names a device and that no conversion handled.
fn mention(node: &Node<'_>, place: &Place<'_>, count: &mut usize, findings: &mut Findings) {
    let named = node.text().is_some_and(|it| is_device(it.strip_prefix("requests.").unwrap_or(it)));
    if named && !findings.seen.contains(&node.id) && *count < MAX_UNKNOWN {
        *count += 1;
        let why = "names a device of the device plugin in a place that is not known here; say what it needs with a \
             ResourceClaim or a ResourceClaimTemplate, if the kind can refer to one";
        findings.left(node, place, why.to_owned());
    }
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
