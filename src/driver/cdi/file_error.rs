//! What all files of a claim have in common: who may read them, and how they fail.

use std::io;
use std::path::{Path, PathBuf};

use crate::cdi::spec::SpecError;

/// Runtimes that do not run as root read the files, too.
pub(super) const MODE: u32 = 0o644;
/// Why a spec file can't be written, removed or listed.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The spec or the claim's UID is refused.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The spec has no JSON form.
    #[error("can't write a CDI spec as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The file system refuses.
    #[error("can't {operation} {path:?}: {source}; check that its directory is mounted and writable")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

pub(super) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FilesError {
    let path = path.to_owned();
    move |source| FilesError::Io { operation, path, source }
}
