//! Consolidation: pods that may be moved are evicted where they stand in the way of a claim that has a GPU held back.
//!
//! A set of pods is evicted only if all of this holds:
//!
//! - every device that stands in the way is of a pod that may be moved: its owner agreed, its priority is not above that of the
//!   pod that waits, it has run for a while, and all pods that share its claims leave with it;
//! - each of them finds a place beside what pods that wait already count on, all of them together, and on the GPU itself only where
//!   it is not in the way;
//! - the claim has waited for as long for each of them: what one pod can make room for comes before what takes many, and a claim that
//!   is served soon without evictions takes none of them from others;
//! - the hold is in force, the driver has seen it, and it lasts until the pods have ended;
//! - the scheduler says that the pod lacks nothing but devices;
//! - no other set is on its way, none has failed lately, and neither the hour's evictions nor those for the namespace are used up.
//!   After one that failed, whether the pod still waits or was deleted, nothing is evicted for its namespace for a time that doubles.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::decisions::{Evicted, Eviction, PodKey};
use super::evictions::{Attempt, Fate};
use super::memory::Memory;
use super::movers::{At, MARGIN, Movers, most_pods};
use super::requests::{is_waiting, requests};
use super::round::Round;
use super::shape::Need;
use super::world::{Hold, PendingPod, Progress, after};

/// While something is held back it is looked at again after so long.
const LOOK: Duration = Duration::from_secs(10);

/// Learns what has become of the last set.
pub(super) fn read(round: &Round<'_>, memory: &mut Memory) {
    let fate = |of: &Attempt| {
        let waits = round.pods.iter().any(|it| it.of.uid == of.pod && it.claim.uid == of.claim.uid);
        let mut holds = round.nodes.iter().flat_map(|it| &it.state.holds).filter(|it| round.now < it.until);
        match waits {
            true if holds.any(|it| it.claim.uid == of.claim.uid) => Fate::Held,
            true => Fate::Waits,
            false if round.world.unserved.contains(&of.claim.uid) => Fate::Unserved,
            false => Fate::Served,
        }
    };
    memory.consolidation.read(round.options, fate, round.now);
}

/// The pods to evict now, if there are any.
pub(super) fn eviction<'w>(
    round: &mut Round<'w>,
    movers: &mut Movers<'w>,
    memory: &mut Memory,
) -> Option<Eviction> {
    round.options.evictions_per_hour?;
    let known = &mut memory.consolidation;
    if known.paused.is_some() || known.attempt.is_none() && is_under_way(round, movers) {
        return None;
    }
    for index in 0..round.pods.len() {
        let (of, claim) = (round.pods[index].of, round.pods[index].claim.clone());
        let is_other = known.attempt.as_ref().is_some_and(|it| it.claim != claim);
        let Some(since) = of.unschedulable.filter(|_| !is_other && movers.may_move_for(of)) else {
            continue;
        };
        let Some(Found { at, hold, device, set }) = set_for(round, movers, index) else { continue };
        if known.left(round.options, &of.namespace, round.now) < movers.count(&set) {
            continue;
        }
        let Some(places) = movers.places(round, &set, (at, device)) else { continue };
        let pods = set
            .iter()
            .zip(places)
            .flat_map(|(group, place)| movers.groups[*group].pods.iter().map(move |it| (it, place)));
        let name = |node: usize| round.nodes[node].state.name().to_owned();
        let eviction = Eviction {
            node: name(at.0),
            gpu: hold.gpu.clone(),
            profile: hold.profile.clone(),
            until: hold.until,
            waiting: key(of),
            since,
            pods: pods.map(|(it, place)| Evicted { pod: key(&it.pod), place: name(place) }).collect(),
        };
        let uids: Vec<String> = eviction.pods.iter().map(|it| it.pod.uid.clone()).collect();
        known.begin(of, &claim, &uids, round.now);
        return Some(eviction);
    }
    None
}

/// Groups that have to leave the GPU that is held back for a pod.
struct Found<'w> {
    at: At,
    hold: &'w Hold,
    /// The device that the pod gets.
    device: usize,
    set: Vec<usize>,
}

/// The groups that have to leave the GPU that is held back for a pod, if nothing else is missing and there is time enough.
fn set_for<'w>(round: &Round<'w>, movers: &Movers<'w>, index: usize) -> Option<Found<'w>> {
    let pod = &round.pods[index];
    if pod.served.is_some() || pod.is_elsewhere || pod.claim.uid.is_empty() {
        return None;
    }
    let (shape, eligible) = pod.asks.as_ref()?;
    let Need::One(choices) = &shape.need else { return None };
    let waiting = pod.of.claims.iter().filter(|it| is_waiting(it)).flat_map(|it| requests(it)).count();
    if waiting != shape.claims.iter().flat_map(requests).count() {
        // It waits for devices of other drivers, too.
        return None;
    }
    let (at, hold) = hold(round, &pod.claim.uid)?;
    if !round.eligibility.takes(*eligible, at.0) {
        return None;
    }
    let gpu = &round.nodes[at.0].gpus[at.1];
    let choices = choices.get(&std::ptr::from_ref(gpu.kind)).into_iter().flat_map(|it| it.iter());
    let devices = choices.map(|it| usize::from(it.device));
    let (device, set) = devices
        .filter(|it| gpu.kind.devices[*it].profile == hold.profile)
        .filter_map(|it| Some((it, movers.set(gpu, at, it, pod.of.priority)?)))
        .min_by_key(|(_, it)| (movers.count(it), it.clone()))?;
    let graces = set.iter().flat_map(|it| &movers.groups[*it].pods).map(|it| it.grace);
    let ends = after(after(round.now, graces.max().unwrap_or_default()), MARGIN);
    let is_possible = !set.is_empty() && movers.count(&set) <= most_pods(round, pod.of) && ends <= hold.until;
    is_possible.then_some(Found { at, hold, device, set })
}

fn key(pod: &PendingPod) -> PodKey {
    PodKey { namespace: pod.namespace.clone(), name: pod.name.clone(), uid: pod.uid.clone() }
}

/// Whether pods are leaving a GPU that is held back: another leader has evicted them.
fn is_under_way(round: &Round<'_>, movers: &Movers<'_>) -> bool {
    let waits = |uid: &str| round.pods.iter().any(|it| it.claim.uid == uid);
    movers.holders.iter().filter(|(_, group)| movers.groups[**group].is_leaving).any(|((node, gpu, _), _)| {
        let node = round.nodes[*node].state;
        let name = &node.gpus[*gpu].name;
        node.holds.iter().any(|it| it.gpu == *name && round.now < it.until && waits(&it.claim.uid))
    })
}

/// The GPU that is held back for a claim, if its driver acts on that: it has seen the spec, can begin with the hold at once, and
/// offers nothing that is in the way of the profile. Where counters are not kept, the begin of a hold is a change of the node.
fn hold<'w>(round: &Round<'w>, claim: &str) -> Option<(At, &'w Hold)> {
    round.nodes.iter().enumerate().find_map(|(index, node)| {
        let state = node.state;
        let hold = state.holds.iter().find(|it| it.claim.uid == claim && round.now < it.until)?;
        let gpu = state.gpus.iter().position(|it| it.name == hold.gpu)?;
        let is_offered = node.gpus[gpu].offers_in_the_way_of(&hold.profile);
        let is_ready = state.counts && state.progress == Progress::Done || node.may_change;
        let acts = is_ready && hold.is_ours && state.takes_part && !node.is_unseen && !is_offered;
        acts.then_some(((index, gpu), hold))
    })
}

/// When to look again although nothing happens.
pub(super) fn wake(round: &Round<'_>) -> Option<Timestamp> {
    round.options.evictions_per_hour?;
    let mut holds = round.nodes.iter().flat_map(|it| &it.state.holds).filter(|it| round.now < it.until);
    let is_needed = holds.any(|hold| round.pods.iter().any(|it| it.claim.uid == hold.claim.uid));
    is_needed.then(|| after(round.now, LOOK))
}
