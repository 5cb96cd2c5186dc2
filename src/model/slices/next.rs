//! The publishing step, and waiting for claims to be released without lists of the claims of the cluster. Pure.
//!
//! No event reports the release of a claim that was never prepared. So where something is withheld, or a layout is held up, because
//! of such claims, they are looked at again and again. A list finds all claims; whether those that were found still have their
//! devices, reads of these few claims show.
//!
//! A round that would list the claims is played with what the last list found instead, and with what was prepared since. Where
//! that changes nothing, the claims that were found are read, and as long as all of them have their devices, nothing is done and
//! nothing is learned. Otherwise the claims are listed, and the list decides, as it would have without this. So is it where
//! something was withdrawn a settle time ago or less: then only a list shows who was given it at the last moment. Afterwards a claim that
//! the last list did not find can only have been given what is published, which stays published where nothing is done.

use std::time::{Duration, Instant};

use super::diff::diff;
use super::found::Found;
use super::memory::Memory;
use super::step::{Plan, step};
use super::world::{Claims, GATE_RETRY, Question, World};
use crate::hash::fnv1a;

/// The longest pause between two looks at claims that were found.
const LONGEST_PAUSE: Duration = GATE_RETRY;

/// Decides what to publish, or what to read first: then the same world has to be asked again, with the same `now`, and with what
/// was read.
pub fn next(world: &World<'_>, memory: &Memory, now: Instant) -> Result<Plan, Question> {
    match (step(world, memory, now), world.claims) {
        (Ok(mut plan), Some(claims)) => {
            plan.memory.found = Some(Found::by(claims, world.node.held));
            Ok(plan)
        }
        (Err(Question::Claims), _) => wait_for_releases(world, memory, now).unwrap_or(Err(Question::Claims)),
        (other, _) => other,
    }
}

/// The round where the claims would have to be listed; `None` where nothing but the list will do.
fn wait_for_releases(world: &World<'_>, memory: &Memory, now: Instant) -> Option<Result<Plan, Question>> {
    let inventory = world.node.inventory;
    let mut found = memory.found.clone().filter(|_| !memory.is_settling(inventory, now))?;
    let prepared = world.node.held;
    found.pending.retain(|it| !prepared.contains(it));
    let allocated = prepared.difference(&found.left_over).chain(&found.pending).cloned().collect();
    let claims = Claims { read_at: now, allocated };
    let plan = match step(&World { claims: Some(&claims), ..*world }, memory, now) {
        Ok(plan) => plan,
        Err(question) => return Some(Err(question)),
    };
    let is_as_published = |slices| diff(slices, world.published.map_or(&[][..], |it| &it.slices)).is_empty();
    if plan.memory.is_settling(inventory, now) || !plan.slices.is_none_or(is_as_published) {
        return None;
    }
    let Some(still) = world.still_allocated else { return Some(Err(Question::Releases)) };
    if !found.pending.is_subset(still) {
        return None;
    }
    let settle = world.settings.settle_time;
    let pause = match memory.has_left_out() {
        // What it takes looks free.
        true => settle,
        false => pause(found.looks, world.published.map_or("", |it| &it.owner.node), settle),
    };
    found.looks = found.looks.saturating_add(1);
    let mut memory = memory.clone();
    memory.found = Some(found);
    Some(Ok(Plan { slices: None, status: plan.status, wake: now + pause, memory }))
}

/// How long to wait after so many looks: twice as long each time, and up to a quarter longer, differently on each node and each time.
fn pause(looks: u32, node: &str, settle: Duration) -> Duration {
    let pause = settle.saturating_mul(2_u32.saturating_pow(looks)).min(LONGEST_PAUSE);
    let spread = fnv1a(format!("{node} {looks}").as_bytes()) % 256;
    pause + pause / 4 * u32::try_from(spread).unwrap_or_default() / 256
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_differ_between_nodes_and_looks() {
        let settle = Duration::from_secs(10);
        for (looks, least) in [(0, 10), (1, 20), (2, 30), (3, 30), (u32::MAX, 30)] {
            let least = Duration::from_secs(least);
            let pauses: BTreeSet<Duration> =
                (0..100).map(|it| pause(looks, &format!("gpu-node-{it}"), settle)).collect();
            assert!(pauses.iter().all(|it| least <= *it && *it < least * 5 / 4), "{looks}: {pauses:?}");
            assert!(50 < pauses.len(), "{looks}: {pauses:?}");
        }
        let again: BTreeSet<Duration> = (10..20).map(|it| pause(it, "gpu-node-1", settle)).collect();
        assert!(5 < again.len(), "nodes that met once do not meet every time: {again:?}");
    }
}
