//! What is left of nodes while pods are given devices in thought.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;

use super::given::Source;
use super::gpu::{GpuLedger, Score};
use super::kind::{Choice, Kind, Set, members};
use super::world::{NodeState, Profiles, Progress};

/// One node.
#[derive(Debug, Clone)]
pub(super) struct NodeLedger<'w> {
    pub(super) state: &'w NodeState,
    /// Whether the state is what was written, and not yet what the world shows.
    pub(super) is_unseen: bool,
    pub(super) gpus: Vec<GpuLedger<'w>>,
    /// Whether it may be changed now.
    pub(super) may_change: bool,
    /// Whether it is changed in this round.
    pub(super) changes: bool,
    /// What pods count on here.
    pub(super) counted_on: Profiles,
    /// Rises when something is taken.
    pub(super) version: u32,
}

impl<'w> NodeLedger<'w> {
    /// The node, with holds in force and what it is about to publish.
    pub(super) fn new(state: &'w NodeState, is_counted_on: bool, may_change: bool, now: Timestamp) -> Self {
        let mut node = Self {
            state,
            is_unseen: false,
            gpus: state.gpus.iter().map(GpuLedger::new).collect(),
            may_change,
            changes: false,
            counted_on: Profiles::new(),
            version: 0,
        };
        for hold in state.holds.iter().filter(|it| now < it.until) {
            if let Some(gpu) = node.gpus.iter_mut().find(|it| it.state.name == hold.gpu)
                && let Some(device) = gpu.soonest(&hold.profile)
            {
                gpu.reserve(&hold.claim.uid, device);
                // The hold lets the node publish it; no demand is needed for it.
                if gpu.fits(device) && gpu.room.published >> device & 1 == 0 {
                    gpu.expect(device);
                }
            }
        }
        node.keep_floor();
        if is_counted_on
            && state.progress == Progress::Pending
            && let Some(demand) = &state.demand
        {
            node.expect(&demand.profiles);
        }
        node
    }

    /// The node as if what claims have of it was free, and all of that on offer; nothing of GPUs that are held back or have a problem.
    pub(super) fn emptied(&self) -> Self {
        Self { gpus: self.gpus.iter().map(GpuLedger::emptied).collect(), ..self.clone() }
    }

    /// Keeps what the floor needs: what is published first, then what fits.
    fn keep_floor(&mut self) {
        if self.state.floor.is_empty() || self.state.counts {
            return;
        }
        for (profile, count) in &self.state.floor {
            let is = |kind: &Kind, it: usize| kind.devices[it].profile == *profile;
            let held: usize =
                self.gpus.iter().map(|gpu| members(gpu.held).filter(|it| is(gpu.kind, *it)).count()).sum();
            let mut missing = (*count as usize).saturating_sub(held);
            // The driver counts nothing of a GPU that is held back.
            for gpu in self.gpus.iter_mut().filter(|it| !it.is_reserved()) {
                for device in members(gpu.room.published).filter(|it| is(gpu.kind, *it)).take(missing) {
                    gpu.room.floor |= 1 << device;
                    missing -= 1;
                }
            }
            for _ in 0..missing {
                let Some(score) = self.best_of_profile(profile) else { break };
                let gpu = &mut self.gpus[score.gpu as usize];
                // No change takes its place; what is published there now can still be allocated.
                gpu.room.open &= !(gpu.kind.conflicts[score.device as usize] & !gpu.room.published);
            }
        }
    }

    /// Takes note of what a demand lets the node publish.
    fn expect(&mut self, demand: &BTreeMap<String, u32>) {
        // The largest first: what is small finds its place beside them.
        let size = |profile: &str| {
            let all = self.gpus.iter().flat_map(|it| &it.kind.devices);
            all.filter(|it| it.profile == profile).map(|it| it.size).max()
        };
        let mut order: Vec<(&String, &u32)> = demand.iter().collect();
        order.sort_by_key(|it| std::cmp::Reverse(size(it.0)));
        for (profile, count) in order {
            let is = |kind: &Kind, it: usize| kind.devices[it].profile == *profile;
            // What a GPU offers that is held back serves no demand.
            let free = self
                .gpus
                .iter()
                .filter(|it| !it.is_reserved())
                .map(|gpu| members(gpu.room.published).filter(|it| is(gpu.kind, *it)).count());
            let missing = (*count as usize).saturating_sub(free.sum());
            for _ in 0..missing {
                let Some(score) = self.best_of_profile(profile) else { break };
                self.gpus[score.gpu as usize].expect(score.device as usize);
            }
        }
    }

    /// Where a demand or the floor is served; not on a GPU that is held back.
    fn best_of_profile(&self, profile: &str) -> Option<Score> {
        let gpus = self.gpus.iter().enumerate().filter(|(_, it)| !it.is_reserved());
        let all = gpus.flat_map(|(position, gpu)| {
            let devices = gpu.kind.devices.iter().enumerate().filter(|(_, it)| it.profile == *profile);
            devices
                .filter(|(it, _)| {
                    gpu.fits(*it)
                        && (gpu.room.published | gpu.room.coming) >> *it & 1 == 0
                        && (gpu.room.floor | gpu.room.coming) & gpu.kind.conflicts[*it] == 0
                })
                .filter_map(move |(it, _)| {
                    let choice = Choice { alternative: 0, device: u8::try_from(it).ok()? };
                    Some(gpu.score(position, choice, Source::Change, false))
                })
        });
        all.min()
    }

    /// The best device of a source for a claim that takes any of these, by kind of GPU.
    pub(super) fn best<'a>(
        &self,
        choices: impl Fn(&'w Kind) -> &'a [Choice],
        source: Source,
        claim: &str,
    ) -> Option<Score> {
        let fresh = !self.changes;
        let gpus = self.gpus.iter().enumerate().filter(|_| source != Source::Change || !self.state.counts);
        gpus.filter_map(|(position, gpu)| gpu.best(position, choices(gpu.kind), (source, fresh), claim)).min()
    }

    /// Gives a device to a pod.
    pub(super) fn give(&mut self, gpu: usize, device: usize, source: Source) {
        self.give_equal(gpu, device, 0, source);
    }

    /// Gives a device to a claim that others of these choices may serve as well.
    pub(super) fn give_one_of<'a>(
        &mut self,
        gpu: usize,
        device: usize,
        choices: impl Fn(&'w Kind) -> &'a [Choice],
        (source, claim): (Source, &str),
    ) {
        let ledger = &self.gpus[gpu];
        let rank = |it: &Choice| (it.alternative, &ledger.kind.devices[usize::from(it.device)].profile);
        let choices = choices(ledger.kind);
        let chosen = choices.iter().find(|it| usize::from(it.device) == device).map(rank);
        let equal = choices.iter().filter(|it| Some(rank(it)) == chosen);
        let equal = equal.fold(0, |set, it| set | 1 << it.device) & !ledger.barred(claim);
        self.give_equal(gpu, device, equal, source);
    }

    fn give_equal(&mut self, gpu: usize, device: usize, equal: Set, source: Source) {
        let ledger = &mut self.gpus[gpu];
        ledger.give(device, equal, source);
        let profile = &ledger.kind.devices[device].profile;
        // The hold brings what a GPU has that is held back; a demand is for the others.
        match self.counted_on.get_mut(profile) {
            _ if ledger.is_reserved() => {}
            Some(count) => *count += 1,
            None => drop(self.counted_on.insert(profile.clone(), 1)),
        }
        self.changes |= source == Source::Change;
        self.version += 1;
    }
}
