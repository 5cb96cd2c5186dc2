//! Small files of this driver: read with a bound, replaced as a whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

/// How the name of a file ends that is being written.
pub const UNFINISHED: &str = ".tmp";

/// Reads a whole regular file, but refuses one of more than `limit` bytes. A symbolic link is followed; a pipe or a device is
/// refused and not waited for.
///
/// # Errors
/// The operating system's, `FileTooLarge`, or `InvalidInput` for what is not a regular file.
pub fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_regular(path, limit, OFlags::NONBLOCK)
}

/// The same for a file that this driver writes: a symbolic link of its name is refused, too.
///
/// # Errors
/// As those of [`read_bounded`].
pub fn read_own(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_regular(path, limit, OFlags::NONBLOCK | OFlags::NOFOLLOW).map_err(|error| {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            // What a symbolic link and a socket fail with.
            Some(Errno::LOOP | Errno::NXIO) => not_regular(),
            _ => error,
        }
    })
}

/// The same for a file below `/proc` or `/sys`. Takes as long as the kernel does, whose module may be busy with a GPU that hangs.
///
/// # Errors
/// The operating system's, or `FileTooLarge`.
pub fn read_kernel(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    to_end(File::open(path)?, limit)
}

fn read_regular(path: &Path, limit: u64, flags: OFlags) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    match file.metadata()?.is_file() {
        true => to_end(file, limit),
        false => Err(not_regular()),
    }
}

fn not_regular() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")
}

fn to_end(file: File, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
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
    use std::os::unix::fs::symlink;

    use rustix::fs::{FileType, Mode};

    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("it.json");
        // What an earlier process left unfinished is not written to.
        let victim = directory.path().join("victim");
        fs::write(&victim, "untouched").unwrap();
        symlink(&victim, unfinished(&path).unwrap()).unwrap();
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
        for read in [read_bounded, read_own, read_kernel] {
            assert_eq!(read(&path, 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        }
    }

    #[test]
    fn only_a_regular_file_is_read_and_nothing_else_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("file"), "12345").unwrap();
        fs::create_dir(at("directory")).unwrap();
        let pipe = rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), FileType::Fifo, Mode::RUSR, 0);
        pipe.unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for name in ["directory", "pipe", "socket"] {
            symlink(at(name), at(&format!("to-{name}"))).unwrap();
        }
        for name in ["directory", "pipe", "socket", "to-directory", "to-pipe", "to-socket"] {
            assert!(read_bounded(&at(name), 5).is_err(), "{name}");
            let refused = read_own(&at(name), 5).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{name}: {refused}");
        }
        // A file that others give may be a link, as those of a mounted ConfigMap are.
        symlink(at("file"), at("to-file")).unwrap();
        assert_eq!(read_bounded(&at("to-file"), 5).unwrap(), b"12345");
        let refused = read_own(&at("to-file"), 5).unwrap_err();
        assert_eq!(
            (refused.kind(), refused.to_string().as_str()),
            (io::ErrorKind::InvalidInput, "not a regular file")
        );
        assert_eq!(read_own(&at("file"), 5).unwrap(), b"12345");
    }
}
