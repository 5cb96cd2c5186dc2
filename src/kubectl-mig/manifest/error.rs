//! Why manifests cannot be used, and where.

use std::{fmt, io};

/// Most bytes of a file. A dump of a large cluster's ResourceSlices has 250 MB.
pub(super) const MAX_BYTES: u64 = 512 << 20;

/// What to do with a template.
const TEMPLATE: &str = "; if the file is a template, render it first (`helm template`, `kubectl kustomize`)";

/// Where an object stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: String,
    /// The document in it, from 1.
    pub document: usize,
    /// The item of a list, from 1.
    pub item: Option<usize>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`, document {}", self.file, self.document)?;
        self.item.map_or(Ok(()), |item| write!(f, ", item {item}"))
    }
}

/// Why manifests cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A file cannot be read.
    #[error("cannot read `{path}`: {source}")]
    Io {
        /// The file or directory.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// More than any manifest has.
    #[error("`{path}` has more than {} MiB; split it", MAX_BYTES >> 20)]
    TooLarge {
        /// The file.
        path: String,
    },
    /// Not YAML or JSON.
    #[error("{path}: {message}{}", if *is_template { TEMPLATE } else { "" })]
    Malformed {
        /// The file.
        path: String,
        /// What the parser says, with line and column.
        message: String,
        /// Whether it looks like a template of Helm.
        is_template: bool,
    },
    /// Not a Kubernetes object, or one with fields of the wrong type.
    #[error("{place}: {message}")]
    Object {
        /// Where.
        place: Place,
        /// What is wrong.
        message: String,
    },
    /// A directory without manifests, or directories too deep.
    #[error("`{path}`: {message}")]
    Directory {
        /// The directory.
        path: String,
        /// What is wrong.
        message: &'static str,
    },
}
