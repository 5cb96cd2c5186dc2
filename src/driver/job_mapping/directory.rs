//! The directory that the exporter reads. Files of other programs in it stay as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::files::{UNFINISHED, read_own, remove_if_there, replace};

use super::jobs::{FileName, Files, Job};

/// The exporter may run as another user.
const MODE: u32 = 0o644;
/// Far above what the pods of one GPU need.
const MAX_FILE: u64 = 4 * 1024 * 1024;
/// Jobs that are written into a file, so that it stays well below [`MAX_FILE`]: a line has 600 bytes at most.
const MOST_JOBS: usize = 4096;
/// Far above the number of instances that a node can have.
const MOST_FILES: usize = 1024;

/// Why the directory cannot be made to agree with the claims.
#[derive(Debug, thiserror::Error)]
pub(super) enum DirectoryError {
    /// The file system refuses.
    #[error(
        "cannot {operation} {path:?}: {source}; check that the directory of --dcgm-job-mapping-dir is mounted and writable"
    )]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    /// Something else has its name.
    #[error("{0:?} is not a directory; give --dcgm-job-mapping-dir a directory that is no symbolic link")]
    NotADirectory(PathBuf),
    /// It cannot be the directory of an exporter.
    #[error(
        "{0:?} has more than {MOST_FILES} mapping files; give --dcgm-job-mapping-dir a directory of its own"
    )]
    TooMany(PathBuf),
}

/// The directory.
#[derive(Debug, Clone)]
pub(super) struct Directory(PathBuf);

/// What is in it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    /// Files that this driver wrote.
    pub(super) own: Files,
    /// Files with such a name whose content is not this driver's, or cannot be read.
    pub(super) others: BTreeMap<FileName, String>,
    /// What an interrupted write left.
    unfinished: BTreeSet<PathBuf>,
}

impl Directory {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// What is there. The directory is made where there is none.
    pub(super) fn read(&self) -> Result<Content, DirectoryError> {
        match fs::symlink_metadata(&self.0) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(DirectoryError::NotADirectory(self.0.clone())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&self.0).map_err(failed("create", &self.0))?;
            }
            Err(error) => return Err(failed("look at", &self.0)(error)),
        }
        let mut content = Content::default();
        for entry in fs::read_dir(&self.0).map_err(failed("list", &self.0))? {
            let entry = entry.map_err(failed("list", &self.0))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let hidden = name.strip_prefix('.').and_then(|it| it.strip_suffix(UNFINISHED));
            if hidden.is_some_and(|it| it.parse::<FileName>().is_ok()) {
                content.unfinished.insert(entry.path());
            } else if let Ok(name) = name.parse() {
                match self.jobs(name) {
                    Ok(Some(jobs)) => drop(content.own.insert(name, jobs)),
                    Ok(None) => {}
                    Err(reason) => drop(content.others.insert(name, reason)),
                }
            }
            if MOST_FILES < content.own.len() + content.others.len() + content.unfinished.len() {
                return Err(DirectoryError::TooMany(self.0.clone()));
            }
        }
        Ok(content)
    }

    /// The jobs in a file of this driver; nothing if it is gone meanwhile.
    fn jobs(&self, name: FileName) -> Result<Option<BTreeSet<Job>>, String> {
        let bytes = match read_own(&self.path(name), MAX_FILE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(|error| error.to_string())?,
        };
        let foreign = || "another program wrote it".to_owned();
        let text = String::from_utf8(bytes).map_err(|_| foreign())?;
        let jobs: BTreeSet<Job> =
            text.lines().map(str::parse).collect::<Result<_, ()>>().map_err(|()| foreign())?;
        if jobs.is_empty() { Err(foreign()) } else { Ok(Some(jobs)) }
    }

    /// Makes the files of this driver say what is wanted. All are tried, also after one has failed.
    pub(super) fn apply(&self, present: &Content, wanted: &Files) -> Result<(), DirectoryError> {
        let mut result = Ok(());
        let mut tried = |done: Result<(), DirectoryError>| {
            if let (Err(error), true) = (done, result.is_ok()) {
                result = Err(error);
            }
        };
        for path in &present.unfinished {
            tried(remove_if_there(path).map_err(failed("remove", path)));
        }
        for name in present.own.keys().filter(|it| !wanted.contains_key(it)) {
            let path = self.path(*name);
            tried(remove_if_there(&path).map_err(failed("remove", &path)));
        }
        for (name, jobs) in wanted {
            let jobs: BTreeSet<Job> = jobs.iter().take(MOST_JOBS).cloned().collect();
            if present.own.get(name) == Some(&jobs) || present.others.contains_key(name) {
                continue;
            }
            let path = self.path(*name);
            tried(replace(&path, text(&jobs).as_bytes(), MODE).map_err(failed("write", &path)));
        }
        result
    }

    fn path(&self, name: FileName) -> PathBuf {
        self.0.join(name.to_string())
    }
}

fn text(jobs: &BTreeSet<Job>) -> String {
    jobs.iter().fold(String::new(), |mut text, job| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{job}");
        text
    })
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DirectoryError {
    let path = path.to_owned();
    move |source| DirectoryError::Io { operation, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn files(name: &str, line: &str) -> Files {
        Files::from([(name.parse().unwrap(), BTreeSet::from([line.parse().unwrap()]))])
    }

    #[test]
    fn files_are_written_replaced_and_removed_and_others_stay() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::new(root.path().join("mapping"));
        let at = |name: &str| root.path().join("mapping").join(name);
        let make = |wanted: &Files| directory.apply(&directory.read().unwrap(), wanted).unwrap();
        make(&files("0.9", "ns/a/c"));
        assert_eq!(fs::read_to_string(at("0.9")).unwrap(), "ns/a/c\n");
        assert_eq!(fs::metadata(at("0.9")).unwrap().permissions().mode() & 0o777, 0o644);
        make(&files("0.9", "ns/b/c"));
        assert_eq!(fs::read_to_string(at("0.9")).unwrap(), "ns/b/c\n");

        // A job of a batch system, a file of no such name, an empty one, and a link.
        for (name, content) in [("0.1", "4711\n"), ("notes", "ns/a/c\n"), ("0.2", ""), ("007", "ns/a/c\n")] {
            fs::write(at(name), content).unwrap();
        }
        symlink(at("0.9"), at("0.3")).unwrap();
        fs::write(at(".0.9.tmp"), "ns/").unwrap();
        let mut wanted = files("0.1", "ns/a/c");
        wanted.extend(files("0.3", "ns/a/c"));
        make(&wanted);
        assert_eq!(fs::read_to_string(at("0.1")).unwrap(), "4711\n");
        assert!(fs::symlink_metadata(at("0.3")).unwrap().is_symlink());
        let mut left: Vec<_> = fs::read_dir(root.path().join("mapping"))
            .unwrap()
            .map(|it| it.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["0.1", "0.2", "0.3", "007", "notes"]);
    }

    #[test]
    fn of_more_jobs_than_a_file_may_have_the_first_are_written_and_the_file_is_still_known_as_ours() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::new(root.path().to_owned());
        // As long as names can be.
        let (namespace, name) = ("n".repeat(63), "p".repeat(248));
        let job = |number: usize| format!("{namespace}/{name}{number:05}/{name}{number:05}").parse().unwrap();
        let wanted = Files::from([("0".parse().unwrap(), (0..=MOST_JOBS).map(job).collect())]);
        directory.apply(&directory.read().unwrap(), &wanted).unwrap();
        let written = fs::read_to_string(root.path().join("0")).unwrap();
        assert_eq!(written.lines().count(), MOST_JOBS);
        assert!(written.len() as u64 <= MAX_FILE, "{}", written.len());
        let present = directory.read().unwrap();
        assert!(present.others.is_empty(), "{:?}", present.others);
        let before = fs::metadata(root.path().join("0")).unwrap().modified().unwrap();
        directory.apply(&present, &wanted).unwrap();
        assert_eq!(
            fs::metadata(root.path().join("0")).unwrap().modified().unwrap(),
            before,
            "it is not written again"
        );
        directory.apply(&present, &Files::new()).unwrap();
        assert!(!root.path().join("0").exists());
    }

    #[test]
    fn a_symbolic_link_in_the_place_of_the_directory_is_refused_and_not_followed() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("real")).unwrap();
        symlink(root.path().join("real"), root.path().join("link")).unwrap();
        let error = Directory::new(root.path().join("link")).read().unwrap_err();
        assert!(matches!(error, DirectoryError::NotADirectory(_)), "{error}");
    }

    #[test]
    fn a_directory_that_is_no_mapping_directory_is_refused() {
        let root = tempfile::tempdir().unwrap();
        for number in 0..=MOST_FILES {
            fs::write(root.path().join(number.to_string()), "").unwrap();
        }
        let error = Directory::new(root.path().to_owned()).read().unwrap_err();
        assert!(matches!(error, DirectoryError::TooMany(_)), "{error}");
    }

    #[test]
    fn a_file_that_cannot_be_written_keeps_no_other_from_being_written() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::new(root.path().to_owned());
        let present = directory.read().unwrap();
        // After the look, so that it is not known as another program's.
        fs::create_dir(root.path().join("0")).unwrap();
        let mut wanted = files("0", "ns/a/c");
        wanted.extend(files("1", "ns/b/d"));
        let error = directory.apply(&present, &wanted).unwrap_err().to_string();
        assert!(error.contains("/0\"") && error.contains("--dcgm-job-mapping-dir"), "{error}");
        assert_eq!(fs::read_to_string(root.path().join("1")).unwrap(), "ns/b/d\n");
    }
}
