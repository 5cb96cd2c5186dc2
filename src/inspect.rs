//! `dra-driver-mig inspect`: this node's GPUs as they are now. Reads only.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

use serde::Serialize;

use crate::args::{InspectArgs, OutputFormat};
use crate::checkpoint::{Checkpoint, Record, RecordedDevice, RecordedKind};
use crate::hardware::Hardware;
use crate::inventory::{CounterPlan, Gpu, adoptable, fits_into, remaining};
use crate::nvml::facts::{GpuInstance, MigMode, Placement, Profile, SkippedGpu};

/// A node as `inspect -o json` prints it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    /// NVIDIA driver version as NVML tells it.
    pub driver_version: String,
    /// Newest CUDA version the driver serves.
    pub cuda_version: String,
    /// GPUs in PCI order.
    pub gpus: Vec<GpuReport>,
    /// GPUs that the driver leaves out, and why.
    pub skipped: Vec<SkippedGpu>,
}

/// A GPU.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuReport {
    /// NVML index.
    pub index: u32,
    /// UUID.
    pub uuid: String,
    /// PCI address.
    pub pci: String,
    /// Product name.
    pub product_name: String,
    /// Architecture.
    pub architecture: String,
    /// Frame buffer, MiB.
    pub memory_mib: u64,
    /// Why it cannot be read at the moment, if so.
    pub problem: Option<String>,
    /// `namespace/name` of the claim that holds the whole GPU, if one does.
    pub owner: Option<String>,
    /// Claims that have a time-shared device of the GPU, by its number.
    pub shares: BTreeMap<u32, String>,
    /// MIG; `null` on a GPU without it.
    pub mig: Option<MigReport>,
}

/// What MIG makes of a GPU.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MigReport {
    /// MIG mode now and after the next reset.
    pub mode: MigMode,
    /// Whether the mode can be switched without a reset.
    pub resetless: bool,
    /// Memory slices of the whole GPU.
    pub memory_slices: u32,
    /// Profiles in NVML's order.
    pub profiles: Vec<ProfileReport>,
    /// Live instances by placement.
    pub instances: Vec<InstanceReport>,
}

/// A profile and where it still fits.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProfileReport {
    /// What NVML says of it.
    #[serde(flatten)]
    pub profile: Profile,
    /// Placements that could be made now.
    pub free: Vec<Placement>,
}

/// A live GPU instance.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceReport {
    /// GPU instance id.
    pub gpu_instance: u32,
    /// Profile name, or its id where the driver does not know it.
    pub profile: String,
    /// Where it sits.
    pub placement: Placement,
    /// UUIDs of its MIG devices.
    pub mig_devices: Vec<String>,
    /// `namespace/name` of the claim that holds it, or `foreign`.
    pub owner: String,
    /// True where the driver did not make it, whether or not a claim has it.
    pub foreign: bool,
    /// Why `--existing-instances=adopt` does not offer it, if it does not.
    pub not_adopted: Option<String>,
}

/// Prints the report.
pub async fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let wanted = args.hardware.clone();
    let hardware = tokio::task::spawn_blocking(move || Hardware::open(&wanted)).await??;
    // On a node where the driver never ran there is no directory, and none is made.
    let directory = args.driver.claims_directory();
    let records = if directory.is_dir() { Checkpoint::reading(&directory).records()? } else { Vec::new() };
    let report = report(&hardware, &hardware.scan().await?, &records);
    let text = match args.output {
        OutputFormat::Table => table(&report),
        OutputFormat::Json => format!("{}\n", serde_json::to_string_pretty(&report)?),
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn report(hardware: &Hardware, gpus: &[Gpu], records: &[Arc<Record>]) -> NodeReport {
    let (major, minor) = hardware.facts.cuda_version;
    let mut gpus: Vec<&Gpu> = gpus.iter().collect();
    gpus.sort_by_key(|it| it.facts.pci);
    NodeReport {
        driver_version: hardware.facts.driver_version.clone(),
        cuda_version: format!("{major}.{minor}"),
        gpus: gpus.into_iter().map(|it| gpu_report(hardware, it, records)).collect(),
        skipped: hardware.facts.skipped.clone(),
    }
}

fn gpu_report(hardware: &Hardware, gpu: &Gpu, records: &[Arc<Record>]) -> GpuReport {
    let maker = |instance: &GpuInstance| {
        records.iter().find(|it| hardware.is_recorded(&gpu.facts.uuid, instance, it))
    };
    let of_this_gpu = |record: &Record| {
        let devices = record.devices.iter().filter(|it| it.parent_uuid == gpu.facts.uuid);
        devices.map(|it| it.kind.clone()).collect::<Vec<_>>()
    };
    let now = || records.iter().filter(|it| it.boot_id == hardware.boot_id);
    let adopter = |instance: &GpuInstance| {
        let adopted = RecordedKind::Adopted(adoptable(&gpu.facts, instance).ok()?);
        now().find(|it| of_this_gpu(it).contains(&adopted))
    };
    let share = |(kind, record): (RecordedKind, &Arc<Record>)| match kind {
        RecordedKind::Share { index } => Some((index, record.claim.to_string())),
        _ => None,
    };
    let shares = now().flat_map(|record| of_this_gpu(record).into_iter().map(move |it| (it, record)));
    let shares = shares.filter_map(share).collect();
    let whole = |record: &&Arc<Record>| {
        let is_it = |it: &RecordedDevice| it.parent_uuid == gpu.facts.uuid && it.kind == RecordedKind::Gpu;
        record.boot_id == hardware.boot_id && record.devices.iter().any(is_it)
    };
    let whole_owner = records.iter().find(whole).map(|it| it.claim.to_string());
    let mig = gpu.facts.mig.as_ref().map(|mig| {
        let can_be_cut = whole_owner.is_none()
            && gpu.state.problem.is_none()
            && (mig.resetless || gpu.state.mode.is_some_and(|it| it.current));
        let plan = CounterPlan::of(&mig.profiles);
        let left = remaining(&plan, gpu);
        let free = |profile: &Profile| {
            let placements = profile.placements.iter().copied();
            placements.filter(|it| can_be_cut && fits_into(&plan.cost(profile, *it), &left)).collect()
        };
        let mut instances: Vec<InstanceReport> = gpu
            .state
            .instances
            .iter()
            .map(|it| {
                let owner = maker(it).or_else(|| adopter(it));
                let foreign = maker(it).is_none();
                let refusal = adoptable(&gpu.facts, it).err().filter(|_| foreign);
                let profile = gpu.facts.profile(it.profile_id);
                InstanceReport {
                    gpu_instance: it.id,
                    profile: profile.map_or_else(|| it.profile_id.to_string(), |it| it.name.clone()),
                    placement: it.placement,
                    mig_devices: it.compute_instances.iter().map(|it| it.uuid.clone()).collect(),
                    owner: owner.map_or_else(|| "foreign".to_owned(), |it| it.claim.to_string()),
                    foreign,
                    not_adopted: refusal.map(|it| it.to_string()),
                }
            })
            .collect();
        instances.sort_by_key(|it| it.placement);
        MigReport {
            mode: gpu.state.mode.unwrap_or(mig.mode),
            resetless: mig.resetless,
            memory_slices: mig.memory_slices(),
            profiles: mig
                .profiles
                .iter()
                .map(|it| ProfileReport { free: free(it), profile: it.clone() })
                .collect(),
            instances,
        }
    });
    GpuReport {
        index: gpu.facts.index,
        uuid: gpu.facts.uuid.clone(),
        pci: gpu.facts.pci.to_string(),
        product_name: gpu.facts.product_name.clone(),
        architecture: gpu.facts.architecture.clone(),
        memory_mib: gpu.facts.memory_bytes >> 20,
        problem: gpu.state.problem.clone(),
        owner: whole_owner,
        shares,
        mig,
    }
}

fn table(report: &NodeReport) -> String {
    let mut text = format!("NVIDIA driver {}, CUDA {}\n", report.driver_version, report.cuda_version);
    if report.gpus.is_empty() && report.skipped.is_empty() {
        text.push_str("no GPUs\n");
    }
    for gpu in &report.gpus {
        text.push_str(&format!(
            "\nGPU {}  {}  {}  {}  {} MiB\n",
            gpu.index, gpu.pci, gpu.product_name, gpu.uuid, gpu.memory_mib
        ));
        if let Some(problem) = &gpu.problem {
            text.push_str(&format!("  cannot be read: {problem}\n"));
        }
        if let Some(owner) = &gpu.owner {
            text.push_str(&format!("  handed out whole to {owner}\n"));
        }
        for (index, owner) in &gpu.shares {
            text.push_str(&format!("  share {index} handed out to {owner}\n"));
        }
        match &gpu.mig {
            None => text.push_str("  no MIG\n"),
            Some(mig) => text.push_str(&mig_table(mig)),
        }
    }
    for skipped in &report.skipped {
        let uuid = skipped.uuid.as_deref().unwrap_or("unknown UUID");
        text.push_str(&format!("\nGPU {} ({uuid}) is skipped: {}\n", skipped.index, skipped.reason));
    }
    text
}

fn mig_table(mig: &MigReport) -> String {
    let on_off = |is_on| if is_on { "on" } else { "off" };
    let mut text = format!("  MIG {}", on_off(mig.mode.current));
    if mig.mode.current != mig.mode.pending {
        text.push_str(&format!(", {} after a reset", on_off(mig.mode.pending)));
    }
    text.push_str(if mig.resetless { ", switched without a reset\n" } else { ", switching needs a reset\n" });

    let starts = |placements: &[Placement]| {
        let all: Vec<String> = placements.iter().map(|it| it.start.to_string()).collect();
        if all.is_empty() { "-".to_owned() } else { all.join(",") }
    };
    let mut profiles =
        vec![["PROFILE", "ID", "SM", "MEMORY", "SLICES", "PLACEMENTS", "FREE"].map(str::to_owned)];
    profiles.extend(mig.profiles.iter().map(|ProfileReport { profile, free }| {
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
    text.push_str(&columns(&profiles));
    if mig.instances.is_empty() {
        text.push_str("  no instances\n");
        return text;
    }
    let mut instances = vec![["INSTANCE", "PROFILE", "PLACEMENT", "OWNER", "MIG DEVICE"].map(str::to_owned)];
    instances.extend(mig.instances.iter().map(|it| {
        [
            it.gpu_instance.to_string(),
            it.profile.clone(),
            it.placement.to_string(),
            if it.foreign && it.owner != "foreign" {
                format!("{} (foreign)", it.owner)
            } else {
                it.owner.clone()
            },
            if it.mig_devices.is_empty() { "none".to_owned() } else { it.mig_devices.join(" ") },
        ]
    }));
    text.push_str(&columns(&instances));
    for instance in &mig.instances {
        if let Some(reason) = &instance.not_adopted {
            text.push_str(&format!("  instance {} cannot be adopted: {reason}\n", instance.gpu_instance));
        }
    }
    text
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
