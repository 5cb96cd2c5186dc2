//! Counters and durations for Prometheus, on a separate port.
//!
//! Two kinds, and no third:
//!
//! * What *happens* is counted where it happens, through [`Metrics`], a handle that is cheap to clone and that every
//!   part of the driver which counts has in its `…Parts`. Times are taken by clocks that also count when they are
//!   dropped, so that failures, refusals and callers who gave up are in the numbers.
//! * What *is* (instances, free placements, claims, what was published) is computed from the driver's state whenever
//!   Prometheus scrapes, by a [`Collector`](prometheus_client::collector::Collector). No value is kept in sync by hand.
//!
//! # To add a number
//!
//! 1. A counter: in `families.rs` a field in `Families` with its label set (a struct that derives `EncodeLabelSet`; a label
//!    whose values are known gets a set of `label_values!`, so that the number of series is bounded), a line in `register`
//!    with name and help, and here a method of [`Metrics`] that counts. A closed set of labels is put at zero in
//!    `at_zero`: a rate needs a number to begin at.
//! 2. Something of the state: in the `metrics.rs` of the module that owns the state, a [`Collector`](prometheus_client::collector::Collector) that the composition root
//!    gives to [`Exporter::show`].
//! 3. A row in the tables of docs/metrics.md; a test compares them with the metrics that a node serves.
//!
//! Names begin with `dra_mig_` (the registry adds it) and end with their unit; counters get `_total` by themselves.

mod families;
mod labels;
mod reason;
mod timer;

use std::sync::Arc;

pub use labels::{EventGap, GpuEventKind, Method, Outcome, Recovery, SliceWrite, Step};
pub use mig_telemetry::{Exporter, MetricsAddress, MetricsError, bind_metrics, serve_metrics};
pub(crate) use mig_telemetry::{Gauge, count, flag, gauge, label_values, write, write_one};
pub use reason::Reason;
pub use timer::{CallClock, StepClock};

use mig_model::call::CallError;

use families::{ApiLabels, Families, GapLabels, GpuEventLabels, NvmlLabels, RecoveryLabels, SliceLabels};

/// The way to count. Clones count into the same numbers.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<Families>);

impl Metrics {
    /// Starts the clock of a call of the kubelet for one claim.
    pub fn call(&self, method: Method) -> CallClock {
        CallClock::start(Arc::clone(&self.0), method)
    }

    /// Starts the clock of a step.
    pub fn step(&self, step: Step) -> StepClock {
        StepClock::start(Arc::clone(&self.0), step)
    }

    /// Does a step and counts it by its result.
    pub fn timed<T, E>(&self, step: Step, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let clock = self.step(step);
        let result = work();
        clock.end(result.is_ok());
        result
    }

    /// Waits for a step and counts it by its result; as failed if the wait is cancelled.
    pub async fn awaited<T, E>(&self, step: Step, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let clock = self.step(step);
        let result = work.await;
        clock.end(result.is_ok());
        result
    }

    /// A ResourceSlice was written.
    pub fn slice_written(&self, operation: SliceWrite) {
        self.0.slice_writes.get_or_create(&SliceLabels { operation }).inc();
    }

    /// The API server has answered, or has not: `code` is a status, or a word for what came instead.
    pub fn api_answered(&self, verb: &'static str, resource: &'static str, code: String) {
        self.0.api_requests.get_or_create(&ApiLabels { verb, resource, code }).inc();
    }

    /// Something was done without being asked for, or was tried.
    pub fn recovered(&self, action: Recovery, is_success: bool) {
        let outcome = if is_success { Outcome::Success } else { Outcome::Failure };
        self.0.recoveries.get_or_create(&RecoveryLabels { action, outcome }).inc();
    }

    /// A call into NVML failed where it should not have.
    pub fn nvml_failed(&self, error: &CallError) {
        let labels = NvmlLabels { call: error.call, code: error.code.to_string() };
        self.0.nvml_errors.get_or_create(&labels).inc();
    }

    /// NVML has reported an event of this GPU. An XID that NVIDIA has not assigned yet is counted as `other`.
    pub fn gpu_event(&self, uuid: &str, event: GpuEventKind, xid: Option<u64>) {
        /// Above all that there are.
        const MOST: u64 = 1000;
        let known = |it: u64| if it < MOST { it.to_string() } else { "other".to_owned() };
        let labels =
            GpuEventLabels { uuid: uuid.to_owned(), event, code: xid.map(known).unwrap_or_default() };
        self.0.gpu_events.get_or_create(&labels).inc();
    }

    /// Shows what is counted here.
    #[must_use]
    pub fn exporter(&self) -> Exporter {
        Exporter::new("build", "The driver", env!("CARGO_PKG_VERSION"), |registry| self.0.register(registry))
    }

    /// Counts a gap in the monitoring of GPUs.
    pub fn event_gap(&self, cause: EventGap) {
        self.0.event_gaps.get_or_create(&GapLabels { cause }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(metrics: &Metrics) -> String {
        metrics.exporter().text(0)
    }

    #[test]
    fn a_call_that_no_caller_waits_for_is_counted() {
        let metrics = Metrics::default();
        drop(metrics.call(Method::Prepare));
        metrics.call(Method::Prepare).end(Reason::Ok);
        let text = text(&metrics);
        for line in [
            r#"dra_mig_calls_total{method="prepare",outcome="abandoned",reason="abandoned"} 1"#,
            r#"dra_mig_calls_total{method="prepare",outcome="success",reason="ok"} 1"#,
            r#"dra_mig_calls_total{method="unprepare",outcome="failure",reason="in_use"} 0"#,
            r#"dra_mig_call_duration_seconds_count{method="prepare",outcome="abandoned"} 1"#,
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn a_step_that_fails_or_is_dropped_is_counted_as_a_failure() {
        let metrics = Metrics::default();
        let _ = metrics.timed(Step::CdiWrite, || Err::<(), _>(()));
        drop(metrics.step(Step::CdiWrite));
        let _ = metrics.timed(Step::CdiWrite, || Ok::<_, ()>(()));
        let text = text(&metrics);
        for line in [
            r#"dra_mig_step_duration_seconds_count{step="cdi_write",outcome="failure"} 2"#,
            r#"dra_mig_step_duration_seconds_count{step="cdi_write",outcome="success"} 1"#,
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn the_text_is_complete_openmetrics() {
        let text = text(&Metrics::default());
        assert!(text.contains("# TYPE dra_mig_calls counter\n") && text.contains("# HELP dra_mig_calls "));
        assert!(text.contains("dra_mig_build_info{version=\""), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn every_sample_of_the_driver_belongs_to_the_family_before_it() {
        let text = mig_telemetry::plain(&text(&Metrics::default()));
        let mut family = ("", "");
        for line in text.lines() {
            if let Some(declared) = line.strip_prefix("# TYPE ") {
                family = declared.split_once(' ').unwrap();
            } else if !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().unwrap();
                let own = match family.1 {
                    "histogram" => ["_bucket", "_sum", "_count"].iter().find_map(|it| name.strip_suffix(it)),
                    "counter" | "gauge" => Some(name),
                    kind => panic!("0.0.4 has no {kind}"),
                };
                assert_eq!(own, Some(family.0), "{line}");
            }
        }
    }
}
