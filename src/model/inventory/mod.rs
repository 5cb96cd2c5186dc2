//! Inventory: the devices that each GPU of this node can provide, and the counters that each consumes.
//!
//! Pure. Knows no GPU model: everything comes from what NVML reports. Refuses to offer what cannot be prepared, such as
//! a placement that an unmanaged instance occupies.

mod attributes;
mod counters;
mod existing;
mod filter;
mod name;
mod problem;
mod shares;
mod withheld;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use attributes::{Attribute, Capacity, STANDARD_DOMAIN};
pub use counters::CounterPlan;
pub use existing::{Adopted, ExistingInstances, NotAdopted, adoptable, not_adopted};
pub use filter::{InvalidPattern, ProfileFilter};
pub use name::DeviceName;
pub use problem::Problem;
pub use shares::MOST_SHARES;
pub use withheld::{HostAccess, Withheld, withheld};

use crate::facts::{GpuFacts, GpuInstance, MigFacts, MigMode, NodeFacts, Placement, Profile};

/// Where a GPU is attached to the machine, from sysfs; nothing where that is unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attachment {
    /// PCIe root complex, `pci0000:3a`.
    pub pcie_root: Option<String>,
    /// NUMA node.
    pub numa_node: Option<u32>,
}

/// What can change about a GPU while the driver runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuState {
    /// MIG mode; `None` on a GPU without MIG.
    pub mode: Option<MigMode>,
    /// Live instances; for the inventory only those that this driver did not make.
    pub instances: Vec<GpuInstance>,
    /// Why the GPU cannot be read at the moment, if so.
    pub problem: Option<String>,
}

/// A GPU with all that is known about it.
#[derive(Debug, Clone)]
pub struct Gpu {
    /// What NVML says of it.
    pub facts: Arc<GpuFacts>,
    /// Where it is attached.
    pub attachment: Attachment,
    /// What changes.
    pub state: GpuState,
}

/// What a node offers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// One entry for each GPU, in PCI order.
    pub gpus: Vec<GpuInventory>,
}

/// What one GPU offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuInventory {
    /// Name of its counter set, `gpu-<pci>`.
    pub counter_set: String,
    /// All that the empty GPU has, whatever lives on it: kube-scheduler stops giving away anything of a pool in which a counter
    /// is below what allocated devices take from it, and some of these may not be known yet. What an unmanaged instance
    /// takes is withheld by leaving devices out. Empty where nothing the GPU offers can overlap.
    pub counters: BTreeMap<String, u32>,
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
    /// Attributes: the same keys on every device of this driver, except those of [`STANDARD_DOMAIN`].
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

/// What decides, besides the hardware, on what a node offers.
#[derive(Debug, Clone, Default)]
pub struct OfferPolicy {
    /// Names of the devices that claims of this driver hold: they stay, whatever else changes (kubernetes#140802: an
    /// allocated device that vanishes from its slice looks free to the scheduler).
    pub held: BTreeSet<String>,
    /// The held devices that are unmanaged instances, with the UUID of their GPU.
    pub adopted: Vec<(String, Adopted)>,
    /// Devices in CDI files of claims without a record: what the driver created for them looks like an unmanaged instance.
    pub named: BTreeSet<String>,
    /// Unhealthy unmanaged instances: they are not published, except while a claim has them.
    pub unhealthy: BTreeSet<String>,
    /// How unmanaged instances are treated.
    pub existing: ExistingInstances,
    /// Devices that a GPU without MIG is shared by; fewer than two is none.
    pub time_slices: u32,
    /// What can be done with MIG on this host.
    pub mig_access: MigAccess,
    /// UUIDs of the GPUs on which NVML refuses to create or destroy an instance.
    pub refused: BTreeSet<String>,
}

/// What this host permits the driver to do with MIG.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MigAccess {
    /// Everything.
    #[default]
    Full,
    /// Existing instances can be allocated; the driver cannot create or destroy instances, nor switch MIG mode.
    ExistingOnly,
    /// No instance can be allocated.
    None,
}

impl OfferPolicy {
    /// What can be done with MIG on this GPU.
    #[must_use]
    pub fn mig_access_of(&self, gpu: &Gpu) -> MigAccess {
        match self.mig_access {
            MigAccess::Full if self.refused.contains(&gpu.facts.uuid) => MigAccess::ExistingOnly,
            of_host => of_host,
        }
    }

    fn adopted_on<'a>(&'a self, gpu: &'a Gpu) -> impl Iterator<Item = &'a Adopted> {
        self.adopted.iter().filter(|(parent, _)| *parent == gpu.facts.uuid).map(|(_, it)| it)
    }
}

impl Inventory {
    /// The device with this name, offered at the moment or not.
    #[must_use]
    pub fn device(&self, name: &str) -> Option<&AllocatableDevice> {
        let withheld = self.gpus.iter().flat_map(|it| &it.withheld);
        self.devices().chain(withheld).find(|it| it.name.as_str() == name)
    }

    /// All devices that are offered.
    pub fn devices(&self) -> impl Iterator<Item = &AllocatableDevice> {
        self.gpus.iter().flat_map(|it| &it.devices)
    }
}

/// Builds the inventory of a node on the usual terms: instances of others are withheld, GPUs not shared. `held` names
/// devices that claims of this driver hold.
#[must_use]
pub fn inventory(node: &NodeFacts, gpus: &[Gpu], held: &BTreeSet<String>) -> Inventory {
    inventory_on(node, gpus, &OfferPolicy { held: held.clone(), ..OfferPolicy::default() })
}

/// Builds the inventory of a node.
#[must_use]
pub fn inventory_on(node: &NodeFacts, gpus: &[Gpu], policy: &OfferPolicy) -> Inventory {
    let mut gpus: Vec<&Gpu> = gpus.iter().collect();
    gpus.sort_by_key(|it| it.facts.pci);
    Inventory { gpus: gpus.into_iter().map(|gpu| offers(node, gpu, policy)).collect() }
}

fn offers(node: &NodeFacts, gpu: &Gpu, policy: &OfferPolicy) -> GpuInventory {
    let plan = CounterPlan::of(gpu.facts.mig.as_ref().map_or(&[], |it| &it.profiles));
    let whole = AllocatableDevice {
        name: DeviceName::gpu(gpu.facts.pci),
        parent_uuid: gpu.facts.uuid.clone(),
        kind: DeviceKind::Gpu,
        attributes: attributes::of_gpu(node, gpu),
        capacities: attributes::capacities_of_gpu(&gpu.facts),
        consumes: plan.totals(),
    };
    let counter_set = name::gpu_label(gpu.facts.pci);
    let Some(mig) = &gpu.facts.mig else {
        let (devices, withheld) = match (gpu.state.problem.is_none(), policy.time_slices) {
            (true, 0 | 1) => (vec![whole], Vec::new()),
            (true, count) => ((0..count.min(MOST_SHARES)).map(|it| whole.share(it)).collect(), vec![whole]),
            (false, _) => (Vec::new(), vec![whole]),
        };
        let problem = gpu.state.problem.clone();
        let offered = GpuInventory { counter_set, counters: BTreeMap::new(), devices, withheld, problem };
        return offered.with_held(&policy.held);
    };
    let mut left = remaining(&plan, gpu);
    for (profile, placement) in existing::gone(gpu, policy) {
        take(&mut left, plan.cost(profile, placement));
    }
    let mut counters = plan.totals();
    let mut candidates = mig_devices(node, gpu, mig, &plan);
    candidates.push(whole);
    let is_held = |device: &AllocatableDevice| policy.held.contains(device.name.as_str());
    // By the mode alone: what a claim holds keeps its cost, whatever happens beside it.
    let possible = candidates.iter().filter(|it| mode_allows(gpu, &it.kind) || is_held(it));
    let is_alone = possible.count() <= 1;
    let free = with_room(gpu, &candidates, &counters, &left);
    let is_free = |it: &AllocatableDevice| {
        free.contains(&it.name) && access_allows(gpu, &it.kind, policy.mig_access_of(gpu))
    };
    let is_offered = |it: &AllocatableDevice| gpu.state.problem.is_none() && is_free(it) || is_held(it);
    let (mut devices, mut withheld): (Vec<_>, Vec<_>) = candidates.into_iter().partition(is_offered);
    if is_alone || devices.is_empty() {
        // Nothing overlaps, so nothing is counted.
        devices.iter_mut().for_each(|it| it.consumes.clear());
        counters.clear();
    }
    let (adopted, not_adopted) = existing::devices(node, gpu, policy);
    devices.extend(adopted);
    withheld.extend(not_adopted);
    GpuInventory { counter_set, counters, devices, withheld, problem: gpu.state.problem.clone() }
}

/// Names of the devices that can be made beside the GPU's unmanaged instances, which leave `left` of `totals`: alone, and in any
/// combination that the totals admit.
fn with_room(
    gpu: &Gpu,
    candidates: &[AllocatableDevice],
    totals: &BTreeMap<String, u32>,
    left: &BTreeMap<String, u32>,
) -> BTreeSet<DeviceName> {
    let fits = |it: &&AllocatableDevice| mode_allows(gpu, &it.kind) && fits_into(&it.consumes, left);
    let fitting: Vec<&AllocatableDevice> = candidates.iter().filter(fits).collect();
    if left == totals {
        return fitting.into_iter().map(|it| it.name.clone()).collect();
    }
    let parts: Vec<(Placement, &BTreeMap<String, u32>)> =
        fitting.iter().filter_map(|it| Some((it.mig()?.placement, &it.consumes))).collect();
    // The whole GPU takes everything, so it is not among those that fit.
    let is_out = counters::crowded(&parts, totals, left);
    let with_room = fitting.iter().zip(is_out).filter(|(_, is_out)| !is_out);
    with_room.map(|(it, _)| it.name.clone()).collect()
}

/// A GPU that switches MIG mode without a reset can be had either way, any other one as its mode is.
fn mode_allows(gpu: &Gpu, kind: &DeviceKind) -> bool {
    match (&gpu.facts.mig, gpu.state.mode) {
        (Some(mig), Some(mode)) => mig.resetless || mode.current == matches!(kind, DeviceKind::Mig(_)),
        _ => *kind == DeviceKind::Gpu,
    }
}

/// What the host permits; a whole GPU with MIG mode off needs no permission.
fn access_allows(gpu: &Gpu, kind: &DeviceKind, access: MigAccess) -> bool {
    let is_on = gpu.state.mode.is_some_and(|it| it.current);
    match (access, kind) {
        (MigAccess::Full, _) | (_, DeviceKind::Share { .. }) => true,
        (MigAccess::ExistingOnly, DeviceKind::Adopted(_)) => true,
        (MigAccess::ExistingOnly, DeviceKind::Gpu) => !is_on,
        (MigAccess::None, DeviceKind::Gpu) => true,
        (_, DeviceKind::Mig(_) | DeviceKind::Adopted(_)) => false,
    }
}

/// What the GPU's live instances leave of its counters.
#[must_use]
pub fn remaining(plan: &CounterPlan, gpu: &Gpu) -> BTreeMap<String, u32> {
    let mut counters = plan.totals();
    for instance in &gpu.state.instances {
        let placement = instance.placement;
        match gpu.facts.profile(instance.profile_id) {
            Some(profile) => take(&mut counters, plan.cost(profile, placement)),
            None if placement.is_plausible() => take(&mut counters, plan.cost_of_memory(placement)),
            None => {}
        }
    }
    counters
}

fn take(counters: &mut BTreeMap<String, u32>, cost: BTreeMap<String, u32>) {
    for (counter, amount) in cost {
        if let Some(left) = counters.get_mut(&counter) {
            *left = left.saturating_sub(amount);
        }
    }
}

/// True where there is enough of everything that is consumed.
#[must_use]
pub fn fits_into(consumes: &BTreeMap<String, u32>, counters: &BTreeMap<String, u32>) -> bool {
    consumes.iter().all(|(counter, amount)| Some(amount) <= counters.get(counter))
}

fn mig_devices(node: &NodeFacts, gpu: &Gpu, mig: &MigFacts, plan: &CounterPlan) -> Vec<AllocatableDevice> {
    let placements =
        mig.profiles.iter().flat_map(|profile| profile.placements.iter().map(move |it| (profile, *it)));
    // Devices are named by their first slice.
    let mut named = BTreeSet::new();
    placements
        .filter(|(profile, placement)| {
            placement.is_plausible() && named.insert((profile.id, placement.start))
        })
        .map(|(profile, placement)| {
            let name = DeviceName::mig(gpu.facts.pci, &profile.name, placement.start);
            AllocatableDevice {
                parent_uuid: gpu.facts.uuid.clone(),
                kind: DeviceKind::Mig(MigSpec::of(profile, placement)),
                attributes: attributes::of_mig(node, gpu, profile, placement, name.as_str()),
                capacities: attributes::capacities_of_profile(profile),
                consumes: plan.cost(profile, placement),
                name,
            }
        })
        .collect()
}
