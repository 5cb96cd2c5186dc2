//! Completions and manual pages.

use std::process::Command;

fn run(words: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_kubectl-mig")).args(words).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{words:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Candidates without their help, and the directive.
fn candidates(words: &[&str]) -> (Vec<String>, String) {
    let output = run(&[&["completion", "kubectl", "--"], words].concat());
    let mut lines: Vec<String> = output.lines().map(|it| it.split('\t').next().unwrap().to_owned()).collect();
    let directive = lines.pop().unwrap();
    (lines, directive)
}

#[test]
fn each_shell_gets_a_script_that_knows_the_subcommands() {
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let script = run(&["completion", shell]);
        for word in ["kubectl-mig", "convert", "completion", "get"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn bash_where_it_is_installed_completes_with_the_script() {
    let script = run(&["completion", "bash"]);
    let test = format!(
        "{script}\nCOMP_WORDS=(kubectl-mig get no); COMP_CWORD=2; name=$(complete -p kubectl-mig | sed 's/.*-F \\([^ ]*\\).*/\\1/'); \
         \"$name\" kubectl-mig no get; echo \"${{COMPREPLY[*]}}\""
    );
    let Ok(output) = Command::new("bash").args(["-c", &test]).output() else { return };
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "nodes", "{output:?}");
}

#[test]
fn kubectl_gets_candidates_for_the_last_word() {
    let (subcommands, directive) = candidates(&[""]);
    assert!(
        ["convert", "get", "man"].iter().all(|it| subcommands.iter().any(|known| known == it)),
        "{subcommands:?}"
    );
    assert_eq!(directive, ":4");
    assert_eq!(
        candidates(&["get", ""]),
        (["nodes", "gpus", "claims"].map(str::to_owned).into(), ":4".to_owned())
    );
    assert_eq!(candidates(&["get", "no"]).0, ["nodes"]);
    assert_eq!(candidates(&["get", "--output", ""]).0, ["table", "wide", "json"]);
    assert_eq!(candidates(&["get", "-o", "w"]).0, ["wide"]);
    assert_eq!(candidates(&["get", "nodes", "--wa"]).0, ["--watch"]);
    assert_eq!(candidates(&["get", "--from", ""]), (vec![], ":0".to_owned()), "a file");
    assert_eq!(candidates(&["get", "--kubeconfig", ""]), (vec![], ":0".to_owned()), "a file");
    assert_eq!(candidates(&["get", "--context", "x", "no"]).0, ["nodes"]);
    assert_eq!(candidates(&["unknown", ""]).1, ":4");
    let described = run(&["completion", "kubectl", "--", "get", "--wat"]);
    assert!(described.starts_with("--watch\tPrint again"), "{described}");
}

#[test]
fn the_script_for_kubectl_calls_this_program() {
    let script = run(&["completion", "kubectl"]);
    assert!(script.starts_with("#!/bin/sh\n"), "{script}");
    assert!(script.ends_with("exec kubectl-mig completion kubectl -- \"$@\"\n"), "{script}");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubectl_complete-mig");
    std::fs::write(&path, script).unwrap();
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_kubectl-mig")).parent().unwrap();
    let output = Command::new("/bin/sh").arg(path).args(["get", "no"]).env("PATH", program).output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap().lines().next().unwrap().split('\t').next(),
        Some("nodes")
    );
}

#[test]
fn manual_pages_are_made_from_the_command_line() {
    let page = run(&["man"]);
    assert!(page.contains(".TH kubectl-mig 1") && page.contains("get"), "{page}");
    let directory = tempfile::tempdir().unwrap();
    run(&["man", "--directory", directory.path().to_str().unwrap()]);
    let mut pages: Vec<String> = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .collect();
    pages.sort();
    for page in ["kubectl-mig.1", "kubectl-mig-get.1", "kubectl-mig-convert.1"] {
        assert!(pages.iter().any(|it| it == page), "{pages:?}");
    }
    run(&["man", "--directory", directory.path().join("new/man1").to_str().unwrap()]);
    assert!(directory.path().join("new/man1/kubectl-mig.1").is_file(), "the directory is created");
    let file = directory.path().join("kubectl-mig.1");
    let missing = Command::new(env!("CARGO_BIN_EXE_kubectl-mig"))
        .args(["man", "--directory", file.to_str().unwrap()])
        .output();
    assert_eq!(missing.unwrap().status.code(), Some(2));
}
