//! A full, broken or read-only disk, at each file operation of prepare and of unprepare, once and until it is repaired.
//!
//! `fault-shim` fails the operation in a driver that goes on running. Then: the call fails with an error that names the
//! file and what to do, or it succeeds with all that belongs to it; nothing is there without a record of whose it is;
//! what failed once leaves nothing behind. And once the disk works again, the same claim can be prepared and unprepared.

use crate::common;
use common::shim::{Action, Met, Op, Shim};
use common::{ControlPlane, DRIVER, Lab, eventually, prepare, unprepare};
use std::process::Stdio;

use common::victim::{Answer, Bad, Call, Held, ONE, THREE, Victim, WHOLE, Wanted};
use kube_sim::kubelet::Claim;
use tokio::task::JoinSet;

/// No operation has more points than this; a walk that gets here does not end.
const MOST_POINTS: u32 = 200;
/// A walk that failed so often is not continued.
const MOST_BAD: usize = 10;

const ENOSPC: i32 = 28;
const EIO: i32 = 5;
const EROFS: i32 = 30;
const EDQUOT: i32 = 122;

/// A way in which a disk fails.
#[derive(Clone, Copy, Debug)]
struct Fault {
    name: &'static str,
    action: Action,
    ops: &'static [Op],
}

const FAULTS: [Fault; 6] = [
    Fault { name: "disk full", action: Action::Errno(ENOSPC), ops: &CHANGES },
    Fault { name: "disk full within a write", action: Action::Short(ENOSPC), ops: &[Op::Write] },
    Fault {
        name: "quota used up",
        action: Action::Errno(EDQUOT),
        ops: &[Op::Open, Op::Write, Op::Mkdir, Op::Link],
    },
    Fault {
        name: "read-only directory",
        action: Action::Errno(EROFS),
        ops: &[Op::Open, Op::Truncate, Op::Rename, Op::Unlink, Op::Link, Op::Mkdir],
    },
    Fault { name: "sync fails", action: Action::Errno(EIO), ops: &[Op::Sync] },
    Fault { name: "input/output error", action: Action::Errno(EIO), ops: &CHANGES },
];

const CHANGES: [Op; 8] =
    [Op::Open, Op::Write, Op::Truncate, Op::Rename, Op::Unlink, Op::Link, Op::Mkdir, Op::Sync];

#[derive(Debug, Default)]
struct Tally {
    refused: usize,
    done: usize,
    bad: Vec<String>,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_anywhere_leaves_nothing_half_done_and_wedges_no_claim() {
    let plane = ControlPlane::simulated(true).await;
    let mut running = JoinSet::new();
    for wanted in [&THREE, &ONE, &WHOLE] {
        let plane = plane.clone();
        running.spawn(async move { walks(&plane, wanted).await });
    }
    let mut all = Tally::default();
    while let Some(ended) = running.join_next().await {
        let tally = ended.unwrap();
        all.refused += tally.refused;
        all.done += tally.done;
        all.bad.extend(tally.bad);
    }
    let faults = all.refused + all.done + all.bad.len();
    say(&format!(
        "disk matrix: {faults} faults, {} calls refused and {} done in spite of them, {} left half done or wedged",
        all.refused,
        all.done,
        all.bad.len()
    ));
    assert!(all.bad.is_empty(), "{}", all.bad.join("\n"));
    assert!(0 < all.refused, "no fault was ever felt");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_waits_for_the_disk_holds_up_no_other_claim() {
    for stored in [None, Some("rubbish\n")] {
        let lab = Lab::new(ControlPlane::simulated(true).await, "2xH100-80GB").await;
        let shim = Shim::new(&lab);
        let mut process = shim.command(&lab).stderr(Stdio::null()).spawn().unwrap();
        let kubelet = lab.kubelet().await;
        let slow = lab.claim_of("slow", "gpu-0000-1a-00-mig-1g-10gb-6").await;
        let other = lab.claim_of("other", "gpu-0000-1b-00-mig-1g-10gb-6").await;
        if let Some(stored) = stored {
            let file = lab.path(&format!("plugins/{DRIVER}/claims")).join(format!("{}.jsonl", slow.uid));
            std::fs::write(file, stored).unwrap();
        }
        shim.arm(Action::Hold, 0, Some(1), &[Op::Sync]);
        let is_held = || shim.met().iter().any(|it| it.verdict == "hold" && it.path.contains(&slow.uid));
        let (answer, ()) = tokio::join!(prepare(&kubelet, &slow), async {
            eventually("the disk does not answer", async || is_held().then_some(())).await;
            let answer = prepare(&kubelet, &other).await;
            shim.disarm();
            answer.unwrap();
        });
        answer.unwrap();
        for claim in [&slow, &other] {
            unprepare(&kubelet, claim).await.unwrap();
        }
        assert_eq!(lab.instances(), []);
        process.kill().unwrap();
        process.wait().unwrap();
    }
}

#[expect(clippy::print_stdout, reason = "the count is the result")]
fn say(line: &str) {
    println!("{line}");
}

async fn walks(plane: &ControlPlane, wanted: &'static Wanted) -> Tally {
    let mut tally = Tally::default();
    let mut victim = Victim::new(plane, wanted).await;
    for call in [Call::Prepare, Call::Unprepare] {
        for fault in &FAULTS {
            for lasts in [false, true] {
                let mut bad = 0;
                for index in 0..MOST_POINTS {
                    match strike(&mut victim, wanted, call, fault, lasts, index).await {
                        // The call has no further point of this kind.
                        Ok(None) => break,
                        Ok(Some(Some(Ok(_)))) => tally.done += 1,
                        Ok(Some(_)) => tally.refused += 1,
                        Err((met, problem)) => {
                            bad += 1;
                            let lasts = if lasts { "lasting" } else { "once" };
                            let name = fault.name;
                            tally.bad.push(format!(
                                "{}, {call:?}, {name} ({lasts}) at {met}: {problem:?}",
                                wanted.name
                            ));
                            victim = Victim::new(plane, wanted).await;
                        }
                    }
                    if bad == MOST_BAD {
                        tally.bad.push("and the rest of this walk, which was not tried".to_owned());
                        break;
                    }
                }
            }
        }
    }
    tally
}

/// Makes the call with the fault at one of its points. `None` where the call has not so many. An error says where it was.
async fn strike(
    victim: &mut Victim,
    wanted: &Wanted,
    call: Call,
    fault: &Fault,
    lasts: bool,
    index: u32,
) -> Result<Option<Answer>, (String, Bad)> {
    let nowhere = |bad| ("no fault".to_owned(), bad);
    if !victim.runs() {
        victim.start().await.map_err(nowhere)?;
    }
    let claim = victim.claim(wanted).await;
    if call == Call::Unprepare {
        victim.must(Call::Prepare, &claim, wanted).await.map_err(nowhere)?;
    }
    // Half a write is followed by the error of the next one.
    let once = if matches!(fault.action, Action::Short(_)) { 2 } else { 1 };
    victim.shim.arm(fault.action, index, (!lasts).then_some(once), fault.ops);
    let answer = victim.call(call, &claim).await;
    victim.shim.disarm();
    let met = victim.shim.met().into_iter().find(|it| it.verdict != "pass");
    let place =
        met.as_ref().map_or_else(|| "no point".to_owned(), |it| format!("{} `{}`", it.op.name(), it.path));
    let judged = judge(victim, wanted, call, lasts, &claim, &answer, met.as_ref());
    judged.map_err(|bad| (place.clone(), bad))?;
    repaired(victim, wanted, call, &claim, &answer).await.map_err(|bad| (place, bad))?;
    victim.delete(&claim).await;
    Ok(met.map(|_| answer))
}

/// What must hold while the disk is still broken.
fn judge(
    victim: &Victim,
    wanted: &Wanted,
    call: Call,
    lasts: bool,
    claim: &Claim,
    answer: &Answer,
    met: Option<&Met>,
) -> Result<(), Bad> {
    let error = match answer {
        None => return Err(Bad::Wedged("no answer".to_owned())),
        Some(Ok(devices)) => {
            return ignored(call, met).and_then(|()| victim.acknowledged(call, devices, claim, wanted));
        }
        Some(Err(error)) => error,
    };
    let names_a_file = error.contains(&victim.lab.directory.path().display().to_string());
    if met.is_none() || !names_a_file || !error.contains("check that") {
        return Err(Bad::Wedged(format!("the error does not help: {error}")));
    }
    let left = victim.left();
    if left.records.is_empty() && !left.is_empty() {
        return Err(Bad::Leaked(format!("it is unknown whose this is: {left:?}; {error}")));
    }
    match victim.held(claim, wanted) {
        // The disk works again, so nothing keeps a failed prepare from being taken back.
        held if call == Call::Prepare && !lasts && held != Ok(Held::Nothing) => {
            Err(Bad::Leaked(format!("after the failure: {held:?}; {error}")))
        }
        _ => Ok(()),
    }
}

/// What may fail without failing a prepare: making a directory that exists, and tidying up.
fn ignored(call: Call, met: Option<&Met>) -> Result<(), Bad> {
    match met {
        Some(met) if call == Call::Prepare && !matches!(met.op, Op::Mkdir | Op::Unlink | Op::Truncate) => {
            Err(Bad::Leaked(format!("prepared although {} failed", met.op.name())))
        }
        _ => Ok(()),
    }
}

/// What must hold once the disk works again.
async fn repaired(
    victim: &Victim,
    wanted: &Wanted,
    call: Call,
    claim: &Claim,
    answer: &Answer,
) -> Result<(), Bad> {
    if !matches!(answer, Some(Ok(_))) {
        victim.must(call, claim, wanted).await?;
    }
    if call == Call::Unprepare {
        victim.must(Call::Prepare, claim, wanted).await?;
    }
    victim.must(Call::Unprepare, claim, wanted).await
}
