//! What demand-driven layouts and turns are worth: seeded arrivals of pods that wait until they are served, on H100 GPUs.
//! `cargo bench -p mig-controller --bench demand` prints the tables, in Markdown, and the targets of each. Nothing fails because a
//! target is missed: it is printed, and the exit status is 0. With `--quick` the runs are short, `--gpus 8` and `--load 0.8` choose some
//! of them, `--turns` tries other turns; with `--large` only the time of one decision in a large cluster is measured.
//!
//! All servers get the same arrivals. Times are in mean run times (10 minutes); a settle time of 10 s, an interval of 30 s between
//! changes of a node and a reaction of 1 s are part of what is measured.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]
#![allow(clippy::unwrap_used, reason = "it fails by panicking")]

mod arrivals;
mod bounds;
#[allow(dead_code, reason = "tests use the rest")]
#[path = "../../demand/chance.rs"]
mod chance;
mod cluster;
mod fixed;
#[path = "../../demand/large.rs"]
mod large;
#[path = "../../demand/model.rs"]
mod model;
#[allow(dead_code, reason = "tests use the rest")]
#[path = "../../demand/node.rs"]
mod node;
mod oracle;
mod outcome;
#[allow(dead_code, reason = "tests use the rest")]
#[path = "../../demand/pods.rs"]
mod pods;
mod scenario;
mod table;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use mig_controller::demand::{Memory, Options, decide};

use arrivals::Pattern;
use scenario::{Report, Scenario};

const LOADS: [f64; 3] = [0.5, 0.8, 1.0];
/// GPUs and pods of a table.
const SIZES: [(usize, usize); 3] = [(1, 1_500), (8, 3_000), (64, 6_000)];
const QUICK: [(usize, usize); 3] = [(1, 400), (8, 800), (64, 2_000)];

fn main() {
    // `cargo test --all-targets` runs benchmarks, too, without this argument.
    let has = |it: &str| std::env::args().any(|argument| argument == it);
    if !has("--bench") {
        println!("nothing was replayed: run it with `cargo bench -p mig-controller --bench demand`");
        return;
    }
    large_cluster();
    if has("--large") {
        return;
    }
    let start = Instant::now();
    let sizes: &[(usize, usize)] = if has("--quick") { &QUICK } else { &SIZES };
    let chosen = |name: &str, value: String| {
        let mut arguments = std::env::args().skip_while(|it| it != name).skip(1);
        arguments.next().is_none_or(|it| it == value)
    };
    let turns = has("--turns");
    let mut scenarios = Vec::new();
    for (gpus, count) in sizes.iter().copied().filter(|it| chosen("--gpus", it.0.to_string())) {
        for pattern in Pattern::ALL {
            let loads = LOADS.into_iter().filter(|it| chosen("--load", it.to_string()));
            scenarios.extend(loads.map(|load| Scenario { pattern, gpus, count, load, turns }));
        }
    }
    let mut targets = Vec::new();
    replay(&scenarios, |report| {
        println!("{}", report.table);
        targets.extend(report.targets);
    });
    println!("**Targets**\n\n{}\n\ntook {} s", targets.join("\n"), start.elapsed().as_secs());
}

/// Replays scenarios on all cores, and reports them in their order as soon as that is possible.
fn replay(scenarios: &[Scenario], mut report: impl FnMut(Report)) {
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            let (next, sender) = (&next, sender.clone());
            scope.spawn(move || {
                while let Some((index, it)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    scenarios.get(index).map(|it| (index, it))
                } {
                    // The receiver is there as long as this scope is.
                    drop(sender.send((index, it.run())));
                }
            });
        }
        drop(sender);
        let (mut waiting, mut shown) = (std::collections::BTreeMap::new(), 0);
        for (index, it) in receiver {
            waiting.insert(index, it);
            while let Some(it) = waiting.remove(&shown) {
                report(it);
                shown += 1;
            }
        }
    });
}

/// A thousand nodes and 5,000 pods.
fn large_cluster() {
    let world = large::world(1_000, 5_000);
    let options = Options { hold_after: Some(Duration::from_secs(60)), ..Options::default() };
    let (before, start) = (resident(), Instant::now());
    let outcome = decide(&world, &options, &Memory::default(), pods::at(100.0));
    let took = start.elapsed();
    println!(
        "One decision, 1000 nodes with 8 GPUs and 5000 pods: {} ms, {} writes; the target is 2000 ms. Memory {} MiB before it and {} MiB at the most; the target is 256 MiB.",
        took.as_millis(),
        outcome.decisions.writes.len(),
        before >> 10,
        resident() >> 10,
    );
}

/// The most memory that the process has had, in KiB; 0 where the system does not say.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|it| it.strip_prefix("VmHWM:"));
    line.and_then(|it| it.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
