//! Elects the process that publishes for the node while two of them run.
//!
//! In a rolling update the old and the new pod serve the kubelet side by side, and claims are kept apart by the locks of
//! their journals. The node's slices and its label can have one author only: two versions, or two sets of flags, that render
//! them differently would rewrite each other's work for as long as both live. The author is the pod whose socket was made
//! last. The other one takes over again when that socket no longer answers, as after an update that failed.
//!
//! This is no lock: for a moment both may write. The later one then sees what the other wrote, and has the last word.

use std::cmp::Ordering;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering as Memory};
use std::time::{Duration, SystemTime};

use tokio::net::UnixStream;
use tokio::time::timeout;
use tracing::info;

use super::socket::{PLUGIN, PLUGIN_END, SocketPaths, siblings};

/// Shows whether this process publishes for the node. Clones share the state.
#[derive(Debug, Clone)]
pub struct PublisherElection {
    own: PathBuf,
    is_over: Arc<AtomicBool>,
}

impl PublisherElection {
    /// The turn of the pod with these sockets.
    #[must_use]
    pub fn new(paths: &SocketPaths) -> Self {
        Self { own: paths.plugin.clone(), is_over: Arc::default() }
    }

    /// False while a pod whose socket is newer answers on it.
    pub async fn is_ours(&self) -> bool {
        let newer = self.newer().await;
        match (self.is_over.swap(newer.is_some(), Memory::Relaxed), &newer) {
            (false, Some(socket)) => {
                info!(socket = %socket.display(), "a newer pod of the driver publishes for this node now");
            }
            (true, None) => {
                info!("the newer pod of the driver is gone: this one publishes for the node again")
            }
            _ => {}
        }
        newer.is_none()
    }

    async fn newer(&self) -> Option<PathBuf> {
        let directory = self.own.parent()?;
        for path in siblings(directory, PLUGIN, PLUGIN_END) {
            if age(&self.own, &path) == Ordering::Less && is_answered(&path).await {
                return Some(path);
            }
        }
        None
    }
}

/// Less where `one` was made before `other`. Two processes come to the same answer: names decide where times are equal, and a
/// socket that is gone is older than any other.
fn age(one: &Path, other: &Path) -> Ordering {
    let made = |path: &Path| -> Option<SystemTime> { fs::symlink_metadata(path).ok()?.modified().ok() };
    (made(one), one).cmp(&(made(other), other))
}

/// False if there is no listener. A process that is too busy to answer in time counts as one.
pub(super) async fn is_answered(path: &Path) -> bool {
    const PATIENCE: Duration = Duration::from_secs(1);
    let is_unserved = |kind| matches!(kind, ErrorKind::ConnectionRefused | ErrorKind::NotFound);
    match timeout(PATIENCE, UnixStream::connect(path)).await {
        Ok(Err(error)) => !is_unserved(error.kind()),
        Ok(Ok(_)) | Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

    use super::*;

    const UIDS: [&str; 2] = ["0a0a0a0a-1111-4222-8333-444444444444", "0b0b0b0b-1111-4222-8333-444444444444"];

    /// Sockets of two pods, of which the second is newer by so many seconds.
    fn two(directory: &Path, newer: i64) -> ([PublisherElection; 2], [UnixListener; 2]) {
        let mut seconds = 1_700_000_000;
        let pods = UIDS.map(|uid| {
            let paths = SocketPaths::new(directory, directory, "x.example.com", Some(uid));
            let listener = UnixListener::bind(&paths.plugin).unwrap();
            let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            utimensat(CWD, &paths.plugin, &times, AtFlags::empty()).unwrap();
            seconds += newer;
            (PublisherElection::new(&paths), listener)
        });
        let [(one, one_socket), (two, two_socket)] = pods;
        ([one, two], [one_socket, two_socket])
    }

    #[tokio::test]
    async fn of_two_pods_exactly_the_newer_one_speaks() {
        // A clock that was set back makes the wrong one newer, which both see alike.
        for (newer, expected) in [(60, [false, true]), (-60, [true, false]), (0, [false, true])] {
            let directory = tempfile::tempdir().unwrap();
            let ([one, two], _listeners) = two(directory.path(), newer);
            assert_eq!([one.is_ours().await, two.is_ours().await], expected, "{newer}");
        }
    }

    #[tokio::test]
    async fn a_newer_pod_that_is_gone_does_not_speak() {
        let directory = tempfile::tempdir().unwrap();
        let ([one, two], [_listens, killed]) = two(directory.path(), 60);
        assert!(!one.is_ours().await);
        drop(killed);
        assert!(one.is_ours().await, "the remaining socket does not answer");
        fs::remove_file(&two.own).unwrap();
        assert!(one.is_ours().await);
        assert!(!two.is_ours().await, "a pod without a socket leaves it to one that has its own");
    }

    #[tokio::test]
    async fn a_driver_alone_speaks() {
        let directory = tempfile::tempdir().unwrap();
        let paths = SocketPaths::new(directory.path(), directory.path(), "x.example.com", None);
        assert!(PublisherElection::new(&paths).is_ours().await);
        fs::write(directory.path().join("dra-0b0b0b0b.sock"), "no socket").unwrap();
        assert!(PublisherElection::new(&paths).is_ours().await);
    }
}
