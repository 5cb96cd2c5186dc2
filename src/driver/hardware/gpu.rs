//! One GPU and its thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mig_model::facts::{GpuFacts, GpuInstance, MigMode, RecoveryAction};
use mig_model::inventory::{Attachment, Gpu, GpuState};
use tokio::time::timeout;

use crate::nvml::{self, CallError, Code, GpuQueue, Monitor, QueueClosed};
use crate::telemetry::metrics::{EventGap, Metrics};

/// One GPU and its thread.
#[derive(Debug)]
pub struct LiveGpu {
    /// What NVML says of it.
    pub facts: Arc<GpuFacts>,
    /// The way to it.
    pub queue: GpuQueue,
    /// Where its errors and times are counted.
    pub metrics: Metrics,
    pub(super) hung_after: Duration,
    pub(super) attachment: Attachment,
    pub(super) events: Arc<Monitor>,
    pub(super) is_stale: Arc<AtomicBool>,
    /// Whether the last scan found that the GPU has fallen off the bus, or must be reset before it answers again.
    pub(super) is_lost: AtomicBool,
    /// What NVML recommended at the last scan; nothing where the driver or the GPU does not know.
    pub(super) recovery: Arc<Mutex<Option<RecoveryAction>>>,
    /// Whether a scan has not been answered yet.
    pub(super) is_asked: Arc<AtomicBool>,
}

/// Sets a flag back, whatever becomes of the work that carries it.
struct Asked(Arc<AtomicBool>);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl LiveGpu {
    /// Stops listening to the GPU's events for a moment, where that may be why it is in use. What happens to it meanwhile is
    /// missed, which is counted.
    pub fn step_aside(&self) {
        if self.events.step_aside(&self.facts.uuid) {
            self.metrics.event_gap(EventGap::Paused);
        }
    }

    /// Counts a call that failed. One that says that the driver was unloaded or replaced makes the session stale.
    pub fn nvml_failed(&self, error: &CallError) {
        self.metrics.nvml_failed(error);
        if error.means_another_driver() {
            self.is_stale.store(true, Ordering::Relaxed);
        }
    }

    /// True where the GPU's thread does not come back from a piece of work: what waits for it may be withdrawn.
    #[must_use]
    pub fn hangs(&self) -> bool {
        self.queue.busy_for().is_some_and(|it| self.hung_after <= it)
    }

    /// The earliest time from now at which [`Self::hangs`] can become true.
    #[must_use]
    pub fn hangs_not_before(&self) -> Duration {
        self.hung_after.saturating_sub(self.queue.busy_for().unwrap_or_default())
    }

    /// True where the last scan found that the GPU has fallen off the bus, or must be reset before it answers again.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }

    /// What NVML recommended at the last scan to do with the GPU; nothing where the driver or the GPU does not know.
    #[must_use]
    pub fn recovery_action(&self) -> Option<RecoveryAction> {
        *self.recovery.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same GPU, of which more is known.
    pub(super) fn with_facts(&self, facts: GpuFacts) -> Self {
        Self {
            facts: Arc::new(facts),
            queue: self.queue.clone(),
            metrics: self.metrics.clone(),
            hung_after: self.hung_after,
            attachment: self.attachment.clone(),
            events: Arc::clone(&self.events),
            is_stale: Arc::clone(&self.is_stale),
            is_lost: AtomicBool::new(self.is_lost()),
            recovery: Arc::clone(&self.recovery),
            is_asked: Arc::clone(&self.is_asked),
        }
    }

    pub(super) async fn scan<T: Send + 'static>(
        &self,
        note: impl Fn() -> T + Send + 'static,
    ) -> Result<(Gpu, Vec<T>), QueueClosed> {
        let (state, notes) = match self.read(note).await? {
            Ok((mode, instances, notes)) => (GpuState { mode, instances, problem: None }, notes),
            Err(problem) => {
                let mode = self.facts.mig.as_ref().map(|it| it.mode);
                (GpuState { mode, instances: Vec::new(), problem: Some(problem) }, Vec::new())
            }
        };
        Ok((Gpu { facts: Arc::clone(&self.facts), attachment: self.attachment.clone(), state }, notes))
    }

    /// MIG mode and instances, or why they cannot be read now. A GPU that does not answer is asked once, and not waited
    /// for long: it must not delay the scans of the others.
    async fn read<T: Send + 'static>(
        &self,
        note: impl Fn() -> T + Send + 'static,
    ) -> Result<Result<(Option<MigMode>, Vec<GpuInstance>, Vec<T>), String>, QueueClosed> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let no_answer = || Err("NVML does not answer for this GPU".to_owned());
        let is_stuck = self.queue.busy_for().is_some_and(|it| PATIENCE <= it);
        if is_stuck || self.is_asked.swap(true, Ordering::Relaxed) {
            return Ok(no_answer());
        }
        let (facts, asked) = (Arc::clone(&self.facts), Asked(Arc::clone(&self.is_asked)));
        let recovery = Arc::clone(&self.recovery);
        let read = self.queue.run(move |device| {
            let _asked = asked;
            // A failed read counts as no answer: what the scan is about does not depend on it.
            *recovery.lock().unwrap_or_else(PoisonError::into_inner) = device.recovery_action().ok();
            let Some(mig) = &facts.mig else {
                return nvml::answers(device).map(|()| (None, Vec::new(), Vec::new()));
            };
            let mode = device.mig_mode()?;
            let before = note();
            let instances = nvml::live_instances(device, &mig.profiles)?;
            Ok((Some(mode), instances, vec![before, note()]))
        });
        match timeout(PATIENCE, read).await {
            Ok(read) => {
                let read = read?;
                let code = read.as_ref().err().map(|it: &CallError| it.code);
                let is_lost = code.is_some_and(|it| [Code::GPU_IS_LOST, Code::RESET_REQUIRED].contains(&it));
                self.is_lost.store(is_lost, Ordering::Relaxed);
                Ok(read.map_err(|error| {
                    self.nvml_failed(&error);
                    error.to_string()
                }))
            }
            Err(_) => Ok(no_answer()),
        }
    }
}
