//! The health state of the process, and its file on disk.
//!
//! The file lists what is unhealthy, and exists only while something is. An operator removes it to clear the state.

use std::collections::BTreeMap;
use std::io::{self};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use mig_model::health::{IgnoredXids, Report, UnhealthyInstance, UnhealthyReason};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{info, warn};

use super::Machine;

use crate::files::{read_own, remove_if_there, replace};

/// Far above what a node with 32 GPUs needs.
const MAX_SIZE: u64 = 1 << 20;

/// Keeps what is known of health; clones share it.
#[derive(Debug, Clone)]
pub struct HealthStore(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    report: watch::Sender<Arc<Report>>,
    boot_id: String,
    path: PathBuf,
}

#[derive(Debug)]
struct State {
    machine: Machine,
    /// What the file says; nothing where there is none, or it could not be written.
    written: Option<Content>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    version: u32,
    boot_id: String,
    gpus: BTreeMap<String, UnhealthyReason>,
    instances: Vec<UnhealthyInstance>,
}

/// What a file remembers of a boot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remembered {
    /// Unhealthy GPUs, by UUID.
    pub gpus: BTreeMap<String, UnhealthyReason>,
    /// Unhealthy instances.
    pub instances: Vec<UnhealthyInstance>,
}

impl Remembered {
    /// Reads a file; nothing where it is not there, cannot be read, or is of another boot.
    #[must_use]
    pub fn read(path: &Path, boot_id: &str) -> Self {
        let content = read(path).filter(|it| it.boot_id == boot_id);
        content.map(|it| Self { gpus: it.gpus, instances: it.instances }).unwrap_or_default()
    }
}

impl HealthStore {
    /// Begins with what the file remembers of this boot.
    #[must_use]
    pub fn new(path: PathBuf, boot_id: &str, ignored: IgnoredXids) -> Self {
        let written = read(&path).filter(|it| it.boot_id == boot_id);
        let known = written.clone();
        if let Some(content) = &known {
            let (gpus, instances) = (content.gpus.len(), content.instances.len());
            info!(path = %path.display(), gpus, instances, "unhealthy since before the start; remove the file to clear the state");
        }
        let (gpus, instances) = known.map(|it| (it.gpus, it.instances)).unwrap_or_default();
        let machine = Machine::new(ignored, gpus, instances);
        let report = watch::channel(Arc::new(machine.report(Instant::now()))).0;
        let state = Mutex::new(State { machine, written });
        Self(Arc::new(Shared { state, report, boot_id: boot_id.to_owned(), path }))
    }

    /// Lets something happen to the state, at this time, which is also given in seconds since the epoch. What follows is
    /// written down and reported.
    pub fn change<T>(&self, change: impl FnOnce(&mut Machine, Instant, u64) -> T) -> T {
        let at = Instant::now();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs());
        let mut state = self.state();
        let result = change(&mut state.machine, at, now);
        self.remember(&mut state);
        let report = state.machine.report(at);
        self.0.report.send_if_modified(|it| {
            let is_new = **it != report;
            if is_new {
                *it = Arc::new(report);
            }
            is_new
        });
        result
    }

    /// Clears the unhealthy state if an operator has removed the file.
    pub fn clear_if_file_removed(&self) {
        let is_removed = {
            let mut state = self.state();
            let is_removed = state.written.is_some() && matches!(self.0.path.try_exists(), Ok(false));
            if is_removed {
                state.written = None;
            }
            is_removed
        };
        if is_removed {
            info!(path = %self.0.path.display(), "removed by an operator: GPUs count as healthy again");
            self.change(|machine, _, _| machine.forget());
        }
    }

    /// How everything is.
    #[must_use]
    pub fn report(&self) -> Arc<Report> {
        Arc::clone(&self.0.report.borrow())
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Follows the reports.
    #[must_use]
    pub fn reports(&self) -> watch::Receiver<Arc<Report>> {
        self.0.report.subscribe()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what is unhealthy now to the file. A failure is logged; it only matters if the process ends before the GPU recovers.
    fn remember(&self, state: &mut State) {
        let (gpus, instances) = state.machine.unhealthy();
        let is_unhealthy = !gpus.is_empty() || !instances.is_empty();
        let (boot_id, instances) = (self.0.boot_id.clone(), instances.to_vec());
        let wanted = is_unhealthy.then_some(Content { version: 1, boot_id, gpus, instances });
        if state.written == wanted {
            return;
        }
        let path = &self.0.path;
        let write = || match &wanted {
            Some(content) => replace(path, &serde_json::to_vec_pretty(content)?, 0o644),
            None => remove_if_there(path),
        };
        match write() {
            Ok(()) => state.written = wanted,
            Err(error) => {
                warn!(path = %path.display(), %error, "cannot write which GPUs are unhealthy");
                state.written = None;
            }
        }
    }
}

fn read(path: &Path) -> Option<Content> {
    let read = || -> io::Result<Content> { Ok(serde_json::from_slice(&read_own(path, MAX_SIZE)?)?) };
    match read() {
        Ok(content) if content.version == 1 => Some(content),
        Ok(content) => {
            warn!(path = %path.display(), version = content.version, "cannot read which GPUs were unhealthy: the file has another version");
            None
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            warn!(path = %path.display(), %error, "cannot read which GPUs were unhealthy");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::owner;
    use super::super::owner::fixture::{record, xid};
    use std::fs;

    use super::*;
    use mig_model::health::Condition;
    use mig_model::inventory::Inventory;

    fn store(directory: &tempfile::TempDir, boot_id: &str) -> HealthStore {
        HealthStore::new(directory.path().join("health.json"), boot_id, IgnoredXids::default())
    }

    fn suffer(store: &HealthStore, number: u64, gpu_instance: Option<u32>) {
        let (event, records) = (xid("GPU-0", number, gpu_instance), [record("a", "GPU-0", Some(7))]);
        let owner = owner(&event, &records, "boot", &Inventory::default());
        store.change(|machine, _, now| machine.event(&event, &owner, now));
    }

    #[test]
    fn what_is_unhealthy_outlives_the_process_and_not_the_boot() {
        let directory = tempfile::tempdir().unwrap();
        let first = store(&directory, "boot");
        assert!(!first.0.path.exists());
        suffer(&first, 48, None);
        suffer(&first, 94, Some(7));
        assert_eq!(store(&directory, "boot").report(), first.report());
        assert!(first.report().gpu("GPU-0").is_bad() && first.report().instances.len() == 1);
        assert_eq!(*store(&directory, "later").report(), Report::default());
    }

    #[test]
    fn an_operator_who_removes_the_file_makes_everything_well() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(&directory, "boot");
        store.clear_if_file_removed();
        suffer(&store, 48, None);
        store.clear_if_file_removed();
        assert!(store.report().gpu("GPU-0").is_bad());
        fs::remove_file(&store.0.path).unwrap();
        store.clear_if_file_removed();
        assert_eq!(*store.report().gpu("GPU-0"), Condition::Healthy);
    }

    #[test]
    fn the_file_goes_with_the_last_error_and_rubbish_in_it_is_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let first = store(&directory, "boot");
        suffer(&first, 48, None);
        first.change(|machine, _, _| machine.forget());
        assert!(!first.0.path.exists());
        fs::write(&first.0.path, b"{").unwrap();
        assert_eq!(*store(&directory, "boot").report(), Report::default());
    }
}
