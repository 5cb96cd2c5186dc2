//! Where results go. Nothing is written before everything is converted, and no file is ever half written.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::args::ConvertArgs;
use super::error::ConvertError;
use super::inputs::{Input, Inputs};

/// Where the results of one call go.
#[derive(Debug)]
pub(super) enum Destination {
    /// All to standard output.
    Stdout,
    /// All to one file.
    File(PathBuf),
    /// Each to a file, in the order of the inputs.
    Files(Vec<PathBuf>),
}

impl Destination {
    /// What the command line says, for these inputs.
    pub(super) fn of(args: &ConvertArgs, inputs: &Inputs) -> Result<Self, ConvertError> {
        if args.in_place {
            let paths = inputs.files.iter().map(|it| it.path.clone().ok_or(it));
            return paths.collect::<Result<_, _>>().map(Self::Files).map_err(|_| {
                ConvertError::Output(
                    "`--in-place` cannot replace standard input; remove the flag or name a file".to_owned(),
                )
            });
        }
        let Some(path) = args.output.as_deref().filter(|it| it.as_os_str() != "-") else {
            return Ok(Self::Stdout);
        };
        let several = inputs.directory || inputs.files.len() > 1;
        let manifest = path.extension().is_some_and(|it| it == "yaml" || it == "yml" || it == "json");
        let is_file =
            fs::metadata(path).is_ok_and(|it| !it.is_dir()) || (!path.is_dir() && (manifest || !several));
        if is_file { Ok(Self::File(path.to_owned())) } else { mirror(path, &inputs.files).map(Self::Files) }
    }

    /// Whether all results become one stream.
    pub(super) fn is_stream(&self) -> bool {
        !matches!(self, Self::Files(_))
    }
}

/// A file below a directory for each input.
fn mirror(directory: &Path, files: &[Input]) -> Result<Vec<PathBuf>, ConvertError> {
    let mut paths = BTreeSet::new();
    let mut targets = Vec::new();
    for file in files {
        if file.path.is_none() {
            let why = "standard input has no name in a directory; write it with `-o FILE`";
            return Err(ConvertError::Output(why.to_owned()));
        }
        let path = directory.join(&file.relative);
        if !paths.insert(path.clone()) {
            let why = format!(
                "two inputs would be written to `{}`, one of them `{}`; convert a common parent directory with `-R`, or use \
                 `--in-place`",
                path.display(),
                file.name
            );
            return Err(ConvertError::Output(why));
        }
        targets.push(path);
    }
    Ok(targets)
}

/// Joins texts to one stream of documents.
pub(super) fn joined<'t>(texts: impl Iterator<Item = &'t str>) -> String {
    let mut out = String::new();
    for text in texts {
        // A byte order mark is allowed at the start of a stream only.
        let text = if out.is_empty() { text } else { text.trim_start_matches('\u{feff}') };
        if text.trim().is_empty() {
            continue;
        }
        if !out.is_empty() {
            if !out.ends_with('\n') {
                out.push('\n');
            }
            if text.starts_with('%') {
                // A directive is one only behind the end of a document.
                out.push_str("...\n");
            } else if !text.starts_with("---") {
                out.push_str("---\n");
            }
        }
        out.push_str(text);
    }
    out
}

/// Writes to standard output.
pub(super) fn print(text: &str) -> Result<(), ConvertError> {
    let failed = |source| ConvertError::Io { operation: "write", path: "standard output".to_owned(), source };
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(failed)
}

/// A file that is written beside the one that it will replace.
struct Staged<'p> {
    path: &'p Path,
    /// `None` for what cannot be replaced, such as a device: it is written directly.
    beside: Option<(PathBuf, PathBuf)>,
    text: &'p str,
}

/// Writes all files or none: first each beside its place, so that a full disk costs no manifest, then moves all of them.
pub(super) fn write(files: &[(&Path, &str)]) -> Result<(), ConvertError> {
    let mut created = Vec::new();
    let mut staged = Vec::new();
    for (path, text) in files {
        match stage(path, text, &mut created) {
            Ok(it) => staged.push(it),
            Err(source) => {
                discard(&staged, &created);
                return Err(ConvertError::Io {
                    operation: "write",
                    path: path.display().to_string(),
                    source,
                });
            }
        }
    }
    for (index, it) in staged.iter().enumerate() {
        let done = match &it.beside {
            Some((beside, real)) => fs::rename(beside, real),
            None => fs::write(it.path, it.text),
        };
        if let Err(source) = done {
            discard(&staged[index..], &[]);
            let path = it.path.display().to_string();
            if index == 0 {
                return Err(ConvertError::Io { operation: "write", path, source });
            }
            let written: Vec<String> =
                staged[..index].iter().map(|it| format!("`{}`", it.path.display())).collect();
            return Err(ConvertError::Partly { path, source, written: written.join(", ") });
        }
    }
    Ok(())
}

fn stage<'p>(path: &'p Path, text: &'p str, created: &mut Vec<PathBuf>) -> io::Result<Staged<'p>> {
    if let Some(parent) = path.parent() {
        create(parent, created)?;
    }
    let old = fs::metadata(path).ok();
    if old.as_ref().is_some_and(fs::Metadata::is_dir) {
        return Err(io::Error::from(io::ErrorKind::IsADirectory));
    }
    if old.as_ref().is_some_and(|it| !it.is_file()) {
        return Ok(Staged { path, beside: None, text });
    }
    // A link stays, and what it leads to is replaced.
    let real = if old.is_some() { fs::canonicalize(path)? } else { path.to_owned() };
    let mut beside = real.clone().into_os_string();
    // No name that kubectl reads as a manifest.
    beside.push(format!(".converting-{}", std::process::id()));
    let beside = PathBuf::from(beside);
    let put = || {
        let mut file = File::create_new(&beside)?;
        file.write_all(text.as_bytes())?;
        if let Some(old) = &old {
            file.set_permissions(old.permissions())?;
        }
        file.sync_all()
    };
    put().inspect_err(|_| drop(fs::remove_file(&beside)))?;
    Ok(Staged { path, beside: Some((beside, real)), text })
}

/// Creates a directory and its parents, and notes those that did not exist.
fn create(directory: &Path, created: &mut Vec<PathBuf>) -> io::Result<()> {
    let missing: Vec<&Path> =
        directory.ancestors().take_while(|it| !it.as_os_str().is_empty() && !it.exists()).collect();
    for it in missing.into_iter().rev() {
        fs::create_dir(it)?;
        created.push(it.to_owned());
    }
    Ok(())
}

/// Removes what was written beside, and directories that were created for it.
fn discard(staged: &[Staged<'_>], created: &[PathBuf]) {
    for (beside, _) in staged.iter().filter_map(|it| it.beside.as_ref()) {
        let _ = fs::remove_file(beside);
    }
    for directory in created.iter().rev() {
        let _ = fs::remove_dir(directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_one_stream() {
        let texts =
            ["a: 1", "", "---\nb: 2\n", "\u{feff}c: 3\n", "%YAML 1.2\n---\nd: 4\n", "# only a comment\n"];
        let text = joined(texts.into_iter());
        assert_eq!(text, "a: 1\n---\nb: 2\n---\nc: 3\n...\n%YAML 1.2\n---\nd: 4\n---\n# only a comment\n");
        let documents = super::super::tree::parse(&text).unwrap();
        assert_eq!(documents.iter().filter(|it| !it.root.is_null()).count(), 4);
    }

    #[test]
    fn all_files_are_written_or_none() {
        let directory = tempfile::tempdir().unwrap();
        let [old, new, blocked] =
            ["old.yaml", "sub/dir/new.yaml", "blocked.yaml"].map(|it| directory.path().join(it));
        fs::write(&old, "old").unwrap();
        fs::create_dir(&blocked).unwrap();
        let files = [(old.as_path(), "1"), (new.as_path(), "2"), (blocked.as_path(), "3")];
        assert!(matches!(write(&files), Err(ConvertError::Io { operation: "write", .. })));
        assert_eq!(fs::read_to_string(&old).unwrap(), "old");
        assert!(!directory.path().join("sub").exists());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
        write(&files[..2]).unwrap();
        assert_eq!(fs::read_to_string(&old).unwrap(), "1");
        assert_eq!(fs::read_to_string(&new).unwrap(), "2");
    }

    #[test]
    fn a_link_stays_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let [real, link] = ["real.yaml", "link.yaml"].map(|it| directory.path().join(it));
        fs::write(&real, "old").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        write(&[(link.as_path(), "new")]).unwrap();
        assert_eq!(fs::read_to_string(&real).unwrap(), "new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }
}
