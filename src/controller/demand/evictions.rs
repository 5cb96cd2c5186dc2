//! What is remembered of evictions: how many there were, and the set of pods that is on its way.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use mig_model::layout::LONGEST_HOLD;

use super::world::{ClaimKey, Options, PendingPod, after};

/// Between two sets, so that the replacements of the first have their places.
const BETWEEN: Duration = Duration::from_secs(30);
/// The time in which evictions are counted.
const HOUR: Duration = Duration::from_secs(3600);
/// The longest time for which nothing is evicted for a namespace.
const LONGEST_BAR: Duration = Duration::from_secs(24 * 3600);
/// A pod can be gone from the pods that wait for so long before its claim is seen to have devices: watches are late.
const LATE: Duration = Duration::from_secs(10);

/// What is remembered of evictions. A new leader begins without the right to any, and gains it within an hour.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Consolidation {
    /// Since when this is remembered.
    since: Option<Timestamp>,
    /// Evictions of the last hour: when, the namespace that they were for, and the UID of the pod.
    evicted: Vec<(Timestamp, String, String)>,
    pub(super) attempt: Option<Attempt>,
    /// Until when nothing is evicted.
    pub(super) paused: Option<Timestamp>,
    /// Pods that could not be evicted, by UID, and until when they are left alone.
    pub(super) avoided: BTreeMap<String, Timestamp>,
    /// Namespaces for whose pods others were evicted in vain.
    barred: BTreeMap<String, Bar>,
}

/// Until when nothing is evicted for a namespace.
#[derive(Debug, Clone, PartialEq)]
struct Bar {
    until: Timestamp,
    /// How long it was; twice as long the next time.
    length: Duration,
}

/// What has become of the claim for which pods were evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It waits, and a GPU is held back for it.
    Held,
    /// It waits, and the hold is over.
    Waits,
    /// Its pod is gone or deleted, and the claim has no devices.
    Unserved,
    /// It has its devices.
    Served,
}

/// A set of pods on its way.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Attempt {
    /// UID of the pod that waits.
    pub(super) pod: String,
    /// Its claim.
    pub(super) claim: ClaimKey,
    /// UIDs of the pods of the set.
    pods: Vec<String>,
    /// Since when neither pod nor devices are seen.
    gone: Option<Timestamp>,
    /// When the first of them was evicted.
    begun: Timestamp,
}

impl Consolidation {
    /// Forgets what is over, and learns by `fate` what has become of the last set.
    pub(super) fn read(&mut self, options: &Options, fate: impl Fn(&Attempt) -> Fate, now: Timestamp) {
        if options.evictions_per_hour.is_none() {
            *self = Self::default();
            return;
        }
        let since = *self.since.get_or_insert(now);
        // A clock that was set back starts the time again.
        if now < since {
            *self = Self { since: Some(now), ..Self::default() };
        }
        self.evicted.retain(|it| now < after(it.0, HOUR));
        self.avoided.retain(|_, until| now < *until);
        self.paused = self.paused.filter(|it| now < *it);
        // For longer than a hold, so that the next one is longer.
        self.barred.retain(|_, it| now < after(it.until, it.length.max(HOUR)));
        let Some(attempt) = &mut self.attempt else { return };
        let fate = fate(attempt);
        attempt.gone = (fate == Fate::Unserved).then_some(attempt.gone.unwrap_or(now));
        // What has not ended by then keeps no other set waiting.
        let may_end = now < after(attempt.begun, LONGEST_HOLD);
        if fate == Fate::Held && may_end || attempt.gone.is_some_and(|it| now < after(it, LATE)) {
            return;
        }
        let namespace = attempt.claim.namespace.clone();
        match fate {
            Fate::Served => drop(self.barred.remove(&namespace)),
            // It is not the namespace's fault that pods do not end.
            Fate::Held => {}
            Fate::Waits | Fate::Unserved => self.bar(namespace, options.evictions_pause, now),
        }
        let pause = if matches!(fate, Fate::Held | Fate::Waits) { options.evictions_pause } else { BETWEEN };
        self.paused = Some(after(now, pause));
        self.attempt = None;
    }

    /// Evicts nothing for a namespace for a while, which is longer each time.
    fn bar(&mut self, namespace: String, first: Duration, now: Timestamp) {
        let before = self.barred.get(&namespace);
        let length = before.map_or(first, |it| it.length.saturating_mul(2).min(LONGEST_BAR));
        self.barred.insert(namespace, Bar { until: after(now, length), length });
    }

    /// Whether pods were evicted for a namespace in vain, not long ago.
    pub(super) fn is_barred(&self, namespace: &str, now: Timestamp) -> bool {
        self.barred.get(namespace).is_some_and(|it| now < it.until)
    }

    /// Whether a pod is of the set that is on its way. Watches are late: it may not be deleted yet.
    pub(super) fn is_evicted(&self, pod: &str) -> bool {
        self.attempt.as_ref().is_some_and(|it| it.pods.iter().any(|it| it == pod))
    }

    /// How many pods may be evicted now for a namespace.
    pub(super) fn left(&self, options: &Options, namespace: &str, now: Timestamp) -> usize {
        let Some(hour) = options.evictions_per_hour else { return 0 };
        let since = self.since.map_or(0, |it| now.duration_since(it).as_secs().clamp(0, 3600));
        let gained = u64::from(hour) * u64::try_from(since).unwrap_or(0) / 3600;
        let of_namespace = self.evicted.iter().filter(|it| it.1 == namespace).count();
        let all = usize::try_from(gained).unwrap_or(usize::MAX).saturating_sub(self.evicted.len());
        all.min(most_for_one(options).saturating_sub(of_namespace))
    }

    /// Takes note that pods are evicted for the claim of one that waits.
    pub(super) fn begin(&mut self, of: &PendingPod, claim: &ClaimKey, pods: &[String], now: Timestamp) {
        self.evicted.extend(pods.iter().map(|it| (now, of.namespace.clone(), it.clone())));
        let known = self.attempt.take().filter(|it| it.claim == *claim);
        let (mut all, begun) = known.map_or((Vec::new(), now), |it| (it.pods, it.begun));
        all.extend_from_slice(pods);
        self.attempt =
            Some(Attempt { pod: of.uid.clone(), claim: claim.clone(), pods: all, gone: None, begun });
    }

    /// A pod was not evicted: it is left alone until then. One of which that is not certain counts as if it was.
    pub(super) fn not_evicted(&mut self, pod: &str, until: Timestamp, is_certain: bool) {
        self.avoided.insert(pod.to_owned(), until);
        if !is_certain {
            return;
        }
        self.evicted.retain(|it| it.2 != pod);
        if let Some(attempt) = &mut self.attempt {
            attempt.pods.retain(|it| it != pod);
        }
        // Where nothing was evicted, there is nothing to wait for.
        self.attempt = self.attempt.take().filter(|it| !it.pods.is_empty());
    }
}

/// Evictions in an hour for the pods of one namespace.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the number is not above one that fits"
)]
pub(super) fn most_for_one(options: &Options) -> usize {
    let hour = f64::from(options.evictions_per_hour.unwrap_or(0));
    ((hour * options.evictions_namespace.clamp(0.0, 1.0)) as usize).max(1)
}
