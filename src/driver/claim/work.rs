//! Work on a GPU's thread. Looks are waited for no longer than a call may take. What changes the GPU is waited for to its end once
//! it has begun: nothing of a claim may be undone or forgotten while it runs. Before that it is withdrawn where the thread hangs in
//! other work. The call is answered in time all the same, see [`within`].

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mig_model::claim::ClaimRef;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{Instrument, warn};

use crate::hardware::LiveGpu;
use crate::mig::MigError;
use crate::nvml::{DeviceHandle, QueueClosed};
use crate::pods::PodRef;
use crate::telemetry::metrics::Step;

/// Why work on a GPU has no result.
#[derive(Debug)]
pub(super) enum WorkError {
    /// It failed.
    Mig(MigError),
    /// There is no thread to do it.
    Closed(QueueClosed),
    /// The thread hangs in other work, and this was not begun.
    Hung(HungGpu),
}

/// A GPU whose thread does not come back from a piece of work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "GPU {uuid} hangs: a call into NVML has not come back for {seconds} s, so that nothing was begun; the kubelet asks again; \
     `nvidia-smi` and the kernel log of the node show more; where the call does not come back, reboot the node"
)]
pub struct HungGpu {
    /// UUID of the GPU.
    pub uuid: String,
    /// For how long.
    pub seconds: u64,
}

/// Reads the GPU on its thread; `None` without a result before the deadline. For work without side effects.
pub(super) async fn look<T: Send + 'static>(
    gpu: &LiveGpu,
    deadline: Instant,
    work: impl FnOnce(&DeviceHandle<'_>) -> Result<T, MigError> + Send + 'static,
) -> Option<Result<T, WorkError>> {
    timeout_at(deadline, to_its_end(gpu, work)).await.ok()
}

/// Runs work on the GPU's thread and waits until it has ended, however long that takes. Not begun, and withdrawn with everything
/// that it holds, where the thread hangs.
pub(super) async fn to_its_end<T: Send + 'static>(
    gpu: &LiveGpu,
    work: impl FnOnce(&DeviceHandle<'_>) -> Result<T, MigError> + Send + 'static,
) -> Result<T, WorkError> {
    let waiting = gpu.metrics.step(Step::QueueWait);
    let work = |handle: &DeviceHandle<'_>| {
        waiting.end(true);
        work(handle)
    };
    let hung = || {
        let seconds = gpu.queue.busy_for().unwrap_or_default().as_secs();
        WorkError::Hung(HungGpu { uuid: gpu.facts.uuid.clone(), seconds })
    };
    if gpu.hangs() {
        return Err(hung());
    }
    let mut submitted = gpu.queue.submit(work).map_err(WorkError::Closed)?;
    let ended = loop {
        match timeout(gpu.hangs_not_before(), submitted.ended()).await {
            Ok(ended) => break ended,
            Err(_) if !gpu.hangs() => {}
            Err(_) if submitted.withdraw() => return Err(hung()),
            // It is this work that hangs.
            Err(_) => break submitted.ended().await,
        }
    };
    ended.map_err(WorkError::Closed)?.map_err(|error| {
        // Listening to the GPU's events may count as using it.
        if error.is_transient() {
            gpu.step_aside();
        }
        if let Some(failed) = error.call_error() {
            gpu.nvml_failed(&failed);
        }
        WorkError::Mig(error)
    })
}

/// Repeats what fails only for the moment, until the deadline: the kubelet itself would wait for more than a minute.
pub(super) async fn retried<T, F>(
    deadline: Instant,
    waiting: &Waiting,
    work: impl Fn() -> F,
) -> Result<T, WorkError>
where
    F: Future<Output = Result<T, WorkError>>,
{
    const LONGEST_PAUSE: Duration = Duration::from_secs(2);
    let mut pause = Duration::from_millis(100);
    loop {
        match work().await {
            Err(WorkError::Mig(error)) if error.is_transient() && Instant::now() + pause < deadline => {
                warn!(%error, "trying again");
                waiting.failed(&error);
                sleep(pause).await;
                pause = LONGEST_PAUSE.min(pause * 2);
            }
            result => return result,
        }
    }
}

/// Runs file operations that may wait for a disk without holding up the other calls.
pub(super) fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

/// What the work of a call still waits for. The call, which may end first, sees the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Ongoing(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Devices whose GPU has not answered, each with the failure of an earlier attempt.
    devices: BTreeMap<String, Option<String>>,
    /// Why everything is taken back, once it is.
    undone_because: Option<String>,
    answer: Answer,
}

/// Which came first: the end of the work, or that its call was answered without it.
#[derive(Debug, Default)]
enum Answer {
    /// Neither yet.
    #[default]
    Due,
    /// The call was answered; then also the pods of the claim, so that they learn how the work ends.
    Given(Vec<PodRef>),
    /// The work has ended, and is the answer.
    Ended,
}

/// A device whose GPU has not answered, until this is dropped.
#[derive(Debug)]
pub(super) struct Waiting {
    ongoing: Ongoing,
    device: String,
}

/// What a call waited for when its time was over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    claim: ClaimRef,
    devices: BTreeMap<String, Option<String>>,
    undone_because: Option<String>,
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(error) = &self.undone_because {
            return write!(f, "{error}; what was made for the claim is still being taken back");
        }
        if self.devices.is_empty() {
            let claim = &self.claim;
            write!(f, "the work for ResourceClaim {claim} did not end within the time of the call")?;
        }
        for (index, (device, before)) in self.devices.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}device `{device}`")?;
            if let Some(before) = before {
                write!(f, " (an earlier attempt: {before})")?;
            }
        }
        if !self.devices.is_empty() {
            f.write_str(": the GPU did not answer within the time of the call")?;
        }
        f.write_str("; the driver goes on, and the kubelet asks again")
    }
}

impl Ongoing {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Work for this device begins.
    pub(super) fn begin(&self, device: &str) -> Waiting {
        self.state().devices.insert(device.to_owned(), None);
        Waiting { ongoing: self.clone(), device: device.to_owned() }
    }

    /// From now on everything is taken back.
    pub(super) fn undoes(&self, because: &impl fmt::Display) {
        self.state().undone_because = Some(because.to_string());
    }

    /// The work has ended. The pods that learn how, where the call was answered before.
    pub(super) fn end(&self) -> Option<Vec<PodRef>> {
        match std::mem::replace(&mut self.state().answer, Answer::Ended) {
            Answer::Given(pods) => Some(pods),
            Answer::Due | Answer::Ended => None,
        }
    }

    /// Answers the call without the work, unless that has ended: then its result is the answer. `report` says so to the pods that it
    /// returns, before they can learn of the end.
    fn answer(
        &self,
        claim: &ClaimRef,
        report: impl FnOnce(&Unfinished) -> Vec<PodRef>,
    ) -> Option<Unfinished> {
        let mut state = self.state();
        if let Answer::Ended = state.answer {
            return None;
        }
        let (devices, undone_because) = (state.devices.clone(), state.undone_because.clone());
        let unfinished = Unfinished { claim: claim.clone(), devices, undone_because };
        state.answer = Answer::Given(report(&unfinished));
        Some(unfinished)
    }

    fn waits_for_a_gpu(&self) -> bool {
        let state = self.state();
        state.undone_because.is_none() && !state.devices.is_empty()
    }
}

impl Waiting {
    fn failed(&self, error: &MigError) {
        self.ongoing.state().devices.insert(self.device.clone(), Some(error.to_string()));
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.ongoing.state().devices.remove(&self.device);
    }
}

/// Why a call has no result.
#[derive(Debug)]
pub(super) enum NoResult {
    /// The work goes on.
    Unfinished(Unfinished),
    /// The work was lost: a bug, or the end of the process.
    Interrupted,
}

/// Runs the work of a call in its own task, and waits for it until the deadline. What takes back or only waits for a
/// disk then has a moment more. The work goes on in any case until it has ended, and keeps the claim until then. `report` is for
/// a call that is answered before, see [`Ongoing::answer`].
pub(super) async fn within<T: Send + 'static>(
    claim: &ClaimRef,
    deadline: Instant,
    ongoing: &Ongoing,
    work: impl Future<Output = T> + Send + 'static,
    report: impl FnOnce(&Unfinished) -> Vec<PodRef>,
) -> Result<T, NoResult> {
    let mut task = tokio::spawn(work.in_current_span());
    let ended = match timeout_at(deadline, &mut task).await {
        Err(_) if !ongoing.waits_for_a_gpu() => {
            timeout_at(deadline.max(Instant::now()) + BEYOND, &mut task).await
        }
        ended => ended,
    };
    let result = match ended {
        Ok(result) => result,
        Err(_) => match ongoing.answer(claim, report) {
            Some(unfinished) => return Err(NoResult::Unfinished(unfinished)),
            None => task.await,
        },
    };
    result.map_err(|_| NoResult::Interrupted)
}

/// No pod learns how the work ends.
pub(super) fn unreported(_: &Unfinished) -> Vec<PodRef> {
    Vec::new()
}

/// What a call that has used up its time may take beyond it: the kubelet waits five seconds longer.
pub(super) const BEYOND: Duration = Duration::from_secs(4);

#[cfg(test)]
mod tests {
    use super::*;

    fn claim() -> ClaimRef {
        ClaimRef::new("ns".into(), "claim".into(), "uid-1".into()).unwrap()
    }

    fn pods() -> Vec<PodRef> {
        vec![PodRef { name: "pod".to_owned(), uid: "uid-2".to_owned() }]
    }

    #[tokio::test]
    async fn work_that_has_ended_is_the_answer_and_is_not_said_to_go_on() {
        let ongoing = Ongoing::default();
        let _waits_for_a_gpu = ongoing.begin("device");
        // In the moment between the end of the work and its result the time of the call is over.
        assert_eq!(ongoing.end(), None);
        let (release, released) = tokio::sync::oneshot::channel();
        let claim = claim();
        let report = |_: &Unfinished| panic!("the end could no longer be reported");
        let work = async { released.await.is_ok() };
        let call = within(&claim, Instant::now(), &ongoing, work, report);
        let later = async {
            tokio::task::yield_now().await;
            release.send(()).unwrap();
        };
        let (result, ()) = tokio::join!(call, later);
        assert!(matches!(result, Ok(true)), "{result:?}");
    }

    #[tokio::test]
    async fn work_that_goes_on_beyond_the_answer_reports_its_end_to_the_same_pods() {
        let ongoing = Ongoing::default();
        let _waits_for_a_gpu = ongoing.begin("device");
        let (ended, end) = tokio::sync::oneshot::channel();
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        let seen = ongoing.clone();
        let work = async move {
            released.await.unwrap();
            ended.send(seen.end()).unwrap();
        };
        let result = within(&claim(), Instant::now(), &ongoing, work, |_| pods()).await;
        assert!(matches!(result, Err(NoResult::Unfinished(_))), "{result:?}");
        release.send(()).unwrap();
        assert_eq!(end.await.unwrap(), Some(pods()));
    }
}
