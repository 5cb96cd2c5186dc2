//! The file of one claim, which is also the lock of that claim.
//!
//! A line for each step, and each line is the whole record: the last one counts. A line is written by one call and ends
//! with its newline, so an interrupted write leaves a tail without one, which readers ignore and the next line
//! replaces. A last line that cannot be understood makes the file unreadable: the lines before it are outdated, and
//! acting on that could take a running pod its instance. The file is locked while it is open here, against other calls
//! and other processes alike, and the kernel gives the lock back however its holder ends. Only a regular file is opened:
//! anything else of that name, a symbolic link above all, is kept aside, and a file that says so takes its place.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mig_model::claim::ClaimUid;

use rustix::io::Errno;
use tracing::warn;

use super::error::{StoreError, failed};
use super::file::{SET_ASIDE, UNFINISHED, aside_of, displace, never_followed, no_file, put};
use super::{Record, Reservation, Stored};
use crate::files::{remove_if_there, sync_directory};

/// Largest file that is read. A claim has at most 32 devices of some hundred bytes each, and few lines.
const MOST_BYTES: u64 = 1024 * 1024;

/// A file of this length is rewritten with its last line only. A claim needs five lines in its life.
const LONG: u64 = MOST_BYTES / 4;

/// The open file of a claim. Its holder has exclusive access to the claim.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// Bytes up to the end of the last complete line.
    length: u64,
    stored: Stored,
    /// Where what cannot be read is kept.
    aside: Option<PathBuf>,
    is_gone: bool,
}

/// A record that others see and that is not forced to the disk yet. Holds what the file said before, where it can say that again.
#[derive(Debug)]
#[must_use = "nothing may be done for a record that a power failure takes back"]
pub struct Begun(Option<(u64, Stored)>);

/// What came of asking for a journal.
#[derive(Debug)]
pub enum Taken {
    /// There is none, and none was to be made.
    Nothing,
    /// Another call or process works on the claim.
    Busy,
    /// Here it is.
    Journal(Journal),
}

impl Journal {
    pub(super) fn take(path: &Path, uid: &ClaimUid, or_new: bool) -> Result<Taken, StoreError> {
        loop {
            if let Some(what) = no_file(path)
                && !displace(path, what).map_err(failed("set aside", path))?
            {
                return Ok(Taken::Busy);
            }
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(or_new).truncate(false);
            let opened = options.custom_flags(never_followed()).open(path);
            let file = match (opened, path.parent()) {
                // It was put there this moment.
                (Err(error), _) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => continue,
                (Err(error), _) if error.kind() == io::ErrorKind::NotFound && !or_new => {
                    return Ok(Taken::Nothing);
                }
                // The directory was removed.
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
                let (stored, length) =
                    read(&file, uid).unwrap_or_else(|error| (Stored::Unreadable(error.to_string()), 0));
                let path = path.to_owned();
                return Ok(Taken::Journal(Self { path, file, length, stored, aside: None, is_gone: false }));
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
            return self.replace(record, true);
        }
        self.add(record)
    }

    fn add(&mut self, record: &Record) -> Result<(), StoreError> {
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

    /// Notes the intent where all others see it, and waits for no disk. [`Self::force`] has to follow before anything is done.
    /// In the place of a file that could not be read comes a new one, see [`Self::keep_aside`].
    pub fn begin(&mut self, record: &Record, _in_turn: &Reservation) -> Result<Begun, StoreError> {
        if let Stored::Unreadable(_) = self.stored {
            self.keep_aside()?;
            self.replace(record, false)?;
            return Ok(Begun(None));
        }
        let before = (self.length, self.stored.clone());
        self.add(record)?;
        Ok(Begun(Some(before)))
    }

    /// Forces what was begun, and the file's name, to the disk.
    pub fn force(&mut self, begun: Begun) -> Result<(), StoreError> {
        let forced = self.file.sync_data().and_then(|()| sync_directory(self.path.parent()));
        if let (Err(_), Begun(Some((length, stored)))) = (&forced, begun) {
            // Not on the disk is not intended: a later reader must not conclude that anything was created.
            let _ = self.file.set_len(length);
            (self.length, self.stored) = (length, stored);
        }
        forced.map_err(failed("force to disk", &self.path))
    }

    /// Gives a file that cannot be read a second name, which is returned, so that a record may take its place. At no time is
    /// there no file for the claim. The last unreadable file of a claim is kept.
    pub fn keep_aside(&mut self) -> Result<Option<&Path>, StoreError> {
        let aside = aside_of(&self.path);
        match &self.stored {
            Stored::Unreadable(reason) if reason.starts_with(SET_ASIDE) => self.aside = Some(aside),
            Stored::Unreadable(_) if self.aside.is_none() => {
                let link = || {
                    remove_if_there(&aside)?;
                    // Not every file system has links.
                    fs::hard_link(&self.path, &aside).or_else(|_| fs::copy(&self.path, &aside).map(|_| ()))
                };
                link().map_err(failed("set aside", &self.path))?;
                self.aside = Some(aside);
            }
            _ => {}
        }
        Ok(self.aside.as_deref())
    }

    /// Removes the file, as [`Self::forget`] does. One that cannot be read gets another name where that is possible, which is
    /// returned; a disk that refuses even that does not keep the claim.
    pub fn forget_unread(&mut self) -> Result<Option<PathBuf>, StoreError> {
        let aside = aside_of(&self.path);
        let kept = match &self.stored {
            Stored::Unreadable(reason) if reason.starts_with(SET_ASIDE) => Some(aside),
            Stored::Unreadable(_) => match fs::rename(&self.path, &aside) {
                Ok(()) => Some(aside),
                Err(error) => {
                    warn!(%error, file = %self.path.display(), "cannot keep an unreadable state file aside; removing it");
                    None
                }
            },
            _ => None,
        };
        self.forget()?;
        Ok(kept)
    }

    /// Time since the last line; `None` if it is unknown.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        self.file.metadata().and_then(|it| it.modified()).ok()?.elapsed().ok()
    }

    /// Puts a new file with this record in the place of the present one, and forces it to the disk if that is asked for.
    fn replace(&mut self, record: &Record, is_forced: bool) -> Result<(), StoreError> {
        let put = || put(&self.path, &line_of(record)?, is_forced);
        let (file, length) = put().map_err(failed("replace", &self.path))?;
        (self.file, self.length) = (file, length);
        self.stored = Stored::Record(Arc::new(record.clone()));
        match is_forced {
            true => sync_directory(self.path.parent()).map_err(failed("force to disk", &self.path)),
            false => Ok(()),
        }
    }

    /// Removes the file: the claim is forgotten.
    pub fn forget(&mut self) -> Result<(), StoreError> {
        let remove = || {
            remove_if_there(&self.path.with_extension(UNFINISHED))?;
            remove_if_there(&self.path)?;
            // A record that comes back after a power failure would hold its devices for ever.
            sync_directory(self.path.parent())
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
            // Nothing was intended. Should this fail, the next scan of the directory finds an empty file.
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
            Ok(here.is_file() && (here.dev(), here.ino()) == (there.dev(), there.ino()))
        }
    }
}

fn line_of(record: &Record) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    Ok(line)
}

/// What a claim's file says, and the length of its complete lines.
pub(super) fn read(file: &File, uid: &ClaimUid) -> io::Result<(Stored, u64)> {
    /// Most files are smaller than this.
    const USUAL_BYTES: usize = 4096;
    let mut bytes = Vec::with_capacity(USUAL_BYTES);
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(parse(&bytes, uid))
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
    let stored = match str::from_utf8(last) {
        Ok(text) if text.starts_with(SET_ASIDE) => Stored::Unreadable(text.to_owned()),
        _ => Record::parse(last, uid).map_or_else(Stored::Unreadable, |it| Stored::Record(Arc::new(it))),
    };
    (stored, end as u64 + 1)
}

#[cfg(test)]
mod tests;
