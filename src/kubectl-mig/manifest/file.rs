//! Reads files, directories and standard input.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::{MAX_BYTES, ManifestError, Place};
use super::object::Object;
use crate::yaml::{json_problem, yaml_problem};

/// Most directories below each other.
const MAX_DEPTH: usize = 16;

/// The objects of files, in their order; `-` is standard input. Of a directory all `.yaml`, `.yml` and `.json` files count,
/// sorted by name, and with `recursive` those of directories below it. A list is taken apart.
///
/// # Errors
/// [`ManifestError`].
pub fn read(files: &[String], recursive: bool) -> Result<Vec<Object>, ManifestError> {
    let mut objects = Vec::new();
    for file in files {
        if file == "-" {
            parse("standard input", &text("standard input", io::stdin().lock())?, &mut objects)?;
            continue;
        }
        let path = Path::new(file);
        if path.is_dir() {
            let mut found = Vec::new();
            directory(path, recursive, 0, &mut found)?;
            if found.is_empty() {
                let message = "no .yaml, .yml or .json file is in the directory";
                return Err(ManifestError::Directory { path: file.clone(), message });
            }
            for path in found {
                one(&path, &mut objects)?;
            }
        } else {
            one(path, &mut objects)?;
        }
    }
    Ok(objects)
}

fn one(path: &Path, objects: &mut Vec<Object>) -> Result<(), ManifestError> {
    let name = path.display().to_string();
    let file = File::open(path).map_err(|source| ManifestError::Io { path: name.clone(), source })?;
    parse(&name, &text(&name, file)?, objects)
}

fn text(name: &str, source: impl Read) -> Result<String, ManifestError> {
    let failed = |source| ManifestError::Io { path: name.to_owned(), source };
    let mut bytes = Vec::new();
    // One byte more than allowed shows that the input is too large.
    source.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if u64::try_from(bytes.len()).is_ok_and(|it| it > MAX_BYTES) {
        return Err(ManifestError::TooLarge { path: name.to_owned() });
    }
    String::from_utf8(bytes).map_err(|_| {
        let message = "not UTF-8 text".to_owned();
        ManifestError::Malformed { path: name.to_owned(), message, is_template: false }
    })
}

fn directory(
    path: &Path,
    recursive: bool,
    depth: usize,
    found: &mut Vec<PathBuf>,
) -> Result<(), ManifestError> {
    let name = || path.display().to_string();
    if depth > MAX_DEPTH {
        return Err(ManifestError::Directory {
            path: name(),
            message: "too many directories below each other",
        });
    }
    let failed = |source| ManifestError::Io { path: name(), source };
    let entries = std::fs::read_dir(path).map_err(failed)?;
    let mut entries: Vec<PathBuf> =
        entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>().map_err(failed)?;
    entries.sort();
    for entry in entries {
        let is_manifest = entry.extension().is_some_and(|it| it == "yaml" || it == "yml" || it == "json");
        if entry.is_dir() {
            if recursive {
                directory(&entry, recursive, depth + 1, found)?;
            }
        } else if is_manifest {
            found.push(entry);
        }
    }
    Ok(())
}

/// Adds the objects of a text.
fn parse(name: &str, text: &str, objects: &mut Vec<Object>) -> Result<(), ManifestError> {
    let malformed = |message: String| {
        let is_template = text.contains("{{");
        ManifestError::Malformed { path: name.to_owned(), message, is_template }
    };
    // JSON is parsed as JSON: that is much faster for a dump of a cluster.
    let documents: Vec<Value> = if text.trim_start().starts_with('{') {
        let values = serde_json::Deserializer::from_str(text).into_iter();
        values.collect::<Result<_, _>>().map_err(|error| malformed(json_problem(&error)))?
    } else {
        serde_saphyr::from_multiple(text).map_err(|error| malformed(yaml_problem(&error)))?
    };
    for (index, document) in documents.into_iter().enumerate() {
        if !document.is_null() {
            let place = Place { file: name.to_owned(), document: index + 1, item: None };
            Object::add(document, place, objects)?;
        }
    }
    Ok(())
}
