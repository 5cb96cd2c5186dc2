//! What is known of a model, with where each value comes from.

use serde::Deserialize;

/// Where values come from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Evidence {
    /// Read in the named public source.
    Verified(String),
    /// Not seen anywhere; the text says what it was concluded from.
    Inferred(String),
}

/// One row of a model's profile table, in the columns of `nvidia-smi mig -lgip`.
#[derive(Clone, Debug)]
pub struct Row {
    /// The `NVML_GPU_INSTANCE_PROFILE_*` constant by which NVML enumerates profiles.
    pub index: u32,
    /// The id that `nvidia-smi` prints and that create, list and placement calls take. Not the index.
    pub id: u32,
    /// The name without its `MIG ` prefix, such as `1g.10gb+me`.
    pub name: String,
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
    pub inferred: Vec<String>,
}

/// Where the instances of some profiles may lie.
#[derive(Clone, Debug)]
pub struct Places {
    /// Memory units of the GPU.
    pub memory_units: u32,
    /// Indices of the profiles.
    pub indices: Vec<u32>,
    /// Memory units that one instance takes.
    pub size: u32,
    /// First memory units that it may take, ascending.
    pub starts: Vec<u32>,
    /// The same, in the order in which NVML tries them when no placement is asked for.
    pub default_order: Vec<u32>,
    /// Where this comes from.
    pub evidence: Evidence,
    /// The fields above that are nevertheless inferred.
    pub inferred: Vec<String>,
}

/// One kind of GPU.
#[derive(Debug)]
pub struct ModelData {
    /// The name that users type, such as `H100-80GB`.
    pub name: String,
    /// Other spellings that the parser takes.
    pub aliases: Vec<String>,
    /// What `nvmlDeviceGetName` answers.
    pub product_name: String,
    /// `nvmlBrandType_t`.
    pub brand: u32,
    /// Its name.
    pub brand_name: String,
    /// `nvmlDeviceArchitecture_t`.
    pub architecture: u32,
    /// Its name.
    pub architecture_name: String,
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
    pub inferred: Vec<String>,
    /// The profile table; empty for a GPU without MIG.
    pub rows: Vec<Row>,
}

impl ModelData {
    /// Whether a value of the model, or of one of its profiles, was concluded and not read.
    #[must_use]
    pub fn has_inferred(&self) -> bool {
        let is_inferred = |evidence: &Evidence, fields: &[String]| {
            matches!(evidence, Evidence::Inferred(_)) || !fields.is_empty()
        };
        is_inferred(&self.evidence, &self.inferred)
            || self.rows.iter().any(|row| is_inferred(&row.evidence, &row.inferred))
    }
}
