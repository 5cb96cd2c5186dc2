//! Inventory: the devices that each GPU of this node can provide, and the counters that each consumes.
//!
//! Pure. Knows no GPU model: everything comes from what NVML reports. Refuses to offer what cannot be prepared, such as
//! a placement that an unmanaged instance occupies.

mod amounts;
mod attributes;
mod counters;
mod device;
mod existing;
mod filter;
mod gpu;
mod name;
mod policy;
mod problem;
mod reserve;
mod shares;
mod withheld;

use std::collections::{BTreeMap, BTreeSet};

pub(crate) use amounts::{Amounts, CounterNames};
pub use amounts::{fits_into, lacking, take};
pub use attributes::{Attribute, AttributeSet, Capacity, STANDARD_DOMAIN};
pub use counters::CounterPlan;
pub use device::{Adopted, AllocatableDevice, DeviceKind, GpuInventory, Inventory, MigSpec};
pub use existing::{NotAdopted, adoptable, not_adopted};
pub use filter::{InvalidPattern, ProfileFilter};
pub use gpu::{Attachment, Gpu, GpuState};
pub use name::{DeviceName, MOST_SHARES};
pub use policy::{ExistingInstances, MigAccess, OfferPolicy};
pub use problem::Problem;
pub use withheld::{HostAccess, Withheld, withheld};

use crate::facts::{MigFacts, NodeFacts, Placement};
use policy::{access_allows, mode_allows};

/// Builds the inventory of a node by default: unmanaged instances are withheld, GPUs not shared. `held` names
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
    let gpus = gpus.into_iter().map(|gpu| offers(node, gpu, policy)).collect();
    Inventory { gpus }.with_attributes(policy.attributes)
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
    let memory_mib = plan.memory_mib();
    let Some(mig) = &gpu.facts.mig else {
        let (devices, withheld) = match (gpu.state.problem.is_none(), policy.time_slices) {
            (true, 0 | 1) => (vec![whole], Vec::new()),
            (true, count) => ((0..count.min(MOST_SHARES)).map(|it| whole.share(it)).collect(), vec![whole]),
            (false, _) => (Vec::new(), vec![whole]),
        };
        let problem = gpu.state.problem.clone();
        let offered =
            GpuInventory { counter_set, memory_mib, devices, withheld, problem, ..GpuInventory::default() };
        return offered.with_held(&policy.held);
    };
    let mut left = remaining(&plan, gpu);
    for (profile, placement) in existing::gone(gpu, policy) {
        take(&mut left, &plan.cost(profile, placement));
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
    let problem = gpu.state.problem.clone();
    GpuInventory { counter_set, counters, memory_mib, reserved_mib: 0, devices, withheld, problem }
}

/// True for what the GPU can be allocated as in its MIG mode, and with what the host permits; whatever is on it now.
#[must_use]
pub fn is_permitted(gpu: &Gpu, kind: &DeviceKind, policy: &OfferPolicy) -> bool {
    mode_allows(gpu, kind) && access_allows(gpu, kind, policy.mig_access_of(gpu))
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

/// What the GPU's live instances leave of its counters.
#[must_use]
pub fn remaining(plan: &CounterPlan, gpu: &Gpu) -> BTreeMap<String, u32> {
    let mut counters = plan.totals();
    for instance in &gpu.state.instances {
        let placement = instance.placement;
        match gpu.facts.profile(instance.profile_id) {
            Some(profile) => take(&mut counters, &plan.cost(profile, placement)),
            None if placement.is_plausible() => take(&mut counters, &plan.cost_of_memory(placement)),
            None => {}
        }
    }
    counters
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
