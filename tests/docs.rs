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

/// The longest text between placeholders in what a message says before its advice: what a reader would search for. `None`
/// where there is nothing to recognise the message by.
fn key_phrase(text: &str) -> Option<String> {
    let problem = text.split(';').next().unwrap_or(text);
    let literal = problem.split('{').map(|it| it.split_once('}').map_or(it, |(_, after)| after));
    let parts = literal.flat_map(|it| it.split(['(', ')', ':', ',']));
    let phrase = |it: &str| plain(it).trim_matches(|it: char| !it.is_alphanumeric()).to_owned();
    parts.map(phrase).max_by_key(String::len).filter(|it| it.len() >= 9)
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
            let Some(phrase) = key_phrase(&text) else { continue };
            count += 1;
            let file = file.display();
            assert!(page.contains(&phrase), "docs/troubleshooting.md says nothing of {phrase:?} in {file}");
        }
    }
    assert!(count > 30, "{count}");
}

#[test]
fn a_key_phrase_is_what_a_message_always_has() {
    let text = "device `{device}` of ResourceClaim {0} overlaps what is `held`; wait";
    assert_eq!(key_phrase(text).as_deref(), Some("overlaps what is held"));
    assert_eq!(key_phrase("{0}"), None);
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

/// True where a page has a heading with this anchor.
fn has_section(page: &str, fragment: &str) -> bool {
    let mut headings = page.lines().filter(|it| it.starts_with('#'));
    headings.any(|it| anchor(it.trim_start_matches('#')) == fragment)
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
                assert!(has_section(&target, fragment), "{}: {link}", page.display());
            }
        }
    }
}

#[test]
fn every_runbook_of_an_alert_is_a_section_of_the_documentation() {
    for file in ["alerts.yaml", "prometheusrule.yaml"] {
        let text = std::fs::read_to_string(root().join("deploy/observability").join(file)).unwrap();
        let runbooks: Vec<&str> =
            text.lines().filter_map(|it| it.trim().strip_prefix("runbook_url: ")).collect();
        assert_eq!(runbooks.len(), text.matches("- alert:").count(), "{file}");
        for runbook in runbooks {
            let (page, fragment) = runbook.split_once('#').unwrap();
            assert!(page.starts_with("docs/"), "{file}: {runbook}");
            let page = std::fs::read_to_string(root().join(page)).unwrap();
            assert!(has_section(&page, fragment), "{file}: {runbook}");
        }
    }
}

/// Texts that ask for a reset of a GPU, or for something that only a reset does.
const RESETS: [&str; 5] = ["--gpu-reset", "reset the GPU", "needs a reset", "reset it", "RESET_REQUIRED"];

fn asks_for_a_reset(text: &str) -> bool {
    RESETS.iter().any(|it| plain(text).contains(it))
}

#[test]
fn every_text_that_asks_for_a_reset_says_that_the_drivers_pod_stops_first() {
    let says = |text: &str| text.contains("mig.dra-driver.dev/deploy=false") || text.contains("#reset-a-gpu");
    let mut count = 0;
    // A table row or a paragraph is read alone.
    let mut pages = files(&root().join("docs"), ".md");
    pages.push(root().join("README.md"));
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        let rows = text.lines().filter(|it| it.starts_with('|'));
        let prose: String =
            text.lines().filter(|it| !it.starts_with('|')).map(|it| format!("{it}\n")).collect();
        for part in rows.map(str::to_owned).chain(prose.split("\n\n").map(str::to_owned)) {
            // What explains and asks for nothing.
            let explains = ["--gpu-reset` is refused", "(needs a reset)"].iter().any(|it| part.contains(it));
            if explains || !asks_for_a_reset(&part) {
                continue;
            }
            count += 1;
            assert!(says(&part), "{}: {part}", page.display());
        }
    }
    for file in ["alerts.yaml", "prometheusrule.yaml"] {
        let text = std::fs::read_to_string(root().join("deploy/observability").join(file)).unwrap();
        for alert in text.split("- alert:").filter(|it| asks_for_a_reset(it)) {
            count += 1;
            assert!(says(alert), "{file}: {alert}");
        }
    }
    assert!(9 < count, "{count}");
}

#[test]
fn the_program_has_one_text_that_says_how_to_reset_a_gpu() {
    for file in files(&root().join("src"), ".rs") {
        let text = std::fs::read_to_string(&file).unwrap();
        let is_its_place = file.ends_with("src/nvml/error.rs");
        // Comments may speak of resets.
        let code: String = text.lines().filter(|it| !it.trim_start().starts_with("//")).collect();
        let asks = ["gpu-reset", "reset the GPU", "reset it", "reload of the NVIDIA driver"];
        let found = asks.iter().filter(|it| code.contains(*it)).count();
        assert!(found == 0 || is_its_place, "{}: use RESET_ADVICE", file.display());
    }
}
