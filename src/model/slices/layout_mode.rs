//! What is published where the API server keeps no counters: devices that don't overlap, by layout. Pure.
//!
//! Nothing is published in place of a device before it is certain that no claim has it; see `transition`.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::inventory::Inventory;
use crate::layout::{Decision, GpuLayout, apply_held_back, hidden};

use super::memory::Memory;
use super::pool::Pool;
use super::publication::Publication;
use super::world::{CounterSupport, GATE_RETRY, Mode, NodeView, Published, Question, RESYNC, World};

/// Why nothing is published while the node's label is not known: free space must not be cut twice.
pub(super) const NO_LABELS: &str = "the node's labels are not read yet; the driver's service account must be allowed to list and watch nodes";

/// What the layouts allow at the moment.
pub(super) struct Target {
    pub(super) inventory: Inventory,
    /// What claims have.
    pub(super) held: BTreeSet<String>,
    /// When to look again.
    pub(super) pause: Duration,
    status: Publication,
}

impl Target {
    /// How it stands once it is published in so many slices.
    pub(super) fn status(self, count: usize) -> Publication {
        match self.status {
            Publication::Layout { revision, devices, waiting, settling, .. } => {
                Publication::Layout { revision, slices: count, devices, waiting, settling }
            }
            other => other,
        }
    }
}

/// How GPUs are to be cut. Where counters are insisted on and dropped, they stay whole.
fn layouts<'a>(world: &World<'a>, inventory: &Inventory) -> Cow<'a, Decision> {
    match world.settings.mode {
        Mode::Partitionable => {
            let whole = inventory.gpus.iter().map(|it| (it.counter_set.clone(), GpuLayout::Whole));
            Cow::Owned(Decision { layouts: whole.collect(), ..Decision::default() })
        }
        Mode::Auto | Mode::Layout => Cow::Borrowed(world.layout),
    }
}

/// Whether other devices are to be published because of what claims hold now. What was allocated and not prepared when the node
/// was as in `seen` still is; what was prepared and is not any more may be free.
pub(super) fn makes_room(memory: &Memory, world: &World<'_>, seen: &NodeView<'_>) -> bool {
    let now = &world.node;
    let decision = layouts(world, now.inventory);
    let held = now.held | &(&memory.allocated - seen.held);
    wanted(now.inventory, &decision, &held) != memory.decided().cloned().collect()
}

/// What is to be published once nothing is waited for any more, if claims hold this.
fn wanted(inventory: &Inventory, decision: &Decision, held: &BTreeSet<String>) -> BTreeSet<String> {
    let names = apply_held_back(inventory, &decision.layouts, &decision.held_back, held).inventory.names();
    &names - &hidden(inventory, &decision.held_back, held)
}

/// What the layouts allow at the moment; nothing where they are not known.
pub(super) fn target(
    memory: &mut Memory,
    world: &World<'_>,
    inventory: &Inventory,
    published: &Published,
    now: Instant,
) -> Result<Option<Target>, Question> {
    let insists = world.settings.mode == Mode::Partitionable;
    let decision = layouts(world, inventory);
    if decision.revision == 0 && !insists && !inventory.gpus.is_empty() {
        return Ok(None);
    }
    let prepared = world.node.held;
    let pool = memory.pool(published);
    let (read_at, is_held_up) = read_claims(memory, world, inventory, &decision, pool.as_ref(), now)?;
    let held = prepared | &memory.allocated;
    let target = apply_held_back(inventory, &decision.layouts, &decision.held_back, &held);
    let hidden = hidden(inventory, &decision.held_back, &held);
    let next = memory.step(inventory, &target.inventory, pool.as_ref(), (prepared, &hidden), read_at);

    let devices = next.devices().count();
    let settling = !memory.is_open()
        || memory.transition.is_settling() && next.names() != &target.inventory.names() - &hidden;
    let status = if insists {
        let withheld = inventory.devices().count().saturating_sub(devices);
        let support = world.gates.counters.answer.unwrap_or(CounterSupport::Dropped);
        Publication::WithoutCounters { support, devices, withheld }
    } else {
        let (revision, waiting) = (decision.revision, target.waiting);
        Publication::Layout { revision, slices: 0, devices, waiting, settling }
    };
    let gate = if world.settings.mode == Mode::Layout { RESYNC } else { GATE_RETRY };
    // No event says when claims that are allocated, but not prepared, are released.
    let claims = if is_held_up { world.settings.settle_time } else { RESYNC };
    Ok(Some(Target { inventory: next, held, pause: gate.min(claims), status }))
}

/// Takes note of which devices are allocated, if something is to change. Returns from when the answer is, and whether allocations
/// that are not prepared stand in the way of a layout.
fn read_claims(
    memory: &mut Memory,
    world: &World<'_>,
    inventory: &Inventory,
    decision: &Decision,
    published: Option<&Pool>,
    now: Instant,
) -> Result<(Instant, bool), Question> {
    let held = world.node.held;
    let by_node = wanted(inventory, decision, held);
    let is_there = published.is_some_and(|it| it.is_open && !it.is_counted && it.devices == by_node);
    // What was read for another reason is used.
    if is_there && memory.transition.next().is_none() && world.claims.is_none() {
        memory.allocated.clear();
        return Ok((now, false));
    }
    let claims = world.claims()?;
    memory.allocated.clone_from(&claims.allocated);
    let possible = wanted(inventory, decision, &(held | &memory.allocated));
    Ok((claims.read_at, possible != by_node))
}
