//! A closer look at a few nodes: who has what, where it lies on the GPUs, and what would make room.

use std::collections::{BTreeMap, HashMap};

use dra_allocator::{Amount, ClaimRef, DeviceId, Finding, RequestReport, in_the_way};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::claims::consumers;
use super::explanation::{GpuMap, MapEntry};
use super::fleet::{Question, Site};
use super::reason::Holder;

use crate::gpu::{Gpu, gpus};
use crate::text::FREE;

/// Most holders whose end is tried on a node.
const MAX_RELEASES: usize = 96;

/// Claims by reference, and when their pods started.
pub(super) struct Holders<'a> {
    claims: HashMap<(&'a str, &'a str), &'a ResourceClaim>,
    pods: HashMap<(&'a str, &'a str), &'a Pod>,
}

impl<'a> Holders<'a> {
    pub(super) fn new(claims: &'a [ResourceClaim], pods: &'a [Pod]) -> Self {
        let text = |it: &'a Option<String>| it.as_deref().unwrap_or_default();
        Self {
            claims: claims
                .iter()
                .map(|it| ((text(&it.metadata.namespace), text(&it.metadata.name)), it))
                .collect(),
            pods: pods
                .iter()
                .map(|it| ((text(&it.metadata.namespace), text(&it.metadata.name)), it))
                .collect(),
        }
    }

    fn of(&self, claim: &ClaimRef, node: &str, device: String) -> Holder {
        let known = self.claims.get(&(claim.namespace.as_str(), claim.name.as_str()));
        let pods = known.map(|it| consumers(it)).unwrap_or_default();
        let since = known.and_then(|it| self.since(it));
        let planned = known.is_some_and(|it| it.metadata.uid.is_none());
        Holder { claim: claim.to_string(), pods, planned, node: node.to_owned(), device, since }
    }

    /// When the claim was allocated, where that is recorded; else when its pod started, or the claim was created.
    fn since(&self, claim: &ResourceClaim) -> Option<Time> {
        let status = claim.status.as_ref()?;
        let allocated = status.allocation.as_ref().and_then(|it| it.allocation_timestamp.clone());
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let pod = || {
            let first = status.reserved_for.as_ref()?.first()?;
            let pod = self.pods.get(&(namespace, first.name.as_str()))?;
            pod.status
                .as_ref()
                .and_then(|it| it.start_time.clone())
                .or_else(|| pod.metadata.creation_timestamp.clone())
        };
        allocated.or_else(pod).or_else(|| claim.metadata.creation_timestamp.clone())
    }
}

/// A node that was looked at closely.
pub(super) struct Detail {
    pub(super) node: String,
    pub(super) requests: Vec<RequestReport>,
    pub(super) gpus: Vec<Gpu>,
    /// Who has devices of the node, by claim.
    pub(super) holders: BTreeMap<String, Holder>,
    /// Pods whose end alone would make room for everything.
    pub(super) releases: Vec<Holder>,
    /// Whether everything fits without `matchAttribute`.
    pub(super) fits_without_constraints: bool,
    /// How many devices of a request fit, where that is fewer than it wants; by position.
    pub(super) most: BTreeMap<usize, usize>,
    /// The scheduler's search does not end in time.
    pub(super) timed_out: bool,
    pub(super) fits: bool,
}

/// Looks at a node.
pub(super) fn look(question: &Question<'_>, node: &Node, holders: &Holders<'_>) -> Option<Detail> {
    let site = question.site(node).ok()?;
    let cluster = question.cluster(&site.slices);
    let explanation = cluster.explain(node, &site.claims, &site.allocated);
    let name = node.metadata.name.clone().unwrap_or_default();
    let gpus = gpus(&site.slices, &site.allocated);
    let held = held(&site, &gpus, &name, holders);
    let mut detail = Detail {
        node: name,
        requests: explanation.requests,
        gpus,
        holders: held,
        releases: Vec::new(),
        fits_without_constraints: false,
        most: BTreeMap::new(),
        timed_out: matches!(explanation.outcome, Err(dra_allocator::Refusal::TimedOut)),
        fits: explanation.outcome.is_ok(),
    };
    if detail.timed_out || matches!(explanation.outcome, Err(dra_allocator::Refusal::Aborted(_))) {
        return Some(detail);
    }
    detail.releases = releases(&cluster, &site, &detail.holders, &weights(&detail.gpus));
    let without = |claim: &ResourceClaim| {
        let mut claim = claim.clone();
        if let Some(devices) = &mut claim.spec.devices {
            devices.constraints = None;
        }
        claim
    };
    if site.claims.iter().any(|it| it.spec.devices.as_ref().is_some_and(|it| it.constraints.is_some())) {
        let claims: Vec<ResourceClaim> = site.claims.iter().map(without).collect();
        detail.fits_without_constraints = cluster.allocate(node, &claims, &site.allocated).is_ok();
    }
    for (position, report) in detail.requests.iter().enumerate() {
        if let Some(Amount::Exactly(wanted)) = report.amount
            && wanted > 1
            && !report.fits_alone
        {
            detail.most.insert(position, most(&cluster, &site, report, wanted));
        }
    }
    Some(detail)
}

/// Claims that have devices of the node.
fn held(site: &Site<'_>, gpus: &[Gpu], node: &str, holders: &Holders<'_>) -> BTreeMap<String, Holder> {
    let mut profiles: HashMap<(&str, &str, &str), &str> = HashMap::new();
    for gpu in gpus {
        for device in gpu.devices.iter().filter(|it| it.holder.is_some()) {
            let profile = device.profile.as_deref().unwrap_or("whole GPU");
            profiles.insert((&gpu.driver, &gpu.pool, &device.name), profile);
        }
    }
    let mut found: BTreeMap<String, Holder> = BTreeMap::new();
    for (id, claim) in site.allocated.iter() {
        let DeviceId { driver, pool, device } = id;
        let profile = profiles.get(&(driver.as_str(), pool.as_str(), device.as_str()));
        let device = profile.map_or_else(|| device.clone(), |it| (*it).to_owned());
        match found.get_mut(&claim.to_string()) {
            Some(known) => {
                known.device.push_str(", ");
                known.device.push_str(&device);
            }
            None => drop(found.insert(claim.to_string(), holders.of(claim, node, device))),
        }
    }
    found
}

/// Memory slices that claims hold.
fn weights(gpus: &[Gpu]) -> BTreeMap<String, usize> {
    let mut weights: BTreeMap<String, usize> = BTreeMap::new();
    for device in gpus.iter().flat_map(|it| &it.devices) {
        if let Some(holder) = &device.holder {
            *weights.entry(holder.to_string()).or_default() += device.slices.len();
        }
    }
    weights
}

/// Pods, one at a time, whose end makes room for all claims; those that hold least first, then the youngest.
fn releases(
    cluster: &dra_allocator::Cluster<'_>,
    site: &Site<'_>,
    holders: &BTreeMap<String, Holder>,
    weights: &BTreeMap<String, usize>,
) -> Vec<Holder> {
    let mut by_pod: BTreeMap<String, Vec<&Holder>> = BTreeMap::new();
    for holder in holders.values().filter(|it| !it.planned) {
        // A claim of several pods is free only when all of them have ended.
        match holder.pods.as_slice() {
            [] => by_pod.entry(format!("claim {}", holder.claim)).or_default().push(holder),
            [pod] => by_pod.entry(pod.clone()).or_default().push(holder),
            _ => {}
        }
    }
    let mut found = Vec::new();
    for group in by_pod.values().take(MAX_RELEASES) {
        let mut allocated = site.allocated.clone();
        for holder in group {
            let (namespace, name) = holder.claim.split_once('/').unwrap_or(("", &holder.claim));
            allocated.release(&ClaimRef { namespace: namespace.to_owned(), name: name.to_owned() });
        }
        if cluster.allocate(site.node, &site.claims, &allocated).is_ok()
            && let [first, rest @ ..] = group.as_slice()
        {
            let mut holder = (*first).clone();
            for other in rest {
                holder.device.push_str(", ");
                holder.device.push_str(&other.device);
            }
            let weight: usize = group.iter().filter_map(|it| weights.get(&it.claim)).sum();
            found.push((weight, holder));
        }
    }
    let since = |it: &Holder| it.since.as_ref().map(|it| it.0);
    found.sort_by(|(a_weight, a), (b_weight, b)| {
        a_weight.cmp(b_weight).then_with(|| since(b).cmp(&since(a))).then_with(|| a.who().cmp(&b.who()))
    });
    found.into_iter().map(|(_, holder)| holder).collect()
}

/// How many devices a request can have on the node if the pod asks for nothing else.
fn most(
    cluster: &dra_allocator::Cluster<'_>,
    site: &Site<'_>,
    report: &RequestReport,
    wanted: usize,
) -> usize {
    let (request, alternative) = match report.request.split_once('/') {
        Some((request, alternative)) => (request, Some(alternative)),
        None => (report.request.as_str(), None),
    };
    let mut claim = site.claims[report.claim_index].clone();
    let Some(devices) = &mut claim.spec.devices else { return 0 };
    devices.constraints = None;
    let requests = devices.requests.get_or_insert_default();
    requests.retain(|it| it.name == request);
    let with = |number: usize| {
        let mut claim = claim.clone();
        let number = i64::try_from(number).ok();
        for request in claim.spec.devices.iter_mut().flat_map(|it| it.requests.iter_mut().flatten()) {
            if let Some(exactly) = &mut request.exactly {
                exactly.count = number;
            }
            if let Some(list) = &mut request.first_available {
                list.retain(|it| Some(it.name.as_str()) == alternative);
                list.iter_mut().for_each(|it| it.count = number);
            }
        }
        cluster.allocate(site.node, std::slice::from_ref(&claim), &site.allocated).is_ok()
    };
    (1..wanted).take_while(|number| with(*number)).last().unwrap_or(0)
}

impl Detail {
    /// Who has, or overlaps, the devices that a request selects.
    pub(super) fn in_the_way(&self, position: usize) -> Vec<Holder> {
        let mut claims: Vec<String> = Vec::new();
        let mut add = |claim: &ClaimRef| {
            let claim = claim.to_string();
            if !claims.contains(&claim) {
                claims.push(claim);
            }
        };
        for device in self.requests.get(position).iter().flat_map(|it| &it.devices) {
            match &device.finding {
                Finding::Allocated { holder } => add(holder),
                Finding::Counters { shortages } => {
                    in_the_way(shortages).into_iter().for_each(|it| add(&it.claim));
                }
                _ => {}
            }
        }
        claims.iter().filter_map(|it| self.holders.get(it).cloned()).collect()
    }

    /// GPUs with devices that a request selects, and of each whether the memory slices that are free would be enough.
    pub(super) fn rooms(&self, position: usize) -> Vec<Room<'_>> {
        let Some(report) = self.requests.get(position) else { return Vec::new() };
        let mut rooms = Vec::new();
        for gpu in &self.gpus {
            let of_gpu =
                report.devices.iter().filter(|it| it.id.driver == gpu.driver && it.id.pool == gpu.pool);
            let findings: HashMap<&str, &Finding> =
                of_gpu.map(|it| (it.id.device.as_str(), &it.finding)).collect();
            let held = gpu.held();
            let (mut needs, mut reach) = (usize::MAX, vec![false; gpu.memory_slices]);
            let (mut free, mut engines) = (false, Vec::new());
            for device in &gpu.devices {
                match findings.get(device.name.as_str()) {
                    None
                    | Some(
                        Finding::ClassSelectorFalse { .. }
                        | Finding::RequestSelectorFalse { .. }
                        | Finding::OtherNode
                        | Finding::SelectorError { .. },
                    ) => continue,
                    Some(Finding::Usable) => free = true,
                    Some(Finding::Counters { shortages }) => {
                        // Its place is free, and something else of the GPU is not.
                        if !shortages.iter().any(|it| it.counter.starts_with("memory")) {
                            engines.extend(shortages.iter().map(|it| it.counter.clone()));
                        }
                    }
                    Some(_) => {}
                }
                needs = needs.min(device.slices.len());
                reach.iter_mut().take(device.slices.end).skip(device.slices.start).for_each(|it| *it = true);
            }
            if needs == usize::MAX {
                continue;
            }
            let room = reach.iter().zip(&held).filter(|(reach, held)| **reach && held.is_none()).count();
            engines.sort();
            engines.dedup();
            rooms.push(Room { gpu, needs, room, free, engines });
        }
        rooms
    }

    /// The map of a GPU of this node.
    pub(super) fn map(&self, gpu: &Gpu) -> GpuMap {
        let mut legend: Vec<MapEntry> = Vec::new();
        let mut marks: BTreeMap<&str, char> = BTreeMap::new();
        let mut letters = ('A'..='Z').chain('a'..='z');
        let mut cells = String::new();
        for cell in gpu.held() {
            let Some(device) = cell else {
                cells.push(FREE);
                continue;
            };
            let mark = match marks.get(device.name.as_str()) {
                Some(mark) => *mark,
                None => {
                    let mark = letters.next().unwrap_or('#');
                    marks.insert(&device.name, mark);
                    let holder = device.holder.as_ref().and_then(|it| self.holders.get(&it.to_string()));
                    if let Some(holder) = holder {
                        let device = device.profile.clone().unwrap_or_else(|| "whole GPU".to_owned());
                        legend.push(MapEntry { mark, holder: Holder { device, ..holder.clone() } });
                    }
                    mark
                }
            };
            cells.push(mark);
        }
        let (node, product) = (self.node.clone(), gpu.product.clone());
        GpuMap { node, gpu: gpu.name().to_owned(), product, cells, legend }
    }
}

/// A GPU, seen from one request.
pub(super) struct Room<'g> {
    pub(super) gpu: &'g Gpu,
    /// Memory slices that the smallest selected device takes.
    pub(super) needs: usize,
    /// Free memory slices that selected devices reach.
    pub(super) room: usize,
    /// Whether one is free.
    pub(super) free: bool,
    /// Counters other than memory that are in the way.
    pub(super) engines: Vec<String>,
}
