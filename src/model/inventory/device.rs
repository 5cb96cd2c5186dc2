//! Devices as plain data: what a node offers, and what has to be done to prepare each.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::attributes::{Attribute, AttributeSet, Capacity};
use super::name::DeviceName;
use crate::facts::{Placement, Profile};

/// What a node offers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// One entry for each GPU, in PCI order.
    pub gpus: Vec<GpuInventory>,
}

/// What one GPU offers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GpuInventory {
    /// Name of its counter set, `gpu-<pci>`.
    pub counter_set: String,
    /// All that the empty GPU has, whatever lives on it: kube-scheduler stops giving away anything of a pool in which a counter
    /// is below what allocated devices take from it, and some of these may not be known yet. What an unmanaged instance
    /// takes is withheld by leaving devices out. Only `reserve` lowers them. Empty where nothing the GPU offers can
    /// overlap.
    pub counters: BTreeMap<String, u32>,
    /// What the GPU's instances can have together, MiB; published as one more counter where there are any. The whole GPU takes
    /// all of it, and a MIG device its capacity.
    pub memory_mib: u64,
    /// What devices take of it that claims have and that are not published, see `reserve`.
    pub reserved_mib: u64,
    /// Devices to publish, in NVML's order of the profiles.
    pub devices: Vec<AllocatableDevice>,
    /// Devices that exist but are unavailable now. They are not published; a claim that was given one before may still
    /// ask for it, and Prepare then checks the hardware.
    pub withheld: Vec<AllocatableDevice>,
    /// Why no more of it is offered than what claims have, if so: it is unhealthy, or cannot be read.
    pub problem: Option<String>,
}

/// Something a claim can be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllocatableDevice {
    /// Name in the ResourceSlice.
    pub name: DeviceName,
    /// UUID of the GPU.
    pub parent_uuid: String,
    /// Whole GPU or MIG device.
    pub kind: DeviceKind,
    /// Attributes: the same keys on every device of this driver, except those of `resource.kubernetes.io`.
    pub attributes: BTreeMap<&'static str, Attribute>,
    /// Capacities; the same keys on every device of this driver.
    pub capacities: BTreeMap<&'static str, Capacity>,
    /// What it takes from its GPU's counters.
    pub consumes: BTreeMap<String, u32>,
}

/// What has to be done to prepare a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceKind {
    /// Allocate the whole GPU, with MIG mode off.
    Gpu,
    /// Allocate the whole GPU to several claims at a time.
    Share {
        /// Which of its shares.
        index: u32,
    },
    /// Create a GPU instance and a compute instance that fills it.
    Mig(MigSpec),
    /// Allocate an unmanaged instance as it is.
    Adopted(Adopted),
}

/// A MIG device that could exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MigSpec {
    /// Name of the profile.
    pub profile: String,
    /// Profile id for NVML.
    pub profile_id: u32,
    /// Compute slices.
    pub slices: u32,
    /// Where it goes.
    pub placement: Placement,
}

impl MigSpec {
    /// This profile at this placement.
    #[must_use]
    pub fn of(profile: &Profile, placement: Placement) -> Self {
        let Profile { name, id, slices, .. } = profile;
        Self { profile: name.clone(), profile_id: *id, slices: *slices, placement }
    }
}

/// An unmanaged instance, as it is allocated to a claim. Profile id, placement and UUID are its identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    /// What it is.
    pub spec: MigSpec,
    /// GPU instance id, by which events of the GPU name it.
    pub gpu_instance: u32,
    /// Id of its compute instance.
    pub compute_instance: u32,
    /// UUID of its MIG device.
    pub uuid: String,
}

impl Inventory {
    /// The device with this name, offered at the moment or not.
    #[must_use]
    pub fn device(&self, name: &str) -> Option<&AllocatableDevice> {
        let withheld = self.gpus.iter().flat_map(|it| &it.withheld);
        self.devices().chain(withheld).find(|it| it.name.as_str() == name)
    }

    /// The same devices with the attributes of this set only.
    #[must_use]
    pub fn with_attributes(mut self, set: AttributeSet) -> Self {
        for device in self.gpus.iter_mut().flat_map(|it| it.devices.iter_mut().chain(&mut it.withheld)) {
            set.restrict(&mut device.attributes);
        }
        self
    }

    /// All devices that are offered.
    pub fn devices(&self) -> impl Iterator<Item = &AllocatableDevice> {
        self.gpus.iter().flat_map(|it| &it.devices)
    }

    /// Names of all devices that are offered.
    #[must_use]
    pub fn names(&self) -> BTreeSet<String> {
        self.devices().map(|it| it.name.to_string()).collect()
    }
}

impl AllocatableDevice {
    /// The profile of a MIG device, managed or not; `None` for a whole GPU and its shares.
    #[must_use]
    pub fn mig(&self) -> Option<&MigSpec> {
        match &self.kind {
            DeviceKind::Gpu | DeviceKind::Share { .. } => None,
            DeviceKind::Mig(spec) | DeviceKind::Adopted(Adopted { spec, .. }) => Some(spec),
        }
    }
}
