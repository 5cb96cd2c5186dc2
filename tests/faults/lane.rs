//! A claim and the GPUs that only it uses, so that many faults are tried at the same time on one node.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kube_sim::kubelet::{Claim, Plugin, PreparedDevice};

use super::Flaw;
use crate::common::{DRIVER, Lab, promised, try_prepare, try_unprepare};

/// How long the kubelet asks again before the claim counts as wedged.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the claim of a lane has on the lane's GPUs.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    /// GPUs of a lane.
    pub(crate) gpus: usize,
    /// GPU within the lane and the rest of the device's name.
    pub(crate) devices: &'static [(usize, &'static str)],
    /// MIG mode before each fault, so that switching it is among the calls.
    pub(crate) mig_before: bool,
    /// What the calls answer; a soak takes all codes.
    pub(crate) codes: &'static [u32],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Prepare,
    /// Prepare of a prepared claim, whose pod may run.
    Repeat,
    Unprepare,
}

/// A claim and the GPUs that only it uses.
pub(crate) struct Lane<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) kubelet: &'a Plugin,
    pub(crate) shape: Shape,
    pub(crate) first_gpu: usize,
    pub(crate) claim: Claim,
    pub(crate) answer: Vec<PreparedDevice>,
    /// GPU, profile and start of what has to exist while the claim is prepared.
    pub(crate) wanted: Vec<(usize, u32)>,
}

/// What is there of a claim.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(crate) struct Found {
    /// GPU, start, number of compute instances, and the serial number that tells an instance from its successor.
    pub(crate) instances: Vec<(usize, u32, usize, u32)>,
    pub(crate) record: bool,
    pub(crate) cdi: bool,
}

impl<'a> Lane<'a> {
    pub(crate) async fn new(lab: &'a Lab, kubelet: &'a Plugin, shape: Shape, number: usize) -> Self {
        let first_gpu = number * shape.gpus;
        let name = |(gpu, rest): &(usize, &str)| format!("{}{rest}", lab.gpu_name(first_gpu + gpu));
        let names: Vec<String> = shape.devices.iter().map(name).collect();
        let results: Vec<(&str, &str, &str)> = names.iter().map(|it| ("gpu", DRIVER, it.as_str())).collect();
        let claim = lab.claim(&format!("lane-{number}"), &results).await;
        let answer = promised(&lab.node_name, &claim, &names);
        let wanted = shape
            .devices
            .iter()
            .filter_map(|(gpu, rest)| Some((first_gpu + gpu, rest.rsplit_once('-')?.1.parse().unwrap())));
        let mut wanted: Vec<(usize, u32)> = wanted.collect();
        wanted.sort_unstable();
        Self { lab, kubelet, shape, first_gpu, claim, answer, wanted }
    }

    pub(crate) fn gpus(&self) -> std::ops::Range<usize> {
        self.first_gpu..self.first_gpu + self.shape.gpus
    }

    pub(crate) fn found(&self) -> Found {
        let gpus = self.lab.sim.snapshot().unwrap().gpus;
        let mut instances = Vec::new();
        for gpu in &gpus[self.gpus()] {
            let seen = gpu.gpu_instances.iter();
            instances.extend(seen.map(|it| (gpu.index, it.start, it.compute_instances.len(), it.serial)));
        }
        let (record, cdi) = (self.lab.recorded(), self.lab.in_cdi());
        let (record, cdi) = (record.contains(&self.claim.uid), cdi.contains(&self.claim.uid));
        Found { instances, record, cdi }
    }

    /// Everything that was promised is there, and nothing else.
    pub(crate) fn is_whole(&self, found: &Found) -> bool {
        let mut places: Vec<(usize, u32)> = found.instances.iter().map(|it| (it.0, it.1)).collect();
        places.sort_unstable();
        let one_each = found.instances.iter().all(|it| it.2 == 1);
        places == self.wanted && one_each && found.record && found.cdi
    }

    pub(crate) async fn take(&self, step: Step) -> Result<(), String> {
        match step {
            Step::Unprepare => try_unprepare(self.kubelet, &self.claim).await,
            Step::Prepare | Step::Repeat => {
                let answer = try_prepare(self.kubelet, &self.claim).await?;
                assert_eq!(answer, self.answer, "the answer for a claim never changes");
                Ok(())
            }
        }
    }

    /// What is there fits the answer: a prepared claim has everything, an ended one nothing, and after an error a running pod
    /// keeps what it has, and a record lists what else there is.
    pub(crate) fn is_right(
        &self,
        step: Step,
        result: &Result<(), String>,
        before: &Found,
        after: &Found,
    ) -> bool {
        match (step, result) {
            (Step::Unprepare, Ok(())) => is_empty(after),
            (Step::Prepare | Step::Repeat, Ok(())) => self.is_whole(after),
            (Step::Repeat, Err(_)) => after == before,
            (_, Err(_)) => after.record || is_empty(after),
        }
    }

    /// What follows a trial: the kubelet asks for the same again where `is_retried`, and then the claim ends.
    pub(crate) async fn end(&self, step: Step, is_retried: bool) -> Result<(), (Flaw, String)> {
        let wedged = |error| (Flaw::Wedged, format!("after the trial: {error}"));
        if is_retried {
            self.until_done(step).await.map_err(wedged)?;
            let found = self.found();
            if step != Step::Unprepare && !self.is_whole(&found) {
                return Err((Flaw::Leaked, format!("after the retry: {found:?}")));
            }
        }
        self.until_done(Step::Unprepare).await.map_err(wedged)
    }

    /// Asks again while the driver says that it needs more time than a call has.
    pub(crate) async fn until_done(&self, step: Step) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            match self.take(step).await {
                Err(error) if is_out_of_time(&error) && begun.elapsed() < PATIENCE => {}
                result => return result,
            }
        }
    }

    /// Waits for the calls of the library that are still at work on the lane's GPUs.
    pub(crate) fn wait_until_idle(&self) {
        for gpu in self.gpus() {
            tokio::task::block_in_place(|| self.lab.sim.wait_until_idle(gpu)).unwrap();
        }
    }

    /// The state in which a step is taken. By force: what an earlier trial has lost must not count twice.
    pub(crate) async fn arrange(&self, step: Step) -> Result<(), String> {
        for gpu in self.gpus() {
            let reset = |gpu: &mut nvml_sim::Gpu| {
                gpu.mig_pending = self.shape.mig_before;
                gpu.reset();
            };
            self.lab.sim.on_gpu(gpu, reset).unwrap();
        }
        for directory in ["plugins/mig.dra-driver.dev/claims", "cdi"] {
            for name in self.lab.files(directory).iter().filter(|it| it.contains(&self.claim.uid)) {
                std::fs::remove_file(self.lab.path(directory).join(name)).unwrap();
            }
        }
        if step == Step::Prepare { Ok(()) } else { self.until_done(Step::Prepare).await }
    }

    /// The calls of each step without faults: name and number of calls.
    pub(crate) async fn reference(&self) -> BTreeMap<(Step, String), u32> {
        let mut calls = BTreeMap::new();
        for step in [Step::Prepare, Step::Repeat, Step::Unprepare] {
            self.arrange(step).await.unwrap();
            let before = self.lab.sim.calls().unwrap().len();
            self.take(step).await.unwrap();
            for call in self.lab.sim.calls().unwrap().into_iter().skip(before) {
                assert!(
                    call.gpu.is_some(),
                    "{} is about no GPU: faults on it would strike all lanes",
                    call.call
                );
                if call.gpu == Some(self.first_gpu) {
                    *calls.entry((step, call.call)).or_default() += 1;
                }
            }
        }
        calls
    }
}

/// True for an error that says no more than that a call had too little time.
pub(crate) fn is_out_of_time(error: &str) -> bool {
    ["within the time of", "in time: no answer", "is still being taken back"]
        .iter()
        .any(|it| error.contains(it))
}

pub(crate) fn is_empty(found: &Found) -> bool {
    found.instances.is_empty() && !found.record && !found.cdi
}
