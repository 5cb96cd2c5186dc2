//! The documentation knows what the program says, and its links lead somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::common::repository;

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
    let page = plain(&std::fs::read_to_string(repository().join("docs/troubleshooting.md")).unwrap());
    let mut count = 0;
    for file in files(&repository().join("src"), ".rs") {
        // The messages of `kubectl mig` say what to do themselves, and those of the allocator are the scheduler's.
        if ["src/kubectl-mig", "src/allocator"].iter().any(|it| file.starts_with(repository().join(it))) {
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

/// The lines of a page that are not in a fenced block.
fn prose(page: &str) -> impl Iterator<Item = &str> {
    let mut is_fenced = false;
    page.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_fenced ^= is_fence;
        !is_fenced && !is_fence
    })
}

/// Targets of links in a page, without those to other sites. A reference has its target in a line of its own.
fn links(page: &str) -> Vec<String> {
    let text = prose(page).collect::<Vec<_>>().join("\n");
    let inline = text.split("](").skip(1).filter_map(|it| it.split(')').next());
    let references = text.lines().filter(|it| it.starts_with('[')).filter_map(|it| it.split_once("]: "));
    let targets = inline.chain(references.map(|it| it.1.trim()));
    targets.filter(|it| !it.contains("://")).map(str::to_owned).collect()
}

/// The anchors of a page, as GitHub gives them to headings: the second one of a name ends in `-1`.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let headings = prose(page)
        .filter_map(|it| it.trim_start_matches('#').strip_prefix(' ').filter(|_| it.starts_with('#')));
    headings
        .map(|heading| {
            let kept: String = heading
                .to_lowercase()
                .chars()
                .filter(|it| it.is_alphanumeric() || " -_".contains(*it))
                .collect();
            let name = kept.trim().replace(' ', "-");
            let count = counts.entry(name.clone()).or_default();
            *count += 1;
            if *count == 1 { name } else { format!("{name}-{}", *count - 1) }
        })
        .collect()
}

/// True where a page has a heading with this anchor.
fn has_section(page: &str, fragment: &str) -> bool {
    anchors(page).contains(fragment)
}

/// Every page of documentation in the repository.
fn pages() -> Vec<PathBuf> {
    let folders = ["docs", "examples", "deploy", "tests", ".github"].map(|it| repository().join(it));
    let mut pages: Vec<PathBuf> = folders.iter().flat_map(|it| files(it, ".md")).collect();
    let top = std::fs::read_dir(repository()).unwrap().map(|it| it.unwrap().path());
    pages.extend(top.filter(|it| it.extension().is_some_and(|it| it == "md")));
    pages
}

/// What is wrong with a link of a page, if anything.
fn broken(page: &Path, link: &str) -> Option<String> {
    let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
    let target = if path.is_empty() { page.to_owned() } else { page.parent().unwrap().join(path) };
    if !target.exists() {
        return Some(format!("{}: {link} does not exist", page.display()));
    }
    let has_anchor = || std::fs::read_to_string(&target).is_ok_and(|it| has_section(&it, fragment));
    (!fragment.is_empty() && !has_anchor()).then(|| format!("{}: {link} has no such heading", page.display()))
}

#[test]
fn links_and_anchors_of_every_page_lead_somewhere() {
    let mut count = 0;
    let mut wrong = Vec::new();
    for page in pages() {
        for link in links(&std::fs::read_to_string(&page).unwrap()) {
            count += 1;
            wrong.extend(broken(&page, &link));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count > 100, "{count}");
}

#[test]
fn a_link_to_what_does_not_exist_is_found() {
    let page =
        "# One\n## A `b`, c\n## One\n```\n# no heading [x](no-link)\n```\n[a](#one) [b](#one-1)\n[c]: d.md\n";
    assert_eq!(anchors(page), ["one", "a-b-c", "one-1"].map(str::to_owned).into());
    assert_eq!(links(page), ["#one", "#one-1", "d.md"]);
    let readme = repository().join("README.md");
    assert_eq!(broken(&readme, "docs/concepts.md#terms"), None);
    assert!(broken(&readme, "docs/concepts.md#nothing").is_some());
    assert!(broken(&readme, "docs/nothing.md").is_some());
}

#[test]
fn the_index_has_every_page() {
    let index = repository().join("docs/README.md");
    let listed = links(&std::fs::read_to_string(&index).unwrap());
    for page in files(&repository().join("docs"), ".md").into_iter().filter(|it| *it != index) {
        let name = page.file_name().unwrap().to_string_lossy();
        assert!(listed.iter().any(|it| it.as_str() == name), "docs/README.md does not link {name}");
    }
}

#[test]
fn the_readme_fits_on_a_few_screens() {
    let readme = std::fs::read_to_string(repository().join("README.md")).unwrap();
    assert!(readme.lines().count() <= 200, "{}: move details to docs/", readme.lines().count());
}

/// The long flags of a subcommand and the environment variable of each, from its `--help`.
fn flags(command: &str) -> Vec<(String, Option<String>)> {
    let program = env!("CARGO_BIN_EXE_dra-driver-mig");
    let output = std::process::Command::new(program).args([command, "--help"]).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let options = help.split("\nOptions:\n").nth(1).expect("the options");
    let mut found: Vec<(String, Option<String>)> = Vec::new();
    for line in options.lines() {
        let trimmed = line.trim_start();
        if trimmed.starts_with('-') && line.len() - trimmed.len() <= 6 {
            let long = trimmed.split([' ', ',']).find(|it| it.starts_with("--")).unwrap();
            found.push((long.to_owned(), None));
        }
        if let Some((_, after)) = line.split_once("[env: ") {
            found.last_mut().unwrap().1 = after.split(['=', ']']).next().map(str::to_owned);
        }
    }
    found.retain(|(it, _)| it != "--help");
    found
}

#[test]
fn the_page_of_flags_has_every_flag_and_no_other() {
    let page = std::fs::read_to_string(repository().join("docs/flags.md")).unwrap();
    // `kubectl mig` is another program.
    let page = page.split("\n## kubectl mig\n").next().unwrap();
    let cells = page.lines().filter(|it| it.starts_with('|')).flat_map(|it| it.split('|').take(3));
    let flag =
        |cell: &str| cell.trim().strip_prefix("`--")?.split(['`', ' ']).next().map(|it| format!("--{it}"));
    let documented: BTreeSet<String> = cells.filter_map(flag).collect();
    let mut existing = BTreeSet::new();
    for command in ["node", "check", "inspect", "management-spec"] {
        for (flag, variable) in flags(command) {
            let rule = flag.trim_start_matches('-').to_uppercase().replace('-', "_");
            // The form of the output is a matter of the call, not of the node.
            let has_to = ["node", "check", "management-spec"].contains(&command) && flag != "--output";
            assert!(variable.map_or(!has_to, |it| it == rule), "{command} {flag}: the page says {rule}");
            existing.insert(flag);
        }
    }
    assert!(existing.len() > 30, "{existing:?}");
    assert_eq!(documented, existing);
}

#[test]
fn every_runbook_of_an_alert_is_a_section_of_the_documentation() {
    for file in ["alerts.yaml", "prometheusrule.yaml"] {
        let text = std::fs::read_to_string(repository().join("deploy/observability").join(file)).unwrap();
        let runbooks: Vec<&str> =
            text.lines().filter_map(|it| it.trim().strip_prefix("runbook_url: ")).collect();
        assert_eq!(runbooks.len(), text.matches("- alert:").count(), "{file}");
        for runbook in runbooks {
            let (page, fragment) = runbook.split_once('#').unwrap();
            assert!(page.starts_with("docs/"), "{file}: {runbook}");
            let page = std::fs::read_to_string(repository().join(page)).unwrap();
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
    let mut pages = files(&repository().join("docs"), ".md");
    pages.push(repository().join("README.md"));
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
        let text = std::fs::read_to_string(repository().join("deploy/observability").join(file)).unwrap();
        for alert in text.split("- alert:").filter(|it| asks_for_a_reset(it)) {
            count += 1;
            assert!(says(alert), "{file}: {alert}");
        }
    }
    assert!(9 < count, "{count}");
}

#[test]
fn the_program_has_one_text_that_says_how_to_reset_a_gpu() {
    for file in files(&repository().join("src"), ".rs") {
        let text = std::fs::read_to_string(&file).unwrap();
        let is_its_place = file.ends_with("src/model/call.rs");
        // Comments may speak of resets.
        let code: String = text.lines().filter(|it| !it.trim_start().starts_with("//")).collect();
        let asks = ["gpu-reset", "reset the GPU", "reset it", "reload of the NVIDIA driver"];
        let found = asks.iter().filter(|it| code.contains(*it)).count();
        assert!(found == 0 || is_its_place, "{}: use RESET_ADVICE", file.display());
    }
}
