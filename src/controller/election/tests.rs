//! Candidates without an API server: a Lease in memory that takes a write only at the version that was read.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use proptest::prelude::{ProptestConfig, any, prop_assert};
use proptest::proptest;
use tokio::time::Instant;

use super::{Candidate, Step, Timings};

const LEASE: Duration = Duration::from_secs(15);

/// The one object of an API server.
#[derive(Default)]
struct Store {
    lease: Option<Lease>,
    version: u64,
}

impl Store {
    fn write(&mut self, mut lease: Lease) -> Result<Lease, ()> {
        let is_current = match (&self.lease, &lease.metadata.resource_version) {
            (None, None) => true,
            (Some(stored), Some(version)) => stored.metadata.resource_version.as_ref() == Some(version),
            _ => false,
        };
        if !is_current {
            return Err(());
        }
        self.version += 1;
        lease.metadata.resource_version = Some(self.version.to_string());
        self.lease = Some(lease.clone());
        Ok(lease)
    }
}

fn candidate(name: &str) -> Candidate {
    Candidate::new("n", "l", name, Timings::of_lease(LEASE))
}

/// The time that a Lease has after so long.
fn at(passed: Duration) -> Timestamp {
    Timestamp::UNIX_EPOCH.checked_add(passed).unwrap()
}

/// An attempt that reaches the store.
fn attempt(it: &mut Candidate, store: &mut Store, now: Instant) {
    it.read(store.lease.clone(), now);
    if let Step::Write(lease) = it.step(now, Timestamp::UNIX_EPOCH)
        && let Ok(written) = store.write(*lease)
    {
        it.written(written, now);
    }
}

#[test]
fn the_timings_are_those_of_client_go() {
    let expected =
        Timings { lease: LEASE, renew_deadline: Duration::from_secs(10), retry: Duration::from_secs(2) };
    assert_eq!(Timings::of_lease(LEASE), expected);
}

#[test]
fn the_first_candidate_leads_and_the_second_waits_for_the_whole_lease() {
    let (mut store, start) = (Store::default(), Instant::now());
    let (mut first, mut second) = (candidate("a"), candidate("b"));
    attempt(&mut first, &mut store, start);
    assert!(first.leads(start));
    // The second has not seen the first write until now: it waits for the whole lease from here on.
    let seen = start + Duration::from_secs(14);
    attempt(&mut second, &mut store, seen);
    attempt(&mut second, &mut store, seen + LEASE - Duration::from_millis(1));
    assert_eq!(second.holder(), Some("a"));
    assert!(!second.leads(seen + LEASE));
    attempt(&mut second, &mut store, seen + LEASE);
    assert!(second.leads(seen + LEASE) && !first.leads(seen + LEASE));
    let spec = store.lease.unwrap().spec.unwrap();
    assert_eq!((spec.holder_identity.as_deref(), spec.lease_transitions), (Some("b"), Some(1)));
}

#[test]
fn a_leader_that_cannot_renew_stops_before_its_lease_can_be_taken() {
    let (mut store, start) = (Store::default(), Instant::now());
    let mut leader = candidate("a");
    attempt(&mut leader, &mut store, start);
    assert!(leader.leads(start + Duration::from_millis(9_999)));
    assert!(!leader.leads(start + Duration::from_secs(10)));
}

#[test]
fn a_renewal_keeps_the_time_of_the_acquisition_and_starts_the_wait_of_others_again() {
    let (mut store, start) = (Store::default(), Instant::now());
    let (mut first, mut second) = (candidate("a"), candidate("b"));
    attempt(&mut first, &mut store, start);
    let acquired = store.lease.clone().unwrap().spec.unwrap().acquire_time;
    attempt(&mut second, &mut store, start);
    let later = start + Duration::from_secs(8);
    let Step::Write(renewal) = first.step(later, Timestamp::from_second(8).unwrap()) else { unreachable!() };
    let renewed = store.write(*renewal).unwrap();
    first.written(renewed, later);
    assert_eq!(store.lease.clone().unwrap().spec.unwrap().acquire_time, acquired);
    attempt(&mut second, &mut store, start + LEASE);
    assert_eq!(second.holder(), Some("a"), "it has changed since the second has read it first");
}

#[test]
fn a_released_lease_is_taken_at_once() {
    let (mut store, start) = (Store::default(), Instant::now());
    let (mut first, mut second) = (candidate("a"), candidate("b"));
    attempt(&mut first, &mut store, start);
    let released = first.release(Timestamp::UNIX_EPOCH).unwrap();
    store.write(released).unwrap();
    assert!(!first.leads(start));
    attempt(&mut second, &mut store, start);
    assert!(second.leads(start));
    assert_eq!(first.release(Timestamp::UNIX_EPOCH), None, "what is not held is not released");
}

#[test]
fn a_write_at_an_old_version_is_lost_and_does_not_make_a_leader() {
    let (mut store, start) = (Store::default(), Instant::now());
    let (mut first, mut second) = (candidate("a"), candidate("b"));
    first.read(None, start);
    let Step::Write(stale) = first.step(start, Timestamp::UNIX_EPOCH) else { unreachable!() };
    attempt(&mut second, &mut store, start);
    store.write(*stale).unwrap_err();
    assert!(second.leads(start) && !first.leads(start));
}

#[test]
fn a_leader_whose_lease_was_taken_or_deleted_knows_it_when_it_reads() {
    let (mut store, start) = (Store::default(), Instant::now());
    let (mut first, mut second) = (candidate("a"), candidate("b"));
    attempt(&mut first, &mut store, start);
    store = Store { lease: None, version: store.version };
    attempt(&mut second, &mut store, start);
    first.read(store.lease.clone(), start);
    assert!(!first.leads(start) && second.leads(start));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]
    /// Whatever is delayed, lost or answered late: at no time do two candidates lead.
    #[test]
    fn two_candidates_never_lead_at_one_time(
        steps in proptest::collection::vec((0_usize..3, any::<u8>(), 0_u64..6_000), 1..200),
    ) {
        let mut store = Store::default();
        let mut all = [candidate("a"), candidate("b"), candidate("c")];
        let mut pending: BTreeMap<usize, (Lease, Instant)> = BTreeMap::new();
        let start = Instant::now();
        let mut now = start;
        for (who, what, pause) in steps {
            now += Duration::from_millis(pause);
            let it = &mut all[who];
            match what % 5 {
                // A write that is on its way arrives now; its sender counts from when it was begun.
                0 => if let Some((lease, begun)) = pending.remove(&who)
                    && let Ok(written) = store.write(lease) {
                    it.written(written, begun);
                },
                // It arrives, and its answer is lost.
                1 => if let Some((lease, _)) = pending.remove(&who) {
                    let _ = store.write(lease);
                },
                2 => if let Some(lease) = it.release(Timestamp::UNIX_EPOCH) {
                    let _ = store.write(lease);
                },
                _ => {
                    if what % 2 == 0 {
                        it.read(store.lease.clone(), now);
                    }
                    if let Step::Write(lease) = it.step(now, at(now - start)) {
                        pending.insert(who, (*lease, now));
                    }
                }
            }
            prop_assert!(all.iter().filter(|it| it.leads(now)).count() < 2);
        }
    }
}
