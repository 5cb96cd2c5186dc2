//! One thread per GPU. Work for a GPU is done in the order it was asked for; GPUs do not wait for each other.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nvml_wrapper::Nvml;
use tokio::sync::oneshot;
use tracing::Span;

use super::{CallError, DeviceHandle, Pulse};

type Job = Box<dyn FnOnce(Result<&DeviceHandle<'_>, CallError>) + Send>;

/// The way to a GPU. Clones share the thread, which ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct GpuQueue {
    jobs: mpsc::Sender<Job>,
    pulse: Pulse,
    /// Work that waits or runs.
    pending: Arc<AtomicUsize>,
}

/// The GPU's thread is gone, which happens only while the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the thread of the GPU has ended; the driver is shutting down or has to be restarted")]
pub struct QueueClosed;

impl GpuQueue {
    /// Starts the thread of the GPU with this UUID. The second value is for whoever waits for its end.
    pub fn start(nvml: Arc<Nvml>, uuid: String, name: &str) -> io::Result<(Self, JoinHandle<()>)> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let pulse = Pulse::default();
        let beats = pulse.clone();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Kept once it was found: looking one up by UUID can take seconds while others do (mig-nvml-cdi.md 3.2).
            let mut device = None;
            for job in inbox {
                let _busy = beats.begin();
                if device.is_none() {
                    match DeviceHandle::by_uuid(&nvml, &uuid) {
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
        Ok((Self { jobs, pulse, pending: Arc::default() }, thread))
    }

    /// How long the present piece of work takes already; nothing where there is none.
    #[must_use]
    pub fn busy_for(&self) -> Option<Duration> {
        self.pulse.busy_for()
    }

    /// Runs a piece of work on the GPU's thread. Once begun it is done even if the caller stops waiting; if the caller has
    /// given up before its turn comes, it is not begun: behind a GPU that hangs, work would pile up.
    pub async fn run<T, E, F>(&self, work: F) -> Result<Result<T, E>, QueueClosed>
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
            if reply.is_closed() {
                return;
            }
            // Nobody may be listening any more; the work counts all the same.
            let _ = reply.send(device.map_err(E::from).and_then(work));
        });
        self.jobs.send(job).map_err(|_| QueueClosed)?;
        answer.await.map_err(|_| QueueClosed)
    }

    /// Work that waits or runs now.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }
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
