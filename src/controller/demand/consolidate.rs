//! Consolidation: pods that may be moved are evicted where they stand in the way of a claim that has a GPU held back.
//!
//! A set of pods is evicted only if all of this holds:
//!
//! - every device that stands in the way is of a pod that may be moved: its owner agreed, its priority is not above that of the
//!   pod that waits, it has run for a while, and all pods that share its claims leave with it;
//! - each of them finds a place beside what pods that wait already count on, all of them together, and not on the GPU itself;
//! - the claim has waited for as long for each of them: what one pod can make room for comes before what takes many, and a claim that
//!   is served soon without evictions takes none of them from others;
//! - the hold is in force, the driver has seen it, and it lasts until the pods have ended;
//! - the scheduler says that the pod lacks nothing but devices;
//! - no other set is on its way, none has failed lately, and neither the hour's evictions nor those for the namespace are used up.
//!   After one that failed, whether the pod still waits or was deleted, nothing is evicted for its namespace for a time that doubles.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Duration;

use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::jiff::Timestamp;
use mig_model::layout::LONGEST_HOLD;

use super::decisions::{Evicted, Eviction, PodKey};
use super::evictions::{Attempt, Fate, most_for_one};
use super::given::Source;
use super::gpu::GpuLedger;
use super::kind::{Kind, Set, members};
use super::ledger::NodeLedger;
use super::memory::Memory;
use super::round::Round;
use super::shape::{Need, Shape, is_waiting};
use super::world::{Hold, MovablePod, PendingPod, Progress, World, after};

/// Pods of one set; a GPU has seven instances at most.
pub(super) const MAX_SET: u32 = 7;
/// Sets for which one round looks for places.
const MAX_CHECKS: usize = 16;
/// Pods for which one round chooses a GPU by what could be moved. One set is moved at a time.
const MAX_CHOICES: usize = 4;
/// A hold lasts so much longer than the pods need to end, so that the claim gets what they leave.
const MARGIN: Duration = Duration::from_secs(60);
/// While something is held back it is looked at again after so long.
const LOOK: Duration = Duration::from_secs(10);

/// Where a claim could be served, the place that is likely to be free first before others: the fewest claims stand in the way, then
/// the least memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate {
    pub(super) alternative: u8,
    pub(super) claims: u32,
    pub(super) memory: u32,
    pub(super) size: u32,
    pub(super) node: usize,
    pub(super) gpu: usize,
    pub(super) device: usize,
}

/// A GPU by position: of which node, and which of its GPUs.
type At = (usize, usize);

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

/// Pods that share their claims, so that only all of them together free a device.
#[derive(Debug)]
struct Group<'w> {
    pods: Vec<&'w MovablePod>,
    /// Whether they may be evicted now.
    may_leave: bool,
    /// Whether all of them are being deleted.
    is_leaving: bool,
    priority: i32,
    /// What each of them asks for and where it can be placed; `None` before it was asked, or where it was not looked at.
    asks: Option<Vec<(Rc<Shape>, usize)>>,
}

/// The pods that may be moved, and where they are.
#[derive(Debug, Default)]
pub(super) struct Movers<'w> {
    groups: Vec<Group<'w>>,
    /// The group that has a device: node, GPU and device by position.
    holders: HashMap<(usize, usize, usize), usize>,
    checks: usize,
    choices: usize,
    /// Namespaces for which nothing is evicted now.
    barred: BTreeSet<&'w str>,
    /// Whether there is any place for what a pod asks for.
    places: HashMap<(*const Shape, usize), bool>,
}

impl<'w> Movers<'w> {
    /// The pods of a world; none where consolidation is off.
    pub(super) fn new(round: &Round<'w>, memory: &Memory) -> Self {
        if round.options.evictions_per_hour.is_none() {
            return Self::default();
        }
        let known = &memory.consolidation;
        let is_leaving = |it: &&MovablePod| it.is_leaving || known.is_evicted(&it.pod.uid);
        let world: &'w World = round.world;
        let by_uid: HashMap<&str, &MovablePod> =
            world.movable.iter().map(|it| (it.pod.uid.as_str(), it)).collect();
        let nodes: HashMap<&str, usize> =
            round.nodes.iter().enumerate().map(|(index, it)| (it.state.name(), index)).collect();
        let mut movers = Self::default();
        let namespaces = world.pods.iter().map(|it| it.namespace.as_str());
        movers.barred = namespaces.filter(|it| known.is_barred(it, round.now)).collect();
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        for pod in &world.movable {
            if seen.contains(pod.pod.uid.as_str()) {
                continue;
            }
            let pods: Option<Vec<&MovablePod>> =
                pod.users.iter().map(|it| by_uid.get(it.as_str()).copied()).collect();
            // One of them may not be moved.
            let Some(pods) = pods.filter(|it| !it.is_empty()) else { continue };
            // They share all of their claims, or none.
            let claims = |it: &MovablePod| -> BTreeSet<String> {
                it.pod.claims.iter().filter_map(|it| it.metadata.uid.clone()).collect()
            };
            let is_alike = |it: &&MovablePod| it.users == pod.users && claims(it) == claims(pod);
            if !pods.iter().all(is_alike) {
                continue;
            }
            seen.extend(pods.iter().map(|it| it.pod.uid.as_str()));
            let has_run = |it: &&MovablePod| {
                it.started.is_some_and(|it| after(it, round.options.move_after) <= round.now)
            };
            // One that may take longer to end than a hold lasts without a renewal is never evicted.
            let longest = round.options.hold_for.min(LONGEST_HOLD);
            let ends_in_time = |it: &MovablePod| it.grace.saturating_add(MARGIN) <= longest;
            let may_leave = pods.iter().all(|it| {
                has_run(it) && ends_in_time(it) && !is_leaving(it) && !known.avoided.contains_key(&it.pod.uid)
            });
            let group = movers.groups.len();
            if let Some(node) = nodes.get(pod.node.as_str()) {
                let gpus = &round.nodes[*node].gpus;
                for (name, placed) in pods.iter().flat_map(|it| &it.devices) {
                    let Some(gpu) = gpus.iter().position(|it| it.state.name == *name) else { continue };
                    let device = gpus[gpu].kind.position(&placed.profile, placed.start);
                    movers.holders.extend(device.map(|it| ((*node, gpu, it), group)));
                }
            }
            movers.groups.push(Group {
                may_leave,
                is_leaving: pods.iter().all(is_leaving),
                priority: pods.iter().map(|it| it.pod.priority).max().unwrap_or_default(),
                asks: None,
                pods,
            });
        }
        movers
    }

    /// The groups that have to leave for a device; `None` where something else stands in its way. Those that leave already are not
    /// among them.
    fn set(&self, gpu: &GpuLedger<'_>, at: At, device: usize, priority: i32) -> Option<Vec<usize>> {
        let held = gpu.in_the_way(device)?;
        let mut set = BTreeSet::new();
        for it in members(held) {
            let group = *self.holders.get(&(at.0, at.1, it))?;
            let of = &self.groups[group];
            if of.is_leaving {
                continue;
            }
            if !of.may_leave || priority < of.priority {
                return None;
            }
            set.insert(group);
        }
        has_counters(gpu, held, device).then(|| set.into_iter().collect())
    }

    /// Whether pods may be evicted for one that waits.
    fn may_move_for(&self, pod: &PendingPod) -> bool {
        pod.lacks_only_devices && !self.barred.contains(pod.namespace.as_str())
    }

    /// For how long a GPU must be held back so that pods that may be evicted there have ended.
    pub(super) fn needs(&self, gpu: At) -> Duration {
        let there = self.holders.iter().filter(|((node, position, _), _)| (*node, *position) == gpu);
        let pods = there.map(|it| &self.groups[*it.1]).filter(|it| it.may_leave).flat_map(|it| &it.pods);
        pods.map(|it| it.grace + MARGIN).max().unwrap_or_default()
    }

    /// How many pods are in groups.
    fn count(&self, set: &[usize]) -> usize {
        set.iter().map(|it| self.groups[*it].pods.len()).sum()
    }

    /// Of candidates for a hold the one that the fewest pods have to leave, where each of them finds another place.
    pub(super) fn choose(
        &mut self,
        round: &mut Round<'w>,
        pod: &PendingPod,
        candidates: &[Candidate],
    ) -> Option<Candidate> {
        if self.holders.is_empty() || MAX_CHOICES <= self.choices || !self.may_move_for(pod) {
            return None;
        }
        self.choices += 1;
        let most = most_for_one(round.options).min(most_pods(round, pod));
        let mut found: Vec<(usize, &Candidate, Vec<usize>)> = candidates
            .iter()
            .filter_map(|it| {
                let gpu = &round.nodes[it.node].gpus[it.gpu];
                let set = self.set(gpu, (it.node, it.gpu), it.device, pod.priority)?;
                let count = self.count(&set);
                (0 < count && count <= most).then_some((count, it, set))
            })
            .collect();
        found.sort();
        let fits =
            found.into_iter().find(|(_, it, set)| self.places(round, set, (it.node, it.gpu)).is_some());
        fits.map(|it| *it.1)
    }

    /// A node with a place for each group, all of them together, when a GPU is given to the pod that waits.
    fn places(&mut self, round: &mut Round<'w>, set: &[usize], at: At) -> Option<Vec<usize>> {
        if MAX_CHECKS <= self.checks {
            return None;
        }
        for group in set {
            let of = &mut self.groups[*group];
            if of.asks.is_none() {
                of.asks = of.pods.iter().map(|it| round.asks(&it.pod)).collect();
            }
            let (shape, eligible) = of.asks.as_ref()?.first()?;
            let Need::One(_) = &shape.need else { return None };
            let key = (Rc::as_ptr(shape), *eligible);
            let is_known = *self.places.entry(key).or_insert_with(|| {
                best_place(round, &BTreeMap::new(), std::slice::from_ref(&(shape.clone(), *eligible)), None)
                    .is_some()
            });
            if !is_known {
                return None;
            }
        }
        self.checks += 1;
        let mut own = round.nodes[at.0].clone();
        own.gpus[at.1].close();
        let mut changed: BTreeMap<usize, NodeLedger<'w>> = BTreeMap::from([(at.0, own)]);
        let size = |group: usize| {
            let devices = self.groups[group].pods.iter().flat_map(|it| &it.devices);
            devices.map(|it| it.1.size).max()
        };
        let mut order: Vec<usize> = (0..set.len()).collect();
        order.sort_by_key(|it| Reverse(size(set[*it])));
        let mut places = vec![0; set.len()];
        for index in order {
            let group = &self.groups[set[index]];
            let only = group.pods.iter().any(|it| it.stays_on_node).then_some(at.0);
            let (node, gpu, device, source) = best_place(round, &changed, group.asks.as_ref()?, only)?;
            let ledger = changed.entry(node).or_insert_with(|| round.nodes[node].clone());
            ledger.give(gpu, device, source);
            places[index] = node;
        }
        Some(places)
    }
}

/// The most pods of a set for one that waits: the longer it has waited, the more.
pub(super) fn most_pods(round: &Round<'_>, pod: &PendingPod) -> usize {
    let has_waited = |pods: u32| {
        let pause = round.options.consolidate_after.saturating_mul(pods);
        pod.unschedulable.is_some_and(|it| after(it, pause) <= round.now)
    };
    (1..=MAX_SET).take_while(|it| has_waited(*it)).count()
}

/// The best place for pods that share a claim for one device: node, GPU, device, and how it is had.
fn best_place<'w>(
    round: &Round<'w>,
    changed: &BTreeMap<usize, NodeLedger<'w>>,
    asks: &[(Rc<Shape>, usize)],
    only: Option<usize>,
) -> Option<(usize, usize, usize, Source)> {
    let (shape, _) = asks.first()?;
    let Need::One(choices) = &shape.need else { return None };
    let of = |kind: &Kind| choices.get(&std::ptr::from_ref(kind)).map_or(&[][..], |it| &it[..]);
    [Source::Published, Source::Coming, Source::Change].into_iter().find_map(|source| {
        let able = (0..round.nodes.len())
            .filter(|it| only.is_none_or(|only| only == *it))
            .filter(|it| asks.iter().all(|(_, eligible)| round.is_possible(*it, *eligible, source)));
        let scores = able.filter_map(|node| {
            let ledger = changed.get(&node).unwrap_or(&round.nodes[node]);
            Some((ledger.best(of, source, "")?, node))
        });
        let (score, node) = scores.min()?;
        Some((node, score.gpu as usize, score.device as usize, source))
    })
}

/// Whether the counters of which a GPU has more than one leave room for a device, once what stands in its way is gone.
fn has_counters(gpu: &GpuLedger<'_>, in_the_way: Set, device: usize) -> bool {
    let kind = gpu.kind;
    let used =
        |column: usize| -> i64 { members(gpu.held & !in_the_way).map(|it| kind.costs[it][column]).sum() };
    kind.costs[device].iter().enumerate().all(|(it, cost)| cost + used(it) <= kind.totals[it])
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
        let Some((at, hold, set)) = set_for(round, movers, index) else { continue };
        if known.left(round.options, &of.namespace, round.now) < movers.count(&set) {
            continue;
        }
        let Some(places) = movers.places(round, &set, at) else { continue };
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

/// The groups that have to leave the GPU that is held back for a pod, if nothing else is missing and there is time enough.
fn set_for<'w>(round: &Round<'w>, movers: &Movers<'w>, index: usize) -> Option<(At, &'w Hold, Vec<usize>)> {
    let pod = &round.pods[index];
    if pod.served.is_some() || pod.is_elsewhere || pod.claim.uid.is_empty() {
        return None;
    }
    let (shape, eligible) = pod.asks.as_ref()?;
    let Need::One(choices) = &shape.need else { return None };
    let waiting = pod.of.claims.iter().filter(|it| is_waiting(it)).map(|it| requests(it));
    if waiting.sum::<usize>() != shape.claims.iter().map(requests).sum::<usize>() {
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
    let set = devices
        .filter(|it| gpu.kind.devices[*it].profile == hold.profile)
        .filter_map(|it| movers.set(gpu, at, it, pod.of.priority))
        .min_by_key(|it| (movers.count(it), it.clone()))?;
    let graces = set.iter().flat_map(|it| &movers.groups[*it].pods).map(|it| it.grace);
    let ends = after(after(round.now, graces.max().unwrap_or_default()), MARGIN);
    let is_possible = !set.is_empty() && movers.count(&set) <= most_pods(round, pod.of) && ends <= hold.until;
    is_possible.then_some((at, hold, set))
}

fn requests(claim: &ResourceClaim) -> usize {
    claim.spec.devices.iter().flat_map(|it| it.requests.iter().flatten()).count()
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
/// offers nothing in place of the profile. Where counters are not kept, the begin of a hold is a change of the node.
fn hold<'w>(round: &Round<'w>, claim: &str) -> Option<(At, &'w Hold)> {
    round.nodes.iter().enumerate().find_map(|(index, node)| {
        let state = node.state;
        let hold = state.holds.iter().find(|it| it.claim.uid == claim && round.now < it.until)?;
        let gpu = state.gpus.iter().position(|it| it.name == hold.gpu)?;
        let is_offered = state.gpus[gpu].published.iter().any(|it| it.profile != hold.profile);
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
