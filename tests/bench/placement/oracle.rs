//! The bound: an allocator that may move everything that runs, at any time and at no cost.

use std::collections::{BTreeSet, HashMap};

use crate::node::{Node, has_room, take};

/// How many of each profile there are.
type Counts = Vec<u8>;

/// Answers whether a number of instances fits on the GPUs of a node in some way.
pub(crate) struct Oracle {
    /// What one GPU can hold at most.
    fillings: Vec<Counts>,
    known: HashMap<(Counts, usize), bool>,
}

impl Oracle {
    /// For a node and the profiles that are asked for.
    pub(crate) fn new(node: &Node, profiles: &[usize]) -> Self {
        let mut all = BTreeSet::new();
        let devices: Vec<usize> = (0..node.devices.len())
            .filter(|it| node.devices[*it].gpu == 0 && profiles.contains(&node.devices[*it].profile))
            .collect();
        fill(node, &devices, &node.full, &mut vec![0; node.profiles.len()], &mut all);
        let is_within = |small: &Counts, large: &Counts| small.iter().zip(large).all(|(it, most)| it <= most);
        let is_most = |it: &&Counts| !all.iter().any(|other| other != *it && is_within(it, other));
        Self { fillings: all.iter().filter(is_most).cloned().collect(), known: HashMap::new() }
    }

    /// Whether these instances fit on so many GPUs.
    pub(crate) fn fits(&mut self, counts: &Counts, gpus: usize) -> bool {
        let Some(profile) = counts.iter().rposition(|it| 0 < *it) else { return true };
        if gpus == 0 {
            return false;
        }
        let key = (counts.clone(), gpus);
        if let Some(known) = self.known.get(&key) {
            return *known;
        }
        // Some GPU has one of this profile; what else it has is one of its fillings.
        let rests: BTreeSet<Counts> = self
            .fillings
            .iter()
            .filter(|it| 0 < it[profile])
            .map(|it| counts.iter().zip(it).map(|(count, room)| count.saturating_sub(*room)).collect())
            .collect();
        let fits = rests.iter().any(|it| self.fits(it, gpus - 1));
        self.known.insert(key, fits);
        fits
    }
}

fn fill(node: &Node, devices: &[usize], left: &[u32], counts: &mut Counts, all: &mut BTreeSet<Counts>) {
    all.insert(counts.clone());
    for (index, device) in devices.iter().map(|it| &node.devices[*it]).enumerate() {
        if has_room(left, &device.cost) {
            let mut rest = left.to_vec();
            take(&mut rest, &device.cost);
            counts[device.profile] += 1;
            fill(node, &devices[index + 1..], &rest, counts, all);
            counts[device.profile] -= 1;
        }
    }
}
