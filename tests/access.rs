//! GPUs that the kernel lists and the driver does not see, and the node that permits GPUs to be cut.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common;
use common::{ControlPlane, Lab, eventually, free_address, get, prepare, scrape, unprepare};
use dra_driver_mig::api::EventReason;
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::ListParams;

/// A node with these GPUs, and where the driver's health and metrics are.
async fn lab(gpus: &str) -> (Lab, SocketAddr, SocketAddr) {
    let http = free_address();
    let address = http.to_string();
    let arguments = ["--rescan-interval", "1", "--http-address", &address];
    let (lab, metrics) = Lab::new(ControlPlane::simulated(true).await, gpus).await.with_metrics(&arguments);
    (lab, http, metrics)
}

async fn readiness_when(address: SocketAddr, what: &str, accept: impl Fn(&str) -> bool) -> String {
    eventually(what, async || get(address, "/readyz").await.filter(|it| accept(it))).await
}

async fn notes(lab: &Lab, reason: EventReason) -> Vec<String> {
    let events: Api<Event> = Api::all(lab.client.clone());
    let all = events.list(&ListParams::default()).await.unwrap().items;
    let wanted = all.into_iter().filter(|it| it.reason.as_deref() == Some(reason.as_str()));
    wanted.filter_map(|it| it.note).collect()
}

fn in_host(lab: &Lab, path: &str) -> PathBuf {
    lab.path("host").join(path)
}

/// Names of the GPUs that are offered.
async fn offered(lab: &Lab) -> Vec<String> {
    let slices = lab.slices().await;
    let devices = slices.iter().flat_map(|it| it.spec.devices.iter().flatten());
    let mut names: Vec<String> =
        devices.filter_map(|it| Some(it.name.split("-mig-").next()?.to_owned())).collect();
    names.sort();
    names.dedup();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_without_a_node_is_named_with_the_remedy_and_one_that_gets_a_node_is_offered_without_a_restart()
{
    let (mut lab, http, metrics) = lab("2xH100-80GB").await;
    lab.sim.count_gpus(Some(1)).unwrap();
    let node = in_host(&lab, "dev/nvidia1");
    fs::remove_file(&node).unwrap();
    lab.start();
    lab.kubelet().await;
    let text = readiness_when(http, "the missing GPU is named", |it| it.contains("0000:1b:00.0")).await;
    let line = text.lines().find(|it| it.contains("0000:1b:00.0")).unwrap();
    assert!(line.contains("/dev/nvidia1 is not here") && line.contains("delete the pod"), "{line}");
    assert!(text.contains("[+] gpus: 1 GPUs"), "{text}");
    let missing = [("state", "missing")];
    assert_eq!(scrape(metrics).await.value("dra_mig_gpus", &missing), Some(1.0));
    assert_eq!(scrape(metrics).await.value("dra_mig_gpu_problems", &[]), Some(1.0));
    eventually("there is an event", async || {
        notes(&lab, EventReason::GpuNotOffered)
            .await
            .iter()
            .any(|it| it.contains("0000:1b:00.0"))
            .then_some(())
    })
    .await;
    eventually("one GPU is offered", async || (offered(&lab).await == ["gpu-0000-1a-00"]).then_some(()))
        .await;

    // The node is there, NVML does not show the GPU yet: now it is the host that knows why.
    symlink("/dev/null", &node).unwrap();
    readiness_when(http, "the remedy changes", |it| {
        it.contains("/dev/nvidia1 is here, but NVML does not show it")
    })
    .await;
    lab.sim.count_gpus(None).unwrap();
    eventually("both are offered", async || (offered(&lab).await.len() == 2).then_some(())).await;
    let text = readiness_when(http, "nothing is missing", |it| !it.contains("0000:1b:00.0")).await;
    assert!(text.contains("[+] gpus: 2 GPUs"), "{text}");
    assert_eq!(scrape(metrics).await.value("dra_mig_gpus", &missing), Some(0.0));
    lab.stop().await;
}

/// The driver starts again in a container that lacks the device node of a GPU: NVML does not show the GPU, and the instance on it lives.
#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_the_kernel_lists_and_nvml_does_not_show_is_not_taken_for_gone() {
    let (mut lab, http, _) = lab("2xH100-80GB").await;
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("one", "gpu-0000-1b-00-mig-1g-10gb-6").await;
    prepare(&kubelet, &claim).await.unwrap();
    lab.stop().await;

    let node = in_host(&lab, "dev/nvidia1");
    fs::remove_file(&node).unwrap();
    lab.sim.count_gpus(Some(1)).unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    readiness_when(http, "the missing GPU is named", |it| it.contains("0000:1b:00.0")).await;
    let refused = unprepare(&kubelet, &claim).await.unwrap_err();
    assert!(refused.contains("cannot be read now"), "{refused}");
    assert_eq!(lab.instances().len(), 1);

    symlink("/dev/null", &node).unwrap();
    lab.sim.count_gpus(None).unwrap();
    eventually("the claim is unprepared", async || unprepare(&kubelet, &claim).await.ok()).await;
    assert!(lab.instances().is_empty());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_node_that_permits_it_the_driver_says_that_it_may_not_create_instances() {
    let (mut lab, http, metrics) = lab("1xH100-80GB").await;
    let node = in_host(&lab, "dev/nvidia-caps/nvidia-cap1");
    fs::remove_file(&node).unwrap();
    lab.start();
    lab.kubelet().await;
    let says = "NVML may refuse to create MIG instances: /dev/nvidia-caps/nvidia-cap1, which permits it, is not here";
    let text = readiness_when(http, "it is said", |it| it.contains(says)).await;
    assert!(text.contains("[+] host: ") && text.contains("delete the pod"), "{text}");
    let conditions =
        async || scrape(metrics).await.value("dra_mig_host_conditions", &[("effect", "may_refuse")]);
    assert_eq!(conditions().await, Some(1.0));
    eventually("there is an event", async || {
        (notes(&lab, EventReason::HostDegraded).await.len() == 1).then_some(())
    })
    .await;
    // CAP_SYS_ADMIN may be enough: nothing is withheld before NVML refuses.
    eventually("all is offered", async || {
        let devices =
            lab.slices().await.iter().map(|it| it.spec.devices.iter().flatten().count()).sum::<usize>();
        (devices == 26).then_some(())
    })
    .await;
    let mut check = Command::new(env!("CARGO_BIN_EXE_dra-driver-mig"));
    check.env_clear().arg("check").arg("--driver-root").arg(lab.path("host"));
    check.arg("--dev-root").arg(lab.path("host")).arg("--proc-root").arg(in_host(&lab, "proc"));
    let list = String::from_utf8(check.output().unwrap().stdout).unwrap();
    let line = list.lines().find(|it| it.contains("MIG access")).unwrap();
    assert!(line.starts_with("note") && list.contains("nvidia-cap1"), "{list}");

    symlink("/dev/null", &node).unwrap();
    readiness_when(http, "it may again", |it| !it.contains("may refuse")).await;
    assert_eq!(conditions().await, Some(0.0));
    lab.stop().await;
}

/// A pod that started before the NVIDIA driver, as after each boot of a node whose driver comes in a container: its container was
/// given no node, and a container gets nodes only when it is created.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_from_before_the_kernel_module_ends_once_with_a_spec_that_gives_it_the_gpus() {
    let (lab, http, _) = lab("1xH100-80GB").await;
    let moved = |from: &str, to: &str| fs::rename(in_host(&lab, from), in_host(&lab, to)).unwrap();
    let spec = lab.path("cdi/mig.dra-driver.dev-management.json");
    let init = || {
        let mut init = Command::new(env!("CARGO_BIN_EXE_dra-driver-mig"));
        init.arg("management-spec").arg("--proc-root").arg(in_host(&lab, "proc"));
        assert!(
            init.arg("--cdi-root").arg(lab.path("cdi")).stdout(Stdio::null()).status().unwrap().success()
        );
        fs::read_to_string(&spec).unwrap()
    };
    for path in ["dev", "proc/driver/nvidia", "usr/lib"] {
        moved(path, &format!("{path}-later"));
    }
    let devices = fs::read_to_string(in_host(&lab, "proc/devices")).unwrap();
    fs::write(in_host(&lab, "proc/devices"), "Character devices:\n  1 mem\n").unwrap();
    assert!(!init().contains("/dev/nvidia"), "there is nothing to give yet");
    let mut driver = lab.spawn();
    readiness_when(http, "it runs and says why it offers nothing", |it| it.contains("no libnvidia-ml.so.1"))
        .await;

    fs::write(in_host(&lab, "proc/devices"), devices).unwrap();
    moved("proc/driver/nvidia-later", "proc/driver/nvidia");
    let ended = tokio::task::spawn_blocking(move || driver.wait().unwrap());
    let status =
        tokio::time::timeout(Duration::from_secs(60), ended).await.expect("the container ends").unwrap();
    assert!(!status.success());
    let renewed = fs::read_to_string(&spec).unwrap();
    for node in ["/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap1"] {
        assert!(renewed.contains(node), "{node}: {renewed}");
    }
    assert_eq!(init(), renewed, "a new pod gets the same");

    // One that was created by this spec and lacks the nodes all the same stays: another start would change nothing.
    let mut driver = lab.spawn();
    readiness_when(http, "it stays and names the GPU", |it| it.contains("/dev/nvidia0 is not here")).await;
    assert!(driver.try_wait().unwrap().is_none());
    // With the nodes, and the driver's files, it works.
    moved("dev-later", "dev");
    moved("usr/lib-later", "usr/lib");
    eventually("the GPU is offered", async || (!offered(&lab).await.is_empty()).then_some(())).await;
    driver.kill().unwrap();
    driver.wait().unwrap();
}
