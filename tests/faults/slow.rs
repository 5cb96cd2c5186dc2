//! Latency matrix: every NVML call that preparing and unpreparing make takes longer than what is left of the kubelet's call:
//! alone, after a transient failure, and while another GPU of the claim has failed. The work goes on after the answer, so
//! nothing may be undone under it, nothing may be forgotten before it has ended, and the kubelet's next call must succeed.

use std::cell::Cell;
use std::collections::BTreeMap;

use futures::future::join_all;
use nvml_sim::{Action, Code, Fault};

use super::lane::{Lane, Shape, Step, is_empty};
use super::{Flaw, each, reference};
use crate::common::{ControlPlane, Lab, is_soak};

/// Seconds that a call may take here.
const BUDGET: &str = "1";
/// Longer than a call, and shorter than what an undo may take beyond it.
const LATENCY_MS: f64 = 1_600.0;

const SHAPES: [Shape; 3] = [
    Shape { name: "one device", gpus: 1, devices: &[(0, "-mig-1g-10gb-6")], mig_before: false, codes: &[] },
    Shape {
        name: "two devices on two GPUs",
        gpus: 2,
        devices: &[(1, "-mig-3g-40gb-4"), (0, "-mig-1g-10gb-6")],
        mig_before: false,
        codes: &[],
    },
    Shape {
        name: "three devices on one GPU",
        gpus: 1,
        devices: &[(0, "-mig-1g-10gb-6"), (0, "-mig-2g-20gb-2"), (0, "-mig-1g-10gb-0")],
        mig_before: false,
        codes: &[],
    },
];

/// What happens before the slow call.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Earlier {
    Nothing,
    /// The first call of this name is refused for a moment, so that the slow call is part of a second attempt.
    Refused(String),
    /// The claim's other GPU fails for good.
    OtherGpuFails,
}

#[derive(Clone, Debug)]
struct Trial {
    step: Step,
    call: String,
    /// How many calls of this name pass first.
    skip: u32,
    earlier: Earlier,
    /// Whether the kubelet asks for the same again, or the claim ends.
    is_retried: bool,
}

impl Lane<'_> {
    /// Tries one slow call; what is wrong comes back. False where the call was not reached: a second attempt may need fewer.
    async fn try_slow(&self, trial: &Trial) -> (bool, Vec<(Flaw, String)>) {
        if let Err(error) = self.arrange(trial.step).await {
            return (true, vec![(Flaw::Wedged, format!("before the slow call: {error}"))]);
        }
        let before = self.found();
        for fault in self.faults(trial) {
            self.lab.sim.inject(fault).unwrap();
        }
        let result = self.take(trial.step).await;
        let after = self.found();
        let left: Vec<Fault> = self.gpus().flat_map(|gpu| self.lab.sim.take_faults(gpu).unwrap()).collect();
        let is_reached = !left.iter().any(|it| matches!(it.action, Action::Latency(_)));

        let mut flaws = Vec::new();
        if !self.is_right(trial.step, &result, &before, &after) {
            flaws.push((Flaw::Leaked, format!("{result:?} and {after:?}")));
        }
        let later = self.end_slow(trial).await.err();
        flaws.extend(later.filter(|later| flaws.iter().all(|it| it.0 != later.0)));
        (is_reached, flaws)
    }

    fn faults(&self, trial: &Trial) -> Vec<Fault> {
        let on_first = |it: Fault| it.on_gpu(self.first_gpu).times(1);
        let slow = |skip| on_first(Fault::new(&trial.call, Action::Latency(LATENCY_MS)).skipping(skip));
        match &trial.earlier {
            Earlier::Nothing => vec![slow(trial.skip)],
            Earlier::Refused(call) => {
                let is_same = u32::from(*call == trial.call);
                vec![on_first(Fault::returning(call, Code::IN_USE)), slow(trial.skip + is_same)]
            }
            Earlier::OtherGpuFails => {
                let call = if trial.step == Step::Unprepare {
                    "nvmlGpuInstanceDestroy"
                } else {
                    "nvmlDeviceCreateGpuInstanceWithPlacement"
                };
                let fails = Fault::returning(call, Code::UNKNOWN).on_gpu(self.first_gpu + 1);
                vec![fails, slow(trial.skip)]
            }
        }
    }

    /// The slow call comes to its end: the kubelet asks again, or the claim ends. In both cases nothing is left at the end.
    async fn end_slow(&self, trial: &Trial) -> Result<(), (Flaw, String)> {
        self.end(trial.step, trial.is_retried).await?;
        self.wait_until_idle();
        let found = self.found();
        if is_empty(&found) { Ok(()) } else { Err((Flaw::Leaked, format!("after the claim: {found:?}"))) }
    }
}

/// Every slow call of a reference run. Of many calls of one name within a step the first and the last one are taken; a soak
/// takes all, with both endings.
fn trials(reference: &BTreeMap<(Step, String), u32>, shape: &Shape) -> Vec<Trial> {
    let is_soak = is_soak();
    let mut trials: Vec<Trial> = Vec::new();
    for ((step, call), count) in reference {
        let changes = ["Create", "Destroy", "SetMigMode"].iter().any(|it| call.contains(it));
        // What only reads is alike from one change to the next one.
        let skips = (0..*count).filter(|it| is_soak || changes || *it == 0 || it + 1 == *count);
        for skip in skips {
            let mut earlier = vec![Earlier::Nothing];
            if *step != Step::Repeat && (is_soak || changes || skip == 0) {
                earlier.push(Earlier::Refused("nvmlDeviceGetMigMode".to_owned()));
                earlier.push(Earlier::Refused(call.clone()));
            }
            if *step != Step::Repeat && 1 < shape.gpus && (is_soak || changes) {
                earlier.push(Earlier::OtherGpuFails);
            }
            for earlier in earlier {
                let trial = |is_retried| {
                    let (step, call, earlier) = (*step, call.clone(), earlier.clone());
                    Trial { step, call, skip, earlier, is_retried }
                };
                if is_soak {
                    trials.push(trial(false));
                }
                trials.push(trial(is_soak || trials.len().is_multiple_of(2)));
            }
        }
    }
    trials
}

async fn matrix(shape: Shape) -> (usize, Vec<(Flaw, String)>) {
    let lab = Lab::new(ControlPlane::simulated(true).await, "8xH100-80GB").await;
    let mut lab = lab.with_args(&["--rescan-interval", "3600", "--call-budget", BUDGET]);
    lab.start();
    let kubelet = lab.kubelet().await;
    let lanes = (0..8 / shape.gpus).map(|number| Lane::new(&lab, &kubelet, shape, number));
    let lanes = join_all(lanes).await;
    let reference = reference(&lab, &lanes[0]).await;

    let trials = trials(&reference, &shape);
    let reached = Cell::new(0);
    let flaws = each(&lanes, &trials, async |lane, trial| {
        let (is_reached, found) = lane.try_slow(trial).await;
        reached.set(reached.get() + usize::from(is_reached));
        found
    });
    let flaws = flaws.await;
    drop(lanes);
    lab.stop().await;
    eprintln!("{}: {} slow calls reached of {}", shape.name, reached.get(), trials.len());
    assert!(trials.len() < 2 * reached.get(), "most calls are reached");
    (reached.get(), flaws)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_slow_call_of_the_library_loses_or_wedges_anything() {
    let results = join_all(SHAPES.map(matrix)).await;
    let calls: usize = results.iter().map(|it| it.0).sum();
    let flaws: Vec<(Flaw, String)> = results.into_iter().flat_map(|it| it.1).collect();
    let count = |kind| flaws.iter().filter(|it| it.0 == kind).count();
    eprintln!(
        "latency matrix: {calls} calls, {} leaked, {} wedged",
        count(Flaw::Leaked),
        count(Flaw::Wedged)
    );
    for (flaw, text) in &flaws {
        eprintln!("{flaw:?}: {text}");
    }
    assert!(flaws.is_empty());
}
