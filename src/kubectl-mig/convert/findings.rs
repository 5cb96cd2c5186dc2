//! What is found in an object, and where.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::alias::Aliases;
use super::change::Changes;
use super::kinds::Knowledge;
use super::remark::{Remark, Severity};
use super::resource::device_class;
use super::tree::Node;

/// Where a remark is about: document, object, and path.
#[derive(Debug, Clone)]
pub(super) struct Place<'a> {
    pub(super) document: usize,
    pub(super) object: &'a str,
    /// `apps/*/Deployment`.
    pub(super) type_name: &'a str,
    pub(super) path: String,
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
