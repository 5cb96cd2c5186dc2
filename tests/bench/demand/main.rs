//! What demand-driven layouts and turns are worth: seeded arrivals of pods that wait until they are served, on H100 GPUs.
//! `cargo bench -p mig-controller --bench demand` prints the tables, in Markdown, and the targets of each. Nothing fails because a
//! target is missed: it is printed, and the exit status is 0. With `--quick` the runs are short, `--gpus 8` and `--load 0.8` choose some
//! of them; with `--large` only the time of one decision in a large cluster is measured.
//!
//! All servers get the same arrivals. Times are in mean run times (10 minutes); a settle time of 10 s, an interval of 30 s between
//! changes of a node and a reaction of 1 s are part of what is measured.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]
#![allow(clippy::unwrap_used, reason = "it fails by panicking")]

mod arrivals;
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

use std::time::{Duration, Instant};

use mig_controller::demand::{Memory, Options, decide};

use arrivals::{Arrival, Pattern, RUN, arrivals, profiles};
use cluster::Cluster;
use model::Model;
use node::Keeps;
use outcome::Outcome;

const SEED: u64 = 20_261_129;
const LOADS: [f64; 3] = [0.5, 0.8, 1.0];
/// GPUs and pods of a table.
const SIZES: [(usize, usize); 3] = [(1, 1_500), (8, 3_000), (64, 6_000)];
const QUICK: [(usize, usize); 3] = [(1, 400), (8, 800), (64, 2_000)];
/// Profiles that get turns.
const LARGE: [&str; 3] = ["4g.40gb", "7g.80gb", "full"];
/// A claim for one of them should not wait longer, in mean run times.
const LONGEST_WAIT: f64 = 10.0;
/// Pods that consolidation moves at most, in parts of all.
const MOVED: f64 = 0.02;

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
    let mut targets = Vec::new();
    let sizes: &[(usize, usize)] = if has("--quick") { &QUICK } else { &SIZES };
    let chosen = |name: &str, value: String| {
        let mut arguments = std::env::args().skip_while(|it| it != name).skip(1);
        arguments.next().is_none_or(|it| it == value)
    };
    for (gpus, count) in sizes.iter().filter(|it| chosen("--gpus", it.0.to_string())) {
        for pattern in Pattern::ALL {
            for load in LOADS.into_iter().filter(|it| chosen("--load", it.to_string())) {
                scenario(pattern, *gpus, *count, load, &mut targets);
            }
        }
    }
    println!("\n**Targets**\n\n{}\n\ntook {} s", targets.join("\n"), start.elapsed().as_secs());
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

/// Turns after half a mean run time, for up to eight.
fn turns() -> Options {
    Options {
        hold_after: Some(Duration::from_secs_f64(RUN / 2.0)),
        hold_for: Duration::from_secs_f64(RUN * 8.0),
        ..Options::default()
    }
}

/// Turns, and consolidation of at most so many of the pods. All pods may be moved once they have run for a tenth of the mean.
fn moves(arrivals: &[Arrival]) -> Options {
    let hours = arrivals.last().map_or(1.0, |it| it.at) / 3600.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "the numbers are small and positive"
    )]
    let per_hour = (MOVED * arrivals.len() as f64 / hours) as u32;
    Options {
        evictions_per_hour: Some(per_hour.max(1)),
        consolidate_after: Duration::from_secs_f64(RUN / 60.0),
        evictions_namespace: 1.0,
        move_after: Duration::from_secs_f64(RUN / 10.0),
        evictions_pause: Duration::from_secs_f64(RUN / 2.0),
        ..turns()
    }
}

fn scenario(pattern: Pattern, gpus: usize, count: usize, load: f64, targets: &mut Vec<String>) {
    let model = Model::new("H100-80GB", 1);
    let names = profiles(&model);
    let sizes: Vec<u32> = names.iter().map(|it| it.1).collect();
    let arrivals = arrivals(pattern, &model, gpus, load, count, SEED);
    let what = format!("{gpus} GPUs, {}, load {load}", pattern.name());
    let mut table = Table::new(&what, names.iter().map(|it| it.0).collect());
    let (counts, best) = fixed::best(&arrivals, &model, gpus, &sizes);
    let shown: Vec<String> =
        counts.iter().zip(&names).map(|(count, it)| format!("{count} x {}", it.0)).collect();
    table.row(&format!("best fixed layout in hindsight ({})", shown.join(", ")), &best);
    // 3g + 2g + 2 x 1g, as NVIDIA's file has it.
    let balanced = |name: &str| match name {
        "3g.40gb" | "2g.20gb" => gpus,
        "1g.10gb" => 2 * gpus,
        _ => 0,
    };
    let balanced = fixed::with(&arrivals, &names.iter().map(|it| balanced(it.0)).collect(), &sizes);
    table.row("`all-balanced`", &balanced);
    let run = |keeps, options| run(&arrivals, gpus, keeps, options);
    let demand = run(Keeps::Demand, Some(Options::default()));
    table.row("demand-driven", &demand);
    let demand_turns = run(Keeps::Demand, Some(turns()));
    table.row("demand-driven, with turns", &demand_turns);
    let counters = run(Keeps::Counters, None);
    table.row("counters (`pack`)", &counters);
    let counters_turns = run(Keeps::Counters, Some(turns()));
    table.row("counters, with turns", &counters_turns);
    let counters_moves = run(Keeps::Counters, Some(moves(&arrivals)));
    table.row("counters, with turns and consolidation", &counters_moves);
    let oracle = oracle::repacking(&arrivals, &model, gpus, &sizes);
    table.row("repacking", &oracle);
    table.print();

    let mut judge = |is_met: bool, text: String| {
        targets.push(format!("- {} {what}: {text}", if is_met { "ok" } else { "MISSED" }));
    };
    judge(
        0.95 * counters.served <= demand.served,
        format!(
            "demand-driven serves {:.1} % of what counters serve",
            100.0 * demand.served / counters.served
        ),
    );
    let is_large = |it: usize| LARGE.contains(&names[it].0);
    let mean = |of: &Outcome| {
        let waits: Vec<f64> =
            of.waits.iter().enumerate().filter(|it| is_large(it.0)).flat_map(|it| it.1.clone()).collect();
        #[expect(clippy::cast_precision_loss, reason = "there are few pods")]
        let mean = waits.iter().sum::<f64>() / waits.len().max(1) as f64;
        mean
    };
    let closed = |before: f64, after: f64, bound: f64| 100.0 * (after - before) / (bound - before);
    let served = closed(counters_turns.served, counters_moves.served, oracle.served);
    let waited = closed(mean(&counters_turns), mean(&counters_moves), mean(&oracle));
    #[expect(clippy::cast_precision_loss, reason = "there are few pods")]
    let part = 100.0 * counters_moves.evictions as f64 / arrivals.len() as f64;
    judge(
        50.0 <= waited && part <= 100.0 * MOVED,
        format!(
            "consolidation of {part:.1} % of the pods closes {waited:.0} % of what is left to repacking of the mean wait of large claims \
             ({:.2}, {:.2}, {:.2}) and {served:.0} % of the memory served ({:.1}, {:.1}, {:.1}); a moved pod waits {:.2} at most",
            mean(&counters_turns),
            mean(&counters_moves),
            mean(&oracle),
            100.0 * counters_turns.served,
            100.0 * counters_moves.served,
            100.0 * oracle.served,
            counters_moves.longest_move
        ),
    );
    if load == 0.8 {
        for (name, without, with) in
            [("counters", &counters, &counters_turns), ("demand-driven", &demand, &demand_turns)]
        {
            let longest = |of: &Outcome| {
                let large = names.iter().enumerate().filter(|it| LARGE.contains(&it.1.0));
                large.map(|(it, _)| of.wait(it, 1.0)).fold(0.0, f64::max)
            };
            let text = format!(
                "{name}: the longest wait of a large claim is {:.1} with turns, {:.1} without, {:.1} with repacking",
                longest(with),
                longest(without),
                longest(&oracle)
            );
            judge(longest(with) <= LONGEST_WAIT, text);
            let loss = 100.0 * (1.0 - with.served / without.served);
            judge(loss <= 2.0, format!("{name}: turns cost {loss:.1} % of the memory served"));
        }
    }
}

fn run(arrivals: &[Arrival], gpus: usize, keeps: Keeps, options: Option<Options>) -> Outcome {
    Cluster::new(arrivals, gpus, keeps, options).run()
}

/// One scenario, a row for each server.
struct Table {
    text: String,
    profiles: Vec<&'static str>,
}

impl Table {
    fn new(title: &str, profiles: Vec<&'static str>) -> Self {
        let rule = "---|".repeat(profiles.len() + 4);
        let heads: Vec<String> = profiles.iter().map(|it| format!("{it} median / p95 / max")).collect();
        let text = format!(
            "\n**{title}**\n\n| server | memory served, % | {} | layout changes | slices written |\n|{rule}\n",
            heads.join(" | ")
        );
        Self { text, profiles }
    }

    fn row(&mut self, name: &str, outcome: &Outcome) {
        let waits = (0..self.profiles.len()).map(|it| {
            let wait = |part| format!("{:.1}", outcome.wait(it, part));
            format!("{} / {} / {}", wait(0.5), wait(0.95), wait(1.0))
        });
        let waits: Vec<String> = waits.collect();
        let number = |it: usize| if it == 0 { String::new() } else { it.to_string() };
        self.text.push_str(&format!(
            "| {name} | {:.1} | {} | {} | {} |\n",
            100.0 * outcome.served,
            waits.join(" | "),
            number(outcome.layout_changes),
            number(outcome.slice_writes)
        ));
    }

    fn print(&self) {
        print!("{}", self.text);
    }
}
