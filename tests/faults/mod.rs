//! Fault matrix: every NVML call that preparing and unpreparing make fails with every code, before its effect and after
//! it, once and for as long as the call is tried. Nothing may be lost, and nothing may be stuck once the fault is over.
//!
//! The calls are those of a run without faults. Each GPU of the lab is a lane: a fault strikes one GPU only, so that the
//! lanes do not disturb each other.
#![allow(clippy::print_stderr, reason = "the number of faults is the result")]

mod lane;
mod slow;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Debug;

use crate::common;
use common::{ControlPlane, Lab, is_soak};
use futures::future::join_all;
use lane::{Lane, Shape, Step, is_empty, is_out_of_time};
use nvml_sim::{Action, Fault};

/// Every `NVML_ERROR_*` of nvml.h (CUDA 13), the general ones and those that only some calls document: a driver may
/// answer any of them, and has. Those that mean another driver (1, 9, 18) make the whole node be opened again, which would
/// disturb the other lanes: tests/recovery.rs has them.
const CODES: [u32; 27] =
    [2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 999];

/// Stands for "always": more often than any call is tried.
const ALWAYS: u32 = 1_000_000;

/// One code of each kind, for claims of other shapes: what ends an enumeration, what means "is gone" or "not in this
/// mode", what is tried again, what a wrong place gives, and what cannot be explained.
const TELLING: [u32; 8] = [2, 3, 6, 10, 15, 19, 23, 999];

const SHAPES: [Shape; 3] = [
    Shape {
        name: "one device",
        gpus: 1,
        devices: &[(0, "-mig-1g-10gb-6")],
        mig_before: false,
        codes: &CODES,
    },
    Shape {
        name: "three devices",
        gpus: 2,
        devices: &[(0, "-mig-1g-10gb-6"), (1, "-mig-3g-40gb-4"), (0, "-mig-2g-20gb-2")],
        mig_before: false,
        codes: &TELLING,
    },
    Shape { name: "a whole GPU", gpus: 1, devices: &[(0, "")], mig_before: true, codes: &TELLING },
];

/// One fault to try.
#[derive(Clone, Debug)]
struct Trial {
    step: Step,
    call: String,
    /// How many calls of this name pass first.
    skip: u32,
    action: Action,
    times: u32,
    /// What follows once the fault is over: the kubelet's retry, or the end of the claim.
    is_retried: bool,
}

/// What went wrong with a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// Something has no owner, a promise has nothing behind it, or a running pod has lost its device.
    Leaked,
    /// The claim could not be prepared or unprepared once the fault was over.
    Wedged,
    /// The error does not say what to do.
    Unclear,
}

impl Lane<'_> {
    /// Tries one fault; what is wrong comes back.
    async fn try_one(&self, trial: &Trial) -> Vec<(Flaw, String)> {
        /// On a busy machine a call may run out of its short time before it comes to the fault, several times in a row.
        const ATTEMPTS: usize = 30;
        for _ in 0..ATTEMPTS {
            if let Some(flaws) = self.attempt(trial).await {
                return flaws;
            }
        }
        panic!("not reached: {trial:?}");
    }

    /// The same, where the fault is met.
    async fn attempt(&self, trial: &Trial) -> Option<Vec<(Flaw, String)>> {
        if let Err(error) = self.arrange(trial.step).await {
            return Some(vec![(Flaw::Wedged, format!("before the fault: {error}"))]);
        }
        let before = self.found();
        let fault = Fault {
            call: trial.call.clone(),
            gpu: Some(self.first_gpu),
            skip: trial.skip,
            times: Some(trial.times),
            action: trial.action,
        };
        self.lab.sim.inject(fault).unwrap();
        let result = self.take(trial.step).await;
        let left = self.lab.sim.take_faults(self.first_gpu).unwrap();
        let is_out_of_time = result.as_ref().is_err_and(|it| is_out_of_time(it));
        if is_out_of_time || left.iter().any(|it| it.times == Some(trial.times)) {
            // What works on behind the call's deadline ends with the claim, lest it meets the next attempt's GPU.
            let ended = self.until_done(Step::Unprepare).await;
            self.wait_until_idle();
            return ended
                .err()
                .map(|error| vec![(Flaw::Wedged, format!("after a call without time: {error}"))]);
        }
        let after = self.found();

        let mut flaws = Vec::new();
        if !self.is_right(trial.step, &result, &before, &after) {
            flaws.push((Flaw::Leaked, format!("{result:?} and {after:?}")));
        }
        if let Err(error) = &result
            && let Some(lack) = self.lack(error)
        {
            flaws.push((Flaw::Unclear, format!("no {lack}: {error}")));
        }
        let later = self.follow_up(trial).await.err();
        flaws.extend(later.filter(|later| flaws.iter().all(|it| it.0 != later.0)));
        Some(flaws)
    }

    /// The fault is over: the kubelet tries again, or the claim ends. Whatever comes, nothing is left at the end.
    async fn follow_up(&self, trial: &Trial) -> Result<(), (Flaw, String)> {
        self.end(trial.step, trial.is_retried).await?;
        let found = self.found();
        if is_empty(&found) { Ok(()) } else { Err((Flaw::Leaked, format!("after the claim: {found:?}"))) }
    }

    /// What an error fails to name: the object, what was tried, or what to do next.
    fn lack(&self, error: &str) -> Option<&'static str> {
        const OPERATIONS: [&str; 3] = ["nvml", "MIG mode", "is occupied"];
        const NEXT_STEPS: [&str; 6] =
            ["`nvidia-smi", "dra-driver-mig inspect", "stop ", "reset", "run as root", "install a newer"];
        if !self.answer.iter().any(|it| error.contains(&it.device)) {
            Some("object")
        } else if !OPERATIONS.iter().any(|it| error.contains(it)) {
            Some("operation")
        } else if !NEXT_STEPS.iter().any(|it| error.contains(it)) {
            Some("next step")
        } else {
            None
        }
    }
}

/// Every fault for the calls of a reference run. Of many calls of one name within a step the first and the last one are
/// taken, of those without an effect only refusals; a soak takes all.
fn trials(reference: &BTreeMap<(Step, String), u32>, codes: &[u32]) -> Vec<Trial> {
    let is_soak = is_soak();
    let codes = if is_soak { &CODES } else { codes };
    let mut trials = Vec::new();
    for ((step, call), count) in reference {
        let has_effect = ["Create", "Destroy", "Set"].iter().any(|it| call.contains(it));
        let skips = (0..*count).filter(|it| is_soak || *it == 0 || it + 1 == *count);
        for (skip, code) in skips.flat_map(|skip| codes.iter().map(move |code| (skip, *code))) {
            let mut actions = vec![Action::Return(code)];
            if has_effect || is_soak {
                actions.push(Action::ReturnAfter(code));
            }
            for (action, times) in actions.into_iter().flat_map(|it| [(it, 1), (it, ALWAYS)]) {
                let trial =
                    |is_retried| Trial { step: *step, call: call.clone(), skip, action, times, is_retried };
                if is_soak {
                    trials.push(trial(false));
                }
                // Without a soak every second fault is followed by the end of the claim.
                trials.push(trial(is_soak || trials.len().is_multiple_of(2)));
            }
        }
    }
    trials
}

/// The calls of a lane without faults, by step and name.
async fn reference(lab: &Lab, lane: &Lane<'_>) -> BTreeMap<(Step, String), u32> {
    lab.sim.configure(|config| config.log_calls = true).unwrap();
    let reference = lane.reference().await;
    lab.sim.configure(|config| config.log_calls = false).unwrap();
    reference
}

/// Makes every trial on the next lane that is free. Answers with the flaws, each behind its trial.
async fn each<'l, T: Debug>(
    lanes: &[Lane<'l>],
    trials: &[T],
    try_one: impl AsyncFn(&Lane<'l>, &T) -> Vec<(Flaw, String)>,
) -> Vec<(Flaw, String)> {
    let next = Cell::new(0);
    let runs = lanes.iter().map(async |lane| {
        let mut flaws = Vec::new();
        while let Some(trial) = trials.get(next.replace(next.get() + 1)) {
            let found = try_one(lane, trial).await;
            flaws.extend(found.into_iter().map(|(flaw, text)| (flaw, format!("{trial:?}: {text}"))));
        }
        flaws
    });
    join_all(runs).await.concat()
}

/// Tries every fault for claims of one shape, each GPU or pair of GPUs a lane of its own.
async fn matrix(shape: Shape) -> (usize, Vec<(Flaw, String)>) {
    let lab = Lab::new(ControlPlane::simulated(true).await, "8xH100-80GB").await;
    // No rescan comes between: its calls would meet the faults. What is tried again is tried for two seconds.
    let mut lab = lab.with_args(&["--rescan-interval", "3600", "--call-budget", "2"]);
    lab.start();
    let kubelet = lab.kubelet().await;
    let lanes = (0..8 / shape.gpus).map(|number| Lane::new(&lab, &kubelet, shape, number));
    let lanes = join_all(lanes).await;
    let reference = reference(&lab, &lanes[0]).await;

    let trials = trials(&reference, shape.codes);
    let flaws = each(&lanes, &trials, async |lane, trial| lane.try_one(trial).await).await;
    drop(lanes);
    assert_eq!(lab.files("cdi"), Vec::<String>::new());
    lab.stop().await;
    eprintln!("{}: {} calls, {} faults", shape.name, reference.len(), trials.len());
    (trials.len(), flaws)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_fault_of_the_library_loses_or_wedges_anything() {
    let results = join_all(SHAPES.map(matrix)).await;
    let faults: usize = results.iter().map(|it| it.0).sum();
    let flaws: Vec<(Flaw, String)> = results.into_iter().flat_map(|it| it.1).collect();
    let count = |kind| flaws.iter().filter(|it| it.0 == kind).count();
    let (leaked, wedged, unclear) = (count(Flaw::Leaked), count(Flaw::Wedged), count(Flaw::Unclear));
    eprintln!("fault matrix: {faults} faults, {leaked} leaked, {wedged} wedged, {unclear} unclear errors");
    for (flaw, text) in flaws.iter() {
        eprintln!("{flaw:?}: {text}");
    }
    assert!(flaws.is_empty());
}
