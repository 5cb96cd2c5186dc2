//! Devices of a device plugin in places that are not converted: unknown fields, strings that contain manifests, and patches.

use super::findings::{Findings, Place};
use super::resource::{devices_in, is_device, unprefixed};
use super::tree::{self, Content, Node};

/// Most remarks about devices in places that are not converted, in one document.
const MAX_PLACES: usize = 20;

/// How many strings inside strings are read.
const MAX_DEPTH: usize = 3;

/// Fields that are about where pods run, or are names, and request nothing.
const NO_REQUESTS: [&str; 8] = [
    "labels",
    "annotations",
    "matchLabels",
    "matchExpressions",
    "nodeSelector",
    "tolerations",
    "affinity",
    "taints",
];

/// What kind of text is searched, which decides how strings are read and what is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    /// An object: a string counts where it is a manifest with requests or limits.
    Object,
    /// A ConfigMap or Secret: every string that is YAML is read.
    ConfigMap,
    /// A kustomization, whose strings are patches.
    Kustomization,
    /// A strategic-merge patch or a list of JSON patch operations.
    Patch,
    /// YAML that is no object, such as the values of a chart.
    NoObject,
}

/// Reports every device in a node that no conversion handled.
pub(super) fn search(root: &Node<'_>, place: &Place<'_>, subject: Subject, findings: &mut Findings<'_>) {
    let mut search = Search { findings, subject, count: 0 };
    search.node(root, place, Context { request: false, depth: 0, lines: Lines::OfNode });
    let more = search.count.saturating_sub(MAX_PLACES);
    if more > 0 {
        findings.left(root, place, format!("names devices in {more} more places, which are not listed"));
    }
}

/// The line of the file in which a node of an embedded text stands.
#[derive(Debug, Clone, Copy)]
enum Lines {
    /// That of the node: it is part of the file.
    OfNode,
    /// So many lines after that of the node: the text is a literal block.
    After(usize),
    /// The line of the string: its line breaks are not those of the file.
    Fixed(usize),
}

impl Lines {
    fn line(self, line: usize) -> usize {
        match self {
            Self::OfNode => line,
            Self::After(before) => before + line,
            Self::Fixed(line) => line,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Context {
    /// Inside `limits` or `requests`.
    request: bool,
    /// How many strings this is in.
    depth: usize,
    lines: Lines,
}

struct Search<'f, 'k> {
    findings: &'f mut Findings<'k>,
    subject: Subject,
    count: usize,
}

impl Search<'_, '_> {
    fn node(&mut self, node: &Node<'_>, place: &Place<'_>, context: Context) {
        if let Content::Scalar { value, .. } = &node.content {
            if is_device(unprefixed(value)) {
                self.mention(node, value, place, context);
            } else {
                self.string(node, value, place, context);
            }
        }
        for (key, value) in node.entries() {
            let name = key.text().unwrap_or("?");
            if NO_REQUESTS.contains(&name) {
                continue;
            }
            let place = place.field(name);
            if is_device(unprefixed(name)) {
                self.mention(key, name, &place, context);
            }
            let request = context.request || ["limits", "requests"].contains(&name);
            self.node(value, &place, Context { request, ..context });
        }
        for (index, item) in node.items().iter().enumerate() {
            self.node(item, &place.item(index), context);
        }
    }

    /// A string: a JSON pointer, a manifest, or any text.
    fn string(&mut self, node: &Node<'_>, text: &str, place: &Place<'_>, context: Context) {
        if !text.contains("nvidia.com") && devices_in(text).is_empty() {
            return;
        }
        if text.starts_with('/') && text.contains("~1") && !text.contains('\n') {
            for (_, name) in devices_in(text) {
                self.mention(node, &name, place, Context { request: true, ..context });
            }
            return;
        }
        // A literal block begins, for the parser, at its first line with text.
        let blank = text.len() - text.trim_start_matches('\n').len();
        let before = node.line.saturating_sub(1 + blank);
        let inner = match (&node.content, context.lines) {
            (Content::Scalar { literal: true, .. }, Lines::OfNode) => Lines::After(before),
            (Content::Scalar { literal: true, .. }, Lines::After(outer)) => Lines::After(outer + before),
            _ => Lines::Fixed(context.lines.line(node.line)),
        };
        let parsed = if context.depth < MAX_DEPTH { tree::parse(text).ok() } else { None };
        let is_text = |it: &[tree::Document<'_>]| it.iter().all(|it| it.root.text().is_some());
        match parsed.filter(|it| !is_text(it)) {
            Some(documents) => {
                for document in &documents {
                    let context = Context { request: false, depth: context.depth + 1, lines: inner };
                    self.node(&document.root, &place.inside(), context);
                }
            }
            // Not YAML, such as a template, or too deep: words have to do. A line inside a text, such as a query, is no
            // manifest.
            None if self.reads_all_strings()
                && (text.contains('\n') || !(1..MAX_DEPTH).contains(&context.depth)) =>
            {
                for (line, name) in devices_in(text) {
                    self.report(inner.line(line + 1), &name, place);
                }
            }
            None => {}
        }
    }

    fn reads_all_strings(&self) -> bool {
        self.subject != Subject::Object
    }

    fn mention(&mut self, node: &Node<'_>, name: &str, place: &Place<'_>, context: Context) {
        if context.depth == 0 && self.findings.is_seen(node) {
            return;
        }
        // Any text can contain the word; in an object only what requests devices counts.
        if context.depth > 0 && !context.request && !self.reads_all_strings() {
            return;
        }
        self.report(context.lines.line(node.line), name, place);
    }

    fn report(&mut self, line: usize, name: &str, place: &Place<'_>) {
        self.count += 1;
        if self.count > MAX_PLACES {
            return;
        }
        let name = unprefixed(name);
        let why = match self.subject {
            Subject::Object | Subject::NoObject if place.is_inside() => format!(
                "a string with a manifest in it names {name}; `convert` does not edit strings: convert that manifest by itself"
            ),
            Subject::Object => {
                format!("names {name} in a place that `convert` does not know; {}", advice(place))
            }
            Subject::ConfigMap => format!(
                "a string names {name}; `convert` does not edit strings: convert that manifest by itself and put it back, or \
                 change the settings of the program that reads it"
            ),
            Subject::Kustomization | Subject::Patch => format!(
                "a patch names {name}, which the converted base no longer has; convert what the kustomization renders \
                 (`kubectl kustomize DIR | kubectl mig convert -f -`), or write the claim into the patch by hand"
            ),
            Subject::NoObject => format!(
                "names {name}, but the file is no Kubernetes object; if it holds the values of a chart, convert what the chart \
                 renders (`helm template … | kubectl mig convert -f -`)"
            ),
        };
        self.findings.left_at(line, place, why);
    }
}

/// What to do about a device at a place of an object: name the place as a pod spec, if it looks like one.
fn advice(place: &Place<'_>) -> String {
    let path = place.path();
    let spec = path.split_once(".containers[").or(path.split_once(".initContainers["));
    match spec.filter(|(_, rest)| rest.contains("].resources.")) {
        Some((spec, _)) => format!(
            "if the operator passes resourceClaims on to its pods, convert again with `--pod-template '{}={}'`",
            place.type_name(),
            any_index(spec)
        ),
        None => "create a ResourceClaimTemplate and refer to it, if the kind can".to_owned(),
    }
}

/// A path with `[*]` for each index.
fn any_index(path: &str) -> String {
    let mut parts = path.split('[');
    let mut out = parts.next().unwrap_or("").to_owned();
    for part in parts {
        out.push_str("[*]");
        out.push_str(part.split_once(']').map_or("", |(_, rest)| rest));
    }
    out
}
