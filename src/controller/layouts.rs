//! What nodes should publish: decisions of [`demand`] about what is in memory, and their writes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::Resource as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Error};
use mig_model::claim::ClaimRef;
use mig_model::mig_node::{Demand, Hold, MigNode, MigNodeSpec, ProfileCount};
use mig_telemetry::with_causes;
use serde_json::{Value, json};
use tokio::task::block_in_place;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::client::{CALL_TIMEOUT, MANAGER};
use crate::demand::{self, Kinds, Memory, NodeState, Options, PendingPod, Reason, Write, decide};
use crate::election::Term;
use crate::metrics::{Metrics, Outcome, WriteReason};
use crate::world::{World, unschedulable};

/// The longest time that a round writes; what is left is decided again.
const WRITING: Duration = Duration::from_secs(10);
/// Pause before a write that failed is decided again.
const PAUSE: Duration = Duration::from_secs(1);

/// Decides what nodes should publish, and writes it. Needs the verb `patch` for MigNodes.
pub struct Layouts {
    api: Api<MigNode>,
    options: Options,
    /// Whether nodes without the label for layouts take part.
    default_auto: bool,
    metrics: Metrics,
    kinds: Kinds,
    memory: Memory,
}

impl std::fmt::Debug for Layouts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layouts").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Layouts {
    /// Nothing is remembered yet.
    #[must_use]
    pub fn new(client: Client, options: Options, default_auto: bool, metrics: Metrics) -> Self {
        let (kinds, memory) = (Kinds::default(), Memory::default());
        Self { api: Api::all(client), options, default_auto, metrics, kinds, memory }
    }

    /// Whether nodes without the label for layouts take part.
    #[must_use]
    pub fn default_auto(&self) -> bool {
        self.default_auto
    }

    /// Another replica leads: what is remembered is out of date when this one leads again.
    pub fn forget(&mut self) {
        self.memory = Memory::default();
    }

    /// Decides and writes. Answers when to decide again if nothing changes.
    pub async fn round(&mut self, world: &World, term: &Term) -> Option<Duration> {
        if world.mig_nodes().is_empty() {
            return None;
        }
        let now = Timestamp::now();
        let outcome = block_in_place(|| {
            let input = input(world, self.default_auto, &mut self.kinds);
            decide(&input, &self.options, &self.memory, now)
        });
        self.memory = outcome.memory;
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
        let wake = outcome.wake.map(|it| Duration::try_from(it.duration_since(now)).unwrap_or_default());
        if is_left { Some(PAUSE) } else { wake }
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

/// What is in memory, as decisions take it.
fn input(world: &World, default_auto: bool, kinds: &mut Kinds) -> demand::World {
    let snapshot = world.snapshot();
    let nodes: BTreeMap<&str, &Node> =
        snapshot.nodes.iter().filter_map(|it| Some((it.metadata.name.as_deref()?, it))).collect();
    let node = |mig: &MigNode| {
        let node = nodes.get(mig.node())?;
        Some(NodeState::of(mig, Arc::new(Node::clone(node)), default_auto, kinds))
    };
    let nodes = world.mig_nodes().iter().filter_map(node).collect();
    let pods = snapshot.pods.iter().filter_map(|it| pending(world, it)).collect();
    demand::World { nodes, pods, classes: snapshot.classes.clone() }
}

/// A pod that waits and whose claims all exist.
fn pending(world: &World, pod: &Pod) -> Option<PendingPod> {
    let (metadata, spec) = (&pod.metadata, pod.spec.as_ref()?);
    let namespace = metadata.namespace.as_deref().unwrap_or("default");
    let statuses = || pod.status.iter().flat_map(|it| it.resource_claim_statuses.iter().flatten());
    let claim = |entry: &k8s_openapi::api::core::v1::PodResourceClaim| -> Option<Arc<ResourceClaim>> {
        let generated = || statuses().find(|it| it.name == entry.name)?.resource_claim_name.as_deref();
        let name = entry.resource_claim_name.as_deref().or_else(generated)?;
        world.claim(namespace, name).cloned().map(Arc::new)
    };
    let claims: Vec<_> = spec.resource_claims.iter().flatten().map(claim).collect::<Option<_>>()?;
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
        spec: Arc::new(spec.clone()),
        claims,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kube::runtime::watcher::Event;

    use super::*;
    use crate::world::Change;

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
            let mig_node = json!({
                "apiVersion": MigNode::API_VERSION, "kind": MigNode::KIND,
                "metadata": {"name": "n", "managedFields": managed},
                "spec": {"holds": [{
                    "gpu": "gpu-0000-1a-00", "profile": "full", "until": "2026-11-29T12:00:00Z",
                    "claim": {"namespace": "d", "name": "c", "uid": "00000000-0000-4000-8000-000000000001"},
                }]},
            });
            world.apply(Change::MigNodes(Event::Apply(serde_json::from_value(mig_node).unwrap())));
            let input = input(&world, true, &mut Kinds::default());
            assert_eq!(input.nodes[0].holds[0].is_ours, is_ours, "{managed}");
        }
    }
}
