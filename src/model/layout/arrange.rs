//! Layouts for a demand: which GPUs change, and how, so that devices of certain profiles are published and free.
//!
//! What claims hold stays and is gone around. Of what is published and free as little memory as possible is withdrawn, and GPUs
//! that need not change do not change. Room that is left over on a GPU that changes is filled as its base layout says, and with the
//! smallest instances.
//!
//! Devices are placed one by one, the largest first, each on the GPU where that withdraws the least, with a way back as long as
//! the search is small. Pure.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::inventory::GpuInventory;
use crate::mig_node::WHOLE;

use super::choice::{Layouts, show_counts, some};
use super::gpu_plan::{GpuPlanner, planners};
use super::wanted::{Counts, Demand, LayoutInputs, Needs, Wanted, all_devices, profile};

/// Most ways that are tried to place everything; after that, the largest devices are placed first and nothing is tried again.
const MOST_STEPS: usize = 2_000;
/// Most names of devices in a message.
const MOST_NAMES: usize = 4;

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
