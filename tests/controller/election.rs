//! Which of several controllers acts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kube_sim::{ApiServer, Fault, Options};
use mig_controller::client::client;
use mig_controller::election::{Campaign, Candidate, Leadership, Timings};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, eventually};

/// A candidate that runs.
struct Runner {
    leadership: Leadership,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Runner {
    async fn start(server: &ApiServer, name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("kubeconfig");
        server.write_kubeconfig(&file).unwrap();
        let client = client(Some(&file)).await.unwrap();
        let timings = Timings::of_lease(Duration::from_secs(1));
        let candidate = Candidate::new("default", "lease", name, timings);
        let (campaign, leadership) = Campaign::new(client, "default", candidate);
        let stop = CancellationToken::new();
        let task = tokio::spawn(campaign.run(stop.clone(), stop.clone()));
        Self { leadership, stop, task }
    }

    async fn leads(&self, what: &str) {
        eventually(what, || self.leadership.holds().then_some(())).await;
    }
}

/// Looks all the time whether more than one leads.
fn observe(all: &[&Runner]) -> (Arc<AtomicBool>, CancellationToken) {
    let (two, end) = (Arc::new(AtomicBool::new(false)), CancellationToken::new());
    let leaders: Vec<Leadership> = all.iter().map(|it| it.leadership.clone()).collect();
    let (seen, ended) = (Arc::clone(&two), end.clone());
    std::thread::spawn(move || {
        while !ended.is_cancelled() {
            if 1 < leaders.iter().filter(|it| it.holds()).count() {
                seen.store(true, Ordering::Relaxed);
            }
            std::thread::yield_now();
        }
    });
    (two, end)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_never_lead_at_once_and_when_one_dies_or_is_cut_off_another_takes_over() {
    let server = ApiServer::start(Options::default()).await.unwrap();
    let first = Runner::start(&server, "first").await;
    first.leads("the first leads").await;
    let (second, third) = (Runner::start(&server, "second").await, Runner::start(&server, "third").await);
    let (two, end) = observe(&[&first, &second, &third]);

    // Killed: nothing is released.
    first.task.abort();
    let of = |name: bool| if name { &second } else { &third };
    let is_second =
        eventually("another one leads", || [true, false].into_iter().find(|it| of(*it).leadership.holds()))
            .await;

    // No replica can write: the leader stops by itself.
    server.inject(usize::MAX, |it| it.method == "PUT", Fault::Status(500));
    eventually("it stops acting", || (!of(is_second).leadership.holds()).then_some(())).await;
    server.clear_faults();
    let is_second =
        eventually("one leads again", || [true, false].into_iter().find(|it| of(*it).leadership.holds()))
            .await;

    // Stopped: it is released, and the other one need not wait.
    of(is_second).stop.cancel();
    of(!is_second).leads("the last one leads").await;
    end.cancel();
    assert!(!two.load(Ordering::Relaxed), "two led at one time");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_or_hangs_does_not_make_two_leaders() {
    let server = ApiServer::start(Options::default()).await.unwrap();
    let (first, second) = (Runner::start(&server, "first").await, Runner::start(&server, "second").await);
    let (two, end) = observe(&[&first, &second]);
    let one_leads = || [&first, &second].iter().any(|it| it.leadership.holds()).then_some(());
    for fault in [Fault::AfterEffect(500), Fault::Hang, Fault::Garbage, Fault::Status(409)] {
        eventually("one leads", one_leads).await;
        server.inject(3, |it| it.path.contains("/leases"), fault);
    }
    eventually("one leads after all of it", one_leads).await;
    end.cancel();
    assert!(!two.load(Ordering::Relaxed), "two led at one time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_reports_what_is_new_and_repeats_nothing() {
    let cluster = Cluster::new(&[("gpu-1", "1xH100-80GB")]).await;
    cluster.add_pod("holder", "gpu.dra-driver.dev");
    cluster.scheduled("holder").await;
    cluster.add_pod("before", "mig-1g.10gb");
    let first = cluster.controller("first", &[]);
    cluster.note("before").await;
    let second = cluster.controller("second", &[]);
    let holder = cluster.holder().unwrap();
    assert!(holder.starts_with("first_"), "{holder}");
    first.stop().await;
    eventually("the second leads", || cluster.holder().filter(|it| it.starts_with("second_"))).await;
    cluster.add_pod("after", "mig-2g.20gb");
    let note = cluster.note("after").await;
    assert!(note.contains("2g.20gb"), "{note}");
    assert_eq!(cluster.reported("before").len(), 1);
    let instance = cluster.reported("after")[0]["reportingInstance"].as_str().unwrap().to_owned();
    assert!(instance.starts_with("second_"), "{instance}");
    second.stop().await;
    assert_eq!(cluster.holder(), None, "released");
}
