//! The GPUs of one node: what is held, what could be allocated, and what is wrong. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dra_allocator::{Allocated, ClaimRef, Cluster, DeviceId, Features, PoolProblem, PoolReport, Room};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use mig_model::drivers;

use super::claims;
use super::profile;
use super::report::{Free, GpuRow, Holder, Part, Problem, Reason, State, largest};
use crate::explain::pool_sentence;
use crate::gpu::{Gpu, GpuDevice, current, gpus};

/// The claims that hold a device: more than one where it was allocated twice.
type Held = BTreeMap<DeviceId, Vec<ClaimRef>>;

/// All claims, by what they hold and by name.
#[derive(Debug, Default)]
pub(super) struct Claims<'c> {
    /// By the name of the pool: a node asks for few of them, many times.
    held: HashMap<String, Held>,
    by_name: BTreeMap<ClaimRef, &'c ResourceClaim>,
}

impl<'c> Claims<'c> {
    pub(super) fn new(claims: &'c [ResourceClaim]) -> Self {
        let by_name = claims.iter().map(|it| (ClaimRef::of(it), it)).collect();
        let mut held: HashMap<String, Held> = HashMap::new();
        for claim in claims {
            // One claim at a time: `Allocated` keeps one holder of a device.
            for (device, holder) in Allocated::of([claim]).iter() {
                let pool = held.entry(device.pool.clone()).or_default();
                pool.entry(device.clone()).or_default().push(holder.clone());
            }
        }
        Self { held, by_name }
    }

    /// What is held of the pools of some slices.
    fn of_pools(&self, slices: &[ResourceSlice]) -> Held {
        let pools: BTreeSet<&str> = slices.iter().map(|it| it.spec.pool.name.as_str()).collect();
        let held = pools.iter().filter_map(|it| self.held.get(*it)).flatten();
        held.map(|(device, holders)| (device.clone(), holders.clone())).collect()
    }

    /// Whether one of the claims holds the device whole, and not a share of its capacity.
    fn holds_whole(&self, claim: &ClaimRef, device: &DeviceId) -> bool {
        let status = self.by_name.get(claim).and_then(|it| it.status.as_ref());
        let devices = status.and_then(|it| it.allocation.as_ref()?.devices.as_ref());
        let mut results = devices.and_then(|it| it.results.as_deref()).unwrap_or_default().iter();
        results.any(|it| {
            it.share_id.is_none()
                && (&it.driver, &it.pool, &it.device) == (&device.driver, &device.pool, &device.device)
        })
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
    let held = claims.of_pools(slices);
    let mut allocated = Allocated::default();
    for (device, holders) in &held {
        holders.iter().for_each(|it| allocated.insert(device.clone(), it.clone()));
    }
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
        let mut of_pools: Vec<PoolIssue> = of_gpus.iter().map(|it| PoolIssue::of(it)).collect();
        let incomplete = |pool: &&PoolReport| matches!(pool.problem, PoolProblem::Incomplete { .. });
        let incomplete: BTreeSet<(&str, &str)> =
            pools.iter().filter(incomplete).map(|it| (it.driver.as_str(), it.pool.as_str())).collect();
        of_pools.extend(not_published(slices, &gpus, &held, &incomplete));
        let rows = gpus.iter().map(|gpu| {
            let position = |it: &GpuDevice| positions.get(&(&*gpu.driver, &*gpu.pool, &*it.name)).copied();
            let positions: Vec<Option<usize>> = gpu.devices.iter().map(position).collect();
            let is_complete = !incomplete.contains(&(gpu.driver.as_str(), gpu.pool.as_str()));
            row(gpu, is_complete, &positions, room, &of_pools, &held, claims)
        });
        let rows = rows.collect();
        let problems = of_pools.into_iter().map(|it| it.problem).filter(|it| it.gpu.is_none()).collect();
        NodeGpus { rows, problems }
    })
}

/// Something that is wrong with a pool, or with a GPU of it that the problem names.
struct PoolIssue {
    driver: String,
    pool: String,
    problem: Problem,
}

impl PoolIssue {
    fn of(report: &PoolReport) -> Self {
        Self { driver: report.driver.clone(), pool: report.pool.clone(), problem: of_pool(report) }
    }

    /// Whether it is shown at this GPU.
    fn concerns(&self, gpu: &Gpu) -> bool {
        let names_it = self.problem.gpu.as_deref().is_none_or(|it| it == gpu.name());
        self.driver == gpu.driver && self.pool == gpu.pool && names_it
    }
}

/// Devices that claims hold and that a pool of the slices does not publish any more. An incomplete pool may publish them in a slice
/// that is missing.
fn not_published(
    slices: &[ResourceSlice],
    gpus: &[Gpu],
    held: &Held,
    incomplete: &BTreeSet<(&str, &str)>,
) -> Vec<PoolIssue> {
    if held.is_empty() {
        return Vec::new();
    }
    let mut pools: BTreeSet<(&str, &str)> = BTreeSet::new();
    let mut published: BTreeSet<(&str, &str, &str)> = BTreeSet::new();
    for slice in current(slices) {
        let (driver, pool) = (slice.spec.driver.as_str(), slice.spec.pool.name.as_str());
        pools.insert((driver, pool));
        published.extend(slice.spec.devices.iter().flatten().map(|it| (driver, pool, it.name.as_str())));
    }
    let of_gpus = |driver: &str, pool: &str| {
        drivers::KNOWN.contains(&driver) || gpus.iter().any(|it| it.driver == driver && it.pool == pool)
    };
    let is_missing = |id: &&DeviceId| {
        let pool = (id.driver.as_str(), id.pool.as_str());
        pools.contains(&pool)
            && !incomplete.contains(&pool)
            && of_gpus(pool.0, pool.1)
            && !published.contains(&(pool.0, pool.1, id.device.as_str()))
    };
    let missing = held.keys().filter(is_missing).flat_map(|id| held[id].iter().map(move |claim| (id, claim)));
    let issue = |(id, claim): (&DeviceId, &ClaimRef)| {
        let DeviceId { driver, pool, device } = id.clone();
        let of = |gpu: &&Gpu| gpu.driver == driver && gpu.pool == pool && is_named_as_of(gpu, &device);
        let gpu = gpus.iter().find(of).map(|it| it.name().to_owned());
        let message = format!("claim {claim} holds {device}, which pool {pool} does not publish");
        PoolIssue { driver, pool, problem: Problem { gpu, reason: Reason::DeviceNotPublished, message } }
    };
    missing.map(issue).collect()
}

/// Whether a device that is not published has the name of one of this GPU: names begin with that of the GPU.
fn is_named_as_of(gpu: &Gpu, device: &str) -> bool {
    let stem =
        |name: &str| name.split("-mig-").next().and_then(|it| it.split("-share-").next()).map(str::to_owned);
    let wanted = stem(device);
    let set = gpu.key.strip_suffix("-counter-set").unwrap_or(&gpu.key);
    wanted.as_deref() == Some(set) || gpu.devices.iter().any(|it| stem(&it.name) == wanted)
}

/// `positions` are those of the GPU's devices in the room.
fn row(
    gpu: &Gpu,
    is_complete: bool,
    positions: &[Option<usize>],
    room: &mut Room<'_>,
    issues: &[PoolIssue],
    held: &Held,
    claims: &Claims<'_>,
) -> GpuRow {
    let mut is_available = |position: &Option<usize>| position.is_some_and(|it| room.count(&[it]) == 1);
    let available: Vec<bool> = positions.iter().map(&mut is_available).collect();
    let order = drawn_order(gpu);
    let holders: Vec<(usize, &ClaimRef)> = order
        .iter()
        .filter(|index| gpu.devices[**index].holder.is_some())
        .flat_map(|index| {
            let claims = held.get(&id(gpu, &gpu.devices[*index])).into_iter().flatten();
            claims.map(|claim| (*index, claim))
        })
        .collect();
    let parts = parts(gpu, &order, &holders, &available);
    let mut problems: Vec<Problem> =
        issues.iter().filter(|it| it.concerns(gpu)).map(|it| it.problem.clone()).collect();
    problems.extend(allocated_twice(gpu, &holders, claims));
    problems.extend(of_gpu(gpu, is_complete, &parts));
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
        holders: holders.iter().map(|(index, claim)| holder(&gpu.devices[*index], claim, claims)).collect(),
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

fn id(gpu: &Gpu, device: &GpuDevice) -> DeviceId {
    DeviceId { driver: gpu.driver.clone(), pool: gpu.pool.clone(), device: device.name.clone() }
}

/// Devices that several claims hold whole. The scheduler never allocates so; after a restored backup or a change by hand it is
/// possible, and the claims then use one instance.
fn allocated_twice(gpu: &Gpu, holders: &[(usize, &ClaimRef)], claims: &Claims<'_>) -> Vec<Problem> {
    let of_devices = holders.chunk_by(|a, b| a.0 == b.0);
    let problem = |of_device: &[(usize, &ClaimRef)]| {
        let device = &gpu.devices[of_device.first()?.0];
        let id = id(gpu, device);
        let whole = of_device.iter().filter(|it| claims.holds_whole(it.1, &id));
        let names: Vec<String> = whole.map(|it| it.1.to_string()).collect();
        let message = format!(
            "claims {} hold {} at the same time; delete the pods of all but one of them",
            names.join(", "),
            device.name
        );
        let reason = Reason::AllocatedTwice;
        (1 < names.len()).then(|| Problem { gpu: Some(gpu.name().to_owned()), reason, message })
    };
    of_devices.filter_map(problem).collect()
}

fn holder(device: &GpuDevice, claim: &ClaimRef, claims: &Claims<'_>) -> Holder {
    let object = claims.by_name.get(claim);
    let place = Some(&device.slices).filter(|it| !it.is_empty());
    Holder {
        device: device.name.clone(),
        profile: profile::name(device).to_owned(),
        first_slice: place.map(|it| it.start),
        memory_slices: place.map(ExactSizeIterator::len),
        pods: object.map(|it| claims::pods(it)).unwrap_or_default(),
        since: object.and_then(|it| claims::since(it)),
        claim: claim.clone(),
    }
}

fn parts(gpu: &Gpu, order: &[usize], holders: &[(usize, &ClaimRef)], available: &[bool]) -> Vec<Part> {
    let holder = |device: usize| holders.iter().position(|it| it.0 == device);
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
fn of_gpu(gpu: &Gpu, is_complete: bool, parts: &[Part]) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut add = |reason, message| {
        found.push(Problem { gpu: Some(gpu.name().to_owned()), reason, message });
    };
    // The devices may be in a slice that is missing.
    if gpu.devices.is_empty() && is_complete {
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
    if gpu.is_counted && is_complete && !gpu.devices.is_empty() && !missing.is_empty() {
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
