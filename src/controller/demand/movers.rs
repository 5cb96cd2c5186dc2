//! Pods that may be moved: which of them stand in the way of a claim, and where each of them finds another place.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Duration;

use mig_model::layout::LONGEST_HOLD;

use super::evictions::most_for_one;
use super::given::Source;
use super::gpu::GpuLedger;
use super::kind::{Kind, Set, members};
use super::ledger::NodeLedger;
use super::memory::Memory;
use super::round::Round;
use super::shape::{Need, Shape};
use super::world::{MovablePod, PendingPod, World, after};

/// Pods of one set; a GPU has seven instances at most.
pub(super) const MAX_SET: u32 = 7;
/// Sets for which one round looks for places.
pub(super) const MAX_CHECKS: usize = 16;
/// Pods for which one round chooses a GPU by what could be moved. One set is moved at a time.
pub(super) const MAX_CHOICES: usize = 4;
/// A hold lasts so much longer than the pods need to end, so that the claim gets what they leave.
pub(super) const MARGIN: Duration = Duration::from_secs(60);
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
pub(super) type At = (usize, usize);

/// Pods that share their claims, so that only all of them together free a device.
#[derive(Debug)]
pub(super) struct Group<'w> {
    pub(super) pods: Vec<&'w MovablePod>,
    /// Whether they may be evicted now.
    may_leave: bool,
    /// Whether all of them are being deleted.
    pub(super) is_leaving: bool,
    priority: i32,
    /// What each of them asks for and where it can be placed; `None` before it was asked, or where it was not looked at.
    asks: Option<Vec<(Rc<Shape>, usize)>>,
}

/// The pods that may be moved, and where they are.
#[derive(Debug, Default)]
pub(super) struct Movers<'w> {
    pub(super) groups: Vec<Group<'w>>,
    /// The group that has a device: node, GPU and device by position.
    pub(super) holders: HashMap<(usize, usize, usize), usize>,
    checks: usize,
    choices: usize,
    /// Namespaces for which nothing is evicted now.
    barred: BTreeSet<&'w str>,
    /// How many pods may be evicted now for the pods of a namespace.
    left: BTreeMap<&'w str, usize>,
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
        let namespaces: BTreeSet<&str> = world.pods.iter().map(|it| it.namespace.as_str()).collect();
        if known.paused.is_none() && known.attempt.is_none() {
            let left = |it: &&'w str| (*it, known.left(round.options, it, round.now));
            movers.left = namespaces.iter().map(left).collect();
        }
        movers.barred = namespaces.into_iter().filter(|it| known.is_barred(it, round.now)).collect();
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
    pub(super) fn set(
        &self,
        gpu: &GpuLedger<'_>,
        at: At,
        device: usize,
        priority: i32,
    ) -> Option<Vec<usize>> {
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
    pub(super) fn may_move_for(&self, pod: &PendingPod) -> bool {
        pod.lacks_only_devices && !self.barred.contains(pod.namespace.as_str())
    }

    /// How many pods may be evicted now for the pods of a namespace: none while a set is on its way.
    pub(super) fn left(&self, namespace: &str) -> usize {
        self.left.get(namespace).copied().unwrap_or(0)
    }

    /// The groups with devices of a GPU.
    fn on(&self, gpu: At) -> impl Iterator<Item = &Group<'w>> {
        let there = self.holders.iter().filter(move |((node, position, _), _)| (*node, *position) == gpu);
        there.map(|it| &self.groups[*it.1])
    }

    /// Whether pods leave a GPU already.
    pub(super) fn is_leaving(&self, gpu: At) -> bool {
        self.on(gpu).any(|it| it.is_leaving)
    }

    /// For how long a GPU must be held back so that pods that may be evicted there have ended.
    pub(super) fn needs(&self, gpu: At) -> Duration {
        let pods = self.on(gpu).filter(|it| it.may_leave).flat_map(|it| &it.pods);
        pods.map(|it| it.grace + MARGIN).max().unwrap_or_default()
    }

    /// How many pods are in groups.
    pub(super) fn count(&self, set: &[usize]) -> usize {
        set.iter().map(|it| self.groups[*it].pods.len()).sum()
    }

    /// Of candidates for a hold the one that the fewest pods have to leave, and at most `most`, where each of them finds another place.
    pub(super) fn choose(
        &mut self,
        round: &mut Round<'w>,
        pod: &PendingPod,
        candidates: &[Candidate],
        most: usize,
    ) -> Option<Candidate> {
        if self.holders.is_empty() || MAX_CHOICES <= self.choices || !self.may_move_for(pod) {
            return None;
        }
        self.choices += 1;
        let most = most.min(most_for_one(round.options)).min(most_pods(round, pod));
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
        let fits = found
            .into_iter()
            .find(|(_, it, set)| self.places(round, set, ((it.node, it.gpu), it.device)).is_some());
        fits.map(|it| *it.1)
    }

    /// A node with a place for each group, all of them together, when a device of a GPU is given to the pod that waits.
    pub(super) fn places(
        &mut self,
        round: &mut Round<'w>,
        set: &[usize],
        (at, device): (At, usize),
    ) -> Option<Vec<usize>> {
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
        own.gpus[at.1].close(device);
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
