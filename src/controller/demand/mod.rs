//! What nodes should publish, and which GPUs are held back, for the pods that wait. Pure.
//!
//! ```text
//! world (MigNodes, Nodes, pending pods, classes), memory, time -> decide -> what to write, memory, when to look again
//! ```
//!
//! Pods are served in thought, in the order of the scheduler (priority, then age), so that two do not count on one device:
//!
//! 1. by what nodes publish, or are about to publish because of a demand that is written already;
//! 2. by changes of nodes, of those whose last change is long enough ago: where no GPU that is whole or empty has to be cut, then
//!    where the fewest free devices are withdrawn. Each change serves at least one pod that nothing published serves. What the
//!    floor needs and what pods of step 1 count on stays. Devices that pods count on in thought make room for each other: a pod waits
//!    only if the GPU has no room for it beside the others, wherever they lie;
//! 3. those that have waited for long get a GPU held back: free devices that stand in the way are not offered until the claim has
//!    its device, or the hold ends;
//! 4. where pods that may be moved stand in the way on such a GPU, and each of them finds another place, they are evicted
//!    (`consolidate`, off by default).
//!
//! Which devices serve a claim is what the allocator says ([`dra_allocator`]), of all possible devices of a GPU and not only of
//! those that are published. Equal GPUs and equal pods are asked about once.
//!
//! Nothing has to be kept: [`Memory`] makes decisions better, and [`decide`] is safe without it. A demand is not removed within
//! the interval after a change, so a node without one may change at once; one with a demand was changed at its renewal at the
//! latest.

mod answers;
mod compose;
mod consolidate;
mod convert;
mod decisions;
mod eligible;
mod evictions;
mod given;
mod gpu;
pub mod kind;
mod ledger;
mod memory;
mod movers;
mod offer;
mod requests;
mod round;
mod several;
mod shape;
mod share;
mod turns;
pub mod world;

use k8s_openapi::jiff::Timestamp;

pub use convert::Described;
pub use decisions::{Decisions, Evicted, Eviction, Outcome, PodKey, Prospect, Reason, Write};
pub use kind::{Kind, Kinds, Possible};
pub use memory::Memory;
pub use world::{
    ClaimKey, Demand, GpuState, Hold, MovablePod, NodeState, Options, PendingPod, Placed, Profiles, Progress,
    World,
};

/// Decides what nodes should publish and which GPUs are held back.
#[must_use]
pub fn decide(world: &World, options: &Options, memory: &Memory, now: Timestamp) -> Outcome {
    let mut memory = memory.clone();
    memory.read(world, options, now);
    let written: Vec<Option<NodeState>> = world.nodes.iter().map(|it| memory.as_written(it)).collect();
    let mut round = round::Round::new(world, &written, options, &memory, now);
    round.serve();
    consolidate::read(&round, &mut memory);
    let mut movers = movers::Movers::new(&round, &memory);
    let holds = turns::holds(&mut round, &mut movers);
    let eviction = consolidate::eviction(&mut round, &mut movers, &mut memory);
    memory.compiled.used += round.kinds_of_pods();
    let mut outcome = compose::outcome(&round, holds, memory);
    outcome.wake = outcome.wake.into_iter().chain(consolidate::wake(&round)).min();
    outcome.decisions.eviction = eviction;
    outcome
}
