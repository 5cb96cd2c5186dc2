//! Pods that ask for the same, and what serves them. The allocator of the scheduler says which devices do.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use dra_allocator::cel_env::Programs;
use dra_allocator::{Allocated, Cluster, Features, Refusal};
use k8s_openapi::api::resource::v1::{DeviceClass, DeviceRequest, ResourceClaim};

use super::answers::{Answer, Answers};
use super::gpu::GpuLedger;
use super::kind::{Choice, IDENTITY, Kind, Set};
use super::ledger::NodeLedger;
use super::memory::Compiled;
use super::offer::{Pick, named, offer, slice};
use super::requests::{claim_of_class, classes, is_admin, is_single, is_waiting, requests, selectors};
use super::share::Share;
use super::world::{GpuState, PendingPod, World};

/// Steps of one search of the allocator for a pod with several devices.
const MAX_STEPS: usize = 20_000;

/// Different shapes that one round looks at.
const MAX_SHAPES: usize = 512;

/// The devices that serve a request, the best first, by kind of GPU.
pub(super) type Choices = HashMap<*const Kind, Arc<[Choice]>>;

/// What a pod needs of our driver.
#[derive(Debug)]
pub(super) enum Need {
    /// Nothing, or something that no GPU can be partitioned into.
    Nothing,
    /// One device: those that serve it, by kind of GPU.
    One(Choices),
    /// Several devices, or certain ones: asked node by node.
    Many,
}

/// Pods that ask for the same.
#[derive(Debug)]
pub(super) struct Shape {
    /// Claims that are not allocated, without requests for devices of other drivers.
    pub(super) claims: Vec<ResourceClaim>,
    pub(super) need: Need,
    /// Whether it matters which of several equal GPUs it is.
    is_particular: bool,
}

/// Makes shapes of pods.
pub(super) struct Shapes<'w> {
    world: &'w World,
    driver: &'w str,
    programs: Programs,
    answers: Answers,
    /// One GPU of each kind.
    kinds: Vec<&'w GpuState>,
    /// Whether a class may have devices of ours, by name.
    ours: HashMap<&'w str, bool>,
    known: HashMap<String, Rc<Shape>>,
    share: Share<'w>,
}

impl<'w> Shapes<'w> {
    pub(super) fn new(world: &'w World, driver: &'w str, compiled: &Compiled) -> Self {
        let mut seen = BTreeSet::new();
        let gpus = world.nodes.iter().flat_map(|it| &it.gpus);
        let kinds = gpus.filter(|it| seen.insert(Arc::as_ptr(&it.kind))).collect();
        Self {
            world,
            driver,
            programs: compiled.programs.clone(),
            answers: compiled.answers.clone(),
            kinds,
            ours: HashMap::new(),
            known: HashMap::new(),
            share: Share::new(MAX_SHAPES),
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.known.len()
    }

    /// The shape of a pod; `None` where too many others, or too many of its namespace, were looked at already.
    pub(super) fn of(&mut self, pod: &'w PendingPod) -> Option<Rc<Shape>> {
        let waiting: Vec<&'w ResourceClaim> =
            pod.claims.iter().filter(|it| is_waiting(it)).map(|it| &**it).collect();
        let key = waiting.iter().map(|it| serde_json::to_string(&it.spec).unwrap_or_default());
        let key = key.collect::<Vec<_>>().join("\n");
        if let Some(shape) = self.known.get(&key) {
            return Some(shape.clone());
        }
        if !self.share.take(&pod.namespace) {
            return None;
        }
        let shape = Rc::new(self.read(&waiting));
        self.known.insert(key, shape.clone());
        Some(shape)
    }

    fn read(&mut self, waiting: &[&'w ResourceClaim]) -> Shape {
        let mut claims = Vec::new();
        for claim in waiting {
            let mut claim = (*claim).clone();
            if let Some(devices) = &mut claim.spec.devices {
                let requests = devices.requests.take().unwrap_or_default();
                let ours: Vec<_> = requests.into_iter().filter(|it| self.is_ours(it)).collect();
                devices.requests = Some(ours);
            }
            if requests(&claim).next().is_some() {
                claims.push(claim);
            }
        }
        let is_particular = self.names_identity(&claims);
        let need = match &claims[..] {
            [] => Need::Nothing,
            [claim] if !is_particular && is_single(claim) => self.one(claim),
            claims if claims.iter().flat_map(requests).any(is_admin) => Need::Nothing,
            _ => Need::Many,
        };
        Shape { claims, need, is_particular }
    }

    /// Whether a request may get a device of ours. One whose class does not exist is kept, as nothing serves it.
    fn is_ours(&mut self, request: &DeviceRequest) -> bool {
        classes(request).into_iter().any(|class| {
            let Some(class) = self.world.classes.iter().find(|it| it.metadata.name.as_deref() == Some(class))
            else {
                return true;
            };
            let name = class.metadata.name.as_deref().unwrap_or_default();
            if let Some(known) = self.ours.get(name) {
                return *known;
            }
            let claim = claim_of_class(name);
            let is_ours = self
                .kinds
                .iter()
                .any(|gpu| (0..gpu.kind.devices.len()).any(|it| self.serves(gpu, it, &claim) != Ok(None)));
            self.ours.insert(name, is_ours);
            is_ours
        })
    }

    fn names_identity(&self, claims: &[ResourceClaim]) -> bool {
        let names = |expression: &str| {
            let short = IDENTITY.iter().map(|it| it.rsplit('/').next().unwrap_or(it));
            short.into_iter().any(|it| expression.contains(it))
        };
        let requests = || claims.iter().flat_map(requests);
        let in_request = requests().flat_map(selectors).any(|it| names(&it));
        let of_class = |class: &DeviceClass| {
            let selectors = class.spec.selectors.iter().flatten();
            selectors.filter_map(|it| it.cel.as_ref()).any(|it| names(&it.expression))
        };
        let used: BTreeSet<&str> = requests().flat_map(classes).collect();
        let is_used = |it: &&DeviceClass| it.metadata.name.as_deref().is_some_and(|it| used.contains(it));
        in_request || self.world.classes.iter().filter(is_used).any(of_class)
    }

    fn one(&self, claim: &ResourceClaim) -> Need {
        let request = self.depends_on(claim);
        let mut by_kind = HashMap::new();
        for gpu in &self.kinds {
            match self.answers.of(&request, &gpu.kind, || self.choices(gpu, claim)) {
                Some(choices) if choices.is_empty() => {}
                Some(choices) => drop(by_kind.insert(Arc::as_ptr(&gpu.kind), choices)),
                // A selector that fails on a device keeps the pod from all nodes.
                None => return Need::Nothing,
            }
        }
        if by_kind.is_empty() { Need::Nothing } else { Need::One(by_kind) }
    }

    /// The devices of a kind that serve a claim for one device.
    fn choices(&self, gpu: &GpuState, claim: &ResourceClaim) -> Answer {
        let mut choices = Vec::new();
        for device in 0..gpu.kind.devices.len() {
            if let Some(alternative) = self.serves(gpu, device, claim).ok()? {
                let Ok(device) = u8::try_from(device) else { break };
                choices.push(Choice { alternative, device });
            }
        }
        choices.sort_unstable();
        Some(choices.into())
    }

    /// All that the devices of a claim depend on beside the GPU: its requests and their classes.
    fn depends_on(&self, claim: &ResourceClaim) -> String {
        let names: BTreeSet<&str> = requests(claim).flat_map(classes).collect();
        let used = |it: &&DeviceClass| it.metadata.name.as_deref().is_some_and(|it| names.contains(it));
        let classes: Vec<_> =
            self.world.classes.iter().filter(used).map(|it| (&it.metadata.name, &it.spec)).collect();
        serde_json::to_string(&(&claim.spec, classes)).unwrap_or_default()
    }

    /// Whether a claim for one device is served by this one, and as which alternative. `Err` where the scheduler gives up.
    fn serves(&self, gpu: &GpuState, device: usize, claim: &ResourceClaim) -> Result<Option<u8>, ()> {
        let mut device = gpu.kind.devices[device].device.clone();
        device.consumes_counters = None;
        let slices = [slice(self.driver, "node", vec![device], None, 0, 1)];
        let cluster =
            Cluster::new(&slices, &self.world.classes, Features::DEFAULTS).with_programs(&self.programs);
        let found = cluster.allocate(&named("node"), std::slice::from_ref(claim), &Allocated::default());
        match found {
            Err(Refusal::Aborted(_)) => Err(()),
            Err(_) => Ok(None),
            Ok(found) => {
                let results = found.into_iter().filter_map(|it| it.devices?.results).flatten();
                let request = results.map(|it| it.request).next().unwrap_or_default();
                let position = |name: &str| {
                    let listed = requests(claim).next()?.first_available.as_ref()?;
                    listed.iter().position(|it| it.name == name)
                };
                let alternative = request.split_once('/').and_then(|it| position(it.1)).unwrap_or(0);
                Ok(Some(u8::try_from(alternative).unwrap_or(u8::MAX)))
            }
        }
    }

    /// The devices of a node that serve all the claims: of what is published, or of what is possible.
    pub(super) fn many(
        &self,
        shape: &Shape,
        node: &NodeLedger<'w>,
        of: Pool,
        claim: &str,
    ) -> Option<Vec<Pick>> {
        let pool = offer(self.driver, node, |it| of.set(&node.gpus[it]) & !node.gpus[it].barred(claim));
        let cluster = Cluster::new(&pool.slices, &self.world.classes, Features::ALL)
            .with_programs(&self.programs)
            .with_max_steps(MAX_STEPS)
            .with_leak_fixed();
        let found = cluster.allocate(&node.state.node, &shape.claims, &Allocated::default()).ok()?;
        let results = found.into_iter().filter_map(|it| it.devices?.results).flatten();
        let picks: Vec<Pick> = results.filter_map(|it| pool.picks.get(&it.device).copied()).collect();
        (!picks.is_empty()).then_some(picks)
    }

    /// What a node is to a shape, for remembering that it was asked: equal keys have equal answers.
    pub(super) fn key(shape: &Rc<Shape>, node: &NodeLedger<'w>, of: Pool, claim: &str) -> NodeKey {
        let which = if shape.is_particular {
            node.state.node.metadata.name.clone().unwrap_or_default()
        } else {
            String::new()
        };
        let gpus = node.gpus.iter().map(|gpu| {
            (std::ptr::from_ref(gpu.kind), of.set(gpu) & !gpu.barred(claim), gpu.room.left.clone())
        });
        NodeKey {
            shape: Rc::as_ptr(shape),
            which,
            of,
            pattern: pattern(&node.state.gpus),
            gpus: gpus.collect(),
        }
    }
}

/// Which devices are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Pool {
    /// What is offered.
    Published,
    /// The same, and what is about to be.
    Coming,
    /// What a change could bring.
    Possible,
}

impl Pool {
    fn set(self, gpu: &GpuLedger<'_>) -> Set {
        match self {
            Self::Published => gpu.room.published,
            Self::Coming => gpu.room.published | gpu.room.coming,
            Self::Possible => gpu.changeable(),
        }
    }
}

/// What the answer of a node depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct NodeKey {
    shape: *const Shape,
    which: String,
    of: Pool,
    pattern: Vec<u8>,
    gpus: Vec<(*const Kind, Set, Vec<i64>)>,
}

/// Which GPUs share values of the attributes in which GPUs differ.
fn pattern(gpus: &[GpuState]) -> Vec<u8> {
    let mut pattern = Vec::new();
    for attribute in IDENTITY {
        let mut values = Vec::new();
        for gpu in gpus {
            let value = gpu.identity.get(attribute);
            let known = values.iter().position(|it| *it == value);
            pattern.push(u8::try_from(known.unwrap_or(values.len())).unwrap_or(u8::MAX));
            if known.is_none() {
                values.push(value);
            }
        }
    }
    pattern
}
