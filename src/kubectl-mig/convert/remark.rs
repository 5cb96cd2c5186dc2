//! What the user has to know about a document that was converted, or was not.

use std::fmt;

/// How much a remark matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// A request for a device, or what else depends on the device plugin, was left unchanged.
    Left,
    /// It was converted, and does not work before something else is changed or verified.
    Review,
    /// Nothing has to be done, but it is good to know.
    Note,
}

/// One remark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// How much it matters.
    pub severity: Severity,
    /// Line of the file, from 1.
    pub line: usize,
    /// Number of the document in the file, from 1.
    pub document: usize,
    /// Kind and name of the object.
    pub object: String,
    /// Path of the field in the document.
    pub path: String,
    /// Why, and what to do.
    pub text: String,
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Left => "left as it is",
            Severity::Review => "review",
            Severity::Note => "note",
        };
        let Self { line, document, object, path, text, .. } = self;
        write!(f, "{line}: {severity}: document {document}, {object}, {path}: {text}")
    }
}
