//! What nodes should publish: decisions of [`demand`] about what is in memory, and their writes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dra_allocator::extended::ExtendedResources;
use dra_allocator::is_allocated;
use k8s_openapi::Resource as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Error};
use kubectl_mig::explain::lacks_only_devices;
use mig_model::claim::ClaimRef;
use mig_model::mig_node::{Demand, Hold, MigNode, MigNodeSpec, ProfileCount};
use mig_telemetry::with_causes;
use serde_json::{Value, json};
use tokio::task::block_in_place;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::client::{CALL_TIMEOUT, MANAGER};
use crate::demand::{self, ClaimKey, Decisions, Memory, Options, PendingPod, Reason, Write, decide};
use crate::election::Term;
use crate::evictor::Evictor;
use crate::metrics::{HoldEnd, Metrics, Outcome, WriteReason};
use crate::movable::movable;
use crate::present::{add_allocated, only_with_slices};
use crate::waits::Waits;
use crate::world::{Kind, World, unschedulable};

/// The longest time that a round writes; what is left is decided again.
const WRITING: Duration = Duration::from_secs(10);
/// Pause before a write that failed is decided again.
const PAUSE: Duration = Duration::from_secs(1);

/// Decides what nodes should publish, and writes it. Needs the verb `patch` for MigNodes; what consolidation needs, [`Evictor`] has.
pub struct Layouts {
    api: Api<MigNode>,
    options: Options,
    /// Whether nodes without the label for layouts take part.
    default_auto: bool,
    evictor: Evictor,
    metrics: Metrics,
    memory: Memory,
    /// Whether pods were left out in the last round, which is in the log.
    skips: bool,
    /// Holds of the controller that have not ended, by UID of the claim: until when.
    holds: BTreeMap<String, (ClaimKey, Timestamp)>,
    waits: Waits,
}

impl std::fmt::Debug for Layouts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layouts").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Layouts {
    /// Nothing is remembered yet.
    #[must_use]
    pub fn new(
        client: Client,
        options: Options,
        default_auto: bool,
        evictor: Evictor,
        metrics: Metrics,
    ) -> Self {
        Self {
            api: Api::all(client),
            options,
            default_auto,
            evictor,
            metrics,
            memory: Memory::default(),
            skips: false,
            holds: BTreeMap::new(),
            waits: Waits::default(),
        }
    }

    /// Whether pods that may be evicted have to be known.
    #[must_use]
    pub fn consolidates(&self) -> bool {
        self.options.evictions_per_hour.is_some()
    }

    /// Whether nodes without the label for layouts take part.
    #[must_use]
    pub fn default_auto(&self) -> bool {
        self.default_auto
    }

    /// Another replica leads: what is remembered is out of date when this one leads again.
    pub fn forget(&mut self) {
        self.memory = Memory::default();
        self.holds.clear();
        self.waits = Waits::default();
    }

    /// Decides and writes. Answers when to decide again if nothing changes.
    pub async fn round(&mut self, world: &World, term: &Term) -> Option<Duration> {
        if world.count(Kind::MigNodes) == 0 {
            return None;
        }
        let (now, started) = (Timestamp::now(), Instant::now());
        let outcome = block_in_place(|| {
            let mut input = input(world, self.default_auto, &self.options.driver);
            input.movable = movable(world, &self.options.driver);
            let awaited = self.memory.awaited().filter(|it| !is_served(world, it));
            input.unserved = awaited.map(|it| it.uid.clone()).into_iter().collect();
            self.count_holds(world, &input, now);
            for (profile, waited) in self.waits.look(world, &input, &self.options.driver, now) {
                self.metrics.allocated(profile, waited);
            }
            decide(&input, &self.options, &self.memory, now)
        });
        self.memory = outcome.memory;
        self.decided(started.elapsed(), &outcome.decisions);
        let (mut is_left, begun) = (false, Instant::now());
        for write in &outcome.decisions.writes {
            // A slow API server must not keep the loop from what else has changed.
            is_left |= WRITING < begun.elapsed();
            if is_left || !term.holds() {
                self.memory.failed(&write.node);
                continue;
            }
            let (reason, node) = (WriteReason::of(write.reason), write.node.as_str());
            let result = timeout(CALL_TIMEOUT, self.write(write)).await;
            let is_success = matches!(result, Ok(Ok(())));
            self.metrics.wrote_spec(reason, if is_success { Outcome::Success } else { Outcome::Failure });
            match result {
                Ok(Ok(())) if write.reason == Reason::Renew => debug!(node, "demand renewed"),
                Ok(Ok(())) => {
                    let demand = write.demand.as_ref().map(|it| &it.profiles);
                    info!(node, reason = reason.as_str(), demand = ?demand, holds = write.holds.len(), "MigNode written");
                }
                // Something has changed since: the watch reports it, and it is decided again.
                Ok(Err(Error::Api(status))) if status.is_conflict() || status.is_not_found() => {
                    debug!(node, "the MigNode has changed since it was read");
                    self.memory.failed(node);
                }
                Ok(Err(Error::Api(status))) if (400..500).contains(&status.code) && status.code != 429 => {
                    warn!(node, error = status.message, "the API server refuses the spec of a MigNode");
                }
                Ok(Err(error)) => {
                    warn!(node, error = with_causes(&error), "cannot write a MigNode; it is decided again");
                    is_left = true;
                }
                Err(_) => {
                    warn!(node, "cannot write a MigNode: no answer within {} s", CALL_TIMEOUT.as_secs());
                    is_left = true;
                }
            }
        }
        if let Some(eviction) = outcome.decisions.eviction.as_ref() {
            for it in self.evictor.evict(eviction, term, now).await {
                self.memory.not_evicted(&it.pod, it.until, it.is_certain);
            }
        }
        let wake = outcome.wake.map(|it| Duration::try_from(it.duration_since(now)).unwrap_or_default());
        if is_left { Some(PAUSE) } else { wake }
    }

    /// Counts a decision. That pods are left out is logged once, until none is any more.
    fn decided(&mut self, took: Duration, decisions: &Decisions) {
        let skipped = decisions.not_looked_at();
        self.metrics.decided(took, skipped, decisions.unfollowed.len());
        if !decisions.unfollowed.is_empty() {
            debug!(nodes = ?decisions.unfollowed, "nodes have not followed a demand");
        }
        let has_skipped = std::mem::replace(&mut self.skips, 0 < skipped);
        if !has_skipped && 0 < skipped {
            warn!(
                pods = skipped,
                "more different pods wait than one round looks at; those of the highest priority and age come first"
            );
        } else if has_skipped && skipped == 0 {
            info!("all pods that wait are looked at again");
        }
    }

    /// Counts the holds that have ended, and takes note of those that have not.
    fn count_holds(&mut self, world: &World, input: &demand::World, now: Timestamp) {
        self.holds.retain(|_, (claim, until)| {
            let end = match world.claim_with_uid(&claim.namespace, &claim.name, &claim.uid) {
                None => Some(HoldEnd::Gone),
                Some(claim) if is_allocated(claim) => Some(HoldEnd::Served),
                Some(_) => (*until <= now).then_some(HoldEnd::Expired),
            };
            end.into_iter().for_each(|it| self.metrics.hold_ended(it));
            end.is_none()
        });
        // A MigNode lists a hold for a moment after its claim was served.
        let waits = |it: &ClaimKey| {
            let claim = world.claim_with_uid(&it.namespace, &it.name, &it.uid);
            claim.is_some_and(|it| !is_allocated(it))
        };
        let holds = input.nodes.iter().flat_map(|it| &it.holds);
        for hold in holds.filter(|it| it.is_ours && now < it.until && waits(&it.claim)) {
            self.holds.insert(hold.claim.uid.clone(), (hold.claim.clone(), hold.until));
        }
    }

    /// Applies the controller's part of a spec, if the object is still the one that was decided on.
    async fn write(&self, write: &Write) -> Result<(), Error> {
        let params = PatchParams::apply(MANAGER).force();
        self.api.patch(&write.node, &params, &Patch::Apply(object(write))).await.map(drop)
    }
}

/// What is applied: the fields that are left out are those of others, such as the floor, and the demand of a person. Without any
/// field there is no `spec` either: the API server would make `null` of an empty one, and refuse that.
fn object(write: &Write) -> Value {
    let ours = write.demand.as_ref().filter(|it| it.renewed.is_some());
    let demand = ours.map(|it| Demand {
        renew_time: it.renewed.map(Time),
        profiles: it
            .profiles
            .iter()
            .map(|(profile, count)| ProfileCount { profile: profile.clone(), count: *count })
            .collect(),
    });
    let hold = |it: &demand::Hold| {
        // The uid comes from a claim of the API server.
        let claim = &it.claim;
        Some(Hold {
            gpu: it.gpu.clone(),
            profile: it.profile.clone(),
            claim: ClaimRef {
                namespace: claim.namespace.clone(),
                name: claim.name.clone(),
                uid: claim.uid.parse().ok()?,
            },
            until: Time(it.until),
            since: it.since.map(Time),
        })
    };
    let spec = MigNodeSpec {
        demand,
        floor: Vec::new(),
        holds: write.holds.iter().filter(|it| it.is_ours).filter_map(hold).collect(),
    };
    let mut object = json!({
        "apiVersion": MigNode::API_VERSION, "kind": MigNode::KIND,
        "metadata": {"name": write.node, "resourceVersion": write.resource_version},
    });
    if spec != MigNodeSpec::default() {
        object["spec"] = json!(spec);
    }
    object
}

/// Whether a claim still exists and has devices.
fn is_served(world: &World, claim: &ClaimKey) -> bool {
    world.claim_with_uid(&claim.namespace, &claim.name, &claim.uid).is_some_and(is_allocated)
}

/// What is in memory, as decisions take it.
fn input(world: &World, default_auto: bool, driver: &str) -> demand::World {
    let snapshot = world.snapshot();
    let resources = ExtendedResources::of(&snapshot.classes);
    let pods = snapshot.pods.iter().filter_map(|it| pending(world, it, &resources)).collect();
    let (mut nodes, classes) = (world.node_states(default_auto), snapshot.classes.clone());
    only_with_slices(&mut nodes, &snapshot.slices, driver);
    add_allocated(&mut nodes, &snapshot.claims, driver);
    demand::World { nodes, pods, classes, ..demand::World::default() }
}

/// A pod that waits and whose claims all exist, except one that the scheduler creates for extended resources when it binds the pod.
fn pending(world: &World, pod: &Pod, resources: &ExtendedResources<'_>) -> Option<PendingPod> {
    let (metadata, spec) = (&pod.metadata, pod.spec.as_ref()?);
    let namespace = metadata.namespace.as_deref().unwrap_or("default");
    let statuses = || pod.status.iter().flat_map(|it| it.resource_claim_statuses.iter().flatten());
    let claim = |entry: &k8s_openapi::api::core::v1::PodResourceClaim| -> Option<Arc<ResourceClaim>> {
        let generated = || statuses().find(|it| it.name == entry.name)?.resource_claim_name.as_deref();
        let name = entry.resource_claim_name.as_deref().or_else(generated)?;
        world.claim(namespace, name).cloned().map(Arc::new)
    };
    let mut claims: Vec<_> = spec.resource_claims.iter().flatten().map(claim).collect::<Option<_>>()?;
    claims.extend(of_extended_resources(world, namespace, pod, resources).map(Arc::new));
    if claims.is_empty() || metadata.deletion_timestamp.is_some() {
        return None;
    }
    Some(PendingPod {
        uid: metadata.uid.clone()?,
        namespace: namespace.to_owned(),
        name: metadata.name.clone()?,
        priority: spec.priority.unwrap_or_default(),
        created: metadata.creation_timestamp.as_ref()?.0,
        unschedulable: unschedulable(pod).and_then(|it| Some(it.last_transition_time.as_ref()?.0)),
        lacks_only_devices: lacks_only_devices(pod),
        spec: Arc::new(spec.clone()),
        claims,
    })
}

/// The claim for the extended resources of a pod that a class stands behind. Until the scheduler creates it, one with the same requests
/// that has no UID, so that no GPU can be held back for it. None where the scheduler looks for them at a device plugin.
fn of_extended_resources(
    world: &World,
    namespace: &str,
    pod: &Pod,
    resources: &ExtendedResources<'_>,
) -> Option<ResourceClaim> {
    let created = pod.status.as_ref().and_then(|it| it.extended_resource_claim_status.as_ref());
    if let Some(status) = created {
        return world.claim(namespace, &status.resource_claim_name).cloned();
    }
    let message = unschedulable(pod).and_then(|it| it.message.as_deref()).unwrap_or_default();
    let is_of_plugin = |resource: &String| message.contains(&format!("Insufficient {resource}"));
    if resources.requested_by(pod).keys().any(is_of_plugin) {
        return None;
    }
    Some(resources.claim(pod, &Node::default())?.0)
}

#[cfg(test)]
mod tests {
    use kube::runtime::watcher::Event;
    use serde::de::DeserializeOwned;

    use super::*;
    use crate::world::Change;

    const DRIVER: &str = "mig.dra-driver.dev";

    /// A slice of the driver on node `n`.
    fn slice() -> Change {
        let pool = json!({"name": "n/mig.dra-driver.dev", "generation": 1, "resourceSliceCount": 1});
        let spec = json!({"driver": DRIVER, "nodeName": "n", "pool": pool, "devices": []});
        Change::Slices(Event::Apply(of(json!({"metadata": {"name": "s"}, "spec": spec}))))
    }

    fn write(demand: Option<demand::Demand>) -> Write {
        Write {
            node: "n".to_owned(),
            resource_version: Some("7".to_owned()),
            demand,
            holds: Vec::new(),
            reason: Reason::Change,
            serves: Vec::new(),
        }
    }

    #[test]
    fn what_is_applied_has_the_version_that_was_decided_on_and_only_our_fields() {
        let demand = demand::Demand {
            renewed: Some(Timestamp::UNIX_EPOCH),
            profiles: BTreeMap::from([("1g.10gb".to_owned(), 4)]),
        };
        assert_eq!(
            object(&write(Some(demand.clone()))),
            json!({
                "apiVersion": "mig.dra-driver.dev/v1alpha1", "kind": "MigNode",
                "metadata": {"name": "n", "resourceVersion": "7"},
                "spec": {"demand": {"renewTime": "1970-01-01T00:00:00Z", "profiles": [{"profile": "1g.10gb", "count": 4}]}},
            })
        );
        assert_eq!(object(&write(None)).get("spec"), None, "which removes what was applied before");
        let of_a_person = demand::Demand { renewed: None, ..demand };
        assert_eq!(object(&write(Some(of_a_person))).get("spec"), None);
    }

    #[test]
    fn a_hold_is_ours_where_our_manager_has_applied_it_or_nothing_says_who_has() {
        let fields = json!({"f:spec": {"f:holds": {r#"k:{"gpu":"gpu-0000-1a-00"}"#: {"f:until": {}}}}});
        let managed = |manager: &str| json!([{"manager": manager, "operation": "Apply", "fieldsV1": fields}]);
        for (managed, is_ours) in [(managed(MANAGER), true), (managed("kubectl"), false), (Value::Null, true)]
        {
            let mut world = World::default();
            let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}});
            world.apply(Change::Nodes(Event::Apply(serde_json::from_value(node).unwrap())));
            world.apply(slice());
            let mig_node = json!({
                "apiVersion": MigNode::API_VERSION, "kind": MigNode::KIND,
                "metadata": {"name": "n", "managedFields": managed},
                "spec": {"holds": [{
                    "gpu": "gpu-0000-1a-00", "profile": "full", "until": "2026-11-29T12:00:00Z",
                    "claim": {"namespace": "d", "name": "c", "uid": "00000000-0000-4000-8000-000000000001"},
                }]},
            });
            world.apply(Change::MigNodes(Event::Apply(serde_json::from_value(mig_node).unwrap())));
            let input = input(&world, true, DRIVER);
            assert_eq!(input.nodes[0].holds[0].is_ours, is_ours, "{managed}");
        }
    }

    fn of<T: DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    /// What a pod waits for that asks for an extended resource of a class.
    fn waits_for(message: &str, status: Value) -> Vec<Arc<ResourceClaim>> {
        let mut world = World::default();
        let class = json!({"metadata": {"name": "mig-1g.10gb"}, "spec": {"extendedResourceName": "nvidia.com/mig-1g.10gb"}});
        world.apply(Change::Classes(Event::Apply(of(class))));
        let claim = json!({"metadata": {"name": "made", "namespace": "team", "uid": "u"}, "spec": {}});
        world.apply(Change::Claims(Event::Apply(of(claim))));
        let mut pod = json!({
            "metadata": {"name": "p", "namespace": "team", "uid": "v", "creationTimestamp": "2026-11-29T12:00:00Z"},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"nvidia.com/mig-1g.10gb": "2", "cpu": "1"}}}]},
            "status": {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": message, "lastTransitionTime": "2026-11-29T12:00:00Z"}]},
        });
        pod["status"]["extendedResourceClaimStatus"] = status;
        world.apply(Change::Pods(Event::Apply(of(pod))));
        input(&world, true, DRIVER).pods.into_iter().flat_map(|it| it.claims).collect()
    }

    #[test]
    fn an_extended_resource_of_a_class_is_demand_before_its_claim_exists() {
        let claims = waits_for("0/1 nodes are available: 1 cannot allocate all claims.", Value::Null);
        let requests = claims[0].spec.devices.as_ref().unwrap().requests.as_ref().unwrap();
        let request = requests[0].exactly.as_ref().unwrap();
        assert_eq!((request.device_class_name.as_str(), request.count), ("mig-1g.10gb", Some(2)));
        assert_eq!((claims.len(), requests.len(), &claims[0].metadata.uid), (1, 1, &None));
        let created = json!({"resourceClaimName": "made", "requestMappings": []});
        assert_eq!(waits_for("", created)[0].metadata.uid.as_deref(), Some("u"));
    }

    #[test]
    fn an_extended_resource_that_the_scheduler_looks_for_at_a_device_plugin_is_no_demand() {
        assert!(
            waits_for("0/1 nodes are available: 1 Insufficient nvidia.com/mig-1g.10gb.", Value::Null)
                .is_empty()
        );
    }

    #[test]
    fn a_hold_ends_served_expired_or_gone_and_is_counted_once() {
        let metrics = Metrics::default();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        let client = Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        let evictor = Evictor::new(client.clone(), None, metrics.clone());
        let mut layouts = Layouts::new(client, Options::default(), true, evictor, metrics.clone());
        let mut world = World::default();
        world.apply(Change::Nodes(Event::Apply(of(json!({"metadata": {"name": "n"}})))));
        world.apply(slice());
        let uid = |it: usize| format!("00000000-0000-4000-8000-00000000000{it}");
        let claim = |it: usize, status: Value| -> ResourceClaim {
            of(
                json!({"metadata": {"namespace": "d", "name": format!("c{it}"), "uid": uid(it)}, "spec": {}, "status": status}),
            )
        };
        let hold = |it: usize| {
            json!({"gpu": format!("gpu-0000-1{it}-00"), "profile": "full", "until": "2026-11-29T12:00:00Z",
                "claim": {"namespace": "d", "name": format!("c{it}"), "uid": uid(it)}})
        };
        let holds: Vec<Value> = (0..3).map(hold).collect();
        let mig_node = json!({"metadata": {"name": "n"}, "spec": {"holds": holds}});
        world.apply(Change::MigNodes(Event::Apply(of(mig_node))));
        for it in 0..3 {
            world.apply(Change::Claims(Event::Apply(claim(it, Value::Null))));
        }
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let mut count =
            |world: &World, time: &str| layouts.count_holds(world, &input(world, true, DRIVER), at(time));
        count(&world, "2026-11-29T11:00:00Z");
        world.apply(Change::Claims(Event::Apply(claim(0, json!({"allocation": {}})))));
        world.apply(Change::Claims(Event::Delete(claim(1, Value::Null))));
        // The MigNode still lists them all.
        for time in ["11:00:01", "11:00:02", "12:00:00", "12:00:01"].map(|it| format!("2026-11-29T{it}Z")) {
            count(&world, &time);
        }
        for outcome in HoldEnd::ALL {
            assert_eq!(metrics.holds_ended(*outcome), 1, "{outcome:?}");
        }
    }
}
