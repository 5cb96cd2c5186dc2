//! Work on a GPU's thread, waited for no longer than a call may take.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

use crate::hardware::LiveGpu;
use crate::mig::MigError;
use crate::nvml::{DeviceHandle, QueueClosed};
use crate::telemetry::metrics::Step;

/// Why work on a GPU has no result.
#[derive(Debug)]
pub(super) enum WorkError {
    /// It failed.
    Mig(MigError),
    /// It did not end in time and is still running, or waits behind something that is.
    Silent,
    /// There is no thread to do it.
    Closed(QueueClosed),
}

/// Runs work on the GPU's thread and waits for it until the deadline. Once begun it is done even if nobody waits any more.
pub(super) async fn on_gpu<T: Send + 'static>(
    gpu: &LiveGpu,
    deadline: Instant,
    work: impl FnOnce(&DeviceHandle<'_>) -> Result<T, MigError> + Send + 'static,
) -> Result<T, WorkError> {
    let waiting = gpu.metrics.step(Step::QueueWait);
    let work = |handle: &DeviceHandle<'_>| {
        waiting.end(true);
        work(handle)
    };
    match timeout_at(deadline, gpu.queue.run(work)).await {
        Ok(Ok(result)) => result.map_err(|error| {
            // Listening to the GPU's events may count as using it.
            if error.is_transient() {
                gpu.step_aside();
            }
            if let Some(failed) = error.call_error() {
                gpu.metrics.nvml_failed(&failed);
            }
            WorkError::Mig(error)
        }),
        Ok(Err(closed)) => Err(WorkError::Closed(closed)),
        Err(_) => Err(WorkError::Silent),
    }
}

/// Repeats what fails only for the moment, until the deadline: the kubelet itself would wait for more than a minute.
pub(super) async fn retried<T, F>(deadline: Instant, work: impl Fn() -> F) -> Result<T, WorkError>
where
    F: Future<Output = Result<T, WorkError>>,
{
    const LONGEST_PAUSE: Duration = Duration::from_secs(2);
    let mut pause = Duration::from_millis(100);
    let mut before = None;
    loop {
        match work().await {
            Err(WorkError::Mig(error)) if error.is_transient() && Instant::now() + pause < deadline => {
                warn!(%error, "trying again");
                before = Some(error);
                sleep(pause).await;
                pause = LONGEST_PAUSE.min(pause * 2);
            }
            // The last attempt had no time: what was wrong before says more.
            Err(WorkError::Silent) => return Err(before.map_or(WorkError::Silent, WorkError::Mig)),
            result => return result,
        }
    }
}

/// Runs file operations that may wait for a disk without holding up the other calls.
pub(super) fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}
