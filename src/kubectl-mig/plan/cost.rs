//! What pods cost: the price of a GPU is divided among those that have something of it, by their memory slices, so that what
//! is free or stranded on a GPU in use is paid for by its users.

use super::engine::Outcome;
use super::map::MappedGpu;

/// Prices for an hour.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cost {
    /// Of a GPU.
    pub(super) gpu: f64,
    /// Of the pods of the plan that have a place.
    pub(super) total: f64,
    /// Of the same with a whole GPU for each device.
    pub(super) whole_gpus: f64,
    /// Of one pod, by workload; `None` where no pod of it has a place.
    pub(super) per_pod: Vec<Option<f64>>,
}

impl Cost {
    pub(super) fn of(price: f64, gpus: &[MappedGpu], outcome: &Outcome, workloads: usize) -> Self {
        let mut by_workload = vec![0.0; workloads];
        let mut devices = 0_u32;
        for gpu in gpus.iter().filter(|it| it.is_used()) {
            let shares = gpu.shares();
            let all: usize = shares.iter().map(|(_, share)| share).sum();
            for (workload, share) in shares.into_iter().filter_map(|(it, share)| Some((it?, share))) {
                devices += 1;
                by_workload[workload] += price * float(share) / float(all.max(1));
            }
        }
        let pods = |workload: usize| {
            outcome.pods.iter().filter(|it| it.workload == workload && it.place.is_some()).count()
        };
        let per_pod = by_workload.iter().enumerate().map(|(index, cost)| match pods(index) {
            0 => None,
            count => Some(cost / float(count)),
        });
        Self {
            gpu: price,
            total: by_workload.iter().sum(),
            whole_gpus: price * f64::from(devices),
            per_pod: per_pod.collect(),
        }
    }

    /// What is saved, as a share of the price of whole GPUs.
    pub(super) fn saving(&self) -> f64 {
        if self.whole_gpus <= 0.0 { 0.0 } else { 1.0 - self.total / self.whole_gpus }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are small")]
fn float(count: usize) -> f64 {
    count as f64
}
