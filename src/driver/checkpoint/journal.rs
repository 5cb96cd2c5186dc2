//! The file of one claim, and the right to work on that claim.
//!
//! A line for each step, and each line is the whole record: the last one counts. A line is written by one call and ends
//! with its newline, so what an interrupted write leaves is a tail without one, which nobody reads and the next line
//! replaces. A last line that cannot be understood makes the file unreadable: the lines before it tell what was, and
//! acting on that could take a running pod its instance. The file is locked while it is open here, against other calls
//! and other processes alike, and the kernel gives the lock back however its holder ends.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mig_model::claim::ClaimUid;

use super::{MOST_BYTES, Record, Reservation, StoreError, Stored, UNFINISHED, failed, sync};

/// A file of this length is written anew with its last line only. A claim needs five lines in its life.
const LONG: u64 = MOST_BYTES / 4;

/// The open file of a claim. Whoever has it is alone with the claim.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// Bytes up to the end of the last complete line.
    length: u64,
    stored: Stored,
    is_gone: bool,
}

/// What came of asking for a journal.
#[derive(Debug)]
pub enum Taken {
    /// There is none, and none was to be made.
    Nothing,
    /// Somebody else works on the claim.
    Busy,
    /// Here it is.
    Journal(Journal),
}

impl Journal {
    pub(super) fn take(path: &Path, uid: &ClaimUid, or_new: bool) -> Result<Taken, StoreError> {
        loop {
            let opened = OpenOptions::new().read(true).write(true).create(or_new).truncate(false).open(path);
            let file = match (opened, path.parent()) {
                (Err(error), _) if error.kind() == io::ErrorKind::NotFound && !or_new => {
                    return Ok(Taken::Nothing);
                }
                // Somebody removed the directory.
                (Err(error), Some(directory))
                    if error.kind() == io::ErrorKind::NotFound && !directory.exists() =>
                {
                    fs::create_dir_all(directory).map_err(failed("create", directory))?;
                    continue;
                }
                (opened, _) => opened.map_err(failed("open", path))?,
            };
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => return Ok(Taken::Busy),
                Err(TryLockError::Error(error)) => return Err(failed("lock", path)(error)),
                Ok(()) => {}
            }
            // Its last holder may have removed or replaced it after it was opened here.
            if is_at(&file, path).map_err(failed("read", path))? {
                let (stored, length) = read(&file, uid);
                return Ok(Taken::Journal(Self {
                    path: path.to_owned(),
                    file,
                    length,
                    stored,
                    is_gone: false,
                }));
            }
        }
    }

    /// What it said when it was opened.
    #[must_use]
    pub fn stored(&self) -> &Stored {
        &self.stored
    }

    /// Notes a step. Survives the end of this process, not that of the machine: steps are about instances, and those do
    /// not survive it either.
    pub fn append(&mut self, record: &Record) -> Result<(), StoreError> {
        if LONG < self.length {
            return self.replace(record);
        }
        let line = line_of(record).map_err(failed("write", &self.path))?;
        let written = self.file.write_all_at(&line, self.length);
        if written.is_err() {
            // What is left has no newline and is not read; the next line is written over it.
            let _ = self.file.set_len(self.length);
        }
        written.map_err(failed("write", &self.path))?;
        self.length += line.len() as u64;
        self.stored = Stored::Record(Arc::new(record.clone()));
        Ok(())
    }

    /// Notes the intent, and forces it and the file's name to the disk. A file that could not be read is set aside; then
    /// the answer is where.
    pub fn begin(&mut self, record: &Record, _in_turn: &Reservation) -> Result<Option<PathBuf>, StoreError> {
        if let Stored::Unreadable(_) = self.stored {
            return self.rebuild(record).map(Some);
        }
        let before = (self.length, self.stored.clone());
        self.append(record)?;
        let forced = self.file.sync_data().and_then(|()| sync(self.path.parent()));
        if forced.is_err() {
            // Not on the disk is not intended: whoever reads it later must not think that anything was made.
            let _ = self.file.set_len(before.0);
            (self.length, self.stored) = before;
        }
        forced.map_err(failed("force to disk", &self.path)).map(|()| None)
    }

    /// Time since the last line; nothing where that cannot be told.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        self.file.metadata().and_then(|it| it.modified()).ok()?.elapsed().ok()
    }

    /// Puts a new file with this record in the place of the present one.
    fn replace(&mut self, record: &Record) -> Result<(), StoreError> {
        let unfinished = self.path.with_extension(UNFINISHED);
        let write = || {
            let line = line_of(record)?;
            let file =
                OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&unfinished)?;
            // Before it has the name that others look for.
            file.lock()?;
            file.write_all_at(&line, 0)?;
            file.sync_data()?;
            fs::rename(&unfinished, &self.path)?;
            Ok((file, line.len() as u64))
        };
        let (file, length) = write().map_err(failed("replace", &self.path))?;
        (self.file, self.length) = (file, length);
        self.stored = Stored::Record(Arc::new(record.clone()));
        sync(self.path.parent()).map_err(failed("force to disk", &self.path))
    }

    /// Keeps a file that cannot be read under another name, which is returned, and puts this record in its place. At no
    /// time is there no file for the claim. The last unreadable file of a claim is kept.
    fn rebuild(&mut self, record: &Record) -> Result<PathBuf, StoreError> {
        let aside = self.path.with_extension("unreadable");
        let link = || match fs::remove_file(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            // Not every file system has links.
            _ => fs::hard_link(&self.path, &aside).or_else(|_| fs::copy(&self.path, &aside).map(|_| ())),
        };
        link().map_err(failed("set aside", &self.path))?;
        self.replace(record)?;
        Ok(aside)
    }

    /// Removes the file: the claim is forgotten.
    pub fn forget(&mut self) -> Result<(), StoreError> {
        let remove = || {
            remove_if_there(&self.path.with_extension(UNFINISHED))?;
            remove_if_there(&self.path)?;
            // A record that comes back after a power failure would hold its devices for ever.
            sync(self.path.parent())
        };
        let removed = remove();
        removed.map_err(failed("remove", &self.path))?;
        self.is_gone = true;
        Ok(())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if !self.is_gone && self.stored == Stored::Nothing {
            // Nothing was intended. Should this fail, the next look at the directory finds an empty file.
            let _ = remove_if_there(&self.path);
        }
    }
}

/// True where the open file is the one of that name.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
        Ok(there) => {
            let here = file.metadata()?;
            Ok((here.dev(), here.ino()) == (there.dev(), there.ino()))
        }
    }
}

fn line_of(record: &Record) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    Ok(line)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What a claim's file says, and the length of its complete lines.
pub(super) fn read(file: &File, uid: &ClaimUid) -> (Stored, u64) {
    /// Most files are smaller than this.
    const USUAL_BYTES: usize = 4096;
    let mut bytes = Vec::with_capacity(USUAL_BYTES);
    match file.take(MOST_BYTES + 1).read_to_end(&mut bytes) {
        Ok(_) => parse(&bytes, uid),
        Err(error) => (Stored::Unreadable(error.to_string()), 0),
    }
}

/// What the last complete line says, and the length of all complete lines.
fn parse(bytes: &[u8], uid: &ClaimUid) -> (Stored, u64) {
    /// How the first line of every claim begins.
    const BEGINNING: &[u8] = b"{\"version\":";
    if MOST_BYTES < bytes.len() as u64 {
        return (Stored::Unreadable(format!("it is larger than {MOST_BYTES} bytes")), 0);
    }
    let Some(end) = bytes.iter().rposition(|it| *it == b'\n') else {
        // The write of the intent was interrupted: nothing was done. Anything else was not written by this driver.
        let is_begun = bytes.iter().zip(BEGINNING).all(|(left, right)| left == right);
        return match is_begun {
            true => (Stored::Nothing, 0),
            false => (Stored::Unreadable("it has no complete line".to_owned()), 0),
        };
    };
    let last = bytes[..end].rsplit(|it| *it == b'\n').next().unwrap_or_default();
    let stored =
        Record::parse(last, uid).map_or_else(Stored::Unreadable, |record| Stored::Record(Arc::new(record)));
    (stored, end as u64 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::fixture::taken;
    use crate::checkpoint::{Checkpoint, Stage, fixture};

    #[test]
    fn only_one_at_a_time_has_the_journal_of_a_claim() {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let first = taken(&checkpoint, "uid-1");
        let uid = "uid-1".parse().unwrap();
        assert!(matches!(checkpoint.take(&uid, true).unwrap(), Taken::Busy));
        drop(first);
        assert!(matches!(checkpoint.take(&uid, false).unwrap(), Taken::Nothing), "nothing was intended");
    }

    #[test]
    fn the_last_line_counts_and_what_an_interrupted_write_left_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let mut journal = taken(&checkpoint, "uid-1");
        let intended = fixture::record("uid-1");
        journal.begin(&intended, &checkpoint.try_reserve().unwrap().unwrap()).unwrap();
        let prepared = Record { stage: Stage::Prepared, ..intended };
        journal.append(&prepared).unwrap();
        drop(journal);
        let path = directory.path().join("uid-1.jsonl");
        for tail in ["{\"version\":1,\"bo", "\0\0\0\0"] {
            let mut bytes = fs::read(&path).unwrap();
            let whole = bytes.clone();
            bytes.extend_from_slice(tail.as_bytes());
            fs::write(&path, bytes).unwrap();
            let mut journal = taken(&checkpoint, "uid-1");
            assert_eq!(*journal.stored(), Stored::Record(Arc::new(prepared.clone())), "{tail:?}");
            journal.append(&prepared).unwrap();
            drop(journal);
            let (stored, _) = parse(&fs::read(&path).unwrap(), &"uid-1".parse().unwrap());
            assert_eq!(stored, Stored::Record(Arc::new(prepared.clone())), "{tail:?}");
            fs::write(&path, whole).unwrap();
        }
    }

    #[test]
    fn older_lines_do_not_speak_for_a_last_one_that_cannot_be_understood() {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let intended = line_of(&fixture::record("uid-1")).unwrap();
        for newer in ["{\"version\":2,\"stage\":\"prepared\"}\n", "bit rot\n", "bit rot\n{\"version\":1"] {
            let bytes = [&intended, newer.as_bytes()].concat();
            fs::write(directory.path().join("uid-1.jsonl"), bytes).unwrap();
            assert!(matches!(taken(&checkpoint, "uid-1").stored(), Stored::Unreadable(_)), "{newer:?}");
        }
    }

    #[test]
    fn a_directory_that_was_removed_is_made_again() {
        let directory = tempfile::tempdir().unwrap();
        let claims = directory.path().join("claims");
        let checkpoint = Checkpoint::open(&claims).unwrap();
        fs::remove_dir(&claims).unwrap();
        assert!(matches!(checkpoint.take(&"uid-1".parse().unwrap(), false).unwrap(), Taken::Nothing));
        drop(taken(&checkpoint, "uid-1"));
        assert!(claims.exists());
    }

    #[test]
    fn every_beginning_of_an_intent_says_that_nothing_was_done() {
        let uid: ClaimUid = "uid-1".parse().unwrap();
        let line = line_of(&fixture::record("uid-1")).unwrap();
        for length in 0..line.len() {
            assert_eq!(parse(&line[..length], &uid), (Stored::Nothing, 0), "{length} bytes");
        }
        assert!(matches!(parse(&line, &uid), (Stored::Record(_), length) if length == line.len() as u64));
    }

    #[test]
    fn rubbish_is_unreadable_and_is_kept_aside_when_rebuilt() {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let path = directory.path().join("uid-2.jsonl");
        for rubbish in ["rubbish", "rubbish\n", "{\"version\":1}\n", "\0"] {
            fs::write(&path, rubbish).unwrap();
            let mut journal = taken(&checkpoint, "uid-2");
            assert!(matches!(journal.stored(), Stored::Unreadable(_)), "{rubbish:?}");
            assert_eq!(checkpoint.records().unwrap(), []);
            let turn = checkpoint.try_reserve().unwrap().unwrap();
            let aside = journal.begin(&fixture::record("uid-2"), &turn).unwrap().unwrap();
            assert_eq!(fs::read_to_string(aside).unwrap(), rubbish);
            drop(journal);
            let journal = taken(&checkpoint, "uid-2");
            assert_eq!(*journal.stored(), Stored::Record(Arc::new(fixture::record("uid-2"))));
        }
    }

    #[test]
    fn an_unreadable_file_is_not_forgotten_by_looking_at_it() {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let path = directory.path().join("uid-2.jsonl");
        fs::write(&path, "rubbish").unwrap();
        drop(taken(&checkpoint, "uid-2"));
        assert!(path.exists());
    }

    #[test]
    fn a_file_does_not_grow_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let mut journal = taken(&checkpoint, "uid-1");
        let record = fixture::record("uid-1");
        journal.begin(&record, &checkpoint.try_reserve().unwrap().unwrap()).unwrap();
        for _ in 0..MOST_BYTES / 64 {
            journal.append(&record).unwrap();
        }
        let path = directory.path().join("uid-1.jsonl");
        assert!(fs::metadata(&path).unwrap().len() < MOST_BYTES / 2);
        assert!(matches!(checkpoint.take(&"uid-1".parse().unwrap(), true).unwrap(), Taken::Busy));
        journal.forget().unwrap();
        assert!(!path.exists());
    }
}
