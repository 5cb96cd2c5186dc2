//! One GPU: how it serves what has to be free on it, and what of its published devices that withdraws.

use crate::inventory::{AllocatableDevice, DeviceKind, GpuInventory, take};

use super::apply::apply;
use super::choice::{GpuLayout, Layouts};
use super::fit::{Candidate, dropped, fit, fit_keeping};
use super::wanted::{Counts, LayoutInputs, Needs, add, is_adopted, profile};

/// How one GPU serves its needs.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Memory slices of published devices that go.
    pub(super) withdrawn: u32,
    /// `None` where it stays as it is.
    pub(super) layout: Option<GpuLayout>,
}

/// One GPU.
pub(super) struct GpuPlanner<'a> {
    pub(super) gpu: &'a GpuInventory,
    /// What claims hold of it, by profile.
    held: Counts,
    pub(super) is_held: bool,
    /// What that leaves of its counters.
    room: Counts,
    /// Instances that could be published.
    candidates: Vec<Candidate>,
    /// The positions of those that are.
    published: Vec<usize>,
    /// Whether the GPU is published as a whole.
    is_whole: bool,
    can_be_whole: bool,
    /// What its base layout has.
    base: Counts,
}

/// The GPUs with what these layouts publish of them.
pub(super) fn planners<'a>(inputs: LayoutInputs<'a>, layouts: &Layouts) -> Vec<GpuPlanner<'a>> {
    let offer = apply(inputs.inventory, layouts, inputs.held);
    let pairs = inputs.inventory.gpus.iter().zip(&offer.inventory.gpus);
    pairs.map(|(gpu, published)| GpuPlanner::of(inputs, gpu, published)).collect()
}

impl<'a> GpuPlanner<'a> {
    fn of(inputs: LayoutInputs<'_>, gpu: &'a GpuInventory, published: &GpuInventory) -> Self {
        let is_held = |it: &&AllocatableDevice| inputs.held.contains(it.name.as_str());
        let holds: Vec<_> = gpu.devices.iter().chain(&gpu.withheld).filter(is_held).collect();
        let (mut held, mut room) = (Counts::new(), gpu.counters.clone());
        for device in holds.iter().filter(|it| !is_adopted(it)) {
            take(&mut room, &device.consumes);
            if let (Some(profile), true) = (profile(device), device.mig().is_some()) {
                add(&mut held, profile, 1);
            }
        }
        let is_offered = gpu.problem.is_none() && !inputs.held_back.contains_key(&gpu.counter_set);
        let is_open = is_offered && holds.iter().all(|it| it.mig().is_some());
        let mut free = Vec::new();
        for device in gpu.devices.iter().filter(|it| is_open && !is_held(it)) {
            if let DeviceKind::Mig(spec) = &device.kind {
                free.push((device, spec));
            }
        }
        let is_published =
            |it: &AllocatableDevice| published.devices.iter().any(|other| other.name == it.name);
        let whole = gpu.devices.iter().find(|it| it.kind == DeviceKind::Gpu);
        let whole = whole.filter(|_| is_offered && holds.is_empty());
        let base = match inputs.base.get(&gpu.counter_set) {
            Some(GpuLayout::Cut(counts) | GpuLayout::Free { counts, .. }) => counts.clone(),
            Some(GpuLayout::Whole) | None => Counts::new(),
        };
        Self {
            published: (0..free.len()).filter(|it| is_published(free[*it].0)).collect(),
            candidates: free
                .into_iter()
                .map(|(device, spec)| Candidate {
                    profile: spec.profile.clone(),
                    placement: spec.placement,
                    cost: device.consumes.clone(),
                })
                .collect(),
            is_whole: whole.is_some_and(is_published),
            can_be_whole: whole.is_some(),
            is_held: !holds.is_empty(),
            gpu,
            held,
            room,
            base,
        }
    }

    fn counts(&self, positions: &[usize]) -> Counts {
        let mut counts = Counts::new();
        positions.iter().for_each(|it| add(&mut counts, &self.candidates[*it].profile, 1));
        counts
    }

    fn memory(&self, positions: impl Iterator<Item = usize>) -> u32 {
        positions.map(|it| self.candidates[it].placement.size).sum()
    }

    /// The way to serve these needs that withdraws the least; `None` where there is none.
    pub(super) fn plan(&self, needs: &Needs) -> Option<Plan> {
        let stays = Plan { withdrawn: 0, layout: None };
        if needs.is_whole {
            let layout = || GpuLayout::Free { cut: false, counts: self.base.clone() };
            let withdrawn = self.memory(self.published.iter().copied());
            return match (self.can_be_whole && needs.parts.is_empty(), self.is_whole) {
                (false, _) => None,
                (true, true) => Some(stays),
                (true, false) => Some(Plan { withdrawn, layout: Some(layout()) }),
            };
        }
        let published = self.counts(&self.published);
        if needs.parts.iter().all(|(profile, count)| Some(count) <= published.get(profile)) {
            return Some(stays);
        }
        let chosen = fit_keeping(&self.candidates, &self.room, &needs.parts, &self.published);
        if !dropped(&self.candidates, &chosen, &needs.parts).is_empty() {
            return None;
        }
        let goes = self.published.iter().copied().filter(|it| !chosen.contains(it));
        let all = self.candidates.iter().map(|it| it.placement.end()).max().unwrap_or(0);
        let withdrawn = if self.is_whole { all } else { self.memory(goes) };
        let mut counts = self.held.clone();
        let free = chosen.iter().copied().chain(self.filling(&chosen));
        free.for_each(|it| add(&mut counts, &self.candidates[it].profile, 1));
        Some(Plan { withdrawn, layout: Some(GpuLayout::Free { cut: true, counts }) })
    }

    /// What fits beside these devices: of the base layout, and then of its smallest profile.
    fn filling(&self, chosen: &[usize]) -> Vec<usize> {
        let mut rest = self.base.clone();
        for (profile, count) in self.held.iter().chain(&self.counts(chosen)) {
            rest.entry(profile.clone()).and_modify(|it| *it = it.saturating_sub(*count));
        }
        let mut added = self.beside(chosen, &rest);
        let of_base = self.candidates.iter().filter(|it| self.base.contains_key(&it.profile));
        if let Some(smallest) = of_base.min_by_key(|it| it.placement.size) {
            let all: Vec<usize> = chosen.iter().chain(&added).copied().collect();
            added.extend(self.beside(&all, &[(smallest.profile.clone(), u32::MAX)].into()));
        }
        added
    }

    /// What of these counts fits beside these devices.
    fn beside(&self, chosen: &[usize], counts: &Counts) -> Vec<usize> {
        let mut room = self.room.clone();
        chosen.iter().for_each(|it| take(&mut room, &self.candidates[*it].cost));
        let added = fit(&self.candidates, &room, counts);
        added.into_iter().filter(|it| !chosen.contains(it)).collect()
    }
}
