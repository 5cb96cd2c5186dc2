//! The GPUs of a plan: who has which memory slices, and which free ones are stranded.
//!
//! A free memory slice is stranded if no device that could be allocated now includes it: no pod can use it until another device
//! ends. It is stranded for the mix if no such device is one that the pods of the plan ask for.

use std::collections::{BTreeMap, BTreeSet};

use dra_allocator::{Allocated, DeviceId};
use k8s_openapi::api::resource::v1::{
    DeviceClaim, DeviceClass, DeviceRequest, ExactDeviceRequest, ResourceClaim, ResourceClaimSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::engine::{Engine, Outcome};
use super::stock::Site;
use super::workload::Workload;
use crate::gpu::{Gpu, GpuDevice};

/// Name of a class that selects every device; no class of a cluster has it.
const ANY_CLASS: &str = "any-device.kubectl-mig.invalid";

/// A GPU of the plan.
#[derive(Debug)]
pub(super) struct MappedGpu {
    pub(super) node: String,
    pub(super) gpu: Gpu,
    /// Which workload has what, in the order of the devices: profile, first cell, cells. `None` for pods outside the plan.
    pub(super) instances: Vec<Instance>,
    /// Memory slices that no claim has.
    pub(super) free: BTreeSet<usize>,
    /// Those of them that no device can use.
    pub(super) stranded: BTreeSet<usize>,
    /// Those of them that no device for these pods can use.
    pub(super) stranded_for_mix: BTreeSet<usize>,
}

/// An allocated device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Instance {
    pub(super) workload: Option<usize>,
    /// `full` for a whole GPU.
    pub(super) profile: String,
    pub(super) start: usize,
    pub(super) cells: usize,
    pub(super) claim: String,
    pub(super) device: String,
}

/// A class for every device.
pub(super) fn any_class() -> DeviceClass {
    let metadata = ObjectMeta { name: Some(ANY_CLASS.to_owned()), ..ObjectMeta::default() };
    DeviceClass { metadata, ..DeviceClass::default() }
}

/// A claim for one device of any kind.
fn any_claim() -> ResourceClaim {
    let exactly =
        ExactDeviceRequest { device_class_name: ANY_CLASS.to_owned(), ..ExactDeviceRequest::default() };
    let request =
        DeviceRequest { name: "any".to_owned(), exactly: Some(exactly), ..DeviceRequest::default() };
    let devices = DeviceClaim { requests: Some(vec![request]), ..DeviceClaim::default() };
    ResourceClaim { spec: ResourceClaimSpec { devices: Some(devices) }, ..ResourceClaim::default() }
}

/// Names of the devices that could be allocated now: any, and those that the pods of the plan ask for.
type Usable = (BTreeSet<String>, BTreeSet<String>);

/// The workload that has a device, by node, driver, pool and device.
type Owners<'o> = BTreeMap<(usize, &'o str, &'o str, &'o str), usize>;

/// The GPUs of all nodes.
pub(super) fn map(engine: &Engine<'_>, outcome: &Outcome, workloads: &[Workload]) -> Vec<MappedGpu> {
    let mut of_device: Owners<'_> = BTreeMap::new();
    for planned in &outcome.pods {
        let Some((site, claims)) = &planned.place else { continue };
        for result in claims.iter().flat_map(|(_, results)| results) {
            of_device.insert((*site, &result.driver, &result.pool, &result.device), planned.workload);
        }
    }
    let mut all = Vec::new();
    // Nodes of one kind that have the same devices allocated have the same ones left.
    let mut known: BTreeMap<(usize, Vec<DeviceId>), Usable> = BTreeMap::new();
    for (index, site) in outcome.sites.iter().enumerate() {
        let book = &outcome.books[site.book];
        let allocated: Vec<DeviceId> = book.iter().map(|(device, _)| device.clone()).collect();
        let (any, mix) =
            known.entry((site.kind, allocated)).or_insert_with(|| usable(engine, site, book, workloads));
        for gpu in engine.kinds[site.kind].gpus(book) {
            all.push(mapped(gpu, (index, site), &of_device, any, mix));
        }
    }
    all
}

fn mapped(
    gpu: Gpu,
    (index, site): (usize, &Site),
    of_device: &Owners<'_>,
    any: &BTreeSet<String>,
    mix: &BTreeSet<String>,
) -> MappedGpu {
    let mut free: BTreeSet<usize> = (0..gpu.memory_slices).collect();
    let mut instances = Vec::new();
    for device in &gpu.devices {
        let Some(holder) = &device.holder else { continue };
        free.retain(|cell| !device.slices.contains(cell));
        instances.push(Instance {
            workload: of_device.get(&(index, &gpu.driver, &gpu.pool, &device.name)).copied(),
            profile: device.profile.clone().unwrap_or_else(|| "full".to_owned()),
            start: device.slices.start,
            cells: device.slices.len(),
            claim: holder.to_string(),
            device: device.name.clone(),
        });
    }
    instances.sort_by(|a, b| a.start.cmp(&b.start).then_with(|| a.device.cmp(&b.device)));
    let reachable = |names: &BTreeSet<String>| -> BTreeSet<usize> {
        let devices = gpu.devices.iter().filter(|it: &&GpuDevice| names.contains(&it.name));
        devices.flat_map(|it| it.slices.clone()).collect()
    };
    let stranded = &free - &reachable(any);
    let stranded_for_mix = &free - &reachable(mix);
    MappedGpu { node: site.name.clone(), gpu, instances, free, stranded, stranded_for_mix }
}

/// Names of the devices that could be allocated now: any, and those that the pods ask for.
fn usable(engine: &Engine<'_>, site: &Site, book: &Allocated, workloads: &[Workload]) -> Usable {
    let (cluster, node) = (&engine.clusters[site.kind], engine.node_of(site));
    let names = |claims: &[ResourceClaim]| -> BTreeSet<String> {
        let explanation = cluster.explain(node, claims, book);
        explanation.requests.iter().flat_map(|it| it.usable()).map(|it| it.device.clone()).collect()
    };
    let mut mix = BTreeSet::new();
    for workload in workloads {
        let mut claims = workload.claims.clone();
        claims.iter_mut().for_each(|it| it.status = None);
        claims.extend(engine.extended_claim(&workload.demand.pod, site.node.as_ref().unwrap_or(node)));
        if !claims.is_empty() {
            mix.extend(names(&claims));
        }
    }
    (names(&[any_claim()]), mix)
}

impl MappedGpu {
    /// Whether pods of the plan have something of it.
    pub(super) fn is_used(&self) -> bool {
        self.instances.iter().any(|it| it.workload.is_some())
    }

    /// How the price of the GPU is divided: by memory slices, where it has some.
    pub(super) fn shares(&self) -> Vec<(Option<usize>, usize)> {
        self.instances.iter().map(|it| (it.workload, it.cells.max(1))).collect()
    }
}
