//! What is published, on disk, for the process after this one: the kubelet deletes a node's slices at its start, and a driver that does not
//! know what was in them has to ask the API server for all claims of the cluster. When a whole cluster boots, each node would.
//!
//! The file says that its devices are all that schedulers may act on. It is removed before anything else is written, and written
//! when that is true again; without it a start is slower, and no less safe.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use mig_model::slices::Pool;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::files::{read_own, remove_if_there, replace, sync_directory};

/// Far above what a node with 32 GPUs needs.
const MAX_SIZE: u64 = 1 << 18;

/// The file.
#[derive(Debug)]
pub struct Resumption {
    path: PathBuf,
    /// What it says.
    kept: Option<Pool>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    version: u32,
    is_counted: bool,
    devices: BTreeSet<String>,
}

impl Resumption {
    /// Kept in this file, which is read now.
    #[must_use]
    pub fn read(path: PathBuf) -> Self {
        let mut file = Self { path, kept: None };
        file.look();
        file
    }

    fn look(&mut self) {
        let read =
            || -> io::Result<Content> { Ok(serde_json::from_slice(&read_own(&self.path, MAX_SIZE)?)?) };
        self.kept = match read() {
            Ok(Content { version: 1, is_counted, devices }) => {
                Some(Pool { devices, is_counted, is_open: true })
            }
            // Another version of the driver knows what it means.
            Ok(_) => None,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    warn!(path = %self.path.display(), %error, "what was published last cannot be read");
                }
                None
            }
        };
    }

    /// What the process before this one has left.
    pub(super) fn kept(&self) -> Option<&Pool> {
        self.kept.as_ref()
    }

    /// This is about to be written: where the file says something else, it goes first. It is read again, because in a rolling update
    /// two processes have it.
    ///
    /// # Errors
    /// The operating system's. Then nothing must be written.
    pub(super) fn before(&mut self, wanted: Option<&Pool>) -> io::Result<()> {
        self.look();
        if self.kept.is_some() && self.kept.as_ref() != wanted {
            remove_if_there(&self.path)?;
            sync_directory(self.path.parent())?;
            self.kept = None;
        }
        Ok(())
    }

    /// This is written, and all that matters to the next process. A failure costs it a list of the claims.
    pub(super) fn after(&mut self, pool: Option<Pool>) {
        let Some(pool) = pool.filter(|it| self.kept.as_ref() != Some(it)) else { return };
        let content = Content { version: 1, is_counted: pool.is_counted, devices: pool.devices.clone() };
        let write = || replace(&self.path, &serde_json::to_vec(&content)?, 0o644);
        match write() {
            Ok(()) => self.kept = Some(pool),
            Err(error) => warn!(path = %self.path.display(), %error, "what is published cannot be noted"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn pool(devices: &[&str]) -> Pool {
        let devices = devices.iter().map(|it| (*it).to_owned()).collect();
        Pool { devices, is_counted: true, is_open: true }
    }

    #[test]
    fn what_was_published_is_known_again_until_something_else_is_about_to_be() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("published.json");
        let read = || Resumption::read(path.clone());
        let mut file = read();
        assert_eq!(file.kept(), None);
        file.after(Some(pool(&["a", "b"])));
        assert_eq!(read().kept(), Some(&pool(&["a", "b"])));
        file.before(Some(&pool(&["a", "b"]))).unwrap();
        file.after(None);
        assert_eq!(read().kept(), Some(&pool(&["a", "b"])), "the same was written again");
        file.before(Some(&pool(&["a"]))).unwrap();
        assert_eq!((read().kept(), file.kept()), (None, None));
        for rubbish in ["{", r#"{"version": 2, "isCounted": true, "devices": []}"#] {
            fs::write(&path, rubbish).unwrap();
            assert_eq!(read().kept(), None, "{rubbish}");
        }
    }

    #[test]
    fn what_another_process_has_written_meanwhile_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("published.json");
        let [mut old, mut new] = [(); 2].map(|()| Resumption::read(path.clone()));
        new.after(Some(pool(&["a"])));
        old.after(Some(pool(&["b"])));
        new.before(Some(&pool(&["a"]))).unwrap();
        assert_eq!(Resumption::read(path).kept(), None);
    }
}
