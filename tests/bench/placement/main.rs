//! What the order of devices is worth: seeded arrivals and departures through the scheduler's first fit, served from the
//! driver's slices and from others. `cargo bench --bench placement` prints the tables, in Markdown, and the targets of
//! each. Nothing fails because a target is missed: it is printed, and the exit status is 0.
//!
//! A request that finds nothing is lost. All orders serve the same requests.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

#[path = "../../demand/chance.rs"]
mod chance;
mod node;
mod optimum;
mod oracle;
mod replay;

use std::time::Instant;

use mig_model::placement::Policy;

use node::{Node, Wanted};
use optimum::{best_possible, lowest_start};
use oracle::Oracle;
use replay::{Outcome, Server, Workload};

/// Requests of one scenario, on one GPU and on several.
const REQUESTS: [usize; 2] = [20_000, 16_000];
const SEED: u64 = 20_260_101;
const LOADS: [f64; 3] = [0.5, 0.7, 1.0];
/// Below this, two shares are the same: they are of the same requests, but not of infinitely many.
const RESOLUTION: f64 = 0.005;
const LEAN: &str = "!*+me*";
/// `--reorder-interval` of 10 s, for pods that run ten minutes on average.
const INTERVAL: f64 = 1.0 / 60.0;
/// What of its gain `pack` may lose by that.
const MOST_LOST: f64 = 0.01;

/// Who asks for what, in parts.
struct Mix {
    name: &'static str,
    parts: &'static [(Wanted, f64)],
}

const SMALL_HEAVY: Mix = Mix {
    name: "small-heavy",
    parts: &[
        (Wanted::Plain(1), 70.0),
        (Wanted::Plain(2), 15.0),
        (Wanted::Plain(3), 8.0),
        (Wanted::Plain(4), 5.0),
        (Wanted::Plain(7), 2.0),
    ],
};
const TWO_SIZES: Mix =
    Mix { name: "1g and 4g", parts: &[(Wanted::Plain(1), 80.0), (Wanted::Plain(4), 20.0)] };
const BALANCED: Mix = Mix {
    name: "balanced, with media and memory profiles",
    parts: &[
        (Wanted::Plain(1), 30.0),
        (Wanted::Media, 5.0),
        (Wanted::MoreMemory, 10.0),
        (Wanted::Plain(2), 20.0),
        (Wanted::Plain(3), 15.0),
        (Wanted::Plain(4), 15.0),
        (Wanted::Plain(7), 5.0),
    ],
};

impl Mix {
    /// By profile of a node; what its model lacks is left out.
    fn on(&self, node: &Node) -> Vec<(usize, f64)> {
        self.parts.iter().filter_map(|(wanted, part)| Some((node.profile(*wanted)?, *part))).collect()
    }
}

fn main() -> anyhow::Result<()> {
    // `cargo test --all-targets` runs benchmarks, too, without this argument.
    if !std::env::args().any(|it| it == "--bench") {
        println!("nothing was replayed: run it with `cargo bench --bench placement`");
        return Ok(());
    }
    let start = Instant::now();
    println!(
        "{} requests a table for one GPU, {} for several, seed {SEED}. Served requests in percent; `all` counts each with \
         its memory slices.",
        REQUESTS[0], REQUESTS[1]
    );
    let mut targets = Targets::default();
    for mix in [&SMALL_HEAVY, &TWO_SIZES, &BALANCED] {
        for load in LOADS {
            one_gpu(mix, load, &mut targets)?;
        }
    }
    for mix in [&SMALL_HEAVY, &TWO_SIZES, &BALANCED] {
        for load in LOADS {
            eight_gpus(mix, load, &mut targets)?;
        }
    }
    other_models(&mut targets)?;
    let lost = targets.lost / targets.gained;
    let text =
        format!("8 H100, all tables: pack loses {:.1} % of what it gains by the interval", 100.0 * lost);
    targets.judge(lost <= MOST_LOST, &text);
    targets.print();
    println!("\ntook {} s", start.elapsed().as_secs());
    Ok(())
}

fn one_gpu(mix: &Mix, load: f64, targets: &mut Targets) -> anyhow::Result<()> {
    let node = Node::new("H100-80GB", 1, "")?;
    let parts = mix.on(&node);
    let workload = Workload::new(&node, &parts, load, REQUESTS[0], SEED);
    let mut table = Table::new(&format!("1 H100, {}, load {load}", mix.name), &node, &parts);
    let mut serve = |name: &str, server| table.replay(name, &node, &workload, server);
    let lowest = serve("lowest start first", Server::Fixed(node.gpu_by_gpu(|it| it.start)))?;
    serve("random", Server::Random)?;
    let nvml = serve("NVML's own", Server::Fixed(node.gpu_by_gpu(|it| node.nvml_place(it))))?;
    let ours = serve("`--placement pack`", Server::Driver(Policy::Pack, 1, 0.0))?;
    let oracle = serve("repacking", Server::Repacking(Oracle::new(&node, &profiles(&parts))))?;
    let size = |profile: usize| f64::from(node.profiles[profile].size);
    let calculated = lowest_start(&node, &parts, load);
    table.shares("lowest start first, calculated", &node, &calculated);
    let best = best_possible(&node, &parts, load, size);
    table.shares("best online choice for all, calculated", &node, &best);
    let large = node.profile(Wanted::Plain(4)).unwrap_or(0);
    let best_large = best_possible(&node, &parts, load, |it| if it == large { 1.0 } else { 0.0 });
    table.shares("best online choice for 4g, calculated", &node, &best_large);
    table.print();

    let what = format!("1 H100, {}, load {load}", mix.name);
    targets.not_below(&what, &ours, &nvml, &node);
    if mix.name == SMALL_HEAVY.name {
        let (ours, lowest, best) = (ours.share(large), lowest.share(large), best_large[large]);
        targets.judge(
            2.0 * lowest <= ours,
            &format!(
                "{what}: 4g served {:.1} %, twice lowest start first is {:.1} %",
                100.0 * ours,
                200.0 * lowest
            ),
        );
        targets.note(&format!("{what}: no online choice serves more 4g than {:.1} %", 100.0 * best));
    }
    let weight = |it: &(usize, f64)| it.1 * size(it.0);
    let gain = |it: &(usize, f64)| weight(it) * (best[it.0] - calculated[it.0]);
    let gain = parts.iter().map(gain).sum::<f64>() / parts.iter().map(weight).sum::<f64>();
    let distance = oracle.total(&node) - lowest.total(&node);
    targets.note(&format!(
        "{what}: of the distance from lowest start first to repacking, pack closes {:.0} %, the best online choice {:.0} %",
        100.0 * (ours.total(&node) - lowest.total(&node)) / distance,
        100.0 * gain / distance
    ));
    Ok(())
}

fn eight_gpus(mix: &Mix, load: f64, targets: &mut Targets) -> anyhow::Result<()> {
    let node = Node::new("H100-80GB", 8, "")?;
    let parts = mix.on(&node);
    let workload = Workload::new(&node, &parts, load, REQUESTS[1], SEED);
    let mut table = Table::new(&format!("8 H100, {}, load {load}", mix.name), &node, &parts);
    let mut serve = |name: &str, server| table.replay(name, &node, &workload, server);
    let lowest =
        serve("lowest start first, a slice for each GPU", Server::Fixed(node.gpu_by_gpu(|it| it.start)))?;
    serve("lowest start first, our slices", Server::Fixed(node.in_our_slices(|it| it.start)?))?;
    serve("random", Server::Random)?;
    let nvml =
        serve("NVML's own, a slice for each GPU", Server::Fixed(node.gpu_by_gpu(|it| node.nvml_place(it))))?;
    let nvml_ours =
        serve("NVML's own, our slices", Server::Fixed(node.in_our_slices(|it| node.nvml_place(it))?))?;
    serve("`--placement spread`", Server::Driver(Policy::Spread, 1, 0.0))?;
    serve("`--placement static`", Server::Driver(Policy::Static, 1, 0.0))?;
    let ours = serve("`--placement pack`", Server::Driver(Policy::Pack, 1, 0.0))?;
    let slow = serve(
        "the same, `--reorder-interval` 1/60 of a run time",
        Server::Driver(Policy::Pack, 1, INTERVAL),
    )?;
    serve("the same, slices follow one arrival late", Server::Driver(Policy::Pack, 2, 0.0))?;
    let oracle = serve("repacking", Server::Repacking(Oracle::new(&node, &profiles(&parts))))?;
    let mut lean = None;
    if !parts.iter().any(|it| node.profiles[it.0].name.contains("+me")) {
        let node = Node::new("H100-80GB", 8, LEAN)?;
        let workload = Workload::new(&node, &mix.on(&node), load, REQUESTS[1], SEED);
        let name = format!("`--placement pack --profiles '{LEAN}'`");
        lean = Some(table.replay(&name, &node, &workload, Server::Driver(Policy::Pack, 1, 0.0))?);
    }
    table.print();

    let what = format!("8 H100, {}, load {load}", mix.name);
    targets.not_below(&what, &ours, &nvml, &node);
    targets.not_below(&format!("{what}, NVML's in our slices"), &ours, &nvml_ours, &node);
    targets.gained += ours.total(&node) - lowest.total(&node);
    targets.lost += ours.total(&node) - slow.total(&node);
    for (name, outcome) in [("", Some(&ours)), (" with the lean list", lean.as_ref())] {
        let Some(outcome) = outcome else { continue };
        let (from, to) = (lowest.total(&node), oracle.total(&node));
        let closed = (outcome.total(&node) - from) / (to - from);
        let text = format!("{what}: pack{name} closes {:.0} % of the distance to repacking", 100.0 * closed);
        targets.judge(0.5 <= closed, &text);
    }
    Ok(())
}

/// Models with other tables; totals only.
fn other_models(targets: &mut Targets) -> anyhow::Result<()> {
    println!("\n**Other models, all profiles together, load 0.7**\n");
    println!("| GPUs | mix | lowest | random | NVML | pack | repacking |\n|---|---|---|---|---|---|---|");
    for (model, gpus) in
        [("A100-40GB", 1), ("A100-40GB", 4), ("A30-24GB", 1), ("A30-24GB", 8), ("RTX-PRO-6000-96GB", 4)]
    {
        let node = Node::new(model, gpus, "")?;
        for mix in [&SMALL_HEAVY, &BALANCED] {
            let parts = mix.on(&node);
            let workload = Workload::new(&node, &parts, 0.7, REQUESTS[1], SEED);
            let serve = |server| workload.replay(&node, server);
            let lowest = serve(Server::Fixed(node.gpu_by_gpu(|it| it.start)))?;
            let random = serve(Server::Random)?;
            let nvml = serve(Server::Fixed(node.gpu_by_gpu(|it| node.nvml_place(it))))?;
            let ours = serve(Server::Driver(Policy::Pack, 1, 0.0))?;
            let oracle = serve(Server::Repacking(Oracle::new(&node, &profiles(&parts))))?;
            let cells = [&lowest, &random, &nvml, &ours, &oracle].map(|it| percent(it.total(&node)));
            println!("| {gpus} {model} | {} | {} |", mix.name, cells.join(" | "));
            targets.not_below(&format!("{gpus} {model}, {}, load 0.7", mix.name), &ours, &nvml, &node);
        }
    }
    Ok(())
}

fn profiles(parts: &[(usize, f64)]) -> Vec<usize> {
    parts.iter().map(|it| it.0).collect()
}

fn percent(share: f64) -> String {
    format!("{:.1}", 100.0 * share)
}

/// One scenario, a row for each order.
struct Table {
    text: String,
    parts: Vec<(usize, f64)>,
}

impl Table {
    fn new(title: &str, node: &Node, parts: &[(usize, f64)]) -> Self {
        let names: Vec<&str> = parts.iter().map(|it| node.profiles[it.0].name.as_str()).collect();
        let rule = "---|".repeat(parts.len() + 3);
        let text = format!(
            "\n**{title}**\n\n| order | {} | all | slices written for each request served |\n|{rule}\n",
            names.join(" | ")
        );
        Self { text, parts: parts.to_vec() }
    }

    fn replay(
        &mut self,
        name: &str,
        node: &Node,
        workload: &Workload,
        server: Server,
    ) -> anyhow::Result<Outcome> {
        let writes = matches!(server, Server::Driver(..));
        let outcome = workload.replay(node, server)?;
        // A list without some profiles numbers the others differently.
        let asked = (0..outcome.asked.len()).filter(|it| 0 < outcome.asked[*it]);
        let mut shares: Vec<(usize, f64)> = asked.map(|it| (it, outcome.share(it))).collect();
        let place = |profile: usize| self.parts.iter().position(|it| it.0 == profile);
        if shares.iter().all(|it| place(it.0).is_some()) {
            shares.sort_by_key(|it| place(it.0));
        }
        let cells: Vec<String> = shares.iter().map(|it| percent(it.1)).collect();
        let served: u32 = outcome.given.iter().sum();
        #[expect(clippy::cast_precision_loss, reason = "there are few writes")]
        let writes =
            if writes { format!("{:.2}", outcome.writes as f64 / f64::from(served)) } else { String::new() };
        let all = percent(outcome.total(node));
        self.text.push_str(&format!("| {name} | {} | {all} | {writes} |\n", cells.join(" | ")));
        Ok(outcome)
    }

    /// A row of calculated shares.
    fn shares(&mut self, name: &str, node: &Node, shares: &[f64]) {
        let cells: Vec<String> = self.parts.iter().map(|it| percent(shares[it.0])).collect();
        let weight = |it: &(usize, f64)| it.1 * f64::from(node.profiles[it.0].size);
        let all = self.parts.iter().map(|it| weight(it) * shares[it.0]).sum::<f64>()
            / self.parts.iter().map(weight).sum::<f64>();
        self.text.push_str(&format!("| {name} | {} | {} | |\n", cells.join(" | "), percent(all)));
    }

    fn print(&self) {
        print!("{}", self.text);
    }
}

/// What was aimed at.
#[derive(Default)]
struct Targets {
    lines: Vec<String>,
    /// What `pack` serves more than the lowest start first on eight GPUs, and what of it the interval costs; of all tables, as one alone has too
    /// few requests to tell the difference.
    gained: f64,
    lost: f64,
}

impl Targets {
    fn judge(&mut self, is_met: bool, text: &str) {
        self.lines.push(format!("- {} {text}", if is_met { "ok" } else { "MISSED" }));
    }

    fn note(&mut self, text: &str) {
        self.lines.push(format!("- (shown) {text}"));
    }

    fn not_below(&mut self, what: &str, ours: &Outcome, other: &Outcome, node: &Node) {
        let (ours, other) = (ours.total(node), other.total(node));
        let text = format!("{what}: all {:.1} %, NVML's own order {:.1} %", 100.0 * ours, 100.0 * other);
        self.judge(other - RESOLUTION <= ours, &text);
    }

    fn print(&self) {
        println!("\n**Targets**\n\n{}", self.lines.join("\n"));
    }
}
