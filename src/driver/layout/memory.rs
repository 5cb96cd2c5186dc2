//! The layouts in force, on disk: so that a driver that starts while the node's label cannot be followed goes on with what
//! was in force before, and does not divide free space differently. Only a convenience: without it, the default is in force.

use std::io::{self};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tracing::warn;

use mig_model::layout::Layouts;

use crate::files::{read_own, replace};

/// Far above what a node with 32 GPUs needs.
const MAX_SIZE: u64 = 1 << 18;

/// The file.
#[derive(Debug, Clone)]
pub struct LayoutMemory {
    path: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Content {
    version: u32,
    layouts: Layouts,
}

impl LayoutMemory {
    /// Kept in this file.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// What was in force last, where the file says it.
    #[must_use]
    pub fn read(&self) -> Option<Layouts> {
        let read =
            || -> io::Result<Content> { Ok(serde_json::from_slice(&read_own(&self.path, MAX_SIZE)?)?) };
        match read() {
            Ok(Content { version: 1, layouts }) => Some(layouts),
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
    pub fn write(&self, layouts: &Layouts) {
        let write = || -> io::Result<()> {
            let content = Content { version: 1, layouts: layouts.clone() };
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
        memory.write(&layouts);
        assert_eq!(memory.read(), Some(layouts));
        fs::write(&memory.path, b"{\"version\": 2, \"layouts\": {}}").unwrap();
        assert_eq!(memory.read(), None);
        fs::write(&memory.path, b"{").unwrap();
        assert_eq!(memory.read(), None);
    }
}
