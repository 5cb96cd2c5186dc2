//! What a plan starts from: nodes, what they publish, and what is allocated already.

use std::collections::{BTreeMap, BTreeSet};

use dra_allocator::extended::requests;
use dra_allocator::quantity::Quantity;
use dra_allocator::{Allocated, DeviceId};
use k8s_openapi::api::core::v1::{Container, Node, Pod};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceSlice};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Amount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::cluster::{SliceError, Snapshot};
use crate::gpu::{self, Gpu};

/// Classes of this project's driver, as they are installed.
const OUR_CLASSES: &str = include_str!("../../../deploy/manifests/deviceclasses.yaml");
/// Classes of NVIDIA's DRA driver, as its chart installs them.
const NVIDIA_CLASSES: &str = include_str!("nvidia-classes.yaml");

/// Millicores and bytes that the scheduler counts for a container that requests none.
const DEFAULT_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 << 20;
/// Millicores and bytes of a node that does not exist. Only the share that pods take of it matters.
const NODE_CPU: i64 = 128_000;
const NODE_MEMORY: i64 = 2 << 40;

/// State of a node on which nothing is allocated.
const EMPTY: usize = 0;
/// State of a node as it was found.
const AS_FOUND: usize = 1;
/// The first of further states.
pub(super) const FURTHER: usize = 2;

/// Incomplete pools that are named.
const MAX_POOLS: usize = 8;

/// What nodes of one kind publish.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) slices: Vec<ResourceSlice>,
    /// The node that the slices are for.
    pub(super) node: Node,
}

impl Kind {
    /// The GPUs of the node. Those of other nodes, and those of incomplete pools, of which nothing is allocated, are left out.
    pub(super) fn gpus(&self, allocated: &Allocated) -> Vec<Gpu> {
        let incomplete = incomplete(&self.slices);
        let mut gpus = gpu::gpus(&self.slices, allocated);
        gpus.retain(|it| {
            let is_own = it.node.is_empty() || it.node == self.node_name();
            is_own && !incomplete.contains_key(&(it.driver.as_str(), it.pool.as_str()))
        });
        gpus
    }

    /// Whether slices of a pool are for this node.
    pub(super) fn has_pool(&self, driver: &str, pool: &str) -> bool {
        let mut own = self.slices.iter().filter(|it| !names_other(it, self.node_name()));
        own.any(|it| it.spec.driver == driver && it.spec.pool.name == pool)
    }

    fn node_name(&self) -> &str {
        self.node.metadata.name.as_deref().unwrap_or_default()
    }
}

/// Driver and name of a pool.
type PoolId<'s> = (&'s str, &'s str);

/// Pools whose newest generation has not as many slices as it says: how many there are, and how many it says.
fn incomplete(slices: &[ResourceSlice]) -> BTreeMap<PoolId<'_>, (usize, i64)> {
    let mut newest: BTreeMap<PoolId<'_>, (i64, usize, i64)> = BTreeMap::new();
    for slice in slices {
        let pool = &slice.spec.pool;
        let empty = (pool.generation, 0, pool.resource_slice_count);
        let (generation, found, expected) = newest.entry((&slice.spec.driver, &pool.name)).or_insert(empty);
        if *generation < pool.generation {
            (*generation, *found, *expected) = empty;
        }
        *found += usize::from(*generation == pool.generation);
    }
    newest.retain(|_, (_, found, expected)| i64::try_from(*found) != Ok(*expected));
    newest.into_iter().map(|(pool, (_, found, expected))| (pool, (found, expected))).collect()
}

/// Whether a slice names another node.
fn names_other(slice: &ResourceSlice, node: &str) -> bool {
    slice.spec.node_name.as_deref().is_some_and(|it| !it.is_empty() && it != node)
}

/// CPU and memory that pods request of a node.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Load {
    cpu: i64,
    memory: i64,
}

/// A node of the plan.
#[derive(Debug, Clone)]
pub(super) struct Site {
    pub(super) name: String,
    /// Index of its kind.
    pub(super) kind: usize,
    /// The Node object; `None` where nothing is known of it, so that nothing but devices counts.
    pub(super) node: Option<Node>,
    /// Index of its set of allocated devices.
    pub(super) book: usize,
    /// Stands for what is allocated: nodes of one kind with one state have the same devices allocated. `None` where the set is
    /// one of several nodes.
    pub(super) state: Option<usize>,
    pub(super) load: Load,
    pub(super) capacity: Load,
    /// Extended resources that pods request of it.
    pub(super) plugin_devices: BTreeMap<String, i64>,
}

/// Nodes and what they have.
#[derive(Debug, Default)]
pub(super) struct Stock {
    pub(super) kinds: Vec<Kind>,
    pub(super) sites: Vec<Site>,
    /// Allocated devices. Nodes whose devices are their own have a set each.
    pub(super) books: Vec<Allocated>,
    pub(super) has_counters: bool,
    pub(super) has_taints: bool,
    /// What to say about incomplete pools, by driver and pool.
    pub(super) incomplete: BTreeMap<(String, String), String>,
}

impl Site {
    /// An empty node that does not exist.
    pub(super) fn empty(name: String, kind: usize, book: usize, node: Option<Node>) -> Self {
        Self {
            name,
            kind,
            node,
            book,
            state: Some(EMPTY),
            load: Load::default(),
            capacity: Load { cpu: NODE_CPU, memory: NODE_MEMORY },
            plugin_devices: BTreeMap::new(),
        }
    }

    /// The free share of CPU and memory, from 0 to 1: the score of NodeResourcesFit, without its rounding.
    pub(super) fn free_share(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "it is a share")]
        let share = |capacity: i64, used: i64| {
            if capacity <= 0 || capacity < used { 0.0 } else { (capacity - used) as f64 / capacity as f64 }
        };
        let (cpu, memory) =
            (share(self.capacity.cpu, self.load.cpu), share(self.capacity.memory, self.load.memory));
        f64::midpoint(cpu, memory)
    }

    /// Adds a pod that runs here.
    pub(super) fn add(&mut self, pod: &Pod) {
        for container in containers(pod) {
            let cpu = requested(container, "cpu").map_or(DEFAULT_CPU, milli);
            self.load.cpu = cpu.saturating_add(self.load.cpu);
            let memory = requested(container, "memory").map_or(DEFAULT_MEMORY, whole);
            self.load.memory = memory.saturating_add(self.load.memory);
        }
        for (name, amount) in plugin_resources(pod) {
            *self.plugin_devices.entry(name).or_default() += amount;
        }
    }

    /// How much of an extended resource a device plugin of the node has.
    pub(super) fn plugin_capacity(&self, resource: &str) -> i64 {
        let status = self.node.as_ref().and_then(|it| it.status.as_ref());
        status.and_then(|it| it.allocatable.as_ref()).and_then(|it| it.get(resource)).map_or(0, whole)
    }

    /// How much of it is left.
    pub(super) fn plugin_room(&self, resource: &str) -> i64 {
        self.plugin_capacity(resource) - self.plugin_devices.get(resource).copied().unwrap_or(0)
    }
}

impl Stock {
    /// Empty nodes of these kinds, so many of each.
    pub(super) fn empty(kinds: Vec<(String, Vec<ResourceSlice>)>, count: usize) -> Self {
        let mut stock = Self::default();
        let has_several = kinds.len() > 1;
        for (index, (node, slices)) in kinds.into_iter().enumerate() {
            for number in 1..=count {
                let name = if has_several {
                    format!("node-{}-{number}", index + 1)
                } else {
                    format!("node-{number}")
                };
                let book = stock.new_book();
                stock.sites.push(Site::empty(name, index, book, None));
            }
            stock.kinds.push(Kind { slices, node: named(&node) });
        }
        stock
    }

    /// Another set of allocated devices.
    pub(super) fn new_book(&mut self) -> usize {
        self.books.push(Allocated::default());
        self.books.len() - 1
    }

    /// The nodes of a cluster, or of a file.
    pub(super) fn of(snapshot: &Snapshot) -> Result<Self, SliceError> {
        let nodes: BTreeMap<&str, &Node> =
            snapshot.nodes.iter().filter_map(|it| Some((it.metadata.name.as_deref()?, it))).collect();
        let mut names: BTreeSet<&str> = nodes.keys().copied().collect();
        names.extend(snapshot.slices.nodes());
        let allocated = Allocated::of(&snapshot.claims);
        let mut stock = Self::default();
        let mut is_shared = false;
        for name in names {
            let slices = snapshot.slices.of_node(name)?;
            let own = || slices.iter().filter(|it| !names_other(it, name));
            is_shared |= own().any(|it| it.spec.node_name.as_deref() != Some(name));
            stock.has_counters |= slices.iter().any(|it| it.spec.shared_counters.is_some());
            let devices = || own().flat_map(|it| it.spec.devices.iter().flatten());
            stock.has_taints |= devices().any(|it| it.taints.is_some());
            let incomplete = incomplete(&slices);
            for ((driver, pool), (found, expected)) in &incomplete {
                stock.incomplete.entry(((*driver).to_owned(), (*pool).to_owned())).or_insert_with(|| {
                    format!(
                        "pool {pool} is incomplete ({found} of {expected} ResourceSlices): its GPUs are left out"
                    )
                });
            }
            // A node whose own pool is incomplete stays, so that the reason of a pod without a place names the pool.
            let is_incomplete = |it: &ResourceSlice| {
                incomplete.contains_key(&(it.spec.driver.as_str(), it.spec.pool.name.as_str()))
            };
            if devices().next().is_none() && !own().any(is_incomplete) {
                continue;
            }
            let object = nodes.get(name).copied();
            let book = stock.new_book();
            let kind = stock.kinds.len();
            let capacity = object.map_or(Load { cpu: NODE_CPU, memory: NODE_MEMORY }, allocatable);
            let site = Site::empty(name.to_owned(), kind, book, object.cloned());
            stock.sites.push(Site { capacity, state: Some(AS_FOUND), ..site });
            stock.kinds.push(Kind { slices, node: object.cloned().unwrap_or_else(|| named(name)) });
        }
        stock.fill(&allocated, is_shared);
        for pod in &snapshot.pods {
            let spec = pod.spec.as_ref();
            let phase = pod.status.as_ref().and_then(|it| it.phase.as_deref());
            if let (Some(node), false) = (spec.and_then(|it| it.node_name.as_deref()), is_over(phase))
                && let Some(site) = stock.sites.iter_mut().find(|it| it.name == node)
            {
                site.add(pod);
            }
        }
        Ok(stock)
    }

    /// What to say about incomplete pools.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = self.incomplete.values().take(MAX_POOLS).cloned().collect();
        let more = self.incomplete.len().saturating_sub(MAX_POOLS);
        if 0 < more {
            notes.push(format!("{more} more pools are incomplete: their GPUs are left out"));
        }
        notes
    }

    /// Enters what is allocated: for each node what is of its pools; for all nodes together where they share devices.
    fn fill(&mut self, allocated: &Allocated, is_shared: bool) {
        if is_shared {
            self.books = vec![allocated.clone()];
            self.sites.iter_mut().for_each(|it| (it.book, it.state) = (0, None));
            return;
        }
        let mut by_pool: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for site in &self.sites {
            let slices = self.kinds[site.kind].slices.iter();
            for slice in slices.filter(|it| !names_other(it, &site.name)) {
                by_pool.insert((&slice.spec.driver, &slice.spec.pool.name), site.book);
            }
        }
        for (device, holder) in allocated.iter() {
            if let Some(book) = by_pool.get(&(device.driver.as_str(), device.pool.as_str())) {
                let DeviceId { driver, pool, device } = device.clone();
                self.books[*book].insert(DeviceId { driver, pool, device }, holder.clone());
            }
        }
    }
}

fn is_over(phase: Option<&str>) -> bool {
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// A node of which only the name is known.
pub(super) fn named(name: &str) -> Node {
    Node { metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }, ..Node::default() }
}

fn allocatable(node: &Node) -> Load {
    let all = node.status.as_ref().and_then(|it| it.allocatable.as_ref());
    let amount = |name: &str| all.and_then(|it| it.get(name));
    Load { cpu: amount("cpu").map_or(0, milli), memory: amount("memory").map_or(0, whole) }
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|it| &it.containers)
}

fn requested<'c>(container: &'c Container, resource: &str) -> Option<&'c Amount> {
    requests(container).find(|(name, _)| *name == resource).map(|(_, amount)| amount)
}

/// Extended resources that the containers of a pod request, those of init containers aside.
pub(super) fn plugin_resources(pod: &Pod) -> BTreeMap<String, i64> {
    let mut all: BTreeMap<String, i64> = BTreeMap::new();
    for (name, amount) in containers(pod).flat_map(requests).filter(|(name, _)| is_extended(name)) {
        let total = all.entry(name.clone()).or_default();
        *total = Quantity::whole(&amount.0).saturating_add(*total);
    }
    all.retain(|_, amount| 0 < *amount);
    all
}

/// Resources of device plugins have a domain that is not Kubernetes' own.
pub(super) fn is_extended(name: &str) -> bool {
    name.split_once('/')
        .is_some_and(|(domain, _)| domain != "kubernetes.io" && !domain.ends_with(".kubernetes.io"))
        || name.starts_with(dra_allocator::extended::IMPLICIT_PREFIX)
}

fn whole(amount: &Amount) -> i64 {
    Quantity::whole(&amount.0)
}

fn milli(amount: &Amount) -> i64 {
    let quantity = Quantity::parse(&amount.0).map_or(0.0, Quantity::as_float);
    #[expect(clippy::cast_possible_truncation, reason = "a float is cut off at the ends of the integers")]
    let milli = (quantity * 1000.0).round() as i64;
    milli
}

/// The classes that this project's driver installs, and those of NVIDIA's where it publishes something.
pub(crate) fn shipped_classes(has_nvidia: bool) -> Vec<DeviceClass> {
    let texts = [Some(OUR_CLASSES), has_nvidia.then_some(NVIDIA_CLASSES)];
    let parsed = |text| serde_saphyr::from_multiple::<DeviceClass>(text).unwrap_or_default();
    texts.into_iter().flatten().flat_map(parsed).collect()
}
