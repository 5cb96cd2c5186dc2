//! Metrics that count events: names, labels, and label values that are known beforehand.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::labels::{EventGap, GpuEventKind, Method, Outcome, Recovery, SliceWrite, Step};
use super::reason::Reason;

/// Upper bounds of latencies, in seconds: from a file operation to the kubelet's patience.
const LATENCIES: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 45.0];

/// Everything that is counted as it happens.
#[derive(Debug)]
pub(super) struct Families {
    pub(super) calls: Family<CallLabels, Counter>,
    pub(super) call_seconds: Family<CallTimeLabels, Histogram>,
    pub(super) step_seconds: Family<StepLabels, Histogram>,
    pub(super) slice_writes: Family<SliceLabels, Counter>,
    pub(super) api_requests: Family<ApiLabels, Counter>,
    pub(super) recoveries: Family<RecoveryLabels, Counter>,
    pub(super) nvml_errors: Family<NvmlLabels, Counter>,
    pub(super) gpu_events: Family<GpuEventLabels, Counter>,
    pub(super) event_gaps: Family<GapLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CallLabels {
    pub(super) method: Method,
    pub(super) outcome: Outcome,
    pub(super) reason: Reason,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CallTimeLabels {
    pub(super) method: Method,
    pub(super) outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct StepLabels {
    pub(super) step: Step,
    pub(super) outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct SliceLabels {
    pub(super) operation: SliceWrite,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ApiLabels {
    pub(super) verb: &'static str,
    pub(super) resource: &'static str,
    pub(super) code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RecoveryLabels {
    pub(super) action: Recovery,
    pub(super) outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct NvmlLabels {
    pub(super) call: &'static str,
    pub(super) code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct GpuEventLabels {
    pub(super) uuid: String,
    pub(super) event: GpuEventKind,
    /// The XID; empty for other events.
    pub(super) code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct GapLabels {
    pub(super) cause: EventGap,
}

impl Default for Families {
    fn default() -> Self {
        let latency: fn() -> Histogram = || Histogram::new(LATENCIES);
        let families = Self {
            calls: Family::default(),
            call_seconds: Family::new_with_constructor(latency),
            step_seconds: Family::new_with_constructor(latency),
            slice_writes: Family::default(),
            api_requests: Family::default(),
            recoveries: Family::default(),
            nvml_errors: Family::default(),
            gpu_events: Family::default(),
            event_gaps: Family::default(),
        };
        families.at_zero();
        families
    }
}

impl Families {
    /// Puts what can be known beforehand at zero, so that the first failure is an increase.
    fn at_zero(&self) {
        for &method in Method::ALL {
            for &reason in Reason::ALL {
                drop(self.calls.get_or_create(&CallLabels { method, outcome: reason.outcome(), reason }));
            }
            for &outcome in Outcome::ALL {
                drop(self.call_seconds.get_or_create(&CallTimeLabels { method, outcome }));
            }
        }
        for &step in Step::ALL {
            drop(self.step_seconds.get_or_create(&StepLabels { step, outcome: Outcome::Success }));
        }
        for &cause in EventGap::ALL {
            drop(self.event_gaps.get_or_create(&GapLabels { cause }));
        }
        for &operation in SliceWrite::ALL {
            drop(self.slice_writes.get_or_create(&SliceLabels { operation }));
        }
        for &action in Recovery::ALL {
            for outcome in [Outcome::Success, Outcome::Failure] {
                drop(self.recoveries.get_or_create(&RecoveryLabels { action, outcome }));
            }
        }
    }

    /// Counts a call that has ended, or that nothing waits for any more.
    pub(super) fn note_call(&self, method: Method, reason: Reason, took: Duration) {
        let outcome = reason.outcome();
        self.calls.get_or_create(&CallLabels { method, outcome, reason }).inc();
        self.call_seconds.get_or_create(&CallTimeLabels { method, outcome }).observe(took.as_secs_f64());
    }

    /// Counts a step.
    pub(super) fn note_step(&self, step: Step, outcome: Outcome, took: Duration) {
        self.step_seconds.get_or_create(&StepLabels { step, outcome }).observe(took.as_secs_f64());
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "calls",
            "Calls of the kubelet, one for each claim in them, by method and how they ended",
            self.calls.clone(),
        );
        registry.register_with_unit(
            "call_duration",
            "Time of a call of the kubelet for one claim until its answer, waiting and failures included",
            Unit::Seconds,
            self.call_seconds.clone(),
        );
        registry.register_with_unit(
            "step_duration",
            "Time of one step of a call",
            Unit::Seconds,
            self.step_seconds.clone(),
        );
        registry.register("slice_writes", "ResourceSlices written", self.slice_writes.clone());
        registry.register(
            "api_requests",
            "Requests to the API server; the code is the HTTP status, `error` without a connection, `timeout` without an answer",
            self.api_requests.clone(),
        );
        registry.register(
            "recovery_actions",
            "Repairs that the driver made without a request of the kubelet",
            self.recoveries.clone(),
        );
        registry.register(
            "nvml_errors",
            "Calls into NVML that failed where they should not have",
            self.nvml_errors.clone(),
        );
        registry.register(
            "gpu_events",
            "XIDs and ECC errors that NVML reports, those of applications included",
            self.gpu_events.clone(),
        );
        registry.register(
            "gpu_event_gaps",
            "Times in which events of a GPU were not received, so that some may be missing: `failed` where waiting for them \
             failed, `paused` where the driver stopped listening so that an instance could be destroyed",
            self.event_gaps.clone(),
        );
    }
}
