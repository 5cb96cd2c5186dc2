//! Names in the directory of the claims: what may have one, and how a new file gets one. Only a regular file is opened.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::files::{remove_if_there, sync_directory};

/// Extension of files that are being written.
pub(super) const UNFINISHED: &str = "tmp";

/// How the line of a file begins that stands in the place of something else, which was set aside.
pub(super) const SET_ASIDE: &str = "set aside: ";

/// Neither a symbolic link is followed nor a pipe waited for.
pub(super) fn never_followed() -> i32 {
    (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed()
}

/// What has this name, where that is something and no regular file.
pub(super) fn no_file(path: &Path) -> Option<&'static str> {
    let kind = fs::symlink_metadata(path).ok()?.file_type();
    (!kind.is_file()).then(|| name_of(kind))
}

pub(super) fn name_of(kind: fs::FileType) -> &'static str {
    match kind {
        _ if kind.is_symlink() => "a symbolic link, which is not followed",
        _ if kind.is_dir() => "a directory",
        _ if kind.is_fifo() => "a pipe",
        _ if kind.is_socket() => "a socket",
        _ => "a device",
    }
}

/// Opens a claim's file for reading, if that is what has its name.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(never_followed()).open(path)
}

/// Where what cannot be read is kept.
pub(super) fn aside_of(path: &Path) -> PathBuf {
    path.with_extension("unreadable")
}

/// Keeps something that is no file aside, unopened, and puts a file in its place that says so: so the claim counts as one whose
/// file cannot be read, also for a process that starts later. False where another process is doing that.
pub(super) fn displace(path: &Path, what: &str) -> io::Result<bool> {
    let Some(directory) = path.parent() else { return Err(io::ErrorKind::InvalidInput.into()) };
    let turn = File::open(directory)?;
    match turn.try_lock() {
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(error)) => return Err(error),
        Ok(()) => {}
    }
    if no_file(path).is_none() {
        return Ok(true);
    }
    let aside = aside_of(path);
    remove_if_there(&aside)?;
    // A directory cannot have two names.
    fs::hard_link(path, &aside).or_else(|_| fs::rename(path, &aside))?;
    let line = format!("{SET_ASIDE}it was {what}; kept as {}\n", aside.display());
    put(path, line.as_bytes(), true)?;
    sync_directory(Some(directory))?;
    Ok(true)
}

/// Puts a new file with these bytes at this name, locked before it has the name, and answers with its length.
pub(super) fn put(path: &Path, bytes: &[u8], is_forced: bool) -> io::Result<(File, u64)> {
    let unfinished = path.with_extension(UNFINISHED);
    // Nothing that has the name already is written to.
    remove_if_there(&unfinished)?;
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&unfinished)?;
    file.lock()?;
    file.write_all_at(bytes, 0)?;
    if is_forced {
        file.sync_data()?;
    }
    fs::rename(&unfinished, path)?;
    Ok((file, bytes.len() as u64))
}
