//! What is written of a round, what is remembered, and when to look again.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;

use super::decisions::{Decisions, Outcome, Prospect, Reason, Write};
use super::given::Source;
use super::ledger::NodeLedger;
use super::memory::{Memory, NodeMemory, UNSEEN, Unseen};
use super::movers::MAX_SET;
use super::round::{Pod, Round};
use super::shape::Need;
use super::turns;
use super::world::{Demand, Hold, NodeState, Profiles, Progress, after};

/// Puts a round together.
pub(super) fn outcome(round: &Round<'_>, holds: Vec<Vec<Hold>>, mut memory: Memory) -> Outcome {
    let mut writes = Vec::new();
    for (index, (node, holds)) in round.nodes.iter().zip(&holds).enumerate() {
        let Some(mut write) = write(round, node, holds, &memory) else { continue };
        if write.reason == Reason::Change {
            let serves = round.pods.iter().filter(|it| it.served == Some((Source::Change, index)));
            write.serves = serves.map(|it| it.of.uid.clone()).collect();
        }
        memory.wrote(&write, node.state, round.now);
        writes.push(write);
    }
    writes.sort_by(|a, b| (a.reason, &a.node).cmp(&(b.reason, &b.node)));
    remember_offers(round, &mut memory);
    let wake = wake(round, &writes, &holds, &memory);
    let prospects =
        round.pods.iter().filter_map(|pod| Some((pod.of.uid.clone(), prospect(round, pod, &holds)?)));
    let decisions = Decisions {
        writes,
        eviction: None,
        pods: prospects.collect(),
        unfollowed: unfollowed(round, &memory),
    };
    Outcome { decisions, memory, wake }
}

/// Nodes that do not follow what the controller has demanded of them.
fn unfollowed(round: &Round<'_>, memory: &Memory) -> Vec<String> {
    let is_late = |state: &NodeState| {
        let changed = memory.nodes.get(state.name()).map(|it| it.changed);
        state.progress == Progress::Pending
            && changed.is_some_and(|it| after(it, round.options.follow_within) <= round.now)
    };
    let is_demanded = |state: &NodeState| state.demand.as_ref().is_some_and(|it| it.renewed.is_some());
    let states = round.nodes.iter().map(|it| it.state).filter(|it| it.takes_part && is_demanded(it));
    states.filter(|it| it.is_refused || is_late(it)).map(|it| it.name().to_owned()).collect()
}

/// What is to be written of one node, if anything.
fn write(round: &Round<'_>, node: &NodeLedger<'_>, holds: &[Hold], memory: &Memory) -> Option<Write> {
    let state = node.state;
    if node.is_unseen {
        return None;
    }
    let write = |demand: Option<Profiles>, reason: Reason| Write {
        node: state.name().to_owned(),
        resource_version: state.resource_version.clone(),
        demand: demand.map(|profiles| Demand { renewed: Some(round.now), profiles }),
        holds: holds.to_vec(),
        reason,
        serves: Vec::new(),
    };
    let has_holds = holds != state.holds;
    let current = match &state.demand {
        // A person's demand stays.
        Some(Demand { renewed: None, .. }) => {
            return has_holds.then(|| Write { demand: state.demand.clone(), ..write(None, Reason::Holds) });
        }
        Some(Demand { renewed: Some(renewed), profiles }) => Some((*renewed, profiles)),
        None => None,
    };
    if node.changes {
        return Some(write(Some(node.counted_on.clone()), Reason::Change));
    }
    let Some((renewed, profiles)) = current else {
        return has_holds.then(|| write(None, Reason::Holds));
    };
    let follows = state.follows && !state.counts;
    let needed = if follows { common(profiles, &node.counted_on) } else { Profiles::new() };
    let changed = memory.nodes.get(state.name()).map_or(renewed, |it| it.changed);
    if needed.is_empty() && (!follows || after(changed, round.options.change_interval) <= round.now) {
        return Some(write(None, Reason::Remove));
    }
    let is_due = after(renewed, round.options.renew_after) <= round.now;
    match (needed == *profiles, has_holds) {
        (false, _) => Some(write(Some(needed), Reason::Reduce)),
        (true, true) => Some(write(Some(needed), Reason::Holds)),
        (true, false) if is_due && !needed.is_empty() => Some(write(Some(needed), Reason::Renew)),
        (true, false) => None,
    }
}

impl Memory {
    /// Takes note of a write.
    fn wrote(&mut self, write: &Write, state: &NodeState, now: Timestamp) {
        let known = self.nodes.remove(&write.node);
        let before = known.as_ref().map(|it| it.changed);
        let is_ours = |it: &Demand| it.renewed.is_some();
        let changed = match write.reason {
            Reason::Change => now,
            // Where nothing was demanded, nothing was changed lately.
            _ => before.unwrap_or(Timestamp::UNIX_EPOCH),
        };
        let node = NodeMemory {
            changed,
            written: write.demand.as_ref().filter(|it| is_ours(it)).map(|it| it.profiles.clone()),
            renewed: now,
            avoided: known.and_then(|it| it.avoided),
            unseen: Some(Unseen {
                at: now,
                before: (before, state.demand.clone(), state.holds.clone()),
                demand: write.demand.clone(),
                holds: write.holds.clone(),
            }),
        };
        self.nodes.insert(write.node.clone(), node);
    }
}

/// What is in both.
fn common(one: &Profiles, other: &Profiles) -> Profiles {
    let least = |(profile, count): (&String, &u32)| {
        let count = *count.min(other.get(profile)?);
        (0 < count).then(|| (profile.clone(), count))
    };
    one.iter().filter_map(least).collect()
}

/// Takes note of which pods are offered something.
fn remember_offers(round: &Round<'_>, memory: &mut Memory) {
    for pod in round.pods.iter().filter(|it| !it.is_elsewhere) {
        let is_offered = matches!(pod.served, Some((Source::Published, _))) && pod.of.unschedulable.is_some();
        if !is_offered {
            memory.offered.remove(&pod.of.uid);
            continue;
        }
        let since = memory.offered.entry(pod.of.uid.clone()).or_insert(round.now);
        if after(*since, round.options.offer_for) <= round.now {
            *since = round.now;
        }
    }
}

fn prospect(round: &Round<'_>, pod: &Pod<'_>, holds: &[Vec<Hold>]) -> Option<Prospect> {
    let Some((shape, _)) = &pod.asks else { return Some(Prospect::NotLookedAt) };
    if shape.claims.is_empty() {
        return None;
    }
    let name = |node: usize| round.nodes[node].state.name().to_owned();
    let held = || {
        let all = holds.iter().enumerate().flat_map(|(node, all)| all.iter().map(move |it| (node, it)));
        let mut own = all.filter(|(_, it)| it.claim.uid == pod.claim.uid && round.now < it.until);
        own.next().map(|(node, it)| Prospect::Held { node: name(node), gpu: it.gpu.clone() })
    };
    Some(match (&pod.served, &shape.need) {
        (Some((Source::Published, node)), _) => Prospect::Published { node: name(*node) },
        (Some((Source::Coming | Source::Change, node)), _) => Prospect::Coming { node: name(*node) },
        (None, Need::Nothing) => Prospect::Impossible,
        (None, _) if pod.is_elsewhere => Prospect::WaitsForSomethingElse,
        (None, _) => held().unwrap_or(if pod.is_unasked { Prospect::NotLookedAt } else { Prospect::Waits }),
    })
}

/// When something is due that no event reports.
fn wake(round: &Round<'_>, writes: &[Write], holds: &[Vec<Hold>], memory: &Memory) -> Option<Timestamp> {
    let options = round.options;
    let mut times = Vec::new();
    let written: BTreeMap<&str, &Write> = writes.iter().map(|it| (it.node.as_str(), it)).collect();
    let waits = round.pods.iter().any(|it| it.served.is_none() && it.asks.is_some());
    for node in &round.nodes {
        let name = node.state.name();
        let demand = match written.get(name) {
            Some(write) => write.demand.as_ref(),
            None => node.state.demand.as_ref(),
        };
        times.extend(demand.and_then(|it| it.renewed).map(|it| after(it, options.renew_after)));
        let known = memory.nodes.get(name);
        times.extend(known.and_then(|it| it.unseen.as_ref()).map(|it| after(it.at, UNSEEN)));
        if let Some(known) = known.filter(|_| waits || demand.is_some()) {
            times.push(after(known.changed, options.change_interval));
            times.extend(known.avoided);
            if node.state.progress == Progress::Pending || written.contains_key(name) {
                times.push(after(known.changed, options.follow_within));
            }
        }
    }
    for hold in holds.iter().flatten() {
        times.push(hold.until);
        times.extend(turns::last(hold, options).map(|_| turns::renewal(hold, turns::RENEWED_FOR)));
        times.extend(options.hold_after.map(|it| after(hold.until, it)));
    }
    for pod in round.pods.iter().filter(|it| it.served.is_none_or(|it| it.0 == Source::Published)) {
        let Some(since) = pod.of.unschedulable else { continue };
        times.push(after(since, options.patience));
        times.extend(options.hold_after.map(|it| after(since, it)));
        if options.evictions_per_hour.is_some() {
            times.extend((1..=MAX_SET).map(|it| after(since, options.consolidate_after.saturating_mul(it))));
        }
        let offered = memory.offered.get(&pod.of.uid);
        times.extend(
            offered
                .into_iter()
                .flat_map(|it| [options.offer_for, options.offer_for * 5].map(|pause| after(*it, pause))),
        );
    }
    times.into_iter().filter(|it| round.now < *it).min()
}
