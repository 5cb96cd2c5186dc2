//! What kinds of GPU there are: the shape of the tables in [`crate::tables`] and the questions asked of them.
//!
//! Nothing here knows a GPU's state; a profile is what `nvidia-smi mig -lgip` prints for an empty GPU.

use serde::{Deserialize, Serialize};

use crate::tables;

/// Where the values of a table row come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Read in the named public source (see `reference/mig-nvml-cdi.md`, section 1).
    Verified(&'static str),
    /// Not seen anywhere; the text says what it was concluded from.
    Inferred(&'static str),
}

/// One row of a model's profile table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The `NVML_GPU_INSTANCE_PROFILE_*` constant by which NVML enumerates profiles.
    pub index: u32,
    /// The id that `nvidia-smi` prints and that create, list and placement calls take. Not the index.
    pub id: u32,
    /// The name without its `MIG ` prefix, such as `1g.10gb+me`.
    pub name: &'static str,
    /// Streaming multiprocessors.
    pub sm: u32,
    /// Copy engines.
    pub ce: u32,
    /// Video decoders.
    pub dec: u32,
    /// Video encoders.
    pub enc: u32,
    /// JPEG decoders.
    pub jpeg: u32,
    /// Optical flow accelerators.
    pub ofa: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// How many instances of this profile an empty GPU holds.
    pub max: u32,
    /// Where the row comes from.
    pub evidence: Evidence,
    /// The columns of a verified row that are nevertheless inferred.
    pub inferred: &'static [&'static str],
}

/// One kind of GPU.
#[derive(Debug)]
pub struct ModelData {
    /// The name that users type, such as `H100-80GB`.
    pub name: &'static str,
    /// Other spellings that the parser takes.
    pub aliases: &'static [&'static str],
    /// What `nvmlDeviceGetName` answers.
    pub product_name: &'static str,
    /// `nvmlBrandType_t`.
    pub brand: u32,
    /// `nvmlDeviceArchitecture_t`.
    pub architecture: u32,
    /// CUDA compute capability, major and minor.
    pub compute_capability: (u32, u32),
    /// The PCI device id (without the vendor).
    pub pci_device: u32,
    /// Total memory in MiB.
    pub memory_mib: u64,
    /// Streaming multiprocessors of the whole GPU.
    pub sm: u32,
    /// Memory units that placements count in: 8, 4 or 12; 0 for a GPU without MIG.
    pub memory_units: u32,
    /// Where the values above come from.
    pub evidence: Evidence,
    /// The fields above that are nevertheless inferred.
    pub inferred: &'static [&'static str],
    /// The profile table; empty for a GPU without MIG.
    pub rows: &'static [Row],
}

/// A kind of GPU: a reference into the tables.
#[derive(Clone, Copy, Debug)]
pub struct Model(pub(crate) &'static ModelData);

impl PartialEq for Model {
    fn eq(&self, other: &Model) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for Model {}

/// A GPU instance profile as a GPU reports it: a table row with its placements, or one invented by a test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// The `NVML_GPU_INSTANCE_PROFILE_*` constant.
    pub index: u32,
    /// The profile id.
    pub id: u32,
    /// The name without its `MIG ` prefix.
    pub name: String,
    /// Compute slices.
    pub slices: u32,
    /// Streaming multiprocessors.
    pub sm: u32,
    /// Copy engines.
    pub ce: u32,
    /// Video decoders.
    pub dec: u32,
    /// Video encoders.
    pub enc: u32,
    /// JPEG decoders.
    pub jpeg: u32,
    /// Optical flow accelerators.
    pub ofa: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// How many instances of this profile an empty GPU holds.
    pub max: u32,
    /// Capability bits of the v3 structure: P2P 1, graphics 2.
    pub capabilities: u32,
    /// Memory units that one instance takes.
    pub size: u32,
    /// First memory units that it may take, ascending.
    pub starts: Vec<u32>,
    /// The same, in the order in which NVML tries them when no placement is asked for.
    pub default_order: Vec<u32>,
}

impl Model {
    /// Every model there is.
    pub fn all() -> impl Iterator<Item = Model> {
        tables::MODELS.iter().map(Model)
    }

    /// The model of that name or alias, in any case. The error lists the names.
    pub fn named(name: &str) -> Result<Model, String> {
        let same = |known: &&str| known.eq_ignore_ascii_case(name);
        Model::all().find(|model| same(&model.0.name) || model.0.aliases.iter().any(&same)).ok_or_else(|| {
            let names: Vec<&str> = Model::all().map(|model| model.0.name).collect();
            format!("no GPU model is called {name:?}; known: {}", names.join(", "))
        })
    }

    /// The table entry.
    pub fn data(&self) -> &'static ModelData {
        self.0
    }

    /// The name that users type.
    pub fn name(&self) -> &'static str {
        self.0.name
    }

    /// Whether it can be partitioned.
    pub fn has_mig(&self) -> bool {
        self.0.memory_units > 0
    }

    /// Whether MIG mode changes without a GPU reset: Hopper and newer (reference 3.1).
    pub fn resetless_mig(&self) -> bool {
        self.has_mig() && self.0.architecture >= tables::HOPPER
    }

    /// The profiles with their placements.
    pub fn profiles(&self) -> Vec<Profile> {
        self.0.rows.iter().map(|row| profile(self.0, row)).collect()
    }
}

/// Reads `2xH100-80GB,1xL4`; a part without a count is one GPU.
pub fn parse_gpus(text: &str) -> Result<Vec<Model>, String> {
    let mut gpus = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let counted =
            part.split_once(['x', 'X']).and_then(|(n, name)| Some((n.parse::<usize>().ok()?, name)));
        let (count, name) = counted.unwrap_or((1, part));
        if count == 0 || gpus.len() + count > MAX_GPUS {
            return Err(format!("{part:?}: a node has 1 to {MAX_GPUS} GPUs"));
        }
        gpus.extend(std::iter::repeat_n(Model::named(name)?, count));
    }
    if gpus.is_empty() {
        return Err("no GPU given; write for example 2xH100-80GB,1xL4".into());
    }
    Ok(gpus)
}

/// More than any board has; the rendered `mig-minors` lists this many GPUs. The real number is not known.
pub(crate) const MAX_GPUS: usize = 32;

fn profile(model: &ModelData, row: &Row) -> Profile {
    let spots = tables::spots(model.memory_units, row.index);
    Profile {
        index: row.index,
        id: row.id,
        name: row.name.into(),
        slices: row.name.split_once('g').and_then(|(n, _)| n.parse().ok()).unwrap_or(1),
        sm: row.sm,
        ce: row.ce,
        dec: row.dec,
        enc: row.enc,
        jpeg: row.jpeg,
        ofa: row.ofa,
        memory_mib: row.memory_mib,
        max: row.max,
        capabilities: if row.name.contains("+gfx") { CAPABILITY_GRAPHICS } else { 0 },
        size: spots.size,
        starts: spots.starts.to_vec(),
        default_order: spots.default_order.to_vec(),
    }
}

/// `NVML_GPU_INSTANCE_PROFILE_CAPS_GFX`.
const CAPABILITY_GRAPHICS: u32 = 2;
