//! The tables of `get`. Pure.

use k8s_openapi::jiff::Timestamp;

use super::report::{ClaimRow, DeviceRow, Fleet, Free, GpuRow, Holder, NodeRow, Problem, State, total};
use super::table::{Cell, Row, render};
use super::text::{Paint, cut, printable, width, wrap};
use crate::text::{FREE, age};

/// Columns that every terminal has.
const COLUMNS: usize = 80;

/// Fewest and most cells of a bar.
const CELLS: std::ops::RangeInclusive<usize> = 8..=12;

/// How to draw.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// More columns, and nothing cut: `-o wide`.
    pub is_wide: bool,
    /// Colors.
    pub is_colored: bool,
    /// Ages count to here.
    pub now: Timestamp,
}

impl Style {
    fn columns(&self) -> usize {
        if self.is_wide { usize::MAX } else { COLUMNS }
    }

    fn paint(&self, text: &str, paint: Paint) -> String {
        if self.is_colored { paint.over(text) } else { text.to_owned() }
    }

    fn age(&self, since: Option<Timestamp>) -> String {
        since.map_or_else(|| "?".to_owned(), |it| age(self.now.as_second() - it.as_second()))
    }
}

fn text(from_outside: &str) -> Cell {
    Cell::plain(printable(from_outside))
}

fn list(items: &[String]) -> Cell {
    Cell::List(items.iter().map(|it| printable(it).into_owned()).collect())
}

fn free(free: &[Free]) -> Cell {
    Cell::List(free.iter().map(|it| format!("{}x{}", it.count, printable(&it.profile))).collect())
}

fn largest(profile: Option<&str>) -> Cell {
    profile.map_or_else(|| Cell::Text("none".to_owned(), Paint::Dim), text)
}

/// The table of nodes, and what is free on all that take pods.
pub(super) fn nodes(fleet: &Fleet, style: &Style) -> String {
    let mut header = vec!["NODE", "STATUS", "GPUS", "IDLE", "USED", "LARGEST", "FREE"];
    if style.is_wide {
        header.extend(["PRODUCT", "LAYOUT", "DRIVER"]);
    }
    let row = |node: &NodeRow| {
        let status = status(node);
        let paint = if status == "Ready" { Paint::Plain } else { Paint::Bad };
        let mut cells = vec![
            text(&node.name),
            Cell::Spans(vec![(status, paint)]),
            Cell::plain(node.gpus.to_string()),
            Cell::plain(node.idle_gpus.to_string()),
            Cell::plain(format!("{:.0}%", node.used * 100.0)),
            largest(node.largest.as_deref()),
            free(&node.free),
        ];
        if style.is_wide {
            let layout = node.layout.as_ref().map(|it| {
                let state = it.state.as_deref().map(|it| format!(" ({it})")).unwrap_or_default();
                format!("{}{state}", it.config.as_deref().unwrap_or_default())
            });
            cells.extend([
                Cell::plain(printable(&node.products.join(", "))),
                text(layout.as_deref().unwrap_or_default()),
                list(&node.drivers),
            ]);
        }
        Row { cells, below: problems(&node.problems, true, style) }
    };
    let rows: Vec<Row> = fleet.nodes.iter().map(row).collect();
    let mut table = render(&header, &rows, style.columns(), style.is_colored);
    let takes_pods = |it: &&NodeRow| it.ready == Some(true) && it.unschedulable == Some(false);
    let open: Vec<&NodeRow> = fleet.nodes.iter().filter(takes_pods).collect();
    if 1 < fleet.nodes.len() {
        let all = total(open.iter().flat_map(|it| &it.free));
        let items: Vec<String> =
            all.iter().map(|it| format!("{}x{}", it.count, printable(&it.profile))).collect();
        let items = if items.is_empty() { "nothing".to_owned() } else { items.join(" ") };
        let sum =
            format!("Free on {} of {} nodes, each profile by itself: {items}", open.len(), fleet.nodes.len());
        table.push('\n');
        for line in wrap(&sum, style.columns()) {
            table.push_str(&line);
            table.push('\n');
        }
    }
    table
}

/// Whether the node takes pods, as far as it is known.
fn status(node: &NodeRow) -> String {
    let ready = match node.ready {
        Some(true) => "Ready",
        Some(false) => "NotReady",
        None => "Unknown",
    };
    let cordoned = if node.unschedulable == Some(true) { ",cordoned" } else { "" };
    format!("{ready}{cordoned}")
}

/// The table of GPUs; below each, what holds it and what is wrong with it.
pub(super) fn gpus(fleet: &Fleet, style: &Style) -> String {
    let mut header = vec!["NODE", "GPU", "SLICES", "LARGEST", "FREE"];
    if style.is_wide {
        header.extend(["PRODUCT", "UUID", "DRIVER"]);
    }
    let row = |gpu: &GpuRow| {
        let mut cells = vec![
            text(&gpu.node),
            text(&gpu.name),
            Cell::Spans(bar(gpu)),
            largest(gpu.largest.as_deref()),
            free(&gpu.free),
        ];
        if style.is_wide {
            let known = |it: &Option<String>| text(it.as_deref().unwrap_or_default());
            cells.extend([known(&gpu.product), known(&gpu.uuid), text(&gpu.driver)]);
        }
        let mut below = holders(&gpu.holders, style);
        below.extend(problems(&gpu.problems, false, style));
        Row { cells, below }
    };
    let rows: Vec<Row> = fleet.gpus.iter().map(row).collect();
    render(&header, &rows, style.columns(), style.is_colored)
}

/// Letters of holders in the bar and in the list below it.
fn letter(holder: usize) -> char {
    ('A'..='Z').chain('a'..='z').nth(holder).unwrap_or('#')
}

/// A GPU as a row of cells: letters for what is held, `.` free, `-` not free and not held, `x` not offered. A GPU with few parts has
/// several cells for each, one with many has several parts in each cell: then `#` is one of which something is held.
fn bar(gpu: &GpuRow) -> Vec<(String, Paint)> {
    let (least, most) = (*CELLS.start(), *CELLS.end());
    let count = gpu.parts.len();
    if most < count {
        let cell = |index: usize| {
            let parts = &gpu.parts[index * count / most..(index + 1) * count / most];
            let has = |state: State| parts.iter().any(|it| it.state == state);
            match (has(State::Held), has(State::Free)) {
                (true, _) => ("#".to_owned(), Paint::Held),
                (false, true) => (FREE.to_string(), Paint::Good),
                (false, false) => ("-".to_owned(), Paint::Bad),
            }
        };
        return (0..most).map(cell).collect();
    }
    // Seven parts have one cell each: two would be too wide.
    let cells =
        if count == 0 { 0 } else { Some(least.div_ceil(count)).filter(|it| it * count <= most).unwrap_or(1) };
    let draw = |part: &super::report::Part| {
        let (mark, paint) = match (part.state, part.holder) {
            (State::Held, holder) => (holder.map_or('#', letter), Paint::Held),
            (State::Free, _) => (FREE, Paint::Good),
            (State::Blocked, _) => ('-', Paint::Bad),
            (State::NotOffered, _) => ('x', Paint::Bad),
        };
        (mark.to_string().repeat(cells), paint)
    };
    gpu.parts.iter().map(draw).collect()
}

/// `  A 4g.40gb  team/train-0, +1   3h`, aligned.
fn holders(holders: &[Holder], style: &Style) -> Vec<String> {
    let profiles: Vec<String> = holders.iter().map(|it| printable(&it.profile).into_owned()).collect();
    let ages: Vec<String> = holders.iter().map(|it| style.age(it.since)).collect();
    let longest = |texts: &[String]| texts.iter().map(|it| width(it)).max().unwrap_or(0);
    let (profile_width, age_width) = (longest(&profiles), longest(&ages));
    let lines = holders.iter().enumerate().map(|(index, holder)| {
        let mut names = printable(&consumer(holder, style.is_wide)).into_owned();
        if !style.is_wide {
            // Indentation, letter, and the gaps.
            let room = COLUMNS.saturating_sub(4 + profile_width + 2 + 2 + age_width);
            names = cut(&names, room);
        }
        let mark = style.paint(&letter(index).to_string(), Paint::Held);
        let (profile, age) = (&profiles[index], &ages[index]);
        format!("  {mark} {profile:<profile_width$}  {age:>age_width$}  {names}")
    });
    lines.collect()
}

/// The pods of a claim, or the claim.
fn consumer(holder: &Holder, is_wide: bool) -> String {
    let claim = &holder.claim;
    let in_namespace = |name: &str| format!("{}/{name}", claim.namespace);
    let pods = match holder.pods.as_slice() {
        [] => return format!("claim {claim}, no pod"),
        [first, rest @ ..] if !is_wide && !rest.is_empty() => {
            format!("{}, +{}", in_namespace(first), rest.len())
        }
        pods => pods.iter().map(|it| in_namespace(it)).collect::<Vec<_>>().join(", "),
    };
    if is_wide { format!("{pods}  (claim {claim}, device {})", holder.device) } else { pods }
}

/// What is wrong, with the name of the GPU where the row above is not the GPU's.
fn problems(problems: &[Problem], names_gpu: bool, style: &Style) -> Vec<String> {
    let lines = problems.iter().flat_map(|it| {
        let gpu = it.gpu.as_deref().filter(|_| names_gpu).map(|it| format!("{it}: ")).unwrap_or_default();
        let message = printable(&format!("{gpu}{}", it.message)).into_owned();
        let room = if style.is_wide { usize::MAX } else { COLUMNS - 4 };
        let lines = wrap(&message, room).into_iter().enumerate();
        lines.map(|(index, line)| {
            let mark = if index == 0 { style.paint("!", Paint::Bad) } else { " ".to_owned() };
            format!("  {mark} {line}")
        })
    });
    lines.collect()
}

/// The table of claims.
pub(super) fn claims(fleet: &Fleet, style: &Style) -> String {
    let mut header = vec!["NAMESPACE", "NAME", "STATE", "DEVICES", "NODE", "PODS", "AGE"];
    if style.is_wide {
        header.push("GPU");
    }
    let row = |claim: &ClaimRow| {
        let nodes: Vec<String> = unique(claim.devices.iter().filter_map(|it| it.node.clone()));
        let is_pending = claim.devices.is_empty();
        let mut cells = vec![
            text(&claim.namespace),
            text(&claim.name),
            Cell::Text(claim.state.clone(), if is_pending { Paint::Bad } else { Paint::Plain }),
            if is_pending { asked(claim) } else { held(&claim.devices) },
            Cell::plain(printable(&nodes.join(","))),
            list(&claim.pods),
            Cell::plain(style.age(claim.since)),
        ];
        if style.is_wide {
            cells.push(list(&unique(claim.devices.iter().filter_map(|it| it.gpu.clone()))));
        }
        Row { cells, below: Vec::new() }
    };
    let rows: Vec<Row> = fleet.claims.iter().map(row).collect();
    render(&header, &rows, style.columns(), style.is_colored)
}

fn unique(texts: impl Iterator<Item = String>) -> Vec<String> {
    texts.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

/// `2x1g.10gb gpu`; a device that is not published by its name.
fn held(devices: &[DeviceRow]) -> Cell {
    let named = devices
        .iter()
        .map(|it| Free { profile: it.profile.clone().unwrap_or_else(|| it.device.clone()), count: 1 });
    let named: Vec<Free> = named.collect();
    let items = total(&named).into_iter().map(|it| match it.count {
        1 => printable(&it.profile).into_owned(),
        count => format!("{count}x{}", printable(&it.profile)),
    });
    Cell::List(items.collect())
}

/// The classes that a claim asks for.
fn asked(claim: &ClaimRow) -> Cell {
    let items = claim.requests.iter().map(|it| {
        let classes = printable(&it.classes.join("|")).into_owned();
        match it.count {
            Some(1) => classes,
            Some(count) => format!("{count}x{classes}"),
            None if it.classes.len() == 1 => format!("all {classes}"),
            None => classes,
        }
    });
    Cell::List(items.collect())
}
