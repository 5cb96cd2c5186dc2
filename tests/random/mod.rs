//! Random operations against a model of what must hold: calls of the kubelet, alone and many at once, restarts, reboots,
//! instances and processes of others, an API server that fails, claims that vanish.
//!
//! `DRA_SEED=<number>` repeats one run; `DRA_SOAK=1` makes more of them, with new seeds.
#![allow(clippy::print_stderr, reason = "the seed is what a failure is repeated with")]

mod model;

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::common;
use common::{ControlPlane, DRIVER, Lab, Random, eventually, is_soak, promised, try_prepare, try_unprepare};
use futures::future::join_all;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Api;
use kube::api::DeleteParams;
use kube_sim::kubelet::Plugin;
use kube_sim::{ApiServer, Fault, RequestInfo};
use model::{CUTS, Expected, Foreign, Model, Part, State, Tenant};
use nvml_sim::{GiSnapshot, GpuSnapshot, Process};
use tokio::time::timeout;

const GPUS: usize = 2;
const SEEDS: [u64; 8] = [1, 2, 3, 4, 5, 6, 7, 8];
const STEPS: usize = 100;
/// As many claims as a node may have here at a time.
const MOST_TENANTS: usize = 9;

/// Recovery takes ten seconds at most for a claim.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node, and the model of it.
struct World {
    lab: Lab,
    kubelet: Plugin,
    random: Random,
    seed: u64,
    model: Model,
    operations: usize,
    named: usize,
    /// The driver has asked once whether its claims exist and asks no more: what is deleted now it cannot notice.
    is_blind: bool,
    history: Vec<String>,
}

/// What the kubelet wants of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Prepare,
    Unprepare,
    /// Both at once.
    Race,
}

impl World {
    async fn new(seed: u64) -> Self {
        let lab = Lab::new(ControlPlane::simulated(true).await, &format!("{GPUS}xH100-80GB")).await;
        let mut lab = lab.with_args(&["--call-budget", "3", "--rescan-interval", "3600"]);
        lab.start();
        let kubelet = lab.kubelet().await;
        let (random, model) = (Random::of(seed), Model::default());
        let (operations, named, history) = (0, 0, Vec::new());
        Self { lab, kubelet, random, seed, model, operations, named, is_blind: false, history }
    }

    fn note(&mut self, what: String) {
        self.operations += 1;
        self.history.push(what);
    }

    fn fail(&self, what: &str) -> ! {
        let last = self.history[self.history.len().saturating_sub(40)..].join("\n  ");
        panic!("{what}\nrepeat with DRA_SEED={}; what happened last:\n  {last}\n{:#?}", self.seed, self.model)
    }

    async fn step(&mut self) {
        match self.random.below(100) {
            0..20 => self.add_tenant().await,
            20..75 => self.call_many().await,
            75..78 => self.restart(false).await,
            78..80 => self.restart(true).await,
            80..85 => self.plant(),
            85..89 => self.uproot(),
            89..92 => self.start_process(),
            92..95 => self.end_processes(|_| true),
            95..97 => self.set_api(!self.model.api_is_down),
            97..98 => self.delete_by_force().await,
            98 => self.reallocate().await,
            _ => self.retire().await,
        }
        self.check();
    }

    /// The scheduler allocates a claim: one device, or up to three.
    async fn add_tenant(&mut self) {
        if self.model.tenants.len() >= MOST_TENANTS {
            return self.retire().await;
        }
        let (parts, names) = self.some_free();
        if parts.is_empty() {
            return;
        }
        self.named += 1;
        let results: Vec<(&str, &str, &str)> = names.iter().map(|it| ("gpu", DRIVER, it.as_str())).collect();
        let claim = self.lab.claim(&format!("c{}", self.named), &results).await;
        self.note(format!("new {} with {names:?}", claim.name));
        let answer = promised(&self.lab.node_name, &claim, &names);
        let tenant =
            Tenant { claim, parts, answer, state: State::Free, next: None, exists: true, process: None };
        self.model.tenants.push(tenant);
    }

    /// Up to three devices that the scheduler thinks to be free.
    fn some_free(&mut self) -> (Vec<Part>, Vec<String>) {
        let (mut parts, mut names): (Vec<Part>, Vec<String>) = (Vec::new(), Vec::new());
        for _ in 0..=self.random.below(3) {
            let gpu = self.random.below(GPUS);
            let (rest, _, start, size) = *self.random.pick(&CUTS);
            let part = Part { gpu, start, size, is_whole: rest.is_empty() };
            if self.model.is_unallocated(&part) && !parts.iter().any(|it| it.overlaps(&part)) {
                parts.push(part);
                names.push(format!("{}{rest}", self.lab.gpu_name(gpu)));
            }
        }
        (parts, names)
    }

    /// A pod is deleted by force, its claim deallocated and allocated again, while the node has what it had before.
    async fn reallocate(&mut self) {
        let may_be =
            |it: &Tenant| it.exists && it.next.is_none() && matches!(it.state, State::Free | State::Prepared);
        let Some(number) = self.model.tenants.iter().position(may_be) else { return };
        let (parts, names) = self.some_free();
        if parts.is_empty() {
            return;
        }
        let claim = self.model.tenants[number].claim.clone();
        self.lab.reallocate(&claim, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
        self.note(format!("{} is allocated {names:?} instead", claim.name));
        let answer = promised(&self.lab.node_name, &claim, &names);
        let tenant = &mut self.model.tenants[number];
        tenant.next = Some((parts, answer));
        tenant.becomes(tenant.state);
    }

    /// Some claims at once, each asked for one to three times.
    async fn call_many(&mut self) {
        let mut wishes = Vec::new();
        for number in 0..self.model.tenants.len() {
            let tenant = &self.model.tenants[number];
            let wish = match self.random.below(10) {
                0..4 if tenant.may_be_prepared() && !tenant.is_between() => Wish::Prepare,
                4..6 => Wish::Unprepare,
                6 if tenant.exists && tenant.next.is_none() && tenant.process.is_none() => Wish::Race,
                _ => continue,
            };
            wishes.push((number, wish, 1 + self.random.below(3)));
        }
        let refuses = |it: &(usize, Wish, usize)| self.model.unprepare(it.0) != Expected::Done;
        let leaving: BTreeSet<usize> =
            wishes.iter().filter(|it| it.1 == Wish::Unprepare && !refuses(it)).map(|it| it.0).collect();
        // Whether a race's prepare has what it needs must not depend on the others.
        let is_sure = |it: &(usize, Wish, usize)| {
            it.1 != Wish::Race
                || (!self.model.api_is_down && self.model.prepare(it.0, &BTreeSet::new()) == Expected::Done)
        };
        wishes.retain(is_sure);
        for &(number, wish, times) in &wishes {
            for _ in 0..times {
                self.note(format!("{wish:?} {}", self.model.tenants[number].claim.name));
            }
        }
        let (model, kubelet) = (&self.model, &self.kubelet);
        let calls = wishes.iter().flat_map(|&(number, wish, times)| {
            let leaving = &leaving;
            (0..times).map(move |turn| {
                let is_prepare = wish == Wish::Prepare || (wish == Wish::Race && turn % 2 == 0);
                async move { (number, call(model, kubelet, number, is_prepare, leaving).await.err()) }
            })
        });
        let wrong = join_all(calls).await;
        if let Some((number, Some(error))) = wrong.into_iter().find(|it| it.1.is_some()) {
            self.fail(&format!("{}: {error}", self.model.tenants[number].claim.name));
        }
        let recorded = self.lab.recorded();
        // All were expected from the state before: only now it changes.
        let states: Vec<(usize, State)> = wishes
            .iter()
            .map(|&(number, wish, _)| (number, self.state_after(number, wish, &leaving, &recorded)))
            .collect();
        for (number, state) in states {
            self.model.tenants[number].becomes(state);
        }
    }

    fn state_after(
        &self,
        number: usize,
        wish: Wish,
        leaving: &BTreeSet<usize>,
        recorded: &[String],
    ) -> State {
        let tenant = &self.model.tenants[number];
        let is_recorded = recorded.contains(&tenant.claim.uid);
        match wish {
            Wish::Unprepare if leaving.contains(&number) => State::Free,
            Wish::Unprepare => State::Leaving,
            Wish::Race if is_recorded => State::Prepared,
            Wish::Race => State::Free,
            Wish::Prepare => match self.model.prepare(number, leaving) {
                Expected::Done => State::Prepared,
                Expected::Refused(_) if !is_recorded => State::Free,
                // What cannot be taken back in time stays on record.
                Expected::Refused(_) if tenant.state == State::Free => State::Leaving,
                Expected::Refused(_) => tenant.state,
            },
        }
    }

    /// The driver ends and starts, with the machine or without it.
    async fn restart(&mut self, with_machine: bool) {
        if self.model.tenants.iter().any(Tenant::is_orphan) {
            self.set_api(false);
        }
        // What is still used cannot be taken down, and keeps recovery busy.
        self.end_processes(|it| it.state == State::Leaving || it.is_orphan());
        self.lab.stop().await;
        if with_machine {
            self.lab.sim.reboot().unwrap();
            if self.random.percent(50) {
                std::fs::remove_dir_all(self.lab.path("cdi")).unwrap();
            }
            self.model.foreign.clear();
            for tenant in self.model.tenants.iter_mut() {
                tenant.process = None;
                if tenant.state == State::Prepared {
                    tenant.state = State::Stale;
                }
            }
        }
        self.note(if with_machine { "reboot".to_owned() } else { "restart".to_owned() });
        let asked = self.server().requests().len();
        self.lab.start();
        self.kubelet = self.lab.kubelet().await;
        for tenant in self.model.tenants.iter_mut() {
            if tenant.state == State::Leaving || tenant.is_orphan() {
                tenant.becomes(State::Free);
            }
        }
        let wanted = self.recorded();
        let settled = async || (BTreeSet::from_iter(self.lab.recorded()) == wanted).then_some(());
        if timeout(PATIENCE, eventually("recovery settles", settled)).await.is_err() {
            self.fail(&format!("recovery has left {:?} and not {wanted:?}", self.lab.recorded()));
        }
        self.is_blind = !self.model.api_is_down;
        if self.is_blind {
            self.wait_for_the_questions_after(asked).await;
        }
    }

    /// Returns once the driver has asked twice for every claim that it has, which it does after its start: what its status
    /// says, and whether it exists. They come in any order.
    async fn wait_for_the_questions_after(&self, start: usize) {
        let has_asked = async || {
            let requests = self.server().requests().split_off(start);
            let is_asked = |it: &Tenant| {
                let path = format!("/resourceclaims/{}", it.claim.name);
                requests.iter().filter(|it| it.method == "GET" && it.path.ends_with(&path)).count() > 1
            };
            self.model.tenants.iter().filter(|it| it.is_recorded()).all(is_asked).then_some(())
        };
        if timeout(PATIENCE, eventually("claims are asked for", has_asked)).await.is_err() {
            self.fail("the driver does not ask whether its claims exist");
        }
    }

    fn server(&self) -> &ApiServer {
        let ControlPlane::Simulated(server) = &self.lab.plane else { unreachable!("it is simulated") };
        server
    }

    /// Somebody else makes an instance.
    fn plant(&mut self) {
        let gpu = self.random.below(GPUS);
        let (rest, profile, start, size) = *self.random.pick(&CUTS);
        let part = Part { gpu, start, size, is_whole: rest.is_empty() };
        if part.is_whole || !self.model.is_open_to_others(&part) {
            return;
        }
        // It may not fit beside what is there for other reasons than its place.
        let Ok(planted) = self.lab.sim.plant_instance(gpu, profile, start) else { return };
        let found = self.lab.sim.snapshot().unwrap().gpus[gpu].gpu_instances.clone();
        let serial = found.iter().find(|it| it.id == planted.gpu_instance).unwrap().serial;
        self.note(format!("somebody makes {part:?}"));
        self.model.foreign.push(Foreign { part, serial });
    }

    /// And destroys it.
    fn uproot(&mut self) {
        if self.model.foreign.is_empty() {
            return;
        }
        let gone = self.random.below(self.model.foreign.len());
        let Foreign { part, serial } = self.model.foreign.swap_remove(gone);
        self.note(format!("somebody destroys {part:?}"));
        self.lab.sim.on_gpu(part.gpu, |gpu| gpu.instances.retain(|it| it.serial != serial)).unwrap();
    }

    /// A program of a pod uses its MIG device.
    fn start_process(&mut self) {
        let pid = 1_000 + u32::try_from(self.operations).unwrap();
        let ready = |it: &&mut Tenant| it.state == State::Prepared && it.process.is_none();
        let Some(tenant) = self.model.tenants.iter_mut().find(ready) else { return };
        let Some(part) = tenant.parts.iter().find(|it| !it.is_whole).copied() else { return };
        let run = |gpu: &mut nvml_sim::Gpu| {
            let instance =
                gpu.instances.iter().find(|it| it.start == part.start && it.size == part.size).unwrap();
            let (gpu_instance, compute_instance) =
                (Some(instance.id), Some(instance.compute_instances[0].id));
            gpu.processes.push(Process { pid, gpu_instance, compute_instance, memory_mib: 1 });
        };
        self.lab.sim.on_gpu(part.gpu, run).unwrap();
        tenant.process = Some((part.gpu, pid));
        let name = tenant.claim.name.clone();
        self.note(format!("process {pid} of {name} starts"));
    }

    fn end_processes(&mut self, of: impl Fn(&Tenant) -> bool) {
        for tenant in self.model.tenants.iter_mut().filter(|it| of(it)) {
            if let Some((gpu, pid)) = tenant.process.take() {
                self.lab.sim.remove_process(gpu, pid).unwrap();
                self.history.push(format!("process {pid} ends"));
            }
        }
    }

    /// The API server fails for claims, in one way or another, or works again.
    fn set_api(&mut self, is_down: bool) {
        self.server().clear_faults();
        if is_down {
            let fault = *self.random.pick(&[Fault::Status(503), Fault::Status(404), Fault::Garbage]);
            let is_claim = |it: &RequestInfo| it.method == "GET" && it.path.contains("/resourceclaims/");
            self.server().inject(usize::MAX, is_claim, fault);
        }
        self.model.api_is_down = is_down;
        self.note(format!("API server is down: {is_down}"));
    }

    /// A pod is deleted by force and its claim goes, while the node still has what it was promised.
    async fn delete_by_force(&mut self) {
        let with_pod = |it: &Tenant| self.is_blind && it.exists && it.is_recorded();
        let Some(number) = self.model.tenants.iter().position(with_pod) else { return };
        self.delete(number).await;
    }

    /// Claims that have nothing any more are deleted.
    async fn retire(&mut self) {
        while let Some(number) = self.model.tenants.iter().position(|it| !it.is_recorded()) {
            if self.model.tenants[number].exists {
                self.delete(number).await;
            }
            self.model.tenants.swap_remove(number);
        }
    }

    async fn delete(&mut self, number: usize) {
        let tenant = &mut self.model.tenants[number];
        tenant.exists = false;
        let name = tenant.claim.name.clone();
        let api: Api<ResourceClaim> = Api::namespaced(self.lab.client.clone(), "default");
        api.delete(&name, &DeleteParams::default()).await.unwrap();
        self.note(format!("ResourceClaim {name} is deleted"));
    }

    fn recorded(&self) -> BTreeSet<String> {
        let recorded = self.model.tenants.iter().filter(|it| it.is_recorded());
        recorded.map(|it| it.claim.uid.clone()).collect()
    }

    /// Nobody calls: hardware and files are what the model says.
    fn check(&self) {
        let recorded = self.recorded();
        let found = BTreeSet::from_iter(self.lab.recorded());
        if found != recorded {
            self.fail(&format!("state files of {found:?} and not of {recorded:?}"));
        }
        let in_cdi = BTreeSet::from_iter(self.lab.in_cdi());
        if !in_cdi.is_subset(&recorded) {
            self.fail(&format!("CDI files of {in_cdi:?} and state files of {recorded:?}"));
        }
        for gpu in &self.lab.sim.snapshot().unwrap().gpus {
            self.check_gpu(gpu);
        }
        for tenant in self.model.tenants.iter().filter(|it| it.state == State::Prepared) {
            if !in_cdi.contains(&tenant.claim.uid) {
                self.fail(&format!("no CDI file of {}", tenant.claim.name));
            }
        }
    }

    fn check_gpu(&self, found: &GpuSnapshot) {
        let gpu = found.index;
        let mut wanted = Vec::new();
        for tenant in self.model.tenants.iter().filter(|it| it.state == State::Prepared) {
            wanted.extend(tenant.parts.iter().filter(|it| it.gpu == gpu).copied());
        }
        let part = |it: &GiSnapshot| Part { gpu, start: it.start, size: it.size, is_whole: false };
        for instance in &found.gpu_instances {
            let part = part(instance);
            let is_foreign =
                self.model.foreign.iter().any(|it| it.part == part && it.serial == instance.serial);
            let may_be = |it: &Tenant| it.state == State::Leaving && it.parts.contains(&part);
            let is_ours = wanted.contains(&part) || self.model.tenants.iter().any(may_be);
            if !is_foreign && !is_ours {
                self.fail(&format!("nobody owns {instance:?} on GPU {gpu}"));
            }
            if instance.compute_instances.len() != 1 && !may_be_bare(&self.model, &part) {
                self.fail(&format!("not one compute instance in {instance:?} on GPU {gpu}"));
            }
        }
        for it in &wanted {
            let is_there = found.gpu_instances.iter().any(|instance| part(instance) == *it);
            let is_right = if it.is_whole { !found.mig_current } else { is_there };
            if !is_right {
                self.fail(&format!("{it:?} is missing"));
            }
        }
        for foreign in self.model.foreign.iter().filter(|it| it.part.gpu == gpu) {
            if !found.gpu_instances.iter().any(|it| it.serial == foreign.serial) {
                self.fail(&format!("the driver has destroyed {foreign:?}"));
            }
        }
    }
}

/// Only what an unprepare has begun to destroy may be without its compute instance.
fn may_be_bare(model: &Model, part: &Part) -> bool {
    model.tenants.iter().any(|it| it.state == State::Leaving && it.parts.contains(part))
}

/// One call, held against what the model says.
async fn call(
    model: &Model,
    kubelet: &Plugin,
    number: usize,
    is_prepare: bool,
    leaving: &BTreeSet<usize>,
) -> Result<(), String> {
    let tenant = &model.tenants[number];
    let expected = if is_prepare { model.prepare(number, leaving) } else { model.unprepare(number) };
    let mut result;
    loop {
        result = if is_prepare {
            let answer = try_prepare(kubelet, &tenant.claim).await;
            if let Ok(devices) = &answer
                && *devices != tenant.answer
            {
                return Err(format!("{devices:?} and not {:?}", tenant.answer));
            }
            answer.map(|_| ())
        } else {
            try_unprepare(kubelet, &tenant.claim).await
        };
        // A busy machine can make the work outlive its call: then it goes on, and the next call says how it ended.
        match &result {
            Err(error) if is_out_of_time(error) => {}
            _ => break,
        }
    }
    match (&expected, &result) {
        (Expected::Done, Ok(())) => Ok(()),
        // One of several calls may get no other reason than that another one has not ended.
        (Expected::Refused(words), Err(error))
            if words.iter().any(|it| error.contains(it)) || error.contains("another call") =>
        {
            Ok(())
        }
        _ => Err(format!("prepare {is_prepare}: {result:?}, expected {expected:?}")),
    }
}

/// True for an error that says no more than that the call had too little time.
fn is_out_of_time(error: &str) -> bool {
    ["the driver goes on", "is still being taken back", "no answer within 0 s"]
        .iter()
        .any(|it| error.contains(it))
}

async fn live(seed: u64) -> usize {
    let mut world = World::new(seed).await;
    for _ in 0..STEPS {
        world.step().await;
    }
    // In the end everything can be given back.
    world.end_processes(|_| true);
    world.set_api(false);
    for number in 0..world.model.tenants.len() {
        if let Err(error) = try_unprepare(&world.kubelet, &world.model.tenants[number].claim).await {
            world.fail(&error);
        }
        world.model.tenants[number].state = State::Free;
    }
    world.check();
    assert_eq!(world.lab.files("cdi"), Vec::<String>::new());
    world.lab.stop().await;
    world.operations
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_the_model_holds() {
    let seeds = match std::env::var("DRA_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) if is_soak() => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
            (0..64).map(|it| now * 64 + it).collect()
        }
        Err(_) => SEEDS.to_vec(),
    };
    let mut operations = 0;
    for some in seeds.chunks(SEEDS.len()) {
        eprintln!("random: seeds {some:?}");
        operations += join_all(some.iter().map(|seed| live(*seed))).await.into_iter().sum::<usize>();
    }
    eprintln!("random: {operations} operations with {} seeds, the model held", seeds.len());
}
