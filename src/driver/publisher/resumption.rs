//! What is published, on disk, for the process after this one: the kubelet deletes a node's slices at its start, and a driver that does not
//! know what was in them has to ask the API server for all claims of the cluster. When a whole cluster boots, each node would.
//!
//! The file says that schedulers may act on its devices only, and that every other device is free unless a record on the node says
//! otherwise. It is removed before anything else is written, and written when that is true again; without it a start is slower, and no less
//! safe. It holds for the Node object whose UID it has: one of another cluster has another UID, and after a reboot it is the same. What
//! the slices say counts more, see [`Memory::resume`].
//!
//! [`Memory::resume`]: mig_model::slices::Memory::resume

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use mig_model::slices::Pool;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::files::{read_own, remove_if_there, replace, sync_directory};

/// Far above what a node with 32 GPUs needs.
const MAX_SIZE: u64 = 1 << 18;
/// Of the file's format.
const VERSION: u32 = 1;

/// The file.
#[derive(Debug)]
pub struct Resumption {
    path: PathBuf,
    /// Whether the file was removed, and the disk may not have that yet.
    is_unsynced: AtomicBool,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Content {
    version: u32,
    node_uid: String,
    is_counted: bool,
    devices: BTreeSet<String>,
}

impl Content {
    fn new(node_uid: &str, pool: &Pool) -> Self {
        let Pool { devices, is_counted, .. } = pool.clone();
        Self { version: VERSION, node_uid: node_uid.to_owned(), is_counted, devices }
    }

    /// Whether schedulers that act on this pool act on nothing that the file does not have.
    fn covers(&self, pool: Option<&Self>) -> bool {
        pool.is_none_or(|it| {
            (self.version, &self.node_uid, self.is_counted) == (it.version, &it.node_uid, it.is_counted)
                && it.devices.is_subset(&self.devices)
        })
    }
}

impl Resumption {
    /// Kept in this file.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, is_unsynced: AtomicBool::new(false) }
    }

    fn content(&self) -> io::Result<Content> {
        Ok(serde_json::from_slice(&read_own(&self.path, MAX_SIZE)?)?)
    }

    /// What the process before this one has left, for the Node with this UID.
    pub(super) fn read(&self, node_uid: &str) -> Option<Pool> {
        let reason = match self.content() {
            Ok(Content { version: VERSION, node_uid: uid, is_counted, devices }) if uid == node_uid => {
                return Some(Pool { devices, is_counted, is_open: true });
            }
            Ok(Content { version, node_uid, .. }) => {
                format!("it has format version {version} and is of the Node with the UID {node_uid}")
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => error.to_string(),
        };
        warn!(path = %self.path.display(), reason, "not used: what was published before is not known, so the claims are listed");
        None
    }

    /// This is about to be written: a file that says anything else goes first, also one that cannot be read now and may be later. Where it
    /// cannot be removed, devices may only be withdrawn: the process after this one would take them for published, which is
    /// slower, and safe.
    ///
    /// # Errors
    /// The operating system's. Then nothing must be written.
    pub(super) fn before(&self, node_uid: &str, wanted: Option<&Pool>) -> io::Result<()> {
        let wanted = wanted.map(|it| Content::new(node_uid, it));
        let kept = match self.content() {
            Ok(kept) if Some(&kept) == wanted.as_ref() => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.is_unsynced.load(Relaxed) => {
                return Ok(());
            }
            kept => kept,
        };
        // Without that a file that was removed may be back after a power loss.
        self.is_unsynced.store(true, Relaxed);
        let removed = remove_if_there(&self.path).and_then(|()| sync_directory(self.path.parent()));
        self.is_unsynced.store(removed.is_err(), Relaxed);
        match removed {
            Err(error) if kept.is_ok_and(|it| it.covers(wanted.as_ref())) => {
                warn!(path = %self.path.display(), %error, "cannot be removed; devices are withdrawn all the same");
                Ok(())
            }
            removed => removed,
        }
    }

    /// This is written, and all that matters to the next process. A failure costs it a list of the claims.
    pub(super) fn after(&self, node_uid: &str, pool: Option<&Pool>) {
        let Some(content) = pool.map(|it| Content::new(node_uid, it)) else { return };
        if self.content().is_ok_and(|it| it == content) {
            return;
        }
        let write = || replace(&self.path, &serde_json::to_vec(&content)?, 0o644);
        if let Err(error) = write() {
            warn!(path = %self.path.display(), %error, "what is published cannot be noted; the next start lists the claims");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const NODE: &str = "6f1f7a4e-5f0b-4b53-9d59-0d6f1c5f7a10";

    fn pool(devices: &[&str]) -> Pool {
        let devices = devices.iter().map(|it| (*it).to_owned()).collect();
        Pool { devices, is_counted: true, is_open: true }
    }

    fn file() -> (tempfile::TempDir, Resumption) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("published.json");
        (directory, Resumption::new(path))
    }

    #[test]
    fn what_was_published_is_known_again_until_something_else_is_about_to_be() {
        let (_directory, file) = file();
        let ab = pool(&["a", "b"]);
        assert_eq!(file.read(NODE), None);
        file.after(NODE, Some(&ab));
        assert_eq!(file.read(NODE), Some(ab.clone()));
        file.before(NODE, Some(&ab)).unwrap();
        file.after(NODE, None);
        assert_eq!(file.read(NODE), Some(ab.clone()), "the same was written again");
        for other in [Some(pool(&["a"])), Some(Pool { is_counted: false, ..ab.clone() }), None] {
            file.after(NODE, Some(&ab));
            file.before(NODE, other.as_ref()).unwrap();
            assert_eq!(file.read(NODE), None, "{other:?}");
        }
    }

    #[test]
    fn a_file_of_another_node_or_cluster_is_not_used_and_goes() {
        let (_directory, file) = file();
        file.after(NODE, Some(&pool(&["a"])));
        assert_eq!(file.read("another"), None);
        file.before("another", Some(&pool(&["a"]))).unwrap();
        assert_eq!(file.read(NODE), None);
    }

    #[test]
    fn a_file_that_cannot_be_understood_is_not_used_and_goes_before_anything_is_written() {
        let (directory, file) = file();
        file.after(NODE, Some(&pool(&["a"])));
        let good = fs::read_to_string(&file.path).unwrap();
        let bad = [
            good[..good.len() - 1].to_owned(),
            good.replace("\"version\":1", "\"version\":2"),
            good.replace("{\"version", "{\"more\":1,\"version"),
            good.replace("\"nodeUid\"", "\"node\""),
            good.clone() + &" ".repeat(usize::try_from(MAX_SIZE).unwrap()),
            String::new(),
        ];
        for bad in bad {
            assert_ne!(bad, good);
            fs::write(&file.path, &bad).unwrap();
            assert_eq!(file.read(NODE), None, "{bad:.99}");
            file.before(NODE, Some(&pool(&["a"]))).unwrap();
            assert!(!file.path.exists(), "a driver of another version would believe it: {bad:.99}");
        }
        let good_elsewhere = directory.path().join("elsewhere");
        fs::write(&good_elsewhere, &good).unwrap();
        symlink(&good_elsewhere, &file.path).unwrap();
        assert_eq!(file.read(NODE), None, "a link is not followed");
        file.before(NODE, Some(&pool(&["a"]))).unwrap();
        assert!(good_elsewhere.exists() && fs::symlink_metadata(&file.path).is_err());
    }

    #[test]
    fn what_another_process_has_written_meanwhile_is_removed() {
        let (_directory, new) = file();
        let old = Resumption::new(new.path.clone());
        new.after(NODE, Some(&pool(&["a"])));
        old.after(NODE, Some(&pool(&["b"])));
        new.before(NODE, Some(&pool(&["a"]))).unwrap();
        assert_eq!(new.read(NODE), None);
    }

    #[test]
    fn where_the_file_cannot_be_removed_devices_go_and_none_come() {
        let covers = |wanted: Option<&[&str]>| {
            let wanted = wanted.map(|it| Content::new(NODE, &pool(it)));
            Content::new(NODE, &pool(&["a", "b"])).covers(wanted.as_ref())
        };
        assert!(covers(None) && covers(Some(&[])) && covers(Some(&["b"])));
        assert!(!covers(Some(&["b", "c"])));
        let uncounted = Pool { is_counted: false, ..pool(&["a"]) };
        assert!(!Content::new(NODE, &pool(&["a"])).covers(Some(&Content::new(NODE, &uncounted))));
        // What cannot be removed and not be read, either.
        let (_directory, file) = file();
        fs::create_dir(&file.path).unwrap();
        assert!(file.before(NODE, Some(&pool(&[]))).is_err());
    }
}
