//! GPU models: what NVML reports of an empty GPU, as data (`models.json`), each value marked as verified or inferred.
//!
//! For programs that have no GPU to ask: the simulator of NVML and `kubectl mig`. The node driver asks NVML and does not know
//! this crate. To add a model, add an entry to `models.json`. The sources are those of `reference/mig-nvml-cdi.md`, section 1.

mod data;
mod table;

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

pub use self::table::{Evidence, ModelData, Places, Row};

/// A kind of GPU: a reference into the tables.
#[derive(Clone, Copy, Debug)]
pub struct Model(&'static ModelData);

impl PartialEq for Model {
    fn eq(&self, other: &Self) -> bool {
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

/// `models.json`, read once.
static TABLES: LazyLock<data::Tables> = LazyLock::new(data::tables);

/// `NVML_GPU_INSTANCE_PROFILE_CAPS_GFX`.
const CAPABILITY_GRAPHICS: u32 = 2;

/// `NVML_DEVICE_ARCH_HOPPER`: from here on MIG mode is switched without a reset.
pub const HOPPER: u32 = 9;

impl Model {
    /// Every model there is, in the order of the generations.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLES.models.iter().map(Model)
    }

    /// The model of that name or alias, in any case.
    ///
    /// # Errors
    /// A text that lists the names.
    pub fn named(name: &str) -> Result<Self, String> {
        let same = |known: &String| known.eq_ignore_ascii_case(name);
        Self::all().find(|model| same(&model.0.name) || model.0.aliases.iter().any(same)).ok_or_else(|| {
            let names: Vec<&str> = Self::all().map(|model| model.name()).collect();
            format!("no GPU model is called {name:?}; known: {}", names.join(", "))
        })
    }

    /// The table entry.
    #[must_use]
    pub fn data(&self) -> &'static ModelData {
        self.0
    }

    /// The name that users type.
    #[must_use]
    pub fn name(&self) -> &'static str {
        &self.0.name
    }

    /// Whether it can be partitioned.
    #[must_use]
    pub fn has_mig(&self) -> bool {
        self.0.memory_units > 0
    }

    /// Whether MIG mode changes without a GPU reset: Hopper and newer (reference 3.1).
    #[must_use]
    pub fn resetless_mig(&self) -> bool {
        self.has_mig() && self.0.architecture >= HOPPER
    }

    /// The profiles with their placements.
    #[must_use]
    pub fn profiles(&self) -> Vec<Profile> {
        self.0.rows.iter().map(|row| profile(self.0, row)).collect()
    }
}

fn profile(model: &ModelData, row: &Row) -> Profile {
    let is_of = |it: &&Places| it.memory_units == model.memory_units && it.indices.contains(&row.index);
    let places = TABLES.placements.iter().find(is_of);
    Profile {
        index: row.index,
        id: row.id,
        name: row.name.clone(),
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
        size: places.map_or(0, |it| it.size),
        starts: places.map(|it| it.starts.clone()).unwrap_or_default(),
        default_order: places.map(|it| it.default_order.clone()).unwrap_or_default(),
    }
}

/// More GPUs than any board has; a simulated node and a planned one have at most so many.
pub const MAX_GPUS: usize = 32;

/// Reads the GPUs of a node, `2xH100-80GB,1xL4`; a part without a count is one GPU.
///
/// # Errors
/// A text that says what is wrong.
pub fn parse_gpus(text: &str) -> Result<Vec<Model>, String> {
    let mut gpus = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let counted =
            part.split_once(['x', 'X']).and_then(|(n, name)| Some((n.parse::<usize>().ok()?, name)));
        let (count, name) = counted.unwrap_or((1, part));
        if count == 0 || count > MAX_GPUS - gpus.len() {
            return Err(format!("{part:?}: a node has 1 to {MAX_GPUS} GPUs"));
        }
        gpus.extend(std::iter::repeat_n(Model::named(name)?, count));
    }
    if gpus.is_empty() {
        return Err("no GPU given; write for example 2xH100-80GB,1xL4".into());
    }
    Ok(gpus)
}

/// Where a GPU sits in a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// PCI bus in domain 0.
    pub bus: u32,
    /// Bus of the PCI root complex above it.
    pub root: u32,
    /// NUMA node.
    pub numa: u32,
}

impl Seat {
    /// The seat of a GPU by its index: two GPUs per root complex, two sockets, bus numbers as on a common board of eight.
    #[must_use]
    pub fn of(index: usize) -> Self {
        const BOARD: [(u32, u32); 8] = [
            (0x1a, 0x19),
            (0x1b, 0x19),
            (0x3b, 0x3a),
            (0x3c, 0x3a),
            (0x9a, 0x99),
            (0x9b, 0x99),
            (0xba, 0xb9),
            (0xbb, 0xb9),
        ];
        let beyond = || (0xc0 + u32::try_from(index).unwrap_or(0), 0xbf);
        let (bus, root) = BOARD.get(index).copied().unwrap_or_else(beyond);
        Self { bus, root, numa: u32::from(index % BOARD.len() >= 4) }
    }
}
