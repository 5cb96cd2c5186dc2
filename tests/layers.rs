//! The layers of the driver, as its crate documentation declares them, against its imports; circles of files; and of each crate
//! what it must not depend on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::repository;

mod circles;

/// The layer of each module, from the list in the documentation of the crate: the lowest is 0.
fn layers(documentation: &str) -> BTreeMap<String, usize> {
    let list = documentation.split("//! # Layers").nth(1).unwrap().split("//! ```").nth(1).unwrap();
    let lines = list.lines().skip(1).filter_map(|it| it.strip_prefix("//! "));
    let modules = lines.enumerate().flat_map(|(layer, line)| {
        let names = line.split("   ").next().unwrap_or_default();
        names.split_whitespace().map(move |it| (it.to_owned(), layer)).collect::<Vec<_>>()
    });
    modules.collect()
}

/// Modules of the crate that a text names, in code and not in comments.
fn imports(text: &str) -> BTreeSet<String> {
    let code: String =
        text.lines().filter(|it| !it.trim_start().starts_with("//")).map(|it| format!("{it}\n")).collect();
    let mut found = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        let names = after.strip_prefix('{').map_or(after, |it| it.split("};").next().unwrap_or_default());
        let is_list = after.starts_with('{');
        for name in names.split(',').take(if is_list { usize::MAX } else { 1 }) {
            let name = name.trim_start();
            found.insert(name.chars().take_while(|it| it.is_ascii_lowercase() || *it == '_').collect());
        }
    }
    // A macro, or an item of the crate root.
    found.remove("");
    found
}

/// Imports of a module that its layer does not allow.
fn violations(module: &str, text: &str, layers: &BTreeMap<String, usize>) -> Vec<String> {
    let own = layers[module];
    let is_wrong = |it: &String| it != module && layers.get(it).is_none_or(|layer| own <= *layer);
    imports(text).into_iter().filter(is_wrong).map(|it| format!("{module} imports {it}")).collect()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn modules_of_the_driver_import_only_modules_of_lower_layers() {
    let root = repository().join("src/driver");
    let layers = layers(&std::fs::read_to_string(root.join("lib.rs")).unwrap());
    let mut wrong = Vec::new();
    for file in sources(&root) {
        let inside = file.strip_prefix(&root).unwrap();
        let module = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        let is_test = inside.iter().any(|it| it == "tests" || it == "tests.rs");
        if ["lib", "main"].contains(&module) || is_test {
            continue;
        }
        assert!(layers.contains_key(module), "the list of layers in src/driver/lib.rs lacks {module}");
        let text = std::fs::read_to_string(&file).unwrap();
        wrong.extend(
            violations(module, &text, &layers).into_iter().map(|it| format!("{}: {it}", inside.display())),
        );
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn an_import_against_the_order_is_found() {
    let layers =
        layers("//! # Layers\n//!\n//! ```text\n//! nvml disk    below\n//! claim        above\n//! ```\n");
    assert_eq!(violations("nvml", "use crate::claim::Claims;\n", &layers), ["nvml imports claim"]);
    assert_eq!(violations("nvml", "let it = crate::disk::read();\n", &layers), ["nvml imports disk"]);
    assert_eq!(violations("nvml", "use crate::{claim, nvml::Code};\n", &layers), ["nvml imports claim"]);
    assert_eq!(violations("nvml", "use crate::unknown::It;\n", &layers), ["nvml imports unknown"]);
    assert!(violations("claim", "use crate::nvml::Code;\nuse crate::claim::Plan;\n", &layers).is_empty());
    assert!(violations("nvml", "// see crate::claim\n", &layers).is_empty());
}

#[test]
fn files_of_a_crate_do_not_use_each_other_in_a_circle() {
    for of in [
        "src/model",
        "src/models",
        "src/allocator",
        "src/client",
        "src/controller",
        "src/driver",
        "src/jsonpath",
        "src/kubectl-mig",
        "src/telemetry",
        "tests/kube-sim/src",
        "tests/nvml-sim/src",
        "tests/fault-shim/src",
        "examples/sandbox",
    ] {
        assert_eq!(circles::circles(&repository().join(of)), [""; 0], "{of}");
    }
}

/// What cargo prints about this workspace.
fn cargo(arguments: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    let output =
        command.args(arguments).args(["--locked", "--offline"]).current_dir(repository()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Libraries and programs of the workspace of which Cargo.toml says that they have no unit tests.
#[test]
fn a_target_whose_tests_are_not_built_has_none() {
    let output = cargo(&["metadata", "--no-deps", "--format-version", "1"]);
    let metadata: serde_json::Value = serde_json::from_str(&output).unwrap();
    let targets =
        metadata["packages"].as_array().unwrap().iter().flat_map(|it| it["targets"].as_array().unwrap());
    let has_code =
        |it: &serde_json::Value| ["lib", "rlib", "cdylib", "bin"].iter().any(|kind| it["kind"][0] == *kind);
    let mut seen = 0;
    for target in targets.filter(|it| it["test"] == false && has_code(it)) {
        let root = Path::new(target["src_path"].as_str().unwrap());
        let folder = root.parent().unwrap();
        // Beside a library, a program has one file.
        let is_alone = target["kind"][0] == "bin" && folder.join("lib.rs").exists();
        let files = if is_alone { vec![root.to_owned()] } else { sources(folder) };
        let inside = |file: &PathBuf| !file.strip_prefix(folder).unwrap().starts_with("tests");
        for file in files.into_iter().filter(inside) {
            let text = std::fs::read_to_string(&file).unwrap();
            let has_tests = ["#[test]", "#[cfg(test)]", "::test]"].iter().any(|it| text.contains(it));
            assert!(
                !has_tests,
                "{}: its tests do not run: remove `test = false` from Cargo.toml",
                file.display()
            );
        }
        seen += 1;
    }
    assert!(seen > 0);
}

/// Crates that a crate needs to run, with those that these need.
fn dependencies(of: &str) -> BTreeSet<String> {
    let text = cargo(&["tree", "--edges", "normal", "--prefix", "none", "-p", of]);
    text.lines().filter_map(|it| it.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn a_crate_depends_on_nothing_that_its_layer_must_not_know() {
    for (of, without) in [
        ("mig-model", &["tokio", "kube", "kube-client", "tonic", "nvml-wrapper", "cel", "mig-models"][..]),
        ("mig-models", &["mig-model", "k8s-openapi", "tokio", "nvml-wrapper"]),
        ("dra-allocator", &["tokio", "kube", "kube-client", "tonic", "nvml-wrapper"]),
        ("kubectl-mig", &["nvml-wrapper", "tonic", "dra-driver-mig"]),
        ("mig-telemetry", &["kube", "kube-client", "nvml-wrapper", "mig-model"]),
        ("mig-client", &["nvml-wrapper", "tonic", "mig-model"]),
        ("mig-controller", &["nvml-wrapper", "tonic", "dra-driver-mig", "kube-sim"]),
        ("dra-driver-mig", &["cel", "kubectl-mig", "mig-models", "nvml-sim", "kube-sim"]),
    ] {
        let found = dependencies(of);
        assert!(found.contains(of), "{found:?}");
        for it in without {
            assert!(!found.contains(*it), "{of} depends on {it}");
        }
    }
}
