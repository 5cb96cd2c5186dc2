//! Manifests: YAML files with one or more objects, as `kubectl apply -f` takes them.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_saphyr::{MessageFormatter, Spanned, UserMessageFormatter};

/// Larger files are refused.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// An object with its place.
#[derive(Debug, Clone)]
pub struct Document {
    /// The file.
    pub file: PathBuf,
    /// Number of the document in the file, from 1.
    pub number: usize,
    /// The object.
    pub object: Value,
    /// First line of the document.
    first_line: usize,
    lines: Lines,
}

/// What is wrong with a manifest, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The file.
    pub file: PathBuf,
    /// Line in the file, from 1.
    pub line: usize,
    /// Number of the document in the file, from 1.
    pub document: usize,
    /// What is wrong.
    pub why: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, document, why } = self;
        write!(f, "{}:{line} (document {document}): {why}", file.display())
    }
}

impl Document {
    /// A mistake in this document, at the field with this path.
    #[must_use]
    pub fn mistake(&self, field: Option<&str>, why: impl Into<String>) -> Mistake {
        let line = field.and_then(|path| self.lines.of(path)).unwrap_or(0);
        let line = self.first_line + line.max(1) - 1;
        Mistake { file: self.file.clone(), line, document: self.number, why: why.into() }
    }
}

/// The objects of a file, or of all `.yaml`, `.yml` and `.json` files of a directory and those below it, sorted by path.
///
/// # Errors
/// When something cannot be read, or a document is not an object with a kind.
pub fn load(path: &Path) -> anyhow::Result<Vec<Value>> {
    let (documents, mistakes) = read(path)?;
    match mistakes.first() {
        Some(mistake) => bail!("{mistake}"),
        None => Ok(documents.into_iter().map(|document| document.object).collect()),
    }
}

/// The same with the places of the objects, and with all mistakes.
///
/// # Errors
/// When a file or directory cannot be read.
pub fn read(path: &Path) -> anyhow::Result<(Vec<Document>, Vec<Mistake>)> {
    let (mut documents, mut mistakes) = (Vec::new(), Vec::new());
    for file in files(path)? {
        let reading = || format!("reading {}", file.display());
        let size = std::fs::metadata(&file).with_context(reading)?.len();
        if size > MAX_FILE_BYTES {
            bail!("{} is larger than the limit of {} MiB", file.display(), MAX_FILE_BYTES >> 20);
        }
        let text = std::fs::read_to_string(&file).with_context(reading)?;
        let (good, bad) = split(&file, &text);
        documents.extend(good);
        mistakes.extend(bad);
    }
    Ok((documents, mistakes))
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
    let (documents, mistakes) = split(Path::new("manifest"), text);
    match mistakes.first() {
        Some(mistake) => bail!("{mistake}"),
        None => Ok(documents.into_iter().map(|document| document.object).collect()),
    }
}

fn split(file: &Path, text: &str) -> (Vec<Document>, Vec<Mistake>) {
    let (mut documents, mut mistakes) = (Vec::new(), Vec::new());
    for (index, (first_line, text)) in texts(text).into_iter().enumerate() {
        let document = Document {
            file: file.to_owned(),
            number: index + 1,
            object: Value::Null,
            first_line,
            lines: serde_saphyr::from_str(&text).unwrap_or_default(),
        };
        let object = match serde_saphyr::from_str::<Value>(&text) {
            Ok(object) => object,
            Err(error) => {
                let line = error.location().and_then(|at| usize::try_from(at.line()).ok()).unwrap_or(1);
                let why = UserMessageFormatter
                    .format_message(error.without_snippet())
                    .replace(char::is_control, " ");
                let line = first_line + line.max(1) - 1;
                mistakes.push(Mistake { line, ..document.mistake(None, why) });
                continue;
            }
        };
        let kind = object["kind"].as_str().unwrap_or("");
        match object {
            Value::Null => {}
            Value::Object(_) if kind == "List" => {
                let items = object["items"].as_array().cloned().unwrap_or_default();
                for (index, object) in items.into_iter().enumerate() {
                    let lines = document.lines.below(&format!("items[{index}]"));
                    documents.push(Document { object, lines, ..document.clone() });
                }
            }
            Value::Object(_) if !kind.is_empty() => documents.push(Document { object, ..document }),
            _ => mistakes.push(document.mistake(None, "not an object with a kind")),
        }
    }
    (documents, mistakes)
}

/// The documents of a text with their first lines. A line that begins with `---` or `...` ends one wherever it stands in YAML.
fn texts(text: &str) -> Vec<(usize, String)> {
    let mut texts: Vec<(usize, String)> = vec![(1, String::new())];
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let marks = |marker: &str| {
            line.strip_prefix(marker)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
        };
        if marks("---") {
            texts.push((index + 1, String::new()));
        }
        if let Some((_, text)) = texts.last_mut() {
            text.push_str(line);
        }
        if marks("...") {
            texts.push((index + 2, String::new()));
        }
    }
    let has_content = |text: &str| {
        let lines = text.lines().map(str::trim).filter(|it| !matches!(*it, "---" | "..."));
        lines.into_iter().any(|line| !line.is_empty() && !line.starts_with('#'))
    };
    texts.retain(|(_, text)| has_content(text));
    texts
}

/// The lines of the fields of a document, as a tree.
#[derive(Debug, Clone, Default)]
struct Lines(Vec<(String, usize, Lines)>);

impl Lines {
    /// The line of the deepest field on the way to a path such as `spec.containers[0].image`.
    fn of(&self, path: &str) -> Option<usize> {
        let (line, rest, below) = self.step(path)?;
        Some(below.of(rest).unwrap_or(line))
    }

    /// The lines below a path.
    fn below(&self, path: &str) -> Self {
        match self.step(path) {
            Some((_, "", below)) => below.clone(),
            Some((_, rest, below)) => below.below(rest),
            None => Self::default(),
        }
    }

    fn step<'p>(&self, path: &'p str) -> Option<(usize, &'p str, &Self)> {
        let path = path.strip_prefix('.').unwrap_or(path);
        let rest =
            |key: &str| path.strip_prefix(key).filter(|it| it.is_empty() || it.starts_with(['.', '[']));
        // Keys may contain dots, so the longest that fits is the right one.
        let fitting = self.0.iter().filter_map(|(key, line, below)| Some((key, *line, rest(key)?, below)));
        fitting.max_by_key(|(key, ..)| key.len()).map(|(_, line, rest, below)| (line, rest, below))
    }
}

impl<'de> Deserialize<'de> for Lines {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Lines;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Lines, A::Error> {
                let mut fields = Vec::new();
                while let Some(key) = map.next_key::<Spanned<String>>()? {
                    let line = usize::try_from(key.referenced.line()).unwrap_or(0);
                    fields.push((key.value, line, map.next_value()?));
                }
                Ok(Lines(fields))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Lines, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element::<Spanned<Lines>>()? {
                    let line = usize::try_from(item.referenced.line()).unwrap_or(0);
                    items.push((format!("[{}]", items.len()), line, item.value));
                }
                Ok(Lines(items))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Lines, E> {
                Ok(Lines::default())
            }

            fn visit_i64<E>(self, _: i64) -> Result<Lines, E> {
                Ok(Lines::default())
            }

            fn visit_u64<E>(self, _: u64) -> Result<Lines, E> {
                Ok(Lines::default())
            }

            fn visit_f64<E>(self, _: f64) -> Result<Lines, E> {
                Ok(Lines::default())
            }

            fn visit_str<E>(self, _: &str) -> Result<Lines, E> {
                Ok(Lines::default())
            }

            fn visit_unit<E>(self) -> Result<Lines, E> {
                Ok(Lines::default())
            }
        }

        deserializer.deserialize_any(Fields)
    }
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

    #[test]
    fn a_mistake_has_the_line_and_the_document_and_the_others_are_read() {
        let text = "kind: A\n---\n# note\nkind: B\nx: [1\ny: 2\n---\nkind: C\n--- # last\nnokind: 1\n";
        let (documents, mistakes) = split(Path::new("f.yaml"), text);
        let kinds: Vec<&Value> = documents.iter().map(|it| &it.object["kind"]).collect();
        assert_eq!(kinds, ["A", "C"]);
        let places: Vec<(usize, usize)> = mistakes.iter().map(|it| (it.line, it.document)).collect();
        assert_eq!(places, [(6, 2), (9, 4)], "{mistakes:?}");
        assert_eq!(mistakes[1].to_string(), "f.yaml:9 (document 4): not an object with a kind");
    }

    #[test]
    fn a_field_is_found_by_its_path() {
        let text = "kind: A\n---\nkind: List\nitems:\n- kind: B\n  spec:\n    limits:\n      nvidia.com/gpu: 1\n    list:\n    - a: 1\n      b: 2\n";
        let (documents, _) = split(Path::new("f.yaml"), text);
        let line = |path: &str| documents[1].mistake(Some(path), "").line;
        assert_eq!(line("spec.limits.nvidia.com/gpu"), 8);
        assert_eq!(line("spec.list[0].b"), 11);
        assert_eq!(line("spec.list[0].missing"), 10);
        assert_eq!(line("elsewhere"), 2);
    }
}
