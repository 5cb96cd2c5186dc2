//! A rolling update on one node: the old and the new pod at once, as maxSurge makes them.

use std::net::SocketAddr;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use dra_driver_mig::kubelet::SocketPaths;
use futures::StreamExt;
use k8s_openapi::api::resource::v1::ResourceSlice;
use kube::api::DeleteParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube_sim::kubelet::{Claim, KubeletClient, Plugin};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::common::{ControlPlane, DRIVER, Lab, device_names, eventually, get, is_complete};

const OLD: &str = "0a0a0a0a-1111-4222-8333-444444444444";
const NEW: &str = "0b0b0b0b-1111-4222-8333-444444444444";

fn sockets(lab: &Lab, pod: &str) -> SocketPaths {
    SocketPaths::new(&lab.path("plugins").join(DRIVER), &lab.path("registry"), DRIVER, Some(pod))
}

/// Registers the pod's socket, as the kubelet does when it sees it.
async fn register(lab: &Lab, pod: &str) -> Plugin {
    let socket = sockets(lab, pod).registration;
    eventually("the kubelet reaches the pod", async || KubeletClient::register_socket(&socket).await.ok())
        .await
}

async fn is_ready(address: SocketAddr) -> Option<()> {
    let answer = get(address, "/readyz").await?;
    answer.starts_with("HTTP/1.1 200").then_some(())
}

fn terminate(process: &Child) {
    let pid = rustix::process::Pid::from_child(process);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
}

async fn works(kubelet: &Plugin, claim: &Claim) {
    let one = std::slice::from_ref(claim);
    kubelet.prepare(one).await.unwrap().remove(&claim.uid).unwrap().unwrap();
    kubelet.unprepare(one).await.unwrap().remove(&claim.uid).unwrap().unwrap();
}

/// A claim that is prepared and unprepared again and again.
struct Traffic {
    /// Who is called.
    kubelet: watch::Sender<Plugin>,
    rounds: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Traffic {
    fn start(lab: &Arc<Lab>, first: &Plugin) -> Self {
        let (kubelet, chosen) = watch::channel(first.clone());
        let (rounds, is_over) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (lab, counted, until) = (Arc::clone(lab), Arc::clone(&rounds), Arc::clone(&is_over));
        let task = tokio::spawn(async move {
            let claim = lab.claim_of("traffic", "gpu-0000-1b-00-mig-1g-10gb-6").await;
            while !until.load(Ordering::Relaxed) {
                let kubelet = chosen.borrow().clone();
                works(&kubelet, &claim).await;
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { kubelet, rounds, is_over, task }
    }

    /// Some more rounds, none of which failed.
    async fn goes_on(&self) {
        let until = self.rounds.load(Ordering::Relaxed) + 3;
        eventually("calls succeed", async || {
            assert!(!self.task.is_finished(), "a call failed");
            (until <= self.rounds.load(Ordering::Relaxed)).then_some(())
        })
        .await;
    }

    async fn end(self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_rolling_update_calls_succeed_throughout_and_slices_are_not_touched() {
    let ControlPlane::Simulated(server) = ControlPlane::simulated(true).await else { unreachable!() };
    let lab = Arc::new(Lab::new(ControlPlane::Simulated(Arc::clone(&server)), "2xH100-80GB").await);
    let (mut old, old_address) = lab.spawn_pod(OLD);
    let to_old = register(&lab, OLD).await;
    eventually("the old pod is ready", async || is_ready(old_address).await).await;
    let before = lab.slices_when(is_complete).await;
    let running = lab.claim_of("running", "gpu-0000-1a-00-mig-1g-10gb-5").await;
    to_old.prepare(std::slice::from_ref(&running)).await.unwrap().remove(&running.uid).unwrap().unwrap();

    // The new pod comes up beside it. Nothing is allocated meanwhile, so that whatever is written is its doing.
    let seen = server.requests().len();
    let (mut new, new_address) = lab.spawn_pod(NEW);
    let to_new = register(&lab, NEW).await;
    eventually("the new pod is ready", async || is_ready(new_address).await).await;
    let writes: Vec<_> = server
        .requests()
        .split_off(seen)
        .into_iter()
        .filter(|it| it.is_write() && it.path.contains("resourceslices") && !it.query.contains("dryRun=All"))
        .collect();
    assert!(writes.is_empty(), "{writes:?}");
    assert_eq!(lab.files("registry").len(), 2, "each pod has its socket");
    eventually("the old pod is still ready", async || is_ready(old_address).await).await;

    // From here on pods come and go without a pause; the kubelet calls the pod that registered last.
    let traffic = Traffic::start(&lab, &to_old);
    traffic.goes_on().await;
    traffic.kubelet.send_replace(to_new.clone());
    traffic.goes_on().await;

    // The old pod gets its signal to end while a call of its own runs, which it finishes.
    lab.sim.set_latency("nvmlDeviceCreateGpuInstanceWithPlacement", 300.0).unwrap();
    let last = lab.claim_of("last", "gpu-0000-1a-00-mig-1g-10gb-6").await;
    let (answer, ()) = tokio::join!(to_old.prepare(std::slice::from_ref(&last)), async {
        let journal = lab.path("plugins").join(DRIVER).join("claims").join(format!("{}.jsonl", last.uid));
        eventually("the old pod works on it", async || journal.exists().then_some(())).await;
        terminate(&old);
    });
    answer.unwrap().remove(&last.uid).unwrap().unwrap();
    assert!(tokio::task::spawn_blocking(move || old.wait()).await.unwrap().unwrap().success());
    traffic.goes_on().await;
    traffic.end().await;

    // What the old pod prepared is there, is the new pod's now, and the old pod's sockets are gone.
    assert_eq!(lab.instances().len(), 2);
    assert_eq!(lab.files("registry"), [format!("{DRIVER}-{NEW}@reg.sock")]);
    assert!(!sockets(&lab, OLD).plugin.exists() && sockets(&lab, NEW).plugin.exists());
    for claim in [&running, &last] {
        to_new.unprepare(std::slice::from_ref(claim)).await.unwrap().remove(&claim.uid).unwrap().unwrap();
    }
    let uids = |slices: &[ResourceSlice]| {
        slices.iter().map(|it| it.metadata.uid.clone().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(uids(&lab.slices().await), uids(&before), "no slice was deleted and made again");
    assert!(lab.instances().is_empty());
    terminate(&new);
    assert!(new.wait().unwrap().success());
}

/// True where slices are what a pod publishes that was configured to offer `1g.10gb` and no other profile.
fn is_small(slices: &[ResourceSlice]) -> bool {
    let names = device_names(slices);
    !names.is_empty() && names.iter().all(|it| !it.contains("-mig-") || it.contains("-mig-1g-10gb-"))
}

#[tokio::test(flavor = "multi_thread")]
async fn where_two_pods_would_publish_different_slices_the_newer_one_does_and_the_older_again_when_it_is_gone()
 {
    let lab = Lab::new(ControlPlane::simulated(true).await, "2xH100-80GB").await;
    let (mut old, old_address) = lab.spawn_pod(OLD);
    register(&lab, OLD).await;
    eventually("the old pod is ready", async || is_ready(old_address).await).await;
    let is_large = |it: &[ResourceSlice]| is_complete(it) && !is_small(it);
    lab.slices_when(is_large).await;

    let (mut new, new_address) = lab.spawn_pod_with(NEW, &["--profiles", "1g.10gb"]);
    register(&lab, NEW).await;
    eventually("the new pod is ready", async || is_ready(new_address).await).await;
    let is_small_pool = |it: &[ResourceSlice]| is_complete(it) && is_small(it);
    lab.slices_when(is_small_pool).await;

    // Every state of every slice from here on, while things happen that make both pods look at the slices again.
    let watched = watcher(lab.slices_api(), watcher::Config::default()).applied_objects();
    let (seen, collected) =
        (Arc::new(AtomicUsize::new(0)), Arc::<std::sync::Mutex<Vec<ResourceSlice>>>::default());
    let (counted, kept) = (Arc::clone(&seen), Arc::clone(&collected));
    let watching = tokio::spawn(async move {
        let mut watched = std::pin::pin!(watched);
        while let Some(Ok(slice)) = watched.next().await {
            kept.lock().unwrap().push(slice);
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    for _ in 0..3 {
        let before = seen.load(Ordering::Relaxed);
        let name = lab.slices_when(is_small_pool).await[0].metadata.name.clone().unwrap();
        lab.slices_api().delete(&name, &DeleteParams::default()).await.unwrap();
        eventually("it is written again", async || (before < seen.load(Ordering::Relaxed)).then_some(()))
            .await;
        lab.slices_when(is_small_pool).await;
    }
    let collected = std::mem::take(&mut *collected.lock().unwrap());
    let large: Vec<_> = collected
        .iter()
        .filter(|it| it.spec.devices.is_some())
        .filter(|it| !is_small(std::slice::from_ref(it)))
        .collect();
    assert!(large.is_empty(), "the old pod wrote {} slices", large.len());
    watching.abort();
    eventually("the old pod stays ready", async || is_ready(old_address).await).await;

    // The new one was no good. Killed, it leaves its socket behind, on which no process answers.
    new.kill().unwrap();
    new.wait().unwrap();
    lab.slices_when(is_large).await;
    terminate(&old);
    assert!(old.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sockets_of_a_killed_pod_do_not_stay() {
    let lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await;
    let (mut killed, _) = lab.spawn_pod(OLD);
    register(&lab, OLD).await;
    killed.kill().unwrap();
    killed.wait().unwrap();
    let left = sockets(&lab, OLD);
    for path in [&left.registration, &left.plugin] {
        // Long ago, as the driver judges it: a socket that was just made may be about to be listened on.
        let past = rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: past, last_modification: past };
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::empty()).unwrap();
    }
    let (mut new, _) = lab.spawn_pod(NEW);
    let gone = async || (!left.registration.exists() && !left.plugin.exists()).then_some(());
    eventually("the killed pod's sockets are gone", gone).await;
    register(&lab, NEW).await;
    terminate(&new);
    assert!(new.wait().unwrap().success());
}
