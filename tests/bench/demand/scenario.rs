//! One scenario: the same arrivals through all servers, the bounds, and the targets.

use std::time::Duration;

use mig_controller::demand::Options;

use crate::arrivals::{Arrival, Pattern, RUN, arrivals, profiles};
use crate::bounds::number;
use crate::cluster::Cluster;
use crate::model::Model;
use crate::node::Keeps;
use crate::outcome::Outcome;
use crate::table::Table;
use crate::{bounds, fixed, oracle};

const SEED: u64 = 20_261_129;
/// Waits of few large claims differ much from arrivals to arrivals: so many are replayed where that is quick.
const SEEDS: u64 = 6;
/// GPUs up to which it is.
const QUICK: usize = 8;
/// Profiles that get turns.
const LARGE: [&str; 3] = ["4g.40gb", "7g.80gb", "full"];
/// A claim for one of them should not wait longer, in mean run times.
const LONGEST_WAIT: f64 = 10.0;
/// Pods that consolidation moves at most, in parts of all.
const MOVED: f64 = 0.02;
/// Turns that are tried with `--turns`: after a wait, for a while, both in mean run times.
const TURNS: [(f64, f64); 6] = [(0.5, 1.5), (0.5, 3.0), (0.5, 12.0), (2.0, 6.0), (5.0, 1.5), (5.0, 6.0)];

/// What is replayed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) pattern: Pattern,
    pub(crate) gpus: usize,
    pub(crate) count: usize,
    pub(crate) load: f64,
    /// Whether other turns are tried.
    pub(crate) turns: bool,
}

/// What came of it: a table, and the targets.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) table: String,
    pub(crate) targets: Vec<String>,
}

/// What each server made of the arrivals.
struct Outcomes {
    demand: Outcome,
    demand_turns: Outcome,
    counters: Outcome,
    counters_turns: Outcome,
    /// Turns at once, whatever they cost.
    counters_first: Outcome,
    /// Demand-driven, where all run times are so much longer that pauses hardly count.
    slow: Outcome,
    repacking: Outcome,
}

/// What servers with counters make of other arrivals of the same kind.
struct Repeat {
    counters: Outcome,
    turns: Outcome,
    moves: Outcome,
    repacking: Outcome,
    /// No server keeps the longest wait of large claims below this.
    bound: f64,
}

/// Turns after half a mean run time, for as long as a GPU is held back by default.
fn turns() -> Options {
    turns_of(0.5, Options::default().hold_for.as_secs_f64() / RUN)
}

/// Turns after a wait, for a while, both in mean run times.
fn turns_of(hold_after: f64, hold_for: f64) -> Options {
    Options {
        hold_after: Some(Duration::from_secs_f64(RUN * hold_after)),
        hold_for: Duration::from_secs_f64(RUN * hold_for),
        ..Options::default()
    }
}

/// Turns, and consolidation of so many of the pods, and twice as many in an hour with many. All pods may be moved once they have run
/// for a tenth of the mean.
fn moves(arrivals: &[Arrival]) -> Options {
    let hours = arrivals.last().map_or(1.0, |it| it.at) / 3600.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "the numbers are small and positive"
    )]
    let per_hour = (2.0 * MOVED * arrivals.len() as f64 / hours) as u32;
    Options {
        evictions_per_hour: Some(per_hour.max(1)),
        consolidate_after: Duration::from_secs_f64(RUN * 0.3),
        evictions_namespace: 1.0,
        move_after: Duration::from_secs_f64(RUN / 10.0),
        evictions_pause: Duration::from_secs_f64(RUN / 10.0),
        ..turns()
    }
}

/// The same arrivals, ten times as slow.
fn slower(arrivals: &[Arrival]) -> Vec<Arrival> {
    arrivals.iter().map(|it| Arrival { at: it.at * 10.0, lasts: it.lasts * 10.0, ..*it }).collect()
}

/// The longest waits of large claims, as many as pods may be moved, in parts of all of these claims.
fn longest_waits(of: &Outcome, large: &[usize], pods: usize) -> f64 {
    let mut waits: Vec<f64> = large.iter().flat_map(|it| of.waits[*it].clone()).collect();
    waits.sort_by(|a, b| b.total_cmp(a));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "the numbers are small and positive"
    )]
    let (most, all) = ((MOVED * pods as f64) as usize, waits.len().max(1) as f64);
    waits.iter().take(most).sum::<f64>() / all
}

impl Scenario {
    fn title(&self) -> String {
        format!("{} GPUs, {}, load {}", self.gpus, self.pattern.name(), self.load)
    }

    /// Replays other arrivals with counters.
    fn repeats(&self, model: &Model, sizes: &[u32], large: &[usize]) -> Vec<Repeat> {
        let seeds = if self.gpus <= QUICK { 0..SEEDS } else { 0..1 };
        let repeat = |seed: u64| {
            let arrivals = arrivals(self.pattern, model, self.gpus, self.load, self.count, SEED + seed);
            let run = |options| Cluster::new(&arrivals, self.gpus, Keeps::Counters, options).run();
            Repeat {
                counters: run(None),
                turns: run(Some(turns())),
                moves: run(Some(moves(&arrivals))),
                repacking: oracle::repacking(&arrivals, model, self.gpus, sizes),
                bound: bounds::longest_wait(&arrivals, model, self.gpus, large),
            }
        };
        seeds.map(repeat).collect()
    }

    /// Replays it.
    pub(crate) fn run(&self) -> Report {
        let model = Model::new("H100-80GB", 1);
        let names = profiles(&model);
        let sizes: Vec<u32> = names.iter().map(|it| it.1).collect();
        let arrivals = arrivals(self.pattern, &model, self.gpus, self.load, self.count, SEED);
        let mut table = Table::new(&self.title(), names.iter().map(|it| it.0).collect());
        let (counts, best) = fixed::best(&arrivals, &model, self.gpus, &sizes);
        let shown: Vec<String> =
            counts.iter().zip(&names).map(|(count, it)| format!("{count} x {}", it.0)).collect();
        table.row(&format!("best fixed layout in hindsight ({})", shown.join(", ")), &best);
        // 3g + 2g + 2 x 1g, as NVIDIA's file has it.
        let balanced = |name: &str| match name {
            "3g.40gb" | "2g.20gb" => self.gpus,
            "1g.10gb" => 2 * self.gpus,
            _ => 0,
        };
        let balanced = fixed::with(&arrivals, &names.iter().map(|it| balanced(it.0)).collect(), &sizes);
        table.row("`all-balanced`", &balanced);
        let mut run = |name: &str, keeps, options| {
            let outcome = Cluster::new(&arrivals, self.gpus, keeps, options).run();
            table.row(name, &outcome);
            outcome
        };
        let outcomes = Outcomes {
            demand: run("demand-driven", Keeps::Demand, Some(Options::default())),
            demand_turns: run("demand-driven, with turns", Keeps::Demand, Some(turns())),
            counters: run("counters (`pack`)", Keeps::Counters, None),
            counters_turns: run("counters, with turns", Keeps::Counters, Some(turns())),
            counters_first: run(
                "counters, large claims first",
                Keeps::Counters,
                Some(turns_of(0.0, 1_000.0)),
            ),
            slow: Cluster::new(&slower(&arrivals), self.gpus, Keeps::Demand, Some(Options::default())).run(),
            repacking: oracle::repacking(&arrivals, &model, self.gpus, &sizes),
        };
        run("counters, with turns and consolidation", Keeps::Counters, Some(moves(&arrivals)));
        for (after, hold) in TURNS.iter().filter(|_| self.turns) {
            let name = format!("counters, turns after {after} for {hold}");
            run(&name, Keeps::Counters, Some(turns_of(*after, *hold)));
        }
        table.row("repacking", &outcomes.repacking);
        let large: Vec<usize> = (0..names.len()).filter(|it| LARGE.contains(&names[*it].0)).collect();
        let served = bounds::served(&arrivals, &model, self.gpus, &sizes);
        let wait = bounds::longest_wait(&arrivals, &model, self.gpus, &large);
        table.note(&format!(
            "No server serves more than {:.1} % of the memory, or keeps the longest wait of large claims below {wait:.1}.",
            100.0 * served
        ));
        let mut judge = Judge { of: self, large: &large, targets: Vec::new() };
        judge.layouts(&outcomes, served);
        let repeats = self.repeats(&model, &sizes, &large);
        // On one GPU hardly any pod has another place.
        if 1 < self.gpus {
            judge.moves(&repeats, arrivals.len());
        }
        if self.load == 0.8 {
            judge.turns(&outcomes, wait);
            judge.repeats(&repeats);
        }
        Report { table: table.text, targets: judge.targets }
    }
}

/// Compares outcomes with the targets.
struct Judge<'a> {
    of: &'a Scenario,
    large: &'a [usize],
    targets: Vec<String>,
}

impl Judge<'_> {
    fn judge(&mut self, is_met: bool, text: &str) {
        let verdict = if is_met { "ok" } else { "MISSED" };
        self.targets.push(format!("- {verdict} {}: {text}", self.of.title()));
    }

    /// The longest wait of a large claim.
    fn longest(&self, of: &Outcome) -> f64 {
        self.large.iter().map(|it| of.wait(*it, 1.0)).fold(0.0, f64::max)
    }

    fn layouts(&mut self, of: &Outcomes, bound: f64) {
        let (demand, counters) = (of.demand.served, of.counters.served);
        let text = format!(
            "demand-driven serves {:.1} % of what counters serve ({:.1} of {:.1} %; no server more than {:.1} %); {:.1} % with run times ten \
             times as long",
            100.0 * demand / counters,
            100.0 * demand,
            100.0 * counters,
            100.0 * bound,
            100.0 * of.slow.served / counters,
        );
        self.judge(0.95 * counters <= demand, &text);
    }

    fn turns(&mut self, of: &Outcomes, bound: f64) {
        for (name, without, with) in
            [("counters", &of.counters, &of.counters_turns), ("demand-driven", &of.demand, &of.demand_turns)]
        {
            let longest = |of: &Outcome| self.longest(of);
            let reach = if LONGEST_WAIT < bound { "; out of reach" } else { "" };
            let text = format!(
                "{name}: the longest wait of a large claim is {:.1} with turns, {:.1} without, {:.1} with repacking, {:.1} with large \
                 claims first{reach}; no server gets below {bound:.1}",
                longest(with),
                longest(without),
                longest(&of.repacking),
                longest(&of.counters_first)
            );
            self.judge(longest(with) <= LONGEST_WAIT, &text);
            let loss = 100.0 * (1.0 - with.served / without.served);
            let text = format!(
                "{name}: turns cost {loss:.1} % of the memory served; {:.1} % of all memory stands idle on GPUs that are held back",
                100.0 * with.idle
            );
            self.judge(loss <= 2.0, &text);
        }
    }

    /// The same with other arrivals.
    fn repeats(&mut self, all: &[Repeat]) {
        let waits: Vec<f64> = all.iter().map(|it| self.longest(&it.turns)).collect();
        let is_met = |it: &f64| *it <= LONGEST_WAIT;
        let out_of_reach = all.iter().filter(|it| LONGEST_WAIT < it.bound).count();
        let shown: Vec<String> = waits.iter().map(|it| format!("{it:.1}")).collect();
        let served = |of: fn(&Repeat) -> &Outcome| mean(all.iter().map(|it| of(it).served));
        let loss = 100.0 * (1.0 - served(|it| &it.turns) / served(|it| &it.counters));
        let text = format!(
            "counters, {} runs: the longest waits of large claims with turns are {}, {:.1} in the mean, {out_of_reach} out of reach; turns cost \
             {loss:.1} % of the memory served in the mean",
            all.len(),
            shown.join(", "),
            mean(waits.iter().copied()),
        );
        self.judge(waits.iter().all(is_met) && loss <= 2.0, &text);
    }

    /// In the mean of all runs.
    fn moves(&mut self, all: &[Repeat], pods: usize) {
        let large = |of: &Outcome| mean(self.large.iter().flat_map(|it| of.waits[*it].iter().copied()));
        let waited = |of: fn(&Repeat) -> &Outcome| mean(all.iter().map(|it| large(of(it))));
        let served = |of: fn(&Repeat) -> &Outcome| 100.0 * mean(all.iter().map(|it| of(it).served));
        let (before, after) = (waited(|it| &it.turns), waited(|it| &it.moves));
        let bound = waited(|it| &it.repacking);
        let closed = |after: f64| 100.0 * (after - before) / (bound - before);
        let at_once = mean(all.iter().map(|it| longest_waits(&it.turns, self.large, pods)));
        let part = 100.0 * mean(all.iter().map(|it| number(it.moves.evictions))) / number(pods);
        let text = format!(
            "consolidation of {part:.1} % of the pods closes {:.0} % of what is left to repacking of the mean wait of large claims \
             ({before:.2}, {after:.2}, {bound:.2}), in the mean of {} runs; memory served {:.1}, {:.1}, {:.1} %; a moved pod waits {:.2} at \
             most; had each eviction served at once one of the claims that waited longest, it were {:.0} %",
            closed(after),
            all.len(),
            served(|it| &it.turns),
            served(|it| &it.moves),
            served(|it| &it.repacking),
            all.iter().map(|it| it.moves.longest_move).fold(0.0, f64::max),
            closed(before - at_once)
        );
        self.judge(50.0 <= closed(after) && part <= 100.0 * MOVED, &text);
    }
}

fn mean(all: impl Iterator<Item = f64>) -> f64 {
    let (count, sum) = all.fold((0, 0.0), |(count, sum), it| (count + 1, sum + it));
    sum / number(count).max(1.0)
}
