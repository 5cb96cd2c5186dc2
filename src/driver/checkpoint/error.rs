//! The error of a file operation on the records of claims.

use std::io;
use std::path::{Path, PathBuf};

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot {operation} `{path}`: {source}; check that the disk of the kubelet's plugin directory is writable and not full"
)]
pub struct StoreError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Makes the error of an operation on this path.
pub(super) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError { operation, path, source }
}
