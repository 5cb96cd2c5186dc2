//! What is counted, and what is shown at `/metrics`. docs/controller.md has a row for each.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use kubectl_mig::explain::Verdict;
use mig_telemetry::{Exporter, flag, gauge, label_values, write_one};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::demand::Reason;
use crate::election::Leadership;
use crate::world::{Kind, World};

/// Upper bounds of durations, in seconds.
const DURATIONS: [f64; 11] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The same for waits of pods.
const WAITS: [f64; 11] = [1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0];

label_values! {
    /// How something ended.
    Outcome {
        /// As it should.
        Success = "success",
        /// With an error.
        Failure = "failure",
    }
}

label_values! {
    /// What an explanation says.
    VerdictLabel {
        /// The pod has its devices.
        Served = "served",
        /// It will get them.
        Fits = "fits",
        /// Not now.
        NotNow = "not_now",
        /// Not as things are.
        Never = "never",
        /// What is known is not enough.
        Unknown = "unknown",
    }
}

impl VerdictLabel {
    /// The label of a verdict.
    #[must_use]
    pub fn of(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Served => Self::Served,
            Verdict::Fits => Self::Fits,
            Verdict::NotNow => Self::NotNow,
            Verdict::Never => Self::Never,
            Verdict::Unknown => Self::Unknown,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabels {
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabels {
    verdict: VerdictLabel,
}

label_values! {
    /// Why the spec of a MigNode was written.
    WriteReason {
        /// The node is to publish other devices.
        Change = "change",
        /// Less is needed.
        Reduce = "reduce",
        /// It is still needed.
        Renew = "renew",
        /// Nothing is needed any more.
        Remove = "remove",
        /// Only holds differ.
        Holds = "holds",
    }
}

impl WriteReason {
    /// The label of a reason.
    #[must_use]
    pub fn of(reason: Reason) -> Self {
        match reason {
            Reason::Change => Self::Change,
            Reason::Reduce => Self::Reduce,
            Reason::Renew => Self::Renew,
            Reason::Remove => Self::Remove,
            Reason::Holds => Self::Holds,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    reason: WriteReason,
    outcome: Outcome,
}

label_values! {
    /// How a hold has ended.
    HoldEnd {
        /// Its claim has its devices.
        Served = "served",
        /// Its time was over, and the claim still waits.
        Expired = "expired",
        /// Its claim does not exist any more.
        Gone = "gone",
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HoldLabels {
    outcome: HoldEnd,
}

label_values! {
    /// What has become of an eviction.
    EvictionOutcome {
        /// The pod is evicted.
        Success = "success",
        /// A PodDisruptionBudget keeps it.
        Refused = "refused",
        /// It was gone, or is another pod of its name.
        Gone = "gone",
        /// The API server answers with an error, or not at all.
        Failure = "failure",
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EvictionLabels {
    outcome: EvictionOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    resource: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProfileLabels {
    profile: String,
}

/// The way to count. Clones count into the same numbers.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Families>);

#[derive(Debug)]
struct Families {
    rounds: Histogram,
    explanations: Family<VerdictLabels, Counter>,
    explaining: Histogram,
    events: Family<EventLabels, Counter>,
    writes: Family<WriteLabels, Counter>,
    evictions: Family<EvictionLabels, Counter>,
    watch_errors: Family<KindLabels, Counter>,
    objects: Family<KindLabels, Gauge<i64, AtomicI64>>,
    waiting: Gauge<i64, AtomicI64>,
    decisions: Histogram,
    skipped: Gauge<i64, AtomicI64>,
    oldest: Gauge<i64, AtomicI64>,
    unfollowed: Gauge<i64, AtomicI64>,
    holds: Family<HoldLabels, Counter>,
    waits: Family<ProfileLabels, Histogram, fn() -> Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        let families = Families {
            rounds: Histogram::new(DURATIONS),
            explanations: Family::default(),
            explaining: Histogram::new(DURATIONS),
            events: Family::default(),
            writes: Family::default(),
            evictions: Family::default(),
            watch_errors: Family::default(),
            objects: Family::default(),
            waiting: Gauge::default(),
            decisions: Histogram::new(DURATIONS),
            skipped: Gauge::default(),
            oldest: Gauge::default(),
            unfollowed: Gauge::default(),
            holds: Family::default(),
            waits: Family::new_with_constructor(|| Histogram::new(WAITS)),
        };
        // What can be known beforehand starts at zero, so that the first failure is an increase.
        for &outcome in Outcome::ALL {
            drop(families.events.get_or_create(&EventLabels { outcome }));
        }
        for &outcome in EvictionOutcome::ALL {
            drop(families.evictions.get_or_create(&EvictionLabels { outcome }));
        }
        for &reason in WriteReason::ALL {
            for &outcome in Outcome::ALL {
                drop(families.writes.get_or_create(&WriteLabels { reason, outcome }));
            }
        }
        for &outcome in HoldEnd::ALL {
            drop(families.holds.get_or_create(&HoldLabels { outcome }));
        }
        drop(families.waits.get_or_create(&ProfileLabels { profile: "other".to_owned() }));
        for &verdict in VerdictLabel::ALL {
            drop(families.explanations.get_or_create(&VerdictLabels { verdict }));
        }
        for &resource in Kind::ALL {
            drop(families.watch_errors.get_or_create(&KindLabels { resource }));
            drop(families.objects.get_or_create(&KindLabels { resource }));
        }
        Self(Arc::new(families))
    }
}

impl Metrics {
    /// A round has ended.
    pub fn round(&self, took: Duration) {
        self.0.rounds.observe(took.as_secs_f64());
    }

    /// So many pods wait, the oldest for so long.
    pub fn waits(&self, pods: usize, oldest: Duration) {
        self.0.waiting.set(i64::try_from(pods).unwrap_or(i64::MAX));
        self.0.oldest.set(i64::try_from(oldest.as_secs()).unwrap_or(i64::MAX));
    }

    /// This replica does not lead: it knows of no waiting pods, so that they are not counted twice.
    pub fn follows(&self) {
        for gauge in [&self.0.waiting, &self.0.oldest, &self.0.skipped, &self.0.unfollowed] {
            gauge.set(0);
        }
    }

    /// It was decided what nodes should publish; so many pods were not looked at, and so many nodes have not followed what was decided
    /// before.
    pub fn decided(&self, took: Duration, skipped: usize, unfollowed: usize) {
        self.0.decisions.observe(took.as_secs_f64());
        self.0.skipped.set(i64::try_from(skipped).unwrap_or(i64::MAX));
        self.0.unfollowed.set(i64::try_from(unfollowed).unwrap_or(i64::MAX));
    }

    /// A hold has ended.
    pub fn hold_ended(&self, outcome: HoldEnd) {
        self.0.holds.get_or_create(&HoldLabels { outcome }).inc();
    }

    /// A claim has got its devices, so long after its pod was found unschedulable.
    pub fn allocated(&self, profile: String, waited: Duration) {
        self.0.waits.get_or_create(&ProfileLabels { profile }).observe(waited.as_secs_f64());
    }

    /// A pod was explained.
    pub fn explained(&self, verdict: VerdictLabel, took: Duration) {
        self.0.explanations.get_or_create(&VerdictLabels { verdict }).inc();
        self.0.explaining.observe(took.as_secs_f64());
    }

    /// An event was written, or was not.
    pub fn event_written(&self, is_success: bool) {
        let outcome = if is_success { Outcome::Success } else { Outcome::Failure };
        self.0.events.get_or_create(&EventLabels { outcome }).inc();
    }

    #[cfg(test)]
    pub(crate) fn holds_ended(&self, outcome: HoldEnd) -> u64 {
        self.0.holds.get_or_create(&HoldLabels { outcome }).get()
    }

    /// The spec of a MigNode was written, or was not.
    pub fn wrote_spec(&self, reason: WriteReason, outcome: Outcome) {
        self.0.writes.get_or_create(&WriteLabels { reason, outcome }).inc();
    }

    /// A pod was evicted, or was not.
    pub fn evicted(&self, outcome: EvictionOutcome) {
        self.0.evictions.get_or_create(&EvictionLabels { outcome }).inc();
    }

    /// A watch has failed.
    pub fn watch_failed(&self, resource: Kind) {
        self.0.watch_errors.get_or_create(&KindLabels { resource }).inc();
    }

    /// What is in memory.
    pub fn holds(&self, world: &World) {
        for &resource in Kind::ALL {
            let count = i64::try_from(world.count(resource)).unwrap_or(i64::MAX);
            self.0.objects.get_or_create(&KindLabels { resource }).set(count);
        }
    }

    /// All that is shown.
    #[must_use]
    pub fn exporter(&self, leadership: Leadership) -> Exporter {
        let version = env!("CARGO_PKG_VERSION");
        let mut exporter =
            Exporter::new("controller_build", "The controller", version, |it| self.register(it));
        exporter.show(LeaderMetric(leadership));
        exporter
    }

    fn register(&self, registry: &mut Registry) {
        let it = &self.0;
        let registry = registry.sub_registry_with_prefix("controller");
        registry.register_with_unit(
            "round_duration",
            "Time of a round: what was decided and written in it",
            Unit::Seconds,
            it.rounds.clone(),
        );
        registry.register_with_unit(
            "decision_duration",
            "Time of one decision about what nodes should publish, without its writes",
            Unit::Seconds,
            it.decisions.clone(),
        );
        registry.register(
            "skipped_pods",
            "Pods that the last decision did not look at, or not on all nodes, because too many different ones wait",
            it.skipped.clone(),
        );
        registry.register(
            "unfollowed_demands",
            "Nodes that have not published what was demanded of them for a minute",
            it.unfollowed.clone(),
        );
        registry.register("holds", "Holds that have ended, by how", it.holds.clone());
        registry.register_with_unit(
            "allocation_wait",
            "How long pods were unschedulable before their claims got devices, by profile",
            Unit::Seconds,
            it.waits.clone(),
        );
        registry.register_with_unit(
            "oldest_waiting_pod",
            "How long the scheduler has found no place for the pod that waits longest",
            Unit::Seconds,
            it.oldest.clone(),
        );
        registry.register("waiting_pods", "Pods that wait for devices of our classes", it.waiting.clone());
        registry.register("explanations", "Pods that were explained, by verdict", it.explanations.clone());
        registry.register_with_unit(
            "explanation_duration",
            "Time of one explanation",
            Unit::Seconds,
            it.explaining.clone(),
        );
        registry.register("events", "Events of pods, by whether they were written", it.events.clone());
        registry.register(
            "spec_writes",
            "Specs of MigNodes, by why and whether they were written",
            it.writes.clone(),
        );
        registry.register(
            "evictions",
            "Evictions of pods that make room, by what has become of them",
            it.evictions.clone(),
        );
        registry.register(
            "watch_errors",
            "Watches that failed; they are opened again",
            it.watch_errors.clone(),
        );
        registry.register("objects", "Objects in memory", it.objects.clone());
    }
}

/// Whether this replica acts.
#[derive(Debug)]
struct LeaderMetric(Leadership);

impl Collector for LeaderMetric {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let leads = flag(self.0.holds());
        write_one(&mut encoder, &gauge("controller_leader", "1 where this replica acts"), leads)
    }
}
