//! Two hundred calls at once, for thousands of operations, on eight GPUs that take their time: no call is lost, and each
//! is answered with what its claim must get.
#![allow(clippy::print_stderr, reason = "the number of operations is the result")]

use std::cell::Cell;
use std::collections::BTreeSet;

use crate::common;
use common::{ControlPlane, DRIVER, Lab, Random, is_soak, promised, try_prepare, try_unprepare};
use futures::future::{join, join_all};
use kube_sim::kubelet::{Claim, Plugin, PreparedDevice};
use nvml_sim::HARDWARE_LATENCY_MS;

const GPUS: usize = 8;
/// Calls that run at the same time.
const AT_ONCE: usize = 200;
/// Operations of each of them in a storm.
const TURNS: usize = 4;
/// Part of the hardware's times that a call takes here; a soak takes all of it.
const PACE: f64 = 0.25;

/// How the GPUs are cut: the rest of the device's name and where it starts, for GPUs of even and of odd number. Whole
/// GPUs stand for a switch of MIG mode.
const LAYOUTS: [[&[&str]; 2]; 4] = [
    [&[
        "-mig-1g-10gb-0",
        "-mig-1g-10gb-1",
        "-mig-1g-10gb-2",
        "-mig-1g-10gb-3",
        "-mig-1g-10gb-4",
        "-mig-1g-10gb-5",
        "-mig-1g-10gb-6",
    ]; 2],
    [&["-mig-3g-40gb-4", "-mig-2g-20gb-0", "-mig-1g-10gb-2", "-mig-1g-10gb-3"], &["-mig-7g-80gb-0"]],
    [&[""], &["-mig-2g-20gb-0", "-mig-2g-20gb-2", "-mig-2g-20gb-4", "-mig-1g-10gb-6"]],
    [&["-mig-4g-40gb-0", "-mig-1g-10gb-5"], &[""]],
];

/// A claim and the only right answer for it.
struct Tenant {
    claim: Claim,
    answer: Vec<PreparedDevice>,
    /// GPU and first memory slice of what it needs; none for a whole GPU.
    place: Option<(usize, u32)>,
}

/// The kubelet, which counts.
struct Caller<'a> {
    lab: &'a Lab,
    kubelet: &'a Plugin,
    calls: Cell<usize>,
    running: Cell<usize>,
    most: Cell<usize>,
}

impl Caller<'_> {
    /// One call, and what it must answer.
    async fn call(&self, tenant: &Tenant, is_prepare: bool) {
        self.calls.set(self.calls.get() + 1);
        self.running.set(self.running.get() + 1);
        self.most.set(self.most.get().max(self.running.get()));
        let claim = &tenant.claim;
        if is_prepare {
            assert_eq!(try_prepare(self.kubelet, claim).await.as_ref(), Ok(&tenant.answer), "{}", claim.name);
        } else {
            assert_eq!(try_unprepare(self.kubelet, claim).await, Ok(()), "{}", claim.name);
        }
        self.running.set(self.running.get() - 1);
    }

    /// All callers at once, each with the next of these claims and the same wish for it.
    async fn all_want(&self, tenants: &[Tenant], wish: impl Fn(usize) -> bool) {
        let call = |caller: usize| self.call(&tenants[caller % tenants.len()], wish(caller % tenants.len()));
        join_all((0..AT_ONCE).map(call)).await;
        self.check(tenants, wish);
    }

    /// Prepares, repeats and unprepares in any order, several callers to a claim.
    async fn storm(&self, tenants: &[Tenant], seed: u64) {
        let caller = |caller: usize| async move {
            let mut random = Random::of(seed ^ u64::try_from(caller).unwrap());
            for _ in 0..TURNS {
                self.call(&tenants[caller % tenants.len()], random.percent(60)).await;
            }
        };
        join_all((0..AT_ONCE).map(caller)).await;
    }

    /// No call comes: the hardware and the files are those of the prepared claims, and of no others.
    fn check(&self, tenants: &[Tenant], is_prepared: impl Fn(usize) -> bool) {
        let numbered = tenants.iter().enumerate();
        let prepared: Vec<&Tenant> = numbered.filter(|it| is_prepared(it.0)).map(|it| it.1).collect();
        let wanted: BTreeSet<(usize, u32)> = prepared.iter().filter_map(|it| it.place).collect();
        let gpus = self.lab.sim.snapshot().unwrap().gpus;
        let instances = gpus.iter().flat_map(|gpu| gpu.gpu_instances.iter().map(move |it| (gpu.index, it)));
        let found: Vec<_> = instances.inspect(|it| assert_eq!(it.1.compute_instances.len(), 1)).collect();
        assert_eq!(found.iter().map(|it| (it.0, it.1.start)).collect::<BTreeSet<_>>(), wanted);
        assert_eq!(found.len(), wanted.len());
        let uids: BTreeSet<String> = prepared.iter().map(|it| it.claim.uid.clone()).collect();
        assert_eq!(BTreeSet::from_iter(self.lab.recorded()), uids, "state files");
        assert_eq!(BTreeSet::from_iter(self.lab.in_cdi()), uids, "CDI files");
    }
}

async fn tenants(lab: &Lab, number: usize, layout: [&[&str]; 2]) -> Vec<Tenant> {
    let mut tenants = Vec::new();
    for gpu in 0..GPUS {
        for rest in layout[gpu % 2] {
            let device = format!("{}{rest}", lab.gpu_name(gpu));
            let claim = lab.claim(&format!("{number}-{device}"), &[("gpu", DRIVER, &device)]).await;
            let answer = promised(&lab.node_name, &claim, &[device]);
            let place = rest.rsplit_once('-').map(|(_, start)| (gpu, start.parse().unwrap()));
            tenants.push(Tenant { claim, answer, place });
        }
    }
    tenants
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_calls_at_once_are_all_answered_rightly() {
    let lab = Lab::new(ControlPlane::simulated(true).await, &format!("{GPUS}xH100-80GB")).await;
    let pace = if is_soak() { 1.0 } else { PACE };
    for (call, milliseconds) in HARDWARE_LATENCY_MS {
        lab.sim.set_latency(call, milliseconds * pace).unwrap();
    }
    let mut lab = lab;
    lab.start();
    let kubelet = lab.kubelet().await;
    let (calls, running, most) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let caller = Caller { lab: &lab, kubelet: &kubelet, calls, running, most };
    let mut before: Vec<Tenant> = Vec::new();
    for (number, layout) in LAYOUTS.into_iter().enumerate() {
        let tenants = tenants(&lab, number, layout).await;
        // The GPUs are cut differently while the claims that had them still leave.
        let leave = join_all(before.iter().map(|it| caller.call(it, false)));
        let come = join_all(tenants.iter().map(|it| caller.call(it, true)));
        join(come, leave).await;
        caller.check(&tenants, |_| true);
        caller.storm(&tenants, u64::try_from(number).unwrap() << 32).await;
        caller.all_want(&tenants, |tenant| tenant % 2 == 0).await;
        caller.all_want(&tenants, |tenant| tenant % 3 != 0).await;
        before = tenants;
    }
    join_all(before.iter().map(|it| caller.call(it, false))).await;
    caller.check(&before, |_| false);
    assert_eq!(lab.files("cdi"), Vec::<String>::new());
    let (calls, most) = (caller.calls.get(), caller.most.get());
    assert!(2_000 <= calls && AT_ONCE <= most, "{calls} operations, {most} at once");
    eprintln!("load: {calls} operations, up to {most} at once, 0 lost, 0 wrong");
    lab.stop().await;
}
