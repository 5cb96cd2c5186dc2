//! What a candidate does with the Lease that it has read. Pure.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

/// How long things take in an election.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timings {
    /// How long others wait after the last renewal that they have seen.
    pub lease: Duration,
    /// How long after its last renewal the leader acts.
    pub renew_deadline: Duration,
    /// Pause between attempts.
    pub retry: Duration,
}

impl Timings {
    /// Those of client-go, in its proportions: 15 s, 10 s and 2 s for a Lease of 15 s.
    #[must_use]
    pub fn of_lease(lease: Duration) -> Self {
        Self { lease, renew_deadline: lease * 2 / 3, retry: lease * 2 / 15 }
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Write this Lease: create it if it has no resource version, else replace the one that was read.
    Write(Box<Lease>),
    /// Another one leads.
    Wait,
}

/// One that wants to lead.
#[derive(Debug)]
pub struct Candidate {
    namespace: String,
    name: String,
    identity: String,
    timings: Timings,
    seen: Option<Seen>,
    /// When the last write that succeeded was begun.
    renewed: Option<Instant>,
}

/// The Lease as it was read last.
#[derive(Debug)]
struct Seen {
    lease: Lease,
    /// Since when it has been seen unchanged.
    since: Instant,
}

impl Candidate {
    /// A candidate for the Lease of this namespace and name. No two processes may have one identity.
    #[must_use]
    pub fn new(
        namespace: impl Into<String>,
        name: impl Into<String>,
        identity: impl Into<String>,
        timings: Timings,
    ) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            identity: identity.into(),
            timings,
            seen: None,
            renewed: None,
        }
    }

    /// Its timings.
    #[must_use]
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// Name of the Lease.
    #[must_use]
    pub fn lease_name(&self) -> &str {
        &self.name
    }

    /// Its identity.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Who holds the Lease, as far as is known.
    #[must_use]
    pub fn holder(&self) -> Option<&str> {
        let spec = self.seen.as_ref()?.lease.spec.as_ref()?;
        spec.holder_identity.as_deref().filter(|it| !it.is_empty())
    }

    /// Until when this one may act.
    #[must_use]
    pub fn leads_until(&self) -> Option<Instant> {
        self.renewed.map(|it| it + self.timings.renew_deadline)
    }

    /// Whether it may act.
    #[must_use]
    pub fn leads(&self, now: Instant) -> bool {
        self.leads_until().is_some_and(|it| now < it)
    }

    /// The Lease was read; `None`: there is none.
    pub fn read(&mut self, lease: Option<Lease>, now: Instant) {
        let Some(lease) = lease else {
            self.seen = None;
            return;
        };
        let is_same = self.seen.as_ref().is_some_and(|it| it.lease.spec == lease.spec);
        let since = self.seen.as_ref().map(|it| it.since).filter(|_| is_same).unwrap_or(now);
        self.seen = Some(Seen { lease, since });
        if self.holder() != Some(&self.identity) {
            // Taken by another one, or given back.
            self.renewed = None;
        }
    }

    /// What to do at this time.
    #[must_use]
    pub fn step(&self, now: Instant, time: Timestamp) -> Step {
        let holder = self.holder();
        let is_own = holder == Some(&self.identity);
        if holder.is_some() && !is_own && !self.has_expired(now) {
            return Step::Wait;
        }
        let mut lease = self.seen.as_ref().map(|it| it.lease.clone()).unwrap_or_default();
        lease.metadata.namespace = Some(self.namespace.clone());
        lease.metadata.name = Some(self.name.clone());
        lease.metadata.managed_fields = None;
        let before = lease.spec.take().unwrap_or_default();
        let (acquired, transitions) = match (&self.seen, is_own) {
            (None, _) => (None, 0),
            (_, true) => (before.acquire_time, before.lease_transitions.unwrap_or_default()),
            (_, false) => (None, before.lease_transitions.unwrap_or_default().saturating_add(1)),
        };
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(whole_seconds(self.timings.lease)),
            acquire_time: acquired.or(Some(MicroTime(time))),
            renew_time: Some(MicroTime(time)),
            lease_transitions: Some(transitions),
            ..before
        });
        Step::Write(Box::new(lease))
    }

    /// A write that was begun at `begun` has succeeded; the API server has answered with this.
    pub fn written(&mut self, lease: Lease, begun: Instant) {
        self.seen = Some(Seen { lease, since: begun });
        self.renewed = Some(begun);
    }

    /// The Lease to write so that another one may take it at once, if this one holds it. It acts no more.
    pub fn release(&mut self, time: Timestamp) -> Option<Lease> {
        self.renewed.take()?;
        if self.holder() != Some(&self.identity) {
            return None;
        }
        let mut lease = self.seen.as_ref()?.lease.clone();
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(time));
        spec.acquire_time = Some(MicroTime(time));
        lease.metadata.managed_fields = None;
        Some(lease)
    }

    /// Whether the Lease has been seen unchanged for as long as its holder asked for.
    fn has_expired(&self, now: Instant) -> bool {
        let Some(seen) = &self.seen else { return true };
        let seconds = seen.lease.spec.as_ref().and_then(|it| it.lease_duration_seconds).unwrap_or_default();
        let duration = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
        seen.since.checked_add(duration).is_some_and(|it| it <= now)
    }
}

/// At least 1: the API server takes whole seconds.
fn whole_seconds(duration: Duration) -> i32 {
    let up = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    i32::try_from(up).unwrap_or(i32::MAX).max(1)
}
