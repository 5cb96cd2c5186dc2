//! What to publish next. Pure: [`step`] is the only place that decides it.
//!
//! ```text
//! world (node, layout, gates, slices, claims) + memory + now -> what to read first | slices, status, wake time, memory
//! ```
//!
//! It reads before it writes, every time: the kubelet wipes a node's slices at its start, people delete things, and a list of
//! one node's slices is cheap. A list of all claims is not, so it is asked for only where something of which that is not known
//! is about to go. Where the API server drops counters, the step publishes what a layout says, which needs none.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::inventory::{GpuInventory, Inventory};
use crate::placement::Ranking;
use k8s_openapi::api::resource::v1::ResourceSlice;

use super::layout_mode;
use super::memory::Memory;
use super::publication::Publication;
use super::render::{keep_order, names as names_in, render};
use super::taint::taint;
use super::undescribed::publish_undescribed;
use super::world::{CounterSupport, GATE_RETRY, Mode, Published, Question, RESYNC, World};

/// Why nothing can be allocated for a while.
const CLOSED: &str = "kube-apiserver keeps shared counters now; every placement is published once no scheduler can act on what \
                      was published without them, see --settle-time";

/// What to do.
#[derive(Debug)]
pub struct Plan {
    /// The whole pool as it should be; `None` where it stays as it is.
    pub slices: Option<Vec<ResourceSlice>>,
    /// How the slices stand once this is written.
    pub status: Publication,
    /// When to look again at the latest; see also [`Memory::written`].
    pub wake: Instant,
    /// What to remember, also where the write fails.
    pub memory: Memory,
}

/// Decides what to publish, or what to read first. Refuses to ask where nothing could come of the answer, but knows no other way to
/// learn what claims have than a list of them all; see `next`.
pub(super) fn step(world: &World<'_>, memory: &Memory, now: Instant) -> Result<Plan, Question> {
    let keep = |reason: &str, wait: Duration, memory: Memory| {
        let status = Publication::Pending { reason: reason.to_owned() };
        Ok(Plan { slices: None, status, wake: now + wait, memory })
    };
    let node = world.node;
    match node.inputs {
        // An allocated device is never withdrawn, and these cannot be described now.
        Err(reason) if !node.held.is_empty() => return keep(reason, RESYNC, memory.clone()),
        _ => {}
    }
    let published = world.published()?;
    match node.inputs {
        // At a boot NVML may come late. Slices without devices would say that what was published before is withdrawn.
        Err(reason) if memory.is_to_publish_again(published) => return keep(reason, RESYNC, memory.clone()),
        _ => {}
    }
    let can_be_cut = node.inventory.gpus.iter().any(GpuInventory::can_be_cut);
    let has_gate = world.settings.mode != Mode::Layout && can_be_cut;
    if has_gate && !world.gates.counters.is_fresh(now) {
        return Err(Question::Counters);
    }
    let mut memory = memory.clone();
    memory.check_resumed(published, world.settings.settle_time);
    let before = memory.retain_allocated(world, published, now)?;
    let inventory = node.inventory_with(memory.retained());
    let (inventory, soon) = memory.settle_shares(world, &inventory, published, now)?;
    if world.is_counted() {
        return counted(Round { world, published, before: &before, now, soon }, memory, &inventory, has_gate);
    }
    match layout_mode::target(&mut memory, world, &inventory, published, now)? {
        None => keep(layout_mode::NO_LABELS, RESYNC, memory),
        Some(target) => {
            let ranking = Ranking::of(&target.inventory, &target.held, world.settings.placement);
            let slices = render(&target.inventory, &ranking, &published.owner);
            let round = Round { world, published, before: &before, now, soon };
            let slices = finish(round, &mut memory, slices, &ranking)?;
            let wake = now + soon.min(target.pause);
            let status = target.status(slices.len());
            Ok(Plan { slices: Some(slices), status, wake, memory })
        }
    }
}

/// What one round works with.
#[derive(Clone, Copy)]
struct Round<'a> {
    world: &'a World<'a>,
    published: &'a Published,
    /// What schedulers could see when this round began, of GPUs that can be cut.
    before: &'a BTreeSet<String>,
    now: Instant,
    /// When shared GPUs have to be looked at again.
    soon: Duration,
}

/// Everything, kept apart by counters.
fn counted(
    round: Round<'_>,
    mut memory: Memory,
    inventory: &Inventory,
    has_gate: bool,
) -> Result<Plan, Question> {
    let Round { world, published, before, now, soon } = round;
    let held = world.node.held | memory.retained();
    // An allocated device that stays published keeps its share, also beside one that is hidden and overlaps it.
    let offered = world.offered(inventory, &(&held | memory.known_allocated()));
    let ranking = Ranking::of(&offered, &held, world.settings.placement);
    let slices = render(&offered, &ranking, &published.owner);
    // An update keeps the counters that a slice already has, whatever the gate says now; a new slice would lose them.
    let creates = published.slices.len() < slices.len();
    let gate = &world.gates.counters;
    if has_gate
        && creates
        && gate.answer == Some(CounterSupport::Pool)
        && gate.asked.is_none_or(|it| it < now)
    {
        return Err(Question::Counters);
    }
    let shown = memory.show_counted(world, &offered, before, &held, now)?;
    let slices = if *shown == *offered { slices } else { render(&shown, &ranking, &published.owner) };
    let slices = finish(round, &mut memory, slices, &ranking)?;
    let status = if memory.is_open() {
        let devices = offered.devices().count();
        Publication::Complete { slices: slices.len(), devices, is_counted: has_gate }
    } else {
        Publication::Pending { reason: CLOSED.to_owned() }
    };
    let pause = if world.gates.may_be_rolling(now) { GATE_RETRY } else { RESYNC };
    Ok(Plan { slices: Some(slices), status, wake: now + soon.min(pause), memory })
}

/// Completes the rendered slices: devices that the node cannot describe, costs, order, taints.
fn finish(
    round: Round<'_>,
    memory: &mut Memory,
    mut slices: Vec<ResourceSlice>,
    ranking: &Ranking,
) -> Result<Vec<ResourceSlice>, Question> {
    let Round { world, published, before, now, .. } = round;
    let shown = slices.iter().map(|it| names_in(it).map(str::to_owned).collect::<Vec<_>>());
    let shown = shown.filter(|it| !it.is_empty()).collect();
    publish_undescribed(&mut slices, memory.undescribed(), world.is_counted(), &published.owner);
    memory.decide(shown, &mut slices, world.node.held, before);
    if !memory.is_open() {
        close(&mut slices);
    }
    let may_change = |slice: &ResourceSlice| memory.may_reorder(names_in(slice), now);
    for index in keep_order(&mut slices, &published.slices, ranking, may_change) {
        memory.reordered(names_in(&slices[index]), now + world.settings.reorder_interval);
    }
    memory.order_as(&slices);
    taint(&mut slices, world, published, now)?;
    Ok(slices)
}

/// Makes the pool one of which a slice seems to be missing: schedulers give nothing away from it.
fn close(slices: &mut [ResourceSlice]) {
    for slice in slices {
        slice.spec.pool.resource_slice_count += 1;
    }
}
