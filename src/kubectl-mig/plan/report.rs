//! The plan for people.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::map::{Instance, MappedGpu};
use super::needed::NotNeeded;
use super::summary::Plan;
use crate::text::{FREE, count, printable};

/// GPUs that are listed one by one. Of more, equal ones are one line.
const MAX_LINES: usize = 32;

/// Letters of workloads.
const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The letter of a workload; `#` stands for pods outside the plan.
pub(super) fn letter(workload: Option<usize>) -> char {
    workload.map_or('#', |index| LETTERS.chars().nth(index).unwrap_or('*'))
}

/// The memory slices of a GPU: a letter for each that is allocated, with lines between instances, `.` for a free one, `-` for a
/// stranded one. A GPU without memory slices has a letter for each of its devices.
pub(super) fn cells(gpu: &MappedGpu) -> String {
    if gpu.gpu.memory_slices == 0 {
        let held = gpu.instances.iter().map(|it| letter(it.workload));
        let free = gpu.gpu.devices.len().saturating_sub(gpu.instances.len());
        return held.chain(std::iter::repeat_n(FREE, free)).collect();
    }
    let holder =
        |cell: usize| gpu.instances.iter().position(|it| (it.start..it.start + it.cells).contains(&cell));
    let mut text = String::new();
    for cell in 0..gpu.gpu.memory_slices {
        if 0 < cell && holder(cell) != holder(cell - 1) {
            text.push('|');
        }
        text.push(match holder(cell) {
            Some(index) => letter(gpu.instances[index].workload),
            None if gpu.stranded.contains(&cell) => '-',
            None => FREE,
        });
    }
    text
}

/// `A 2 x 3g.40gb, B 3 x 1g.10gb`.
fn instances(gpu: &MappedGpu) -> String {
    let mut counts: BTreeMap<(usize, &str), usize> = BTreeMap::new();
    for Instance { workload, profile, .. } in &gpu.instances {
        *counts.entry((workload.unwrap_or(usize::MAX), profile)).or_default() += 1;
    }
    let part = |((workload, profile), count): (&(usize, &str), &usize)| {
        format!("{} {count} x {profile}", letter(Some(*workload).filter(|it| *it != usize::MAX)))
    };
    counts.iter().map(part).collect::<Vec<_>>().join(", ")
}

/// The whole text.
pub(super) fn text(plan: &Plan<'_>) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write(plan, &mut text);
    text
}

fn write(plan: &Plan<'_>, text: &mut String) -> std::fmt::Result {
    let (placed, all) = (plan.outcome.placed(), plan.outcome.pods.len());
    // A node of which no GPU is known, because its pool is incomplete, does not count.
    let nodes = plan.gpus.iter().map(|it| it.node.as_str()).collect::<BTreeSet<_>>().len();
    let (gpus, nodes) = (count(plan.gpus.len(), "GPU"), count(nodes, "node"));
    match all {
        // Of a DaemonSet that no node may run.
        0 => writeln!(text, "No node runs a pod of the manifests that needs a device.")?,
        1 if placed == 1 => writeln!(text, "1 pod fits on {gpus} ({nodes}).")?,
        _ if placed == all => writeln!(text, "All {all} pods fit on {gpus} ({nodes}).")?,
        _ => {
            let missing =
                if all - placed == 1 { "1 does".to_owned() } else { format!("{} do", all - placed) };
            let fit = if placed == 1 { "fits" } else { "fit" };
            writeln!(text, "{placed} of {all} pods {fit} on {gpus} ({nodes}), {missing} not.")?;
        }
    }
    writeln!(text)?;
    workloads(plan, text)?;
    writeln!(text)?;
    map(plan, text)?;
    for (index, workload) in plan.workloads.iter().enumerate() {
        if let Some(reason) = plan.outcome.reasons.get(&index) {
            let missing = plan.missing(index);
            writeln!(
                text,
                "\n{}: {} without a place: {reason}.",
                printable(&workload.demand.owner),
                count(missing, "pod"),
                reason = printable(reason)
            )?;
        }
    }
    writeln!(text)?;
    summary(plan, text)?;
    for note in &plan.notes {
        writeln!(text, "Note: {}.", printable(note))?;
    }
    Ok(())
}

fn workloads(plan: &Plan<'_>, text: &mut String) -> std::fmt::Result {
    let mut rows = vec![vec![
        "".to_owned(),
        "WORKLOAD".to_owned(),
        "PODS".to_owned(),
        "PLACED".to_owned(),
        "DEVICES".to_owned(),
    ]];
    if plan.cost.is_some() {
        rows[0].push("COST PER POD AND HOUR".to_owned());
    }
    for (index, workload) in plan.workloads.iter().enumerate() {
        let pods = plan.outcome.pods.iter().filter(|it| it.workload == index);
        let placed = pods.clone().filter(|it| it.place.is_some()).count();
        let mut row = vec![
            letter(Some(index)).to_string(),
            workload.demand.owner.clone(),
            pods.count().to_string(),
            placed.to_string(),
            plan.devices_of(index),
        ];
        if let Some(cost) = &plan.cost {
            row.push(cost.per_pod[index].map_or_else(|| "-".to_owned(), |it| format!("{it:.2}")));
        }
        rows.push(row);
    }
    table(&rows, text)
}

fn map(plan: &Plan<'_>, text: &mut String) -> std::fmt::Result {
    let all = &plan.gpus;
    let mut rows = Vec::new();
    if all.len() <= MAX_LINES {
        rows.push(["NODE", "GPU", "MEMORY SLICES", "INSTANCES"].map(str::to_owned).to_vec());
        for gpu in all {
            rows.push(vec![gpu.node.clone(), gpu.gpu.name().to_owned(), cells(gpu), instances(gpu)]);
        }
    } else {
        let mut alike: BTreeMap<(String, String, String), usize> = BTreeMap::new();
        for gpu in all {
            *alike.entry((gpu.gpu.product.clone(), cells(gpu), instances(gpu))).or_default() += 1;
        }
        let mut alike: Vec<_> = alike.into_iter().collect();
        alike.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        rows.push(["GPUS", "PRODUCT", "MEMORY SLICES", "INSTANCES"].map(str::to_owned).to_vec());
        for ((product, cells, instances), count) in alike {
            rows.push(vec![count.to_string(), product, cells, instances]);
        }
    }
    table(&rows, text)?;
    let others = all.iter().flat_map(|it| &it.instances).any(|it| it.workload.is_none());
    let others = if others { "# other pods, " } else { "" };
    writeln!(text, "{others}. free, - stranded: free, and of no use to any profile")
}

fn summary(plan: &Plan<'_>, text: &mut String) -> std::fmt::Result {
    let sum = |of: fn(&MappedGpu) -> usize| plan.gpus.iter().map(of).sum::<usize>();
    let (all, free) = (sum(|it| it.gpu.memory_slices), sum(|it| it.free.len()));
    let (stranded, for_mix) = (sum(|it| it.stranded.len()), sum(|it| it.stranded_for_mix.len()));
    if 0 < all {
        writeln!(
            text,
            "Memory slices: {all}, of them {free} free; {stranded} stranded for every profile, {for_mix} for what these pods ask for."
        )?;
    }
    match &plan.needed {
        Some(Ok(needed)) if needed.is_additional => {
            let nodes = count(needed.nodes, "more node");
            writeln!(
                text,
                "All of it fits with {nodes} like {} ({}).",
                printable(&needed.like),
                count(needed.gpus, "GPU")
            )?;
        }
        Some(Ok(needed)) => {
            let (gpus, nodes) = (count(needed.gpus, "GPU"), count(needed.nodes, "node"));
            writeln!(text, "Needed for all of it: {gpus}, {} ({nodes}).", needed.like)?;
        }
        Some(Err(NotNeeded::Never(which))) => {
            let names: Vec<&str> = which.iter().map(|it| plan.workloads[*it].demand.owner.as_str()).collect();
            writeln!(text, "No number of such nodes serves {}.", printable(&names.join(", ")))?;
        }
        Some(Err(NotNeeded::TooMany)) => writeln!(text, "More nodes are needed than are tried.")?,
        None => {}
    }
    if let Some(cost) = plan.cost.as_ref().filter(|_| 0 < plan.outcome.placed()) {
        writeln!(
            text,
            "Cost per hour: {:.2} at {:.2} for a GPU; a GPU for each device would cost {:.2}, so {:.0} % are saved.",
            cost.total,
            cost.gpu,
            cost.whole_gpus,
            cost.saving() * 100.0
        )?;
    }
    Ok(())
}

/// Columns of equal width.
fn table(rows: &[Vec<String>], text: &mut String) -> std::fmt::Result {
    let rows: Vec<Vec<Cow<'_, str>>> =
        rows.iter().map(|row| row.iter().map(|it| printable(it)).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|it| it.get(column)).map(|it| it.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}", width = *width)).collect();
        writeln!(text, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}
