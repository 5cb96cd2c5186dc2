//! Facts that NVML reports, as plain data: no handles, no lifetimes, no decisions.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::call::{CallError, still_unknown};

/// Everything that does not change while the NVIDIA driver stays loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Version of the NVIDIA driver as it prints it, for example `570.124.06`; `None` where NVML does not report it.
    pub driver_version: Option<String>,
    /// Newest CUDA version the driver serves, as (major, minor); `None` where NVML does not report it.
    pub cuda_version: Option<(u32, u32)>,
    /// Why the facts of the node that are `None` are so.
    pub unknown: Vec<CallError>,
    /// GPUs that can be offered, in NVML's order.
    pub gpus: Vec<GpuFacts>,
    /// GPUs that cannot be offered, and why.
    pub skipped: Vec<SkippedGpu>,
}

/// A GPU that is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SkippedGpu {
    /// NVML index.
    pub index: u32,
    /// UUID, if NVML still reports it.
    pub uuid: Option<String>,
    /// Why, for a person.
    pub reason: String,
    /// True where it cannot come back without a reset or another machine; what was on it is gone.
    pub is_gone: bool,
    /// True if it cannot change while this machine runs, so that it is not read again.
    #[serde(skip)]
    pub is_for_good: bool,
}

/// One physical GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuFacts {
    /// NVML index; moves when another GPU is lost.
    pub index: u32,
    /// `GPU-…`.
    pub uuid: String,
    /// Where it sits; the only name of a GPU that does not move.
    pub pci: PciAddress,
    /// PCI device and vendor id as NVML joins them, for example 0x233010DE: device in the upper half.
    pub pci_device_id: u32,
    /// Product name, for example `NVIDIA H100 80GB HBM3`; `None` where NVML does not report it, as with each fact below.
    pub product_name: Option<String>,
    /// Brand, for example `Nvidia`.
    pub brand: Option<String>,
    /// Architecture, for example `Hopper`.
    pub architecture: Option<String>,
    /// CUDA compute capability as (major, minor).
    pub compute_capability: Option<(u32, u32)>,
    /// Frame buffer, bytes. GPUs that use the memory of the system report none.
    pub memory_bytes: Option<u64>,
    /// What MIG can do here; `None` on a GPU without MIG.
    pub mig: Option<MigFacts>,
    /// Calls that failed, so that a fact above is `None`, a profile is left out or all profiles are.
    pub unknown: Vec<CallError>,
}

impl GpuFacts {
    /// The product name for a message.
    #[must_use]
    pub fn product(&self) -> &str {
        self.product_name.as_deref().unwrap_or("unknown product")
    }

    /// MIG capabilities of the GPU, if they are known well enough to create instances.
    #[must_use]
    pub fn cuttable(&self) -> Option<&MigFacts> {
        self.mig.as_ref().filter(|it| !it.profiles.is_empty())
    }

    /// False where another look may find MIG profiles that are not known now, and with them what was made of them.
    #[must_use]
    pub fn has_all_profiles(&self) -> bool {
        let concerns_profiles = |it: &CallError| it.call.starts_with("nvmlDeviceGetGpuInstance");
        let is_missing_one = self.unknown.iter().any(|it| concerns_profiles(it) && !it.is_lasting());
        self.mig.as_ref().is_none_or(|it| !it.profiles.is_empty() && !is_missing_one)
    }

    /// These facts with what another look found out besides; nothing where that is nothing. What is known stays as it is:
    /// devices that are allocated depend on it.
    #[must_use]
    pub fn completed_by(&self, found: &Self) -> Option<Self> {
        let unknown = still_unknown(&self.unknown, &found.unknown);
        if unknown == self.unknown {
            return None;
        }
        let mig = match (&self.mig, &found.mig) {
            (Some(known), Some(found)) if known.profiles.iter().all(|it| found.profiles.contains(it)) => {
                Some(MigFacts { resetless: known.resetless || found.resetless, ..found.clone() })
            }
            (known, _) => known.clone(),
        };
        Some(Self {
            product_name: self.product_name.clone().or_else(|| found.product_name.clone()),
            brand: self.brand.clone().or_else(|| found.brand.clone()),
            architecture: self.architecture.clone().or_else(|| found.architecture.clone()),
            compute_capability: self.compute_capability.or(found.compute_capability),
            memory_bytes: self.memory_bytes.or(found.memory_bytes),
            mig,
            unknown,
            ..self.clone()
        })
    }

    /// The profile with this id.
    #[must_use]
    pub fn profile(&self, id: u32) -> Option<&Profile> {
        self.mig.as_ref()?.profiles.iter().find(|it| it.id == id)
    }
}

/// The MIG profiles and placements of a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigFacts {
    /// True where MIG mode can be switched without resetting the GPU (Hopper and newer). False where no profile is known:
    /// then instances on the GPU cannot be listed, and its mode is left as it is.
    pub resetless: bool,
    /// Every profile that NVML knows for this GPU, in NVML's order. Empty where NVML does not report them: the GPU is
    /// offered whole while MIG mode is off.
    pub profiles: Vec<Profile>,
    /// MIG mode when the facts were read.
    pub mode: MigMode,
}

impl MigFacts {
    /// Memory slices of the whole GPU: the highest end of any placement.
    #[must_use]
    pub fn memory_slices(&self) -> u32 {
        self.profiles.iter().flat_map(|it| &it.placements).map(|it| it.end()).max().unwrap_or(0)
    }
}

/// MIG mode of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MigMode {
    /// In force now.
    pub current: bool,
    /// In force after the next reset.
    pub pending: bool,
}

/// A GPU instance profile, `nvmlGpuInstanceProfileInfo_v3_t` plus its placements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    /// `NVML_GPU_INSTANCE_PROFILE_*`: what the profile query takes.
    pub index: u32,
    /// What every other call takes; it is not the index.
    pub id: u32,
    /// Name without the `MIG ` prefix, for example `1g.10gb+me`.
    pub name: String,
    /// Compute slices.
    pub slices: u32,
    /// How many of this profile fit on an empty GPU.
    pub max_instances: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Copy engines.
    pub copy_engines: u32,
    /// Video and image engines.
    pub media: MediaEngines,
    /// Frame buffer, MiB.
    pub memory_mib: u64,
    /// Where it can be placed on an empty GPU, in NVML's order; all of them [`Placement::is_plausible`].
    pub placements: Vec<Placement>,
}

/// Engines of which a GPU has few, and which decide whether `+me` profiles fit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MediaEngines {
    /// NVDEC.
    pub decoders: u32,
    /// NVENC.
    pub encoders: u32,
    /// NVJPG.
    pub jpegs: u32,
    /// Optical flow accelerators.
    pub ofas: u32,
}

/// Memory slices that an instance occupies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Placement {
    /// First memory slice.
    pub start: u32,
    /// Number of memory slices.
    pub size: u32,
}

/// More memory slices than any GPU has: 8, and 12 on RTX PRO 6000 (mig-nvml-cdi.md 1). With a counter for each, one for
/// each kind of media engine and one for the memory, a counter set has at most 32, which is what the API server takes.
const MOST_MEMORY_SLICES: u32 = 27;

impl Placement {
    /// True for a place that a GPU could have. Everything that is computed from placements relies on it.
    #[must_use]
    pub fn is_plausible(self) -> bool {
        0 < self.size && self.start.checked_add(self.size).is_some_and(|end| end <= MOST_MEMORY_SLICES)
    }

    /// The memory slice behind the last one.
    #[must_use]
    pub fn end(self) -> u32 {
        self.start.saturating_add(self.size)
    }

    /// The memory slices.
    #[must_use]
    pub fn slices(self) -> Range<u32> {
        self.start..self.end()
    }

    /// True where both need a memory slice.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }
}

impl fmt::Display for Placement {
    /// As nvidia-smi prints it: `start:size`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.start, self.size)
    }
}

/// A GPU instance that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuInstance {
    /// GPU instance id; re-used after a destroy.
    pub id: u32,
    /// Profile id, not the profile index.
    pub profile_id: u32,
    /// Where it sits.
    pub placement: Placement,
    /// Its compute instances.
    pub compute_instances: Vec<ComputeInstance>,
}

/// A compute instance that exists, which is what CUDA calls a MIG device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComputeInstance {
    /// Compute instance id within its GPU instance.
    pub id: u32,
    /// UUID of the MIG device, `MIG-…`; re-used when the same partition is made again.
    pub uuid: String,
    /// Compute slices that it takes of its GPU instance.
    pub slices: u32,
}

/// Memory of a GPU or a MIG device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// What processes have taken.
    pub used: u64,
    /// What they can still take.
    pub free: u64,
    /// All of it, with what the NVIDIA driver keeps for itself.
    pub total: u64,
}

/// Parts of an instance whose use NVML measures (`NVML_GPM_METRIC_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Engine {
    /// Time in which any graphics or compute engine was active.
    Graphics,
    /// Time in which multiprocessors had a warp assigned, mean over all of them.
    #[serde(rename = "sm")]
    Multiprocessors,
    /// Warps that were resident, of those that could have been.
    Warps,
    /// Time in which tensor cores were active.
    Tensor,
    /// Bandwidth of the memory.
    MemoryBandwidth,
}

impl Engine {
    /// The value of the label `engine` of metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Graphics => "graphics",
            Self::Multiprocessors => "sm",
            Self::Warps => "warps",
            Self::Tensor => "tensor",
            Self::MemoryBandwidth => "memory_bandwidth",
        }
    }
}

/// What NVML recommends to do with a GPU after errors (`nvmlDeviceGpuRecoveryAction_t` of nvml.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RecoveryAction {
    /// Nothing.
    None,
    /// Reset the GPU.
    Reset,
    /// Reboot the node.
    Reboot,
    /// Drain peer-to-peer traffic, then reset.
    DrainPeerToPeer,
    /// The GPU works with less than it has: start nothing new on it, then reset it.
    DrainAndReset,
    /// A recommendation that this driver does not know.
    Other(u32),
}

impl From<u32> for RecoveryAction {
    fn from(value: u32) -> Self {
        match value {
            0 => Self::None,
            1 => Self::Reset,
            2 => Self::Reboot,
            3 => Self::DrainPeerToPeer,
            4 => Self::DrainAndReset,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for RecoveryAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("no recovery action"),
            Self::Reset => f.write_str("a GPU reset"),
            Self::Reboot => f.write_str("a reboot of the node"),
            Self::DrainPeerToPeer => f.write_str("draining peer-to-peer traffic and a GPU reset"),
            Self::DrainAndReset => f.write_str("draining the GPU and a GPU reset"),
            Self::Other(value) => write!(f, "recovery action {value}"),
        }
    }
}

/// PCI address of a GPU: domain, bus and device. The function is always 0 for a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// Domain, usually 0.
    pub domain: u32,
    /// Bus.
    pub bus: u8,
    /// Device.
    pub device: u8,
}

impl fmt::Display for PciAddress {
    /// As sysfs names it: `0000:3b:00.0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.0", self.domain, self.bus, self.device)
    }
}

/// A text that is not a PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a PCI address of the form domain:bus:device.function")]
pub struct InvalidPciAddress(pub String);

impl FromStr for PciAddress {
    type Err = InvalidPciAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (domain, rest) = text.split_once(':')?;
            let (bus, rest) = rest.split_once(':')?;
            let device = rest.split_once('.').map_or(rest, |(device, _function)| device);
            Some(Self {
                domain: u32::from_str_radix(domain, 16).ok()?,
                bus: u8::from_str_radix(bus, 16).ok()?,
                device: u8::from_str_radix(device, 16).ok()?,
            })
        };
        parse().ok_or_else(|| InvalidPciAddress(text.to_owned()))
    }
}

#[cfg(test)]
mod tests;
