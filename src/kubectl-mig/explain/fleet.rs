//! All nodes, one after the other on every core: what each could do for the claims.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use dra_allocator::cel_env::Programs;
use dra_allocator::{Allocated, ClaimRef, Cluster, DeviceId, Features, MAX_STEPS, PoolReport, Refusal};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::resource::v1::{AllocationResult, Device, ResourceClaim, ResourceSlice};

use super::profile::Published;
use super::size::too_large;
use super::tally::Tally;
use crate::cluster::{Rule, Snapshot, rules};
use crate::gpu::{Gpu, gpus};
use crate::manifest::Catalog;

/// What is asked of each node.
pub(super) struct Question<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) catalog: &'a Catalog<'a>,
    pub(super) pod: Option<&'a Pod>,
    /// Claims to allocate.
    pub(super) open: &'a [ResourceClaim],
    /// Claims that are allocated already, and tie the pod to their nodes.
    pub(super) held: &'a [ResourceClaim],
    /// Whether extended resources are turned into a claim.
    pub(super) extended: bool,
    pub(super) features: Features,
    /// Allocated devices by driver and pool.
    taken: HashMap<(String, String), Vec<(String, ClaimRef)>>,
    max_steps: usize,
    programs: Programs,
}

/// What a node answers.
#[derive(Debug)]
pub(super) struct NodeAnswer {
    pub(super) name: String,
    /// What keeps the pod away.
    pub(super) rules: Vec<Rule>,
    pub(super) outcome: Outcome,
    /// Whether the claims would fit if nothing were allocated.
    pub(super) fits_empty: bool,
    /// Whether nothing but kubernetes #140436 is in the way.
    pub(super) only_leak: bool,
    /// Broken pools.
    pub(super) pools: Vec<PoolReport>,
    /// By claim and request.
    pub(super) tallies: BTreeMap<(String, String), Tally>,
    pub(super) offer: Offer,
    /// Whether a device that consumes counters is allocated on it.
    pub(super) counters_in_use: bool,
    /// Whether what fits consumes counters.
    pub(super) fits_by_counters: bool,
}

#[derive(Debug)]
pub(super) enum Outcome {
    Fits(Vec<ResourceClaim>),
    Refused(Refusal),
    Unreadable(String),
}

/// What a node publishes, in GPU terms.
#[derive(Debug, Default)]
pub(super) struct Offer {
    pub(super) published: Published,
    /// Whether the GPUs' devices are kept apart by counters.
    pub(super) is_counted: bool,
    /// GPUs of which only the whole is published.
    pub(super) whole_only: Vec<(String, String)>,
    /// Whether any GPU has MIG devices.
    pub(super) has_mig: bool,
    /// Free devices without counters, by profile.
    pub(super) free: BTreeMap<String, usize>,
    /// GPUs whose MIG devices overlap by their names without counters.
    pub(super) dropped: bool,
    /// Devices, of any driver.
    pub(super) devices: usize,
}

/// What is known of a node while its slices are parsed.
pub(super) struct Site<'s> {
    pub(super) node: &'s Node,
    pub(super) slices: Vec<ResourceSlice>,
    pub(super) claims: Vec<ResourceClaim>,
    pub(super) allocated: Allocated,
}

impl<'a> Question<'a> {
    pub(super) fn new(
        snapshot: &'a Snapshot,
        catalog: &'a Catalog<'a>,
        pod: Option<&'a Pod>,
        (open, held): (&'a [ResourceClaim], &'a [ResourceClaim]),
        extended: bool,
        features: Features,
    ) -> Self {
        let mut taken: HashMap<(String, String), Vec<(String, ClaimRef)>> = HashMap::new();
        for claim in &snapshot.claims {
            let results = claim
                .status
                .as_ref()
                .and_then(|it| it.allocation.as_ref()?.devices.as_ref()?.results.as_ref());
            for result in results.into_iter().flatten().filter(|it| it.admin_access != Some(true)) {
                let pool = taken.entry((result.driver.clone(), result.pool.clone())).or_default();
                pool.push((result.device.clone(), ClaimRef::of(claim)));
            }
        }
        Self {
            snapshot,
            catalog,
            pod,
            open,
            held,
            extended,
            features,
            taken,
            max_steps: MAX_STEPS,
            programs: Programs::default(),
        }
    }

    /// Everything about a node that the allocator needs.
    pub(super) fn site<'s>(&self, node: &'s Node) -> Result<Site<'s>, String> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let slices = self.snapshot.slices.of_node(name).map_err(|error| error.to_string())?;
        let mut claims = self.open.to_vec();
        if let Some(pod) = self.pod.filter(|_| self.extended) {
            claims.extend(self.catalog.extended_claim(pod, node));
        }
        let mut allocated = Allocated::default();
        let mut pools: Vec<(&str, &str)> =
            slices.iter().map(|it| (it.spec.driver.as_str(), it.spec.pool.name.as_str())).collect();
        pools.sort_unstable();
        pools.dedup();
        for (driver, pool) in pools {
            let (driver, pool) = (driver.to_owned(), pool.to_owned());
            let key = (driver, pool);
            for (device, claim) in self.taken.get(&key).into_iter().flatten() {
                let (driver, pool) = key.clone();
                allocated.insert(DeviceId { driver, pool, device: device.clone() }, claim.clone());
            }
        }
        Ok(Site { node, slices, claims, allocated })
    }

    pub(super) fn cluster<'s>(&'s self, slices: &'s [ResourceSlice]) -> Cluster<'s> {
        let cluster = Cluster::new(slices, &self.snapshot.classes, self.features);
        cluster.with_max_steps(self.max_steps).with_programs(&self.programs)
    }

    /// Sets how many candidates are tried on a node.
    pub(super) fn limit(&mut self, max_steps: usize) {
        self.max_steps = max_steps;
    }

    /// Everything that keeps the pod away from a node, apart from devices.
    pub(super) fn rules(&self, node: &Node) -> Vec<Rule> {
        let served = |resource: &str| self.extended && self.catalog.extended().class_of(resource).is_some();
        let mut found = self.pod.map_or_else(Vec::new, |pod| rules(pod, node));
        found.extend(self.pod.iter().flat_map(|pod| too_large(pod, node, &served)));
        for claim in self.held {
            let selector =
                claim.status.as_ref().and_then(|it| it.allocation.as_ref()?.node_selector.as_ref());
            if selector.is_some_and(|it| !dra_allocator::selects_node(it, node)) {
                let name = claim.metadata.name.as_deref().unwrap_or_default();
                found.push(Rule {
                    why: format!("claim {name} is allocated on another node"),
                    advice: format!("end the pods that use claim {name}, and it is allocated again"),
                    is_choice: true,
                });
            }
        }
        found
    }

    /// Asks the nodes. The answers are in their order. Once a node has fit, the others give no reasons.
    pub(super) fn ask(&self, nodes: &[(&Node, Vec<Rule>)]) -> Vec<NodeAnswer> {
        let (next, shared) = (AtomicUsize::new(0), Shared::default());
        let answers = Mutex::new(Vec::with_capacity(nodes.len()));
        let work = || {
            let mut mine = Vec::new();
            while let Some((node, rules)) = nodes.get(next.fetch_add(1, Ordering::Relaxed)) {
                mine.push(self.answer(node, rules.clone(), &shared));
            }
            // A panic in another thread is passed on by the scope.
            answers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend(mine);
        };
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(nodes.len());
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        let answers = answers.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut by_name: BTreeMap<String, NodeAnswer> =
            answers.into_iter().map(|answer| (answer.name.clone(), answer)).collect();
        let name = |node: &Node| node.metadata.name.clone().unwrap_or_default();
        nodes.iter().filter_map(|(node, _)| by_name.remove(&name(node))).collect()
    }

    fn answer(&self, node: &Node, rules: Vec<Rule>, shared: &Shared) -> NodeAnswer {
        let mut answer = NodeAnswer {
            name: node.metadata.name.clone().unwrap_or_default(),
            rules,
            outcome: Outcome::Fits(Vec::new()),
            fits_empty: false,
            only_leak: false,
            pools: Vec::new(),
            tallies: BTreeMap::new(),
            offer: Offer::default(),
            counters_in_use: false,
            fits_by_counters: false,
        };
        let site = match self.site(node) {
            Ok(site) => site,
            Err(why) => {
                answer.outcome = Outcome::Unreadable(why);
                return answer;
            }
        };
        let cluster = self.cluster(&site.slices);
        answer.counters_in_use = any_counted(&site.slices, &site.allocated);
        let attempt = cluster.attempt(node, &site.claims, &site.allocated);
        match attempt.outcome() {
            Ok(allocations) => {
                shared.fits.store(true, Ordering::Relaxed);
                let claims = with_allocations(&site.claims, allocations);
                answer.fits_by_counters = any_counted(&site.slices, &Allocated::of(&claims));
                answer.outcome = Outcome::Fits(claims);
                return answer;
            }
            Err(refusal) => answer.outcome = Outcome::Refused(refusal.clone()),
        }
        if shared.fits.load(Ordering::Relaxed) {
            return answer;
        }
        if !shared.fits_empty.load(Ordering::Relaxed) {
            answer.fits_empty = attempt.fits_empty();
            shared.fits_empty.fetch_or(answer.fits_empty, Ordering::Relaxed);
        }
        let explanation = attempt.explain();
        answer.only_leak = explanation.fits_without_leak == Some(true);
        answer.pools = explanation.pools;
        for report in &explanation.requests {
            let key = (report.claim.to_string(), report.request.clone());
            answer.tallies.entry(key).or_default().add(&Tally::of(report));
        }
        answer.offer = Offer::of(&site.slices, &gpus(&site.slices, &site.allocated));
        answer
    }
}

/// What the threads tell each other.
#[derive(Default)]
struct Shared {
    fits: AtomicBool,
    fits_empty: AtomicBool,
}

/// Whether one of the devices consumes counters.
fn any_counted(slices: &[ResourceSlice], allocated: &Allocated) -> bool {
    let counted = |it: &&Device| it.consumes_counters.as_ref().is_some_and(|it| !it.is_empty());
    slices.iter().any(|slice| {
        let (driver, pool) = (&slice.spec.driver, &slice.spec.pool.name);
        slice.spec.devices.iter().flatten().filter(counted).any(|device| {
            let id = DeviceId { driver: driver.clone(), pool: pool.clone(), device: device.name.clone() };
            allocated.holder(&id).is_some()
        })
    })
}

/// Claims as they are once they are allocated.
pub(super) fn with_allocations(
    claims: &[ResourceClaim],
    allocations: &[AllocationResult],
) -> Vec<ResourceClaim> {
    let pairs = claims.iter().zip(allocations);
    pairs
        .map(|(claim, allocation)| {
            let mut claim = claim.clone();
            claim.status.get_or_insert_default().allocation = Some(allocation.clone());
            claim
        })
        .collect()
}

impl Offer {
    pub(super) fn of(slices: &[ResourceSlice], gpus: &[Gpu]) -> Self {
        let mut offer = Self::default();
        offer.published.add(gpus);
        offer.devices = slices.iter().map(|it| it.spec.devices.as_ref().map_or(0, Vec::len)).sum();
        let mut overlap = false;
        for gpu in gpus {
            offer.is_counted |= gpu.is_counted;
            let is_mig = gpu.devices.iter().any(|it| it.profile.is_some());
            offer.has_mig |= is_mig;
            if !is_mig && !gpu.is_counted {
                offer.whole_only.push((gpu.name().to_owned(), gpu.product.clone()));
            }
            if !gpu.is_counted {
                for device in gpu.devices.iter().filter(|it| it.holder.is_none() && it.taints.is_empty()) {
                    let profile = device.profile.clone().unwrap_or_else(|| "full".to_owned());
                    *offer.free.entry(profile).or_default() += 1;
                }
                // Without counters a whole GPU beside its own MIG devices can only be what is left of counters.
                overlap |= is_mig && gpu.devices.iter().any(|it| it.profile.is_none());
            }
        }
        // The slice of the counters stays behind as an empty one.
        let is_empty = |it: &ResourceSlice| it.spec.devices.is_none() && it.spec.shared_counters.is_none();
        offer.dropped = overlap && slices.iter().any(is_empty);
        offer
    }
}
