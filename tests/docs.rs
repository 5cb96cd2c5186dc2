//! The documentation knows what the program says, and its links lead somewhere.
#![allow(clippy::unwrap_used, reason = "what fails in a test is the test")]

use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Without line breaks, quotes and emphasis: prose and source break their lines at different words.
fn plain(text: &str) -> String {
    text.replace('`', "").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The texts of `#[error("…")]` in a source file.
fn error_texts(source: &str) -> Vec<String> {
    let mut texts = Vec::new();
    for after in source.split("#[error(").skip(1) {
        let Some(literal) = after.trim_start().strip_prefix('"') else { continue };
        let mut text = String::new();
        let mut escaped = false;
        for it in literal.chars() {
            match it {
                '"' if !escaped => break,
                '\\' if !escaped => escaped = true,
                // A line end behind a backslash is none, and the white space of the next line neither.
                '\n' if escaped => escaped = false,
                it => {
                    text.push(it);
                    escaped = false;
                }
            }
        }
        texts.push(text);
    }
    texts
}

/// What stands between the placeholders, without their neighbours' punctuation.
fn phrases(text: &str) -> Vec<String> {
    let mut phrases = Vec::new();
    for piece in text.split('{') {
        let piece = piece.split_once('}').map_or(piece, |(_, after)| after);
        for part in piece.split(';') {
            phrases.push(plain(part).trim_matches(|it: char| !it.is_alphanumeric()).to_owned());
        }
    }
    phrases.retain(|it| it.len() >= 9);
    phrases
}

#[test]
fn every_error_that_a_user_can_see_is_in_the_troubleshooting_page() {
    let page = plain(&std::fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap());
    let mut count = 0;
    for file in files(&root().join("src"), ".rs") {
        // `convert` is a tool of its own, and its messages say what to do.
        if file.starts_with(root().join("src/convert")) {
            continue;
        }
        for text in error_texts(&std::fs::read_to_string(&file).unwrap()) {
            let phrases = phrases(&text);
            count += usize::from(!phrases.is_empty());
            assert!(
                phrases.is_empty() || phrases.iter().any(|it| page.contains(it.as_str())),
                "docs/troubleshooting.md says nothing of {text:?} in {}",
                file.display()
            );
        }
    }
    assert!(count > 30, "{count}");
}

#[test]
fn phrases_are_what_a_message_always_has() {
    assert_eq!(phrases("device `{device}` of ResourceClaim {0} overlaps {held}, which"), ["of ResourceClaim"]);
    assert_eq!(phrases("{0}"), [""; 0]);
    assert_eq!(error_texts("#[error(\n    \"a \\\n     b `{c}`\"\n)]"), ["a      b `{c}`"]);
}

/// Targets of links in a page, without those to other sites.
fn links(page: &str) -> Vec<&str> {
    let targets = page.split("](").skip(1).filter_map(|it| it.split(')').next());
    targets.filter(|it| !it.contains("://")).collect()
}

/// The anchor that a heading has on a page.
fn anchor(heading: &str) -> String {
    let kept: String =
        heading.to_lowercase().chars().filter(|it| it.is_alphanumeric() || " -_".contains(*it)).collect();
    kept.trim().replace(' ', "-")
}

#[test]
fn links_lead_somewhere() {
    let mut pages = files(&root().join("docs"), ".md");
    pages.extend(files(&root().join("examples"), ".md"));
    pages.push(root().join("README.md"));
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in links(&text) {
            let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            assert!(target.exists(), "{}: {link}", page.display());
            if !fragment.is_empty() {
                let target = std::fs::read_to_string(&target).unwrap();
                let mut headings = target.lines().filter(|it| it.starts_with('#'));
                assert!(
                    headings.any(|it| anchor(it.trim_start_matches('#')) == fragment),
                    "{}: {link}",
                    page.display()
                );
            }
        }
    }
}
