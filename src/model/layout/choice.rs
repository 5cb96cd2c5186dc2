//! Which GPU is cut how: from the node's label, the layout file and the GPUs to one answer for each GPU, or to a refusal
//! that says why. All or nothing: a layout that fits some GPUs only is refused, so that a node is never half converted.

use std::collections::BTreeMap;

use crate::facts::{GpuFacts, Profile};
use crate::inventory::DeviceName;
use serde::{Deserialize, Serialize};

use super::file::{Devices, Entry, LayoutFile};
use super::mix;

/// How one GPU is to be offered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GpuLayout {
    /// As it is.
    Whole,
    /// In MIG instances: profile and count.
    Cut(BTreeMap<String, u32>),
    /// Not specified. Cut or whole as `cut` says, unless the GPU's MIG mode allows only the other.
    Free {
        /// Whether it is preferably cut.
        cut: bool,
        /// What into.
        counts: BTreeMap<String, u32>,
    },
}

/// How the GPUs of a node are to be offered, by their names (`gpu-<pci>`).
pub type Layouts = BTreeMap<String, GpuLayout>;

/// Why a layout is not put into force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It cannot be understood, or a GPU does not fit it.
    #[error("{0}")]
    Impossible(String),
    /// It asks for nothing that a GPU of this node could be. mig-parted calls that a success.
    #[error("{0}")]
    NoEffect(String),
}

/// The layouts that `label` asks for. Without a file, the label's value is one of the built-in names; without a label, each
/// GPU has what [`default_layouts`] gives.
pub fn choose(label: Option<&str>, file: Option<&LayoutFile>, gpus: &[GpuFacts]) -> Result<Layouts, Refusal> {
    match (label, file) {
        (None, _) => Ok(default_layouts(gpus)),
        (Some(name), Some(file)) => from_file(name, file, gpus),
        (Some(name), None) => built_in(name, gpus),
    }
}

/// What GPUs are offered as where no layout is chosen: of those of one kind half are cut for requests of every size, rounded up,
/// and the others are whole. One GPU alone is cut: whole it serves one pod, cut it serves four.
#[must_use]
pub fn default_layouts(gpus: &[GpuFacts]) -> Layouts {
    let mut sorted: Vec<&GpuFacts> = gpus.iter().collect();
    sorted.sort_by_key(|it| it.pci);
    let kind = |gpu: &GpuFacts| (gpu.pci_device_id, gpu.product_name.clone());
    let layout = |gpu: &GpuFacts| {
        let Some(mig) = gpu.cuttable() else { return GpuLayout::Whole };
        let alike: Vec<&&GpuFacts> = sorted.iter().filter(|it| kind(it) == kind(gpu)).collect();
        let position = alike.iter().position(|it| it.pci == gpu.pci).unwrap_or(0);
        GpuLayout::Free { cut: position < alike.len().div_ceil(2), counts: mix::balanced(&mig.profiles) }
    };
    sorted.iter().map(|gpu| (name(gpu), layout(gpu))).collect()
}

fn name(gpu: &GpuFacts) -> String {
    DeviceName::gpu(gpu.pci).to_string()
}

fn profiles(gpu: &GpuFacts) -> &[Profile] {
    gpu.mig.as_ref().map_or(&[], |it| &it.profiles)
}

fn from_file(config: &str, file: &LayoutFile, gpus: &[GpuFacts]) -> Result<Layouts, Refusal> {
    let text = |text: String| format!("layout file `{}`: {text}", file.name);
    let refuse = |it: String| Refusal::Impossible(text(it));
    let Some(entries) = file.configs.get(config) else {
        let names: Vec<&str> = file.configs.keys().map(String::as_str).collect();
        return Err(refuse(format!("it has no layout `{config}`; it has {}", some(&names))));
    };
    let mut layouts = default_layouts(gpus);
    let mut problems = Vec::new();
    let mut has_effect = false;
    let selects = |entry: &Entry| gpus.iter().any(|it| entry.selects(it.index, it.pci_device_id));
    let is_about_a_gpu = entries.iter().any(selects);
    for (position, entry) in entries.iter().enumerate() {
        let at = |problem: String| format!("mig-configs.{config}[{position}]: {problem}");
        // As with mig-parted, an index that the node does not have is passed over, so that nodes with fewer GPUs, or with a
        // broken one, can have the layout; one that is about none of them is a mistake.
        if let (false, Devices::Indices(indices)) = (is_about_a_gpu, &entry.devices) {
            let known = |index: &&u32| gpus.iter().any(|it| it.index == **index);
            if let Some(index) = indices.iter().find(|it| !known(it)) {
                let indices: Vec<String> = gpus.iter().map(|it| it.index.to_string()).collect();
                let indices: Vec<&str> = indices.iter().map(String::as_str).collect();
                problems.push(at(format!("this node has no GPU {index}; it has {}", some(&indices))));
            }
        }
        for gpu in gpus.iter().filter(|it| entry.selects(it.index, it.pci_device_id)) {
            has_effect |= entry.cut.is_none() || gpu.cuttable().is_some();
            let layout = match (&entry.cut, gpu.cuttable()) {
                (None, _) => Ok(GpuLayout::Whole),
                // "All" means those that can be cut; to name a GPU that cannot is a mistake.
                (Some(_), None) if entry.devices == Devices::All => Ok(GpuLayout::Whole),
                (Some(_), None) => Err(format!("{} has no MIG; leave it out", describe(gpu))),
                // MIG on and no counts: the driver decides.
                (Some(counts), Some(mig)) if counts.is_empty() => {
                    Ok(GpuLayout::Cut(mix::balanced(&mig.profiles)))
                }
                (Some(counts), Some(_)) => check(gpu, counts).map(|()| GpuLayout::Cut(counts.clone())),
            };
            match layout {
                // Where several entries mean a GPU, the last one counts: mig-parted applies them in turn.
                Ok(layout) => drop(layouts.insert(name(gpu), layout)),
                Err(problem) => problems.push(at(problem)),
            }
        }
    }
    if let Some(problem) = one_of(&problems) {
        return Err(refuse(problem));
    }
    if !has_effect {
        let why = match is_about_a_gpu {
            true => {
                "the entries that match GPUs of this node ask for MIG instances, which none of these GPUs can have"
            }
            false => "no entry matches a GPU of this node",
        };
        return Err(Refusal::NoEffect(text(format!("mig-configs.{config}: {why}; it has {}", all(gpus)))));
    }
    Ok(layouts)
}

/// The names of the GPU Operator's own file, from rules instead of tables.
fn built_in(config: &str, gpus: &[GpuFacts]) -> Result<Layouts, Refusal> {
    let mut layouts = default_layouts(gpus);
    let mut set = |layout: &dyn Fn(&GpuFacts) -> Option<GpuLayout>| {
        let chosen: Vec<_> = gpus.iter().filter_map(|gpu| Some((name(gpu), layout(gpu)?))).collect();
        let is_any = !chosen.is_empty();
        layouts.extend(chosen);
        is_any
    };
    let is_known = match config {
        "all-disabled" => {
            set(&|_| Some(GpuLayout::Whole));
            true
        }
        "all-enabled" | "all-balanced" => {
            set(&|gpu| Some(GpuLayout::Cut(mix::balanced(&gpu.cuttable()?.profiles))));
            gpus.iter().any(|it| it.cuttable().is_some())
        }
        other => other
            .strip_prefix("all-")
            .is_some_and(|profile| set(&|gpu| mix::all_of(profiles(gpu), profile).map(GpuLayout::Cut))),
    };
    if is_known {
        return Ok(layouts);
    }
    if gpus.iter().all(|it| it.cuttable().is_none()) {
        let text = format!("`{config}`: no GPU of this node can have MIG instances; it has {}", all(gpus));
        return Err(Refusal::NoEffect(text));
    }
    let mut known: Vec<String> =
        gpus.iter().flat_map(profiles).map(|it| format!("all-{}", mix::label(&it.name))).collect();
    known.sort();
    known.dedup();
    let known: Vec<&str> = ["all-balanced", "all-disabled", "all-enabled"]
        .into_iter()
        .chain(known.iter().map(String::as_str))
        .collect();
    Err(Refusal::Impossible(format!(
        "there is no built-in layout `{config}` for these GPUs; there are {}; others come from a file, see --layouts",
        some(&known)
    )))
}

/// Whether an empty GPU has room for the counts; else why not, and what comes closest.
fn check(gpu: &GpuFacts, counts: &BTreeMap<String, u32>) -> Result<(), String> {
    let profiles = profiles(gpu);
    if let Some(unknown) = counts.keys().find(|it| !profiles.iter().any(|profile| profile.name == **it)) {
        let names: Vec<&str> = profiles.iter().map(|it| it.name.as_str()).collect();
        return Err(format!("{} has no profile `{unknown}`; it has {}", describe(gpu), some(&names)));
    }
    let possible = mix::possible(profiles, counts);
    if possible == *counts {
        return Ok(());
    }
    Err(format!(
        "{} has no room for {}; closest is {}",
        describe(gpu),
        show_counts(counts),
        show_counts(&possible)
    ))
}

fn describe(gpu: &GpuFacts) -> String {
    format!("GPU {} ({}, {})", gpu.index, gpu.product(), gpu.pci)
}

/// `1 x 3g.40gb + 2 x 1g.10gb`.
pub(super) fn show_counts(counts: &BTreeMap<String, u32>) -> String {
    if counts.is_empty() {
        return "nothing".to_owned();
    }
    let parts: Vec<String> = counts.iter().map(|(profile, count)| format!("{count} x {profile}")).collect();
    parts.join(" + ")
}

/// A list for a message: the first ones say enough.
pub(super) fn some(names: &[&str]) -> String {
    const MOST: usize = 16;
    let mut text = names.iter().take(MOST).copied().collect::<Vec<_>>().join(", ");
    if names.is_empty() {
        text.push_str("none");
    }
    if MOST < names.len() {
        text.push_str(&format!(" and {} more", names.len() - MOST));
    }
    text
}

/// The GPUs of a node for a message, with what a `device-filter` compares.
fn all(gpus: &[GpuFacts]) -> String {
    let gpus: Vec<String> =
        gpus.iter().map(|it| format!("{}, PCI id 0x{:08X}", describe(it), it.pci_device_id)).collect();
    let gpus: Vec<&str> = gpus.iter().map(String::as_str).collect();
    some(&gpus)
}

/// All problems as one text, if there are any: the first, and how many more.
fn one_of(problems: &[String]) -> Option<String> {
    match problems {
        [] => None,
        [problem] => Some(problem.clone()),
        [first, others @ ..] => Some(format!("{first} (and {} more like this)", others.len())),
    }
}
