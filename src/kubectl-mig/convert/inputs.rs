//! The files that a command line names.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::error::{ConvertError, MAX_BYTES};
use super::kustomize;

/// Most files of one call.
const MAX_FILES: u64 = 10_000;
/// Most bytes of all files together.
const MAX_TOTAL: u64 = 256 << 20;
/// Most levels of directories.
const MAX_LEVELS: u64 = 64;

/// A file that was read.
#[derive(Debug)]
pub(super) struct Input {
    /// What messages call it.
    pub(super) name: String,
    /// Absolute and without links; `None` for standard input.
    pub(super) path: Option<PathBuf>,
    /// Its place below the directory that was named; the name alone of a file that was named.
    pub(super) relative: PathBuf,
    /// Whether it was named itself, and not its directory.
    pub(super) named: bool,
    pub(super) text: String,
}

/// A file to read.
struct Entry {
    path: PathBuf,
    relative: PathBuf,
    named: bool,
}

/// What the command line names, and the kustomizations beside it that are not converted: absolute path and text.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    pub(super) files: Vec<Input>,
    pub(super) beside: Vec<(PathBuf, String)>,
    /// Whether a directory was named.
    pub(super) directory: bool,
}

/// Reads files, and the manifests of directories, in the order of names; each once.
///
/// # Errors
/// For each file or directory that cannot be read, its name and why.
pub(super) fn read(names: &[String], recursive: bool) -> Result<Inputs, Vec<(String, ConvertError)>> {
    let mut inputs = Inputs::default();
    let mut errors = Vec::new();
    let mut known = BTreeSet::new();
    let mut total = 0_u64;
    for name in names {
        let entries = match entries(name, recursive, &mut inputs.directory) {
            Ok(entries) => entries,
            Err(error) => {
                errors.push((name.clone(), error));
                continue;
            }
        };
        for entry in entries {
            let shown = shown(&entry.path);
            match read_entry(entry, &mut known) {
                Ok(Some(input)) => {
                    total = total.saturating_add(u64::try_from(input.text.len()).unwrap_or(u64::MAX));
                    inputs.files.push(input);
                }
                Ok(None) => {}
                Err(error) => errors.push((shown, error)),
            }
            let files = u64::try_from(inputs.files.len()).unwrap_or(u64::MAX);
            let limits = [(files, MAX_FILES, "files"), (total, MAX_TOTAL, "bytes")];
            if let Some((_, limit, what)) = limits.into_iter().find(|(it, limit, _)| it > limit) {
                return Err(vec![(name.clone(), ConvertError::TooMuch { what, limit })]);
            }
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    inputs.beside = beside(&inputs.files);
    Ok(inputs)
}

fn shown(path: &Path) -> String {
    if path.as_os_str() == "-" { "standard input".to_owned() } else { path.display().to_string() }
}

/// What one `-f` names.
fn entries(name: &str, recursive: bool, directory: &mut bool) -> Result<Vec<Entry>, ConvertError> {
    let path = PathBuf::from(name);
    if name == "-" || !path.is_dir() {
        let relative = path.file_name().map_or_else(|| path.clone(), PathBuf::from);
        return Ok(vec![Entry { path, relative, named: true }]);
    }
    *directory = true;
    let mut found = Vec::new();
    walk(&path, Path::new(""), recursive, 1, &mut found)?;
    if found.is_empty() { Err(ConvertError::NoManifests) } else { Ok(found) }
}

/// The manifests of a directory, by name. Does not follow links to directories, as kubectl does not.
fn walk(
    directory: &Path,
    relative: &Path,
    recursive: bool,
    level: u64,
    found: &mut Vec<Entry>,
) -> Result<(), ConvertError> {
    if level > MAX_LEVELS {
        return Err(ConvertError::TooMuch { what: "levels of directories", limit: MAX_LEVELS });
    }
    let failed =
        |source| ConvertError::Io { operation: "read", path: directory.display().to_string(), source };
    let mut children =
        fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(failed)?;
    children.sort_by_key(fs::DirEntry::file_name);
    for child in children {
        let (path, relative) = (child.path(), relative.join(child.file_name()));
        if child.file_type().map_err(failed)?.is_dir() {
            if recursive {
                walk(&path, &relative, recursive, level + 1, found)?;
            }
        } else if path.extension().is_some_and(|it| it == "yaml" || it == "yml" || it == "json")
            && path.is_file()
        {
            found.push(Entry { path, relative, named: false });
            if u64::try_from(found.len()).unwrap_or(u64::MAX) > MAX_FILES {
                return Err(ConvertError::TooMuch { what: "files", limit: MAX_FILES });
            }
        }
    }
    Ok(())
}

/// Reads a file, unless it has been read before.
fn read_entry(entry: Entry, known: &mut BTreeSet<PathBuf>) -> Result<Option<Input>, ConvertError> {
    let Entry { path, relative, named } = entry;
    let name = shown(&path);
    let failed = |source| ConvertError::Io { operation: "read", path: path.display().to_string(), source };
    let (real, text) = if path.as_os_str() == "-" {
        (None, text_of(io::stdin(), &name)?)
    } else {
        let real = fs::canonicalize(&path).map_err(failed)?;
        if !known.insert(real.clone()) {
            return Ok(None);
        }
        let text = text_of(File::open(&path).map_err(failed)?, &name)?;
        (Some(real), text)
    };
    Ok(Some(Input { name, path: real, relative, named, text }))
}

/// The text of a source within its limits.
fn text_of(source: impl Read, name: &str) -> Result<String, ConvertError> {
    let failed = |source| ConvertError::Io { operation: "read", path: name.to_owned(), source };
    let mut bytes = Vec::new();
    // Reads one byte more than allowed, which shows that the input is too large; the rest is not read.
    let limit = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX);
    source.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > MAX_BYTES {
        return Err(ConvertError::TooLarge { what: "bytes", limit: MAX_BYTES });
    }
    String::from_utf8(bytes).map_err(|_| ConvertError::NotText)
}

/// The kustomizations in the directories of files, as far as they can be read and are not among the files.
fn beside(files: &[Input]) -> Vec<(PathBuf, String)> {
    let directories: BTreeSet<&Path> = files.iter().filter_map(|it| it.path.as_deref()?.parent()).collect();
    let candidates = directories.into_iter().flat_map(|it| kustomize::NAMES.map(|name| it.join(name)));
    let known: BTreeSet<&Path> = files.iter().filter_map(|it| it.path.as_deref()).collect();
    candidates
        .filter(|it| !known.contains(it.as_path()) && it.is_file())
        .filter_map(|it| {
            let text = text_of(File::open(&it).ok()?, "").ok()?;
            Some((it, text))
        })
        .collect()
}
