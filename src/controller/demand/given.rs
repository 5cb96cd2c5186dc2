//! Devices that were given to pods in thought. Which of several equal devices a pod gets is open until the scheduler has decided, so
//! they make room for each other where that serves one pod more.

use std::cmp::Reverse;

use super::kind::{Kind, Set, members};

/// Ways that are tried to place the devices of one GPU; a GPU has seven or fewer, and most of them are equal.
const MAX_TRIES: usize = 2_000;

/// How a device is had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Source {
    /// It is offered.
    Published,
    /// The node is about to publish it.
    Coming,
    /// The node would have to change.
    Change,
}

/// A device that a pod counts on.
#[derive(Debug, Clone)]
pub(super) struct Given {
    pub(super) device: usize,
    /// Devices of the same profile that serve the pod as well; itself included.
    pub(super) equal: Set,
    pub(super) source: Source,
}

/// What can be had of a GPU.
#[derive(Debug, Clone)]
pub(super) struct Room {
    /// Devices that what is held and given leaves room for.
    pub(super) open: Set,
    pub(super) left: Vec<i64>,
    /// Free devices that are offered.
    pub(super) published: Set,
    /// Free devices that the node is about to offer.
    pub(super) coming: Set,
    /// Devices that the floor needs.
    pub(super) floor: Set,
}

impl Room {
    /// That of an empty GPU that offers nothing yet.
    pub(super) fn empty(kind: &Kind) -> Self {
        let open = match kind.devices.len() {
            128.. => Set::MAX,
            count => (1 << count) - 1,
        };
        Self { open, left: kind.totals.clone(), published: 0, coming: 0, floor: 0 }
    }

    pub(super) fn fits(&self, kind: &Kind, device: usize) -> bool {
        self.open & 1 << device != 0
            && self.left.iter().zip(&kind.costs[device]).all(|(left, cost)| cost <= left)
    }

    pub(super) fn take(&mut self, kind: &Kind, device: usize) {
        let gone = kind.conflicts[device];
        self.open &= !gone;
        self.published &= !gone;
        self.coming &= !gone;
        self.floor &= !gone;
        self.left.iter_mut().zip(&kind.costs[device]).for_each(|(left, cost)| *left -= cost);
    }

    /// Whether a change of the GPU could bring a device: the floor and what other pods are about to get stay as they are.
    pub(super) fn may_bring(&self, kind: &Kind, device: usize) -> bool {
        (self.floor | self.coming) & kind.conflicts[device] == 0 && self.fits(kind, device)
    }
}

/// The places of what was given, in its order, so that a change can bring a device, too; `None` where there are none. `room` is that
/// without what was given.
pub(super) fn around(device: usize, given: &[Given], room: &Room, kind: &Kind) -> Option<Vec<usize>> {
    let size = |it: usize| kind.devices[it].size;
    let needed = size(device) + given.iter().map(|it| size(it.device)).sum::<u32>();
    if kind.memory(room.open) < needed || !room.may_bring(kind, device) {
        return None;
    }
    let mut room = room.clone();
    room.take(kind, device);
    // The largest first; what is equal follows one another.
    let mut order: Vec<usize> = (0..given.len()).collect();
    let rank = |it: &usize| (Reverse(size(given[*it].device)), given[*it].equal, given[*it].source);
    order.sort_by_key(rank);
    let mut search = Search { given, order: &order, kind, tries: MAX_TRIES };
    let mut places = vec![0; given.len()];
    search.place(0, None, &room, &mut places).then_some(places)
}

struct Search<'a> {
    given: &'a [Given],
    order: &'a [usize],
    kind: &'a Kind,
    tries: usize,
}

impl Search<'_> {
    /// Places what is left from `step` on; `last` is the place of what comes before.
    fn place(&mut self, step: usize, last: Option<usize>, room: &Room, places: &mut [usize]) -> bool {
        let Some(&position) = self.order.get(step) else { return true };
        let (kind, given) = (self.kind, &self.given[position]);
        let is_equal = |it: &usize| {
            let other = &self.given[*it];
            (other.equal, other.source) == (given.equal, given.source)
        };
        // Which of two that are equal has which place does not matter.
        let is_first = step == 0 || !is_equal(&self.order[step - 1]);
        let can = |it: &usize| match given.source {
            Source::Published => room.published >> it & 1 == 1 && room.fits(kind, *it),
            // It is not known what the node makes of the demand that is written.
            Source::Coming => *it == given.device && room.fits(kind, *it),
            Source::Change => room.may_bring(kind, *it),
        };
        let devices: Vec<usize> = members(given.equal)
            .filter(|it| is_first || last.is_some_and(|last| last < *it))
            .filter(can)
            .collect();
        let more = self.order[step..].iter().take_while(|it| is_equal(it)).count();
        // The last of these places leaves none for the equal ones that follow.
        let usable = if given.source == Source::Coming {
            devices.len()
        } else {
            (devices.len() + 1).saturating_sub(more)
        };
        for device in devices.into_iter().take(usable) {
            if self.tries == 0 {
                return false;
            }
            self.tries -= 1;
            let mut left = room.clone();
            left.take(kind, device);
            places[position] = device;
            if self.place(step + 1, Some(device), &left, places) {
                return true;
            }
        }
        false
    }
}
