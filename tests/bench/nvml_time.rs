//! How long the driver was inside NVML, from the simulator's log of calls.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nvml_sim::Call;

/// A stretch of time in which something was measured.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    pub(crate) began: SystemTime,
    pub(crate) took: Duration,
}

/// The time within the window during which at least one NVML call was running. Calls that run side by side on several
/// GPUs count once: their sum would be more than has passed.
pub(crate) fn inside_nvml(calls: &[Call], window: Window) -> Duration {
    let from = window.began.duration_since(UNIX_EPOCH).unwrap_or_default();
    let until = from + window.took;
    let mut spans: Vec<(Duration, Duration)> = calls
        .iter()
        .map(|call| {
            let began = Duration::from_micros(call.began_us);
            (began.max(from), (began + Duration::from_micros(call.took_us)).min(until))
        })
        .filter(|(began, ended)| began < ended)
        .collect();
    spans.sort_unstable();
    let (mut inside, mut counted) = (Duration::ZERO, from);
    for (began, ended) in spans {
        inside += ended.saturating_sub(began.max(counted));
        counted = counted.max(ended);
    }
    inside
}
