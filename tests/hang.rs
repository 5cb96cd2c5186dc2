//! Calls into NVML, and reads of the kernel module's files, that do not come back: the other GPUs are served, the sockets are there,
//! and what hangs is named.

use crate::common;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command};

use common::{
    ControlPlane, DRIVER, Lab, device_names, eventually, free_address, get, is_complete, node_events,
    prepare, unprepare,
};
use futures::future::join_all;
use k8s_openapi::api::resource::v1::ResourceSlice;
use kube_sim::kubelet::{Claim, Plugin};
use nvml_sim::{Action, Code, Fault, SimNode};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};

const FIRST_1G: &str = "gpu-0000-1a-00-mig-1g-10gb-6";
const SECOND_1G: &str = "gpu-0000-1a-00-mig-1g-10gb-5";
const OTHER_GPU: &str = "gpu-0000-1b-00";
const OTHER_1G: &str = "gpu-0000-1b-00-mig-1g-10gb-6";
const OTHER_3G: &str = "gpu-0000-1b-00-mig-3g-40gb-4";
const INDEX: &str = "nvmlDeviceGetHandleByIndex_v2";
const CREATE: &str = "nvmlDeviceCreateGpuInstanceWithPlacement";

/// A node whose driver gives up a step of opening NVML after a second, and where it reports its readiness.
async fn lab(gpus: &str, extra: &[&str]) -> (Lab, SocketAddr) {
    let address = free_address();
    let http = address.to_string();
    let arguments = [&["--nvml-step-time", "1", "--http-address", &http], extra].concat();
    (Lab::new(ControlPlane::simulated(true).await, gpus).await.with_args(&arguments), address)
}

/// A call that hangs until this is dropped, also by a test that fails.
struct Hang(SimNode);

impl Hang {
    fn begin(lab: &Lab, fault: Fault) -> Self {
        lab.sim.inject(fault).unwrap();
        Self(SimNode::open(lab.sim.driver_root()).unwrap())
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        self.0.clear_faults().unwrap();
    }
}

async fn readyz_when(address: SocketAddr, text: &str) -> String {
    eventually(&format!("/readyz says {text}"), async || {
        get(address, "/readyz").await.filter(|it| it.contains(text))
    })
    .await
}

/// Names of the published devices that are on this GPU.
fn count_of(slices: &[ResourceSlice], gpu: &str) -> usize {
    device_names(slices).iter().filter(|it| it.starts_with(gpu)).count()
}

async fn event_when(lab: &Lab, reason: &str, text: &str) -> String {
    eventually(&format!("there is an event {reason} that says {text}"), async || {
        node_events(lab, reason).await.into_iter().find(|it| it.contains(text))
    })
    .await
}

fn calls(lab: &Lab, name: &str) -> usize {
    lab.sim.calls().unwrap().iter().filter(|it| it.call == name).count()
}

async fn unprepared_at_last(lab: &Lab, kubelet: &Plugin, claims: &[&Claim]) {
    for claim in claims {
        eventually("the claim is unprepared", async || unprepare(kubelet, claim).await.ok()).await;
    }
    assert_eq!(lab.left(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_nvml_does_not_open_the_driver_is_registered_and_what_needs_no_gpu_is_unprepared() {
    let arguments = ["--nvml-patience", "1", "--rescan-interval", "3600"];
    let (mut lab, health) = lab("1xH100-80GB,1xL4", &arguments).await;
    lab.start();
    let kubelet = lab.kubelet().await;
    let whole = lab.claim_of("whole", &lab.gpu_name(1)).await;
    let part = lab.claim_of("part", FIRST_1G).await;
    for claim in [&whole, &part] {
        prepare(&kubelet, claim).await.unwrap();
    }
    lab.stop().await;
    let hang = Hang::begin(&lab, Fault::hanging("nvmlInit_v2"));
    lab.start();
    let kubelet = lab.kubelet().await;
    unprepare(&kubelet, &whole).await.unwrap();
    let refused = unprepare(&kubelet, &part).await.unwrap_err();
    assert!(refused.contains("NVML does not answer"), "{refused}");
    let refused = prepare(&kubelet, &whole).await.unwrap_err();
    assert!(refused.contains("NVML does not answer"), "{refused}");
    let answer = readyz_when(health, "[-] nvml: a call does not come back: NVML for").await;
    assert!(answer.contains("gpus: none: NVML does not answer"), "{answer}");
    drop(hang);
    // No regular look comes between.
    readyz_when(health, "gpus: 2 GPUs").await;
    lab.slices_when(|it| is_complete(it) && device_names(it).len() == 27).await;
    prepare(&kubelet, &whole).await.unwrap();
    unprepared_at_last(&lab, &kubelet, &[&whole, &part]).await;
    lab.stop().await;
}

/// A driver that starts while this call hangs on the first of two GPUs.
async fn the_other_gpu_is_served(call: &str, knows_uuid: bool) {
    let (mut lab, health) = lab("2xH100-80GB", &["--nvml-patience", "2", "--rescan-interval", "1"]).await;
    let uuid = lab.sim.snapshot().unwrap().gpus[0].uuid.clone();
    let hang = Hang::begin(&lab, Fault::hanging(call).on_gpu(0));
    lab.start();
    let kubelet = lab.kubelet().await;
    let only_other = |it: &[ResourceSlice]| is_complete(it) && device_names(it).len() == 26;
    let slices = lab.slices_when(only_other).await;
    assert_eq!(count_of(&slices, OTHER_GPU), 26, "{call}");
    let gpu = if knows_uuid { uuid.as_str() } else { "0" };
    event_when(&lab, "GpuNotOffered", &format!("GPU {gpu}: NVML does not answer for this GPU")).await;
    readyz_when(health, &format!("[-] nvml: a call does not come back: GPU {gpu} for")).await;

    let claim = lab.claim_of("one", FIRST_1G).await;
    let other = lab.claim_of("other", OTHER_1G).await;
    prepare(&kubelet, &other).await.unwrap();
    let refused = prepare(&kubelet, &claim).await.unwrap_err();
    assert!(
        refused.contains("NVML does not answer for this GPU") && !refused.contains("delete"),
        "{refused}"
    );
    unprepare(&kubelet, &claim).await.unwrap();
    unprepare(&kubelet, &other).await.unwrap();

    drop(hang);
    lab.slices_when(|it| is_complete(it) && device_names(it).len() == 52).await;
    prepare(&kubelet, &claim).await.unwrap();
    unprepared_at_last(&lab, &kubelet, &[&claim]).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_whose_discovery_hangs_is_named_and_the_others_are_served() {
    let calls = [
        (INDEX, false),
        ("nvmlDeviceGetUUID", false),
        ("nvmlDeviceGetPciInfo_v3", true),
        ("nvmlDeviceGetMigMode", true),
        ("nvmlDeviceGetGpuInstancePossiblePlacements_v2", true),
    ];
    join_all(calls.map(|(call, knows_uuid)| the_other_gpu_is_served(call, knows_uuid))).await;
}

/// A driver as a process of its own, which ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// Names of its threads.
    fn threads(&self) -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap();
        let names = tasks.filter_map(|it| fs::read_to_string(it.ok()?.path().join("comm")).ok());
        names.map(|it| it.trim_end().to_owned()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_hangs_has_one_thread_that_discovers_it_however_often_the_node_is_looked_at() {
    let (lab, _) = lab("2xH100-80GB", &["--rescan-interval", "1"]).await;
    lab.sim.configure(|it| it.log_calls = true).unwrap();
    let _hang = Hang::begin(&lab, Fault::hanging(INDEX).on_gpu(0));
    let process = Process(lab.spawn());
    eventually("it has looked again and again", async || {
        (5 <= calls(&lab, "nvmlDeviceGetCount_v2")).then_some(())
    })
    .await;
    let threads = process.threads();
    assert_eq!(threads.iter().filter(|it| *it == "discover-0").count(), 1, "{threads:?}");
    // Each look discovers the other one again, which takes a moment.
    eventually("the thread that discovers the other GPU ends", async || {
        process.threads().iter().all(|it| it != "discover-1").then_some(())
    })
    .await;
}

/// Claims on two GPUs, of a driver that finds its library stale while this hangs.
async fn stale_under(lab: &mut Lab, fault: Fault) -> (Plugin, Claim, Claim, Hang) {
    lab.sim.configure(|it| it.log_calls = true).unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    let (one, other) = (lab.claim_of("one", FIRST_1G).await, lab.claim_of("other", OTHER_1G).await);
    for claim in [&one, &other] {
        prepare(&kubelet, claim).await.unwrap();
    }
    let hang = Hang::begin(lab, fault);
    lab.sim.inject(Fault::returning("nvmlDeviceGetMigMode", Code(18)).on_gpu(1).times(1)).unwrap();
    (kubelet, one, other, hang)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_hangs_when_nvml_is_opened_again_leaves_the_others_served() {
    let (mut lab, health) = lab("2xH100-80GB", &["--rescan-interval", "1"]).await;
    let (kubelet, one, other, hang) = stale_under(&mut lab, Fault::hanging(INDEX).on_gpu(0)).await;
    readyz_when(health, "not offered: GPU 0: NVML does not answer for this GPU").await;
    unprepare(&kubelet, &other).await.unwrap();
    prepare(&kubelet, &other).await.unwrap();
    let refused = unprepare(&kubelet, &one).await.unwrap_err();
    assert!(refused.contains("cannot be read now"), "{refused}");
    drop(hang);
    unprepared_at_last(&lab, &kubelet, &[&one, &other]).await;
    assert_eq!(calls(&lab, "nvmlInit_v2"), 2);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_nvml_does_not_open_again_what_was_open_is_served_and_looked_at() {
    let arguments = ["--rescan-interval", "1", "--nvml-patience", "1"];
    let (mut lab, health) = lab("2xH100-80GB", &arguments).await;
    let (kubelet, one, other, hang) = stale_under(&mut lab, Fault::hanging("nvmlInit_v2")).await;
    readyz_when(health, "[-] nvml: a call does not come back: NVML for").await;
    lab.sim.plant_instance(0, "1g.10gb", 0).unwrap();
    event_when(&lab, "UnmanagedInstance", "0:1").await;
    for claim in [&one, &other] {
        unprepare(&kubelet, claim).await.unwrap();
        prepare(&kubelet, claim).await.unwrap();
    }
    // One attempt, however often it is looked at: it is logged when it ends.
    assert_eq!(calls(&lab, "nvmlInit_v2"), 1);
    drop(hang);
    eventually("it is opened", async || (calls(&lab, "nvmlInit_v2") == 2).then_some(())).await;
    lab.sim.on_gpu(0, |gpu| gpu.instances.retain(|it| it.start != 0)).unwrap();
    unprepared_at_last(&lab, &kubelet, &[&one, &other]).await;
    lab.stop().await;
}

/// A claim of the first GPU that hangs in NVML, in a call that was answered.
async fn hung_claim(lab: &Lab, kubelet: &Plugin) -> (Claim, Hang) {
    let begun = lab.claim_of("begun", SECOND_1G).await;
    let hang = Hang::begin(lab, Fault::hanging(CREATE).on_gpu(0));
    let refused = prepare(kubelet, &begun).await.unwrap_err();
    assert!(refused.contains("the driver goes on"), "{refused}");
    (begun, hang)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_work_on_a_hung_gpu_has_not_begun_is_given_back_with_its_devices_of_other_gpus() {
    let arguments = ["--rescan-interval", "3600", "--call-budget", "1", "--nvml-patience", "3"];
    let (mut lab, _) = lab("2xH100-80GB", &arguments).await;
    lab.start();
    let kubelet = lab.kubelet().await;
    let (begun, hang) = hung_claim(&lab, &kubelet).await;
    let waits = lab.claim("waits", &[("a", DRIVER, FIRST_1G), ("b", DRIVER, OTHER_3G)]).await;
    let refused = prepare(&kubelet, &waits).await.unwrap_err();
    assert!(refused.contains(FIRST_1G) && refused.contains("the driver goes on"), "{refused}");
    assert_eq!(lab.instances(), [(1, "3g.40gb".to_owned(), 4)]);
    eventually("nothing is left of the claim", async || {
        (lab.instances().is_empty() && lab.recorded() == [begun.uid.clone()]).then_some(())
    })
    .await;
    unprepare(&kubelet, &waits).await.unwrap();
    // Now that the GPU is known to hang, nothing waits for it.
    let uuid = lab.sim.snapshot().unwrap().gpus[0].uuid.clone();
    let refused = prepare(&kubelet, &waits).await.unwrap_err();
    assert!(refused.contains(&format!("GPU {uuid} hangs")) && refused.contains(FIRST_1G), "{refused}");
    unprepare(&kubelet, &waits).await.unwrap();
    assert_eq!((lab.instances(), lab.recorded()), (Vec::new(), vec![begun.uid.clone()]));
    // Under the work that does run nothing is undone.
    unprepare(&kubelet, &begun).await.unwrap_err();
    drop(hang);
    unprepared_at_last(&lab, &kubelet, &[&begun]).await;
    prepare(&kubelet, &waits).await.unwrap();
    unprepared_at_last(&lab, &kubelet, &[&waits]).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_for_which_nothing_was_created_is_undone_while_its_gpu_hangs() {
    let (mut lab, _) = lab("2xH100-80GB", &["--rescan-interval", "3600"]).await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    let mut process = lab.spawn();
    let kubelet = lab.kubelet().await;
    lab.sim.inject(Fault::new("nvmlDeviceSetMigMode", Action::CrashBefore).times(1)).unwrap();
    assert!(kubelet.prepare(std::slice::from_ref(&claim)).await.is_err(), "the process died");
    process.wait().unwrap();
    assert_eq!(lab.recorded(), std::slice::from_ref(&claim.uid));
    let hang = Hang::begin(&lab, Fault::hanging(INDEX).on_gpu(0));
    lab.start();
    eventually("it is undone", async || lab.recorded().is_empty().then_some(())).await;
    drop(hang);
    lab.stop().await;
}

/// A claim of both GPUs that is unprepared while the first one hangs: its place on the other one is free for others.
async fn gives_back_the_other_gpu(hangs_in_its_own_work: bool) {
    let arguments = ["--rescan-interval", "3600", "--call-budget", "1", "--nvml-patience", "2"];
    let (mut lab, _) = lab("2xH100-80GB", &arguments).await;
    lab.start();
    let kubelet = lab.kubelet().await;
    let both = lab.claim("both", &[("a", DRIVER, FIRST_1G), ("b", DRIVER, OTHER_3G)]).await;
    prepare(&kubelet, &both).await.unwrap();
    let (others, hang) = match hangs_in_its_own_work {
        true => (None, Hang::begin(&lab, Fault::hanging("nvmlComputeInstanceDestroy").on_gpu(0))),
        false => {
            let (begun, hang) = hung_claim(&lab, &kubelet).await;
            (Some(begun), hang)
        }
    };
    let refused = unprepare(&kubelet, &both).await.unwrap_err();
    assert!(refused.contains(FIRST_1G), "{refused}");
    let next = lab.claim_of("next", OTHER_3G).await;
    eventually("the place is free", async || prepare(&kubelet, &next).await.ok()).await;
    if !hangs_in_its_own_work {
        // What it gave back it does not get again from who has it now.
        let refused = eventually("the claim is free", async || {
            prepare(&kubelet, &both).await.err().filter(|it| !it.contains("has not ended"))
        });
        let refused = refused.await;
        assert!(refused.contains(&next.name), "{refused}");
    }
    assert!(lab.instances().contains(&(1, "3g.40gb".to_owned(), 4)));
    drop(hang);
    eventually("the claim is unprepared", async || unprepare(&kubelet, &both).await.ok()).await;
    assert!(lab.instances().contains(&(1, "3g.40gb".to_owned(), 4)), "it is the other claim's");
    unprepared_at_last(&lab, &kubelet, &others.iter().chain([&next]).collect::<Vec<_>>()).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_claim_had_of_other_gpus_is_free_while_its_unprepare_hangs_on_one() {
    join_all([true, false].map(gives_back_the_other_gpu)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inspect_ends_with_the_reason_where_nvml_does_not_open_and_shows_the_others_where_one_gpu_hangs() {
    let lab = Lab::new(ControlPlane::simulated(true).await, "2xH100-80GB").await;
    let inspect = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dra-driver-mig"));
        let host = lab.path("host");
        command.args(["inspect", "--nvml-step-time", "1", "--plugins-dir"]).arg(lab.path("plugins"));
        command.arg("--driver-root").arg(&host).arg("--proc-root").arg(host.join("proc"));
        command.arg("--sys-root").arg(host.join("sys"));
        tokio::task::block_in_place(|| command.output()).unwrap()
    };
    let hang = Hang::begin(&lab, Fault::hanging("nvmlInit_v2"));
    let output = inspect();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("NVML does not answer"), "{error}");
    drop(hang);
    let _hang = Hang::begin(&lab, Fault::hanging(INDEX).on_gpu(0));
    let output = inspect();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(text.contains("NVML does not answer for this GPU"), "{text}");
    assert!(text.contains(&lab.sim.snapshot().unwrap().gpus[1].uuid), "{text}");
}

/// A file from which no reader comes back, until this is dropped.
struct HungFile(PathBuf, Vec<u8>);

impl HungFile {
    fn new(path: PathBuf) -> Self {
        let content = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        Self(path, content)
    }
}

impl Drop for HungFile {
    fn drop(&mut self) {
        let fifo = self.0.with_extension("fifo");
        fs::rename(&self.0, &fifo).unwrap();
        fs::write(&self.0, &self.1).unwrap();
        // A reader that waits for a writer is let go.
        drop(open(&fifo, OFlags::RDWR | OFlags::NONBLOCK, Mode::empty()));
        fs::remove_file(&fifo).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_the_kernel_module_that_do_not_come_back_hold_up_only_their_gpu() {
    let (lab, health) = lab("3xH100-80GB", &["--call-budget", "1", "--nvml-patience", "1"]).await;
    let _process = Process(lab.spawn());
    let kubelet = lab.kubelet().await;
    let mut claims = Vec::new();
    for device in [FIRST_1G, OTHER_1G] {
        let claim = lab.claim_of(&device[..14], device).await;
        prepare(&kubelet, &claim).await.unwrap();
        claims.push(claim);
    }
    let files = [0, 1].map(|gpu| {
        let id = lab.sim.snapshot().unwrap().gpus[gpu].gpu_instances[0].id;
        let capabilities = lab.path("host/proc/driver/nvidia/capabilities");
        HungFile::new(capabilities.join(format!("gpu{gpu}/mig/gi{id}/access")))
    });
    // As many as the driver has threads for all its calls.
    for claim in &claims {
        let refused = prepare(&kubelet, claim).await.unwrap_err();
        assert!(refused.contains("the GPU did not answer"), "{refused}");
    }
    readyz_when(health, "[-] nvml: a call does not come back: GPU").await;
    let third = lab.claim_of("third", &format!("{}-mig-1g-10gb-6", lab.gpu_name(2))).await;
    prepare(&kubelet, &third).await.unwrap();
    unprepare(&kubelet, &third).await.unwrap();
    drop(files);
    for claim in &claims {
        eventually("it is prepared", async || prepare(&kubelet, claim).await.ok()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_at_the_host_that_does_not_come_back_holds_up_no_look_at_the_gpus() {
    let (mut lab, _) = lab("1xH100-80GB", &["--rescan-interval", "1"]).await;
    lab.start();
    lab.kubelet().await;
    let file = HungFile::new(lab.path("host/proc/driver/nvidia/capabilities/mig/config"));
    // Twice, so that a whole look has come and gone while the file hangs.
    for (start, place) in [(0, "0:1"), (1, "1:1")] {
        lab.sim.plant_instance(0, "1g.10gb", start).unwrap();
        event_when(&lab, "UnmanagedInstance", place).await;
    }
    drop(file);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_the_kernel_module_for_all_gpus_that_does_not_come_back_leaves_the_driver_at_work() {
    let (lab, health) = lab("3xH100-80GB", &["--call-budget", "1", "--nvml-patience", "1"]).await;
    let params = lab.path("host/proc/driver/nvidia/params");
    fs::write(&params, "DeviceFileMode: 438\n").unwrap();
    let _process = Process(lab.spawn());
    let kubelet = lab.kubelet().await;
    let mut claims = Vec::new();
    for gpu in 0..3 {
        let claim = lab.claim_of(&format!("on-{gpu}"), &format!("{}-mig-1g-10gb-6", lab.gpu_name(gpu))).await;
        prepare(&kubelet, &claim).await.unwrap();
        claims.push(claim);
    }
    let file = HungFile::new(params);
    // As many as the driver has threads for all its calls.
    for claim in &claims[..2] {
        let refused = prepare(&kubelet, claim).await.unwrap_err();
        assert!(refused.contains("the GPU did not answer"), "{refused}");
    }
    readyz_when(health, "[-] nvml: a call does not come back: GPU").await;
    unprepare(&kubelet, &claims[2]).await.unwrap();
    drop(file);
    for claim in &claims[..2] {
        eventually("it is prepared", async || prepare(&kubelet, claim).await.ok()).await;
    }
}
