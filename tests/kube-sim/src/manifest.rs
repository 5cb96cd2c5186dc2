//! Manifests: YAML files with one or more objects, as `kubectl apply -f` takes them.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::Value;

/// The objects of a file, or of all `.yaml`, `.yml` and `.json` files of a directory and those below it, sorted by path.
///
/// # Errors
/// When something cannot be read, or a document is not an object with a kind.
pub fn load(path: &Path) -> anyhow::Result<Vec<Value>> {
    let mut objects = Vec::new();
    for file in files(path)? {
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        objects.extend(parse(&text).with_context(|| format!("in {}", file.display()))?);
    }
    Ok(objects)
}

fn files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("reading {}", path.display()))?;
    let mut entries: Vec<PathBuf> = entries.map(|e| Ok(e?.path())).collect::<std::io::Result<_>>()?;
    entries.sort();
    let mut found = Vec::new();
    for entry in entries {
        let manifest = entry.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if entry.is_dir() {
            found.extend(files(&entry)?);
        } else if manifest {
            found.push(entry);
        }
    }
    Ok(found)
}

/// The objects of a text; a `List` is taken apart, an empty document skipped.
///
/// # Errors
/// When the text is not YAML, or a document is not an object with a kind.
pub fn parse(text: &str) -> anyhow::Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    let mut objects = Vec::new();
    for document in documents {
        match document {
            Value::Null => {}
            Value::Object(ref fields) if fields.get("kind").is_some_and(|k| k == "List") => {
                objects.extend(document["items"].as_array().cloned().unwrap_or_default());
            }
            Value::Object(ref fields) if fields.contains_key("kind") => objects.push(document),
            other => bail!("not an object with a kind: {other}"),
        }
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_lists_and_comments_are_taken_apart() {
        let text = "# nothing\n---\nkind: A\nx: 1\n---\nkind: List\nitems:\n- kind: B\n- kind: C\n---\n";
        let kinds: Vec<Value> = parse(text).unwrap().into_iter().map(|o| o["kind"].clone()).collect();
        assert_eq!(kinds, ["A", "B", "C"]);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(parse("- 1\n- 2\n").is_err());
        assert!(parse("kind: [").is_err());
    }
}
