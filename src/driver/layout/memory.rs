//! The layouts in force, on disk: so that a driver that starts while the node's label cannot be followed goes on with what
//! was in force before, and does not divide free space differently. Only a convenience: without it, the default is in force.

use std::io::{self};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::warn;

use mig_model::layout::{DemandMemory, Layouts};

use crate::files::{read_own, replace};

/// Far above what a node with 32 GPUs needs.
const MAX_SIZE: u64 = 1 << 18;

/// How old the note of the last demand may be: a driver that starts after it goes back to the default so much earlier.
const WRITE_PERIOD: Duration = Duration::from_secs(60);

/// The file.
#[derive(Debug, Clone)]
pub struct LayoutMemory {
    path: PathBuf,
}

/// What is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// The layouts.
    pub layouts: Layouts,
    /// What is remembered of demands, where layouts follow them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demand: Option<DemandMemory>,
}

impl InForce {
    /// Whether this is worth a write after that: a time that moves on is only once in a while.
    pub(super) fn differs_from(&self, next: &Self) -> bool {
        let times = |it: &Self| it.demand.as_ref().map(|it| (it.changed, it.demanded.is_some()));
        let demanded = |it: &Self| it.demand.as_ref().and_then(|it| it.demanded);
        let is_old = match (demanded(self), demanded(next)) {
            (Some(written), Some(now)) => WRITE_PERIOD <= now.duration_since(written).unsigned_abs(),
            _ => false,
        };
        self.layouts != next.layouts || times(self) != times(next) || is_old
    }
}

#[derive(Serialize, Deserialize)]
struct Content {
    version: u32,
    #[serde(flatten)]
    in_force: InForce,
}

impl LayoutMemory {
    /// Kept in this file.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// What was in force last, where the file says it.
    #[must_use]
    pub fn read(&self) -> Option<InForce> {
        let read =
            || -> io::Result<Content> { Ok(serde_json::from_slice(&read_own(&self.path, MAX_SIZE)?)?) };
        match read() {
            Ok(Content { version: 1, in_force }) => Some(in_force),
            Ok(Content { version, .. }) => {
                warn!(path = %self.path.display(), version, "the layouts in force last are of another version");
                None
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                warn!(path = %self.path.display(), %error, "the layouts in force last cannot be read");
                None
            }
        }
    }

    /// Notes what is in force. A failure is logged: it only matters if the next start finds no layout to follow.
    pub fn write(&self, in_force: &InForce) {
        let write = || -> io::Result<()> {
            let content = Content { version: 1, in_force: in_force.clone() };
            replace(&self.path, &serde_json::to_vec_pretty(&content)?, 0o644)
        };
        if let Err(error) = write() {
            warn!(path = %self.path.display(), %error, "the layouts in force cannot be noted");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use k8s_openapi::jiff::Timestamp;
    use mig_model::layout::GpuLayout;

    #[test]
    fn what_was_in_force_is_known_again_and_rubbish_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let memory = LayoutMemory::new(directory.path().join("layout.json"));
        assert_eq!(memory.read(), None);
        let counts = [("1g.10gb".to_owned(), 2)].into();
        let layouts: Layouts = [
            ("gpu-0".to_owned(), GpuLayout::Whole),
            ("gpu-1".to_owned(), GpuLayout::Free { cut: true, counts }),
        ]
        .into();
        let mut demand = DemandMemory::default();
        demand.changed = Timestamp::from_second(5).ok();
        for demand in [None, Some(demand)] {
            let in_force = InForce { layouts: layouts.clone(), demand };
            memory.write(&in_force);
            assert_eq!(memory.read(), Some(in_force));
        }
        // As drivers before version 0.1 wrote it.
        fs::write(&memory.path, br#"{"version": 1, "layouts": {"gpu-0": "whole"}}"#).unwrap();
        let layouts = [("gpu-0".to_owned(), GpuLayout::Whole)].into();
        assert_eq!(memory.read(), Some(InForce { layouts, demand: None }));
        fs::write(&memory.path, b"{\"version\": 2, \"layouts\": {}}").unwrap();
        assert_eq!(memory.read(), None);
        fs::write(&memory.path, b"{").unwrap();
        assert_eq!(memory.read(), None);
    }
}
