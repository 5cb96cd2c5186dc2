//! Which pods may be evicted, and what they have, from what is in memory. Pure.

use std::collections::{BTreeSet, HashMap, HashSet};
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
    let needed: HashSet<&str> =
        index.claims.values().flatten().filter_map(|it| it.metadata.uid.as_deref()).collect();
    for (node, held) in world.held_devices().filter(|(_, it)| needed.contains(it.claim.as_str())) {
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
            lacks_only_devices: true,
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

#[cfg(test)]
mod tests {
    use kube::runtime::watcher::Event;
    use serde_json::{Value, json};

    use super::*;
    use crate::world::Change;

    const DRIVER: &str = "mig.dra-driver.dev";
    const CLAIM: &str = "00000000-0000-4000-8000-000000000001";

    fn pod() -> Value {
        json!({
            "metadata": {
                "name": "p", "namespace": "d", "uid": "u", "creationTimestamp": "2026-11-29T12:00:00Z",
                "labels": {"mig.dra-driver.dev/movable": "true"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}],
            },
            "spec": {
                "nodeName": "n", "priority": 7, "terminationGracePeriodSeconds": 12, "nodeSelector": {"zone": "a"},
                "containers": [{"name": "c", "ports": [{"containerPort": 80}]}],
                "resourceClaims": [{"name": "gpu", "resourceClaimName": "c"}],
            },
            "status": {"phase": "Running", "startTime": "2026-11-29T12:01:00Z"},
        })
    }

    fn claim() -> Value {
        let result = json!({"request": "r", "driver": DRIVER, "pool": "n/mig.dra-driver.dev", "device": "x"});
        json!({
            "metadata": {"name": "c", "namespace": "d", "uid": CLAIM},
            "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "mig"}}]}},
            "status": {
                "allocation": {"devices": {"results": [result]}},
                "reservedFor": [{"resource": "pods", "name": "p", "uid": "u"}],
            },
        })
    }

    fn node() -> Value {
        let held = json!({"device": "x", "profile": "1g.10gb", "start": 3, "size": 1,
            "claim": {"namespace": "d", "name": "c", "uid": CLAIM}});
        json!({
            "apiVersion": "mig.dra-driver.dev/v1alpha1", "kind": "MigNode", "metadata": {"name": "n"},
            "status": {"gpus": [{"name": "gpu-0000-1a-00", "uuid": "GPU-1", "productName": "H100", "index": 0, "migMode": "enabled",
                "held": [held]}]},
        })
    }

    /// What may be moved in a cluster with one pod, its claim and its node.
    fn found(pod: Value, claim: Value, node: Value) -> Vec<MovablePod> {
        let mut world = World::default();
        world.apply(Change::MovablePods(Event::Apply(serde_json::from_value(pod).unwrap())));
        world.apply(Change::Claims(Event::Apply(serde_json::from_value(claim).unwrap())));
        world.apply(Change::MigNodes(Event::Apply(serde_json::from_value(node).unwrap())));
        movable(&world, DRIVER)
    }

    fn with(mut object: Value, pointer: &str, value: Value) -> Value {
        *object.pointer_mut(pointer).unwrap() = value;
        object
    }

    #[test]
    fn a_pod_that_a_controller_replaces_has_the_devices_that_its_node_reports_for_its_claim() {
        let all = found(pod(), claim(), node());
        let [it] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!((it.node.as_str(), it.pod.priority, it.grace.as_secs()), ("n", 7, 12));
        let placed = Placed { profile: "1g.10gb".to_owned(), start: 3, size: 1 };
        assert_eq!(it.devices, [("gpu-0000-1a-00".to_owned(), placed)]);
        assert_eq!(it.users, BTreeSet::from(["u".to_owned()]));
        assert_eq!(it.started.unwrap().to_string(), "2026-11-29T12:01:00Z");
        assert!(!it.is_leaving && !it.stays_on_node);
        assert_eq!(it.pod.spec.node_selector.as_ref().unwrap()["zone"], "a");
        assert!(it.pod.claims[0].status.is_none(), "its replacement has no devices yet");
    }

    #[test]
    fn a_bare_pod_one_of_a_daemon_set_and_a_static_one_do_not_come_back_elsewhere() {
        for owners in [json!([]), json!([{"apiVersion": "v1", "kind": "X", "name": "x", "uid": "x"}])] {
            assert!(found(with(pod(), "/metadata/ownerReferences", owners), claim(), node()).is_empty());
        }
        for kind in ["DaemonSet", "Node"] {
            let pod = with(pod(), "/metadata/ownerReferences/0/kind", json!(kind));
            assert!(found(pod, claim(), node()).is_empty());
        }
    }

    #[test]
    fn a_pod_stays_where_not_all_of_its_devices_are_known_to_be_of_this_driver() {
        let of_others =
            with(claim(), "/status/allocation/devices/results/0/driver", json!("nic.example.com"));
        assert!(found(pod(), of_others, node()).is_empty());
        let unknown = with(node(), "/status/gpus/0/held", json!([]));
        assert!(found(pod(), claim(), unknown).is_empty());
        let elsewhere = with(pod(), "/spec/nodeName", json!("m"));
        assert!(found(elsewhere, claim(), node()).is_empty());
        let two =
            json!([{"name": "gpu", "resourceClaimName": "c"}, {"name": "more", "resourceClaimName": "e"}]);
        assert!(found(with(pod(), "/spec/resourceClaims", two), claim(), node()).is_empty());
    }

    #[test]
    fn a_pod_for_which_more_than_labels_and_devices_counts_stays_on_its_node() {
        let term = json!([{"topologyKey": "zone"}]);
        let apart = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}});
        let spread = json!([{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]);
        let volume = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "v"}}]);
        let stays = |key: &str, value: Value| {
            let mut pod = pod();
            pod["spec"][key] = value;
            found(pod, claim(), node())[0].stays_on_node
        };
        assert!(stays("affinity", apart));
        assert!(stays("topologySpreadConstraints", spread));
        assert!(stays("volumes", volume));
        let container = json!([{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]);
        assert!(stays("containers", container));
        assert!(!stays("volumes", json!([{"name": "v", "emptyDir": {}}])));
    }

    #[test]
    fn a_claim_that_others_use_too_names_them() {
        let users = json!([{"resource": "pods", "name": "p", "uid": "u"}, {"resource": "pods", "name": "q", "uid": "v"}]);
        let all = found(pod(), with(claim(), "/status/reservedFor", users), node());
        assert_eq!(all[0].users, BTreeSet::from(["u".to_owned(), "v".to_owned()]));
    }
}
