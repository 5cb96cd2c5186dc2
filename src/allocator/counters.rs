//! Shared counters: what a device takes, and whether it is there.

use std::collections::BTreeMap;

use k8s_openapi::api::resource::v1::Device;

use crate::allocated::{Allocated, ClaimRef, DeviceId};
use crate::pool::{Candidate, Pool, View};
use crate::quantity::Quantity;
use crate::shortage::{Consumer, Shortage};

/// What a device takes from the counters of its pool: set, counter, amount.
fn consumption(device: &Device) -> impl Iterator<Item = (&str, &str, Quantity)> {
    device.consumes_counters.iter().flatten().flat_map(|set| {
        set.counters
            .iter()
            .map(|(name, counter)| (set.counter_set.as_str(), name.as_str(), amount(&counter.value.0)))
    })
}

/// The API server lets no text through that is not a quantity.
fn amount(text: &str) -> Quantity {
    Quantity::parse(text).unwrap_or_else(|_| Quantity::zero())
}

/// Whether the device needs counters.
pub(crate) fn consumes(device: &Device) -> bool {
    device.consumes_counters.as_ref().is_some_and(|sets| !sets.is_empty())
}

/// The counters of one pool.
#[derive(Debug)]
struct Ledger<'p, 'a> {
    index: BTreeMap<(&'a str, &'a str), usize>,
    left: Vec<Quantity>,
    /// How many of `left` are negative.
    overdrawn: usize,
    /// Allocated devices.
    held: Vec<(&'a Device, &'p ClaimRef)>,
}

impl<'p, 'a> Ledger<'p, 'a> {
    /// The shared counters minus what allocated devices consume by the CURRENT slices.
    fn new(pool: &Pool<'a>, allocated: &'p Allocated) -> Self {
        let held = held(pool, allocated);
        let mut ledger = Self { index: BTreeMap::new(), left: Vec::new(), overdrawn: 0, held };
        for set in pool.counter_sets.values() {
            for (name, counter) in &set.counters {
                ledger.index.insert((set.name.as_str(), name.as_str()), ledger.left.len());
                let total = amount(&counter.value.0);
                ledger.overdrawn += usize::from(total.is_negative());
                ledger.left.push(total);
            }
        }
        for position in 0..ledger.held.len() {
            let cost = ledger.cost(ledger.held[position].0);
            ledger.take(&cost);
        }
        ledger
    }

    /// The counters that have less left than is needed. Those with the fewest consumers come first: a memory slice before the sum
    /// of the memory, which everything on the GPU consumes.
    fn shortages(&self, needed: impl Fn(usize) -> Quantity) -> Vec<Shortage> {
        let mut found = Vec::new();
        for ((set, counter), index) in &self.index {
            let (needed, available) = (needed(*index), self.left[*index]);
            if available >= needed {
                continue;
            }
            let mut consumers = Vec::new();
            for (device, claim) in &self.held {
                for (_, _, amount) in consumption(device).filter(|(s, c, _)| s == set && c == counter) {
                    consumers.push(Consumer { device: device.name.clone(), claim: (*claim).clone(), amount });
                }
            }
            let (set, counter) = ((*set).to_owned(), (*counter).to_owned());
            found.push(Shortage { set, counter, needed, available, consumers });
        }
        found.sort_by_key(|it| (it.consumers.len(), it.needed.minus(it.available)));
        found
    }

    /// What a device takes; counters that the ledger does not have cost nothing.
    fn cost(&self, device: &Device) -> Vec<(usize, Quantity)> {
        consumption(device)
            .filter_map(|(set, name, amount)| Some((*self.index.get(&(set, name))?, amount)))
            .collect()
    }

    fn take(&mut self, cost: &[(usize, Quantity)]) {
        for (counter, amount) in cost {
            self.set(*counter, self.left[*counter].minus(*amount));
        }
    }

    fn give_back(&mut self, cost: &[(usize, Quantity)]) {
        for (counter, amount) in cost {
            self.set(*counter, self.left[*counter].plus(*amount));
        }
    }

    fn set(&mut self, counter: usize, value: Quantity) {
        self.overdrawn -= usize::from(self.left[counter].is_negative());
        self.overdrawn += usize::from(value.is_negative());
        self.left[counter] = value;
    }
}

/// The allocated devices of a pool, and who holds them.
fn held<'p, 'a>(pool: &Pool<'a>, allocated: &'p Allocated) -> Vec<(&'a Device, &'p ClaimRef)> {
    let mut id =
        DeviceId { driver: pool.driver.to_owned(), pool: pool.name.to_owned(), device: String::new() };
    let devices = pool.slices.iter().flat_map(|slice| slice.spec.devices.iter().flatten());
    let holder = |device: &'a Device| {
        id.device.clone_from(&device.name);
        Some((device, allocated.holder(&id)?))
    };
    devices.filter_map(holder).collect()
}

/// The counters of all pools during one search. Kept by the pool's NAME, as upstream does: the first pool of a name that is
/// asked decides which counters there are.
#[derive(Debug)]
pub(crate) struct Counters<'p, 'a> {
    view: &'p View<'a>,
    allocated: &'p Allocated,
    ledgers: BTreeMap<&'a str, Ledger<'p, 'a>>,
    /// Costs by candidate, as far as they were needed.
    costs: Vec<Option<Vec<(usize, Quantity)>>>,
}

impl<'p, 'a> Counters<'p, 'a> {
    pub(crate) fn new(view: &'p View<'a>, allocated: &'p Allocated) -> Self {
        let costs = view.candidates.iter().map(|_| None).collect();
        Self { view, allocated, ledgers: BTreeMap::new(), costs }
    }

    /// The ledger that a candidate is charged to, and what it costs there.
    fn of(&mut self, candidate: usize) -> (&mut Ledger<'p, 'a>, &[(usize, Quantity)]) {
        let Candidate { pool, device, .. } = self.view.candidates[candidate];
        let pool = &self.view.pools[pool];
        let ledger = self.ledgers.entry(pool.name).or_insert_with(|| Ledger::new(pool, self.allocated));
        let cost = self.costs[candidate].get_or_insert_with(|| ledger.cost(device));
        (ledger, cost)
    }

    /// Takes what the device needs, if all of it is there and no counter of the pool is overdrawn; else takes nothing and
    /// answers false.
    pub(crate) fn take(&mut self, candidate: usize) -> bool {
        let (ledger, cost) = self.of(candidate);
        ledger.take(cost);
        let enough = ledger.overdrawn == 0;
        if !enough {
            ledger.give_back(cost);
        }
        enough
    }

    /// Undoes a [`take`](Self::take).
    pub(crate) fn give_back(&mut self, candidate: usize) {
        let (ledger, cost) = self.of(candidate);
        ledger.give_back(cost);
    }

    /// What a device lacks.
    pub(crate) fn shortages(&mut self, candidate: usize) -> Vec<Shortage> {
        let (ledger, cost) = self.of(candidate);
        let needed = |counter| cost.iter().filter(move |(c, _)| *c == counter).map(|(_, amount)| *amount);
        ledger.shortages(|counter| needed(counter).fold(Quantity::zero(), Quantity::plus))
    }

    /// The counters of a pool that are overdrawn before anything is added.
    pub(crate) fn overdrawn(&mut self, pool: usize) -> Vec<Shortage> {
        let pool = &self.view.pools[pool];
        let ledger = self.ledgers.entry(pool.name).or_insert_with(|| Ledger::new(pool, self.allocated));
        ledger.shortages(|_| Quantity::zero())
    }
}
