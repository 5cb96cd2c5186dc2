//! Unix sockets: their names, their removal at shutdown, and the removal of sockets of pods that have ended.
//!
//! In a rolling update the old and the new pod serve the kubelet side by side, so each has its own sockets, named by
//! the pod's UID. A pod that is killed leaves them behind, and the kubelet would dial them for ever. So every driver
//! removes the sockets of its name without a listener ([`SocketPaths::sweep`]).

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fs, io};

use futures::Stream;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Bytes that fit into `sockaddr_un.sun_path` together with the final NUL (Linux, unix(7)).
const LONGEST_PATH: usize = 107;

/// Between the making of a socket and the moment from which it takes connections; in fact microseconds.
const YOUNG: Duration = Duration::from_secs(10);

/// How the names of the sockets begin and end; the registration socket's begins with the driver's name.
pub(super) const PLUGIN: &str = "dra";
pub(super) const PLUGIN_END: &str = ".sock";
const REGISTRATION_END: &str = "@reg.sock";

/// Where the two sockets go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketPaths {
    /// For the work.
    pub plugin: PathBuf,
    /// For the kubelet to find us.
    pub registration: PathBuf,
}

impl SocketPaths {
    /// The paths for a driver, and for one pod of it where a UID is given. A UID that makes a path too long is cut after
    /// its first eight characters, which also distinguish the two pods of a rolling update.
    ///
    /// The `@` in the registration socket's name is load-bearing. The kubelet sends the percent-encoded path as
    /// `:authority`, which hyper's `http` crate refuses unless the part with the `%` counts as user information, and
    /// that is what an `@` makes of it (kubernetes-dra.md 4.2).
    #[must_use]
    pub fn new(plugin_directory: &Path, registry: &Path, driver: &str, pod: Option<&str>) -> Self {
        const SHORT: usize = 8;
        let named = |suffix: &str| Self {
            plugin: plugin_directory.join(format!("{PLUGIN}{suffix}{PLUGIN_END}")),
            registration: registry.join(format!("{driver}{suffix}{REGISTRATION_END}")),
        };
        let Some(uid) = pod else { return named("") };
        let full = named(&format!("-{uid}"));
        let fits = |path: &Path| path.as_os_str().len() <= LONGEST_PATH;
        match uid.get(..SHORT) {
            Some(short) if !fits(&full.plugin) || !fits(&full.registration) => named(&format!("-{short}")),
            _ => full,
        }
    }

    /// Removes the sockets of other pods of the driver without a listener, and returns their paths. Never removes one
    /// that answers, or that is younger than ten seconds: its process may be starting.
    pub async fn sweep(&self, driver: &str) -> Vec<PathBuf> {
        let mut removed = Vec::new();
        for (own, start, end) in
            [(&self.registration, driver, REGISTRATION_END), (&self.plugin, PLUGIN, PLUGIN_END)]
        {
            let Some(directory) = own.parent() else { continue };
            for path in siblings(directory, start, end) {
                if path != *own && is_dead(&path).await && fs::remove_file(&path).is_ok() {
                    removed.push(path);
                }
            }
        }
        removed
    }

    /// Sweeps every `interval`, for as long as it is asked to.
    pub async fn keep_clean(self, driver: String, interval: Duration, stop: CancellationToken) {
        loop {
            for path in self.sweep(&driver).await {
                info!(socket = %path.display(), "removed the socket of a driver that has stopped");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(interval) => {}
            }
        }
    }
}

/// The sockets in a directory that are named `<start><end>` or `<start>-<pod><end>`. Another driver's name may begin with
/// ours, but what follows then is no UID.
pub(super) fn siblings(directory: &Path, start: &str, end: &str) -> Vec<PathBuf> {
    let is_ours = |name: &str| {
        let Some(middle) = name.strip_prefix(start).and_then(|it| it.strip_suffix(end)) else { return false };
        middle.is_empty() || middle.strip_prefix('-').is_some_and(is_pod_uid)
    };
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let sockets = entries.filter(|it| it.file_type().is_ok_and(|it| it.is_socket()));
    sockets.filter(|it| it.file_name().to_str().is_some_and(is_ours)).map(|it| it.path()).collect()
}

/// True where a text can be a pod's UID: hexadecimal digits and hyphens, as UUIDs and the hashes of static pods are.
#[must_use]
pub fn is_pod_uid(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|it| it.is_ascii_hexdigit() || it == b'-')
}

/// True if a socket has no listener and no process is starting to listen.
async fn is_dead(path: &Path) -> bool {
    const PATIENCE: Duration = Duration::from_secs(1);
    let is_old = || {
        let made = fs::symlink_metadata(path).and_then(|it| it.modified()).ok()?;
        // A clock that was set back makes a socket look young, which only puts its end off.
        Some(YOUNG <= made.elapsed().ok()?)
    };
    let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    is_old().unwrap_or(false)
        && matches!(timeout(PATIENCE, UnixStream::connect(path)).await, Ok(Err(error)) if refused(&error))
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
    /// Listens, after removing the socket that a dead predecessor left, or the file or link that is in its place.
    pub fn listen(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError { path: path.to_owned(), source };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        if LONGEST_PATH < path.as_os_str().len() {
            let text = format!("the path has more than {LONGEST_PATH} bytes; use a shorter --driver-name");
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, text)));
        }
        // The name is this process's own, whatever has been put in the place of its socket.
        match fs::symlink_metadata(path) {
            Ok(it) if it.is_dir() => {
                let text = "a directory is in its place; remove it";
                return Err(failed(io::Error::new(io::ErrorKind::AlreadyExists, text)));
            }
            Ok(_) => fs::remove_file(path).map_err(failed)?,
            Err(_) => {}
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

    /// What notices that its file is not this socket's any more.
    #[must_use]
    pub fn watch(&self) -> SocketWatch {
        SocketWatch { path: self.file.path.clone(), inode: self.file.inode }
    }

    /// The connections that are made to it. The file goes when the stream is dropped.
    pub fn into_incoming(self) -> impl Stream<Item = io::Result<UnixStream>> {
        Incoming { connections: UnixListenerStream::new(self.listener), _file: self.file }
    }
}

/// Looks whether a socket can still be found by its path.
#[derive(Debug, Clone)]
pub struct SocketWatch {
    path: PathBuf,
    inode: u64,
}

/// A socket that no longer accepts connections.
#[derive(Debug, thiserror::Error)]
#[error(
    "the socket `{path}` was {what} while the driver listened on it, so the kubelet cannot reach this process any more; the driver \
     ends, and makes the socket again when it is started"
)]
pub struct SocketGone {
    path: PathBuf,
    what: &'static str,
}

impl SocketWatch {
    /// Looks every two seconds until `stop`, or until the socket is gone.
    pub async fn run(self, stop: CancellationToken) -> Result<(), SocketGone> {
        const INTERVAL: Duration = Duration::from_secs(2);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = sleep(INTERVAL) => self.look()?,
            }
        }
    }

    /// A socket that cannot be read counts as unchanged.
    fn look(&self) -> Result<(), SocketGone> {
        let gone = |what| Err(SocketGone { path: self.path.clone(), what });
        match fs::symlink_metadata(&self.path) {
            Ok(metadata) if metadata.ino() == self.inode => Ok(()),
            Ok(_) => gone("replaced by another file"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => gone("removed"),
            Err(_) => Ok(()),
        }
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
            // The error cannot be reported here; the next start removes the socket.
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
    use rustix::fs::{Timespec, Timestamps};

    use super::*;

    #[test]
    fn the_registration_socket_has_an_at_sign() {
        let registry = Path::new("/var/lib/kubelet/plugins_registry");
        let plugins = Path::new("/var/lib/kubelet/plugins/mig.dra-driver.dev");
        let paths = SocketPaths::new(plugins, registry, "mig.dra-driver.dev", None);
        assert_eq!(paths.registration, registry.join("mig.dra-driver.dev@reg.sock"));
        assert_eq!(paths.plugin, plugins.join("dra.sock"));
    }

    const UID: &str = "0c7e9b1a-52a3-4d0e-9f3c-6a1f3b2c4d5e";

    #[test]
    fn every_pod_has_sockets_of_its_own_and_a_uid_that_does_not_fit_is_cut() {
        let registry = Path::new("/var/lib/kubelet/plugins_registry");
        let named = |driver: &str| {
            let plugins = Path::new("/var/lib/kubelet/plugins").join(driver);
            SocketPaths::new(&plugins, registry, driver, Some(UID))
        };
        let paths = named("mig.dra-driver.dev");
        assert_eq!(paths.registration, registry.join(format!("mig.dra-driver.dev-{UID}@reg.sock")));
        assert!(paths.plugin.ends_with(format!("mig.dra-driver.dev/dra-{UID}.sock")));
        let paths = named("a-name-of-forty-characters.example.com.x");
        assert!(paths.registration.ends_with("a-name-of-forty-characters.example.com.x-0c7e9b1a@reg.sock"));
    }

    #[test]
    fn only_what_can_be_a_pods_uid_is_taken_for_one() {
        assert!(is_pod_uid(UID) && is_pod_uid("9f86d081884c7d65"));
        for text in ["", "..", "a/b", "x.sock", "a@b", "0 0", &"a".repeat(65)] {
            assert!(!is_pod_uid(text), "{text}");
        }
    }

    #[tokio::test]
    async fn the_sockets_of_dead_pods_are_removed_and_nothing_else_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let bind = |name: &str| std::os::unix::net::UnixListener::bind(path(name)).unwrap();
        let age = |name: &str| {
            let past = Timestamps {
                last_access: Timespec { tv_sec: 1, tv_nsec: 0 },
                last_modification: Timespec { tv_sec: 1, tv_nsec: 0 },
            };
            rustix::fs::utimensat(rustix::fs::CWD, path(name), &past, rustix::fs::AtFlags::empty()).unwrap();
        };
        // Two dead pods, one of them without a UID; their listeners end here.
        let dead = ["x.example-aa@reg.sock", "x.example@reg.sock", "dra-aa.sock", "dra.sock"];
        dead.into_iter().for_each(|it| drop(bind(it)));
        // A pod that lives, a young one, a driver whose name begins like ours, and a file.
        let _living = bind("x.example-bb@reg.sock");
        drop((bind("x.example-cc@reg.sock"), bind("x.example-two@reg.sock")));
        fs::write(path("x.example-dd@reg.sock"), "").unwrap();
        dead.into_iter().for_each(age);
        ["x.example-bb@reg.sock", "x.example-two@reg.sock", "x.example-dd@reg.sock"]
            .into_iter()
            .for_each(age);

        let own = SocketPaths::new(directory.path(), directory.path(), "x.example", Some("ee"));
        let mut removed = own.sweep("x.example").await;
        removed.sort();
        let mut expected: Vec<_> = dead.into_iter().map(path).collect();
        expected.sort();
        assert_eq!(removed, expected);
        assert!(own.sweep("x.example").await.is_empty());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 4);
    }

    #[tokio::test]
    async fn a_path_that_no_socket_can_have_is_refused_with_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let error = Socket::listen(&directory.path().join("x".repeat(LONGEST_PATH))).unwrap_err();
        assert!(error.to_string().contains("--driver-name"), "{error}");
    }

    #[tokio::test]
    async fn a_socket_that_is_removed_or_replaced_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.sock");
        let socket = Socket::listen(&path).unwrap();
        let watch = socket.watch();
        watch.look().unwrap();
        fs::remove_file(&path).unwrap();
        assert!(watch.look().unwrap_err().to_string().contains("was removed while"));
        fs::write(&path, "").unwrap();
        // No file has this number, so that the new one cannot have it by chance.
        let replaced = SocketWatch { path, inode: 0 };
        assert!(replaced.look().unwrap_err().to_string().contains("was replaced by another file"));
    }

    #[tokio::test]
    async fn a_socket_replaces_a_file_or_a_link_in_its_place_and_no_directory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.sock");
        let other = directory.path().join("other");
        for _ in 0..2 {
            fs::write(&other, "").unwrap();
            std::os::unix::fs::symlink(&other, &path).unwrap();
            drop(Socket::listen(&path).unwrap());
            assert!(other.exists(), "what the link leads to stays");
            fs::rename(&other, &path).unwrap();
            drop(Socket::listen(&path).unwrap());
        }
        fs::create_dir(&path).unwrap();
        let error = Socket::listen(&path).unwrap_err();
        assert!(error.to_string().contains("a directory is in its place"), "{error}");
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
