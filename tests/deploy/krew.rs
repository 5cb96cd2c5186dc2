//! The Krew manifest, filled in by the release workflow's own script.

use std::process::Command;

use crate::common::repository;
use serde_json::Value;

const PLATFORMS: [(&str, &str); 4] =
    [("linux", "amd64"), ("linux", "arm64"), ("darwin", "amd64"), ("darwin", "arm64")];
const VERSION: &str = "1.2.3";

fn workflow() -> String {
    std::fs::read_to_string(repository().join(".github/workflows/release.yml")).unwrap()
}

/// The script of a step of the job `publish`.
fn script(step: &str) -> String {
    let workflow: Value = serde_saphyr::from_str(&workflow()).unwrap();
    let steps = workflow["jobs"]["publish"]["steps"].as_array().unwrap();
    steps.iter().find(|it| it["name"] == step).unwrap()["run"].as_str().unwrap().to_owned()
}

fn checksum(path: &std::path::Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

#[test]
fn the_release_workflow_fills_in_the_krew_manifest() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::create_dir_all(path("deploy/krew")).unwrap();
    std::fs::create_dir_all(path("out/files")).unwrap();
    std::fs::copy(repository().join("deploy/krew/mig.yaml"), path("deploy/krew/mig.yaml")).unwrap();
    let archive = |(os, arch): (&str, &str)| format!("kubectl-mig-{VERSION}-{os}-{arch}.tar.gz");
    for platform in PLATFORMS {
        std::fs::write(path("out/files").join(archive(platform)), archive(platform)).unwrap();
    }
    let output = Command::new("bash")
        .args(["-e", "-o", "pipefail", "-c", &script("Fill in the Krew manifest")])
        .current_dir(directory.path())
        .env("VERSION", VERSION)
        .env("GITHUB_SERVER_URL", "https://git.example.com")
        .env("GITHUB_REPOSITORY", "owner/project")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = std::fs::read_to_string(path("out/files/mig.yaml")).unwrap();
    assert!(!text.contains('@') && !text.contains("UNTRIED"), "{text}");
    let manifest: Value = serde_saphyr::from_str(&text).unwrap();
    // What a manifest of Krew has to have (krew.sigs.k8s.io/docs/developer-guide/plugin-manifest).
    assert_eq!(manifest["apiVersion"], "krew.googlecontainertools.github.com/v1alpha2");
    assert_eq!((&manifest["kind"], &manifest["metadata"]["name"]), (&"Plugin".into(), &"mig".into()));
    let spec = &manifest["spec"];
    assert_eq!(spec["version"], format!("v{VERSION}"));
    assert!(spec["shortDescription"].as_str().unwrap().len() <= 50);
    let platforms = spec["platforms"].as_array().unwrap();
    assert_eq!(platforms.len(), PLATFORMS.len());
    for (platform, (os, arch)) in platforms.iter().zip(PLATFORMS) {
        let labels = &platform["selector"]["matchLabels"];
        assert_eq!((labels["os"].as_str(), labels["arch"].as_str()), (Some(os), Some(arch)));
        let file = archive((os, arch));
        assert_eq!(
            platform["uri"],
            format!("https://git.example.com/owner/project/releases/download/v{VERSION}/{file}")
        );
        assert_eq!(platform["sha256"], checksum(&path("out/files").join(file)));
        assert_eq!(platform["bin"], "kubectl-mig");
    }
}

#[test]
fn the_release_workflow_builds_every_archive_that_the_krew_manifest_names() {
    let workflow = workflow();
    assert!(workflow.contains("kubectl-mig-$VERSION-linux-$ARCHITECTURE.tar.gz"));
    for (os, arch) in PLATFORMS {
        let is_built = match os {
            "linux" => workflow.contains(&format!("{{architecture: {arch}, ")),
            _ => {
                workflow.contains("kubectl-mig-$VERSION-darwin-${pair%%:*}.tar.gz")
                    && workflow.contains(&format!(" {arch}:"))
            }
        };
        assert!(is_built, "{os} {arch}");
    }
}
