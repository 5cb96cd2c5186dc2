//! Holds: claims that have waited for long get their turn on a GPU, so that small ones do not take whatever becomes free.
//!
//! A hold lasts for minutes and is renewed until the claim has its device, for [`Options::hold_for`] at most. Without a controller that
//! renews it, it ends by itself; one that is over is never renewed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use mig_model::layout::LONGEST_HOLD;

use super::kind::Choice;
use super::movers::{Candidate, Movers, most_pods};
use super::round::{Pod, Round};
use super::several;
use super::shape::Need;
use super::world::{ClaimKey, Hold, NodeState, Options, after};

/// Holds that one round adds.
const MAX_NEW: usize = 64;
/// Kinds of pods for which one round looks in vain for a better place of their holds.
const MAX_SHIFTS: usize = 2;

/// What is left at least of a hold that was written or renewed just now, see `lease`: a GPU is soon free for others when no controller
/// runs any more.
pub(super) const RENEWED_FOR: Duration = Duration::from_secs(300);

/// The holds that each node should have, by position.
pub(super) fn holds<'w>(round: &mut Round<'w>, movers: &mut Movers<'w>) -> Vec<Vec<Hold>> {
    let Some(hold_after) = round.options.hold_after else {
        // What was held back before this was turned off ends by itself.
        return round.nodes.iter().map(|it| it.state.holds.clone()).collect();
    };
    let mut holds = kept(round, hold_after);
    leave_one(round, &mut holds);
    renew(round, movers, &mut holds);
    let limits = Limits::of(round);
    shift(round, movers, &limits, &mut holds);
    begin(round, movers, hold_after, &limits, &mut holds);
    holds
}

/// Holds that stay. One that is over stays for `hold_after`, so that its claim waits that long for the next one, whichever replica
/// decides then. Those of others stay as they are.
fn kept(round: &Round<'_>, hold_after: Duration) -> Vec<Vec<Hold>> {
    // A pod that does not take what it is offered lacks something else.
    let takes = round.pods.iter().filter(|it| !it.is_elsewhere);
    let waiting: BTreeSet<&str> = takes.map(|it| it.claim.uid.as_str()).collect();
    let is_kept = |state: &NodeState, it: &Hold| {
        let is_needed = waiting.contains(it.claim.uid.as_str()) && round.now < after(it.until, hold_after);
        !it.is_ours || state.takes_part && is_needed
    };
    let kept = |state: &NodeState| state.holds.iter().filter(|it| is_kept(state, it)).cloned().collect();
    round.nodes.iter().map(|it| kept(it.state)).collect()
}

fn renew(round: &Round<'_>, movers: &Movers<'_>, holds: &mut [Vec<Hold>]) {
    for (node, hold) in (0..).zip(holds).flat_map(|(node, all)| all.iter_mut().map(move |it| (node, it))) {
        let gpu = round.nodes[node].state.gpus.iter().position(|it| it.name == hold.gpu);
        let lease = gpu.map_or(RENEWED_FOR, |gpu| lease(movers, (node, gpu)));
        if let Some(last) = last(hold, round.options)
            && (round.now < hold.until && renewal(hold, lease) <= round.now)
        {
            hold.until = last.min(after(round.now, lease)).max(hold.until);
        }
    }
}

/// GPUs are held back for claims that have waited for long, by priority and then by age.
fn begin<'w>(
    round: &mut Round<'w>,
    movers: &mut Movers<'w>,
    hold_after: Duration,
    limits: &Limits<'w>,
    holds: &mut [Vec<Hold>],
) {
    let mut used = Used::of(round, holds);
    let mut seen: BTreeSet<String> = holds.iter().flatten().map(|it| it.claim.uid.clone()).collect();
    let mut failed = BTreeSet::new();
    let mut added = 0;
    for index in 0..round.pods.len() {
        if MAX_NEW <= added {
            break;
        }
        let pod = &round.pods[index];
        let waits = |pause| pod.of.unschedulable.is_some_and(|it| after(it, pause) <= round.now);
        // Earlier only where pods can be moved.
        let is_due = waits(hold_after);
        let moves = round.options.evictions_per_hour.map_or(0, |_| most_pods(round, pod.of));
        let Some((shape, group)) = pod.asks.clone() else { continue };
        let (of, namespace) = (pod.of, pod.of.namespace.as_str());
        if !(is_due || 0 < moves)
            || pod.served.is_some()
            || pod.is_elsewhere
            || pod.claim.uid.is_empty()
            || seen.contains(&pod.claim.uid)
            || limits.left(&used, namespace) == 0
        {
            continue;
        }
        let several = matches!(shape.need, Need::Many).then_some(namespace);
        let key = (std::rc::Rc::as_ptr(&shape), group, is_due, moves, movers.may_move_for(of), several);
        if failed.contains(&key) {
            continue;
        }
        let places = match &shape.need {
            Need::One(_) => {
                let candidates = candidates(round, &shape.need, group, &used, limits);
                let chosen = movers.choose(round, of, &candidates, usize::MAX);
                let place = chosen.or_else(|| candidates.into_iter().min().filter(|_| is_due));
                place.map(|it| (it.node, vec![(it.gpu, it.device)]))
            }
            Need::Many if is_due => {
                let all = 0..round.nodes.len();
                let most: Vec<usize> = all
                    .map(|it| room(round, group, it, &used, limits).min(limits.left(&used, namespace)))
                    .collect();
                several::choose(round, &shape, namespace, &most)
            }
            Need::Many | Need::Nothing => None,
        };
        let Some((node, picks)) = places else {
            failed.insert(key);
            continue;
        };
        let lease = picks.iter().map(|it| lease(movers, (node, it.0))).max().unwrap_or(RENEWED_FOR);
        let until = after(round.now, round.options.hold_for.min(lease));
        let claim = round.pods[index].claim.clone();
        seen.insert(claim.uid.clone());
        added += picks.len();
        used.add(round.nodes[node].state, namespace, picks.len(), round.options);
        for (gpu, device) in picks {
            add(round, holds, (node, gpu, device), claim.clone(), (Some(round.now), until));
        }
    }
}

/// Holds a GPU back for a claim: node, GPU and device.
fn add(
    round: &mut Round<'_>,
    holds: &mut [Vec<Hold>],
    (node, gpu, device): (usize, usize, usize),
    claim: ClaimKey,
    (since, until): (Option<Timestamp>, Timestamp),
) {
    let gpu = &mut round.nodes[node].gpus[gpu];
    gpu.reserve(&claim.uid, device);
    let (gpu, profile) = (gpu.state.name.clone(), gpu.kind.devices[device].profile.clone());
    // One entry for each GPU: what is over makes room.
    holds[node].retain(|it| it.gpu != gpu);
    holds[node].push(Hold { gpu, profile, claim, until, since, is_ours: true });
}

/// Our holds that are in force, by UID of the claim: the node, and which of its holds it is.
fn in_force(holds: &[Vec<Hold>], now: Timestamp) -> impl Iterator<Item = (&str, (usize, usize))> {
    let all = holds.iter().enumerate().flat_map(|(node, all)| (0..).zip(all).map(move |it| (node, it)));
    let ours = all.filter(move |(_, (_, it))| it.is_ours && now < it.until);
    ours.map(|(node, (entry, it))| (it.claim.uid.as_str(), (node, entry)))
}

/// Of two holds for a claim the one that ends later stays: what moved to another node was written there, and not yet on the first. Those
/// for several devices of a pod are on one node.
fn leave_one(round: &mut Round<'_>, holds: &mut [Vec<Hold>]) {
    let now = round.now;
    let is_many = |it: &Pod<'_>| it.asks.as_ref().is_some_and(|it| matches!(it.0.need, Need::Many));
    let several: BTreeSet<&str> =
        round.pods.iter().filter(|it| is_many(it)).map(|it| it.claim.uid.as_str()).collect();
    let mut last: BTreeMap<String, (Timestamp, usize, String)> = BTreeMap::new();
    for (claim, (node, entry)) in in_force(holds, now) {
        let hold = &holds[node][entry];
        let it = (hold.until, node, hold.gpu.clone());
        let known = last.entry(claim.to_owned()).or_insert_with(|| it.clone());
        if *known < it {
            *known = it;
        }
    }
    for (node, all) in holds.iter_mut().enumerate() {
        let is_last = |it: &Hold| {
            let last = last.get(&it.claim.uid);
            last.is_none_or(|(_, n, gpu)| {
                *n == node && (*gpu == it.gpu || several.contains(it.claim.uid.as_str()))
            })
        };
        for hold in all.extract_if(.., |it| it.is_ours && now < it.until && !is_last(it)) {
            let mut gpus = round.nodes[node].gpus.iter_mut();
            if let Some(gpu) = gpus.find(|it| it.state.name == hold.gpu) {
                gpu.release(&hold.claim.uid);
            }
        }
    }
}

/// Moves holds to GPUs where pods may be evicted now, and fewer than where the GPU is held back: what was chosen first may have pods that
/// nobody may evict.
fn shift<'w>(round: &mut Round<'w>, movers: &mut Movers<'w>, limits: &Limits<'w>, holds: &mut [Vec<Hold>]) {
    let held: BTreeMap<String, (usize, usize)> =
        in_force(holds, round.now).map(|(claim, it)| (claim.to_owned(), it)).collect();
    // What found nothing, and with how many pods at most.
    let mut failed: Vec<(_, usize)> = Vec::new();
    for index in 0..round.pods.len() {
        let pod = &round.pods[index];
        let own = held.get(&pod.claim.uid).filter(|_| pod.served.is_none() && !pod.is_elsewhere);
        let Some((node, entry)) = own.copied() else { continue };
        let left = movers.left(&pod.of.namespace);
        let Some((shape, group)) = pod.asks.clone().filter(|_| 0 < left) else { continue };
        let Need::One(_) = &shape.need else { continue };
        let (of, state, hold) = (pod.of, round.nodes[node].state, &holds[node][entry]);
        let Some((gpu, pods)) = place(round, movers, node, hold, of.priority) else { continue };
        let pool = pool(state, round.options);
        let most = left.min(pods.map_or(usize::MAX, |it| it - 1)).min(most_pods(round, of));
        // It ends when it would have ended where it was.
        let end = last(hold, round.options).filter(|it| after(round.now, RENEWED_FOR) <= *it);
        let Some(end) = end else { continue };
        let key = (std::rc::Rc::as_ptr(&shape), group, of.priority, pool);
        let is_in_vain = failed.iter().any(|it| it.0 == key && most <= it.1);
        if most == 0 || is_in_vain || MAX_SHIFTS <= failed.len() {
            continue;
        }
        let all = candidates(round, &shape.need, group, &Used::default(), limits);
        // No pool gets more holds than it has.
        let is_of_pool = |it: &Candidate| self::pool(round.nodes[it.node].state, round.options) == pool;
        let all: Vec<Candidate> = all.into_iter().filter(is_of_pool).collect();
        let Some(place) = movers.choose(round, of, &all, most) else {
            failed.push((key, most));
            continue;
        };
        let until = after(round.now, lease(movers, (place.node, place.gpu)));
        if end < until {
            continue;
        }
        let old = holds[node].remove(entry);
        round.nodes[node].gpus[gpu].release(&old.claim.uid);
        add(round, holds, (place.node, place.gpu, place.device), old.claim, (old.since, until));
        // One set is evicted at a time.
        return;
    }
}

/// The GPU of a node that is held back, and how many pods have to be evicted there, where that is possible; `None` where the pods in the
/// way leave already or are gone.
fn place(
    round: &Round<'_>,
    movers: &Movers<'_>,
    node: usize,
    hold: &Hold,
    priority: i32,
) -> Option<(usize, Option<usize>)> {
    let ledger = &round.nodes[node];
    let position = ledger.gpus.iter().position(|it| it.state.name == hold.gpu)?;
    let (gpu, at) = (&ledger.gpus[position], (node, position));
    let device = gpu.soonest(&hold.profile)?;
    let pods = movers.set(gpu, at, device, priority).map(|it| movers.count(&it));
    let is_open = !ledger.is_unseen && pods != Some(0) && !movers.is_leaving(at);
    is_open.then_some((position, pods))
}

/// For how long a hold on a GPU is renewed: always long enough for pods that may be evicted there to end.
fn lease(movers: &Movers<'_>, gpu: (usize, usize)) -> Duration {
    (movers.needs(gpu) * 2).clamp(RENEWED_FOR, LONGEST_HOLD)
}

/// Until when a hold is renewed; `None` for one that is not.
pub(super) fn last(hold: &Hold, options: &Options) -> Option<Timestamp> {
    let last = after(hold.since.filter(|_| hold.is_ours)?, options.hold_for);
    (hold.until < last).then_some(last)
}

/// When it is renewed: when half of its time is over.
pub(super) fn renewal(hold: &Hold, lease: Duration) -> Timestamp {
    hold.until
        .checked_sub(SignedDuration::try_from(lease / 2).unwrap_or(SignedDuration::ZERO))
        .unwrap_or(hold.until)
}

/// Most GPUs that are held back.
struct Limits<'w> {
    namespace: usize,
    pools: BTreeMap<&'w str, usize>,
}

impl<'w> Limits<'w> {
    fn of(round: &Round<'w>) -> Self {
        let mut gpus: BTreeMap<&str, usize> = BTreeMap::new();
        for node in &round.world.nodes {
            *gpus.entry(pool(node, round.options)).or_default() += node.gpus.len();
        }
        let all = gpus.values().sum();
        let pools = gpus.iter().map(|(name, count)| (*name, part(*count, round.options.hold_pool)));
        Self { namespace: part(all, round.options.hold_namespace), pools: pools.collect() }
    }

    /// How many more GPUs may be held back for a namespace.
    fn left(&self, used: &Used<'_>, namespace: &str) -> usize {
        self.namespace.saturating_sub(used.namespaces.get(namespace).copied().unwrap_or(0))
    }
}

/// GPUs held back, by namespace and by pool of nodes.
#[derive(Debug, Default)]
struct Used<'w> {
    namespaces: BTreeMap<&'w str, usize>,
    pools: BTreeMap<&'w str, usize>,
}

impl<'w> Used<'w> {
    fn of(round: &Round<'w>, holds: &[Vec<Hold>]) -> Self {
        let mut used = Self::default();
        let all = round.nodes.iter().zip(holds).flat_map(|(node, all)| all.iter().map(|it| (node.state, it)));
        for (node, hold) in all.filter(|it| round.now < it.1.until) {
            if let Some(pod) = round.pods.iter().find(|it| it.claim.uid == hold.claim.uid) {
                used.add(node, &pod.of.namespace, 1, round.options);
            }
        }
        used
    }

    fn add(&mut self, node: &'w NodeState, namespace: &'w str, count: usize, options: &Options) {
        *self.namespaces.entry(namespace).or_default() += count;
        *self.pools.entry(pool(node, options)).or_default() += count;
    }
}

/// A part of a number of GPUs; one at least.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "the numbers are small and not negative"
)]
fn part(count: usize, part: f64) -> usize {
    ((count as f64 * part.clamp(0.0, 1.0)) as usize).max(1)
}

/// The pool that a node is in.
fn pool<'w>(node: &'w NodeState, options: &Options) -> &'w str {
    let labels = node.node.metadata.labels.as_ref();
    labels.and_then(|it| it.get(&options.pool_label)).map_or("", String::as_str)
}

/// How many more GPUs of a node may be held back for pods of a group.
fn room(round: &Round<'_>, group: usize, node: usize, used: &Used<'_>, limits: &Limits<'_>) -> usize {
    let ledger = &round.nodes[node];
    let state = ledger.state;
    let acts = state.takes_part && (state.counts || state.follows && !state.is_a_persons());
    if !acts || ledger.is_unseen || !round.eligibility.takes(group, node) {
        return 0;
    }
    let of = |all: &BTreeMap<&str, usize>| all.get(pool(state, round.options)).copied().unwrap_or(0);
    of(&limits.pools).saturating_sub(of(&used.pools))
}

/// All places that can be held back for a claim for one device.
fn candidates(
    round: &Round<'_>,
    need: &Need,
    group: usize,
    used: &Used<'_>,
    limits: &Limits<'_>,
) -> Vec<Candidate> {
    let mut all = Vec::new();
    let Need::One(choices) = need else { return all };
    let hold_from = round.options.hold_from;
    for (node, ledger) in round.nodes.iter().enumerate() {
        if room(round, group, node, used, limits) == 0 {
            continue;
        }
        for (gpu, of) in ledger.gpus.iter().enumerate().filter(|(_, it)| !it.is_reserved()) {
            let choices = || choices.get(&std::ptr::from_ref(of.kind)).into_iter().flat_map(|it| it.iter());
            let size = |it: &Choice| of.kind.devices[usize::from(it.device)].size;
            let is_alone = |it: &Choice| of.kind.alone >> it.device & 1 == 1;
            // A claim that takes a 3g, too, waits for that.
            let rank = |it: &Choice| (it.alternative, size(it));
            let others =
                choices().filter(|it| of.kind.is_large(it.device.into(), hold_from) && !is_alone(it));
            let best = others.map(rank).min();
            for choice in choices() {
                let (device, size) = (usize::from(choice.device), size(choice));
                let has_better = best.is_some_and(|it| it < rank(choice));
                if !of.kind.gets_turns(device, hold_from) || has_better {
                    continue;
                }
                let Some(held) = of.in_the_way(device) else { continue };
                let memory = super::kind::members(held).map(|it| of.kind.devices[it].size).sum();
                let (alternative, claims) = (choice.alternative, held.count_ones());
                all.push(Candidate { alternative, claims, memory, size, node, gpu, device });
            }
        }
    }
    all
}
