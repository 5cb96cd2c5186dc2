//! The job mapping files for NVIDIA's DCGM exporter: there with a claim's devices, gone with them, whatever the driver and the disk do.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use crate::common;
use common::shim::{Action, CRASH_STATUS, Met, Op, Shim};
use common::{ControlPlane, Lab, eventually, prepare, try_prepare, try_unprepare, unprepare};
use kube_sim::kubelet::Claim;

const MIG: &str = "gpu-0000-1a-00-mig-1g-10gb-6";
const WHOLE: &str = "gpu-0000-1b-00";
const ENOSPC: i32 = 28;

/// A node with two GPUs and the directory; the driver does not run yet.
async fn lab() -> Lab {
    let mut lab = Lab::new(ControlPlane::simulated(true).await, "2xH100-80GB").await;
    let directory = mapping(&lab).display().to_string();
    lab.set_args(&["--dcgm-job-mapping-dir", &directory]);
    lab
}

fn mapping(lab: &Lab) -> PathBuf {
    lab.path("job-mapping")
}

/// Every file in the directory with its content.
fn files(lab: &Lab) -> BTreeMap<String, String> {
    let names = lab.files("job-mapping");
    // A file may be replaced between the two.
    names
        .into_iter()
        .filter_map(|it| Some((it.clone(), fs::read_to_string(mapping(lab).join(it)).ok()?)))
        .collect()
}

async fn becomes(lab: &Lab, what: &str, expected: &[(&str, String)]) {
    let expected: BTreeMap<String, String> =
        expected.iter().map(|(name, text)| ((*name).to_owned(), text.clone())).collect();
    eventually(&format!("{what}: {expected:?}"), async || (files(lab) == expected).then_some(())).await;
}

/// The file of the only instance on the first GPU.
fn file_of_instance(lab: &Lab) -> String {
    format!("0.{}", lab.sim.snapshot().unwrap().gpus[0].gpu_instances[0].id)
}

fn line(pod: &str, claim: &Claim) -> String {
    format!("default/{pod}/{}\n", claim.name)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pods_of_instances_and_gpus_are_named_for_as_long_as_their_claims_are_prepared() {
    let mut lab = lab().await;
    fs::create_dir(mapping(&lab)).unwrap();
    fs::write(mapping(&lab).join("7"), "4711\n").unwrap();
    let others = ("7", "4711\n".to_owned());
    lab.start();
    let kubelet = lab.kubelet().await;
    let (mig, whole) = (lab.claim_of("mig", MIG).await, lab.claim_of("whole", WHOLE).await);
    lab.reserve(&mig, &[("pods", "b"), ("pods", "a")]).await;
    lab.reserve(&whole, &[("pods", "c")]).await;
    for claim in [&mig, &whole] {
        prepare(&kubelet, claim).await.unwrap();
    }
    let instance = file_of_instance(&lab);
    let of_mig = (instance.as_str(), line("a", &mig) + &line("b", &mig));
    becomes(&lab, "both", &[of_mig.clone(), ("1", line("c", &whole)), others.clone()]).await;
    unprepare(&kubelet, &whole).await.unwrap();
    becomes(&lab, "the instance", &[of_mig, others.clone()]).await;
    unprepare(&kubelet, &mig).await.unwrap();
    becomes(&lab, "nothing of claims", &[others]).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_makes_the_directory_agree_with_the_records_and_so_does_a_reboot() {
    let mut lab = lab().await;
    lab.start();
    let claim = lab.claim_of("mig", MIG).await;
    lab.reserve(&claim, &[("pods", "a")]).await;
    prepare(&lab.kubelet().await, &claim).await.unwrap();
    let instance = file_of_instance(&lab);
    let expected = [(instance.as_str(), line("a", &claim))];
    becomes(&lab, "the pod", &expected).await;
    lab.stop().await;

    // What ended claims and an interrupted write have left; and the file of the claim is that of an earlier instance.
    let at = |name: &str| mapping(&lab).join(name);
    fs::write(at("1"), "default/gone/claim\n").unwrap();
    fs::write(at(".1.tmp"), "defau").unwrap();
    fs::rename(at(&instance), at("0.99")).unwrap();
    lab.start();
    becomes(&lab, "what the records say", &expected).await;
    lab.stop().await;

    lab.sim.reboot().unwrap();
    lab.start();
    becomes(&lab, "nothing after a reboot", &[]).await;
    let kubelet = lab.kubelet().await;
    prepare(&kubelet, &claim).await.unwrap();
    becomes(&lab, "the pod again", &[(file_of_instance(&lab).as_str(), line("a", &claim))]).await;
    unprepare(&kubelet, &claim).await.unwrap();
    becomes(&lab, "nothing", &[]).await;
    lab.stop().await;
}

/// The driver as a process of its own whose file operations in the directory are watched.
struct Watched {
    lab: Lab,
    shim: Shim,
    process: Child,
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Watched {
    async fn new() -> Self {
        let lab = lab().await;
        // So that making it is no point of the first call.
        fs::create_dir(mapping(&lab)).unwrap();
        let shim = Shim::watching(&lab, vec![mapping(&lab)]);
        let process = start(&lab, &shim);
        Self { lab, shim, process }
    }

    /// Waits for the crash, and starts the driver again.
    async fn crashed(&mut self) {
        let process = &mut self.process;
        let status =
            eventually("the driver dies at the point", || std::future::ready(process.try_wait().unwrap()))
                .await;
        assert_eq!(status.code(), Some(CRASH_STATUS));
        self.shim.disarm();
        self.process = start(&self.lab, &self.shim);
    }

    /// Prepares or unprepares a claim and waits until the directory agrees, or until the driver has died.
    async fn call(&mut self, claim: &Claim, is_prepare: bool, dies: bool) {
        let answer = self.ask(claim, is_prepare).await;
        if dies {
            self.crashed().await;
        }
        if answer.is_err() {
            // The driver may have died before it answered. The kubelet asks again.
            assert!(dies, "{answer:?}");
            self.ask(claim, is_prepare).await.unwrap();
        }
        self.agrees(claim, is_prepare).await;
    }

    async fn ask(&self, claim: &Claim, is_prepare: bool) -> Result<(), String> {
        let kubelet = self.lab.kubelet().await;
        match is_prepare {
            true => try_prepare(&kubelet, claim).await.map(drop),
            false => try_unprepare(&kubelet, claim).await,
        }
    }

    async fn agrees(&self, claim: &Claim, is_prepared: bool) {
        match is_prepared {
            true => becomes(&self.lab, "the pod", &[(&file_of_instance(&self.lab), line("a", claim))]).await,
            false => becomes(&self.lab, "nothing", &[]).await,
        }
    }

    /// What the directory met in a call without a fault.
    async fn reference(&mut self, claim: &Claim, is_prepare: bool) -> Vec<Met> {
        self.shim.forget();
        self.call(claim, is_prepare, false).await;
        let is_last = |it: &Met| it.op == Op::Sync && it.path.ends_with("job-mapping");
        let mut met = eventually("the change is synced", async || {
            let met = self.shim.met();
            (!is_prepare || met.last().is_some_and(is_last)).then_some(met)
        })
        .await;
        if !is_prepare {
            // What comes before is the end of the prepare.
            met.retain(|it| it.op == Op::Unlink);
        }
        met
    }
}

fn start(lab: &Lab, shim: &Shim) -> Child {
    let mut command = shim.command(lab);
    command.env("MALLOC_ARENA_MAX", "1").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_the_driver_dies_at_the_directory_the_next_start_corrects_it() {
    let mut watched = Watched::new().await;
    let claim = watched.lab.claim_of("mig", MIG).await;
    watched.lab.reserve(&claim, &[("pods", "a")]).await;
    let mut points = 0;
    for is_prepare in [true, false] {
        let met = watched.reference(&claim, is_prepare).await;
        assert!(met.iter().any(|it| it.op == if is_prepare { Op::Rename } else { Op::Unlink }), "{met:?}");
        for (at, point) in met.iter().enumerate() {
            let skip = met[..at].iter().filter(|it| it.op == point.op).count();
            for action in [Action::CrashBefore, Action::CrashAfter] {
                watched.call(&claim, !is_prepare, false).await;
                watched.shim.arm(action, u32::try_from(skip).unwrap(), Some(1), &[point.op]);
                watched.call(&claim, is_prepare, true).await;
                points += 1;
            }
        }
    }
    assert!(12 <= points, "{points} points");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_no_call_and_the_directory_is_right_once_it_has_room() {
    let mut watched = Watched::new().await;
    let claim = watched.lab.claim_of("mig", MIG).await;
    watched.lab.reserve(&claim, &[("pods", "a")]).await;
    for op in [Op::Open, Op::Write, Op::Sync, Op::Rename] {
        watched.shim.arm(Action::Errno(ENOSPC), 0, None, &[op]);
        prepare(&watched.lab.kubelet().await, &claim).await.unwrap();
        eventually("the disk is full", async || {
            watched.shim.met().iter().any(|it| it.verdict.starts_with("errno")).then_some(())
        })
        .await;
        watched.shim.disarm();
        watched.agrees(&claim, true).await;
        watched.call(&claim, false, false).await;
    }
}
