//! The driver's spec files: one for each claim, in a directory that container runtimes watch.
//!
//! A file appears and disappears as a whole. It is written under a name that runtimes ignore (it ends neither in
//! `.json` nor in `.yaml`), synced and renamed. Files of other programs in the directory are never touched.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cdi::device::Kind;
use crate::cdi::root::read_bounded;
use crate::cdi::spec::{Spec, SpecError};

/// Runtimes that do not run as root read the files, too.
const MODE: u32 = 0o644;
const UNFINISHED: &str = ".tmp";
/// A write takes milliseconds: an unfinished file of this age has no writer.
const ABANDONED_AFTER: Duration = Duration::from_secs(60);
/// A claim's file has some ten KiB, mostly mounts of libraries.
const MAX_FILE: u64 = 4 * 1024 * 1024;
/// How many unfinished files of one claim may lie around before writing gives up.
const MAX_ATTEMPTS: u32 = 100;

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
    /// Uses this directory, made if absent, and clears it of files that an interrupted write of this driver left.
    pub fn open(directory: impl Into<PathBuf>, kind: Kind) -> Result<Self, FilesError> {
        let files = Self { directory: directory.into(), kind };
        create_directory(&files.directory)?;
        for name in files.names()? {
            let of_ours =
                name.strip_prefix('.').is_some_and(|rest| rest.starts_with(&files.kind.file_prefix()));
            let path = files.directory.join(&name);
            if of_ours && name.ends_with(UNFINISHED) && is_abandoned(&path) {
                remove_if_there(&path)?;
            }
        }
        Ok(files)
    }

    /// The path of a claim's file, whether or not it exists.
    pub fn path(&self, claim_uid: &str) -> Result<PathBuf, FilesError> {
        Ok(self.directory.join(self.kind.file_name(claim_uid)?))
    }

    /// Writes a claim's file, in place of the one that may be there.
    pub fn write(&self, claim_uid: &str, spec: &Spec) -> Result<PathBuf, FilesError> {
        spec.validate()?;
        let path = self.path(claim_uid)?;
        let mut json = serde_json::to_vec_pretty(spec)?;
        json.push(b'\n');
        create_directory(&self.directory)?;
        let (unfinished, file) = self.create_unfinished(&self.kind.file_name(claim_uid)?)?;
        let written = write_and_sync(file, &json).map_err(failed("write", &unfinished)).and_then(|()| {
            fs::rename(&unfinished, &path).map_err(failed("rename to its final name", &unfinished))
        });
        if written.is_err() {
            // The first error is the one to report; what is left over is removed by the next `open`.
            let _ = fs::remove_file(&unfinished);
        }
        written?;
        sync_directory(&self.directory)?;
        Ok(path)
    }

    /// Removes a claim's file. That there is none is success.
    pub fn remove(&self, claim_uid: &str) -> Result<(), FilesError> {
        remove_if_there(&self.path(claim_uid)?)
    }

    /// True where the claim has a file.
    pub fn exists(&self, claim_uid: &str) -> Result<bool, FilesError> {
        let path = self.path(claim_uid)?;
        path.try_exists().map_err(failed("look for", &path))
    }

    /// Names of the devices in a claim's file, as in its ResourceSlice. A file that is not one of this driver's names none,
    /// and neither does one that is not there.
    pub fn devices(&self, claim_uid: &str) -> Result<Vec<String>, FilesError> {
        let path = self.path(claim_uid)?;
        let bytes = match read_bounded(&path, MAX_FILE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            bytes => bytes.map_err(failed("read", &path))?,
        };
        let Ok(spec) = serde_json::from_slice::<Spec>(&bytes) else { return Ok(Vec::new()) };
        let name = |it: &str| it.strip_prefix(claim_uid)?.strip_prefix('-').map(str::to_owned);
        Ok(spec.devices.iter().filter_map(|it| name(&it.name)).collect())
    }

    /// The UIDs of the claims that have a file, sorted.
    pub fn list(&self) -> Result<Vec<String>, FilesError> {
        let names = self.names()?;
        let mut uids: Vec<String> =
            names.iter().filter_map(|name| self.kind.claim_of_file(name)).map(str::to_owned).collect();
        uids.sort();
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

    /// A new, empty, hidden file. Its name has a process id for people and a number because ids repeat: in a container
    /// this process is always number 1, and during a rolling update there are two of it.
    fn create_unfinished(&self, final_name: &str) -> Result<(PathBuf, File), FilesError> {
        let mut attempt = 0;
        loop {
            let name = format!(".{final_name}.{}-{attempt}{UNFINISHED}", std::process::id());
            let path = self.directory.join(name);
            match OpenOptions::new().write(true).create_new(true).mode(MODE).open(&path) {
                Ok(file) => return Ok((path, file)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < MAX_ATTEMPTS => {
                    attempt += 1
                }
                Err(error) => return Err(failed("create", &path)(error)),
            }
        }
    }
}

fn write_and_sync(mut file: File, bytes: &[u8]) -> io::Result<()> {
    // The mode given at creation is cut by the umask.
    file.set_permissions(fs::Permissions::from_mode(MODE))?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn create_directory(path: &Path) -> Result<(), FilesError> {
    fs::create_dir_all(path).map_err(failed("create the directory", path))
}

fn sync_directory(path: &Path) -> Result<(), FilesError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(failed("sync the directory", path))
}

fn remove_if_there(path: &Path) -> Result<(), FilesError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn is_abandoned(path: &Path) -> bool {
    let modified = fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > ABANDONED_AFTER))
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FilesError {
    let path = path.to_owned();
    move |source| FilesError::Io { operation, path, source }
}
