//! How long pods were unschedulable before their claims got devices, by profile.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dra_allocator::is_allocated;
use k8s_openapi::api::resource::v1::{DeviceRequestAllocationResult, ResourceClaim};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::demand::{self, ClaimKey, NodeState};
use crate::present::{device_of, node_of, results};
use crate::world::World;

/// A profile that no MigNode has, or one too many.
const OTHER: &str = "other";
/// Profiles with a label of their own; all known models together have fewer.
const MOST_PROFILES: usize = 64;
/// A pod can be gone from the pods that wait for so long before its claim is seen to have devices: watches are late.
const LATE: SignedDuration = SignedDuration::from_secs(60);

/// Claims that wait, and since when.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    /// By UID.
    claims: BTreeMap<String, Wait>,
    /// Profiles that have had a label of their own so far.
    profiles: BTreeSet<String>,
}

#[derive(Debug)]
struct Wait {
    claim: ClaimKey,
    /// Since when the scheduler finds its pod unschedulable.
    since: Timestamp,
    /// When its pod was seen to wait last.
    seen: Timestamp,
}

impl Waits {
    /// The claims that have got their devices since the last look: the profile of the first device, and how long their pods were
    /// unschedulable. `input` is made of `world`.
    pub(crate) fn look(
        &mut self,
        world: &World,
        input: &demand::World,
        driver: &str,
        now: Timestamp,
    ) -> Vec<(String, Duration)> {
        for pod in &input.pods {
            let Some(since) = pod.unschedulable else { continue };
            for claim in pod.claims.iter().filter(|it| !is_allocated(it)) {
                let key = ClaimKey::of(claim);
                if !key.uid.is_empty() {
                    let new = || Wait { claim: key.clone(), since, seen: now };
                    self.claims.entry(key.uid.clone()).or_insert_with(new).seen = now;
                }
            }
        }
        let mut ended = Vec::new();
        self.claims.retain(|uid, wait| {
            match world.claim_with_uid(&wait.claim.namespace, &wait.claim.name, uid) {
                None => false,
                Some(claim) if is_allocated(claim) => {
                    if let Some(result) = first_of(claim, driver) {
                        let waited = now.duration_since(wait.since).try_into().unwrap_or_default();
                        ended.push((profile(&input.nodes, result).to_owned(), waited));
                    }
                    false
                }
                Some(_) => now.duration_since(wait.seen) < LATE,
            }
        });
        ended.into_iter().map(|(profile, waited)| (self.label(profile), waited)).collect()
    }

    /// The label of a profile: there are not more of them than a bound, whatever MigNodes say.
    fn label(&mut self, profile: String) -> String {
        if self.profiles.len() < MOST_PROFILES && profile != OTHER {
            self.profiles.insert(profile.clone());
        }
        if self.profiles.contains(&profile) { profile } else { OTHER.to_owned() }
    }
}

/// The first device of this driver.
fn first_of<'c>(claim: &'c ResourceClaim, driver: &str) -> Option<&'c DeviceRequestAllocationResult> {
    results(claim).find(|it| it.driver == driver)
}

/// The profile of a device, as the MigNode of its node has it.
fn profile<'n>(nodes: &'n [NodeState], result: &DeviceRequestAllocationResult) -> &'n str {
    let node = nodes.iter().find(|it| it.name() == node_of(result));
    let found = node.and_then(|it| device_of(&it.gpus, result));
    found.map_or(OTHER, |it| it.1.profile.as_str())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::PodSpec;
    use kube::runtime::watcher::Event;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;
    use crate::demand::PendingPod;
    use crate::world::Change;

    fn of<T: DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn claim(name: &str, device: Option<&str>) -> ResourceClaim {
        let result = |it| json!({"request": "r", "driver": "mig.dra-driver.dev", "pool": "n/mig.dra-driver.dev", "device": it});
        let status = device.map(|it| json!({"allocation": {"devices": {"results": [result(it)]}}}));
        of(
            json!({"metadata": {"namespace": "d", "name": name, "uid": format!("uid-{name}")}, "spec": {}, "status": status}),
        )
    }

    /// A node with an H100.
    fn world() -> World {
        let mut world = World::default();
        world.apply(Change::Nodes(Event::Apply(of(json!({"metadata": {"name": "n"}})))));
        let profile =
            |name: &str, size: u32| json!({"profile": name, "placements": [{"start": 0, "size": size}]});
        let profiles = [profile("1g.10gb", 1), profile("3g.40gb", 4), profile("full", 8)];
        let gpu =
            json!({"name": "gpu-0000-1a-00", "uuid": "GPU-0", "migMode": "enabled", "profiles": profiles});
        let mig_node = json!({"metadata": {"name": "n"}, "status": {"mode": "layout", "gpus": [gpu]}});
        world.apply(Change::MigNodes(Event::Apply(of(mig_node))));
        world
    }

    fn put(world: &mut World, claim: ResourceClaim) {
        world.apply(Change::Claims(Event::Apply(claim)));
    }

    fn at(time: &str) -> Timestamp {
        format!("2026-11-29T{time}Z").parse().unwrap()
    }

    /// A look while pods wait for these claims, unschedulable since 12:00.
    fn look(waits: &mut Waits, world: &World, waiting: &[&str], time: &str) -> Vec<(String, u64)> {
        let pod = |name: &&str| PendingPod {
            uid: (*name).to_owned(),
            namespace: "d".to_owned(),
            name: (*name).to_owned(),
            priority: 0,
            created: at("12:00:00"),
            unschedulable: Some(at("12:00:00")),
            lacks_only_devices: true,
            spec: Arc::new(PodSpec::default()),
            claims: vec![Arc::new(claim(name, None))],
        };
        let pods = waiting.iter().map(pod).collect();
        let input = demand::World { nodes: world.node_states(true), pods, ..demand::World::default() };
        let ended = waits.look(world, &input, "mig.dra-driver.dev", at(time));
        ended.into_iter().map(|(profile, waited)| (profile, waited.as_secs())).collect()
    }

    #[test]
    fn a_wait_ends_once_when_the_claim_has_devices_and_has_their_profile() {
        let (mut world, mut waits) = (world(), Waits::default());
        let all = ["a", "b", "c", "gone"];
        all.iter().for_each(|it| put(&mut world, claim(it, None)));
        assert_eq!(look(&mut waits, &world, &all, "12:00:10"), []);
        put(&mut world, claim("a", Some("gpu-0000-1a-00-mig-3g-40gb-0")));
        put(&mut world, claim("b", Some("gpu-0000-1a-00")));
        put(&mut world, claim("c", Some("gpu-0000-1a-00-mig-5g-50gb-0")));
        world.apply(Change::Claims(Event::Delete(claim("gone", None))));
        let ended =
            [("3g.40gb", 90), ("full", 90), ("other", 90)].map(|(it, waited)| (it.to_owned(), waited));
        assert_eq!(look(&mut waits, &world, &[], "12:01:30"), ended);
        assert_eq!(look(&mut waits, &world, &[], "12:01:31"), []);
    }

    #[test]
    fn a_claim_that_nothing_waits_for_any_more_is_forgotten_after_a_minute() {
        let (mut world, mut waits) = (world(), Waits::default());
        put(&mut world, claim("a", None));
        look(&mut waits, &world, &["a"], "12:00:10");
        for (time, known) in [("12:01:09", 1), ("12:01:10", 0)] {
            look(&mut waits, &world, &[], time);
            assert_eq!(waits.claims.len(), known);
        }
    }

    #[test]
    fn there_are_not_more_profiles_than_a_bound() {
        let mut waits = Waits::default();
        let labels: BTreeSet<String> = (0..1000).map(|it| waits.label(format!("{it}g"))).collect();
        assert_eq!(labels.len(), MOST_PROFILES + 1);
        assert!(labels.contains(OTHER));
        assert_eq!(waits.label("0g".to_owned()), "0g");
    }
}
