//! The crash matrix: whatever the driver is doing when it dies, nothing is lost and nothing stays.
//!
//! For one MIG device, for three on two GPUs, for a whole GPU and for an unmanaged instance beside one of ours, in
//! prepare and in unprepare, a run without a crash tells which points there are: calls of NVML, and with `fault-shim` each
//! creation, write, rename, sync and removal of a file and each write of an answer. Then the driver, a process of its own,
//! is killed before and after each of them in turn and started again. Then the kubelet asks again, or the claim is deleted
//! and no call comes again: the driver must tidy up by itself. So that both happen everywhere, they alternate between a
//! point's two sides. Last, the claim, or a new one for the same devices, is prepared and unprepared by the same process,
//! which is the next victim.
//!
//! The start after a crash is killed at each of its points as well (`Start`), for three states that it has to tidy up.
//!
//! Between two changes of files or hardware all calls that only read are equivalent, and so are their two sides; of
//! those one is hit. `DRA_SOAK=1` hits all, with both endings everywhere.

use std::fmt;
use std::sync::Arc;

use crate::common;
use common::ControlPlane;
use common::points::{Place, Point, Side, arm, disarm, points};
use common::shim::Op;
use common::victim::{ADOPTED, Bad, Call, Held, ONE, THREE, TWO, Victim, WHOLE, Wanted};
use kube_sim::kubelet::Claim;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// How many drivers crash at the same time.
const LABS: usize = 3;
/// A series that failed so often is not continued.
const MOST_BAD: usize = 10;

/// What follows the restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// The kubelet asks again.
    Retry,
    /// The claim is deleted while the driver is down, and the kubelet never asks again.
    Delete,
}

/// In what the driver dies.
#[derive(Clone, Debug)]
enum During {
    /// A call of the kubelet.
    Call(Call),
    /// The start after it died in a call.
    Start(Call, Point, Then),
}

#[derive(Clone, Debug)]
struct Series {
    wanted: &'static Wanted,
    during: During,
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.during {
            During::Call(call) => write!(f, "{}, {call:?}", self.wanted.name),
            During::Start(call, point, then) => {
                write!(f, "{}, start after {call:?} died {point} ({then:?})", self.wanted.name)
            }
        }
    }
}

#[derive(Debug, Default)]
struct Tally {
    points: usize,
    leaked: Vec<String>,
    wedged: Vec<String>,
    missed: Vec<String>,
}

fn soak() -> bool {
    std::env::var_os("DRA_SOAK").is_some_and(|it| it == "1")
}

fn all_series() -> Vec<Series> {
    let mut all = Vec::new();
    for wanted in [&THREE, &ONE, &WHOLE, &ADOPTED] {
        for call in [Call::Prepare, Call::Unprepare] {
            all.push(Series { wanted, during: During::Call(call) });
        }
    }
    // Work on one GPU has one order, so what the first crash leaves is the same each time.
    let second = |call: &str| Place::Nvml(call.to_owned(), Some(0), 1);
    let halfway = second("nvmlGpuInstanceCreateComputeInstance");
    let cut = second("nvmlComputeInstanceDestroy");
    for (wanted, call, place, side, then) in [
        (&TWO, Call::Prepare, halfway, Side::Before, Then::Retry),
        (&TWO, Call::Unprepare, cut, Side::After, Then::Retry),
        // Prepared and never unprepared.
        (&THREE, Call::Prepare, Place::Reply(0), Side::After, Then::Delete),
    ] {
        all.push(Series { wanted, during: During::Start(call, Point { place, side }, then) });
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_point_loses_nothing_and_leaves_nothing() {
    let plane = ControlPlane::simulated(true).await;
    let labs = Arc::new(Semaphore::new(LABS));
    let mut running = JoinSet::new();
    for series in all_series() {
        let (plane, labs) = (plane.clone(), Arc::clone(&labs));
        running.spawn(async move {
            let _permit = labs.acquire_owned().await.unwrap();
            let tally = run(&plane, &series).await;
            (series, tally)
        });
    }
    let mut all = Tally::default();
    while let Some(ended) = running.join_next().await {
        let (series, tally) = ended.unwrap();
        say(&format!("crash matrix: {series}: {} points", tally.points));
        let named =
            |texts: Vec<String>| texts.into_iter().map(|it| format!("{series}: {it}")).collect::<Vec<_>>();
        all.points += tally.points;
        all.leaked.extend(named(tally.leaked));
        all.wedged.extend(named(tally.wedged));
        all.missed.extend(named(tally.missed));
    }
    let extent = if soak() { "all calls" } else { "equivalent read-only calls once; DRA_SOAK=1 for all" };
    let Tally { points, leaked, wedged, missed } = all;
    say(&format!(
        "crash matrix: {points} points, {} leaked, {} wedged ({extent})",
        leaked.len(),
        wedged.len()
    ));
    assert!(
        leaked.is_empty() && wedged.is_empty() && missed.is_empty(),
        "leaked:\n{}\nwedged:\n{}\nnot reached:\n{}",
        leaked.join("\n"),
        wedged.join("\n"),
        missed.join("\n")
    );
}

#[expect(clippy::print_stdout, reason = "the count is the result")]
fn say(line: &str) {
    println!("{line}");
}

/// Hits each point of a series.
async fn run(plane: &ControlPlane, series: &Series) -> Tally {
    let mut tally = Tally::default();
    let mut victim = Victim::new(plane, series.wanted).await;
    let points = match reference(&mut victim, series).await {
        Ok(points) => points,
        Err(bad) => {
            note(&mut tally, bad, "without a crash");
            return tally;
        }
    };
    for (index, point) in points.iter().enumerate() {
        for then in endings(series, index) {
            match strike(&mut victim, series, point, then).await {
                Ok(true) => tally.points += 1,
                Ok(false) if may_be_missed(series, point) => {}
                Ok(false) => tally.missed.push(point.to_string()),
                Err(bad) => {
                    note(&mut tally, bad, &format!("{point}, then {then:?}"));
                    victim = Victim::new(plane, series.wanted).await;
                }
            }
            if MOST_BAD <= tally.leaked.len() + tally.wedged.len() {
                tally.wedged.push("and the rest of this series, which was not tried".to_owned());
                return tally;
            }
        }
    }
    tally
}

/// What follows the crash at the point of this index. The two sides of a point follow each other, so the one ends in a
/// retry and the other in a deletion.
fn endings(series: &Series, index: usize) -> Vec<Then> {
    let alternate = index.is_multiple_of(2) == (index / 2).is_multiple_of(2);
    match &series.during {
        During::Start(_, _, then) => vec![*then],
        During::Call(_) if soak() => vec![Then::Retry, Then::Delete],
        During::Call(_) if alternate => vec![Then::Retry],
        During::Call(_) => vec![Then::Delete],
    }
}

/// Hits one point, within a few attempts: how often two threads look at one GPU at the start is not always the same.
async fn strike(victim: &mut Victim, series: &Series, point: &Point, then: Then) -> Result<bool, Bad> {
    const ATTEMPTS: u32 = 3;
    for _ in 0..ATTEMPTS {
        let died = match &series.during {
            During::Call(call) => in_call(victim, series.wanted, *call, point, then).await?,
            During::Start(call, died_at, _) => {
                in_start(victim, series.wanted, *call, died_at, point, then).await?
            }
        };
        if died {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How an answer is cut into writes is not the driver's to say, nor when a connection greets; and how often a start looks
/// whether a call works on a claim, for which it opens the claim's journal, depends on when the API server answers.
fn may_be_missed(series: &Series, point: &Point) -> bool {
    match point.place {
        Place::Reply(index) => 0 < index || matches!(series.during, During::Start(..)),
        Place::File(Op::Open, index, _) => 0 < index && matches!(series.during, During::Start(..)),
        Place::File(..) | Place::Nvml(..) => false,
    }
}

fn note(tally: &mut Tally, bad: Bad, what: &str) {
    match bad {
        Bad::Leaked(text) => tally.leaked.push(format!("{what}: {text}")),
        Bad::Wedged(text) => tally.wedged.push(format!("{what}: {text}")),
    }
}

/// Brings the claim to where the series begins: the driver runs, and for an unprepare the claim is prepared.
async fn begin(victim: &mut Victim, wanted: &Wanted, call: Call) -> Result<Claim, Bad> {
    victim.plant(wanted);
    restart(victim).await?;
    // The other mode than is needed, so that switching it is one of the points.
    victim.set_mig_mode(!wanted.mig);
    let claim = victim.claim(wanted).await;
    if call == Call::Unprepare {
        victim.must(Call::Prepare, &claim, wanted).await?;
    }
    Ok(claim)
}

/// The driver dies at the point of the call, if it comes there, and is found clean after the restart.
async fn in_call(
    victim: &mut Victim,
    wanted: &Wanted,
    call: Call,
    point: &Point,
    then: Then,
) -> Result<bool, Bad> {
    let claim = begin(victim, wanted, call).await?;
    let died = die(victim, wanted, call, &claim, point).await?;
    end(victim, wanted, call, &claim, then).await?;
    Ok(died)
}

/// The driver dies in the call, dies again at the point of its start, if it comes there, and is found clean after that.
async fn in_start(
    victim: &mut Victim,
    wanted: &Wanted,
    call: Call,
    died_at: &Point,
    point: &Point,
    then: Then,
) -> Result<bool, Bad> {
    let claim = begin(victim, wanted, call).await?;
    if !die(victim, wanted, call, &claim, died_at).await? {
        return Err(Bad::Wedged(format!("the first crash, {died_at}, did not happen")));
    }
    if then == Then::Delete {
        victim.delete(&claim).await;
    }
    arm(victim, point);
    let survived = recover(victim, wanted, &claim, then).await;
    disarm(victim);
    let survived = survived?;
    match then {
        Then::Retry => end(victim, wanted, call, &claim, Then::Retry).await?,
        Then::Delete => end_deleted(victim, wanted, &claim).await?,
    }
    Ok(!survived)
}

/// Starts the driver, which is to tidy up. False where it died of a plan before it was done.
async fn recover(victim: &mut Victim, wanted: &Wanted, claim: &Claim, then: Then) -> Result<bool, Bad> {
    let tidied = |held| then == Then::Retry || held == Held::Nothing;
    let survived = victim.start().await?
        && victim.settled(claim, wanted, tidied).await?
        && (then == Then::Retry || victim.removal_is_synced().await?);
    // What it did last may have been the point.
    Ok(survived && !victim.died(&Some(Ok(Vec::new()))).await?)
}

/// Makes the call with the crash planned. False where the driver did not come to the point.
async fn die(
    victim: &mut Victim,
    wanted: &Wanted,
    call: Call,
    claim: &Claim,
    point: &Point,
) -> Result<bool, Bad> {
    arm(victim, point);
    let answer = victim.call(call, claim).await;
    let died = victim.died(&answer).await;
    disarm(victim);
    let died = died?;
    match answer {
        // It was killed after its answer: what it said must hold.
        Some(Ok(devices)) => victim.acknowledged(call, &devices, claim, wanted)?,
        Some(Err(error)) => return Err(Bad::Wedged(format!("{call:?} failed without a fault: {error}"))),
        None => {}
    }
    Ok(died)
}

/// What follows a crash, up to the claim's end.
async fn end(victim: &mut Victim, wanted: &Wanted, call: Call, claim: &Claim, then: Then) -> Result<(), Bad> {
    if then == Then::Delete {
        victim.delete(claim).await;
        return end_deleted(victim, wanted, claim).await;
    }
    restart(victim).await?;
    settle(victim, wanted, claim, |_| true).await?;
    victim.must(call, claim, wanted).await?;
    if call == Call::Unprepare {
        victim.must(Call::Prepare, claim, wanted).await?;
    }
    victim.must(Call::Unprepare, claim, wanted).await?;
    victim.delete(claim).await;
    Ok(())
}

/// What follows where the claim is deleted: the driver tidies up, and its devices are available again.
async fn end_deleted(victim: &mut Victim, wanted: &Wanted, claim: &Claim) -> Result<(), Bad> {
    // Where it was not killed after all, it learns of the deletion as it would after a crash.
    victim.kill();
    restart(victim).await?;
    settle(victim, wanted, claim, |held| held == Held::Nothing).await?;
    let next = victim.claim(wanted).await;
    victim.must(Call::Prepare, &next, wanted).await?;
    victim.must(Call::Unprepare, &next, wanted).await?;
    victim.delete(&next).await;
    Ok(())
}

async fn restart(victim: &mut Victim) -> Result<(), Bad> {
    if victim.runs() || victim.start().await? { Ok(()) } else { Err(died_on_its_own()) }
}

async fn settle(
    victim: &mut Victim,
    wanted: &Wanted,
    claim: &Claim,
    accept: impl Fn(Held) -> bool,
) -> Result<(), Bad> {
    if victim.settled(claim, wanted, accept).await? { Ok(()) } else { Err(died_on_its_own()) }
}

fn died_on_its_own() -> Bad {
    Bad::Wedged("the driver died although nothing was planned".to_owned())
}

/// Runs the series once without its crash and tells which points there are, in the order in which they come.
async fn reference(victim: &mut Victim, series: &Series) -> Result<Vec<Point>, Bad> {
    let wanted = series.wanted;
    let (call, claim) = match &series.during {
        During::Call(call) => (*call, begin(victim, wanted, *call).await?),
        During::Start(call, died_at, then) => {
            let claim = begin(victim, wanted, *call).await?;
            if !die(victim, wanted, *call, &claim, died_at).await? {
                return Err(Bad::Wedged(format!("the first crash, {died_at}, did not happen")));
            }
            if *then == Then::Delete {
                victim.delete(&claim).await;
            }
            (*call, claim)
        }
    };
    let (sim, shim) = (&victim.lab.sim, &victim.shim);
    sim.configure(|it| it.log_calls = true).unwrap();
    let before = sim.calls().unwrap().len();
    shim.forget();
    match &series.during {
        During::Call(call) => victim.must(*call, &claim, wanted).await?,
        During::Start(_, _, then) => {
            if !recover(victim, wanted, &claim, *then).await? {
                return Err(died_on_its_own());
            }
        }
    }
    let (sim, shim) = (&victim.lab.sim, &victim.shim);
    let calls = sim.calls().unwrap().split_off(before);
    let points = points(shim.met(), calls.into_iter().filter(|it| Some(it.pid) == victim.pid()), soak());
    sim.configure(|it| it.log_calls = false).unwrap();
    match &series.during {
        // It was deleted before the start, which has tidied up.
        During::Start(_, _, Then::Delete) => {}
        _ => end(victim, wanted, call, &claim, Then::Retry).await?,
    }
    Ok(points)
}
