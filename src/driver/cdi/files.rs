//! The driver's spec files: one for each claim, in a directory that container runtimes watch.
//!
//! A file appears and disappears as a whole. It is written under a name that runtimes ignore (it ends neither in
//! `.json` nor in `.yaml`), synced and renamed. The writer of a claim's file holds the claim's journal, so that
//! there is only one at a time. Files of other programs in the directory are never changed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cdi::device::Kind;
use crate::cdi::spec::{Spec, SpecError};
use crate::files::{self, UNFINISHED, read_own, replace, unfinished};

/// Runtimes that do not run as root read the files, too.
pub(super) const MODE: u32 = 0o644;
/// A claim's file has some ten KiB, mostly mounts of libraries.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// The spec files of this driver in one CDI directory, usually `/var/run/cdi`.
#[derive(Debug, Clone)]
pub struct ClaimFiles {
    directory: PathBuf,
    kind: Kind,
}

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
    #[error("can't {operation} {path:?}: {source}; check that the CDI directory is mounted and writable")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

impl ClaimFiles {
    /// Uses this directory, made if absent.
    pub fn open(directory: impl Into<PathBuf>, kind: Kind) -> Result<Self, FilesError> {
        let files = Self { directory: directory.into(), kind };
        create_directory(&files.directory)?;
        Ok(files)
    }

    /// The path of a claim's file, whether or not it exists.
    pub fn path(&self, claim_uid: &str) -> Result<PathBuf, FilesError> {
        Ok(self.directory.join(self.kind.file_name(claim_uid)?))
    }

    /// Writes a claim's file, in place of the one that may be there.
    pub fn write(&self, claim_uid: &str, spec: &Spec) -> Result<PathBuf, FilesError> {
        write_spec(&self.directory, &self.kind.file_name(claim_uid)?, spec)
    }

    /// Removes a claim's file, and what an interrupted write left. That there is none is success.
    pub fn remove(&self, claim_uid: &str) -> Result<(), FilesError> {
        remove_if_there(&self.unfinished(claim_uid)?)?;
        remove_if_there(&self.path(claim_uid)?)
    }

    /// True where the claim has a file.
    pub fn exists(&self, claim_uid: &str) -> Result<bool, FilesError> {
        let path = self.path(claim_uid)?;
        path.try_exists().map_err(failed("look for", &path))
    }

    /// Names of the devices in a claim's file, as in its ResourceSlice. A file that is not one of this driver's names none: one
    /// that is too large, a symbolic link, or no regular file at all; and neither does one that is not there.
    ///
    /// # Errors
    /// Any other failure to read: the file may name devices all the same.
    pub fn devices(&self, claim_uid: &str) -> Result<Vec<String>, FilesError> {
        let path = self.path(claim_uid)?;
        let bytes = match read_own(&path, MAX_FILE) {
            Err(error) if names_nothing(&error) => return Ok(Vec::new()),
            bytes => bytes.map_err(failed("read", &path))?,
        };
        let Ok(spec) = serde_json::from_slice::<Spec>(&bytes) else { return Ok(Vec::new()) };
        let name = |it: &str| it.strip_prefix(claim_uid)?.strip_prefix('-').map(str::to_owned);
        Ok(spec.devices.iter().filter_map(|it| name(&it.name)).collect())
    }

    /// The UIDs of the claims that have a file, finished or not, sorted.
    pub fn list(&self) -> Result<Vec<String>, FilesError> {
        let names = self.names()?;
        let claim_of = |name: &String| {
            let unfinished = name.strip_prefix('.').and_then(|it| it.strip_suffix(UNFINISHED));
            self.kind.claim_of_file(unfinished.unwrap_or(name)).map(str::to_owned)
        };
        let mut uids: Vec<String> = names.iter().filter_map(claim_of).collect();
        uids.sort();
        uids.dedup();
        Ok(uids)
    }

    /// All UTF-8 names in the directory; none if it is gone.
    fn names(&self) -> Result<Vec<String>, FilesError> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed("list", &self.directory))?,
        };
        let names = entries.filter_map(|entry| entry.map(|e| e.file_name().into_string().ok()).transpose());
        names.collect::<Result<_, _>>().map_err(failed("list", &self.directory))
    }

    /// Where a claim's file is written.
    fn unfinished(&self, claim_uid: &str) -> Result<PathBuf, FilesError> {
        let path = self.path(claim_uid)?;
        unfinished(&path).map_err(failed("name the unfinished file of", &path))
    }
}

/// Writes a spec file with this name, in place of the one that may be there. The directory is made if absent.
pub(super) fn write_spec(directory: &Path, name: &str, spec: &Spec) -> Result<PathBuf, FilesError> {
    spec.validate()?;
    let path = directory.join(name);
    let mut json = serde_json::to_vec_pretty(spec)?;
    json.push(b'\n');
    create_directory(directory)?;
    replace(&path, &json, MODE).map_err(failed("write", &path))?;
    Ok(path)
}

fn names_nothing(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, InvalidInput, NotFound};
    matches!(error.kind(), NotFound | FileTooLarge | InvalidInput)
}

fn create_directory(path: &Path) -> Result<(), FilesError> {
    fs::create_dir_all(path).map_err(failed("create the directory", path))
}

fn remove_if_there(path: &Path) -> Result<(), FilesError> {
    files::remove_if_there(path).map_err(failed("remove", path))
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FilesError {
    let path = path.to_owned();
    move |source| FilesError::Io { operation, path, source }
}
