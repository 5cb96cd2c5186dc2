//! GPUs to hold back for a pod with several devices: all that it needs, on one node and at once, so that two pods never wait for each
//! other's.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::kind::members;
use super::offer::Pick;
use super::round::{MAX_FITS, Round};
use super::shape::Shape;

/// The node and its devices that can be held back with the fewest claims in the way. The allocator says what the pod would get of a
/// node whose other GPUs were empty; nothing where that is not only devices that GPUs are held back for. `most` is how many GPUs of a
/// node may be held back.
pub(super) fn choose<'w>(
    round: &mut Round<'w>,
    shape: &Rc<Shape>,
    namespace: &'w str,
    most: &[usize],
) -> Option<(usize, Vec<Pick>)> {
    let in_use = |node: usize| {
        let gpus = round.nodes[node].gpus.iter().filter(|it| !it.is_reserved());
        gpus.map(|it| it.held.count_ones()).sum::<u32>()
    };
    let mut order: Vec<usize> = (0..round.nodes.len()).filter(|it| 0 < most[*it]).collect();
    order.sort_by_cached_key(|it| (in_use(*it), *it));
    let mut fits = Vec::new();
    for node in order {
        let Some(picks) = round.ask_emptied(node, shape, namespace) else { continue };
        if picks.len() <= most[node]
            && let Some(cost) = cost(round, node, &picks)
        {
            fits.push((cost, node, picks));
        }
        if fits.len() == MAX_FITS {
            break;
        }
    }
    fits.into_iter().min().map(|(_, node, picks)| (node, picks))
}

/// Claims in the way and their memory; `None` where GPUs are not held back for these devices.
fn cost(round: &Round<'_>, node: usize, picks: &[Pick]) -> Option<(u32, u32)> {
    let gpus: BTreeSet<usize> = picks.iter().map(|it| it.0).collect();
    // A hold is for one device.
    if gpus.len() < picks.len() {
        return None;
    }
    let mut cost = (0, 0);
    for (gpu, device) in picks {
        let gpu = &round.nodes[node].gpus[*gpu];
        let held =
            gpu.in_the_way(*device).filter(|_| gpu.kind.gets_turns(*device, round.options.hold_from))?;
        cost.0 += held.count_ones();
        cost.1 += members(held).map(|it| gpu.kind.devices[it].size).sum::<u32>();
    }
    Some(cost)
}
