//! One thread per GPU. Work for a GPU runs in the order of submission; GPUs do not wait for each other.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{fmt, io};

use nvml_wrapper::Nvml;
use tokio::sync::oneshot;
use tracing::Span;

use super::{CallError, CallTimer, DeviceHandle};

type Job = Box<dyn FnOnce(Result<&DeviceHandle<'_>, CallError>) + Send>;

/// A piece of work until it begins, or is withdrawn.
type Slot = Arc<Mutex<Option<Job>>>;

/// The way to a GPU. Clones share the thread, which ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct GpuQueue {
    jobs: mpsc::Sender<Slot>,
    timer: CallTimer,
    /// Work that waits or runs.
    pending: Arc<AtomicUsize>,
}

/// A piece of work that was asked for. Dropped before it has begun, it is withdrawn: behind a GPU that hangs, work would pile up.
pub struct Submitted<T, E> {
    answer: oneshot::Receiver<Result<T, E>>,
    slot: Slot,
}

/// The GPU's thread is gone, which happens only while the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the thread of the GPU has ended; the driver is stopping, or restart its pod")]
pub struct QueueClosed;

impl GpuQueue {
    /// Starts the thread of the GPU with this UUID, at this NVML index. The second value is for waiting for its
    /// end.
    pub fn start(nvml: Arc<Nvml>, uuid: String, index: u32) -> io::Result<(Self, JoinHandle<()>)> {
        let (jobs, inbox) = mpsc::channel::<Slot>();
        let timer = CallTimer::default();
        let thread_timer = timer.clone();
        let thread = thread::Builder::new().name(format!("gpu-{index}")).spawn(move || {
            // Kept once it was found: looking one up by UUID can take seconds while others do (mig-nvml-cdi.md 3.2).
            let mut device = None;
            for slot in inbox {
                let Some(job) = take(&slot) else { continue };
                let _busy = thread_timer.begin();
                if device.is_none() {
                    match DeviceHandle::by_uuid(&nvml, &uuid, index) {
                        Ok(found) => device = Some(found),
                        Err(error) => {
                            job(Err(error));
                            continue;
                        }
                    }
                }
                if let Some(device) = &device {
                    job(Ok(device));
                }
            }
        })?;
        Ok((Self { jobs, timer, pending: Arc::default() }, thread))
    }

    /// How long the present piece of work takes already; nothing where there is none.
    #[must_use]
    pub fn busy_for(&self) -> Option<Duration> {
        self.timer.busy_for()
    }

    /// Runs a piece of work on the GPU's thread. Once begun it is done even if the caller stops waiting; if the caller has
    /// cancelled before it starts, it never runs.
    pub async fn run<T, E, F>(&self, work: F) -> Result<Result<T, E>, QueueClosed>
    where
        T: Send + 'static,
        E: From<CallError> + Send + 'static,
        F: FnOnce(&DeviceHandle<'_>) -> Result<T, E> + Send + 'static,
    {
        self.submit(work)?.ended().await
    }

    /// Asks for a piece of work, which can be withdrawn until it begins.
    pub fn submit<T, E, F>(&self, work: F) -> Result<Submitted<T, E>, QueueClosed>
    where
        T: Send + 'static,
        E: From<CallError> + Send + 'static,
        F: FnOnce(&DeviceHandle<'_>) -> Result<T, E> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let span = Span::current();
        let pending = Pending::new(&self.pending);
        let job: Job = Box::new(move |device| {
            let _pending = pending;
            let _entered = span.entered();
            // The receiver may be gone; the work counts all the same.
            let _ = reply.send(device.map_err(E::from).and_then(work));
        });
        let slot = Arc::new(Mutex::new(Some(job)));
        self.jobs.send(Arc::clone(&slot)).map_err(|_| QueueClosed)?;
        Ok(Submitted { answer, slot })
    }

    /// Work that waits or runs now.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }
}

impl<T, E> Submitted<T, E> {
    /// Waits for the end of the work. Can be called again where it was not waited for to the end.
    pub async fn ended(&mut self) -> Result<Result<T, E>, QueueClosed> {
        (&mut self.answer).await.map_err(|_| QueueClosed)
    }

    /// Withdraws the work, with everything that it holds. False where it has begun.
    #[must_use]
    pub fn withdraw(&self) -> bool {
        take(&self.slot).is_some()
    }
}

impl<T, E> Drop for Submitted<T, E> {
    fn drop(&mut self) {
        drop(take(&self.slot));
    }
}

impl<T, E> fmt::Debug for Submitted<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submitted").finish_non_exhaustive()
    }
}

fn take(slot: &Slot) -> Option<Job> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// A piece of work from when it was asked for until it is done, or is not to be done any more.
struct Pending(Arc<AtomicUsize>);

impl Pending {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
