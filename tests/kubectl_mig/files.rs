//! `kubectl mig convert` on several files, directories and kustomizations.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use crate::{convert, text};

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: NAME}\nspec:\n  containers:\n  - name: c\n    image: x\n    resources: {limits: \
                   {nvidia.com/gpu: 1}}\n";

const DEPLOYMENT: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: NAME}\nspec:\n  selector: {matchLabels: {a: b}}\n  \
                          template:\n    metadata: {labels: {a: b}}\n    spec:\n      containers:\n      - name: c\n        image: x\n        \
                          resources: {limits: {nvidia.com/mig-1g.5gb: 1}}\n";

fn pod(name: &str) -> String {
    POD.replace("NAME", name)
}

fn deployment(name: &str) -> String {
    DEPLOYMENT.replace("NAME", name)
}

/// A directory with files.
fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    directory
}

/// All files below a directory.
fn files(directory: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![directory.to_owned()];
    while let Some(it) = open.pop() {
        for child in std::fs::read_dir(it).unwrap() {
            let path = child.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(directory).unwrap().to_str().unwrap().to_owned();
                found.insert(name, std::fs::read_to_string(path).unwrap());
            }
        }
    }
    found
}

/// Remarks without line and document, which a conversion moves.
fn said(output: &Output) -> Vec<String> {
    let text = text(&output.stderr);
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| {
            let parts: Vec<&str> = line.splitn(4, ':').collect();
            let [file, _, severity, rest] = parts[..] else { panic!("{line}") };
            format!("{file}:{severity}: {}", rest.split_once(", ").unwrap().1)
        })
        .collect();
    lines.sort();
    lines
}

#[test]
fn a_directory_is_read_as_kubectl_reads_it() {
    let (b, c, d) = (pod("b"), pod("c"), pod("d"));
    let names = [("b.yml", b.as_str()), ("a.txt", "not: {{ yaml"), ("sub/d.yaml", &d), ("c.json", &c)];
    let directory = directory(&names);
    let path = directory.path().to_str().unwrap();
    let done = convert(&["-f", path], "");
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let out = text(&done.stdout);
    let order: Vec<&str> = out.lines().filter_map(|it| it.strip_prefix("metadata: {name: ")).collect();
    assert_eq!(order, ["b}", "c}"]);
    assert_eq!(out.matches("kind: ResourceClaimTemplate\n").count(), 1, "one stream has one template\n{out}");
    assert_eq!(out.matches("---\n").count(), 2, "{out}");

    let done = convert(&["-f", path, "-R"], "");
    assert!(text(&done.stdout).contains("{name: d}"));
    // Each file once, whatever names it.
    let twice = convert(&["-f", path, "-f", directory.path().join("b.yml").to_str().unwrap()], "");
    assert_eq!(text(&twice.stdout).matches("{name: b}").count(), 1);
    let empty = tempfile::tempdir().unwrap();
    let none = convert(&["-f", empty.path().to_str().unwrap()], "");
    assert_eq!(none.status.code(), Some(2));
    assert!(text(&none.stderr).contains("no *.yaml, *.yml or *.json"), "{}", text(&none.stderr));
}

#[test]
fn a_file_and_standard_input_become_one_stream() {
    let directory = directory(&[("a.yaml", &pod("a"))]);
    let path = directory.path().join("a.yaml");
    let out = directory.path().join("all.yaml");
    let done = convert(&["-f", path.to_str().unwrap(), "-f", "-", "-o", out.to_str().unwrap()], &pod("b"));
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let text = std::fs::read_to_string(out).unwrap();
    let second = "\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: b}";
    assert!(text.contains("{name: a}") && text.contains(second), "{text}");
}

#[test]
fn an_output_directory_mirrors_the_input_and_a_second_run_says_the_same() {
    let shared = pod("shared").replace("nvidia.com/gpu: 1", "nvidia.com/gpu: 1, nvidia.com/gpumem: 3000");
    let pinned =
        pod("pinned").replace("spec:", "spec:\n  nodeSelector: {nvidia.com/mig.config: all-disabled}");
    let input = directory(&[
        ("a.yaml", &pod("a")),
        ("sub/a.yaml", &shared),
        ("sub/deep/b.yaml", &pinned),
        ("none.yaml", "# only a comment\n"),
    ]);
    let work = tempfile::tempdir().unwrap();
    let before = files(input.path());
    let [first, second] = ["first", "second"].map(|it| work.path().join(it));
    let run = |from: &Path, to: &Path| {
        convert(&["-R", "-f", from.to_str().unwrap(), "-o", to.to_str().unwrap()], "")
    };
    let one = run(input.path(), &first);
    assert_eq!(one.status.code(), Some(1), "{}", text(&one.stderr));
    let written = files(&first);
    assert_eq!(written.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    assert_eq!(files(input.path()), before, "the input is unchanged");
    for name in ["a.yaml", "sub/deep/b.yaml"] {
        assert!(written[name].contains("kind: ResourceClaimTemplate"), "each file can be applied by itself");
    }
    assert_eq!(written["sub/a.yaml"], before["sub/a.yaml"]);
    let shown = text(&one.stderr);
    let wanted = "/sub/a.yaml:8: left as it is: document 1, Pod shared, \
                  spec.containers[0].resources.limits[nvidia.com/gpumem]: ";
    assert!(shown.contains(wanted), "{shown}");

    let two = run(&first, &second);
    assert_eq!(two.status.code(), Some(1));
    assert_eq!(files(&second), written);
    let without = |output: &Output, from: &Path| {
        said(output).iter().map(|it| it.replace(from.to_str().unwrap(), "")).collect::<Vec<_>>()
    };
    assert_eq!(without(&two, &first), without(&one, input.path()));
}

#[test]
fn nothing_is_written_unless_all_can_be() {
    let input = directory(&[
        ("a.yaml", &pod("a")),
        ("b.yaml", "a: ["),
        ("c.yaml", "{{- if .x }}\nkind: Pod\n{{- end }}\n"),
    ]);
    let before = files(input.path());
    let path = input.path().to_str().unwrap();
    let out = input.path().join("out");
    for arguments in [vec!["--in-place"], vec!["-o", out.to_str().unwrap()], vec![]] {
        let done = convert(&[&["-f", path], &arguments[..]].concat(), "");
        assert_eq!(done.status.code(), Some(2));
        assert!(done.stdout.is_empty());
        let shown = text(&done.stderr);
        assert!(shown.contains("b.yaml: line") && shown.contains("c.yaml: line"), "all of them\n{shown}");
        assert_eq!(files(input.path()), before);
    }
}

#[test]
fn files_are_replaced_in_place() {
    let input = directory(&[("a.yaml", &pod("a")), ("b.yaml", "apiVersion: v1\nkind: Service\n")]);
    let time = |name: &str| std::fs::metadata(input.path().join(name)).unwrap().modified().unwrap();
    let (a, b) = (time("a.yaml"), time("b.yaml"));
    let path = input.path().to_str().unwrap();
    assert_eq!(convert(&["-f", path, "--in-place"], "").status.code(), Some(0));
    let once = files(input.path());
    assert!(once["a.yaml"].contains("resourceClaims:") && once.len() == 2);
    assert!(time("a.yaml") > a && time("b.yaml") == b, "what does not change is not touched");
    assert_eq!(convert(&["-f", path, "--in-place"], "").status.code(), Some(0));
    assert_eq!(files(input.path()), once);
    assert_eq!(convert(&["-f", "-", "--in-place"], &pod("a")).status.code(), Some(2));
    assert_eq!(convert(&["-f", path, "--in-place", "-o", "x"], "").status.code(), Some(2));
}

#[test]
fn inputs_that_would_be_written_to_one_file_are_refused() {
    let input = directory(&[("x/a.yaml", &pod("a")), ("y/a.yaml", &pod("b"))]);
    let [x, y, out] = ["x", "y", "out"].map(|it| input.path().join(it).to_str().unwrap().to_owned());
    let done = convert(&["-f", &x, "-f", &y, "-o", &out], "");
    assert_eq!(done.status.code(), Some(2));
    assert!(text(&done.stderr).contains("two inputs would be written to"), "{}", text(&done.stderr));
    assert!(!Path::new(&out).exists());
    assert_eq!(convert(&["-f", &x, "-f", "-", "-o", &out], "").status.code(), Some(2));
}

const BASE: &str = "resources: [a.yaml, b.yaml]\n";
const OVERLAY: &str = "\
resources: [../base, c.yaml]
patches:
- path: patch.yaml
- target: {kind: Deployment, name: b}
  patch: |-
    - op: add
      path: /metadata/annotations
      value: {a: b}
- target: {kind: Deployment, name: b}
  patch: |-
    - op: add
      path: /spec/template/spec/containers/0/resources/limits/nvidia.com~1gpu
      value: 1
";
const PATCH: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: a}
spec:
  selector: {matchLabels: {a: b}}
  template:
    spec:
      containers:
      - name: c
        image: y
        resources: {limits: {nvidia.com/mig-1g.5gb: 2}}
";

/// A base with two deployments, and an overlay with a third, a strategic-merge patch and two JSON patches.
fn kustomization() -> tempfile::TempDir {
    directory(&[
        ("base/kustomization.yaml", BASE),
        ("base/a.yaml", &deployment("a")),
        ("base/b.yaml", &deployment("b")),
        ("overlay/kustomization.yaml", OVERLAY),
        ("overlay/c.yaml", &deployment("c")),
        ("overlay/patch.yaml", PATCH),
    ])
}

#[test]
fn patches_of_a_kustomization_stay_and_its_files_share_templates() {
    let input = kustomization();
    let before = files(input.path());
    let path = input.path().to_str().unwrap();
    let done = convert(&["-R", "-f", path, "--in-place"], "");
    assert_eq!(done.status.code(), Some(1), "{}", text(&done.stderr));
    let after = files(input.path());
    for name in ["overlay/patch.yaml", "overlay/kustomization.yaml", "base/kustomization.yaml"] {
        assert_eq!(after[name], before[name], "{name}");
    }
    let all: String = after.values().map(String::as_str).collect();
    assert_eq!(
        all.matches("kind: ResourceClaimTemplate\n").count(),
        1,
        "kustomize refuses two of one name\n{all}"
    );
    assert!(after["base/a.yaml"].contains("kind: ResourceClaimTemplate\n"));
    let shown = text(&done.stderr);
    assert_eq!(shown.lines().count(), 2, "{shown}");
    for wanted in [
        "overlay/patch.yaml:11: left as it is: document 1, Deployment a, \
         spec.template.spec.containers[0].resources.limits[nvidia.com/mig-1g.5gb]: a patch names",
        "overlay/kustomization.yaml:12: left as it is: document 1, Kustomization, patches[2].patch > [0].path: a patch \
         names nvidia.com/gpu",
    ] {
        assert!(shown.contains(wanted), "{shown}");
    }
    let again = convert(&["-R", "-f", path, "--in-place"], "");
    assert_eq!(said(&again), said(&done));
    assert_eq!(files(input.path()), after);

    // Also where only the file is named.
    let patch = input.path().join("overlay/patch.yaml");
    let one = convert(&["-f", patch.to_str().unwrap()], "");
    assert_eq!(one.status.code(), Some(1));
    assert_eq!(text(&one.stdout), before["overlay/patch.yaml"]);
    // A stream for the API server has objects only.
    let stream = convert(&["-R", "-f", path], "");
    assert!(!text(&stream.stdout).contains("patches:") && !text(&stream.stdout).contains("image: y"));
    assert!(
        text(&stream.stderr)
            .contains("overlay/patch.yaml:1: note: document 1, file, all: not part of the output")
    );
}

#[test]
fn kustomize_builds_what_was_converted() {
    let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS") else {
        return eprintln!("skipped: no KUBEBUILDER_ASSETS");
    };
    let build = |path: &Path| {
        let kubectl = Path::new(&assets).join("kubectl");
        let output = Command::new(kubectl).arg("kustomize").arg(path).output().unwrap();
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    };
    let input = kustomization();
    let overlay = input.path().join("overlay");
    // Without the patches, which name devices and are left.
    let kustomization = "namePrefix: p-\nresources: [../base, c.yaml]\n";
    std::fs::write(overlay.join("kustomization.yaml"), kustomization).unwrap();
    let done = convert(&["-R", "-f", input.path().to_str().unwrap(), "--in-place"], "");
    let shown = text(&done.stderr);
    let wanted = "overlay/kustomization.yaml:1: review: document 1, Kustomization, namePrefix: ";
    assert!(shown.contains(wanted), "{shown}");
    let (built, text) = build(&overlay);
    assert!(built && text.contains("resourceClaimTemplateName: mig-1g.5gb"), "{text}");

    // What the remark says to do, as docs/migrating.md writes it.
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/migrating.md")).unwrap();
    let block = page.split("```yaml\n").find(|it| it.contains("nameReference:")).unwrap();
    std::fs::write(overlay.join("claim-names.yaml"), block.split("```").next().unwrap()).unwrap();
    let kustomization = format!("{kustomization}configurations: [claim-names.yaml]\n");
    std::fs::write(overlay.join("kustomization.yaml"), kustomization).unwrap();
    let (built, text) = build(&overlay);
    assert!(built && text.matches("resourceClaimTemplateName: p-mig-1g.5gb").count() == 3, "{text}");
    let again = convert(&["-R", "-f", input.path().to_str().unwrap()], "");
    assert!(!crate::text(&again.stderr).contains("namePrefix"));
}

#[test]
fn a_file_of_a_directory_that_is_no_object_is_reported_only_where_it_names_devices() {
    let values = "resources:\n  limits:\n    nvidia.com/gpu: 1\n";
    let input = directory(&[("a.yaml", &pod("a")), ("values.yaml", values), ("other.yaml", "a: 1\n")]);
    let path = input.path().to_str().unwrap();
    let done = convert(&["-f", path, "--in-place"], "");
    assert_eq!(done.status.code(), Some(1));
    let shown = text(&done.stderr);
    let wanted = "values.yaml:3: left as it is: document 1, no object, resources.limits[nvidia.com/gpu]: ";
    assert!(shown.lines().count() == 1 && shown.contains(wanted), "{shown}");
    let named = input.path().join("other.yaml");
    assert_eq!(convert(&["-f", named.to_str().unwrap()], "").status.code(), Some(2));
}

#[test]
fn flags_add_kinds_and_classes() {
    let trainer = "apiVersion: example.com/v1\nkind: Trainer\nmetadata: {name: t}\nspec:\n  workers:\n  - template:\n      spec:\n        \
                   containers:\n        - name: c\n          image: x\n          resources: {limits: {nvidia.com/mig-1g.99gb: 1}}\n";
    let flag = "example.com/*/Trainer=spec.workers[*].template.spec";
    let done = convert(&["-f", "-", "--pod-template", flag, "--device-class", "mig-1g.99gb"], trainer);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    assert!(text(&done.stdout).contains("deviceClassName: mig-1g.99gb\n"));
    let done = convert(&["-f", "-", "--pod-template", flag], trainer);
    let shown = text(&done.stderr);
    assert!(
        done.status.code() == Some(1) && shown.contains("no device class has the name mig-1g.99gb"),
        "{shown}"
    );
    let done = convert(&["-f", "-", "--pod-template", "Trainer"], trainer);
    let shown = text(&done.stderr);
    assert!(done.status.code() == Some(2) && shown.contains("API_VERSION/KIND=PATH"), "{shown}");
}
