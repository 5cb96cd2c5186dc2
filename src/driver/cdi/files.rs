//! The driver's spec files: one for each claim, in a directory that container runtimes watch.
//!
//! A file appears and disappears as a whole. It is written under a name that runtimes ignore (it ends neither in
//! `.json` nor in `.yaml`), synced and renamed. The writer of a claim's file holds the claim's journal, so that
//! there is only one at a time. Files of other programs in the directory are never changed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cdi::device::Kind;
use crate::cdi::file_error::{FilesError, MODE, failed};
use crate::cdi::metadata::{ClaimName, MetadataFiles};
use crate::cdi::spec::{Mount, Spec};
use crate::files::{self, UNFINISHED, read_own, replace, unfinished};

/// A claim's file has some ten KiB, mostly mounts of libraries.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// The spec files of this driver in one CDI directory, usually `/var/run/cdi`.
#[derive(Debug, Clone)]
pub struct ClaimFiles {
    directory: PathBuf,
    kind: Kind,
    metadata: MetadataFiles,
}

/// Names of the devices in a claim's file, as in its ResourceSlice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamedDevices {
    /// All of them.
    pub all: Vec<String>,
    /// Those without adminAccess.
    pub held: Vec<String>,
}

impl ClaimFiles {
    /// Uses this directory, made if absent, and for metadata of devices another one, made when it is needed.
    pub fn open(
        directory: impl Into<PathBuf>,
        metadata: impl Into<PathBuf>,
        kind: Kind,
    ) -> Result<Self, FilesError> {
        let (directory, metadata) = (directory.into(), MetadataFiles::new(metadata.into()));
        let files = Self { directory, kind, metadata };
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

    /// Writes the metadata of one request of a claim, and answers with the mount that brings it into a container.
    pub fn write_metadata(
        &self,
        claim_uid: &str,
        claim: ClaimName<'_>,
        request: &str,
        json: &[u8],
    ) -> Result<Mount, FilesError> {
        self.metadata.write(&self.kind, claim_uid, claim, request, json)
    }

    /// Removes a claim's file and what it mounts, and what an interrupted write left. That there is none is success.
    pub fn remove(&self, claim_uid: &str) -> Result<(), FilesError> {
        remove_if_there(&self.unfinished(claim_uid)?)?;
        remove_if_there(&self.path(claim_uid)?)?;
        self.metadata.remove(claim_uid)
    }

    /// True where the claim has a file and, `with_metadata`, what it mounts.
    pub fn is_complete(&self, claim_uid: &str, with_metadata: bool) -> Result<bool, FilesError> {
        Ok(self.exists(claim_uid)? && (!with_metadata || self.metadata.exists(claim_uid)?))
    }

    /// True where the claim has a file.
    pub fn exists(&self, claim_uid: &str) -> Result<bool, FilesError> {
        let path = self.path(claim_uid)?;
        path.try_exists().map_err(failed("look for", &path))
    }

    /// Names of the devices in a claim's file, as in its ResourceSlice; see [`Self::named`].
    pub fn devices(&self, claim_uid: &str) -> Result<Vec<String>, FilesError> {
        Ok(self.named(claim_uid)?.all)
    }

    /// The devices in a claim's file. A file that is not one of this driver's names none: one
    /// that is too large, a symbolic link, or no regular file at all; and neither does one that is not there.
    ///
    /// # Errors
    /// Any other failure to read: the file may name devices all the same.
    pub fn named(&self, claim_uid: &str) -> Result<NamedDevices, FilesError> {
        let path = self.path(claim_uid)?;
        let bytes = match read_own(&path, MAX_FILE) {
            Err(error) if names_nothing(&error) => return Ok(NamedDevices::default()),
            bytes => bytes.map_err(failed("read", &path))?,
        };
        let Ok(spec) = serde_json::from_slice::<Spec>(&bytes) else { return Ok(NamedDevices::default()) };
        let admin_access = self.kind.admin_access();
        let mut named = NamedDevices::default();
        for device in &spec.devices {
            let name = device.name.strip_prefix(claim_uid).and_then(|it| it.strip_prefix('-'));
            let Some(name) = name.map(str::to_owned) else { continue };
            if !device.annotations.contains_key(&admin_access) {
                named.held.push(name.clone());
            }
            named.all.push(name);
        }
        Ok(named)
    }

    /// The UIDs of the claims that have a file or metadata, finished or not, sorted.
    pub fn list(&self) -> Result<Vec<String>, FilesError> {
        let names = self.names()?;
        let claim_of = |name: &String| {
            let unfinished = name.strip_prefix('.').and_then(|it| it.strip_suffix(UNFINISHED));
            self.kind.claim_of_file(unfinished.unwrap_or(name)).map(str::to_owned)
        };
        let mut uids: Vec<String> = names.iter().filter_map(claim_of).collect();
        uids.extend(self.metadata.list()?);
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
