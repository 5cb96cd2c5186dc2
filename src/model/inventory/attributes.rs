//! Attributes and capacities: what users select devices by.
//!
//! Every device of the driver carries the same keys of the driver's own domain, because CEL that reads a missing key aborts
//! the scheduling of the pod on all nodes. What is unknown has a value that no other GPU has, so that `matchAttribute` never
//! takes two unknowns for one thing:
//!
//! | attribute | where it is unknown, or there is none |
//! |---|---|
//! | `productName`, `brand`, `architecture` | `unknown-gpu-<pci>` |
//! | `cudaComputeCapability` | `0.0.0-unknown.gpu-<pci>`, below every real version |
//! | `driverVersion`, `cudaDriverVersion` | `0.0.0`: one node has one driver, whatever its version is |
//! | `uuid` of a MIG device that is made on demand | the name of the device |
//! | standard attributes (`resource.kubernetes.io/…`) | left out: drivers of other devices do so, too, and constraints across drivers rely on it |
//! | capacities | 0: no request for an amount is served by it |
//!
//! Capacity names are those of NVIDIA's driver, so that selectors carry over.
//!
//! Each attribute costs kube-scheduler time on every device that it looks at, needed or not; docs/placement.md has the numbers. So
//! devices have those by which requests choose, and more only under NVIDIA's name: see [`AttributeSet`].

use std::collections::BTreeMap;

use super::{Attachment, DeviceName, Gpu};
use crate::drivers::NVIDIA;
use crate::facts::{GpuFacts, MediaEngines, NodeFacts, Placement, Profile};

/// Domain of the attributes that Kubernetes standardises.
pub const STANDARD_DOMAIN: &str = "resource.kubernetes.io";

/// Attributes of NVIDIA's driver that say nothing about which device to choose: the same on all devices of a node (the versions), of a product
/// (`brand`, `architecture`), or a repetition of the device's name (the PCI address).
const ONLY_AS_NVIDIA: [&str; 5] =
    ["brand", "architecture", "driverVersion", "cudaDriverVersion", "resource.kubernetes.io/pciBusID"];

/// Which attributes devices have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AttributeSet {
    /// Those by which requests choose.
    #[default]
    Few,
    /// Also all others of NVIDIA's driver: selectors that were written for it must not fail on a missing key.
    AsNvidia,
}

impl AttributeSet {
    /// The attributes of devices of the driver with this name.
    #[must_use]
    pub fn of_driver(name: &str) -> Self {
        if name == NVIDIA { Self::AsNvidia } else { Self::Few }
    }

    /// Removes those that are not in the set.
    pub(super) fn restrict(self, attributes: &mut BTreeMap<&'static str, Attribute>) {
        if self == Self::Few {
            attributes.retain(|key, _| !ONLY_AS_NVIDIA.contains(key));
        }
    }
}

/// Longest string attribute the API server takes, bytes (k8s.io/api/resource/v1).
const MAX_STRING: usize = 64;

/// Value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    /// A number.
    Int(i64),
    /// Yes or no.
    Bool(bool),
    /// At most 64 bytes.
    String(String),
    /// Strict semantic version 2.0.
    Version(String),
}

/// Value of a capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capacity {
    /// A number of things.
    Count(u32),
    /// Bytes, always whole mebibytes.
    Mebibytes(u64),
}

/// Attributes of a whole GPU.
pub(super) fn of_gpu(node: &NodeFacts, gpu: &Gpu) -> BTreeMap<&'static str, Attribute> {
    let mig = gpu.facts.mig.as_ref();
    let slices = mig.and_then(|it| it.profiles.iter().map(|it| it.slices).max()).unwrap_or(0);
    let mut all = common(node, gpu);
    all.extend([
        ("type", string("gpu")),
        ("uuid", string(&gpu.facts.uuid)),
        ("profile", string("full")),
        ("computeSlices", Attribute::Int(slices.into())),
        ("memorySlices", Attribute::Int(mig.map_or(0, |it| it.memory_slices()).into())),
        ("placementStart", Attribute::Int(0)),
        ("mediaExtensions", Attribute::Bool(false)),
    ]);
    all
}

/// Attributes of a MIG device. `uuid` is that of an instance which exists, and the device's name for one that is made on
/// demand.
pub(super) fn of_mig(
    node: &NodeFacts,
    gpu: &Gpu,
    profile: &Profile,
    placement: Placement,
    uuid: &str,
) -> BTreeMap<&'static str, Attribute> {
    let mut all = common(node, gpu);
    all.extend([
        ("type", string("mig")),
        ("uuid", string(uuid)),
        ("profile", string(&profile.name)),
        ("computeSlices", Attribute::Int(profile.slices.into())),
        ("memorySlices", Attribute::Int(placement.size.into())),
        ("placementStart", Attribute::Int(placement.start.into())),
        ("mediaExtensions", Attribute::Bool(has_media_extension(profile))),
    ]);
    all
}

/// Capacities of a whole GPU. NVML reports engines only for profiles, so a GPU has what its richest profile has, and a GPU
/// without MIG reports 0, which means unknown; so does the memory of a GPU without dedicated memory.
pub(super) fn capacities_of_gpu(gpu: &GpuFacts) -> BTreeMap<&'static str, Capacity> {
    let profiles = gpu.mig.as_ref().map_or(&[][..], |it| &it.profiles);
    let most = |count: fn(&Profile) -> u32| profiles.iter().map(count).max().unwrap_or(0);
    let media = MediaEngines {
        decoders: most(|it| it.media.decoders),
        encoders: most(|it| it.media.encoders),
        jpegs: most(|it| it.media.jpegs),
        ofas: most(|it| it.media.ofas),
    };
    capacities(
        gpu.memory_bytes.unwrap_or(0) >> 20,
        most(|it| it.multiprocessors),
        most(|it| it.copy_engines),
        media,
    )
}

/// Capacities of a MIG device.
pub(super) fn capacities_of_profile(profile: &Profile) -> BTreeMap<&'static str, Capacity> {
    capacities(profile.memory_mib, profile.multiprocessors, profile.copy_engines, profile.media)
}

/// True for the profiles that claim the media engines, of which a GPU has few: `+me` and `+me.all`.
fn has_media_extension(profile: &Profile) -> bool {
    profile
        .name
        .split_once('+')
        .is_some_and(|(_, extensions)| extensions.split(',').any(|it| it == "me" || it.starts_with("me.")))
}

fn common(node: &NodeFacts, gpu: &Gpu) -> BTreeMap<&'static str, Attribute> {
    let facts = &gpu.facts;
    let unknown = format!("unknown-{}", DeviceName::gpu(facts.pci));
    let known = |fact: &Option<String>| string(fact.as_ref().unwrap_or(&unknown));
    let capability = match facts.compute_capability {
        Some((major, minor)) => format!("{major}.{minor}.0"),
        None => format!("0.0.0-unknown.{}", DeviceName::gpu(facts.pci)),
    };
    let (cuda_major, cuda_minor) = node.cuda_version.unwrap_or_default();
    let driver_version = semver(node.driver_version.as_deref().unwrap_or_default());
    let mut all = BTreeMap::from([
        ("parentUUID", string(&facts.uuid)),
        ("sharing", string("exclusive")),
        ("productName", known(&facts.product_name)),
        ("brand", known(&facts.brand)),
        ("architecture", known(&facts.architecture)),
        ("cudaComputeCapability", Attribute::Version(capability)),
        ("driverVersion", Attribute::Version(driver_version)),
        ("cudaDriverVersion", Attribute::Version(format!("{cuda_major}.{cuda_minor}.0"))),
        ("resource.kubernetes.io/pciBusID", string(&facts.pci.to_string())),
    ]);
    let Attachment { pcie_root, numa_node } = &gpu.attachment;
    all.extend(pcie_root.as_ref().map(|it| ("resource.kubernetes.io/pcieRoot", string(it))));
    all.extend(numa_node.map(|it| ("resource.kubernetes.io/numaNode", Attribute::Int(it.into()))));
    all
}

fn capacities(
    memory_mib: u64,
    multiprocessors: u32,
    copy_engines: u32,
    media: MediaEngines,
) -> BTreeMap<&'static str, Capacity> {
    BTreeMap::from([
        ("memory", Capacity::Mebibytes(memory_mib)),
        ("multiprocessors", Capacity::Count(multiprocessors)),
        ("copyEngines", Capacity::Count(copy_engines)),
        ("decoders", Capacity::Count(media.decoders)),
        ("encoders", Capacity::Count(media.encoders)),
        ("jpegEngines", Capacity::Count(media.jpegs)),
        ("ofaEngines", Capacity::Count(media.ofas)),
    ])
}

fn string(text: &str) -> Attribute {
    let end = (0..=MAX_STRING.min(text.len())).rev().find(|it| text.is_char_boundary(*it)).unwrap_or(0);
    Attribute::String(text[..end].to_owned())
}

/// A driver version as strict semver: NVIDIA's `570.124.06` has a leading zero, and some have two parts.
fn semver(version: &str) -> String {
    let mut parts = version
        .split('.')
        .map(|part| part.chars().take_while(char::is_ascii_digit).collect::<String>())
        .map(|digits| digits.parse::<u64>().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    format!("{}.{}.{}", next(), next(), next())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::inventory::{OfferPolicy, inventory_on};
    use crate::simulated::{gpus, node_facts};

    /// The keys of each device of a node with a GPU of either kind, MIG on.
    fn keys(driver: &str) -> Vec<BTreeSet<&'static str>> {
        let policy = OfferPolicy { attributes: AttributeSet::of_driver(driver), ..OfferPolicy::default() };
        let inventory = inventory_on(&node_facts(), &gpus("1xH100-80GB,1xL4", true, &["1g.10gb"]), &policy);
        let all = inventory.gpus.iter().flat_map(|it| it.devices.iter().chain(&it.withheld));
        all.map(|it| it.attributes.keys().copied().collect()).collect()
    }

    #[test]
    fn each_device_has_the_attributes_by_which_requests_choose_and_under_nvidias_name_all_of_nvidias() {
        let few = [
            "type",
            "uuid",
            "parentUUID",
            "profile",
            "productName",
            "cudaComputeCapability",
            "computeSlices",
            "memorySlices",
            "placementStart",
            "mediaExtensions",
            "sharing",
            "resource.kubernetes.io/pcieRoot",
            "resource.kubernetes.io/numaNode",
        ];
        let few = BTreeSet::from(few);
        assert!(keys("mig.dra-driver.dev").iter().all(|it| *it == few), "{:?}", keys("mig.dra-driver.dev"));
        let all = &few | &BTreeSet::from(ONLY_AS_NVIDIA);
        assert!(keys("gpu.nvidia.com").iter().all(|it| *it == all), "{:?}", keys("gpu.nvidia.com"));
    }

    #[test]
    fn driver_versions_become_strict_semver() {
        assert_eq!(semver("570.124.06"), "570.124.6");
        assert_eq!(semver("580.82"), "580.82.0");
        assert_eq!(semver("not a version"), "0.0.0");
    }

    #[test]
    fn long_strings_are_cut_at_a_character() {
        let Attribute::String(cut) = string(&"é".repeat(40)) else { panic!("a string") };
        assert_eq!(cut.len(), 64);
        let Attribute::String(cut) = string(&format!("a{}", "é".repeat(40))) else { panic!("a string") };
        assert_eq!(cut.len(), 63);
    }
}
