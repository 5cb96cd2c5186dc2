//! `dra-driver-mig inspect`: what it shows of a node, with and without a driver, an API server, or anything at all.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::common;
use crate::common::repository;
use common::{ControlPlane, DRIVER, Lab, eventually, prepare, unprepare};
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube_sim::kubelet::Claim;
use serde_json::{Value, json};

const FIRST_1G: &str = "gpu-0000-1a-00-mig-1g-10gb-6";

async fn lab(gpus: &str) -> Lab {
    Lab::new(ControlPlane::simulated(true).await, gpus).await
}

/// One H100 with a running driver, of which a claim has an instance.
async fn with_a_claim() -> (Lab, Claim) {
    let mut lab = lab("1xH100-80GB").await;
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    prepare(&kubelet, &claim).await.unwrap();
    (lab, claim)
}

/// `inspect` of this node, in which nothing of this process's environment plays a part.
fn command(lab: &Lab, more: &[&str]) -> Command {
    let host = lab.path("host");
    let mut command = Command::new(env!("CARGO_BIN_EXE_dra-driver-mig"));
    command.args(["inspect", "--plugins-dir"]).arg(lab.path("plugins")).arg("--driver-root").arg(&host);
    command.arg("--proc-root").arg(host.join("proc")).arg("--sys-root").arg(host.join("sys")).args(more);
    command.env_remove("KUBERNETES_SERVICE_HOST").env_remove("KUBECONFIG");
    command
}

fn text(lab: &Lab, more: &[&str]) -> String {
    let output = command(lab, more).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn report(lab: &Lab, more: &[&str]) -> Value {
    serde_json::from_str(&text(lab, &[&["-o", "json"], more].concat())).unwrap()
}

/// The claim is reserved for a pod of this name, and for something that is no pod.
async fn reserve(lab: &Lab, claim: &Claim, pod: &str) {
    let consumers = json!([
        {"resource": "pods", "name": pod, "uid": "p-1"},
        {"apiGroup": "scheduling.k8s.io", "resource": "podgroups", "name": "group", "uid": "g-1"},
    ]);
    let status = Patch::Merge(json!({"status": {"reservedFor": consumers}}));
    let claims: Api<ResourceClaim> = Api::namespaced(lab.client.clone(), "default");
    claims.patch_status(&claim.name, &PatchParams::default(), &status).await.unwrap();
}

/// A line without what differs from run to run: ages, and the width of columns, which depends on names. The map stays as it
/// is.
fn plain(line: &str) -> String {
    if line.contains(['─', '│']) || line.trim_start().starts_with("0   ") {
        return line.to_owned();
    }
    let mut cells: Vec<&str> = line.split("  ").filter(|it| !it.is_empty()).map(str::trim).collect();
    if let ["default/cut" | "default/whole", "prepared", age, ..] = cells.as_mut_slice() {
        *age = "0s";
    }
    let margin = if line.starts_with("  ") { "  " } else { "" };
    let line = margin.to_owned() + &cells.join("  ");
    match line.split_once("since ").and_then(|(before, after)| Some((before, after.split_once(": ")?.1))) {
        Some((before, after)) => format!("{before}since then: {after}"),
        None => line,
    }
}

/// Errors of GPUs and their instances, until the driver has noted them: it may not listen yet.
async fn make_unhealthy(lab: &Lab, errors: &[(usize, u64, Option<u32>)]) {
    let file = lab.path("plugins").join(DRIVER).join("health.json");
    eventually("the errors are noted", async || {
        for (gpu, xid, instance) in errors {
            lab.sim.post_xid(*gpu, *xid, *instance, instance.map(|_| 0)).unwrap();
        }
        let noted = std::fs::read_to_string(&file).ok()?;
        errors.iter().all(|(_, xid, _)| noted.contains(&format!("\"xid\": {xid}"))).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_picture_of_a_node_is_this_one() {
    let mut lab = lab("2xH100-80GB").await;
    lab.sim.plant_instance(0, "2g.20gb", 2).unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    let (cut, whole) = (lab.claim_of("cut", FIRST_1G).await, lab.claim_of("whole", "gpu-0000-1b-00").await);
    prepare(&kubelet, &cut).await.unwrap();
    prepare(&kubelet, &whole).await.unwrap();
    reserve(&lab, &cut, "trainer-0").await;
    lab.sim.on_gpu(0, |gpu| gpu.utilization = (73, 40)).unwrap();
    let instance =
        lab.sim.snapshot().unwrap().gpus[0].gpu_instances.iter().find(|it| it.start == 6).unwrap().id;
    make_unhealthy(&lab, &[(0, 94, Some(instance)), (1, 48, None)]).await;
    // Without the driver it is the same.
    lab.stop().await;

    let kubeconfig = lab.path("kubeconfig").display().to_string();
    let shown = text(&lab, &["--kubeconfig", &kubeconfig]);
    let gpus = lab.sim.snapshot().unwrap().gpus;
    let mut names = vec![(cut.name.clone(), "cut"), (whole.name.clone(), "whole")];
    names.extend([(gpus[0].uuid.clone(), "GPU-0"), (gpus[1].uuid.clone(), "GPU-1")]);
    let mig_uuid = |start: u32| {
        let instance = gpus[0].gpu_instances.iter().find(|it| it.start == start).unwrap();
        instance.compute_instances.first().map(|it| it.uuid.clone())
    };
    names.extend([2, 6].into_iter().filter_map(mig_uuid).zip(["MIG-2", "MIG-6"]));
    let shown = names.iter().fold(shown, |text, (name, short)| text.replace(name, short));
    let shown: String = shown.lines().map(|it| plain(it) + "\n").collect();
    let expected = include_str!("data/inspect.txt");
    assert_eq!(shown, expected, "\n{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_on_which_no_driver_ever_ran_has_no_claims_and_gets_no_directory() {
    let lab = lab("1xH100-80GB,1xL4").await;
    let report = report(&lab, &[]);
    assert_eq!((report["claims"].clone(), report["gpus"].as_array().unwrap().len()), (json!([]), 2));
    assert!(!lab.path("plugins").exists());
    assert!(text(&lab, &[]).contains("no MIG"));
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_are_shown_in_each_of_their_states() {
    let (mut lab, claim) = with_a_claim().await;
    lab.stop().await;
    let of = |report: &Value, uid: &str| {
        report["claims"].as_array().unwrap().iter().find(|it| it["uid"] == uid).unwrap().clone()
    };
    let shown = of(&report(&lab, &[]), &claim.uid);
    assert_eq!((&shown["state"], &shown["pods"]), (&json!("prepared"), &Value::Null));
    let instance = &lab.sim.snapshot().unwrap().gpus[0].gpu_instances[0];
    assert_eq!(shown["devices"][0]["migUuid"], json!(instance.compute_instances[0].uuid));
    assert!(shown["ageSeconds"].is_u64(), "{shown}");

    std::fs::write(lab.path("plugins").join(DRIVER).join("claims/u-2.jsonl"), "rubbish\n").unwrap();
    lab.sim.reboot().unwrap();
    let after = report(&lab, &[]);
    assert_eq!(of(&after, &claim.uid)["state"], "earlierBoot");
    assert_eq!(of(&after, "u-2")["state"], "unreadable");
    assert!(text(&lab, &[]).contains("UID u-2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_unknown_where_the_api_server_does_not_answer() {
    let (mut lab, claim) = with_a_claim().await;
    reserve(&lab, &claim, "trainer-0").await;
    let kubeconfig = lab.path("kubeconfig");
    let asked = |lab: &Lab| {
        report(lab, &["--kubeconfig", &kubeconfig.display().to_string()])["claims"][0]["pods"].clone()
    };
    assert_eq!(asked(&lab), json!(["trainer-0"]));
    let ControlPlane::Simulated(server) = &lab.plane else { unreachable!() };
    server.inject(1, |it| it.path.contains("resourceclaims"), kube_sim::Fault::Hang);
    assert_eq!(asked(&lab), Value::Null);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_is_measured_where_the_gpu_does_that_and_let_go_of() {
    let (mut lab, claim) = with_a_claim().await;
    lab.sim.on_gpu(0, |gpu| gpu.utilization = (73, 40)).unwrap();
    lab.sim.configure(|it| it.log_calls = true).unwrap();
    let of = |report: Value| report["gpus"][0]["mig"]["instances"][0].clone();
    let shown = of(report(&lab, &[]));
    assert_eq!(shown["utilization"], json!({"graphics": 0.73, "sm": 0.73, "memoryBandwidth": 0.4}));
    let calls = lab.sim.calls().unwrap();
    let count = |call: &str| calls.iter().filter(|it| it.call == call && it.code == 0).count();
    assert_eq!((count("nvmlGpmMigSampleGet"), count("nvmlGpmSampleFree")), (2, 2));
    unprepare(&lab.kubelet().await, &claim).await.unwrap();
    lab.stop().await;

    // An A100 does not measure.
    let lab = self::lab("1xA100-40GB").await;
    lab.sim.on_gpu(0, |gpu| (gpu.mig_current, gpu.mig_pending) = (true, true)).unwrap();
    lab.sim.plant_instance(0, "1g.5gb", 0).unwrap();
    assert_eq!(of(report(&lab, &[]))["utilization"], Value::Null);
    assert!(text(&lab, &[]).lines().any(|it| it.contains("1g.5gb") && it.contains(" ?  ")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_unhealthy_is_shown_until_the_node_is_rebooted() {
    let (mut lab, _) = with_a_claim().await;
    make_unhealthy(&lab, &[(0, 48, None)]).await;
    lab.stop().await;
    let unhealthy = report(&lab, &[])["gpus"][0]["unhealthy"].clone();
    assert_eq!(unhealthy["reason"], "XID 48 (a double-bit ECC error)");
    assert!(unhealthy["since"].as_str().unwrap().ends_with('Z'), "{unhealthy}");
    lab.sim.reboot().unwrap();
    assert_eq!(report(&lab, &[])["gpus"][0]["unhealthy"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_shows_what_changes() {
    let mut lab = lab("1xH100-80GB").await;
    lab.start();
    let kubelet = lab.kubelet().await;
    let mut watching =
        command(&lab, &["-o", "json", "--watch", "--interval", "1"]).stdout(Stdio::piped()).spawn().unwrap();
    let (line, mut lines) = tokio::sync::mpsc::unbounded_channel();
    let out = BufReader::new(watching.stdout.take().unwrap());
    let reader = std::thread::spawn(move || {
        for it in out.lines().map_while(Result::ok) {
            let report: Value = serde_json::from_str(&it).unwrap();
            if line.send(report["claims"].as_array().unwrap().len()).is_err() {
                return;
            }
        }
    });
    assert_eq!(lines.recv().await, Some(0));
    let claim = lab.claim_of("one", FIRST_1G).await;
    prepare(&kubelet, &claim).await.unwrap();
    // It is looked at every second; a minute is for a machine with much else to do.
    let seen = async { while lines.recv().await != Some(1) {} };
    tokio::time::timeout(std::time::Duration::from_secs(60), seen).await.unwrap();
    watching.kill().unwrap();
    watching.wait().unwrap();
    drop(lines);
    reader.join().unwrap();
    lab.stop().await;
}

/// Every key in a document.
fn keys(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                found.insert(key.clone());
                keys(value, found);
            }
        }
        Value::Array(list) => list.iter().for_each(|it| keys(it, found)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_json_has_a_version_and_all_its_keys_are_camel_case() {
    let (mut lab, _) = with_a_claim().await;
    make_unhealthy(&lab, &[(0, 48, None)]).await;
    lab.stop().await;
    let report = report(&lab, &[]);
    assert_eq!(report["schemaVersion"], 1);
    let mut printed = BTreeSet::new();
    keys(&report, &mut printed);
    let is_camel_case = |it: &&String| {
        it.starts_with(|it: char| it.is_ascii_lowercase()) && it.chars().all(|it| it.is_ascii_alphanumeric())
    };
    let others: Vec<&String> = printed.iter().filter(|it| !is_camel_case(it)).collect();
    assert!(others.is_empty(), "{others:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_of_the_json_is_documented_and_no_other() {
    let (mut lab, _) = with_a_claim().await;
    make_unhealthy(&lab, &[(0, 48, None)]).await;
    lab.stop().await;
    let mut printed = BTreeSet::new();
    keys(&report(&lab, &[]), &mut printed);
    // Fields of what this node does not have.
    printed.extend(["isGone", "warps", "tensor"].map(str::to_owned));
    let page = std::fs::read_to_string(repository().join("docs/inspect.md")).unwrap();
    let rows = page.lines().filter_map(|it| it.strip_prefix("| `")?.split_once('`').map(|it| it.0));
    let documented: BTreeSet<String> =
        rows.map(|it| it.rsplit('.').next().unwrap().trim_end_matches("[]").to_owned()).collect();
    assert_eq!(documented, printed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_in_a_file_has_no_escape_sequences() {
    let lab = lab("1xH100-80GB").await;
    let (log, other) = (lab.path("node.log"), lab.path("inspect.log"));
    let file = |path| std::fs::File::create(path).unwrap();
    let read = |path| std::fs::read_to_string(path).unwrap();
    let mut driver = lab.command().env_remove("NO_COLOR").stderr(file(&log)).spawn().unwrap();
    eventually("the slices are published", async || {
        read(&log).contains("published ResourceSlices").then_some(())
    })
    .await;
    let pid = rustix::process::Pid::from_child(&driver);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(driver.wait().unwrap().success());
    let text = read(&log);
    assert!(text.contains("INFO") && text.contains("stopped"), "{text}");
    assert!(!text.contains('\u{1b}'), "{text:?}");

    // Nothing is wrong with this node, so `inspect` has nothing to log; with another library it has.
    let mut inspect = command(&lab, &["--driver-library", "/nonexistent"]);
    let inspect = inspect.env_remove("NO_COLOR").stderr(file(&other)).stdout(Stdio::null()).status().unwrap();
    let text = read(&other);
    assert!(!inspect.success() && text.contains("ERROR") && !text.contains('\u{1b}'), "{text:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_enough_is_no_error() {
    let lab = lab("1xH100-80GB").await;
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output =
        command(&lab, &[]).stdout(writer).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}
