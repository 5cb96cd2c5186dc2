//! The report as a table. Pure.

use std::collections::BTreeMap;

use mig_model::facts::{Engine, Placement};

use super::map::{Block, letters, row};
use super::report::{
    ClaimReport, GpuReport, InstanceReport, MigReport, NodeReport, ProfileReport, UNMANAGED, UnhealthyReport,
};

/// The whole report as text.
pub(super) fn table(report: &NodeReport) -> String {
    let known = |fact: &Option<String>| fact.clone().unwrap_or_else(|| "unknown".to_owned());
    let (driver, cuda) = (known(&report.driver_version), known(&report.cuda_version));
    let mut text = format!("NVIDIA driver {driver}, CUDA {cuda}\n");
    text.push_str(&unknown(&report.unknown_facts));
    if report.gpus.is_empty() && report.skipped.is_empty() {
        text.push_str("no GPUs\n");
    }
    for gpu in &report.gpus {
        text.push_str(&gpu_table(gpu));
    }
    for skipped in &report.skipped {
        let uuid = skipped.uuid.as_deref().unwrap_or("unknown UUID");
        text.push_str(&format!("\nGPU {} ({uuid}) is skipped: {}\n", skipped.index, skipped.reason));
    }
    if !report.claims.is_empty() {
        text.push_str("\nclaims\n");
        text.push_str(&claims_table(&report.claims));
    }
    text
}

fn gpu_table(gpu: &GpuReport) -> String {
    let memory = used_of(gpu.memory_used_mib, gpu.memory_mib);
    let busy = busy(gpu.utilization.as_ref()).map_or_else(String::new, |it| format!("  {it} busy"));
    let product = gpu.product_name.as_deref().unwrap_or("unknown product");
    let mut text = format!("\nGPU {}  {}  {product}  {}  {memory}{busy}\n", gpu.index, gpu.pci, gpu.uuid);
    text.push_str(&unknown(&gpu.unknown_facts));
    if let Some(problem) = &gpu.problem {
        text.push_str(&format!("  cannot be read: {problem}\n"));
    }
    if let Some(UnhealthyReport { reason, since }) = &gpu.unhealthy {
        text.push_str(&format!("  unhealthy since {since}: {reason}\n"));
    }
    if let Some(owner) = &gpu.owner {
        text.push_str(&format!("  handed out whole to {owner}\n"));
    }
    for (index, owner) in &gpu.shares {
        text.push_str(&format!("  share {index} handed out to {owner}\n"));
    }
    match &gpu.mig {
        None => text.push_str("  no MIG\n"),
        Some(mig) => text.push_str(&mig_table(mig, gpu.owner.is_some())),
    }
    text
}

fn mig_table(mig: &MigReport, is_whole: bool) -> String {
    let on_off = |is_on| if is_on { "on" } else { "off" };
    let mut text = format!("  MIG {}", on_off(mig.mode.current));
    if mig.mode.current != mig.mode.pending {
        text.push_str(&format!(", {} after a reset", on_off(mig.mode.pending)));
    }
    if mig.profiles.is_empty() {
        text.push_str(", and no profile is known: offered whole while it is off\n");
        return text;
    }
    text.push_str(if mig.resetless { ", switched without a reset\n" } else { ", switching needs a reset\n" });
    text.push_str(&row(mig.memory_slices, &blocks(mig, is_whole)));
    if !mig.instances.is_empty() {
        text.push_str(&instances_table(&mig.instances));
    }
    text.push_str(&profiles_table(&mig.profiles));
    text
}

/// The boxes in the map of a GPU.
fn blocks(mig: &MigReport, is_whole: bool) -> Vec<Block> {
    if is_whole {
        return vec![Block { start: 0, size: mig.memory_slices, label: "whole".to_owned() }];
    }
    let instances = mig.instances.iter().zip(letters());
    let block = |(it, letter): (&InstanceReport, char)| Block {
        start: it.placement.start,
        size: it.placement.size,
        label: format!("{letter} {}", it.profile),
    };
    instances.map(block).collect()
}

fn instances_table(instances: &[InstanceReport]) -> String {
    let mut rows = vec![
        ["", "INSTANCE", "PROFILE", "PLACEMENT", "MEMORY", "BUSY", "OWNER", "MIG DEVICE"].map(str::to_owned),
    ];
    rows.extend(instances.iter().zip(letters()).map(|(it, letter)| {
        [
            letter.to_string(),
            it.gpu_instance.to_string(),
            it.profile.clone(),
            it.placement.to_string(),
            used_of(it.memory_used_mib, it.memory_mib),
            busy(it.utilization.as_ref()).unwrap_or_else(|| "?".to_owned()),
            match it.unmanaged && it.owner != UNMANAGED {
                true => format!("{} ({UNMANAGED})", it.owner),
                false => it.owner.clone(),
            },
            if it.mig_devices.is_empty() { "none".to_owned() } else { it.mig_devices.join(" ") },
        ]
    }));
    let mut text = columns(&rows);
    for instance in instances {
        let id = instance.gpu_instance;
        if let Some(reason) = &instance.not_adopted {
            text.push_str(&format!("  instance {id} cannot be adopted: {reason}\n"));
        }
        if let Some(UnhealthyReport { reason, since }) = &instance.unhealthy {
            text.push_str(&format!("  instance {id} is unhealthy since {since}: {reason}\n"));
        }
    }
    text
}

fn profiles_table(profiles: &[ProfileReport]) -> String {
    let starts = |placements: &[Placement]| {
        let all: Vec<String> = placements.iter().map(|it| it.start.to_string()).collect();
        if all.is_empty() { "-".to_owned() } else { all.join(",") }
    };
    let mut rows = vec![["PROFILE", "ID", "SM", "MEMORY", "SLICES", "PLACEMENTS", "FREE"].map(str::to_owned)];
    rows.extend(profiles.iter().map(|ProfileReport { profile, free }| {
        [
            profile.name.clone(),
            profile.id.to_string(),
            profile.multiprocessors.to_string(),
            format!("{} MiB", profile.memory_mib),
            profile.placements.first().map_or(0, |it| it.size).to_string(),
            starts(&profile.placements),
            starts(free),
        ]
    }));
    columns(&rows)
}

/// A line for each fact that NVML did not report.
fn unknown(facts: &[String]) -> String {
    facts.iter().map(|it| format!("  unknown: {it}\n")).collect()
}

fn claims_table(claims: &[ClaimReport]) -> String {
    let mut rows = vec![["CLAIM", "STATE", "AGE", "PODS", "DEVICES"].map(str::to_owned)];
    rows.extend(claims.iter().map(|it| {
        let devices: Vec<&str> = it.devices.iter().map(|it| it.name.as_str()).collect();
        [
            if it.name.is_empty() {
                format!("UID {}", it.uid)
            } else {
                format!("{}/{}", it.namespace, it.name)
            },
            it.state.as_str().to_owned(),
            it.age_seconds.map_or_else(|| "?".to_owned(), age),
            match it.pods.as_deref() {
                None => "?".to_owned(),
                Some([]) => "none".to_owned(),
                Some(pods) => pods.join(" "),
            },
            if devices.is_empty() { "none".to_owned() } else { devices.join(" ") },
        ]
    }));
    columns(&rows)
}

/// `123 of 9856 MiB`, as far as it is known.
fn used_of(used: Option<u64>, total: Option<u64>) -> String {
    match (used, total) {
        (Some(used), Some(total)) => format!("{used} of {total} MiB"),
        (None, Some(total)) => format!("{total} MiB"),
        (_, None) => "?".to_owned(),
    }
}

/// The share of time in which any engine worked, if it was measured.
fn busy(utilization: Option<&BTreeMap<Engine, f64>>) -> Option<String> {
    let share = utilization?.get(&Engine::Graphics)?;
    Some(format!("{:.0}%", share * 100.0))
}

/// An age as kubectl shows it: its largest unit only.
fn age(seconds: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    match seconds {
        0..MINUTE => format!("{seconds}s"),
        MINUTE..HOUR => format!("{}m", seconds / MINUTE),
        HOUR..DAY => format!("{}h", seconds / HOUR),
        DAY.. => format!("{}d", seconds / DAY),
    }
}

/// Left-aligned columns, two spaces apart and two from the margin.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|it| it[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("  {cell:<width$}"));
        text.push_str(cells.collect::<String>().trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_its_largest_unit_only() {
        assert_eq!(
            [0, 59, 60, 3599, 3600, 86_399, 86_400].map(age),
            ["0s", "59s", "1m", "59m", "1h", "23h", "1d"]
        );
    }
}
