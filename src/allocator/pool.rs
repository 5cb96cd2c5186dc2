//! Pools: which slices count, and whether they are complete.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{CounterSet, Device, ResourceSlice, ResourceSliceSpec};
use serde::Serialize;

use crate::allocated::DeviceId;
use crate::features::Features;
use crate::node::slice_targets;
use crate::shortage::Shortage;

/// What is wrong with a pool, as a node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "reason")]
pub enum PoolProblem {
    /// Slices of the current generation are missing; no device of the pool is allocated.
    Incomplete {
        /// Slices of the generation that are there.
        found: usize,
        /// Slices that it should have.
        expected: i64,
    },
    /// The slices contradict each other; no device of the pool is allocated.
    Invalid {
        /// The contradiction.
        why: String,
    },
    /// Counters are below what is consumed; no device of the pool that consumes counters is allocated.
    Overdrawn {
        /// The counters.
        shortages: Vec<Shortage>,
    },
    /// Another driver's pool has this name and counters, too: the scheduler mixes the counters of both up.
    NameShared {
        /// The other driver.
        driver: String,
    },
}

/// A pool with a problem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolReport {
    /// Driver name.
    pub driver: String,
    /// Pool name.
    pub pool: String,
    /// The problem.
    #[serde(flatten)]
    pub problem: PoolProblem,
}

/// A device that the node sees, with where it was published.
#[derive(Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) id: DeviceId,
    pub(crate) device: &'a Device,
    pub(crate) spec: &'a ResourceSliceSpec,
    /// Index of its pool in the view.
    pub(crate) pool: usize,
}

/// The current generation of a pool, as one node sees it.
#[derive(Debug)]
pub(crate) struct Pool<'a> {
    pub(crate) driver: &'a str,
    pub(crate) name: &'a str,
    /// [`PoolProblem::Incomplete`] or [`PoolProblem::Invalid`].
    pub(crate) problem: Option<PoolProblem>,
    /// All slices of the generation that have devices, those for other nodes included.
    pub(crate) slices: Vec<&'a ResourceSlice>,
    pub(crate) counter_sets: BTreeMap<&'a str, &'a CounterSet>,
    /// Its devices in [`View::candidates`].
    pub(crate) devices: Range<usize>,
}

/// The pools and devices of one node, in the order in which they are tried.
#[derive(Debug)]
pub(crate) struct View<'a> {
    pub(crate) node: &'a Node,
    pub(crate) pools: Vec<Pool<'a>>,
    pub(crate) candidates: Vec<Candidate<'a>>,
}

/// All slices by pool, and which pools can matter to which node.
#[derive(Debug)]
pub(crate) struct Index<'a> {
    features: Features,
    /// Slices of all generations by driver and pool, each list by name.
    groups: Vec<(&'a str, &'a str, Vec<&'a ResourceSlice>)>,
    by_node: HashMap<&'a str, Vec<usize>>,
    /// Pools whose slices choose nodes otherwise than by name.
    by_selection: Vec<usize>,
    /// Pools that are broken as seen by nodes that have no device in them: slices with counters concern all nodes.
    broken_elsewhere: Vec<usize>,
}

impl<'a> Index<'a> {
    pub(crate) fn new(slices: impl IntoIterator<Item = &'a ResourceSlice>, features: Features) -> Self {
        let mut groups: BTreeMap<(&str, &str), Vec<&ResourceSlice>> = BTreeMap::new();
        for slice in slices {
            groups.entry((&slice.spec.driver, &slice.spec.pool.name)).or_default().push(slice);
        }
        let mut index = Self {
            features,
            groups: Vec::new(),
            by_node: HashMap::new(),
            by_selection: Vec::new(),
            broken_elsewhere: Vec::new(),
        };
        for (position, ((driver, name), mut slices)) in groups.into_iter().enumerate() {
            slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
            let mut nodes = BTreeSet::new();
            let mut selects = false;
            for slice in &slices {
                match slice.spec.node_name.as_deref().filter(|name| !name.is_empty()) {
                    Some(node) => drop(nodes.insert(node)),
                    None => selects = true,
                }
            }
            for node in nodes {
                index.by_node.entry(node).or_default().push(position);
            }
            if selects {
                index.by_selection.push(position);
            }
            if index.generation(&slices, None).is_some_and(|current| current.problem.is_some()) {
                index.broken_elsewhere.push(position);
            }
            index.groups.push((driver, name, slices));
        }
        index
    }

    /// The pools that matter for the node, by driver and name.
    pub(crate) fn view<'v>(&self, node: &'v Node) -> View<'v>
    where
        'a: 'v,
    {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let mut positions: BTreeSet<usize> = self.by_selection.iter().copied().collect();
        positions.extend(self.by_node.get(name).into_iter().flatten());
        positions.extend(&self.broken_elsewhere);
        let mut view = View { node, pools: Vec::new(), candidates: Vec::new() };
        for position in positions {
            let (driver, name, slices) = &self.groups[position];
            let Some(current) = self.generation(slices, Some(node)) else { continue };
            let first = view.candidates.len();
            for slice in &current.targeting {
                view.candidates.extend(slice.spec.devices.iter().flatten().map(|device| Candidate {
                    id: DeviceId {
                        driver: (*driver).to_owned(),
                        pool: (*name).to_owned(),
                        device: device.name.clone(),
                    },
                    device,
                    spec: &slice.spec,
                    pool: view.pools.len(),
                }));
            }
            let mut slices = current.targeting;
            slices.extend(current.elsewhere);
            view.pools.push(Pool {
                driver,
                name,
                problem: current.problem,
                slices,
                counter_sets: current.counter_sets,
                devices: first..view.candidates.len(),
            });
        }
        view
    }

    /// The highest generation that the node can see; `None` when it sees none, or when a newer one has nothing for it. Without a
    /// node: as nodes see it for which it has no device.
    fn generation(&self, slices: &[&'a ResourceSlice], node: Option<&Node>) -> Option<Current<'a>> {
        let mut seen: Vec<&'a ResourceSlice> = slices.to_vec();
        seen.retain(|slice| self.sees(&slice.spec, node));
        let generation = seen.iter().map(|s| s.spec.pool.generation).max()?;
        seen.retain(|slice| slice.spec.pool.generation == generation);
        let expected = seen.first()?.spec.pool.resource_slice_count;
        let is_complete = |found: usize| i64::try_from(found) == Ok(expected);
        let mut all = seen.clone();
        if !is_complete(seen.len()) {
            if slices.iter().any(|slice| slice.spec.pool.generation > generation) {
                return None;
            }
            all = slices.iter().copied().filter(|s| s.spec.pool.generation == generation).collect();
        }
        if !is_complete(all.len()) {
            return Some(Current::broken(PoolProblem::Incomplete { found: all.len(), expected }));
        }
        if !self.features.partitionable_devices {
            let why = duplicate_device(&seen);
            return Some(
                why.map_or_else(|| Current::of(seen, Vec::new(), BTreeMap::new()), Current::invalid),
            );
        }
        all.retain(|slice| !seen.iter().any(|s| std::ptr::eq(*s, *slice)));
        Some(whole(&seen, all).unwrap_or_else(Current::invalid))
    }

    fn sees(&self, spec: &ResourceSliceSpec, node: Option<&Node>) -> bool {
        let has_counters = has_counters(spec);
        if !self.features.partitionable_devices && (has_counters || spec.per_device_node_selection.is_some())
        {
            return false;
        }
        has_counters || node.is_some_and(|node| slice_targets(spec, node))
    }
}

/// A generation of a pool.
struct Current<'a> {
    problem: Option<PoolProblem>,
    targeting: Vec<&'a ResourceSlice>,
    elsewhere: Vec<&'a ResourceSlice>,
    counter_sets: BTreeMap<&'a str, &'a CounterSet>,
}

impl<'a> Current<'a> {
    fn of(
        targeting: Vec<&'a ResourceSlice>,
        elsewhere: Vec<&'a ResourceSlice>,
        counter_sets: BTreeMap<&'a str, &'a CounterSet>,
    ) -> Self {
        Self { problem: None, targeting, elsewhere, counter_sets }
    }

    fn broken(problem: PoolProblem) -> Self {
        Self { problem: Some(problem), ..Self::of(Vec::new(), Vec::new(), BTreeMap::new()) }
    }

    fn invalid(why: String) -> Self {
        Self::broken(PoolProblem::Invalid { why })
    }
}

fn has_counters(spec: &ResourceSliceSpec) -> bool {
    spec.shared_counters.as_ref().is_some_and(|sets| !sets.is_empty())
}

/// A complete pool of slices that the node sees and others, checked for what the API server cannot see, because it looks at one
/// slice at a time.
fn whole<'a>(seen: &[&'a ResourceSlice], elsewhere: Vec<&'a ResourceSlice>) -> Result<Current<'a>, String> {
    let (counters, targeting): (Vec<_>, Vec<_>) = seen.iter().partition(|slice| has_counters(&slice.spec));
    if let Some(why) = duplicate_device(&targeting) {
        return Err(why);
    }
    let mut sets = BTreeMap::new();
    for set in counters.iter().flat_map(|slice| slice.spec.shared_counters.iter().flatten()) {
        if sets.insert(set.name.as_str(), set).is_some() {
            return Err(format!("duplicate counter set name {}", set.name));
        }
    }
    for slice in seen.iter().chain(&elsewhere) {
        for consumed in slice.spec.devices.iter().flatten().flat_map(|d| d.consumes_counters.iter().flatten())
        {
            let set = sets.get(consumed.counter_set.as_str());
            let set = set.ok_or_else(|| format!("counter set {} not found", consumed.counter_set))?;
            if let Some(counter) = consumed.counters.keys().find(|name| !set.counters.contains_key(*name)) {
                return Err(format!("counter {counter} not found in counter set {}", set.name));
            }
        }
    }
    Ok(Current::of(targeting, elsewhere, sets))
}

fn duplicate_device(slices: &[&ResourceSlice]) -> Option<String> {
    let mut names = BTreeSet::new();
    let mut devices = slices.iter().flat_map(|slice| slice.spec.devices.iter().flatten());
    let twice = devices.find(|device| !names.insert(device.name.as_str()))?;
    Some(format!("duplicate device name {}", twice.name))
}
