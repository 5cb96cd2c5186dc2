//! A directory tree that is known by two paths: where this process sees it, and where the host has it.
//!
//! The driver usually runs in a container, where `/run/nvidia/driver` of the host may be mounted as `/driver-root`.
//! Files are read through the first path; every path in a CDI spec must be the second, since the container
//! runtime reads it on the host.
//!
//! Paths inside the tree are absolute texts as a process chrooted into it would write them (`/usr/lib64/libcuda.so`).
//! Symbolic links are followed as that process would: an absolute link starts again at the root of the tree and `..`
//! stops there, so that no link leads out of it. Names that are not UTF-8 are refused, because CDI files are JSON.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// As many links as the Linux kernel follows in one path (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// A directory tree by its two paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    here: PathBuf,
    host: String,
}

/// Cache of directories of one tree, for resolving many paths in it.
#[derive(Debug, Default)]
pub(super) struct Directories(HashSet<String>);

/// A file's identity and time, to detect cheaply whether it was replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    path: String,
    device: u64,
    inode: u64,
    modified: (i64, i64),
    /// Mode and group: those of a device node end in the spec.
    access: (u32, u32),
}

impl Root {
    /// `here` is the tree as this process sees it, `host` the absolute path that it has on the host.
    pub fn new(here: impl Into<PathBuf>, host: impl Into<String>) -> Self {
        let host = host.into();
        Self { here: here.into(), host: host.trim_end_matches('/').to_owned() }
    }

    /// A tree that has the same path here and on the host.
    pub fn same(path: impl Into<String>) -> Self {
        let path = path.into();
        Self::new(path.clone(), path)
    }

    /// What the tree's own path of `path` is, if this process sees that in the tree. Links are not followed.
    #[must_use]
    pub fn inside(&self, path: &Path) -> Option<String> {
        let rest = path.strip_prefix(&self.here).ok()?.to_str()?;
        Some(format!("/{}", rest.trim_start_matches('/')))
    }

    /// Where this process finds `inside`. Links are not followed.
    pub fn here(&self, inside: &str) -> PathBuf {
        self.here.join(inside.trim_start_matches('/'))
    }

    /// The host's path of `inside`. Links are not followed, so pass what [`Root::resolve`] returned.
    pub fn host(&self, inside: &str) -> String {
        format!("{}/{}", self.host, inside.trim_start_matches('/'))
    }

    /// Follows all links of `inside` within the tree; what it leads to must exist.
    pub fn resolve(&self, inside: &str) -> io::Result<String> {
        self.resolve_beside(inside, &mut Directories::default())
    }

    /// As [`Root::resolve`], but uses and fills the cache of directories.
    fn resolve_beside(&self, inside: &str, known: &mut Directories) -> io::Result<String> {
        let mut pending: Vec<String> = inside.rsplit('/').map(str::to_owned).collect();
        let mut done: Vec<String> = Vec::new();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            match name.as_str() {
                "" | "." => continue,
                ".." => {
                    done.pop();
                    continue;
                }
                _ => done.push(name),
            }
            let joined = done.join("/");
            if known.0.contains(&joined) {
                continue;
            }
            let path = self.here(&joined);
            let metadata = fs::symlink_metadata(&path)?;
            if metadata.is_dir() {
                known.0.insert(joined);
            }
            if !metadata.is_symlink() {
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(rustix::io::Errno::LOOP.into());
            }
            let target = fs::read_link(&path)?;
            let target = target.to_str().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
            done.pop();
            if target.starts_with('/') {
                done.clear();
            }
            pending.extend(target.rsplit('/').map(str::to_owned));
        }
        Ok(format!("/{}", done.join("/")))
    }

    /// What `inside` leads to, and its metadata; `None` if it can't be reached.
    pub(super) fn find(&self, inside: &str) -> Option<(String, Metadata)> {
        self.find_beside(inside, &mut Directories::default())
    }

    fn find_beside(&self, inside: &str, known: &mut Directories) -> Option<(String, Metadata)> {
        let resolved = self.resolve_beside(inside, known).ok()?;
        let metadata = fs::symlink_metadata(self.here(&resolved)).ok()?;
        Some((resolved, metadata))
    }

    /// The path that `inside` leads to, if that is a directory.
    pub(super) fn find_dir(&self, inside: &str) -> Option<String> {
        self.find(inside).filter(|(_, metadata)| metadata.is_dir()).map(|(path, _)| path)
    }

    /// The path that `inside` leads to, if that is a regular file.
    pub(super) fn find_file(&self, inside: &str) -> Option<String> {
        self.find(inside).filter(|(_, metadata)| metadata.is_file()).map(|(path, _)| path)
    }

    /// The path that `inside` leads to, if that is an executable regular file.
    pub(super) fn find_program(&self, inside: &str) -> Option<String> {
        self.find(inside).filter(|(_, m)| m.is_file() && m.mode() & 0o111 != 0).map(|(path, _)| path)
    }

    /// The sorted names in a directory, as far as they are [plain](is_plain_name); none if it can't be read.
    pub(super) fn names(&self, resolved_dir: &str) -> Vec<String> {
        let entries = fs::read_dir(self.here(resolved_dir)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
        names.retain(|name| is_plain_name(name));
        names.sort();
        names
    }

    /// Identity of what `inside` leads to now, or of the link itself if that leads to nothing below the root; `None` if
    /// there is neither.
    pub(super) fn stamp(&self, inside: &str) -> Option<Stamp> {
        self.stamp_beside(inside, &mut Directories::default())
    }

    /// As [`Root::stamp`], for one of many paths: `known` spares the directories that they have in common.
    pub(super) fn stamp_beside(&self, inside: &str, known: &mut Directories) -> Option<Stamp> {
        let of_link = || Some((inside.to_owned(), fs::symlink_metadata(self.here(inside)).ok()?));
        let (path, metadata) = self.find_beside(inside, known).or_else(of_link)?;
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        let access = (metadata.mode(), metadata.gid());
        Some(Stamp { path, device: metadata.dev(), inode: metadata.ino(), modified, access })
    }
}

/// Whether a file name consists of letters, digits and `.`, `_`, `+`, `-` only, as all of NVIDIA's do. Others could
/// break out of the places that names are put into: colon-separated lists and `target::link` arguments.
pub(super) fn is_plain_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.chars().all(|c| c.is_ascii_alphanumeric() || "._+-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("usr/lib")).unwrap();
        fs::write(dir.path().join("usr/lib/a"), "").unwrap();
        let root = Root::new(dir.path(), "/run/driver/");
        (dir, root)
    }

    #[test]
    fn paths_are_joined_for_both_sides() {
        let root = Root::new("/driver-root", "/run/nvidia/driver/");
        assert_eq!(root.here("/usr/lib"), Path::new("/driver-root/usr/lib"));
        assert_eq!(root.host("/usr/lib"), "/run/nvidia/driver/usr/lib");
        assert_eq!(Root::same("/").host("/usr/lib"), "/usr/lib");
        assert_eq!(Root::same("/").here("/usr/lib"), Path::new("/usr/lib"));
    }

    #[test]
    fn a_path_is_inside_only_where_it_is_below_the_root() {
        let root = Root::new("/host/", "/");
        assert_eq!(root.inside(Path::new("/host/opt/lib")).unwrap(), "/opt/lib");
        assert_eq!(root.inside(Path::new("/host")).unwrap(), "/");
        assert_eq!(root.inside(Path::new("/opt/lib")), None);
        assert_eq!(root.inside(Path::new("/hostile")), None);
        assert_eq!(Root::same("/").inside(Path::new("/opt/lib")).unwrap(), "/opt/lib");
    }

    #[test]
    fn links_are_followed_inside_the_root() {
        let (dir, root) = root();
        symlink("/usr/lib", dir.path().join("lib")).unwrap();
        symlink("../lib/a", dir.path().join("usr/b")).unwrap();
        assert_eq!(root.resolve("/lib/a").unwrap(), "/usr/lib/a");
        assert_eq!(root.resolve("//usr/./b").unwrap(), "/usr/lib/a");
        assert_eq!(root.resolve("/").unwrap(), "/");
    }

    #[test]
    fn links_that_lead_out_stop_at_the_root() {
        let (dir, root) = root();
        symlink("../../../../../../../../usr/lib/a", dir.path().join("up")).unwrap();
        symlink("/etc/passwd", dir.path().join("absolute")).unwrap();
        assert_eq!(root.resolve("/up").unwrap(), "/usr/lib/a");
        assert_eq!(root.resolve("/../../usr").unwrap(), "/usr");
        assert_eq!(root.resolve("/absolute").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_loop_of_links_ends() {
        let (dir, root) = root();
        symlink("y", dir.path().join("x")).unwrap();
        symlink("x", dir.path().join("y")).unwrap();
        let error = root.resolve("/x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::LOOP.raw_os_error()));
    }

    #[test]
    fn a_stamp_changes_with_the_file_and_with_the_link_to_it() {
        let (dir, root) = root();
        fs::write(dir.path().join("usr/lib/b"), "").unwrap();
        symlink("usr/lib/a", dir.path().join("link")).unwrap();
        let before = root.stamp("/link");
        assert_eq!(before, root.stamp("/link"));
        fs::remove_file(dir.path().join("link")).unwrap();
        assert_eq!(root.stamp("/link"), None);
        symlink("usr/lib/b", dir.path().join("link")).unwrap();
        assert_ne!(before, root.stamp("/link"));
    }

    #[test]
    fn names_that_could_break_an_argument_are_not_plain() {
        assert!(is_plain_name("libnvidia-ml.so.550.54.15"));
        assert!(is_plain_name("libstdc++.so"));
        for bad in ["", ".", "..", "a/b", "a::b", "a b", "a\n"] {
            assert!(!is_plain_name(bad), "{bad:?}");
        }
    }
}
