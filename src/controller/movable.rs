//! Which pods may be evicted, and what they have, from what is in memory. Pure.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::api::resource::v1::ResourceClaim;

use crate::demand::{MovablePod, PendingPod, Placed};
use crate::world::World;

/// Controllers whose pods do not come back elsewhere: one pod for each node, and static pods.
const BOUND: [&str; 2] = ["DaemonSet", "Node"];

/// How long a pod takes to end where it does not say.
const GRACE: Duration = Duration::from_secs(30);

/// What is read of the claims and MigNodes.
struct Index<'w> {
    /// Claims by the UID of a pod that uses them.
    claims: HashMap<&'w str, Vec<&'w ResourceClaim>>,
    /// Devices of a claim by its UID: node, GPU and place.
    devices: HashMap<&'w str, Vec<(&'w str, &'w str, &'w Placed)>>,
}

/// The pods with the label that a controller replaces, and that have devices of this driver alone.
#[must_use]
pub fn movable(world: &World, driver: &str) -> Vec<MovablePod> {
    if world.movable_pods().is_empty() {
        return Vec::new();
    }
    let wanted: BTreeSet<&str> =
        world.movable_pods().iter().filter_map(|it| it.metadata.uid.as_deref()).collect();
    let mut index = Index { claims: HashMap::new(), devices: HashMap::new() };
    for claim in &world.snapshot().claims {
        for user in users(claim).filter(|it| wanted.contains(it)) {
            index.claims.entry(user).or_default().push(claim);
        }
    }
    for (node, held) in world.held_devices() {
        index.devices.entry(&held.claim).or_default().push((node, &held.gpu, &held.placed));
    }
    world.movable_pods().iter().filter_map(|it| of(it, &index, driver)).collect()
}

/// UIDs of the pods that use a claim. Another user than a pod has a UID that no pod has.
fn users(claim: &ResourceClaim) -> impl Iterator<Item = &str> {
    let status = claim.status.iter();
    status.flat_map(|it| it.reserved_for.iter().flatten()).map(|it| it.uid.as_str())
}

fn of(pod: &Pod, index: &Index<'_>, driver: &str) -> Option<MovablePod> {
    let (metadata, spec) = (&pod.metadata, pod.spec.as_ref()?);
    let (uid, node) = (metadata.uid.as_deref()?, spec.node_name.as_deref()?);
    let owners = metadata.owner_references.iter().flatten();
    let owner = owners.into_iter().find(|it| it.controller == Some(true))?;
    if BOUND.contains(&owner.kind.as_str()) {
        return None;
    }
    let claims = index.claims.get(uid)?;
    // The replacement needs all of them again; what is not reserved for the pod is not known to be its own.
    let named = spec.resource_claims.as_ref().map_or(0, Vec::len);
    if claims.len() < named {
        return None;
    }
    let mut devices = Vec::new();
    for claim in claims {
        let allocation = claim.status.as_ref()?.allocation.as_ref()?;
        let results = allocation.devices.as_ref()?.results.as_ref()?;
        let held = index.devices.get(claim.metadata.uid.as_deref()?)?;
        let is_ours = results.iter().all(|it| it.driver == driver);
        if !is_ours || held.len() != results.len() || held.iter().any(|it| it.0 != node) {
            return None;
        }
        devices.extend(held.iter().map(|it| (it.1.to_owned(), it.2.clone())));
    }
    let grace = spec.termination_grace_period_seconds.and_then(|it| u64::try_from(it).ok());
    let replacement = |it: &&ResourceClaim| Arc::new(ResourceClaim { status: None, ..(*it).clone() });
    Some(MovablePod {
        pod: PendingPod {
            uid: uid.to_owned(),
            namespace: metadata.namespace.clone()?,
            name: metadata.name.clone()?,
            priority: spec.priority.unwrap_or_default(),
            created: metadata.creation_timestamp.as_ref()?.0,
            unschedulable: None,
            spec: Arc::new(spec.clone()),
            claims: claims.iter().map(replacement).collect(),
        },
        node: node.to_owned(),
        devices,
        users: claims.iter().flat_map(|it| users(it)).map(str::to_owned).collect(),
        started: pod.status.as_ref().and_then(|it| Some(it.start_time.as_ref()?.0)),
        grace: grace.map_or(GRACE, Duration::from_secs),
        is_leaving: metadata.deletion_timestamp.is_some(),
        stays_on_node: is_bound(spec),
    })
}

/// Whether more than labels, taints and devices decides where a pod can be placed.
fn is_bound(spec: &PodSpec) -> bool {
    let affinity = spec.affinity.as_ref();
    let near = affinity.and_then(|it| it.pod_affinity.as_ref());
    let apart = affinity.and_then(|it| it.pod_anti_affinity.as_ref());
    let near = near.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref());
    let apart = apart.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref());
    let spreads = spec.topology_spread_constraints.iter().flatten();
    let has_volumes = spec.volumes.as_ref().is_some_and(|it| !it.is_empty());
    near.is_some_and(|it| !it.is_empty())
        || apart.is_some_and(|it| !it.is_empty())
        || spreads.into_iter().any(|it| it.when_unsatisfiable == "DoNotSchedule")
        || has_volumes
        || spec.containers.iter().any(|it| it.ports.is_some())
}
