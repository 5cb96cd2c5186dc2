//! Calls of the kubelet, each held against what the model says, and what becomes of work that outlives its call.

use std::collections::BTreeSet;
use std::time::Instant;

use futures::future::join_all;

use super::model::{Expected, REALLOCATED, State, Tenant, Wish, Work};
use super::{PATIENCE, World, record};
use crate::common::{eventually, try_prepare, try_unprepare};

/// The end of an error where a busy machine, and no GPU, was too slow: the API server was not reached in time.
const NO_ANSWER: &str = "in time: no answer";

/// What came of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Refused,
    /// It was answered, and the work goes on: a GPU does not answer.
    Outlived,
}

/// One call that is about to be made.
struct Call {
    number: usize,
    is_prepare: bool,
    /// Which of the drivers is asked.
    driver: usize,
    expected: Expected,
}

impl World {
    /// Some claims at once, each asked for one to three times.
    pub(crate) async fn call_many(&mut self) {
        let wishes = self.wishes();
        let wanted: BTreeSet<usize> = wishes.iter().map(|it| it.0).collect();
        let uncertain: BTreeSet<usize> =
            wanted.iter().copied().filter(|it| self.model.is_uncertain(*it, &wanted)).collect();
        let leaving: BTreeSet<usize> = wishes
            .iter()
            .filter(|it| it.1 == Wish::Unprepare && !uncertain.contains(&it.0))
            .filter(|it| self.model.unprepare(it.0) == Expected::Done)
            .map(|it| it.0)
            .collect();
        // Whether a race's prepare has what it needs must not depend on the others.
        let is_sure = |number: usize| {
            !uncertain.contains(&number)
                && !self.model.api_is_down
                && self.model.prepare(number, &BTreeSet::new()) == Expected::Done
        };
        let wishes: Vec<(usize, Wish, usize)> =
            wishes.into_iter().filter(|it| it.1 != Wish::Race || is_sure(it.0)).collect();
        let mut calls = Vec::new();
        for &(number, wish, times) in &wishes {
            // What comes after work that goes on is known only by what it finds.
            let times = if uncertain.contains(&number) { 1 } else { times };
            for turn in 0..times {
                let is_prepare = wish == Wish::Prepare || (wish == Wish::Race && turn % 2 == 0);
                let driver = self.random.below(self.drivers.len());
                let expected = match (uncertain.contains(&number), is_prepare) {
                    (true, _) => self.model.any(number),
                    (false, true) => self.model.prepare(number, &leaving),
                    (false, false) => self.model.unprepare(number),
                };
                let (id, name) = (self.drivers[driver].id, &self.model.tenants[number].claim.name);
                let what = format!("{wish:?} {name} of driver {id}: {expected:?}");
                self.note(what);
                calls.push(Call { number, is_prepare, driver, expected });
            }
        }
        let outcomes = join_all(calls.iter().map(|it| self.call(it))).await;
        // All were expected from the state before: only now it changes.
        let mut after = Vec::new();
        for (call, outcome) in calls.iter().zip(outcomes) {
            let name = &self.model.tenants[call.number].claim.name;
            match outcome {
                Err(error) => self.fail(&format!("{name}: {error}")),
                Ok(outcome) => after.push((call.number, call.is_prepare, call.driver, outcome)),
            }
        }
        for (number, is_prepare, driver, outcome) in after {
            if uncertain.contains(&number) {
                self.follows(number, is_prepare, self.drivers[driver].id, outcome);
            }
        }
        let recorded = self.lab.recorded();
        let certain = wishes.iter().filter(|it| !uncertain.contains(&it.0));
        let states: Vec<(usize, State)> =
            certain.map(|it| (it.0, self.state_after(it.0, it.1, &leaving, &recorded))).collect();
        for (number, state) in states {
            self.becomes(number, state);
        }
    }

    fn wishes(&mut self) -> Vec<(usize, Wish, usize)> {
        let mut wishes = Vec::new();
        for number in 0..self.model.tenants.len() {
            let tenant = &self.model.tenants[number];
            let wish = match self.random.below(10) {
                0..4 if tenant.may_be_prepared() && !tenant.is_between() => Wish::Prepare,
                4..6 => Wish::Unprepare,
                6 if tenant.exists && tenant.next.is_none() && tenant.process.is_none() => Wish::Race,
                _ => continue,
            };
            // Whatever is asked for waits for the work that goes on, and finds that it does: not every time.
            if tenant.work.is_some() && !self.random.percent(30) {
                continue;
            }
            wishes.push((number, wish, 1 + self.random.below(3)));
        }
        wishes
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
                Expected::Refused(_) | Expected::Any(_) if !is_recorded => State::Free,
                // What cannot be taken back in time stays on record.
                Expected::Refused(_) | Expected::Any(_) if tenant.state == State::Free => State::Leaving,
                Expected::Refused(_) | Expected::Any(_) => tenant.state,
            },
        }
    }

    /// What follows from the outcome of a call of which it was not certain how it would end.
    fn follows(&mut self, number: usize, is_prepare: bool, driver: usize, outcome: Outcome) {
        let tenant = &self.model.tenants[number];
        let name = tenant.claim.name.clone();
        let (before, found) = (tenant.state, self.state_on_record(number));
        match outcome {
            Outcome::Outlived if tenant.work.is_some() => {}
            Outcome::Outlived => {
                self.meet("calls outlived by their work");
                self.history.push(format!("{name}: the work goes on"));
                self.model.tenants[number].work = Some(Work { is_prepare, driver });
            }
            _ if tenant.work.is_some() => self.fail(&format!("{name}: an answer while work goes on")),
            Outcome::Done => {
                let right = if is_prepare { State::Prepared } else { State::Free };
                if found != right {
                    self.fail(&format!("{name} is {found:?} after prepare {is_prepare} was done"));
                }
                self.becomes(number, found);
            }
            Outcome::Refused => {
                let is_right = match (before, found) {
                    _ if before == found => true,
                    // What cannot be taken back stays on record.
                    (_, State::Leaving) => !(is_prepare && before == State::Prepared),
                    (State::Leaving, State::Free) => is_prepare,
                    _ => false,
                };
                if !is_right {
                    self.fail(&format!("{name} is {found:?} after prepare {is_prepare} was refused"));
                }
                self.becomes(number, found);
            }
        }
    }

    /// How a claim stands by its state file.
    pub(crate) fn state_on_record(&self, number: usize) -> State {
        let boot_id = self.lab.sim.snapshot().unwrap().boot_id;
        let recorded = record::read(&self.lab, &self.model.tenants[number].claim.uid, &boot_id);
        recorded.map_or(State::Free, |it| it.state)
    }

    /// Nothing goes on for the claim any more. What was made again of what an administrator had destroyed is not lost.
    pub(crate) fn becomes(&mut self, number: usize, state: State) {
        let gpus = self.lab.sim.snapshot().unwrap().gpus;
        let (unmanaged, tenant) = (&self.model.unmanaged, &mut self.model.tenants[number]);
        tenant.becomes(state);
        tenant.lost.retain(|part| {
            let is_unmanaged = |serial| unmanaged.iter().any(|it| it.serial == serial);
            let mut there = gpus[part.gpu].gpu_instances.iter();
            !there.any(|it| (it.start, it.size) == (part.start, part.size) && !is_unmanaged(it.serial))
        });
    }

    /// The GPU answers again, and all work that waited for it comes to its end: by itself, or for the next call.
    pub(crate) async fn let_go(&mut self) {
        if self.model.hung.is_none() {
            return;
        }
        self.meet("GPUs that hung");
        self.unhang();
        let at_work = |it: &usize| self.model.tenants[*it].work.is_some();
        let numbers: Vec<usize> = (0..self.model.tenants.len()).filter(at_work).collect();
        for number in numbers {
            self.meet("work that ended after a GPU answered again");
            self.finish(number).await;
        }
    }

    async fn finish(&mut self, number: usize) {
        let tenant = &self.model.tenants[number];
        let (name, before) = (tenant.claim.name.clone(), tenant.state);
        let Some(Work { is_prepare, .. }) = tenant.work else { return };
        // A claim that is recorded needs nothing more than room.
        let occupied = |it: &Tenant| self.model.unmanaged.iter().any(|unmanaged| it.needs(&unmanaged.part));
        let must_succeed = !occupied(tenant) && tenant.next.is_none();
        let may_be_prepared = tenant.may_be_prepared() && !tenant.is_between() && tenant.next.is_none();
        let choice = self.random.below(3);
        if is_prepare && choice == 0 {
            let ended = async || {
                let state = self.state_on_record(number);
                (state != State::Leaving).then_some(state)
            };
            let state = eventually("the work ends", ended).await;
            self.note(format!("{name}: the work has ended, {state:?}"));
            if must_succeed && state != State::Prepared {
                self.fail(&format!("the work for {name} has ended and it is {state:?}"));
            }
            self.settle(number, state).await;
            return;
        }
        let asks = match choice {
            1 if may_be_prepared || before == State::Prepared => is_prepare,
            _ if may_be_prepared && !is_prepare => true,
            _ => false,
        };
        self.model.tenants[number].work = None;
        let outcome = match self.call_one(number, asks).await {
            Ok(outcome) => outcome,
            Err(error) => self.fail(&format!("{name}: {error}")),
        };
        let state = self.state_on_record(number);
        let right = if asks { State::Prepared } else { State::Free };
        if outcome == Outcome::Done && state != right {
            self.fail(&format!("{name} is {state:?} after prepare {asks} was done"));
        }
        self.becomes(number, state);
    }

    /// Waits for the end of a prepare of a claim that counted as prepared all the time: the next call for it finds it.
    async fn settle(&mut self, number: usize, state: State) {
        self.model.tenants[number].work = None;
        if self.model.tenants[number].state == State::Prepared
            && state == State::Prepared
            && let Err(error) = self.call_one(number, true).await
        {
            self.fail(&error);
        }
        let state = self.state_on_record(number);
        self.becomes(number, state);
    }

    /// One call on a node where every GPU answers.
    pub(crate) async fn call_one(&mut self, number: usize, is_prepare: bool) -> Result<Outcome, String> {
        let driver = self.random.below(self.drivers.len());
        let expected = match is_prepare {
            true => self.model.any(number),
            false => self.model.unprepare(number),
        };
        let (id, name) = (self.drivers[driver].id, &self.model.tenants[number].claim.name);
        self.note(format!("prepare {is_prepare} {name} of driver {id}: {expected:?}"));
        self.call(&Call { number, is_prepare, driver, expected }).await
    }

    /// One call, held against what the model says. Asked again while the answer is only that there was too little time: a busy
    /// machine can make the work outlive its call, too. Where a GPU does not answer, twice is enough.
    async fn call(&self, call: &Call) -> Result<Outcome, String> {
        let tenant = &self.model.tenants[call.number];
        let kubelet = &self.drivers[call.driver].plugin;
        let begun = Instant::now();
        let mut unanswered = 0;
        let result = loop {
            let result = if call.is_prepare {
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
            // Where the API server does not answer at once, which on a busy machine it may not, the record counts.
            if call.asks_the_api() && begun.elapsed() < PATIENCE && was_not_asked(&result) {
                continue;
            }
            let Err(error) = &result else { break result };
            if !is_out_of_time(error) {
                break result;
            }
            if let Some(hung) = self.model.hung
                && tenant.is_on(hung.gpu)
                && !error.contains(NO_ANSWER)
                && self.lab.recorded().contains(&tenant.claim.uid)
                && self.lab.sim.is_busy(hung.gpu).unwrap()
            {
                unanswered += 1;
                if unanswered == 2 {
                    return Ok(Outcome::Outlived);
                }
            } else if PATIENCE < begun.elapsed() {
                break result;
            }
        };
        match (&call.expected, &result) {
            (Expected::Done | Expected::Any(_), Ok(())) => Ok(Outcome::Done),
            (Expected::Refused(words) | Expected::Any(words), Err(error))
                if words.iter().any(|it| error.contains(it)) =>
            {
                Ok(Outcome::Refused)
            }
            _ => Err(format!("prepare {}: {result:?}, expected {:?}", call.is_prepare, call.expected)),
        }
    }
}

impl Call {
    /// True where only the API server knows why the call must be refused.
    fn asks_the_api(&self) -> bool {
        matches!(&self.expected, Expected::Refused(words) if words.iter().any(|it| it == REALLOCATED))
    }
}

/// True for an answer that goes by the record.
fn was_not_asked(result: &Result<(), String>) -> bool {
    result.as_ref().err().is_none_or(|it| it.contains("is occupied"))
}

/// True for an error that says no more than that the call had too little time.
fn is_out_of_time(error: &str) -> bool {
    ["the driver goes on", "is still being taken back", NO_ANSWER, "another call for"]
        .iter()
        .any(|it| error.contains(it))
}
