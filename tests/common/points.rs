//! Where a driver can die: at file operations, at writes to the kubelet and at calls of NVML.

use std::collections::HashMap;
use std::fmt;

use nvml_sim::{Action, Fault};

use super::shim::{Action as Disk, Met, Op};
use super::victim::Victim;

/// Where the driver dies.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// At a file operation: its kind, how many of the same kind come before it, and for people its path.
    File(Op, u32, String),
    /// At a write to the kubelet.
    Reply(u32),
    /// At a call of NVML: its name, GPU, and how many of the same come before it.
    Nvml(String, Option<usize>, u32),
}

/// Whether the operation takes place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Before,
    After,
}

/// A moment at which the driver dies.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    pub(crate) place: Place,
    pub(crate) side: Side,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = if self.side == Side::Before { "before" } else { "after" };
        match &self.place {
            Place::File(op, index, path) => write!(f, "{side} {} {index}, `{path}`", op.name()),
            Place::Reply(index) => write!(f, "{side} reply {index}"),
            Place::Nvml(call, gpu, skip) => write!(f, "{side} {call} {skip} of GPU {gpu:?}"),
        }
    }
}

/// The driver will die at this point.
pub(crate) fn arm(victim: &Victim, point: &Point) {
    let disk = match point.side {
        Side::Before => Disk::CrashBefore,
        Side::After => Disk::CrashAfter,
    };
    victim.shim.forget();
    match &point.place {
        Place::File(op, index, _) => victim.shim.arm(disk, *index, Some(1), &[*op]),
        Place::Reply(index) => victim.shim.arm(disk, *index, Some(1), &[Op::Reply]),
        Place::Nvml(call, gpu, skip) => {
            let action = if point.side == Side::Before { Action::CrashBefore } else { Action::CrashAfter };
            let fault = Fault { gpu: *gpu, skip: *skip, times: Some(1), ..Fault::new(call, action) };
            victim.lab.sim.inject(fault).unwrap();
        }
    }
}

/// Nothing will happen to the driver any more.
pub(crate) fn disarm(victim: &Victim) {
    victim.shim.disarm();
    victim.lab.sim.clear_faults().unwrap();
}

/// The points of what was met, in the order in which they came: both sides of each change, and of the calls between two
/// changes that only read, which are equivalent, the first; all of them with `all`.
pub(crate) fn points(met: Vec<Met>, calls: impl Iterator<Item = nvml_sim::Call>, all: bool) -> Vec<Point> {
    let mut before: Vec<Op> = Vec::new();
    let mut places: Vec<(u64, Place, bool)> = Vec::new();
    for it in met {
        let index = u32::try_from(before.iter().filter(|op| **op == it.op).count()).unwrap();
        before.push(it.op);
        let place = match it.op {
            Op::Reply => Place::Reply(index),
            op => Place::File(op, index, it.path),
        };
        places.push((it.at_us, place, true));
    }
    let mut seen: HashMap<(String, Option<usize>), u32> = HashMap::new();
    for it in calls {
        let count = seen.entry((it.call.clone(), it.gpu)).or_default();
        let changes = ["Create", "Destroy", "SetMigMode"].iter().any(|word| it.call.contains(word));
        places.push((it.began_us, Place::Nvml(it.call, it.gpu, *count), changes));
        *count += 1;
    }
    places.sort_by_key(|it| it.0);
    let mut points = Vec::new();
    let mut after_change = true;
    for (_, place, changes) in places {
        let is_first = after_change;
        after_change = changes;
        if changes || all {
            points.push(Point { place: place.clone(), side: Side::Before });
            points.push(Point { place, side: Side::After });
        } else if is_first {
            points.push(Point { place, side: Side::Before });
        }
    }
    points
}
