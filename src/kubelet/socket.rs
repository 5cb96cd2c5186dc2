//! Unix sockets: their names, and that they are gone when we are.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;

/// Bytes that fit into `sockaddr_un.sun_path` together with the final NUL (Linux, unix(7)).
const LONGEST_PATH: usize = 107;

/// Where the two sockets go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketPaths {
    /// For the work.
    pub plugin: PathBuf,
    /// For the kubelet to find us.
    pub registration: PathBuf,
}

impl SocketPaths {
    /// The paths for a driver.
    ///
    /// The `@` in the registration socket's name is load-bearing. The kubelet sends the percent-encoded path as
    /// `:authority`, which hyper's `http` crate refuses unless the part with the `%` counts as user information, and
    /// that is what an `@` makes of it (kubernetes-dra.md 4.2).
    #[must_use]
    pub fn new(plugin_directory: &Path, registry: &Path, driver: &str) -> Self {
        Self {
            plugin: plugin_directory.join("dra.sock"),
            registration: registry.join(format!("{driver}@reg.sock")),
        }
    }
}

/// A listening socket. Its file is removed when it is dropped, unless another process has put its own there.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    file: SocketFile,
}

/// A socket that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on `{path}`: {source}; the directory must exist on the host and be writable for the driver"
)]
pub struct SocketError {
    path: PathBuf,
    source: io::Error,
}

impl Socket {
    /// Listens, after removing a socket that a dead predecessor left.
    pub fn listen(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError { path: path.to_owned(), source };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        if LONGEST_PATH < path.as_os_str().len() {
            let text = format!("the path has more than {LONGEST_PATH} bytes; use a shorter --driver-name");
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, text)));
        }
        if fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_socket()) {
            fs::remove_file(path).map_err(failed)?;
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
        Ok(Self { listener, file: SocketFile { path: path.to_owned(), inode } })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// The connections that are made to it. The file goes when the stream is dropped.
    pub fn into_incoming(self) -> impl Stream<Item = io::Result<UnixStream>> {
        Incoming { connections: UnixListenerStream::new(self.listener), _file: self.file }
    }
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|it| it.ino() == self.inode) {
            // Nobody can be told any more; the next start removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

struct Incoming {
    connections: UnixListenerStream,
    _file: SocketFile,
}

impl Stream for Incoming {
    type Item = io::Result<UnixStream>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.connections).poll_next(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registration_socket_has_an_at_sign() {
        let registry = Path::new("/var/lib/kubelet/plugins_registry");
        let plugins = Path::new("/var/lib/kubelet/plugins/mig.dra-driver.dev");
        let paths = SocketPaths::new(plugins, registry, "mig.dra-driver.dev");
        assert_eq!(paths.registration, registry.join("mig.dra-driver.dev@reg.sock"));
        assert_eq!(paths.plugin, plugins.join("dra.sock"));
    }

    #[tokio::test]
    async fn a_path_that_no_socket_can_have_is_refused_with_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let error = Socket::listen(&directory.path().join("x".repeat(LONGEST_PATH))).unwrap_err();
        assert!(error.to_string().contains("--driver-name"), "{error}");
    }

    #[tokio::test]
    async fn a_socket_replaces_a_stale_one_and_leaves_its_successor_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.sock");
        let first = Socket::listen(&path).unwrap();
        let second = Socket::listen(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }
}
