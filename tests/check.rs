//! `dra-driver-mig check` as people run it.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use crate::common;
use crate::common::repository;
use common::{ControlPlane, Lab};
use dra_driver_mig::check::{Subject, Verdict};
use serde_json::Value;

fn check(arguments: &[&str], directory: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dra-driver-mig"));
    command.env_clear().current_dir(directory).arg("check").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A host on which nothing is installed, by paths that are the same on every machine.
fn bare(root: &Path, extra: &[&str]) -> Output {
    let mut arguments = vec![
        "--driver-root",
        "HOST",
        "--host-root",
        "HOST",
        "--dev-root",
        "HOST",
        "--proc-root",
        "HOST/proc",
        "--plugins-dir",
        "HOST/kubelet/plugins",
        "--registry-dir",
        "HOST/kubelet/plugins_registry",
        "--cdi-root",
        "HOST/cdi",
    ];
    arguments.extend(extra);
    check(&arguments, root)
}

#[test]
fn on_a_bare_machine_the_list_tells_a_newcomer_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let output = bare(directory.path(), &[]);
    // The text is what people get: a change of it is to be read, not only to be compiled.
    let expected = "\
What dra-driver-mig needs, in the order in which a node is set up. `MISSING` has to be repaired,
`off` was turned off, `note` is good to know, and `?` is unknown from here. `->` says what to do.

MISSING  NVIDIA driver      no libnvidia-ml.so.1 below the driver root `HOST`
                            -> install the NVIDIA driver on this host
                               (https://docs.nvidia.com/datacenter/tesla/); where it is there
                               already, but elsewhere, name the directory that has its files:
                               --driver-root /run/nvidia/driver with the GPU Operator's driver
                               container
?        GPUs               unknown without the NVIDIA driver
MISSING  nvidia-cdi-hook    hook program \"/usr/bin/nvidia-cdi-hook\" not found on the host (looked at
                            \"HOST/usr/bin/nvidia-cdi-hook\"): containers get the driver's libraries
                            without a loader cache that lists them, so that CUDA works only in
                            images whose loader searches the directories that this host uses
                            -> install NVIDIA Container Toolkit 1.17.5 or later on the host, of
                               which the package nvidia-container-toolkit-base is enough
                               (https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/);
                               where the GPU Operator has put it, name it: --cdi-hook
                               /usr/local/nvidia/toolkit/nvidia-cdi-hook (value cdiHook)
?        device nodes       unknown without the NVIDIA driver
MISSING  kubelet registry   HOST/kubelet/plugins_registry: no such directory
                            -> run the check on a node with a kubelet, as root; where its --root-dir
                               is not /var/lib/kubelet, name the directory with --registry-dir and
                               --plugins-dir
ok       plugin directory   HOST/kubelet/plugins/mig.dra-driver.dev: not there yet, the driver
                            creates it
ok       CDI directory      HOST/cdi: not there yet, the driver creates it
?        container runtime  its configuration is not visible from here, so it is unknown whether CDI
                            is on
                            -> containerd 2 and CRI-O have it on; with containerd 1.7
                               /etc/containerd/config.toml needs `enable_cdi = true` under
                               [plugins.\"io.containerd.grpc.v1.cri\"]
?        API server         not asked: this is not a pod, and no kubeconfig was given
                            -> run the check in the driver's pod
                               (`kubectl -n dra-driver-mig exec POD -- dra-driver-mig check`), or
                               give --kubeconfig FILE --node-name NODE; the cluster has to be
                               Kubernetes 1.34 or later
";
    assert_eq!(text(&output.stdout), expected);
    assert!(expected.lines().all(|it| it.chars().count() <= 100));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text(&output.stderr),
        "dra-driver-mig: 3 things are missing; the list above says what to do\n"
    );
    // Looking changes nothing.
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn the_json_says_the_same_as_the_list_with_ids_that_are_documented() {
    let directory = tempfile::tempdir().unwrap();
    let output = bare(directory.path(), &["-o", "json"]);
    assert_eq!(output.status.code(), Some(1), "as with the list");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["schemaVersion"], 1);
    let findings = report["findings"].as_array().unwrap();
    let found: Vec<(&str, &str)> =
        findings.iter().map(|it| (it["id"].as_str().unwrap(), it["status"].as_str().unwrap())).collect();
    let expected = [
        ("nvidiaDriver", "missing"),
        ("gpus", "unknown"),
        ("cdiHook", "missing"),
        ("deviceNodes", "unknown"),
        ("kubeletRegistry", "missing"),
        ("pluginDirectory", "ok"),
        ("cdiDirectory", "ok"),
        ("containerRuntime", "unknown"),
        ("apiServer", "unknown"),
    ];
    assert_eq!(found, expected);
    assert!(findings[0]["text"].as_str().unwrap().starts_with("no libnvidia-ml.so.1"), "{findings:?}");
    assert!(findings[0]["remedy"].as_str().unwrap().starts_with("install the NVIDIA driver"), "{findings:?}");
    assert_eq!(findings[5]["remedy"], Value::Null);

    let page = std::fs::read_to_string(repository().join("docs/check.md")).unwrap();
    let rows =
        page.lines().filter_map(|it| it.strip_prefix("| `")?.split_once('`').map(|it| it.0.to_owned()));
    let documented: BTreeSet<String> = rows.collect();
    let name = |value: Value| value.as_str().unwrap().to_owned();
    let ids = Subject::ALL.iter().map(|it| name(serde_json::to_value(it).unwrap()));
    let statuses =
        [Verdict::Good, Verdict::Off, Verdict::Note, Verdict::Unknown, Verdict::Missing].into_iter();
    let statuses = statuses.map(|it| name(serde_json::to_value(it).unwrap()));
    let fields = findings[0].as_object().unwrap().keys().map(|it| format!("findings[].{it}"));
    let others = ["schemaVersion", "findings[]"].map(str::to_owned);
    let printed: BTreeSet<String> = ids.chain(statuses).chain(fields).chain(others).collect();
    assert_eq!(documented, printed);
}

/// The check on a simulated node.
async fn on(lab: &Lab) -> Output {
    on_with(lab, &[]).await
}

/// The same with further arguments.
async fn on_with(lab: &Lab, extra: &[&str]) -> Output {
    std::fs::create_dir_all(lab.path("registry")).unwrap();
    let at = |name: &str| lab.path(name).display().to_string();
    let line: Vec<String> = [
        ("--node-name", lab.node_name.clone()),
        ("--kubeconfig", at("kubeconfig")),
        ("--driver-root", at("host")),
        ("--host-root", at("host")),
        ("--dev-root", at("host")),
        ("--proc-root", at("host/proc")),
        ("--sys-root", at("host/sys")),
        ("--plugins-dir", at("plugins")),
        ("--registry-dir", at("registry")),
        ("--cdi-root", at("cdi")),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.to_owned(), value])
    .chain(extra.iter().map(|it| (*it).to_owned()))
    .collect();
    let run = move || check(&line.iter().map(String::as_str).collect::<Vec<_>>(), Path::new("/"));
    tokio::task::spawn_blocking(run).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_node_that_has_everything_nothing_is_missing() {
    let lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB,1xL4").await;
    let output = on(&lab).await;
    let list = text(&output.stdout);
    assert!(!list.contains("\nMISSING"), "{list}");
    for line in
        ["ok       NVIDIA driver", "2, 1 of them with MIG", "DRAPartitionableDevices on", "all 18 rights"]
    {
        assert!(list.contains(line), "{line}: {list}");
    }
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
    assert!(lab.slices().await.is_empty() && lab.instances().is_empty(), "the check changes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_is_off_a_wrong_node_name_and_a_dead_server_are_reported() {
    let mut lab = Lab::new(ControlPlane::simulated(false).await, "1xH100-80GB").await;
    let output = on(&lab).await;
    let list = text(&output.stdout);
    assert!(
        list.contains("off      feature gate")
            && list.contains("--feature-gates=DRAPartitionableDevices=true"),
        "{list}"
    );
    assert!(output.status.success(), "layouts serve such a cluster: {list}");

    let right = std::mem::replace(&mut lab.node_name, "no-node".to_owned());
    let list = text(&on(&lab).await.stdout);
    assert!(list.contains("MISSING  Node object") && list.contains("kubectl get nodes"), "{list}");
    lab.node_name = right;

    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let kubeconfig = std::fs::read_to_string(lab.path("kubeconfig")).unwrap();
    let server = kubeconfig.lines().find_map(|it| it.trim().strip_prefix("server: ")).unwrap().to_owned();
    std::fs::write(lab.path("kubeconfig"), kubeconfig.replace(&server, &format!("http://{closed}"))).unwrap();
    let list = text(&on(&lab).await.stdout);
    assert!(list.contains("MISSING  API server") && list.contains("refused"), "{list}");
}

/// The lines about a subject, with what to do, as if they were not wrapped.
fn about(list: &str, subject: &str) -> String {
    let mut found = String::new();
    let mut is_meant = false;
    for line in list.lines() {
        if !line.starts_with("    ") {
            is_meant = line.contains(&format!("  {subject}  "));
        }
        if is_meant {
            let line = if found.is_empty() { line } else { line.trim_start() };
            found.push_str(line);
            found.push(' ');
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_the_program_lacks_is_named_with_the_version_that_has_it() {
    const HOOK: &str = "disable-device-node-modification";
    let lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await;
    let program = lab.path("host/usr/bin/nvidia-cdi-hook");
    let newer = std::fs::read_to_string(&program).unwrap();
    std::fs::write(&program, newer.replace(HOOK, "chmod")).unwrap();
    let output = on(&lab).await;
    let found = about(&text(&output.stdout), "nvidia-cdi-hook");
    assert!(found.starts_with("note  ") && found.contains(&format!("no subcommand {HOOK}")), "{found}");
    assert!(found.contains("NVIDIA Container Toolkit 1.18.0 or later"), "{found}");
    assert!(output.status.success(), "containers work without it: {}", text(&output.stdout));

    let found = about(&text(&on_with(&lab, &["--disable-hooks", HOOK]).await.stdout), "nvidia-cdi-hook");
    assert!(found.starts_with("ok  "), "{found}");

    std::fs::write(&program, newer.replace("update-ldcache", "chmod")).unwrap();
    let output = on(&lab).await;
    let found = about(&text(&output.stdout), "nvidia-cdi-hook");
    assert!(found.starts_with("MISSING  ") && found.contains("no subcommand update-ldcache"), "{found}");
    assert_eq!(output.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_the_node_refuse_claims_fails_the_check() {
    let lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await;
    let file = lab.path("common.json");
    std::fs::write(&file, "{}").unwrap();
    let output = on_with(&lab, &["--common-edits", &file.display().to_string()]).await;
    let found = about(&text(&output.stdout), "containers");
    assert!(found.starts_with("MISSING  ") && found.contains("it has no containerEdits"), "{found}");
    assert_eq!(output.status.code(), Some(1));

    // Libraries of two versions: the node goes by what NVML says, and so does the check.
    let libraries = lab.path("host/usr/lib/x86_64-linux-gnu");
    std::fs::write(libraries.join("libcuda.so.535.104.05"), "").unwrap();
    let output = on(&lab).await;
    assert!(about(&text(&output.stdout), "containers").starts_with("ok  "), "{}", text(&output.stdout));

    let node = lab.path("host/dev/nvidia-caps/nvidia-cap1");
    std::fs::remove_file(&node).unwrap();
    std::os::unix::fs::symlink("nvidia-cap1", &node).unwrap();
    let output = on(&lab).await;
    let found = about(&text(&output.stdout), "MIG access");
    // CAP_SYS_ADMIN may be enough, so that claims are not known to fail.
    assert!(found.starts_with("note  ") && found.contains("nvidia-modprobe -f "), "{found}");
}

#[test]
fn the_documents_ask_for_the_toolkit_that_the_check_asks_for() {
    let minimum = format!("NVIDIA Container Toolkit {}", dra_driver_mig::cdi::MINIMUM_TOOLKIT);
    for document in ["README.md", "docs/troubleshooting.md", "deploy/helm/dra-driver-mig/values.yaml"] {
        let path = repository().join(document);
        let words = std::fs::read_to_string(path).unwrap().replace('#', " ");
        let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(&minimum), "{document} does not ask for {minimum}");
    }
}
