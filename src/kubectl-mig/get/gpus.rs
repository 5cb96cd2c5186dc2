//! The GPUs of one node: what is held, what could be allocated, and what is wrong. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dra_allocator::{Allocated, ClaimRef, Cluster, Features, PoolProblem, PoolReport, Room};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};

use super::claims;
use super::profile;
use super::report::{Free, GpuRow, Holder, Part, Problem, Reason, State, largest};
use crate::explain::pool_sentence;
use crate::gpu::{Gpu, GpuDevice, gpus};

/// All claims, by what they hold and by name.
#[derive(Debug, Default)]
pub(super) struct Claims<'c> {
    /// By the name of the pool: a node asks for few of them, many times.
    allocated: HashMap<String, Allocated>,
    by_name: BTreeMap<ClaimRef, &'c ResourceClaim>,
}

impl<'c> Claims<'c> {
    pub(super) fn new(claims: &'c [ResourceClaim]) -> Self {
        let by_name = claims.iter().map(|it| (ClaimRef::of(it), it)).collect();
        let mut allocated: HashMap<String, Allocated> = HashMap::new();
        for (device, holder) in Allocated::of(claims).iter() {
            allocated.entry(device.pool.clone()).or_default().insert(device.clone(), holder.clone());
        }
        Self { allocated, by_name }
    }

    /// What is held of the pools of some slices.
    fn of_pools(&self, slices: &[ResourceSlice]) -> Allocated {
        let pools: BTreeSet<&str> = slices.iter().map(|it| it.spec.pool.name.as_str()).collect();
        let mut all = Allocated::default();
        for (device, holder) in
            pools.iter().filter_map(|it| self.allocated.get(*it)).flat_map(Allocated::iter)
        {
            all.insert(device.clone(), holder.clone());
        }
        all
    }
}

/// What the slices of a node say.
#[derive(Debug, Default)]
pub(super) struct NodeGpus {
    pub(super) rows: Vec<GpuRow>,
    /// Of whole pools.
    pub(super) problems: Vec<Problem>,
}

/// The GPUs that a node's slices describe.
pub(super) fn of_node(node: &str, slices: &[ResourceSlice], claims: &Claims<'_>) -> NodeGpus {
    let allocated = claims.of_pools(slices);
    let gpus = gpus(slices, &allocated);
    let cluster = Cluster::new(slices, std::iter::empty::<&DeviceClass>(), Features::ALL);
    let mut object = Node::default();
    object.metadata.name = Some(node.to_owned());
    cluster.room(&object, &allocated, |room| {
        let pools = room.problems();
        let of_gpus: Vec<&PoolReport> = pools
            .iter()
            .filter(|pool| gpus.iter().any(|gpu| gpu.driver == pool.driver && gpu.pool == pool.pool))
            .collect();
        let devices = room.devices();
        let positions = devices.enumerate().map(|(position, (id, _))| {
            ((id.driver.as_str(), id.pool.as_str(), id.device.as_str()), position)
        });
        let positions: HashMap<(&str, &str, &str), usize> = positions.collect();
        let rows = gpus.iter().map(|gpu| {
            let position = |it: &GpuDevice| positions.get(&(&*gpu.driver, &*gpu.pool, &*it.name)).copied();
            let positions: Vec<Option<usize>> = gpu.devices.iter().map(position).collect();
            row(gpu, &positions, room, &of_gpus, claims)
        });
        NodeGpus { rows: rows.collect(), problems: of_gpus.iter().map(|it| of_pool(it)).collect() }
    })
}

/// `positions` are those of the GPU's devices in the room.
fn row(
    gpu: &Gpu,
    positions: &[Option<usize>],
    room: &mut Room<'_>,
    pools: &[&PoolReport],
    claims: &Claims<'_>,
) -> GpuRow {
    let mut is_available = |position: &Option<usize>| position.is_some_and(|it| room.count(&[it]) == 1);
    let available: Vec<bool> = positions.iter().map(&mut is_available).collect();
    let order = drawn_order(gpu);
    let parts = parts(gpu, &order, &available);
    let mut problems: Vec<Problem> = pools
        .iter()
        .filter(|it| it.driver == gpu.driver && it.pool == gpu.pool)
        .map(|it| of_pool(it))
        .collect();
    problems.extend(of_gpu(gpu, &parts));
    let free = free(gpu, positions, room);
    GpuRow {
        node: gpu.node.clone(),
        name: gpu.name().to_owned(),
        uuid: Some(gpu.key.clone()).filter(|it| it.starts_with("GPU-")),
        // The driver's own word for a product that NVML does not name.
        product: Some(gpu.product.clone()).filter(|it| !it.is_empty() && !it.starts_with("unknown-gpu-")),
        driver: gpu.driver.clone(),
        pool: gpu.pool.clone(),
        memory_slices: gpu.memory_slices,
        has_counters: gpu.is_counted,
        parts,
        largest: largest(&free),
        free,
        holders: order.iter().filter_map(|it| holder(&gpu.devices[*it], claims)).collect(),
        problems,
    }
}

/// Positions of the devices by place and name.
fn drawn_order(gpu: &Gpu) -> Vec<usize> {
    let mut order: Vec<usize> = (0..gpu.devices.len()).collect();
    order.sort_by_key(|it| {
        let device = &gpu.devices[*it];
        // `share-10` comes after `share-9`.
        (device.slices.start, device.slices.end, device.name.len(), device.name.clone())
    });
    order
}

fn holder(device: &GpuDevice, claims: &Claims<'_>) -> Option<Holder> {
    let claim = device.holder.clone()?;
    let object = claims.by_name.get(&claim);
    let place = Some(&device.slices).filter(|it| !it.is_empty());
    Some(Holder {
        device: device.name.clone(),
        profile: profile::name(device).to_owned(),
        first_slice: place.map(|it| it.start),
        memory_slices: place.map(ExactSizeIterator::len),
        pods: object.map(|it| claims::pods(it)).unwrap_or_default(),
        since: object.and_then(|it| claims::since(it)),
        claim,
    })
}

fn parts(gpu: &Gpu, order: &[usize], available: &[bool]) -> Vec<Part> {
    let holders: Vec<usize> = order.iter().copied().filter(|it| gpu.devices[*it].holder.is_some()).collect();
    let holder = |device: usize| holders.iter().position(|it| *it == device);
    if gpu.memory_slices == 0 {
        let part = |device: usize| match (holder(device), available[device]) {
            (Some(holder), _) => Part { state: State::Held, holder: Some(holder) },
            (None, true) => Part { state: State::Free, holder: None },
            (None, false) => Part { state: State::Blocked, holder: None },
        };
        return order.iter().map(|it| part(*it)).collect();
    }
    let part = |slice: usize| {
        let mut part = Part { state: State::NotOffered, holder: None };
        for device in (0..gpu.devices.len()).filter(|it| gpu.devices[*it].slices.contains(&slice)) {
            if let Some(holder) = holder(device) {
                return Part { state: State::Held, holder: Some(holder) };
            }
            if available[device] {
                part.state = State::Free;
            } else if part.state == State::NotOffered {
                part.state = State::Blocked;
            }
        }
        part
    };
    (0..gpu.memory_slices).map(part).collect()
}

/// Counts by profile.
fn free(gpu: &Gpu, positions: &[Option<usize>], room: &mut Room<'_>) -> Vec<Free> {
    let mut by_profile: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (device, position) in gpu.devices.iter().zip(positions) {
        by_profile.entry(profile::name(device)).or_default().extend(position);
    }
    let counted = by_profile.into_iter().map(|(profile, mut positions)| {
        positions.sort_unstable();
        Free { profile: profile.to_owned(), count: room.count(&positions) }
    });
    let mut free: Vec<Free> = counted.filter(|it| 0 < it.count).collect();
    free.sort_by_key(Free::order);
    free
}

fn of_pool(report: &PoolReport) -> Problem {
    let reason = match &report.problem {
        PoolProblem::Incomplete { .. } => Reason::PoolIncomplete,
        PoolProblem::Invalid { .. } => Reason::PoolInvalid,
        PoolProblem::Overdrawn { .. } => Reason::PoolOverdrawn,
        PoolProblem::NameShared { .. } => Reason::PoolNameShared,
    };
    Problem { gpu: None, reason, message: pool_sentence(report) }
}

/// What is wrong with one GPU, as far as slices show it.
fn of_gpu(gpu: &Gpu, parts: &[Part]) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut add = |reason, message| {
        found.push(Problem { gpu: Some(gpu.name().to_owned()), reason, message });
    };
    if gpu.devices.is_empty() {
        add(Reason::NothingOffered, "its driver offers no device of this GPU".to_owned());
    }
    let mut taints: BTreeMap<String, usize> = BTreeMap::new();
    for device in &gpu.devices {
        let keeps_away =
            device.taints.iter().filter(|it| it.effect == "NoSchedule" || it.effect == "NoExecute");
        let texts: BTreeSet<String> = keeps_away
            .map(|it| {
                let value = it.value.as_deref().filter(|it| !it.is_empty());
                format!("{}{}:{}", it.key, value.map(|it| format!("={it}")).unwrap_or_default(), it.effect)
            })
            .collect();
        texts.into_iter().for_each(|it| *taints.entry(it).or_default() += 1);
    }
    for (taint, count) in taints {
        let all = gpu.devices.len();
        let which = if count == all { String::new() } else { format!(" on {count} of {all} devices") };
        add(Reason::Tainted, format!("{}taint {taint}{which}", meaning(&taint)));
    }
    let missing: Vec<usize> = (0..parts.len()).filter(|it| parts[*it].state == State::NotOffered).collect();
    if gpu.is_counted && !gpu.devices.is_empty() && !missing.is_empty() {
        let slices = ranges(&missing);
        add(Reason::SlicesNotOffered, format!("memory slices {slices} are in no device that is offered"));
    }
    let is_whole = |it: &GpuDevice| it.profile.is_none() && !it.is_shared;
    if !gpu.is_counted && gpu.devices.iter().any(is_whole) && !gpu.devices.iter().all(is_whole) {
        let message = "its devices overlap and have no counters: the API server dropped them; turn on the feature gate \
                       DRAPartitionableDevices in kube-apiserver and kube-scheduler";
        add(Reason::CountersDropped, message.to_owned());
    }
    found
}

/// What the taints of the known drivers mean, as a prefix.
fn meaning(taint: &str) -> String {
    let (key, rest) = taint.split_once(['=', ':']).unwrap_or((taint, ""));
    let value = rest.split(':').next().unwrap_or_default();
    match key.rsplit('/').next() {
        Some("xid") if value.bytes().all(|it| it.is_ascii_digit()) => format!("unhealthy, XID {value}: "),
        Some("ecc") => "unhealthy, uncorrectable memory error: ".to_owned(),
        Some("recovery") => "unhealthy, needs recovery: ".to_owned(),
        Some("lost" | "gpu-lost") => "lost: ".to_owned(),
        _ => String::new(),
    }
}

/// `0, 4-6`.
fn ranges(numbers: &[usize]) -> String {
    let runs = numbers.chunk_by(|a, b| a + 1 == *b);
    let texts = runs.filter_map(|run| match run {
        [] => None,
        [one] => Some(one.to_string()),
        [first, .., last] => Some(format!("{first}-{last}")),
    });
    texts.collect::<Vec<_>>().join(", ")
}
