//! Why files cannot be converted.

use std::io;

/// Most bytes of a file; an object has at most 1.5 MiB in etcd.
pub(super) const MAX_BYTES: usize = 16 << 20;

/// Why a file could not be converted at all.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// It could not be read or written.
    #[error("cannot {operation} `{path}`: {source}")]
    Io {
        /// `read` or `write`.
        operation: &'static str,
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// More than any manifest has.
    #[error("the file has more than {limit} {what}; split it")]
    TooLarge {
        /// Bytes or nodes.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
    /// More input than one call accepts.
    #[error("the input has more than {limit} {what}; convert one directory at a time")]
    TooMuch {
        /// Files, bytes or levels of directories.
        what: &'static str,
        /// How many are allowed.
        limit: u64,
    },
    /// A directory without manifests.
    #[error("the directory has no *.yaml, *.yml or *.json file; `-R` also reads its subdirectories")]
    NoManifests,
    /// Not UTF-8.
    #[error("the file is not UTF-8 text")]
    NotText,
    /// Not YAML.
    #[error(
        "line {line}, column {column}: not YAML: {message}; if the file is a template, render it first (`helm template`, \
         `kubectl kustomize`)"
    )]
    Malformed {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What the parser says.
        message: String,
    },
    /// Not a Kubernetes object.
    #[error("line {line}: document {document} is not an object with a kind")]
    NotAnObject {
        /// From 1.
        line: usize,
        /// From 1.
        document: usize,
    },
    /// The inputs and the place for the output do not fit together.
    #[error("{0}")]
    Output(String),
    /// Some files of several were replaced before writing failed.
    #[error(
        "cannot write `{path}`: {source}; already written: {written}; the other files are unchanged, run the command again"
    )]
    Partly {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
        /// The files that have their new content.
        written: String,
    },
}
