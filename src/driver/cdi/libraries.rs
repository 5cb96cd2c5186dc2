//! Finds the driver's libraries below a driver root: NVML for this process, and those for containers, whose names end in the
//! driver's version. Both are looked for in the same directories.
//!
//! Which directories and names count follows NVIDIA's container toolkit (`pkg/lookup/library.go` and
//! `pkg/nvcdi/driver-nvml.go`), less what only graphics needs: the vendor-neutral GL libraries, and the link for
//! indirect GLX. The libraries with the version in their names are all taken, as the toolkit does, since CUDA, NVENC
//! and OptiX load each other at run time.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::cdi::ld_cache;
use crate::cdi::missing::{Missing, MissingPart, Severity};
use crate::cdi::root::{Root, is_plain_name};
use crate::files::read_bounded;

/// Where distributions put the driver's 64-bit libraries; the last two are for distributions that have no other directory
/// for them, and hold 32-bit libraries elsewhere.
const DIRECTORIES: [&str; 16] = [
    "/",
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu/nvidia/current",
    "/usr/lib/aarch64-linux-gnu/nvidia/current",
    "/lib64",
    "/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/lib/x86_64-linux-gnu/nvidia/current",
    "/lib/aarch64-linux-gnu/nvidia/current",
    // Talos since 1.10, and before; Bottlerocket.
    "/usr/local/lib",
    "/usr/local/glibc/usr/lib",
    "/usr/lib/nvidia/tesla",
    "/usr/lib",
    "/lib",
];
/// The library by which programs ask for GPUs, by the name that they open.
const NVML: &str = "libnvidia-ml.so.1";
const LD_CACHE: &str = "/etc/ld.so.cache";
/// A cache of a host with everything installed has some hundred KiB.
const LD_CACHE_LIMIT: u64 = 16 * 1024 * 1024;
/// A library of the driver that does not carry its version.
const UNVERSIONED: &str = "libnvidia-nvvm70.so.";
/// Links that programs rely on and that some installations lack: directory entry, what it leads to.
const EXPECTED_LINKS: [(&str, &str); 2] =
    [("libcuda.so", "libcuda.so.1"), ("libnvidia-opticalflow.so", "libnvidia-opticalflow.so.1")];

/// The driver's libraries below one root.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Libraries {
    /// Driver version, for example `550.54.15`.
    pub(super) version: String,
    /// Directories that hold them, free of links; the ones without subdirectories such as `vdpau`.
    pub(super) directories: Vec<String>,
    /// The libraries.
    pub(super) files: Vec<DriverFile>,
    /// Links to them.
    pub(super) links: Vec<Link>,
}

/// A link to a library, such as `libcuda.so.1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    /// What the link says: the name of a neighbour, or the library's path in the container.
    pub(super) target: String,
    /// Where the link is in the container.
    pub(super) in_container: String,
    /// The link-free path below the root of the library that it leads to in the end.
    pub(super) resolved: String,
}

/// A file by its path in the container and its link-free path below the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DriverFile {
    pub(super) in_container: String,
    pub(super) resolved: String,
}

/// The path by which this process opens NVML below a driver root, free of links.
#[must_use]
pub fn find_nvml(root: &Root) -> Option<PathBuf> {
    let paths = candidate_directories(root, None).into_iter().map(|it| join(&it, NVML));
    let found = paths.filter_map(|it| root.find_file(&it)).map(|it| root.here(&it));
    found.into_iter().find(|it| !is_32_bit(it))
}

/// The paths whose change means that [`find`] could answer something else.
pub(super) fn watched_paths(found: &Libraries, nvml: Option<&str>) -> impl Iterator<Item = String> {
    let places = DIRECTORIES.iter().copied().chain(nvml).chain([LD_CACHE]).filter(|path| *path != "/");
    places.map(str::to_owned).chain(found.directories.clone()).collect::<Vec<_>>().into_iter()
}

/// Finds the libraries of the driver version given, or of the only version that is there. `nvml` is a directory that counts
/// besides the usual ones.
pub(super) fn find(root: &Root, nvml: Option<&str>, version: Option<&str>) -> Result<Libraries, Missing> {
    let candidates = candidate_directories(root, nvml);
    let version = match version {
        Some(version) if is_version(version) => version.to_owned(),
        Some(version) => return Err(not_found(root, &format!("a usable driver version (got {version:?})"))),
        None => only_version(root, &candidates)?,
    };
    let suffix = format!(".so.{version}");
    let mut found = Libraries { version, ..Libraries::default() };
    for directory in candidates {
        let files = driver_files(root, &directory, |name| name.ends_with(&suffix));
        if files.is_empty() {
            continue;
        }
        found.files.extend(files);
        found.files.extend(driver_files(root, &directory, |name| name.starts_with(UNVERSIONED)));
        if let Some(vdpau) = root.find_dir(&join(&directory, "vdpau")) {
            found.files.extend(driver_files(root, &vdpau, |name| name.ends_with(&suffix)));
        }
        found.directories.push(directory);
    }
    if found.directories.is_empty() {
        return Err(not_found(root, &format!("lib*{suffix}")));
    }
    // The cache can name a subdirectory that was already looked into.
    let mut seen = BTreeSet::new();
    found.files.retain(|file| seen.insert(file.in_container.clone()));
    found.links = links(root, &found);
    Ok(found)
}

/// Whether a text looks like a driver version: numbers, at least two, joined by dots.
pub(super) fn is_version(text: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_digit());
    text.len() <= 32 && text.contains('.') && text.split('.').all(is_number)
}

/// The directory in which NVML was found and the one that its links lead to, the usual directories, and those of the
/// `ld.so.cache`; each once, free of links, and only if it exists.
fn candidate_directories(root: &Root, nvml: Option<&str>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let real = nvml.and_then(|it| root.find_file(&join(it, NVML)));
    let first = nvml.into_iter().chain(real.as_deref().map(parent));
    let mut directories: Vec<String> =
        first.chain(DIRECTORIES).filter_map(|dir| root.find_dir(dir)).collect();
    directories.extend(cached_directories(root));
    directories.retain(|dir| seen.insert(dir.clone()));
    directories
}

/// The directories that the cache names, and those that its entries for the driver's libraries lead to by links.
fn cached_directories(root: &Root) -> Vec<String> {
    let Some(cache) = root.find_file(LD_CACHE) else { return Vec::new() };
    let bytes = match read_bounded(&root.here(&cache), LD_CACHE_LIMIT) {
        Ok(bytes) => bytes,
        Err(error) => {
            tracing::debug!(%error, path = ?root.here(&cache), "ld.so.cache is not read");
            return Vec::new();
        }
    };
    let paths = ld_cache::library_paths(&bytes).unwrap_or_else(|error| {
        tracing::debug!(%error, path = ?root.here(&cache), "ld.so.cache is not used");
        Vec::new()
    });
    let named: BTreeSet<&str> = paths.iter().map(|path| parent(path)).collect();
    let mut directories: Vec<String> = named.into_iter().filter_map(|dir| root.find_dir(dir)).collect();
    for path in paths.iter().filter(|path| {
        let name = &path[parent(path).len()..];
        name.contains("libcuda.so.") || name.contains("libnvidia-ml.so.")
    }) {
        directories.extend(root.find_file(path).map(|file| parent(&file).to_owned()));
    }
    directories
}

/// The version in the names of `libcuda.so.*` or else `libnvidia-ml.so.*`, if there is just one.
fn only_version(root: &Root, directories: &[String]) -> Result<String, Missing> {
    for prefix in ["libcuda.so.", "libnvidia-ml.so."] {
        let names = directories.iter().flat_map(|dir| root.names(dir));
        let versions: BTreeSet<String> = names
            .filter_map(|name| name.strip_prefix(prefix).filter(|v| is_version(v)).map(str::to_owned))
            .collect();
        let mut versions = versions.into_iter();
        match (versions.next(), versions.next()) {
            (Some(version), None) => return Ok(version),
            (Some(one), Some(other)) => {
                return Err(not_found(root, &format!("one driver version (there are {one} and {other})")));
            }
            (None, _) => {}
        }
    }
    Err(not_found(root, "libcuda.so.<version> or libnvidia-ml.so.<version>"))
}

/// The 64-bit libraries in one directory whose names pass; links count, if they lead to a file below the root.
fn driver_files(root: &Root, directory: &str, wanted: impl Fn(&str) -> bool) -> Vec<DriverFile> {
    let names = root.names(directory).into_iter().filter(|name| name.starts_with("lib") && wanted(name));
    let paths = names.map(|name| join(directory, &name));
    paths
        .filter_map(|path| Some(DriverFile { resolved: root.find_file(&path)?, in_container: path }))
        .filter(|file| !is_32_bit(&root.here(&file.resolved)))
        .collect()
}

/// Whether a file says that it is a library for 32-bit programs.
fn is_32_bit(path: &Path) -> bool {
    const ELF_32: &[u8] = b"\x7fELF\x01";
    let mut start = Vec::new();
    let read = File::open(path).and_then(|it| it.take(ELF_32.len() as u64).read_to_end(&mut start));
    read.is_ok() && start == ELF_32
}

/// The links in the libraries' directories that lead to one of them, as the host has them, and the expected ones.
///
/// `ldconfig` in the container makes only those that a library's SONAME asks for; programs also open `libcuda.so`.
fn links(root: &Root, found: &Libraries) -> Vec<Link> {
    let mut links: Vec<Link> = Vec::new();
    for directory in &found.directories {
        let names = root.names(directory).into_iter();
        let paths =
            names.filter(|n| n.starts_with("lib") && n.contains(".so")).map(|name| join(directory, &name));
        links.extend(paths.filter_map(|path| link_at(root, path, &found.files)));
        for (link, target) in EXPECTED_LINKS {
            let in_container = join(directory, link);
            let library = format!("{in_container}.{}", found.version);
            let Some(file) = found.files.iter().find(|f| f.in_container == library) else { continue };
            if !links.iter().any(|link| link.in_container == in_container) {
                links.push(Link { target: target.to_owned(), in_container, resolved: file.resolved.clone() });
            }
        }
    }
    links
}

/// The link at `path`, if it is one that leads to one of `files` and is not itself one of them.
fn link_at(root: &Root, path: String, files: &[DriverFile]) -> Option<Link> {
    let target = std::fs::read_link(root.here(&path)).ok()?;
    let resolved = root.find_file(&path)?;
    let file = files.iter().find(|f| f.resolved == resolved)?;
    if files.iter().any(|f| f.in_container == path) {
        return None;
    }
    let neighbour = target.to_str().filter(|target| is_plain_name(target)).map(str::to_owned);
    Some(Link {
        target: neighbour.unwrap_or_else(|| file.in_container.clone()),
        in_container: path,
        resolved,
    })
}

/// The directory of an absolute path.
pub(super) fn parent(path: &str) -> &str {
    match path.rfind('/') {
        Some(0) | None => "/",
        Some(slash) => &path[..slash],
    }
}

/// The path of a name in a directory.
pub(super) fn join(directory: &str, name: &str) -> String {
    format!("{}/{name}", directory.trim_end_matches('/'))
}

fn not_found(root: &Root, what: &str) -> Missing {
    Missing {
        part: MissingPart::Driver,
        severity: Severity::Fatal,
        what: format!("{what} not found below the driver root {:?}", root.here("/")),
        consequence: "containers would get no CUDA libraries",
        remedy:
            "install the NVIDIA driver there, set --driver-root to where it is, or give a common edits file \
                 (--common-edits)"
                .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_numbers_joined_by_dots() {
        for good in ["550.54.15", "580.65", "999.88.77"] {
            assert!(is_version(good), "{good}");
        }
        for bad in ["", "1", "550.", ".1", "550.*", "1.2/..", "550.54.15-beta", &"1.".repeat(40)] {
            assert!(!is_version(bad), "{bad}");
        }
    }

    #[test]
    fn parents_and_joins_are_absolute() {
        assert_eq!(parent("/usr/lib/a"), "/usr/lib");
        assert_eq!(parent("/a"), "/");
        assert_eq!(join("/", "a"), "/a");
        assert_eq!(join("/usr", "a"), "/usr/a");
    }
}
