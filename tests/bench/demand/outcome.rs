//! What came of arrivals.

use crate::arrivals::{Arrival, RUN};

/// Of the arrivals, this part is not counted: the GPUs were empty before.
pub(crate) const WARM_UP: usize = 20;

/// What came of arrivals.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// Memory in use over time until the last pod arrives, in parts of what would have been in use had every pod started at once.
    pub(crate) served: f64,
    /// Waiting times by profile, ascending, in mean run times. A pod that still waits counts with what it has waited.
    pub(crate) waits: Vec<Vec<f64>>,
    pub(crate) layout_changes: usize,
    pub(crate) slice_writes: usize,
    /// Memory that stood idle on GPUs that were held back, in parts of all.
    pub(crate) idle: f64,
    /// Pods that were evicted, and the longest wait of a replacement in mean run times.
    pub(crate) evictions: usize,
    pub(crate) longest_move: f64,
}

impl Outcome {
    /// From when each pod started, if it did before the last one arrived.
    pub(crate) fn of(arrivals: &[Arrival], starts: &[Option<f64>], sizes: &[u32]) -> Self {
        let end = arrivals.last().map_or(0.0, |it| it.at);
        let mut outcome = Self { waits: vec![Vec::new(); sizes.len()], ..Self::default() };
        let (mut asked, mut given) = (0.0, 0.0);
        let used = |arrival: &Arrival, start: f64| {
            f64::from(sizes[arrival.profile]) * arrival.lasts.min(end - start)
        };
        for (arrival, start) in arrivals.iter().zip(starts).skip(arrivals.len() / WARM_UP) {
            let start = start.filter(|it| *it <= end);
            asked += used(arrival, arrival.at);
            given += start.map_or(0.0, |it| used(arrival, it));
            outcome.waits[arrival.profile].push((start.unwrap_or(end) - arrival.at) / RUN);
        }
        outcome.waits.iter_mut().for_each(|it| it.sort_by(f64::total_cmp));
        outcome.served = given / asked;
        outcome
    }

    /// A part of the waiting times of a profile is not above this; 1 is the longest.
    pub(crate) fn wait(&self, profile: usize, part: f64) -> f64 {
        let waits = &self.waits[profile];
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index of a list"
        )]
        let index = (part * waits.len().saturating_sub(1) as f64).round() as usize;
        waits.get(index).copied().unwrap_or(0.0)
    }
}
