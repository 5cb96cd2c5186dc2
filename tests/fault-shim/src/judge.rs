//! What happens at the next point. Counting only.

use std::fmt;

use crate::plan::{Action, Op, Plan};

/// What happens at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing special.
    Pass,
    /// The process ends before the operation.
    CrashBefore,
    /// The process ends after it.
    CrashAfter,
    /// The operation fails.
    Fail(i32),
    /// Only half is written.
    Half,
    /// The operation waits for the end of the plan with this id.
    Hold(u64),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("pass"),
            Self::CrashBefore => f.write_str("crash_before"),
            Self::CrashAfter => f.write_str("crash_after"),
            Self::Fail(errno) => write!(f, "errno:{errno}"),
            Self::Half => f.write_str("half"),
            Self::Hold(_) => f.write_str("hold"),
        }
    }
}

/// How far the process got in a plan.
#[derive(Debug, Default)]
pub(crate) struct Count {
    plan: Option<u64>,
    met: u32,
    is_cut: bool,
}

impl Count {
    pub(crate) const fn new() -> Self {
        Self { plan: None, met: 0, is_cut: false }
    }

    /// Judges one point and counts it.
    pub(crate) fn judge(&mut self, plan: &Plan, op: Op) -> Verdict {
        if self.plan != Some(plan.id) {
            *self = Self { plan: Some(plan.id), ..Self::new() };
        }
        if !plan.ops.contains(&op) {
            return Verdict::Pass;
        }
        let met = self.met;
        self.met = met.saturating_add(1);
        let Some(hits) = met.checked_sub(plan.skip) else { return Verdict::Pass };
        if plan.times.is_some_and(|times| times <= hits) {
            return Verdict::Pass;
        }
        match plan.action {
            Action::CrashBefore => Verdict::CrashBefore,
            Action::CrashAfter => Verdict::CrashAfter,
            Action::Errno(errno) => Verdict::Fail(errno),
            Action::Short(_) if op == Op::Write && !self.is_cut => {
                self.is_cut = true;
                Verdict::Half
            }
            Action::Short(errno) => Verdict::Fail(errno),
            Action::Hold => Verdict::Hold(plan.id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(plan: &str, ops: &[Op]) -> Vec<String> {
        let (plan, mut count): (Plan, Count) = (plan.parse().unwrap(), Count::new());
        ops.iter().map(|op| count.judge(&plan, *op).to_string()).collect()
    }

    #[test]
    fn points_are_skipped_then_hit_then_left_alone() {
        let four = [Op::Open, Op::Write, Op::Sync, Op::Rename];
        let verdicts = verdicts("id=1 action=errno:28 skip=1 times=2", &four);
        assert_eq!(verdicts, ["pass", "errno:28", "errno:28", "pass"]);
    }

    #[test]
    fn only_the_kinds_that_were_asked_for_count() {
        let verdicts = verdicts("id=1 action=crash_after skip=1 ops=sync", &[Op::Sync, Op::Write, Op::Sync]);
        assert_eq!(verdicts, ["pass", "pass", "crash_after"]);
    }

    #[test]
    fn after_half_a_write_the_disk_is_full() {
        let verdicts = verdicts("id=1 action=short:28 times=2 ops=write", &[Op::Write, Op::Write, Op::Write]);
        assert_eq!(verdicts, ["half", "errno:28", "pass"]);
    }

    #[test]
    fn a_new_plan_counts_from_zero() {
        let mut count = Count::new();
        let plan = |id: u64| format!("id={id} action=errno:5 times=1").parse::<Plan>().unwrap();
        assert_eq!(count.judge(&plan(1), Op::Open), Verdict::Fail(5));
        assert_eq!(count.judge(&plan(1), Op::Open), Verdict::Pass);
        assert_eq!(count.judge(&plan(2), Op::Open), Verdict::Fail(5));
    }

    #[test]
    fn a_plan_is_read_as_it_is_written() {
        for text in ["id=7 action=errno:28 skip=3 times=1 ops=write,sync", "id=8 action=hold skip=0 ops=open"]
        {
            assert_eq!(text.parse::<Plan>().unwrap().to_string(), text);
        }
        for rubbish in ["", "id=1", "id=x action=crash_after", "action=sleep", "action=errno:x", "id"] {
            assert!(rubbish.parse::<Plan>().is_err(), "{rubbish}");
        }
    }
}
