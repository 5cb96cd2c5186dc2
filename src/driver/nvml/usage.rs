//! What an instance uses: its memory, and on GPUs that measure it for instances (GPM, Hopper and later) its engines.
//!
//! Utilisation is the mean between two samples, so one is kept for each instance until the next look. It is given back
//! before anything of the instance is destroyed, on the same thread, so that it cannot be in the way.

use mig_model::facts;
use nvml_wrapper::enums::gpm::GpmMetricId;
use nvml_wrapper::gpm::gpm_metrics_get;

use super::error::wrapped;
use super::{CallError, Code, DeviceHandle};

/// What is measured of the engines, and what [`facts::Engine`] it is about.
const METRICS: [(GpmMetricId, facts::Engine); 5] = [
    (GpmMetricId::GraphicsUtil, facts::Engine::Graphics),
    (GpmMetricId::SmUtil, facts::Engine::Multiprocessors),
    (GpmMetricId::SmOccupancy, facts::Engine::Warps),
    (GpmMetricId::AnyTensorUtil, facts::Engine::Tensor),
    (GpmMetricId::DramBwUtil, facts::Engine::MemoryBandwidth),
];

impl DeviceHandle<'_> {
    /// Share of the last sample period (a second or less, nvml.h at nvmlUtilization_t) in which something ran on the GPU.
    /// NOT_SUPPORTED while it is in MIG mode: then its instances are measured.
    pub fn utilization(&self) -> Result<f64, CallError> {
        let rates = self.wrapper().utilization_rates();
        let rates = rates.map_err(wrapped("nvmlDeviceGetUtilizationRates"))?;
        Ok((f64::from(rates.gpu) / 100.0).clamp(0.0, 1.0))
    }

    /// How busy a GPU instance was since it was last asked for by the same owner, as shares of 1. Empty the first time,
    /// and on a GPU that does not measure.
    pub fn utilization_of(
        &self,
        gpu_instance: u32,
        owner: &str,
    ) -> Result<Vec<(facts::Engine, f64)>, CallError> {
        if !self.measures() {
            return Ok(Vec::new());
        }
        let now = self.wrapper().gpm_mig_sample(gpu_instance).map_err(wrapped("nvmlGpmMigSampleGet"))?;
        let before = self.samples.last.borrow_mut().remove(&gpu_instance);
        let mut found = Vec::new();
        if let Some((_, before)) = before.filter(|(it, _)| it == owner) {
            let ids = METRICS.map(|(id, _)| id);
            let results =
                gpm_metrics_get(self.nvml, &before, &now, &ids).map_err(wrapped("nvmlGpmMetricsGet"))?;
            // What this GPU, or this driver, does not measure is left out.
            let measured =
                results.into_iter().zip(METRICS).filter_map(|(it, (_, engine))| Some((it.ok()?, engine)));
            found = measured
                .filter(|(it, _)| it.value.is_finite())
                .map(|(it, engine)| (engine, (it.value / 100.0).clamp(0.0, 1.0)))
                .collect();
        }
        self.samples.last.borrow_mut().insert(gpu_instance, (owner.to_owned(), now));
        Ok(found)
    }

    /// Gives back the sample that is kept of a GPU instance since it was asked for: who will not ask again lets go of it.
    pub fn forget_utilization_of(&self, gpu_instance: u32) {
        self.samples.forget(gpu_instance);
    }

    /// Whether the GPU measures the use of its engines. A driver too old for the question does not.
    #[must_use]
    pub fn measures(&self) -> bool {
        let ask = || {
            let can_free = self.nvml.lib().nvmlGpmSampleFree.is_ok();
            let supported = self.wrapper().gpm_support().map_err(wrapped("nvmlGpmQueryDeviceSupport"));
            can_free
                && !matches!(
                    supported,
                    Ok(false) | Err(CallError { code: Code::FUNCTION_NOT_FOUND | Code::NOT_SUPPORTED, .. })
                )
        };
        let known = self.samples.is_supported.get().unwrap_or_else(ask);
        self.samples.is_supported.set(Some(known));
        known
    }
}
