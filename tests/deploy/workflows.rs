//! `.github/workflows`: actions by commit, least permissions, and the versions that the rest of the repository names. GitHub's schema
//! and linters are not here; CONTRIBUTING.md has their commands.

use crate::common::repository;
use serde_json::Value;

/// Name and text of each workflow.
fn workflows() -> Vec<(String, String)> {
    let folder = repository().join(".github/workflows");
    let mut found: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|it| it.unwrap().path())
        .map(|it| {
            (it.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read_to_string(it).unwrap())
        })
        .collect();
    found.sort();
    assert_eq!(found.iter().map(|it| it.0.as_str()).collect::<Vec<_>>(), ["ci.yml", "release.yml"]);
    found
}

fn parsed(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

#[test]
fn workflows_name_actions_by_commit() {
    let mut count = 0;
    for (name, text) in workflows() {
        for line in text.lines().filter_map(|it| it.trim_start_matches(['-', ' ']).strip_prefix("uses: ")) {
            count += 1;
            let (commit, version) = line.split_once('@').unwrap().1.split_once(" # v").expect(line);
            let is_commit = commit.len() == 40 && commit.bytes().all(|it| it.is_ascii_hexdigit());
            assert!(is_commit && !version.is_empty(), "{name}: {line}");
        }
    }
    assert!(count > 5, "{count}");
}

#[test]
fn workflows_read_only_except_for_the_job_that_publishes() {
    for (name, text) in workflows() {
        let workflow = parsed(&text);
        assert_eq!(workflow["permissions"], serde_json::json!({"contents": "read"}), "{name}");
        for (job, content) in workflow["jobs"].as_object().unwrap() {
            let may_write =
                content["permissions"].as_object().is_some_and(|it| it.values().any(|it| it == "write"));
            let publishes = name == "release.yml" && job == "publish";
            assert_eq!(may_write, publishes, "{name}: {job}");
            assert!(!publishes || content["environment"] == "release", "a person approves what is published");
        }
        let is_comment = |it: &str| it.trim_start().starts_with('#');
        let code: String = text.lines().filter(|it| !is_comment(it)).collect();
        assert!(!code.contains("secrets."), "{name} needs no secret");
        assert!(!code.contains("pull_request_target"), "{name} runs no code of a fork with rights");
    }
}

#[test]
fn workflows_use_the_compiler_of_the_image() {
    let image = std::fs::read_to_string(repository().join("deploy/Dockerfile")).unwrap();
    for (name, text) in workflows() {
        let version = parsed(&text)["env"]["RUST_VERSION"].as_str().unwrap().to_owned();
        let minor = version.rsplit_once('.').unwrap().0;
        assert!(image.contains(&format!("/rust:{minor}-slim-")), "{name}: {version}");
    }
}
