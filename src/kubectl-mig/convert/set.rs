//! Converts files that belong together.

use super::change;
use super::error::{ConvertError, MAX_BYTES};
use super::findings::{Findings, Place};
use super::kinds::Knowledge;
use super::kustomize::{self, Layout, Role};
use super::object;
use super::remark::{Remark, Severity};
use super::search::Subject;
use super::template::Templates;
use super::tree::{self, Document, Node};

/// A converted file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// The new text.
    pub text: String,
    /// What was left unchanged, and what is good to know, in the order of lines.
    pub remarks: Vec<Remark>,
}

impl Converted {
    /// True where something was left or needs a review.
    #[must_use]
    pub fn left_something(&self) -> bool {
        self.remarks.iter().any(|it| it.severity != Severity::Note)
    }
}

/// A text to convert.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'t> {
    pub(super) text: &'t str,
    /// Whether a document that is no object is an error; else it stays as it is.
    pub(super) strict: bool,
}

/// What became of a text.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) converted: Converted,
    /// Whether it has objects only, which an API server accepts.
    pub(super) objects: bool,
}

/// A text that could be read.
struct Parsed<'t> {
    /// A byte order mark, which is no part of the first key.
    mark: &'t str,
    text: &'t str,
    documents: Vec<Document<'t>>,
    role: Role,
}

/// Converts texts; the answers have their order.
pub(super) fn convert_all(
    sources: &[Source<'_>],
    layout: &Layout,
    knowledge: &Knowledge,
) -> Vec<Result<Outcome, ConvertError>> {
    let mut outcomes: Vec<Option<Result<Outcome, ConvertError>>> = sources.iter().map(|_| None).collect();
    let mut templates: Vec<Templates> = vec![Templates::default(); layout.bases.len()];
    let members = members(layout);
    for group in &layout.order {
        let mut ours = Templates::default();
        layout.bases[*group].iter().for_each(|base| ours.inherit(&templates[*base]));
        let mut parsed = Vec::new();
        for index in &members[*group] {
            match parse(&sources[*index], layout.roles[*index]) {
                Ok(it) => parsed.push((*index, it)),
                Err(error) => outcomes[*index] = Some(Err(error)),
            }
        }
        for (_, it) in parsed.iter().filter(|(_, it)| it.role == Role::Manifest) {
            it.documents.iter().for_each(|it| object::note_templates(&it.root, &mut ours));
        }
        // Kustomizations last: what is said about them depends on the templates.
        parsed.sort_by_key(|(_, it)| it.role == Role::Kustomization);
        for (index, it) in &parsed {
            outcomes[*index] = Some(Ok(convert(it, &mut ours, knowledge)));
        }
        templates[*group] = ours;
    }
    outcomes.into_iter().flatten().collect()
}

fn members(layout: &Layout) -> Vec<Vec<usize>> {
    let mut members = vec![Vec::new(); layout.bases.len()];
    for (index, group) in layout.groups.iter().enumerate() {
        members[*group].push(index);
    }
    members
}

fn parse<'t>(source: &Source<'t>, role: Role) -> Result<Parsed<'t>, ConvertError> {
    let text = source.text;
    if text.len() > MAX_BYTES {
        return Err(ConvertError::TooLarge { what: "bytes", limit: MAX_BYTES });
    }
    let (mark, text) = text.strip_prefix('\u{feff}').map_or(("", text), |text| ("\u{feff}", text));
    let documents = tree::parse(text)?;
    if source.strict && role != Role::Kustomization {
        for (index, Document { root, .. }) in documents.iter().enumerate() {
            if !is_object(root) && !object::is_json_patch(root) {
                return Err(ConvertError::NotAnObject { line: root.line, document: index + 1 });
            }
        }
    }
    Ok(Parsed { mark, text, documents, role })
}

/// An object, or nothing.
fn is_object(root: &Node<'_>) -> bool {
    root.is_null() || root.get("kind").is_some()
}

fn convert(parsed: &Parsed<'_>, templates: &mut Templates, knowledge: &Knowledge) -> Outcome {
    let Parsed { mark, text, documents, role } = parsed;
    let (mut out, mut remarks, mut at) = ((*mark).to_owned(), Vec::new(), 0);
    let mut objects = *role == Role::Manifest;
    for (index, document) in documents.iter().enumerate() {
        let root = &document.root;
        let number = index + 1;
        let findings = match role {
            Role::Kustomization => kustomization(root, number, !templates.is_empty(), knowledge),
            _ if object::is_json_patch(root) => object::inspect(root, number, Subject::Patch, knowledge),
            Role::Patch => object::inspect(root, number, Subject::Patch, knowledge),
            Role::Manifest if is_object(root) => {
                let (changed, found) = one(text, document, number, templates, knowledge);
                if let Some(changed) = changed {
                    out.push_str(&text[at..document.start]);
                    out.push_str(&changed);
                    at = document.end;
                }
                remarks.extend(found);
                continue;
            }
            Role::Manifest => object::inspect(root, number, Subject::NoObject, knowledge),
        };
        objects &= root.is_null();
        remarks.extend(findings.remarks);
    }
    out.push_str(&text[at..]);
    remarks.sort_by_key(|it| it.line);
    Outcome { converted: Converted { text: out, remarks }, objects }
}

/// The new text of a document, if it changes, and what there is to say.
fn one(
    text: &str,
    document: &Document<'_>,
    number: usize,
    templates: &mut Templates,
    knowledge: &Knowledge,
) -> (Option<String>, Vec<Remark>) {
    let mark = templates.mark();
    let mut findings = object::examine(&document.root, number, templates, knowledge);
    if findings.changes.is_empty() {
        return (None, findings.remarks);
    }
    let changed = change::applied(text, document, &findings.changes, &templates.fresh());
    if changed.is_some() {
        templates.written();
    } else {
        templates.back_to(mark);
        findings.remarks.push(not_editable(&document.root, number));
    }
    (changed, findings.remarks)
}

fn kustomization<'k>(
    root: &Node<'_>,
    document: usize,
    templates: bool,
    knowledge: &'k Knowledge,
) -> Findings<'k> {
    let mut findings = Findings::new(knowledge, std::rc::Rc::default());
    kustomize::remark(root, &Place::of_file(document, "Kustomization"), templates, &mut findings);
    findings
}

fn not_editable(root: &Node<'_>, document: usize) -> Remark {
    let text = "the layout of the document does not allow changes line by line; write it in plain block style \
         (`kubectl create --dry-run=client -o yaml -f` does it) and convert again";
    let object = root.get("kind").and_then(Node::text).unwrap_or("").to_owned();
    Remark {
        severity: Severity::Left,
        line: root.line,
        document,
        object,
        path: "all".to_owned(),
        text: text.to_owned(),
    }
}
