//! Unmanaged MIG instances: adopted as devices if the operator enables that; otherwise they only occupy their placement.
//!
//! Pure. Refuses to offer an instance that may be a claim's already, and one that is not what a claim of its profile would
//! expect: a GPU instance with exactly one compute instance, which spans it.

use super::attributes;
use super::device::{Adopted, AllocatableDevice, DeviceKind, MigSpec};
use super::gpu::Gpu;
use super::name::DeviceName;
use super::policy::{ExistingInstances, OfferPolicy, access_allows};
use crate::facts::{GpuFacts, GpuInstance, NodeFacts, Placement, Profile};

/// Why an unmanaged instance is not published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAdopted {
    /// The operator does not want it.
    #[error("--existing-instances=withhold does not offer unmanaged MIG instances")]
    Unwanted,
    /// Its profile is not one of those that NVML describes.
    #[error("its profile is unknown")]
    UnknownProfile,
    /// It cannot be used.
    #[error("it has no compute instance")]
    Bare,
    /// A claim would get a part of it only.
    #[error("it has {0} compute instances, and only one that spans it makes a device")]
    Divided(usize),
    /// A claim would get less than its profile says.
    #[error("its compute instance does not span it")]
    Partial,
    /// It has had an error that no application causes.
    #[error("it is unhealthy, and offered again once it is recreated")]
    Unhealthy,
    /// A claim has it, or what it had there before.
    #[error("it overlaps `{0}`, which a claim has or may have")]
    Taken(String),
}

/// An instance as a device: exactly one compute instance, which takes all of it.
pub fn adoptable(gpu: &GpuFacts, instance: &GpuInstance) -> Result<Adopted, NotAdopted> {
    let profile = gpu.profile(instance.profile_id).ok_or(NotAdopted::UnknownProfile)?;
    match &instance.compute_instances[..] {
        [] => Err(NotAdopted::Bare),
        [one] if one.slices == profile.slices => {
            let spec = MigSpec::of(profile, instance.placement);
            Ok(Adopted { spec, gpu_instance: instance.id, compute_instance: one.id, uuid: one.uuid.clone() })
        }
        [_] => Err(NotAdopted::Partial),
        several => Err(NotAdopted::Divided(several.len())),
    }
}

/// Why an unmanaged instance is not published; `None` if it is.
#[must_use]
pub fn not_adopted(gpu: &Gpu, instance: &GpuInstance, policy: &OfferPolicy) -> Option<NotAdopted> {
    let adopted = match adoptable(&gpu.facts, instance) {
        Ok(adopted) => adopted,
        Err(reason) => return Some(reason),
    };
    let name = DeviceName::adopted(gpu.facts.pci, &adopted.uuid);
    if policy.held.contains(name.as_str()) {
        return None;
    }
    if policy.existing == ExistingInstances::Withhold {
        return Some(NotAdopted::Unwanted);
    }
    if policy.unhealthy.contains(name.as_str()) {
        return Some(NotAdopted::Unhealthy);
    }
    taken(gpu, &adopted, policy).map(NotAdopted::Taken)
}

/// What a claim holds in the instance's placement. It may have been created for that claim, although the record is lost.
fn taken(gpu: &Gpu, adopted: &Adopted, policy: &OfferPolicy) -> Option<String> {
    let pci = gpu.facts.pci;
    let placement = adopted.spec.placement;
    let profiles = gpu.facts.mig.iter().flat_map(|it| &it.profiles);
    let overlapping = profiles.flat_map(|profile| {
        let overlapping = profile.placements.iter().filter(|it| it.overlaps(placement));
        overlapping.map(|it| DeviceName::mig(pci, &profile.name, it.start))
    });
    let others = policy.adopted_on(gpu).filter(|it| it.uuid != adopted.uuid);
    let others = others.filter(|it| it.spec.placement.overlaps(placement));
    let others = others.map(|it| DeviceName::adopted(pci, &it.uuid));
    let mut names = overlapping.chain([DeviceName::gpu(pci)]).chain(others).map(|it| it.to_string());
    names.find(|it| policy.held.contains(it) || policy.named.contains(it))
}

/// The devices for the unmanaged instances on this GPU: offered ones and withheld ones. One that a claim holds is offered
/// also when its instance is gone.
pub(super) fn devices(
    node: &NodeFacts,
    gpu: &Gpu,
    policy: &OfferPolicy,
) -> (Vec<AllocatableDevice>, Vec<AllocatableDevice>) {
    let (mut offered, mut withheld): (Vec<AllocatableDevice>, Vec<AllocatableDevice>) = Default::default();
    for instance in &gpu.state.instances {
        let Ok(adopted) = adoptable(&gpu.facts, instance) else { continue };
        let Some(device) = device(node, gpu, adopted) else { continue };
        // Nothing more is allocated on an unhealthy GPU; allocated devices stay.
        let is_permitted = access_allows(gpu, &device.kind, policy.mig_access_of(gpu));
        let can_be_had =
            gpu.state.problem.is_none() && is_permitted || policy.held.contains(device.name.as_str());
        let is_offered = can_be_had && not_adopted(gpu, instance, policy).is_none();
        let list = if is_offered { &mut offered } else { &mut withheld };
        list.push(device);
    }
    // Two claims may have it on record: one of an earlier boot is kept until its ResourceClaim is gone.
    for kept in policy.adopted_on(gpu).filter_map(|it| device(node, gpu, it.clone())) {
        if !offered.iter().any(|it| it.name == kept.name) {
            offered.push(kept);
        }
    }
    (offered, withheld)
}

/// Where claims have instances that are gone: what is there stays theirs until they give it back.
pub(super) fn gone<'a>(
    gpu: &'a Gpu,
    policy: &'a OfferPolicy,
) -> impl Iterator<Item = (&'a Profile, Placement)> + 'a {
    let is_live = |adopted: &Adopted| {
        gpu.state.instances.iter().any(|it| adoptable(&gpu.facts, it).as_ref() == Ok(adopted))
    };
    let gone = policy.adopted_on(gpu).filter(move |it| !is_live(it));
    gone.filter_map(|it| Some((gpu.facts.profile(it.spec.profile_id)?, it.spec.placement)))
}

fn device(node: &NodeFacts, gpu: &Gpu, adopted: Adopted) -> Option<AllocatableDevice> {
    let profile = gpu.facts.profile(adopted.spec.profile_id)?;
    Some(AllocatableDevice {
        name: DeviceName::adopted(gpu.facts.pci, &adopted.uuid),
        parent_uuid: gpu.facts.uuid.clone(),
        attributes: attributes::of_mig(node, gpu, profile, adopted.spec.placement, &adopted.uuid),
        capacities: attributes::capacities_of_profile(profile),
        // What it takes is not in the counters while it exists.
        consumes: Default::default(),
        kind: DeviceKind::Adopted(adopted),
    })
}
