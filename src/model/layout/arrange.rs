//! Layouts for a demand: which GPUs change, and how, so that devices of certain profiles are published and free.
//!
//! What claims hold stays and is gone around. Of what is published and free as little memory as possible is withdrawn, and GPUs
//! that need not change do not change. Room that is left over on a GPU that changes is filled as its base layout says, and with the
//! smallest instances.
//!
//! Devices are placed one by one, the largest first, each on the GPU where that withdraws the least, with a way back as long as
//! the search is small. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::inventory::{AllocatableDevice, DeviceKind, GpuInventory, Inventory, take};
use crate::mig_node::WHOLE;

use super::apply::apply;
use super::choice::{GpuLayout, Layouts, show_counts, some};
use super::fit::{Candidate, dropped, fit, fit_keeping};

/// Most ways that are tried to place everything; after that, the largest devices are placed first and nothing is tried again.
const MOST_STEPS: usize = 2_000;
/// Most names of devices in a message.
const MOST_NAMES: usize = 4;

type Counts = BTreeMap<String, u32>;

/// Which devices are wanted: profile and count; whole GPUs are [`WHOLE`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Published and free, beside what claims hold.
    pub free: BTreeMap<String, u32>,
    /// Published, held by claims or free. Comes before `free`.
    pub floor: BTreeMap<String, u32>,
}

/// What layouts are arranged on.
#[derive(Debug, Clone, Copy)]
pub struct LayoutInputs<'a> {
    /// What the GPUs of the node offer.
    pub inventory: &'a Inventory,
    /// Names of the devices that claims hold, prepared or allocated.
    pub held: &'a BTreeSet<String>,
    /// The layouts that GPUs have without a demand.
    pub base: &'a Layouts,
}

/// Devices that cannot be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The profile.
    pub profile: String,
    /// How many.
    pub count: u32,
    /// Why.
    pub cause: Cause,
}

/// Why a device cannot be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// Claims hold devices in its place.
    HeldDevices,
    /// The node has not enough GPUs that can be partitioned like that.
    DoesNotFit,
}

/// Layouts for a demand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrangement {
    /// The layouts; those of GPUs that need not change are as they were.
    pub layouts: Layouts,
    /// What they have no room for.
    pub missing: Vec<Missing>,
}

/// Changes `layouts` as little as possible so that what is wanted is published.
#[must_use]
pub fn arrange(inputs: LayoutInputs<'_>, layouts: &Layouts, wanted: &Wanted) -> Arrangement {
    if wanted.free.is_empty() && wanted.floor.is_empty() {
        return Arrangement { layouts: layouts.clone(), missing: Vec::new() };
    }
    let planners = planners(inputs, layouts);
    let demand = Demand::of(inputs, wanted);
    let mut search = Search::new(&planners);
    let needs = search.place(&demand);
    let mut layouts = layouts.clone();
    for (planner, needs) in planners.iter().zip(&needs) {
        if let Some(layout) = planner.plan(needs).and_then(|it| it.layout) {
            layouts.insert(planner.gpu.counter_set.clone(), layout);
        }
    }
    let missing = demand.missing(&needs);
    let missing = if missing.is_empty() { Vec::new() } else { explain(inputs, wanted, missing) };
    Arrangement { layouts, missing }
}

/// A text for a person; empty where nothing is missing.
#[must_use]
pub fn describe_missing(inputs: LayoutInputs<'_>, missing: &[Missing]) -> String {
    let of = |cause: &Cause| -> Counts {
        let these = missing.iter().filter(|it| it.cause == *cause);
        these.map(|it| (it.profile.clone(), it.count)).collect()
    };
    let mut parts = Vec::new();
    let (blocked, too_much) = (of(&Cause::HeldDevices), of(&Cause::DoesNotFit));
    if !blocked.is_empty() {
        let names: Vec<&str> = inputs.held.iter().map(String::as_str).collect();
        let more = names.len().saturating_sub(MOST_NAMES);
        let mut held = names.iter().take(MOST_NAMES).copied().collect::<Vec<_>>().join(", ");
        if 0 < more {
            held.push_str(&format!(" and {more} more"));
        }
        parts
            .push(format!("{} waits until claims release devices; allocated: {held}", show_counts(&blocked)));
    }
    if !too_much.is_empty() {
        let mut profiles: Vec<&str> = all_devices(inputs.inventory).filter_map(profile).collect();
        profiles.sort_unstable();
        profiles.dedup();
        let mut text = format!("the GPUs of this node have no room for {}", show_counts(&too_much));
        if too_much.keys().any(|it| !profiles.contains(&it.as_str())) {
            text.push_str(&format!("; their profiles are {}", some(&profiles)));
        }
        let problem = |it: &GpuInventory| Some(format!("{}: {}", it.counter_set, it.problem.as_ref()?));
        let problems: Vec<String> = inputs.inventory.gpus.iter().filter_map(problem).collect();
        if let Some(problem) = problems.first() {
            text.push_str(&format!("; unavailable: {problem}"));
        }
        parts.push(text);
    }
    parts.join("; ")
}

/// For what is missing: whether it would fit if no claim held anything.
fn explain(inputs: LayoutInputs<'_>, wanted: &Wanted, missing: Counts) -> Vec<Missing> {
    let nothing = BTreeSet::new();
    let without = if inputs.held.is_empty() {
        missing.clone()
    } else {
        let empty = LayoutInputs { held: &nothing, ..inputs };
        let (planners, demand) = (planners(empty, inputs.base), Demand::of(empty, wanted));
        demand.missing(&Search::new(&planners).place(&demand))
    };
    let mut list = Vec::new();
    for (profile, count) in missing {
        let never = without.get(&profile).copied().unwrap_or(0).min(count);
        for (count, cause) in [(count - never, Cause::HeldDevices), (never, Cause::DoesNotFit)] {
            if 0 < count {
                list.push(Missing { profile: profile.clone(), count, cause });
            }
        }
    }
    list
}

fn all_devices(inventory: &Inventory) -> impl Iterator<Item = &AllocatableDevice> {
    inventory.gpus.iter().flat_map(|it| it.devices.iter().chain(&it.withheld))
}

/// The profile of a device; nothing for a share of a GPU.
fn profile(device: &AllocatableDevice) -> Option<&str> {
    match &device.kind {
        DeviceKind::Gpu => Some(WHOLE),
        DeviceKind::Share { .. } => None,
        DeviceKind::Mig(spec) => Some(&spec.profile),
        DeviceKind::Adopted(adopted) => Some(&adopted.spec.profile),
    }
}

fn is_adopted(device: &AllocatableDevice) -> bool {
    matches!(device.kind, DeviceKind::Adopted(_))
}

fn add(counts: &mut Counts, profile: &str, count: u32) {
    if let Some(known) = counts.get_mut(profile) {
        *known = known.saturating_add(count);
    } else {
        counts.insert(profile.to_owned(), count);
    }
}

/// Free devices that have to be published.
struct Demand {
    /// For the floor.
    floor: Counts,
    /// In all.
    total: Counts,
    /// The profiles, the largest first.
    order: Vec<String>,
    /// Counts above this cannot be served.
    most: Counts,
}

impl Demand {
    fn of(inputs: LayoutInputs<'_>, wanted: &Wanted) -> Self {
        let (mut held, mut beside, mut most) = (Counts::new(), Counts::new(), Counts::new());
        for device in all_devices(inputs.inventory) {
            let Some(profile) = profile(device) else { continue };
            let is_held = inputs.held.contains(device.name.as_str());
            if is_held {
                add(&mut held, profile, 1);
            }
            add(&mut most, profile, 1);
        }
        // Unmanaged instances are published beside any layout.
        let is_beside = |it: &&AllocatableDevice| is_adopted(it) && !inputs.held.contains(it.name.as_str());
        for profile in inputs.inventory.devices().filter(is_beside).filter_map(profile) {
            add(&mut beside, profile, 1);
        }
        let less = |counts: &Counts, by: &[&Counts]| -> Counts {
            let left = |(profile, count): (&String, &u32)| {
                let by: u32 = by.iter().filter_map(|it| it.get(profile)).sum();
                Some((profile.clone(), count.checked_sub(by).filter(|it| 0 < *it)?))
            };
            counts.iter().filter_map(left).collect()
        };
        let floor = less(&wanted.floor, &[&held, &beside]);
        let mut total = less(&wanted.free, &[&beside]);
        for (profile, count) in &floor {
            let known = total.entry(profile.clone()).or_insert(0);
            *known = (*known).max(*count);
        }
        let size = |name: &str| {
            let known = all_devices(inputs.inventory).find(|it| profile(it) == Some(name));
            let spec = known.and_then(AllocatableDevice::mig);
            (name == WHOLE, spec.map(|it| (it.placement.size, it.slices)))
        };
        let mut order: Vec<String> = total.keys().cloned().collect();
        order.sort_by_key(|it| std::cmp::Reverse(size(it)));
        Self { floor, total, order, most }
    }

    /// The profiles of so many devices, the largest first, one for each device.
    fn units(&self, counts: &Counts, before: &Counts) -> Vec<&str> {
        let mut units = Vec::new();
        for profile in &self.order {
            let most = self.most.get(profile).copied().unwrap_or(0);
            let count = |of: &Counts| of.get(profile).copied().unwrap_or(0).min(most);
            let count = count(counts).saturating_sub(count(before));
            units.extend((0..count).map(|_| profile.as_str()));
        }
        units
    }

    /// What has no place.
    fn missing(&self, needs: &[Needs]) -> Counts {
        let placed = |profile: &str| -> u32 {
            let of = |it: &Needs| match profile {
                WHOLE => u32::from(it.is_whole),
                _ => it.parts.get(profile).copied().unwrap_or(0),
            };
            needs.iter().map(of).sum()
        };
        let left = |(profile, count): (&String, &u32)| {
            let left = count.saturating_sub(placed(profile));
            (0 < left).then(|| (profile.clone(), left))
        };
        self.total.iter().filter_map(left).collect()
    }
}

/// What has to be free on one GPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Needs {
    is_whole: bool,
    parts: Counts,
}

impl Needs {
    fn with(&self, profile: &str) -> Self {
        let mut needs = self.clone();
        match profile {
            WHOLE => needs.is_whole = true,
            _ => add(&mut needs.parts, profile, 1),
        }
        needs
    }
}

/// How one GPU serves its needs.
#[derive(Debug, Clone)]
struct Plan {
    /// Memory slices of published devices that go.
    withdrawn: u32,
    /// `None` where it stays as it is.
    layout: Option<GpuLayout>,
}

/// One GPU.
struct GpuPlanner<'a> {
    gpu: &'a GpuInventory,
    /// What claims hold of it, by profile.
    held: Counts,
    is_held: bool,
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
fn planners<'a>(inputs: LayoutInputs<'a>, layouts: &Layouts) -> Vec<GpuPlanner<'a>> {
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
        let is_open = gpu.problem.is_none() && holds.iter().all(|it| it.mig().is_some());
        let mut free = Vec::new();
        for device in gpu.devices.iter().filter(|it| is_open && !is_held(it)) {
            if let DeviceKind::Mig(spec) = &device.kind {
                free.push((device, spec));
            }
        }
        let is_published =
            |it: &AllocatableDevice| published.devices.iter().any(|other| other.name == it.name);
        let whole = gpu.devices.iter().find(|it| it.kind == DeviceKind::Gpu);
        let whole = whole.filter(|_| gpu.problem.is_none() && holds.is_empty());
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
    fn plan(&self, needs: &Needs) -> Option<Plan> {
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

/// Which GPU serves what.
struct Search<'a> {
    planners: &'a [GpuPlanner<'a>],
    /// What needs cost on a GPU: memory slices withdrawn, and whether it changes.
    costs: HashMap<(usize, Needs), Option<(u32, bool)>>,
    /// How far it got with which needs, without an end.
    failed: HashSet<(usize, Vec<Needs>)>,
    steps: usize,
}

impl<'a> Search<'a> {
    fn new(planners: &'a [GpuPlanner<'a>]) -> Self {
        Self { planners, costs: HashMap::new(), failed: HashSet::new(), steps: 0 }
    }

    /// Everything if that is possible; else the floor before the rest, and of both the largest devices first.
    fn place(&mut self, demand: &Demand) -> Vec<Needs> {
        let nothing = Counts::new();
        if let Some(needs) = self.all(&demand.units(&demand.total, &nothing)) {
            return needs;
        }
        let floor = demand.units(&demand.floor, &nothing);
        let mut needs = self.all(&floor).unwrap_or_else(|| {
            let mut needs = self.none();
            self.greedy(&floor, &mut needs);
            needs
        });
        self.greedy(&demand.units(&demand.total, &demand.floor), &mut needs);
        needs
    }

    fn none(&self) -> Vec<Needs> {
        vec![Needs::default(); self.planners.len()]
    }

    /// A place for each, if one is found.
    fn all(&mut self, units: &[&str]) -> Option<Vec<Needs>> {
        self.failed.clear();
        self.steps = MOST_STEPS;
        let mut needs = self.none();
        self.try_all(units, &mut needs).then_some(needs)
    }

    fn try_all(&mut self, units: &[&str], needs: &mut Vec<Needs>) -> bool {
        let Some((unit, rest)) = units.split_first() else { return true };
        let key = (units.len(), needs.clone());
        if self.steps == 0 || self.failed.contains(&key) {
            return false;
        }
        self.steps -= 1;
        for index in self.places(unit, needs) {
            let before = needs[index].clone();
            needs[index] = before.with(unit);
            if self.try_all(rest, needs) {
                return true;
            }
            needs[index] = before;
        }
        self.failed.insert(key);
        false
    }

    /// Places each where it costs the least, if there is a place.
    fn greedy(&mut self, units: &[&str], needs: &mut [Needs]) {
        for unit in units {
            if let Some(index) = self.places(unit, needs).first() {
                needs[*index] = needs[*index].with(unit);
            }
        }
    }

    /// The GPUs that can serve one device more, the best first: where the least is withdrawn, that changes anyway, that is
    /// partly allocated already.
    fn places(&mut self, unit: &str, needs: &[Needs]) -> Vec<usize> {
        let mut places = Vec::new();
        for (index, needs) in needs.iter().enumerate() {
            // A second whole GPU is another one.
            if unit == WHOLE && needs.is_whole {
                continue;
            }
            let (Some(before), Some(after)) = (self.cost(index, needs), self.cost(index, &needs.with(unit)))
            else {
                continue;
            };
            let more = after.0.saturating_sub(before.0);
            places.push(((more, after.1 && !before.1, !self.planners[index].is_held), index));
        }
        places.sort_unstable();
        places.into_iter().map(|(_, index)| index).collect()
    }

    fn cost(&mut self, index: usize, needs: &Needs) -> Option<(u32, bool)> {
        let key = (index, needs.clone());
        if let Some(known) = self.costs.get(&key) {
            return *known;
        }
        let cost = self.planners[index].plan(needs).map(|it| (it.withdrawn, it.layout.is_some()));
        self.costs.insert(key, cost);
        cost
    }
}
