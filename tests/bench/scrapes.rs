//! What reading the metrics costs: 2,000 prepares and unprepares with 100 readings a second and as many without, in turns
//! within one run of the release binary. Prints the ratio of the medians and, as the noise that any ratio of this run has,
//! the same ratio between two halves of the calls that were not read beside. Nothing fails because a machine is slow.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

#[allow(dead_code, reason = "the other benchmark uses the rest")]
mod node;
#[allow(dead_code, reason = "the other benchmark uses the rest")]
mod nvml_time;
mod reader;
#[allow(dead_code, reason = "the other benchmark uses the rest")]
mod spread;

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use futures::future::try_join_all;
use kube_sim::kubelet::{Claim, Plugin};
use tokio::io::BufReader;
use tokio::net::TcpStream;

use node::Node;
use reader::{Reader, read as read_once};
use spread::{Samples, Table};

/// Prepares, and as many unprepares, with readings beside them; and again as many without.
const CALLS: usize = 2000;
/// Calls of each kind before it changes.
const BLOCK: usize = 50;
/// 100 readings a second.
const PAUSE: Duration = Duration::from_millis(10);

/// Times of the calls of one kind.
#[derive(Default)]
struct Times {
    prepares: Vec<Duration>,
    unprepares: Vec<Duration>,
}

fn main() -> anyhow::Result<()> {
    // `cargo test --all-targets` runs benchmarks, too, without this argument.
    if !std::env::args().any(|it| it == "--bench") {
        println!("nothing was measured: run it with `cargo bench`");
        return Ok(());
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(measure())
}

async fn measure() -> anyhow::Result<()> {
    let node = Node::new().await?;
    let (table, note) =
        measure_on(&node).await.with_context(|| format!("the driver's log ends so:\n{}", node.log_tail()))?;
    print!("{}{note}", table.render());
    Ok(())
}

async fn measure_on(node: &Node) -> anyhow::Result<(Table, String)> {
    let driver = node.start().await?;
    let (kubelet, claims) = (node.kubelet().await?, node.allocated_claims()?);
    // Most of the node is in use, so that a reading has something to tell and instances to look at.
    let (kept, moving) = claims.split_at(claims.len() - 8);
    try_join_all(kept.iter().map(|it| prepare(&kubelet, it))).await?;
    let [mut quiet, mut other_quiet, mut read] = [Times::default(), Times::default(), Times::default()];
    let (mut readings, mut reading_time) = (0, Duration::ZERO);
    let mut claims = moving.iter().cycle();
    block(&kubelet, &mut claims, &mut Times::default()).await?;
    for round in 0..CALLS / BLOCK {
        // In turns, and each as often first as second.
        for is_read in [round % 2 == 0, round % 2 == 1] {
            if is_read {
                let (reader, clock) = (Reader::every(node.metrics, PAUSE), Instant::now());
                block(&kubelet, &mut claims, &mut read).await?;
                (readings, reading_time) = (readings + reader.count(), reading_time + clock.elapsed());
            } else {
                let times = if round / 2 % 2 == 0 { &mut quiet } else { &mut other_quiet };
                block(&kubelet, &mut claims, times).await?;
            }
        }
    }
    let text = read_once(&mut BufReader::new(TcpStream::connect(node.metrics).await?)).await?;
    let refused = refused_destroys(&text);
    driver.stop()?;
    let mut table = Table::default();
    for (what, of) in
        [("prepare", (|it| &it.prepares) as fn(&Times) -> &Vec<Duration>), ("unprepare", |it| &it.unprepares)]
    {
        let median = |times: Vec<Duration>| Samples::milliseconds(times);
        let all_quiet = median(of(&quiet).iter().chain(of(&other_quiet)).copied().collect());
        let beside = median(of(&read).clone());
        let ratio = beside.median() / all_quiet.median();
        let noise = median(of(&quiet).clone()).median() / median(of(&other_quiet).clone()).median();
        let cells = (format!("{ratio:.3}"), format!("noise of this run: {noise:.3}"));
        table.judged(&format!("{what} beside readings, to {what} alone"), cells, "below 1.05", ratio < 1.05);
        table.shown("beside readings", beside.cells("ms"));
        table.shown("alone", all_quiet.cells("ms"));
    }
    table.judged("destroys that were refused", (refused.to_string(), String::new()), "0", refused == 0.0);
    #[expect(clippy::cast_precision_loss, reason = "some thousands")]
    let rate = readings as f64 / reading_time.as_secs_f64();
    let note = format!("{rate:.0} readings a second of {} bytes, {readings} in all\n", text.len());
    Ok((table, note))
}

/// A block of prepares and unprepares, one claim after the other.
async fn block<'c>(
    kubelet: &Plugin,
    claims: &mut impl Iterator<Item = &'c Claim>,
    times: &mut Times,
) -> anyhow::Result<()> {
    for claim in claims.take(BLOCK) {
        let clock = Instant::now();
        prepare(kubelet, claim).await?;
        times.prepares.push(clock.elapsed());
        let clock = Instant::now();
        unprepare(kubelet, claim).await?;
        times.unprepares.push(clock.elapsed());
    }
    Ok(())
}

/// As the driver itself has counted them.
fn refused_destroys(metrics: &str) -> f64 {
    let errors =
        metrics.lines().filter(|it| it.starts_with("dra_mig_nvml_errors_total{") && it.contains("Destroy"));
    errors.filter_map(|it| it.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

async fn prepare(kubelet: &Plugin, claim: &Claim) -> anyhow::Result<()> {
    for (uid, devices) in kubelet.prepare(std::slice::from_ref(claim)).await? {
        let devices = devices.map_err(|error| anyhow!("prepare {uid}: {error}"))?;
        ensure!(devices.len() == 1, "prepare {uid}: {} devices", devices.len());
    }
    Ok(())
}

async fn unprepare(kubelet: &Plugin, claim: &Claim) -> anyhow::Result<()> {
    let answer = kubelet.unprepare(std::slice::from_ref(claim)).await?;
    answer.into_iter().try_for_each(|(uid, it)| it.map_err(|error| anyhow!("unprepare {uid}: {error}")))
}
