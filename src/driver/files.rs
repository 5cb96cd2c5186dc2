//! Small files of this driver: read with a bound, replaced as a whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// How the name of a file ends that is being written.
pub const UNFINISHED: &str = ".tmp";

/// Reads a whole file, but refuses one of more than `limit` bytes.
///
/// # Errors
/// The operating system's, or `FileTooLarge`.
pub fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {limit} bytes")));
    }
    Ok(bytes)
}

/// Puts a file with these bytes and this mode in the place of another one, or of none. After a crash the old content is there or the
/// new one, and after success the new one is on the disk.
///
/// # Errors
/// The operating system's. Then the old file is as it was, unless only forcing the directory to the disk has failed.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let unfinished = unfinished(path)?;
    let renamed = |error: io::Error| {
        io::Error::new(error.kind(), format!("rename `{}` to its final name: {error}", unfinished.display()))
    };
    let written =
        write(&unfinished, bytes, mode).and_then(|()| fs::rename(&unfinished, path).map_err(renamed));
    if written.is_err() {
        // The first error is the one to report; the next write removes what is left.
        let _ = fs::remove_file(&unfinished);
    }
    written?;
    sync_directory(path.parent())
}

/// Forces the names in a directory to the disk.
///
/// # Errors
/// The operating system's.
pub fn sync_directory(directory: Option<&Path>) -> io::Result<()> {
    directory.map_or(Ok(()), |it| File::open(it)?.sync_all())
}

/// The name under which [`replace`] writes: hidden, so that a program that watches the directory ignores it.
///
/// # Errors
/// `InvalidInput` where the path has no file name.
pub fn unfinished(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().and_then(|it| it.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(path.with_file_name(format!(".{name}{UNFINISHED}")))
}

/// Removes a file; that it does not exist is success.
///
/// # Errors
/// The operating system's.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    // Nothing that has the name already is written to, and no link followed.
    remove_if_there(path)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // The mode given at creation is cut by the umask.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("it.json");
        // What an earlier process left unfinished is not written to.
        let victim = directory.path().join("victim");
        fs::write(&victim, "untouched").unwrap();
        std::os::unix::fs::symlink(&victim, unfinished(&path).unwrap()).unwrap();
        for content in ["one", "two"] {
            replace(&path, content.as_bytes(), 0o640).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn where_replacing_fails_the_old_file_stays_and_nothing_is_left_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a-directory");
        fs::create_dir(&path).unwrap();
        assert!(replace(&path, b"x", 0o600).is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_is_too_long_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("it");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read_bounded(&path, 5).unwrap(), b"12345");
        assert_eq!(read_bounded(&path, 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
