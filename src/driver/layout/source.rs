//! The layout file on disk, read again when it changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use mig_model::layout::{LayoutFile, MAX_FILE};

use crate::files::read_bounded;

/// The file, and what it held when it was read last.
#[derive(Debug)]
pub(super) struct LayoutSource {
    path: PathBuf,
    stamp: Option<Stamp>,
    content: Option<Result<LayoutFile, String>>,
}

/// What changes with a file's content. A ConfigMap's files are links that move as a whole, hence the inode.
type Stamp = (SystemTime, u64, u64);

impl LayoutSource {
    /// The file of this path, which is not read yet.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, stamp: None, content: None }
    }

    /// True where the content is another one than before.
    pub(super) fn refresh(&mut self) -> bool {
        let stamp = stamp(&self.path);
        if self.content.is_some() && stamp.is_some() && stamp == self.stamp {
            return false;
        }
        let content = read(&self.path);
        let is_new = self.content.as_ref() != Some(&content);
        (self.stamp, self.content) = (stamp, Some(content));
        is_new
    }

    /// What the file holds, or what is wrong with it.
    pub(super) fn content(&mut self) -> Result<&LayoutFile, &String> {
        self.content.get_or_insert_with(|| read(&self.path)).as_ref()
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

fn read(path: &Path) -> Result<LayoutFile, String> {
    let name = path.display().to_string();
    let bytes = read_bounded(path, MAX_FILE as u64)
        .map_err(|error| format!("layout file `{name}` cannot be read: {error}; check --layouts"))?;
    LayoutFile::parse(&name, &bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_again_when_it_changes_and_its_errors_are_reported() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("layouts.yaml");
        let mut source = LayoutSource::new(path.clone());
        assert!(source.refresh(), "that there is no file is news once");
        assert!(!source.refresh());
        assert!(source.content().unwrap_err().contains("check --layouts"));

        let write = |text: &str| {
            let next = directory.path().join("next");
            fs::write(&next, text).unwrap();
            fs::rename(next, &path).unwrap();
        };
        write("{version: v1, mig-configs: {a: [{devices: all, mig-enabled: false}]}}");
        assert!(source.refresh() && !source.refresh());
        assert!(source.content().unwrap().configs.contains_key("a"));
        write("{version: v3}");
        assert!(source.refresh());
        assert!(source.content().unwrap_err().contains("it must be `v1`"));
        write(&" ".repeat(MAX_FILE + 5));
        assert!(source.refresh());
        assert!(source.content().unwrap_err().contains("longer than"));
    }
}
