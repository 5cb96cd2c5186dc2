//! Which pod was given which event when, and what may be explained and written now. Pure.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use mig_model::hash::fnv1a;

use super::events::Seen;
use super::note::Finding;
use super::waiting::{Waiting, waited};

/// How much is reported, and how often.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How long a pod waits before it is looked at.
    pub patience: Duration,
    /// Shortest time between two events of a pod, and between two explanations of it.
    pub each: Duration,
    /// After this time the same text is written again, so that it does not expire: events are kept for an hour by default.
    pub again: Duration,
    /// Events that may be written at once, and the time after which one more may.
    pub writes: (u32, Duration),
    /// How long explanations are made in one round.
    pub explaining: Duration,
    /// How long an explanation holds for other pods of the shape.
    pub shared: Duration,
}

impl Limits {
    /// Those of production, with the patience that the flag says.
    #[must_use]
    pub fn with_patience(patience: Duration) -> Self {
        Self {
            patience,
            each: Duration::from_secs(300),
            again: Duration::from_secs(1800),
            writes: (50, Duration::from_millis(200)),
            explaining: Duration::from_secs(1),
            shared: Duration::from_secs(30),
        }
    }
}

/// What is remembered of a pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Remembered {
    /// When the last event was written, and a hash of its note.
    pub written: Option<(Timestamp, u64)>,
    /// When the pod was explained last without an event.
    pub checked: Option<Timestamp>,
    /// When an event could not be written last, and how often in a row.
    pub failed: Option<(Timestamp, u32)>,
}

/// What is remembered. A new leader reads it from the events that exist.
#[derive(Debug)]
pub struct Memory {
    limits: Limits,
    pods: HashMap<String, Remembered>,
    /// By shape.
    findings: HashMap<u64, (Timestamp, Option<Finding>)>,
    budget: Budget,
}

impl Memory {
    /// Nothing but these events. A time in the future, which anybody who creates events can write, counts as now.
    #[must_use]
    pub fn of(limits: Limits, events: Vec<Seen>, now: Timestamp) -> Self {
        let mut pods: HashMap<String, Remembered> = HashMap::new();
        for Seen { uid, time, note } in events {
            let time = time.min(now);
            let remembered = pods.entry(uid).or_default();
            if remembered.written.is_none_or(|(known, _)| known <= time) {
                remembered.written = Some((time, note));
            }
        }
        let budget = Budget { left: limits.writes.0, since: None };
        Self { limits, pods, findings: HashMap::new(), budget }
    }

    /// Forgets pods that wait no more, and explanations that are too old to be shared.
    pub fn keep_only(&mut self, waiting: &[Waiting<'_>], now: Timestamp) {
        let uids: HashSet<&str> = waiting.iter().map(Waiting::uid).collect();
        self.pods.retain(|uid, _| uids.contains(uid.as_str()));
        let shared = self.limits.shared;
        self.findings.retain(|_, (time, _)| *time <= now && waited(*time, now) <= shared);
    }

    /// How long it takes until a pod is to be looked at; nothing: now. A time in the future, from another clock, counts as now.
    #[must_use]
    pub fn due_in(&self, pod: &Waiting<'_>, now: Timestamp) -> Duration {
        let remembered = self.pods.get(pod.uid()).copied().unwrap_or_default();
        let left = |since: Timestamp, wait: Duration| wait.saturating_sub(waited(since, now));
        let last = remembered.written.map(|(time, _)| time).max(remembered.checked);
        let each = self.limits.each;
        let retry = |count: u32| Duration::from_secs(1 << count.min(16)).min(each);
        left(pod.since, self.limits.patience)
            .max(last.map_or(Duration::ZERO, |it| left(it, each)))
            .max(remembered.failed.map_or(Duration::ZERO, |(time, count)| left(time, retry(count))))
    }

    /// When the last event of the pod was written.
    #[must_use]
    pub fn last_event(&self, pod: &Waiting<'_>) -> Option<Timestamp> {
        self.pods.get(pod.uid())?.written.map(|(time, _)| time)
    }

    /// An explanation of a pod of this shape that still holds.
    #[must_use]
    pub fn finding(&self, shape: u64) -> Option<Option<Finding>> {
        self.findings.get(&shape).map(|(_, finding)| finding.clone())
    }

    /// A pod of this shape was explained.
    pub fn found(&mut self, shape: u64, finding: Option<Finding>, now: Timestamp) {
        self.findings.insert(shape, (now, finding));
    }

    /// Whether the pod has this note already.
    #[must_use]
    pub fn is_known(&self, pod: &Waiting<'_>, note: &str, now: Timestamp) -> bool {
        let written = self.pods.get(pod.uid()).and_then(|it| it.written);
        written.is_some_and(|(time, hash)| {
            hash == fnv1a(note.as_bytes()) && waited(time, now) < self.limits.again
        })
    }

    /// The pod was looked at, and needs no event now.
    pub fn checked(&mut self, pod: &Waiting<'_>, now: Timestamp) {
        self.pods.entry(pod.uid().to_owned()).or_default().checked = Some(now);
    }

    /// The pod has got an event.
    pub fn wrote(&mut self, pod: &Waiting<'_>, note: &str, now: Timestamp) {
        let written = Some((now, fnv1a(note.as_bytes())));
        self.pods.insert(pod.uid().to_owned(), Remembered { written, ..Remembered::default() });
    }

    /// An event of the pod could not be written: it is tried again after a second, and then after twice as long each time, so that
    /// other pods come first.
    pub fn failed(&mut self, pod: &Waiting<'_>, now: Timestamp) {
        let failed = &mut self.pods.entry(pod.uid().to_owned()).or_default().failed;
        *failed = Some((now, failed.map_or(0, |(_, count)| count.saturating_add(1))));
    }

    /// Takes the right to write one event, if there is one.
    pub fn may_write(&mut self, now: Timestamp) -> bool {
        self.budget.take(self.limits.writes, now)
    }

    /// How long explanations may be made in one round.
    #[must_use]
    pub fn explaining(&self) -> Duration {
        self.limits.explaining
    }
}

/// How many more events may be written now.
#[derive(Debug)]
struct Budget {
    left: u32,
    since: Option<Timestamp>,
}

impl Budget {
    fn take(&mut self, (most, each): (u32, Duration), now: Timestamp) -> bool {
        let since = *self.since.get_or_insert(now);
        let passed = waited(since, now);
        let more = u32::try_from(passed.as_nanos() / each.as_nanos().max(1)).unwrap_or(u32::MAX);
        // A clock that was set back starts the time again.
        if 0 < more || now < since {
            self.left = self.left.saturating_add(more).min(most);
            self.since = Some(now);
        }
        let is_left = 0 < self.left;
        self.left = self.left.saturating_sub(1);
        is_left
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn pod(uid: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.to_owned());
        pod
    }

    fn of(pod: &Pod) -> Waiting<'_> {
        Waiting { pod, since: at(1_000), claims: Vec::new(), entries: Vec::new() }
    }

    fn memory(events: &[(&str, i64, &str)]) -> Memory {
        let seen = |(uid, time, note): &(&str, i64, &str)| Seen {
            uid: (*uid).to_owned(),
            time: at(*time),
            note: fnv1a(note.as_bytes()),
        };
        Memory::of(
            Limits::with_patience(Duration::from_secs(5)),
            events.iter().map(seen).collect(),
            at(2_000),
        )
    }

    #[test]
    fn a_pod_is_looked_at_after_the_patience_and_then_every_five_minutes() {
        let pod = pod("u");
        let mut memory = memory(&[]);
        let due = |memory: &Memory, now| memory.due_in(&of(&pod), at(now)).as_secs();
        assert_eq!([1_000, 1_004, 1_005, 2_000].map(|now| due(&memory, now)), [5, 1, 0, 0]);
        memory.wrote(&of(&pod), "note", at(1_010));
        assert_eq!([1_010, 1_309, 1_310].map(|now| due(&memory, now)), [300, 1, 0]);
        memory.checked(&of(&pod), at(1_310));
        assert_eq!([1_310, 1_610].map(|now| due(&memory, now)), [300, 0]);
        assert_eq!(due(&memory, 900), 300, "a clock that was set back");
    }

    #[test]
    fn the_same_text_is_written_again_after_half_an_hour_and_another_one_when_it_is_due() {
        let pod = pod("u");
        let mut memory = memory(&[]);
        memory.wrote(&of(&pod), "note", at(2_000));
        assert!(
            memory.is_known(&of(&pod), "note", at(3_799)) && !memory.is_known(&of(&pod), "note", at(3_800))
        );
        assert!(!memory.is_known(&of(&pod), "other", at(2_300)));
    }

    #[test]
    fn a_new_leader_goes_by_the_events_of_the_one_before() {
        let (seen, new) = (pod("seen"), pod("new"));
        let memory = memory(&[("seen", 2_000, "b"), ("seen", 1_500, "a")]);
        assert_eq!(memory.due_in(&of(&seen), at(2_100)).as_secs(), 200);
        assert!(memory.is_known(&of(&seen), "b", at(2_300)) && !memory.is_known(&of(&seen), "a", at(2_300)));
        assert_eq!(memory.due_in(&of(&new), at(2_100)), Duration::ZERO);
    }

    #[test]
    fn an_event_of_the_future_counts_as_one_of_now() {
        let pod = pod("u");
        let memory = memory(&[("u", 1_000_000, "a")]);
        assert_eq!([2_000, 2_300].map(|now| memory.due_in(&of(&pod), at(now)).as_secs()), [300, 0]);
        assert!(!memory.is_known(&of(&pod), "a", at(3_800)));
    }

    #[test]
    fn a_pod_whose_event_cannot_be_written_waits_longer_each_time_until_it_has_one() {
        let pod = pod("u");
        let mut memory = memory(&[]);
        let mut failed = |now: i64| {
            memory.failed(&of(&pod), at(now));
            memory.due_in(&of(&pod), at(now)).as_secs()
        };
        assert_eq!([2_000, 2_001, 2_003].map(&mut failed), [1, 2, 4]);
        for count in 0..100 {
            failed(3_000 + count);
        }
        assert_eq!(failed(3_100), 300);
        memory.wrote(&of(&pod), "note", at(4_000));
        assert_eq!(memory.due_in(&of(&pod), at(4_300)), Duration::ZERO);
    }

    #[test]
    fn pods_that_wait_no_more_and_old_explanations_are_forgotten() {
        let (stays, goes) = (pod("stays"), pod("goes"));
        let mut memory = memory(&[]);
        memory.wrote(&of(&stays), "note", at(2_000));
        memory.wrote(&of(&goes), "note", at(2_000));
        memory.found(7, None, at(2_000));
        memory.keep_only(&[of(&stays)], at(2_030));
        assert!(memory.last_event(&of(&stays)).is_some() && memory.last_event(&of(&goes)).is_none());
        assert_eq!(memory.finding(7), Some(None));
        memory.keep_only(&[of(&stays)], at(2_031));
        assert_eq!(memory.finding(7), None);
    }

    #[test]
    fn a_burst_of_events_is_written_and_then_five_a_second() {
        let mut memory = memory(&[]);
        let written =
            |memory: &mut Memory, now: i64| (0..1_000).filter(|_| memory.may_write(at(now))).count();
        assert_eq!([10, 10, 11, 13, 1_000].map(|now| written(&mut memory, now)), [50, 0, 5, 10, 50]);
        assert_eq!(written(&mut memory, 5), 0, "a clock that was set back");
        assert_eq!(written(&mut memory, 6), 5);
    }
}
