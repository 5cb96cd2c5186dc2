//! `kubectl mig` as people call it.
#![allow(clippy::unwrap_used, reason = "what fails in a test is the test")]

#[path = "kubectl_mig/files.rs"]
mod files;

#[path = "kubectl_mig/completion.rs"]
mod completion;
#[path = "kubectl_mig/get.rs"]
mod get;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

fn convert(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-mig"));
    command
        .arg("convert")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // One that refuses its arguments may end before it has read this.
    let written = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    assert!(written.is_ok() || !output.status.success(), "it did not read its input: {written:?}");
    output
}

fn data() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/device-plugin.yaml"))
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_exit_status_says_whether_all_is_converted() {
    let done = convert(&["-f", "-"], &data());
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    assert!(text(&done.stdout).contains("resourceClaimTemplateName: mig-2g.20gb"));
    assert!(
        text(&done.stderr).contains("standard input:58: note: document 3, Job pair"),
        "{}",
        text(&done.stderr)
    );

    let left = convert(&["-f", "-"], &data().replace("nvidia.com/gpu: 1", "nvidia.com/gpu.shared: 1"));
    assert_eq!(left.status.code(), Some(1));
    assert!(
        text(&left.stdout).contains("nvidia.com/gpu.shared: 1"),
        "what is left is in the output as it was"
    );
    assert!(
        text(&left.stderr).contains("left as it is: document 4, StatefulSet whole"),
        "{}",
        text(&left.stderr)
    );

    for input in ["a: [", "{{ .Values.gpus }}: 1\n", "kind: Pod\n---\nno object\n"] {
        let unusable = convert(&["-f", "-"], input);
        assert_eq!(unusable.status.code(), Some(2), "{input}");
        assert!(unusable.stdout.is_empty() && !unusable.stderr.is_empty());
    }
    assert_eq!(convert(&["-f", "/does/not/exist"], "").status.code(), Some(2));
}

#[test]
fn a_file_can_be_converted_in_place_and_only_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("it.yaml");
    std::fs::write(&path, data()).unwrap();
    let name = path.to_str().unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(convert(&["-f", name, "-o", name], "").status.code(), Some(0));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    let once = std::fs::read_to_string(&path).unwrap();
    assert_eq!(convert(&["-f", name, "-o", name], "").status.code(), Some(0));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), once);

    std::fs::write(&path, "a: [").unwrap();
    assert_eq!(convert(&["-f", name, "-o", name], "").status.code(), Some(2));
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        "a: [",
        "nothing is written over a file that cannot be used"
    );
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "no other file is left");
}

/// The objects of a cluster in a file: a node with two H100, the driver's class for a profile, and a pending pod.
fn dump(directory: &std::path::Path, profile: &str) -> String {
    let shapes: serde_json::Value =
        serde_json::from_str(include_str!("../src/allocator/examples/agreement/shapes.json")).unwrap();
    let expression = format!(
        "device.driver == 'mig.dra-driver.dev' && device.attributes['mig.dra-driver.dev'].profile == '{profile}'"
    );
    let with_kind = |api: &str, kind: &str, mut object: serde_json::Value| {
        object["apiVersion"] = api.into();
        object["kind"] = kind.into();
        object
    };
    let dra = "resource.k8s.io/v1";
    let json = |text: String| -> serde_json::Value { serde_json::from_str(&text).unwrap() };
    let mut items = vec![
        json(r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"}}"#.to_owned()),
        with_kind(
            dra,
            "DeviceClass",
            serde_json::json!({"metadata": {"name": "mig"}, "spec": {"selectors": [{"cel": {"expression": expression}}]}}),
        ),
        with_kind(
            dra,
            "ResourceClaim",
            json(
                r#"{"metadata": {"name": "new", "namespace": "team"}, "spec": {"devices": {"requests": [
            {"name": "mig", "exactly": {"deviceClassName": "mig", "count": 1}}]}}}"#
                    .to_owned(),
            ),
        ),
        with_kind(
            "v1",
            "Pod",
            json(
                r#"{"metadata": {"name": "new", "namespace": "team"}, "spec": {
            "containers": [{"name": "c", "resources": {"claims": [{"name": "gpu"}]}}],
            "resourceClaims": [{"name": "gpu", "resourceClaimName": "new"}]}}"#
                    .to_owned(),
            ),
        ),
    ];
    items.extend(
        shapes["2xH100-80GB"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| with_kind(dra, "ResourceSlice", it.clone())),
    );
    let path = directory.join("dump.json");
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items});
    std::fs::write(&path, list.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

fn explain(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_kubectl-mig")).arg("explain").args(arguments).output().unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn explain_answers_from_files_with_its_exit_status() {
    let directory = tempfile::tempdir().unwrap();
    let fits = dump(directory.path(), "3g.40gb");
    for subject in ["pod/new", "new", "po/new", "claim/new", "resourceclaim/new"] {
        let (status, out, error) = explain(&[subject, "-n", "team", "--from", &fits]);
        assert_eq!(status, Some(0), "{subject}: {out}{error}");
        assert!(out.contains(" will get its devices: node node has them free."), "{out}");
    }
    let (status, out, _) = explain(&["pod", "other", "-n", "team", "--from", &fits]);
    assert_eq!(status, Some(3), "{out}");

    let never = dump(directory.path(), "1g.5gb");
    let (status, out, _) = explain(&["new", "-n", "team", "--from", &never, "-o", "json"]);
    assert_eq!(status, Some(2), "{out}");
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&json["schemaVersion"], &json["verdict"]), (&1.into(), &"never".into()));
    assert_eq!(json["reasons"][0]["reason"], "noSuchProfile");
}

#[test]
fn explain_cannot_tell_without_a_subject_or_a_file_that_can_be_read() {
    for arguments in [
        &["new", "--from", "/does/not/exist"][..],
        &["service/new", "--from", "/dev/null"],
        &[],
        &["a", "b", "c"],
    ] {
        let (status, out, error) = explain(arguments);
        assert_eq!(status, Some(3), "{arguments:?}: {error}");
        assert!(out.is_empty() && !error.is_empty(), "{arguments:?}");
        let is_usage = !error.starts_with("kubectl mig explain: ");
        assert_eq!(is_usage, arguments.is_empty() || arguments.len() == 3 && arguments[0] == "a", "{error}");
    }
}

#[test]
fn explain_says_of_manifests_whether_they_will_fit_one_after_the_other() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = dump(directory.path(), "7g.80gb");
    let manifest = directory.path().join("pods.yaml");
    let pod = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  containers:\n  - name: c\n    resources:\n      claims:\n      - name: gpu\n  resourceClaims:\n  - name: gpu\n    resourceClaimTemplateName: whole\n---\n"
        )
    };
    let template = "apiVersion: resource.k8s.io/v1\nkind: ResourceClaimTemplate\nmetadata:\n  name: whole\nspec:\n  spec:\n    devices:\n      requests:\n      - name: mig\n        exactly:\n          deviceClassName: mig\n";
    std::fs::write(&manifest, [pod("a"), pod("b"), pod("c"), template.to_owned()].concat()).unwrap();
    let (status, out, error) = explain(&["-f", manifest.to_str().unwrap(), "--from", &cluster]);
    assert_eq!(status, Some(1), "{out}{error}");
    assert!(
        out.contains("pod/a will get its devices") && out.contains("pod/b will get its devices"),
        "{out}"
    );
    assert!(out.contains("pod/c gets no devices now: every 7g.80gb"), "{out}");
}

/// Runs `kubectl mig` with arguments.
fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kubectl-mig")).args(arguments).output().unwrap()
}

#[test]
fn the_exit_status_of_a_plan_tells_whether_all_pods_fit() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/plan");
    let plan = |gpus: &str| run(&["plan", "-f", example, "--gpus", gpus]);
    let fits = plan("4xH100-80GB");
    assert_eq!(fits.status.code(), Some(0), "{}", text(&fits.stderr));
    assert!(
        text(&fits.stdout).starts_with("All 22 pods fit on 4 GPUs (1 node).\n"),
        "{}",
        text(&fits.stdout)
    );
    let too_few = plan("2xH100-80GB");
    assert_eq!(too_few.status.code(), Some(1));
    assert!(text(&too_few.stdout).starts_with("9 of 22 pods fit on 2 GPUs (1 node), 13 do not.\n"));
    let unknown = plan("2xH1000");
    assert_eq!((unknown.status.code(), unknown.stdout.is_empty()), (Some(2), true));
    assert!(text(&unknown.stderr).contains("known: T4, A30-24GB"), "{}", text(&unknown.stderr));
    let missing = run(&["plan", "-f", "/does/not/exist", "--gpus", "1xH100-80GB"]);
    assert_eq!((missing.status.code(), missing.stdout.is_empty()), (Some(2), true));
}

#[test]
fn a_plan_that_cannot_be_written_is_an_error() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/plan");
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-mig"));
    command.args(["plan", "-f", example, "--gpus", "4xH100-80GB"]).stdout(full).stderr(Stdio::piped());
    let done = command.spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(2));
    assert!(text(&done.stderr).contains("cannot write to standard output: "), "{}", text(&done.stderr));
}

#[test]
fn patterns_of_profiles_without_effect_are_warned_of() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/plan");
    let plan = ["plan", "-f", example, "--gpus", "1xH100-80GB"];
    let slices = ["slices", "--gpus", "1xH100-80GB"];
    for command in [&plan[..], &slices] {
        let done = run(&[command, &["--profiles", "x*,1g.*"]].concat());
        let shown = text(&done.stderr);
        let wanted =
            "warning: the pattern `x*` of --profiles matches no profile of these GPUs, which have 1g.10gb";
        assert!(done.status.code() != Some(2) && shown.contains(wanted), "{shown}");
        assert_eq!(shown.lines().count(), 1, "{shown}");
        let done = run(&[command, &["--profiles", "1g.*", "--layout", "all-balanced"]].concat());
        assert!(text(&done.stderr).contains("warning: --profiles has no effect with --layout"));
        assert!(run(command).stderr.is_empty());
    }
}

#[test]
fn printed_slices_are_yaml_documents_or_a_list() {
    let yaml = run(&["slices", "--gpus", "8xH100-80GB", "--node", "kwok-0"]);
    assert_eq!(yaml.status.code(), Some(0), "{}", text(&yaml.stderr));
    let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(&text(&yaml.stdout)).unwrap();
    let json = run(&["slices", "--gpus", "8xH100-80GB", "--node", "kwok-0", "-o", "json"]);
    let list: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(list["items"], serde_json::Value::from(documents), "both formats say the same");
    assert_eq!(list["items"][0]["metadata"]["ownerReferences"], serde_json::Value::Null);

    let owned = run(&["slices", "--gpus", "1xL4", "--node-uid", "u", "-o", "json"]);
    let list: serde_json::Value = serde_json::from_slice(&owned.stdout).unwrap();
    assert_eq!(list["items"][0]["metadata"]["ownerReferences"][0]["uid"], "u");
    for wrong in
        [&["--gpus", "1xL4", "--node", "No"][..], &["--gpus", "1xH100-80GB", "--layout", "all-2g.10gb"], &[]]
    {
        assert_eq!(run(&[&["slices"], wrong].concat()).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn the_page_about_plans_shows_what_the_command_prints() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let page = std::fs::read_to_string(format!("{root}/docs/kubectl-mig-plan.md")).unwrap();
    let commands = page.lines().filter_map(|it| it.strip_prefix("$ kubectl mig plan -f examples/plan "));
    let mut compared = 0;
    for command in commands {
        let example = format!("{root}/examples/plan");
        let arguments: Vec<&str> = ["plan", "-f", &example].into_iter().chain(command.split(' ')).collect();
        let printed = text(&run(&arguments).stdout);
        assert!(page.contains(&format!("{command}\n{printed}```")), "{command}:\n{printed}");
        compared += 1;
    }
    assert_eq!(compared, 2);
}
