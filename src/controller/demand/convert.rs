//! From the objects of the API server to what decisions are made from.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::DeviceAttribute;
use kubectl_mig::cluster::is_auto;
use mig_model::inventory::DeviceName;
use mig_model::mig_node::{
    GpuStatus, HeldDevice, MigNode, MigNodeStatus, ProfileCount, PublishingMode, WHOLE, condition, possible,
    reason,
};

use crate::client::MANAGER;

use super::kind::{IDENTITY, Kind, Kinds, Possible};
use super::world::{ClaimKey, Demand, GpuState, Hold, NodeState, Placed, Profiles, Progress};

/// A `MigNode` as decisions take it. Read once for each version: what depends on the Node is added by [`Described::on`].
#[derive(Debug, Clone)]
pub struct Described {
    /// Without the Node.
    state: NodeState,
    /// Whether spec and status permit that it follows demand.
    may_follow: bool,
}

impl Described {
    /// What a `MigNode` says. A spec or a status that is out of bounds is not used, and such a node does not follow.
    #[must_use]
    pub fn of(mig: &MigNode, kinds: &mut Kinds) -> Self {
        let (spec, status) = (&mig.spec, mig.status.as_ref());
        let mode = status.and_then(|it| it.mode);
        let demand = spec.demand.as_ref().map(|it| Demand {
            renewed: it.renew_time.as_ref().map(|it| it.0),
            profiles: counts(&it.profiles),
        });
        let gpus: Vec<GpuState> = status
            .map(|it| it.gpus.iter().filter_map(|gpu| gpu_state(gpu, kinds)).collect())
            .unwrap_or_default();
        let holds = spec.holds.iter().map(|it| Hold {
            gpu: it.gpu.clone(),
            profile: it.profile.clone(),
            claim: ClaimKey {
                namespace: it.claim.namespace.clone(),
                name: it.claim.name.clone(),
                uid: it.claim.uid.as_str().to_owned(),
            },
            until: it.until.0,
            since: it.since.as_ref().map(|it| it.0),
            is_ours: is_ours(mig, &it.gpu),
        });
        let reason = status.and_then(unfollowed).unwrap_or_default();
        let is_about_room = [reason::HELD_DEVICES, reason::DOES_NOT_FIT].contains(&reason);
        let others = [reason::STALE, reason::LABEL_SET, reason::PARTITIONABLE, reason::INVALID_SPEC];
        let observed = status.and_then(|it| it.observed_generation);
        let is_observed = observed.is_some() && observed == mig.metadata.generation;
        let is_there = demand.as_ref().is_none_or(|it| is_published(&it.profiles, &gpus, &mig.spec.holds));
        // A hold may have to wait although the demand is there.
        let is_final =
            reason != reason::CHANGED_RECENTLY && (is_there || is_about_room || others.contains(&reason));
        let state = NodeState {
            resource_version: mig.metadata.resource_version.clone(),
            takes_part: false,
            follows: false,
            counts: mode == Some(PublishingMode::Partitionable),
            progress: if is_observed && is_final { Progress::Done } else { Progress::Pending },
            is_refused: !is_there && is_about_room,
            floor: counts(&spec.floor),
            holds: holds.collect(),
            demand,
            gpus,
            node: Arc::default(),
        };
        Self { state, may_follow: mig.invalid.spec.is_none() && mode == Some(PublishingMode::Layout) }
    }

    /// The version of the object.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.state.resource_version.as_deref()
    }

    /// The node. Without the label for layouts it follows demand where `default_auto` says so.
    #[must_use]
    pub fn on(&self, node: Arc<Node>, default_auto: bool) -> NodeState {
        let is_auto = is_auto(Some(&node), default_auto);
        NodeState { takes_part: is_auto, follows: is_auto && self.may_follow, node, ..self.state.clone() }
    }
}

impl NodeState {
    /// A node, from its `MigNode` and its Node: [`Described`] in one step.
    #[must_use]
    pub fn of(mig: &MigNode, node: Arc<Node>, default_auto: bool, kinds: &mut Kinds) -> Self {
        Described::of(mig, kinds).on(node, default_auto)
    }
}

/// Whether the controller applied the hold of this GPU. Where nothing says who applied what, it counts as the controller's.
fn is_ours(mig: &MigNode, gpu: &str) -> bool {
    let Some(fields) = &mig.metadata.managed_fields else { return true };
    let key = format!("k:{}", serde_json::json!({"gpu": gpu}));
    fields
        .iter()
        .filter(|it| it.manager.as_deref() == Some(MANAGER))
        .filter_map(|it| it.fields_v1.as_ref())
        .any(|it| !it.0["f:spec"]["f:holds"][&key].is_null())
}

/// Why the driver has not followed the spec, if it says so.
fn unfollowed(status: &MigNodeStatus) -> Option<&str> {
    let condition = status.conditions.iter().find(|it| it.type_ == condition::DEMAND_FOLLOWED)?;
    (condition.status == "False").then_some(condition.reason.as_str())
}

fn counts(list: &[ProfileCount]) -> Profiles {
    list.iter().map(|it| (it.profile.clone(), it.count)).collect()
}

/// Whether so many devices are published and free. What a GPU offers that is held back serves no demand.
fn is_published(profiles: &Profiles, gpus: &[GpuState], holds: &[mig_model::mig_node::Hold]) -> bool {
    let is_held_back = |gpu: &GpuState| holds.iter().any(|it| it.gpu == gpu.name);
    let published = |profile: &String| {
        let others = gpus.iter().filter(|it| !is_held_back(it));
        others.flat_map(|it| &it.published).filter(|it| it.profile == *profile).count()
    };
    profiles.iter().all(|(profile, count)| *count as usize <= published(profile))
}

fn gpu_state<'a>(gpu: &'a GpuStatus, kinds: &mut Kinds) -> Option<GpuState> {
    let is_shared = |key: &String| !IDENTITY.contains(&key.as_str());
    let shared = |all: &'a BTreeMap<String, DeviceAttribute>| {
        all.iter().filter(|it| is_shared(it.0)).collect::<BTreeMap<_, _>>()
    };
    // The profile of the whole GPU has its UUID.
    let profiles: Vec<_> = gpu
        .profiles
        .iter()
        .map(|it| (&it.profile, shared(&it.attributes), &it.capacity, &it.placements))
        .collect();
    // What exists beside our own devices limits what is possible; with a problem it is only what is held.
    let limits =
        |it: &&HeldDevice| gpu.problem.is_some() || it.device.as_deref().is_none_or(DeviceName::is_adopted);
    let limits: Vec<_> = gpu.held.iter().filter(limits).map(|it| (&it.device, it.start, it.size)).collect();
    let key = (shared(&gpu.attributes), profiles, limits, gpu.problem.is_some());
    let key = serde_json::to_string(&key).ok()?;
    let kind = kinds.of(key, || {
        let found = possible(gpu);
        let counters = found.as_ref().and_then(|it| it.counters.clone()).map(|it| it.counters);
        let devices = found.into_iter().flat_map(|it| it.devices).map(|it| Possible {
            profile: it.profile,
            start: it.placement.start,
            size: it.placement.size,
            device: it.device,
        });
        Kind::new(devices.collect(), &counters.unwrap_or_default())
    });
    let held =
        gpu.held.iter().map(|it| Placed { profile: it.profile.clone(), start: it.start, size: it.size });
    let published =
        gpu.published.iter().map(|it| Placed { profile: it.profile.clone(), start: it.start, size: it.size });
    let whole = gpu.profiles.iter().filter(|it| it.profile == WHOLE).flat_map(|it| &it.attributes);
    let identity = gpu.attributes.iter().chain(whole).filter(|it| !is_shared(it.0));
    Some(GpuState {
        name: gpu.name.clone(),
        kind,
        identity: identity.map(|(key, it)| (key.clone(), it.clone())).collect(),
        held: held.collect(),
        published: published.collect(),
        has_problem: gpu.problem.is_some(),
    })
}
